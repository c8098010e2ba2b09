"""MONAI SSL over whole volumes: where a CT is put, how windows are put together, labels on the CT's own grid."""

import json
import runpy
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from dicom_files import write_series
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)

import zoo
from zoo.checkpoint.export import export_safetensors
from zoo.entries.monai_ssl import FINE_TUNING, PRETRAINING
from zoo.entries.monai_ssl.model import vit_encoder
from zoo.entries.monai_ssl.segment import main
from zoo.entries.monai_ssl.segmenters import swin_unetr, unetr
from zoo.entries.monai_ssl.windows import extract_features, segment, slide, window_of
from zoo.errors import InputContractError, OptionError
from zoo.fetching.cache import hash_file
from zoo.images import check_grid, read_volume
from zoo.transforms.image import build_transform
from zoo.transforms.placing import foreground_box, place_labels, place_volume

SIZE = 32
SMALL = {"img_size": SIZE, "hidden_size": 64, "mlp_dim": 128}


def scan(seed=0, shape=(30, 26, 14)):
    """HU (i, j, k): soft tissue and noise in a box, air around; and its labels, two blocks."""
    rng = np.random.default_rng(seed)
    values, labels = np.full(shape, -1000.0, np.float32), np.zeros(shape, np.uint8)
    body = tuple(slice(3, side - 2) for side in shape)
    values[body] = rng.normal(40, 60, values[body].shape)
    labels[5:14, 6:15, 4:9] = 1
    labels[16:25, 8:20, 5:11] = 2
    values[labels == 2] += 60
    return values, labels


def write(path, values, affine):
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


AFFINE = np.array([[-1.1, 0, 0, 20.0], [0, 1.3, 0, -31.0], [0, 0, 3.1, 5.0], [0, 0, 0, 1]])
"""First axis to the left, voxels of no simple ratio to the network's, so that nothing lies half-way between two."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    values, labels = scan()
    return write(folder / "ct.nii.gz", values, AFFINE), write(folder / "label.nii.gz", labels, AFFINE)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return vit_encoder(**SMALL, num_layers=2).eval()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return unetr(**SMALL, feature_size=4, num_classes=3).eval()


# Where a CT is put


@pytest.mark.parametrize("facts", [FINE_TUNING, PRETRAINING], ids=["fine-tuning", "pre-training"])
def test_a_ct_is_placed_as_by_the_tutorials_transforms(files, facts):
    """Orientation, spacing, window and foreground crop, of image and label, by MONAI's own transforms."""
    keys = ["image", "label"]
    low, high = facts.window
    steps = [LoadImaged(keys), EnsureChannelFirstd(keys)]
    steps += [Orientationd(keys, axcodes="RAS", labels=None)] if facts.orientation else []
    steps += [
        Spacingd(keys, pixdim=facts.spacing, mode=("bilinear", "nearest")),
        ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
        CropForegroundd(keys, source_key="image", allow_smaller=True),
    ]
    expected = Compose(steps)({"image": str(files[0]), "label": str(files[1])})
    placed = place_volume(files[0], build_transform(facts))
    assert placed.image.dtype == np.float32
    # two ways to interpolate the same line in float32: 1e-4 of the window is 0.04 HU
    np.testing.assert_allclose(placed.image, expected["image"][0].numpy(), atol=1e-4)
    label = place_labels(read_volume(files[1]), placed, facts)
    assert label.dtype == np.uint8
    assert set(np.unique(label)) == {0, 1, 2}
    np.testing.assert_array_equal(label, expected["label"][0].numpy())
    first = placed.whole.affine @ [*(side.start for side in placed.box), 1]
    np.testing.assert_allclose(first[:3], expected["image"].affine.numpy()[:3, 3], atol=1e-3)


