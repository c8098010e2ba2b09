"""DrasCLR's objective: one step equals the authors', what moves and what does not, and two processes equal one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import gloo
import numpy as np
import parity.fill as parity
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from zoo.entries.drasclr.method import DrasCLR
from zoo.errors import InputContractError, OptionError
from zoo.training.distributed import rank

FOLDER = Path(parity.__file__).parent
STEP = json.loads((FOLDER / "steps.json").read_text())["drasclr"]["seed0"]
KEYS = json.loads((FOLDER / "drasclr_keys.json").read_text())
HERE, LOCATIONS, QUEUE, NEIGHBOURS = STEP["patch_idx"], STEP["locations"], STEP["K"], STEP["neighbours"]


def places():
    """Locations and neighbours' locations of which those at `HERE` are the reference's."""
    locations, beside = torch.zeros(LOCATIONS, 3), torch.zeros(LOCATIONS, NEIGHBOURS, 3)
    locations[HERE] = torch.from_numpy(np.tanh(parity.image("loc", (1, 3), 0)))[0]
    beside[HERE] = torch.from_numpy(np.tanh(parity.image("ngb_loc", (1, NEIGHBOURS, 3), 0)))[0]
    return locations, beside


@pytest.fixture(scope="module")
def filled():
    """Both networks with the reference's weights, its queue, and a copy of that state."""
    method = DrasCLR(*places(), queue_size=QUEUE)
    for network, seed in ((method.encoder_q, 0), (method.encoder_k, 1)):
        state = {k: torch.from_numpy(np.asarray(parity.fill(k, shape, seed))) for k, shape in KEYS.items()}
        network.load_state_dict(state)
    columns = parity.image("queue", (128, QUEUE, LOCATIONS), 0)
    theirs = torch.from_numpy(columns / np.linalg.norm(columns, axis=0))
    method.queue.copy_(theirs.permute(2, 0, 1))  # the authors' last axis comes first
    return method, {name: value.clone() for name, value in method.state_dict().items()}


@pytest.fixture
def method(filled):
    """The same object in the state of the reference, in training mode, without gradients."""
    method, state = filled
    method.queue = torch.empty_like(state["queue"])
    method.float()
    method.load_state_dict(state)
    method.zero_grad()
    method.combine, method.beta, method.warm_up, method.key_batches = "sum", 1.0, 0, 1
    return method.train()


def batch(number=STEP["n"], location=HERE, data_pass=0):
    def patches(name, *shape):
        return torch.from_numpy(np.clip(0.5 * parity.image(name, (STEP["n"], *shape, 32, 32, 32), 0), -1, 1))[:number]

    return {
        "query": patches("q", 1),
        "key": patches("k", 1),
        "neighbours": patches("ngb", NEIGHBOURS),
        "location": torch.full((number,), location),
        "pass": torch.full((number,), data_pass),
    }


def freeze_statistics(method):
    for module in method.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "loss_error", "gradient_error"), [(torch.float64, 1e-6, 1e-5), (torch.float32, 1e-5, 1e-4)]
)
def test_one_step_equals_the_authors(method, dtype, loss_error, gradient_error):
    """Losses, gradient, queue and pointers of one training step of the authors' code on the same weights and patches.

    The reference was computed in float32. A wrong order of the neighbours, a mean in place of their sum, statistics of
    a joint batch or keys of the network before its momentum update show in the first digits.
    """
    method.to(dtype)
    losses = method({name: v.to(dtype) if v.is_floating_point() else v for name, v in batch().items()})
    losses["loss"].backward()
    assert losses["patch"].item() == pytest.approx(STEP["patch_loss"], rel=loss_error)
    assert losses["neighbour"].item() == pytest.approx(STEP["neighbour_loss"], rel=loss_error)
    assert losses["loss"].item() == pytest.approx(STEP["patch_loss"] + STEP["neighbour_loss"], rel=loss_error)
    norm = method.encoder_q.conv1.weight.grad.norm().item()
    assert norm == pytest.approx(STEP["grad_norm_conv1"], rel=gradient_error)
    assert method.queue_ptr.tolist() == STEP["queue_ptr"]
    assert method.queue.double().sum().item() == pytest.approx(STEP["queue_sum"], abs=1e-4)


