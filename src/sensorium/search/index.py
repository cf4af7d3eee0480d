"""A search index: embed a column once, store it durably, find rows by words and by vectors.

N rows   D width   B queries   k results
"""

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sensorium.data.bad_samples import BadSample
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.search.build import build_store
from sensorium.search.embedding import EmbeddingModel, embed_values, normalize
from sensorium.search.exact import ExactEngine, SearchEngine
from sensorium.search.folder import HEADER_FILE
from sensorium.search.hybrid import (
    Ranking,
    VectorCandidates,
    num_candidates,
    rank_by_both,
    rank_by_vectors,
    rank_by_words,
)
from sensorium.search.query import (
    QUERY_KINDS,
    as_query_lists,
    check_search,
    collect_inputs,
    describe_value,
    query_thumbnail,
    row_info_of,
)
from sensorium.search.results import Hit, RowInfo, SearchResult
from sensorium.search.store import Store
from sensorium.search.word_index import WordIndex

MAX_SAMPLE_ROWS = 4096  # from which the distribution of a query's cosines is taken
ENGINES = ("exact", "faiss")


class Index:
    """Rows that can be searched; created by `build` or `open`.

    Args:
        store: the rows on disk.
        model: the model that embeds queries; None: the run that built the index, loaded when
            needed.
        engine: "exact" or "faiss".

    Attributes:
        bad_samples: values that `build` could not use and left out.

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
        self._vectors = self._sample = np.zeros((0, store.header.dim), np.float32)
        self._words = WordIndex(store)
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
            SensoriumError: a larger fraction of the values than the dataset's
                `max_invalid_fraction` cannot be used, or the column or split does not exist.
        """
        folder = Path(tempfile.mkdtemp(prefix="index-") if path is None else path)
        bad_samples = build_store(
            model, dataset, folder, column=column, split=split, batch_size=batch_size
        )
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
        self._store.check_open()
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
        vector_only: bool = False,
        text_only: bool = False,
    ) -> Any:
        """Find the k best rows.

        A text is searched by words (of captions, categories, tags, identifiers and file names) and
        by its vector; a row with a caption equal to the text comes first. Other queries are
        searched by vectors alone. Several kinds together are one vector: their unit vectors are
        added and normalized.

        Args:
            text: a text, or a list of them.
            image: an image (path, array or PIL image), or a list of them.
            vector: an embedding [D], or several [B, D].
            k: number of results.
            weights: factor of each kind in a combined query, such as {"text": 2}; default 1.
            vector_only: search by vectors alone; the score is the cosine similarity.
            text_only: search a text by words alone, without the model.

        Returns:
            A `SearchResult`; a list of them for lists of queries.

        Raises:
            SensoriumError: a query is empty, cannot be read or has no direction.
        """
        self._store.check_open()
        inputs = collect_inputs(text, image, vector)
        lists, is_list = as_query_lists(inputs)
        weights = weights or {}
        check_search(inputs, k, weights, vector_only=vector_only, text_only=text_only)
        if text_only:
            rankings = [rank_by_words(self._words.search(t), k) for t in lists["text"]]
        else:
            parts = [
                self._to_vectors(kind, values) * weights.get(kind, 1.0)
                for kind, values in lists.items()
            ]
            queries = normalize(sum(parts[1:], parts[0]), "the query")
            is_hybrid = set(inputs) == {"text"} and not vector_only
            texts = lists["text"] if is_hybrid else None
            rankings = self._rank(queries, texts, k)
        results = [
            self._build_result({kind: values[i] for kind, values in lists.items()}, ranking)
            for i, ranking in enumerate(rankings)
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
        self._store.check_open()
        infos = row_infos or [row_info_of(kind, value) for value in values]
        if len(infos) != len(values):
            raise SensoriumError(
                f"add() needs one row info a value: there are {len(values)} values and "
                f"{len(infos)} row infos."
            )
        thumbnails = [query_thumbnail(value) if kind == "image" else b"" for value in values]
        vectors = normalize(self._to_vectors(kind, values), "a row to add")
        packed = [info.pack(png) for info, png in zip(infos, thumbnails, strict=True)]
        ids = self._store.add(vectors, packed)
        self._words.save_if_needed()
        return ids

    def delete(self, ids: Sequence[int]) -> None:
        """Delete rows; they stay deleted after a crash once this returns.

        Raises:
            SensoriumError: an id does not exist. No row is deleted then.
        """
        self._store.delete(ids)

    def compact(self) -> None:
        """Free the disk space of deleted rows; ids do not change."""
        compacted = self._store.compact()
        words = WordIndex(compacted)
        words.save()
        compacted.publish()
        self._store.close()
        self._store, self._words = compacted, words
        self._engine = None
        self._synced_alive = np.zeros(0, bool)

    def verify(self) -> None:
        """Read the whole index and check it.

        Raises:
            SensoriumError: a file is damaged; the message names it.
        """
        self._store.verify()
        self._words.verify()

    def _rank(
        self, queries: Float[np.ndarray, "B D"], texts: Sequence[str] | None, k: int
    ) -> list[Ranking]:
        """Return the ranking of each query: by vectors, and by words where there are texts."""
        engine = self._sync_engine()
        if texts is None:
            return [
                rank_by_vectors(*found) for found in zip(*engine.search(queries, k), strict=True)
            ]
        _, nearest = engine.search(queries, num_candidates(k))
        num_rows = len(self)
        rankings: list[Ranking] = []
        for query, text, near in zip(queries, texts, nearest, strict=True):
            matches = self._words.search(text)
            near = near[near >= 0]
            rows = np.union1d(near, matches.best(num_candidates(k)))
            cosines = (self._vectors[rows].astype(np.float64) @ query).astype(np.float32)
            candidates = VectorCandidates(rows, cosines, self._sample @ query, near[:k], num_rows)
            rankings.append(rank_by_both(matches, candidates, k))
        return rankings

    def _sync_engine(self) -> SearchEngine:
        """Return the engine, after adding new rows to it and removing deleted ones."""
        if self._engine is None:
            from sensorium.search.faiss_engine import FaissEngine  # needs an extra

            self._engine = FaissEngine() if self._engine_name == "faiss" else ExactEngine()
        alive = np.frombuffer(bytes(self._store.rows.alive), bool)
        num_new = len(alive) - len(self._synced_alive)
        if num_new:
            self._vectors = self._store.vectors
            self._engine.add(self._vectors)
            self._store.release_memory()  # the engine keeps what it needs of all rows
        returned = np.concatenate([self._synced_alive, np.ones(num_new, bool)])
        deleted = returned > alive
        if deleted.any():
            self._engine.remove(np.flatnonzero(deleted))
        if num_new or deleted.any():
            self._sample = _sample_rows(self._vectors, alive)
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
            if not header.run or not run.exists():
                raise SensoriumError(
                    f"{self._store.folder} was made by a model that is not at {run}. Say where it "
                    "is with --model, or Index.open(path, model=sn.load(MODEL))."
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

    def _build_result(self, query: Mapping[str, Any], ranking: Ranking) -> SearchResult:
        """Return the hits of one query with their thumbnails."""
        hits: list[Hit] = []
        thumbnails: list[bytes] = []
        for row, score, matched in zip(*ranking, strict=True):
            info, thumbnail = RowInfo.unpack(self._store.read_payload(row))
            hits.append(Hit(self._store.rows.ids[row], score, info, matched))
            thumbnails.append(thumbnail)
        text = " + ".join(describe_value(value) for value in query.values())
        image = query_thumbnail(query["image"]) if "image" in query else b""
        return SearchResult(text, hits, thumbnails, image)


def _sample_rows(vectors: np.ndarray, alive: np.ndarray) -> Float[np.ndarray, "n D"]:
    """Return the vectors that are not deleted; evenly spaced ones if there are many."""
    rows = np.flatnonzero(alive)
    step = max(1, -(-len(rows) // MAX_SAMPLE_ROWS))
    return vectors[rows[::step]]
