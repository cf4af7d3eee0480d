"""Metrics of generated text against one or several references: chrF, CIDEr-D, exact match."""

import math
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

CHRF_ORDER = 6  # longest character n-gram of chrF
CHRF_BETA = 2  # weight of recall in chrF
CIDER_MAX_NGRAM = 4  # longest word n-gram of CIDEr-D
CIDER_SIGMA = 6.0  # width of CIDEr-D's length penalty, in bigrams
_ARTICLES = {"a", "an", "the"}

References = Sequence[Sequence[str]]  # the references of each prediction


def chrf(predictions: Sequence[str], references: References) -> float:
    """Return the corpus chrF, 0 to 100 (Popović 2015), as sacreBLEU computes it.

    Order 6, beta 2, without spaces. Of several references the best-matching one counts.
    """
    best_matches = [
        max((_char_ngram_matches(text, reference) for reference in row_references), key=_f_score)
        for text, row_references in zip(predictions, references, strict=True)
    ]
    return _f_score(np.sum(best_matches, 0)) if best_matches else 0.0


def _char_ngram_matches(text: str, reference: str) -> np.ndarray:
    """Return int [CHRF_ORDER, 3]: n-grams of the text, of the reference, and common to both."""
    text_ngrams = _char_ngrams("".join(text.split()))
    reference_ngrams = _char_ngrams("".join(reference.split()))
    counts = [
        (a.total() if b else 0, b.total(), (a & b).total())
        for a, b in zip(text_ngrams, reference_ngrams, strict=True)
    ]
    return np.array(counts)


def _char_ngrams(text: str) -> Iterator[Counter[str]]:
    """Yield the counts of all n-grams of a text, for n from 1 to CHRF_ORDER."""
    for n in range(1, CHRF_ORDER + 1):
        yield Counter(text[i : i + n] for i in range(len(text) - n + 1))


def _f_score(counts: np.ndarray) -> float:
    """Return 100 times the F score from the counts of `_char_ngram_matches`."""
    present = counts[(counts[:, 0] > 0) & (counts[:, 1] > 0)]
    if not len(present):
        return 0.0
    precision = (present[:, 2] / present[:, 0]).mean()
    recall = (present[:, 2] / present[:, 1]).mean()
    denominator = CHRF_BETA**2 * precision + recall
    if not denominator:
        return 0.0
    return float(100 * (1 + CHRF_BETA**2) * precision * recall / denominator)


def cider_d(predictions: Sequence[str], references: References) -> float:
    """Return the corpus CIDEr-D, 0 to 10 (Vedantam et al. 2015), as pycocoevalcap computes it.

    Words are split at spaces; normalize case and punctuation first (`normalize_text`). N-grams are
    weighted by their inverse document frequency in these references: a corpus of one row scores 0,
    and scores of different corpora are not comparable.
    """
    documents = [[_word_ngrams(text) for text in row_references] for row_references in references]
    document_frequency = Counter(
        ngram for row_references in documents for ngram in set().union(*row_references)
    )
    log_num_documents = math.log(max(1, len(documents)))
    idf = {
        ngram: log_num_documents - math.log(count) for ngram, count in document_frequency.items()
    }
    scores: list[float] = []
    for text, row_references in zip(predictions, documents, strict=True):
        prediction = _TfIdfVector(_word_ngrams(text), idf, log_num_documents)
        similarities = [
            _cider_similarity(prediction, _TfIdfVector(reference, idf, log_num_documents))
            for reference in row_references
        ]
        scores.append(float(np.mean(similarities)))
    return 10 * float(np.mean(scores)) if scores else 0.0


def _word_ngrams(text: str) -> Counter[tuple[str, ...]]:
    """Return the counts of all word n-grams up to CIDER_MAX_NGRAM."""
    words = text.split()
    return Counter(
        tuple(words[i : i + n])
        for n in range(1, CIDER_MAX_NGRAM + 1)
        for i in range(len(words) - n + 1)
    )


class _TfIdfVector:
    """TF-IDF weights of a text's n-grams, with one norm for each n."""

    def __init__(
        self,
        counts: Counter[tuple[str, ...]],
        idf: Mapping[tuple[str, ...], float],
        log_num_documents: float,
    ):
        self.weights = {
            ngram: count * idf.get(ngram, log_num_documents) for ngram, count in counts.items()
        }
        # The reference implementation measures length in bigrams.
        self.num_bigrams = sum(count for ngram, count in counts.items() if len(ngram) == 2)
        squares = np.zeros(CIDER_MAX_NGRAM)
        for ngram, weight in self.weights.items():
            squares[len(ngram) - 1] += weight**2
        self.norms = np.sqrt(squares)


def _cider_similarity(prediction: _TfIdfVector, reference: _TfIdfVector) -> float:
    """Return the mean clipped cosine over all n, times the length penalty."""
    dots = np.zeros(CIDER_MAX_NGRAM)
    shared = [ngram for ngram in prediction.weights if ngram in reference.weights]
    for ngram in shared:  # in a fixed order, so that the sum is the same in every process
        clipped = min(prediction.weights[ngram], reference.weights[ngram])
        dots[len(ngram) - 1] += clipped * reference.weights[ngram]
    norms = prediction.norms * reference.norms
    cosines = np.divide(dots, norms, out=np.zeros(CIDER_MAX_NGRAM), where=norms > 0)
    length_difference = prediction.num_bigrams - reference.num_bigrams
    return float(cosines.mean() * math.exp(-(length_difference**2) / (2 * CIDER_SIGMA**2)))


def normalize_text(text: str) -> str:
    """Return a text in lower case, with single spaces and no punctuation except within words."""
    words = [word.strip(string.punctuation) for word in text.lower().split()]
    return " ".join(word for word in words if word)


def exact_match(predictions: Sequence[str], references: References) -> float:
    """Return the share of texts that equal a reference (VQA accuracy).

    Case, punctuation and articles are ignored.
    """
    matches = [
        _strip_articles(text) in map(_strip_articles, row_references)
        for text, row_references in zip(predictions, references, strict=True)
    ]
    return float(np.mean(matches)) if matches else 0.0


def _strip_articles(text: str) -> str:
    """Return the normalized text without articles."""
    return " ".join(word for word in normalize_text(text).split() if word not in _ARTICLES)
