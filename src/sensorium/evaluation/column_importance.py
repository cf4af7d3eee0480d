"""Permutation importance of the input columns of a predictor (Breiman 2001).

N rows   C columns
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.splits import sample_evenly
from sensorium.evaluation.missing_values import ScoreFunction
from sensorium.evaluation.report import ReportTable
from sensorium.evaluation.validate_prediction import concat_batches
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.nn.tokens import Batch

MAX_IMPORTANCE_ROWS = 1000
MIN_IMPORTANCE_ROWS = 200
MAX_ENCODED_ROWS = 30_000  # rows predicted in all, where columns have encoders
_ROWS_PER_BATCH = 256
IMPORTANCE_DEFINITION = """\
X lost when shuffled: permutation importance of a column (Breiman 2001), the main metric less that
with the values of the column shuffled among the rows; mean ± standard deviation over the shuffles.
Within noise: no more than two standard deviations above 0. Of columns that say the same, each has
little."""


@dataclass(frozen=True)
class ColumnImportance:
    """What shuffling one column costs.

    Attributes:
        column: its name.
        losses: {target: loss of the main metric in each shuffle}.
    """

    column: str
    losses: Mapping[str, Sequence[float]]

    def mean(self, target: str) -> float:
        """Return the mean loss of the metric."""
        return float(np.mean(self.losses[target]))

    def spread(self, target: str) -> float:
        """Return the standard deviation of the loss over the shuffles."""
        return float(np.std(self.losses[target], ddof=1)) if len(self.losses[target]) > 1 else 0.0

    def is_noise(self, target: str) -> bool:
        """Return whether the loss is no more than its noise."""
        return self.mean(target) <= max(2 * self.spread(target), 1e-9)


def num_importance_rows(model: MultimodalPredictor, num_columns: int, repeats: int) -> int:
    """Return how many rows keep the evaluation of all columns short."""
    if not model.encoder_columns:
        return MAX_IMPORTANCE_ROWS
    affordable = MAX_ENCODED_ROWS // max(1, num_columns * repeats)
    return min(MAX_IMPORTANCE_ROWS, max(MIN_IMPORTANCE_ROWS, affordable))


def permutation_importance(
    model: MultimodalPredictor,
    prepared: PreparedDataset,
    rows: Int[np.ndarray, "N"],
    columns: Sequence[str],
    score: ScoreFunction,
    repeats: int = 5,
    seed: int = 0,
) -> list[ColumnImportance]:
    """Return the importance of each column, the most important one first.

    Every column is shuffled by the same permutations, a missing value along with the others.

    Args:
        model: the predictor.
        prepared: the dataset.
        rows: rows to evaluate.
        columns: input columns.
        score: computes {target: metric} of model outputs and labels; higher is better.
        repeats: shuffles of each column.
        seed: seed of the permutations.
    """
    sample = prepared.batch(rows)
    generator = torch.Generator().manual_seed(seed)
    permutations = [torch.randperm(len(rows), generator=generator) for _ in range(repeats)]
    complete = score(_predict(model, sample), sample)
    result: list[ColumnImportance] = []
    for column in columns:
        losses: dict[str, list[float]] = {target: [] for target in complete}
        for permutation in permutations:
            shuffled = sample.merge(sample.select([column]).take(permutation))
            scores = score(_predict(model, shuffled), sample)
            for target, value in complete.items():
                losses[target].append(value - scores[target])
        result.append(ColumnImportance(column, losses))
    return sorted(result, key=lambda c: -max(map(c.mean, c.losses), default=0.0))


def importance_rows(
    model: MultimodalPredictor, rows: Int[np.ndarray, "N"], num_columns: int, repeats: int
) -> Int[np.ndarray, "M"]:
    """Return the rows on which importance is computed, evenly spaced."""
    return sample_evenly(rows, num_importance_rows(model, num_columns, repeats))


def importance_table(
    split: str,
    importance: Sequence[ColumnImportance],
    metrics: Mapping[str, str],
    alone: Mapping[str, Mapping[str, float]],
    num_rows: tuple[int, int],
) -> ReportTable:
    """Return the table of the columns of one split.

    Args:
        split: name of the split.
        importance: the columns, the most important one first.
        metrics: main metric of each target.
        alone: {column: {target: main metric with this column as the only input}}; may be empty.
        num_rows: rows of the split that were shuffled, and all of them.
    """
    rows: list[dict[str, str | float | None]] = []
    for column in importance:
        cells: dict[str, str | float | None] = {"column": column.column}
        for target, metric in metrics.items():
            if target not in column.losses:
                continue
            prefix = f"{target}: " if len(metrics) > 1 else ""
            cells[f"{prefix}{metric} lost when shuffled"] = column.mean(target)
            cells[f"{prefix}±"] = column.spread(target)
            if alone:
                cells[f"{prefix}{metric} with it alone"] = alone.get(column.column, {}).get(target)
        rows.append(cells)
    repeats = len(next(iter(importance[0].losses.values()), ())) if importance else 0
    used, total = num_rows
    sample = f"{used:,} of {total:,}" if used < total else f"{total:,}"
    note = f"{repeats} shuffles of each column on {sample} rows of {split}."
    return ReportTable(f"{split}: importance of the columns", rows, f"{note} {_noise(importance)}")


def _noise(importance: Sequence[ColumnImportance]) -> str:
    """Return a sentence on the columns that no target loses anything without."""
    names = [c.column for c in importance if c.losses and all(map(c.is_noise, c.losses))]
    if not names:
        return "Every column matters more than the noise."
    pronoun = "it" if len(names) == 1 else "them"
    return (
        f"Shuffling {', '.join(names)} costs no more than noise: the model does not use {pronoun} "
        "on these rows, or another column says the same."
    )


@torch.inference_mode()
def _predict(model: MultimodalPredictor, batch: Batch) -> dict[str, Tensor]:
    """Return the outputs of each target for all rows of a batch."""
    parts = (
        batch.take(torch.from_numpy(i))
        for i in iter_batches(np.arange(len(batch)), _ROWS_PER_BATCH)
    )
    return concat_batches([model(part) for part in parts])
