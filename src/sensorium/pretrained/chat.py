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

from sensorium.modalities.base import settings_to_dict
from sensorium.pretrained.decoder import PAD_ID
from sensorium.pretrained.tokenizers import load_tokenizer
from sensorium.pretrained.weight_files import WeightFiles

ROLES = ("system", "user", "assistant")
MESSAGE_START, MESSAGE_END = "<|im_start|>", "<|im_end|>"
NEWLINE_PATTERN = r"(?:\\n|\n)"
CHATML_TEMPLATE = re.compile(  # the one template that is known; a template is a program, and none is run
    r"\{% for message in messages %\}"
    r"(?:\{% if loop\.first and messages\[0\]\['role'\] != 'system' %\}"
    rf"\{{\{{ '<\|im_start\|>system{NEWLINE_PATTERN}(?P<system>[^'<>{{}}]*)<\|im_end\|>{NEWLINE_PATTERN}' \}}\}}\{{% endif %\}})?"
    rf"\{{\{{ ?'<\|im_start\|>' \+ message\['role'\] \+ '{NEWLINE_PATTERN}' \+ message\['content'\] \+ '<\|im_end\|>'"
    rf" \+ '{NEWLINE_PATTERN}' ?\}}\}}\{{% endfor %\}}"
    rf"\{{% if add_generation_prompt %\}}\{{\{{ ?'<\|im_start\|>assistant{NEWLINE_PATTERN}' ?\}}\}}\{{% endif %\}}"
)


@dataclass(frozen=True)
class TextPrompt:
    """Settings of words to go on from: ids alone, nothing put before or after them."""

    kind: ClassVar[str] = "text"
    length: int  # tokens that the model reads and says in all
    stop_ids: tuple[int, ...]  # ids by which it says that it has done
    tokenizer: Tokenizer = field(compare=False, repr=False)
    suppressed_tokens: tuple[int, ...] = ()  # ids that are not said
    begin_suppressed_tokens: tuple[int, ...] = ()  # nor these, at first

    def __post_init__(self) -> None:
        self.tokenizer.encode_special_tokens = (
            True  # the name of a special token in a text is just letters
        )

    def fit(self, values: Iterable[Any]) -> TextPrompt:
        """These settings: nothing is left to be learned."""
        return self

    def load(self, raw: Any) -> np.ndarray:
        """A text as int32 ids [n]. Raises ValueError for anything but words."""
        if not isinstance(raw, str) or not raw:
            raise ValueError(
                f"expected words, found {raw!r}"
                if raw == ""
                else f"expected words, found {type(raw).__name__}"
            )
        return np.array(self.tokenizer.encode(raw, add_special_tokens=False).ids, dtype=np.int32)

    def collate(self, values: Sequence[np.ndarray]) -> Int[Tensor, "B T"]:
        """Rows of ids side by side, PAD after the shorter ones."""
        batch = np.full((len(values), max(map(len, values))), PAD_ID, dtype=np.int64)
        for row, ids in zip(batch, values, strict=True):
            row[: len(ids)] = ids
        return torch.from_numpy(batch)

    def augment(
        self, batch: Int[Tensor, "B T"], rng: torch.Generator, **options: float
    ) -> Int[Tensor, "B T"]:
        """The batch as it is."""
        return batch

    def decode(self, ids: Int[Tensor, "T"]) -> str:
        """Ids back to words, up to the first that ends them."""
        said = ids.tolist()
        stop = next((at for at, i in enumerate(said) if i in self.stop_ids), len(said))
        return self.tokenizer.decode(said[:stop])

    def to_json(self) -> dict[str, Any]:
        """Plain settings; the tokenizer has a file of its own."""
        return settings_to_dict(self, exclude=("tokenizer",))


@dataclass(frozen=True)
class ChatPrompt:
    """Settings of questions in ChatML: <|im_start|>ROLE⏎ content <|im_end|>⏎ for each message, then an answer begins.

    The markers are single ids: what somebody writes is never read as one. `system` is said first where a conversation
    has no such message; None: the model's template is another, and it cannot be asked.
    """

    kind: ClassVar[str] = "prompt"
    text_prompt: TextPrompt
    system_prompt: str | None = None

    def fit(self, values: Iterable[Any]) -> ChatPrompt:
        """These settings: nothing is left to be learned."""
        return self

    def load(self, raw: Any) -> np.ndarray:
        """A question, or a conversation of {"role": ..., "content": ...}, as int32 ids up to where the answer begins.

        Raises ValueError for anything else, and where the template is not known.
        """
        if self.system_prompt is None:
            raise ValueError(
                "its chat template is a program, of which none is run, and not the one that is known "
                "(ChatML); spell the conversation out with text="
            )
        messages = [{"role": "user", "content": raw}] if isinstance(raw, str) else list(raw)
        for message in messages:
            if (
                not isinstance(message, Mapping)
                or set(message) != {"role", "content"}
                or message["role"] not in ROLES
            ):
                raise ValueError(
                    f"expected {{'role': one of {', '.join(ROLES)}, 'content': words}}, found {message!r}"
                )
        if self.system_prompt and messages[:1] and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        parts = [self._encode_message(message["role"], message["content"]) for message in messages]
        return np.concatenate(
            [*parts, self._encode_marker(MESSAGE_START), self.text_prompt.load("assistant\n")]
        )

    def collate(self, values: Sequence[np.ndarray]) -> Int[Tensor, "B T"]:
        """Rows of ids side by side, PAD after the shorter ones."""
        return self.text_prompt.collate(values)

    def augment(
        self, batch: Int[Tensor, "B T"], rng: torch.Generator, **options: float
    ) -> Int[Tensor, "B T"]:
        """The batch as it is."""
        return batch

    def to_json(self) -> dict[str, Any]:
        """Plain settings."""
        return {"system": self.system_prompt, **self.text_prompt.to_json()}

    def _encode_message(self, role: str, content: str) -> np.ndarray:
        return np.concatenate(
            [
                self._encode_marker(MESSAGE_START),
                self.text_prompt.load(f"{role}\n{content}"),
                self._encode_marker(MESSAGE_END),
                self.text_prompt.load("\n"),
            ]
        )

    def _encode_marker(self, token: str) -> np.ndarray:
        number = self.text_prompt.tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(f"its tokenizer has no {token}, by which it should be asked")
        return np.array([number], dtype=np.int32)


def load_text_prompt(
    weight_files: WeightFiles, length: int, stop_ids: int | Sequence[int] | None, **options: Any
) -> TextPrompt | None:
    """The settings that the tokenizer beside the weights asks for; None where there is none.

    stop_ids: the id, or the ids, by which the model says that it has done.
    """
    made = load_tokenizer(weight_files)
    if made is None:
        return None
    stops = (
        () if stop_ids is None else (stop_ids,) if isinstance(stop_ids, int) else tuple(stop_ids)
    )
    return TextPrompt(length, stops, made, **options)


def build_chat_prompt(text_prompt: TextPrompt, template: Any) -> ChatPrompt:
    """The settings that a file's chat template asks for."""
    found = CHATML_TEMPLATE.fullmatch(template.strip()) if isinstance(template, str) else None
    return ChatPrompt(text_prompt, None if found is None else found["system"] or "")
