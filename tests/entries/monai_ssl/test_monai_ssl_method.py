"""MONAI SSL's objective: equal to MONAI's loss, stable, linear in memory, and the same on two processes as on one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import gloo
import parity.fill as parity
import pytest
import torch
from monai.losses.contrastive import ContrastiveLoss
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.entries.monai_ssl.method import ReconstructionContrast, nt_xent_reconstruction
from zoo.entries.monai_ssl.model import vit_autoencoder
from zoo.errors import OptionError
from zoo.training.distributed import rank

REFERENCE = json.loads((Path(parity.__file__).parent / "losses.json").read_text())["vit_contrastive"]
SIZE = 32


def tensor(name, *shape):
    return torch.from_numpy(parity.image(name, shape))


def batch(volumes=2, crops=2, size=SIZE):
    shape = (volumes, crops, 1, size, size, size)
    return {name: (0.5 + 0.25 * tensor(name, *shape)).clamp(0, 1) for name in ("target", "view_1", "view_2")}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return vit_autoencoder(img_size=SIZE, hidden_size=64, mlp_dim=128, num_layers=2)


@pytest.fixture
def method(network):
    """The published objective on a small auto-encoder, in training mode."""
    network.zero_grad()
    return ReconstructionContrast(network).train()


def test_the_contrastive_loss_is_the_reference():
    """Of the published run's MONAI, at its temperature, on vectors of 64."""
    n, d, t = REFERENCE["n"], REFERENCE["d"], REFERENCE["temperature"]
    assert nt_xent_reconstruction(tensor("a", n, d), tensor("b", n, d), t).item() == pytest.approx(
        REFERENCE["loss"], rel=1e-6
    )


@pytest.mark.parametrize("shape", [(4, 64), (2, 1, 4, 5, 6), (6, 1, 16, 16, 16)])
def test_the_contrastive_loss_and_its_gradient_are_monai_s(shape):
    """For long and short vectors, whole short sums or not, of positive values as images have; against it in float64.

    A cosine is a sum of products of rounded unit vectors: three roundings of 2^-24 at most, in any kernel. 1 / 0.05
    makes 3.6e-6 of them in a logit, and a loss is the difference of a logit and of a mean of logits: 7.2e-6 in all.
    The gradient's probabilities are off by as much, and those add up to 1 in each row: 1.5e-5 of its norm.
    """
    a, b = (tensor(name, *shape).abs().requires_grad_() for name in "ab")
    ours = nt_xent_reconstruction(a, b, 0.05)
    exact = [x.detach().double().requires_grad_() for x in (a, b)]
    theirs = ContrastiveLoss(0.05)(*(x.flatten(1) for x in exact))
    assert ours.item() == pytest.approx(theirs.item(), abs=7.2e-6)
    mine = torch.autograd.grad(ours, (a, b))
    for found, expected in zip(mine, torch.autograd.grad(theirs, exact), strict=True):
        assert (found - expected).norm() < 1.5e-5 * expected.norm()


def test_long_sums_are_not_rounded():
    """Vectors of a published crop's length: 2e-6 from float64, where one sum of all products would be 1e-5 off."""
    a, b = (tensor(name, 3, 96**3).abs() for name in "ab")
    z = F.normalize(torch.cat([a, b]).double(), dim=1)
    logits = (z @ z.T / 0.05).fill_diagonal_(-math.inf)
    exact = F.cross_entropy(logits, torch.arange(6).roll(3))
    assert nt_xent_reconstruction(a, b, 0.05).item() == pytest.approx(exact.item(), abs=2e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.005, 0.0005])
