"""GLCL's segmentation of whole volumes: labels on the scan's own grid, from file to file."""

import json

import nibabel
import numpy as np
import pytest
import torch
from glcl_files import Bright, filled, stage_two, write_bundle
from glcl_volumes import SHAPE, draw, save, write_subject
from safetensors.torch import load_file

import zoo
from zoo.checkpoint.export import export_safetensors
from zoo.commands.segmenting import load_segmenter
from zoo.entries.glcl import PREPROCESSING
from zoo.entries.glcl.cases import CaseStore
from zoo.entries.glcl.cohort import DATASETS, find_cases
from zoo.entries.glcl.segment import command_for, main, segment_volume
from zoo.errors import CheckpointFormatError, InputContractError, OptionError
from zoo.fetching import hash_file
from zoo.transforms.slices import build_slice_transform

ACDC = DATASETS["acdc"]
GRID = {"size": [32, 32], "spacing": [2.5, 2.5]}
TRANSFORM = build_slice_transform(PREPROCESSING.override(GRID))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A U-Net of random values that tells pixels apart, with its pixels in the header, as fine-tuning exports it."""
    torch.manual_seed(0)
    network = zoo.load_model("glcl-unet", pretrained=False)
    with torch.no_grad():
        network.seg_fin_layer.weight -= network.seg_fin_layer.weight.mean((1, 2, 3), keepdim=True)
    path = tmp_path_factory.mktemp("weights") / "glcl-unet.mine.safetensors"
    return export_safetensors(network.state_dict(), path, metadata={"input": json.dumps(GRID)})


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A volume that is turned and moved in the plane, with grey levels for viewers in its header."""
    turn, affine = np.deg2rad(20), np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:, 3] = (-31, 12, 5, 1)
    image = nibabel.Nifti1Image(draw(1)[0], affine @ np.diag([-2.0, -2, 8, 1]))
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    image.header["cal_max"] = 700
    image.header.set_xyzt_units("mm", "sec")
    path = tmp_path_factory.mktemp("scan") / "patient001.nii.gz"
    nibabel.save(image, path)
    return path


def segment(weights, out, *images, more=()):
    return main([*("--image", *map(str, images)), *("--checkpoint", str(weights), "--out", str(out)), *more])


# Labels


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((40, 44, 9), (2.0, 2.0, 8.0)), ((70, 34, 5), (2.0, 1.6, 6.0)), ((33, 64, 23), (1.1, 2.9, 5.0))],
)
def test_labels_lie_where_the_structures_do(tmp_path, shape, spacing):
    """In volumes with voxels that are no cubes, cropped along one axis and padded along the other, 20 slices at a time.

    An object whose border is a step loses pixels of 2.5 mm at the border and what the crop cut off, no more; one voxel
    further is worse.
    """
    x, y, _ = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"
    )
    truth = ((x - 6) / 20) ** 2 + ((y + 4) / 14) ** 2 < 1
    image = 100 + 400 * truth + np.random.default_rng(0).normal(0, 10, shape)
    labels = segment_volume(Bright(), save(tmp_path / "it.nii.gz", image.astype(np.float32), spacing), TRANSFORM)
    assert (labels.shape, labels.dtype) == (shape, np.uint8)
    assert _dice(labels, truth) > 0.93
    for axis in (0, 1):
        for step in (-1, 1):
            assert _dice(np.roll(labels, step, axis), truth) < _dice(labels, truth)
    seen = np.ones(shape[:2], bool)
    for axis, (n, s) in enumerate(zip(shape[:2], spacing[:2], strict=True)):
        far = np.abs(np.arange(n) - (n - 1) / 2) * s > 16 * 2.5 + s + 2.5  # of the 32 pixels' middle
        seen &= ~far.reshape(-1, 1) if axis == 0 else ~far
    assert not labels[~seen].any()


def _dice(found, truth):
    return 2 * (found.astype(bool) & truth).sum() / (found.astype(bool).sum() + truth.sum())


@pytest.mark.slow
@pytest.mark.parametrize("n4", [False, True])
def test_the_network_sees_what_it_was_fine_tuned_on(tmp_path, n4):
    """The recipe's own slices, with the bias field corrected or not."""
    write_subject(tmp_path, 1)
    (case,) = find_cases(tmp_path, ACDC)
    network = Bright().train()
    segment_volume(network, case.image, TRANSFORM, n4=n4)
    stored = CaseStore(tmp_path / "cache", ACDC, 32, 2.5, n4=n4).open(case)
    assert torch.equal(torch.cat(network.given)[:, 0], torch.from_numpy(stored.image.copy()))
    assert network.training


