"""The page of a probe says what the report says, lets nothing of a file through, and fetches nothing."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import nibabel
import numpy as np
import pytest
from PIL import Image
from probe_reports import made_report

from zoo.evaluation.page import html_of, write_page
from zoo.evaluation.report import KNN, LINEAR, Estimate, ProbeReport
from zoo.evaluation.thumbnails import thumbnail

VOID = {"br", "img", "meta", "wbr"}
WIDTHS = (1280, 390)
HOSTILE = "<script>alert(1)</script>\"'><img src=//x onerror=alert(2)>{{ 7 * 7 }}\x1b[31m\u202e\ud800\n&amp;"


class Reading(HTMLParser):
    """What a page holds: its elements in order with their attributes, its tables, its text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.tables, self.text = [], [], ""
        self._open, self._cell = [], None
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, given):
        self.elements.append((tag, dict(given)))
        assert len(dict(given)) == len(given), f"an attribute twice: {given}"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self._open.append(tag)
        elif tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag):
        assert tag not in VOID
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    @property
    def words(self):
        """The text with single spaces."""
        return " ".join(self.text.split())

    def table(self, *heads):
        """The rows below these heads, each as its cells."""
        found = [rows[1:] for rows in self.tables if [" ".join(cell.split()) for cell in rows[0]] == list(heads)]
        assert found, f"no table {heads} among {[rows[0] for rows in self.tables]}"
        return found


def numbers_in(cell):
    return [
        float(found.replace("\N{MINUS SIGN}", "-")) for found in re.findall("[+\N{MINUS SIGN}]?[0-9]+[.][0-9]+", cell)
    ]


def assert_says(cell, estimate, digits=3):
    """A cell has the value and the ends of the interval, in this order, rounded and not otherwise."""
    assert numbers_in(cell) == [round(each, digits) for each in (estimate.value, estimate.low, estimate.high)]


@pytest.fixture(scope="module")
def report():
    return made_report()


@pytest.fixture(scope="module")
def page(report):
    return Reading(html_of(report, {}))


def shape_of(page):
    """The elements of a page with the names of their attributes, but for the places where names may be broken."""
    return [(tag, sorted(given)) for tag, given in page.elements if tag != "wbr"]


@pytest.mark.parametrize(
    "report",
    [
        made_report(),
        made_report(classes=tuple("abcdefghijk")),
        made_report(("one",), classes=(), column="age"),
        replace(made_report(), overlaps=(), warnings=()),
        replace(
            made_report(), encoders=tuple(replace(e, map=None, queries=(), curve=()) for e in made_report().encoders)
        ),
    ],
    ids=["two classes", "eleven classes", "numbers", "no overlap", "no drawings"],
)
def test_every_kind_of_report_becomes_a_well_formed_page(report):
    """An element that is left open, closed twice, or a variable that the template does not get."""
    page = Reading(html_of(report, {}))
    assert all(sentence in page.text for sentence in report.verdict)
    assert all(warning in page.text for warning in report.warnings)


