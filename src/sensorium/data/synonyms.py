"""Words that stand for each other, and texts with some of them exchanged."""
import hashlib
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from sensorium.data.sources import open_text
from sensorium.errors import SensoriumError

SEVERAL = 4                             # texts beside the one that is written, at most
EXCHANGED = 0.5                         # of the words that have others, about
WORD = re.compile(r"\w+(?:['’-]\w+)*")


class Synonyms:
    """Each word or phrase, in lower case, with those that may stand in its place."""

    def __init__(self, groups: Iterable[Iterable[str]]):
        others: dict[tuple[str, ...], dict[str, None]] = {}
        for group in groups:
            words = list(dict.fromkeys(word.strip() for word in group))
            for word in words:
                others.setdefault(spelt(word), {}).update(dict.fromkeys(w for w in words if spelt(w) != spelt(word)))
        self.others: Mapping[tuple[str, ...], list[str]] = {key: list(found) for key, found in others.items()}
        self.longest = max(map(len, self.others), default=0)
        self.name = hashlib.sha256(repr(sorted(self.others.items())).encode()).hexdigest()

    @classmethod
    def read(cls, path: str | Path) -> "Synonyms":
        """A text file: a group a line, parted by commas; empty lines and those that begin with # are passed over.

        Raises SensoriumError naming the line that holds no two words.
        """
        groups = []
        try:
            with open_text(Path(path)) as file:
                lines = file.read().splitlines()
        except (OSError, UnicodeError) as e:
            raise SensoriumError(f"{path} cannot be read: {e}. synonyms is a text file, a group a line: "
                                 "car, automobile") from e
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            words = [word for word in line.split(",") if spelt(word)]
            if len({spelt(word) for word in words}) < 2:
                raise SensoriumError(f"{path}:{number}: {line.strip()!r} is no group of words that stand for each "
                                     "other; expected two or more, parted by commas: car, automobile")
            groups.append(words)
        if not groups:
            raise SensoriumError(f"{path} holds no words; expected a group a line: car, automobile")
        return cls(groups)

    def beside(self, text: str) -> list[str]:
        """Up to SEVERAL other ways to say a text, each once; the same for the same text. None where it has no word that
        another can stand for."""
        places = self._places(text)
        chance = random.Random(text)
        found: dict[str, None] = {}
        for _ in range(2 * SEVERAL if places else 0):
            which = [place for place in places if chance.random() < EXCHANGED] or [chance.choice(places)]
            found[self._exchanged(text, which, chance)] = None
            if len(found) == SEVERAL:
                break
        return [one for one in found if one != text]

    def _places(self, text: str) -> list[tuple[int, int, tuple[str, ...]]]:
        """(start, stop, key) of what can be exchanged, the longest phrases first."""
        words, places, at = list(WORD.finditer(text)), [], 0
        while at < len(words):
            for n in range(min(self.longest, len(words) - at), 0, -1):
                key = tuple(word[0].lower() for word in words[at:at + n])
                if key in self.others:
                    places.append((words[at].start(), words[at + n - 1].end(), key))
                    at += n
                    break
            else:
                at += 1
        return places

    def _exchanged(self, text: str, places: Iterable[tuple[int, int, tuple[str, ...]]], chance: random.Random) -> str:
        for start, stop, key in sorted(places, reverse=True):
            other = chance.choice(self.others[key])
            if text[start].isupper():
                other = other[0].upper() + other[1:]
            text = text[:start] + other + text[stop:]
        return text


def spelt(word: str) -> tuple[str, ...]:
    """The words of a phrase, in lower case."""
    return tuple(part[0].lower() for part in WORD.finditer(word))
