"""Evaluator of retrieval and zero-shot classification with two towers.

N rows of a split   T training rows   C classes   G groups   E width of the embedding space
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.captions import caption_list
from sensorium.data.dataset import Dataset
from sensorium.evaluation.baselines import inverted_pixels, training_rows, unique
from sensorium.evaluation.caption_baseline import PixelCaptionBaseline
from sensorium.evaluation.protocol import Trained
from sensorium.evaluation.report import EvaluationReport
from sensorium.evaluation.retrieval_verdict import (
    MIN_PRETRAINED_ROWS,
    PRETRAINED_REMEDIES,
    RetrievalVerdict,
)
from sensorium.evaluation.spec import EvaluationSpec
from sensorium.evaluation.validate_retrieval import (
    compute_retrieval_metrics,
    embed_rows,
    retrieval_sample_writer,
    retrieval_validator,
)
from sensorium.metrics.retrieval import accuracy, recall_at_k, retrieval_ranks
from sensorium.models.towers import Towers
from sensorium.nn.tokens import ColumnKey, column_label, column_names, l2_normalize

TEMPLATES = ("{}", "a picture of {}", "an icon of {}", "{}, drawn")
HEADLINE_METRICS = (
    "rows",
    "captions",
    "image to text recall@1",
    "image to text recall@10",
    "text to image recall@1",
    "text to image recall@10",
    "median rank",
    "random recall@10",
    "pixel caption recall@1",
    "pixel caption recall@10",
    "pixel neighbour recall@1",
    "pixel neighbour recall@10",
    "zero-shot accuracy",
    "most common class",
)
DEFINITIONS = """\
recall@k: fraction of queries with a match among the k most similar candidates of the same split. A
caption that several rows share is one candidate and one query. A match is a row's own partner and
that of any row of its group: duplicates count as correct, and no copy of a wrong result takes a
second place. Ties count against the model.
median rank: of the first match, from 1, averaged over both directions. random recall: recall of a
random order, likewise averaged.
pixel caption: each image stands for the captions of the training image that is nearest by pixels,
which are compared with the captions of the split by TF-IDF over words and character n-grams;
averaged over both directions.
pixel neighbour: training images sorted by cosine similarity of inverted pixels, at most 64 a side;
recall is over the groups they belong to. It cannot name a group that training does not contain.
zero-shot accuracy: the class whose name, averaged over several templates, is most similar to the
image; most common class is the fraction of rows of that class."""


def retrieval_evaluation(
    columns: tuple[ColumnKey, ColumnKey],
    *,
    min_training_rows: int = MIN_PRETRAINED_ROWS,
    remedies: Sequence[str] = PRETRAINED_REMEDIES,
) -> EvaluationSpec[Towers]:
    """Return how recipes with an image and a text tower are evaluated.

    Args:
        columns: the image and the text column.
        min_training_rows: number of training rows below which a caution is given. Default: that of
            pretrained encoders.
        remedies: what may help where the trained model is near chance. Default: likewise.
    """
    return EvaluationSpec(
        metric="recall@1",
        mode="max",
        validate=retrieval_validator(columns),
        write_samples=retrieval_sample_writer(columns),
        evaluator=evaluate_retrieval,
        assess=RetrievalVerdict(min_training_rows, remedies),
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
    """Evaluate retrieval in both directions, and zero-shot classification.

    Args:
        model: a model with an image and a text tower.
        dataset: the dataset.
        splits: names of the splits.
        text_column: another caption column than the one trained on; several are read as one.
        average_captions: average the embeddings of all captions, instead of the first alone.
        class_column: the category column of zero-shot classification; by default the only one.
        templates: texts with a `{}` for the name of a class.

    Raises:
        SensoriumError: if a column is missing or of another type.
    """
    towers = _get_towers(model)
    image_column, trained_text = model.recipe.data.columns
    text = dataset.schema.resolve_text_columns(text_column or column_names(trained_text))
    prepared = dataset.prepare(model.schema, (image_column, text))
    labels = ClassLabels.from_column(dataset, class_column)
    train_rows = training_rows(dataset, prepared)
    baseline = PixelCaptionBaseline(dataset, prepared, (image_column, text), train_rows)
    embed_text = partial(_embed_captions, model, dataset, text) if average_captions else None
    metrics = {}
    for split in splits:
        rows = prepared.complete_rows(dataset.splits[split])
        if not len(rows):
            continue
        metrics[split] = compute_retrieval_metrics(
            towers,
            prepared,
            rows,
            (image_column, text),
            tower_names=(image_column, trained_text),
            embed_text=embed_text,
        )
        metrics[split] |= baseline.metrics(rows)
        metrics[split] |= _pixel_neighbour_metrics(prepared, image_column, train_rows, rows)
        if labels is not None:
            metrics[split] |= labels.zero_shot_metrics(model, prepared, rows, templates)
    captions = "all, averaged" if average_captions else "the first"
    metadata = {"text": column_label(text), "captions": captions}
    return EvaluationReport(metrics, metadata, "retrieval", HEADLINE_METRICS, DEFINITIONS)


def _get_towers(model: Trained) -> Towers:
    if not isinstance(model.module, Towers):
        raise TypeError(f"{type(model.module).__name__} has no towers.")
    return model.module


def _embed_captions(
    model: Trained, dataset: Dataset, text_column: ColumnKey, rows: list[int]
) -> Float[Tensor, "N E"]:
    """Return the normalized mean of the embeddings of all captions of each row."""
    columns = [dataset.raw(name, rows) for name in column_names(text_column)]
    captions = [
        [text for value in values for text in unique(caption_list(value))]
        for values in zip(*columns, strict=True)
    ]
    embeddings = torch.from_numpy(model.embed(text=[text for row in captions for text in row]))
    parts = embeddings.split([len(row) for row in captions])
    return l2_normalize(torch.stack([part.mean(0) for part in parts]))


def _pixel_neighbour_metrics(
    prepared: PreparedDataset,
    image_column: ColumnKey,
    train_rows: Int[np.ndarray, "T"],
    rows: Int[np.ndarray, "N"],
) -> dict[str, float]:
    """Return the recall of the groups of the training images that are most similar by pixels."""
    train_groups = prepared.groups[train_rows]
    query_groups = prepared.groups[rows]
    if not len(train_rows) or not np.isin(query_groups, train_groups).any():
        return {}
    queries = inverted_pixels(prepared, image_column, rows)
    candidates = inverted_pixels(prepared, image_column, train_rows)
    groups = torch.from_numpy(train_groups).unique()
    group_index = torch.searchsorted(groups, torch.from_numpy(train_groups))
    scores = _max_per_group(queries @ candidates.T, group_index, len(groups))
    relevant = torch.from_numpy(query_groups)[:, None] == groups
    ranks = retrieval_ranks(scores, torch.eye(len(groups)), relevant)
    return {f"pixel neighbour recall@{k}": recall_at_k(ranks, k) for k in (1, 10)}


def _max_per_group(
    scores: Float[Tensor, "N T"], group: Int[Tensor, "T"], num_groups: int
) -> Float[Tensor, "N G"]:
    lowest = scores.new_full((len(scores), num_groups), -2.0)  # below any cosine
    return lowest.scatter_reduce(1, group.expand_as(scores), scores, "amax")


@dataclass(frozen=True)
class ClassLabels:
    """A category column as classes of zero-shot classification.

    Attributes:
        names: names of the classes, sorted.
        row_labels: int64 [rows of the dataset], index of the class of each row; -1: none.
    """

    names: list[str]
    row_labels: np.ndarray

    @classmethod
    def from_column(cls, dataset: Dataset, column: str | None) -> "ClassLabels | None":
        """Return the labels of a column, by default of the only category column.

        Returns:
            The labels; None where no column is named and there is not exactly one, or where the
            column has fewer than two classes.
        """
        candidates = [c.name for c in dataset.schema.columns.values() if c.kind == "category"]
        if column is None and len(candidates) != 1:
            return None
        name = dataset.schema.resolve_column("category", column or candidates[0])
        values = dataset.raw(name, range(len(dataset)))
        names = sorted({str(value) for value in values if value is not None})
        if len(names) < 2:
            return None
        index = {name: i for i, name in enumerate(names)}
        labels = [-1 if value is None else index[str(value)] for value in values]
        return cls(names, np.array(labels))

    def zero_shot_metrics(
        self, model: Trained, prepared: PreparedDataset, rows: np.ndarray, templates: Sequence[str]
    ) -> dict[str, float]:
        """Classify images by the names of the classes (Radford et al. 2021).

        The embedding of a class is the mean over templates of normalized embeddings.
        """
        rows = rows[self.row_labels[rows] >= 0]
        if not len(rows):
            return {}
        image_column = model.recipe.data.columns[0]
        prompts = [template.format(name) for name in self.names for template in templates]
        embeddings = torch.from_numpy(model.embed(text=prompts))
        embeddings = embeddings.view(len(self.names), len(templates), -1)
        class_embeddings = l2_normalize(embeddings.mean(1))
        towers = _get_towers(model)
        (images, _), ids = embed_rows(towers, prepared, rows, (image_column, image_column))
        labels = torch.from_numpy(self.row_labels[ids.row.numpy()])
        most_common = np.bincount(self.row_labels[rows]).max() / len(rows)
        return {
            "zero-shot accuracy": accuracy(images @ class_embeddings.T, labels),
            "most common class": float(most_common),
        }
