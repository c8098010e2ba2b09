"""`zoo segment`: labels of whole volumes, the same as by the families' own commands, and what it goes on after."""

import json
import re

import nibabel
import numpy as np
import pytest
import torch
from caid_files import PARITY
from dicom_files import write_series
from glcl_volumes import draw, save

import zoo as package
from zoo.checkpoint.building import build_network
from zoo.checkpoint.export import export_safetensors
from zoo.commands.segmenting import trained_weights, write_each
from zoo.entries.glcl import segment as glcl
from zoo.entries.monai_ssl import segment as monai_ssl
from zoo.entries.monai_ssl.model import vit_encoder
from zoo.entries.monai_ssl.segmenters import unetr
from zoo.errors import InputContractError, OptionError
from zoo.images.volumes import read_volume
from zoo.manifest import record_with_tag, records
from zoo.registry import entries, get_entry

SMALL = {"img_size": 32, "hidden_size": 64, "mlp_dim": 128}


@pytest.fixture(scope="module")
def slices_weights(tmp_path_factory):
    """A U-Net of random values that tells pixels apart, with its pixels in the header."""
    torch.manual_seed(0)
    network = package.load_model("glcl-unet", pretrained=False)
    with torch.no_grad():
        network.seg_fin_layer.weight -= network.seg_fin_layer.weight.mean((1, 2, 3), keepdim=True)
    path = tmp_path_factory.mktemp("weights") / "unet.safetensors"
    seen = {"size": [32, 32], "spacing": [2.5, 2.5]}
    return export_safetensors(network.state_dict(), path, metadata={"input": json.dumps(seen)})


@pytest.fixture(scope="module")
def ct_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "unetr.pt"
    torch.save(unetr(**SMALL, feature_size=4, num_classes=3).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two stacks of MR slices and, between them, one whose file is cut short."""
    folder = tmp_path_factory.mktemp("scans")
    for i, name in enumerate(("a", "broken", "z")):
        save(folder / f"{name}.nii.gz", draw(i)[0])
    whole = (folder / "broken.nii.gz").read_bytes()
    (folder / "broken.nii.gz").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def cts(tmp_path_factory):
    """A CT as NIfTI, and one without anything in the window."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("cts")
    ct = np.full((30, 26, 14), -1000.0, np.float32)
    ct[3:28, 3:24, 3:12] = rng.normal(40, 60, (25, 21, 9))
    save(folder / "air.nii.gz", rng.normal(-900, 20, ct.shape).astype(np.float32), (1.1, 1.3, 3.1))
    save(folder / "ct.nii.gz", ct, (1.1, 1.3, 3.1))
    return folder


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["glcl", "monai_ssl"])
def test_the_command_writes_what_the_familys_own_does(family, request, tmp_path, zoo):
    """Bit by bit; what cannot be segmented is named at the end, by both, and all others are written."""
    name, images, weights, argv, main = {
        "glcl": ("glcl-unet", "scans", "slices_weights", [], glcl.main),
        "monai_ssl": ("monai-ssl-unetr", "cts", "ct_weights", ["segment"], monai_ssl.main),
    }[family]
    folder, file = request.getfixturevalue(images), request.getfixturevalue(weights)
    out, own = tmp_path / "out", tmp_path / "own"
    code, said, err = zoo("segment", name, folder, "--checkpoint", file, "-o", out, "--device", "cpu")
    failed = {"glcl": "broken", "monai_ssl": "air"}[family]
    with pytest.raises(InputContractError) as caught:
        main([*argv, "--image", str(folder), "--checkpoint", str(file), "--out", str(own), "--device", "cpu"])
    written = {"glcl": ["a_labels.nii.gz", "z_labels.nii.gz"], "monai_ssl": ["ct_labels.nii.gz"]}[family]
    assert code == 1
    assert f"{out}: labels of {len(written)} volume(s), by {name} from {file}, in " in said
    assert names_in(out) == names_in(own) == written
    assert all((out / label).read_bytes() == (own / label).read_bytes() for label in written)
    assert len(np.unique(np.asarray(nibabel.load(out / written[0]).dataobj))) > 1
    for text in (err.splitlines()[-1], str(caught.value)):
        assert "1 volume(s) have no labels, the others are in" in text
        assert str(folder / f"{failed}.nii.gz") in text


