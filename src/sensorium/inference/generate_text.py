"""The verb `generate` for words: pictures, questions and beginnings in, words out, whole or token by token."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.inference.base import eval_mode, load_value
from sensorium.inference.request import as_lists, collate_column, iter_batches, require_output
from sensorium.modalities.base import Modality
from sensorium.modalities.text import Text, last_token_index
from sensorium.models.decoder import Decoder
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import BeamConfig, SamplingConfig, beam_search, generate

MAX_BEAMS = 256
REPLACEMENT_CHAR = "\ufffd"  # how the first bytes of a letter are shown while others are to come


class TextGenerator:
    """generate(image=[...], question=[...], text=[...]) → words that go on from there.

    given: what a model reads before it speaks, part → settings. `text` is how its words begin.
    """

    output_modality = "text"

    def __init__(self, model: Decoder, inputs: Mapping[str, Modality], text: Text):
        self.model, self.inputs, self.text = model, dict(inputs), text

    def __call__(
        self,
        modality: str | None = None,
        /,
        *,
        n: int = 1,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        num_beams: int = 0,
        seed: int = 0,
        max_tokens: int = 0,
        batch_size: int = 64,
        **inputs: Any,
    ) -> list[str]:
        """Words for each row asked, n times over, side by side.

        Each keyword of `given` is a list of raw values (image: paths, PIL images, arrays; question; text: beginnings),
        or one value; None where one is missing. temperature: 0 for the likeliest word each time. beams: how many
        continuations are followed at once in search of the likeliest; 0: none. length: the most tokens; 0: all that
        the model can say. The same seed gives the same words to the same row whatever else is asked
        beside.
        Raises SensoriumError naming what cannot be read or done.
        """
        require_output(modality, "text", n=n, batch_size=batch_size)
        asked, rows = self._parse_inputs(inputs)
        if n > 1 and (num_beams or not temperature):
            raise SensoriumError(
                f"n={n}: the likeliest words are always the same; give a temperature, and no beams"
            )
        if not 0 <= num_beams <= MAX_BEAMS or (num_beams and temperature):
            raise SensoriumError(
                f"beams={num_beams}, temperature={temperature}: beams, {MAX_BEAMS} at most, look for the "
                "likeliest words, and a temperature draws others; give one of the two"
            )
        said: list[str] = []
        for some, numbers in iter_batches(asked, rows, n, batch_size):
            how = SamplingConfig(temperature, top_k, top_p, seed=seed, row_ids=numbers)
            ids = self.generate_tokens(self._build_batch(some), how, max_tokens, num_beams)
            said += [self.text.decode(row) for row in ids]
        return said

    def stream(
        self,
        modality: str | None = None,
        /,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        max_tokens: int = 0,
        **inputs: Any,
    ) -> Iterator[list[str]]:
        """The same as it is said: for each step, what came to each row. Joined, they are the words of a call."""
        require_output(modality, "text")
        asked, rows = self._parse_inputs(inputs)
        ((_, numbers),) = iter_batches(asked, rows, 1, rows)
        how = SamplingConfig(temperature, top_k, top_p, seed=seed, row_ids=numbers)
        batch = self._build_batch(asked)
        said, shown = batch["text"][:, :0], [""] * rows
        with eval_mode(self.model):
            for ids in self._iter_tokens(batch, how, max_tokens):
                said = torch.cat([said, ids[:, None]], 1)
                whole = [self.text.decode(row) for row in said]
                whole = [
                    before if now.endswith(REPLACEMENT_CHAR) else now
                    for before, now in zip(shown, whole, strict=True)
                ]
                yield [now[len(before) :] for before, now in zip(shown, whole, strict=True)]
                shown = whole
        yield [
            self.text.decode(row)[len(before) :] for before, row in zip(shown, said, strict=True)
        ]

    def generate_tokens(
        self, batch: Batch, sampling: SamplingConfig, max_tokens: int = 0, num_beams: int = 0
    ) -> Int[Tensor, "B T"]:
        """Ids for a batch of parts, as tensors. Beginnings are told from ends by having none."""
        with eval_mode(self.model):
            if not num_beams:
                return torch.stack(list(self._iter_tokens(batch, sampling, max_tokens)), 1)
            return beam_search(
                self.model,
                batch,
                "text",
                self._max_new_tokens(batch, max_tokens),
                BeamConfig(num_beams),
                end_token=self.text.end,
                suppressed_tokens=self._suppressed_tokens(),
            )

    def start_tokens(self, batch_size: int) -> Int[Tensor, "B 1"]:
        """The beginning of words of which nothing is given."""
        return torch.full((batch_size, 1), self._start_id)

    def _iter_tokens(
        self, batch: Batch, sampling: SamplingConfig, max_tokens: int
    ) -> Iterator[Int[Tensor, "B"]]:
        return generate(
            self.model,
            batch,
            "text",
            self._max_new_tokens(batch, max_tokens),
            sampling,
            end_token=self.text.end,
            suppressed_tokens=self._suppressed_tokens(),
        )

    def _max_new_tokens(self, batch: Batch, max_tokens: int) -> Int[Tensor, "B"]:
        """How many tokens each row may go on for. Raises SensoriumError for a length below 0."""
        if max_tokens < 0:
            raise SensoriumError(
                f"length={max_tokens}: expected 1 token or more, or 0 for all that the model can say"
            )
        room = self.text.length - 1 - last_token_index(batch["text"], self.text.end, self.text.pad)
        return room.clamp(max=max_tokens) if max_tokens else room

    @property
    def _start_id(self) -> int:
        """What words begin with; where nothing of its own does, the end of other words."""
        return self.text.end if self.text.start is None else self.text.start

    def _suppressed_tokens(self) -> tuple[int, ...]:
        return tuple({self.text.pad, self._start_id} - {self.text.end})

    def _parse_inputs(self, inputs: Mapping[str, Any]) -> tuple[dict[str, list[Any]], int]:
        asked = as_lists(inputs, [*self.inputs, "text"], "text")
        rows = max((len(values) for values in asked.values()), default=1)
        return {"text": [None] * rows, **asked}, rows

    def _build_batch(self, inputs: Mapping[str, Sequence[Any]]) -> Batch:
        begun = [
            np.array([self._start_id]) if words is None else load_value(self.text, words)[:-1]
            for words in inputs["text"]
        ]
        for words, ids in zip(inputs["text"], begun, strict=True):
            if len(ids) > self.text.length - 2:
                raise SensoriumError(
                    f"the beginning {words[:40]!r} leaves no room: this model says {self.text.length} "
                    "tokens at most"
                )
        batch = Batch({"text": self.text.collate(begun)})
        for part, values in inputs.items():
            batch = (
                batch
                if part == "text"
                else batch.merge(collate_column(part, self.inputs[part], values))
            )
        return batch
