"""How well is speech written down?"""

import re
import unicodedata
from collections.abc import Sequence


def word_error_rate(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Words put in, left out or changed, over all the words that there are in the references; 0 is perfect.

    Compared in lower case and NFKC, without anything but letters, digits and apostrophes within words; numbers are not
    spelt out. Raises ValueError where the references hold no word.
    """
    pairs = [
        (_normalize_words(a), _normalize_words(b))
        for a, b in zip(predictions, references, strict=True)
    ]
    words = sum(len(right) for _, right in pairs)
    if not words:
        raise ValueError("the references hold no word")
    return sum(_edit_distance(heard, right) for heard, right in pairs) / words


def _normalize_words(text: str) -> list[str]:
    kept = re.sub(r"[^\w']|_", " ", unicodedata.normalize("NFKC", text).lower())
    return [word for part in kept.split() if (word := part.strip("'"))]


def _edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """The fewest words to put in, leave out or change to make b of a (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        before, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (word != other)))
    return row[-1]