@pytest.mark.slow
def test_what_the_network_sees_is_said(scans, slices_weights, cts, ct_weights, tmp_path, zoo):
    """A file that says nothing of its input has the model's, which may not be what it was trained on."""
    arguments = ("--checkpoint", slices_weights, "-o", tmp_path, "--device", "cpu")
    assert (
        "in slices of 32 x 32 pixels of 2.5 x 2.5 mm" in zoo("segment", "glcl-unet", scans / "a.nii.gz", *arguments)[1]
    )
    arguments = ("--checkpoint", ct_weights, "-o", tmp_path, "--device", "cpu")
    code, said, _ = zoo("segment", "monai-ssl-unetr", cts / "ct.nii.gz", *arguments)
    assert code == 0
    assert "in voxels of 1.5 x 1.5 x 2 mm" in said


@pytest.mark.slow
def test_parts_at_once_and_overlap_reach_the_network(ct_weights, tmp_path, zoo):
    """A CT of several windows: other overlaps give other labels, other batches the same."""
    values = np.random.default_rng(0).normal(40, 60, (70, 24, 12)).astype(np.float32)
    ct = save(tmp_path / "ct.nii.gz", values, (1.5, 1.5, 2.0))
    labels = {}
    for key, more in {"plain": (), "single": ("--batch-size", 1), "half": ("--overlap", 0.5)}.items():
        arguments = ("--checkpoint", ct_weights, "-o", tmp_path / key, "--device", "cpu", *more)
        assert zoo("segment", "monai-ssl-unetr", ct, *arguments)[0] == 0
        labels[key] = np.asarray(nibabel.load(tmp_path / key / "ct_labels.nii.gz").dataobj)
    assert np.mean(labels["plain"] != labels["single"]) < 1e-3  # float32 sums in another order
    assert not np.array_equal(labels["plain"], labels["half"])


@pytest.mark.slow
def test_a_series_of_mr_is_segmented_as_the_same_volume(slices_weights, tmp_path, zoo):
    """DICOM in a folder: the labels lie on its slices, and are those of the NIfTI that has its voxels."""
    write_series(tmp_path / "series", draw(1)[0].astype(np.int16) // 2 * 2, (0.0, 0.0, 8.0), Modality="MR")
    volume = read_volume(tmp_path / "series")
    image = nibabel.Nifti1Image(volume.values, volume.affine)
    nibabel.save(image, tmp_path / "same.nii.gz")
    paths = (tmp_path / "series", tmp_path / "same.nii.gz")
    arguments = ("--checkpoint", slices_weights, "-o", tmp_path / "out", "--device", "cpu")
    assert zoo("segment", "glcl-unet", *paths, *arguments)[0] == 0
    found, expected = (nibabel.load(tmp_path / "out" / f"{name}_labels.nii.gz") for name in ("series", "same"))
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        (
            "glcl-encoder",
            (),
            "'glcl-encoder' does not segment: 2D encoder.* Weights that do: ct-fm-segresnet.totalseg, "
            "glcl-unet.phantom; and with --checkpoint, once fine-tuned: caid-resnet50-unet, monai-ssl-unetr",
        ),
        ("glcl-unet", ("--overlap", "0.5"), "overlap=0.5: the network takes whole slices"),
        ("glcl-unet", ("--batch-size", "0"), "batch_size=0: at least 1 is expected"),
        ("monai-ssl-unetr", ("--num-classes", "0"), "num_classes=0: at least 2 are expected"),
        ("glcl-unet", ("--num-classes", "3"), "has not learned to segment. Fine-tune it first"),
        ("glcl-unet.nothing", (), "nothing"),
    ],
)
def test_wrong_use_is_refused(name, more, message, scans, slices_weights, tmp_path, zoo):
    """With exit code 2, and nothing written: it is no fault of one volume."""
    arguments = ("--checkpoint", slices_weights, "-o", tmp_path / "out", "--device", "cpu", *more)
    code, _, err = zoo("segment", name, scans / "a.nii.gz", *arguments)
    assert code == 2
    assert re.search(message, err)
    assert not (tmp_path / "out").exists()


PUBLISHED = {
    "monai-ssl-unetr.tcia-covid19": "vit",
    "monai-ssl-swinunetr.dae": "swin_dae",
    "monai-ssl-swinunetr.ct5050": "swin_ct5050",
    "ct-fm-segresnet.totalseg": "ctfm_wholebody",
    "ct-fm-segresnet.init": "ctfm_segresnet",
    **{f"voco-swinunetr-{size}.{tag}": f"swin_voco_{size}" for size in "blh" for tag in ("ssl", "ssl-chest")},
}
"""Weights -> their tensor names. Those of GLCL fill the network whatever they are of; its own ship."""


