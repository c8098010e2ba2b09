"""The training loop: its course, what decides, what stops it, and what processes have to agree on."""

from __future__ import annotations

import json
import math

import gloo
import pytest
import torch
import toy_run
from scripted import ONE, Numbers, Scripted, run
from torch import nn
from torch.utils.data import DataLoader, Dataset

from zoo.errors import OptionError
from zoo.training import distributed
from zoo.training.args import TrainArgs
from zoo.training.data import Batches
from zoo.training.loop import fit, mean_losses
from zoo.training.runlog import read_log
from zoo.training.saving import read_state, write_state

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "fp32"), (4, "fp32"), (1, "fp16")])
def test_clipping_bounds_the_gradient_of_the_step(tmp_path, accumulate, precision):
    """A gradient of norm 50 clipped to 2 moves the weight by lr * 2; one of norm 1 is left alone, scaled or not."""
    for slope, moved in ((50.0, 0.2), (1.0, 0.1)):
        method = Scripted(slope=slope)
        run(method, tmp_path / str(slope), clip_grad=2.0, accumulate=accumulate, precision=precision)
        assert method.weight.tolist() == pytest.approx([-moved, 0.0], rel=1e-5)


def test_clipping_is_by_the_norm_of_all_tensors(tmp_path):
    """Gradients of norms 3 and 4 are 5 together: clipped to 2.5 each moves by half of it, none by its own norm."""
    method = Scripted(slope=3.0)
    method.other = nn.Parameter(torch.zeros(1))
    forward = method.forward

    def both(batch):
        outputs = forward(batch)
        outputs["loss"] = outputs["loss"] + 4 * method.other[0]
        return outputs

    method.forward = both
    run(method, tmp_path, clip_grad=2.5)
    assert method.weight[0].item() == pytest.approx(-0.15, rel=1e-5)
    assert method.other.item() == pytest.approx(-0.2, rel=1e-5)


@pytest.mark.slow
def test_processes_draw_apart(tmp_path):
    """A method's draws at a step, and a validation's, are each process's own: noise of two is not one's twice."""

    def work():
        class Drawing(Scripted):
            def forward(self, batch):
                draws.append(torch.rand(()).item())
                return super().forward(batch)

        def validate(method, epoch):
            draws.append(torch.rand(()).item())
            return {"a": 1.0}

        draws: list[float] = []
        processes = distributed.Processes(distributed.rank(), 2, torch.device("cpu"))
        args = TrainArgs(data="", out=str(tmp_path / "run"), batch_size=4, epochs=1)
        fit(Drawing(), Numbers(), args, processes=processes, validate=validate)
        return draws

    first, second = gloo.run(work, 2, tmp_path / "group")
    assert len(first) == len(second) == 3
    assert len({*first, *second}) == 6


def test_warm_up_and_cosine_reach_the_optimiser(tmp_path):
    """Gradient 1 and plain SGD: the weight is minus the sum of the learning rates, 1/2 + 1 + 1 + 1/2 of the peak."""
    method = Scripted()
    run(method, tmp_path, epochs=3, steps_per_epoch=2, warmup_epochs=1, schedule="cosine")
    expected = [0.5, 1, 1, 1, 0.5, 0.5]
    assert method.weight[0].item() == pytest.approx(-0.1 * sum(expected))
    assert [line["lr"] for line in read_log(tmp_path / "log.jsonl")] == pytest.approx([0.1, 0.1, 0.05])


def test_parameter_groups_keep_their_own_rate(tmp_path):
    """Groups with rates of their own are scaled from those; parameters outside the groups stay."""
    method = Scripted()
    method.frozen = nn.Parameter(torch.ones(1))
    args = TrainArgs(data="", out=str(tmp_path), batch_size=8, epochs=1, lr=0.1, momentum=0, weight_decay=0)
    fit(method, Numbers(), args, processes=ONE, params=[{"params": [method.weight], "lr": 0.7}])
    assert method.weight[0].item() == pytest.approx(-0.7)
    assert method.frozen.item() == 1


@pytest.mark.parametrize("monitor", ["loss", "+score"])
def test_plateau_shrinks_the_rate(tmp_path, monitor):
    """Epochs 2 to 4 do not improve on the first: with patience 1 the rate halves after the second of them.

    A metric whose larger values are the better ones was taken for a smaller one.
    """
    run(Scripted([1, 2, 2, 2, 0]), tmp_path, epochs=5, schedule="plateau", plateau_patience=1, monitor=monitor)
    assert [line["lr"] for line in read_log(tmp_path / "log.jsonl")] == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05])


