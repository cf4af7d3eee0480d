"""The command line: light help, exact messages about mistakes, and thin commands."""

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from fixtures.recipe_cases import RECIPE_CASES
from PIL import Image

from sensorium.cli import app
from sensorium.cli.commands import inspect as inspect_commands
from sensorium.cli.examples import EXAMPLES
from sensorium.cli.recipe_signature import builtin_recipes
from sensorium.recipes import RECIPES
from sensorium.recipes.recipe import build_recipe
from sensorium.recipes.training_config import TrainingConfig

TINY = ["--dim", "64", "--image-layers", "1", "--text-layers", "1", "--epochs", "1"]
TINY += ["--batch-size", "4"]
MINE = '''
from sensorium.data.schema import Schema
from sensorium.recipes import clip
from sensorium.recipes.recipe import Recipe


def mine(schema: Schema, *, width: "int" = 64, loss: str = "infonce") -> Recipe:
    """A CLIP of my own.

    Args:
        width: width of both towers,
            in total.
    """
    return clip(schema, dim=width, image_layers=1, text_layers=1, loss=loss)


def lacks() -> None:
    pass
'''


def photos(folder: Path, n: int = 16) -> Path:
    """Write single-colour images, each captioned with its colour."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        colour = rng.integers(0, 256, 3)
        Image.new("RGB", (40, 30), tuple(colour.tolist())).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(
            f"a picture {i} of colour {colour[0]} {colour[1]} {colour[2]}\n"
        )
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Change to a folder with images and a trained run."""
    here, before = tmp_path_factory.mktemp("cli"), Path.cwd()
    os.chdir(here)
    photos(here / "photos")
    (here / "mine.py").write_text(MINE)
    assert app.run(["train", "clip", "photos", "--out", "run", *TINY]) == 0
    yield here
    os.chdir(before)