def test_the_page_can_fetch_nothing_and_run_nothing(tmp_path, report):
    """A script, a style sheet, a font or a picture from elsewhere; the policy in the head forbids them besides."""
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "film.png")
    write_page(made_report(paths=[tmp_path / "film.png"]), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    page = Reading(text)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    addresses = [value for _, given in page.elements for name, value in given.items() if name in ("src", "href")]
    assert len([value for value in addresses if value.startswith("data:image/jpeg;base64,")]) == 6 * (1 + 2 * 5)
    assert all(value.startswith(("data:image/jpeg;", "#")) for value in addresses)
    assert not [name for _, given in page.elements for name in given if name.startswith("on") or name == "srcset"]
    assert not re.search(r"https?://|url\(|@import", text)
    policy = next(given["content"] for tag, given in page.elements if "http-equiv" in given)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_measures_are_those_of_the_report(page, report):
    """A measure in another's column or another encoder's row, the wrong probe, a value that is rounded otherwise."""
    rows = {row[0]: row[1:] for row in page.table("Features", "Linear probe", "Nearest neighbours")[0]}
    assert len(rows) == len(report.encoders)
    for result in report.encoders:
        row = rows[name_in(result)]
        for cell, probe in zip(row, (LINEAR, KNN), strict=True):
            assert_says(cell, result.measures[probe]["auroc"])
        assert ("best" in row[0]) == (result.name == report.best)
        assert "best" not in row[1]
    linear, knn = page.table("Features", "AUROC", "average precision", "balanced accuracy")
    for table, probe in ((linear, LINEAR), (knn, KNN)):
        rows = {row[0]: row[1:] for row in table}
        for result in report.encoders:
            for cell, estimate in zip(rows[name_in(result)], result.measures[probe].values(), strict=True):
                assert_says(cell, estimate)


def name_in(result):
    return result.name + ("" if result.role == "encoder" else " baseline")


def test_encoders_stand_by_their_measure_and_baselines_last(page, report):
    """The order in which they were asked about would hide which is best."""
    names = [row[0] for row in page.table("Features", "Linear probe", "Nearest neighbours")[0]]
    asked = sorted(report.asked(), key=lambda each: -each.measures[LINEAR]["auroc"].value)
    assert names[:2] == [each.name for each in asked]
    assert all(name.endswith(" baseline") for name in names[2:])


def test_differences_and_their_findings_are_those_of_the_report(page, report):
    """A difference of the other probe or encoder, p without correction, "better" where the report does not say it."""
    for table, probe in zip(
        page.table("Compared with", "Difference", "Finding, corrected p"), (LINEAR, KNN), strict=True
    ):
        found = [row for row in table]
        for name in [row[0] for row in found if len(row) == 1]:
            result = report.result(name)
            for each in (d for d in result.differences if d.probe == probe):
                row = found[found.index([name]) + 1 + [d for d in result.differences if d.probe == probe].index(each)]
                assert_says(row[1], each.difference)
                assert each.verdict in row[2]
                p = "p < 0.001" if each.p_holm < 0.001 else f"p = {each.p_holm:.2g}"
                assert row[2].endswith(p)
        assert sum(len(row) == 1 for row in found) == len(report.asked())


def test_p_is_the_corrected_one():
    """Holm's correction makes two of 0.03 no finding any more."""
    report = made_report()
    first = report.encoders[0]
    changed = tuple(replace(each, p=0.03, p_holm=0.06, verdict="not told apart") for each in first.differences)
    page = Reading(html_of(replace(report, encoders=(replace(first, differences=changed), *report.encoders[1:])), {}))
    assert "p = 0.06" in page.text
    assert "p = 0.03" not in page.text


def test_the_curves_are_those_of_the_report(page, report):
    """Points of another encoder, or of another number of labels."""
    heads = ["Features", *(f"{n} cases 10 draws" for n in (10, 25, 50, 100)), "all, 400 cases 1 draw"]
    rows = {row[0]: row[1:] for row in page.table(*heads)[0]}
    for result in report.encoders:
        for cell, point in zip(rows[name_in(result)], result.curve, strict=True):
            assert_says(cell, Estimate(point.mean, point.low, point.high))


def test_what_is_not_known_is_said():
    """None that is shown as 0, as nothing, or as the word None."""
    report = made_report(("one",))
    first = report.encoders[0]
    unknown, bare = Estimate(None), Estimate(0.71)
    changed = replace(
        first,
        measures={probe: {"auroc": bare, "average_precision": unknown} for probe in first.measures},
        curve=tuple(replace(point, mean=None, low=None, high=None) for point in first.curve[:2]) + first.curve[2:],
        differences=tuple(
            replace(d, difference=bare, p=None, p_holm=None, verdict="unknown") for d in first.differences
        ),
    )
    page = Reading(html_of(replace(report, encoders=(changed, *report.encoders[1:])), {}))
    row = page.table("Features", "AUROC", "average precision")[0][0]
    assert [" ".join(cell.split()) for cell in row[1:]] == ["0.710 no interval", "not defined"]
    finding = page.table("Compared with", "Difference", "Finding, corrected p")[0][1]
    assert [" ".join(cell.split()) for cell in finding[1:]] == ["+0.710 no interval", "? unknown p not known"]
    assert not re.search(r"\bNone\b|\bnan\b", page.text)


def test_cases_that_pre_training_saw_are_a_warning(report):
    """A reader must not take a test for one on new patients."""
    said = "5 tested cases were seen in pre-training"
    assert said in Reading(html_of(report, {})).words
    clean = tuple(replace(each, seen_test=0) for each in report.overlaps)
    assert "were seen in pre-training" not in Reading(html_of(replace(report, overlaps=clean), {})).words


@pytest.mark.slow
def test_what_nobody_knows_of_pre_training_is_said(report):
    """Silence about an encoder without a list, or of which no name could be read, reads as if it had seen nothing."""
    unknown = "whether their encoder has seen these cases is not known"
    assert unknown not in Reading(html_of(report, {})).words
    assert Reading(html_of(replace(report, overlaps=()), {})).words.count(unknown) == 2
    assert Reading(html_of(replace(report, overlaps=report.overlaps[:1]), {})).words.count(unknown) == 1
    unread = replace(report.overlaps[0], readable=0, seen=0, seen_subjects=0, seen_test=0)
    words = Reading(html_of(replace(report, overlaps=(unread,)), {})).words
    assert "nothing is known of any case" in words
    assert "0 cases by image" not in words


def test_one_encoder_alone_is_not_called_the_best():
    """Best of one says nothing, and reads like a finding."""
    page = Reading(html_of(made_report(("one",)), {}))
    assert not [given for _, given in page.elements if given.get("class") == "tag"]


def hostile_report():
    """Every text of a report that a file, a table, a server or a shell can bring."""
    names, kinds = [f"{HOSTILE}{i}" for i in "ab"], (f"{HOSTILE}no", f"{HOSTILE}yes")
    report = made_report(names, classes=kinds, column=HOSTILE, ids=[f"{HOSTILE}{i}" for i in range(300)])
    return replace(
        report,
        verdict=(HOSTILE, HOSTILE),
        warnings=(HOSTILE,),
        cohort=replace(report.cohort, group_column=HOSTILE),
        split=replace(report.split, column=HOSTILE),
        repeat=replace(report.repeat, command=HOSTILE, table=HOSTILE, versions={HOSTILE: HOSTILE}, date=HOSTILE),
        encoders=tuple(
            replace(
                each, facts={HOSTILE: {HOSTILE: [HOSTILE]}, "model": HOSTILE}, chosen={LINEAR: HOSTILE, KNN: HOSTILE}
            )
            if each.role == "encoder"
            else each
            for each in report.encoders
        ),
        overlaps=tuple(replace(each, source=HOSTILE, notes=(HOSTILE,)) for each in report.overlaps),
    )


def test_names_are_text_and_never_elements(tmp_path):
    """A file called `<script>` that runs, a quote that ends an attribute, an escape that steers a terminal."""
    report = hostile_report()
    write_page(report, tmp_path / "report.html", images=False)
    text = (tmp_path / "report.html").read_text("utf-8")
    tame = replace(made_report(("a", "b"), ids=[f"{i}" for i in range(300)]))
    facts = {"a": 0, "model": 0}
    tame = replace(tame, encoders=tuple(replace(e, facts=facts if e.facts else {}) for e in tame.encoders))
    notes = tuple(replace(each, notes=("note",)) for each in tame.overlaps)
    assert shape_of(Reading(text)) == shape_of(Reading(html_of(replace(tame, overlaps=notes), {})))
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert Reading(text).text.count("<script>alert(1)</script>\"'><img src=//x onerror=alert(2)>{{ 7 * 7 }}") > 100


def test_films_and_volumes_become_small_pictures(tmp_path):
    """A picture that is turned, stretched or inverted; the front of the body is at the top, its right on the left."""
    film = np.zeros((400, 200), dtype=np.uint16)
    film[:100, :50] = 40_000
    Image.fromarray(film).save(tmp_path / "film.png")
    volume = np.zeros((40, 60, 20), dtype=np.float32)
    volume[:10, :15] = 900  # right, front of LPS
    affine = np.diag([-3.0, -1.0, 5.0, 1.0])
    affine[:3, 3] = (60, 30, 0)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "scan.nii.gz")
    for name, size in (("film.png", (56, 112)), ("scan.nii.gz", (112, 56))):
        pixels = decoded(thumbnail(tmp_path / name))
        assert pixels.shape == size[::-1]
        rows, columns = size[1] // 4, size[0] // 4
        assert pixels[: rows - 3, : columns - 3].min() > 200, name
        assert pixels[rows + 9 :].max() < 50, name
        assert pixels[:, columns + 9 :].max() < 50, name


