"""Search by words: postings of the texts of all rows, derived from the payloads of a store.

N rows

The postings are saved beside the rows, so that opening an index stays quick. The file is bound to
the rows by their number and a checksum of their payloads; what is not in it, or does not fit, is
read from the payloads again. So nothing here can be lost or contradict the rows.
"""

import json
import logging
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open

from sensorium.data.batching import iter_batches
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.tensors import METADATA_KEY, read_tensors, tensor_writer
from sensorium.search.folder import WORDS_PART, corruption_error
from sensorium.search.postings import Postings, RowScorer
from sensorium.search.results import RowInfo
from sensorium.search.store import Store
from sensorium.search.words import attribute_terms, caption_terms, query_terms

WORDS_VERSION = 1  # of how texts are cut into words
READ_BATCH_ROWS = 4096
MIN_UNSAVED_ROWS = 1024  # fewer new rows are not worth a new file
MAX_UNSAVED_FRACTION = 1 / 8
MIN_SHARE_OF_WORDS = 0.1  # by weight; with less, a row has none but common words of a query


class WordIndex:
    """The postings of a store's rows.

    Args:
        store: the rows.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = store.part_path(WORDS_PART)
        self._postings: Postings | None = None  # loaded by the first search
        self._scorer: RowScorer | None = None
        self._num_alive = -1
        self._num_saved: int | None = None

    def search(self, text: str) -> "WordMatches":
        """Return how well all rows match a text by words."""
        return WordMatches(self._sync(), text)

    def save_if_needed(self) -> None:
        """Save the postings if many rows are not in the file; for the writer.

        A failure is a warning: the rows are safe, and their words are read from them.
        """
        num_rows = len(self._store.rows)
        if self._num_saved is None:
            self._num_saved = _read_num_rows(self._path)
        unsaved = num_rows - self._num_saved
        if unsaved >= max(MIN_UNSAVED_ROWS, int(num_rows * MAX_UNSAVED_FRACTION)):
            try:
                self.save()
            except SensoriumError as e:
                logging.getLogger("sensorium").warning("The words of new rows are not saved: %s", e)

    def save(self) -> None:
        """Save the postings of all rows; for the writer."""
        postings = self._sync().postings
        if not len(postings):
            return
        self._num_saved = len(postings)
        writer = tensor_writer(_to_tensors(postings, self._store), {"rows": str(self._num_saved)})
        atomic.write_file(self._path, writer)

    def verify(self) -> None:
        """Check that the saved postings are those of the rows.

        Raises:
            SensoriumError: they are not, or the file is damaged.
        """
        if not self._path.exists():
            return
        saved = _load(self._path, self._store)
        expected = _read_postings(self._store, 0, len(saved))
        for name, values in vars(expected).items():
            if not np.array_equal(values, getattr(saved, name)):
                raise corruption_error(self._path, f"its {name} are not those of the rows")

    def _sync(self) -> RowScorer:
        """Return the scorer of all rows, after reading the words of new ones."""
        rows = self._store.rows
        if self._postings is None:
            self._postings = self._load_saved()
        if len(self._postings) < len(rows):
            new = _read_postings(self._store, len(self._postings), len(rows))
            self._postings = Postings.concatenate([self._postings, new])
            self._scorer = None
        num_alive = rows.alive.count(1)
        if self._scorer is None or num_alive != self._num_alive:
            self._scorer = RowScorer(self._postings, np.frombuffer(bytes(rows.alive), bool))
            self._num_alive = num_alive
        return self._scorer

    def _load_saved(self) -> Postings:
        """Return the saved postings; none if there are none that fit."""
        if self._path.exists():
            try:
                return _load(self._path, self._store)
            except SensoriumError as e:
                logging.getLogger("sensorium").warning("%s Until then its rows are read anew.", e)
        return Postings.from_rows([])


class WordMatches:
    """How well all rows match a text by words.

    Args:
        scorer: the rows.
        text: the query.

    Attributes:
        scores: BM25 of each row, at most 1; 0 without any of the words. A row with the text as a
            category, tag or identifier has at least the score of the best row.
        exact: the rows of which one caption is the text; if there are none, in any case; if there
            are none either, but for accents.
    """

    def __init__(self, scorer: RowScorer, text: str) -> None:
        query = query_terms(text)
        self._scorer = scorer
        self._weights = scorer.weights(query.words)
        self.scores: Float[np.ndarray, " N"] = scorer.scores(self._weights)
        candidates = (scorer.rows_with(term) for term in query.captions)
        self.exact = next((rows for rows in candidates if len(rows)), np.zeros(0, np.int32))
        self._with_attribute = scorer.rows_with(query.attribute)
        if len(self._with_attribute):
            self.scores[self._with_attribute] = self.scores.max() or 1.0

    def best(self, k: int) -> Int[np.ndarray, " n"]:
        """Return the rows with the k best scores and those with the text as a caption, unordered.

        Of equal scores, those of lower row numbers are taken.
        """
        rows = np.flatnonzero(self.scores > 0)  # of booleans, which is faster
        if len(rows) > k:
            scores = self.scores[rows]
            threshold = np.partition(scores, len(rows) - k)[len(rows) - k]
            better, equal = rows[scores > threshold], rows[scores == threshold]
            rows = np.concatenate([better, equal[: k - len(better)]])
        return np.union1d(rows, self.exact).astype(np.int64)

    def have_words(self, rows: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Return which rows have more of the query than its common words."""
        share = self._scorer.matched_share(self._weights, rows)
        whole = np.concatenate([self.exact, self._with_attribute])
        return (share >= MIN_SHARE_OF_WORDS) | np.isin(rows, whole)


def _read_postings(store: Store, start: int, stop: int) -> Postings:
    """Return the postings of some rows, read from their payloads."""
    parts = [
        Postings.from_rows([_row_terms(store.read_payload(row)) for row in batch])
        for batch in iter_batches(range(start, stop), READ_BATCH_ROWS)
    ]
    return Postings.concatenate(parts)


def _row_terms(payload: bytes) -> dict[int, int]:
    """Return how often a row has each term: those of its captions and attributes."""
    info, _ = RowInfo.unpack(payload)
    counts = caption_terms(info.captions)
    counts.update(attribute_terms(v for values in info.attributes.values() for v in values))
    return counts


def _to_tensors(postings: Postings, store: Store) -> dict[str, torch.Tensor]:
    """Return postings as tensors, with what binds them to the rows of a store."""
    num_rows = len(postings)
    header = torch.tensor([WORDS_VERSION, num_rows, store.rows.digest(num_rows)])
    arrays = {name: torch.from_numpy(values) for name, values in vars(postings).items()}
    return {**arrays, "header": header}


def _load(path: Path, store: Store) -> Postings:
    """Return saved postings.

    Raises:
        SensoriumError: the file is damaged, or of other rows.
    """
    tensors = read_tensors(path)
    try:
        version, num_rows, digest = tensors.pop("header").tolist()
        postings = Postings(**{name: tensor.numpy() for name, tensor in tensors.items()})
        postings.check()
    except (KeyError, TypeError, ValueError) as e:
        raise corruption_error(path, f"its content is not that of words ({e})") from e
    expected = (WORDS_VERSION, len(postings), store.rows.digest(num_rows))
    if (version, num_rows, digest) != expected or num_rows > len(store.rows):
        raise corruption_error(path, "it was made of other rows")
    return postings


def _read_num_rows(path: Path) -> int:
    """Return how many rows saved postings have, without reading them; 0 if that cannot be told."""
    try:
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            return int(json.loads(file.metadata()[METADATA_KEY])["rows"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return 0
