"""The verb `generate` of published decoders of text: beginnings or questions in, words out."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.modalities.modality import Modality
from sensorium.models import Decoder
from sensorium.objectives.next_token import Sampling, generate
from sensorium.published.chat import Beginning, chat
from sensorium.published.files import Opened
from sensorium.published.published import Senses, Verbs

USUAL = 256                                 # tokens said where nobody says how many


class Writer:
    """generate("text", text=[...]) goes on from there; generate("text", prompt=[...]) answers, where taught to chat."""

    def __init__(self, model: Decoder, senses: Senses):
        text = senses["text"]
        assert isinstance(text, Beginning)
        self.model, self.senses, self.text = model, senses, text

    def __call__(self, what: str = "text", /, *, length: int = USUAL, temperature: float = 0.0, top_k: int = 0,
                 top_p: float = 1.0, seed: int = 0, batch_size: int = 16, **given: Sequence[Any]) -> list[str]:
        """What is said after each of `text`, or in answer to each of `prompt`: words, or a conversation as a list of
        {"role": "user", "content": words}.

        length: the most tokens. temperature: 0 for the likeliest each time. The same seed says the same, row by row,
        whatever the batch. Raises SensoriumError where it cannot be asked so, or its texts have no room for `length`.
        """
        rows, how = self.read(what, length, given), Sampling(temperature, top_k, top_p, seed=seed)
        self.model.eval()
        said = list[str]()
        for some in (rows[i:i + batch_size] for i in range(0, len(rows), batch_size)):
            batch = {"text": self.text.collate(some)}
            steps = list(generate(self.model, batch, "text", length, how, end=self.text.ends[0]))
            said += [self.text.show(row) for row in torch.stack(steps, 1)]
        return said

    def read(self, what: str, length: int, given: dict[str, Sequence[Any]]) -> list[np.ndarray]:
        """Beginnings, or questions as they are put to the model, as ids that leave room for `length` more."""
        if what != "text" or len(given) != 1 or not set(given) <= set(self.senses):
            raise SensoriumError(f"this model makes text and is given one of {' or '.join(self.senses)}: "
                                 f"generate(\"text\", text=[...]); got {what}, {', '.join(given) or 'nothing'}")
        (kind, values), = given.items()
        rows = loaded(self.senses[kind], [values] if isinstance(values, str) else values)
        longest, room = max(map(len, rows), default=0), self.text.length - length
        if longest > room:
            raise SensoriumError(f"{longest} tokens are given and {length} asked for: this model reads and says "
                                 f"{self.text.length} in all; ask for fewer with length=")
        return rows


def loaded(modality: Modality, values: Sequence[Any]) -> list[np.ndarray]:
    """Raw values loaded. Raises SensoriumError naming the first that cannot be."""
    found = []
    for value in values:
        try:
            found.append(modality.load(value))
        except ValueError as error:
            raise SensoriumError(f"cannot read {str(value)[:40]!r}: {error}") from error
    return found


def senses(opened: Opened, length: int, ends: Any) -> Senses:
    """What the tokenizer beside the weights reads: `text`, and `prompt` where there is a chat template; {} without one.

    ends: the id, or the ids, by which the model says that it has done.
    """
    if "tokenizer.json" not in opened.files:
        return {}
    stops = tuple(ends) if isinstance(ends, Sequence) else (ends,)
    text = Beginning(length, stops, Tokenizer.from_file(str(opened.files["tokenizer.json"])))
    template = opened.json("tokenizer_config.json").get("chat_template")
    if "chat_template.jinja" in opened.files:
        template = opened.files["chat_template.jinja"].read_text(encoding="utf-8")
    return {"text": text} if template is None else {"text": text, "prompt": chat(text, template)}


def verbs(module: nn.Module, senses: Senses) -> Verbs:
    """`generate`, where there is a tokenizer."""
    assert isinstance(module, Decoder)
    return {"generate": Writer(module, senses)} if senses else {}
