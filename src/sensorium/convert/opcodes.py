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

PLAIN = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
         "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
         "BINBYTES8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MOST = 20_000_000                                       # opcodes


class Refused(ValueError):
    """What the pickle asks for is not done."""


@dataclass(frozen=True)
class Global:
    """The name of something in a module; never imported."""

    path: str


@dataclass(frozen=True)
class Storage:
    """Numbers in a row, in the archive under `key`."""

    key: str
    kind: str                                           # FloatStorage, ...
    numel: int


@dataclass(frozen=True)
class Lying:
    """A tensor: where in a storage its numbers lie, counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Other:
    """An object that is no weight; it was not made."""

    path: str


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Lying:
    counts = all(type(n) is int and n >= 0 for n in (offset, *shape, *stride))
    if not isinstance(storage, Storage) or not counts or len(shape) != len(stride):
        raise Refused("a tensor is described wrongly")
    return Lying(storage, offset, tuple(shape), tuple(stride))


def _items(pairs: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for pair in pairs:
        key, value = pair
        _put(made, key, value)
    return made


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor, "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "collections.OrderedDict": _items, "collections.defaultdict": lambda *_: {}, "builtins.dict": _items,
    "torch.Size": lambda shape=(): tuple(shape)}
OTHERS = {"argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.Path", "datetime.datetime",
          "torch.device", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
          "_codecs.encode", "builtins.set", "builtins.slice", "collections.Counter"}


class Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []                # stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        """The value of the pickle that begins where `file` stands, which is left behind its end."""
        for done, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "STOP":
                return self.stack.pop()
            if done > MOST:
                raise Refused(f"more than {MOST:,} opcodes")
            self.step(opcode.name, argument)
        raise Refused("it does not end")

    def step(self, name: str, argument: Any) -> None:
        """Do one opcode. Raises Refused for one that no checkpoint needs."""
        if name in PLAIN:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in TUPLES:
            self.stack[-TUPLES[name]:] = [tuple(self.stack[-TUPLES[name]:])]
        elif name in STEPS:
            STEPS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"it uses the opcode {name}, which no checkpoint needs")

    def marked(self) -> list[Any]:
        """What lies above the last mark, taken off."""
        above, self.stack = self.stack, self.below.pop()
        return above

    def gather(self, kind: Callable[[list[Any]], Any]) -> None:
        """What lies above the last mark, as one value."""
        values = self.marked()
        self.stack.append(kind(values))

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def call(self, kind: Any, arguments: Any) -> Any:
        """What a call gives, if it is in the table."""
        path = kind.path if isinstance(kind, Global) else type(kind).__name__
        if path in CALLS:
            return CALLS[path](*arguments)
        if path in OTHERS:
            return Other(path)
        raise Refused(f"it asks for {path} to be called; only tensors, numbers, words and their lists and dicts are "
                      "read. A model saved whole has to be saved again as model.state_dict()")

    def reduce(self) -> None:
        kind, arguments = self.stack[-2:]
        self.stack[-2:] = [self.call(kind, arguments)]

    def build(self) -> None:
        """The state of a dict (torch's _metadata) or of what is no weight is left out."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict | Other):
            raise Refused("it sets the state of something that has none")

    def add(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list | set):
            raise Refused("it adds to something that is no list")
        for value in values:
            target.append(value) if isinstance(target, list) else target.add(value)

    def set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Other):
            return
        if not isinstance(target, dict) or len(values) % 2:
            raise Refused("it sets items of something that is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            _put(target, key, value)

    def stored(self) -> None:
        """torch's persistent ids: ("storage", kind, key, device, numel, ...)."""
        given = self.stack.pop()
        match given:
            case ("storage", Global(path), str(key), _, int(numel), *view) if view in ([], [None]):
                self.stack.append(Storage(key, path.rpartition(".")[2], numel))
            case _:
                raise Refused("a storage is described in an unknown way")


def _put(made: dict[Any, Any], key: Any, value: Any) -> None:
    if not isinstance(key, str | int | float | bool | bytes | tuple | None):
        raise Refused(f"a dict has a {type(key).__name__} for a key")
    made[key] = value


def _global(machine: Machine, argument: str) -> None:
    machine.stack.append(Global(argument.replace(" ", ".", 1)))


def _stack_global(machine: Machine, _: Any) -> None:
    module, name = machine.stack[-2:]
    machine.stack[-2:] = [Global(f"{module}.{name}")]


STEPS: dict[str, Callable[[Machine, Any], Any]] = {
    "MARK": lambda m, _: m.mark(), "POP": lambda m, _: m.stack.pop(), "POP_MARK": lambda m, _: m.marked(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "TUPLE": lambda m, _: m.gather(tuple), "LIST": lambda m, _: m.gather(list),
    "DICT": lambda m, _: m.gather(lambda values: _items(zip(values[::2], values[1::2], strict=True))),
    "FROZENSET": lambda m, _: m.gather(lambda values: Other("builtins.frozenset")),
    "APPEND": lambda m, _: m.add([m.stack.pop()]), "APPENDS": lambda m, _: m.add(m.marked()),
    "ADDITEMS": lambda m, _: m.add(m.marked()),
    "SETITEM": lambda m, _: m.set([m.stack.pop(-2), m.stack.pop()]), "SETITEMS": lambda m, _: m.set(m.marked()),
    "GLOBAL": _global, "STACK_GLOBAL": _stack_global, "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.reduce(), "BUILD": lambda m, _: m.build(), "BINPERSID": lambda m, _: m.stored(),
    **{name: lambda m, at: m.memo.__setitem__(at, m.stack[-1]) for name in ("PUT", "BINPUT", "LONG_BINPUT")},
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    **{name: lambda m, at: m.stack.append(m.memo[at]) for name in ("GET", "BINGET", "LONG_BINGET")}}
