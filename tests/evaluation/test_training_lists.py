"""Which images weights were trained on: by image and by patient, and nothing unread is called unseen."""

import csv
import json

import pytest
from servers import Server, sha256, whole

from zoo.entries.glcl.splits import PRETRAINING, parse_ids
from zoo.entries.monai_ssl.cohort import PATIENT
from zoo.errors import IntegrityError, OfflineError, OptionError, ZooError
from zoo.evaluation.overlap import find_overlap, has_training_ids
from zoo.evaluation.training_ids import hashed, training_ids_of
from zoo.manifest import packaged_manifest, records
from zoo.record import read_manifest
from zoo.registry import list_models

NAME = "caid-resnet50.house"
RULES = [r"(?P<image>(?P<patient>\d{4})_\d)", r"(?P<patient>\d{4})"]
LIST = "0001_1.png 1 0\n0001_2.png 0 0\n0002_1.png 0 0\n"
SHIPPED = [record for record in read_manifest(packaged_manifest()) if record.training_ids]


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Put weights on record with a list of training images, here a file; returns a function of what differs."""

    def put(text=LIST, *, cohort=None, **facts):
        (tmp_path / "list").write_text(text)
        cohorts = [{"name": "films", "rules": RULES, "images": 3, "patients": 2} | (cohort or {})]
        known = {"sources": ["file:list"], "bytes": len(text), "sha256": sha256(text.encode())}
        training_ids = known | {"form": "lines", "cohorts": cohorts} | facts
        record = {"tag": "house", "models": ["caid-resnet50"], "state": "hosted", "default": False, "bytes": 1}
        record |= {"sources": ["file:weights"], "sha256": "0" * 64, "training_ids": training_ids}
        (tmp_path / "house.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
        monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "house.json"))

    put()
    return put


def looked_up(*ids):
    """Whether each id was seen by image and by patient."""
    return [(row.image_seen, row.patient_seen) for row in find_overlap(ids, NAME).rows]


def test_another_image_of_a_training_patient_was_seen_by_patient(house):
    """Not by image; the image itself was by both, and a stranger by neither."""
    assert looked_up("0001_1.png", "0001_7.png", "0003_1.png") == [(True, True), (False, True), (False, False)]
    found = find_overlap(["0001_1.png", "0001_7.png", "0003_1.png"], NAME)
    assert (found.seen_images, found.seen_by_patient, found.patients_given, found.patients_seen) == (1, 2, 2, 1)
    assert [row.id for row in found.seen] == ["0001_1.png", "0001_7.png"]
    assert "saw 2 of the 3 ids in training, 1 by image and 2 by patient" in found.verdict
    assert not found.is_clean


@pytest.mark.parametrize(
    "given", ["0001_1", "0001_1.JPG", "/data/films/0001_1.png", r"C:\films\0001_1.dcm", "a/0001_1.nii.gz", " 0001_1 "]
)
def test_an_image_is_told_wherever_it_lies_and_whatever_its_format(given, house):
    """By the end of its path, without the suffix."""
    assert looked_up(given) == [(True, True)]


@pytest.mark.parametrize(
    "given", ["x0001_1.png", "0001_1_crop.png", "0001_12.png", "0001_1.png.txt", "0001_1/a.png", ""]
)
def test_a_name_of_another_form_is_not_read(given, house):
    """It is neither seen nor unseen, however much of it looks like a name in the list."""
    found = find_overlap([given], NAME)
    assert looked_up(given) == [(None, None)]
    assert (found.readable, found.unread, found.is_clean) == (0, (given,), False)
    assert "cannot be told" in found.verdict
    assert "none of" not in found.verdict


def test_names_of_which_some_are_not_read_are_not_clean(house):
    """Else a renamed cohort, all of it seen, would pass as unseen."""
    found = find_overlap(["0003_1.png", "scan-a.png", "scan-b.png"], NAME)
    assert (
        found.verdict
        == f"{NAME} saw none of the 1 ids that can be looked up in training; of the other 2 nothing is known"
    )
    assert (found.readable, found.unread, found.is_clean) == (1, ("scan-a.png", "scan-b.png"), False)
    assert find_overlap(["0003_1.png"], NAME).is_clean


def test_a_patient_alone_is_looked_up_among_patients(house):
    """Nothing is said of images."""
    assert looked_up("0001", "0003") == [(None, True), (None, False)]
    assert "saw 1 of the 2 ids in training, 1 by patient" in find_overlap(["0001", "0003"], NAME).verdict


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (json.dumps({"training": [{"image": "d/0001_1.nii"}, "d/0001_2.nii", {"image": "0002_1.nii.gz"}],
                     "validation": [{"image": "d/0003_1.nii"}]}), {"form": "datalist", "section": "training"}),
        ("n,file\r\n1,0001_1.png\r\n2,0001_2.png\r\n3,\"0002_1.png\"\r\n", {"form": "table", "column": "file"}),
        ("a,b\n0003_x,x/0001_1.png\n0001_2.png,9\n9,0002_1.png\n", {"form": "table", "column": None}),
        ("image,patient\n" + "".join(f"{hashed(i)},{hashed(i[:4])}\n" for i in ("0001_1", "0001_2", "0002_1")),
         {"form": "hashed"}),
    ],
    ids=["data list", "table", "table of unknown column", "hashed"],
)  # fmt: skip
def test_each_form_of_list_gives_the_same(text, facts, house):
    """Other sections, columns and cells are not taken for training images."""
    house(text, **facts)
    assert looked_up("0001_1", "0001_7", "0003_1") == [(True, True), (False, True), (False, False)]
    found = find_overlap(["0001_1"], NAME)
    assert (found.images, found.patients, found.sha256) == (3, 2, sha256(text.encode()))


@pytest.mark.parametrize("facts", [{"form": "hashed"}, {"form": "table", "column": "patient"}])
def test_a_row_of_a_list_without_its_cell_is_named(facts, house):
    """It was a traceback of a hashed list; of a table the row was passed over, and its image called unseen."""
    house("image,patient\n0001_1,0001_1\n0002_1\n", **facts)
    with pytest.raises(ZooError, match=r", line 3: a cell in each of the columns .*'patient' is expected.* has 1"):
        find_overlap(["0001_1"], NAME)


def test_ids_in_the_record_need_no_file(house):
    """By patient, as their rule has no image."""
    cohort = {"rules": [r"(?P<patient>\d{4})_\d"], "images": None}
    house(sources=[], ids=["0001_1", "0002_1"], cohort=cohort)
    assert looked_up("0001_9", "0003_1") == [(None, True), (None, False)]


@pytest.mark.parametrize(
    ("text", "cohort", "said"),
    [
        (LIST, {"images": 4}, "3 images, not 4"),
        (LIST, {"patients": 3}, "2 patients, not 3"),
        ("image_0001\n", {"images": None, "patients": None}, "no image and no patient"),
    ],
)
def test_a_list_that_is_misread_answers_nothing(text, cohort, said, house):
    """A rule or column that misses part of a list would call what it missed unseen: the record's counts betray it."""
    house(text, cohort=cohort)
    found = find_overlap(["0001_1", "0003_1"], NAME)
    assert [row.is_told for row in found.rows] == [False, False]
    assert not found.is_clean
    assert said in found.warnings[0]
    assert found.warnings[0].startswith("2 ids have names of films, ")


