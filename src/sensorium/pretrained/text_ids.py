"""The ids with which the texts of an encoder are padded and ended: those of its tokenizer.

They are found when the files are opened and stored in the config as "text_pad_id" and
"text_end_id", so that the model and its column agree on them.

B batch   T tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sensorium.modalities.text import last_token_index
from sensorium.pretrained.tokenizers import (
    PAD_TOKENS,
    find_bos_eos_ids,
    find_pad_id,
    load_tokenizer,
)
from sensorium.pretrained.weight_files import WeightFiles

NO_END_ID = -1


def find_text_ids(
    weight_files: WeightFiles, config_pad_id: Any, pad_tokens: Sequence[str] = PAD_TOKENS
) -> dict[str, int]:
    """Return "text_pad_id" and "text_end_id" of the tokenizer; {} without a tokenizer.

    Args:
        weight_files: The opened files.
        config_pad_id: `pad_token_id` of the model's config, for a tokenizer without a pad token.
        pad_tokens: Names of the pad token where no file names it.
    """
    tokenizer = load_tokenizer(weight_files)
    if tokenizer is None:
        return {}
    end = find_bos_eos_ids(tokenizer)[1]
    return {
        "text_pad_id": find_pad_id(weight_files, tokenizer, config_pad_id, pad_tokens),
        "text_end_id": NO_END_ID if end is None else end,
    }


def find_ending_pad_id(weight_files: WeightFiles) -> dict[str, int]:
    """Return "text_pad_id" for a text that is read up to its highest id, which ends it.

    A pad token of a higher id would be read as the end token; the end token then pads, as what
    follows the first one is not read.
    """
    ids = find_text_ids(weight_files, None)
    if not ids:
        return {}
    pad, end = ids["text_pad_id"], ids["text_end_id"]
    return {"text_pad_id": end if pad > end >= 0 else pad}


def text_pad_id(config: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> int:
    """Return the id that texts are padded with.

    Args:
        config: The family's config.
        settings: The section of it that has `pad_token_id`, used without a tokenizer.
    """
    pad_id = config.get("text_pad_id")
    if pad_id is None:
        pad_id = (config if settings is None else settings).get("pad_token_id")
    return pad_id or 0


def text_end_id(config: Mapping[str, Any]) -> int:
    """Return the id that ends every text, or one that no text has."""
    return config.get("text_end_id", NO_END_ID)


def unpadded_mask(ids: Int[Tensor, "B T"], end_id: int, pad_id: int) -> Bool[Tensor, "B T"]:
    """Return True for the ids up to the end of each text.

    Padding may have the id of the end token, or of one that occurs within a text.
    """
    position = torch.arange(ids.shape[1], device=ids.device)
    return position <= last_token_index(ids, end_id, pad_id)[:, None]
