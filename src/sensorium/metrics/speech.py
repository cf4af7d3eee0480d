"""Metrics of speech recognition."""

import re
import unicodedata
from collections.abc import Sequence


def word_error_rate(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return the word error rate of transcripts: edits per reference word; 0 is perfect.

    Texts are compared in lower case and NFKC, without punctuation except apostrophes within words.
    Numbers are not spelled out.

    Raises:
        ValueError: If the references have no words.
    """
    num_edits = 0
    num_words = 0
    for prediction, reference in zip(predictions, references, strict=True):
        reference_words = _normalize_words(reference)
        num_edits += _edit_distance(_normalize_words(prediction), reference_words)
        num_words += len(reference_words)
    if not num_words:
        raise ValueError("The references have no words.")
    return num_edits / num_words


def _normalize_words(text: str) -> list[str]:
    """Return the lower-case words of a text without punctuation."""
    letters = re.sub(r"[^\w']|_", " ", unicodedata.normalize("NFKC", text).lower())
    words = [part.strip("'") for part in letters.split()]
    return [word for word in words if word]


def _edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the Levenshtein distance: the fewest insertions, deletions and substitutions."""
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        previous = row
        row = [i]
        for j, other in enumerate(b, 1):
            substitution = previous[j - 1] + (word != other)
            row.append(min(previous[j] + 1, row[-1] + 1, substitution))
    return row[-1]
