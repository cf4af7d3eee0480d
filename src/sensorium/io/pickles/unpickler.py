"""A reader of pickles that executes nothing: it follows the opcodes and makes plain values, and no others.

A pickle is a program for a machine with a stack. Here calls are a table of what checkpoints are made of: tensors
become a description of where their numbers lie, an object that holds no weights becomes `Other`, and whatever else is
asked for is refused by name. The standard library alone is needed.
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
MAX_OPCODES = 20_000_000  # opcodes


class UnsafePickle(ValueError):
    """What the pickle asks for is not done."""


@dataclass(frozen=True)
class GlobalRef:
    """The name of something in a module; never imported."""

    path: str


@dataclass(frozen=True)
class StorageRef:
    """Numbers in a row, in the archive under `key`."""

    key: str
    type_name: str  # FloatStorage, ...
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A tensor: where in a storage its numbers lie, counted in numbers."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class OpaqueObject:
    """An object that is no weight; it was not made."""

    path: str


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRef:
    counts = all(type(n) is int and n >= 0 for n in (offset, *shape, *stride))
    if not isinstance(storage, StorageRef) or not counts or len(shape) != len(stride):
        raise UnsafePickle("a tensor is described wrongly")
    return TensorRef(storage, offset, tuple(shape), tuple(stride))


def _build_dict(pairs: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for pair in pairs:
        key, value = pair
        _set_item(made, key, value)
    return made


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
    """The stack, the marks and the memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.metastack: list[list[Any]] = []  # stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        """The value of the pickle that begins where `file` stands, which is left behind its end."""
        for done, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "STOP":
                return self.stack.pop()
            if done > MAX_OPCODES:
                raise UnsafePickle(f"more than {MAX_OPCODES:,} opcodes")
            self.execute(opcode.name, argument)
        raise UnsafePickle("it does not end")

    def execute(self, name: str, argument: Any) -> None:
        """Do one opcode. Raises Refused for one that no checkpoint needs."""
        if name in LITERAL_OPCODES:
            self.stack.append(argument)
        elif name in CONSTANT_OPCODES:
            self.stack.append(CONSTANT_OPCODES[name])
        elif name in EMPTY_OPCODES:
            self.stack.append(EMPTY_OPCODES[name]())
        elif name in TUPLE_OPCODES:
            self.stack[-TUPLE_OPCODES[name] :] = [tuple(self.stack[-TUPLE_OPCODES[name] :])]
        elif name in OPCODE_HANDLERS:
            OPCODE_HANDLERS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise UnsafePickle(f"it uses the opcode {name}, which no checkpoint needs")

    def pop_mark(self) -> list[Any]:
        """What lies above the last mark, taken off."""
        above, self.stack = self.stack, self.metastack.pop()
        return above

    def push_collection(self, factory: Callable[[list[Any]], Any]) -> None:
        """What lies above the last mark, as one value."""
        values = self.pop_mark()
        self.stack.append(factory(values))

    def mark(self) -> None:
        self.metastack.append(self.stack)
        self.stack = []

    def call(self, callee: Any, arguments: Any) -> Any:
        """What a call gives, if it is in the table."""
        path = callee.path if isinstance(callee, GlobalRef) else type(callee).__name__
        if path in ALLOWED_CALLS:
            return ALLOWED_CALLS[path](*arguments)
        if path in OPAQUE_TYPES:
            return OpaqueObject(path)
        raise UnsafePickle(
            f"it asks for {path} to be called; only tensors, numbers, words and their lists and dicts are "
            "read. A model saved whole has to be saved again as model.state_dict()"
        )

    def reduce(self) -> None:
        kind, arguments = self.stack[-2:]
        self.stack[-2:] = [self.call(kind, arguments)]

    def build(self) -> None:
        """The state of a dict (torch's _metadata) or of what is no weight is left out."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict | OpaqueObject):
            raise UnsafePickle("it sets the state of something that has none")

    def add_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list | set):
            raise UnsafePickle("it adds to something that is no list")
        for value in values:
            target.append(value) if isinstance(target, list) else target.add(value)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, OpaqueObject):
            return
        if not isinstance(target, dict) or len(values) % 2:
            raise UnsafePickle("it sets items of something that is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            _set_item(target, key, value)

    def push_storage(self) -> None:
        """torch's persistent ids: ("storage", kind, key, device, numel, ...)."""
        given = self.stack.pop()
        match given:
            case ("storage", GlobalRef(path), str(key), _, int(numel), *view) if view in (
                [],
                [None],
            ):
                self.stack.append(StorageRef(key, path.rpartition(".")[2], numel))
            case _:
                raise UnsafePickle("a storage is described in an unknown way")


def _set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    if not isinstance(key, str | int | float | bool | bytes | tuple | None):
        raise UnsafePickle(f"a dict has a {type(key).__name__} for a key")
    target[key] = value


def _push_global(unpickler: Unpickler, argument: str) -> None:
    unpickler.stack.append(GlobalRef(argument.replace(" ", ".", 1)))


def _push_stack_global(unpickler: Unpickler, _: Any) -> None:
    module, name = unpickler.stack[-2:]
    unpickler.stack[-2:] = [GlobalRef(f"{module}.{name}")]


OPCODE_HANDLERS: dict[str, Callable[[Unpickler, Any], Any]] = {
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "TUPLE": lambda m, _: m.push_collection(tuple),
    "LIST": lambda m, _: m.push_collection(list),
    "DICT": lambda m, _: m.push_collection(
        lambda values: _build_dict(zip(values[::2], values[1::2], strict=True))
    ),
    "FROZENSET": lambda m, _: m.push_collection(lambda values: OpaqueObject("builtins.frozenset")),
    "APPEND": lambda m, _: m.add_items([m.stack.pop()]),
    "APPENDS": lambda m, _: m.add_items(m.pop_mark()),
    "ADDITEMS": lambda m, _: m.add_items(m.pop_mark()),
    "SETITEM": lambda m, _: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "GLOBAL": _push_global,
    "STACK_GLOBAL": _push_stack_global,
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.reduce(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.push_storage(),
    **{
        name: lambda m, at: m.memo.__setitem__(at, m.stack[-1])
        for name in ("PUT", "BINPUT", "LONG_BINPUT")
    },
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    **{name: lambda m, at: m.stack.append(m.memo[at]) for name in ("GET", "BINGET", "LONG_BINGET")},
}
