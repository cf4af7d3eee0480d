"""LiT with frozen pretrained encoders: cached image embeddings and resumable runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.interruption import call_at_step, crash, send_signal
from fixtures.squares import clip_folder as clip_folder
from fixtures.squares import data as data

import sensorium as sn
from sensorium.data.cache.prepared import embedding_key
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io.tensors import state_tensors
from sensorium.models.lora import FrozenEncoder
from sensorium.recipes import lit
from sensorium.recipes.recipe import build_recipe
from sensorium.training.interruption import Interrupted

SHORT = {"epochs": 6, "batch_size": 8, "lr": 1e-2, "precision": "fp32", "quiet": True}


def test_frozen_image_embeddings_are_computed_once(
    clip_folder: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    recipe, _ = build_recipe(
        lit, data.schema, {"image_weights": str(clip_folder), "text_weights": str(clip_folder)}
    )
    schema = data.schema.fit(
        data, np.arange(len(data)), recipe.data.columns, recipe.data.column_settings
    )
    assert recipe.data.derived_columns is not None
    prepared = data.prepare(
        schema, recipe.data.columns, derived_columns=recipe.data.derived_columns(data)
    )
    batch = prepared.batch(np.arange(8))
    encoder = recipe.model["image"].encoder
    assert isinstance(encoder, FrozenEncoder)
    torch.testing.assert_close(
        batch[embedding_key("image")], encoder.pooled(batch["image"]), atol=1e-5, rtol=1e-5
    )
    without_cache = batch.select(schema.columns)
    torch.testing.assert_close(
        recipe.objective(recipe.model, batch), recipe.objective(recipe.model, without_cache)
    )
    with monkeypatch.context() as patch:
        patch.setattr(FrozenEncoder, "forward", lambda *_: pytest.fail("encoded again"))
        cached = recipe.data.derived_columns(data)[embedding_key("image")].batch(
            np.arange(8), None, {}
        )
    assert cached.equal(batch[embedding_key("image")])


def test_only_projections_train_and_run_loads_without_the_pretrained_weights(
    clip_folder: Path, data: Dataset, tmp_path: Path
) -> None:
    model = sn.train(
        lit,
        data,
        out=tmp_path / "run",
        image_weights=str(clip_folder),
        text_weights=str(clip_folder),
        **SHORT,
    )
    first = state_tensors(
        build_recipe(
            lit, data.schema, {"image_weights": str(clip_folder), "text_weights": str(clip_folder)}
        )[0].model
    )
    for name, value in state_tensors(model.module).items():
        if ".encoder." in name:
            assert value.equal(first[name]), name
    vectors = model.embed(text=["a red square", "a blue square"])
    hidden = clip_folder.rename(clip_folder.with_name("hidden"))
    try:
        np.testing.assert_array_equal(
            sn.load(tmp_path / "run").embed(text=["a red square", "a blue square"]), vectors
        )
    finally:
        hidden.rename(clip_folder)


def test_missing_text_weights_are_reported(
    clip_folder: Path, data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(SensoriumError, match="--text-weights is missing"):
        sn.train(lit, data, out=tmp_path / "run", image_weights=str(clip_folder), quiet=True)


@pytest.mark.parametrize("saved", [True, False])
def test_resumed_run_equals_an_uninterrupted_one(
    saved: bool, clip_folder: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a checkpoint it restarts from the pretrained weights."""
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    keywords = {
        **SHORT,
        "image_weights": str(clip_folder),
        "text_weights": str(clip_folder),
        "seed": 1,
    }
    whole = sn.train(lit, data, out=tmp_path / "whole", **keywords)
    call_at_step(monkeypatch, 7 if saved else 1, send_signal() if saved else crash)
    with pytest.raises(Interrupted if saved else KeyboardInterrupt):
        sn.train(lit, data, out=tmp_path / "cut", **keywords)
    assert (
        sn.train(lit, data, out=tmp_path / "cut", resume=True, quiet=True).fingerprint
        == whole.fingerprint
    )
