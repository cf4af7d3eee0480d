"""Read pickles without executing anything: interpret the opcodes, build plain values only.

A pickle is a program for a stack machine. Calls are looked up in a table of what checkpoints
consist of: tensors become a `TensorRef`, objects that hold no weights become an `OpaqueObject`, and
any other call is refused by name. Only the standard library is needed.

The time is proportional to the size of the pickle, whatever it shares: each opcode costs a bounded
number of operations, and no value is hashed or compared that is made of other values.
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
    "EMPTY_SET": lambda: OpaqueObject("builtins.set"),
}
TUPLE_OPCODES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MAX_OPCODES = 20_000_000
MAX_ARGUMENTS = 64  # of a call
MAX_DIMENSIONS = 64  # of a tensor, as in torch
MAX_PATH_CHARS = 1_000  # of a dotted name
MAX_INTEGER = 1 << 63  # of a size, stride or offset
MAX_LITERAL = 1 << 256  # of a number; larger ones are dropped
MAX_KEY_INTEGER = 1 << 60  # larger ones may be made to collide in a dict
MAX_SHOWN_ITEMS = 8
MAX_KEY_CHARS = 40
FREE_ITEMS = 1_000_000  # of sequences that calls may copy, whatever the size of the pickle


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


@dataclass(frozen=True, eq=False)
class OtherKey:
    """A key of a dict that is not the name of weights: a tuple or a huge number.

    It equals only itself: hashing a tuple of shared tuples takes exponential time.

    Attributes:
        text: what to show of it.
    """

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class OpaqueObject:
    """A placeholder for an object that holds no weights and was not created."""

    path: str


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRef:
    """Return a tensor from the arguments of torch's function of that name."""
    if isinstance(shape, tuple | list) and len(shape) > MAX_DIMENSIONS:
        raise UnsafePickle(f"a tensor has {len(shape):,} dimensions; at most {MAX_DIMENSIONS} are")
    sequences = isinstance(shape, tuple | list) and isinstance(stride, tuple | list)
    if not isinstance(storage, StorageRef) or not sequences or len(shape) != len(stride):
        raise UnsafePickle("a tensor has an invalid description")
    if not all(type(n) is int and 0 <= n < MAX_INTEGER for n in (offset, *shape, *stride)):
        raise UnsafePickle("a tensor has a size, stride or offset that is not a count")
    return TensorRef(storage, offset, tuple(shape), tuple(stride))


def _rebuild_tensor_of_dtype(
    storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any
) -> TensorRef:
    """Return a tensor of a dtype that has no storage type of its own, such as float8.

    `rest` is (requires_grad, backward_hooks, dtype, ...), and the storage counts bytes.
    """
    dtype = rest[2] if len(rest) > 2 else None
    if not isinstance(storage, StorageRef) or not isinstance(dtype, GlobalRef):
        raise UnsafePickle("a tensor has an invalid description")
    width = BYTES_OF_UNTYPED.get(dtype.path)
    if width is None:
        raise UnsafePickle(f"a tensor has the type {dtype.path}, which is not supported")
    typed = StorageRef(storage.key, dtype.path, storage.numel // width)
    return _rebuild_tensor(typed, offset, shape, stride)


def _build_dict(pairs: Any = ()) -> dict[Any, Any]:
    """Return a dict of (key, value) pairs."""
    result: dict[Any, Any] = {}
    for key, value in pairs:
        _set_item(result, key, value)
    return result


BYTES_OF_UNTYPED = {
    "torch.float8_e4m3fn": 1,
    "torch.float8_e5m2": 1,
    "torch.uint16": 2,
    "torch.uint32": 4,
    "torch.uint64": 8,
}
ALLOWED_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_of_dtype,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "collections.OrderedDict": _build_dict,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _build_dict,
    "torch.Size": lambda shape=(): tuple(shape),
}
BUILTINS = ("builtins", "__builtin__")  # of Python 3 and 2
OPAQUE_TYPES = {
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.Path",
    "datetime.datetime",
    "torch.device",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    "_codecs.encode",
    *(f"{module}.{name}" for module in BUILTINS for name in ("set", "frozenset", "complex")),
    "builtins.slice",
    "collections.Counter",
}
UNSUPPORTED_TENSORS = {
    "torch.serialization._get_layout": "a sparse tensor: save its to_dense()",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor: save its to_dense()",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor: save its to_dense()",
    "torch._utils._rebuild_qtensor": "a quantized tensor: save its dequantize()",
    "torch._utils._rebuild_nested_tensor": "a nested tensor: save its parts",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (on the meta device)",
}


