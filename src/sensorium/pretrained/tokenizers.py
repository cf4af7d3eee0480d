"""The tokenizer that comes with published weights, from whichever files it is in, and the settings of its texts.

    tokenizer.json            everything
    vocab.json + merges.txt   byte pairs: CLIP's where pieces end in </w>, else GPT-2's
    vocab.txt                 WordPiece (BERT)
    spiece.model              SentencePiece: T5, SigLIP; tokenizer.model: Llama
    a GGUF file's own keys    byte pairs or SentencePiece

All give the ids that the reference gives. In a text the name of a special token is just letters, never the token.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from sensorium.errors import SensoriumError
from sensorium.modalities.text import Text
from sensorium.pretrained import sentencepiece
from sensorium.pretrained.weight_files import MAX_JSON_BYTES, WeightFiles

CLIP_SPLIT_PATTERN = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
LLAMA3_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)  # Llama 3's words; numbers by three digits
NUM_EXTRA_IDS = 100  # T5's <extra_id_99> ... <extra_id_0>, after the pieces


def text_preprocessing(weight_files: WeightFiles, length: int, vocab_size: int) -> Text | None:
    """Settings of the texts that a model reads, with its tokenizer; None where it brings none.

    length: the most tokens, those around a text included. vocab_size: of the model, which may have room to spare.
    Raises SensoriumError where a text does not end in a token of its own.
    """
    made = load_tokenizer(weight_files)
    if made is None:
        return None
    start, end = find_bos_eos_ids(made)
    if end is None:
        raise SensoriumError(
            f"the tokenizer of {weight_files.path} puts no token at the end of a text"
        )
    name = _special_token(weight_files.read_json("tokenizer_config.json"), "pad_token")
    pad = None if name is None else made.token_to_id(name)
    return Text(
        length=length,
        vocab_size=vocab_size,
        start=start,
        end=end,
        pad=0 if pad is None else pad,
        tokenizer=made,
    )


def find_bos_eos_ids(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """The ids put before and after every text; None where there is none. Raises SensoriumError where there are more."""
    plain, ids = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    before = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)
    after = len(ids) - before - len(plain)
    if before > 1 or after > 1:
        raise SensoriumError(
            f"the tokenizer puts {before} tokens before a text and {after} after it; one is the most"
        )
    return ids[0] if before else None, ids[-1] if after else None


def load_tokenizer(weight_files: WeightFiles) -> Tokenizer | None:
    """The tokenizer, whole texts to ids; None where there are no files of one.

    Raises SensoriumError where they are damaged or do not belong together.
    """
    found = next(
        (make for file, make in TOKENIZER_LOADERS.items() if file in weight_files.files), None
    )
    if found is None and "tokenizer.ggml.model" not in weight_files.config:
        return None
    try:
        made = _load_gguf_tokenizer(weight_files.config) if found is None else found(weight_files)
    except SensoriumError:
        raise
    except Exception as e:  # tokenizers raises nothing more special
        raise SensoriumError(f"the tokenizer of {weight_files.path} cannot be read: {e}") from e
    made.no_padding()
    made.no_truncation()
    return made


def _load_tokenizer_json(weight_files: WeightFiles) -> Tokenizer:
    return Tokenizer.from_str(_read_text(weight_files.files["tokenizer.json"]))


def _load_bpe(weight_files: WeightFiles) -> Tokenizer:
    """vocab.json and merges.txt."""
    vocab = json.loads(_read_text(weight_files.files["vocab.json"]))
    if "merges.txt" not in weight_files.files:
        raise SensoriumError(
            f"{weight_files.path} has vocab.json, but not the merges.txt that goes with it"
        )
    lines = _read_text(weight_files.files["merges.txt"]).split("\n")
    merges = [
        pair
        for line in lines
        if not line.startswith("#version") and len(pair := tuple(line.split(" "))) == 2
    ]
    config = weight_files.read_json("tokenizer_config.json")
    make = _build_clip_bpe if any(piece.endswith("</w>") for piece in vocab) else _build_gpt2_bpe
    return make(vocab, merges, config)


def _build_clip_bpe(
    vocab: dict[str, int], merges: list[tuple[str, str]], config: Mapping[str, Any]
) -> Tokenizer:
    start = _special_token(config, "bos_token") or "<|startoftext|>"
    end = _special_token(config, "eos_token") or "<|endoftext|>"
    made = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token=end))
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_SPLIT_PATTERN), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.Sequence([decoders.Replace("</w>", " "), decoders.ByteLevel()])
    return _set_template(_add_special_tokens(made, start, end), start, end)


def _build_gpt2_bpe(
    vocab: dict[str, int], merges: list[tuple[str, str]], config: Mapping[str, Any]
) -> Tokenizer:
    made = Tokenizer(models.BPE(vocab, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(config.get("add_prefix_space"))
    )
    made.decoder = decoders.ByteLevel()
    return _add_special_tokens(
        made,
        *(
            _special_token(config, f"{name}_token") or "<|endoftext|>"
            for name in ("bos", "eos", "unk")
        ),
    )


def _load_wordpiece(weight_files: WeightFiles) -> Tokenizer:
    """vocab.txt: a piece a line."""
    config = weight_files.read_json("tokenizer_config.json")
    vocab = {
        piece: i
        for i, piece in enumerate(
            _read_text(weight_files.files["vocab.txt"]).removesuffix("\n").split("\n")
        )
    }
    name = {
        kind: _special_token(config, f"{kind}_token") or f"[{kind.upper()}]"
        for kind in ("unk", "cls", "sep", "pad", "mask")
    }
    made = Tokenizer(models.WordPiece(vocab, unk_token=name["unk"]))
    made.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece("##")
    return _set_template(_add_special_tokens(made, *name.values()), name["cls"], name["sep"])


def _load_sentencepiece(weight_files: WeightFiles) -> Tokenizer:
    """spiece.model: T5's, or SigLIP's, which leaves out case and punctuation and has no extra ids."""
    config, found = (
        weight_files.read_json("tokenizer_config.json"),
        sentencepiece.read_sentencepiece(weight_files.files["spiece.model"]),
    )
    end = _special_token(config, "eos_token") or "</s>"
    if (
        config.get("tokenizer_class", "").startswith("Siglip")
        or weight_files.config.get("model_type") == "siglip"
    ):
        made = sentencepiece.build_tokenizer(found)
        made.normalizer = normalizers.Sequence(
            [*_siglip_normalizers(config.get("do_lower_case", True)), made.normalizer]
        )
    else:
        made = sentencepiece.build_tokenizer(
            found,
            [f"<extra_id_{i}>" for i in reversed(range(config.get("extra_ids", NUM_EXTRA_IDS)))],
        )
    return _set_template(made, None, end)


def _siglip_normalizers(lowercase: bool) -> list[normalizers.Normalizer]:
    """How SigLIP tidies a text: lower case (a sigma at the end of a word has its own), no ASCII punctuation, composed.

    \\x1c to \\x1f are whitespace to Python, in which the reference is written.
    """
    case = (
        [normalizers.Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς"), normalizers.Lowercase()]
        if lowercase
        else []
    )
    marks = "".join(f"\\{mark}" for mark in string.punctuation)
    return [
        *case,
        normalizers.Replace(Regex(f"[{marks}]"), ""),
        normalizers.Replace(Regex(r"[\s\x1c-\x1f]+"), " "),
        normalizers.Strip(),
        normalizers.NFKC(),
    ]


def _load_llama(weight_files: WeightFiles) -> Tokenizer:
    """tokenizer.model."""
    config = weight_files.read_json("tokenizer_config.json")
    made = sentencepiece.build_tokenizer(
        sentencepiece.read_sentencepiece(weight_files.files["tokenizer.model"])
    )
    return _set_template(
        made,
        (_special_token(config, "bos_token") or "<s>")
        if config.get("add_bos_token", True)
        else None,
        None,
    )


def _load_gguf_tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer inside of a GGUF file."""
    given = {key.removeprefix("tokenizer.ggml."): value for key, value in config.items()}
    words, kinds = given["tokens"], given.get("token_type", [])
    if given["model"] == "gpt2":
        made = Tokenizer(
            models.BPE(
                {word: i for i, word in enumerate(words)},
                [tuple(merge.split(" ", 1)) for merge in given["merges"]],
                ignore_merges=given.get("pre") == "llama-bpe",
            )
        )
        made.normalizer, made.pre_tokenizer = _resolve_pre_tokenizer(given.get("pre", "gpt-2"))
        made.decoder = decoders.ByteLevel()
        made = _add_special_tokens(
            made,
            *(
                word
                for word, kind in zip(words, kinds, strict=True)
                if kind == sentencepiece.CONTROL_PIECE
            ),
        )
    elif given["model"] == "llama":
        scored = list(zip(words, given["scores"], kinds, strict=True))
        prefix = given.get("add_space_prefix", True)
        made = sentencepiece.build_tokenizer(
            sentencepiece.SentencePieceModel(
                scored, sentencepiece.BPE, add_dummy_prefix=prefix, remove_extra_whitespaces=False
            )
        )
    else:
        raise SensoriumError(
            f"its GGUF file has a tokenizer of the unknown kind {given['model']!r}"
        )
    first = given.get("add_bos_token", given["model"] == "llama")
    return _set_template(made, words[given["bos_token_id"]] if first else None, None)


