"""Predictions as rows of a table: the names of their columns, and their cells."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from sensorium.inference.predict import Prediction
from sensorium.modalities.base import Modality
from sensorium.modalities.tabular import Numeric

SUFFIXES = {  # appended to an output column whose name is taken
    "": "predicted",
    "row": "name",
    "low": "bound",
    "high": "bound",
    "std": "deviation",
    "probability": "confidence",
    "unreadable": "columns",
}
Headings = dict[tuple[str, str], str]  # (target, part of its prediction) -> output column


def name_headings(targets: Mapping[str, Modality], taken: Collection[str] = ()) -> Headings:
    """Return a distinct output column for every part of every prediction.

    Targets keep their names. A part whose column would have a taken name, such as the lower bound
    of `temp` next to a target `temp low`, gets a suffix: `temp low (bound)`.

    Args:
        targets: The target columns.
        taken: Names of other output columns, such as inputs that are kept.
    """
    parts = {
        name: ("low", "high", "std") if isinstance(target, Numeric) else ("probability",)
        for name, target in targets.items()
    }
    wanted = [(name, "", name) for name in targets]
    wanted += [("", "row", "row")]
    wanted += [
        (name, part, f"{name} {part}") for name, several in parts.items() for part in several
    ]
    wanted += [("", "unreadable", "unreadable")]
    headings: Headings = {}
    used = set(taken)
    for name, part, heading in wanted:
        while heading in used:
            heading += f" ({SUFFIXES[part]})"
        headings[name, part] = heading
        used.add(heading)
    return headings


def prediction_fields(prediction: Prediction, i: int) -> dict[str, Any]:
    """Return the prediction of one target for row i, part by part, numbers with few digits."""
    if prediction.std is not None and prediction.interval is not None:
        std = float(prediction.std[i])
        low, high = (
            shorten(end, std) if math.isfinite(end) else None
            for end in prediction.interval[i].tolist()
        )
        value = shorten(prediction.value[i], std)
        return {"": value, "low": low, "high": high, "std": shorten(std, std)}
    probability = () if prediction.probability is None else prediction.probability[i]
    confidences = {
        name: round(float(p), 6) for name, p in zip(prediction.classes, probability, strict=False)
    }
    return {"": prediction.value[i], "probability": confidences}


def shorten(value: float, std: float) -> float:
    """Return a number with the digits of a float32, or more where `std` needs them."""
    short = float(str(np.float32(value)))
    if abs(short - value) <= 1e-3 * std or not math.isfinite(value):
        return short
    decimals = 3 - math.floor(math.log10(std)) if std > 0 else 6
    return round(value, max(0, decimals))


def confidence(probability: Any, label: Any) -> Any:
    """Return the probability of a label, those of several tags, or the highest of all."""
    if isinstance(label, list):
        return [probability[tag] for tag in label]
    if label is None:
        return max(probability.values(), default=None)
    return probability[label]


def is_data_frame(rows: object) -> bool:
    """Return whether an object is a pandas DataFrame, without importing pandas."""
    kind = type(rows)
    return kind.__module__.partition(".")[0] == "pandas" and kind.__name__ == "DataFrame"


def frame_columns(frame: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the columns of a DataFrame that a model reads, with None for a missing value."""
    columns: dict[str, list[Any]] = {}
    for name in names:
        if name in frame.columns:
            missing = frame[name].isna().tolist()
            values = frame[name].tolist()
            columns[name] = [
                None if absent else _plain_value(value)
                for value, absent in zip(values, missing, strict=True)
            ]
    return columns


def to_frame(
    predictions: Mapping[str, Prediction], targets: Mapping[str, Modality], index: Any
) -> Any:
    """Return predictions as a DataFrame with the columns of `sensorium predict`."""
    import pandas as pd  # pyright: ignore[reportMissingImports] - the caller has it

    headings = name_headings(targets)
    columns: dict[str, list[Any]] = {}
    for name, prediction in predictions.items():
        for i in range(len(prediction.value)):
            fields = prediction_fields(prediction, i)
            if "probability" in fields:
                fields["probability"] = confidence(fields["probability"], fields[""])
            for part, value in fields.items():
                columns.setdefault(headings[name, part], []).append(value)
    return pd.DataFrame(columns, index=index)


def _plain_value(value: Any) -> Any:
    """Return a date as text, as it is in a file."""
    return value.isoformat() if hasattr(value, "isoformat") else value
