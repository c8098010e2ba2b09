"""y-Aware's objective: the authors' numbers, a plain reference, its limits, and two processes that equal one."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path

import gloo
import numpy as np
import pytest
import torch
from parity import fill as parity
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.entries.yaware.method import KERNELS, NORMALIZATIONS, YAware, YAwareInfoNCE
from zoo.errors import OptionError
from zoo.training.distributed import rank

pytestmark = pytest.mark.usefixtures("short_yaware")

CASES = json.loads((Path(parity.__file__).parent / "losses.json").read_text())["yaware"]
BOTH = [(kernel, normalize) for kernel in KERNELS for normalize in NORMALIZATIONS]


def embeddings(n=5, dim=7, seed=0, spread=1.0):
    """Two views whose rows are near each other, of any length."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, dim, generator=generator)
    return 3 * first, first + spread * torch.randn(n, dim, generator=generator)


def ages(n=5, seed=0, columns=None):
    """Labels of which two are equal."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(18, 88, (n,) if columns is None else (n, columns), generator=generator)
    drawn[1] = drawn[0]
    return drawn.float()


def reference(z1, z2, labels, *, temperature=0.1, sigma=5.0, normalize="anchor", kernel="gaussian"):
    """The loss in float64, from its definition, one pair after the other."""
    rows = [row / np.linalg.norm(row) for row in np.concatenate([z1, z2]).astype(np.float64)]
    n, total = len(z1), 0.0

    def weight(a, b):
        if a == b:
            return 0.0
        if kernel == "views":
            return float(a % n == b % n)
        squared = ((np.asarray(labels[a % n], np.float64) - np.asarray(labels[b % n], np.float64)) ** 2).sum()
        return float(squared == 0) if kernel == "equal" else math.exp(-squared / (2 * sigma**2))

    for a in range(2 * n):
        others = [b for b in range(2 * n) if b != a]
        similarity = {b: float(rows[a] @ rows[b]) / temperature for b in others}
        top = max(similarity.values())
        log_sum = top + math.log(sum(math.exp(value - top) for value in similarity.values()))
        for b in others:
            summed = a if normalize == "anchor" else b
            share = weight(a, b) / sum(weight(summed, c) for c in range(2 * n))
            total -= share * (similarity[b] - log_sum)
    return total / (2 * n) * (2 if normalize == "upstream" else 1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", ["gaussian", "views"])
def test_the_loss_equals_the_authors(name, kernel):
    """`normalize="upstream"` gives what their code gave, for both of their losses: float32 against float64, 1e-6."""
    case, number = CASES[name], name.removeprefix("case")
    z1, z2 = (torch.from_numpy(parity.image(f"{view}{number}", (case["n"], 128))) for view in ("zi", "zj"))
    objective = YAwareInfoNCE(case["temperature"], case["sigma"], "upstream", kernel)
    expected = case["upstream_loss" if kernel == "gaussian" else "simclr_loss"]
    assert objective(z1, z2, torch.tensor(case["labels"])).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("kernel", "normalize"), BOTH)
@pytest.mark.parametrize("columns", [None, 1, 3])
def test_the_loss_equals_its_definition(kernel, normalize, columns):
    """A double loop over pairs in float64; 2e-6 is float32 sums over 12 rows."""
    for seed, (n, temperature, sigma) in enumerate([(2, 0.1, 5.0), (5, 0.5, 20.0), (6, 0.07, 1.0)]):
        (z1, z2), labels = embeddings(n, seed=seed), ages(n, seed, columns)
        settings = {"temperature": temperature, "sigma": sigma, "normalize": normalize, "kernel": kernel}
        expected = reference(z1.numpy(), z2.numpy(), labels.numpy(), **settings)
        loss = YAwareInfoNCE(**settings)(z1, z2, labels)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=2e-6, abs=1e-6), (n, columns)


@pytest.mark.parametrize(("kernel", "normalize"), BOTH)
def test_the_gradient_is_the_definitions(kernel, normalize):
    """Central differences of the float64 reference, which are right to 1e-8; float32 sums are to 1e-5."""
    (z1, z2), labels = embeddings(3, 4), torch.tensor([30.0, 30.0, 34.0])
    z1.requires_grad_(True)
    YAwareInfoNCE(0.3, 3.0, normalize, kernel)(z1, z2, labels).backward()
    start, step = z1.detach().double().numpy(), 1e-5
    expected = torch.empty(3, 4, dtype=torch.float64)
    for place in np.ndindex(3, 4):
        sides = []
        for sign in (1, -1):
            moved = start.copy()
            moved[place] += sign * step
            settings = {"temperature": 0.3, "sigma": 3.0, "normalize": normalize, "kernel": kernel}
            sides.append(reference(moved, z2.double().numpy(), labels.numpy(), **settings))
        expected[place] = (sides[0] - sides[1]) / (2 * step)
    torch.testing.assert_close(z1.grad.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def nt_xent(z1, z2, temperature):
    """SimCLR's loss as it is usually written: the other view is the class."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(z1)))


