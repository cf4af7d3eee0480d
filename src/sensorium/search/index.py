"""Search by words, by a picture, by both: embed a column once, keep it in a durable store, ask for the nearest rows.

N rows   D width   B queries   k answers
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

from sensorium.data.bad_samples import BadSample
from sensorium.data.dataset import Dataset
from sensorium.data.validation import check_invalid_fraction
from sensorium.errors import SensoriumError
from sensorium.search.exact import ExactEngine, SearchEngine
from sensorium.search.results import Hit, RowInfo, SearchResult, make_thumbnail
from sensorium.search.store import HEADER_FILE, IndexHeader, Store

MAX_INVALID_FRACTION = 0.01  # share of the rows that may be unreadable
QUERY_KINDS = ("text", "image", "vector")


class Index:
    """Rows that can be searched: made by `build`, found again by `open`. `bad` lists the samples `build` left out."""

    def __init__(self, store: Store, model: Any = None, engine: str = "exact") -> None:
        if engine not in ("exact", "faiss"):
            raise SensoriumError(f"engine {engine!r} is not one of: exact, faiss.")
        self.bad: list[BadSample] = []
        self._store, self._engine_name = store, engine
        self._engine: SearchEngine | None = None  # made by the first search
        self._synced_alive = np.zeros(
            0, bool
        )  # for each row the engine knows, whether it thinks it alive
        self._model = self._check_fingerprint(model) if model is not None else None

    @classmethod
    def build(
        cls,
        model: Any,
        dataset: Dataset,
        path: str | Path | None = None,
        *,
        column: str | None = None,
        split: str | None = None,
        batch_size: int = 256,
    ) -> "Index":
        """Embed a column of a data set and keep it. An older index at `path` gives way once the new one is complete.

        path: a folder; None: a temporary one, gone with the index. column: by default the picture, else the words.
        split: only its rows. Raises SensoriumError where more than 1 % of the values cannot be read.
        """
        folder = Path(tempfile.mkdtemp(prefix="index-") if path is None else path)
        name = column or _image_column(dataset) or dataset.schema.resolve_column("text", None)
        rows, bad = _select_rows(dataset, split), []
        head = IndexHeader(
            _embedding_dim(model, dataset, name, rows),
            model.fingerprint,
            _relative_run_path(model, folder),
        )
        with Store.create(folder, head) as store:
            for start in range(0, len(rows), batch_size):
                values, payloads = _read_batch(dataset, name, rows[start : start + batch_size], bad)
                if values:
                    store.add(_embed(model, dataset.schema.columns[name].kind, values), payloads)
            check_invalid_fraction(bad, len(rows), MAX_INVALID_FRACTION)
            store.publish()
        index = cls.open(folder, model=model)
        index.bad = bad
        if path is None:
            weakref.finalize(index, shutil.rmtree, folder, ignore_errors=True)
        return index

    @classmethod
    def open(cls, path: str | Path, *, model: Any = None, engine: str = "exact") -> "Index":
        """An index, or the one in a run's folder.

        model: to search by raw values; by default the run that made the index, loaded when it is first needed.
        engine: "exact", or "faiss" (approximate, for millions of rows). Raises SensoriumError where there is no index,
        a file of it is damaged, or it was made by another model.
        """
        path = Path(path)
        if not (path / HEADER_FILE).exists() and (path / "index" / HEADER_FILE).exists():
            path = path / "index"
        return cls(Store.open(path), model, engine)

    def __len__(self) -> int:
        return len(self._store)

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others change this index."""
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
        """The k nearest rows: an Answer (a sequence of Hits); a list of Answers where a list of queries was given.

        text, image, vector: one value or a list. Several kinds together are one query: their unit vectors are added,
        by `weights` ({"text": 2}; 1 where it does not say), and made unit again.
        """
        given = {
            kind: value
            for kind, value in zip(QUERY_KINDS, (text, image, vector), strict=True)
            if value is not None
        }
        lists, many = _as_lists(given)
        if k < 1 or (weights and set(weights) - set(given)):
            raise SensoriumError(
                f"search takes k of 1 or more, and weights of what is asked; got {k} and {weights}."
            )
        parts = [
            self._to_vectors(kind, values) * (weights or {}).get(kind, 1.0)
            for kind, values in lists.items()
        ]
        queries = _normalize(sum(parts[1:], parts[0]), "the query")
        scores, rows = self._sync_engine().search(queries, k)
        answers = [
            self._build_result(
                {kind: values[i] for kind, values in lists.items()}, scores[i], rows[i]
            )
            for i in range(len(queries))
        ]
        return answers if many else answers[0]

    def add(
        self,
        *,
        text: Sequence[str] | None = None,
        image: Sequence[Any] | None = None,
        vector: Any = None,
        row_infos: Sequence[RowInfo] | None = None,
    ) -> list[int]:
        """Add values of one kind; when this returns they outlive a crash. Their ids, which are never used again.

        row_infos: what to show for each; by default its words, its picture, its file's name.
        """
        given = {
            kind: value
            for kind, value in zip(QUERY_KINDS, (text, image, vector), strict=True)
            if value is not None
        }
        if len(given) != 1:
            raise SensoriumError(
                f"add takes one of text, image, vector; got {', '.join(given) or 'none'}."
            )
        lists, _ = _as_lists(given)
        ((kind, values),) = lists.items()
        shown = row_infos or [
            RowInfo(_describe_value(v), kind, [v] if kind == "text" else []) for v in values
        ]
        if len(shown) != len(values):
            raise SensoriumError(f"add was given {len(values)} values and {len(shown)} payloads.")
        pictures = [_query_thumbnail(v) if kind == "image" else b"" for v in values]
        vectors = _normalize(self._to_vectors(kind, values), "a row to add")
        return self._store.add(
            vectors, [p.pack(png) for p, png in zip(shown, pictures, strict=True)]
        )

    def delete(self, ids: Sequence[int]) -> None:
        """Forget these rows, as durably. Raises SensoriumError, forgetting none, for an id that is not there."""
        self._store.delete(ids)

    def compact(self) -> None:
        """Give back the room of deleted rows; ids stay."""
        self._store, self._engine, self._synced_alive = (
            self._store.compact(),
            None,
            np.zeros(0, bool),
        )

    def verify(self) -> None:
        """Read everything once. Raises SensoriumError naming a damaged file."""
        self._store.verify()

    def _sync_engine(self) -> SearchEngine:
        """The engine, told of every row there is and every one that is no more."""
        if self._engine is None:
            from sensorium.search.faiss_engine import FaissEngine

            self._engine = FaissEngine() if self._engine_name == "faiss" else ExactEngine()
        alive = np.frombuffer(self._store.alive, np.uint8) > 0
        if len(self._synced_alive) < len(alive):
            self._engine.add(self._store.vectors)
            self._store.release_memory()  # the engine has what it needs of all rows
        seen = np.concatenate(
            [self._synced_alive, np.ones(len(alive) - len(self._synced_alive), bool)]
        )
        if (seen > alive).any():
            self._engine.remove(np.flatnonzero(seen > alive))
        self._synced_alive = alive
        return self._engine

    def _to_vectors(self, kind: str, values: Sequence[Any]) -> Float[np.ndarray, "B D"]:
        if kind != "vector":
            return _embed(self._load_model(), kind, values)
        vectors = np.asarray(values, np.float32)
        if vectors.shape[1:] != (self._store.header.dim,):
            raise SensoriumError(
                f"this index takes {self._store.header.dim} numbers a vector, not {vectors.shape[1:]}."
            )
        return _normalize(vectors, "a vector")

    def _load_model(self) -> Any:
        """The model that made this index."""
        if self._model is None:
            run = self._store.folder / self._store.header.run
            if not self._store.header.run or not (run / "config.json").exists():
                raise SensoriumError(
                    f"the run that made {self._store.folder} is not at {run}. Say where it is: "
                    "Index.open(path, model=sn.load(RUN))."
                )
            from sensorium.training.checkpoint import load_checkpoint

            self._model = self._check_fingerprint(load_checkpoint(run))
        return self._model

    def _check_fingerprint(self, model: Any) -> Any:
        if model.fingerprint != self._store.header.fingerprint:
            raise SensoriumError(
                f"{self._store.folder} was made by another model (weights "
                f"{self._store.header.fingerprint[:12]}, not {model.fingerprint[:12]}), so scores would "
                "mean nothing. Open it with that one, or build the index again."
            )
        return model

    def _build_result(
        self, query: Mapping[str, Any], scores: np.ndarray, rows: np.ndarray
    ) -> SearchResult:
        found = [
            (RowInfo.unpack(self._store.read_payload(r)), r, s)
            for s, r in zip(scores.tolist(), rows.tolist(), strict=True)
            if r >= 0
        ]
        hits = [Hit(self._store.ids[r], s, payload) for (payload, _), r, s in found]
        asked = _query_thumbnail(query["image"]) if "image" in query else b""
        return SearchResult(
            " + ".join(_describe_value(v) for v in query.values()),
            hits,
            [png for (_, png), _, _ in found],
            asked,
        )


