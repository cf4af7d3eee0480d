"""Texts from outside that no file, terminal or tokenizer takes, made harmless in one place."""

import re
from typing import Any

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character


def replace_surrogates(value: Any) -> Any:
    """Return a value in whose texts, keys and lists each lone surrogate is replaced by U+FFFD.

    Half a character comes from JSON that was cut within an emoji, and from file names and
    arguments that are not UTF-8; no file, terminal or tokenizer takes it.
    """
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
    return value
