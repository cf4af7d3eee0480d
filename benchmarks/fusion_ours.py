"""Ours in `fusion.py`: the recipe `fusion` as it comes, told only which columns there are and which is the target."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from fusion_data import TASKS
from fusion_rows import Rows


def trained(splits: dict[str, Rows], seed: int, folder: Path, **keywords: Any) -> Any:
    """The recipe's model, trained on the task's own table: it reads `train` and `val` there by the column `split`."""
    from sensorium.recipes import fusion
    from sensorium.training.loop import train

    os.environ["SENSORIUM_HOME"] = str(folder / "home")
    rows, task = splits["train"], TASKS[splits["train"].folder.name]
    return train(
        fusion,
        opened(rows),
        out=folder / "run",
        quiet=True,
        target=task.target,
        columns=tuple(rows.columns),
        seed=seed,
        **keywords,
    )


def opened(rows: Rows) -> Any:
    """The task's own table, as a data set."""
    from sensorium.data.dataset import Dataset

    task = TASKS[rows.folder.name]
    kinds = rows.kinds | {task.target: "numeric" if task.regression else "category"}
    return Dataset.open(rows.folder / "table.csv", types=kinds)


def said(model: Any, rows: Rows) -> np.ndarray:
    """What the model says of rows: numbers, or probabilities in the order of the rows' classes."""
    return told(
        model.predict(**{name: raw(rows, name) for name in rows.columns})[
            TASKS[rows.folder.name].target
        ],
        rows,
    )


def told(found: Any, rows: Rows) -> np.ndarray:
    """A prediction as `figures` takes it."""
    if not rows.classes:
        return np.array(found.value, float)
    return found.probability[:, [found.classes.index(name) for name in rows.classes]]


def raw(rows: Rows, name: str) -> list[Any]:
    """Values of a column as they are given to `predict`; None where missing."""
    kind = rows.kinds[name]
    if kind == "numeric":
        return [None if np.isnan(v) else v for v in rows.columns[name]]
    return [
        None if not v else rows.folder / v if kind in ("image", "series") else v
        for v in rows.columns[name]
    ]


def ours(splits: dict[str, Rows], seed: int, **keywords: Any) -> np.ndarray:
    """Trained and asked once."""
    with tempfile.TemporaryDirectory() as folder:
        return said(trained(splits, seed, Path(folder), **keywords), splits["test"])


def quick(splits: dict[str, Rows], seed: int) -> np.ndarray:
    """Eight epochs, and trees."""
    return ours(splits, seed, head="boosting", epochs=8)


def pretrained(splits: dict[str, Rows], seed: int) -> np.ndarray:
    """With the trained text model of the folder TEXT_MODEL, frozen, as the reader of words."""
    return ours(splits, seed, encoders=_reading(splits))


def tuned(splits: dict[str, Rows], seed: int) -> np.ndarray:
    """The same, with corrections of low rank to what it learned before."""
    return ours(splits, seed, encoders=_reading(splits), encoder_train=_training(splits, "lora"))


def retrained(splits: dict[str, Rows], seed: int, **keywords: Any) -> np.ndarray:
    """The same, all of which learns on."""
    return ours(
        splits, seed, encoders=_reading(splits), encoder_train=_training(splits, "all"), **keywords
    )


def advised(splits: dict[str, Rows], seed: int) -> np.ndarray:
    """One rule for every table: boosted trees beside the head, and texts read by that model, all of which learns on."""
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
