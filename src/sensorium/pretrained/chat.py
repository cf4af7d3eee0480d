"""Inputs of pretrained text decoders: a text to continue, or a chat in the template of the model.

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

from sensorium.io.untrusted import replace_surrogates
from sensorium.modalities.base import settings_to_dict
from sensorium.modalities.text import tokenizer_errors
from sensorium.pretrained.decoder import PAD_ID
from sensorium.pretrained.tokenizers import load_tokenizer
from sensorium.pretrained.weight_files import WeightFiles

ROLES = ("system", "user", "assistant")
MESSAGE_START, MESSAGE_END = "<|im_start|>", "<|im_end|>"
NEWLINE_PATTERN = r"(?:\\n|\n)"
# The Jinja template of ChatML, the only one that is supported: a template is a program, and none is
# executed.
CHATML_TEMPLATE = re.compile(
    r"\{% for message in messages %\}"
    r"(?:\{% if loop\.first and messages\[0\]\['role'\] != 'system' %\}"
    rf"\{{\{{ '<\|im_start\|>system{NEWLINE_PATTERN}(?P<system>[^'<>{{}}]*)"
    rf"<\|im_end\|>{NEWLINE_PATTERN}' \}}\}}\{{% endif %\}})?"
    rf"\{{\{{ ?'<\|im_start\|>' \+ message\['role'\] \+ '{NEWLINE_PATTERN}'"
    r" \+ message\['content'\] \+ '<\|im_end\|>'"
    rf" \+ '{NEWLINE_PATTERN}' ?\}}\}}\{{% endfor %\}}"
    rf"\{{% if add_generation_prompt %\}}\{{\{{ ?'<\|im_start\|>assistant{NEWLINE_PATTERN}' ?"
    r"\}\}\{% endif %\}"
)


@dataclass(frozen=True)
class TextPrompt:
    """Settings of a text that a decoder continues: token ids without special tokens.

    Attributes:
        length: The most tokens of text and continuation together.
        stop_ids: Ids that end a text.
        tokenizer: The tokenizer.
        suppressed_tokens: Ids that are never generated.
        begin_suppressed_tokens: Ids that are not generated as the first token.
    """

    kind: ClassVar[str] = "text"
    length: int
    stop_ids: tuple[int, ...]
    tokenizer: Tokenizer = field(compare=False, repr=False)
    suppressed_tokens: tuple[int, ...] = ()
    begin_suppressed_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # Read the name of a special token in a text as plain characters.
        self.tokenizer.encode_special_tokens = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()  # a pickled tokenizer forgets this setting

    def fit(self, values: Iterable[Any]) -> TextPrompt:  # noqa: ARG002 - as in Modality
        """Return these settings; there is nothing to fit."""
        return self

    def load(self, raw: Any) -> np.ndarray:
        """Return the token ids of a text, int32 [T].

        Raises:
            ValueError: If `raw` is not a string, or is empty.
        """
        if not isinstance(raw, str):
            raise ValueError(f"expected text, found {type(raw).__name__}")
        if not raw:
            raise ValueError("expected text, found ''")
        with tokenizer_errors():
            encoded = self.tokenizer.encode(replace_surrogates(raw), add_special_tokens=False)
        return np.array(encoded.ids, dtype=np.int32)

    def collate(self, values: Sequence[np.ndarray]) -> Int[Tensor, "B T"]:
        """Stack rows of ids, the shorter ones padded with PAD_ID."""
        batch = np.full((len(values), max(map(len, values))), PAD_ID, dtype=np.int64)
        for row, ids in zip(batch, values, strict=True):
            row[: len(ids)] = ids
        return torch.from_numpy(batch)

    def augment(
        self,
        batch: Int[Tensor, "B T"],
        rng: torch.Generator,  # noqa: ARG002 - as in Modality
        **options: float,  # noqa: ARG002 - as in Modality
    ) -> Int[Tensor, "B T"]:
        """Return the batch as it is."""
        return batch

    def decode(self, ids: Int[Tensor, "T"]) -> str:
        """Return the text of token ids, up to the first stop id."""
        tokens = ids.tolist()
        stops = (i for i, token in enumerate(tokens) if token in self.stop_ids)
        with tokenizer_errors():
            return self.tokenizer.decode(tokens[: next(stops, len(tokens))])

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; the tokenizer is a file of its own."""
        return settings_to_dict(self, exclude=("tokenizer",))


