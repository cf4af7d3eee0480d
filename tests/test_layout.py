"""The rules of docs/architecture.md: imports, sizes, types, safety and names.

Changing a rule or a number here is a design decision.
"""

import ast
import graphlib
import importlib
import importlib.util
import io
import itertools
import re
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "sensorium"
APPLICATIONS = (
    "search",
    "explain",
    "tuning",
    "compression",
    "recommend",
    "assistant",
    "export",
)
PACKAGE_ORDER = [
    ("errors",),
    ("rng",),
    ("io",),
    ("nn",),
    ("metrics",),
    ("modalities",),
    ("models",),
    ("data",),
    ("objectives",),
    ("inference",),
    ("pretrained",),
    ("evaluation",),
    ("recipes",),
    ("training",),
    ("loading",),
    APPLICATIONS,
    ("serving",),
    ("cli",),
    ("__main__",),
]
RANK = {name: rank for rank, names in enumerate(PACKAGE_ORDER) for name in names}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50  # without the docstring
MAX_ARGUMENTS = 7
MAX_OPTIONS = 20  # recipes, inference verbs and commands: their arguments are the user's options
PACKAGES_OF_OPTIONS = {"recipes", "inference", "pretrained", "cli"}
MAX_MEDIAN_FUNCTION_LINES = 10
MAX_TRAINING_MODULES = 95  # imported by a training run, pretrained families apart