def _select_rows(dataset: Dataset, split: str | None) -> np.ndarray:
    if split is not None and split not in dataset.splits:
        raise SensoriumError(
            f"{dataset.name} has no split {split!r}; it has {', '.join(dataset.splits)}."
        )
    rows = np.arange(len(dataset)) if split is None else dataset.splits[split]
    if not len(rows):
        raise SensoriumError(f"{dataset.name} has no rows to index.")
    return rows


def _image_column(dataset: Dataset) -> str | None:
    """The column that rows are shown by."""
    return (
        dataset.schema.resolve_column("image", None)
        if any(c.kind == "image" for c in dataset.schema.columns.values())
        else None
    )


def _relative_run_path(model: Any, folder: Path) -> str:
    run = getattr(model, "folder", None)
    return os.path.relpath(Path(run).resolve(), folder.resolve()) if run else ""


def _embedding_dim(model: Any, dataset: Dataset, column: str, rows: np.ndarray) -> int:
    """D, from the first value that can be embedded."""
    for row in rows:
        values, _ = _read_batch(dataset, column, np.array([row]), [])
        if values:
            return _embed(model, dataset.schema.columns[column].kind, values).shape[1]
    raise SensoriumError(f"no value of column {column!r} of {dataset.name} can be read.")


def _read_batch(
    dataset: Dataset, column: str, rows: np.ndarray, bad: list[BadSample]
) -> tuple[list[Any], list[bytes]]:
    """(what to embed, what to show) of those rows that have a value; one that cannot be read goes to `bad`."""
    kind, picture = dataset.schema.columns[column].kind, _image_column(dataset)
    texts = [name for name, c in dataset.schema.columns.items() if c.kind == "text"]
    words = {name: dataset.raw(name, rows) for name in texts}
    raws, pictures = (
        dataset.raw(column, rows),
        dataset.raw(picture, rows) if picture else [None] * len(rows),
    )
    values, payloads = [], []
    for i, row in enumerate(rows.tolist()):
        if raws[i] is None:
            continue
        try:
            png = b"" if pictures[i] is None else make_thumbnail(pictures[i])
        except ValueError as e:
            bad.append(BadSample(row, picture or column, dataset.location(row), str(e)))
            continue
        captions = list(dict.fromkeys(text for name in texts for text in _as_texts(words[name][i])))
        values.append(_as_texts(raws[i]) if kind == "text" else raws[i])
        payloads.append(RowInfo(dataset.location(row), kind, captions).pack(png))
    return values, payloads