@pytest.mark.parametrize("sigma", [1e-2, 1e-12, 1e-25, 1e-300])
def test_sigma_to_zero_is_simclr_where_labels_differ(sigma):
    """However small sigma is, also where its square is no number of float32; and so is the kernel of that name."""
    z1, z2 = embeddings(6)
    labels = torch.tensor([20.0, 20.5, 33.0, 47.0, 61.0, 88.0])
    expected = nt_xent(z1, z2, 0.1).item()
    assert YAwareInfoNCE(0.1, sigma)(z1, z2, labels).item() == pytest.approx(expected, rel=1e-6)
    assert YAwareInfoNCE(0.1, kernel="views")(z1, z2).item() == pytest.approx(expected, rel=1e-6)
    labels[1] = labels[0]
    assert abs(YAwareInfoNCE(0.1, sigma)(z1, z2, labels).item() - expected) > 0.1, "equal labels attract at any sigma"


def test_sigma_to_infinity_makes_all_subjects_alike():
    """All weights are 1 / (2N - 1), and the square of a large sigma does not overflow."""
    z1, z2 = embeddings(4)
    uniform = YAwareInfoNCE(kernel="equal")(z1, z2, torch.zeros(4)).item()
    for sigma in (1e6, 1e200):
        assert YAwareInfoNCE(sigma=sigma)(z1, z2, ages(4)).item() == pytest.approx(uniform, rel=1e-6)


def test_equal_labels_are_supervised_contrastive_learning():
    """Khosla et al., NeurIPS 2020, equation 2: the mean over an anchor's positives, then over anchors."""
    z1, z2 = embeddings(6)
    classes = torch.tensor([0, 1, 0, 2, 1, 0])
    z, everyone = F.normalize(torch.cat([z1, z2]), dim=1), classes.repeat(2)
    logits = (z @ z.T / 0.1).fill_diagonal_(-torch.inf)
    likelihood = logits.log_softmax(1)
    per_anchor = []
    for a in range(12):
        positives = [p for p in range(12) if p != a and everyone[p] == everyone[a]]
        per_anchor.append(-likelihood[a, positives].mean())
    loss = YAwareInfoNCE(0.1, kernel="equal")(z1, z2, classes)
    assert loss.item() == pytest.approx(torch.stack(per_anchor).mean().item(), rel=1e-6)


def test_large_classes_are_told_apart():
    """Identifiers that float32 would round to one another; each subject is its own class here, as in SimCLR."""
    z1, z2 = embeddings(3)
    classes = 2**40 + torch.arange(3)
    assert torch.equal(YAwareInfoNCE(kernel="equal")(z1, z2, classes), YAwareInfoNCE(kernel="views")(z1, z2))


@pytest.mark.parametrize("kernel", KERNELS)
def test_whose_weights_sum_to_one(kernel):
    """With "anchor" those of each anchor; the authors' are those of each compared row, whence anchors differ."""
    labels = torch.tensor([20.0, 22.0, 22.0, 25.0, 60.0])
    objectives = [YAwareInfoNCE(normalize=normalize, kernel=kernel) for normalize in NORMALIZATIONS]
    ours, theirs = (objective._weights(labels, 5, labels.device) for objective in objectives)
    torch.testing.assert_close(ours.sum(1), torch.ones(10))
    torch.testing.assert_close(theirs, ours.T)
    assert not ours.diag().any()
    if kernel == "gaussian":
        assert theirs.sum(1).min() < 0.9
        assert theirs.sum(1).max() > 1.05


