"""`zoo doctor FILE` and `zoo doctor FOLDER`: which models an image fits, and what is odd about a cohort."""

import json

import nibabel
import numpy as np
import pytest
from brains import GRID, brain, image
from dicom_files import write_dicom, write_series
from PIL import Image

from zoo.commands.fitting import find_fits
from zoo.commands.phantom import chest_phantom
from zoo.errors import InputContractError
from zoo.loading import load_transform
from zoo.registry import get_entry, list_models


def write_ct(path, spacing=(1.5, 1.5, 2.0), flip=-1, low=-1000):
    values = np.random.default_rng(0).integers(low, 1500, (40, 40, 24)).astype(np.int16)
    values[:20] = values[:20].clip(-120, 180)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([flip * spacing[0], -spacing[1], spacing[2], 1])), path)
    return path


def films(folder, count=3):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.fromarray(chest_phantom()).save(folder / f"{i}.png")
    return folder


def names(fits):
    return [fit.model.split(".")[0] for fit in fits if fit.examination.fits]


def problem(model, path):
    """What the transform of a model says itself; one that needs a seed point, of the volume without one."""
    transform = load_transform(model)
    try:
        getattr(transform, "trial", transform)(path)
    except InputContractError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One image of each kind: a film, a CT as NIfTI and as a series, a grey-matter map."""
    made = tmp_path_factory.mktemp("images")
    Image.fromarray(chest_phantom()).save(made / "film.png")
    write_ct(made / "ct.nii.gz")
    nibabel.save(image(brain(), GRID, "mni"), made / "mwp1.nii.gz")
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("file", "modality"), [("film.png", "xray"), ("ct.nii.gz", "ct"), ("mwp1.nii.gz", "mri")])
def test_an_image_fits_the_models_that_take_it_and_no_other(folder, file, modality):
    """As their own transforms say, each asked by itself."""
    fits = find_fits(folder / file)
    assert sorted(fit.model.split(".")[0] for fit in fits) == sorted(list_models())
    for fit in fits:
        assert fit.examination.problem == problem(fit.model, folder / file)
        assert fit.examination.fits == (not fit.examination.problem)
    assert names(fits)
    assert all(modality in get_entry(name).modalities for name in names(fits))


def test_the_best_stand_first(folder):
    """What fits before what does not; without an oddity before with one; what can be had before what cannot."""
    fits = find_fits(folder / "ct.nii.gz")
    ranks = [(not f.examination.fits, bool(f.examination.warnings), not f.available) for f in fits]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) > 2


def test_models_for_some_volumes_stand_before_those_for_any(folder, monkeypatch):
    """Of those that are as good otherwise, in whatever order they are registered."""
    monkeypatch.setattr("zoo.commands.fitting.list_models", lambda: list_models()[::-1])
    ranks = [
        (bool(f.examination.warnings), not f.available, f.model.startswith("anatomix"))
        for f in find_fits(folder / "ct.nii.gz")
        if f.examination.fits
    ]
    assert ranks == sorted(ranks)


def test_the_page_names_models_and_reasons(zoo, folder, tmp_path):
    """Each reason once, in a line of its own, then all models that it keeps out; exit code 1 where nothing fits."""
    code, out, err = zoo("doctor", folder / "film.png")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].endswith(f"of {len(list_models())} models, best first")
    reason, *models = out[out.index("does not fit ") :].splitlines()
    kept_out = [name for line in models for name in line.strip().removesuffix(",").split(", ")]
    assert reason.startswith(f"does not fit {len(kept_out)} models: cannot read")
    assert {"monai-ssl-unetr.tcia-covid19", "yaware-densenet121.bhb10k"} <= set(kept_out)
    assert {name.split(".")[0] for name in kept_out} == set(list_models()) - set(names(find_fits(folder / "film.png")))
    assert all(line.startswith("  ") and len(line) <= 100 for line in models)
    (tmp_path / "note.txt").write_text("no image")
    code, out, _ = zoo("doctor", tmp_path / "note.txt")
    assert code == 1
    assert f"fits 0 of {len(list_models())} models" in out
    found = json.loads(zoo("doctor", folder / "film.png", "--json")[1])
    assert found[0]["model"] == "caid-resnet50.chestxray14-800"
    assert found[0]["examination"]["fits"]


def test_a_series_is_one_volume(zoo, tmp_path):
    """A folder with DICOM slices directly in it is examined as a scan, not as a cohort."""
    write_series(tmp_path / "series")
    page = zoo("doctor", tmp_path / "series")[1].splitlines()
    assert page[0].startswith(f"{tmp_path / 'series'} fits ")
    assert any(line.startswith("  monai-ssl-vitb16") for line in page)


@pytest.mark.slow
def test_a_cohort_is_counted_and_its_odd_images_are_named(zoo, tmp_path):
    """One with an axis turned, one on another grid, one that is no CT; the model is the one that most of them fit."""
    for i in range(8):
        write_ct(tmp_path / f"{i}.nii.gz")
    write_ct(tmp_path / "8-turned.nii.gz", flip=1)
    write_ct(tmp_path / "9-coarse.nii.gz", spacing=(3.0, 3.0, 2.0))
    write_ct(tmp_path / "0-eight-bit.nii.gz", low=0)
    for options in ((), ("--for", "monai-ssl-unetr")):
        code, out, _ = zoo("doctor", tmp_path, *options)
        assert code == 1
        assert out.startswith("10 of 11 images fit ")
        odd, wrong = out.split("does not fit:")
        assert "8-turned.nii.gz: axes to: RPS, where 10 of 11 have LPS" in odd
        assert "9-coarse.nii.gz" in odd
        assert "0-eight-bit.nii.gz" in wrong
        assert "/3.nii.gz" not in out
    found = json.loads(zoo("doctor", tmp_path, "--for", "monai-ssl-unetr", "--json")[1])
    assert (found["images"], found["fits"], len(found["odd"])) == (11, 10, 2)
    assert found["values"]["axes to"] == {"LPS": 10, "RPS": 1}


@pytest.mark.slow
def test_films_are_a_cohort_of_films(zoo, tmp_path):
    """As pictures and as DICOM, each an image of its own."""
    assert zoo("doctor", films(tmp_path / "pictures"))[1].startswith("3 of 3 images fit caid-resnet50")
    for model in ("caid-resnet50", "rad-dino-vitb14"):
        code, out, _ = zoo("doctor", tmp_path / "pictures", "--for", model)
        assert (code, out[:15]) == (0, "3 of 3 images f")
    (tmp_path / "dicom").mkdir()
    for i in range(2):
        write_dicom(tmp_path / "dicom" / f"{i}.dcm", chest_phantom(), bits=8)
    assert zoo("doctor", tmp_path / "dicom")[1].startswith("2 of 2 images fit caid-resnet50")


@pytest.mark.slow
def test_a_cohort_of_two_kinds_says_what_it_left_out(zoo, tmp_path, caplog):
    """Three films checked, and not a word of the CT beside them; of both kinds looked for in turn, one is said once."""
    write_ct(films(tmp_path / "both") / "ct.nii.gz")
    assert zoo("doctor", tmp_path / "both", "--for", "caid-resnet50")[1].startswith("3 of 3 images fit")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("1 image(s) of another kind were passed over, 1 .nii.gz, where pictures are looked for")
    caplog.clear()
    assert zoo("doctor", tmp_path / "both")[1].startswith("1 of 1 images fit")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("3 image(s) of another kind were passed over, 3 .png, where volumes are looked for")


def test_a_folder_that_fits_nothing_or_has_nothing(zoo, tmp_path):
    """One line each, and the way on."""
    code, _, err = zoo("doctor", tmp_path)
    assert code == 2
    assert "there are no images in the folder" in err
    for i in range(2):
        nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 20), np.int16), np.eye(4)), tmp_path / f"{i}.nii")
    code, _, err = zoo("doctor", tmp_path)
    assert code == 1
    assert "fit no model" in err


@pytest.mark.slow
def test_a_model_for_any_volume_does_not_outvote_those_for_some(zoo, tmp_path):
    """Of mostly CT or mostly MRI the networks of these are told of; of as many CT as MRI the one that takes both."""
    for folder, lowest in (("ct", (-1000, -1000, 0)), ("both", (-1000, 0, -1000, 0))):
        (tmp_path / folder).mkdir()
        for i, low in enumerate(lowest):
            write_ct(tmp_path / folder / f"{i}.nii.gz", low=low)
    first = zoo("doctor", tmp_path / "ct")[1].partition("\n")[0]
    assert first.startswith("2 of 3 images fit ")
    assert "anatomix" not in first
    assert zoo("doctor", tmp_path / "both")[1].startswith("4 of 4 images fit anatomix-unet")
