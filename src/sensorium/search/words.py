"""Words of texts in any language: what search by words compares.

A text is normalized (NFKC, case folded, without invisible characters and the accents of Latin and
Greek letters) and cut into words. A run of a script that is written without spaces (Han, kana,
Thai, ...), or with endings that cannot be told apart (Hangul), becomes its characters and pairs of
neighbours. A term is the 64-bit hash of a word.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

from sensorium.search.function_words import FUNCTION_WORDS

MAX_CHARACTERS = 1 << 16  # of a row that are searched
CAPTION_PREFIXES, ATTRIBUTE_PREFIX = ("===", "==", "="), ":"  # no word begins so
CACHED_TERMS = 1 << 17

_UNSPACED = (  # scripts without spaces between words, and Hangul
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aad"  # Burmese, Khmer, Tai
    "\ua9e0-\ua9fe\uaa60-\uaadf"
    "\u1100-\u11ff\u3005-\u3007\u3040-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uac00-\ud7ff"
    "\U00020000-\U0003ffff"
)
_SYMBOLS = "\u2190-\u2bff\U0001f000-\U0001fbff"  # arrows to emoji: each is a word
_INVISIBLE = re.compile(
    "[\xad\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"  # joiners, direction
    "|[\u0591-\u05c7\u0640\u064b-\u0652\u0670]"  # vowel signs of Hebrew and Arabic
)
_VARIANTS = str.maketrans("\u0451\u0111\u0142\xf8\u0131", "\u0435dloi")  # Cyrillic io, d, l, o, i
_ACCENTS = re.compile("([a-z\u0370-\u03ff])[\u0300-\u036f]+")
_ASCII_WORDS = re.compile(r"[a-z0-9]+")
_MAX_MARK = 0x1E95A  # marks beyond it are those of variants


class QueryTerms(NamedTuple):
    """The terms of a query.

    Attributes:
        words: one for each of its words.
        captions: those of a caption that is the query as written, in any case, or but for accents;
            none if it has no words.
        attribute: that of an attribute that is the query; None if it has no words.
    """

    words: list[int]
    captions: list[int]
    attribute: int | None


def caption_terms(captions: Iterable[str]) -> Counter[int]:
    """Return how often a row with these captions has each term: their words, and each caption."""
    counts: Counter[int] = Counter()
    remaining = MAX_CHARACTERS
    for caption in captions:
        if remaining <= 0:
            break
        words = split_words(caption[:remaining])
        remaining -= len(caption)
        counts.update(hash_term(part) for word in words for part in _parts(word))
        counts.update(_whole_terms(caption, words))
    return counts


def attribute_terms(values: Iterable[str]) -> set[int]:
    """Return the terms of a row with these attributes: their words, and each as a whole.

    A number counts in the whole only: "2 dogs" is no search for the second row.
    """
    terms: set[int] = set()
    for value in values:
        words = split_words(value[:MAX_CHARACTERS])
        named = [word for word in words if not word.isdecimal()]
        terms.update(hash_term(part) for word in named for part in _parts(word))
        if words:
            terms.add(_whole_term(ATTRIBUTE_PREFIX, words))
    return terms


def query_terms(text: str) -> QueryTerms:
    """Return the terms by which rows are searched, each once.

    Function words, such as articles, count only in a query that has no others.
    """
    words = split_words(text[:MAX_CHARACTERS])
    if not words:
        return QueryTerms([], [], None)
    content = [word for word in words if word not in FUNCTION_WORDS] or words
    parts = dict.fromkeys(part for word in content for part in _parts(word))
    return QueryTerms(
        [hash_term(part) for part in parts],
        _whole_terms(text, words),
        _whole_term(ATTRIBUTE_PREFIX, words),
    )


def split_words(text: str, *, keep_accents: bool = False) -> list[str]:
    """Return the normalized words of a text; a run without spaces is one word."""
    text = text.lower() if text.isascii() else normalize_text(text, keep_accents=keep_accents)
    return (_ASCII_WORDS if text.isascii() else _patterns()[0]).findall(text)


def normalize_text(text: str, *, keep_accents: bool = False) -> str:
    """Return a text in which spellings of the same words are equal.

    Case, width, ligatures and composition are folded, invisible characters are left out, and so
    are accents of Latin and Greek letters, which many people do not type.
    """
    visible = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold()
    if keep_accents:
        return unicodedata.normalize("NFKC", visible)
    decomposed = unicodedata.normalize("NFKD", visible)
    plain = _ACCENTS.sub(r"\1", decomposed)
    return unicodedata.normalize("NFKC", plain).translate(_VARIANTS)


@lru_cache(CACHED_TERMS)
def hash_term(word: str) -> int:
    """Return the term of a word, as a signed 64-bit number."""
    digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _whole_term(prefix: str, words: list[str]) -> int:
    """Return the term of a whole text."""
    return hash_term(prefix + " ".join(words))


def _whole_terms(caption: str, words: list[str]) -> list[int]:
    """Return the terms of a caption as a whole: as written, in any case, and without accents."""
    if not words:
        return []
    caption = caption[:MAX_CHARACTERS]
    spellings = (
        unicodedata.normalize("NFC", caption).split(),
        split_words(caption, keep_accents=True),
        words,
    )
    prefixed = zip(CAPTION_PREFIXES, spellings, strict=True)
    return [_whole_term(prefix, spelling) for prefix, spelling in prefixed]


def _parts(word: str) -> list[str]:
    """Return a word, or the characters and neighbouring pairs of a run without spaces."""
    characters = [] if word.isascii() else _patterns()[1].findall(word)
    if not characters:
        return [word]
    pairs = [first + second for first, second in pairwise(characters)]
    return characters + pairs


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the pattern of a word, and of a character of scripts without spaces with its marks.

    Python's own class of letters leaves out the vowel signs of many scripts.
    """
    is_mark = (unicodedata.category(chr(code)).startswith("M") for code in range(_MAX_MARK + 1))
    marks = "".join(chr(code) for code, mark in enumerate(is_mark) if mark)
    mark = f"[{marks}]"
    letter = f"[^\\W_{_UNSPACED}]"
    word = f"(?:{letter}+{mark}*)+|(?:[{_UNSPACED}]{mark}*)+|[{_SYMBOLS}]"
    return re.compile(word), re.compile(f"[{_UNSPACED}]{mark}*")
