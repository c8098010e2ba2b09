"""CAiD's objective: one step equals the authors', two processes equal one, and every switch does what it says."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import gloo
import numpy as np
import pytest
import torch
from narrow_caid import narrow_caid as narrowed
from parity import fill as parity
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from zoo.checkpoint.skeleton import without_values
from zoo.entries.caid.method import CAiD
from zoo.errors import OptionError
from zoo.training.distributed import Processes, rank
from zoo.training.loop import mean_losses

FOLDER = Path(parity.__file__).parent
STEP = json.loads((FOLDER / "steps.json").read_text())["caid"]["seed0"]
KEYS = json.loads((FOLDER / "caid_keys.json").read_text())


def reference(method):
    """The names of a method with the reference's weights and queue."""
    networks = {
        f"encoder_{which}.{name}": torch.from_numpy(np.asarray(parity.fill(name, value.shape, seed)))
        for which, seed in (("q", 0), ("k", 1))
        for name, value in getattr(method, f"encoder_{which}").state_dict().items()
    }
    columns = parity.image("queue", (128, STEP["K"]), 0)
    queue = torch.from_numpy((columns / np.linalg.norm(columns, axis=0)).astype(np.float32))
    return networks | {"queue": queue, "queue_ptr": torch.zeros(1, dtype=torch.int64)}


@pytest.fixture(scope="module")
def whole():
    """The authors' two whole networks without values, and the reference's."""
    with without_values():
        method = CAiD(queue_size=STEP["K"], key_full_unet=True)
    return method, reference(method)


@pytest.fixture(scope="module")
def filled():
    """Narrow networks with values that are made as the reference's, and a copy of that state."""
    with narrowed():
        method = CAiD(queue_size=STEP["K"], key_full_unet=True)
    return method, reference(method)


@pytest.fixture
def method(filled):
    """The same object in that state, in training mode, without gradients."""
    method, state = filled
    method.queue = torch.empty_like(state["queue"])
    method.load_state_dict(state)
    method.zero_grad()
    method.validate_mutates_state, method.batch_negatives, method.key_batches = False, False, 1
    method.encoder_q.requires_grad_(True)
    return method.train()


@pytest.fixture(scope="module")
def lean():
    """The default method with narrow networks and a small queue, and a copy of what its constructor makes."""
    torch.manual_seed(0)
    with narrowed():
        method = CAiD(queue_size=10)
    return method, {name: value.clone() for name, value in method.state_dict().items()}


def views(number=4, size=32):
    def picture(name, channels):
        normal = parity.image(name, (number, channels, size, size), 0)
        return torch.from_numpy(np.clip(0.5 + 0.25 * normal, 0, 1))

    return {"query": picture("im_q", 3), "key": picture("im_k", 3), "target": picture("target", 1)}


def freeze_statistics(method):
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "loss_error", "gradient_error", "sum_error"),
    [(torch.float64, 1e-5, 1e-3, 1e-4), (torch.float32, 5e-5, 3e-3, 1e-3)],
)
def test_one_step_equals_the_authors(whole, dtype, loss_error, gradient_error, sum_error):
    """Losses, gradient, queue and pointer of one training step of the authors' code on the same weights and images.

    The reference was computed in float32. In float64 we differ from it by 3e-6 (losses), 4e-4 (gradient) and 3e-5 (sum
    of the queue's 6144 values), in float32 by up to 1e-5, 8e-4 and 3e-4 with other threads or layouts: batch statistics
    over 4 images of 2 x 2 pixels magnify rounding, and noise of 1e-7 on the images moves the gradient by 3e-4 even in
    float64. A wrong loss weight, temperature or momentum shows in the second digit.
    """
    method, state = whole
    method = copy.deepcopy(method).train()
    method.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    method.to(dtype)
    given = views(STEP["n"], STEP["size"])
    images = {name: value.to(dtype) for name, value in given.items()}
    losses = method(images | {"target": given["target"].float()})  # errors are taken in float32
    losses["loss"].backward()
    for name, reference in (("nce", "nce"), ("mse", "mse"), ("loss", "total")):
        assert losses[name].item() == pytest.approx(STEP[reference], rel=loss_error), name
    gradient = method.encoder_q.backbone.encoder.conv1.weight.grad
    assert gradient.norm().item() == pytest.approx(STEP["grad_norm_conv1"], rel=gradient_error)
    assert method.queue_ptr.tolist() == [STEP["queue_ptr"]]
    assert method.queue.double().sum().item() == pytest.approx(STEP["queue_sum"], abs=sum_error)
    assert method.queue[:, 0].norm().item() == pytest.approx(STEP["queue_first_key_norm"], rel=1e-6)