def test_a_fourth_axis_needs_its_channel(tmp_path):
    """As Decathlon's prostate has it."""
    image = np.stack([draw(2)[0], draw(3)[0]], -1)
    path, single = save(tmp_path / "both.nii.gz", image), save(tmp_path / "one.nii.gz", draw(3)[0])
    expected = segment_volume(Bright(), single, TRANSFORM)
    assert np.array_equal(segment_volume(Bright(), path, TRANSFORM, channel=1), expected)
    with pytest.raises(InputContractError, match=r"both.nii.gz has shape \(40, 44, 9, 2\)"):
        segment_volume(Bright(), path, TRANSFORM)


def test_scans_without_a_place_are_segmented(tmp_path):
    """Nothing is turned, so that the size of pixels is all that is needed; wrong axes are refused all the same."""
    image = nibabel.Nifti1Image(draw(1)[0], None)
    image.header.set_zooms((2.0, 2.0, 8.0))
    nibabel.save(image, tmp_path / "nowhere.nii.gz")
    placed = save(tmp_path / "placed.nii.gz", draw(1)[0])
    found, expected = (segment_volume(Bright(), p, TRANSFORM) for p in (tmp_path / "nowhere.nii.gz", placed))
    assert np.array_equal(found, expected)
    side = save(tmp_path / "side.nii.gz", np.moveaxis(draw(1)[0], 2, 0).repeat(4, 0), (8.0, 2.0, 2.0))
    with pytest.raises(InputContractError, match="slices are expected along the third axis"):
        segment_volume(Bright(), side, TRANSFORM)


# From file to file


def test_labels_are_written_with_the_scans_header(scan, weights, tmp_path, capsys):
    """Place and codes; not its type, nor its grey levels. What was used is said."""
    (path,) = segment(weights, tmp_path / "out", scan)
    assert path == tmp_path / "out" / "patient001_labels.nii.gz"
    found, given = nibabel.load(path), nibabel.load(scan)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(found.affine, given.affine)
    for field in ("sform_code", "qform_code", "pixdim", "xyzt_units", "quatern_d", "qoffset_x"):
        np.testing.assert_array_equal(found.header[field], given.header[field])
    assert float(found.header["cal_max"]) == 0
    network = zoo.load_model("glcl-unet", checkpoint=weights)
    labels = np.asarray(found.dataobj)
    assert np.array_equal(labels, segment_volume(network, scan, TRANSFORM))
    assert len(np.unique(labels)) > 1
    assert f"labels of 1 volume(s), by glcl-unet from {weights}, in slices of 32 x 32 pixels" in capsys.readouterr().err
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.slow
def test_the_input_is_that_of_the_weights(scan, weights, tmp_path, capsys):
    """Of a file that says nothing, the tag's that is named, else the model's."""
    torch.save(zoo.load_model("glcl-unet", checkpoint=weights).state_dict(), tmp_path / "best.pt")
    for more, words in (
        ((), "192 x 192 pixels of 1.36719 x"),
        (("--model", "glcl-unet.mmwhs"), "160 x 160 pixels of 1.5"),
    ):
        segment(tmp_path / "best.pt", tmp_path, scan, more=more)
        assert words in capsys.readouterr().err
    assert zoo.load_transform("glcl-unet", checkpoint=weights) == TRANSFORM


