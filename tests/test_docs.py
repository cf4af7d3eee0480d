"""The documentation is checked cheaply: links, sizes, command lines, imports and keywords."""

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import sensorium as sn
from sensorium.cli import app
from sensorium.recipes import RECIPES
from sensorium.recipes.training_config import TrainingConfig

ROOT = Path(__file__).parents[1]
TOP = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
TASKS = sorted((ROOT / "docs" / "tasks").glob("*.md"))
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / ".github").rglob("*.md"))]
GUIDES = [*TOP[:3], ROOT / "docs" / "getting_started.md", *TASKS]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    """Return the fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(path: Path) -> Iterator[list[str]]:
    """Yield the arguments of each `sensorium` command in bash blocks, without --use FILE."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["sensorium"]:
                yield words[3:] if words[1:2] == ["--use"] else words[1:]


def attribute(node: ast.expr) -> str:
    """Return a dotted name such as sn.recipes.clip; "" for any other expression."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def keywords_of(name: str, call: ast.Call) -> set[str] | None:
    """Return the keywords that a call of `sn.NAME` may have; None if any may be given."""
    function: Any = importlib.import_module("sensorium")
    for part in name.split(".")[1:]:
        function = getattr(function, part)
    parameters = inspect.signature(function).parameters
    known = set(parameters)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return known
    recipe = attribute(call.args[0]) if call.args else ""
    if name not in ("sn.train", "sn.compare") or not recipe.startswith("sn.recipes."):
        return None
    own = inspect.signature(RECIPES[recipe.removeprefix("sn.recipes.")]).parameters
    return known | set(own) | {field.name for field in fields(TrainingConfig)}


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 900


@pytest.mark.parametrize("path", TASKS, ids=page_name)
def test_task_page_has_its_size(path: Path) -> None:
    assert 40 <= len(path.read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("path", GUIDES, ids=page_name)
def test_lines_are_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_exist(path: Path) -> None:
    for link in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link} in {page_name(path)}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link} in {page_name(path)}"


@pytest.mark.parametrize("path", [p for p in PAGES if any(command_lines(p))], ids=page_name)
def test_commands_and_options_exist(path: Path) -> None:
    """Parse every command line, but those of a recipe in FILE.py:NAME; nothing is run."""
    for argv in command_lines(path):
        if any(".py:" in word for word in argv[:2]):
            continue
        _, _, unknown, *_ = app.build_app(argv).parse_known_args(argv)
        assert not unknown, f"{unknown} of {shlex.join(argv)} in {page_name(path)}"


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python")], ids=page_name)
def test_python_names_exist(path: Path) -> None:
    """Resolve imports, `sn` attributes and keywords of `sn` functions; nothing is run."""
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sensorium"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), (
                        f"{node.module}.{alias.name} in {page_name(path)}"
                    )
            if isinstance(node, ast.Attribute) and attribute(node).startswith("sn."):
                target: object = sn
                for part in attribute(node).split(".")[1:]:
                    assert hasattr(target, part), f"{attribute(node)} in {page_name(path)}"
                    target = getattr(target, part)
            if isinstance(node, ast.Call) and attribute(node.func).startswith("sn."):
                known = keywords_of(attribute(node.func), node)
                named = {keyword.arg for keyword in node.keywords if keyword.arg}
                assert known is None or named <= known, f"{named - known} in {page_name(path)}"


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_source_files_and_benchmark_options_exist(path: Path) -> None:
    """Check `nn/tokens.py` and `benchmarks/speech.py --peer`; x.py and ./mine.py are examples."""
    text = path.read_text(encoding="utf-8")
    roots = (ROOT, ROOT / "src" / "sensorium")
    for file in re.findall(r"(?<![\w./])\w+/[\w/]+\.py\b", text):
        is_example = file.endswith("/x.py")
        assert is_example or any((root / file).exists() for root in roots), file
    for file, rest in re.findall(r"(benchmarks/\w+\.py)([^`\n]*)", text):
        source = (ROOT / file).read_text(encoding="utf-8")
        for option in re.findall(r"--[a-z-]+", rest):
            assert f'"{option}"' in source, f"{file} has no {option}"


def test_citation_has_the_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {sn.__version__}\n" in text