@pytest.mark.slow
def test_what_records_say_of_fresh_parts_is_what_their_files_lack():
    """A network that was pre-trained alone, listed as one that segments; or one that segments, refused."""
    told = [name for name, entry in entries().items() if entry.segments and entry.config["num_classes"]]
    known = {f"{name}.{record.tag}" for name in told for record in records(name) if record.sources}
    assert known == {*PUBLISHED, "glcl-unet.phantom"}
    for full_name, keys in PUBLISHED.items():
        name, tag = full_name.split(".")
        entry, record = get_entry(name), record_with_tag(name, tag)
        shapes = json.loads((PARITY / f"{keys}_keys.json").read_text("utf-8"))
        file = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        state, facts = entry.convert(file)
        network = build_network(entry, {**entry.config, **record.options, **facts})
        lacking = {key for key, _ in network.named_parameters()} - set(state)
        untrained = record.options.get("decoder") == "untrained"  # in the file, as it was initialised
        assert bool(lacking or untrained) == (name in record.fresh), full_name
    assert package.load_report(package.load_model("glcl-unet.phantom")).fresh == {}


@pytest.mark.parametrize("name", sorted(PUBLISHED.keys() - {"ct-fm-segresnet.totalseg"}))
def test_weights_without_a_trained_head_are_refused_before_they_are_fetched(name, scans, tmp_path, zoo, monkeypatch):
    """Gigabytes for an error, or masks that are noise."""
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    code, _, err = zoo("segment", name, scans / "a.nii.gz", "-o", tmp_path / "out", "--device", "cpu")
    assert code == 2
    assert f"{name} was pre-trained and has not learned to segment (untrained: " in err
    assert err.rstrip().endswith("Weights that segment: ct-fm-segresnet.totalseg, glcl-unet.phantom")
    assert package.model_info(name).fresh in err
    assert not (tmp_path / "out").exists()


def test_help_and_summaries_name_what_segments_as_it_is(zoo):
    """Texts that no record reaches: models that only pre-training has seen, called segmenters."""
    text = " ".join(zoo("segment", "--help")[1].split())
    assert "By their published weights ct-fm-segresnet and glcl-unet.phantom segment" in text
    assert trained_weights() == ["ct-fm-segresnet.totalseg", "glcl-unet.phantom"]
    for name, entry in entries().items():
        if entry.segments and entry.config["num_classes"]:
            only_pretrained = all(name in record.fresh for record in records(name))
            assert ("once fine-tuned" in entry.summary) == only_pretrained, name


def test_a_file_in_the_place_of_the_folder_is_refused(scans, slices_weights, tmp_path, zoo):
    """Before hours are spent."""
    (tmp_path / "out").write_text("")
    code, _, err = zoo("segment", "glcl-unet", scans, "--checkpoint", slices_weights, "-o", tmp_path / "out")
    assert code == 2
    assert f"{tmp_path / 'out'} is a file: a folder for the labels is expected" in err


def test_features_go_on_after_a_bad_scan_too(cts, tmp_path):
    """MONAI SSL's command writes those of the others."""
    torch.manual_seed(0)
    torch.save(vit_encoder(**SMALL, num_layers=2).state_dict(), tmp_path / "vit.pt")
    flags = ["--checkpoint", str(tmp_path / "vit.pt"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(InputContractError, match=r"1 volume\(s\) have no features, the others are in .*\n.*air.nii.gz"):
        monai_ssl.main(["features", "--image", str(cts), *flags])
    assert names_in(tmp_path / "out") == ["ct_features.npz"]


def test_one_volume_never_ends_a_run(tmp_path):
    """Whatever a library raises is the reason of that volume alone; wrong use and a full disk end it at once."""
    volumes = {name: tmp_path / name for name in ("a", "b", "c")}

    def find(path):
        if path.name == "b":
            raise ZeroDivisionError
        return path.name

    written = write_each(volumes, find, lambda name, path, found: tmp_path / found)
    assert written.files == (tmp_path / "a", tmp_path / "c")
    assert written.failed == {str(tmp_path / "b"): f"{tmp_path / 'b'}: ZeroDivisionError"}

    def refuse(*_):
        raise OptionError("overlap")

    def fill(*_):
        raise OSError("no space left")

    with pytest.raises(OptionError):
        write_each(volumes, refuse, lambda name, path, found: path)
    with pytest.raises(OSError, match="no space"):
        write_each(volumes, find, fill)
