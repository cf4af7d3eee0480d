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

from sensorium.data.bad import Bad
from sensorium.data.dataset import Dataset
from sensorium.data.quarantine import check_share
from sensorium.errors import SensoriumError
from sensorium.tasks.answer import Answer, Hit, Payload, thumbnail
from sensorium.tasks.nearest import Exact, Nearest
from sensorium.tasks.store import HEAD, Head, Store

MAX_BAD = 0.01                                      # share of the rows that may be unreadable
KINDS = ("text", "image", "vector")


class Index:
    """Rows that can be searched: made by `build`, found again by `open`. `bad` lists the samples `build` left out."""

    def __init__(self, store: Store, model: Any = None, engine: str = "exact") -> None:
        if engine not in ("exact", "faiss"):
            raise SensoriumError(f"engine {engine!r} is not one of: exact, faiss.")
        self.bad: list[Bad] = []
        self._store, self._kind = store, engine
        self._engine: Nearest | None = None         # made by the first search
        self._seen = np.zeros(0, bool)              # for each row the engine knows, whether it thinks it alive
        self._model = self._fitting(model) if model is not None else None

    @classmethod
    def build(cls, model: Any, data: Dataset, path: str | Path | None = None, *, column: str | None = None,
              split: str | None = None, batch_size: int = 256) -> "Index":
        """Embed a column of a data set and keep it. An older index at `path` gives way once the new one is complete.

        path: a folder; None: a temporary one, gone with the index. column: by default the picture, else the words.
        split: only its rows. Raises SensoriumError where more than 1 % of the values cannot be read.
        """
        folder = Path(tempfile.mkdtemp(prefix="index-") if path is None else path)
        name = column or _picture(data) or data.schema.pick("text", None)
        rows, bad = _rows(data, split), []
        head = Head(_width(model, data, name, rows), model.fingerprint, _run(model, folder))
        with Store.create(folder, head) as store:
            for start in range(0, len(rows), batch_size):
                values, payloads = _batch(data, name, rows[start:start + batch_size], bad)
                if values:
                    store.add(_embedded(model, data.schema.columns[name].kind, values), payloads)
            check_share(bad, len(rows), MAX_BAD)
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
        if not (path / HEAD).exists() and (path / "index" / HEAD).exists():
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

    def search(self, *, text: str | Sequence[str] | None = None, image: Any = None, vector: Any = None, k: int = 10,
               weights: Mapping[str, float] | None = None) -> Any:
        """The k nearest rows: an Answer (a sequence of Hits); a list of Answers where a list of queries was given.

        text, image, vector: one value or a list. Several kinds together are one query: their unit vectors are added,
        by `weights` ({"text": 2}; 1 where it does not say), and made unit again.
        """
        given = {kind: value for kind, value in zip(KINDS, (text, image, vector), strict=True) if value is not None}
        lists, many = _lists(given)
        if k < 1 or (weights and set(weights) - set(given)):
            raise SensoriumError(f"search takes k of 1 or more, and weights of what is asked; got {k} and {weights}.")
        parts = [self._vectors(kind, values) * (weights or {}).get(kind, 1.0) for kind, values in lists.items()]
        queries = _unit(sum(parts[1:], parts[0]), "the query")
        scores, rows = self._nearest().search(queries, k)
        answers = [self._answer({kind: values[i] for kind, values in lists.items()}, scores[i], rows[i])
                   for i in range(len(queries))]
        return answers if many else answers[0]

    def add(self, *, text: Sequence[str] | None = None, image: Sequence[Any] | None = None, vector: Any = None,
            payloads: Sequence[Payload] | None = None) -> list[int]:
        """Add values of one kind; when this returns they outlive a crash. Their ids, which are never used again.

        payloads: what to show for each; by default its words, its picture, its file's name.
        """
        given = {kind: value for kind, value in zip(KINDS, (text, image, vector), strict=True) if value is not None}
        if len(given) != 1:
            raise SensoriumError(f"add takes one of text, image, vector; got {', '.join(given) or 'none'}.")
        lists, _ = _lists(given)
        (kind, values), = lists.items()
        shown = payloads or [Payload(_shown(v), kind, [v] if kind == "text" else []) for v in values]
        if len(shown) != len(values):
            raise SensoriumError(f"add was given {len(values)} values and {len(shown)} payloads.")
        pictures = [_asked(v) if kind == "image" else b"" for v in values]
        vectors = _unit(self._vectors(kind, values), "a row to add")
        return self._store.add(vectors, [p.pack(png) for p, png in zip(shown, pictures, strict=True)])

    def delete(self, ids: Sequence[int]) -> None:
        """Forget these rows, as durably. Raises SensoriumError, forgetting none, for an id that is not there."""
        self._store.delete(ids)

    def compact(self) -> None:
        """Give back the room of deleted rows; ids stay."""
        self._store, self._engine, self._seen = self._store.compact(), None, np.zeros(0, bool)

    def check(self) -> None:
        """Read everything once. Raises SensoriumError naming a damaged file."""
        self._store.check()

    def _nearest(self) -> Nearest:
        """The engine, told of every row there is and every one that is no more."""
        if self._engine is None:
            from sensorium.tasks.approximate import Faiss
            self._engine = Faiss() if self._kind == "faiss" else Exact()
        alive = np.frombuffer(self._store.alive, np.uint8) > 0
        if len(self._seen) < len(alive):
            self._engine.add(self._store.vectors)
            self._store.rest()                      # the engine has what it needs of all rows
        seen = np.concatenate([self._seen, np.ones(len(alive) - len(self._seen), bool)])
        if (seen > alive).any():
            self._engine.remove(np.flatnonzero(seen > alive))
        self._seen = alive
        return self._engine

    def _vectors(self, kind: str, values: Sequence[Any]) -> Float[np.ndarray, "B D"]:
        if kind != "vector":
            return _embedded(self._own(), kind, values)
        vectors = np.asarray(values, np.float32)
        if vectors.shape[1:] != (self._store.head.dim,):
            raise SensoriumError(f"this index takes {self._store.head.dim} numbers a vector, not {vectors.shape[1:]}.")
        return _unit(vectors, "a vector")

    def _own(self) -> Any:
        """The model that made this index."""
        if self._model is None:
            run = self._store.folder / self._store.head.run
            if not self._store.head.run or not (run / "config.json").exists():
                raise SensoriumError(f"the run that made {self._store.folder} is not at {run}. Say where it is: "
                                     "Index.open(path, model=sn.load(RUN)).")
            from sensorium.checkpoint import load
            self._model = self._fitting(load(run))
        return self._model

    def _fitting(self, model: Any) -> Any:
        if model.fingerprint != self._store.head.fingerprint:
            raise SensoriumError(f"{self._store.folder} was made by another model (weights "
                                 f"{self._store.head.fingerprint[:12]}, not {model.fingerprint[:12]}), so scores would "
                                 "mean nothing. Open it with that one, or build the index again.")
        return model

    def _answer(self, query: Mapping[str, Any], scores: np.ndarray, rows: np.ndarray) -> Answer:
        found = [(Payload.unpack(self._store.payload(r)), r, s)
                 for s, r in zip(scores.tolist(), rows.tolist(), strict=True) if r >= 0]
        hits = [Hit(self._store.ids[r], s, payload) for (payload, _), r, s in found]
        asked = _asked(query["image"]) if "image" in query else b""
        return Answer(" + ".join(_shown(v) for v in query.values()), hits, [png for (_, png), _, _ in found], asked)


