"""Tests of clip with subword features."""

from pathlib import Path
from typing import Any

import pytest
import torch

import sensorium as sn
from sensorium.cli.model_summary import default_schema, summarize_recipe
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.export.export import export_model
from sensorium.modalities.subword_bag import (
    EMPTY_HASH,
    WORD_BOUNDARY,
    SubwordBagEmbedding,
    char_ngram_hashes,
)
from sensorium.modalities.text import Text
from sensorium.models.towers import Encoder
from sensorium.recipes.clip import TextEncoderWithSubwords, clip

SMALL: dict[str, Any] = {
    "size": "small",
    "dim": 32,
    "text_layers": 1,
    "embed_dim": 16,
    "epochs": 1,
    "batch_size": 32,
    "quiet": True,
}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset.open("scenes", n=100, size=24, questions=0)


def test_run_stores_the_ngrams_of_its_training_texts(data: Dataset, tmp_path: Path) -> None:
    model = sn.train(clip, data, out=tmp_path / "run", **SMALL)
    again = sn.load(tmp_path / "run")
    for one in (model, again):
        parts = [part for part in one.module.modules() if isinstance(part, SubwordBagEmbedding)]
        assert len(parts) == 1
        assert parts[0].get_buffer("ngram_hashes").min() < EMPTY_HASH
    texts = ["a red circle", "some reddish circles"]
    assert (model.embed(text=texts) == again.embed(text=texts)).all()
    with pytest.raises(
        SensoriumError,
        match=r"no vision transformer and subword features, for which .*--format onnx",
    ):
        export_model(model, "hf", tmp_path / "out")


def test_unseen_word_is_similar_to_words_with_shared_ngrams(data: Dataset, tmp_path: Path) -> None:
    model = sn.train(clip, data, out=tmp_path / "run", **SMALL)
    encoder = model.module.get_submodule("caption.encoder")
    text = model.schema["caption"]
    assert isinstance(text, Text)
    assert isinstance(encoder, TextEncoderWithSubwords)
    known_ids, similar, different = (
        text.collate([text.load(word)]) for word in ("circle", "circlet", "xylophon")
    )
    with torch.no_grad():
        pooled, subwords, ordered = (
            encoder.pooled(known_ids),
            encoder.subword_encoder.pooled(known_ids),
            Encoder.pooled(encoder, known_ids),
        )
        assert torch.allclose(pooled, subwords + ordered)
        assert subwords.abs().sum() > 0
        assert ordered.abs().sum() > 0
        near, far = (
            torch.cosine_similarity(subwords, encoder.subword_encoder.pooled(ids)).item()
            for ids in (similar, different)
        )
        assert near > 0.5 > far
        again, tokens = encoder.pooled_and_tokens(known_ids)
        assert torch.allclose(again, pooled, atol=1e-6)
        assert tokens.x.shape[2] == 32


def test_subword_features_are_optional_and_in_the_summary(data: Dataset, tmp_path: Path) -> None:
    model = sn.train(clip, data, out=tmp_path / "run", subword_features=False, **SMALL)
    assert not any(isinstance(part, SubwordBagEmbedding) for part in model.module.modules())
    assert set(export_model(model, "torch", tmp_path / "graph")) == {"image", "caption"}
    plain, wide = (
        summarize_recipe(clip, default_schema({}), {"size": "small", "subword_features": enabled})
        for enabled in (False, True)
    )
    assert wide.parameters > plain.parameters
    assert wide.flops_forward == plain.flops_forward


LANGUAGES = [
    "Ein schöner Garten",
    "жёлтый дом и сад",
    "にっこり笑う猫",
    "고양이 한 마리",
    "🍎 red apple",
]


def test_bytes_are_read_as_the_characters_they_encode() -> None:
    """The codes of a character are distinct, and those of ASCII their own."""
    text = Text(length=32, vocab_size=400).fit(LANGUAGES * 4)
    embedding = SubwordBagEmbedding(8, text, unicode=True)
    for string in [*LANGUAGES, "neues Wort café", "未知の言葉"]:
        chars, _ = embedding.text_chars(text.collate([text.load(string)]))
        codes = [code for code in chars[0].tolist() if code]
        decoded = [
            " " if code == WORD_BOUNDARY else code.to_bytes(4, "little").rstrip(b"\0").decode()
            for code in codes
        ]
        assert "".join(decoded).split() == string.lower().split()


def test_plain_english_has_the_same_ngrams_as_bytes() -> None:
    text = Text(length=32, vocab_size=400).fit(LANGUAGES * 4)
    ids = text.collate([text.load("two red bicycles, and 12 more")])
    by_character, by_byte = (SubwordBagEmbedding(8, text, unicode=u) for u in (True, False))
    chars = by_character.text_chars(ids)[0]
    assert torch.equal(chars, by_byte.text_chars(ids)[0])
    expected = char_ngram_hashes(chars, by_byte.get_buffer("hash_powers"))
    for part, other in zip(by_character.ngrams(chars), expected, strict=True):
        assert torch.equal(part, other)


def test_words_of_one_chinese_or_japanese_character_are_shared() -> None:
    """猫 (cat) is a word of one character, which n-grams of three miss."""
    captions = ["黒い猫", "猫の顔", "白い犬", "犬と家", "大きな家"]
    text = Text(length=16, vocab_size=300).fit(captions)
    embedding = SubwordBagEmbedding(64, text, subword_dropout=0.0, unicode=True)
    embedding.fit_on_data([text.collate([text.load(caption) for caption in captions])])
    encoder = Encoder(embedding).eval()
    with torch.no_grad():
        cat, other_cat, dog = encoder.pooled(
            text.collate(
                [text.load(caption) for caption in ("三毛猫です", "子猫がいる", "柴犬です")]
            )
        )
    similar, different = (torch.cosine_similarity(cat, one, 0).item() for one in (other_cat, dog))
    assert similar > 0.5 > different
