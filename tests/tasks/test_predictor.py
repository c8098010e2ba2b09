"""Answers of a fine-tuned network: the network's own numbers by the header's rules, for images in any form."""

import json
import pickle

import nibabel
import numpy as np
import pytest
import torch
from fine_tuned import CAID, labels, rewritten, save, with_head
from PIL import Image
from small_networks import build_small

import zoo
from zoo.commands.phantom import chest_phantom
from zoo.embedding import head_outputs
from zoo.errors import CheckpointFormatError, CheckpointMismatchError, InputContractError, OptionError
from zoo.networks.windows import cut_windows, pool_over
from zoo.tasks.outputs import Outputs, columns_of
from zoo.tasks.predictor import Predictor
from zoo.tasks.saved import read_saved, write_model

pytestmark = pytest.mark.usefixtures("short_caid", "warm_home")

NAMES = ("effusion", "pneumonia")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Batches of other sizes sum in another order, some 1e-6; other images differ by more than 0.01."""


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Three phantoms."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(3):
        Image.fromarray(chest_phantom(96, seed=i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(scratch):
    """A run on two labels, whose thresholds are far apart."""
    out = scratch / "labels"
    save(with_head(CAID, NAMES, scale=0.02), out, CAID, labels(0.0, 1.0), NAMES)
    return out


@pytest.fixture(scope="module")
def predict(run):
    return zoo.load_predictor(run, device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def logits(run, films):
    """What the network alone makes of the films by its own transform."""
    model = zoo.load_model("caid-resnet50", checkpoint=run / "model.safetensors")
    transform = zoo.load_transform("caid-resnet50", checkpoint=run / "model.safetensors")
    with torch.no_grad():
        return model(torch.stack([transform(path) for path in sorted(films.iterdir())])).double()


def test_labels_are_the_sigmoids_of_the_network(predict, films, logits):
    """By name, in the order of a list, and the thresholds say which hold: any is over 0 and none over 1."""
    found = predict(sorted(films.iterdir()))
    probabilities = torch.tensor([[each["probabilities"][name] for name in NAMES] for each in found])
    torch.testing.assert_close(probabilities.double(), logits.sigmoid(), **CLOSE)
    assert all(each["labels"] == {"effusion": True, "pneumonia": False} for each in found)
    assert all(each["thresholds"] == {"effusion": 0.0, "pneumonia": 1.0} for each in found)
    assert {each["task"] for each in found} == {"classify"}
    assert probabilities.std(0).min() > 1e-3, "the films are told apart"


def test_an_image_may_be_a_path_a_picture_an_array_or_a_tensor(predict, films):
    """One answer, not a list of one."""
    path = films / "1.png"
    pixels = np.asarray(Image.open(path))
    expected = predict(path)["probabilities"]
    for image in (str(path), Image.open(path), pixels, torch.from_numpy(pixels.copy())):
        assert predict(image)["probabilities"] == pytest.approx(expected, rel=1e-6)


def test_what_the_file_says_can_be_asked_for(predict):
    """Task, classes, thresholds, input and origin."""
    assert (predict.task, predict.classes) == ("classify", NAMES)
    assert predict.outputs.thresholds == (0.0, 1.0)
    assert predict.input == zoo.load_transform(CAID).preprocessing
    assert json.loads(predict.header["base"])["sha256"] == zoo.model_info(CAID).sha256


def test_a_predictor_is_shown_in_one_line(predict):
    """A notebook prints it at the end of a cell: its whole header is a page."""
    said = "caid-resnet50, classify: effusion, pneumonia, films resized to 73 pixels along the shorter side"
    assert repr(predict).startswith(f"Predictor({said}")
    assert len(repr(predict)) < 200


def test_it_is_sent_to_other_processes_without_its_network(predict, films):
    """Some kilobytes; what comes out there is the same to the last bit."""
    expected = predict(films / "0.png")
    sent = pickle.dumps(predict)
    assert len(sent) < 30_000
    assert pickle.loads(sent)(films / "0.png") == expected


def test_an_image_that_cannot_be_right_is_refused(predict, tmp_path):
    """As the transform refuses it, whatever else is in the list."""
    with pytest.raises(InputContractError, match="values from 300 to 300"):
        predict([np.zeros((64, 64), np.uint8), np.full((64, 64), 300.0, np.float32)])
    with pytest.raises(FileNotFoundError):
        predict(tmp_path / "none.png")


def test_classes_are_a_softmax_and_the_largest_or_the_threshold_decides():
    """Of three the largest; of two the second from its threshold on, however small."""
    values = np.array([[1.0, 3.0, 2.0], [800.0, -800.0, 0.0]])
    outputs = Outputs("classes")
    answers = outputs.answers(values)
    np.testing.assert_allclose(answers, torch.tensor(values).softmax(1).numpy())
    assert outputs.decisions(answers).tolist() == [1, 0]
    second = Outputs("classes", thresholds=(0.1,))
    held = second.decisions(np.array([[0.9, 0.1], [0.91, 0.09]]))
    assert held.tolist() == [1, 0]
    assert columns_of(second, ("no", "yes"), np.log([[0.9, 0.1]]))["predicted"] == ["yes"]


def test_sigmoids_do_not_overflow():
    """Nor warn: a network may be as sure as it likes."""
    with np.errstate(all="raise"):
        assert labels(0.5, 0.5).answers(np.array([[-1e4, 1e4]])).tolist() == [[0, 1]]


def test_numbers_come_back_in_the_units_of_the_table(run, tmp_path, films, logits):
    """Output times deviation plus mean."""
    outputs = Outputs("numbers", means=(50.0, -1.0), deviations=(12.0, 0.5))
    said = {"task": "regress", "outputs": json.dumps(outputs.as_header())}
    file = rewritten(run / "model.safetensors", tmp_path / "numbers.safetensors", **said)
    found = zoo.load_predictor(file, device="cpu")(films / "2.png")
    expected = logits[2] * torch.tensor([12.0, 0.5]) + torch.tensor([50.0, -1.0])
    assert found["task"] == "regress"
    assert list(found["values"].values()) == pytest.approx(expected.tolist(), rel=1e-3)


def test_windows_of_a_volume_add_up_to_the_head_of_its_mean():
    """Each cell once, the bias once: not the mean of the windows' own outputs, of which the last are half air."""
    network = build_small("monai-ssl-vitb16", num_classes=2)
    volume = torch.rand(1, 60, 32, 50, generator=torch.Generator().manual_seed(0))
    parts = cut_windows(volume, (48, 32, 32), 16)
    options = {"batch_size": 1, "overlap": 0.0, "device": torch.device("cpu")}
    _, mean = pool_over(network.forward_features, volume, (48, 32, 32), 16, **options)
    with torch.no_grad():
        expected = network.get_classifier()(mean)
        found = head_outputs(network, parts.inputs, parts.weights)
        naive = network(*parts.inputs).mean(0)
    torch.testing.assert_close(found.sum(0), expected, rtol=1e-4, atol=1e-5)
    assert (naive - expected).abs().max() > 1e-3


