"""Read pickles without executing anything: interpret the opcodes, build plain values only.

A pickle is a program for a stack machine. Calls are looked up in a table of what checkpoints
consist of: tensors become a `TensorRef`, objects that hold no weights become an `OpaqueObject`, and
any other call is refused by name. Only the standard library is needed.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

LITERAL_OPCODES = {
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
}
CONSTANT_OPCODES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY_OPCODES: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
TUPLE_OPCODES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MAX_OPCODES = 20_000_000


class UnsafePickle(ValueError):  # noqa: N818 - the name says what is wrong
    """A pickle asks for something that is not allowed."""


@dataclass(frozen=True)
class GlobalRef:
    """The dotted name of a module's attribute; never imported."""

    path: str


@dataclass(frozen=True)
class StorageRef:
    """A storage: a flat array of values in the archive.

    Attributes:
        key: its name in the archive.
        type_name: FloatStorage, ...
        numel: number of values.
    """

    key: str
    type_name: str
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A tensor: a view of a storage; offset and stride count values, not bytes."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class OpaqueObject:
    """A placeholder for an object that holds no weights and was not created."""

    path: str


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRef:
    """Return a tensor from the arguments of torch's function of that name."""
    counts = all(type(n) is int and n >= 0 for n in (offset, *shape, *stride))
    if not isinstance(storage, StorageRef) or not counts or len(shape) != len(stride):
        raise UnsafePickle("a tensor has an invalid description")
    return TensorRef(storage, offset, tuple(shape), tuple(stride))


def _build_dict(pairs: Any = ()) -> dict[Any, Any]:
    """Return a dict of (key, value) pairs."""
    result: dict[Any, Any] = {}
    for key, value in pairs:
        _set_item(result, key, value)
    return result


ALLOWED_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "collections.OrderedDict": _build_dict,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _build_dict,
    "torch.Size": lambda shape=(): tuple(shape),
}
OPAQUE_TYPES = {
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.Path",
    "datetime.datetime",
    "torch.device",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "_codecs.encode",
    "builtins.set",
    "builtins.slice",
    "collections.Counter",
}


