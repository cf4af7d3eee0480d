"""What published decoders of text are given: a beginning to go on from, or a question put as they were taught.

    B batch   T tokens
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from sensorium.modalities.modality import settings
from sensorium.published.decoder import PAD
from sensorium.published.files import Opened
from sensorium.published.tokens import tokenizer

ROLES = ("system", "user", "assistant")
START, END = "<|im_start|>", "<|im_end|>"
LINE = r"(?:\\n|\n)"
CHATML = re.compile(        # the one template that is known; a template is a program, and none is run
    r"\{% for message in messages %\}"
    r"(?:\{% if loop\.first and messages\[0\]\['role'\] != 'system' %\}"
    rf"\{{\{{ '<\|im_start\|>system{LINE}(?P<system>[^'<>{{}}]*)<\|im_end\|>{LINE}' \}}\}}\{{% endif %\}})?"
    rf"\{{\{{ ?'<\|im_start\|>' \+ message\['role'\] \+ '{LINE}' \+ message\['content'\] \+ '<\|im_end\|>'"
    rf" \+ '{LINE}' ?\}}\}}\{{% endfor %\}}"
    rf"\{{% if add_generation_prompt %\}}\{{\{{ ?'<\|im_start\|>assistant{LINE}' ?\}}\}}\{{% endif %\}}")


@dataclass(frozen=True)
class Beginning:
    """Settings of words to go on from: ids alone, nothing put before or after them."""

    kind: ClassVar[str] = "text"
    length: int                             # tokens that the model reads and says in all
    ends: tuple[int, ...]                   # ids by which it says that it has done
    tokenizer: Tokenizer = field(compare=False, repr=False)
    never: tuple[int, ...] = ()             # ids that are not said
    never_first: tuple[int, ...] = ()       # nor these, at first

    def __post_init__(self) -> None:
        self.tokenizer.encode_special_tokens = True         # the name of a special token in a text is just letters

    def fit(self, values: Iterable[Any]) -> Beginning:
        """These settings: nothing is left to be learned."""
        return self

    def load(self, raw: Any) -> np.ndarray:
        """A text as int32 ids [n]. Raises ValueError for anything but words."""
        if not isinstance(raw, str) or not raw:
            raise ValueError(f"expected words, found {raw!r}" if raw == "" else
                             f"expected words, found {type(raw).__name__}")
        return np.array(self.tokenizer.encode(raw, add_special_tokens=False).ids, dtype=np.int32)

    def collate(self, values: Sequence[np.ndarray]) -> Int[Tensor, "B T"]:
        """Rows of ids side by side, PAD after the shorter ones."""
        batch = np.full((len(values), max(map(len, values))), PAD, dtype=np.int64)
        for row, ids in zip(batch, values, strict=True):
            row[:len(ids)] = ids
        return torch.from_numpy(batch)

    def augment(self, batch: Int[Tensor, "B T"], rng: torch.Generator, **how: float) -> Int[Tensor, "B T"]:
        """The batch as it is."""
        return batch

    def show(self, ids: Int[Tensor, "T"]) -> str:
        """Ids back to words, up to the first that ends them."""
        said = ids.tolist()
        stop = next((at for at, i in enumerate(said) if i in self.ends), len(said))
        return self.tokenizer.decode(said[:stop])

    def to_json(self) -> dict[str, Any]:
        """Plain settings; the tokenizer has a file of its own."""
        return settings(self, without=("tokenizer",))


@dataclass(frozen=True)
class Chat:
    """Settings of questions in ChatML: <|im_start|>ROLE⏎ content <|im_end|>⏎ for each message, then an answer begins.

    The markers are single ids: what somebody writes is never read as one. `system` is said first where a conversation
    has no such message; None: the model's template is another, and it cannot be asked.
    """

    kind: ClassVar[str] = "prompt"
    text: Beginning
    system: str | None = None

    def fit(self, values: Iterable[Any]) -> Chat:
        """These settings: nothing is left to be learned."""
        return self

    def load(self, raw: Any) -> np.ndarray:
        """A question, or a conversation of {"role": ..., "content": ...}, as int32 ids up to where the answer begins.

        Raises ValueError for anything else, and where the template is not known.
        """
        if self.system is None:
            raise ValueError("its chat template is a program, of which none is run, and not the one that is known "
                             "(ChatML); spell the conversation out with text=")
        messages = [{"role": "user", "content": raw}] if isinstance(raw, str) else list(raw)
        for message in messages:
            if not isinstance(message, Mapping) or set(message) != {"role", "content"} or message["role"] not in ROLES:
                raise ValueError(f"expected {{'role': one of {', '.join(ROLES)}, 'content': words}}, found {message!r}")
        if self.system and messages[:1] and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        parts = [self._message(message["role"], message["content"]) for message in messages]
        return np.concatenate([*parts, self._marker(START), self.text.load("assistant\n")])

    def collate(self, values: Sequence[np.ndarray]) -> Int[Tensor, "B T"]:
        """Rows of ids side by side, PAD after the shorter ones."""
        return self.text.collate(values)

    def augment(self, batch: Int[Tensor, "B T"], rng: torch.Generator, **how: float) -> Int[Tensor, "B T"]:
        """The batch as it is."""
        return batch

    def to_json(self) -> dict[str, Any]:
        """Plain settings."""
        return {"system": self.system, **self.text.to_json()}

    def _message(self, role: str, content: str) -> np.ndarray:
        return np.concatenate([self._marker(START), self.text.load(f"{role}\n{content}"), self._marker(END),
                               self.text.load("\n")])

    def _marker(self, name: str) -> np.ndarray:
        number = self.text.tokenizer.token_to_id(name)
        if number is None:
            raise ValueError(f"its tokenizer has no {name}, by which it should be asked")
        return np.array([number], dtype=np.int32)


def beginning(opened: Opened, length: int, ends: int | Sequence[int] | None, **more: Any) -> Beginning | None:
    """The settings that the tokenizer beside the weights asks for; None where there is none.

    ends: the id, or the ids, by which the model says that it has done.
    """
    made = tokenizer(opened)
    if made is None:
        return None
    stops = () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
    return Beginning(length, stops, made, **more)


def chat(text: Beginning, template: Any) -> Chat:
    """The settings that a file's chat template asks for."""
    found = CHATML.fullmatch(template.strip()) if isinstance(template, str) else None
    return Chat(text, None if found is None else found["system"] or "")
