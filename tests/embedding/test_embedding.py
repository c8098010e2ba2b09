"""Features of files: the rows of every family, what is left out and named, the two formats, folders."""

import csv
import json
import logging
import math
import os
import re
import shutil
import signal
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
import torch
from dicom_files import write_series
from drasclr_patches import LANDMARKS, write_subjects
from forked import wait_for
from PIL import Image
from safetensors.torch import save_file
from texts import one_line

import zoo as package
from zoo.embedding import Embedder, embed, embed_cohort, find_cases
from zoo.embedding.reading import read_units
from zoo.errors import CheckpointFormatError, OptionError
from zoo.features import write_features
from zoo.fetching.cache import hash_file
from zoo.images.finding import find_images
from zoo.loading import input_of
from zoo.siblings import began
from zoo.transforms.image import ImageTransform

pytestmark = pytest.mark.usefixtures("warm_home")

NAME = "caid-resnet50.chestxray14-800"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Batches of other sizes sum in another order, some 1e-6; other images differ by more than 0.01."""


def write_film(path, seed):
    """Smooth noise of 70 x 90 pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5), dtype=np.uint8)
    Image.fromarray(coarse).resize((90, 70), Image.Resampling.BICUBIC).save(path)
    return path


def write_volume(path, shape, affine, low=-1000.0):
    """Tissue and noise in a box, air around."""
    values = np.full(shape, low, np.float32)
    body = tuple(slice(2, side - 2) for side in shape)
    values[body] = np.random.default_rng(sum(shape)).normal(40, 60, values[body].shape)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def read(out):
    with np.load(out, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture
def films(tmp_path):
    """Three films, one of them below, and two files that are none."""
    folder = tmp_path / "films"
    (folder / "ward").mkdir(parents=True)
    for i, name in enumerate(("b.png", "ward/c.jpg", "a.png")):
        write_film(folder / name, i)
    (folder / "broken.png").write_text("no image")
    (folder / "notes.txt").write_text("not an image, and not called one")
    return folder


@pytest.mark.slow
def test_rows_are_the_networks_own_features(zoo, films, tmp_path, monkeypatch):
    """`zoo embed` writes what model and transform give, in order; bad files are named at the end, with exit code 1."""
    monkeypatch.setattr("zoo.progress.MINUTE", math.inf)  # however busy the machine, the error alone is said
    out = tmp_path / "features.npz"
    code, said, err = zoo("embed", NAME, films, "-o", out, "--batch-size", 2)
    assert code == 1
    assert "1 image(s) have no features, the others are in" in err
    assert str(films / "broken.png") in err
    assert one_line(err)
    assert "3 x 2048 features of 3 image(s)" in said
    found = read(out)
    paths = [str(films / name) for name in ("a.png", "b.png", "ward/c.jpg")]
    assert found["paths"].tolist() == paths
    assert "slices" not in found
    model, transform = package.load_model(NAME), package.load_transform(NAME)
    with torch.no_grad():
        expected = torch.stack([model(transform(path)[None])[0] for path in paths]).numpy()
    assert found["features"].dtype == np.float32
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    np.testing.assert_allclose(found["features"], expected, **CLOSE)
    facts = json.loads(str(found["zoo"]))
    assert (facts["model"], facts["sha256"]) == (NAME, package.model_info(NAME).sha256)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


@pytest.mark.slow
def test_csv_has_the_same_numbers(zoo, films, tmp_path):
    """To the last bit, read by loader processes or here, with exit code 0 where every file is good."""
    good = [films / "b.png", films / "a.png"]
    code, _, err = zoo("embed", NAME, *good, "-o", tmp_path / "f.csv", "--workers", 1)
    assert (code, err) == (0, "")
    header, *rows = [line.split(",") for line in (tmp_path / "f.csv").read_text().splitlines()]
    assert header == ["path", *(f"f{i}" for i in range(2048))]
    assert [row[0] for row in rows] == list(map(str, good))
    assert np.array_equal(np.array([row[1:] for row in rows], np.float32), embed(NAME, good).values)


def test_without_a_good_file_nothing_is_written(zoo, films, tmp_path):
    """And what was there before stays."""
    out = tmp_path / "f.npz"
    out.write_bytes(b"earlier")
    code, _, err = zoo("embed", NAME, films / "broken.png", "-o", out)
    assert code == 1
    assert "nothing was written" in err
    assert out.read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["-o", "f.txt"], ".npz or .csv"),
        (["-o", "absent/f.npz"], "in a folder that exists"),
        (["-o", "f.npz", "empty"], "no images in the folder empty"),
        (["-o", "f.npz", "--batch-size", "0"], "batch_size=0"),
        (["-o", "f.npz", "--workers", "-1"], "workers=-1"),
        (["-o", "f.npz", "--device", "abacus"], "abacus"),
    ],
)
def test_wrong_use_is_said_in_one_line(zoo, films, tmp_path, monkeypatch, more, said):
    """Exit code 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code, _, err = zoo("embed", NAME, films / "a.png", *more)
    assert code == 2
    assert said in err
    assert one_line(err.splitlines()[-1])


def test_a_path_that_does_not_exist_fails_as_in_every_command(zoo, films, tmp_path):
    """Exit code 1 as for `doctor`, `inspect` and `import`, not that of wrong use; in a program both exceptions fit."""
    code, _, err = zoo("embed", NAME, films / "a.png", "absent.png", "-o", tmp_path / "f.npz")
    assert code == 1
    assert "1 of 2 paths does not exist: absent.png" in err
    for kind in (FileNotFoundError, OptionError):
        with pytest.raises(kind, match="absent"):
            embed(NAME, ["absent.png"])


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("caid-resnet50-unet", "caid-resnet50"),
        ("monai-ssl-unetr", "monai-ssl-vitb16 and monai-ssl-swinvit"),
        ("monai-ssl-swinunetr", "monai-ssl-vitb16 and monai-ssl-swinvit"),
        ("monai-ssl-vitautoenc", "monai-ssl-vitb16 and monai-ssl-swinvit"),
        ("glcl-unet", "glcl-encoder"),
        ("voco-swinunetr-l", "voco-swinvit-b and voco-swinvit-l and voco-swinvit-h"),
    ],
)
def test_networks_without_pooled_features_name_the_one_that_has(name, way, films):
    """Told from the entry alone, so that no weights are needed for it."""
    with pytest.raises(OptionError, match=f"'{name}' has no pooled features.* {way} gives? them"):
        embed(name, [films])


def test_every_family_has_an_encoder():
    """Which is what `zoo embed` takes; but for anatomix, whose authors define no feature of a volume."""
    from zoo.registry import entries

    encoders = [entry for entry in entries().values() if entry.is_encoder]
    assert {entry.family for entry in encoders} == {entry.family for entry in entries().values()} - {"anatomix"}


@pytest.mark.slow
def test_a_volume_of_slices_gives_a_row_for_each(tmp_path):
    """GLCL: path and slice stand beside the row, volumes may have different numbers of slices."""
    torch.manual_seed(0)
    model = package.load_model("glcl-encoder", pretrained=False)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    affine = np.diag([-1.36719, -1.36719, 8, 1])
    paths = [write_volume(tmp_path / f"{n}.nii.gz", (40, 48, n), affine, low=0.0) for n in (6, 5)]
    found = embed("glcl-encoder", paths, checkpoint=tmp_path / "w.safetensors", batch_size=2)
    assert found.paths == (str(paths[0]),) * 6 + (str(paths[1]),) * 5
    assert found.slices == (*range(6), *range(5))
    with torch.no_grad():
        expected = model(package.load_transform("glcl-encoder")(paths[1]))
    np.testing.assert_allclose(found.values[6:], expected.numpy(), **CLOSE)
    write_features(found, tmp_path / "f.csv")
    rows = (tmp_path / "f.csv").read_text().splitlines()
    assert rows[0].startswith("path,slice,f0,f1")
    assert rows[7].startswith(f"{paths[1]},0,")
    write_features(found, tmp_path / "f.npz")
    assert read(tmp_path / "f.npz")["slices"].tolist() == list(found.slices)


@pytest.mark.slow
def test_a_ct_is_embedded_as_by_its_familys_own_module(tmp_path):
    """MONAI SSL: a NIfTI and a DICOM series, found in a folder, give what the sliding windows of the recipe give."""
    from zoo.entries.monai_ssl import segment as sliding

    torch.manual_seed(0)
    small = {"img_size": 32, "hidden_size": 64, "mlp_dim": 128}
    model = package.load_model("monai-ssl-vitb16", pretrained=False, **small)
    weights = tmp_path / "w.safetensors"
    save_file(model.state_dict(), weights)
    scans = tmp_path / "scans"
    scans.mkdir()
    write_volume(scans / "ct.nii.gz", (30, 26, 14), np.diag([-1.1, 1.3, 3.1, 1]))
    write_series(scans / "series")
    found = embed("monai-ssl-vitb16", [scans], checkpoint=weights)
    assert found.paths == (str(scans / "ct.nii.gz"), str(scans / "series"))
    assert not found.failed
    arguments = ["--checkpoint", str(weights), "--out", str(tmp_path / "own"), "--device", "cpu"]
    files = sliding.main(["features", "--image", *found.paths, *arguments])
    for row, file in zip(found.values, files, strict=True):
        np.testing.assert_allclose(row, read(file)["pooled"], **CLOSE)
    elsewhere = embed("monai-ssl-vitb16", [scans], checkpoint=weights, workers=1)
    assert np.array_equal(elsewhere.values, found.values)


@pytest.fixture
def patients(tmp_path, monkeypatch):
    """Patches of two patients, and what embeds them offline: a small DrasCLR, and a cache with five landmarks."""
    np.save(tmp_path / "landmarks.npy", LANDMARKS)
    source, cache = tmp_path / "landmarks.npy", tmp_path / "cache"
    facts = {"sources": [f"file:{source}"], "bytes": source.stat().st_size, "sha256": hash_file(source)}
    record = facts | {"tag": "mine", "models": ["drasclr-cnn3d"], "state": "hosted", "assets": {"landmarks": facts}}
    (tmp_path / "mine.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "mine.json"))
    package.download_weights("drasclr-cnn3d.mine", cache_dir=cache, progress=False)
    source.unlink()
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    torch.manual_seed(0)
    save_file(package.load_model("drasclr-cnn3d", pretrained=False, experts=2).state_dict(), tmp_path / "w.safetensors")
    return write_subjects(tmp_path / "patch", 2, textured=True), {
        "checkpoint": tmp_path / "w.safetensors",
        "cache_dir": cache,
    }


@pytest.mark.slow
def test_a_patient_is_embedded_as_by_its_familys_own_module(patients, tmp_path, monkeypatch):
    """DrasCLR: patches that were cut before give the mean over the landmarks; what is wrong is said by name.

    The landmarks are those in the cache that is named, without a connection.
    """
    from zoo.entries.drasclr.embed import embed_cohort as embed_of_family
    from zoo.entries.drasclr.embed import embed_patient
    from zoo.entries.drasclr.features import read_subject_features

    patches, given = patients
    model = package.load_model("drasclr-cnn3d", num_classes=0, **given)
    np.save(patches / "s2_patch.npy", np.zeros((5, 32, 32, 32), np.int16))
    found = embed("drasclr-cnn3d", [patches], **given)
    assert found.paths == tuple(str(patches / f"s{i}_patch.npy") for i in range(2))
    for row, path in zip(found.values, found.paths, strict=True):
        expected = embed_patient(model, path, cache_dir=given["cache_dir"]).mean(0)
        np.testing.assert_allclose(row, expected.numpy(), **CLOSE)
    assert list(found.failed) == [str(patches / "s2_patch.npy")]
    assert "s2_patch.npy: the least value" in found.failed[str(patches / "s2_patch.npy")]
    monkeypatch.setenv("ZOO_HOME", str(given["cache_dir"]))
    command = read_subject_features(embed_of_family(model, patches, tmp_path / "f.npz", subjects=["s1", "s0"]))
    np.testing.assert_allclose(found.values, command.values, **CLOSE)
    assert "preparation" not in found.facts  # nothing is known of these patches


def note(patches, sid, **facts):
    """The record of how a patient's patches were cut, as DrasCLR's preprocessing writes it."""
    (patches.parent / "facts").mkdir(exist_ok=True)
    (patches.parent / "facts" / f"{sid}.json").write_text(json.dumps(facts))


@pytest.mark.slow
def test_patients_cut_by_two_registrations_are_not_mixed(patients, tmp_path):
    """By name and engine: in one list, in memory or in a folder, or in a folder that a later list adds to."""
    patches, given = patients
    first, second = (find_cases([patches / f"s{i}_patch.npy"], volumes=True) for i in range(2))
    embedder = Embedder("drasclr-cnn3d", device="cpu", **given)
    for other in ({"registration": "published", "engine": "simpleitk"}, {"registration": "fast", "engine": "scipy"}):
        note(patches, "s0", **other)
        note(patches, "s1", registration="fast", engine="simpleitk")
        ways = f"different ways .*{other['registration']} by {other['engine']}: s0_patch.npy"
        with pytest.raises(OptionError, match=ways) as refused:
            embed("drasclr-cnn3d", [patches], **given)
        assert "fast by simpleitk: s1_patch.npy" in str(refused.value)
        with pytest.raises(OptionError, match=ways):
            embed_cohort(embedder, find_cases([patches], volumes=True), tmp_path / "both", workers=0)
        assert not (tmp_path / "both").exists()
    assert embed_cohort(embedder, first, tmp_path / "out", workers=0).embedded == 1
    with pytest.raises(OptionError, match=r"in preparation: .*fast by scipy.* there, .*fast by simpleitk"):
        embed_cohort(embedder, second, tmp_path / "out", workers=0)
    note(patches, "s1", registration="fast", engine="scipy")
    assert embed_cohort(embedder, second, tmp_path / "out", workers=0).embedded == 1
    facts = embed("drasclr-cnn3d", [patches], **given).facts
    assert facts["preparation"] == {"registration": "fast by scipy"}


def test_a_ct_counts_as_cut_by_the_registration_of_today(patients, tmp_path):
    """Beside patches that an earlier one cut it is refused, before it is read."""
    patches, given = patients
    note(patches, "s0", registration="fast", engine="scipy")
    (tmp_path / "ct.nii.gz").write_bytes(b"")
    with pytest.raises(OptionError, match=r"fast by scipy: s0_patch.npy; fast by simpleitk: ct.nii.gz\)"):
        embed("drasclr-cnn3d", [patches / "s0_patch.npy", tmp_path / "ct.nii.gz"], **given)


@pytest.mark.slow
def test_features_that_are_not_finite_are_no_features(films, tmp_path, unet_state):
    """A network whose finite weights overflow gives no row of them."""
    spoilt = {n.removeprefix("encoder."): t for n, t in unet_state.items() if n.startswith("encoder.")}
    spoilt["layer4.2.bn3.weight"] = torch.full_like(spoilt["layer4.2.bn3.weight"], 3e38)
    save_file(spoilt, tmp_path / "w.safetensors", metadata={"input": '{"size": [64, 64], "resize": 73}'})
    found = embed("caid-resnet50", [films / "a.png"], checkpoint=tmp_path / "w.safetensors")
    assert found.values.shape == (0, 0)
    assert "NaN or infinite" in found.failed[str(films / "a.png")]


def test_the_input_of_a_file_is_what_its_header_says(tmp_path):
    """Else that of the tag that is named, else the model's; the weights of the plain name play no part."""
    for name, text in (("bare", None), ("told", '{"size": [96, 96], "resize": 110}'), ("as published", "{}")):
        save_file({"w": torch.zeros(1)}, tmp_path / name, metadata=text and {"input": text})
    assert input_of("caid-resnet50").size == (64, 64)
    assert input_of("caid-resnet50", tmp_path / "told").size == (96, 96)
    assert input_of(NAME, tmp_path / "bare").size == (64, 64)
    assert input_of("caid-resnet50", tmp_path / "bare").size == (224, 224)
    assert input_of(NAME, tmp_path / "as published").size == (224, 224)


