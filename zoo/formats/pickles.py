"""Walks a pickle that `torch.save` wrote and outlines what it would make, making nothing.

`torch.load(weights_only=True)` runs no code from a file, but it does what the pickle says with the few things it
knows, and a few bytes can have it allocate gigabytes or hash for years. So each pickle is walked first: only the calls
that `pickle_calls` knows are let through, with arguments of the kinds that `torch.save` writes, and each costs no
more than its length. What the tensors need of which storage is known after the walk.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Protocol, cast

from zoo.formats.pickle_calls import Maker, is_harmless, plain_name
from zoo.formats.pickle_nodes import (
    Damage,
    DictNode,
    Made,
    Named,
    Node,
    PickleProblem,
    Storage,
    TensorNode,
    TupleNode,
    expect,
)

MOST_STEPS = 2_000_000
"""Steps of a pickle; that of a network of a thousand tensors has 40 000. Two million take some seconds."""


class Stream(Protocol):
    """A stream that pickles are read from."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, fewer where the stream ends."""
        ...

    def readline(self) -> bytes:
        """Return what is left of a line."""
        ...

    def tell(self) -> int:
        """Return where the stream stands."""
        ...


@dataclass(frozen=True)
class Outline:
    """The objects that a pickle would make."""

    root: Node
    storages: Mapping[str | int, Storage]

    def storage_keys(self, containers: tuple[str, ...]) -> dict[str, str | int]:
        """Keys of the storages of the tensors in a dictionary, by their names.

        Args:
            containers: Keys that lead to it from the top.
        """
        node = self.root
        for key in containers:
            node = node.named[key] if isinstance(node, DictNode) else None
        named = node.named if isinstance(node, DictNode) else {}
        return {name: tensor.storage.key for name, tensor in named.items() if isinstance(tensor, TensorNode)}


def outline(stream: Stream, file_size: int) -> Outline:
    """Walk one pickle, to its end.

    Args:
        stream: Stands at its start.
        file_size: Bytes of the file that it is in, against which sizes are judged.

    Raises:
        PickleProblem: It is damaged, or asks for more than tensors and plain values of a sane size.
    """
    maker = Maker(file_size)
    try:
        root = _Walk(maker).run(stream)
    except (ValueError, LookupError, TypeError, EOFError) as error:
        raise Damage(f"its pickle is cut short or damaged: {str(error).partition(chr(10))[0][:100]}") from error
    return Outline(root, maker.storages)


class _Walk:
    """A stack machine like the safe reader of torch, that works on nodes in place of objects."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker
        self.stack: list[Node] = []
        self.marks: list[list[Node]] = []
        self.memo: dict[int, Node] = {}

    def run(self, stream: Stream) -> Node:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", stream))):
            if step > MOST_STEPS:
                raise PickleProblem(f"its pickle has more than {MOST_STEPS} steps, too many for a checkpoint")
            name = opcode.name
            if name in _PUSHED:
                self.stack.append(argument)
            elif name in _MADE:
                self.stack.append(_MADE[name]())
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name not in ("PROTO", "STOP"):
                raise PickleProblem(f"its pickle has the step {name}, which torch.save does not write")
        return self.stack.pop()

    def mark(self, _: object) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Node]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def tuple_of(self, count: int | None) -> None:
        items = self.since_mark() if count is None else [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append(TupleNode(items))

    def append(self, items: list[Node]) -> None:
        expect(self.stack[-1], list).extend(items)

    def set_items(self, items: list[Node]) -> None:
        target = expect(self.stack[-1], DictNode)
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.maker.set_item(target, key, value)

    def find_global(self, argument: str) -> None:
        name = plain_name(argument)
        if not is_harmless(name):
            raise PickleProblem(f"its pickle asks for {name}")
        self.stack.append(Named(name))

    def persistent(self, _: object) -> None:
        self.stack.append(self.maker.storage(self.stack.pop()))

    def reduce(self, _: object) -> None:
        arguments = self.stack.pop()
        self.stack.append(self.maker.call(self.stack.pop(), arguments))

    def build(self, _: object) -> None:
        state = self.stack.pop()
        self.maker.build(self.stack[-1], state)


_PUSHED = frozenset({"BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "BINUNICODE", "SHORT_BINSTRING"})
_MADE: dict[str, Callable[[], Node]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": lambda: TupleNode([]),
    "EMPTY_LIST": list,
    "EMPTY_DICT": DictNode,
    "EMPTY_SET": lambda: Made("set"),
}
_STEPS: dict[str, Callable[[_Walk, Any], None]] = {
    "MARK": _Walk.mark,
    "BINPUT": _Walk.put,
    "LONG_BINPUT": _Walk.put,
    "BINGET": _Walk.get,
    "LONG_BINGET": _Walk.get,
    "TUPLE": lambda walk, _: walk.tuple_of(None),
    "TUPLE1": lambda walk, _: walk.tuple_of(1),
    "TUPLE2": lambda walk, _: walk.tuple_of(2),
    "TUPLE3": lambda walk, _: walk.tuple_of(3),
    "APPEND": lambda walk, _: walk.append([walk.stack.pop()]),
    "APPENDS": lambda walk, _: walk.append(walk.since_mark()),
    "SETITEM": lambda walk, _: walk.set_items([walk.stack.pop(), walk.stack.pop()][::-1]),
    "SETITEMS": lambda walk, _: walk.set_items(walk.since_mark()),
    "GLOBAL": _Walk.find_global,
    "BINPERSID": _Walk.persistent,
    "REDUCE": _Walk.reduce,
    "NEWOBJ": _Walk.reduce,
    "BUILD": _Walk.build,
}