FAMILIES = {"clip", "dalle", "dalle2", "imagen", "flamingo", "bert", "gpt", "mae", "gan", "siglip"}
PACKAGES_OF_FAMILIES = {"recipes", "pretrained"}
NAMELESS_MODULES = {"utils", "util", "helpers", "helper", "common", "misc"}
UNSAFE_IMPORTS = {"pickle", "cPickle", "dill", "joblib", "yaml", "shelve", "marshal"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "__import__",
    "torch.load",
    "torch.save",
    "yaml.load",
    "pickle.load",
    "pickle.loads",
    "os.system",
}
CORE_DEPENDENCIES = {
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
HEAVY_MODULES = ("torch", "numpy", "PIL")

DIALECT = {  # names that were replaced by standard terms, and have no other meaning
    "AS_GUESSED",
    "AS_USUAL",
    "at_place",
    "eye",
    "eye_from",
    "farewell",
    "first_unsound",
    "glance",
    "go_on",
    "heard",
    "image_from",
    "image_tune",
    "Impression",
    "in_line",
    "in_two_bytes",
    "Judging",
    "lay_out",
    "levelled",
    "LinearAlign",
    "LookingBlock",
    "look_norm",
    "may_see",
    "MEDDLERS",
    "Meets",
    "MultiscaleAlign",
    "Namer",
    "Narrowed",
    "NonlinearAlign",
    "of_pictures",
    "of_series",
    "painter",
    "Painter",
    "painting",
    "said",
    "Said",
    "Speaker",
    "spelt",
    "Spelt",
    "surely",
    "text_from",
    "text_tune",
    "thinned",
    "told",
    "TUNES",
    "UNBASE",
    "undrawn",
    "Uneven",
    "unless_whole",
    "UNSAID",
    "untold",
    "with_trees",
}
DIALECT_PREFIXES = ("judge_",)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def package_of(path: Path) -> str:
    """Return the package (or top-level module) of a file, such as `nn` or `loading`."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(tree: ast.Module) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def num_lines(function: Function) -> int:
    """Return the lines of a function without its docstring."""
    first = function.body[0]
    docstring_lines = 0
    if ast.get_docstring(function) is not None:
        docstring_lines = (first.end_lineno or first.lineno) - first.lineno + 1
    return (function.end_lineno or function.lineno) - function.lineno + 1 - docstring_lines


def arguments(function: Function) -> list[ast.arg]:
    args = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return [arg for arg in args if arg.arg not in ("self", "cls")]


def imported_names(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """Yield the absolute imports of these nodes; `from a import b` yields both a and a.b."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def module_level_imports(path: Path) -> set[str]:
    """Return the modules of the package that importing a file imports by name.

    `from a import b` imports a, or only a.b where that is a module.
    """
    modules: set[str] = set()
    for node in parse(path).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                modules.add(name if name in MODULES else node.module or "")
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
    return (modules & set(MODULES)) - {module_name(path), "sensorium"}


def transitive_imports(*modules: str) -> set[str]:
    """Return the modules that importing these leads to, apart from packages' `__init__`."""
    result: set[str] = set()
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name not in result and name in MODULES:
            result.add(name)
            pending.extend(module_level_imports(MODULES[name]))
    return result


def loaded_modules(statement: str) -> list[str]:
    """Return the modules that a new interpreter has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr.split()


MODULES = {module_name(path): path for path in source_files()}


def test_packages_import_only_those_left_of_them() -> None:
    for path in source_files():
        package = package_of(path)
        if package == "__init__":
            continue  # names public objects of all packages, and imports none
        for name in imported_names(ast.walk(parse(path))):
            if not name.startswith("sensorium."):
                continue
            other = name.split(".")[1]
            if other in RANK and other != package:
                assert RANK[other] < RANK[package], f"{path}: {package} may not import {other}"


def test_modules_have_no_import_cycles() -> None:
    graph = {name: module_level_imports(path) for name, path in MODULES.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_model_families_are_named_only_in_recipes_and_pretrained() -> None:
    for path in source_files():
        if package_of(path) in PACKAGES_OF_FAMILIES:
            continue
        definitions = {
            node.name.lower()
            for node in ast.walk(parse(path))
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
        }
        assert not definitions & FAMILIES, f"{path}: {definitions & FAMILIES}"


def test_modules_have_telling_names() -> None:
    for path in source_files():
        assert path.stem not in NAMELESS_MODULES, path


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_files_and_functions_stay_small(path: Path) -> None:
    package = package_of(path)
    max_arguments = MAX_OPTIONS if package in PACKAGES_OF_OPTIONS else MAX_ARGUMENTS
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    for function in functions(parse(path)):
        size = num_lines(function)
        names = [arg.arg for arg in arguments(function)]
        if package == "recipes" and "schema" in names:  # its options are no code
            names.remove("schema")
            size -= function.body[0].lineno - function.lineno
        assert size <= MAX_FUNCTION_LINES, f"{function.name} has {size} lines"
        assert len(names) <= max_arguments, f"{function.name} has {len(names)} arguments"


def test_most_functions_are_short() -> None:
    sizes = [num_lines(f) for path in source_files() for f in functions(parse(path))]
    assert statistics.median(sizes) < MAX_MEDIAN_FUNCTION_LINES


def test_public_functions_are_typed() -> None:
    for path in source_files():
        for function in functions(parse(path)):
            if function.name.startswith("_"):
                continue
            untyped = [arg.arg for arg in arguments(function) if arg.annotation is None]
            assert not untyped, f"{path}: {function.name} has untyped arguments {untyped}"
            assert function.returns is not None, f"{path}: {function.name} has no return type"


def test_no_unsafe_imports() -> None:
    for path in source_files():
        names = {name.split(".")[0] for name in imported_names(ast.walk(parse(path)))}
        assert not names & UNSAFE_IMPORTS, path


def test_no_unsafe_calls() -> None:
    for path in source_files():
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.Call):
                continue
            place = f"{path}:{node.lineno}"
            called = ast.unparse(node.func)
            assert called not in UNSAFE_CALLS, f"{place}: {called}"
            assert "extractall" not in called, place
            for keyword in node.keywords:
                is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                assert keyword.arg != "allow_pickle" or is_false, place
                assert keyword.arg != "shell" or "subprocess" not in called, place


def test_no_swallowed_exceptions() -> None:
    for path in source_files():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = "" if node.type is None else ast.unparse(node.type)
                is_broad = caught in ("", "Exception", "BaseException")
                reraises = isinstance(node.body[-1], ast.Raise)
                assert not is_broad or reraises, f"{path}:{node.lineno}"


def test_optional_dependencies_are_imported_inside_functions() -> None:
    allowed = CORE_DEPENDENCIES | set(sys.stdlib_module_names)
    for path in source_files():
        for name in imported_names(parse(path).body):
            assert name.split(".")[0] in allowed, f"{path} imports {name} at module level"


@pytest.mark.parametrize("statement", ["import sensorium", "import sensorium; dir(sensorium)"])
def test_import_loads_nothing_heavy(statement: str) -> None:
    loaded = loaded_modules(statement)
    assert not set(loaded) & {*HEAVY_MODULES, "rich", "cyclopts"}
    assert [name for name in loaded if name.startswith("sensorium.")] == []


@pytest.mark.parametrize("command", [[], ["train"], ["train", "clip"], ["predict"]])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    arguments = ["sensorium", *command, "--help"]
    loaded = loaded_modules(
        f"sys.argv = {arguments}\n"
        "from sensorium.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass"
    )
    assert "sensorium.cli.app" in loaded
    assert not set(loaded) & set(HEAVY_MODULES)


def test_loading_a_model_does_not_load_training() -> None:
    loaded = loaded_modules("import sensorium.loading, sensorium.inference")
    above = {f"sensorium.{name}" for name in RANK if RANK[name] > RANK["loading"]}
    assert "sensorium.training.loop" not in loaded
    assert not {name for name in loaded if ".".join(name.split(".")[:2]) in above}


def recipe_modules() -> list[str]:
    return [name for name in MODULES if name.startswith("sensorium.recipes.")]


@pytest.mark.parametrize("recipe", recipe_modules())
def test_training_imports_few_modules_and_no_application(recipe: str) -> None:
    modules = transitive_imports(recipe, "sensorium.training.loop")
    outside_pretrained = {name for name in modules if not name.startswith("sensorium.pretrained")}
    assert len(outside_pretrained) <= MAX_TRAINING_MODULES
    packages = {name.split(".")[1] for name in modules if name != "sensorium"}
    assert not {name for name in packages if RANK[name] > RANK["loading"]}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem
)
def test_names_that_benchmarks_import_exist(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module.split(".")[0] != "sensorium":
            continue
        module = importlib.import_module(node.module)
        for alias in node.names:
            is_module = hasattr(module, "__path__") and importlib.util.find_spec(
                f"{node.module}.{alias.name}"
            )
            assert hasattr(module, alias.name) or is_module, f"{node.module} has no {alias.name}"


def code_files() -> list[Path]:
    folders = ("src", "tests", "benchmarks", "examples")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def python_identifiers(path: Path) -> set[str]:
    tokens = list(tokenize.generate_tokens(io.StringIO(path.read_text()).readline))
    names: set[str] = set()
    for before, token in itertools.pairwise(tokens):
        is_identity_matrix = token.string == "eye" and before.string == "."  # torch.eye, np.eye
        if token.type == tokenize.NAME and not is_identity_matrix:
            names.add(token.string)
    return names


def markdown_identifiers(path: Path) -> set[str]:
    """Return the identifiers in code blocks and inline code."""
    text = path.read_text()
    code = re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL)
    return {name for block in code for name in re.findall(r"[A-Za-z_]\w*", block)}


def dialect(identifiers: set[str]) -> set[str]:
    prefixed = {name for name in identifiers if name.startswith(DIALECT_PREFIXES)}
    return (identifiers & DIALECT) | prefixed


@pytest.mark.parametrize("path", code_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_code_uses_standard_terms(path: Path) -> None:
    assert not dialect(python_identifiers(path))


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_documentation_uses_standard_terms(path: Path) -> None:
    assert not dialect(markdown_identifiers(path))