def test_of_a_cohort_that_was_taken_whole_no_list_is_needed(house, monkeypatch):
    """Its names alone tell, without a connection."""
    house(sources=["https://example.org/list"], cohort={"all": True})
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    assert looked_up("0009_1", "0009") == [(True, True), (None, True)]


def test_cohorts_without_a_list_are_warned_of(house):
    """Their images may have been seen, so that none is called unseen."""
    house(sources=[])
    found = find_overlap(["0003_1", "other"], NAME)
    assert [(row.cohort, row.is_told) for row in found.rows] == [("films", False), ("", False)]
    assert "1 ids have names of films" in found.warnings[0]
    assert "no list of the training images is published" in found.warnings[1]
    assert not found.is_clean


def test_a_name_that_tells_no_patient_is_warned_of(house):
    """Unseen by image, but another image of the patient may be in the list."""
    house(cohort={"rules": [r"(?P<image>\d{4}_\d)"], "patients": None})
    found = find_overlap(["0001_1", "0003_1"], NAME)
    assert [(row.image_seen, row.patient_seen) for row in found.rows] == [(True, None), (False, None)]
    assert found.warnings == ("1 ids do not tell their patient, of whom another image may have been seen",)


def test_the_list_is_fetched_once_and_proved(house):
    """As an asset is: from a server, kept in the cache, and refused with another digest."""
    with Server({"/list": [whole(LIST.encode())]}) as server:
        house(sources=[f"{server.root}/list"])
        assert looked_up("0001_1") == [(True, True)]
        assert find_overlap(["0001_1"], NAME, offline=True).source == f"{server.root}/list"
        assert len(server.requests) == 1
        house(LIST.replace("0002", "0003"), sources=[f"{server.root}/list"])
        with pytest.raises(OfflineError, match=rf"zoo overlap --for {NAME} needs list"):
            find_overlap(["0001_1"], NAME, offline=True)
        with pytest.raises(IntegrityError, match="sent another file"):
            find_overlap(["0001_1"], NAME)


