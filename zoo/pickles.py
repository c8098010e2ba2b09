"""What a pickle that `torch.save` wrote would make, found by walking it and making nothing.

`torch.load(weights_only=True)` runs no code from a file, but it does what the pickle says with the few things it
knows, and a few bytes can have it allocate gigabytes or hash for years. So each pickle is walked first: only the calls
of `_CALLS` are let through, with arguments of the kinds that `torch.save` writes, and each costs no more than its
length. What the tensors need of which storage is known after the walk.
"""

from __future__ import annotations

import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import IO, Any, Protocol, TypeAlias, cast

Node: TypeAlias = Any
"""A plain value, a list, or one of the classes below."""

MOST_STEPS = 5_000_000
"""Steps of a pickle; that of a network of a thousand tensors has 40 000. Five million take some seconds."""
_MOST_REPEATED = 256
"""How often the bytes of a file may stand in its tensors; layers that share their weights repeat some dozen times."""
_MOST_KEYS = 30_000
"""Values inside tuples that serve as keys: their hashes can be made to collide, so that each costs all before it."""
_FREE = 64 << 20
"""Bytes of tensors, and a part in a thousand of it of arguments, that any file may make."""
_LONGEST_AXIS = 1 << 48
_MOST_AXES = 64
_DEEPEST_KEY = 100
_HASHED_BY_VALUE = 1 << 61  # larger whole numbers hash like smaller ones, so that many can be made to collide

_STORAGE = re.compile(r"torch\.(?:storage\.)?(\w*)Storage")
_ITEM_BYTES = {
    **{"ComplexDouble": 16, "Double": 8, "Long": 8, "ComplexFloat": 8, "Float": 4, "Int": 4, "QInt32": 4},
    **{"Half": 2, "BFloat16": 2, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1, "Untyped": 1},
}
_TYPE = re.compile(r"torch\.(?:bool|(?:u?int|b?float|complex)\d+\w*)")
_NUMPY_TYPE = re.compile(r"[<>=|]?[?bBhHiIlLqQefd][1248]?")


class Stream(Protocol):
    """What pickles are read from."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, fewer where the stream ends."""
        ...

    def readline(self) -> bytes:
        """Return what is left of a line."""
        ...

    def tell(self) -> int:
        """Return where the stream stands."""
        ...


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

    def __init__(self, items: list[Node]) -> None:
        inner = [item for item in items if type(item) is TupleNode]
        self.items = items
        self.size = min(1 + len(items) + sum(item.size for item in inner), 1 << 40)
        self.depth = 1 + max((item.depth for item in inner), default=0)


@dataclass(slots=True)
class DictNode:
    """A dictionary: what stands under its names, and how many keys it has in all."""

    named: dict[str, Node] = field(default_factory=dict)
    count: int = 0


@dataclass(frozen=True, slots=True)
class Made:
    """What another allowed call makes."""

    name: str


@dataclass(frozen=True)
class Outline:
    """What a pickle would make."""

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
    walk = _Walk(file_size)
    try:
        root = walk.run(stream)
    except (ValueError, LookupError, TypeError, EOFError) as error:
        raise Damage(f"its pickle is cut short or damaged: {str(error).partition(chr(10))[0][:100]}") from error
    return Outline(root, walk.storages)