def _as_texts(raw: str | list[str] | None) -> list[str]:
    return [] if raw is None else [raw] if isinstance(raw, str) else list(raw)


def _embed(model: Any, kind: str, values: Sequence[Any]) -> Float[np.ndarray, "N D"]:
    """Unit vectors; a value that is a list of texts is their mean."""
    if not values or not isinstance(values[0], list):
        return _normalize(model.embed(**{kind: list(values)}), "what the model made of a value")
    flat = model.embed(**{kind: [text for texts in values for text in texts]})
    sizes = np.array([len(texts) for texts in values])
    return _normalize(
        np.add.reduceat(flat, np.cumsum(sizes) - sizes, axis=0), "the mean of a row's texts"
    )


def _normalize(vectors: Float[np.ndarray, "N D"], name: str) -> Float[np.ndarray, "N D"]:
    """Rows of length 1. Raises SensoriumError for a row of no direction: zero, infinite, not a number."""
    length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        raise SensoriumError(
            f"{name} has no direction: row {np.flatnonzero(~(length > 0) | ~np.isfinite(length))[0]} "
            "is zero, or holds an infinity or NaN."
        )
    return (vectors / length).astype(np.float32)


def _as_lists(inputs: Mapping[str, Any]) -> tuple[dict[str, list[Any]], bool]:
    """Every kind as a list of the same length, a single value repeated; and whether any was a list."""
    many = {
        kind: isinstance(v, np.ndarray) and v.ndim == 2
        if kind == "vector" and isinstance(v, np.ndarray)
        else isinstance(v, list | tuple) and (kind != "vector" or np.ndim(v[:1]) == 2)
        for kind, v in inputs.items()
    }
    lengths = {len(v) for kind, v in inputs.items() if many[kind]}
    if not inputs or len(lengths) > 1:
        found = ", ".join(f"{len(v) if many[kind] else 1} {kind}" for kind, v in inputs.items())
        raise SensoriumError(
            f"search takes text, image or vector, and lists of one length; got {found or 'none'}."
        )
    n = lengths.pop() if lengths else 1
    return {kind: list(v) if many[kind] else [v] * n for kind, v in inputs.items()}, any(
        many.values()
    )


def _describe_value(value: Any) -> str:
    """How a value reads."""
    if isinstance(value, str | Path):
        return str(value)
    return (
        "a vector" if isinstance(value, np.ndarray | list) and np.ndim(value) == 1 else "a picture"
    )


def _query_thumbnail(image: Any) -> bytes:
    try:
        return make_thumbnail(image)
    except ValueError as e:
        raise SensoriumError(f"cannot read {_describe_value(image)}: {e}") from e