@pytest.mark.parametrize("text", ["an image", "[64, 64]"])
def test_a_header_that_means_something_else_by_input_is_refused(tmp_path, text):
    """As a file of another program may; the file and what it says are named."""
    save_file({"w": torch.zeros(1)}, tmp_path / "other", metadata={"input": text})
    with pytest.raises(CheckpointFormatError, match=f"other states its input as {re.escape(repr(text))}"):
        input_of("caid-resnet50", tmp_path / "other")


def test_folders_are_looked_through(films, tmp_path):
    """Pictures by suffix and DICOM by content, hidden files left out, each image once; volumes with series as one."""
    (tmp_path / "cohort").mkdir()
    series = write_series(tmp_path / "cohort" / "p1")
    shutil.copy(next(path for path in sorted(series.iterdir())), films / "1.2.840.7")
    (films / ".hidden.png").touch()
    (films / ".previews").mkdir()
    (films / ".previews" / "d.png").touch()
    named = [path.name for path in find_images([films, films / "a.png"], volumes=False)]
    assert named == ["1.2.840.7", "a.png", "b.png", "broken.png", "c.jpg"]
    for name in ("x.nii", "x.txt", "y.NII.GZ", "pair.hdr", "pair.img"):
        (tmp_path / "cohort" / name).touch()
    found = find_images([tmp_path / "cohort"], volumes=True)
    assert [path.name for path in found] == ["p1", "pair.hdr", "x.nii", "y.NII.GZ"]
    assert find_images([tmp_path / "cohort" / "x.txt"], volumes=True)  # a file that is named is taken


