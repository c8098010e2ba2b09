"""Fills a network with a converted state dict: strict coverage, adapted and fresh parts, and the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zoo.checkpoint.building import make_fresh
from zoo.checkpoint.coverage import check_coverage, group_of, is_counter, shape_text
from zoo.checkpoint.keys import reason_unused
from zoo.checkpoint.report import AS_STORED, HEAD_MISFIT, LoadReport
from zoo.checkpoint.values import as_counts
from zoo.errors import OptionError
from zoo.formats import as_float32, other_float

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoo.entry import Entry, State


def adapt_input_channels(weight: Tensor, channels: int, axis: int = 1) -> Tensor:
    """Change the number of input channels of a convolution so that a grey image gives the same response.

    Args:
        weight: `(O, I, *kernel)`, in any number of dimensions.
        channels: Summed over I for one channel; repeated and scaled by I / channels for more.
        axis: Where I stands.

    Raises:
        OptionError: `channels` is not positive.
    """
    if channels < 1:
        raise OptionError(f"in_channels={channels}: expected 1 or more")
    present = weight.shape[axis]
    if channels == 1:
        return weight.sum(dim=axis, keepdim=True)
    index = (slice(None),) * axis + ([i % present for i in range(channels)],)
    return weight[index] * (present / channels)


def load_into(
    model: nn.Module,
    state: State,
    entry: Entry,
    *,
    read: Callable[[State], State] = as_float32,
    projection: bool = False,
) -> LoadReport:
    """Fill a network, built on the meta device or not, with a converted state dict. Strict: all or an error.

    Parts of the head may be missing or not fit, and a group that the entry does not require may be missing as a whole;
    such parts get fresh values. Everything else must be there, and nothing may be there that the network does not have.

    Args:
        model: The network; its tensors are replaced, not copied into.
        state: In the network's names; emptied on the way, so that no tensor is in memory twice.
        entry: Says what is required, what is left out on purpose, and how fresh parts start.
        read: Returns tensors with their values in float32; called after everything was checked.
        projection: Whether the head is a projection head that was asked for, and so required.

    Raises:
        CheckpointMismatchError: The file does not fill the network, or does not belong to it.
        CheckpointFormatError: A value is beyond the range of float32.
    """
    own = model.state_dict(keep_vars=True)
    report = LoadReport(entry.name, dropped=set_aside(own, state, entry, keep_head=projection))
    check_coverage(own, state, entry, head_required=projection)
    _sort_out(own, state, entry, report)
    values = read(state)
    as_counts(values)
    for stem in report.adapted:
        channels = own[stem].shape[entry.stem_axis]
        values[stem] = adapt_input_channels(values[stem], channels, entry.stem_axis)
    make_fresh(model, report.fresh, entry)
    current = model.state_dict(keep_vars=True) if report.fresh else own
    model.load_state_dict({name: values.get(name, current[name]) for name in own}, strict=True, assign=True)
    return report


def set_aside(own: State, state: State, entry: Entry, *, keep_head: bool = False) -> dict[str, str]:
    """Take out of a state dict what is left out on purpose, and the parts of a head that do not fit the network's.

    Args:
        own: Tensors of the network.
        state: Tensors of the file, in the network's names; changed in place.
        entry: Says what is left out, and where the head is.
        keep_head: Whether the head must stay, fitting or not.

    Returns:
        The names that were taken out, and why.
    """
    dropped = {n: why for n in state if n not in own and (why := reason_unused(n, entry.unused))}
    for name in dropped:
        del state[name]
    if keep_head:
        return dropped
    for part in entry.head:
        theirs = {name: tensor for name, tensor in state.items() if name.startswith(part)}
        if not _other_classes(own, theirs, part):
            continue
        for name in theirs:
            wanted = f"{shape_text(own[name])} in the network" if name in own else "the network has no such head"
            dropped[name] = f"{HEAD_MISFIT}: {shape_text(state.pop(name))} in the file, {wanted}"
    return dropped


def _other_classes(own: State, head: State, prefix: str) -> bool:
    """Whether a file's head is of another kind or for other classes; a mere difference in width is a mismatch."""
    if head.keys() != {name for name in own if name.startswith(prefix)}:
        return bool(head)
    same_width = all(tensor.shape[1:] == own[name].shape[1:] for name, tensor in head.items())
    return same_width and any(tensor.shape != own[name].shape for name, tensor in head.items())


def _sort_out(own: State, state: State, entry: Entry, report: LoadReport) -> None:
    """Note in the report what will come of each tensor of the network."""
    lost = {group_of(name, entry) for name, why in report.dropped.items() if why.startswith(HEAD_MISFIT)}
    for name, target in own.items():
        if name not in state:
            absent = "the file's head does not fit" if group_of(name, entry) in lost else "not in the file"
            report.fresh[name] = "counts from 0" if is_counter(name) else absent
        elif state[name].shape != target.shape:
            there, here = state[name].shape[entry.stem_axis], target.shape[entry.stem_axis]
            report.adapted[name] = f"{there} input channels {'summed to 1' if here == 1 else f'repeated to {here}'}"
        elif is_counter(name) and state[name].is_floating_point():
            report.loaded[name] = f"a count, rounded from {str(state[name].dtype).removeprefix('torch.')}"
        elif kind := other_float(state[name]):
            report.loaded[name] = f"{'narrowed' if kind == 'float64' else 'widened'} from {kind}"
        else:
            report.loaded[name] = AS_STORED
