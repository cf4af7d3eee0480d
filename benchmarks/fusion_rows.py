"""Read the tasks of `fusion_data.py` as every model gets them, and compute metrics."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from fusion_data import Task, csv_rows


@dataclass(frozen=True)
class Rows:
    """Rows of one split.

    Numbers are floats, NaN where missing; others are strings, "" where missing.
    """

    columns: dict[str, list[Any]]
    kinds: dict[str, str]
    target: np.ndarray  # float [N], or int [N]: the class; -1 one that no row to train on has
    classes: tuple[str, ...]  # empty for regression
    folder: Path

    def __len__(self) -> int:
        return len(self.target)

    def of(self, *kinds: str) -> dict[str, list[Any]]:
        """Return the columns of these types."""
        return {name: values for name, values in self.columns.items() if self.kinds[name] in kinds}

    def only(self, names: Iterable[str]) -> "Rows":
        """Return the rows with these columns only."""
        return replace(self, columns={name: self.columns[name] for name in names})


def read(folder: Path, task: Task) -> dict[str, Rows]:
    """Return the rows of each split of a task that `fusion_data.py` has built."""
    table = csv_rows((folder / task.name / "table.csv").read_bytes())
    names = [name for name in table[0] if name not in (task.target, "split")]
    kinds = {name: task.kinds.get(name, "numeric") for name in names}
    labels = sorted({row[task.target] for row in table if row["split"] == "train"})
    classes = () if task.regression else tuple(labels)
    number = {name: i for i, name in enumerate(classes)}
    splits = {}
    for split in ("train", "val", "test"):
        rows = [row for row in table if row["split"] == split]
        columns = {name: [_cell(row[name], kinds[name]) for row in rows] for name in names}
        target = [
            number.get(row[task.target], -1) if classes else float(row[task.target]) for row in rows
        ]
        splits[split] = Rows(columns, kinds, np.array(target), classes, folder / task.name)
    return splits


def _cell(text: str, kind: str) -> str | float:
    return text if kind != "numeric" else float(text) if text else float("nan")


def calendar(value: str) -> list[float]:
    """Return a date as month, day of the year, weekday and hour; NaN where there is none."""
    if not value:
        return [float("nan")] * 4
    date = datetime.fromisoformat(value)
    return [date.month, date.timetuple().tm_yday, date.weekday(), date.hour]


def channels(rows: Rows, path: str) -> np.ndarray:
    """Return a series as float [T C], NaN where a value is missing."""
    with open(rows.folder / path) as file:
        width = file.readline().count(",") + 1
        return np.genfromtxt(file, delimiter=",", dtype=np.float64).reshape(-1, width)


def figures(task: Task, rows: Rows, predictions: np.ndarray) -> dict[str, float]:
    """Return metrics of numbers [N], or of probabilities [N K]; the first is the main one.

    r2: 1 - the mean squared error over the target's variance. auroc: area under the ROC curve of
    the rarer class. balanced: mean recall over classes. nll: mean -log p of the true class.
    """
    target = rows.target
    if task.regression:
        error = predictions - target
        return {
            "r2": 1 - float(np.mean(error**2) / target.var()),
            "rmse": float(np.mean(error**2) ** 0.5),
            "mae": float(np.abs(error).mean()),
        }
    right = predictions.argmax(1) == target
    recalls = [right[target == k].mean() for k in np.unique(target)]
    p = np.clip(predictions[np.arange(len(target)), target], 1e-6, 1)
    usual = {
        "accuracy": float(right.mean()),
        "balanced": float(np.mean(recalls)),
        "nll": float(-np.log(p).mean()),
    }
    return {"auroc": auroc(predictions, target)} | usual if task.rare else usual


def auroc(predictions: np.ndarray, target: np.ndarray) -> float:
    """Return the area under the ROC curve of the rarer of two classes; ties count half."""
    rarer = int(np.bincount(target, minlength=2).argmin())
    scores, is_it = predictions[:, rarer], target == rarer
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n = int(is_it.sum())
    return float((rank[is_it].sum() - n * (n + 1) / 2) / (n * (len(target) - n)))