class _Walk:
    """A stack machine like the safe reader of torch, that works on nodes in place of objects."""

    def __init__(self, file_size: int) -> None:
        self.storages: dict[str | int, Storage] = {}
        self.stack: list[Node] = []
        self.marks: list[list[Node]] = []
        self.memo: dict[int, Node] = {}
        self.key_cost = 0
        self.arguments = 2 * file_size + (_FREE >> 10)
        self.tensor_bytes = _MOST_REPEATED * file_size + _FREE

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
        if count is None:
            items = self.since_mark()
        else:
            items = [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append(TupleNode(items))

    def append(self, items: list[Node]) -> None:
        _expect(self.stack[-1], list).extend(items)

    def set_items(self, items: list[Node]) -> None:
        target = _expect(self.stack[-1], DictNode)
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.set_item(target, key, value)

    def set_item(self, target: DictNode, key: Node, value: Node) -> None:
        self.hash(key)
        target.count += 1
        if type(key) is str:
            target.named[key] = value

    def hash(self, key: Node) -> None:
        """Let a value be a key, if finding its place among others is cheap."""
        if type(key) is TupleNode:
            self.key_cost += key.size
            if key.depth > _DEEPEST_KEY or self.key_cost > _MOST_KEYS:
                raise PickleProblem("its pickle has nested tuples as keys, too many to hash")
            for item in key.items:
                self.hash(item)
        elif type(key) is int and abs(key) >= _HASHED_BY_VALUE:
            raise PickleProblem("its pickle has a huge number as a key")
        elif isinstance(key, (list, DictNode)):
            raise PickleProblem("its pickle has a list or a dictionary as a key")
        elif isinstance(key, Made):
            raise PickleProblem(f"its pickle has a key made by {key.name}")

    def find_global(self, argument: str) -> None:
        name = plain_name(argument)
        if not is_harmless(name):
            raise PickleProblem(f"its pickle asks for {name}")
        self.stack.append(Named(name))

    def persistent(self, _: object) -> None:
        items = _expect(self.stack.pop(), TupleNode).items
        kind, storage_type, key, location, count = items[:5]
        view = items[5] if len(items) == 6 else None
        known = _STORAGE.fullmatch(_expect(storage_type, Named).name)
        item = _ITEM_BYTES.get(known[1]) if known else None
        is_plain = isinstance(key, (str, int)) and isinstance(location, str) and type(count) is int
        if kind != "storage" or item is None or not is_plain or not 0 <= count < _LONGEST_AXIS or len(items) > 6:
            raise PickleProblem("its pickle asks for something else than the storage of a tensor")
        storage = self.storages.setdefault(key, Storage(key, item, count))
        if storage != Storage(key, item, count):
            raise PickleProblem(f"its pickle gives the storage {key!r:.40} two sizes")
        if view is not None:
            _, offset, length = _expect(view, TupleNode).items
            if not _are_sizes((offset, length)) or offset + length > count:
                raise PickleProblem(f"a part of the storage {key!r:.40} lies outside of it")
            storage = Storage(key, item, length)
        self.stack.append(storage)

    def reduce(self, _: object) -> None:
        arguments = self.stack.pop()
        self.stack.append(self.call(self.stack.pop(), arguments))

    def call(self, function: Node, arguments: Node) -> Node:
        name, items = _expect(function, Named).name, _expect(arguments, TupleNode).items
        if name not in _CALLS:
            raise PickleProblem(f"it holds {_FOREIGN.get(name, f'what a call of {name} makes')}, not plain tensors")
        self.copy(*items)
        return _CALLS[name](self, *items)

    def copy(self, *values: Node) -> None:
        """Count what the values take when they are copied."""
        self.arguments -= sum(map(_length, values))
        if self.arguments < 0:
            raise PickleProblem("its pickle copies more than the file holds")

    def build(self, _: object) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, DictNode):
            self.attributes(OrderedDict, state)
        elif isinstance(target, TensorNode):
            self.parameter_state(state)
        elif target == Made("argparse.Namespace"):
            self.copy(_expect(state, DictNode))
        elif target == Made("numpy.dtype"):
            items = _expect(state, TupleNode).items
            if len(items) < 8 or any(each is not None for each in items[2:5]) or items[5:8] != [-1, -1, 0]:
                raise PickleProblem("it holds a type of NumPy that is no plain number")
        else:
            raise PickleProblem("its pickle sets attributes of what has none")

    def attributes(self, kind: type, state: Node) -> None:
        """Let an object have attributes of its own, if they hide none of its class."""
        slots = _expect(state, TupleNode).items if isinstance(state, TupleNode) else [state]
        for names in (_expect(each, DictNode) for each in slots if each is not None):
            self.copy(names)
            if len(names.named) < names.count:  # one key twice, or keys that are no text
                raise PickleProblem("its pickle sets attributes that are not named by text")
            if hidden := next((name for name in names.named if hasattr(kind, name)), None):
                raise PickleProblem(f"its pickle replaces {hidden!r:.40} of a {kind.__name__}")

    def parameter_state(self, state: Node) -> None:
        """What PyTorch before 0.4 wrote behind a parameter, or attributes."""
        if isinstance(state, TupleNode) and len(state.items) == 3 and isinstance(state.items[0], bool):
            _expect(state.items[2], DictNode)
        else:
            self.tensor_attributes(state)

    def tensor_attributes(self, state: Node) -> None:
        import torch

        self.attributes(torch.nn.Parameter, state)

    def tensor(self, storage: Node, offset: Node, shape: Node, strides: Node, item: int) -> TensorNode:
        """A view of a storage, if it lies inside."""
        sizes, steps = _expect(shape, TupleNode).items, _expect(strides, TupleNode).items
        if not _are_sizes((offset, *sizes, *steps)) or len(sizes) != len(steps) or len(sizes) > _MOST_AXES:
            raise Damage("it has a tensor whose shape is none")
        if prod(max(size, 1) for size in sizes) >= _LONGEST_AXIS:
            raise PickleProblem("it has a tensor of more numbers than a memory can hold")
        count, available = prod(sizes), _expect(storage, Storage).size
        last = offset + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True)) if count else offset - 1
        if (last + 1) * item > available:
            raise Damage("it has a tensor that reaches beyond its storage")
        self.tensor_bytes -= count * item
        if self.tensor_bytes < 0:
            raise PickleProblem("its tensors repeat the same few values too often")
        return TensorNode(storage)


def _expect(node: Node, kind: type) -> Any:
    if type(node) is not kind:
        raise Damage("its pickle is damaged, or not one that torch.save writes")
    return node


def _are_sizes(values: tuple[Node, ...]) -> bool:
    return all(type(value) is int and 0 <= value < _LONGEST_AXIS for value in values)


def _length(value: Node) -> int:
    if isinstance(value, (str, bytes, list)):
        return len(value)
    if isinstance(value, DictNode):
        return value.count
    return len(value.items) if isinstance(value, TupleNode) else 1