def test_a_window_that_counts_nothing_adds_nothing():
    """Not NaN, and gradients stay finite."""
    network = build_small("monai-ssl-vitb16", num_classes=2)
    weights = torch.zeros(2, 3, 2, 2)
    weights[0] = 1 / 12
    found = head_outputs(network, (torch.rand(2, 1, 48, 32, 32),), weights)
    found.sum().backward()
    assert found[1].tolist() == [0, 0]
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.slow
def test_slices_of_a_volume_count_alike(scratch, tmp_path):
    """One answer for a volume, the mean of its slices' outputs."""
    network = zoo.load_model("glcl-encoder", pretrained=False, num_classes=2)
    file = save(network, scratch / "slices", "glcl-encoder", labels(0.5, 0.5), NAMES)
    draws = np.random.default_rng(0)
    image = nibabel.Nifti1Image(draws.random((60, 60, 5), np.float32), np.diag([1.4, 1.4, 8.0, 1]))
    nibabel.save(image, tmp_path / "heart.nii.gz")
    slices = zoo.load_transform("glcl-encoder")(tmp_path / "heart.nii.gz")
    with torch.no_grad():
        each = network(slices)
    found = zoo.load_predictor(file, device="cpu")(tmp_path / "heart.nii.gz")["probabilities"]
    assert list(found.values()) == pytest.approx(each.mean(0).sigmoid().tolist(), rel=1e-4)
    assert each.std(0).min() > 1e-6, "slices differ"


# The file


def test_a_folder_stands_for_its_file(run):
    """And `read_saved` reads no values."""
    assert read_saved(run) == read_saved(run / "model.safetensors")