@pytest.mark.slow
def test_names_are_the_authors(whole):
    """`encoder_q.backbone.<U-Net name>` with the published shapes, `encoder_q.fc.{0,2}`, the queue and its pointer."""
    state = whole[0].state_dict()
    heads = {f"fc.{i}.{leaf}" for i in (0, 2) for leaf in ("weight", "bias")}
    one = {f"backbone.{name}" for name in KEYS} | heads
    expected = {f"encoder_{which}.{name}" for which in "qk" for name in one} | {"queue", "queue_ptr"}
    assert set(state) == expected
    assert all(list(state[f"encoder_q.backbone.{name}"].shape) == list(shape) for name, shape in KEYS.items())
    unused = ("encoder_k.backbone.decoder.", "encoder_k.backbone.segmentation_head.")
    with without_values():
        default = CAiD(queue_size=10)
    assert set(default.state_dict()) == {name for name in expected if not name.startswith(unused)}


def test_the_start_of_a_run(lean):
    """The key network is a copy that takes no gradient; the queue holds unit vectors; the pointer is at 0."""
    method, start = lean
    copied = [name for name in start if name.startswith("encoder_k.")]
    assert all(torch.equal(start[name], start[name.replace("encoder_k.", "encoder_q.")]) for name in copied)
    assert not any(p.requires_grad for p in method.encoder_k.parameters())
    assert all(p.requires_grad for p in method.encoder_q.parameters())
    torch.testing.assert_close(start["queue"].norm(dim=0), torch.ones(10))
    assert start["queue_ptr"].tolist() == [0]


def test_the_key_decoder_changes_no_loss(method, lean):
    """Without it (the default) a step has the same losses and keys: its output is never used."""
    other, start = lean
    state = method.state_dict()
    other.load_state_dict({name: start[name] if name.startswith("queue") else state[name] for name in start})
    other.queue = method.queue.clone()
    full, without = method(views()), other.train()(views())
    assert full.keys() == without.keys()
    assert all(torch.equal(full[name], without[name]) for name in full)
    assert torch.equal(method.queue, other.queue)
    other.queue = start["queue"].clone()


def test_gradient_reaches_the_query_network_alone(method):
    """Every query parameter, no key parameter; and the contrastive term alone leaves the decoder alone."""
    losses = method(views())
    losses["nce"].backward(retain_graph=True)
    touched = {
        name.split(".")[1] for name, p in method.encoder_q.backbone.named_parameters(prefix="x") if p.grad is not None
    }
    assert touched == {"encoder"}
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.encoder_q.parameters())
    assert all(p.grad is None for p in method.encoder_k.parameters())
    assert method.queue.grad is None


def test_the_loss_is_the_weighted_sum(method):
    """1 and 10 as published; other weights where asked."""
    method.contrastive_weight, method.reconstruction_weight = 0.5, 3.0
    losses = method(views())
    method.contrastive_weight, method.reconstruction_weight = 1.0, 10.0
    assert losses["loss"].item() == pytest.approx(0.5 * losses["nce"].item() + 3 * losses["mse"].item(), rel=1e-6)
    assert set(losses) == {"loss", "nce", "mse", "accuracy"}
    assert 0 < losses["mse"].item() < 1
    assert math.isfinite(losses["nce"].item())


