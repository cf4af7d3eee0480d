"""A column type from outside the package, examples/points.py: from its file to a reloaded run."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sensorium as sn
from sensorium.cli import app
from sensorium.cli.recipe_signature import run_user_file
from sensorium.data import schema as schemas
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.modalities.tabular import Category
from sensorium.models.towers import Encoder
from sensorium.nn.tokens import valid_mask
from sensorium.recipes.encoders import ENCODERS, add_modality, build_encoder
from sensorium.recipes.recipe import DataSpec, Recipe
from sensorium.recipes.training_config import TrainingConfig

EXAMPLE_FILE = Path(__file__).parents[1] / "examples" / "points.py"


@pytest.fixture
def points_class() -> Iterator[Any]:
    """The modality of the example, registered for one test."""
    run_user_file(str(EXAMPLE_FILE))
    yield schemas.MODALITIES["points"]
    unregister()


def unregister() -> None:
    schemas.MODALITIES.pop("points", None)
    ENCODERS.pop("points", None)
    sys.modules.pop("points", None)


def sample_clouds(n: int) -> list[tuple[str, np.ndarray]]:
    """Return n surfaces of balls and boxes with 20 to 60 points."""
    rng = np.random.default_rng(0)
    clouds = []
    for i in range(n):
        points = rng.normal(size=(rng.integers(20, 60), 3))
        if i % 2:
            points /= np.linalg.norm(points, axis=1, keepdims=True)
        else:
            points /= np.abs(points).max(1, keepdims=True)
        clouds.append(("ball" if i % 2 else "box", points + 5))
    return clouds


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = ["scan,shape"]
    for i, (name, points) in enumerate(sample_clouds(96)):
        np.savetxt(tmp_path / f"{i}.xyz", points)
        lines.append(f"{i}.xyz,{name}")
    (tmp_path / "scans.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "scans.csv"


class Classifier(nn.Module):
    def __init__(self, encoder: Encoder, dim: int, classes: int):
        super().__init__()
        self.encoder = encoder
        self.output = nn.Linear(dim, classes)

    def forward(self, clouds: torch.Tensor) -> torch.Tensor:
        return self.output(self.encoder.pooled(clouds))


def shapes(schema: Schema, *, dim: int = 32, encoder: str = "") -> Recipe:
    """Classify the shape of a scan."""
    points, shape = schema["scan"], schema["shape"]
    assert isinstance(shape, Category)
    model = Classifier(build_encoder(points, encoder, dim, 1), dim, max(1, len(shape.classes)))

    def predict(*, scan: list[Any]) -> list[str | None]:
        with torch.inference_mode():
            classes = model(points.collate([points.load(value) for value in scan])).argmax(1)
        return [shape.decode(index) for index in classes]

    return Recipe(
        model=model,
        objective=lambda model, batch: {
            "model": F.cross_entropy(model(batch["scan"]), batch["shape"])
        },
        verbs={"predict": predict},
        training=TrainingConfig(epochs=20, batch_size=16, lr=1e-2, augment="light"),
        data=DataSpec(
            columns=("scan", "shape"),
            augment={"light": {"scan": {"rotate": 180.0, "jitter": 0.01}}},
        ),
    )


@pytest.mark.usefixtures("points_class")
def test_run_learns_and_reloads_where_the_file_is_imported(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    data = sn.Dataset.open(table)
    assert data.schema.columns["scan"].kind == "points"
    assert "96 of 96 values" in data.schema.columns["scan"].reason
    model = sn.train(shapes, data, out=tmp_path / "run", quiet=True)
    rows = np.concatenate([data.splits["val"], data.splits["test"]])
    scans, truth = data.raw("scan", rows), data.raw("shape", rows)
    predicted = model.predict(scan=scans)
    majority = max(truth.count(name) for name in set(truth)) / len(truth)
    accuracy = np.mean([a == b for a, b in zip(predicted, truth, strict=True)])
    assert accuracy >= 0.9 > majority + 0.2
    unregister()
    with pytest.raises(SensoriumError, match=r"(?s)'points'.*'scan'.*sensorium --use mine.py"):
        sn.load(tmp_path / "run", recipe_fn=shapes)
    run_user_file(str(EXAMPLE_FILE))
    assert sn.load(tmp_path / "run", recipe_fn=shapes).predict(scan=scans) == predicted


def test_use_option_registers_the_modality(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert app.run(["--use", str(EXAMPLE_FILE), "data", str(table), "--json"]) == 0
        columns = json.loads(capsys.readouterr().out)["columns"]
        kinds = {c["name"]: c["kind"] for c in columns}
        assert kinds == {"scan": "points", "shape": "category"}
    finally:
        unregister()
    assert app.run(["data", str(table), "--type", "scan=points"]) == 1
    assert "sensorium --use mine.py" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--use"], ["--use", "nowhere.py"], ["--use", "scans.csv"]])
def test_use_option_without_a_python_file_is_rejected(
    options: list[str], table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run([*options, "data", str(table)]) == 1
    assert "Python file" in capsys.readouterr().err


def test_example_can_be_imported_in_a_new_process() -> None:
    code = (
        "import points\nfrom sensorium.data.schema import MODALITIES\nprint(MODALITIES['points'])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=EXAMPLE_FILE.parent,
    )
    assert "Points" in result.stdout


@pytest.mark.parametrize("name", ["together", "apart"])
def test_encoder_ignores_padding_and_order_of_points(points_class: Any, name: str) -> None:
    torch.manual_seed(0)
    points = points_class()
    encoder = build_encoder(points, name, 16, 2).eval()
    batch = points.fake(3, torch.Generator().manual_seed(0))
    t = encoder(batch)
    for row in range(3):
        alone = points.collate([batch[row, batch[row, :, 3] > 0, :3].numpy()])
        torch.testing.assert_close(
            encoder(alone).x[0], t.x[row][valid_mask(t)[row]], atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            encoder.pooled(alone), encoder.pooled(alone.flip(1)), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 2\n", "N 3"),
        ("a b c\n", "could not convert"),
        ("1 2 3\n4 5\n", "inhomogeneous"),
        ("", "N 3"),
        ("1 2 inf\n", "finite"),
    ],
)
def test_invalid_scan_is_rejected_with_the_reason(
    points_class: Any, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "a.xyz").write_text(content)
    with pytest.raises(ValueError, match=message):
        points_class().load(tmp_path / "a.xyz")


def test_missing_scan_file_is_rejected(points_class: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be opened"):
        points_class().load(tmp_path / "lost.xyz")


class WithoutMethods:
    kind = "bare"


class WithReservedKind:
    kind = "image"


class WithRequiredSetting(Category):
    kind, extensions = "needy", ()

    def __init__(self, size: int):
        self.size = size


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        (WithoutMethods, "lacks extensions, fit, load"),
        (WithReservedKind, "kind is 'image'"),
        (WithRequiredSetting, "needs a default for each"),
    ],
)
def test_invalid_modality_is_not_registered(modality: type, message: str) -> None:
    with pytest.raises(SensoriumError, match=message):
        add_modality(modality, plain=lambda *_: Encoder(nn.Identity()))  # pyright: ignore[reportArgumentType]
    assert not {"bare", "needy"} & {*schemas.MODALITIES, *ENCODERS}
    assert schemas.MODALITIES["image"] is not WithReservedKind


def test_modality_without_encoder_is_not_registered() -> None:
    with pytest.raises(SensoriumError, match="names no encoder"):
        add_modality(type("Fine", (Category,), {"kind": "fine", "extensions": ()}))
    assert not {"fine"} & {*schemas.MODALITIES, *ENCODERS}
