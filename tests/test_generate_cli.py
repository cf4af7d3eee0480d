"""The command generate: pictures into a file, words to the terminal, mistakes in one line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sensorium.cli import app
from sensorium.models.int8 import Int8Linear

TINY = "--type image=image:size=16 --epochs 1 --batch-size 4 --precision fp32 --dim 32 --depth 1".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with pictures and a trained run of each kind, as the current folder."""
    here, before = tmp_path_factory.mktemp("generate"), Path.cwd()
    os.chdir(here)
    (here / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            here / "photos" / f"{i:02}.png"
        )
        (here / "photos" / f"{i:02}.txt").write_text(f"a picture of number {i}\n")
    for recipe, more in {
        "captioner": [],
        "gpt": [],
        "image_tokenizer": [],
        "dalle": ["--tokenizer", "image_tokenizer"],
    }.items():
        assert app.run(["train", recipe, "photos", "--out", recipe, *TINY, *more]) == 0
    yield here
    os.chdir(before)


def said(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> str:
    capsys.readouterr()
    assert app.run(["generate", *argv]) == status, capsys.readouterr()
    out, err = capsys.readouterr()
    return err if status else out


def test_pictures_are_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "1 in apple.png" in said(capsys, "dalle", "a red apple", "-o", "apple.png")
    with Image.open("apple.png") as picture:
        assert picture.size == (16, 16)
    found = json.loads(
        said(capsys, "dalle", "one", "two", "-n", "3", "--seed", "2", "-o", "grid.png", "--json")
    )
    assert found == {"file": "grid.png", "pictures": 6, "captions": ["one", "two"]}
    first = Path("grid.png").read_bytes()
    said(capsys, "dalle", "one", "two", "-n", "3", "--seed", "2", "-o", "grid.png")
    assert Path("grid.png").read_bytes() == first
    said(
        capsys,
        "dalle",
        "one",
        "--image",
        "photos/03.png",
        "--prefix-tokens",
        "8",
        "--guidance-scale",
        "2",
        "-o",
        "kept.png",
    )


def test_words_are_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    streamed = said(capsys, "captioner", "--image", "photos/03.png")
    assert json.loads(said(capsys, "captioner", "--image", "photos/03.png", "--json")) == {
        "text": [streamed[:-1]]
    }
    both = ["captioner", "--image", "photos/03.png", "--image", "photos/04.png"]
    assert json.loads(said(capsys, *both, "--num-beams", "2", "--json"))["text"] == said(
        capsys, *both, "--num-beams", "2"
    )[:-1].split("\n")
    assert len(said(capsys, "gpt", "a picture", "--temperature", "1", "-n", "3").splitlines()) >= 3


def test_weights_in_bytes_answer_too(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[Int8Linear]()
    packed = Int8Linear.__init__
    monkeypatch.setattr(
        Int8Linear, "__init__", lambda self, *a, **k: (made.append(self), packed(self, *a, **k))[1]
    )
    assert said(capsys, "gpt", "a picture", "--quantize", "int8")
    assert made
    made.clear()
    assert "1 in bytes.png" in said(
        capsys, "dalle", "a red apple", "-o", "bytes.png", "--quantize", "int8"
    )
    assert made
    assert 'Choose from: "int8"' in said(capsys, "gpt", "a picture", "--quantize", "int4", status=2)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["dalle", "x", "-o", "x.gif"], "written as .png"),
        (["dalle", "x", "--num-beams", "3"], "not beams"),
        (["captioner", "--image", "nowhere.png"], "nowhere.png"),
        (["image_tokenizer", "x"], "dalle, captioner and gpt do"),
        (["photos", "x"], "not a run"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    place: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = said(capsys, *argv, status=1)
    assert message in error
    assert error.startswith("sensorium: ")
    assert error.count("\n") == 1
