"""The verb `generate` for text: images, questions and prefixes to text, at once or as a stream.

B rows   T tokens
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.inference.base import eval_mode, load_value
from sensorium.inference.request import (
    RawInputs,
    as_lists,
    collate_column,
    iter_request_batches,
    require_output,
)
from sensorium.modalities.base import Modality
from sensorium.modalities.text import Text, last_token_index
from sensorium.models.decoder import Decoder
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import BeamConfig, SamplingConfig, beam_search, generate

MAX_BEAMS = 256
REPLACEMENT_CHAR = "\ufffd"  # decoded from the first bytes of an incomplete character


class TextGenerator:
    """Generate text: `generate(image=[...], question=[...], text=[...])`.

    Args:
        model: The trained model.
        inputs: Settings of the parts that precede the text.
        text: Settings of the generated text, and of its optional prefix, the input `text`.
    """

    output_modality = "text"

    def __init__(self, model: Decoder, inputs: Mapping[str, Modality], text: Text):
        self.model = model
        self.inputs = dict(inputs)
        self.text = text

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
        """Return n texts for each row, those of one row consecutive.

        The same seed gives the same text for a row, whatever else is in the request.

        Args:
            modality: "text", or None.
            n: Texts per row; more than 1 needs a temperature.
            temperature: Sampling temperature; 0 is greedy decoding.
            top_k: Sample from the k most likely tokens only; 0 is off.
            top_p: Sample from the most likely tokens with this total probability; 1 is off.
            num_beams: Beam search with this many beams; 0 is off.
            seed: Random seed.
            max_tokens: Largest number of new tokens; 0 is the model's limit.
            batch_size: Texts per batch.
            **inputs: Input → list of raw values, or one value; None is a missing value.

        Raises:
            SensoriumError: If an option is out of range, or an input cannot be read.
        """
        require_output(modality, "text", n=n, batch_size=batch_size)
        request, rows = self._parse_inputs(inputs)
        if not 0 <= num_beams <= MAX_BEAMS:
            raise SensoriumError(
                f"--num-beams {num_beams} is out of range. Use 0 (off) to {MAX_BEAMS}."
            )
        if num_beams and temperature:
            raise SensoriumError(
                f"--num-beams {num_beams} and --temperature {temperature:g} exclude each other. "
                "Beam search is deterministic; give one of the two."
            )
        if n > 1 and not temperature:
            raise SensoriumError(
                f"-n {n} needs sampling, or all texts are the same. Give a --temperature above 0."
            )
        texts: list[str] = []
        for batch_inputs, row_ids in iter_request_batches(request, rows, n, batch_size):
            sampling = SamplingConfig(temperature, top_k, top_p, seed=seed, row_ids=row_ids)
            batch = self._build_batch(batch_inputs)
            ids = self.generate_tokens(batch, sampling, max_tokens, num_beams)
            texts += [self.text.decode(row) for row in ids]
        return texts

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
        """Yield the text of each row as it is generated, one token at a time.

        Takes the options of a call, all rows in one batch.

        Yields:
            For each step the new text of each row, in whole characters; all of them joined are the
            texts that a call returns.
        """
        require_output(modality, "text")
        request, rows = self._parse_inputs(inputs)
        ((_, row_ids),) = iter_request_batches(request, rows, 1, rows)
        sampling = SamplingConfig(temperature, top_k, top_p, seed=seed, row_ids=row_ids)
        batch = self._build_batch(request)
        generated = batch["text"][:, :0]
        emitted = [""] * rows
        with eval_mode(self.model):
            for ids in self._iter_tokens(batch, sampling, max_tokens):
                generated = torch.cat([generated, ids[:, None]], 1)
                decoded = [self.text.decode(row) for row in generated]
                decoded = [
                    old if new.endswith(REPLACEMENT_CHAR) else new
                    for old, new in zip(emitted, decoded, strict=True)
                ]
                yield _new_text(emitted, decoded)
                emitted = decoded
        yield _new_text(emitted, [self.text.decode(row) for row in generated])

    def generate_tokens(
        self, batch: Batch, sampling: SamplingConfig, max_tokens: int = 0, num_beams: int = 0
    ) -> Int[Tensor, "B T"]:
        """Return the generated token ids, without the prefix.

        Args:
            batch: The inputs of the model; `text` holds prefixes with a start and no end token.
            sampling: Options of sampling, unused in beam search.
            max_tokens: Largest number of new tokens; 0 is the model's limit.
            num_beams: Beam search with this many beams; 0 is off.
        """
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
        """Return empty prefixes: the start token alone."""
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
        """Return how many tokens may be added to each row."""
        if max_tokens < 0:
            raise SensoriumError(
                f"--max-tokens {max_tokens} is out of range. Use 1 or more, or 0 for the model's "
                "limit."
            )
        last = last_token_index(batch["text"], self.text.end, self.text.pad)
        remaining = self.text.length - 1 - last
        return remaining.clamp(max=max_tokens) if max_tokens else remaining

    @property
    def _start_id(self) -> int:
        """The start token; models without one start a text with the end token of another."""
        return self.text.end if self.text.start is None else self.text.start

    def _suppressed_tokens(self) -> tuple[int, ...]:
        return tuple({self.text.pad, self._start_id} - {self.text.end})

    def _parse_inputs(self, inputs: Mapping[str, Any]) -> tuple[dict[str, list[Any]], int]:
        """Return the inputs as lists, prefixes included, and the number of rows."""
        lists = as_lists(inputs, [*self.inputs, "text"], "text")
        rows = max((len(values) for values in lists.values()), default=1)
        return {"text": [None] * rows, **lists}, rows

    def _build_batch(self, inputs: RawInputs) -> Batch:
        batch = Batch({"text": self.text.collate([self._prefix(v) for v in inputs["text"]])})
        for part, values in inputs.items():
            if part != "text":
                batch = batch.merge(collate_column(part, self.inputs[part], values))
        return batch

    def _prefix(self, text: str | None) -> np.ndarray:
        """Return the ids of a prefix: with a start token, without an end token."""
        if text is None:
            return np.array([self._start_id])
        ids = load_value(self.text, text)[:-1]
        if len(ids) > self.text.length - 2:
            raise SensoriumError(
                f"The prefix {text[:40]!r} leaves no room for new text: the limit of this model is "
                f"{self.text.length} tokens. Give a shorter one."
            )
        return ids


def _new_text(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return what each new text adds to its old one."""
    return [after[len(before) :] for before, after in zip(old, new, strict=True)]
