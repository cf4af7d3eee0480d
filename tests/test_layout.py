"""The house rules of docs/architecture.md, kept by a test. Changing a number here is a design decision."""

import ast
import importlib
import importlib.util
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "src" / "sensorium"
FLOORS = [  # imports go up in this list, never down
    "errors",
    "tokens kernels depth durable stored",
    "attention positions report config chart",
    "transformer",
    "modalities align metrics",
    "models data calibrate measures",
    "adapt quantize fusion fused trees",
    "objectives",
    "verbs",
    "published convert",
    "recipes",
    "optim snapshot progress",
    "step checkpoint",
    "run load",
    "card evaluate blend",
    "train",
    "tasks interop",
    "show doctor keywords",
    "options demo tell",
    "commands",
    "cli",
    "__main__",
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms.split()} | {"__init__": 0}
FAMILIES = {"clip", "dalle", "dalle2", "imagen", "flamingo", "bert", "gpt", "mae", "gan", "siglip"}
CORE = ("tokens", "attention", "transformer", "align", "models")
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}
FORBIDDEN_NAMES = {"eval", "exec", "__import__"}
FORBIDDEN_CALLS = {
    "torch.load",
    "torch.save",
    "yaml.load",
    "pickle.load",
    "pickle.loads",
    "os.system",
}
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "joblib", "yaml", "shelve", "marshal"}
CORE_IMPORTS = {
    "torch",
    "numpy",
    "PIL",
    "safetensors",
    "tokenizers",
    "einops",
    "jaxtyping",
    "cyclopts",
    "rich",
    "sensorium",
}


def files() -> Iterator[tuple[Path, str, ast.Module]]:
    for path in sorted(HOUSE.rglob("*.py")):
        yield (
            path.relative_to(HOUSE),
            path.relative_to(HOUSE).parts[0].removesuffix(".py"),
            ast.parse(path.read_text()),
        )


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def lines(f: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (f.end_lineno or f.lineno) - f.lineno + 1


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_only_go_down() -> None:
    for path, room, tree in files():
        if room == "__init__":
            continue  # the front door names every room, and imports none
        for name in imports(tree):
            if name.startswith("sensorium."):
                other = name.split(".")[1]
                assert room == other or FLOOR[other] < FLOOR[room], (
                    f"{path}: {room} may not import {other}"
                )


def test_families_are_named_only_in_recipes_and_published() -> None:
    for path, room, tree in files():
        names = {
            n.name.lower() for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef)
        }
        assert room in ("recipes", "published") or not names & FAMILIES, (
            f"{path}: {names & FAMILIES}"
        )


def test_rooms_stay_small() -> None:
    for path, room, tree in files():
        assert path.stem not in NAMELESS, f"{path}: a room with no name"
        assert len((HOUSE / path).read_text().splitlines()) <= 400, path
        for f in functions(tree):
            beside = (
                ("self", "cls", "schema") if room == "recipes" else ("self", "cls")
            )  # a recipe: 20 keywords
            arguments = [a for a in f.args.args + f.args.kwonlyargs if a.arg not in beside]
            assert lines(f) <= 50, f"{path}:{f.name} is {lines(f)} lines"
            most = 20 if room in ("recipes", "verbs") else 7
            assert len(arguments) <= most, f"{path}:{f.name} takes {len(arguments)} arguments"


def test_functions_are_short() -> None:
    sizes = [lines(f) for _, _, tree in files() for f in functions(tree)]
    assert statistics.median(sizes) < 10


def test_the_core_is_read_in_one_sitting() -> None:
    assert sum(len((HOUSE / f"{room}.py").read_text().splitlines()) for room in CORE) <= 820


def test_public_functions_are_typed() -> None:
    for path, _, tree in files():
        for f in functions(tree):
            if not f.name.startswith("_"):
                arguments = f.args.args + f.args.kwonlyargs
                bare = [
                    a.arg
                    for a in arguments
                    if a.annotation is None and a.arg not in ("self", "cls")
                ]
                assert f.returns is not None and not bare, (
                    f"{path}:{f.name} lacks types: {bare or 'its result'}"
                )


def test_nothing_unsafe() -> None:
    for path, _, tree in files():
        assert not {n.split(".")[0] for n in imports(tree)} & FORBIDDEN_IMPORTS, path
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in FORBIDDEN_NAMES | FORBIDDEN_CALLS, (
                    f"{path}:{node.lineno} calls {called}"
                )
                assert "extractall" not in called, f"{path}:{node.lineno}"
                for keyword in node.keywords:
                    plainly_off = (
                        isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                    )
                    assert keyword.arg != "allow_pickle" or plainly_off, (
                        f"{path}:{node.lineno}: {keyword.arg}"
                    )
                    assert keyword.arg != "shell" or "subprocess" not in called, (
                        f"{path}:{node.lineno}: {keyword.arg}"
                    )
            if isinstance(node, ast.ExceptHandler):
                caught = "" if node.type is None else ast.unparse(node.type)
                reraises = isinstance(node.body[-1], ast.Raise)
                narrow = caught not in ("", "Exception", "BaseException")
                assert narrow or reraises, f"{path}:{node.lineno} swallows everything"


def test_extras_are_imported_where_they_are_used() -> None:
    for path, _, tree in files():
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
                for name in imports(ast.Module([node], [])):
                    top = name.split(".")[0]
                    assert top in CORE_IMPORTS or top in sys.stdlib_module_names, (
                        f"{path} imports {top} at its head"
                    )


@pytest.mark.parametrize("statement", ["import sensorium", "import sensorium; dir(sensorium)"])
def test_import_does_nothing(statement: str) -> None:
    heavy = ("torch", "numpy", "PIL", "rich", "cyclopts")
    code = f"import sys; {statement}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def pulled_in(module: str, seen: set[str]) -> set[str]:
    """The files of the house that importing one of them leads to, packages' front doors aside."""
    path = HOUSE.parent / (module.replace(".", "/") + ".py")
    if module not in seen and path.is_file():
        seen.add(module)
        tree = ast.parse(path.read_text())
        for node in (n for n in tree.body if isinstance(n, ast.ImportFrom)):
            for name in [
                node.module or "",
                *(f"{node.module}.{alias.name}" for alias in node.names),
            ]:
                pulled_in(name, seen)
    return seen


@pytest.mark.parametrize(
    "recipe", [p.stem for p in sorted((HOUSE / "recipes").glob("*.py")) if p.stem != "__init__"]
)
def test_a_training_run_pulls_in_few_files(recipe: str) -> None:
    found = pulled_in("sensorium.training.loop", pulled_in(f"sensorium.recipes.{recipe}", set()))
    most = (
        66 if "sensorium.recipes.from_run" in found else 51
    )  # a recipe that builds on the run of another
    assert (
        len([name for name in found if not name.startswith("sensorium.pretrained.")]) <= most
    )  # others' layouts


@pytest.mark.parametrize(
    "path", sorted((HOUSE.parents[1] / "benchmarks").glob("*.py")), ids=lambda p: p.stem
)
def test_what_benchmarks_take_from_the_house_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sensorium":
            room = importlib.import_module(node.module or "")
            for name in node.names:
                inside = hasattr(room, "__path__") and importlib.util.find_spec(
                    f"{node.module}.{name.name}"
                )
                assert hasattr(room, name.name) or inside, (
                    f"{path.name}: {node.module} has no {name.name}"
                )
