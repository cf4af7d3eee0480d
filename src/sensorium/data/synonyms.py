"""Synonym lists, and paraphrases of texts in which some words are replaced."""

import hashlib
import random
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sensorium.data.tables import open_text
from sensorium.errors import SensoriumError

MAX_PARAPHRASES = 2  # of a text; the text itself is also among its captions
REPLACEMENT_PROBABILITY = 0.5  # of each phrase that has synonyms
WORD_PATTERN = re.compile(r"\S+")
EDGE_PUNCTUATION = ".,;:!?()[]{}\"'…«»“”‘’„¡¿。，、！？"  # noqa: RUF001 - marks of any script
_FILE_FORMAT = "one comma-separated group per line, e.g. car, automobile"
PhraseKey = tuple[str, ...]


class PhraseMatch(NamedTuple):
    """A phrase of a text that has synonyms: text[start:stop], and its key."""

    start: int
    stop: int
    key: PhraseKey


class Synonyms:
    """Words and phrases with their synonyms.

    Args:
        groups: words and phrases that are interchangeable.

    Attributes:
        alternatives: the synonyms of each phrase, which is normalized by `normalize_phrase`.
        max_phrase_words: words of the longest phrase.
        fingerprint: a hash of the list.
    """

    def __init__(self, groups: Iterable[Sequence[str]]):
        alternatives: dict[PhraseKey, dict[str, None]] = {}
        for group in groups:
            phrases = list(dict.fromkeys(phrase.strip() for phrase in group))
            for phrase in phrases:
                key = normalize_phrase(phrase)
                others = [other for other in phrases if normalize_phrase(other) != key]
                alternatives.setdefault(key, {}).update(dict.fromkeys(others))
        self.alternatives: Mapping[PhraseKey, list[str]] = {
            key: list(others) for key, others in alternatives.items() if others
        }
        self.max_phrase_words = max(map(len, self.alternatives), default=0)
        self.fingerprint = hashlib.sha256(
            repr(sorted(self.alternatives.items())).encode("utf-8", "surrogatepass")
        ).hexdigest()

    @classmethod
    def from_file(cls, path: str | Path) -> "Synonyms":
        """Read a text file of one comma-separated group per line.

        Empty lines and lines that start with # are skipped.

        Raises:
            SensoriumError: if the file cannot be read, or naming the line that holds fewer than two
                different words.
        """
        try:
            with open_text(Path(path)) as file:
                lines = file.read().splitlines()
        except (OSError, UnicodeError) as e:
            raise SensoriumError(
                f"--synonyms: {path} cannot be read: {e}. Give a text file of {_FILE_FORMAT}."
            ) from e
        groups: list[list[str]] = []
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            phrases = [phrase for phrase in line.split(",") if normalize_phrase(phrase)]
            if len({normalize_phrase(phrase) for phrase in phrases}) < 2:
                raise SensoriumError(
                    f"{path}:{number}: {line.strip()!r} is not a group of synonyms. "
                    f"Give {_FILE_FORMAT}."
                )
            groups.append(phrases)
        if not groups:
            raise SensoriumError(f"--synonyms: {path} holds no words. Give {_FILE_FORMAT}.")
        return cls(groups)

    def paraphrase(self, text: str) -> list[str]:
        """Return up to MAX_PARAPHRASES paraphrases of a text, always the same for the same text."""
        matches = self._find_phrases(text)
        if not matches:
            return []
        rng = random.Random(text)
        paraphrases: dict[str, None] = {}
        for _ in range(2 * MAX_PARAPHRASES):
            replaced = [match for match in matches if rng.random() < REPLACEMENT_PROBABILITY]
            if not replaced:
                replaced = [rng.choice(matches)]
            paraphrases[self._replace_phrases(text, replaced, rng)] = None
        return [paraphrase for paraphrase in paraphrases if paraphrase != text][:MAX_PARAPHRASES]

    def _find_phrases(self, text: str) -> list[PhraseMatch]:
        """Find the phrases that have synonyms, the longest first.

        Only white space may separate the words of a phrase. Surrounding punctuation is not part of
        it, unless the list has it (C++, U.S.).
        """
        words = list(WORD_PATTERN.finditer(text))
        matches: list[PhraseMatch] = []
        position = 0
        while position < len(words):
            for num_words in range(min(self.max_phrase_words, len(words) - position), 0, -1):
                start = words[position].start()
                stop = words[position + num_words - 1].end()
                match = self._match_phrase(text, start, stop)
                if match is not None:
                    matches.append(match)
                    position += num_words
                    break
            else:
                position += 1
        return matches

    def _match_phrase(self, text: str, start: int, stop: int) -> PhraseMatch | None:
        """Return text[start:stop], with or else without its punctuation, if it has synonyms."""
        phrase = text[start:stop]
        key = normalize_phrase(phrase)
        if key in self.alternatives:
            return PhraseMatch(start, stop, key)
        inner = phrase.strip(EDGE_PUNCTUATION)
        key = normalize_phrase(inner)
        if key not in self.alternatives:
            return None
        inner_start = start + len(phrase) - len(phrase.lstrip(EDGE_PUNCTUATION))
        return PhraseMatch(inner_start, inner_start + len(inner), key)

    def _replace_phrases(
        self, text: str, matches: Iterable[PhraseMatch], rng: random.Random
    ) -> str:
        """Replace each match by a random synonym, capitalized like the match."""
        parts: list[str] = []
        end = 0
        for match in matches:
            synonym = rng.choice(self.alternatives[match.key])
            if text[match.start].isupper():
                synonym = synonym[0].upper() + synonym[1:]
            parts += [text[end : match.start], synonym]
            end = match.stop
        return "".join([*parts, text[end:]])


def normalize_phrase(phrase: str) -> PhraseKey:
    """Return the words of a phrase in lower case, in Unicode normalization form C."""
    return tuple(unicodedata.normalize("NFC", phrase).lower().split())
