"""Large tables: memory per row from file to batches, and predictions written in chunks."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sensorium.cli import predict_file
from sensorium.data.dataset import Dataset
from sensorium.recipes import RECIPES
from sensorium.training.loop import train

ROWS = 4000
MEASURE = """
import json, sys, tracemalloc
from sensorium.data.dataset import Dataset
columns = ("a", "b", "shop", "title", "price")
def open_and_prepare():
    data = Dataset.open(sys.argv[1])
    assert data.splits
    yield tracemalloc.get_traced_memory()
    schema = data.schema.fit(data, data.splits["train"], columns)
    tracemalloc.reset_peak()
    prepared = data.prepare(schema, columns, quiet=True)
    assert len(prepared.groups) == len(data)
    yield tracemalloc.get_traced_memory()
for _ in open_and_prepare(): pass                              # imports do not count
tracemalloc.start()
print(json.dumps(list(open_and_prepare())))
"""


def table(folder: Path, n: int) -> Path:
    """Numbers with gaps, names and short texts; about 90 bytes a row."""
    rng = np.random.default_rng(0)
    x, shop = rng.normal(size=(6, n)), rng.integers(0, 40, (3, n))
    lines = [
        ",".join(
            [
                *(f"{v:.4f}" if v > -2 else "" for v in x[:, i]),
                *(f"shop {s}" for s in shop[:, i]),
                f"a plain chair of colour {i}",
                f"{x[0, i] + shop[0, i]:.3f}",
            ]
        )
        for i in range(n)
    ]
    path = folder / "table.csv"
    path.write_text("a,b,c,d,e,f,shop,maker,town,title,price\n" + "\n".join(lines) + "\n")
    return path


def test_memory_per_row(tmp_path: Path) -> None:
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, str(table(tmp_path, ROWS))],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (opened, opening_peak), (prepared, preparing_peak) = json.loads(output)
    assert opening_peak < 1300 * ROWS, "bytes, while the file is read and split"
    assert opened < 400 * ROWS, "bytes, once it is open"
    assert prepared < 800 * ROWS, "bytes, with all values ready for batches"
    assert preparing_peak < 1300 * ROWS, "bytes, while they are prepared"


def test_predictions_are_written_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset.open(table(tmp_path, 600))
    model = train(
        RECIPES["fusion"],
        data.take(np.arange(200)),
        out=tmp_path / "run",
        target="price",
        columns=("a", "b", "shop"),
        dim=8,
        epochs=1,
        quiet=True,
    )
    sizes, predict = list[int](), model.recipe.verbs["predict"]
    real = type(predict).__call__

    def counted(self: object, rows: list[object], **how: object) -> object:
        sizes.append(len(rows))
        return real(self, rows, **how)

    monkeypatch.setattr(predict_file, "CHUNK_ROWS", 250)
    monkeypatch.setattr(type(predict), "__call__", counted)
    assert predict_file.predict_file(model, data, tmp_path / "out.csv") == 600
    assert sizes == [250, 250, 100]
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 601
