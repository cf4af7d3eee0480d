"""Published encoders that stay as they are, and learn to meet: what the eye says is worked out once, and is right."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.squares import data as data
from fixtures.squares import published as published
from test_resume import ask, at_step, killed

import sensorium as sn
from sensorium.data.cache.prepared import embedding_key
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io.tensors import state_tensors
from sensorium.models.lora import FrozenEncoder
from sensorium.recipes import lit
from sensorium.recipes.recipe import build_recipe
from sensorium.training.loop import Interrupted

SHORT = {"epochs": 6, "batch_size": 8, "lr": 1e-2, "precision": "fp32", "quiet": True}


def test_what_the_eye_says_is_worked_out_once(
    published: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    recipe, _ = build_recipe(
        lit, data.schema, {"image_weights": str(published), "text_weights": str(published)}
    )
    schema = data.schema.fit(
        data, np.arange(len(data)), recipe.data.columns, recipe.data.column_settings
    )
    assert recipe.data.derived_columns is not None
    prepared = data.prepare(schema, recipe.data.columns, derived_columns=recipe.data.derived_columns(data))
    batch = prepared.batch(np.arange(8))
    eye = recipe.model["image"].encoder
    assert isinstance(eye, FrozenEncoder)
    torch.testing.assert_close(
        batch[embedding_key("image")], eye.pooled(batch["image"]), atol=1e-5, rtol=1e-5
    )
    anew = batch.select(schema.columns)
    torch.testing.assert_close(
        recipe.objective(recipe.model, batch), recipe.objective(recipe.model, anew)
    )
    with monkeypatch.context() as blind:
        blind.setattr(FrozenEncoder, "forward", lambda *_: pytest.fail("it looked again"))
        again = recipe.data.derived_columns(data)[embedding_key("image")].batch(
            np.arange(8), None, {}
        )
    assert again.equal(batch[embedding_key("image")])


def test_only_the_ways_into_the_space_learn_and_the_run_stands_alone(
    published: Path, data: Dataset, tmp_path: Path
) -> None:
    model = sn.train(
        lit,
        data,
        out=tmp_path / "run",
        image_from=str(published),
        text_from=str(published),
        **SHORT,
    )
    first = state_tensors(
        build_recipe(
            lit, data.schema, {"image_weights": str(published), "text_weights": str(published)}
        )[0].model
    )
    for name, value in state_tensors(model.module).items():
        if ".encode." in name:
            assert value.equal(first[name]), name
    vectors = model.embed(text=["a red square", "a blue square"])
    hidden = published.rename(published.with_name("hidden"))
    try:
        np.testing.assert_array_equal(
            sn.load(tmp_path / "run").embed(text=["a red square", "a blue square"]), vectors
        )
    finally:
        hidden.rename(published)


def test_a_start_without_that_sense(published: Path, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="which published model"):
        sn.train(lit, data, out=tmp_path / "run", image_from=str(published), quiet=True)


@pytest.mark.parametrize("saved", [True, False])
def test_a_resumed_run_looks_with_the_eye_it_was_begun_with(
    saved: bool, published: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing had been saved: then it begins again from the published weights."""
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    keywords = {**SHORT, "image_weights": str(published), "text_weights": str(published), "seed": 1}
    whole = sn.train(lit, data, out=tmp_path / "whole", **keywords)
    at_step(monkeypatch, 7 if saved else 1, ask() if saved else killed)
    with pytest.raises(Interrupted if saved else KeyboardInterrupt):
        sn.train(lit, data, out=tmp_path / "cut", **keywords)
    assert (
        sn.train(lit, data, out=tmp_path / "cut", resume=True, quiet=True).fingerprint
        == whole.fingerprint
    )