class Unpickler:
    """Interpret one pickle.

    Attributes:
        stack: the values above the last mark.
        metastack: the stacks below each mark.
        memo: values that the pickle refers to again.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.metastack: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        """Return the value of the pickle at the position of `file`, which is moved past its end.

        Raises:
            UnsafePickle: it asks for something that is not allowed, or is too long.
        """
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "STOP":
                return self.stack.pop()
            if count > MAX_OPCODES:
                raise UnsafePickle(f"it has more than {MAX_OPCODES:,} opcodes")
            self.execute(opcode.name, argument)
        raise UnsafePickle("its pickle has no end")

    def execute(self, name: str, argument: Any) -> None:
        """Execute one opcode.

        Raises:
            UnsafePickle: no checkpoint needs this opcode.
        """
        if name in LITERAL_OPCODES:
            self.stack.append(argument)
        elif name in CONSTANT_OPCODES:
            self.stack.append(CONSTANT_OPCODES[name])
        elif name in EMPTY_OPCODES:
            self.stack.append(EMPTY_OPCODES[name]())
        elif name in TUPLE_OPCODES:
            size = TUPLE_OPCODES[name]
            self.stack[-size:] = [tuple(self.stack[-size:])]
        elif name in OPCODE_HANDLERS:
            OPCODE_HANDLERS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise UnsafePickle(f"it uses the opcode {name}, which no checkpoint needs")

    def pop_mark(self) -> list[Any]:
        """Remove and return the values above the last mark."""
        values = self.stack
        self.stack = self.metastack.pop()
        return values

    def push_collection(self, factory: Callable[[list[Any]], Any]) -> None:
        """Replace the values above the last mark with one collection of them."""
        values = self.pop_mark()
        self.stack.append(factory(values))

    def mark(self) -> None:
        """Push a mark."""
        self.metastack.append(self.stack)
        self.stack = []

    def call(self, callee: Any, arguments: Any) -> Any:
        """Return the result of a call.

        Raises:
            UnsafePickle: the callee is not in the table.
        """
        path = callee.path if isinstance(callee, GlobalRef) else type(callee).__name__
        if path in ALLOWED_CALLS:
            return ALLOWED_CALLS[path](*arguments)
        if path in OPAQUE_TYPES:
            return OpaqueObject(path)
        raise UnsafePickle(
            f"it calls {path}, and only tensors, numbers, text, lists and dicts are read. If the "
            "whole model was saved, save model.state_dict() instead"
        )

    def reduce(self) -> None:
        """Replace a callee and its arguments with the result of the call."""
        callee, arguments = self.stack[-2:]
        self.stack[-2:] = [self.call(callee, arguments)]

    def build(self) -> None:
        """Drop the state of a dict (torch's _metadata) or of an opaque object."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict | OpaqueObject):
            raise UnsafePickle("it sets the state of a plain value")

    def add_items(self, values: list[Any]) -> None:
        """Add values to the list or set on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, set):
            target.update(values)
        else:
            raise UnsafePickle("it adds items to a value that is not a list or set")

    def set_items(self, values: list[Any]) -> None:
        """Set alternating keys and values of the dict on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, OpaqueObject):
            return
        if not isinstance(target, dict) or len(values) % 2:
            raise UnsafePickle("it sets items of a value that is not a dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            _set_item(target, key, value)

    def push_storage(self) -> None:
        """Push the storage of a persistent id: ("storage", kind, key, device, numel, ...)."""
        persistent_id = self.stack.pop()
        match persistent_id:
            case ("storage", GlobalRef(path), str(key), _, int(numel)):
                self.stack.append(StorageRef(key, path.rpartition(".")[2], numel))
            case ("storage", GlobalRef(path), str(key), _, int(numel), None):
                self.stack.append(StorageRef(key, path.rpartition(".")[2], numel))
            case _:
                raise UnsafePickle("a storage has an unknown description")


def _set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    """Set an item whose key has a plain type."""
    if not isinstance(key, str | int | float | bool | bytes | tuple | None):
        raise UnsafePickle(f"a dict has a key of type {type(key).__name__}")
    target[key] = value


def _push_global(unpickler: Unpickler, argument: str) -> None:
    """Push a global that is named in the opcode."""
    unpickler.stack.append(GlobalRef(argument.replace(" ", ".", 1)))


def _push_stack_global(unpickler: Unpickler, _: Any) -> None:
    """Push a global whose module and name are on the stack."""
    module, name = unpickler.stack[-2:]
    unpickler.stack[-2:] = [GlobalRef(f"{module}.{name}")]


OPCODE_HANDLERS: dict[str, Callable[[Unpickler, Any], Any]] = {
    "MARK": lambda u, _: u.mark(),
    "POP": lambda u, _: u.stack.pop(),
    "POP_MARK": lambda u, _: u.pop_mark(),
    "DUP": lambda u, _: u.stack.append(u.stack[-1]),
    "TUPLE": lambda u, _: u.push_collection(tuple),
    "LIST": lambda u, _: u.push_collection(list),
    "DICT": lambda u, _: u.push_collection(
        lambda values: _build_dict(zip(values[::2], values[1::2], strict=True))
    ),
    "FROZENSET": lambda u, _: u.push_collection(lambda _: OpaqueObject("builtins.frozenset")),
    "APPEND": lambda u, _: u.add_items([u.stack.pop()]),
    "APPENDS": lambda u, _: u.add_items(u.pop_mark()),
    "ADDITEMS": lambda u, _: u.add_items(u.pop_mark()),
    "SETITEM": lambda u, _: u.set_items([u.stack.pop(-2), u.stack.pop()]),
    "SETITEMS": lambda u, _: u.set_items(u.pop_mark()),
    "GLOBAL": _push_global,
    "STACK_GLOBAL": _push_stack_global,
    "REDUCE": lambda u, _: u.reduce(),
    "NEWOBJ": lambda u, _: u.reduce(),
    "BUILD": lambda u, _: u.build(),
    "BINPERSID": lambda u, _: u.push_storage(),
    **{
        name: lambda u, index: u.memo.__setitem__(index, u.stack[-1])
        for name in ("PUT", "BINPUT", "LONG_BINPUT")
    },
    "MEMOIZE": lambda u, _: u.memo.__setitem__(len(u.memo), u.stack[-1]),
    **{
        name: lambda u, index: u.stack.append(u.memo[index])
        for name in ("GET", "BINGET", "LONG_BINGET")
    },
}