def test_momentum_moves_the_key_parameters_and_not_its_buffers(method, filled):
    """0.999 of the key's and 0.001 of the query's parameters; batch statistics are the key's own."""
    _, start = filled
    method(views())
    for name, value in method.encoder_k.named_parameters():
        expected = 0.999 * start[f"encoder_k.{name}"] + 0.001 * start[f"encoder_q.{name}"]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    name = "backbone.encoder.bn1.running_mean"
    moved = method.encoder_k.state_dict()[name]
    assert not torch.equal(moved, start[f"encoder_k.{name}"])
    assert not torch.equal(moved, method.encoder_q.state_dict()[name])


@pytest.mark.parametrize("mutates", [False, True])
def test_validation_moves_key_network_and_queue_only_where_asked(method, filled, mutates):
    """By default a forward pass in eval mode changes nothing; as the authors have it, it does what training does."""
    _, start = filled
    method.validate_mutates_state = mutates
    with torch.no_grad():
        losses = method.eval()(views())
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, start[name])}
    parameters = {f"encoder_k.{name}" for name, _ in method.encoder_k.named_parameters()}
    assert changed == (parameters | {"queue", "queue_ptr"} if mutates else set())
    assert set(losses) == {"loss", "nce", "mse", "accuracy"}


def test_the_queue_need_not_be_a_multiple_of_the_batch(method):
    """Queue of 6, batches of 4: the second is written round the end; a batch larger than the queue leaves its last."""
    method.queue = method.queue[:, :6].clone()
    first = method.queue.clone()
    method(views())
    assert torch.equal(method.queue[:, 4:], first[:, 4:])
    assert method.queue_ptr.tolist() == [4]
    second = method.queue.clone()
    method(views())
    assert torch.equal(method.queue[:, 2:4], second[:, 2:4])
    assert method.queue_ptr.tolist() == [2]
    method.queue = method.queue[:, :3].clone()
    method.queue_ptr.zero_()
    method(views())
    torch.testing.assert_close(method.queue.norm(dim=0), torch.ones(3))
    assert method.queue_ptr.tolist() == [1]


def test_keys_can_be_run_in_parts(method):
    """With 2 parts the key network sees two batches of 2 in training, and the whole batch in validation."""
    seen = []
    hook = method.encoder_k.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    method.key_batches = 2
    method(views())
    method.eval()(views())
    hook.remove()
    assert seen == [2, 2, 4]


@pytest.fixture(scope="module")
def identity_start():
    """Mode "id" with narrow networks and a one-layer head, its residual blocks started as the identity."""
    with narrowed():
        return CAiD(mode="id", queue_size=8, mlp=False, zero_init_residual=True)


def test_residual_blocks_can_start_as_the_identity(identity_start, lean):
    """The last norm of each of the four blocks has weight 0 in both networks; by default, as the authors', it has 1."""
    names = [name for name in lean[1] if name.endswith(".bn3.weight")]
    assert len(names) == 2 * 4
    assert all(not identity_start.state_dict()[name].any() for name in names)
    assert all((lean[1][name] == 1).all() for name in names)


def test_mode_id_is_plain_instance_discrimination(identity_start):
    """No decoder in either network, no reconstruction; everything in the query network takes part."""
    method = identity_start.train()
    losses = method(views())
    losses["loss"].backward()
    assert set(losses) == {"loss", "nce", "accuracy"}
    assert losses["loss"].item() == losses["nce"].item()
    assert not [name for name in method.state_dict() if "decoder" in name or "segmentation_head" in name]
    assert [name for name in method.encoder_q.state_dict() if name.startswith("fc")] == ["fc.weight", "fc.bias"]
    assert all(p.grad is not None for p in method.encoder_q.parameters())
    with pytest.raises(OptionError, match=r"mode must be one of caid, id, not 'moco'"):
        CAiD(mode="moco")


