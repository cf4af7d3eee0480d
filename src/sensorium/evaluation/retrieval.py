"""How well a model of two towers retrieves: both ways on each split, beside chance and what pixels alone can do.

N rows of a split   C classes   E width of the shared space
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.evaluation.baselines import inverted_pixels, training_rows
from sensorium.evaluation.protocol import Trained
from sensorium.evaluation.report import EvaluationReport
from sensorium.evaluation.validate_retrieval import (
    compute_retrieval_metrics,
    embed_rows,
    retrieval_sample_writer,
    retrieval_validator,
)
from sensorium.metrics.retrieval import accuracy, recall_at_k, retrieval_ranks
from sensorium.models.towers import Towers
from sensorium.nn.tokens import ColumnKey, column_label, column_names, l2_normalize
from sensorium.recipes.recipe import EvaluationSpec

TEMPLATES = ("{}", "a picture of {}", "an icon of {}", "{}, drawn")
HEADLINE_METRICS = (
    "rows",
    "captions",
    "image to text recall@1",
    "image to text recall@10",
    "text to image recall@1",
    "text to image recall@10",
    "median_rank",
    "chance recall@10",
    "pixel neighbour recall@1",
    "pixel neighbour recall@10",
    "zero-shot accuracy",
    "most common class",
)
DEFINITIONS = """\
recall@k: share of queries with a right answer among the k most similar candidates of the same split. A caption that
several rows share is one candidate and one query. Right is a row's own partner and that of any row of its group:
duplicates count as correct, and no copy of a wrong answer takes a second place. Ties count against the model.
median rank: of the first right answer, from 1, both ways averaged. chance: recall of a random order, likewise.
pixel neighbour: training pictures sorted by the cosine of their inverted pixels, at most 64 a
side; recall is over the groups they show. It cannot name a group it has not seen.
zero-shot accuracy: the class whose name, in several templates averaged, is nearest to the picture; beside it the share
of the most common class."""


def retrieval_evaluation(columns: tuple[ColumnKey, ColumnKey]) -> EvaluationSpec[Towers]:
    """How recipes of two towers are measured."""
    return EvaluationSpec(
        metric="recall@1",
        mode="max",
        validate=retrieval_validator(columns),
        write_samples=retrieval_sample_writer(columns),
        evaluator=evaluate_retrieval,
    )


def evaluate_retrieval(
    model: Trained,
    dataset: Dataset,
    splits: Sequence[str],
    *,
    text_column: str | Sequence[str] | None = None,
    average_captions: bool = False,
    class_column: str | None = None,
    templates: Sequence[str] = TEMPLATES,
) -> EvaluationReport:
    """Retrieval both ways on each split, beside chance and the pixel nearest neighbour; zero-shot where classes are.

    text_column: another caption column than the one trained on (another language). every: a row's text is the mean of all its
    captions, not the first alone. classes: a category column for zero-shot classification; by default the only one.
    Raises SensoriumError for a column that is not there.
    """
    assert isinstance(towers := model.module, Towers)
    picture, trained = model.recipe.data.columns
    words = dataset.schema.texts(text_column or column_names(trained))
    prepared = dataset.prepare(model.schema, (picture, words))
    labels = ClassLabels.from_column(dataset, class_column)
    train = training_rows(dataset, prepared)
    figures = {}
    for split in splits:
        rows = prepared.complete_rows(dataset.splits[split])
        if len(rows):
            figures[split] = (
                compute_retrieval_metrics(
                    towers,
                    prepared,
                    rows,
                    (picture, words),
                    tower_names=(picture, trained),
                    embed_text=partial(_embed_captions, model, dataset, words)
                    if average_captions
                    else None,
                )
                | _pixel_neighbour_metrics(prepared, picture, train, rows)
                | (labels.zero_shot_metrics(model, prepared, rows, templates) if labels else {})
            )
    about = {
        "text": column_label(words),
        "captions": "all, averaged" if average_captions else "the first",
    }
    return EvaluationReport(figures, about, "retrieval", HEADLINE_METRICS, DEFINITIONS)


def _embed_captions(
    model: Trained, dataset: Dataset, text_column: ColumnKey, rows: list[int]
) -> Float[Tensor, "N E"]:
    """The mean of what the model says of every caption of a row, as a vector of length one."""
    lists = [
        [
            list(dict.fromkeys([c] if isinstance(c, str) else c or ()))
            for c in dataset.raw(name, rows)
        ]
        for name in column_names(text_column)
    ]
    each = [[text for captions in row for text in captions] for row in zip(*lists, strict=True)]
    vectors = torch.from_numpy(model.embed(text=[text for row in each for text in row]))
    return l2_normalize(
        torch.stack([part.mean(0) for part in vectors.split([len(row) for row in each])])
    )


def _pixel_neighbour_metrics(
    prepared: PreparedDataset, image_column: ColumnKey, train_rows: np.ndarray, rows: np.ndarray
) -> dict[str, float]:
    """What the nearest training pictures, by pixels alone, say a picture shows."""
    known, asked = prepared.groups[train_rows], prepared.groups[rows]
    if not len(train_rows) or not np.isin(asked, known).any():
        return {}
    inked, trained = (inverted_pixels(prepared, image_column, r) for r in (rows, train_rows))
    groups = torch.from_numpy(known).unique()
    best = _max_per_group(
        inked @ trained.T, torch.searchsorted(groups, torch.from_numpy(known)), len(groups)
    )
    rank = retrieval_ranks(best, torch.eye(len(groups)), torch.from_numpy(asked)[:, None] == groups)
    return {f"pixel neighbour recall@{k}": recall_at_k(rank, k) for k in (1, 10)}


def _max_per_group(
    scores: Float[Tensor, "N T"], group: Int[Tensor, "T"], num_groups: int
) -> Float[Tensor, "N G"]:
    best = scores.new_full((len(scores), num_groups), -2.0)
    return best.scatter_reduce(1, group.expand_as(scores), scores, "amax")


@dataclass(frozen=True)
class ClassLabels:
    """A category column as classes to be told apart by their names."""

    names: list[str]
    row_labels: np.ndarray  # int64 [rows of the data set]; -1: none

    @classmethod
    def from_column(cls, dataset: Dataset, column: str | None) -> ClassLabels | None:
        """The column asked for, or the only category column; None where there is none."""
        found = [c.name for c in dataset.schema.columns.values() if c.kind == "category"]
        if column is None and len(found) != 1:
            return None
        name = dataset.schema.resolve_column("category", column or found[0])
        values = dataset.raw(name, range(len(dataset)))
        names = sorted({str(v) for v in values if v is not None})
        number = {n: i for i, n in enumerate(names)}
        return (
            cls(names, np.array([-1 if v is None else number[str(v)] for v in values]))
            if len(names) > 1
            else None
        )

    def zero_shot_metrics(
        self, model: Trained, prepared: PreparedDataset, rows: np.ndarray, templates: Sequence[str]
    ) -> dict[str, float]:
        """Classes by name: each in every template, normalised, averaged, normalised again (Radford et al. 2021)."""
        rows = rows[self.row_labels[rows] >= 0]
        if not len(rows):
            return {}
        picture = model.recipe.data.columns[0]
        asked = [t.format(n) for n in self.names for t in templates]
        texts = torch.from_numpy(model.embed(text=asked)).view(len(self.names), len(templates), -1)
        assert isinstance(towers := model.module, Towers)
        (vectors, _), which = embed_rows(towers, prepared, rows, (picture, picture))
        label = torch.from_numpy(self.row_labels[which.row.numpy()])
        common = np.bincount(self.row_labels[rows]).max() / len(rows)
        scores = vectors @ l2_normalize(texts.mean(1)).T
        return {"zero-shot accuracy": accuracy(scores, label), "most common class": float(common)}