def _rows(data: Dataset, split: str | None) -> np.ndarray:
    if split is not None and split not in data.splits:
        raise SensoriumError(f"{data.name} has no split {split!r}; it has {', '.join(data.splits)}.")
    rows = np.arange(len(data)) if split is None else data.splits[split]
    if not len(rows):
        raise SensoriumError(f"{data.name} has no rows to index.")
    return rows


def _picture(data: Dataset) -> str | None:
    """The column that rows are shown by."""
    return data.schema.pick("image", None) if any(c.kind == "image" for c in data.schema.columns.values()) else None


def _run(model: Any, folder: Path) -> str:
    run = getattr(model, "folder", None)
    return os.path.relpath(Path(run).resolve(), folder.resolve()) if run else ""


def _width(model: Any, data: Dataset, column: str, rows: np.ndarray) -> int:
    """D, from the first value that can be embedded."""
    for row in rows:
        values, _ = _batch(data, column, np.array([row]), [])
        if values:
            return _embedded(model, data.schema.columns[column].kind, values).shape[1]
    raise SensoriumError(f"no value of column {column!r} of {data.name} can be read.")


def _batch(data: Dataset, column: str, rows: np.ndarray, bad: list[Bad]) -> tuple[list[Any], list[bytes]]:
    """(what to embed, what to show) of those rows that have a value; one that cannot be read goes to `bad`."""
    kind, picture = data.schema.columns[column].kind, _picture(data)
    texts = [name for name, c in data.schema.columns.items() if c.kind == "text"]
    words = {name: data.raw(name, rows) for name in texts}
    raws, pictures = data.raw(column, rows), data.raw(picture, rows) if picture else [None] * len(rows)
    values, payloads = [], []
    for i, row in enumerate(rows.tolist()):
        if raws[i] is None:
            continue
        try:
            png = b"" if pictures[i] is None else thumbnail(pictures[i])
        except ValueError as e:
            bad.append(Bad(row, picture or column, data.where(row), str(e)))
            continue
        captions = list(dict.fromkeys(text for name in texts for text in _texts(words[name][i])))
        values.append(_texts(raws[i]) if kind == "text" else raws[i])
        payloads.append(Payload(data.where(row), kind, captions).pack(png))
    return values, payloads


