"""Load the tokenizer that is stored in the keys of a GGUF file."""

from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sensorium.errors import SensoriumError
from sensorium.pretrained import sentencepiece
from sensorium.pretrained.special_tokens import add_special_tokens, set_template

KEY_PREFIX = "tokenizer.ggml."
# Llama 3 splits numbers into groups of three digits, Qwen2 into single digits.
LLAMA3_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT_PATTERN = LLAMA3_SPLIT_PATTERN.replace("{1,3}", "")


def load_gguf_tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    """Load the tokenizer of a GGUF file.

    Args:
        config: The keys of the file.

    Raises:
        SensoriumError: If the tokenizer is of a kind that is not supported.
    """
    keys = {key.removeprefix(KEY_PREFIX): value for key, value in config.items()}
    if keys["model"] == "gpt2":
        tokenizer = _build_bpe(keys)
    elif keys["model"] == "llama":
        tokenizer = _build_sentencepiece(keys)
    else:
        raise SensoriumError(
            f"The GGUF file has a tokenizer of the kind {keys['model']!r}. Supported are gpt2 and "
            "llama."
        )
    adds_start = keys.get("add_bos_token", keys["model"] == "llama")
    start = keys["tokens"][keys["bos_token_id"]] if adds_start else None
    return set_template(tokenizer, start, None)


def _build_bpe(keys: Mapping[str, Any]) -> Tokenizer:
    tokens, kinds = keys["tokens"], keys.get("token_type", [])
    tokenizer = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            [tuple(merge.split(" ", 1)) for merge in keys["merges"]],
            ignore_merges=keys.get("pre") == "llama-bpe",
        )
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = _pre_tokenizer(keys.get("pre", "gpt-2"))
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        token
        for token, kind in zip(tokens, kinds, strict=True)
        if kind == sentencepiece.CONTROL_PIECE
    ]
    return add_special_tokens(tokenizer, *special)


def _build_sentencepiece(keys: Mapping[str, Any]) -> Tokenizer:
    kinds = keys.get("token_type", [])
    model = sentencepiece.SentencePieceModel(
        list(zip(keys["tokens"], keys["scores"], kinds, strict=True)),
        sentencepiece.BPE,
        add_dummy_prefix=keys.get("add_space_prefix", True),
        remove_extra_whitespaces=False,
    )
    return sentencepiece.build_tokenizer(model)


def _pre_tokenizer(
    name: str,
) -> tuple[normalizers.Normalizer | None, pre_tokenizers.PreTokenizer]:
    """Return normalizer and pre-tokenizer by llama.cpp's name of how texts are split into words."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    single_digits = pre_tokenizers.Digits(individual_digits=True)
    supported: dict[str, tuple[normalizers.Normalizer | None, pre_tokenizers.PreTokenizer]] = {
        "gpt-2": (None, byte_level),
        "default": (None, byte_level),
        "llama-bpe": (None, _split_by(LLAMA3_SPLIT_PATTERN)),
        "smollm": (None, pre_tokenizers.Sequence([single_digits, byte_level])),
        "qwen2": (normalizers.NFC(), _split_by(QWEN2_SPLIT_PATTERN)),
    }
    if name not in supported:
        raise SensoriumError(
            f"The GGUF file splits words by {name!r}. Supported are {', '.join(supported)}."
        )
    return supported[name]


def _split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