def test_the_normalisations_differ():
    """By more than the factor of two; not where every subject has as many neighbours as every other."""
    (z1, z2), labels = embeddings(6), torch.tensor([20.0, 22.0, 23.0, 25.0, 40.0, 80.0])
    ours, theirs = (YAwareInfoNCE(normalize=n) for n in NORMALIZATIONS)
    assert abs(theirs(z1, z2, labels) / 2 - ours(z1, z2, labels)) > 1e-3
    evenly = torch.tensor([0.0, 0.0, 200.0, 200.0, 400.0, 400.0])
    assert theirs(z1, z2, evenly).item() == pytest.approx(2 * ours(z1, z2, evenly).item(), rel=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_loss_is_below_the_floor(kernel):
    """Whatever the embeddings; float32 rounds by 1e-6."""
    objective = YAwareInfoNCE(kernel=kernel)
    for seed in range(20):
        labels = ages(6, seed)
        loss = objective(*embeddings(6, seed=seed, spread=0.1 * seed), labels)
        assert loss >= objective.floor(labels, 6, loss.device) - 1e-6


def test_embeddings_that_say_the_labels_reach_the_floor():
    """Ages laid along an arc, for which the similarities are the weights' logarithms but for the arc's fourth order.

    That makes the similarities wrong by (age difference / sigma)^4 temperature / 24, at most 0.007, and the loss by the
    square of it. Classes that lie at right angles reach the floor to e^(-1 / temperature), views that agree likewise.
    """
    labels, temperature = torch.tensor([40.0, 41.0, 43.0, 44.5, 48.0, 50.0]), 0.01
    angles = labels / 5 * temperature**0.5
    arc = torch.stack([angles.cos(), angles.sin()], 1)
    objective = YAwareInfoNCE(temperature, 5.0)
    floor = objective.floor(labels, 6, labels.device)
    assert floor > 2
    assert objective(arc, arc, labels).item() == pytest.approx(floor.item(), abs=1e-4)
    assert objective(arc.flip(0), arc.flip(0), labels) > floor + 0.01
    classes = torch.tensor([0, 2, 1, 0, 0, 1])
    axes = F.one_hot(classes).float()
    objective = YAwareInfoNCE(0.05, kernel="equal")
    floor = objective.floor(classes, 6, classes.device)
    assert floor.item() == pytest.approx((6 * math.log(5) + 4 * math.log(3)) / 12, rel=1e-6)
    assert objective(axes, axes, classes).item() == pytest.approx(floor.item(), abs=1e-6)
    alone = YAwareInfoNCE(0.05, kernel="views")
    assert alone.floor(None, 6, classes.device) == 0
    assert alone(torch.eye(6), torch.eye(6)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "normalize"), BOTH)
def test_half_precision_inputs_are_computed_in_float32(dtype, kernel, normalize):
    """The same as with the rounded inputs in float32, bit for bit; the gradient is that one, rounded."""
    rounded, labels = [z.to(dtype) for z in embeddings(6, 16)], ages(6)
    objective = YAwareInfoNCE(0.1, 5.0, normalize, kernel)
    halves = [z.clone().requires_grad_(True) for z in rounded]
    whole = [z.float().requires_grad_(True) for z in rounded]
    losses = objective(*halves, labels.to(dtype)), objective(*whole, labels.to(dtype))
    assert losses[0].dtype == torch.float32
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for half, full in zip(halves, whole, strict=True):
        assert half.grad.dtype == dtype
        assert torch.equal(half.grad, full.grad.to(dtype))


