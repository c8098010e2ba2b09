"""Decides which calls a pickle may make, and counts what they would cost.

The file is long so that all that a pickle may ask for stands in one list, beside the limits on it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from math import prod

from zoo.formats.pickle_nodes import (
    LONGEST_AXIS,
    Damage,
    DictNode,
    Made,
    Named,
    Node,
    PickleProblem,
    Storage,
    TensorNode,
    TupleNode,
    are_sizes,
    expect,
    length,
)

_MOST_REPEATED = 256
"""Times that the bytes of a file may occur in its tensors; layers that share their weights repeat some dozen times."""
_MOST_KEYS = 30_000
"""Values inside tuples that serve as keys: their hashes can be made to collide, so that each costs all before it."""
_FREE = 64 << 20
"""Bytes of tensors, and a part in a thousand of it of arguments, that any file may make."""
_MOST_AXES = 64
_DEEPEST_KEY = 100
_HASHED_BY_VALUE = 1 << 61  # larger whole numbers hash like smaller ones, so that many can be made to collide

_STORAGE = re.compile(r"torch\.(?:storage\.)?(\w*)Storage")
_ITEM_BYTES = {
    **{"ComplexDouble": 16, "Double": 8, "Long": 8, "ComplexFloat": 8, "Float": 4, "Int": 4, "QInt32": 4},
    **{"Half": 2, "BFloat16": 2, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1, "Untyped": 1},
    **{"QInt8": 1, "QUInt8": 1, "QUInt4x2": 1, "QUInt2x4": 1},
}
_TYPE = re.compile(r"torch\.(?:bool|(?:q?u?int|b?float|complex)\d+\w*)")
_NUMPY_TYPE = re.compile(r"[<>=|]?[?bBhHiIlLqQefd][1248]?")


def plain_name(argument: str) -> str:
    """The name of a function or class from the argument of the step that asks for it, as Python 3 has it."""
    return argument.replace(" ", ".", 1).replace("__builtin__.", "builtins.", 1)


def is_harmless(name: str) -> bool:
    """Whether a pickle may ask for this function or class."""
    return bool(name in _CALLS or name in _FOREIGN or _VALUES.fullmatch(name) or _STORAGE.fullmatch(name))


class Maker:
    """Makes nodes for what a pickle calls, and keeps count of what the calls would cost."""

    def __init__(self, file_size: int) -> None:
        self.storages: dict[str | int, Storage] = {}
        self.key_cost = 0
        self.arguments = 2 * file_size + (_FREE >> 10)
        self.tensor_bytes = _MOST_REPEATED * file_size + _FREE

    def storage(self, named: Node) -> Storage:
        """The storage, or part of one, of a persistent name."""
        items = expect(named, TupleNode).items
        kind, storage_type, key, location, count = items[:5]
        view = items[5] if len(items) == 6 else None
        known = _STORAGE.fullmatch(expect(storage_type, Named).name)
        item = _ITEM_BYTES.get(known[1]) if known else None
        is_plain = isinstance(key, (str, int)) and isinstance(location, str) and type(count) is int
        if kind != "storage" or item is None or not is_plain or not 0 <= count < LONGEST_AXIS or len(items) > 6:
            raise PickleProblem("its pickle asks for something else than the storage of a tensor")
        storage = self.storages.setdefault(key, Storage(key, item, count))
        if storage != Storage(key, item, count):
            raise PickleProblem(f"its pickle gives the storage {key!r:.40} two sizes")
        if view is not None:
            _, offset, length = expect(view, TupleNode).items
            if not are_sizes((offset, length)) or offset + length > count:
                raise PickleProblem(f"a part of the storage {key!r:.40} lies outside of it")
            storage = Storage(key, item, length)
        return storage

    def call(self, function: Node, arguments: Node) -> Node:
        """The result of an allowed function."""
        name, items = expect(function, Named).name, expect(arguments, TupleNode).items
        if name not in _CALLS:
            raise PickleProblem(f"it holds {_FOREIGN.get(name, f'what a call of {name} makes')}, not plain tensors")
        self.copy(*items)
        return _CALLS[name](self, *items)

    def copy(self, *values: Node) -> None:
        """Count what the values take when they are copied."""
        self.arguments -= sum(map(length, values))
        if self.arguments < 0:
            raise PickleProblem("its pickle copies more than the file holds")

    def set_item(self, target: DictNode, key: Node, value: Node) -> None:
        """Put a value into a dictionary."""
        self.hash(key)
        target.count += 1
        if type(key) is str:
            target.named[key] = value

    def hash(self, key: Node) -> None:
        """Let a value be a key, if looking it up is cheap."""
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

    def build(self, target: Node, state: Node) -> None:
        """Let an object have the state that the pickle gives it, if it is of a kind that changes nothing else."""
        if isinstance(target, DictNode):
            self.attributes(OrderedDict, state)
        elif isinstance(target, TensorNode):
            self.parameter_state(state)
        elif target == Made("argparse.Namespace"):
            self.copy(expect(state, DictNode))
        elif target == Made("numpy.dtype"):
            items = expect(state, TupleNode).items
            if len(items) < 8 or any(each is not None for each in items[2:5]) or items[5:8] != [-1, -1, 0]:
                raise PickleProblem("it holds a NumPy type that is not a plain number")
        else:
            raise PickleProblem("its pickle sets attributes of an object that takes none")

    def attributes(self, kind: type, state: Node) -> None:
        """Let an object have attributes of its own, if they hide none of its class."""
        slots = expect(state, TupleNode).items if isinstance(state, TupleNode) else [state]
        for names in (expect(each, DictNode) for each in slots if each is not None):
            self.copy(names)
            if len(names.named) < names.count:  # one key twice, or keys that are no text
                raise PickleProblem("its pickle sets attributes that are not named by text")
            if hidden := next((name for name in names.named if hasattr(kind, name)), None):
                raise PickleProblem(f"its pickle replaces {hidden!r:.40} of a {kind.__name__}")

    def parameter_state(self, state: Node) -> None:
        """State that PyTorch before 0.4 wrote behind a parameter, or attributes."""
        if isinstance(state, TupleNode) and len(state.items) == 3 and isinstance(state.items[0], bool):
            expect(state.items[2], DictNode)
        else:
            self.tensor_attributes(state)

    def tensor_attributes(self, state: Node) -> None:
        """Attributes of a tensor, which torch sets one by one."""
        import torch

        self.attributes(torch.nn.Parameter, state)

    def tensor(self, storage: Node, offset: Node, shape: Node, strides: Node, item: int) -> TensorNode:
        """A view of a storage, if it lies inside."""
        sizes, steps = expect(shape, TupleNode).items, expect(strides, TupleNode).items
        if not are_sizes((offset, *sizes, *steps)) or len(sizes) != len(steps) or len(sizes) > _MOST_AXES:
            raise Damage("it has a tensor whose shape is not made of whole numbers")
        if prod(max(size, 1) for size in sizes) >= LONGEST_AXIS:
            raise PickleProblem("it has a tensor of more numbers than a memory can hold")
        count, available = prod(sizes), expect(storage, Storage).size
        last = offset + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True)) if count else offset - 1
        if (last + 1) * item > available:
            raise Damage("it has a tensor that reaches beyond its storage")
        self.tensor_bytes -= count * item
        if self.tensor_bytes < 0:
            raise PickleProblem("its tensors repeat the same few values too often")
        return TensorNode(storage)


def _dictionary(maker: Maker, pairs: Node = None) -> DictNode:
    made = DictNode()
    for pair in () if pairs is None else expect(pairs, list):
        key, value = pair.items if isinstance(pair, TupleNode) else expect(pair, list)
        maker.set_item(made, key, value)
    return made


def _counter(maker: Maker, counts: Node = None) -> DictNode:
    return DictNode() if counts is None else DictNode(count=expect(counts, DictNode).count)


def _set(maker: Maker, items: Node = None) -> Made:
    for item in () if items is None else expect(items, list):
        maker.hash(item)
    return Made("set")


def _encode(maker: Maker, text: Node, encoding: Node = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise PickleProblem("its pickle encodes text in another way than bytes are stored")
    encoded: bytes = expect(text, str).encode("latin-1")
    return encoded


def _bytearray(maker: Maker, content: Node = "", encoding: Node = "latin-1") -> Made:
    if encoding != "latin-1" or not isinstance(content, (str, bytes)):
        raise PickleProblem("its pickle asks for a bytearray of a size, not of bytes")
    return Made("bytearray")


def _plain(name: str) -> Callable[..., Made]:
    """A call with a few plain values."""

    def make(maker: Maker, *values: Node) -> Made:
        if len(values) > 3 or not all(isinstance(v, (str, int, float)) and length(v) < 100 for v in values):
            raise PickleProblem(f"its pickle calls {name} with other values than torch.save writes")
        return Made(name)

    return make


def _numpy_type(maker: Maker, code: Node, *flags: Node) -> Made:
    if not _NUMPY_TYPE.fullmatch(expect(code, str)) or not all(isinstance(flag, (bool, int)) for flag in flags):
        raise PickleProblem(f"it holds NumPy's type {code!r:.40}, which is not a plain number")
    return Made("numpy.dtype")


def _numpy_number(maker: Maker, kind: Node, content: Node) -> Made:
    if kind != Made("numpy.dtype") or not isinstance(content, bytes) or len(content) > 16:
        raise PickleProblem("it holds a NumPy value that is not a plain number")
    return Made("a number of NumPy")


def _tensor(maker: Maker, storage: Node, offset: Node, shape: Node, strides: Node, *rest: Node) -> TensorNode:
    return maker.tensor(storage, offset, shape, strides, expect(storage, Storage).item)


def _typed_tensor(maker: Maker, *items: Node) -> TensorNode:
    storage, offset, shape, strides, _, _, kind = items[:7]
    return maker.tensor(storage, offset, shape, strides, _type_bytes(kind))


def _type_bytes(kind: Node) -> int:
    import torch

    name = expect(kind, Named).name
    found = getattr(torch, name.removeprefix("torch."), None) if _TYPE.fullmatch(name) else None
    if not isinstance(found, torch.dtype):
        raise PickleProblem(f"it has a tensor of {name}, a type that this PyTorch does not know")
    return found.itemsize


def _parameter(maker: Maker, tensor: Node, grad: Node = True, hooks: Node = None, state: Node = None) -> TensorNode:
    maker.tensor_attributes(state)
    found: TensorNode = expect(tensor, TensorNode)
    return found


def _tensor_of_class(maker: Maker, function: Node, kind: Node, items: Node, state: Node) -> TensorNode:
    if expect(kind, Named).name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        raise PickleProblem(f"it holds a tensor of the class {kind.name}")
    maker.tensor_attributes(state)
    found: TensorNode = expect(maker.call(function, items), TensorNode)
    return found


def _shape(maker: Maker, sizes: Node = None) -> TupleNode:
    found: TupleNode = TupleNode([]) if sizes is None else expect(sizes, TupleNode)
    return found


_VALUES = re.compile(_TYPE.pattern + r"|torch\.Tensor|torch\.per_(tensor|channel)_\w+|numpy\.dtypes\.\w+DType")
"""Names that are not called: types, and the class that a tensor with attributes names."""
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
