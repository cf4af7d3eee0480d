"""Embeddings of a frozen encoder, computed once for all values of a column.

N rows   D width   B batch

The name of a file is a hash of the images or texts, of how they are read, and of the encoder's
weights.
"""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.data.cache.columns import ColumnStore, ImageColumn, TextColumn
from sensorium.data.cache.memoize import memoize_tensor
from sensorium.data.cache.prepared import DataSource, PreparedDataset
from sensorium.data.schema import Schema
from sensorium.io.terminal import SafeConsole
from sensorium.nn.tokens import ColumnKey, column_label

CACHE_VERSION = 1  # of what an encoder returns: another version is computed again
CACHE_FOLDER = "embeddings"
BATCH_SIZE = 64  # values embedded at a time


class EmbeddingColumn:
    """One embedding for each value of a column, zeros where a value is missing.

    Args:
        values: the embeddings.
        column: the column that was embedded.
    """

    def __init__(self, values: Float[Tensor, "N D"], column: ColumnStore):
        self.values = values
        self.valid = column.valid
        self.errors = column.errors

    def batch(
        self,
        rows: Int[np.ndarray, " B"],
        rng: torch.Generator | None,  # noqa: ARG002 - as in ColumnStore
        augment: Mapping[str, float],  # noqa: ARG002 - as in ColumnStore
        group: Int[np.ndarray, " B"] | None = None,  # noqa: ARG002 - as in ColumnStore
    ) -> Tensor:
        """Return the embeddings of some rows."""
        return self.values[torch.from_numpy(rows)]


def embed_column(
    embed: Callable[[Tensor], Float[Tensor, "B D"]],
    fingerprint: str,
    dataset: DataSource,
    column: ColumnKey,
    schema: Schema,
    *,
    quiet: bool = False,
) -> ColumnStore:
    """Embed every value of a column.

    Args:
        embed: embeds a batch of values.
        fingerprint: a hash of its weights.
        dataset: where the values are.
        column: which column.
        schema: how they are read.
        quiet: do not report progress on stderr.

    Returns:
        The embeddings; the column as it is if it has no values, several captions in a row, or
        neither images nor texts.

    Raises:
        SensoriumError: as `PreparedDataset` does.
    """
    prepared = PreparedDataset(dataset, schema, (column,), max_invalid_fraction=1.0, quiet=quiet)
    stored = prepared.columns[column]
    if not isinstance(stored, ImageColumn | TextColumn) or not stored.valid.any():
        return stored
    console = SafeConsole(stderr=True, quiet=quiet)
    if isinstance(stored, TextColumn) and stored.caption_counts.max() > 1:
        note = "several texts per row, so they are embedded in each epoch and not cached"
        console.print(f"{column_label(column)}: {note}")
        return stored

    @torch.inference_mode()
    def compute() -> Float[Tensor, "N D"]:
        rows = stored.valid.nonzero()[0]
        embeddings = torch.cat(
            [embed(stored.batch(batch, None, {})) for batch in iter_batches(rows, BATCH_SIZE)]
        )
        all_rows = embeddings.new_zeros(len(stored.valid), embeddings.shape[1])
        return all_rows.index_copy(0, torch.from_numpy(rows), embeddings)

    content = stored.fingerprint if isinstance(stored, ImageColumn) else _text_fingerprint(stored)
    key = [CACHE_VERSION, fingerprint, content, schema[column].to_json()]
    status = f"embedding {column_label(column)}"
    return EmbeddingColumn(memoize_tensor(CACHE_FOLDER, key, compute, status, console), stored)


def _text_fingerprint(texts: TextColumn) -> str:
    """Return a hash of the texts."""
    digest = hashlib.sha256(texts.ids.tobytes())
    digest.update(texts.caption_counts.tobytes() + texts.lengths.tobytes())
    return digest.hexdigest()
