"""The defaults that `--help` shows are those that a command really uses."""

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

import sensorium.cli.options as options_module
from sensorium.cli.app import build_app
from sensorium.cli.options import EvalOptions, SamplingOptions
from sensorium.evaluation.captioning import answer_evaluator, caption_evaluator
from sensorium.evaluation.image_generation import image_generation_evaluator
from sensorium.evaluation.prediction import prediction_evaluator
from sensorium.inference.generate_gan import GANGenerator
from sensorium.inference.generate_image import ImageGenerator
from sensorium.inference.generate_text import TextGenerator
from sensorium.inference.generate_unclip import UnCLIPGenerator
from sensorium.inference.sample_image import DiffusionImageGenerator
from sensorium.pretrained.generate_text import TextContinuation
from sensorium.pretrained.transcribe import Transcriber

VERBS: list[Callable[..., Any]] = [
    ImageGenerator.__call__,
    DiffusionImageGenerator.__call__,
    GANGenerator.__call__,
    UnCLIPGenerator.__call__,
    TextGenerator.__call__,
    TextContinuation.__call__,
    Transcriber.__call__,
]
EVALUATORS: list[Callable[..., Any]] = [
    caption_evaluator("image", "text"),
    answer_evaluator("image", "question", "answer"),
    image_generation_evaluator("image", "text"),
    prediction_evaluator({}),
]


def attribute_docs(cls: type) -> dict[str, str]:
    """Return the texts below the fields of an options class."""
    tree = ast.parse(Path(options_module.__file__).read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls.__name__)
    docs: dict[str, str] = {}
    for node, after in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
            docs[ast.unparse(node.target)] = " ".join(ast.literal_eval(after.value).split())
    return docs


def used_defaults(functions: list[Callable[..., Any]], name: str) -> set[float]:
    """Return the numbers that functions take for an option that is left out."""
    found = [inspect.signature(f).parameters.get(name) for f in functions]
    values = {p.default for p in found if p is not None}
    return {float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)}


@pytest.mark.parametrize(
    ("options", "functions"), [(SamplingOptions, VERBS), (EvalOptions, EVALUATORS)]
)
def test_numbers_that_models_choose_are_stated(
    options: type, functions: list[Callable[..., Any]]
) -> None:
    checked = 0
    for name, doc in attribute_docs(options).items():
        expected = used_defaults(functions, name)
        if not expected or name in ("average_captions", "ablate_columns"):
            continue
        stated = doc.partition("Default:")[2]
        assert {float(n) for n in re.findall(r"\d+(?:\.\d+)?", stated)} == expected, name
        checked += 1
    assert checked >= (9 if options is SamplingOptions else 2)


def iter_commands(app: App, prefix: str = "") -> Mapping[str, Callable[..., Any]]:
    """Return the functions of all commands."""
    found: dict[str, Callable[..., Any]] = {}
    for name in app:
        if name.startswith("-"):
            continue
        command = app[name]
        path = f"{prefix} {name}".strip()
        if command.default_command is not None:
            found[path] = command.default_command
        found |= iter_commands(command, path)
    return found


def test_shown_defaults_are_those_of_the_signatures(capsys: pytest.CaptureFixture[str]) -> None:
    """Every "[default: X]" of a command is the value that its function gets."""
    checked = 0
    for name, function in iter_commands(build_app()).items():
        build_app(name.split())([*name.split(), "--help"], result_action="return_value")
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        for parameter in inspect.signature(function).parameters.values():
            value = parameter.default
            if isinstance(value, bool) or not isinstance(value, int | float | str | Path):
                continue
            if value != "":
                assert f"[default: {value}]" in text, f"{name}: {parameter.name}"
                checked += 1
    assert checked >= 8
