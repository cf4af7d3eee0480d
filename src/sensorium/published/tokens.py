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

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sensorium.errors import SensoriumError
from sensorium.modalities.text import Text
from sensorium.published import pieces
from sensorium.published.files import MOST_JSON, Opened

CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
THREES = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")                             # Llama 3's words; numbers by three digits
EXTRA = 100                                             # T5's <extra_id_99> ... <extra_id_0>, after the pieces


def words(opened: Opened, length: int, vocab_size: int) -> Text | None:
    """Settings of the texts that a model reads, with its tokenizer; None where it brings none.

    length: the most tokens, those around a text included. vocab_size: of the model, which may have room to spare.
    Raises SensoriumError where a text does not end in a token of its own.
    """
    made = tokenizer(opened)
    if made is None:
        return None
    start, end = around(made)
    if end is None:
        raise SensoriumError(f"the tokenizer of {opened.place} puts no token at the end of a text")
    name = _token(opened.json("tokenizer_config.json"), "pad_token")
    pad = None if name is None else made.token_to_id(name)
    return Text(length=length, vocab_size=vocab_size, start=start, end=end, pad=0 if pad is None else pad,
                tokenizer=made)


def around(made: Tokenizer) -> tuple[int | None, int | None]:
    """The ids put before and after every text; None where there is none. Raises SensoriumError where there are more."""
    plain, ids = made.encode("a", add_special_tokens=False).ids, made.encode("a").ids
    before = next((i for i in range(len(ids)) if ids[i:i + len(plain)] == plain), 0)
    after = len(ids) - before - len(plain)
    if before > 1 or after > 1:
        raise SensoriumError(f"the tokenizer puts {before} tokens before a text and {after} after it; one is the most")
    return ids[0] if before else None, ids[-1] if after else None


def tokenizer(opened: Opened) -> Tokenizer | None:
    """The tokenizer, whole texts to ids; None where there are no files of one.

    Raises SensoriumError where they are damaged or do not belong together.
    """
    found = next((make for file, make in READERS.items() if file in opened.files), None)
    if found is None and "tokenizer.ggml.model" not in opened.config:
        return None
    try:
        made = _keys(opened.config) if found is None else found(opened)
    except SensoriumError:
        raise
    except Exception as e:                              # tokenizers raises nothing more special
        raise SensoriumError(f"the tokenizer of {opened.place} cannot be read: {e}") from e
    made.no_padding()
    made.no_truncation()
    return made


def _whole(opened: Opened) -> Tokenizer:
    return Tokenizer.from_str(_content(opened.files["tokenizer.json"]))


def _pairs(opened: Opened) -> Tokenizer:
    """vocab.json and merges.txt."""
    vocab = json.loads(_content(opened.files["vocab.json"]))
    if "merges.txt" not in opened.files:
        raise SensoriumError(f"{opened.place} has vocab.json, but not the merges.txt that goes with it")
    lines = _content(opened.files["merges.txt"]).split("\n")
    merges = [pair for line in lines if not line.startswith("#version") and len(pair := tuple(line.split(" "))) == 2]
    config = opened.json("tokenizer_config.json")
    make = _clip if any(piece.endswith("</w>") for piece in vocab) else _gpt2
    return make(vocab, merges, config)


def _clip(vocab: dict[str, int], merges: list[tuple[str, str]], config: Mapping[str, Any]) -> Tokenizer:
    start = _token(config, "bos_token") or "<|startoftext|>"
    end = _token(config, "eos_token") or "<|endoftext|>"
    made = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token=end))
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True),
                                                  pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.Sequence([decoders.Replace("</w>", " "), decoders.ByteLevel()])
    return _between(_special(made, start, end), start, end)


