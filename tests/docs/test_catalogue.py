"""The catalogue says what the registry and the manifest say, and its filters give what `zoo list` gives."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from urllib.parse import parse_qsl

import pytest
from docs_pages import CHECKOUT, DOCS, all_pages
from zoo_site import cards, catalogue, citations, words
from zoo_site.catalogue import Item

import zoo as package
from zoo.commands.listing import filters_for, list_weights, passing
from zoo.manifest import records
from zoo.registry import FAMILIES, get_entry

ASKED = (
    {},
    {"modality": "ct"},
    {"modality": "xray", "task": "encoder"},
    {"task": "restoration"},
    {"task": "segmentation", "available": "yes"},
    {"modality": "mri", "available": "yes", "commercial": "yes"},
)
"""What may be asked of the form, in words that `zoo list` has too."""
WIDTHS = (1280, 390)


class Reading(HTMLParser):
    """The cards of the page: their attributes, the address of their link, their text."""

    def __init__(self, html):
        super().__init__()
        self.cards = []
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag, given):
        attributes = dict(given)
        if tag == "li":
            self.cards.append(attributes | {"text": "", "links": []})
            self._inside = True
        elif tag == "a" and self._inside:
            self.cards[-1]["links"].append(attributes["href"])

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "li"

    def handle_data(self, data):
        if self._inside:
            self.cards[-1]["text"] += data


@pytest.fixture(scope="module")
def shown():
    return Reading(all_pages()["catalogue.md"]).cards


@pytest.fixture
def listed(zoo):
    """What `zoo list --json` prints."""
    code, out, _ = zoo("list", "--json")
    assert code == 0
    return json.loads(out)


def test_every_card_is_a_line_of_zoo_list(shown, listed):
    """None is missing, none is there twice, and what is filtered and sorted by is the same."""
    assert [card["data-name"] for card in shown] == [f"{one['name']}.{one['tag']}" for one in listed]
    for card, one in zip(shown, listed, strict=True):
        assert card["data-modality"].split() == one["modalities"]
        assert card["data-task"].split() == one["tasks"]
        assert (card["data-anatomy"], card["data-dimension"]) == (one["anatomy"], str(one["dimension"]))
        assert card["data-available"] == ("yes" if one["available"] else "no")
        assert card["data-commercial"] == one["commercial_use"]
        assert card["data-parameters"] == str(one["parameters"])
        assert (card["data-bytes"], card["data-width"]) == (str(one["bytes"] or ""), str(one["num_features"] or ""))


def test_a_card_says_what_it_is_filtered_by(shown, listed):
    """In words, for who reads it: the state, the licence, the star of the plain name."""
    for card, one in zip(shown, listed, strict=True):
        assert ("✓ loads today" in card["text"]) == one["available"]
        assert ("★" in card["text"]) == one["default"]
        assert f"Commercial use is {words.VERDICTS[one['commercial_use']]}" in card["text"]
        assert ("this zoo's own" in card["text"]) == (one["trained_by"] == "zoo")
        assert (one["fresh"] or "Takes") in card["text"]
        assert card["links"][0] == f"weights/{one['name']}.{one['tag']}.html"


@pytest.mark.parametrize("name", [f"{model}.{r.tag}" for model in package.list_models() for r in records(model)])
def test_the_page_of_weights_says_what_their_record_says(name):
    """Digest, size, all sources, licences, and a line that loads them, which is none where nobody can."""
    page, known = all_pages()[f"weights/{name}.md"], package.model_info(name)
    for digest in filter(None, (known.sha256, known.md5, known.git_blob)):
        assert f"`{digest}`" in page
    if not known.sha256:
        assert "| sha256 |" in page or "- sha256\n" in page
    assert (f"{known.bytes:,}" if known.bytes else "not published") in page
    for source in known.sources:
        assert source.startswith("package:") or re.split(r"[/:@]", source)[-1].partition("?")[0] in page
    plain = page.replace("\\", "").replace("<", "").replace(">", "")
    for layer in known.licences.values():
        assert re.sub(r"[<>]", "", layer["licence"]).replace("|", "") in plain
    assert (f'zoo.load_model("{name}")' in page) == (known.state == "hosted")
    assert ("cannot be downloaded" in page) == (known.state != "hosted")
    for asset in known.assets.values():
        assert not asset["sha256"] or asset["sha256"] in page


def test_verdicts_name_what_stands_in_the_way():
    """A licence that says nothing is never allowed use."""
    layer = {"commercial": "yes"}
    said = {
        "yes": words.licence({"code": layer, "weights": layer, "data": layer}, "commercial", "yes"),
        "no": words.licence({"code": {"commercial": "no"}, "weights": layer, "data": {}}, "commercial", "no"),
        "unknown": words.licence({"code": layer, "weights": layer}, "commercial", "unknown"),
    }
    assert said["yes"] == "Commercial use is allowed by the licences of code, weights and training data."
    assert said["no"] == "Commercial use is not allowed by the terms of the code."
    assert said["unknown"] == "Commercial use is not settled: the terms of the training data leave it open."


@pytest.mark.parametrize("family", FAMILIES)
def test_every_card_has_a_section_of_results(family):
    """By a heading that the catalogue knows; a new word for it would show "none" in silence."""
    assert cards.results(family), f"the card of {family} has no heading among {cards.RESULTS.pattern}"


def test_results_are_shown_with_the_weights_that_they_are_of():
    """Measured ones with their tag alone; what a recipe was tried on never as results of the authors' weights."""
    for item in catalogue.items():
        page = all_pages()[f"weights/{item.name}.md"]
        for one in item.evidence:
            has_text = one.section.body.split("\n\n")[0] in page
            assert has_text == one.of_these, item.name
            assert not one.of_these or one.section.tag == item.listed.tag or item.listed.trained_by == "authors"
    named = {section.tag for family in FAMILIES for section in cards.results(family)} - {""}
    assert named <= {item.listed.tag for item in catalogue.items()}
    assert [one.label for one in _item("caid-resnet50.chestxray14-800").evidence] == ["Measured by this zoo"]
    assert _item("caid-resnet50.chestxray14").evidence == []
    assert not any(one.of_these for one in _item("monai-ssl-swinvit.dae").evidence)


