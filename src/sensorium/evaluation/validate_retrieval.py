"""Validation and sample sheets of recipes that embed: retrieval among the held-out rows.

N rows   C distinct captions   E width of the embedding space
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.evaluation.contact_sheet import add_frame, draw_contact_sheet
from sensorium.evaluation.spec import Validate, ValidationResult, WriteSamples, picklable
from sensorium.metrics.retrieval import random_recall, retrieval_metrics
from sensorium.models.towers import Towers
from sensorium.nn.tokens import ColumnKey
from sensorium.objectives.contrastive import drop_incomplete_rows

MAX_VALIDATION_ROWS = 5_000  # during training; `evaluate` uses all rows
_MAX_SAMPLE_ROWS = 512  # candidates of a sample sheet
EmbeddingPair = tuple[Float[Tensor, "N E"], Float[Tensor, "N E"]]
Pair = tuple[ColumnKey, ColumnKey]


class RowIds(NamedTuple):
    """Row numbers and groups of embedded rows.

    Attributes:
        row: index in the dataset.
        group: rows of one group match each other.
    """

    row: Int[Tensor, "N"]
    group: Int[Tensor, "N"]


@torch.inference_mode()
def embed_rows(
    model: Towers,
    prepared: PreparedDataset,
    rows: np.ndarray,
    columns: Pair,
    *,
    tower_names: Pair | None = None,
    batch_size: int = 256,
) -> tuple[EmbeddingPair, RowIds]:
    """Embed two columns of the rows in which both are present.

    Args:
        model: the towers.
        prepared: the dataset.
        rows: rows to embed.
        columns: the two columns.
        tower_names: the towers that read them, if not their own (captions in another language).
        batch_size: rows at a time.

    Returns:
        (embeddings of both columns, their rows).
    """
    was_training = model.training
    model.eval()
    parts: list[tuple[Tensor, ...]] = []
    for batch_rows in iter_batches(rows, batch_size):
        batch = drop_incomplete_rows(prepared.batch(batch_rows), *columns)
        embeddings = [
            model[tower](batch[column])
            for column, tower in zip(columns, tower_names or columns, strict=True)
        ]
        if batch.row is None or batch.group is None:
            raise ValueError("The batch has no row numbers or groups.")
        parts.append((*embeddings, batch.row, batch.group))
    model.train(was_training)
    a, b, row, group = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return (a, b), RowIds(row, group)


def compute_retrieval_metrics(
    model: Towers,
    prepared: PreparedDataset,
    rows: np.ndarray,
    columns: Pair,
    *,
    tower_names: Pair | None = None,
    embed_text: Callable[[list[int]], Float[Tensor, "N E"]] | None = None,
) -> dict[str, float]:
    """Return recall in both directions between images and their distinct captions.

    A caption that several rows share is one candidate and one query. A match is a row's own
    caption and that of any row of its group, and vice versa.

    Args:
        model: the towers.
        prepared: the dataset.
        rows: rows to evaluate.
        columns: the image and the text column.
        tower_names: the towers that read them, if not their own.
        embed_text: embeds the texts of rows; by default their first captions are embedded.
    """
    (images, texts), ids = embed_rows(model, prepared, rows, columns, tower_names=tower_names)
    if embed_text is not None:
        texts = embed_text(ids.row.tolist())
    captions = [prepared.caption(columns[1], row) for row in ids.row.tolist()]
    first_rows, relevant = match_captions(captions, ids.group)
    metrics = {"rows": float(len(captions)), "captions": float(len(first_rows))}
    metrics |= retrieval_metrics(images, texts[first_rows], relevant, ("image", "text"))
    for k in (1, 10):
        both = random_recall(relevant, k) + random_recall(relevant.T, k)
        metrics[f"random recall@{k}"] = both / 2
    return metrics


def match_captions(
    captions: Sequence[str], group: Int[Tensor, "N"]
) -> tuple[Int[Tensor, "C"], Bool[Tensor, "N C"]]:
    """Find the C distinct captions.

    Returns:
        (the first row of each, which of them match each row).
    """
    caption_ids: dict[str, int] = {}
    first_rows = []
    ids = []
    for row, caption in enumerate(captions):
        if caption not in caption_ids:
            caption_ids[caption] = len(caption_ids)
            first_rows.append(row)
        ids.append(caption_ids[caption])
    groups = group.unique(return_inverse=True)[1]
    in_group = torch.zeros(int(groups.max()) + 1, len(first_rows), dtype=torch.bool)
    in_group[groups, torch.tensor(ids)] = True  # a caption matches all rows of its group
    return torch.tensor(first_rows), in_group[groups]


@picklable
def retrieval_validator(columns: Pair) -> Validate[Towers]:
    """Return a validator of retrieval on at most `MAX_VALIDATION_ROWS` rows, evenly spaced."""

    def validate(model: Towers, prepared: PreparedDataset, rows: np.ndarray) -> ValidationResult:
        rows = rows[:: max(1, -(-len(rows) // MAX_VALIDATION_ROWS))]
        return ValidationResult(compute_retrieval_metrics(model, prepared, rows, columns))

    return validate


@picklable
def retrieval_sample_writer(
    columns: Pair, num_queries: int = 8, num_results: int = 8
) -> WriteSamples[Towers]:
    """Return a writer of contact sheets: captions with the images retrieved for them.

    Matches have a green frame.
    """

    def write(model: Towers, prepared: PreparedDataset, rows: np.ndarray, path: Path) -> None:
        (images, texts), ids = embed_rows(model, prepared, rows[:_MAX_SAMPLE_ROWS], columns)
        queries = torch.linspace(0, len(texts) - 1, min(num_queries, len(texts))).long()
        hits = (texts[queries] @ images.T).topk(min(num_results, len(images))).indices
        lines = []
        for query, query_hits in zip(queries.tolist(), hits.tolist(), strict=True):
            results = []
            for hit in query_hits:
                image = prepared.image(columns[0], int(ids.row[hit]))
                is_match = bool(ids.group[hit] == ids.group[query])
                results.append(add_frame(image) if is_match else image)
            lines.append((prepared.caption(columns[1], int(ids.row[query])), results))
        draw_contact_sheet(lines).save(path)

    return write