def test_names_are_the_authors(filled):
    """`encoder_q.*` and `encoder_k.*` with the published shapes, queue and pointers; locations are not stored."""
    _, state = filled
    expected = {f"encoder_{which}.{name}" for which in "qk" for name in KEYS} | {"queue", "queue_ptr"}
    assert set(state) == expected
    assert all(list(state[f"encoder_q.{name}"].shape) == list(shape) for name, shape in KEYS.items())
    assert state["queue"].shape == (LOCATIONS, 128, QUEUE)
    plain = DrasCLR(*places(), queue_size=2, mlp=False).state_dict()
    assert [name for name in plain if name.startswith("encoder_q.fc")] == ["encoder_q.fc.weight", "encoder_q.fc.bias"]


def test_the_start_of_a_run():
    """The key network is a copy that takes no gradient; each queue holds its own unit vectors; pointers are at 0."""
    method = DrasCLR(*places(), queue_size=10, experts=3)
    online, average = method.encoder_q.state_dict(), method.encoder_k.state_dict()
    assert all(torch.equal(average[name], value) for name, value in online.items())
    assert not any(p.requires_grad for p in method.encoder_k.parameters())
    assert all(p.requires_grad for p in method.encoder_q.parameters())
    torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(LOCATIONS, 10))
    assert not torch.equal(method.queue[0], method.queue[1])
    assert method.queue_ptr.tolist() == [0] * LOCATIONS
    assert method.encoder_q.conv1.weight.shape[0] == 3


@pytest.mark.slow
def test_only_the_landmark_s_queue_moves(method, filled):
    """Its four first columns become the keys, which are the key network's after its momentum update; others stay."""
    _, start = filled
    method(batch())
    changed = (method.queue != start["queue"]).any(1)
    expected = torch.zeros(LOCATIONS, QUEUE, dtype=torch.bool)
    expected[HERE, :4] = True
    assert torch.equal(changed, expected)
    after = {name: value.clone() for name, value in method.encoder_k.state_dict().items()}
    method.encoder_k.load_state_dict({name: start[f"encoder_k.{name}"] for name in after})
    for name, value in method.encoder_k.named_parameters():
        moved = 0.999 * start[f"encoder_k.{name}"] + 0.001 * start[f"encoder_q.{name}"]
        torch.testing.assert_close(after[name], moved, rtol=1e-5, atol=1e-7)
        value.data.copy_(moved)
    keys = F.normalize(method.encoder_k(batch()["key"], places()[0][HERE]), dim=1)
    torch.testing.assert_close(method.queue[HERE, :, :4].T, keys.detach(), atol=1e-5, rtol=0)
    method(batch(location=0))
    assert method.queue_ptr.tolist() == [4, 0, 4, 0, 0]