def _item(name) -> Item:
    return next(item for item in catalogue.items() if item.name == name)


@pytest.mark.parametrize("reference", citations.references(), ids=lambda one: one.fields["title"][:30])
def test_bibtex_says_what_the_manifest_says(reference):
    """Each field stands in the citation of a record, so that no year, author or number is invented."""
    said = {
        item.record.citation for item in catalogue.items() if reference.text in citations.bibtex(item.record.citation)
    }
    assert said, "no record cites it"
    fields = {key: value for key, value in reference.fields.items() if key != "archivePrefix"}
    people = [name for name in fields.pop("author").split(" and ") if name != "others"]
    for citation in said:
        for value in (*people, *fields.values()):
            assert value.replace("--", "-") in citation, f"{value!r} is not in {citation!r}"


def test_a_citation_without_an_entry_stops_the_build():
    with pytest.raises(LookupError, match=r"citations\.bib has no entry"):
        citations.bibtex("Nobody. A paper that nobody wrote. Nowhere 2020.")


def test_links_into_the_catalogue_ask_for_what_is_there(shown):
    """A word that no card has would show an empty page."""
    found = re.findall(r'href="catalogue\.html#([^"]+)"', all_pages()["choose.md"])
    assert len(found) > 5
    for query in found:
        asked = dict(parse_qsl(unescape(query)))
        assert any(
            all(asked[key] in card[f"data-{key}"].split(" ") or asked[key] == card[f"data-{key}"] for key in asked)
            for card in shown
        ), query


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The catalogue with its script and style alone, without the rest of the site."""
    folder = tmp_path_factory.mktemp("bare")
    html = re.search(r"```\{raw\} html\n(.*?)```", all_pages()["catalogue.md"], re.DOTALL)[1]
    style, script = ((DOCS / "_static" / f"site.{kind}").read_text("utf-8") for kind in ("css", "js"))
    page = f"<!doctype html><meta charset=utf-8><title>-</title><style>{style}</style>{html}<script>{script}</script>"
    (folder / "catalogue.html").write_text(page, "utf-8")
    return folder / "catalogue.html"


NAMES = "[...document.querySelectorAll('#zoo-cards > li')].filter(c => c.checkVisibility()).map(c => c.dataset.name)"


def ask(page, asked):
    """Fill the form as a user does, and return the names of the cards that are shown."""
    page.evaluate("document.querySelector('#zoo-filter button[type=reset]').click()")
    page.evaluate("new Promise(done => setTimeout(done, 20))")
    for name, value in asked.items():
        field = f"document.getElementById('zoo-filter').elements.{name}"
        page.evaluate(
            f"{{const f = {field}; f.type === 'checkbox' ? f.checked = true : f.value = {json.dumps(value)};"
            "f.dispatchEvent(new Event('input', {bubbles: true}))}"
        )
    return page.evaluate(NAMES)


def test_filters_give_what_zoo_list_gives(browser, bare):
    """Each of them, several together, and all cards again after "Show all"; the count is that of the cards."""
    page, all_weights = browser.open(bare, 1280), list_weights(package.list_models())
    for asked in (*ASKED, {}):
        filters = filters_for(asked.get("modality"), asked.get("task"), "available" in asked, "commercial" in asked)
        expected = [f"{one.name}.{one.tag}" for one in passing(all_weights, filters)]
        assert ask(page, asked) == expected, asked
        count = page.evaluate("document.getElementById('zoo-count').textContent")
        assert count == f"{len(expected)} of {len(all_weights)} weights"
    assert page.complaints() == []


def test_words_are_searched_in_all_that_a_card_says(browser, bare):
    page = browser.open(bare, 1280)
    found = ask(page, {"text": "Vit-B HEART"})
    assert found == []
    found = ask(page, {"text": "swin withdrawn"})
    assert found == []
    found = ask(page, {"text": "VIT withdrawn"})
    assert found
    assert all(name.startswith("monai-ssl-") for name in found)


@pytest.mark.parametrize(
    ("order", "fact"), [("bytes", "bytes"), ("parameters", "parameters"), ("width", "num_features")]
)
def test_orders_are_those_of_the_facts(browser, bare, order, fact):
    """What is not known stands last; of equals the first of the list first."""
    page, all_weights = browser.open(bare, 1280), list_weights(package.list_models())
    expected = sorted(all_weights, key=lambda one: getattr(one, fact) or float("inf"))
    assert ask(page, {"order": order}) == [f"{one.name}.{one.tag}" for one in expected]
    assert ask(page, {}) == [f"{one.name}.{one.tag}" for one in all_weights]


def test_an_address_that_was_sent_on_asks_again(browser, bare):
    """The address keeps what was asked: another reader sees the same cards and the same form."""
    page = browser.open(bare, 1280)
    expected = ask(page, {"modality": "mri", "available": "yes"})
    address = page.evaluate("location.hash")
    page.evaluate("document.querySelector('#zoo-filter button[type=reset]').click()")
    page.evaluate("new Promise(done => setTimeout(done, 20))")
    assert page.evaluate("location.hash") != address
    page.evaluate(f"location.hash = {json.dumps(address)}")
    page.evaluate("new Promise(done => setTimeout(done, 20))")
    assert page.evaluate(NAMES) == expected
    assert page.evaluate("document.getElementById('zoo-filter').elements.modality.value") == "mri"
    assert page.evaluate("document.getElementById('zoo-filter').elements.available.checked") is True


def test_the_form_is_for_keyboard_and_screen_reader(browser, bare):
    """Every field has a name that is read out and can be reached by the tab key; a change of the count is told."""
    page = browser.open(bare, 390)
    fields = page.evaluate(
        "[...document.getElementById('zoo-filter').elements]"
        ".map(f => [f.labels && f.labels.length ? f.labels[0].textContent.trim() : f.textContent, f.tabIndex])"
    )
    assert len(fields) == 9
    assert all(name and index == 0 for name, index in fields), fields
    assert page.evaluate("document.getElementById('zoo-count').getAttribute('role')") == "status"
    assert page.evaluate("[...document.querySelectorAll('#zoo-cards > li')].every(c => c.querySelector('h2 a'))")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole site but for what notebooks give, built from a copy, so that nothing is written into the checkout."""
    if importlib.util.find_spec("sphinx") is None or importlib.util.find_spec("myst_nb") is None:
        pytest.skip('Sphinx is not installed: `pip install ".[docs]"` brings it')
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("_build", "__pycache__", "cards", "weights"))
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "zoo", "weights_manifest.json"):
        (folder / name).symlink_to(CHECKOUT / name)
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "-D", "nb_execution_mode=off"]
    done = subprocess.run([*command, "docs", "out"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "name", ["index", "choose", "catalogue", "weights/caid-resnet50.chestxray14-800", "reference/api"]
)
def test_built_pages_are_quiet_and_fit(browser, site, name, width):
    """No error in the console, nothing asked from outside, nothing wider than a phone."""
    page = browser.open(site / f"{name}.html", width)
    assert page.complaints() == []
    assert [url for url in page.requests() if not url.startswith(site.as_uri())] == []
    assert page.overflow() <= 0


@pytest.mark.slow
def test_every_weights_page_and_card_is_built(site):
    """And every built page of the catalogue's links is there, with the anchor of its results."""
    catalogue_page = (site / "catalogue.html").read_text("utf-8")
    found = re.findall(r'<li data-name="([^"]+)"', catalogue_page)
    assert len(found) == len(catalogue.items())
    for name in found:
        assert (site / "weights" / f"{name}.html").is_file()
    for family, anchor in re.findall(r'href="cards/(\w+)\.html#([^"]+)"', catalogue_page):
        assert f'id="{anchor}"' in (site / "cards" / f"{family}.html").read_text("utf-8")


def test_a_model_of_a_family_is_on_its_card():
    """The list of cards names every model once."""
    index = all_pages()["cards/index.md"]
    for name in package.list_models():
        row = next(line for line in index.splitlines() if f"`{name}`" in line)
        assert f"({get_entry(name).family}.md)" in row