def test_patience_stops_and_stays_stopped(tmp_path):
    """Two epochs without improvement end the run, and resuming it trains no further."""
    losses = [3, 2, 2, 2, 1, 1]
    metrics = run(Scripted(losses), tmp_path, epochs=6, patience=2)
    assert [line["epoch"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4]
    assert (metrics["epoch"], metrics["loss"]) == (2, 2)
    again = run(Scripted(losses[4:]), tmp_path, epochs=6, patience=2, resume=True)
    assert [line["epoch"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4]
    assert again == metrics


def test_a_run_that_counted_epochs_from_0_goes_on(tmp_path):
    """Its best epoch would be told one too low, or its log be called damaged."""
    metrics = run(Scripted([3, 1, 2]), tmp_path, epochs=3)
    log, last = tmp_path / "log.jsonl", read_state(tmp_path / "last.pt")
    assert last.pop("epochs_from_one")
    write_state(tmp_path / "last.pt", last | {"metrics": metrics | {"epoch": 1}})
    log.write_text("".join(json.dumps({**line, "epoch": line["epoch"] - 1}) + "\n" for line in read_log(log)))
    again = run(Scripted([4]), tmp_path, epochs=4, resume=True, schedule="constant")
    assert again == metrics
    assert [line["epoch"] for line in read_log(log)] == [1, 2, 3, 4]


def test_monitor_chooses_the_best_epoch(tmp_path):
    """Smaller is better, larger with '+'; `best.pt` holds that epoch's weights, `last.pt` the last's."""
    losses = [3, 1, 2]
    for monitor, best in (("loss", 1), ("+loss", 0), ("+score", 1), ("score", 0), ("+epoch", 2)):
        out = tmp_path / monitor
        metrics = run(Scripted(losses), out, epochs=3, monitor=monitor)
        assert (metrics["epoch"], metrics["loss"]) == (best + 1, losses[best])
        kept, last = (torch.load(out / name, weights_only=True) for name in ("best.pt", "last.pt"))
        assert kept["model"]["weight"][0].item() == pytest.approx(-0.1 * (best + 1))
        assert kept["metrics"] == metrics == last["metrics"]
        assert set(kept) == {"epoch", "model", "metrics"}
        assert last["model"]["weight"][0].item() == pytest.approx(-0.3)
        assert {"optimizer", "scaler", "plateau", "world"} <= set(last)


def test_a_monitor_that_does_not_exist_is_named(tmp_path):
    """With the metrics that there are; at once where it is plain that there will be none."""
    with pytest.raises(OptionError, match=r"--monitor acuracy: no such metric; there are loss, score, lr"):
        run(Scripted(), tmp_path / "a", monitor="acuracy")
    with pytest.raises(OptionError, match=r"--monitor epoch: no such metric; there are loss, score, lr, \+epoch$"):
        run(Scripted(), tmp_path / "c", monitor="epoch")
    with pytest.raises(OptionError, match=r"--monitor \+val_auc: this run has no validation"):
        run(Scripted(), tmp_path / "b", monitor="+val_auc")
    assert not (tmp_path / "b").exists()


def test_validation_is_in_eval_mode_without_gradient_and_logged(tmp_path):
    """The recipe's function sees the method as it will be used; its metrics get the prefix."""
    seen = []

    def validate(method, epoch):
        seen.append((epoch, method.training, torch.is_grad_enabled(), torch.rand(()).item()))
        return {"auc": 0.5 + epoch / 10}

    metrics = run(Scripted([1, 1]), tmp_path, validate, epochs=2, monitor="+val_auc")
    assert [s[:3] for s in seen] == [(0, False, False), (1, False, False)]
    assert seen[0][3] == seen[1][3]
    assert metrics["val_auc"] == 0.6
    assert [line["val_auc"] for line in read_log(tmp_path / "log.jsonl")] == [0.5, 0.6]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_with_the_step(tmp_path, value):
    """Epoch, step and process are named, and where the last good weights are; those are still the good ones."""
    with pytest.raises(FloatingPointError, match=r"epoch 2, step 2 \(process 0\); the weights .*last\.pt"):
        run(Scripted([1, 1, 1, value]), tmp_path / "later", epochs=3, steps_per_epoch=2)
    last = torch.load(tmp_path / "later" / "last.pt", weights_only=True)
    assert last["epoch"] == 1
    assert last["model"]["weight"][0].item() == pytest.approx(-0.2)
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 1 .*nothing is saved yet"):
        run(Scripted([value]), tmp_path / "first")


def test_an_epoch_whose_metric_is_nan_is_never_the_best(tmp_path, caplog):
    """Batch statistics of few steps can make a validation overflow: the run warns and goes on."""
    values = [math.nan, 2.0, math.nan, 3.0]
    metrics = run(Scripted(), tmp_path / "a", lambda method, epoch: {"a": values[epoch]}, epochs=4, monitor="val_a")
    assert metrics["epoch"] == 2
    assert [r.getMessage() for r in caplog.records] == [f"val_a is NaN after epoch {epoch}" for epoch in (1, 3)]
    with pytest.raises(FloatingPointError, match="--monitor val_a was not finite after any epoch"):
        run(Scripted(), tmp_path / "b", lambda method, epoch: {"a": math.nan}, epochs=2, monitor="val_a")


def test_draws_in_the_method_follow_from_epoch_step_and_process(tmp_path):
    """Every step draws something else, and the same again in a second run."""
    draws = []

    class Drawing(Scripted):
        def forward(self, batch):
            draws.append(torch.rand(()).item())
            return super().forward(batch)

    for name in ("a", "b"):
        run(Drawing(), tmp_path / name, epochs=2, steps_per_epoch=3)
    assert draws[:6] == draws[6:]
    assert len(set(draws)) == 6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_runs_on_a_cpu(tmp_path, precision):
    """Close to float32: the loss of each epoch within 0.05, where one epoch moves it by more than 0.1."""
    losses = {}
    for name in ("fp32", precision):
        toy_run.main(["--out", str(tmp_path / name), "--plain", "--epochs", "3", "--precision", name])
        losses[name] = [line["loss"] for line in read_log(tmp_path / name / "log.jsonl")]
    assert losses[precision] == pytest.approx(losses["fp32"], abs=0.05)
    assert losses[precision] != losses["fp32"]
    assert losses[precision][2] < losses[precision][0] - 0.2
    weights = torch.load(tmp_path / precision / "last.pt", weights_only=True)["model"]
    assert {v.dtype for v in weights.values()} == {torch.float32}


def test_what_a_machine_or_network_cannot_do_is_refused(tmp_path):
    """SyncBN without GPUs and NHWC for volumes are said before the run, not ignored."""
    with pytest.raises(OptionError, match="--sync-bn needs GPUs, but this run is on cpu"):
        run(Scripted(), tmp_path, sync_bn=True)
    method = Scripted()
    method.volume = nn.Conv3d(1, 1, 3)
    with pytest.raises(OptionError, match="--channels-last is for 2D networks"):
        run(method, tmp_path, channels_last=True)
    with pytest.raises(OptionError, match="3D convolutions have wrong gradients in bfloat16"):
        run(method, tmp_path, precision="bf16")
    with pytest.raises(OptionError, match=r"8 sample\(s\) do not fill one step"):
        run(Scripted(), tmp_path, batch_size=16)
    assert not tmp_path.joinpath("last.pt").exists()


class Share(Dataset):
    """Numbers 0 to 4, of which a process sees every second."""

    def __init__(self) -> None:
        self.values = list(range(distributed.rank(), 5, distributed.world()))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index) -> torch.Tensor:
        return torch.tensor(float(self.values[index]))


class Square(nn.Module):
    """Mean square of a batch."""

    def forward(self, batch):
        return {"loss": batch.square().mean()}


@pytest.mark.slow
def test_validation_means_count_every_sample_once(tmp_path):
    """Uneven last batches and uneven shares of two processes: the mean of 0, 1, 4, 9, 16 is 6 each time."""

    def work():
        processes = distributed.Processes(distributed.rank(), distributed.world(), torch.device("cpu"))
        return mean_losses(Square(), DataLoader(Share(), 2), processes)

    assert work() == {"loss": 6.0}
    assert gloo.run(work, 2, tmp_path) == [{"loss": 6.0}] * 2
    with pytest.raises(OptionError, match="validation set is empty"):
        mean_losses(Square(), [], ONE)


@pytest.mark.slow
def test_processes_agree_on_the_metric_that_decides(tmp_path):
    """A validation that differs between processes is averaged, so both stop after the same epoch."""

    def work():
        processes = distributed.Processes(distributed.rank(), 2, torch.device("cpu"))
        args = TrainArgs(
            data="", out=str(tmp_path / "run"), batch_size=4, epochs=9, patience=1, monitor="val_a", schedule="constant"
        )
        own = [[5.0, 4.0, 9.0], [5.0, 6.0, 9.0]][processes.rank]
        return fit(Scripted(), Numbers(), args, processes=processes, validate=lambda method, epoch: {"a": own[epoch]})

    first, second = gloo.run(work, 2, tmp_path / "group")
    assert first == second
    assert [line["epoch"] for line in read_log(tmp_path / "run" / "log.jsonl")] == [1, 2]


@pytest.mark.slow
def test_processes_start_with_the_same_buffers(tmp_path):
    """A queue that each process drew for itself is the first one's from the first step on."""

    def work():
        torch.manual_seed(distributed.rank())
        method = Scripted()
        method.register_buffer("queue", torch.randn(3))
        processes = distributed.Processes(distributed.rank(), 2, torch.device("cpu"))
        fit(
            method,
            Numbers(),
            TrainArgs(data="", out=str(tmp_path / "run"), batch_size=4, epochs=1),
            processes=processes,
        )
        return method.queue

    first, second = gloo.run(work, 2, tmp_path / "group")
    assert torch.equal(first, second)


def test_steps_of_an_epoch_are_counted_in_batches():
    """`len` of the batch sampler is what the progress bar shows."""
    args = TrainArgs(data="", out="", batch_size=4, accumulate=2, steps_per_epoch=5)
    assert len(Batches(9, args, ONE)) == 10
