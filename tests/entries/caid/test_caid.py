"""CAiD's networks: the authors' outputs from every form of file, heads, channels, and the plain library classes."""

import re

import numpy as np
import pytest
import timm
import torch
from caid_files import (
    PROJECTION,
    RESNET_FORMS,
    UNET_FORMS,
    behind,
    filled,
    reference,
    reference_input,
    relative_error,
    resnet,
    training_checkpoint,
    training_state,
)
from narrow_caid import narrow_caid as narrowed
from safetensors.torch import save_file
from segmentation_models_pytorch import Unet
from states import same_network
from torch import nn

import zoo
from zoo.checkpoint.skeleton import without_values
from zoo.errors import CheckpointMismatchError, OptionError

TOLERANCE = 1e-5
"""Relative. The same convolutions with sums in another order differ by some 3e-7; a wrong tensor by more than 0.1."""


@torch.no_grad()
def check_encoder(model):
    """Pooled features and the second skip map are the authors'."""
    x, theirs = reference_input(), reference()
    assert relative_error(model(x), theirs["pooled"]) < TOLERANCE
    maps = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    assert relative_error(maps[0], theirs["map2"]) < TOLERANCE
    pooled = model.forward_features(x).mean(dim=(2, 3))
    assert relative_error(pooled, theirs["pooled"]) < TOLERANCE


@torch.no_grad()
def check_unet(model):
    """The reconstruction and the maps of the encoder inside are the authors'."""
    x, theirs = reference_input(), reference()
    assert relative_error(model(x), theirs["unet"]) < TOLERANCE
    maps = model.encoder(x)
    assert relative_error(maps[2], theirs["map2"]) < TOLERANCE
    assert relative_error(maps[5].mean(dim=(2, 3)), theirs["pooled"]) < TOLERANCE


@pytest.fixture(scope="module")
def proved(unet_safetensors):
    """Encoder and U-Net, which compute what the authors' do: networks that equal them need not be run."""
    encoder = zoo.load_model("caid-resnet50", checkpoint=unet_safetensors)
    unet = zoo.load_model("caid-resnet50-unet", checkpoint=unet_safetensors)
    check_encoder(encoder)
    check_unet(unet)
    assert len(zoo.load_report(encoder).loaded) == 318
    assert len(zoo.load_report(unet).loaded) == 380
    return encoder, unet


@pytest.fixture(scope="module")
def narrow_state():
    """A narrow U-Net's tensors under the authors' names."""
    with narrowed():
        state = zoo.load_model("caid-resnet50-unet", pretrained=False).state_dict()
    return filled({name: tensor.shape for name, tensor in state.items()})  # no two alike, as norms at their start are


@pytest.fixture(scope="module")
def narrow_file(narrow_state, tmp_path_factory):
    """Its bare file."""
    path = tmp_path_factory.mktemp("narrow") / "unet.safetensors"
    save_file(narrow_state, path)
    return path


@pytest.fixture(scope="module")
def narrow(narrow_file):
    """Encoder and U-Net that it makes, as `proved` those of the whole one."""
    with narrowed():
        return tuple(zoo.load_model(name, checkpoint=narrow_file) for name in ("caid-resnet50", "caid-resnet50-unet"))


@pytest.mark.parametrize("form", UNET_FORMS)
def test_every_form_of_the_unet_gives_the_same_networks(form, narrow_state, saved, narrow, narrow_caid):
    """Encoder and U-Net from the same file, whatever it wraps around the names."""
    path = saved(UNET_FORMS[form](narrow_state))
    encoder = zoo.load_model("caid-resnet50", checkpoint=path)
    unet = zoo.load_model("caid-resnet50-unet", checkpoint=path)
    assert same_network(encoder, narrow[0])
    assert same_network(unet, narrow[1])
    assert not zoo.load_report(encoder).fresh
    assert not zoo.load_report(unet).fresh