def test_autocast_does_not_reach_the_similarities():
    """Rounded to bfloat16 they would be off by 0.04 at this temperature."""
    (z1, z2), labels = embeddings(6), ages(6)
    objective = YAwareInfoNCE(0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = objective(z1, z2, labels)
    assert torch.equal(inside, objective(z1, z2, labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "normalize"), BOTH)
def test_extreme_similarities_stay_finite(dtype, kernel, normalize):
    """Identical rows, opposite rows and rows of zeros at temperature 0.005; identical rows cost log(2N - 1).

    At zero the direction is undefined and its slope 1e12, which float16 has no number for: only the loss is looked at.
    """
    objective, labels = YAwareInfoNCE(0.005, 5.0, normalize, kernel), ages(4)
    row = embeddings(1, 16)[0].expand(4, 16)
    scale = 2 if normalize == "upstream" else 1
    for z1, z2 in ((row, row), (row, -row), (torch.zeros(4, 16), row)):
        z1, z2 = (z.to(dtype, copy=True).requires_grad_(True) for z in (z1, z2))
        loss = objective(z1, z2, labels)
        loss.backward()
        assert loss.isfinite()
        assert z2.grad.isfinite().all()
        assert z1.grad.isfinite().all() or not z1.any()
        if torch.equal(z1, z2):
            assert loss.item() == pytest.approx(scale * math.log(7), rel=1e-4)  # 200 in float32 is exact to 2e-5


class Devices(TorchDispatchMode):
    """Notes on which devices the results of operations lie."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.seen |= {t.device.type for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)}
        return result


@pytest.mark.parametrize(("kernel", "normalize"), BOTH)
def test_nothing_leaves_the_device(kernel, normalize, monkeypatch):
    """Every result lies on the meta device, and no value is asked for, which it has not: on a GPU that would wait."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # the meta device has none
    objective = YAwareInfoNCE(normalize=normalize, kernel=kernel)
    with torch.no_grad(), Devices() as devices:
        z, labels = torch.empty(4, 8, device="meta", dtype=torch.bfloat16), torch.empty(4, 2, device="meta")
        loss = objective(z, z, labels) - objective.floor(labels, 4, z.device)
    assert devices.seen == {"meta"}
    assert (loss.device.type, loss.shape) == ("meta", ())


@pytest.mark.slow
def test_two_processes_are_one_in_loss_and_gradient(tmp_path):
    """All kernels and both normalisations, labels of one and two columns; three of six subjects each.

    The gradient of an embedding is summed over both copies of the loss, which DDP's mean takes back.
    """
    (z1, z2), cases = embeddings(6), [(*both, k) for both in BOTH for k in (None, 2)]

    def compute(share):
        found = []
        for kernel, normalize, columns in cases:
            views = [share(z).clone().requires_grad_(True) for z in (z1, z2)]
            loss = YAwareInfoNCE(0.2, 5.0, normalize, kernel)(*views, share(ages(6, columns=columns)))
            loss.backward()
            found.append([loss.detach(), *(z.grad for z in views)])
        return found

    whole = compute(lambda x: x)
    halves = gloo.run(compute, 2, tmp_path, lambda x: x.chunk(2)[rank()])
    for case, (loss, *gradients), *parts in zip(cases, whole, *halves, strict=True):
        assert all(part[0].item() == pytest.approx(loss.item(), rel=1e-6) for part in parts), case
        for view, gradient in enumerate(gradients, 1):
            joined = torch.cat([part[view] for part in parts]) / 2
            torch.testing.assert_close(joined, gradient, rtol=1e-5, atol=1e-6, msg=lambda m, case=case: f"{case}: {m}")


def test_in_eval_mode_each_process_is_by_itself(tmp_path):
    """Shares of three and two subjects, as validation has them, have the loss of a process alone."""
    (z1, z2), labels = embeddings(5), ages(5)
    objective = YAwareInfoNCE().eval()
    shares = [slice(0, 3), slice(3, 5)]

    def work():
        share = shares[rank()]
        return objective(z1[share], z2[share], labels[share])

    expected = [objective(z1[share], z2[share], labels[share]) for share in shares]
    assert gloo.run(work, 2, tmp_path) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": -1.0}, r"sigma=-1\.0: expected a positive number$"),
        ({"sigma": 0.0}, r'sigma=0\.0: expected a positive number; for SimCLR, its limit at 0, use kernel="views"'),
        ({"sigma": math.nan}, r"sigma=nan: expected a positive number$"),
        ({"sigma": math.inf}, r"sigma=inf: expected"),
        ({"temperature": 0.0}, r"temperature=0\.0: expected a positive number$"),
        ({"temperature": -0.1}, r"temperature=-0\.1: expected"),
        ({"normalize": "row"}, r"normalize='row': expected one of anchor, upstream"),
        ({"kernel": "rbf"}, r"kernel='rbf': expected one of gaussian, equal, views"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    """By the loss, and by the method that has one."""
    with pytest.raises(OptionError, match=message):
        YAwareInfoNCE(**settings)
    with pytest.raises(OptionError, match=message):
        YAware(**settings)


@pytest.mark.parametrize(
    ("shape1", "shape2", "labels", "kernel", "message"),
    [
        ((4, 8), (4, 8), (3,), "gaussian", r"labels \(4,\) or \(4, k\) are expected, not \(3,\)"),
        ((4, 8), (4, 8), (8,), "views", r"labels \(4,\) or \(4, k\) are expected, not \(8,\)"),
        ((4, 8), (4, 8), (4, 1, 1), "equal", r"not \(4, 1, 1\)"),
        ((4, 8), (4, 8), (), "equal", r"not \(\)"),
        ((4, 8), (4, 8), (4, 0), "gaussian", r"not \(4, 0\)"),
        ((4, 8), (4, 8), None, "gaussian", r'kernel "gaussian" needs labels .* only "views" does without'),
        ((1, 8), (1, 8), (1,), "gaussian", r"a batch of one subject has no other to be compared with"),
        ((4, 8), (3, 8), (4,), "gaussian", r"one shape \(N, D\) are expected, not \(4, 8\) and \(3, 8\)"),
        ((4, 8), (4, 9), (4,), "gaussian", r"not \(4, 8\) and \(4, 9\)"),
        ((4, 8, 1), (4, 8, 1), (4,), "gaussian", r"not \(4, 8, 1\) and \(4, 8, 1\)"),
    ],
)
def test_batches_that_make_no_sense_are_refused(shape1, shape2, labels, kernel, message):
    """Wrong length, missing labels, a subject alone, views of different shape."""
    given = None if labels is None else torch.ones(labels)
    with pytest.raises(OptionError, match=message):
        YAwareInfoNCE(kernel=kernel)(torch.ones(shape1), torch.ones(shape2), given)


def test_a_missing_label_does_not_pass_for_a_number():
    """NaN makes the loss NaN, at which a run stops."""
    assert YAwareInfoNCE()(*embeddings(4), torch.tensor([20.0, math.nan, 30.0, 40.0])).isnan()


@pytest.fixture(scope="module")
def built(short_yaware):
    """The method with a short network, and a copy of its state."""
    torch.manual_seed(0)
    method = YAware()
    return method, {name: value.clone() for name, value in method.state_dict().items()}


@pytest.fixture
def method(built):
    """The same object as it was built, in training mode, without gradients."""
    method, state = built
    method.load_state_dict(state)
    method.zero_grad()
    return method.train()


def batch(n=4, size=32):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(n, 1, size, size, size, generator=generator)
    return {"image": image, "label": ages(n, columns=1), "draws": torch.arange(2 * n).view(n, 2)}


def test_each_view_has_a_forward_pass_of_its_own(method):
    """Two passes of N, over different views made from their own seeds; each moves the batch statistics by itself."""
    seen, data = [], batch()
    hook = method.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    method(data)
    hook.remove()
    assert [len(view) for view in seen] == [4, 4]
    for number, view in enumerate(seen):
        assert torch.equal(view, method.augment(data["image"], data["draws"][:, number]))
        assert not torch.equal(view, data["image"])
    assert not torch.equal(*seen)
    norm = method.network.features.norm0
    assert norm.num_batches_tracked == 2
    with torch.no_grad():
        first, second = (method.network.features.conv0(view).mean((0, 2, 3, 4)) for view in seen)
    torch.testing.assert_close(norm.running_mean, 0.9 * 0.1 * first + 0.1 * second, rtol=1e-4, atol=1e-6)


def test_evaluation_leaves_the_method_as_it_is(method, built):
    """The same losses twice, and no statistic has moved."""
    with torch.no_grad():
        first, second = (method.eval()(batch(2)) for _ in range(2))
    assert first == second
    assert all(torch.equal(value, built[1][name]) for name, value in method.state_dict().items())


class Answers(nn.Module):
    """A network that returns what it was given, one view after the other."""

    def __init__(self, *views) -> None:
        super().__init__()
        self.views = list(views)

    def forward(self, x):
        return self.views.pop(0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_what_the_method_returns(kernel, normalize):
    """The objective of both views, how many rows find their twin, and how far the loss is above its least."""
    method = YAware(kernel=kernel, normalize=normalize)
    z1 = torch.eye(4, 6)
    z2 = z1 + 0.1
    z2[3] = z1[0] + 0.05  # nearest to both rows of the first subject, which miss each other, as those of the fourth do
    method.network = Answers(z1.requires_grad_(True), z2)
    data = batch(4, 4) | {"label": torch.tensor([[20.0], [30.0], [31.0], [70.0]])}
    losses = method(data)
    expected = method.objective(z1, z2, data["label"])
    assert torch.equal(losses["loss"], expected)
    assert losses["loss"].requires_grad
    assert losses["accuracy"] == pytest.approx(4 / 8)
    if normalize == "upstream":
        assert set(losses) == {"loss", "accuracy"}
        return
    assert set(losses) == {"loss", "accuracy", "excess"}
    assert not losses["excess"].requires_grad
    floor = method.objective.floor(data["label"], 4, z1.device)
    assert losses["excess"].item() == pytest.approx(losses["loss"].item() - floor.item(), abs=1e-6)
    assert losses["excess"] > 0


@pytest.mark.slow
def test_two_processes_are_one_on_the_whole_batch(method, tmp_path):
    """Batch norm in eval mode: same loss and excess, and after DDP's mean the same gradient of every parameter.

    Only the order of float32 sums over the batch differs: 1e-6 on losses. A gradient passes 20 layers in which such
    differences cancel and add: 1e-3 of each tensor's norm; a wrong factor or a lost process would show as 0.3 or more.
    """
    for module in method.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    data = batch()
    whole = method(data)
    whole["loss"].backward()
    expected = {name: p.grad.clone() for name, p in method.named_parameters()}
    method.zero_grad()

    def work():
        wrapped = DistributedDataParallel(method, broadcast_buffers=False)
        losses = wrapped({name: value.chunk(2)[rank()] for name, value in data.items()})
        losses["loss"].backward()
        errors = {n: ((p.grad - expected[n]).norm() / expected[n].norm()).item() for n, p in method.named_parameters()}
        return [{name: value.detach() for name, value in losses.items()}, errors]

    for losses, errors in gloo.run(work, 2, tmp_path):
        assert max(errors.values()) < 1e-3, max(errors, key=errors.get)
        for name in ("loss", "excess"):
            assert losses[name].item() == pytest.approx(whole[name].item(), rel=1e-6), name


@pytest.mark.slow
def test_two_processes_take_a_training_step(method, tmp_path):
    """Batch statistics are each process's own; loss and gradient are of all, so that both go on with equal weights."""
    data = batch()

    def work():
        wrapped = DistributedDataParallel(method, broadcast_buffers=False)
        losses = wrapped({name: value.chunk(2)[rank()] for name, value in data.items()})
        losses["loss"].backward()
        gradients = [p.grad.double().norm() for p in method.parameters()]
        return [losses["loss"].detach(), torch.stack(gradients), method.network.features.norm0.running_mean]

    (loss, gradients, mean), (other_loss, other_gradients, other_mean) = gloo.run(work, 2, tmp_path)
    assert loss == other_loss
    assert loss.isfinite()
    assert gradients.isfinite().all()
    assert (gradients > 0).all()
    assert torch.equal(gradients, other_gradients)
    assert not torch.equal(mean, other_mean)
