"""`zoo export` as a program: any number of images, the network's numbers or no file; and a file in a name's place."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fine_tuned import labels, rewritten, save, with_head
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import zoo as package
from zoo.checkpoint import export_onnx, export_program
from zoo.errors import CheckpointMismatchError, OptionError

GLCL = "glcl-encoder.phantom"
NAMES = ("scar", "oedema")
PROGRAMS = pytest.mark.parametrize(("option", "suffix"), [("--onnx", ".onnx"), ("--torch-export", ".pt2")])
EXPORTS = pytest.mark.parametrize("export", [export_onnx, export_program])
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def run(scratch):
    """A run of two labels, whose header has a key that this zoo does not know."""
    out = scratch / "exporting"
    save(with_head(GLCL, NAMES), out, GLCL, labels(0.25, 0.5), NAMES, scale='{"by": 3}')
    return out


def header_of(file):
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def run_onnx(file, keys):
    onnx, onnxruntime = (pytest.importorskip(name) for name in ("onnx", "onnxruntime"))
    session = onnxruntime.InferenceSession(str(file))
    said = {each.key: each.value for each in onnx.load(str(file)).metadata_props}
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]), said


def run_pt2(file, keys):
    said = dict.fromkeys(keys, "")
    return torch.export.load(file, extra_files=said).module(), said


@pytest.mark.slow
@PROGRAMS
def test_a_program_gives_the_networks_numbers_and_its_header(zoo, run, tmp_path, option, suffix):
    """For numbers of images that it was neither made from nor tried with; the file of the run names its model."""
    out = tmp_path / f"net{suffix}"
    code, said, err = zoo("export", run, out, option, "--size", "64,96")
    assert code == 0, err
    assert "any number of images of 64 x 96" in said
    expected = header_of(run / "model.safetensors")
    program, header = (run_onnx if suffix == ".onnx" else run_pt2)(out, expected)
    assert {key: header[key] for key in expected} == expected
    assert header["scale"] == '{"by": 3}'
    network = package.load_model("glcl-encoder", checkpoint=run / "model.safetensors")
    for count in (2, 5):
        images = torch.rand(count, 1, 64, 96, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            np.testing.assert_allclose(program(images), network(images), rtol=0, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("net")] == [out.name]


class Other(nn.Module):
    """A network that computes something else when a graph is made of it."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x + self.by if torch.compiler.is_compiling() else x + 0.0


def drawn(count):
    return (torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(count)),)


@pytest.mark.slow
@EXPORTS
@pytest.mark.parametrize("by", [1e-3, float("nan")])
def test_a_program_that_differs_is_not_kept(tmp_path, export, by):
    """And what had its name before stays, without a temporary file beside it."""
    out = tmp_path / "net"
    out.write_text("before")
    with pytest.raises(CheckpointMismatchError, match="does not give what the network gives, and was not kept"):
        export(Other(by).eval(), drawn, out, {})
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if "net" in path.name] == ["net"]
    assert export(Other(0.0).eval(), drawn, out, {}).difference == 0
    assert out.stat().st_size > 500


def test_onnx_needs_packages_that_it_names(tmp_path, monkeypatch):
    """Before anything is computed, with the command that installs them."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(OptionError, match=r"--onnx needs onnxscript.*: pip install"):
        export_onnx(Other(0.0), drawn, tmp_path / "net.onnx", {})


def refused(*_, **__):
    """As torch's exporter where protobuf takes no boolean for an integer."""
    try:
        raise TypeError("Field onnx.AttributeProto.i: Expected an int, got a boolean.")
    except TypeError as error:
        raise torch.onnx.OnnxExporterError("a page with the graph, and how to report it") from error


@pytest.mark.slow
@pytest.mark.parametrize("step", ["make", "save"])
def test_an_exporter_that_fails_is_said_with_the_versions_and_leaves_no_file(step, tmp_path, monkeypatch):
    """Versions of torch, onnxscript and protobuf that do not fit each other gave pages of a traceback."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    program = SimpleNamespace(model=SimpleNamespace(metadata_props={}), save=refused)
    monkeypatch.setattr(torch.onnx, "export", refused if step == "make" else lambda *_, **__: program)
    with pytest.raises(
        OptionError, match=rf"failed with torch {torch.__version__.split('+')[0]}.*protobuf .*boolean.*--torch-export"
    ):
        export_onnx(Other(0.0), drawn, tmp_path / "net.onnx", {})
    assert list(tmp_path.iterdir()) == []


def test_onnx_refuses_what_no_file_of_it_holds(tmp_path):
    """2 GiB of values; the other form is named."""
    large = nn.Linear(1 << 15, 1 << 14, device="meta")
    with pytest.raises(OptionError, match=r"2 GiB at most\. --torch-export"):
        export_onnx(large, drawn, tmp_path / "net.onnx", {})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("net.onnx",), "with --onnx it may end in .onnx"),
        (("net.pt2", "--onnx"), "expected a name that ends in .onnx"),
        (("net.pt2", "--onnx", "--torch-export"), "--onnx or --torch-export"),
        (("net.onnx", "--onnx", "--half"), "--half"),
        (("net.safetensors", "--size", "64,64"), "--size"),
        (("net.onnx", "--onnx", "--size", "64"), "2 whole numbers are expected"),
        (("net.onnx", "--onnx", "--size", "65,64"), "name others with --size"),
    ],
)
def test_wrong_use(zoo, tmp_path, monkeypatch, options, said):
    """Exit code 2, and no file."""
    monkeypatch.chdir(tmp_path)
    code, _, err = zoo("export", GLCL, *options)
    assert (code, said in err) == (2, True), err
    assert not list(tmp_path.glob("net*"))


def test_volumes_of_any_size_need_one(zoo, tmp_path, monkeypatch):
    """Of an encoder without windows; nothing is guessed."""
    monkeypatch.setattr(
        "zoo.commands.exporting.load_model", lambda name, **_: package.load_model(name, pretrained=False)
    )
    code, _, err = zoo("export", "genesis-encoder", tmp_path / "net.onnx", "--onnx")
    assert code == 2
    assert "name it with --size, as 96,96,96" in err


@pytest.mark.slow
def test_a_file_stands_for_its_model(zoo, run, tmp_path):
    """As `NAME OUT --checkpoint FILE` does; the folder of a run, too, and all of its header goes on."""
    file = run / "model.safetensors"
    written = []
    for words in ((run,), (file,), ("glcl-encoder", "--checkpoint", file)):
        out = tmp_path / f"{len(written)}.safetensors"
        assert zoo("export", words[0], out, *words[1:])[0] == 0
        written.append(out)
    for out in written:
        assert header_of(out) == header_of(file)
        assert all(torch.equal(value, load_file(file)[name]) for name, value in load_file(out).items())
    assert json.loads(header_of(file)["classes"]) == list(NAMES)


def test_a_file_that_names_no_model_is_refused(zoo, run, tmp_path):
    """Whether it has no header, or one of another zoo; and two files are too many."""
    file, out = run / "model.safetensors", tmp_path / "out.safetensors"
    for model, said in ((None, "has no header that names one"), ("other-net", "'other-net'")):
        stranger = rewritten(file, tmp_path / "w.safetensors", model=model)
        code, _, err = zoo("export", stranger, out)
        assert (code, said in err, "--checkpoint" in err) == (1, True, True), err
    code, _, err = zoo("export", run, out, "--checkpoint", file)
    assert (code, "two files" in err) == (2, True)
    assert not out.exists()