def test_a_list_of_which_no_digest_is_known_is_kept_to_its_first_copy(house):
    """The digest of that copy is told, for the reader to compare."""
    with Server({"/list": [whole(LIST.encode()), whole(b"0003_1.png\n")]}) as server:
        house(sources=[f"{server.root}/list"], bytes=None, sha256=None)
        assert [find_overlap(["0001_1"], NAME).sha256 for _ in range(2)] == [sha256(LIST.encode())] * 2
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("text", "facts", "said"),
    [
        ("a,b\n1,2\n", {"form": "table", "column": "file"}, r"no column 'file'; its columns are 'a', 'b'"),
        ("[]", {"form": "datalist", "section": "training"}, "cannot be read as a list of datalist"),
        ('{"training": [3]}', {"form": "datalist", "section": "training"}, "cannot be read"),
        ('a,b\n1,"2\n', {"form": "table", "column": "a"}, "cannot be read as a table"),
    ],
)
def test_a_list_of_another_form_is_an_error(text, facts, said, house):
    """Never an empty list, in which nothing is found."""
    house(text, **facts)
    with pytest.raises(ZooError, match=said):
        find_overlap(["0001_1"], NAME)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"form": "xlsx"}, "form 'xlsx' is expected to be one of lines"),
        ({"form": "datalist"}, "a datalist with its section"),
        ({"colunm": "x"}, "unknown colunm"),
        ({"cohorts": [{"name": "x", "rules": ["("]}]}, "no regular expression"),
        ({"cohorts": [{"name": "x", "rules": [r"\d+"]}]}, "needs a group"),
        ({"cohorts": ["x"]}, "an object is expected, not 'x'"),
        ({"cohorts": [{"rules": RULES}]}, "name is missing"),
        ({"cohorts": [{"name": ["x"]}]}, "name of a cohort is a text"),
        ({"ids": [1, 2]}, "ids are expected to be a list of texts"),
        ({"sources": "file:list"}, "sources must be a list"),
        ({"sha256": "abc"}, "sha256 must be 64 hexadecimal digits"),
    ],
)
def test_a_mistake_in_a_hand_written_record_is_named(facts, said, house):
    """With the record and what is wrong."""
    house(**facts)
    with pytest.raises(OptionError, match=f"record 'house'.*{said}"):
        find_overlap(["0001_1"], NAME)


def test_weights_without_a_list_say_what_is_known():
    """Of their training data, and where to read more; never that nothing was seen."""
    assert not has_training_ids("drasclr-cnn3d")
    with pytest.raises(
        OptionError, match=r"drasclr-cnn3d\.copdgene .* is not on record.*9179 subjects.*drasclr/README"
    ):
        find_overlap(["a"], "drasclr-cnn3d")


# What ships


def test_every_rule_that_ships_reads_the_names_that_it_is_for():
    """Examples of the data sets' own names, with image and patient."""
    examples = {
        "ChestX-ray14": ("images_001/images/00000012_000.png", "00000012_000", "00000012"),
        "CT Images in COVID-19": (
            "data/volume-covid19-A-0705_day043.nii.gz",
            "volume-covid19-A-0705_day043",
            "volume-covid19-A-0705",
        ),
        "ACDC": ("patient001/patient001_frame01.nii.gz", None, "patient001"),
        "Medical Segmentation Decathlon, prostate": ("imagesTr/prostate_00.nii.gz", None, "prostate_00"),
        "MM-WHS, MR": ("mr_train_1001_image.nii.gz", None, "mr_train_1001"),
        "DeepLesion": ("000003_01_01/014.png", "000003_01_01", "000003"),
        "CheXpert": (
            "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg",
            "patient00001/study1/view1_frontal",
            "patient00001",
        ),
        "MIMIC-CXR": (
            "files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.dcm",
            "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014",
            "p10000032",
        ),
        "PadChest": (
            "216840111366964012283393834152009033102258826_00-059-140.png",
            "216840111366964012283393834152009033102258826_00-059-140",
            None,
        ),
        "IXI": ("IXI002-Guys-0828-T1.nii.gz", None, "IXI002"),
        "OASIS-3": ("sub-OAS30001_ses-d0129_T1w.nii.gz", None, "OAS30001"),
        "GSP": ("Sub0001_Ses1_T1.nii.gz", None, "Sub0001"),
    }
    used = set()
    for record in SHIPPED:
        published = training_ids_of(record)
        for cohort in (each for each in published.cohorts if each.rules):
            name, image, patient = examples[cohort.name]
            assert published.read(name) == (cohort, (image, patient))
            others = [example for other, (example, *_) in examples.items() if other != cohort.name]
            assert not any(map(cohort.read, others)), cohort.name
            used.add(cohort.name)
    assert used == examples.keys()