def test_low_temperatures_are_finite(temperature):
    """Equal views give 0; opposed ones 1 / temperature and more, as others are nearer; gradients are finite in both."""
    a = tensor("a", 4, 64)
    for b, least, most in ((a.clone(), 0, 1e-3), (-a, 1 / temperature, 2 / temperature)):
        x = a.clone().requires_grad_()
        loss = nt_xent_reconstruction(x, b, temperature)
        assert least <= loss.item() <= most
        assert torch.isfinite(torch.autograd.grad(loss, x)[0]).all()
    if temperature < 0.01:
        assert not math.isfinite(ContrastiveLoss(temperature)(a, a.clone()).item()), "as the authors compute it"


def test_half_precision_and_empty_images_are_finite():
    """Views of an autocast network are compared in float32; an image of zeros has a loss and no NaN in its gradient."""
    a, b = tensor("a", 4, 4096).abs(), tensor("b", 4, 4096).abs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = nt_xent_reconstruction(a.half(), b.half(), 0.05)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(nt_xent_reconstruction(a, b, 0.05).item(), rel=1e-3)
    zero = torch.zeros(3, 64, requires_grad=True)
    loss = nt_xent_reconstruction(zero, tensor("b", 3, 64), 0.05)
    assert math.isfinite(loss.item())
    assert torch.isfinite(torch.autograd.grad(loss, zero)[0]).all()