def _texts(raw: str | list[str] | None) -> list[str]:
    return [] if raw is None else [raw] if isinstance(raw, str) else list(raw)


def _embedded(model: Any, kind: str, values: Sequence[Any]) -> Float[np.ndarray, "N D"]:
    """Unit vectors; a value that is a list of texts is their mean."""
    if not values or not isinstance(values[0], list):
        return _unit(model.embed(**{kind: list(values)}), "what the model made of a value")
    flat = model.embed(**{kind: [text for texts in values for text in texts]})
    sizes = np.array([len(texts) for texts in values])
    return _unit(np.add.reduceat(flat, np.cumsum(sizes) - sizes, axis=0), "the mean of a row's texts")


def _unit(vectors: Float[np.ndarray, "N D"], what: str) -> Float[np.ndarray, "N D"]:
    """Rows of length 1. Raises SensoriumError for a row of no direction: zero, infinite, not a number."""
    length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        raise SensoriumError(f"{what} has no direction: row {np.flatnonzero(~(length > 0) | ~np.isfinite(length))[0]} "
                             "is zero, or holds an infinity or NaN.")
    return (vectors / length).astype(np.float32)


def _lists(given: Mapping[str, Any]) -> tuple[dict[str, list[Any]], bool]:
    """Every kind as a list of the same length, a single value repeated; and whether any was a list."""
    many = {kind: isinstance(v, np.ndarray) and v.ndim == 2 if kind == "vector" and isinstance(v, np.ndarray)
            else isinstance(v, list | tuple) and (kind != "vector" or np.ndim(v[:1]) == 2) for kind, v in given.items()}
    lengths = {len(v) for kind, v in given.items() if many[kind]}
    if not given or len(lengths) > 1:
        found = ", ".join(f"{len(v) if many[kind] else 1} {kind}" for kind, v in given.items())
        raise SensoriumError(f"search takes text, image or vector, and lists of one length; got {found or 'none'}.")
    n = lengths.pop() if lengths else 1
    return {kind: list(v) if many[kind] else [v] * n for kind, v in given.items()}, any(many.values())


def _shown(value: Any) -> str:
    """How a value reads."""
    if isinstance(value, str | Path):
        return str(value)
    return "a vector" if isinstance(value, np.ndarray | list) and np.ndim(value) == 1 else "a picture"


def _asked(image: Any) -> bytes:
    try:
        return thumbnail(image)
    except ValueError as e:
        raise SensoriumError(f"cannot read {_shown(image)}: {e}") from e
