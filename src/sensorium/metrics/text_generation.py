"""How near are words to those of people? chrF, CIDEr-D and plain equality, each against one or several references."""

import math
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

CHRF_ORDER, CHRF_BETA = 6, 2  # of chrF: longest run of letters; weight of recall
CIDER_MAX_NGRAM, CIDER_SIGMA = 4, 6.0  # of CIDEr-D: longest run of words; spread of lengths
_ARTICLES = {"a", "an", "the"}

References = Sequence[Sequence[str]]  # for each text said, what it may be compared with


def chrf(predictions: Sequence[str], references: References) -> float:
    """chrF of a whole corpus, 0 to 100 (Popović 2015; as sacreBLEU computes it: order 6, beta 2, spaces left out).

    Of several references each text is held against the one that it matches best.
    """
    best = [
        max((_char_ngram_matches(text, other) for other in others), key=_f_score)
        for text, others in zip(predictions, references, strict=True)
    ]
    return _f_score(np.sum(best, 0)) if best else 0.0


def _char_ngram_matches(text: str, reference: str) -> np.ndarray:
    """int [ORDER, 3]: runs of 1 to ORDER letters in the text, in the reference, and in both."""
    counts = []
    for a, b in zip(
        _char_ngrams("".join(text.split())), _char_ngrams("".join(reference.split())), strict=True
    ):
        counts.append((a.total() if b else 0, b.total(), (a & b).total()))
    return np.array(counts)


def _char_ngrams(text: str) -> Iterator[Counter[str]]:
    return (
        Counter(text[i : i + n] for i in range(len(text) - n + 1)) for n in range(1, CHRF_ORDER + 1)
    )


def _f_score(counts: np.ndarray) -> float:
    there = counts[(counts[:, 0] > 0) & (counts[:, 1] > 0)]
    if not len(there):
        return 0.0
    precision, recall = (there[:, 2] / there[:, 0]).mean(), (there[:, 2] / there[:, 1]).mean()
    both = CHRF_BETA**2 * precision + recall
    return float(100 * (1 + CHRF_BETA**2) * precision * recall / both) if both else 0.0


def cider_d(predictions: Sequence[str], references: References) -> float:
    """CIDEr-D of a corpus, 0 to 10 (Vedantam et al. 2015; as pycocoevalcap computes it, on words parted by spaces).

    Rare runs of words count for more. How rare is told by the references given here: a corpus of one row is always 0,
    and figures of different corpora are not to be compared. Bring case and punctuation to one form first (`plain`).
    """
    documents = [[_word_ngrams(text) for text in others] for others in references]
    frequency = Counter(gram for others in documents for gram in set().union(*others))
    total = math.log(max(1, len(documents)))
    idf = {gram: total - math.log(count) for gram, count in frequency.items()}
    scores = [
        np.mean(
            [
                _cider_similarity(
                    _TfIdfVector(_word_ngrams(text), idf, total), _TfIdfVector(other, idf, total)
                )
                for other in others
            ]
        )
        for text, others in zip(predictions, documents, strict=True)
    ]
    return 10 * float(np.mean(scores)) if scores else 0.0


def _word_ngrams(text: str) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(
        tuple(words[i : i + n])
        for n in range(1, CIDER_MAX_NGRAM + 1)
        for i in range(len(words) - n + 1)
    )


class _TfIdfVector:
    """Runs of words weighed by how rare they are: a vector for each length of run."""

    def __init__(
        self,
        counts: Counter[tuple[str, ...]],
        idf: Mapping[tuple[str, ...], float],
        log_num_documents: float,
    ):
        self.weights = {
            gram: count * idf.get(gram, log_num_documents) for gram, count in counts.items()
        }
        self.num_bigrams = sum(
            count for gram, count in counts.items() if len(gram) == 2
        )  # the original's "length"
        squares = np.zeros(CIDER_MAX_NGRAM)
        for gram, weight in self.weights.items():
            squares[len(gram) - 1] += weight**2
        self.norms = np.sqrt(squares)


def _cider_similarity(a: _TfIdfVector, b: _TfIdfVector) -> float:
    dots = np.zeros(CIDER_MAX_NGRAM)
    for gram in a.weights.keys() & b.weights.keys():
        dots[len(gram) - 1] += min(a.weights[gram], b.weights[gram]) * b.weights[gram]
    norms = a.norms * b.norms
    cosines = np.divide(dots, norms, out=np.zeros(CIDER_MAX_NGRAM), where=norms > 0)
    return float(
        cosines.mean() * math.exp(-((a.num_bigrams - b.num_bigrams) ** 2) / (2 * CIDER_SIGMA**2))
    )


def normalize_text(text: str) -> str:
    """Lower case, single spaces, no punctuation but within words."""
    return " ".join(
        word for word in (w.strip(string.punctuation) for w in text.lower().split()) if word
    )


def exact_match(predictions: Sequence[str], references: References) -> float:
    """Share of texts that are one of their references, case, punctuation and articles aside (VQA accuracy)."""
    right = [
        _strip_articles(text) in map(_strip_articles, others)
        for text, others in zip(predictions, references, strict=True)
    ]
    return float(np.mean(right)) if right else 0.0


def _strip_articles(text: str) -> str:
    return " ".join(word for word in normalize_text(text).split() if word not in _ARTICLES)