def test_volumes_that_cannot_be_segmented_are_named_at_the_end(scan, weights, tmp_path):
    """A file cut short, a mask, NaN: the good ones before and after are written."""
    folder = tmp_path / "scans"
    names = ("a", "broken", "mask", "nan", "z")
    files = {name: save(folder / f"{name}.nii.gz", draw(i)[0]) for i, name in enumerate(names)}
    files["broken"].write_bytes(scan.read_bytes()[:300])
    save(files["mask"], draw(2)[1])
    save(files["nan"], np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(InputContractError) as caught:
        segment(weights, tmp_path / "out", folder)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"3 volume(s) have no labels, the others are in {tmp_path / 'out'}:"
    for line, name in zip(lines[1:], names[1:4], strict=True):
        assert str(files[name]) in line
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_labels.nii.gz", "z_labels.nii.gz"]
    with pytest.raises(InputContractError, match=r"1 volume\(s\) have no labels, nothing was written"):
        segment(weights, tmp_path / "none", files["broken"])


@pytest.mark.slow
def test_weights_without_a_whole_decoder_are_refused(tmp_path):
    """Of stage 1, and of stage 2: what is fresh would give labels, too. Counters of norms are no part of it."""
    encoder = write_bundle(tmp_path / "one.ckpt", filled("encoder_pretrain", 3))
    decoder = write_bundle(tmp_path / "two.ckpt", stage_two(3))
    for path in (encoder, decoder):
        with pytest.raises(
            OptionError, match=r"are untrained, .*not in the file.*not learned to segment\. Fine-tune it first"
        ):
            load_segmenter("glcl-unet", str(path))
    whole = write_bundle(tmp_path / "three.ckpt", filled("seg_unet"))
    assert load_segmenter("glcl-unet", str(whole)).num_classes == 4


def test_wrong_use_is_refused_at_once(scan, weights, tmp_path):
    """Models that do not segment, volumes that are not there, two of one name."""
    with pytest.raises(OptionError, match="--model glcl-encoder: expected glcl-unet"):
        segment(weights, tmp_path, scan, more=("--model", "glcl-encoder"))
    with pytest.raises(OptionError, match=r"2 of 3 paths do not exist: a\.nii, b\.nii"):
        segment(weights, tmp_path, "a.nii", scan, "b.nii")
    for name in ("one/001/it.nii.gz", "two/001/it.nii"):
        save(tmp_path / name, draw(0)[0])
    with pytest.raises(OptionError, match="several volumes would have labels called 001_it"):
        segment(weights, tmp_path, tmp_path)


def test_what_a_tag_s_scans_were_put_through_is_obeyed_the_first_time_too(scan, weights, tmp_path, monkeypatch):
    """Before its file was here the header could not be read, and the first run took scans as they are."""
    metadata = {"input": json.dumps(GRID), "reading": json.dumps({"n4": True, "channel": 1})}
    file = export_safetensors(load_file(weights), tmp_path / "house.safetensors", metadata=metadata)
    record = {
        "tag": "house",
        "models": ["glcl-unet"],
        "state": "hosted",
        "sources": [f"file:{file}"],
        "bytes": file.stat().st_size,
        "sha256": hash_file(file),
        "input": GRID,
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "manifest.json"))
    given = []

    def note(model, transform, path, *, n4, channel):
        given.append((n4, channel))
        return np.zeros(SHAPE, np.uint8), np.eye(4)

    monkeypatch.setattr("zoo.entries.glcl.segment.label_volume", note)
    for _ in range(2):
        main(["--image", str(scan), "--out", str(tmp_path / "out"), "--model", "glcl-unet.house", "--device", "cpu"])
    assert given == [(True, 1), (True, 1)]


@pytest.mark.parametrize("reading", [{"n4": "false"}, {"bias": True}, {"channel": True}])
def test_what_is_not_known_of_the_reading_is_refused(reading, scan, weights, tmp_path):
    """A later version may do more to scans, and text that says false is true to Python."""
    metadata = {"input": json.dumps(GRID), "reading": json.dumps(reading)}
    file = export_safetensors(load_file(weights), tmp_path / "later.safetensors", metadata=metadata)
    with pytest.raises(CheckpointFormatError, match=r"later\.safetensors says that scans were put through"):
        segment(file, tmp_path / "out", scan)


@pytest.mark.slow
def test_what_scans_were_put_through_is_obeyed_or_refused(scan, weights, tmp_path, monkeypatch, zoo):
    """Without a word of it, labels would be of images that the network never saw: a bias field, or another channel."""
    reading = {"n4": True, "channel": 1}
    metadata = {"input": json.dumps(GRID), "reading": json.dumps(reading)}
    file = export_safetensors(load_file(weights), tmp_path / "n4.safetensors", metadata=metadata)
    code, _, said = zoo("segment", "glcl-unet", scan, "--checkpoint", file, "-o", tmp_path / "plain")
    assert (code, (tmp_path / "plain").exists()) == (2, False)
    assert "put through n4 True, channel 1" in said
    assert f"{command_for(file)} does it" in " ".join(said.split())
    given = []

    def note(model, transform, path, *, n4, channel):
        given.append((n4, channel))
        return np.zeros(SHAPE, np.uint8), np.eye(4)

    monkeypatch.setattr("zoo.entries.glcl.segment.label_volume", note)
    segment(file, tmp_path / "out", scan)
    segment(weights, tmp_path / "out", scan, more=("--channel", "2"))
    segment(weights, tmp_path / "out", scan)
    assert given == [(True, 1), (False, 2), (False, None)]
    with pytest.raises(OptionError, match="--channel 0: by their header the weights learnt from channel 1"):
        segment(file, tmp_path / "out", scan, more=("--channel", "0"))