def test_a_cd_is_looked_through(tmp_path):
    """Its index is DICOM and no image; what lies beside a series, or below it, is not hidden by it."""
    cd = tmp_path / "cd"
    (cd / "p1").mkdir(parents=True)
    series = write_series(cd / "p1" / "ct")
    write_series(series / "later")
    (series / "brain.nii.gz").touch()
    shutil.copy(next(series.glob("IM*")), cd / "DICOMDIR")
    found = find_images([cd], volumes=True)
    assert [str(path.relative_to(cd / "p1")) for path in found] == ["ct", "ct/brain.nii.gz", "ct/later"]
    assert not [path for path in find_images([cd], volumes=False) if path.name == "DICOMDIR"]


def test_nothing_is_half_written(tmp_path, films, monkeypatch):
    """A disk that fills up leaves the earlier file, and no temporary one."""
    found, out = embed(NAME, [films / "a.png"]), tmp_path / "f.npz"
    out.write_bytes(b"earlier")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_features(found, out)
    assert out.read_bytes() == b"earlier"
    assert not list(tmp_path.glob("*.tmp"))


def test_the_transforms_warnings_are_heard(films, caplog):
    """What is odd about an image is logged, and it has a row."""
    Image.new("L", (80, 80), 7).save(films / "flat.png")
    with caplog.at_level(logging.WARNING, "zoo"):
        found = embed(NAME, [films / "flat.png"])
    assert len(found.paths) == 1
    assert any("flat.png is constant" in message for message in caplog.messages)


