"""CLIP's own vocabulary in our tokenizer: the ids of open_clip on unusual strings."""

import gzip
import html
import json
from pathlib import Path

import pytest
from fixtures.unicode_corpus import unusual_strings
from tokenizers import pre_tokenizers

from sensorium.pretrained.tensor_source import LazyTensors
from sensorium.pretrained.tokenizers import load_tokenizer
from sensorium.pretrained.weight_files import WeightFiles

open_clip = pytest.importorskip("open_clip")
ftfy = pytest.importorskip("ftfy")


def vocabulary(folder: Path) -> None:
    """open_clip's list of merges as the vocab.json and merges.txt that Hugging Face stores."""
    packed = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(packed.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    pieces = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def plain(text: str) -> bool:
    """Whether open_clip reads a text unchanged: without ftfy or HTML fixes or special tokens."""
    return html.unescape(html.unescape(ftfy.fix_text(text))) == text and "<|" not in text


def test_ids_match_open_clip(tmp_path: Path) -> None:
    vocabulary(tmp_path)
    tokenizer = load_tokenizer(
        WeightFiles(tmp_path, LazyTensors({}), {}, {path.name: path for path in tmp_path.iterdir()})
    )
    assert tokenizer is not None
    reference = open_clip.tokenizer.SimpleTokenizer()
    texts = [text for text in unusual_strings() if plain(text)]
    differing = [
        t
        for t in texts
        if "Σ" not in t and tokenizer.encode(t, add_special_tokens=False).ids != reference.encode(t)
    ]
    assert len(texts) > 500
    assert differing == []
    assert tokenizer.encode("a diagram").ids == [49406, 320, 22697, 49407]
