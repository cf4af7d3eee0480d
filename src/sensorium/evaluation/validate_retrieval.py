"""Validation and samples for recipes that embed: how often is the right partner found among the held-out rows?"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.evaluation.contact_sheet import add_frame, draw_contact_sheet
from sensorium.metrics.retrieval import chance_recall, retrieval_metrics
from sensorium.models.towers import Towers
from sensorium.nn.tokens import ColumnKey
from sensorium.objectives.contrastive import drop_incomplete_rows
from sensorium.recipes.recipe import Validate, ValidationResult, WriteSamples

MAX_VALIDATION_ROWS = 5_000  # rows judged while training; `evaluate` judges all
EmbeddingPair = tuple[Float[Tensor, "N E"], Float[Tensor, "N E"]]
Pair = tuple[ColumnKey, ColumnKey]


class Which(NamedTuple):
    """Numbers and groups of rows."""

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
) -> tuple[EmbeddingPair, Which]:
    """Vectors of two columns of `rows` (complete ones only), and which those were.

    `towers`: whose towers read them, if not their own (captions in another language).
    """
    was_training = model.training
    model.eval()
    said: list[tuple[Tensor, ...]] = []
    for start in range(0, len(rows), batch_size):
        batch = drop_incomplete_rows(prepared.batch(rows[start : start + batch_size]), *columns)
        vectors = [
            model[tower](batch[column])
            for column, tower in zip(columns, tower_names or columns, strict=True)
        ]
        assert batch.row is not None
        assert batch.group is not None
        said.append((*vectors, batch.row, batch.group))
    model.train(was_training)
    a, b, row, group = (torch.cat(parts) for parts in zip(*said, strict=True))
    return (a, b), Which(row, group)


def compute_retrieval_metrics(
    model: Towers,
    prepared: PreparedDataset,
    rows: np.ndarray,
    columns: Pair,
    *,
    tower_names: Pair | None = None,
    embed_text: Callable[[list[int]], Float[Tensor, "N E"]] | None = None,
) -> dict[str, float]:
    """Recall both ways between the pictures of `rows` and their distinct captions, beside chance.

    `say`: the text vectors of rows, where their first captions alone will not do.

    A caption that several rows share is one candidate and one question. Right is a row's own caption and that of any
    row of its group, and the other way round.
    """
    (pictures, texts), which = embed_rows(model, prepared, rows, columns, tower_names=tower_names)
    texts = texts if embed_text is None else embed_text(which.row.tolist())
    captions = [prepared.caption(columns[1], row) for row in which.row.tolist()]
    number: dict[str, int] = {}
    ids = torch.tensor([number.setdefault(caption, len(number)) for caption in captions])
    at = {caption: i for i, caption in reversed(list(enumerate(captions)))}
    first = torch.tensor([at[caption] for caption in number])
    groups = which.group.unique(return_inverse=True)[1]
    shows = torch.zeros(int(groups.max()) + 1, len(first), dtype=torch.bool)
    shows[groups, ids] = True  # a caption is right for all of a group that any of it has
    right = shows[groups]
    by_chance = {
        f"chance recall@{k}": (chance_recall(right, k) + chance_recall(right.T, k)) / 2
        for k in (1, 10)
    }
    about = {"rows": float(len(ids)), "captions": float(len(first))}
    return about | retrieval_metrics(pictures, texts[first], right, ("image", "text")) | by_chance


def retrieval_validator(columns: Pair) -> Validate[Towers]:
    """`retrieve`, for a recipe of these two columns, on at most MOST rows, evenly spaced: it compares all with all."""
    return lambda model, prepared, rows: ValidationResult(
        compute_retrieval_metrics(
            model, prepared, rows[:: max(1, -(-len(rows) // MAX_VALIDATION_ROWS))], columns
        )
    )


def retrieval_sample_writer(
    columns: Pair, num_queries: int = 8, num_results: int = 8
) -> WriteSamples[Towers]:
    """A picture: for a few captions of the rows given, the pictures found first; a right one in a green frame."""

    def write(model: Towers, prepared: PreparedDataset, rows: np.ndarray, path: Path) -> None:
        (pictures, texts), which = embed_rows(model, prepared, rows[:512], columns)
        asked = torch.linspace(0, len(texts) - 1, min(num_queries, len(texts))).long()
        found = (texts[asked] @ pictures.T).topk(min(num_results, len(pictures))).indices
        lines = []
        for query, hits in zip(asked.tolist(), found.tolist(), strict=True):
            shown_hits = [prepared.image(columns[0], int(which.row[hit])) for hit in hits]
            right = [bool(which.group[hit] == which.group[query]) for hit in hits]
            lines.append(
                (
                    prepared.caption(columns[1], int(which.row[query])),
                    [add_frame(p) if r else p for p, r in zip(shown_hits, right, strict=True)],
                )
            )
        draw_contact_sheet(lines).save(path)

    return write
