"""Tokenizers of pretrained models, built from any of their files, give the reference's ids."""

import itertools
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from fixtures.unicode_corpus import emoji_labels, unusual_strings
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from sensorium.errors import SensoriumError
from sensorium.modalities.text import Text, TextEmbedding
from sensorium.pretrained import sentencepiece as sentencepiece_module
from sensorium.pretrained.tensor_source import LazyTensors
from sensorium.pretrained.tokenizers import (
    CLIP_SPLIT_PATTERN,
    find_bos_eos_ids,
    load_tokenizer,
    text_preprocessing,
)
from sensorium.pretrained.weight_files import WeightFiles, open_weights

transformers = pytest.importorskip("transformers")
spm = pytest.importorskip("sentencepiece")
WEIGHTS = Path(os.environ.get("SENSORIUM_WEIGHTS", "weights"))
UNUSUAL_TEXTS = unusual_strings()
Encode = Callable[[str], list[int]]


def weight_files(folder: Path, config: dict[str, Any] | None = None) -> WeightFiles:
    return WeightFiles(
        folder, LazyTensors({}), config or {}, {path.name: path for path in folder.iterdir()}
    )


def require_tokenizer(files: WeightFiles) -> Tokenizer:
    """Load a tokenizer that reads special tokens as text, as `Text` does."""
    tokenizer = load_tokenizer(files)
    assert tokenizer is not None
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_ours(folder: Path) -> Tokenizer:
    return require_tokenizer(weight_files(folder))


def reference_encoder(kind: str, folder: Path) -> Encode:
    tokenizer = getattr(transformers, kind).from_pretrained(folder, model_max_length=1 << 20)
    return lambda text: tokenizer(text, split_special_tokens=True)["input_ids"]