def _resolve_pre_tokenizer(
    name: str,
) -> tuple[normalizers.Normalizer | None, pre_tokenizers.PreTokenizer]:
    """How a text is cut into words before pairs are merged, by the name that llama.cpp has for it."""

    def split(words: str) -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    known = {
        "gpt-2": (None, words),
        "default": (None, words),
        "llama-bpe": (None, split(LLAMA3_SPLIT_PATTERN)),
        "smollm": (
            None,
            pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words]),
        ),
        "qwen2": (normalizers.NFC(), split(LLAMA3_SPLIT_PATTERN.replace("{1,3}", ""))),
    }
    if name not in known:
        raise SensoriumError(
            f"its GGUF file cuts words in the way {name!r}; known are {', '.join(known)}"
        )
    return known[name]


def _add_special_tokens(tokenizer: Tokenizer, *names: str) -> Tokenizer:
    """The same with these special tokens; those that the vocabulary lacks are numbered after it."""
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in dict.fromkeys(names)]
    )
    return tokenizer


def _set_template(tokenizer: Tokenizer, start: str | None, end: str | None) -> Tokenizer:
    """The same, putting these around every text."""
    given = [name for name in (start, end) if name is not None]
    if missing := [name for name in given if tokenizer.token_to_id(name) is None]:
        raise SensoriumError(
            f"its tokenizer has no {missing[0]}, which should stand at the end of a text"
        )
    if given:
        single = [*([start] if start else []), "$A", *([end] if end else [])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, "$B:1", *([f"{end}:1"] if end else [])],
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in dict.fromkeys(given)],
        )
    return tokenizer


def _special_token(config: Mapping[str, Any], key: str) -> str | None:
    """The name of a special token: plain, or as an object with its content."""
    given = config.get(key)
    return given.get("content") if isinstance(given, dict) else given


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise SensoriumError(
            f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB, more than any tokenizer needs"
        )
    return path.read_text(encoding="utf-8")


TOKENIZER_LOADERS: dict[str, Callable[[WeightFiles], Tokenizer]] = {
    "tokenizer.json": _load_tokenizer_json,
    "vocab.json": _load_bpe,
    "vocab.txt": _load_wordpiece,
    "spiece.model": _load_sentencepiece,
    "tokenizer.model": _load_llama,
}
