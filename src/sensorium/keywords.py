"""What a recipe takes, read from its file and never run: `train clip --help` and a slip of the pen cost no torch."""
import ast
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from sensorium.errors import SensoriumError

RECIPES = Path(__file__).parent / "recipes"
PLAIN = {"int": int, "float": float, "bool": bool, "str": str}


@dataclass(frozen=True)
class Keyword:
    """One option: `default` is a value, or the text of an expression where the file does not state one."""

    name: str
    type: Any
    default: Any
    doc: str = ""


@dataclass(frozen=True)
class Taken:
    """A recipe as its file describes it."""

    name: str                               # what the command line calls it: clip, ./mine.py:recipe
    doc: str                                # its docstring, without the keywords
    own: tuple[Keyword, ...]
    loop: tuple[Keyword, ...]               # fields of Training, with the recipe's own defaults

    @property
    def line(self) -> str:
        """The first line of its docstring."""
        return self.doc.split("\n", 1)[0]


def shipped(asked: str = "*") -> dict[str, Taken]:
    """Sensorium's own recipes: functions `(schema: Schema, ...) -> Recipe` in the files of recipes/, one a family.

    asked: only the file of that name is read, if it is there.
    """
    paths = [path for path in sorted(RECIPES.glob("*.py")) if path.stem == asked] or sorted(RECIPES.glob("*.py"))
    found = (f for path in paths for f in _parse(path).body if isinstance(f, ast.FunctionDef))
    return {f.name: _taken(f.name, f) for f in found if _annotations(f) == ("Schema", "Recipe")}


def read(where: str) -> Taken:
    """The recipe FILE:FUNCTION. Raises SensoriumError where there is none, or it is no recipe."""
    path, function = _place(where)
    there = {f.name: f for f in _parse(path).body if isinstance(f, ast.FunctionDef)}
    if function not in there:
        raise SensoriumError(f"{path} has no function {function!r}; it has {', '.join(there) or 'none'}.")
    f = there[function]
    if not f.args.posonlyargs + f.args.args or len(f.args.posonlyargs + f.args.args) > 1 + len(f.args.defaults):
        raise SensoriumError(f"{path}: {function} is no recipe: its one positional parameter must be the schema, as in "
                             f"def {function}(schema: Schema, *, dim: int = 256) -> Recipe.")
    return _taken(where, f)


def made(where: str) -> Callable[..., Any]:
    """The recipe itself: one of ours by name, or FILE:FUNCTION, whose file is run because the user named it."""
    from sensorium.recipes import RECIPES as ours
    if is_file(where):
        read(where)
        path, function = _place(where)
        return getattr(_run(path), function)
    if where not in ours:
        raise SensoriumError(f"there is no recipe {where!r}; there is {', '.join(ours)}, or ./mine.py:recipe.")
    return ours[where]


def use(path: str) -> None:
    """Run a Python file of the user's own, which adds what it defines. Raises SensoriumError where it is none."""
    if not path.endswith(".py") or not Path(path).is_file():
        raise SensoriumError(f"--use {path}: there is no such Python file.")
    _parse(Path(path))
    _run(Path(path))


def is_file(where: str) -> bool:
    """Whether it is written as FILE:FUNCTION."""
    return ".py" in where


def _place(where: str) -> tuple[Path, str]:
    path, colon, function = where.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise SensoriumError(f"a recipe of your own is named FILE:FUNCTION, as in ./mine.py:recipe; this is {where!r}.")
    if not Path(path).is_file():
        raise SensoriumError(f"there is no file {path} to take the recipe {function!r} from.")
    return Path(path), function


def _run(path: Path) -> Any:
    spec = spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = sys.modules[path.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as e:
        raise SensoriumError(f"{path} is not Python: {e}.") from e


def _annotations(f: ast.FunctionDef) -> tuple[str, str]:
    """(type of the first parameter, type of the result), as written."""
    first = f.args.args[0].annotation if f.args.args else None
    return ast.unparse(first) if first else "", ast.unparse(f.returns) if f.returns else ""


def _taken(name: str, f: ast.FunctionDef) -> Taken:
    doc, _, arguments = (ast.get_docstring(f) or "").partition("\nArgs:\n")
    docs = _documented(arguments)
    own = tuple(Keyword(a.arg, _type(a.annotation), _value(default), docs.get(a.arg, ""))
                for a, default in zip(f.args.kwonlyargs, f.args.kw_defaults, strict=True))
    calls = (n for n in ast.walk(f) if isinstance(n, ast.Call) and ast.unparse(n.func) == "Training")
    set_here: Mapping[str | None, Any] = {k.arg: _value(k.value) for call in calls for k in call.keywords}
    loop = tuple(replace(k, default=set_here.get(k.name, k.default)) for k in training())
    return Taken(name, doc.strip(), own, loop)


@cache
def training() -> tuple[Keyword, ...]:
    """The fields of Training, each documented by the comment behind it."""
    path = RECIPES / "recipe.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    settings = next(c for c in _parse(path).body if isinstance(c, ast.ClassDef) and c.name == "Training")
    fields = [f for f in settings.body if isinstance(f, ast.AnnAssign)]
    docs = [lines[f.lineno - 1].partition("# ")[2] for f in fields]
    return tuple(Keyword(ast.unparse(f.target), _type(f.annotation), _value(f.value), doc)
                 for f, doc in zip(fields, docs, strict=True))


def _documented(arguments: str) -> dict[str, str]:
    """{name: text} of the lines `name: text` under Args; a line indented further goes on."""
    docs: dict[str, str] = {}
    name, edge = "", len(arguments) - len(arguments.lstrip())
    for line in filter(str.strip, arguments.splitlines()):
        if line[:edge + 1].isspace():
            docs[name] = f"{docs.get(name, '')} {line.strip()}"
        else:
            name, _, docs[name] = (part.strip() for part in line.partition(":"))
    return docs


def _value(node: ast.expr | None) -> Any:
    """The value of a literal; of any other expression its text, to be shown only."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node) if node else None


def _type(node: ast.expr | None) -> Any:
    """int, float, bool, str, None, unions of them, Literal; str for whatever else."""
    match node:
        case ast.Constant(value=None):
            return NoneType
        case ast.Constant(value=str(text)):
            return _type(ast.parse(text, mode="eval").body)
        case ast.Name(id=name):
            return PLAIN.get(name, str)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _type(left) | _type(right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            values = ast.literal_eval(choices)
            return Literal[values if isinstance(values, tuple) else (values,)]
    return str
