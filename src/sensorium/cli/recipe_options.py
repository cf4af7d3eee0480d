"""What a recipe takes, read from its file and never run: `train clip --help` and a slip of the pen cost no torch."""

import ast
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

from sensorium.errors import SensoriumError

RECIPES_FOLDER = Path(__file__).parents[1] / "recipes"
BUILTIN_TYPES = {"int": int, "float": float, "bool": bool, "str": str}
NAMES, STRINGS = (
    tuple[str, ...],
    ("str", "(str, ...)", "str, ..."),
)  # of what is given once for each


@dataclass(frozen=True)
class Keyword:
    """One option.

    Attributes:
        name: the keyword.
        type: what a value must be.
        default: its value where none is given; None where `computed` says how it is found.
        doc: its help.
        computed: of a default that is no constant, what it depends on, in words.
    """

    name: str
    type: Any
    default: Any
    doc: str = ""
    computed: str = ""


@dataclass(frozen=True)
class RecipeSignature:
    """A recipe as its file describes it."""

    name: str  # what the command line calls it: clip, ./mine.py:recipe
    doc: str  # its docstring, without the keywords
    model_options: tuple[Keyword, ...]
    training_options: tuple[
        Keyword, ...
    ]  # fields of TrainingConfig, with the recipe's own defaults

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.doc.split("\n", 1)[0]


def builtin_recipes(name: str = "*") -> dict[str, RecipeSignature]:
    """Sensorium's own recipes: functions `(schema: Schema, ...) -> Recipe` in the files of recipes/, one a family.

    name: only the file of that name is read, if it is there.
    """
    paths = [path for path in sorted(RECIPES_FOLDER.glob("*.py")) if path.stem == name] or sorted(
        RECIPES_FOLDER.glob("*.py")
    )
    found = (f for path in paths for f in _parse_file(path).body if isinstance(f, ast.FunctionDef))
    return {f.name: _recipe_signature(f.name, f) for f in found if _is_recipe(f)}


def parse_recipe(spec: str) -> RecipeSignature:
    """The recipe FILE:FUNCTION. Raises SensoriumError where there is none, or it is no recipe."""
    path, function = _split_spec(spec)
    there = {f.name: f for f in _parse_file(path).body if isinstance(f, ast.FunctionDef)}
    if function not in there:
        raise SensoriumError(
            f"{path} has no function {function!r}; it has {', '.join(there) or 'none'}."
        )
    f = there[function]
    if not f.args.posonlyargs + f.args.args or len(f.args.posonlyargs + f.args.args) > 1 + len(
        f.args.defaults
    ):
        raise SensoriumError(
            f"{path}: {function} is no recipe: its one positional parameter must be the schema, as in "
            f"def {function}(schema: Schema, *, dim: int = 256) -> Recipe."
        )
    return _recipe_signature(spec, f)


def resolve_recipe(spec: str) -> Callable[..., Any]:
    """The recipe itself: one of ours by name, or FILE:FUNCTION, whose file is run because the user named it."""
    from sensorium.recipes import RECIPES as ours

    if is_file_spec(spec):
        parse_recipe(spec)
        path, function = _split_spec(spec)
        return getattr(_import_file(path), function)
    if spec not in ours:
        raise SensoriumError(
            f"there is no recipe {spec!r}; there is {', '.join(ours)}, or ./mine.py:recipe."
        )
    return ours[spec]


def run_user_file(path: str) -> None:
    """Run a Python file of the user's own, which adds what it defines. Raises SensoriumError where it is none."""
    if not path.endswith(".py") or not Path(path).is_file():
        raise SensoriumError(f"--use {path}: there is no such Python file.")
    _parse_file(Path(path))
    _import_file(Path(path))


def is_file_spec(spec: str) -> bool:
    """Whether it is written as FILE:FUNCTION."""
    return ".py" in spec


def _split_spec(spec: str) -> tuple[Path, str]:
    path, colon, function = spec.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise SensoriumError(
            f"a recipe of your own is named FILE:FUNCTION, as in ./mine.py:recipe; this is {spec!r}."
        )
    if not Path(path).is_file():
        raise SensoriumError(f"there is no file {path} to take the recipe {function!r} from.")
    return Path(path), function


