"""The README is executed: its commands and its Python, on small data with small models."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from sensorium.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = shlex.split("--dim 64 --image-layers 1 --text-layers 1 --epochs 1 --batch-size 4")
SMALLER = {("train", "clip"): TINY}  # seconds, not minutes
COLORS = ("red", "green", "blue", "black", "white", "orange", "purple", "yellow")


def blocks(language: str) -> list[str]:
    """Return the fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each `sensorium` command."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["sensorium"]:
            yield words[1:]


def output(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return what a command prints on stdout; it must succeed."""
    capsys.readouterr()
    assert app.run(argv) == 0, capsys.readouterr()
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with the data that the README names."""
    here, before = tmp_path_factory.mktemp("readme"), Path.cwd()
    os.chdir(here)
    (here / "photos").mkdir()
    for i, color in enumerate(COLORS * 2):
        Image.new("RGB", (40, 30 + i), color).save(here / "photos" / f"{i:02}.png")
        (here / "photos" / f"{i:02}.txt").write_text(f"image {i}, {color}\n")
    yield here
    os.chdir(before)


def test_every_command_is_understood(place: Path) -> None:
    inline = (f"sensorium {rest}" for rest in re.findall(r"`sensorium ([^`]*)`", README))
    (place / "mine.py").write_text(next(b for b in blocks("python") if "def small_clip" in b))
    lines = [*commands("\n".join(blocks("bash"))), *commands("\n".join(inline))]
    assert len(lines) >= 7
    for argv in lines:
        _, _, rest, *_ = app.build_app(argv).parse_known_args(argv)
        assert not rest, argv


@pytest.mark.usefixtures("no_shape_checks")  # the shapes of an ONNX export are symbols
def test_commands_work(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in commands("\n".join(blocks("bash"))):
        output(capsys, *argv, *SMALLER.get((argv[0], argv[1]), []))
    assert "<img" in (place / "results.html").read_text()
    assert list((place / "exported").glob("*.onnx"))


def test_python_works(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = next(b for b in blocks("python") if "sn.train" in b)
    small = code.replace("dim=128", "dim=64, image_layers=1, text_layers=1, epochs=1")
    small = small.replace("runs/photos", "runs/python")
    assert small != code
    exec(compile(small, "README.md", "exec"), {})
    assert "recall" in capsys.readouterr().out


def test_the_recipe_is_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine.py").write_text(next(b for b in blocks("python") if "def small_clip" in b))
    assert "parameters" in output(capsys, "summary", "./mine.py:small_clip", "--dim", "64")


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, re.M))
def test_make_knows_its_targets(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "pip install" in done.stdout or ".venv/bin" in done.stdout
