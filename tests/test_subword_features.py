"""`clip_small` knows words by their pieces too: what that takes from training texts is kept, and it may be left out."""

from pathlib import Path
from typing import Any

import pytest
import torch

import sensorium as sn
from sensorium.cli.show import default_schema, summarize_recipe
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.export.export import export_model
from sensorium.modalities.subword_bag import EMPTY_HASH, SubwordBagEmbedding
from sensorium.models.towers import Encoder
from sensorium.recipes.clip import TextEncoderWithSubwords, clip_small

SMALL: dict[str, Any] = {
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


def test_a_run_keeps_the_pieces_it_has_met(data: Dataset, tmp_path: Path) -> None:
    model = sn.train(clip_small, data, out=tmp_path / "run", **SMALL)
    again = sn.load(tmp_path / "run")
    for one in (model, again):
        spelt = [part for part in one.module.modules() if isinstance(part, SubwordBagEmbedding)]
        assert len(spelt) == 1
        assert spelt[0].get_buffer("known").min() < EMPTY_HASH
    texts = ["a red circle", "some reddish circles"]
    assert (model.embed(text=texts) == again.embed(text=texts)).all()
    with pytest.raises(SensoriumError, match="no vision transformer"):
        export_model(model, "hf", tmp_path / "out")


def test_a_word_never_seen_is_known_by_what_it_shares(data: Dataset, tmp_path: Path) -> None:
    model = sn.train(clip_small, data, out=tmp_path / "run", **SMALL)
    voice, text = model.module.get_submodule("caption.encode"), model.schema["caption"]
    assert isinstance(voice, TextEncoderWithSubwords)
    seen, like, other = (
        text.collate([text.load(word)]) for word in ("circle", "circlet", "xylophon")
    )
    with torch.no_grad():
        whole, spelt, ordered = (
            voice.pooled(seen),
            voice.subword_encoder.pooled(seen),
            Encoder.pooled(voice, seen),
        )
        assert torch.allclose(whole, spelt + ordered)
        assert spelt.abs().sum() > 0
        assert ordered.abs().sum() > 0
        near, far = (
            torch.cosine_similarity(spelt, voice.subword_encoder.pooled(ids)).item()
            for ids in (like, other)
        )
        assert near > 0.5 > far
        again, tokens = voice.pooled_and_tokens(seen)
        assert torch.allclose(again, whole, atol=1e-6)
        assert tokens.x.shape[2] == 32


def test_it_may_be_left_out_and_is_planned(data: Dataset, tmp_path: Path) -> None:
    model = sn.train(clip_small, data, out=tmp_path / "run", pieces=False, **SMALL)
    assert not any(isinstance(part, SubwordBagEmbedding) for part in model.module.modules())
    assert set(export_model(model, "torch", tmp_path / "graph")) == {"image", "caption"}
    plain, wide = (
        summarize_recipe(clip_small, default_schema({}), {"subword_features": pieces})
        for pieces in (False, True)
    )
    assert wide.parameters > plain.parameters
    assert wide.flops_forward == plain.flops_forward
