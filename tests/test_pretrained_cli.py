"""Commands take pretrained weights where they take a run, and refuse them in one line elsewhere."""

import csv
import json
from pathlib import Path

import pytest
import torch
from fixtures.language_model import language_model as language_model
from fixtures.shape_checks import unchecked_shapes as unchecked_shapes
from fixtures.squares import clip_folder as clip_folder
from fixtures.squares import data as data

from sensorium.cli import app
from sensorium.data.dataset import Dataset

transformers = pytest.importorskip("transformers")


def run_command(capsys: pytest.CaptureFixture[str], *argv: str | Path, status: int = 0) -> str:
    """Return what a command prints: stdout where it succeeds, else stderr."""
    capsys.readouterr()
    assert app.run([*map(str, argv)]) == status, capsys.readouterr()
    out, err = capsys.readouterr()
    return err if status else out


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of transformers with random weights and three classes."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        id2label={0: "cat", 1: "dog", 2: "fish"},
        label2id={"cat": 0, "dog": 1, "fish": 2},
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def images(data: Dataset) -> Path:
    return Path(data.source["path"])


def test_pretrained_clip_is_indexed_and_searched(
    clip_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "index"
    assert "48 rows" in run_command(capsys, "index", clip_folder, images, "--out", index)
    found = json.loads(run_command(capsys, "search", index, "a red square", "-k", "3", "--json"))
    assert len(found["hits"]) == 3


def test_pretrained_clip_is_evaluated_zero_shot(
    clip_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads(
        run_command(capsys, "evaluate", clip_folder, images, "--out", tmp_path, "--json")
    )
    assert set(report["metrics"]) == {"val", "test"}
    assert 0 <= report["metrics"]["test"]["image to text recall@1"] <= 1
    assert (tmp_path / "evaluation.json").is_file()
    assert not (clip_folder / "evaluation.json").exists()
    assert "Name the data" in run_command(capsys, "evaluate", clip_folder, status=1)


@pytest.mark.usefixtures("unchecked_shapes")
def test_pretrained_clip_is_exported(
    clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["export", clip_folder, "--format", "torch", "--out", tmp_path / "graphs"]
    assert "maximum difference" in run_command(capsys, *argv)
    assert {path.name for path in (tmp_path / "graphs").glob("*.pt2")} == {
        "image.pt2",
        "caption.pt2",
    }


def test_pretrained_language_model_generates(
    language_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["generate", language_model, "a red", "--max-tokens", "4"]
    text = json.loads(run_command(capsys, *argv, "--json"))["text"]
    assert run_command(capsys, *argv) == f"{text[0]}\n"


def test_pretrained_classifier_predicts_a_table(
    classifier_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "classes.csv"
    assert "48 rows" in run_command(capsys, "predict", classifier_folder, images, "-o", out)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48
    assert {row["class"] for row in rows} <= {"cat", "dog", "fish"}
    assert all(1 / 3 <= float(row["class probability"]) <= 1 for row in rows)


def test_summary_describes_pretrained_weights(
    clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "clip" in run_command(capsys, "summary", clip_folder)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["interpolate"], "needs a run"),
        (["generate"], "does not generate images or text"),
        (["predict", "table.csv"], "cannot predict"),
    ],
)
def test_verbs_that_pretrained_weights_lack_are_refused(
    clip_folder: Path,
    images: Path,
    argv: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rest = [images] if len(argv) > 1 else []
    error = run_command(capsys, argv[0], clip_folder, *rest, status=1)
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("order", ["model first", "data first", "option"])
def test_untrained_model_indexes_a_folder_in_any_order_of_arguments(
    clip_folder: Path,
    images: Path,
    tmp_path: Path,
    order: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = {
        "model first": [clip_folder, images],
        "data first": [images, clip_folder],
        "option": [images, "--model", clip_folder],
    }[order]
    assert "48 rows" in run_command(capsys, "index", *argv)
    index = tmp_path / f"{images.name}.index"
    found = json.loads(run_command(capsys, "search", index, "a red square", "-k", "3", "--json"))
    assert len(found["hits"]) == 3
    moved = tmp_path / "moved.index"
    index.rename(moved)
    search = ["search", moved, "red", "-k", "1", "--model", clip_folder, "--json"]
    assert len(json.loads(run_command(capsys, *search))["hits"]) == 1


def test_index_without_a_model_or_with_two_says_what_to_name(
    clip_folder: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--model MODEL" in run_command(capsys, "index", images, status=1)
    assert f"{clip_folder} DATA" in run_command(capsys, "index", clip_folder, status=1)
    argv = ["index", clip_folder, images, "--model", clip_folder]
    assert "named twice" in run_command(capsys, *argv, status=1)


def test_index_of_a_weight_file_without_config_is_searched(
    clip_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = clip_folder / "model.safetensors", tmp_path / "x.index"
    run_command(capsys, "index", images, "--model", weights, "--out", out)
    found = json.loads(run_command(capsys, "search", out, "red", "-k", "2", "--json"))
    assert len(found["hits"]) == 2
