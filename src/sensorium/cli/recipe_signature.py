"""Signatures of recipes, read from their source files without running them.

So `sensorium train clip --help`, or the error for a mistyped option, does not import torch.
"""

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
NAMES = tuple[str, ...]  # type of an option that is repeated, one name each time
STRING_ELEMENTS = ("str", "(str, ...)", "str, ...")  # element types that make a sequence NAMES


@dataclass(frozen=True)
class Keyword:
    """A keyword of a recipe or of `TrainingConfig`.

    Attributes:
        name: the keyword.
        type: type of its value.
        default: default value; None where `computed` describes it.
        doc: help text.
        computed: for a default that is not a constant, what it depends on, as text.
    """

    name: str
    type: Any
    default: Any
    doc: str = ""
    computed: str = ""


@dataclass(frozen=True)
class RecipeSignature:
    """A recipe as its source file describes it.

    Attributes:
        name: its name on the command line: clip, ./mine.py:recipe.
        doc: docstring without the Args section.
        model_options: the recipe's own keywords.
        training_options: fields of `TrainingConfig`, with the recipe's defaults.
    """

    name: str
    doc: str
    model_options: tuple[Keyword, ...]
    training_options: tuple[Keyword, ...]

    @property
    def summary(self) -> str:
        """Return the first line of the docstring."""
        return self.doc.split("\n", 1)[0]


def builtin_recipes(name: str = "*") -> dict[str, RecipeSignature]:
    """Return the built-in recipes: functions `(schema: Schema, ...) -> Recipe` in `recipes/`.

    Args:
        name: read only the file of this name, if there is one.
    """
    paths = [path for path in sorted(RECIPES_FOLDER.glob("*.py")) if path.stem == name] or sorted(
        RECIPES_FOLDER.glob("*.py")
    )
    bodies = (node for path in paths for node in _parse_file(path).body)
    recipes = [f for f in bodies if isinstance(f, ast.FunctionDef) and _is_recipe(f)]
    recipes.sort(key=lambda f: f.name)
    return {f.name: _recipe_signature(f.name, f) for f in recipes}


def parse_recipe(spec: str) -> RecipeSignature:
    """Return the signature of the recipe FILE:FUNCTION.

    Raises:
        SensoriumError: if there is no such function, or it is not a recipe.
    """
    path, function = _split_spec(spec)
    functions = {f.name: f for f in _parse_file(path).body if isinstance(f, ast.FunctionDef)}
    if function not in functions:
        raise SensoriumError(
            f"{path} has no function {function!r}; it has {', '.join(functions) or 'none'}."
        )
    f = functions[function]
    if not f.args.posonlyargs + f.args.args or len(f.args.posonlyargs + f.args.args) > 1 + len(
        f.args.defaults
    ):
        raise SensoriumError(
            f"{path}: {function} is not a recipe. Its only positional parameter must be the "
            f"schema, as in def {function}(schema: Schema, *, dim: int = 256) -> Recipe."
        )
    return _recipe_signature(spec, f)


def resolve_recipe(spec: str) -> Callable[..., Any]:
    """Return the recipe function: a built-in one by name, or FILE:FUNCTION, whose file is run.

    Raises:
        SensoriumError: if there is no such recipe.
    """
    from sensorium.recipes import RECIPES

    if is_file_spec(spec):
        parse_recipe(spec)
        path, function = _split_spec(spec)
        return getattr(_import_file(path), function)
    if spec not in RECIPES:
        raise SensoriumError(
            f"There is no recipe {spec!r}. Recipes are {', '.join(RECIPES)}, or your own: "
            "./mine.py:recipe."
        )
    return RECIPES[spec]


def run_user_file(path: str) -> None:
    """Run a Python file of the user's, which registers what it defines.

    Raises:
        SensoriumError: if it is not a Python file.
    """
    if not path.endswith(".py") or not Path(path).is_file():
        raise SensoriumError(
            f"--use {path}: there is no such Python file. Give the path of a .py file."
        )
    _parse_file(Path(path))
    _import_file(Path(path))


def is_file_spec(spec: str) -> bool:
    """Return whether a recipe is written as FILE:FUNCTION."""
    return ".py" in spec


