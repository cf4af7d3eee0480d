"""The verb `predict`: raw values of any columns in, any of them missing; labels, numbers, ranks or tags out.

    N rows   C classes   K numbers that a head says
"""
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.fused import Fused
from sensorium.modalities.modality import Modality
from sensorium.modalities.table import Category, Number, Ordinal
from sensorium.modalities.tags import Tags
from sensorium.objectives.supervised import NARROW, WIDE, decreasing
from sensorium.verbs.asked import batched, collated, lists
from sensorium.verbs.verb import at_rest


@dataclass(frozen=True)
class Prediction:
    """What is said of one target. `value`: a label, a number or a list of tags for each row.

    probability: of each class or tag, in the order of `classes`. spread: standard deviation of a number.
    """

    value: list[Any]
    classes: tuple[str, ...] = ()
    probability: Float[np.ndarray, "N C"] | None = None
    spread: Float[np.ndarray, "N"] | None = None


class Predictor:
    """predict(photo=["a.jpg"], title=["red shoe"], size=[None]) → {target: Prediction}."""

    def __init__(self, model: Fused, columns: Mapping[str, Modality], targets: Mapping[str, Modality]):
        self.model, self.columns, self.targets = model, dict(columns), dict(targets)

    def __call__(self, rows: Sequence[Mapping[str, Any]] | None = None, /, *, batch_size: int = 256,
                 **columns: Any) -> dict[str, Prediction]:
        """What is said of each target of each row.

        Give `rows`, a mapping from column to raw value for each; or columns as keywords, each a list with None where a
        value is missing. A column not named is missing in all rows. A row without any value gets what is said where
        nothing is known, with a warning.
        Raises SensoriumError for a column the model does not read, and naming a value that cannot be read.
        """
        given = lists(columns if rows is None else self._turned(rows), list(self.columns), " and ".join(self.targets))
        n = len(rows) if rows is not None else len(next(iter(given.values()), []))
        given = {name: [None if _absent(v) else v for v in values] for name, values in given.items()}
        empty = sum(all(values[i] is None for values in given.values()) for i in range(n))
        if empty:
            warnings.warn(f"{empty} of {n} rows have a value in none of {', '.join(self.columns)}: they get what is "
                          "said where nothing is known", stacklevel=2)
        said = [self._said(some) for some, _ in batched(given, n, 1, batch_size)]
        return {name: read(modality, torch.cat([part[name] for part in said]))
                for name, modality in self.targets.items()}

    def _turned(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names or list(self.columns)[:1]}

    def _said(self, some: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {"row": torch.arange(len(next(iter(some.values()))))}
        for name, values in some.items():
            batch |= collated(name, self.columns[name], values)
        with at_rest(self.model), torch.inference_mode():
            return self.model(batch)


def read(target: Modality, said: Float[Tensor, "N K"]) -> Prediction:
    """A head's numbers as what they mean."""
    match target:
        case Ordinal(classes=classes):
            passed = decreasing(said).sigmoid()
            edge = torch.ones_like(passed[:, :1])
            probability = torch.cat([edge, passed], 1) - torch.cat([passed, 0 * edge], 1)
            return Prediction([classes[i] for i in (passed > 0.5).sum(1).tolist()], classes, probability.numpy())
        case Category(classes=classes):
            return Prediction([classes[i] for i in said.argmax(1).tolist()], classes, said.softmax(1).numpy())
        case Tags(tags=tags):
            sure = said.sigmoid()
            return Prediction([target.show(row) for row in sure], tags, sure.numpy())
        case Number():
            spread = (said[:, 1].clamp(NARROW, WIDE) / 2).exp() * target.std
            return Prediction([target.show(value) for value in said[:, 0]], spread=spread.numpy())
    raise SensoriumError(f"a column of kind {target.kind} cannot be predicted")


def _absent(value: Any) -> bool:
    return value is None or isinstance(value, float) and math.isnan(value)
