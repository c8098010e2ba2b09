"""Nodes that stand for what a pickle would make, without its values, and the reasons to refuse one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

LONGEST_AXIS = 1 << 48
"""More numbers than any memory holds, in one direction or in all."""

Node: TypeAlias = Any
"""A plain value, a list, or one of the classes below."""


class PickleProblem(Exception):
    """Why a pickle is not read, as a part of a sentence about the file."""


class Damage(PickleProblem):
    """The pickle is not whole, or not one that torch.save wrote."""


@dataclass(frozen=True, slots=True)
class Named:
    """A function or class of the allow-list."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers that tensors are views of."""

    key: str | int
    item: int
    """Bytes of a number."""
    count: int

    @property
    def size(self) -> int:
        """Bytes of all."""
        return self.item * self.count


@dataclass(frozen=True, slots=True)
class TensorNode:
    """A tensor, by the storage that holds its values."""

    storage: Storage


class TupleNode:
    """A tuple. Its hash costs as much as all values in it, those of inner tuples counted each time they appear."""

    __slots__ = ("depth", "items", "size")

    items: list[Node]
    size: int
    depth: int
    """Levels of nested tuples in it, itself counted."""

    def __init__(self, items: list[Node]) -> None:
        size, depth = 1 + len(items), 0
        for item in items:
            if type(item) is TupleNode:
                size, depth = size + item.size, max(depth, item.depth)
        self.items = items
        self.size = min(size, 1 << 40)
        self.depth = depth + 1


@dataclass(slots=True)
class DictNode:
    """A dictionary: what stands under its names, and how many keys it has in all."""

    named: dict[str, Node] = field(default_factory=dict)
    count: int = 0


@dataclass(frozen=True, slots=True)
class Made:
    """The result of any other allowed call."""

    name: str


def expect(node: Node, kind: type) -> Any:
    """Return the node, if it is of this kind.

    Raises:
        Damage: It is not.
    """
    if type(node) is not kind:
        raise Damage("its pickle is damaged, or not one that torch.save writes")
    return node


def are_sizes(values: tuple[Node, ...]) -> bool:
    """Whether all are whole numbers, not negative, that a size can be."""
    return all(type(value) is int and 0 <= value < LONGEST_AXIS for value in values)


def length(value: Node) -> int:
    """Number of values that a copy of this one takes."""
    if isinstance(value, (str, bytes, list)):
        return len(value)
    if isinstance(value, DictNode):
        return value.count
    return len(value.items) if isinstance(value, TupleNode) else 1