def test_one_bad_image_ends_no_run(films, monkeypatch):
    """Whatever a reader raises, and whatever the transform: the image is named, all others have their rows."""
    (films / "bomb.png").write_bytes((films / "a.png").read_bytes())
    os.mkfifo(films / "pipe.png")
    (films / "lost.png").symlink_to("nowhere")
    raised = {"bomb.png": MemoryError(), "a.png": RecursionError("too deep")}
    plain = ImageTransform.__call__

    def call(self, image):
        if error := raised.get(Path(image).name):
            raise error
        return plain(self, image)

    monkeypatch.setattr(ImageTransform, "__call__", call)
    found = embed(NAME, [films])
    assert [Path(path).name for path in found.paths] == ["b.png", "c.jpg"]
    said = {Path(path).name: reason for path, reason in found.failed.items()}
    assert set(said) == {"a.png", "bomb.png", "broken.png", "lost.png", "pipe.png"}
    assert said["bomb.png"] == f"{films / 'bomb.png'}: MemoryError"
    assert "named pipe" in said["pipe.png"]


@pytest.mark.slow
def test_a_reader_that_dies_ends_no_run(films, monkeypatch):
    """A loader process killed by a decoder or for want of memory costs the one image that it was at."""
    for i in range(3):
        write_film(films / f"{i}.png", i)
    plain = ImageTransform.__call__

    def call(self, image):
        if Path(image).name == "1.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, image)

    monkeypatch.setattr(ImageTransform, "__call__", call)
    paths = [films / name for name in ("0.png", "1.png", "2.png", "a.png", "b.png")]
    found = embed(NAME, paths, workers=1, batch_size=1)
    assert [Path(path).name for path in found.paths] == ["0.png", "2.png", "a.png", "b.png"]
    assert list(found.failed) == [str(films / "1.png")]
    assert "the process that read it died" in found.failed[str(films / "1.png")]