@pytest.mark.slow
def test_logits_are_with_the_queue_before_the_step(method, filled):
    """By hand from the networks' outputs: patch loss, neighbour loss by sum and by mean, accuracies."""
    _, start = filled
    views = batch()
    locations, beside = places()
    freeze_statistics(method)
    losses = method(views)
    with torch.no_grad():
        query = F.normalize(method.encoder_q(views["query"], locations[HERE]), dim=1)
        key = F.normalize(method.encoder_k(views["key"], locations[HERE]), dim=1)
        around = [
            F.normalize(method.encoder_q(views["neighbours"][:, r : r + 1], beside[HERE, r]), dim=1)
            for r in range(NEIGHBOURS)
        ]
    negatives = start["queue"][HERE]

    def by_hand(vectors):
        logits = torch.cat([(vectors * key).sum(1, keepdim=True), vectors @ negatives], dim=1) / 0.2
        return -logits.log_softmax(1)[:, 0].mean().item(), (logits.argmax(1) == 0).float().mean().item()

    for vectors, name, accuracy in (
        (query, "patch", "accuracy"),
        (around[0] + around[1], "neighbour", "neighbour_accuracy"),
    ):
        loss, share = by_hand(vectors)
        assert losses[name].item() == pytest.approx(loss, rel=1e-4)
        assert losses[accuracy].item() == share
    method.load_state_dict(start)
    method.combine = "mean"
    averaged = method(views)["neighbour"].item()
    assert averaged == pytest.approx(by_hand((around[0] + around[1]) / 2)[0], rel=1e-4)
    assert abs(averaged - losses["neighbour"].item()) > 1e-2


@pytest.mark.slow
def test_the_neighbour_loss_is_weighted_and_can_wait(method, filled):
    """Beta times it from the pass on that `warm_up` says; before, it is measured and the patch loss is the loss."""
    method.beta, method.warm_up = 0.25, 2
    early = method(batch(data_pass=1))
    assert early["loss"].item() == early["patch"].item()
    assert early["neighbour"].item() > 0
    method.load_state_dict(filled[1])
    late = method(batch(data_pass=2))
    assert late["loss"].item() == pytest.approx(late["patch"].item() + 0.25 * late["neighbour"].item(), rel=1e-6)
    assert late["neighbour"].item() == early["neighbour"].item()


@pytest.mark.slow
def test_gradient_reaches_the_query_network_alone(method):
    """Every parameter of it, through both losses; routing too; nothing of the key network, the queue or the places."""
    losses = method(batch())
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.encoder_q.parameters())
    assert all(p.grad is None for p in method.encoder_k.parameters())
    assert not method.queue.requires_grad