def _gpt2(vocab: dict[str, int], merges: list[tuple[str, str]], config: Mapping[str, Any]) -> Tokenizer:
    made = Tokenizer(models.BPE(vocab, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    made.decoder = decoders.ByteLevel()
    return _special(made, *(_token(config, f"{name}_token") or "<|endoftext|>" for name in ("bos", "eos", "unk")))


def _wordpiece(opened: Opened) -> Tokenizer:
    """vocab.txt: a piece a line."""
    config = opened.json("tokenizer_config.json")
    vocab = {piece: i for i, piece in enumerate(_content(opened.files["vocab.txt"]).removesuffix("\n").split("\n"))}
    name = {kind: _token(config, f"{kind}_token") or f"[{kind.upper()}]"
            for kind in ("unk", "cls", "sep", "pad", "mask")}
    made = Tokenizer(models.WordPiece(vocab, unk_token=name["unk"]))
    made.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=config.get("tokenize_chinese_chars", True), strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece("##")
    return _between(_special(made, *name.values()), name["cls"], name["sep"])


def _sentencepiece(opened: Opened) -> Tokenizer:
    """spiece.model: T5's, or SigLIP's, which leaves out case and punctuation and has no extra ids."""
    config, found = opened.json("tokenizer_config.json"), pieces.read(opened.files["spiece.model"])
    end = _token(config, "eos_token") or "</s>"
    if config.get("tokenizer_class", "").startswith("Siglip") or opened.config.get("model_type") == "siglip":
        made = pieces.tokenizer(found)
        made.normalizer = normalizers.Sequence([*_canonical(config.get("do_lower_case", True)), made.normalizer])
    else:
        made = pieces.tokenizer(found, [f"<extra_id_{i}>" for i in reversed(range(config.get("extra_ids", EXTRA)))])
    return _between(made, None, end)


def _canonical(lower: bool) -> list[normalizers.Normalizer]:
    """How SigLIP tidies a text: lower case (a sigma at the end of a word has its own), no ASCII punctuation, composed.

    \\x1c to \\x1f are whitespace to Python, in which the reference is written.
    """
    case = [normalizers.Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς"), normalizers.Lowercase()] if lower else []
    marks = "".join(f"\\{mark}" for mark in string.punctuation)
    return [*case, normalizers.Replace(Regex(f"[{marks}]"), ""), normalizers.Replace(Regex(r"[\s\x1c-\x1f]+"), " "),
            normalizers.Strip(), normalizers.NFKC()]


def _llama(opened: Opened) -> Tokenizer:
    """tokenizer.model."""
    config = opened.json("tokenizer_config.json")
    made = pieces.tokenizer(pieces.read(opened.files["tokenizer.model"]))
    return _between(made, (_token(config, "bos_token") or "<s>") if config.get("add_bos_token", True) else None, None)


def _keys(config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer inside of a GGUF file."""
    given = {key.removeprefix("tokenizer.ggml."): value for key, value in config.items()}
    words, kinds = given["tokens"], given.get("token_type", [])
    if given["model"] == "gpt2":
        made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)},
                                    [tuple(merge.split(" ", 1)) for merge in given["merges"]],
                                    ignore_merges=given.get("pre") == "llama-bpe"))
        made.normalizer, made.pre_tokenizer = _before(given.get("pre", "gpt-2"))
        made.decoder = decoders.ByteLevel()
        made = _special(made, *(word for word, kind in zip(words, kinds, strict=True) if kind == pieces.CONTROL))
    elif given["model"] == "llama":
        scored = list(zip(words, given["scores"], kinds, strict=True))
        prefix = given.get("add_space_prefix", True)
        made = pieces.tokenizer(pieces.Pieces(scored, pieces.BPE, prefix=prefix, tidy=False))
    else:
        raise SensoriumError(f"its GGUF file has a tokenizer of the unknown kind {given['model']!r}")
    first = given.get("add_bos_token", given["model"] == "llama")
    return _between(made, words[given["bos_token_id"]] if first else None, None)


def _before(pre: str) -> tuple[normalizers.Normalizer | None, pre_tokenizers.PreTokenizer]:
    """How a text is cut into words before pairs are merged, by the name that llama.cpp has for it."""
    def split(words: str) -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(words), "isolated"),
                                        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    known = {"gpt-2": (None, words), "default": (None, words), "llama-bpe": (None, split(THREES)),
             "smollm": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])),
             "qwen2": (normalizers.NFC(), split(THREES.replace("{1,3}", "")))}
    if pre not in known:
        raise SensoriumError(f"its GGUF file cuts words in the way {pre!r}; known are {', '.join(known)}")
    return known[pre]


def _special(made: Tokenizer, *names: str) -> Tokenizer:
    """The same with these special tokens; those that the vocabulary lacks are numbered after it."""
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in dict.fromkeys(names)])
    return made


def _between(made: Tokenizer, start: str | None, end: str | None) -> Tokenizer:
    """The same, putting these around every text."""
    given = [name for name in (start, end) if name is not None]
    if missing := [name for name in given if made.token_to_id(name) is None]:
        raise SensoriumError(f"its tokenizer has no {missing[0]}, which should stand at the end of a text")
    if given:
        single = [*([start] if start else []), "$A", *([end] if end else [])]
        made.post_processor = processors.TemplateProcessing(
            single=single, pair=[*single, "$B:1", *([f"{end}:1"] if end else [])],
            special_tokens=[(name, made.token_to_id(name)) for name in dict.fromkeys(given)])
    return made


def _token(config: Mapping[str, Any], kind: str) -> str | None:
    """The name of a special token: plain, or as an object with its content."""
    given = config.get(kind)
    return given.get("content") if isinstance(given, dict) else given


def _content(path: Path) -> str:
    if path.stat().st_size > MOST_JSON:
        raise SensoriumError(f"{path} is larger than {MOST_JSON >> 20} MiB, more than any tokenizer needs")
    return path.read_text(encoding="utf-8")


READERS: dict[str, Callable[[Opened], Tokenizer]] = {
    "tokenizer.json": _whole, "vocab.json": _pairs, "vocab.txt": _wordpiece, "spiece.model": _sentencepiece,
    "tokenizer.model": _llama}