def test_a_folder_without_the_file_says_whether_a_run_began(tmp_path):
    """The way out differs."""
    with pytest.raises(OptionError, match=r"no model\.safetensors.*no run wrote to it"):
        read_saved(tmp_path)
    (tmp_path / "last.pt").touch()
    with pytest.raises(OptionError, match="--resume"):
        read_saved(tmp_path)
    with pytest.raises(OptionError, match="does not exist"):
        read_saved(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outputs": None}, "zoo finetune"),
        ({"outputs": '{"kind": "labels", "thresholds": [0.5]}'}, "names 2 outputs"),
        ({"outputs": '{"kind": "labels", "thresholds": [0.5, NaN]}'}, "names 2 outputs"),
        ({"outputs": '{"kind": "numbers", "means": [0, 0], "deviations": [1, 1]}'}, "'regress' is expected"),
        ({"outputs": '{"thresholds": [0.5, 0.5]}'}, "not as `zoo finetune` writes"),
        ({"classes": '["a"]'}, "names 1 outputs"),
        ({"classes": '["a", "a"]'}, "names 2 outputs, a, a,"),
        ({"outputs": '{"kind": "labels", "thresholds": [0.5, 50]}'}, "thresholds from 0 to 1"),
        (
            {"task": "regress", "outputs": '{"kind": "numbers", "means": [0, 0], "deviations": [1, -1]}'},
            "deviations above 0",
        ),
        ({"input": None}, "does not say what its images must be"),
        ({"input": "{}"}, "does not say what its images must be"),
        ({"model": "caid\u001b[31m"}, r"this zoo does not have.*x1b\[31m"),
    ],
)
def test_a_header_that_cannot_be_is_refused(run, tmp_path, changes, said):
    """Before the network is loaded; a published run's file names what writes such a file."""
    file = rewritten(run / "model.safetensors", tmp_path / "changed.safetensors", **changes)
    with pytest.raises(CheckpointFormatError, match=said):
        zoo.load_predictor(file)


def test_a_head_for_other_classes_is_not_made_fresh(run, tmp_path, films):
    """A header that names three classes over a head of two: no answer by random weights."""
    changes = {"classes": '["a", "b", "c"]', "outputs": '{"kind": "labels", "thresholds": [0.5, 0.5, 0.5]}'}
    file = rewritten(run / "model.safetensors", tmp_path / "three.safetensors", **changes)
    with pytest.raises(CheckpointMismatchError, match="no head with 3 outputs"):
        zoo.load_predictor(file, device="cpu")(films / "0.png")


def test_what_is_written_can_be_read(tmp_path):
    """A header that `read_saved` would refuse is refused when it is written: nothing is left behind."""
    network = build_small("monai-ssl-vitb16", num_classes=2)
    header = {"classes": '["a", "b"]', "outputs": '{"kind": "labels"}'}
    with pytest.raises(CheckpointFormatError, match="names 2 outputs"):
        write_model(network.state_dict(), header, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_other_commands_take_the_file(run, tmp_path, films, zoo):
    """Exported, it predicts the same; inspected, embedded and imported, it is what any file of the model is."""
    from zoo import load_model, load_predictor, model_info

    file, exported = run / "model.safetensors", tmp_path / "exported.safetensors"
    assert zoo("export", "caid-resnet50", exported, "--checkpoint", file)[0] == 0
    assert read_saved(exported).outputs == read_saved(file).outputs
    one, other = (load_predictor(path, device="cpu")(films / "0.png") for path in (file, exported))
    assert one == other
    code, out, _ = zoo("inspect", file)
    assert code == 0
    assert "caid-resnet50" in out
    code, _, said = zoo("embed", "caid-resnet50", films, "-o", tmp_path / "f.csv", "--checkpoint", file)
    assert code == 0, said
    assert zoo("import", "caid-resnet50.mine", file)[0] == 0
    assert model_info("caid-resnet50.mine").provenance["classes"] == list(NAMES)
    head = load_model("caid-resnet50.mine").get_classifier().weight
    assert torch.equal(head, load_model("caid-resnet50", checkpoint=file).get_classifier().weight)


def test_precision_and_device_reach_the_network(run, films):
    """bfloat16 is near, and is used."""
    exact, near = (zoo.load_predictor(run, device="cpu", precision=p)(films / "0.png") for p in ("fp32", "bf16"))
    exact, near = (np.array(list(each["probabilities"].values())) for each in (exact, near))
    assert 0 < np.abs(exact - near).max() < 0.05
    assert isinstance(zoo.load_predictor(run), Predictor)