@pytest.mark.parametrize("form", RESNET_FORMS)
def test_every_form_of_the_resnet_gives_the_same_network(form, narrow_state, saved, narrow, narrow_caid):
    """The encoder from files that never held a decoder."""
    model = zoo.load_model("caid-resnet50", checkpoint=saved(RESNET_FORMS[form](narrow_state)))
    assert same_network(model, narrow[0])
    assert not zoo.load_report(model).fresh


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["unet_safetensors", "unet_file"])
@pytest.mark.parametrize("mmap", [True, False])
def test_mapping_or_reading_gives_the_same(fixture, mmap, request, proved):
    """Safetensors and PyTorch's zip, mapped and read."""
    path = request.getfixturevalue(fixture)
    for name, expected in zip(("caid-resnet50", "caid-resnet50-unet"), proved, strict=True):
        assert same_network(zoo.load_model(name, checkpoint=path, mmap=mmap), expected)


@pytest.mark.slow
def test_the_format_of_before_2020_gives_the_authors_outputs(unet_state, tmp_path, proved):
    """A plain pickle, as torch.save wrote it until 1.6, cannot be mapped and is read."""
    path = tmp_path / "legacy.pth"
    torch.save(unet_state, path, _use_new_zipfile_serialization=False)
    assert same_network(zoo.load_model("caid-resnet50-unet", checkpoint=path), proved[1])
    path.unlink()


@pytest.mark.slow
def test_a_loaded_network_equals_one_built_the_classic_way(unet_state, unet_file):
    """Bit for bit: building on the meta device and assigning changes nothing."""
    classic = Unet("resnet50", encoder_weights=None, classes=1, activation="sigmoid").eval()
    classic.load_state_dict(unet_state, strict=True)
    ours = zoo.load_model("caid-resnet50-unet", checkpoint=unet_file)
    x = reference_input()
    with torch.no_grad():
        assert torch.equal(ours(x), classic(x))
    plain = timm.create_model("resnet50", num_classes=0).eval()
    plain.load_state_dict(resnet(unet_state), strict=True)
    with torch.no_grad():
        assert torch.equal(zoo.load_model("caid-resnet50", checkpoint=unet_file)(x), plain(x))


@pytest.mark.slow
def test_the_encoder_is_timms_own(unet_file):
    """The class as it is, with a description of its input that timm's tools read: [0, 1], no mean, no deviation."""
    model = zoo.load_model("caid-resnet50", checkpoint=unet_file)
    assert type(model) is timm.models.resnet.ResNet
    assert model.num_features == 2048
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == (3, 224, 224)
    assert data["mean"] == (0.0, 0.0, 0.0)
    assert data["std"] == (1.0, 1.0, 1.0)
    assert data["crop_pct"] == 224 / 256
    with torch.no_grad():
        assert model.forward_features(reference_input()).shape == (2, 2048, 2, 3)


def test_timm_describes_one_channel_too(unet_file):
    """The description follows in_channels."""
    data = timm.data.resolve_model_data_config(zoo.load_model("caid-resnet50", checkpoint=unet_file, in_channels=1))
    assert (data["input_size"], data["mean"], data["std"]) == ((1, 224, 224), (0.0,), (1.0,))


@pytest.mark.parametrize("name", ["caid-resnet50", "caid-resnet50-unet"])
def test_one_channel_equals_a_repeated_grey_image(name, narrow_file, narrow_caid):
    """The summed stem answers a grey image as the published one answers it three times over."""
    grey = reference_input()[:, :1]
    with torch.no_grad():
        theirs = zoo.load_model(name, checkpoint=narrow_file)(grey.expand(-1, 3, -1, -1))
        model = zoo.load_model(name, checkpoint=narrow_file, in_channels=1)
        assert relative_error(model(grey), theirs.numpy()) < TOLERANCE
    stem = "conv1.weight" if name == "caid-resnet50" else "encoder.conv1.weight"
    assert zoo.load_report(model).adapted == {stem: "3 input channels summed to 1"}


def test_more_channels_keep_the_response_to_grey(narrow_file, narrow_caid):
    """Six channels that hold the same image give what three gave: each filter twice, at half the weight."""
    grey = reference_input()[:, :1]
    model = zoo.load_model("caid-resnet50", checkpoint=narrow_file, in_channels=6)
    with torch.no_grad():
        three = zoo.load_model("caid-resnet50", checkpoint=narrow_file)(grey.expand(-1, 3, -1, -1))
        assert relative_error(model(grey.expand(-1, 6, -1, -1)), three.numpy()) < TOLERANCE
    assert zoo.load_report(model).adapted == {"conv1.weight": "3 input channels repeated to 6"}