def test_labels_come_back_to_the_cts_own_grid(files):
    """Bit by bit where only axes turn; else at most one voxel of the network's grid off; outside the box background."""
    turned_only = replace(FINE_TUNING, spacing=(1.1, 1.3, 3.1))
    labels = read_volume(files[1])
    placed = place_volume(files[0], build_transform(turned_only))
    assert placed.image.shape != labels.values.shape
    assert np.array_equal(placed.at_home(place_labels(labels, placed, turned_only)), labels.values)

    placed = place_volume(files[0], build_transform(FINE_TUNING))
    found = placed.at_home(place_labels(labels, placed, FINE_TUNING))
    assert found.shape == labels.values.shape
    assert (found != labels.values).mean() < 0.04  # a voxel's rim around two blocks of 9 x 9 x 5 and 9 x 12 x 6
    for label in (1, 2):
        # a block's middle moves by less than half a voxel of the coarser grid
        middle = [np.argwhere(array == label).mean(0) * (1.1, 1.3, 3.1) for array in (found, labels.values)]
        assert np.abs(middle[0] - middle[1]).max() < 1.0
    with pytest.raises(InputContractError, match=r"labels of shape \(2, 2, 2\)"):
        placed.at_home(np.zeros((2, 2, 2), np.uint8))


def test_labels_beside_their_image_are_refused(files, tmp_path):
    """Another shape, or a place more than a tenth of a voxel off; rounding in a header is neither."""
    image, labels = read_volume(files[0]).grid, read_volume(files[1])
    moved = AFFINE.copy()
    moved[:3, 3] += 0.05
    check_grid(read_volume(write(tmp_path / "near.nii.gz", labels.values, moved)).grid, image)
    moved[0, 3] += 1
    with pytest.raises(InputContractError, match=r"far.nii.gz lies up to 1.0\d mm beside its image .*ct.nii.gz"):
        check_grid(read_volume(write(tmp_path / "far.nii.gz", labels.values, moved)).grid, image)
    with pytest.raises(InputContractError, match=r"cut.nii.gz has \(30, 26, 13\) voxels, its image"):
        check_grid(read_volume(write(tmp_path / "cut.nii.gz", labels.values[..., 1:], AFFINE)).grid, image)


def test_a_volume_without_anything_in_the_window_is_refused(tmp_path):
    """Air and lung alone."""
    values = np.random.default_rng(0).normal(-900, 20, (12, 12, 12)).astype(np.float32)
    with pytest.raises(InputContractError, match=r"air.nii.gz has nothing above -175 HU"):
        place_volume(write(tmp_path / "air.nii.gz", values, AFFINE), build_transform(FINE_TUNING))
    assert foreground_box(np.zeros((3, 3, 3)), 0.0) is None


# Windows


@pytest.mark.slow
def test_windows_are_averaged_where_they_overlap(network):
    """Along an axis of 40 voxels, windows of 32 begin at 0 and, as the last one, at 8; along one of 32 there is one."""
    volume = torch.rand(1, 40, SIZE, SIZE)
    with torch.no_grad():
        first, last = network(volume[None, :, :SIZE])[0], network(volume[None, :, 8:])[0]
    found = slide(network, volume)
    assert found.shape == (3, 40, SIZE, SIZE)
    # windows are computed in another batch: float32 sums in another order
    torch.testing.assert_close(found[:, :8], first[:, :8], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, 8:32], (first[:, 8:] + last[:, :24]) / 2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, 32:], last[:, 24:], atol=1e-5, rtol=1e-5)
    classes = segment(network, volume)
    assert classes.dtype == torch.uint8
    assert torch.equal(classes.long(), found.argmax(0))
    assert torch.equal(segment(network, volume[None])[0], classes)


