"""Build the rows of an index from a dataset."""

import os
from pathlib import Path

from sensorium.data.bad_samples import BadSample, check_invalid_fraction
from sensorium.data.batching import iter_batches
from sensorium.data.dataset import Dataset
from sensorium.search.embedding import (
    EmbeddingModel,
    embed_rows,
    embedding_dim,
    find_image_column,
    read_batch,
    select_rows,
)
from sensorium.search.header import IndexHeader
from sensorium.search.store import Store
from sensorium.search.word_index import WordIndex


def build_store(
    model: EmbeddingModel,
    dataset: Dataset,
    folder: Path,
    *,
    column: str | None = None,
    split: str | None = None,
    batch_size: int = 256,
) -> list[BadSample]:
    """Embed a column of a dataset and store it; an older index is replaced once this one is whole.

    Args:
        model: a model with the verb `embed`.
        dataset: the data.
        folder: a new folder, or an index.
        column: the column to embed; None: the image column, else the text column.
        split: index only the rows of this split.
        batch_size: rows embedded at once.

    Returns:
        The values that cannot be used; their rows are left out.

    Raises:
        SensoriumError: a larger fraction of the rows than the dataset allows cannot be used, or the
            column or split does not exist.
    """
    name = column or find_image_column(dataset) or dataset.schema.resolve_column("text", None)
    rows = select_rows(dataset, split)
    bad_samples: list[BadSample] = []
    header = IndexHeader(
        dim=embedding_dim(model, dataset, name, rows),
        fingerprint=model.fingerprint,
        run=_relative_run_path(model, folder),
    )
    with Store.create(folder, header) as store:
        for batch_rows in iter_batches(rows, batch_size):
            batch = read_batch(dataset, name, batch_rows, bad_samples)
            vectors, infos = embed_rows(model, batch, bad_samples)
            if infos:
                store.add(vectors, infos)
        check_invalid_fraction(bad_samples, len(rows), dataset.max_invalid_fraction)
        WordIndex(store).save()
        store.publish()
    return bad_samples


def _relative_run_path(model: EmbeddingModel, folder: Path) -> str:
    """Return the run folder of a model, relative to the index folder; "" if it has none."""
    run = getattr(model, "folder", None)
    return os.path.relpath(Path(run).resolve(), folder.resolve()) if run else ""