def test_cohorts_of_one_name_have_one_rule():
    """A data set's files are called the same in every record."""
    known = {}
    for record in SHIPPED:
        for cohort in record.training_ids["cohorts"]:
            assert known.setdefault(cohort["name"], cohort.get("rules")) == cohort.get("rules")


def test_the_zoos_own_list_is_of_the_638_films():
    """In the package, so without a connection; a patient of the list is found, and one that there cannot be is not."""
    found = find_overlap(["00000061_012.png", "00039999_000.png"], "caid-resnet50", offline=True)
    assert (found.name, found.images, found.patients) == ("caid-resnet50.chestxray14-800", 638, 438)
    assert [row.is_told for row in found.rows] == [True, True]
    assert not found.rows[1].is_seen


@pytest.mark.parametrize(
    ("data_set", "prefix", "suffix"),
    [("acdc", "patient", "_4d"), ("prostate", "prostate_", ""), ("mmwhs", "mr_train_", "")],
)
@pytest.mark.parametrize("model", ["glcl-encoder", "glcl-unet"])
def test_glcls_lists_are_those_of_the_recipe(model, data_set, prefix, suffix):
    """The record and `splits.py` hold the same patients; the test patients are not among them."""
    ids = parse_ids(PRETRAINING[data_set])
    names = [f"{prefix}{id[1:] if data_set == 'prostate' else id}{suffix}" for id in ids]
    (record,) = (record for record in records(model) if record.tag == data_set)
    assert record.training_ids["ids"] == names
    assert all(row.patient_seen for row in find_overlap(names, f"{model}.{data_set}").rows)


def test_films_of_data_sets_that_rad_dino_took_whole_need_no_list():
    """What is left is looked up, and so needs a connection; an unread name alone needs none."""
    found = find_overlap(["00000001_000.png", "scan"], "rad-dino-vitb14", offline=True)
    assert [row.is_seen for row in found.rows] == [True, False]
    assert "BRAX" in found.warnings[-1]
    with pytest.raises(OfflineError, match=r"training_images\.csv"):
        find_overlap(["02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"], "rad-dino-vitb14", offline=True)


def test_volumes_of_yawares_cohorts_may_have_been_seen():
    """No list of subjects is published: neither seen nor unseen."""
    found = find_overlap(["IXI002-Guys-0828-T1.nii.gz"], "yaware-densenet121")
    assert (found.readable, found.is_clean) == (0, False)
    assert found.warnings[0].startswith("1 ids have names of IXI")


def test_the_patient_of_a_covid_volume_is_the_recipes():
    """The rule on record and the recipe's check of its parts mean the same by a patient."""
    import re

    name = "volume-covid19-A-0705_day043"
    (record,) = (record for record in records("monai-ssl-vitb16") if record.training_ids)
    assert training_ids_of(record).read(f"{name}.nii.gz")[1].patient == re.match(PATIENT, name)[0]


def test_what_is_on_record_can_be_asked_for_every_model():
    """Cheaply, whatever its weights' state."""
    assert {name for name in list_models() if has_training_ids(name)} >= {"caid-resnet50", "yaware-densenet121"}
    assert has_training_ids("caid-resnet50.chestxray14")


def test_a_hashed_list_has_no_names():
    """Only digits of digests, sorted, so that order tells nothing."""
    from zoo.fetching.sources import packaged_path

    (record,) = (record for record in records("caid-resnet50") if record.tag == "chestxray14-800")
    with packaged_path(record.training_ids["sources"][0]).open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "patient"]
    assert rows[1:] == sorted(rows[1:])
    assert all(len(cell) == 16 and set(cell) <= set("0123456789abcdef") for row in rows[1:] for cell in row)
