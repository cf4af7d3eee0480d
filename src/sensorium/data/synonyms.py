"""Words that stand for each other, and texts with some of them exchanged."""

import hashlib
import random
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sensorium.data.tables import open_text
from sensorium.errors import SensoriumError

MAX_PARAPHRASES = 2  # other ways to say a text, at most: it is drawn as it is written, too
REPLACEMENT_PROBABILITY = 0.5  # of the words that have others, about
WORD_PATTERN = re.compile(r"\S+")
EDGE_PUNCTUATION = (
    ".,;:!?()[]{}\"'…«»“”‘’„¡¿。，、！？"  # marks that stand around a word and are none of it
)
PhraseKey = tuple[str, ...]


class Synonyms:
    """Each word or phrase, as `spelt`, with those that may stand in its place."""

    def __init__(self, groups: Iterable[Sequence[str]]):
        others: dict[PhraseKey, dict[str, None]] = {}
        for group in groups:
            words = list(dict.fromkeys(word.strip() for word in group))
            for word in words:
                others.setdefault(normalize_phrase(word), {}).update(
                    dict.fromkeys(w for w in words if normalize_phrase(w) != normalize_phrase(word))
                )
        self.alternatives: Mapping[PhraseKey, list[str]] = {
            key: list(found) for key, found in others.items() if found
        }
        self.max_phrase_words = max(map(len, self.alternatives), default=0)
        self.fingerprint = hashlib.sha256(
            repr(sorted(self.alternatives.items())).encode("utf-8", "surrogatepass")
        ).hexdigest()

    @classmethod
    def from_file(cls, path: str | Path) -> "Synonyms":
        """A text file: a group a line, parted by commas; empty lines and those that begin with # are passed over.

        Raises SensoriumError naming the line that holds no two words.
        """
        groups = []
        try:
            with open_text(Path(path)) as file:
                lines = file.read().splitlines()
        except (OSError, UnicodeError) as e:
            raise SensoriumError(
                f"{path} cannot be read: {e}. synonyms is a text file, a group a line: "
                "car, automobile"
            ) from e
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            words = [word for word in line.split(",") if normalize_phrase(word)]
            if len({normalize_phrase(word) for word in words}) < 2:
                raise SensoriumError(
                    f"{path}:{number}: {line.strip()!r} is no group of words that stand for each "
                    "other; expected two or more, parted by commas: car, automobile"
                )
            groups.append(words)
        if not groups:
            raise SensoriumError(f"{path} holds no words; expected a group a line: car, automobile")
        return cls(groups)

    def paraphrase(self, text: str) -> list[str]:
        """Up to SEVERAL other ways to say a text, each once; the same for the same text. None where it has no word that
        another can stand for."""
        places = self._find_phrases(text)
        chance, found = random.Random(text), dict[str, None]()
        for _ in range(2 * MAX_PARAPHRASES if places else 0):
            which = [place for place in places if chance.random() < REPLACEMENT_PROBABILITY] or [
                chance.choice(places)
            ]
            found[self._replace_phrases(text, which, chance)] = None
        return [one for one in found if one != text][:MAX_PARAPHRASES]

    def _find_phrases(self, text: str) -> list[tuple[int, int, PhraseKey]]:
        """(start, stop, key) of what can be exchanged, the longest phrases first. A phrase has nothing but space
        between its words; marks around a word are none of it, unless the list has it with them (C++, U.S.)."""
        chunks, places, at = list(WORD_PATTERN.finditer(text)), [], 0
        while at < len(chunks):
            for n in range(min(self.max_phrase_words, len(chunks) - at), 0, -1):
                start, stop = chunks[at].start(), chunks[at + n - 1].end()
                whole = text[start:stop]
                inner = whole.strip(EDGE_PUNCTUATION)
                first = start + len(whole) - len(whole.lstrip(EDGE_PUNCTUATION))
                found = next(
                    (
                        (s, e, key)
                        for s, e, key in (
                            (start, stop, normalize_phrase(whole)),
                            (first, first + len(inner), normalize_phrase(inner)),
                        )
                        if key in self.alternatives
                    ),
                    None,
                )
                if found:
                    places.append(found)
                    at += n
                    break
            else:
                at += 1
        return places

    def _replace_phrases(
        self, text: str, matches: Iterable[tuple[int, int, PhraseKey]], rng: random.Random
    ) -> str:
        parts, at = [], 0
        for start, stop, key in matches:
            other = rng.choice(self.alternatives[key])
            parts += [
                text[at:start],
                other[0].upper() + other[1:] if text[start].isupper() else other,
            ]
            at = stop
        return "".join([*parts, text[at:]])


def normalize_phrase(phrase: str) -> PhraseKey:
    """The words of a phrase: in lower case, each letter with its marks in one."""
    return tuple(unicodedata.normalize("NFC", phrase).lower().split())