def test_a_network_of_one_channel_loads_again(narrow_file, saved, narrow_caid):
    """What was saved with one channel comes back with one, and can be widened to three."""
    grey = reference_input()[:, :1]
    one = zoo.load_model("caid-resnet50", checkpoint=narrow_file, in_channels=1)
    path = saved(one.state_dict())
    again = zoo.load_model("caid-resnet50", checkpoint=path)
    three = zoo.load_model("caid-resnet50", checkpoint=path, in_channels=3)
    assert again.conv1.weight.shape == (8, 1, 7, 7)
    with torch.no_grad():
        assert torch.equal(again(grey), one(grey))
        assert relative_error(three(grey.expand(-1, 3, -1, -1)), one(grey).numpy()) < TOLERANCE


def test_a_new_classifier_is_fresh(unet_file):
    """The file has none: timm's own fc, initialised as timm does, everything else loaded."""
    model = zoo.load_model("caid-resnet50", checkpoint=unet_file, num_classes=14)
    report = zoo.load_report(model)
    assert report.fresh == {"fc.weight": "not in the file", "fc.bias": "not in the file"}
    assert len(report.loaded) == 318
    assert type(model.fc) is nn.Linear
    assert model.num_classes == 14
    assert model.fc.weight.abs().max() <= 2048**-0.5  # nn.Linear draws within 1/sqrt(inputs)
    assert model.fc.weight.std() > 0
    with torch.no_grad():
        assert model(reference_input()).shape == (2, 14)


def test_a_fine_tuned_classifier_loads_with_its_head(narrow_file, saved, narrow_caid):
    """Saved under DDP and loaded again, with and without num_classes."""
    tuned = zoo.load_model("caid-resnet50", checkpoint=narrow_file, num_classes=14)
    path = saved({"model": behind("module.", tuned.state_dict()), "epoch": 1})
    for asked in (None, 14):
        model = zoo.load_model("caid-resnet50", checkpoint=path, num_classes=asked)
        assert torch.equal(model.fc.weight, tuned.fc.weight)
        assert not zoo.load_report(model).fresh
        assert not zoo.load_report(model).dropped


def test_a_classifier_that_does_not_fit_is_dropped(narrow_file, saved, caplog, narrow_caid):
    """Another number of classes: a fresh head, a warning, a line in the report."""
    tuned = zoo.load_model("caid-resnet50", checkpoint=narrow_file, num_classes=14)
    path = saved(tuned.state_dict())
    model = zoo.load_model("caid-resnet50", checkpoint=path, num_classes=5)
    report = zoo.load_report(model)
    assert report.dropped["fc.weight"] == "the head does not fit: 14x256 in the file, 5x256 in the network"
    assert report.fresh["fc.weight"] == "the file's head does not fit"
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any("head was dropped" in text and "14x256" in text for text in warnings)


@pytest.mark.slow
def test_no_classes_asks_for_no_head(unet_file, saved, caplog):
    """num_classes=0 on a classifier: features, no warning, the dropped head in the report."""
    tuned = zoo.load_model("caid-resnet50", checkpoint=unet_file, num_classes=14)
    caplog.clear()
    model = zoo.load_model("caid-resnet50", checkpoint=saved(tuned.state_dict()), num_classes=0)
    check_encoder(model)
    assert set(zoo.load_report(model).dropped) == {"fc.weight", "fc.bias"}
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


@pytest.mark.slow
def test_a_head_of_another_width_is_a_mismatch(unet_state, saved):
    """A classifier for 512 features is no matter of classes: the file is of another network."""
    path = saved(resnet(unet_state) | {"fc.weight": torch.zeros(14, 512), "fc.bias": torch.zeros(14)})
    with pytest.raises(CheckpointMismatchError, match=r"fc\.weight is 14x512 in the file, 14x2048 expected"):
        zoo.load_model("caid-resnet50", checkpoint=path)


