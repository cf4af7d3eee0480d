"""The verb `generate` for words: pictures, questions and beginnings in, words out, whole or token by token."""
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.modalities.modality import Modality
from sensorium.modalities.text import Text, last_place
from sensorium.models import Decoder
from sensorium.objectives.next_token import Beams, Sampling, generate, search
from sensorium.tokens import Batch
from sensorium.verbs.asked import batched, collated, lists, only
from sensorium.verbs.verb import at_rest, load

MOST_BEAMS = 256
PIECE = "\ufffd"                             # how the first bytes of a letter are shown while others are to come


class Speaker:
    """generate(image=[...], question=[...], text=[...]) → words that go on from there.

    given: what a model reads before it speaks, part → settings. `text` is how its words begin.
    """

    makes = "text"

    def __init__(self, model: Decoder, given: Mapping[str, Modality], text: Text):
        self.model, self.given, self.text = model, dict(given), text

    def __call__(self, what: str | None = None, /, *, n: int = 1, temperature: float = 0.0, top_k: int = 0,
                 top_p: float = 1.0, beams: int = 0, seed: int = 0, length: int = 0, batch_size: int = 64,
                 **given: Any) -> list[str]:
        """Words for each row asked, n times over, side by side.

        Each keyword of `given` is a list of raw values (image: paths, PIL images, arrays; question; text: beginnings),
        or one value; None where one is missing. temperature: 0 for the likeliest word each time. beams: how many
        continuations are followed at once in search of the likeliest; 0: none. length: the most tokens; 0: all that
        the model can say. The same seed gives the same words to the same row whatever else is asked
        beside.
        Raises SensoriumError naming what cannot be read or done.
        """
        only(what, "text", n=n, batch_size=batch_size)
        asked, rows = self._asked(given)
        if n > 1 and (beams or not temperature):
            raise SensoriumError(f"n={n}: the likeliest words are always the same; give a temperature, and no beams")
        if not 0 <= beams <= MOST_BEAMS or beams and temperature:
            raise SensoriumError(f"beams={beams}, temperature={temperature}: beams, {MOST_BEAMS} at most, look for the "
                                 "likeliest words, and a temperature draws others; give one of the two")
        said: list[str] = []
        for some, numbers in batched(asked, rows, n, batch_size):
            how = Sampling(temperature, top_k, top_p, seed=seed, rows=numbers)
            ids = self.say(self._batch(some), how, length, beams)
            said += [self.text.show(row) for row in ids]
        return said

    def stream(self, what: str | None = None, /, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
               seed: int = 0, length: int = 0, **given: Any) -> Iterator[list[str]]:
        """The same as it is said: for each step, what came to each row. Joined, they are the words of a call."""
        only(what, "text")
        asked, rows = self._asked(given)
        (_, numbers), = batched(asked, rows, 1, rows)
        how = Sampling(temperature, top_k, top_p, seed=seed, rows=numbers)
        batch = self._batch(asked)
        said, shown = batch["text"][:, :0], [""] * rows
        with at_rest(self.model):
            for ids in self._steps(batch, how, length):
                said = torch.cat([said, ids[:, None]], 1)
                whole = [self.text.show(row) for row in said]
                whole = [before if now.endswith(PIECE) else now for before, now in zip(shown, whole, strict=True)]
                yield [now[len(before):] for before, now in zip(shown, whole, strict=True)]
                shown = whole
        yield [self.text.show(row)[len(before):] for before, row in zip(shown, said, strict=True)]

    def say(self, batch: Batch, how: Sampling, length: int = 0, beams: int = 0) -> Int[Tensor, "B T"]:
        """Ids for a batch of parts, as tensors. Beginnings are told from ends by having none."""
        with at_rest(self.model):
            if not beams:
                return torch.stack(list(self._steps(batch, how, length)), 1)
            return search(self.model, batch, "text", self._room(batch, length), Beams(beams), end=self.text.end,
                          banned=self._never())

    def start(self, rows: int) -> Int[Tensor, "B 1"]:
        """The beginning of words of which nothing is given."""
        return torch.full((rows, 1), self._first)

    def _steps(self, batch: Batch, how: Sampling, length: int) -> Iterator[Int[Tensor, "B"]]:
        return generate(self.model, batch, "text", self._room(batch, length), how, end=self.text.end,
                        banned=self._never())

    def _room(self, batch: Batch, length: int) -> Int[Tensor, "B"]:
        """How many tokens each row may go on for. Raises SensoriumError for a length below 0."""
        if length < 0:
            raise SensoriumError(f"length={length}: expected 1 token or more, or 0 for all that the model can say")
        room = self.text.length - 1 - last_place(batch["text"], self.text.end, self.text.pad)
        return room.clamp(max=length) if length else room

    @property
    def _first(self) -> int:
        """What words begin with; where nothing of its own does, the end of other words."""
        return self.text.end if self.text.start is None else self.text.start

    def _never(self) -> tuple[int, ...]:
        return tuple({self.text.pad, self._first} - {self.text.end})

    def _asked(self, given: Mapping[str, Any]) -> tuple[dict[str, list[Any]], int]:
        asked = lists(given, [*self.given, "text"], "text")
        rows = max((len(values) for values in asked.values()), default=1)
        return {"text": [None] * rows, **asked}, rows

    def _batch(self, asked: Mapping[str, Sequence[Any]]) -> Batch:
        begun = [np.array([self._first]) if words is None else load(self.text, words)[:-1]
                 for words in asked["text"]]
        for words, ids in zip(asked["text"], begun, strict=True):
            if len(ids) > self.text.length - 2:
                raise SensoriumError(f"the beginning {words[:40]!r} leaves no room: this model says {self.text.length} "
                                     "tokens at most")
        batch = Batch({"text": self.text.collate(begun)})
        for part, values in asked.items():
            batch = batch if part == "text" else batch.beside(collated(part, self.given[part], values))
        return batch