class Largest(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation makes, in forward and backward."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return made


def memory(loss, count, length):
    """Elements kept for the backward pass besides the views, and of the largest tensor made at all."""
    a, b = (tensor(name, count, length).abs().requires_grad_() for name in "ab")
    own, kept = {a.untyped_storage().data_ptr(), b.untyped_storage().data_ptr()}, {}

    def pack(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // value.element_size()
        return value

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss(a, b).backward()
    return sum(kept.values()), largest.numel


@pytest.mark.slow
def test_memory_is_linear_in_the_batch():
    """Nothing larger than a view is made, and next to nothing kept; the broadcast form makes (2B)^2 images."""
    length = 8 * 4096
    for count in (4, 8, 16):
        kept, largest = memory(lambda a, b: nt_xent_reconstruction(a, b, 0.05), count, length)
        assert kept < length, "some (2B, 2B) matrices"
        assert largest == count * length
    assert memory(lambda a, b: ContrastiveLoss(0.05)(a, b), 8, length)[1] == 16 * 16 * length


def test_the_loss_is_reconstruction_times_one_plus_contrast(method):
    """R of view 1 alone, C of what the network makes of both views, and the product's gradient through both factors."""
    views = batch()
    losses = method(views)
    first, second = (method.network(views[name].flatten(0, 1)) for name in ("view_1", "view_2"))
    error = (first - views["target"].flatten(0, 1)).abs().mean()
    contrast = ContrastiveLoss(0.05)(first.flatten(1), second.flatten(1))
    assert losses["reconstruction"].item() == pytest.approx(error.item(), rel=1e-6)
    assert losses["contrast"].item() == pytest.approx(contrast.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(((1 + contrast) * error).item(), rel=1e-5)
    weights = list(method.network.parameters())
    whole = torch.autograd.grad(losses["loss"], weights)
    of_error, of_contrast = (torch.autograd.grad(loss, weights, retain_graph=True) for loss in (error, contrast))
    for mine, r, c in zip(whole, of_error, of_contrast, strict=True):
        expected = (1 + contrast.item()) * r + error.item() * c
        assert (mine - expected).norm() < 1e-4 * expected.norm()


def test_every_parameter_takes_part(method):
    """So that several processes need not look for those that do not."""
    method(batch())["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_switches(network):
    """A constant weight in place of the product, weights of both, and both views' errors; each by hand."""
    views = batch()
    plain = ReconstructionContrast(network)(views)
    r, c = plain["reconstruction"].item(), plain["contrast"].item()
    settings = {
        r + 0.5 * c: {"combine": "constant", "contrast_weight": 0.5},
        r + 0.5 * c * r: {"contrast_weight": 0.5},
        r: {"contrast_weight": 0.0},
    }
    for expected, chosen in settings.items():
        assert ReconstructionContrast(network, **chosen)(views)["loss"].item() == pytest.approx(expected, rel=1e-6)
    other = F.l1_loss(network(views["view_2"].flatten(0, 1)), views["target"].flatten(0, 1)).item()
    both = ReconstructionContrast(network, symmetric=True)(views)
    assert both["reconstruction"].item() == pytest.approx((r + other) / 2, rel=1e-6)
    assert abs(r - other) > 5e-6  # some 1e-5 by torch's version; rounding is below 1e-7
    cold = ReconstructionContrast(network, temperature=0.005)(views)
    assert math.isfinite(cold["loss"].item())
    assert cold["contrast"].item() != pytest.approx(c, rel=0.01)


def test_validation_is_the_error_of_the_first_view(method):
    """As the authors validate: one view, one number, also for one crop alone; crops may be one row or two axes."""
    views = {name: view for name, view in batch().items() if name != "view_2"}
    with torch.no_grad():
        two_axes = method.eval()(views)
        one_row = method({name: view.flatten(0, 1) for name, view in views.items()})
        one_crop = method({name: view[:1, :1] for name, view in views.items()})
    assert list(two_axes) == list(one_crop) == ["reconstruction"]
    assert two_axes["reconstruction"].item() == one_row["reconstruction"].item()


def test_bad_batches_are_refused(method):
    """One crop alone has nothing to be compared with; views of other shapes than the target, and missing ones."""
    views = batch()
    with pytest.raises(
        OptionError, match=r"1 sample.* contrastive term would always be 0.* at least 2 crops in a step"
    ):
        method({name: view[:1, :1] for name, view in views.items()})
    for wrong in (views | {"target": views["target"][:, :1]}, {"target": views["target"], "view_1": views["view_1"]}):
        with pytest.raises(OptionError, match=r"target, view_1, view_2 of one shape .* are expected"):
            method(wrong)
    with pytest.raises(
        OptionError, match=r"two views of one shape \(B, ...\) are expected, not \(4, 64\) and \(3, 64\)"
    ):
        nt_xent_reconstruction(tensor("a", 4, 64), tensor("b", 3, 64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"contrast_weight": -1.0}, "contrast_weight=-1.0"),
        ({"combine": "sum"}, "combine='sum': expected one of product, constant"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    """Each by its name and value."""
    with pytest.raises(OptionError, match=message):
        ReconstructionContrast(nn.Identity(), **settings)


@pytest.mark.slow
def test_two_processes_are_one_process_on_the_whole_batch(method, tmp_path):
    """Same losses and gradients, without looking for unused parameters; each by itself they have another contrast.

    Only the order of float32 sums differs: 1e-6 on losses, 1e-4 of each tensor's norm on gradients. A lost factor or a
    gather without gradient shows as 0.1 or more.
    """
    whole = batch(volumes=4, crops=1)
    losses = method(whole)
    losses["loss"].backward()
    expected = {name: p.grad.clone() for name, p in method.named_parameters()}

    def work():
        found = []
        for gather in (True, False):
            method.gather = gather
            method.zero_grad()
            wrapped = DistributedDataParallel(method, broadcast_buffers=False)
            own = wrapped({name: value.chunk(2)[rank()] for name, value in whole.items()})
            own["loss"].backward()
            apart = {
                n: ((p.grad - expected[n]).norm() / expected[n].norm()).item() for n, p in method.named_parameters()
            }
            found.append([{name: value.detach() for name, value in own.items()}, max(apart.values())])
        return found

    results = gloo.run(work, 2, tmp_path)
    for name, value in losses.items():
        assert sum(own[0][0][name].item() for own in results) / 2 == pytest.approx(value.item(), rel=1e-6), name
    for (gathered, apart), (alone, apart_alone) in results:
        assert gathered["contrast"].item() == pytest.approx(losses["contrast"].item(), rel=1e-6)
        assert apart < 1e-4
        assert abs(alone["contrast"].item() - losses["contrast"].item()) > 0.1
        assert apart_alone > 1e-2
