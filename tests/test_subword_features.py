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
from sensorium.modalities.subword_bag import EMPTY_HASH, SubwordBagEmbedding
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
    with pytest.raises(SensoriumError, match="not a vision transformer"):
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