def _split_spec(spec: str) -> tuple[Path, str]:
    path, colon, function = spec.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise SensoriumError(
            f"{spec!r} does not name a recipe. Write FILE:FUNCTION, as in ./mine.py:recipe."
        )
    if not Path(path).is_file():
        raise SensoriumError(f"There is no file {path} with a recipe {function!r}.")
    return Path(path), function


def _import_file(path: Path) -> Any:
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SensoriumError(f"{path} cannot be imported as Python.")
    module = sys.modules[path.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _parse_file(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as e:
        raise SensoriumError(f"{path} is not valid Python: {e}.") from e


def _is_recipe(f: ast.FunctionDef) -> bool:
    """Return whether a function is annotated (schema: Schema, ...) -> Recipe."""
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
    model_options = tuple(
        Keyword(a.arg, _annotation_type(a.annotation), _literal_value(default), docs.get(a.arg, ""))
        for a, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    )
    calls = [n for n in ast.walk(function) if isinstance(n, ast.Call)]
    constants, declared = (
        {
            k.arg: k.value
            for call in calls
            if _callee(call) == callee
            for k in call.keywords
            if k.arg
        }
        for callee in ("TrainingConfig", "training_defaults")
    )
    training = tuple(
        _with_default(k, {**constants, **declared}.get(k.name)) for k in training_options()
    )
    return RecipeSignature(name, doc.strip(), model_options, training)


def _callee(call: ast.Call) -> str:
    """Return the last name of the called expression."""
    return ast.unparse(call.func).rpartition(".")[2]


def _with_default(field: Keyword, node: ast.expr | None) -> Keyword:
    """Return a field of TrainingConfig with the recipe's default, constant or as text."""
    if node is None:
        return field
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return replace(field, default=None, computed="set by the recipe")
    if isinstance(value, str) and value not in get_args(field.type):
        return replace(field, default=None, computed=value)
    return replace(field, default=value)


@cache
def training_options() -> tuple[Keyword, ...]:
    """Return the fields of TrainingConfig, documented by its docstring."""
    tree = _parse_file(RECIPES_FOLDER / "training_config.py")
    config = next(
        c for c in tree.body if isinstance(c, ast.ClassDef) and c.name == "TrainingConfig"
    )
    docs = _parse_arguments_doc((ast.get_docstring(config) or "").partition("\nAttributes:\n")[2])
    return tuple(
        Keyword(
            name := ast.unparse(f.target),
            _annotation_type(f.annotation),
            _literal_value(f.value),
            docs[name],
        )
        for f in config.body
        if isinstance(f, ast.AnnAssign)
    )


def _parse_arguments_doc(arguments: str) -> dict[str, str]:
    """Return {name: text} of an Args or Attributes section."""
    docs: dict[str, str] = {}
    name, edge = "", len(arguments) - len(arguments.lstrip())
    for line in filter(str.strip, arguments.splitlines()):
        if line[: edge + 1].isspace():
            docs[name] = f"{docs.get(name, '')} {line.strip()}"
        else:
            name, _, docs[name] = (part.strip() for part in line.partition(":"))
    return docs


def _literal_value(node: ast.expr | None) -> Any:
    """Return the value of a literal, and of any other expression its source, for display only."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node) if node else None


def _annotation_type(node: ast.expr | None) -> Any:
    """Return int, float, bool, str, None, a union of them, or a Literal; str for anything else.

    Annotations that take a sequence of str (`str | Sequence[str]`) become NAMES: one str at a time.
    """
    match node:
        case ast.Constant(value=None):
            return NoneType
        case ast.Constant(value=str(text)):
            return _annotation_type(ast.parse(text, mode="eval").body)
        case ast.Name(id=name):
            return BUILTIN_TYPES.get(name, str)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            types = _annotation_type(left), _annotation_type(right)
            return NAMES if NAMES in types else types[0] | types[1]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            values = ast.literal_eval(choices)
            return Literal[values if isinstance(values, tuple) else (values,)]
        case ast.Subscript(value=ast.Name(id="Sequence" | "tuple" | "list"), slice=of) if (
            ast.unparse(of) in STRING_ELEMENTS
        ):
            return NAMES
        case _:
            return str
