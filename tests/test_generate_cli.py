"""The command generate: images into a file, text to the terminal, errors in one line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sensorium.cli import app
from sensorium.errors import escape_controls
from sensorium.models.int8 import Int8Linear

TINY = ["--type", "image=image:size=16", "--epochs", "1", "--batch-size", "4"]
TINY += ["--precision", "fp32", "--dim", "32", "--layers", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Change to a folder with images and a trained run of each generator."""
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


def generate(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> str:
    capsys.readouterr()
    assert app.run(["generate", *argv]) == status, capsys.readouterr()
    out, err = capsys.readouterr()
    return err if status else out


def test_images_are_written_to_a_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "1 in apple.png" in generate(capsys, "dalle", "a red apple", "-o", "apple.png")
    with Image.open("apple.png") as image:
        assert image.size == (16, 16)
    result = json.loads(
        generate(
            capsys, "dalle", "one", "two", "-n", "3", "--seed", "2", "-o", "grid.png", "--json"
        )
    )
    assert result == {"file": "grid.png", "images": 6, "captions": ["one", "two"]}
    first = Path("grid.png").read_bytes()
    generate(capsys, "dalle", "one", "two", "-n", "3", "--seed", "2", "-o", "grid.png")
    assert Path("grid.png").read_bytes() == first
    generate(
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


def test_words_are_generate(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    streamed = generate(capsys, "captioner", "--image", "photos/03.png")
    (text,) = json.loads(generate(capsys, "captioner", "--image", "photos/03.png", "--json"))[
        "text"
    ]
    assert escape_controls(text) == streamed[:-1]
    both = ["captioner", "--image", "photos/03.png", "--image", "photos/04.png"]
    texts = json.loads(generate(capsys, *both, "--num-beams", "2", "--json"))["text"]
    printed = generate(capsys, *both, "--num-beams", "2")[:-1]
    assert "\n".join(map(escape_controls, texts)) == printed
    assert (
        len(generate(capsys, "gpt", "a picture", "--temperature", "1", "-n", "3").splitlines()) >= 3
    )


def test_int8_weights_generate(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = list[Int8Linear]()
    init = Int8Linear.__init__
    monkeypatch.setattr(
        Int8Linear, "__init__", lambda self, *a, **k: (built.append(self), init(self, *a, **k))[1]
    )
    assert generate(capsys, "gpt", "a picture", "--quantize", "int8")
    assert built
    built.clear()
    assert "1 in bytes.png" in generate(
        capsys, "dalle", "a red apple", "-o", "bytes.png", "--quantize", "int8"
    )
    assert built
    assert 'Choose from: "int8"' in generate(
        capsys, "gpt", "a picture", "--quantize", "int4", status=2
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["dalle", "x", "-o", "x.gif"], "does not end in .png"),
        (["dalle", "x", "--num-beams", "3"], "num_beams"),
        (["captioner", "--image", "nowhere.png"], "nowhere.png"),
        (["image_tokenizer", "x"], "Models of dalle, imagen, captioner and gpt do"),
        (["photos", "x"], "photos"),
    ],
)
def test_failure_is_one_line(
    place: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = generate(capsys, *argv, status=1)
    assert message in error
    assert error.startswith("sensorium: ")
    assert error.count("\n") == 1
