"""CLIP's own vocabulary, which open_clip brings along, through our byte pairs: the ids of open_clip on odd strings."""

import gzip
import html
import json
from pathlib import Path

import pytest
from fixtures.unicode_corpus import odd
from tokenizers import pre_tokenizers

from sensorium.pretrained.tokenizers import load_tokenizer
from sensorium.pretrained.weight_files import LazyTensors, WeightFiles

open_clip = pytest.importorskip("open_clip")
ftfy = pytest.importorskip("ftfy")


def vocabulary(folder: Path) -> None:
    """open_clip's list of merges as the vocab.json and merges.txt that Hugging Face publishes."""
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
    """What open_clip reads as it is: it mends broken text (ftfy, HTML) first, and knows special tokens in a text."""
    return html.unescape(html.unescape(ftfy.fix_text(text))) == text and "<|" not in text


def test_the_ids_of_open_clip(tmp_path: Path) -> None:
    vocabulary(tmp_path)
    made = load_tokenizer(
        WeightFiles(tmp_path, LazyTensors({}), {}, {path.name: path for path in tmp_path.iterdir()})
    )
    theirs, texts = open_clip.tokenizer.SimpleTokenizer(), [text for text in odd() if plain(text)]
    wrong = [
        t
        for t in texts
        if "Σ" not in t and made.encode(t, add_special_tokens=False).ids != theirs.encode(t)
    ]
    assert len(texts) > 500
    assert wrong == []
    assert made.encode("a diagram").ids == [49406, 320, 22697, 49407]