def decoded(address):
    assert address.startswith("data:image/jpeg;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_a_picture_that_cannot_be_read_is_said_in_its_place(tmp_path):
    """A file that is gone since it was embedded ends the page, or leaves a hole without a word."""
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "film.png")
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    report = made_report(("one",), paths=[tmp_path / "film.png", tmp_path / "bad.png", tmp_path / "gone.png"])
    write_page(report, tmp_path / "report.html")
    page = Reading((tmp_path / "report.html").read_text("utf-8"))
    query = report.encoders[0].queries
    cases = [case for each in query for case in (each.case, *(near.case for near in each.neighbours))]
    shown = [given["alt"] for tag, given in page.elements if tag == "img"]
    assert sorted(shown) == sorted(
        f"{s.id}, finding {s.label}" for s in map(report.shown.__getitem__, cases) if "film" in s.path
    )
    assert f"no image at {tmp_path / 'gone.png'}" in page.text
    assert f"cannot read {tmp_path / 'bad.png'}" in page.text


def test_without_images_no_image_is_read(tmp_path):
    """A page that may leave the hospital has no picture of a patient in it."""
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "film.png")
    write_page(made_report(paths=[tmp_path / "film.png"]), tmp_path / "report.html", images=False)
    page = Reading((tmp_path / "report.html").read_text("utf-8"))
    assert "img" not in {tag for tag, _ in page.elements}