def test_a_small_volume_is_padded(network):
    """With 0 on both sides; the padding is cut off again."""
    volume = torch.rand(1, 20, SIZE, 27)
    padded = torch.zeros(1, 1, SIZE, SIZE, SIZE)
    padded[0, :, 6:26, :, 2:29] = volume
    with torch.no_grad():
        expected = network(padded)[0, :, 6:26, :, 2:29]
    torch.testing.assert_close(slide(network, volume), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_swin_unetr_is_slid_in_the_published_window():
    """Its network is built for no size, so that the window can be chosen."""
    network = swin_unetr(feature_size=12, num_classes=2)
    assert window_of(network) == (96, 96, 96)
    assert segment(network, torch.rand(1, 60, 20, 32), window=(64, 32, 32)).shape == (60, 20, 32)


def test_features_of_one_window_are_the_encoders_own(encoder):
    """Map and mean."""
    volume = torch.rand(1, SIZE, SIZE, SIZE)
    found, pooled = extract_features(encoder, volume)
    with torch.no_grad():
        torch.testing.assert_close(found, encoder.forward_features(volume[None])[0])
        torch.testing.assert_close(pooled, encoder(volume[None])[0])


def test_features_of_a_long_volume_are_put_together(encoder):
    """An axis of 45 voxels is three tokens; the second lies in both windows."""
    volume = torch.rand(2, 1, SIZE, SIZE, 45)
    padded = torch.zeros(2, 1, SIZE, SIZE, 48)
    padded[..., 1:46] = volume
    with torch.no_grad():
        first, last = (encoder.forward_features(padded[..., start : start + SIZE]) for start in (0, 16))
    found, pooled = extract_features(encoder, volume)
    assert found.shape == (2, 64, 2, 2, 3)
    parts = (first[..., 0], (first[..., 1] + last[..., 0]) / 2, last[..., 1])
    torch.testing.assert_close(found, torch.stack(parts, -1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, found.mean((2, 3, 4)))
    torch.testing.assert_close(extract_features(encoder, volume, overlap=0.5)[0], found, atol=1e-5, rtol=1e-5)


def test_tokens_of_padding_alone_are_in_no_mean():
    """A volume of 20 voxels in a window of 64 touches the tokens from 22 to 41, the second and the third."""
    torch.manual_seed(0)
    encoder = vit_encoder(img_size=(64, 16, 16), hidden_size=64, mlp_dim=128, num_layers=1)
    found, pooled = extract_features(encoder, torch.rand(1, 20, 16, 16))
    assert found.shape == (64, 4, 1, 1)
    torch.testing.assert_close(pooled, found[:, 1:3].mean((1, 2, 3)))
    assert not torch.allclose(pooled, found.mean((1, 2, 3)))


def test_the_network_is_left_as_it_was(encoder):
    """Mode and gradients; nothing that is returned has a history."""
    encoder.train()
    encoder.norm.eval()
    found, _ = extract_features(encoder, torch.rand(1, SIZE, SIZE, SIZE))
    assert encoder.training
    assert encoder.blocks[0].training
    assert not encoder.norm.training
    assert not found.requires_grad
    encoder.eval()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((32, 32, 32), {}, r"shape \(32, 32, 32\).*\(1, D, H, W\)"),
        ((32, 32), {}, r"shape \(32, 32\)"),
        ((1, 32, 32, 32), {"overlap": 0.25}, "windows of 32 voxels would begin inside a token of 16; 0 or 0.5"),
        ((1, 32, 32, 32), {"overlap": 1.0}, "overlap=1.0"),
        ((1, 32, 32, 32), {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_slid_is_refused(encoder, shape, options, message):
    """Axes and options out of range."""
    with pytest.raises((InputContractError, OptionError), match=message):
        extract_features(encoder, torch.rand(shape), **options)


def test_features_are_of_an_encoder(network):
    """UNETR has none."""
    with pytest.raises(OptionError, match=r"SegmentingViT is no encoder.*monai-ssl-vitb16"):
        extract_features(network, torch.rand(1, SIZE, SIZE, SIZE))


# From file to file


@pytest.mark.slow
def test_a_ct_is_segmented_from_file_to_file(files, network, tmp_path):
    """The labels lie on the CT's own grid and are those of `segment`."""
    torch.save(network.state_dict(), tmp_path / "best.pt")
    flags = ["--checkpoint", str(tmp_path / "best.pt"), "--device", "cpu", "--out", str(tmp_path / "out")]
    (path,) = main(["segment", "--image", str(files[0]), *flags])
    assert path == tmp_path / "out" / "ct_labels.nii.gz"
    found = nibabel.load(path)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-5)
    placed = place_volume(files[0], build_transform(FINE_TUNING))
    expected = placed.at_home(segment(network, torch.from_numpy(placed.image)[None]).numpy())
    assert np.array_equal(np.asarray(found.dataobj), expected)
    assert len(np.unique(expected)) > 1

    coarse = main(["segment", "--image", str(files[0]), "--spacing", "4", "--window", "48", *flags])
    assert not np.array_equal(np.asarray(nibabel.load(coarse[0]).dataobj), expected)


@pytest.mark.slow
def test_heads_and_voxels_of_a_checkpoint_are_said_by_flags(files, network, tmp_path, monkeypatch):
    """Its file knows neither; what stands behind the plain name, here at 4 mm, plays no part."""
    path = tmp_path / "best.pt"
    torch.save(network.state_dict(), path)
    record = {"tag": "mine", "models": ["monai-ssl-unetr"], "state": "hosted", "sources": [f"file:{path}"]}
    record |= {"bytes": path.stat().st_size, "sha256": hash_file(path), "input": {"spacing": [4.0, 4.0, 4.0]}}
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "manifest.json"))
    assert zoo.load_transform("monai-ssl-unetr").preprocessing.spacing == (4.0, 4.0, 4.0)

    flags = ["--checkpoint", str(path), "--device", "cpu", "--out", str(tmp_path)]
    (found,) = main(["segment", "--image", str(files[0]), "--num-heads", "2", *flags])
    placed = place_volume(files[0], build_transform(FINE_TUNING))
    two = zoo.load_model("monai-ssl-unetr", checkpoint=path, num_heads=2)
    image = torch.from_numpy(placed.image)[None]
    expected = placed.at_home(segment(two, image).numpy())
    assert np.array_equal(np.asarray(nibabel.load(found).dataobj), expected)
    assert not np.array_equal(expected, placed.at_home(segment(network, image).numpy()))


@pytest.mark.slow
def test_a_dicom_series_is_segmented(network, tmp_path):
    """The labels are called as the folder, and lie where the slices do."""
    hu = np.round(scan()[0] / 2).astype(np.int16) * 2
    write_series(tmp_path / "series", hu)
    torch.save(network.state_dict(), tmp_path / "best.pt")
    flags = ["--checkpoint", str(tmp_path / "best.pt"), "--device", "cpu", "--out", str(tmp_path)]
    (path,) = main(["segment", "--image", str(tmp_path / "series"), *flags])
    assert path.name == "series_labels.nii.gz"
    found, expected = nibabel.load(path), read_volume(tmp_path / "series")
    assert found.shape == expected.values.shape
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)