@pytest.mark.slow
def test_a_reader_that_dies_while_the_network_computes_ends_no_run(films):
    """Torch raises its error wherever the program is when the process dies, outside the code that reads too."""
    for i in range(4):
        write_film(films / f"{i}.png", i)
    cases = find_cases([films], volumes=False)
    names, others = [], psutil.Process().children()  # a browser of other tests
    for unit in read_units(cases, [[i] for i in range(len(cases))], Embedder(NAME).reader, 1):
        names += [Path(cases.paths[case.case]).name for case in unit.cases if case.parts]
        if len(names) == 1:
            (reader,) = [child for child in psutil.Process().children() if child not in others]
            reader.kill()
            # In which time the signal comes. Psutil would wait for the child, and so hide its end from torch.
            wait_for(lambda gone=reader.pid: not began(gone), 10)
    assert names == ["0.png", "1.png", "2.png", "3.png", "a.png", "b.png", "c.jpg"]


def test_names_of_files_are_text_in_tables(films, tmp_path, monkeypatch):
    """Formulas, line ends and bytes that are no text: a row each, that a spreadsheet shows."""
    names = ["=cmd|x.png", "a\nb.png", os.fsdecode(b"\xff.png")]
    monkeypatch.chdir(films)
    for i, name in enumerate(names):
        write_film(films / "x.png", i).rename(films / name)
    found = embed(NAME, names)
    write_features(found, tmp_path / "f.csv")
    rows = list(csv.reader((tmp_path / "f.csv").read_text("utf-8").splitlines()))
    assert [row[0] for row in rows[1:]] == ["'=cmd|x.png", "a\\nb.png", "\\udcff.png"]
    write_features(found, tmp_path / "f.npz")
    assert read(tmp_path / "f.npz")["paths"].tolist() == names
