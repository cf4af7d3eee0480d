"""Retrieval without a model: the captions of the nearest training image, compared by TF-IDF.

N rows of a split   C distinct captions   T training rows   V terms of a text
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.data.splits import sample_evenly
from sensorium.evaluation.baselines import inverted_pixels, nearest_indices, references
from sensorium.evaluation.validate_retrieval import Pair, match_captions
from sensorium.metrics.retrieval import retrieval_metrics

MAX_TRAINING_ROWS = 20_000  # whose pixels are compared
NGRAM_LENGTHS = range(2, 5)  # characters of an n-gram, including the spaces around a word
_CAPTIONS_PER_BATCH = 256
_TIE_BREAK = 1e-6  # largest random addition to a score


class PixelCaptionBaseline:
    """Retrieval by pixels and captions, in both directions.

    Each image stands for the captions of the training image that is nearest by pixels. They are
    compared with the captions of the split by the cosine of their TF-IDF vectors, whose terms are
    words and character n-grams, so that it works in any language. Ties are broken at random.

    Args:
        dataset: the dataset.
        prepared: its stored images and captions.
        columns: the image and the text column.
        train_rows: rows of the training split; at most `MAX_TRAINING_ROWS` are used.
    """

    def __init__(
        self,
        dataset: Dataset,
        prepared: PreparedDataset,
        columns: Pair,
        train_rows: Int[np.ndarray, "T"],
    ):
        self._prepared = prepared
        self._image_column, self._text_column = columns
        train_rows = sample_evenly(train_rows, MAX_TRAINING_ROWS)
        self._captions = [
            " ".join(texts) for texts in references(dataset, self._text_column, train_rows)
        ]
        self._vectorizer = Vectorizer(self._captions)
        self._train_rows = train_rows

    def metrics(self, rows: Int[np.ndarray, "N"]) -> dict[str, float]:
        """Return recall on rows of a split, such as "pixel caption image to text recall@1".

        Without training rows there is none.
        """
        if not self._captions:
            return {}
        prepared, image_column = self._prepared, self._image_column
        nearest = nearest_indices(
            inverted_pixels(prepared, image_column, rows),
            inverted_pixels(prepared, image_column, self._train_rows),
        )
        captions = [prepared.caption(self._text_column, row) for row in rows.tolist()]
        first_rows, relevant = match_captions(captions, torch.from_numpy(prepared.groups[rows]))
        scores = self._vectorizer.similarity(
            [self._captions[i] for i in nearest.tolist()],
            [captions[i] for i in first_rows.tolist()],
        )
        noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0))
        scores = scores + _TIE_BREAK * noise
        metrics = retrieval_metrics(scores, torch.eye(scores.shape[1]), relevant, ("image", "text"))
        return {f"pixel caption {name}": metrics[name] for name in metrics if "recall" in name}


class Vectorizer:
    """TF-IDF of words and character n-grams.

    Args:
        texts: texts whose terms are counted; a term that none of them has is as rare as possible.
    """

    def __init__(self, texts: Iterable[str]):
        self._num_texts = 0
        self._text_counts: Counter[str] = Counter()
        for text in texts:
            self._num_texts += 1
            self._text_counts.update(set(terms(text)))

    def vector(self, text: str) -> dict[str, float]:
        """Return the weight of each term of a text; the vector has unit norm."""
        weights = {term: count * self._idf(term) for term, count in Counter(terms(text)).items()}
        norm = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        return {term: weight / norm for term, weight in weights.items()}

    def similarity(self, a: Sequence[str], b: Sequence[str]) -> Float[Tensor, "N C"]:
        """Return the cosine of each text of `a` and each of `b`."""
        vectors_a, vectors_b = [self.vector(text) for text in a], [self.vector(text) for text in b]
        known = {term for vector in vectors_b for term in vector}
        terms_a = dict.fromkeys(term for vector in vectors_a for term in vector if term in known)
        index = {term: i for i, term in enumerate(terms_a)}
        sparse = _sparse_matrix(vectors_a, index)
        batches = (
            _sparse_matrix(vectors_b[start : start + _CAPTIONS_PER_BATCH], index).to_dense()
            for start in range(0, len(b), _CAPTIONS_PER_BATCH)
        )
        return torch.cat([torch.sparse.mm(sparse, batch.T) for batch in batches], 1)

    def _idf(self, term: str) -> float:
        return 1 + math.log((1 + self._num_texts) / (1 + self._text_counts[term]))


def terms(text: str) -> list[str]:
    """Return the words of a text and the character n-grams of each."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    marked = [f" {word} " for word in words]
    return words + [
        word[i : i + n] for word in marked for n in NGRAM_LENGTHS for i in range(len(word) - n + 1)
    ]


def _sparse_matrix(vectors: Sequence[dict[str, float]], index: dict[str, int]) -> Tensor:
    """Return vectors as rows of a sparse matrix [N V]; terms that have no index are left out."""
    entries = [
        (row, index[term], weight)
        for row, vector in enumerate(vectors)
        for term, weight in vector.items()
        if term in index
    ]
    table = torch.tensor(entries, dtype=torch.float64).view(-1, 3)
    shape = (len(vectors), max(1, len(index)))
    return torch.sparse_coo_tensor(
        table[:, :2].T.long(), table[:, 2].float(), shape, check_invariants=False
    )