class Unpickler:
    """Interpret one pickle.

    Attributes:
        stack: the values above the last mark.
        metastack: the stacks below each mark.
        memo: values that the pickle refers to again.
        copied: items of sequences that calls have copied; count: opcodes executed.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.metastack: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0
        self.count = 0

    def run(self, file: IO[bytes]) -> Any:
        """Return the value of the pickle at the position of `file`, which is moved past its end.

        Raises:
            UnsafePickle: it asks for something that is not allowed, or is too long.
        """
        for opcode, argument, _ in pickletools.genops(file):
            self.count += 1
            if opcode.name == "STOP":
                return self.stack.pop()
            if self.count > MAX_OPCODES:
                raise UnsafePickle(f"it has more than {MAX_OPCODES:,} opcodes")
            self.execute(opcode.name, argument)
        raise UnsafePickle("its pickle has no end")

    def execute(self, name: str, argument: Any) -> None:
        """Execute one opcode.

        Raises:
            UnsafePickle: no checkpoint needs this opcode.
        """
        if name in LITERAL_OPCODES:
            if isinstance(argument, int) and abs(argument) > MAX_LITERAL:
                argument = OpaqueObject("builtins.int")  # hashed anew each time
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
        if not isinstance(arguments, tuple) or len(arguments) > MAX_ARGUMENTS:
            raise UnsafePickle(f"it calls {path} with invalid arguments")
        if path in ALLOWED_CALLS:
            self.copied += sum(len(a) for a in arguments if isinstance(a, tuple | list | dict))
            if self.copied > FREE_ITEMS + self.count:
                raise UnsafePickle("its calls copy the same values again and again")
            return ALLOWED_CALLS[path](*arguments)
        if path in OPAQUE_TYPES:
            return OpaqueObject(path)
        if path in UNSUPPORTED_TENSORS:
            raise UnsafePickle(f"it holds {UNSUPPORTED_TENSORS[path]}")
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
        """Add values to the list on top of the stack; those of a set are dropped."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, OpaqueObject):
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
    if isinstance(key, tuple) or (isinstance(key, int) and abs(key) >= MAX_KEY_INTEGER):
        key = OtherKey(_describe_key(key))
    elif isinstance(key, OpaqueObject):
        key = OtherKey(f"<{key.path}>")
    elif not isinstance(key, str | int | float | bool | bytes | None):
        raise UnsafePickle(f"a dict has a key of type {type(key).__name__}")
    target[key] = value


def _describe_key(key: tuple[Any, ...] | int) -> str:
    """Return what to show of a key, in a few words."""
    if isinstance(key, int):
        return "a huge number"
    if len(key) <= MAX_SHOWN_ITEMS and all(isinstance(part, int | float | str) for part in key):
        return repr(
            tuple(part[:MAX_SHOWN_ITEMS] if isinstance(part, str) else part for part in key)
        )
    return f"a tuple of {len(key):,} values"


def _push_global(unpickler: Unpickler, argument: str) -> None:
    """Push a global that is named in the opcode."""
    unpickler.stack.append(GlobalRef(argument.replace(" ", ".", 1)))


def _push_stack_global(unpickler: Unpickler, _: Any) -> None:
    """Push a global whose module and name are on the stack."""
    module, name = unpickler.stack[-2:]
    short = all(isinstance(part, str) and len(part) < MAX_PATH_CHARS for part in (module, name))
    if not short:
        raise UnsafePickle("it names a function by something else than a short text")
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
