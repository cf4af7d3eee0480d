"""What the README tells people to type is typed here; what takes minutes is read by the command line and no further."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from test_cli import TINY, photos, said

from sensorium.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SAYS = "--dim 64 --depth 1 --epochs 1 --batch-size 4".split()
SMALLER = {
    ("train", "clip"): TINY,
    ("compare", "fusion"): SAYS,  # seconds, not minutes
    **{("train", name): SAYS for name in ("captioner", "dalle", "fusion")},
}
LONG = ("demo",)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["sensorium"]:
            yield words[1:]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder such as a reader would be in."""
    here, before = tmp_path_factory.mktemp("readme"), Path.cwd()
    os.chdir(here)
    photos(here / "photos")
    Image.new("RGB", (40, 30), "red").save(here / "a.jpg")
    rooms = [f"{i % 7},{'sunny' if i % 2 else 'dark'}" for i in range(60)]
    priced = (f"{room},{90 + 10 * i % 70}" for i, room in enumerate(rooms))
    (here / "homes.csv").write_text("\n".join(["rooms,light,price", *priced]))
    (here / "new.csv").write_text("rooms,light\n3,sunny\n,dark\n")
    yield here
    os.chdir(before)


def test_every_command_is_understood(place: Path) -> None:
    inline = (f"sensorium {rest}" for rest in re.findall(r"`sensorium ([^`]*)`", README))
    (place / "mine.py").write_text(next(b for b in blocks("python") if "def small_clip" in b))
    found = [*commands("\n".join(blocks(""))), *commands("\n".join(inline))]
    assert len(found) >= 8
    for argv in found:
        _, _, rest, *_ = app.build_app(argv).parse_known_args(argv)
        assert not rest, argv


def test_commands_work(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in commands("\n".join(blocks(""))):
        if argv[0] not in LONG:
            said(capsys, *argv, *SMALLER.get((argv[0], argv[1]), []))
    assert "<img" in (place / "results.html").read_text()
    assert len((place / "priced.csv").read_text().splitlines()) == 3


def test_python_works(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = next(b for b in blocks("python") if "sn.train" in b)
    small = code.replace("dim=128", "dim=64, image_layers=1, text_layers=1, epochs=1").replace(
        "runs/photos", "runs/python"
    )
    assert small != code
    exec(compile(small, "README.md", "exec"), {})
    assert "recall" in capsys.readouterr().out


def test_the_recipe_is_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine.py").write_text(next(b for b in blocks("python") if "def small_clip" in b))
    assert "parameters" in said(capsys, "summary", "./mine.py:small_clip", "--dim", "64")


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, re.M))
def test_make_knows_its_targets(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode == 0 and "pip install" in done.stdout) or ".venv/bin" in done.stdout


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_it_stays_short() -> None:
    assert len(README.splitlines()) < 200
