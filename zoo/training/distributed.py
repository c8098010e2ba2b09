"""The processes of a run: their ranks and devices, and the few collective operations that recipes need.

Everything is read from torchrun's environment, so one process, several GPUs and several nodes run the same code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_group

from zoo.errors import OptionError
from zoo.settings import is_under_torchrun, local_rank


@dataclass(frozen=True)
class Processes:
    """This process among its peers."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes and prints."""
        return self.rank == 0


def start(device: str = "auto") -> Processes:
    """Join torchrun's process group, if there is one, and choose the device.

    Raises:
        OptionError: `device` is not cpu, cuda or auto, or CUDA is asked for and absent.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise OptionError(f"--device must be cpu, cuda or auto, not {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise OptionError("--device cuda: this machine has no usable GPU; give --device cpu")
    chosen = torch.device("cpu")
    if device != "cpu" and torch.cuda.is_available():
        chosen = torch.device("cuda", local_rank())
        torch.cuda.set_device(chosen)
    if is_under_torchrun() and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Processes(rank(), world(), chosen)


def stop() -> None:
    """Leave the process group, if there is one."""
    if not dist.is_initialized():
        return
    # Before torch 2.8 the group's destructor holds Python's lock while it waits for gloo's threads, and these need the
    # lock to free the tensors of the last operation. The backend's own destructor releases the lock; it comes last.
    backend = None
    if torch.__version__ < "2.8" and dist.get_backend() == "gloo":
        backend = _get_default_group()._get_backend(torch.device("cpu"))
    dist.destroy_process_group()
    del backend


def rank() -> int:
    """Number of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def gather(x: Tensor) -> Tensor:
    """Concatenate `x` (N, ...) of all processes along the first axis, in rank order, without gradient."""
    if world() == 1:
        return x.detach()
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(world())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return gather(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        # Every process holds a copy of the loss. This is the gradient of their sum; DDP's mean makes it that of one.
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(world())[rank()]


def gather_with_gradient(x: Tensor) -> Tensor:
    """Concatenate `x` (N, ...) of all processes so that a loss over all of it trains as in one process.

    The gradient that reaches `x` is summed over the processes' copies of the loss; DDP then divides by their number.
    """
    return x if world() == 1 else _Gather.apply(x)


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is true on any process; the same on all."""
    if world() == 1:
        return flag
    count = torch.tensor(int(flag), device=device)
    dist.all_reduce(count)
    return bool(count.item())


@contextmanager
def raising_together() -> Iterator[None]:
    """Raise an error inside the block on all processes, so that none waits for one that has ended.

    Raises:
        Exception: The error of this process.
        OptionError: The error of another process, with its message.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:  # of any kind: the others wait until this process reports it
        own = error
    everyone: list[str | None] = [None] * world()
    if world() > 1:
        dist.all_gather_object(everyone, str(own) if own else None)
    if own:
        raise own
    if words := next(filter(None, everyone), None):
        raise OptionError(words)


def broadcast(x: Tensor) -> Tensor:
    """Overwrite `x` with the first process's values and return it."""
    if world() > 1:
        dist.broadcast(x, src=0)
    return x


def mean(values: Mapping[str, float], weight: float, device: torch.device) -> dict[str, float]:
    """Average metrics over the processes, each counting with its `weight` (its number of samples)."""
    if world() == 1:
        return dict(values)
    total = torch.tensor([*(v * weight for v in values.values()), weight], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(values, (total[:-1] / total[-1]).tolist(), strict=True))