def differing(
    tokenizer: Tokenizer, reference: Encode, texts: list[str] = UNUSUAL_TEXTS
) -> list[str]:
    return [text for text in texts if tokenizer.encode(text).ids != reference(text)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Small vocabularies of each kind, in the files that pretrained ones come in."""
    tokenizer: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in tokenizer:
            tokenizer[kind] = tmp_path_factory.mktemp(kind)
            MAKERS[kind](tokenizer[kind])
        return tokenizer[kind]

    return folder


def wordpiece(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    tokenizer.train_from_iterator(
        emoji_labels(),
        trainers.WordPieceTrainer(
            vocab_size=1500,
            show_progress=False,
            special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        ),
    )
    tokenizer.model.save(str(folder))


def gpt2(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        emoji_labels(),
        trainers.BpeTrainer(
            vocab_size=1200,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>"],
        ),
    )
    tokenizer.model.save(str(folder))


def clip(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_SPLIT_PATTERN), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        emoji_labels(),
        trainers.BpeTrainer(
            vocab_size=1400,
            show_progress=False,
            end_of_word_suffix="</w>",
            initial_alphabet=letters,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    all_pieces = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *("".join(pair) for pair in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(
        json.dumps({p: i for i, p in enumerate(dict.fromkeys(all_pieces))})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def sentencepiece(folder: Path, name: str = "spiece.model", **options: Any) -> None:
    model = folder / name
    with model.open("wb") as file:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(emoji_labels()),
            model_writer=file,
            vocab_size=1500,
            minloglevel=9,
            character_coverage=0.99,
            **options,
        )


def t5(folder: Path) -> None:
    sentencepiece(folder, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


def siglip(folder: Path) -> None:
    t5(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')


def llama(folder: Path) -> None:
    sentencepiece(
        folder,
        "tokenizer.model",
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
    )


MAKERS = {
    "BertTokenizer": wordpiece,
    "GPT2Tokenizer": gpt2,
    "CLIPTokenizer": clip,
    "T5Tokenizer": t5,
    "SiglipTokenizer": siglip,
    "LlamaTokenizer": llama,
}
Folders = Callable[[str], Path]


# Ids


@pytest.mark.parametrize("kind", ["BertTokenizer", "GPT2Tokenizer", "CLIPTokenizer", "T5Tokenizer"])
def test_ids_match_transformers(kind: str, folders: Folders) -> None:
    assert len(set(UNUSUAL_TEXTS)) == 1000
    assert differing(load_ours(folders(kind)), reference_encoder(kind, folders(kind))) == []


def test_cased_wordpiece(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes((folders("BertTokenizer") / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert differing(load_ours(tmp_path), reference_encoder("BertTokenizer", tmp_path)) == []
    assert load_ours(tmp_path).encode("The").ids != load_ours(tmp_path).encode("the").ids


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("lower", [True, False])
def test_lower_case_of_the_tokenizer_config(
    lower: bool, stored: bool, folders: Folders, tmp_path: Path
) -> None:
    """tokenizer_config.json goes before the normalizer that tokenizer.json stores."""
    tokenizer = load_ours(folders("BertTokenizer"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=stored)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_bytes((folders("BertTokenizer") / "vocab.txt").read_bytes())
    config = {"do_lower_case": lower, "tokenizer_class": "BertTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert differing(load_ours(tmp_path), reference_encoder("BertTokenizer", tmp_path)) == []
    same = load_ours(tmp_path).encode("The").ids == load_ours(tmp_path).encode("the").ids
    assert same is lower
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    same = load_ours(tmp_path).encode("The").ids == load_ours(tmp_path).encode("the").ids
    assert same is stored


def has_stacked_marks(text: str) -> bool:
    """Whether a letter has several marks, which SentencePiece, unlike tokenizers, does not sort."""
    return any(
        unicodedata.combining(a) and unicodedata.combining(b) for a, b in itertools.pairwise(text)
    )


def test_siglip_ids_match_transformers(folders: Folders) -> None:
    reference, texts = (
        reference_encoder("SiglipTokenizer", folders("SiglipTokenizer")),
        [t for t in UNUSUAL_TEXTS if t != "</s>"],
    )
    differing_texts = differing(load_ours(folders("SiglipTokenizer")), reference, texts)
    assert len(differing_texts) <= 10
    assert all(map(has_stacked_marks, differing_texts))


def test_llama_ids_match_sentencepiece(folders: Folders) -> None:
    model = spm.SentencePieceProcessor(
        model_file=str(folders("LlamaTokenizer") / "tokenizer.model")
    )
    assert (
        differing(load_ours(folders("LlamaTokenizer")), lambda text: [1, *model.encode(text)]) == []
    )


@pytest.mark.parametrize("kind", MAKERS)
def test_decode_inverts_encode(kind: str, folders: Folders) -> None:
    tokenizer = load_ours(folders(kind))
    ids = tokenizer.encode("a red face with hat", add_special_tokens=False).ids
    assert tokenizer.decode(ids).strip() == "a red face with hat"


def test_tokenizer_json_has_priority(folders: Folders, tmp_path: Path) -> None:
    tokenizer = load_ours(folders("CLIPTokenizer"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("[UNK]\n")
    reference = load_ours(folders("CLIPTokenizer"))
    assert differing(load_ours(tmp_path), lambda text: reference.encode(text).ids) == []


# GGUF


def gguf_keys(path: Path, vocab: dict[str, int], merges: list[str], pre: str) -> WeightFiles:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    listed = sorted(vocab, key=vocab.__getitem__)
    writer.add_token_list(listed)
    writer.add_token_merges(merges)
    writer.add_token_types([3 if piece == "<|endoftext|>" else 1 for piece in listed])
    writer.add_tensor("a", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_weights(path)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_gguf_byte_pair_tokenizer(pre: str, folders: Folders, tmp_path: Path) -> None:
    vocab = json.loads((folders("GPT2Tokenizer") / "vocab.json").read_text())
    merges = (folders("GPT2Tokenizer") / "merges.txt").read_text().splitlines()[1:]
    tokenizer = require_tokenizer(gguf_keys(tmp_path / "a.gguf", vocab, merges, pre))
    differing_texts = differing(
        tokenizer, reference_encoder("GPT2Tokenizer", folders("GPT2Tokenizer"))
    )
    assert not differing_texts if pre == "gpt-2" else differing_texts, (
        "digits or marks are cut in another way"
    )
    assert all(
        tokenizer.decode(tokenizer.encode(text).ids)
        == (unicodedata.normalize("NFC", text) if pre == "qwen2" else text)
        for text in UNUSUAL_TEXTS
    ), "bytes spell everything"


def test_gguf_sentencepiece_tokenizer(folders: Folders) -> None:
    model = sentencepiece_module.read_sentencepiece(folders("LlamaTokenizer") / "tokenizer.model")
    words, scores, kinds = map(list, zip(*model.pieces, strict=True))
    keys = {
        "model": "llama",
        "tokens": words,
        "scores": scores,
        "token_type": kinds,
        "bos_token_id": 1,
    }
    tokenizer = require_tokenizer(
        WeightFiles(
            Path("x.gguf"), LazyTensors({}), {f"tokenizer.ggml.{k}": v for k, v in keys.items()}
        )
    )
    reference = load_ours(folders("LlamaTokenizer"))
    assert differing(tokenizer, lambda text: reference.encode(text).ids) == []


def test_unknown_gguf_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=r"'starcoder'. Supported are gpt-2"):
        load_tokenizer(
            gguf_keys(tmp_path / "a.gguf", {"a": 0, "b": 1, "ab": 2}, ["a b"], "starcoder")
        )


# Text settings


@pytest.mark.parametrize(
    ("kind", "start", "end", "pad"),
    [
        ("BertTokenizer", "[CLS]", "[SEP]", 0),
        ("CLIPTokenizer", "<|startoftext|>", "<|endoftext|>", 0),
        ("T5Tokenizer", None, "</s>", 0),
        ("LlamaTokenizer", "<s>", None, 0),
        ("GPT2Tokenizer", None, None, 0),
    ],
)
def test_special_tokens_around_a_text(
    kind: str, start: str | None, end: str | None, pad: int, folders: Folders
) -> None:
    tokenizer = load_ours(folders(kind))
    assert find_bos_eos_ids(tokenizer) == tuple(
        None if name is None else tokenizer.token_to_id(name) for name in (start, end)
    )
    if end is None:
        with pytest.raises(SensoriumError, match="no token at the end"):
            text_preprocessing(weight_files(folders(kind)), 9, tokenizer.get_vocab_size())
        return
    text = text_preprocessing(weight_files(folders(kind)), 9, tokenizer.get_vocab_size())
    assert text is not None
    assert (text.start, text.end) == find_bos_eos_ids(tokenizer)
    assert text.pad == pad
    long = "a model reads a text and much more than it has room for"
    plain, before = (
        tokenizer.encode(long, add_special_tokens=False).ids,
        [] if start is None else [text.start],
    )
    assert text.load(long).tolist() == [*before, *plain[: 8 - len(before)], text.end]
    assert text.decode(torch.tensor(text.load("a model"))) == "a model"


def test_pad_token_is_found_by_name(folders: Folders, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folders("CLIPTokenizer") / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": {"content": "<|endoftext|>"}}')
    text = text_preprocessing(weight_files(tmp_path), 77, 1593)
    assert text is not None
    assert text.pad == text.end


def test_fake_texts_without_a_start_token_end_in_the_end_token(folders: Folders) -> None:
    text = text_preprocessing(weight_files(folders("T5Tokenizer")), 12, 1000)
    assert text is not None
    assert Text.from_json(text.to_json()) == text
    ids = text.fake(20, torch.Generator().manual_seed(0))
    ends = TextEmbedding(8, text).pool_index(ids)
    for row, end in zip(ids.tolist(), ends.tolist(), strict=True):
        assert row[end] == text.end
        assert all(i not in (text.pad, text.end) for i in row[:end])
    dropped = text.augment(ids, torch.Generator().manual_seed(0), token_dropout=0.5)
    assert (dropped == text.end).sum() == 20
    assert (dropped != text.pad).sum() < (ids != text.pad).sum()


# Damaged files


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer.json": "{"}, "cannot be read"),
        ({"tokenizer.json": '{"version": "1.0"}'}, "it has no model"),
        ({"vocab.json": '{"a": 0}'}, "merges.txt"),
        ({"vocab.json": "[", "merges.txt": ""}, "cannot be read"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "b c\n"}, "cannot be read"),
        ({"vocab.json": '{"a</w>": 0, "a": 1}', "merges.txt": "#version: 0.2\n"}, None),
        ({"spiece.model": "\x0a\x7f"}, "no SentencePiece model"),
        ({"spiece.model": ""}, "no SentencePiece model"),
        ({"spiece.model": "\xff" * 99}, "no SentencePiece model"),
        ({"tokenizer.model": "\x0b"}, "no SentencePiece model"),
    ],
)
def test_damaged_tokenizer_is_refused(
    tmp_path: Path, files: dict[str, str], expected: str | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="latin-1")
    if expected is None:
        assert load_tokenizer(weight_files(tmp_path)) is not None
        return
    with pytest.raises(SensoriumError, match=expected):
        load_tokenizer(weight_files(tmp_path))


def test_truncated_sentencepiece_is_refused(folders: Folders, tmp_path: Path) -> None:
    complete = (folders("T5Tokenizer") / "spiece.model").read_bytes()
    for length in range(0, len(complete), len(complete) // 12):
        (tmp_path / "spiece.model").write_bytes(complete[:length])
        with pytest.raises(SensoriumError):
            load_tokenizer(weight_files(tmp_path))


def test_no_tokenizer_without_files(tmp_path: Path) -> None:
    assert load_tokenizer(weight_files(tmp_path)) is None
    assert text_preprocessing(weight_files(tmp_path), 9, 9) is None


# Pretrained vocabularies


@pytest.mark.weights
def test_pretrained_vocabulary_matches_its_tokenizer_json(tmp_path: Path) -> None:
    complete = open_weights(WEIGHTS / "minilm")
    alone = WeightFiles(
        complete.path,
        complete.tensors,
        complete.config,
        {
            name: path
            for name, path in complete.files.items()
            if name in ("vocab.txt", "tokenizer_config.json")
        },
    )
    tokenizer, reference = require_tokenizer(alone), require_tokenizer(complete)
    assert differing(tokenizer, lambda text: reference.encode(text).ids) == []


@pytest.mark.weights
def test_pretrained_decoder_tokenizer_round_trips() -> None:
    tokenizer = require_tokenizer(open_weights(WEIGHTS / "smollm2"))
    assert tokenizer.get_vocab_size() == 49152
    assert find_bos_eos_ids(tokenizer) == (None, None)
    assert all(tokenizer.decode(tokenizer.encode(text).ids) == text for text in UNUSUAL_TEXTS)
    assert tokenizer.encode("12 apples").tokens == ["1", "2", "Ġapples"]