def run_command(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> str:
    """Return what a command prints: stdout where it succeeds, else its one line on stderr."""
    capsys.readouterr()
    assert app.run(argv) == status, capsys.readouterr()
    out, err = capsys.readouterr()
    if status:
        assert err.startswith("sensorium: ")
        assert "Traceback" not in err
    return err if status else out


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["train", "clip", "--help"],
        ["data", "build", "--help"],
        ["summary", "clip", "--help"],
        ["trian"],
        ["train", "clip", "x", "--dmi", "3"],
        ["completion", "bash"],
        ["--version"],
    ],
)
def test_help_and_usage_errors_do_not_import_torch(argv: list[str]) -> None:
    code = (
        f"import sys; from sensorium.cli.app import run; run({argv!r}); "
        "heavy = ('torch', 'numpy', 'PIL', 'tokenizers'); "
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian"], 'Did you mean "train"?'),
        (["train", "clp", "x"], 'Did you mean "clip"?'),
        (["train", "clip", "x", "--dmi", "3"], "Did you mean --dim?"),
        (["train", "clip", "x", "--batch-sise", "3"], "Did you mean --batch-size?"),
        (["train", "clip", "x", "--dim", "wide"], 'unable to convert "wide" into int'),
        (["train", "clip", "x", "--projection", "multiscales"], 'Did you mean "multiscale"?'),
        (["train", "clip"], "DATA requires an argument"),
        (["data", "build", "emojis", "--out", "x"], '"emoji"'),
        (["search"], "INDEX requires an argument"),
    ],
)
def test_usage_error_exits_with_2(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = run_command(capsys, *argv, status=2)
    assert expected in message
    assert "--help" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["data", "nowhere"], "nowhere"),
        (["data", "photos", "--type", "caption"], "NAME=TYPE"),
        (["data", "photos", "--type", "captoin=text"], "caption"),
        (["train", "clip", "photos", "--out", "run"], "--resume"),
        (["train", "clip", "photos", "--text", "captoin", "--out", "new"], "caption"),
        (
            [
                "train",
                "clip",
                "photos",
                "--type",
                "image=image:size=30",
                "--patch-size",
                "7",
                "--out",
                "new2",
            ],
            "not a multiple of the patch size 7",
        ),
        (
            [
                *["train", "clip", "photos", "--patch-size", "8"],
                *["--image-encoder", "resnet", "--out", "new2"],
            ],
            "--patch-size 8 is of a vision transformer, but the image encoder is resnet",
        ),
        (["train", "./mine.py:nothing", "photos"], "has no function 'nothing'; it has mine, lacks"),
        (["train", "./mine.py:lacks", "photos"], "must be the schema"),
        (["train", "./nomine.py:mine", "photos"], "There is no file ./nomine.py"),
        (["train", "./mine.py", "photos"], "FILE:FUNCTION"),
        (["evaluate", "photos", "photos"], "holds no weights"),
        (["evaluate", "run", "photos", "--split", "tset"], "test"),
        (["search", "photos", "red"], "index"),
        (["summary", "clop"], "Recipes are "),
    ],
)
def test_failure_exits_with_1(
    argv: list[str], expected: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in run_command(capsys, *argv, status=1)


def test_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(run_command(capsys, "data", "photos", "--json"))
    assert result["num_rows"] == 16
    assert [c["kind"] for c in result["columns"]][:2] == ["image", "text"]
    assert "16 rows" in run_command(capsys, "data", "photos")
    ignored = json.loads(
        run_command(capsys, "data", "photos", "--json", "--type", "caption=ignore")
    )
    assert {c["name"]: c["kind"] for c in ignored["columns"]}["caption"] == "ignore"


def test_evaluate_prints_and_saves_a_report(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "recall" in run_command(capsys, "evaluate", "run", "photos", "--split", "train")
    assert "recall" in run_command(
        capsys, "evaluate", "run", "--split", "train"
    )  # the data it was trained on
    result = json.loads(
        run_command(capsys, "evaluate", "run", "photos", "--split", "train", "--json")
    )
    assert set(result["metrics"]) == {"train"}
    assert (
        json.loads((place / "run" / "evaluation.json").read_text())["metrics"] == result["metrics"]
    )
    result = json.loads(
        run_command(
            capsys, "evaluate", "run", "photos", "--split", "train", "--average-captions", "--json"
        )
    )
    assert result["metadata"]["captions"] == "all, averaged"


def test_index_and_search(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "16 rows in run/index" in run_command(capsys, "index", "run", "photos")
    assert (
        len(run_command(capsys, "search", "run", "a picture of colour", "-k", "3").splitlines())
        == 3
    )
    result = json.loads(
        run_command(
            capsys,
            "search",
            "run/index",
            "--image",
            "photos/03.png",
            "--json",
            "--out",
            "found.png",
        )
    )
    assert len(result["hits"]) == 10
    assert "03.png" in result["hits"][0]["info"]["name"]
    with Image.open(place / "found.png") as sheet:
        assert sheet.size[0] > 100
    run_command(capsys, "search", "run", "red", "--image", "photos/03.png", "--out", "found.html")
    assert "<img" in (place / "found.html").read_text()
    assert ".png or .html" in run_command(
        capsys, "search", "run", "red", "--out", "found.gif", status=1
    )


def test_own_recipe_trains_and_evaluates(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(
        capsys,
        *["train", "./mine.py:mine", "photos", "--width", "64", "--epochs", "1"],
        *["--batch-size", "8", "--out", "own"],
    )
    assert "Width of both towers, in total" in " ".join(
        run_command(capsys, "train", "./mine.py:mine", "--help").split()
    )
    assert "Did you mean --width?" in run_command(
        capsys, "train", "./mine.py:mine", "photos", "--widht", "3", status=2
    )
    assert "--recipe" in run_command(capsys, "evaluate", "own", "photos", status=1)
    assert "recall" in run_command(
        capsys, "evaluate", "own", "photos", "--split", "train", "--recipe", "./mine.py:mine"
    )


def test_summary_counts_the_parameters_of_the_model(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sensorium.training.checkpoint import load_checkpoint

    result = json.loads(run_command(capsys, "summary", "run", "--json"))
    size = sum(p.numel() for p in load_checkpoint(place / "run").module.parameters())
    assert result["parameters"] == size
    assert result["memory_bytes"]["weights"] == 4 * size
    assert 2.5 < result["flops_training"] / result["flops_forward"] < 3.5
    small, large = (
        json.loads(run_command(capsys, "summary", "clip", "--dim", dim, "--json"))
        for dim in ("128", "1024")
    )
    assert large["parameters"] > 30 * small["parameters"]
    assert large["flops_forward"] > 30 * small["flops_forward"]
    assert large["memory_bytes"]["optimizer"] == 8 * large["parameters"]
    assert "parameters" in run_command(capsys, "summary", "clip", "--type", "image=image")


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(run_command(capsys, "doctor", "--json"))["facts"]["torch"]
    assert "GFLOP/s" in run_command(capsys, "doctor")


def test_parsed_signatures_are_those_of_the_recipes() -> None:
    assert list(builtin_recipes()) == sorted(RECIPES)
    for name, signature in builtin_recipes().items():
        parameters = [
            p
            for p in inspect.signature(RECIPES[name]).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        ]
        assert {k.name: k.default for k in signature.model_options} == {
            p.name: p.default for p in parameters
        }
        assert {k.name: k.type for k in signature.training_options} == inspect.get_annotations(
            TrainingConfig, eval_str=True
        )
        assert all(k.doc for k in signature.model_options + signature.training_options), (
            f"{name}: an undocumented keyword"
        )


def test_help_shows_the_training_defaults_that_are_used() -> None:
    """Constants are shown as they are; defaults that depend on data or keywords in words."""
    for name, case in RECIPE_CASES.items():
        signature = builtin_recipes()[name]
        configs = [
            asdict(build_recipe(RECIPES[name], case.schema, {**case.small, **more})[0].training)
            for more in case.variants
        ]
        for field in signature.training_options:
            if not field.computed:
                assert all(config[field.name] == field.default for config in configs), (
                    f"{name}: {field.name}"
                )
            for option in re.findall(r"--([a-z-]+)", field.computed):
                assert option.replace("-", "_") in {
                    keyword.name for keyword in signature.model_options
                }, f"{name}: --{option}"


def test_help_says_what_a_computed_default_depends_on(capsys: pytest.CaptureFixture[str]) -> None:
    for name, expected in {
        "fusion": "chosen by the number of rows",
        "captioner": "4 with --language-model",
    }.items():
        assert expected in " ".join(
            run_command(capsys, "train", name, "--help").replace("│", "").split()
        )


def test_ctrl_c_exits_with_130_without_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_commands, "emit", interrupted)
    assert "Interrupted." in run_command(capsys, "doctor", status=130)


def test_closed_pipe_is_not_an_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "sensorium", "completion", "bash"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


def test_commands_are_thin() -> None:
    folder = Path(inspect_commands.__file__).parent
    for path in folder.glob("*.py"):
        for f in ast.parse(path.read_text()).body:
            if isinstance(f, ast.FunctionDef):
                first = f.body[min(1, len(f.body) - 1)]  # after the docstring
                assert (f.end_lineno or 0) - first.lineno < 20, f"{path.name}: {f.name}"


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n != "sensorium"])
def test_examples_are_understood(name: str) -> None:
    for line in EXAMPLES[name].split(" > ")[0].strip().splitlines():
        argv = shlex.split(line)[1:]
        if any(".py" in word for word in argv):
            continue
        _, _, unknown, *_ = app.build_app(argv).parse_known_args(argv)
        assert not unknown, line


def test_cli_page_is_what_help_says() -> None:
    path = Path(__file__).parents[1] / "docs" / "generate.py"
    spec = spec_from_file_location("generate", path)
    assert spec
    assert spec.loader
    generate = module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.is_current(), "docs/cli.md is outdated: run python docs/generate.py"
