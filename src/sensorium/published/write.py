"""The verb `generate` of published decoders of text: beginnings or questions in, words out."""
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.models import Decoder
from sensorium.objectives.next_token import Sampling, generate
from sensorium.published.chat import Beginning, beginning, chat
from sensorium.published.files import Opened
from sensorium.published.published import Senses, Verbs
from sensorium.tokens import Batch
from sensorium.verbs.asked import batched, lists, only
from sensorium.verbs.verb import at_rest, load

USUAL = 256                                 # tokens said where nobody says how many


class Writer:
    """generate("text", text=[...]) goes on from there; generate("text", prompt=[...]) answers, where taught to chat."""

    def __init__(self, model: Decoder, senses: Senses):
        text = senses["text"]
        assert isinstance(text, Beginning)
        self.model, self.senses, self.text = model, senses, text

    def __call__(self, what: str | None = None, /, *, n: int = 1, temperature: float = 0.0, top_k: int = 0,
                 top_p: float = 1.0, seed: int = 0, length: int = USUAL, batch_size: int = 16,
                 **given: Any) -> list[str]:
        """What is said after each of `text`, or in answer to each of `prompt`: words, or a conversation as a list of
        {"role": "user", "content": words}; n times over, side by side.

        temperature: 0 for the likeliest token each time. length: the most tokens. The same seed says the same, row by
        row, whatever the batch. Raises SensoriumError where it cannot be asked so, or there is no room for `length`.
        """
        only(what, "text")
        rows = self.read(given, length)
        said = list[str]()
        for some, numbers in batched({"text": rows}, len(rows), n, batch_size):
            how = Sampling(temperature, top_k, top_p, seed=seed, rows=numbers)
            with at_rest(self.model):
                batch = Batch({"text": self.text.collate(some["text"])})
                steps = list(generate(self.model, batch, "text", length, how, end=next(iter(self.text.ends), None),
                                      banned=self.text.never))
            said += [self.text.show(row) for row in torch.stack(steps, 1)]
        return said

    def read(self, given: Mapping[str, Any], length: int) -> list[np.ndarray]:
        """Beginnings, or questions as they are put to the model, as ids that leave room for `length` more."""
        asked = lists(given, list(self.senses), "text")
        if len(asked) != 1:
            raise SensoriumError(f"give one of {', '.join(self.senses)}: this model makes text from it")
        (kind, values), = asked.items()
        rows = [load(self.senses[kind], value) for value in values]
        longest = max(map(len, rows), default=0)
        if longest > self.text.length - length:
            raise SensoriumError(f"{longest} tokens are given and {length} asked for: this model reads and says "
                                 f"{self.text.length} in all; ask for fewer with length=")
        return rows


def senses(opened: Opened, length: int, ends: Any) -> Senses:
    """What its tokenizer reads: `text`, and `prompt` where there is a chat template; {} where there is none."""
    text = beginning(opened, length, ends)
    if text is None:
        return {}
    template = opened.json("tokenizer_config.json").get("chat_template") or opened.config.get("tokenizer.chat_template")
    if "chat_template.jinja" in opened.files:
        template = opened.files["chat_template.jinja"].read_text(encoding="utf-8")
    return {"text": text} if template is None else {"text": text, "prompt": chat(text, template)}


def verbs(module: nn.Module, senses: Senses) -> Verbs:
    """`generate`, where there is a tokenizer."""
    assert isinstance(module, Decoder)
    return {"generate": Writer(module, senses)} if senses else {}