def test_statistics_are_each_batch_s_own(method, filled):
    """The query network counts two batches a step, patches and neighbours; the key network one, and no momentum."""
    _, start = filled
    method(batch())
    state, name = method.state_dict(), "bn1.num_batches_tracked"
    assert state[f"encoder_q.{name}"] - start[f"encoder_q.{name}"] == 2
    assert state[f"encoder_k.{name}"] - start[f"encoder_k.{name}"] == 1
    views, (locations, _) = batch(), places()
    with torch.no_grad():
        kernel = method.encoder_k.conv1.mix(locations[HERE : HERE + 1])[0]
        maps = F.conv3d(views["key"], kernel, method.encoder_k.conv1.bias, padding=1)
    mean = 0.9 * start["encoder_k.bn1.running_mean"] + 0.1 * maps.mean((0, 2, 3, 4))
    torch.testing.assert_close(state["encoder_k.bn1.running_mean"], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_keys_can_be_run_in_parts(method):
    """With 2 parts the key network sees two batches of 2 in training, and the whole batch in eval mode."""
    seen = []
    hook = method.encoder_k.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    method.key_batches = 2
    method(batch())
    method.eval()(batch())
    hook.remove()
    assert seen == [2, 2, 4]


def test_outside_training_nothing_moves(method, filled):
    """Losses in eval mode leave every parameter, statistic, queue and pointer as it was."""
    _, start = filled
    with torch.no_grad():
        losses = method.eval()(batch())
    assert set(losses) == {"loss", "patch", "neighbour", "accuracy", "neighbour_accuracy"}
    assert all(torch.equal(value, start[name]) for name, value in method.state_dict().items())


@pytest.mark.slow
def test_the_queue_can_be_of_half_precision(method, filled):
    """Half the bytes; keys are rounded to 11 bits as they enter, which moves losses by 1e-5 of themselves."""
    _, start = filled
    method(batch())
    whole = method(batch())
    method.load_state_dict(start)
    method.queue = start["queue"].half()
    method(batch())
    losses = method(batch())
    assert (method.queue.dtype, losses["loss"].dtype) == (torch.float16, torch.float32)
    assert losses["patch"].item() == pytest.approx(whole["patch"].item(), rel=1e-4)
    assert losses["neighbour"].item() == pytest.approx(whole["neighbour"].item(), rel=1e-4)
    assert losses["patch"].item() != whole["patch"].item()
    small = DrasCLR(*places(), queue_size=8, queue_dtype="float16", experts=1)
    assert small.queue.nbytes == LOCATIONS * 128 * 8 * 2


def test_a_batch_of_several_landmarks_is_refused(method, filled):
    """Nothing has moved by then."""
    mixed = batch() | {"location": torch.tensor([2, 2, 0, 2])}
    with pytest.raises(OptionError, match="a batch with location 0 and 2: all samples must share one"):
        method(mixed)
    assert all(torch.equal(value, filled[1][name]) for name, value in method.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"momentum": 1.5}, "momentum=1.5"),
        ({"beta": math.nan}, "beta=nan"),
        ({"queue_size": 0}, "queue_size=0"),
        ({"key_batches": 0}, "key_batches=0"),
        ({"combine": "max"}, "combine='max': expected one of sum, mean"),
        ({"queue_dtype": "int8"}, "queue_dtype='int8': expected one of float32, float16"),
        ({"experts": 0}, "experts=0"),
        ({"expert_init": "zeros"}, "expert_init='zeros'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    """Each by its name and value."""
    with pytest.raises(OptionError, match=message):
        DrasCLR(*places(), **settings)


def test_locations_that_are_none_are_refused():
    """Voxel indices in place of normalised ones, tables of other shapes, and no landmark at all."""
    locations, beside = places()
    with pytest.raises(InputContractError, match=r"from 25\.\d+ to 26\.\d+; from -1 to 1 is expected"):
        DrasCLR(locations, beside + 26, queue_size=2)
    for wrong in ((locations[:4], beside), (locations, beside[..., :2]), (locations[:0], beside[:0])):
        with pytest.raises(OptionError, match=r"locations \(A, 3\) and neighbour_locations \(A, R, 3\) are expected"):
            DrasCLR(*wrong, queue_size=2)


@pytest.mark.slow
def test_two_processes_are_one_process_on_the_whole_batch(method, filled, tmp_path):
    """Batch norm in eval mode: same losses, gradients, queues and key network; keys shuffled between the processes.

    Only the order of float32 sums over the batch differs: 1e-6 on losses, 1e-4 of each tensor's norm on gradients; a
    wrong factor or a lost process would show as 0.3 or more.
    """
    freeze_statistics(method)
    whole = batch()
    losses = method(whole)
    losses["loss"].backward()
    expected = {name: p.grad.clone() for name, p in method.encoder_q.named_parameters()}
    after = {name: value.clone() for name, value in method.state_dict().items()}
    method.load_state_dict(filled[1])
    method.zero_grad()

    def work():
        torch.manual_seed(rank())
        wrapped = DistributedDataParallel(method, broadcast_buffers=False)
        own = wrapped({name: value.chunk(2)[rank()] for name, value in whole.items()})
        own["loss"].backward()
        parameters = method.encoder_q.named_parameters()
        gradients = {n: ((p.grad - expected[n]).norm() / expected[n].norm()).item() for n, p in parameters}
        state = {n: (v.double() - after[n].double()).abs().max().item() for n, v in method.state_dict().items()}
        return [{name: value.detach() for name, value in own.items()}, gradients, state]

    results = gloo.run(work, 2, tmp_path)
    for name, value in losses.items():
        assert sum(own[name].item() for own, *_ in results) / 2 == pytest.approx(value.item(), rel=1e-5), name
    for _, gradients, state in results:
        assert max(gradients.values()) < 1e-4, max(gradients, key=gradients.get)
        assert max(state.values()) < 1e-6, max(state, key=state.get)
