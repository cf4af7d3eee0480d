"""Words that stand for each other, and texts with some of them exchanged."""
import hashlib
import random
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sensorium.data.sources import open_text
from sensorium.errors import SensoriumError

SEVERAL = 2                             # other ways to say a text, at most: it is drawn as it is written, too
EXCHANGED = 0.5                         # of the words that have others, about
CHUNK = re.compile(r"\S+")
EDGES = ".,;:!?()[]{}\"'…«»“”‘’„¡¿。，、！？"       # marks that stand around a word and are none of it
Key = tuple[str, ...]


class Synonyms:
    """Each word or phrase, as `spelt`, with those that may stand in its place."""

    def __init__(self, groups: Iterable[Sequence[str]]):
        others: dict[Key, dict[str, None]] = {}
        for group in groups:
            words = list(dict.fromkeys(word.strip() for word in group))
            for word in words:
                others.setdefault(spelt(word), {}).update(dict.fromkeys(w for w in words if spelt(w) != spelt(word)))
        self.others: Mapping[Key, list[str]] = {key: list(found) for key, found in others.items() if found}
        self.longest = max(map(len, self.others), default=0)
        self.name = hashlib.sha256(repr(sorted(self.others.items())).encode("utf-8", "surrogatepass")).hexdigest()

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
            if not line.strip() or line.lstrip().startswith("#"):
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
        chance, found = random.Random(text), dict[str, None]()
        for _ in range(2 * SEVERAL if places else 0):
            which = [place for place in places if chance.random() < EXCHANGED] or [chance.choice(places)]
            found[self._exchanged(text, which, chance)] = None
        return [one for one in found if one != text][:SEVERAL]

    def _places(self, text: str) -> list[tuple[int, int, Key]]:
        """(start, stop, key) of what can be exchanged, the longest phrases first. A phrase has nothing but space
        between its words; marks around a word are none of it, unless the list has it with them (C++, U.S.)."""
        chunks, places, at = list(CHUNK.finditer(text)), [], 0
        while at < len(chunks):
            for n in range(min(self.longest, len(chunks) - at), 0, -1):
                start, stop = chunks[at].start(), chunks[at + n - 1].end()
                whole = text[start:stop]
                inner = whole.strip(EDGES)
                first = start + len(whole) - len(whole.lstrip(EDGES))
                found = next(((s, e, key) for s, e, key in ((start, stop, spelt(whole)),
                                                            (first, first + len(inner), spelt(inner)))
                              if key in self.others), None)
                if found:
                    places.append(found)
                    at += n
                    break
            else:
                at += 1
        return places

    def _exchanged(self, text: str, places: Iterable[tuple[int, int, Key]], chance: random.Random) -> str:
        parts, at = [], 0
        for start, stop, key in places:
            other = chance.choice(self.others[key])
            parts += [text[at:start], other[0].upper() + other[1:] if text[start].isupper() else other]
            at = stop
        return "".join([*parts, text[at:]])


def spelt(word: str) -> Key:
    """The words of a phrase: in lower case, each letter with its marks in one."""
    return tuple(unicodedata.normalize("NFC", word).lower().split())