def plain_name(argument: str) -> str:
    """The name of a function or class from the argument of the step that asks for it, as Python 3 has it."""
    return argument.replace(" ", ".", 1).replace("__builtin__.", "builtins.", 1)


def is_harmless(name: str) -> bool:
    """Whether a pickle may ask for this function or class."""
    return bool(name in _CALLS or name in _FOREIGN or _VALUES.fullmatch(name) or _STORAGE.fullmatch(name))


def _dictionary(walk: _Walk, pairs: Node = None) -> DictNode:
    made = DictNode()
    for pair in () if pairs is None else _expect(pairs, list):
        key, value = pair.items if isinstance(pair, TupleNode) else _expect(pair, list)
        walk.set_item(made, key, value)
    return made


def _counter(walk: _Walk, counts: Node = None) -> DictNode:
    return DictNode() if counts is None else DictNode(count=_expect(counts, DictNode).count)


def _set(walk: _Walk, items: Node = None) -> Made:
    for item in () if items is None else _expect(items, list):
        walk.hash(item)
    return Made("set")


def _encode(walk: _Walk, text: Node, encoding: Node = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise PickleProblem("its pickle encodes text in another way than bytes are stored")
    encoded: bytes = _expect(text, str).encode("latin-1")
    return encoded


def _bytearray(walk: _Walk, content: Node = "", encoding: Node = "latin-1") -> Made:
    if encoding != "latin-1" or not isinstance(content, (str, bytes)):
        raise PickleProblem("its pickle asks for a bytearray of a size, not of bytes")
    return Made("bytearray")


def _plain(name: str) -> Callable[..., Made]:
    """A call with a few plain values."""

    def make(walk: _Walk, *values: Node) -> Made:
        if len(values) > 3 or not all(isinstance(v, (str, int, float)) and _length(v) < 100 for v in values):
            raise PickleProblem(f"its pickle calls {name} with other values than torch.save writes")
        return Made(name)

    return make


def _numpy_type(walk: _Walk, code: Node, *flags: Node) -> Made:
    if not _NUMPY_TYPE.fullmatch(_expect(code, str)) or not all(isinstance(flag, (bool, int)) for flag in flags):
        raise PickleProblem(f"it holds NumPy's type {code!r:.40}, which is no plain number")
    return Made("numpy.dtype")


def _numpy_number(walk: _Walk, kind: Node, content: Node) -> Made:
    if kind != Made("numpy.dtype") or not isinstance(content, bytes) or len(content) > 16:
        raise PickleProblem("it holds a value of NumPy that is no plain number")
    return Made("a number of NumPy")


def _tensor(walk: _Walk, storage: Node, offset: Node, shape: Node, strides: Node, *rest: Node) -> TensorNode:
    return walk.tensor(storage, offset, shape, strides, _expect(storage, Storage).item)


def _typed_tensor(walk: _Walk, *items: Node) -> TensorNode:
    storage, offset, shape, strides, _, _, kind = items[:7]
    return walk.tensor(storage, offset, shape, strides, _type_bytes(kind))


def _type_bytes(kind: Node) -> int:
    import torch

    name = _expect(kind, Named).name
    found = getattr(torch, name.removeprefix("torch."), None) if _TYPE.fullmatch(name) else None
    if not isinstance(found, torch.dtype):
        raise PickleProblem(f"it has a tensor of {name}, a type that this PyTorch does not know")
    return found.itemsize


def _parameter(walk: _Walk, tensor: Node, grad: Node = True, hooks: Node = None, state: Node = None) -> TensorNode:
    walk.tensor_attributes(state)
    found: TensorNode = _expect(tensor, TensorNode)
    return found


def _tensor_of_class(walk: _Walk, function: Node, kind: Node, items: Node, state: Node) -> TensorNode:
    if _expect(kind, Named).name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        raise PickleProblem(f"it holds a tensor of the class {kind.name}")
    walk.tensor_attributes(state)
    found: TensorNode = _expect(walk.call(function, items), TensorNode)
    return found


def _shape(walk: _Walk, sizes: Node = None) -> TupleNode:
    found: TupleNode = TupleNode([]) if sizes is None else _expect(sizes, TupleNode)
    return found


_VALUES = re.compile(_TYPE.pattern + r"|torch\.Tensor|numpy\.dtypes\.\w+DType")
"""What is no call: types, and the class that a tensor with attributes names."""
_CALLS: dict[str, Callable[..., Node]] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _plain("complex"),
    "_codecs.encode": _encode,
    "argparse.Namespace": _plain("argparse.Namespace"),
    "torch.Size": _shape,
    "torch.device": _plain("torch.device"),
    "torch.serialization._get_layout": _plain("torch.layout"),
    "torch.nn.parameter.Parameter": _parameter,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_class,
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray.scalar": _numpy_number,
    "numpy._core.multiarray.scalar": _numpy_number,
}
_FOREIGN = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (of the meta device)",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a subclass",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of another device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}
"""Functions that run nothing of the file, but make what is not a plain tensor in memory."""
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