@dataclass(frozen=True)
class ChatPrompt:
    """Settings of a chat in ChatML: <|im_start|>ROLE, content, <|im_end|> for each message.

    The markers are single ids; the same characters in a message are never read as markers.

    Attributes:
        text_prompt: Settings of the text inside.
        system_prompt: The system message of chats that have none; None: the template of the model
            is not ChatML, and chats are refused.
    """

    kind: ClassVar[str] = "prompt"
    text_prompt: TextPrompt
    system_prompt: str | None = None

    def fit(self, values: Iterable[Any]) -> ChatPrompt:  # noqa: ARG002 - as in Modality
        """Return these settings; there is nothing to fit."""
        return self

    def load(self, raw: Any) -> np.ndarray:
        """Return the token ids of a chat up to the beginning of the answer, int32 [T].

        Args:
            raw: A question, or a list of messages {"role": ..., "content": ...}.

        Raises:
            ValueError: If `raw` is anything else, or the template is not supported.
        """
        if self.system_prompt is None:
            raise ValueError(
                "the chat template of the model is not ChatML, the only one supported (a template "
                "is a program, which is never executed); write out the chat as text="
            )
        messages = [{"role": "user", "content": raw}] if isinstance(raw, str) else list(raw)
        for message in messages:
            _check_message(message)
        if self.system_prompt and messages and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        parts = [self._encode_message(message["role"], message["content"]) for message in messages]
        answer_start = self.text_prompt.load("assistant\n")
        return np.concatenate([*parts, self._encode_marker(MESSAGE_START), answer_start])

    def collate(self, values: Sequence[np.ndarray]) -> Int[Tensor, "B T"]:
        """Stack rows of ids, the shorter ones padded with PAD_ID."""
        return self.text_prompt.collate(values)

    def augment(
        self,
        batch: Int[Tensor, "B T"],
        rng: torch.Generator,  # noqa: ARG002 - as in Modality
        **options: float,  # noqa: ARG002 - as in Modality
    ) -> Int[Tensor, "B T"]:
        """Return the batch as it is."""
        return batch

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
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
        token_id = self.text_prompt.tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(f"the tokenizer of the model lacks {token}, which ChatML needs")
        return np.array([token_id], dtype=np.int32)


def _check_message(message: Any) -> None:
    is_message = isinstance(message, Mapping) and set(message) == {"role", "content"}
    if not is_message or message["role"] not in ROLES:
        raise ValueError(
            f"expected {{'role': one of {', '.join(ROLES)}, 'content': text}}, found {message!r}"
        )


def load_text_prompt(
    weight_files: WeightFiles,
    length: int,
    stop_ids: int | Sequence[int] | None,
    *,
    suppressed_tokens: Sequence[int] = (),
    begin_suppressed_tokens: Sequence[int] = (),
) -> TextPrompt | None:
    """Return the settings of a text with the tokenizer of the weights; None if there is none.

    Args:
        weight_files: The opened files.
        length: The most tokens of text and continuation together.
        stop_ids: Id or ids that end a text.
        suppressed_tokens: Ids that are never generated.
        begin_suppressed_tokens: Ids that are not generated as the first token.
    """
    tokenizer = load_tokenizer(weight_files)
    if tokenizer is None:
        return None
    if stop_ids is None:
        stop_ids = ()
    elif isinstance(stop_ids, int):
        stop_ids = (stop_ids,)
    return TextPrompt(
        length,
        tuple(stop_ids),
        tokenizer,
        suppressed_tokens=tuple(suppressed_tokens),
        begin_suppressed_tokens=tuple(begin_suppressed_tokens),
    )


def build_chat_prompt(text_prompt: TextPrompt, template: Any) -> ChatPrompt:
    """Return the settings of a chat.

    Args:
        text_prompt: Settings of the text inside.
        template: The chat template of the files; all but ChatML make a ChatPrompt that refuses.
    """
    match = CHATML_TEMPLATE.fullmatch(template.strip()) if isinstance(template, str) else None
    return ChatPrompt(text_prompt, None if match is None else match["system"] or "")
