"""Load the tokenizer of pretrained weights from whichever files have it.

    tokenizer.json            the whole tokenizer
    vocab.json + merges.txt   byte-pair encoding: CLIP's if pieces end in </w>, else GPT-2's
    vocab.txt                 WordPiece (BERT)
    spiece.model              SentencePiece of T5 and SigLIP
    tokenizer.model           SentencePiece of Llama
    keys of a GGUF file       byte-pair encoding or SentencePiece

All give the ids of the reference implementation. The name of a special token inside a text is read
as plain characters.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from sensorium.errors import SensoriumError
from sensorium.modalities.text import Text, tokenizer_errors
from sensorium.pretrained import sentencepiece
from sensorium.pretrained.gguf_tokenizer import load_gguf_tokenizer
from sensorium.pretrained.special_tokens import add_special_tokens, set_template
from sensorium.pretrained.tensor_source import MAX_JSON_BYTES
from sensorium.pretrained.weight_files import WeightFiles

CLIP_SPLIT_PATTERN = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
PAD_TOKENS = ("[PAD]", "<pad>")  # as tokenizer classes name them where no file does
BERT_NORMALIZER_SETTINGS = {  # key of tokenizer_config.json -> attribute of the normalizer
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
NUM_EXTRA_IDS = 100  # T5's <extra_id_99> ... <extra_id_0>, whose ids follow those of the pieces
Vocabulary = dict[str, int]
Merges = list[tuple[str, str]]


def text_preprocessing(
    weight_files: WeightFiles, length: int, vocab_size: int, pad_id: int | None = None
) -> Text | None:
    """Return the text settings of an encoder with its tokenizer; None if there is no tokenizer.

    Args:
        weight_files: The opened files.
        length: The most tokens of a text, special tokens included.
        vocab_size: Vocabulary size of the model, which may exceed the tokenizer's.
        pad_id: Id of padding; None: that of the tokenizer.

    Raises:
        SensoriumError: If the tokenizer adds no end token.
    """
    tokenizer = load_tokenizer(weight_files)
    if tokenizer is None:
        return None
    start, end = find_bos_eos_ids(tokenizer)
    if end is None:
        raise SensoriumError(
            f"The tokenizer of {weight_files.path} adds no token at the end of a text, which the "
            "encoder needs."
        )
    return Text(
        length=length,
        vocab_size=vocab_size,
        start=start,
        end=end,
        pad=find_pad_id(weight_files, tokenizer) if pad_id is None else pad_id,
        tokenizer=tokenizer,
    )


def find_pad_id(
    weight_files: WeightFiles,
    tokenizer: Tokenizer,
    config_pad_id: Any = None,
    pad_tokens: Sequence[str] = PAD_TOKENS,
) -> int:
    """Return the id that a tokenizer pads with.

    Args:
        weight_files: The opened files: tokenizer_config.json or special_tokens_map.json names the
            pad token.
        tokenizer: The tokenizer.
        config_pad_id: The id of the model's config, for a tokenizer without a pad token; if it is
            no id, the result is 0.
        pad_tokens: Names of the pad token where no file names it.
    """
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _special_token(weight_files.read_json(file), "pad_token")
        pad_id = None if token is None else tokenizer.token_to_id(token)
        if pad_id is not None:
            return pad_id
    for token in pad_tokens:
        pad_id = tokenizer.token_to_id(token)
        if pad_id is not None:
            return pad_id
    is_id = isinstance(config_pad_id, int) and not isinstance(config_pad_id, bool)
    return config_pad_id if is_id and config_pad_id >= 0 else 0


def find_bos_eos_ids(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """Return the ids that the tokenizer adds before and after a text; None for none.

    Raises:
        SensoriumError: If it adds several on one side.
    """
    with tokenizer_errors():
        text_ids = tokenizer.encode("a", add_special_tokens=False).ids
        ids = tokenizer.encode("a").ids
    before = next((i for i in range(len(ids)) if ids[i : i + len(text_ids)] == text_ids), 0)
    after = len(ids) - before - len(text_ids)
    if before > 1 or after > 1:
        raise SensoriumError(
            f"The tokenizer adds {before} tokens before a text and {after} after it. At most one "
            "on each side is supported."
        )
    return ids[0] if before else None, ids[-1] if after else None


def load_tokenizer(weight_files: WeightFiles) -> Tokenizer | None:
    """Load the tokenizer, without truncation and padding; None if no file has one.

    Raises:
        SensoriumError: If its files are damaged or incomplete.
    """
    loaders = [load for name, load in TOKENIZER_LOADERS.items() if name in weight_files.files]
    if not loaders and "tokenizer.ggml.model" not in weight_files.config:
        return None
    try:
        with tokenizer_errors(f"the tokenizer of {weight_files.path}"):
            if loaders:
                tokenizer = loaders[0](weight_files)
            else:
                tokenizer = load_gguf_tokenizer(weight_files.config)
    except SensoriumError:
        raise
    except Exception as error:  # tokenizers raises nothing more specific
        raise SensoriumError(
            f"The tokenizer of {weight_files.path} cannot be read: {error}."
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _load_tokenizer_json(weight_files: WeightFiles) -> Tokenizer:
    """Load tokenizer.json; a BERT tokenizer normalizes as tokenizer_config.json says, if it does.

    As in transformers, but for its classes of any tokenizer, which take tokenizer.json alone.
    """
    from sensorium.modalities.tokenizer_json import parse_tokenizer

    path = weight_files.files["tokenizer.json"]
    tokenizer = parse_tokenizer(_read_text(path), str(path))
    config = weight_files.read_json("tokenizer_config.json")
    normalizer = tokenizer.normalizer
    if not isinstance(normalizer, normalizers.BertNormalizer):
        return tokenizer
    if config.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return tokenizer
    for key, attribute in BERT_NORMALIZER_SETTINGS.items():
        if isinstance(config.get(key), bool):
            setattr(normalizer, attribute, config[key])
    tokenizer.normalizer = normalizer
    return tokenizer


def _load_bpe(weight_files: WeightFiles) -> Tokenizer:
    """Load vocab.json and merges.txt."""
    vocabulary = json.loads(_read_text(weight_files.files["vocab.json"]))
    if "merges.txt" not in weight_files.files:
        raise SensoriumError(
            f"{weight_files.path} has vocab.json without merges.txt. Add the missing file."
        )
    merges: Merges = []
    for line in _read_text(weight_files.files["merges.txt"]).split("\n"):
        pair = tuple(line.split(" "))
        if len(pair) == 2 and not line.startswith("#version"):
            merges.append(pair)
    config = weight_files.read_json("tokenizer_config.json")
    is_clip = any(piece.endswith("</w>") for piece in vocabulary)
    return (_build_clip_bpe if is_clip else _build_gpt2_bpe)(vocabulary, merges, config)


def _build_clip_bpe(vocabulary: Vocabulary, merges: Merges, config: Mapping[str, Any]) -> Tokenizer:
    start = _special_token(config, "bos_token") or "<|startoftext|>"
    end = _special_token(config, "eos_token") or "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=end))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_SPLIT_PATTERN), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("</w>", " "), decoders.ByteLevel()])
    return set_template(add_special_tokens(tokenizer, start, end), start, end)


def _build_gpt2_bpe(vocabulary: Vocabulary, merges: Merges, config: Mapping[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(config.get("add_prefix_space"))
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = (_special_token(config, key) for key in ("bos_token", "eos_token", "unk_token"))
    return add_special_tokens(tokenizer, *(name or "<|endoftext|>" for name in names))


def _load_wordpiece(weight_files: WeightFiles) -> Tokenizer:
    """Load vocab.txt, one piece per line."""
    config = weight_files.read_json("tokenizer_config.json")
    lines = _read_text(weight_files.files["vocab.txt"]).removesuffix("\n").split("\n")
    vocabulary = {piece: i for i, piece in enumerate(lines)}
    special = {
        kind: _special_token(config, f"{kind}_token") or f"[{kind.upper()}]"
        for kind in ("unk", "cls", "sep", "pad", "mask")
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece("##")
    add_special_tokens(tokenizer, *special.values())
    return set_template(tokenizer, special["cls"], special["sep"])


def _load_sentencepiece(weight_files: WeightFiles) -> Tokenizer:
    """Load spiece.model: T5's, or SigLIP's, which ignores case and has no extra ids."""
    config = weight_files.read_json("tokenizer_config.json")
    model = sentencepiece.read_sentencepiece(weight_files.files["spiece.model"])
    end = _special_token(config, "eos_token") or "</s>"
    is_siglip = (
        config.get("tokenizer_class", "").startswith("Siglip")
        or weight_files.config.get("model_type") == "siglip"
    )
    if is_siglip:
        tokenizer = sentencepiece.build_tokenizer(model)
        steps = _siglip_normalizers(config.get("do_lower_case", True))
        tokenizer.normalizer = normalizers.Sequence([*steps, tokenizer.normalizer])
    else:
        num_extra_ids = config.get("extra_ids", NUM_EXTRA_IDS)
        extra_tokens = [f"<extra_id_{i}>" for i in reversed(range(num_extra_ids))]
        tokenizer = sentencepiece.build_tokenizer(model, extra_tokens)
    return set_template(tokenizer, None, end)


def _siglip_normalizers(lowercase: bool) -> list[normalizers.Normalizer]:
    r"""Return SigLIP's normalization: lower case, no ASCII punctuation, single spaces, NFKC.

    A final sigma has a lower case of its own. Python, in which the reference is written, counts
    \x1c to \x1f as whitespace.
    """
    steps: list[normalizers.Normalizer] = []
    if lowercase:
        steps.append(normalizers.Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς"))
        steps.append(normalizers.Lowercase())
    punctuation = "".join(f"\\{mark}" for mark in string.punctuation)
    return [
        *steps,
        normalizers.Replace(Regex(f"[{punctuation}]"), ""),
        normalizers.Replace(Regex(r"[\s\x1c-\x1f]+"), " "),
        normalizers.Strip(),
        normalizers.NFKC(),
    ]


def _load_llama(weight_files: WeightFiles) -> Tokenizer:
    """Load tokenizer.model."""
    config = weight_files.read_json("tokenizer_config.json")
    model = sentencepiece.read_sentencepiece(weight_files.files["tokenizer.model"])
    start = None
    if config.get("add_bos_token", True):
        start = _special_token(config, "bos_token") or "<s>"
    return set_template(sentencepiece.build_tokenizer(model), start, None)


def _special_token(config: Mapping[str, Any], key: str) -> str | None:
    """Return the name of a special token, which is stored as text or as {"content": text}."""
    token = config.get(key)
    return token.get("content") if isinstance(token, dict) else token


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise SensoriumError(
            f"{path} is larger than the limit of {MAX_JSON_BYTES >> 20} MiB for tokenizer files."
        )
    return path.read_text(encoding="utf-8")


# File -> how it is loaded; the first that exists is used.
TOKENIZER_LOADERS: dict[str, Callable[[WeightFiles], Tokenizer]] = {
    "tokenizer.json": _load_tokenizer_json,
    "vocab.json": _load_bpe,
    "vocab.txt": _load_wordpiece,
    "spiece.model": _load_sentencepiece,
    "tokenizer.model": _load_llama,
}
