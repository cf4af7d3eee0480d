"""A kind of column from outside the package: examples/points.py, from its file to a run that is read again."""

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
from sensorium.cli import app, recipe_options
from sensorium.data import schema as schemas
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.modalities.tabular import Category
from sensorium.models.towers import Encoder
from sensorium.nn.tokens import valid_mask
from sensorium.recipes.encoders import ENCODERS, add_modality, build_encoder
from sensorium.recipes.recipe import DataSpec, Recipe
from sensorium.recipes.training_config import TrainingConfig

FILE = Path(__file__).parents[1] / "examples" / "points.py"


@pytest.fixture
def added() -> Iterator[Any]:
    """The class of the example, known for the length of a test."""
    recipe_options.run_user_file(str(FILE))
    yield schemas.MODALITIES["points"]
    forget()


def forget() -> None:
    schemas.MODALITIES.pop("points", None)
    ENCODERS.pop("points", None)
    sys.modules.pop("points", None)


def clouds(n: int) -> list[tuple[str, np.ndarray]]:
    """Balls and boxes of 20 to 60 points on their surface."""
    rng, made = np.random.default_rng(0), []
    for i in range(n):
        at = rng.normal(size=(rng.integers(20, 60), 3))
        at /= (
            np.linalg.norm(at, axis=1, keepdims=True) if i % 2 else np.abs(at).max(1, keepdims=True)
        )
        made.append(("ball" if i % 2 else "box", at + 5))
    return made


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = ["scan,shape"]
    for i, (name, at) in enumerate(clouds(96)):
        np.savetxt(tmp_path / f"{i}.xyz", at)
        lines.append(f"{i}.xyz,{name}")
    (tmp_path / "scans.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "scans.csv"


class Guess(nn.Module):
    def __init__(self, encode: Encoder, dim: int, classes: int):
        super().__init__()
        self.encode, self.head = encode, nn.Linear(dim, classes)

    def forward(self, clouds: torch.Tensor) -> torch.Tensor:
        return self.head(self.encode.pooled(clouds))


def shapes(schema: Schema, *, dim: int = 32, how: str = "") -> Recipe:
    """Which shape a scan is of."""
    points, shape = schema["scan"], schema["shape"]
    assert isinstance(shape, Category)
    model = Guess(build_encoder(points, how, dim, 1), dim, max(1, len(shape.classes)))

    def predict(*, scan: list[Any]) -> list[str]:
        with torch.inference_mode():
            found = model(points.collate([points.load(one) for one in scan])).argmax(1)
        return [shape.decode(one) for one in found]

    return Recipe(
        model=model,
        objective=lambda model, batch: {
            "model": F.cross_entropy(model(batch["scan"]), batch["shape"])
        },
        verbs={"predict": predict},
        training=TrainingConfig(epochs=20, batch_size=16, lr=1e-2, augment="light"),
        data=DataSpec(
            columns=("scan", "shape"), augment={"light": {"scan": {"turn": 180.0, "jitter": 0.01}}}
        ),
    )


def test_a_run_learns_from_it_and_is_read_again_where_the_file_is_named(
    added: Any, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    data = sn.Dataset.open(table)
    assert data.schema.columns["scan"].kind == "points"
    assert data.schema.columns["scan"].reason == "96 of 96 values end in .xyz and 96 exist"
    model = sn.train(shapes, data, out=tmp_path / "run", quiet=True)
    held = np.concatenate([data.splits["val"], data.splits["test"]])
    scans, truth = data.raw("scan", held), data.raw("shape", held)
    said = model.predict(scan=scans)
    usual = max(truth.count(name) for name in set(truth)) / len(truth)
    assert np.mean([a == b for a, b in zip(said, truth, strict=True)]) >= 0.9 > usual + 0.2
    forget()
    with pytest.raises(
        SensoriumError, match=r"'scan' is of the kind 'points'.*sensorium --use mine.py"
    ):
        sn.load(tmp_path / "run", recipe=shapes)
    recipe_options.run_user_file(str(FILE))
    assert sn.load(tmp_path / "run", recipe=shapes).predict(scan=scans) == said


def test_on_the_command_line(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert app.run(["--use", str(FILE), "data", str(table), "--json"]) == 0
        kinds = {c["name"]: c["kind"] for c in json.loads(capsys.readouterr().out)["columns"]}
        assert kinds == {"scan": "points", "shape": "category"}
    finally:
        forget()
    assert app.run(["data", str(table), "--column", "scan=points"]) == 1
    assert "sensorium --use mine.py" in capsys.readouterr().err
    for wrong in (["--use"], ["--use", "nowhere.py"], ["--use", str(table)]):
        assert app.run([*wrong, "data", str(table)]) == 1
        assert "there is no such Python file" in capsys.readouterr().err


def test_it_can_be_imported_in_a_fresh_python() -> None:
    code = "import points, sensorium as sn; from sensorium.data.schema import MODALITIES; print(MODALITIES['points'])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=FILE.parent
    )
    assert "Points" in done.stdout


@pytest.mark.parametrize("how", ["together", "apart"])
def test_padding_and_the_order_of_points_change_nothing(added: Any, how: str) -> None:
    torch.manual_seed(0)
    points = added()
    read = build_encoder(points, how, 16, 2).eval()
    batch = points.fake(3, torch.Generator().manual_seed(0))
    said = read(batch)
    for row in range(3):
        alone = points.collate([batch[row, batch[row, :, 3] > 0, :3].numpy()])
        torch.testing.assert_close(
            read(alone).x[0], said.x[row][valid_mask(said)[row]], atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            read.pooled(alone), read.pooled(alone.flip(1)), atol=1e-5, rtol=1e-4
        )


def test_bad_scans_say_why(added: Any, tmp_path: Path) -> None:
    for text, says in (
        ("1 2\n", "N 3"),
        ("a b c\n", "could not convert"),
        ("1 2 3\n4 5\n", "inhomogeneous"),
        ("", "N 3"),
        ("1 2 inf\n", "finite"),
    ):
        (tmp_path / "a.xyz").write_text(text)
        with pytest.raises(ValueError, match=says):
            added().load(tmp_path / "a.xyz")
    with pytest.raises(ValueError, match="cannot be opened"):
        added().load(tmp_path / "lost.xyz")


def test_what_is_no_modality_is_refused() -> None:
    class Bare:
        kind = "bare"

    class Taken:
        kind = "image"

    class Needy(Category):
        kind, endings = "needy", ()

        def __init__(self, size: int):
            self.size = size

    for wrong, says in (
        (Bare, "lacks endings, fit, load"),
        (Taken, "not taken"),
        (Needy, "default for each"),
    ):
        with pytest.raises(SensoriumError, match=says):
            add_modality(wrong, plain=lambda *given: given)  # pyright: ignore
    with pytest.raises(SensoriumError, match="names no encoder"):
        add_modality(type("Fine", (Category,), {"kind": "fine", "endings": ()}))
    assert not {"bare", "needy", "fine"} & {*schemas.MODALITIES, *ENCODERS}