def test_other_keys_of_the_step_can_be_negatives(method):
    """With one more negative for each other image the cross-entropy grows, and not for a batch of one in eval mode."""
    without = method.eval()(views())["nce"]
    alone = method(views(1))["nce"]
    method.batch_negatives = True
    assert method(views())["nce"] > without + 1e-3
    assert method(views(1))["nce"] == alone


@pytest.mark.slow
def test_two_processes_are_one_process_on_the_whole_batch(method, filled, tmp_path):
    """Batch norm in eval mode: same losses, gradients, queue and key network, keys shuffled between the processes.

    Then a second forward pass with the other keys of the step, of both processes, as negatives.

    Only the order of float32 sums over the batch differs: 1e-6 on losses. A gradient passes 14 layers in which such
    differences cancel and add: 1e-4 of each tensor's norm; a wrong factor or a lost process would show as 0.3 or more.
    """
    freeze_statistics(method)
    batch = views(4)
    losses = method(batch)
    losses["loss"].backward()
    expected = {name: p.grad.clone() for name, p in method.encoder_q.named_parameters()}
    after = {name: value.clone() for name, value in method.state_dict().items()}
    method.batch_negatives = True
    with torch.no_grad():
        second = method(batch)["nce"].item()
    method.batch_negatives = False
    method.load_state_dict(filled[1])
    method.zero_grad()

    def work():
        torch.manual_seed(rank())
        wrapped = DistributedDataParallel(method, broadcast_buffers=False)
        share = {name: value.chunk(2)[rank()] for name, value in batch.items()}
        own = wrapped(share)
        own["loss"].backward()
        parameters = method.encoder_q.named_parameters()
        gradients = {n: ((p.grad - expected[n]).norm() / expected[n].norm()).item() for n, p in parameters}
        state = {n: (v.double() - after[n].double()).abs().max().item() for n, v in method.state_dict().items()}
        method.batch_negatives = True
        with torch.no_grad():
            again = method(share)["nce"]
        return [{name: value.detach() for name, value in own.items()}, gradients, state, again]

    results = gloo.run(work, 2, tmp_path)
    for name, value in losses.items():
        mean = sum(own[name].item() for own, *_ in results) / 2
        assert mean == pytest.approx(value.item(), rel=1e-6), name
    for _, gradients, state, _ in results:
        assert max(gradients.values()) < 1e-4, max(gradients, key=gradients.get)
        assert max(state.values()) < 1e-6, max(state, key=state.get)
    assert sum(again.item() for *_, again in results) / 2 == pytest.approx(second, rel=1e-6)


@pytest.mark.slow
def test_uneven_validation_shares_do_not_wait_for_each_other(method, tmp_path):
    """Three images on two processes: two batches of one here, one there, and the mean is that of one process."""
    batch = views(3)
    samples = [{name: value[i] for name, value in batch.items()} for i in range(3)]
    method.eval()

    def work():
        mine = Subset(samples, range(rank(), 3, 2))
        with torch.no_grad():
            return mean_losses(method, DataLoader(mine, 1), Processes(rank(), 2, torch.device("cpu")))

    with torch.no_grad():
        whole = mean_losses(method, DataLoader(samples, 3), Processes(0, 1, torch.device("cpu")))
    for result in gloo.run(work, 2, tmp_path):
        assert result == pytest.approx(whole, rel=1e-5)


def test_zero_init_residual_starts_blocks_as_the_identity(narrow_caid):
    """The last batch norm of every block starts at zero in both networks, and only when asked for."""
    for asked in (False, True):
        started = CAiD(mode="id", queue_size=8, zero_init_residual=asked)
        scales = [p for n, p in started.named_parameters() if n.endswith(".bn3.weight")]
        assert len(scales) == 8  # four blocks, query and key
        assert all((scale == 0).all() == asked for scale in scales)