def test_readers_of_screens_are_told_what_is_drawn_and_where_they_are(page, report):
    """Heads without scope, drawings without words, a level of headings that is left out."""
    assert all(given.get("scope") for tag, given in page.elements if tag == "th")
    drawings = [given for tag, given in page.elements if tag == "svg" and "viewbox" in given]
    assert all("aria-hidden" in given or (given["role"] == "img" and given["aria-label"]) for given in drawings)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [given["id"] for _, given in page.elements if "id" in given]
    assert len(ids) == len(set(ids))
    links = [given["href"][1:] for tag, given in page.elements if tag == "a"]
    assert set(links) <= set(ids)
    assert dict(page.elements)["html"] == {"lang": "en"}


@pytest.mark.slow
def test_the_command_writes_the_page_of_its_report(zoo, tmp_path, monkeypatch):
    """A command that forgets the page, writes that of other numbers than the JSON beside it, or always shows images."""
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "film.png")
    report = made_report(paths=[tmp_path / "film.png"])
    monkeypatch.setattr("zoo.commands.probing.probe", lambda *_, **__: report)
    asked = ("probe", tmp_path / "labels.csv", "--column", "finding", "--features", "mine.npz", "-o", tmp_path / "out")
    for options, pictures in (((), 6 * (1 + 2 * 5)), (("--no-pictures",), 0)):
        code, out, err = zoo(*asked, *options)
        assert code == 0, err
        assert str(tmp_path / "out" / "report.html") in out
        assert ProbeReport.read(tmp_path / "out" / "report.json") == report
        page = Reading((tmp_path / "out" / "report.html").read_text("utf-8"))
        assert [tag for tag, _ in page.elements].count("img") == pictures
    assert page.words == Reading(html_of(report, {})).words


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["classes", "numbers", "hostile"])
def test_browsers_show_the_page_whole(browser, tmp_path, kind, width):
    """An error in the console, a request, a page that must be moved sideways, on a desk and on a telephone."""
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "film.png")
    names = [f"long-family-name-resnet50.chestxray14-{i}00" for i in range(3)]
    report = {
        "classes": lambda: made_report(names, paths=[tmp_path / "film.png"]),
        "numbers": lambda: made_report(names, classes=(), column="age_at_the_examination_in_years"),
        "hostile": hostile_report,
    }[kind]()
    write_page(report, tmp_path / "report.html")
    page = browser.open(tmp_path / "report.html", width)
    assert page.complaints() == []
    assert page.requests() == []
    assert page.overflow() == 0
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.evaluate("document.querySelectorAll('figure > svg').length") > 0
