"""The settings of recipe `fusion` that `fusion.py` measures."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from fusion_data import TASKS
from fusion_rows import Rows


def train_model(splits: dict[str, Rows], seed: int, folder: Path, **keywords: Any) -> Any:
    """Return the recipe's model, trained on the task's own table with its column `split`."""
    from sensorium.recipes import fusion
    from sensorium.training.loop import train

    os.environ["SENSORIUM_HOME"] = str(folder / "home")
    rows, task = splits["train"], TASKS[splits["train"].folder.name]
    return train(
        fusion,
        open_table(rows),
        out=folder / "run",
        quiet=True,
        target=task.target,
        columns=tuple(rows.columns),
        seed=seed,
        **keywords,
    )


def open_table(rows: Rows) -> Any:
    """Return the task's own table as a dataset."""
    from sensorium.data.dataset import Dataset

    task = TASKS[rows.folder.name]
    kinds = rows.kinds | {task.target: "numeric" if task.regression else "category"}
    return Dataset.open(rows.folder / "table.csv", types=kinds)


def predict(model: Any, rows: Rows) -> np.ndarray:
    """Return predictions for rows: numbers, or probabilities in the order of the rows' classes."""
    return to_array(
        model.predict(**{name: raw(rows, name) for name in rows.columns})[
            TASKS[rows.folder.name].target
        ],
        rows,
    )


def to_array(prediction: Any, rows: Rows) -> np.ndarray:
    """Return a prediction as `figures` takes it."""
    if not rows.classes:
        return np.array(prediction.value, float)
    return prediction.probability[:, [prediction.classes.index(name) for name in rows.classes]]


def raw(rows: Rows, name: str) -> list[Any]:
    """Return values of a column as `predict` takes them; None where missing."""
    kind = rows.kinds[name]
    if kind == "numeric":
        return [None if np.isnan(v) else v for v in rows.columns[name]]
    return [
        None if not v else rows.folder / v if kind in ("image", "series") else v
        for v in rows.columns[name]
    ]


def auto(splits: dict[str, Rows], seed: int) -> np.ndarray:
    """Train without any option and predict."""
    return ours(splits, seed, head="auto")


def ours(splits: dict[str, Rows], seed: int, **keywords: Any) -> np.ndarray:
    """Train with defaults, but the network alone, and predict."""
    keywords = {"head": "network"} | keywords
    with tempfile.TemporaryDirectory() as folder:
        return predict(train_model(splits, seed, Path(folder), **keywords), splits["test"])


def quick(splits: dict[str, Rows], seed: int) -> np.ndarray:
    """Train eight epochs with boosted trees."""
    return ours(splits, seed, head="boosting", epochs=8)


def pretrained(splits: dict[str, Rows], seed: int) -> np.ndarray:
    """Train with the pretrained text encoder in TEXT_MODEL, frozen."""
    return ours(splits, seed, encoders=_reading(splits))


def tuned(splits: dict[str, Rows], seed: int) -> np.ndarray:
    """Train with that text encoder adapted by LoRA."""
    return ours(splits, seed, encoders=_reading(splits), encoder_train=_training(splits, "lora"))


def retrained(splits: dict[str, Rows], seed: int, **keywords: Any) -> np.ndarray:
    """Train with all layers of that text encoder trained further."""
    return ours(
        splits, seed, encoders=_reading(splits), encoder_train=_training(splits, "all"), **keywords
    )


def advised(splits: dict[str, Rows], seed: int) -> np.ndarray:
    """Train the recommended setting: boosted trees, and that text encoder trained further."""
    return ours(
        splits,
        seed,
        head="boosting",
        encoders=_reading(splits),
        encoder_train=_training(splits, "all"),
    )


def _reading(splits: dict[str, Rows]) -> dict[str, str]:
    return dict.fromkeys(splits["train"].of("text"), os.environ["TEXT_MODEL"])


def _training(splits: dict[str, Rows], mode: str) -> dict[str, str]:
    return dict.fromkeys(splits["train"].of("text"), mode)