def _import_file(path: Path) -> Any:
    spec = spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = sys.modules[path.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _parse_file(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as e:
        raise SensoriumError(f"{path} is not Python: {e}.") from e


def _is_recipe(f: ast.FunctionDef) -> bool:
    """Whether it is written as (schema: Schema, ...) -> Recipe, or Recipe[MODEL]."""
    first = f.args.args[0].annotation if f.args.args else None
    result = f.returns.value if isinstance(f.returns, ast.Subscript) else f.returns
    return (
        isinstance(first, ast.Name)
        and isinstance(result, ast.Name)
        and (first.id, result.id) == ("Schema", "Recipe")
    )


def _recipe_signature(name: str, function: ast.FunctionDef) -> RecipeSignature:
    doc, _, arguments = (ast.get_docstring(function) or "").partition("\nArgs:\n")
    docs = _parse_arguments_doc(arguments)
    own = tuple(
        Keyword(a.arg, _annotation_type(a.annotation), _literal_value(default), docs.get(a.arg, ""))
        for a, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    )
    calls = [n for n in ast.walk(function) if isinstance(n, ast.Call)]
    set_here, declared = (
        {k.arg: k.value for call in calls if _called(call) == what for k in call.keywords if k.arg}
        for what in ("TrainingConfig", "training_defaults")
    )
    loop = tuple(_with_default(k, {**set_here, **declared}.get(k.name)) for k in training_options())
    return RecipeSignature(name, doc.strip(), own, loop)


def _called(call: ast.Call) -> str:
    """The last name of what is called."""
    return ast.unparse(call.func).rpartition(".")[2]


def _with_default(field: Keyword, node: ast.expr | None) -> Keyword:
    """A field of TrainingConfig with a recipe's own default: a literal, or a text that says what it depends on."""
    if node is None:
        return field
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return replace(field, default=None, computed="set by the recipe")
    in_words = isinstance(value, str) and value not in get_args(field.type)
    return (
        replace(field, default=None, computed=value) if in_words else replace(field, default=value)
    )


@cache
def training_options() -> tuple[Keyword, ...]:
    """The fields of TrainingConfig, documented by its docstring."""
    tree = _parse_file(RECIPES_FOLDER / "training_config.py")
    settings = next(
        c for c in tree.body if isinstance(c, ast.ClassDef) and c.name == "TrainingConfig"
    )
    docs = _parse_arguments_doc((ast.get_docstring(settings) or "").partition("\nAttributes:\n")[2])
    return tuple(
        Keyword(
            name := ast.unparse(f.target),
            _annotation_type(f.annotation),
            _literal_value(f.value),
            docs[name],
        )
        for f in settings.body
        if isinstance(f, ast.AnnAssign)
    )


def _parse_arguments_doc(arguments: str) -> dict[str, str]:
    """{name: text} of the lines `name: text` under Args or Attributes; a line indented further goes on."""
    docs: dict[str, str] = {}
    name, edge = "", len(arguments) - len(arguments.lstrip())
    for line in filter(str.strip, arguments.splitlines()):
        if line[: edge + 1].isspace():
            docs[name] = f"{docs.get(name, '')} {line.strip()}"
        else:
            name, _, docs[name] = (part.strip() for part in line.partition(":"))
    return docs


def _literal_value(node: ast.expr | None) -> Any:
    """The value of a literal; of any other expression its text, to be shown only."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node) if node else None


def _annotation_type(node: ast.expr | None) -> Any:
    """int, float, bool, str, None, unions of them, Literal; str for whatever else.

    Of whatever takes a sequence of str (`str | Sequence[str]`, `tuple[str, ...] | None`), NAMES: one str at a time.
    """
    match node:
        case ast.Constant(value=None):
            return NoneType
        case ast.Constant(value=str(text)):
            return _annotation_type(ast.parse(text, mode="eval").body)
        case ast.Name(id=name):
            return BUILTIN_TYPES.get(name, str)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            either = _annotation_type(left), _annotation_type(right)
            return NAMES if NAMES in either else either[0] | either[1]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            values = ast.literal_eval(choices)
            return Literal[values if isinstance(values, tuple) else (values,)]
        case ast.Subscript(value=ast.Name(id="Sequence" | "tuple" | "list"), slice=of) if (
            ast.unparse(of) in STRINGS
        ):
            return NAMES
    return str
