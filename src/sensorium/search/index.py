"""A search index: embed a column once, store it durably, find the nearest rows of a query.

N rows   D width   B queries   k results
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sensorium.data.bad_samples import BadSample, check_invalid_fraction
from sensorium.data.batching import iter_batches
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.search.embedding import (
    EmbeddingModel,
    embed_values,
    embedding_dim,
    find_image_column,
    normalize,
    read_batch,
    select_rows,
)
from sensorium.search.exact import ExactEngine, SearchEngine
from sensorium.search.header import HEADER_FILE, IndexHeader
from sensorium.search.query import (
    QUERY_KINDS,
    as_query_lists,
    collect_inputs,
    describe_value,
    query_thumbnail,
)
from sensorium.search.results import Hit, RowInfo, SearchResult
from sensorium.search.store import Store

ENGINES = ("exact", "faiss")


class Index:
    """Rows that can be searched; created by `build` or `open`.

    Args:
        store: the rows on disk.
        model: the model that embeds queries; None: the run that built the index, loaded when
            needed.
        engine: "exact" or "faiss".

    Attributes:
        bad_samples: values that `build` could not read and left out.

    Example:
        index = Index.build(model, dataset, "photos-index")
        for hit in index.search(text="a red bicycle", k=5):
            print(hit.score, hit.info.name)
    """

    def __init__(
        self, store: Store, model: EmbeddingModel | None = None, engine: str = "exact"
    ) -> None:
        if engine not in ENGINES:
            raise SensoriumError(f"engine={engine!r} is not one of {', '.join(ENGINES)}.")
        self.bad_samples: list[BadSample] = []
        self._store = store
        self._engine_name = engine
        self._engine: SearchEngine | None = None  # created by the first search
        self._synced_alive = np.zeros(0, bool)  # which rows the engine has and returns
        self._model = self._check_fingerprint(model) if model is not None else None

    @classmethod
    def build(
        cls,
        model: EmbeddingModel,
        dataset: Dataset,
        path: str | Path | None = None,
        *,
        column: str | None = None,
        split: str | None = None,
        batch_size: int = 256,
    ) -> "Index":
        """Embed a column of a dataset and store it.

        An older index at `path` is replaced once the new one is complete.

        Args:
            model: a model with the verb `embed`.
            dataset: the data.
            path: a new folder, or an index; None: a temporary folder, removed with the index.
            column: the column to embed; None: the image column, else the text column.
            split: index only the rows of this split.
            batch_size: rows embedded at once.

        Raises:
            SensoriumError: too many values cannot be read (the data set's `max_invalid_fraction`),
                or the column or split does not exist.
        """
        folder = Path(tempfile.mkdtemp(prefix="index-") if path is None else path)
        name = column or find_image_column(dataset) or dataset.schema.resolve_column("text", None)
        kind = dataset.schema.columns[name].kind
        rows = select_rows(dataset, split)
        bad_samples: list[BadSample] = []
        header = IndexHeader(
            dim=embedding_dim(model, dataset, name, rows),
            fingerprint=model.fingerprint,
            run=_relative_run_path(model, folder),
        )
        with Store.create(folder, header) as store:
            for batch_rows in iter_batches(rows, batch_size):
                values, infos = read_batch(dataset, name, batch_rows, bad_samples)
                if values:
                    store.add(embed_values(model, kind, values), infos)
            check_invalid_fraction(bad_samples, len(rows), dataset.max_invalid_fraction)
            store.publish()
        index = cls.open(folder, model=model)
        index.bad_samples = bad_samples
        if path is None:
            weakref.finalize(index, shutil.rmtree, folder, ignore_errors=True)
        return index

    @classmethod
    def open(
        cls, path: str | Path, *, model: EmbeddingModel | None = None, engine: str = "exact"
    ) -> "Index":
        """Open an index, or the one in a run folder.

        Args:
            path: the folder.
            model: the model that embeds queries; None: the run that built the index, loaded when
                needed.
            engine: "exact", or "faiss" (approximate, for millions of rows).

        Raises:
            SensoriumError: there is no index, a file of it is damaged, or another model built it.
        """
        path = Path(path)
        in_run = path / "index"
        if not (path / HEADER_FILE).exists() and (in_run / HEADER_FILE).exists():
            path = in_run
        return cls(Store.open(path), model, engine)

    def __len__(self) -> int:
        return len(self._store)

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock, so that other processes can change the index."""
        self._store.close()

    def search(
        self,
        *,
        text: str | Sequence[str] | None = None,
        image: Any = None,
        vector: Any = None,
        k: int = 10,
        weights: Mapping[str, float] | None = None,
    ) -> Any:
        """Find the k nearest rows.

        Several kinds together are one query: their unit vectors are added and normalized.

        Args:
            text: a text, or a list of them.
            image: an image (path, array or PIL image), or a list of them.
            vector: an embedding [D], or several [B, D].
            k: number of results.
            weights: factor of each kind in a combined query, such as {"text": 2}; default 1.

        Returns:
            A `SearchResult`; a list of them for lists of queries.

        Raises:
            SensoriumError: a query is empty, cannot be read or has no direction.
        """
        inputs = collect_inputs(text, image, vector)
        lists, is_list = as_query_lists(inputs)
        weights = weights or {}
        if k < 1:
            raise SensoriumError(f"-k must be at least 1, not {k}.")
        if set(weights) - set(inputs):
            raise SensoriumError(
                f"weights={weights!r} has kinds that the query does not have: it has "
                f"{', '.join(inputs)}."
            )
        parts = [
            self._to_vectors(kind, values) * weights.get(kind, 1.0)
            for kind, values in lists.items()
        ]
        queries = normalize(sum(parts[1:], parts[0]), "the query")
        scores, rows = self._sync_engine().search(queries, k)
        results = [
            self._build_result(
                {kind: values[i] for kind, values in lists.items()}, scores[i], rows[i]
            )
            for i in range(len(queries))
        ]
        return results if is_list else results[0]

    def add(
        self,
        *,
        text: Sequence[str] | None = None,
        image: Sequence[Any] | None = None,
        vector: Any = None,
        row_infos: Sequence[RowInfo] | None = None,
    ) -> list[int]:
        """Add values of one kind; they survive a crash once this returns.

        Args:
            text: texts.
            image: images (paths, arrays or PIL images).
            vector: embeddings [N, D].
            row_infos: what to show of each; None: its text, image or file name.

        Returns:
            Their ids, which are never reused.

        Raises:
            SensoriumError: there is not exactly one kind, or a value cannot be read.
        """
        inputs = collect_inputs(text, image, vector)
        if len(inputs) != 1:
            raise SensoriumError(
                f"add() takes one of {', '.join(QUERY_KINDS)}, not {', '.join(inputs) or 'none'}."
            )
        lists, _ = as_query_lists(inputs)
        ((kind, values),) = lists.items()
        infos = row_infos or [_default_row_info(kind, value) for value in values]
        if len(infos) != len(values):
            raise SensoriumError(
                f"add() needs one row info a value: there are {len(values)} values and "
                f"{len(infos)} row infos."
            )
        thumbnails = [query_thumbnail(value) if kind == "image" else b"" for value in values]
        vectors = normalize(self._to_vectors(kind, values), "a row to add")
        packed = [info.pack(png) for info, png in zip(infos, thumbnails, strict=True)]
        return self._store.add(vectors, packed)

    def delete(self, ids: Sequence[int]) -> None:
        """Delete rows; they stay deleted after a crash once this returns.

        Raises:
            SensoriumError: an id does not exist. No row is deleted then.
        """
        self._store.delete(ids)

    def compact(self) -> None:
        """Free the disk space of deleted rows; ids do not change."""
        self._store = self._store.compact()
        self._engine = None
        self._synced_alive = np.zeros(0, bool)

    def verify(self) -> None:
        """Read the whole index and check it.

        Raises:
            SensoriumError: a file is damaged; the message names it.
        """
        self._store.verify()

    def _sync_engine(self) -> SearchEngine:
        """Return the engine, after adding new rows to it and removing deleted ones."""
        if self._engine is None:
            from sensorium.search.faiss_engine import FaissEngine  # needs an extra

            self._engine = FaissEngine() if self._engine_name == "faiss" else ExactEngine()
        alive = np.frombuffer(self._store.alive, np.uint8) > 0
        num_new = len(alive) - len(self._synced_alive)
        if num_new:
            self._engine.add(self._store.vectors)
            self._store.release_memory()  # the engine keeps what it needs of all rows
        returned = np.concatenate([self._synced_alive, np.ones(num_new, bool)])
        deleted = returned > alive
        if deleted.any():
            self._engine.remove(np.flatnonzero(deleted))
        self._synced_alive = alive
        return self._engine

    def _to_vectors(self, kind: str, values: Sequence[Any]) -> Float[np.ndarray, "B D"]:
        """Return the unit vectors of values of one kind."""
        if kind != "vector":
            return embed_values(self._load_model(), kind, values)
        vectors = np.asarray(values, np.float32)
        dim = self._store.header.dim
        if vectors.shape[1:] != (dim,):
            raise SensoriumError(
                f"vector has shape {vectors.shape[1:]}; this index has vectors of {dim} numbers."
            )
        return normalize(vectors, "a vector")

    def _load_model(self) -> EmbeddingModel:
        """Return the model that built this index."""
        if self._model is None:
            header = self._store.header
            run = self._store.folder / header.run
            if not header.run or not (run / "config.json").exists():
                raise SensoriumError(
                    f"{self._store.folder} was made by a model that is not at {run}. Say where it "
                    "is with --run, or Index.open(path, model=sn.load(RUN))."
                )
            from sensorium.loading import load  # searching by vectors needs no model

            self._model = self._check_fingerprint(load(run))
        return self._model

    def _check_fingerprint(self, model: EmbeddingModel) -> EmbeddingModel:
        """Return the model if it built this index."""
        expected = self._store.header.fingerprint
        if model.fingerprint != expected:
            raise SensoriumError(
                f"{self._store.folder} was made by another model (weights {expected[:12]}, not "
                f"{model.fingerprint[:12]}), so scores would be meaningless. Open it with that "
                "model, or build the index again."
            )
        return model

    def _build_result(
        self, query: Mapping[str, Any], scores: np.ndarray, rows: np.ndarray
    ) -> SearchResult:
        """Return the hits of one query with their thumbnails."""
        hits: list[Hit] = []
        thumbnails: list[bytes] = []
        for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
            if row < 0:  # fewer than k rows
                continue
            info, thumbnail = RowInfo.unpack(self._store.read_payload(row))
            hits.append(Hit(self._store.ids[row], score, info))
            thumbnails.append(thumbnail)
        text = " + ".join(describe_value(value) for value in query.values())
        image = query_thumbnail(query["image"]) if "image" in query else b""
        return SearchResult(text, hits, thumbnails, image)


def _relative_run_path(model: EmbeddingModel, folder: Path) -> str:
    """Return the run folder of a model, relative to the index folder; "" if it has none."""
    run = getattr(model, "folder", None)
    return os.path.relpath(Path(run).resolve(), folder.resolve()) if run else ""


def _default_row_info(kind: str, value: Any) -> RowInfo:
    """Return what to show of an added value."""
    return RowInfo(describe_value(value), kind, [value] if kind == "text" else [])