@pytest.mark.slow
def test_the_projection_head(unet_state, saved):
    """projection=True returns what the authors' head makes of the pooled features; else the head is left out."""
    path = saved(training_checkpoint(training_state(unet_state)))
    model = zoo.load_model("caid-resnet50", checkpoint=path, projection=True)
    head = filled(PROJECTION)
    with torch.no_grad():
        pooled = torch.from_numpy(reference()["pooled"])
        hidden = (pooled @ head["fc.0.weight"].T + head["fc.0.bias"]).relu()
        expected = hidden @ head["fc.2.weight"].T + head["fc.2.bias"]
        assert relative_error(model(reference_input()), expected.numpy()) < TOLERANCE
    assert model.num_features == 2048
    plain = zoo.load_report(zoo.load_model("caid-resnet50", checkpoint=path))
    assert plain.dropped["fc.0.weight"] == "projection head"
    assert plain.dropped["module.queue"] == "queue of negatives"
    assert sum(why == "key network" for why in plain.dropped.values()) == 384


@pytest.mark.slow
def test_a_projection_head_of_one_layer(unet_state, saved):
    """Training without --mlp leaves `fc.weight`, which only beside a query network means a projection."""
    head = {"fc.weight": torch.randn(128, 2048), "fc.bias": torch.randn(128)}
    moco = behind("module.encoder_q.", resnet(unet_state) | head)
    path = saved({"state_dict": moco})
    model = zoo.load_model("caid-resnet50", checkpoint=path, projection=True)
    with torch.no_grad():
        expected = torch.from_numpy(reference()["pooled"]) @ head["fc.weight"].T + head["fc.bias"]
        assert relative_error(model(reference_input()), expected.numpy()) < TOLERANCE
    check_encoder(zoo.load_model("caid-resnet50", checkpoint=path))
    classifier = zoo.load_model("caid-resnet50", checkpoint=path, num_classes=128)
    assert not torch.equal(classifier.fc.weight, head["fc.weight"])


def test_no_projection_head_in_the_file(unet_file):
    """best_checkpoint.pth has none, which is said and not made up for."""
    with pytest.raises(CheckpointMismatchError, match=r"none \(fc\.0.*zoo\.entries\.caid\.pretrain"):
        zoo.load_model("caid-resnet50", checkpoint=unet_file, projection=True)
    with pytest.raises(OptionError, match="two heads"):
        zoo.load_model("caid-resnet50", checkpoint=unet_file, projection=True, num_classes=14)


@pytest.mark.slow
def test_the_unet_for_segmentation(unet_file, caplog):
    """num_classes gives logits from a fresh head; one class fits the file's head and keeps it, without the sigmoid."""
    model = zoo.load_model("caid-resnet50-unet", checkpoint=unet_file, num_classes=3)
    report = zoo.load_report(model)
    x = reference_input()
    with torch.no_grad():
        logits = model(x)
    assert logits.shape == (2, 3, 64, 96)
    assert logits.min() < 0
    assert set(report.fresh) == {"segmentation_head.0.weight", "segmentation_head.0.bias"}
    assert "1x16x3x3 in the file, 3x16x3x3 in the network" in report.dropped["segmentation_head.0.weight"]
    assert any("head was dropped" in record.getMessage() for record in caplog.records)
    assert torch.equal(model.segmentation_head[0].bias, torch.zeros(3))  # as segmentation_models_pytorch starts it
    one = zoo.load_model("caid-resnet50-unet", checkpoint=unet_file, num_classes=1)
    with torch.no_grad():
        assert relative_error(one(x).sigmoid(), reference()["unet"]) < TOLERANCE
    assert not zoo.load_report(one).fresh


@pytest.mark.slow
def test_the_unet_without_a_head(unet_file):
    """num_classes=0 gives the decoder's 16 maps."""
    model = zoo.load_model("caid-resnet50-unet", checkpoint=unet_file, num_classes=0)
    with torch.no_grad():
        assert model(reference_input()).shape == (2, 16, 64, 96)
    assert set(zoo.load_report(model).dropped) == {"segmentation_head.0.weight", "segmentation_head.0.bias"}


def test_a_fine_tuned_unet_loads_with_its_classes(narrow_file, saved, narrow_caid):
    """What is saved with three classes comes back with three, and as logits."""
    tuned = zoo.load_model("caid-resnet50-unet", checkpoint=narrow_file, num_classes=3)
    again = zoo.load_model("caid-resnet50-unet", checkpoint=saved({"state_dict": behind("model.", tuned.state_dict())}))
    x = reference_input()
    with torch.no_grad():
        assert torch.equal(again(x), tuned(x))
    assert not zoo.load_report(again).fresh


