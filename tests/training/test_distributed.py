"""What processes do together: gathering with and without gradient, averages, joining."""

from __future__ import annotations

from itertools import chain

import gloo
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from zoo.errors import OptionError
from zoo.training import distributed
from zoo.training.args import TrainArgs
from zoo.training.finetune import train_and_test


def nt_xent(first, second, temperature=0.2):
    """NT-Xent of two views, written from its formula: 2N anchors, each against all others."""
    z = F.normalize(torch.cat([first, second]), dim=1)
    similarity = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(similarity, torch.arange(len(z)).roll(len(first)))


def own_rows(x):
    return x.chunk(distributed.world())[distributed.rank()]


@pytest.mark.slow
def test_gather_keeps_rank_order_and_values_whatever_the_memory_layout(tmp_path):
    """Rows come in rank order; an NHWC or transposed tensor is not scrambled on the way."""
    x = torch.arange(4 * 3 * 5 * 2, dtype=torch.float32).view(4, 3, 5, 2)

    def work():
        mine = own_rows(x)
        nhwc = mine.contiguous(memory_format=torch.channels_last)
        return [distributed.gather(mine), distributed.gather(nhwc), distributed.gather(mine.mT).mT]

    for gathered in chain(*gloo.run(work, 2, tmp_path)):
        assert torch.equal(gathered, x)


@pytest.mark.slow
def test_gathered_contrastive_loss_trains_as_in_one_process(tmp_path):
    """NT-Xent over the embeddings of two processes: after DDP's mean the gradient is that of one process.

    Both for the embeddings (divided by the number of processes, as DDP's mean does later) and for the weights of a
    network under DDP. Tolerance: float32 sums of a few dozen terms in another order, far below 1e-5 relative.
    """
    torch.manual_seed(0)
    network, x, y = nn.Linear(10, 6), torch.randn(8, 10), torch.randn(8, 10)
    first, second = network(x), network(y)
    first.retain_grad()
    nt_xent(first, second).backward()
    expected, embedding_grad = [p.grad.clone() for p in network.parameters()], first.grad
    network.zero_grad()

    def work():
        wrapped = DistributedDataParallel(network)
        both = wrapped(torch.cat([own_rows(x), own_rows(y)]))
        both.retain_grad()
        views = [distributed.gather_with_gradient(half) for half in both.chunk(2)]
        loss = nt_xent(*views)
        loss.backward()
        return [loss.detach(), both.grad.chunk(2)[0], *(p.grad for p in network.parameters())]

    results = gloo.run(work, 2, tmp_path)
    assert all(torch.allclose(r[0], nt_xent(first, second), rtol=1e-6) for r in results)
    torch.testing.assert_close(torch.cat([r[1] for r in results]) / 2, embedding_grad, rtol=1e-5, atol=1e-7)
    for result in results:
        torch.testing.assert_close(result[2:], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_gather_with_gradient_leaves_the_gradient_of_other_branches_alone(tmp_path):
    """A sum hands the same gradient tensor to both its terms: adding over processes must not write into it."""

    def work():
        z, other = torch.ones(2, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
        doubled = 2 * other  # made before the gathering, so that its gradient is computed after the gathering's
        (distributed.gather_with_gradient(z) + doubled).backward(torch.full((4, 3), distributed.rank() + 1.0))
        return [z.grad, other.grad]

    for rank, (own, other) in enumerate(gloo.run(work, 2, tmp_path)):
        assert torch.equal(own, torch.full((2, 3), 3.0))
        assert torch.equal(other, torch.full((4, 3), 2 * (rank + 1.0)))


@pytest.mark.slow
def test_mean_counts_each_process_by_its_samples(tmp_path):
    """3 samples with mean 1 and 1 sample with mean 5 have mean 2; broadcast gives everyone the first one's tensor."""

    def work():
        here = distributed.rank()
        mean = distributed.mean({"loss": [1.0, 5.0][here], "other": 4.0}, [3, 1][here], torch.device("cpu"))
        distributed.barrier()
        return [mean, distributed.broadcast(torch.tensor([here + 7])), distributed.world()]

    for mean, sent, world in gloo.run(work, 2, tmp_path):
        assert mean == {"loss": 2.0, "other": 4.0}
        assert sent.item() == 7
        assert world == 2


@pytest.mark.slow
def test_a_group_ends_while_its_threads_wait_for_pythons_lock(tmp_path):
    """A run of processes on CPUs would not end: gloo's thread needs the lock to free a tensor that Python gave up."""

    def work():
        torch.distributed.all_reduce(torch.ones(1), async_op=True)
        distributed.stop()
        return torch.distributed.is_initialized()

    assert gloo.run(work, 2, tmp_path) == [False, False]


def test_one_process_needs_no_group():
    """Without torchrun every operation is the identity, and a gathered tensor has no gradient."""
    processes = distributed.start("cpu")
    x = torch.ones(2, 3, requires_grad=True)
    assert (processes.rank, processes.world, processes.device.type, processes.is_main) == (0, 1, "cpu", True)
    assert distributed.gather_with_gradient(x) is x
    assert torch.equal(distributed.gather(x), x)
    assert not distributed.gather(x).requires_grad
    assert distributed.broadcast(x) is x
    assert distributed.mean({"a": 1.5}, 3, processes.device) == {"a": 1.5}
    distributed.stop()


def test_devices_that_do_not_exist_are_refused(monkeypatch):
    """A wrong word, or CUDA on a machine without it, says so."""
    with pytest.raises(OptionError, match=r"cpu, cuda or auto, not 'tpu'"):
        distributed.start("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="no usable GPU"):
        distributed.start("cuda")
    assert distributed.start("auto").device.type == "cpu"


class Apart(nn.Module):
    """Learns nothing but the statistics of its batches, which differ from process to process."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, batch):
        return {"loss": self.norm(batch["image"] + distributed.rank()).square().mean()}


class Ones(torch.utils.data.Dataset):
    """Four samples."""

    def __len__(self):
        return 4

    def __getitem__(self, key):
        return {"image": torch.ones(1)}


@pytest.mark.slow
def test_what_is_judged_after_an_epoch_is_what_is_saved(tmp_path):
    """Each process judged its part of the validation set with batch statistics of its own."""
    args = TrainArgs(data="", out=str(tmp_path / "run"), epochs=1, batch_size=4, workers=0, lr=0.01)

    def work():
        method, judged = Apart(), []

        def evaluate(part, epoch):
            judged.append(method.norm.running_mean.item())
            return {"loss": 0.0}

        processes = distributed.Processes(distributed.rank(), 2, torch.device("cpu"))
        train_and_test(method, {"train": Ones(), "val": Ones()}, evaluate, args, processes, header={})
        return judged

    first, second = gloo.run(work, 2, tmp_path)
    assert first == second
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    assert first == [saved["norm.running_mean"].item()]
