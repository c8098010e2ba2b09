"""timm's vocabulary for networks of other libraries: stages, head, and activations that are computed again.

One class has it, so that every network takes the same arguments and means the same by them. A network says what its
stages are, what follows them, and how its head is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from zoo.checkpoint import ATTRIBUTE, LoadReport
from zoo.errors import OptionError
from zoo.messages import first_names

log = logging.getLogger("zoo")

FeatureInfo: TypeAlias = list[dict[str, Any]]
"""For each stage `num_chs`, its channels; `reduction`, the voxels along a side of a cell; `module`, what makes it."""
Intermediates: TypeAlias = "list[Tensor] | tuple[Tensor, list[Tensor]]"

_UNDECAYED = ("position_embeddings", "relative_position_bias_table")
"""Last words of the names of parameters that stand for positions."""
_RESET = "reset_classifier"


class Vocabulary(nn.Module):
    """What timm's networks can be asked for, beside `forward` and `forward_features`."""

    num_features: int
    """Channels of what the head takes: of a pooled feature, or of a U-Net's last map."""
    num_classes: int | None
    """Outputs of the head; 0 without one, None for a network that restores its input."""
    head_name: str
    """Name of the module that makes the outputs."""
    pooled_by: str | None = "avg"
    """timm's word for how features are pooled; None where they are maps."""
    grad_checkpointing = False

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each stage, shallow to deep."""
        raise self._unsaid("feature_info")

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the map of each stage, shallow to deep, as the next stage takes it."""
        raise self._unsaid("stages")

    def normalised(self, found: Tensor) -> Tensor:
        """Return the map of a stage as the network's last norm leaves it; the map itself where there is none."""
        return found

    def finish(self, maps: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        """Return what `forward_features` does, from the maps of all stages."""
        return self.normalised(maps[-1])

    def make_head(self, num_classes: int) -> None:
        """Put a new head in the place of the present one; 0 for none."""
        raise self._unsaid("make_head")

    def _unsaid(self, name: str) -> NotImplementedError:
        """The error for what each network says itself. Modules have no metaclass that would tell when one is made."""
        return NotImplementedError(f"{type(self).__name__} does not say its {name}")

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = True,
    ) -> Intermediates:
        """Return the maps `(N, C, *space)` of the stages, shallow to deep; `feature_info` describes them.

        The arguments are timm's, and so are their defaults but the last.

        Args:
            x: As `forward` takes it.
            indices: Which stages: the last n, those of a list, negative ones counted from the end, or all of them.
            norm: Whether to apply the network's last norm to each, in transformers.
            stop_early: Whether to leave out the stages behind the last one wanted. The features of a tuple need them.
            output_fmt: `"NCHW"`, the only one, which also stands for `(N, C, D, H, W)`.
            intermediates_only: False for the tuple of what `forward_features` returns and the list.

        Raises:
            InputContractError: As `forward`.
            OptionError: There is no such stage or format.
        """
        return self.collect((x,), indices, norm, stop_early, output_fmt, intermediates_only)

    def collect(
        self,
        inputs: tuple[Tensor, ...],
        indices: int | Sequence[int] | None,
        norm: bool,
        stop_early: bool,
        output_fmt: str,
        intermediates_only: bool,
    ) -> Intermediates:
        """Return what `forward_intermediates` does, for a network of any number of inputs."""
        if output_fmt != "NCHW":
            raise OptionError(f"output_fmt={output_fmt!r}: expected 'NCHW', (N, C, *space)")
        wanted = stages_wanted(indices, len(self.feature_info))
        maps, chosen = [], []
        for number, found in enumerate(self.stages(*inputs)):
            if number in wanted:
                chosen.append(self.normalised(found) if norm else found)
            if intermediates_only and stop_early and number == max(wanted):
                break
            if not intermediates_only:
                maps.append(found)
        return chosen if intermediates_only else (self.finish(maps, *inputs), chosen)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """Return the module that makes the outputs, `nn.Identity` where there is no head.

        Args:
            name_only: Whether to return its name.
        """
        return self.head_name if name_only else self.get_submodule(self.head_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one with random weights; a projection head goes, too. The report says so.

        Args:
            num_classes: Outputs; 0 for no head, with which `forward` returns features, or a U-Net's last maps.
            global_pool: timm's word for how features are pooled, or None. It cannot be changed here.

        Raises:
            OptionError: The network cannot have so many outputs, or cannot pool so.
        """
        if global_pool not in (None, self.pooled_by):
            only = f"{self.pooled_by!r} or None" if self.pooled_by else "None, because the outputs are maps,"
            raise OptionError(f"global_pool={global_pool!r}: {only} is expected of {type(self).__name__}")
        with resetting(self, num_classes, self.head_name):
            like, kept = next(self.parameters()), set(self.modules())
            self.make_head(num_classes)
            self.num_classes = num_classes
            for module in set(self.modules()) - kept:
                module.to(like.device, like.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them, or keep them.

        Losses and gradients stay the same, and the statistics of batch norms are counted once.

        Args:
            enable: Whether to compute them again.
        """
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that stand for positions; biases and norms are for the optimiser to tell."""
        return {name for name, _ in self.named_parameters() if name.endswith(_UNDECAYED)}

    def recomputed(self, part: Callable[..., Any], *inputs: Any) -> Any:
        """Return `part(*inputs)`; with checkpointing nothing within it is kept for the backward pass."""
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return part(*inputs)
        return checkpoint(part, *inputs, use_reentrant=False, context_fn=self._contexts)

    def recomputed_each(self, layers: nn.Sequential, x: Tensor) -> Tensor:
        """Return `layers(x)`; with checkpointing each layer's input is kept for the backward pass, and no more."""
        if not self.grad_checkpointing:
            whole: Tensor = layers(x)
            return whole
        for layer in layers:
            x = self.recomputed(layer, x)
        return x

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _uncounted(self)


def describe(channels: Iterable[int], reductions: Iterable[int], modules: Iterable[str]) -> FeatureInfo:
    """Return the `feature_info` of stages.

    Args:
        channels: Of their maps.
        reductions: Pixels or voxels of the input along a side of a cell.
        modules: Names of the modules that make them.
    """
    rows = zip(channels, reductions, modules, strict=True)
    return [{"num_chs": count, "reduction": step, "module": name} for count, step, name in rows]


def last_of(maps: Iterable[Tensor]) -> Tensor:
    """Return the last of the maps that an iterator makes one by one, without keeping the others."""
    found = None
    for found in maps:  # noqa: B007
        pass
    assert found is not None
    return found


def stages_wanted(indices: int | Sequence[int] | None, count: int) -> set[int]:
    """Return the numbers of the stages that timm's `indices` mean.

    Args:
        indices: The last n, those of a list, negative ones counted from the end, or None for all of them.
        count: Stages that there are.

    Raises:
        OptionError: One is not there.
    """
    if isinstance(indices, int):
        if 0 < indices <= count:
            return set(range(count - indices, count))
        raise OptionError(f"indices={indices}: the last 1 to {count} stages are there; one of them is indices=[i]")
    wanted = list(range(count)) if indices is None else list(indices)
    if not wanted or any(i not in range(-count, count) for i in wanted):
        raise OptionError(f"indices={indices!r}: stages from {-count} to {count - 1} are expected, at least one")
    return {i % count for i in wanted}


@contextmanager
def resetting(network: nn.Module, num_classes: int, head_name: str) -> Iterator[None]:
    """Have the report of a network, where it has one, say what becomes of its parts where the block puts a new head.

    What was loaded and goes beside the old head is warned of.

    Args:
        network: Any of the zoo, also one of timm's with timm's own method.
        num_classes: Outputs of the new head.
        head_name: Name of the module that makes them.

    Raises:
        OptionError: No network can have so many outputs; timm's methods build nonsense for some of these numbers.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise OptionError(f"num_classes={num_classes!r}: expected a whole number, 0 for no head")
    kept = set(network.modules())
    yield
    new = tuple(f"{name}." for name, module in network.named_modules() if module not in kept)
    report = getattr(network, ATTRIBUTE, None)
    if isinstance(report, LoadReport):
        changed = _without_old_head(report, network, new, num_classes)
        setattr(network, ATTRIBUTE, changed)
        gone = [name for name in changed.dropped.keys() - report.dropped.keys() if not name.startswith(f"{head_name}.")]
        if gone:
            said = "reset_classifier(%d) of %s leaves out, beside the head, what was loaded: %s"
            log.warning(said, num_classes, report.model, first_names(sorted(gone)))


def _without_old_head(report: LoadReport, network: nn.Module, new: tuple[str, ...], num_classes: int) -> LoadReport:
    """Return the report of a network whose parts with these prefixes are not what was loaded."""
    own = network.state_dict()
    loaded, adapted, fresh = (
        {name: why for name, why in part.items() if name in own and not name.startswith(new)}
        for part in (report.loaded, report.adapted, report.fresh)
    )
    fresh |= dict.fromkeys((name for name in own if name.startswith(new)), _RESET)
    dropped = report.dropped | dict.fromkeys((report.loaded | report.adapted).keys() - own, _RESET)
    options, said_by = dict(report.options), dict(report.said_by)
    if "num_classes" in options:
        options["num_classes"], said_by["num_classes"] = num_classes, _RESET
    return replace(
        report, loaded=loaded, adapted=adapted, fresh=fresh, dropped=dropped, options=options, said_by=said_by
    )


@contextmanager
def _uncounted(network: nn.Module) -> Iterator[None]:
    """Have batch norms in training leave their running statistics as they are: they have counted this batch already."""
    counting = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    kept = [(module, module.momentum, module.num_batches_tracked) for module in counting]
    for module in counting:
        module.momentum, module.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for module, momentum, count in kept:
            module.momentum, module.num_batches_tracked = momentum, count