def test_features_are_written_with_their_place(files, encoder, tmp_path):
    """The matrix leads from a token's index to the mm of its middle."""
    torch.save(encoder.state_dict(), tmp_path / "vit.pt")
    flags = ["--checkpoint", str(tmp_path / "vit.pt"), "--device", "cpu", "--out", str(tmp_path)]
    (path,) = main(["features", "--image", str(files[0]), *flags])
    stored = np.load(path)
    placed = place_volume(files[0], build_transform(PRETRAINING))
    found, pooled = extract_features(encoder, torch.from_numpy(placed.image)[None])
    np.testing.assert_allclose(stored["map"], found.numpy(), atol=1e-6)
    np.testing.assert_allclose(stored["pooled"], pooled.numpy(), atol=1e-6)
    # in the middle of the map lies the middle of the foreground, up to the voxel by which padding is uneven
    middle = stored["affine"] @ [*((np.array(found.shape[1:]) - 1) / 2), 1]
    centre = [(side.start + side.stop - 1) / 2 for side in placed.box]
    assert np.abs(middle - placed.whole.affine @ [*centre, 1]).max() <= 1.0 + 1e-6


def test_the_input_in_the_files_header_counts(files, encoder, tmp_path):
    """As pre-training writes it, for the models that it is of; `--spacing` overrides it."""
    own = {"monai-ssl-vitb16": {"spacing": [4.0, 4.0, 4.0]}, "monai-ssl-vitautoenc": {"spacing": [5.0, 5.0, 5.0]}}
    path = export_safetensors(encoder, tmp_path / "vit.safetensors", metadata={"input": json.dumps(own)})
    flags = ["--image", str(files[0]), "--checkpoint", str(path), "--device", "cpu", "--out", str(tmp_path)]
    for more, spacing in (((), 4.0), (("--spacing", "3"), 3.0)):
        (found,) = main(["features", *flags, *more])
        placed = place_volume(files[0], build_transform(replace(PRETRAINING, spacing=(spacing,) * 3)))
        expected, _ = extract_features(encoder, torch.from_numpy(placed.image)[None])
        np.testing.assert_allclose(np.load(found)["map"], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["segment", "--model", "monai-ssl-vitb16"], "segment takes monai-ssl-unetr or monai-ssl-swinunetr"),
        (["features", "--model", "monai-ssl-unetr"], "features takes monai-ssl-vitb16"),
        (["features", "--window", "64"], "windows that the encoder was built for"),
        (["segment", "--spacing", "1,b"], "--spacing 1,b: a length in mm"),
        (["segment", "--spacing", "1,2"], "three lengths"),
    ],
)
def test_wrong_flags_are_refused(files, tmp_path, argv, message):
    """Before anything is loaded."""
    with pytest.raises(OptionError, match=message):
        main([*argv, "--image", str(files[0]), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert not (tmp_path / "out").exists()


def test_wrong_images_are_refused_at_once(files, tmp_path):
    """All that are missing are named; two of one name would overwrite each other's labels."""
    flags = ["--out", str(tmp_path), "--device", "cpu"]
    with pytest.raises(OptionError, match=r"2 of 3 paths do not exist: a.nii, b.nii"):
        main(["segment", "--image", "a.nii", str(files[0]), "b.nii", *flags])
    (tmp_path / "ct.nii").write_bytes(b"")
    (tmp_path / "ct.nii.gz").write_bytes(b"")
    with pytest.raises(OptionError, match=r"several volumes would have labels called \w+_ct"):
        main(["segment", "--image", str(tmp_path / "ct.nii"), str(tmp_path / "ct.nii.gz"), *flags])


def test_an_encoders_weights_do_not_segment(files, encoder, tmp_path):
    """A decoder of random weights would give labels, too."""
    torch.manual_seed(0)
    full = vit_encoder(**SMALL, num_layers=12)
    torch.save(full.state_dict(), tmp_path / "vit.pt")
    flags = ["--checkpoint", str(tmp_path / "vit.pt"), "--device", "cpu", "--out", str(tmp_path)]
    with pytest.raises(OptionError, match=r"has not learned to segment\. Fine-tune it first"):
        main(["segment", "--image", str(files[0]), *flags])


def test_the_commands_old_name_still_works(files, monkeypatch, tmp_path):
    """`python -m zoo.entries.monai_ssl.sliding` of a job script runs `segment`'s command."""
    argv = ["sliding", "features", "--model", "monai-ssl-unetr", "--image", str(files[0]), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit, match="features takes monai-ssl-vitb16"):
        runpy.run_module("zoo.entries.monai_ssl.sliding", run_name="__main__")