@pytest.mark.slow
def test_plain_library_classes_take_and_give_our_files(unet_file, tmp_path):
    """Names are timm's and smp's own: our state loads strictly there, and theirs loads here."""
    encoder = zoo.load_model("caid-resnet50", checkpoint=unet_file)
    unet = zoo.load_model("caid-resnet50-unet", checkpoint=unet_file)
    with without_values():
        plain = timm.create_model("resnet50", num_classes=0)
        smp = Unet("resnet50", encoder_weights=None, classes=1)
    plain.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    smp.load_state_dict(unet.state_dict(), strict=True, assign=True)
    for name, network in (("caid-resnet50", plain), ("caid-resnet50-unet", smp)):
        torch.save(network.state_dict(), tmp_path / "plain.pth")
        assert not zoo.load_report(zoo.load_model(name, checkpoint=tmp_path / "plain.pth")).fresh
    (tmp_path / "plain.pth").unlink()


@pytest.mark.slow
def test_an_encoder_alone_does_not_make_a_unet(unet_state, saved):
    """The message says that the decoder is missing, and which model the file is."""
    path = saved(behind("encoder.", resnet(unet_state)))
    with pytest.raises(CheckpointMismatchError) as caught:
        zoo.load_model("caid-resnet50-unet", checkpoint=path)
    message = str(caught.value)
    assert "318 of the 378 required tensors of 'caid-resnet50-unet' match" in message
    assert "missing (60): decoder.blocks.0.conv1.0.weight" in message
    assert "the file holds a 'caid-resnet50' and no more; it has nothing under decoder. That loads with" in message
    assert f"load_model('caid-resnet50', checkpoint='{path}')" in message


@pytest.mark.slow
def test_random_weights_start_as_the_authors_network_does():
    """No zero-initialised residual branches, as torchvision's ResNet has none; draws differ from call to call."""
    torch.manual_seed(0)
    first = zoo.load_model("caid-resnet50", pretrained=False)
    assert torch.equal(first.layer1[0].bn3.weight, torch.ones(256))
    second = zoo.load_model("caid-resnet50", pretrained=False)
    assert not torch.equal(first.conv1.weight, second.conv1.weight)
    expected = np.sqrt(2 / (64 * 49))  # Kaiming, fan out
    assert abs(first.conv1.weight.std().item() / expected - 1) < 0.05
    torch.manual_seed(0)
    assert torch.equal(zoo.load_model("caid-resnet50", pretrained=False).conv1.weight, first.conv1.weight)


@pytest.mark.parametrize("name", ["caid-resnet50", "caid-resnet50-unet"])
@pytest.mark.parametrize(
    "stray", ["encoder.layer1.0.se.fc.0.weight", "encoder.layer2.0.conv4.weight", "encoder.layer3.0.queue"]
)
def test_a_tensor_that_the_network_does_not_have_is_refused(name, stray, narrow_state, saved, narrow_caid):
    """A ResNet with squeeze-and-excitation is no ResNet: what stands inside the network is named, not passed over."""
    path = saved(behind("module.", narrow_state | {stray: torch.ones(3)}))
    with pytest.raises(
        CheckpointMismatchError, match=rf"unexpected \(1\): .*{re.escape(stray.removeprefix('encoder.'))}"
    ):
        zoo.load_model(name, checkpoint=path)


def test_a_decoder_s_own_stray_is_refused_by_the_unet_alone(narrow_state, saved, narrow_caid):
    """The encoder has nothing to do with it."""
    path = saved(narrow_state | {"decoder.blocks.0.attention1.attention.weight": torch.ones(3)})
    with pytest.raises(CheckpointMismatchError, match=r"unexpected \(1\): decoder\.blocks\.0\.attention1"):
        zoo.load_model("caid-resnet50-unet", checkpoint=path)
    encoder = zoo.load_model("caid-resnet50", checkpoint=path)
    assert zoo.load_report(encoder).loaded.keys() == encoder.state_dict().keys()
