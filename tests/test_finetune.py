"""A published model trained further: it begins as it was, its run needs nothing else, what it could do is guarded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.squares import data as data
from fixtures.squares import published as published

import sensorium as sn
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io.tensors import state_tensors
from sensorium.recipes import finetune
from sensorium.training.checkpoint import Model
from sensorium.training.weight_interpolation import (
    evaluate_interpolations,
    evaluate_metric,
    interpolate_weights,
    load_start_weights,
    save_interpolation,
)


@pytest.fixture(scope="module", params=["all", "lora"])
def model(
    request: pytest.FixtureRequest,
    published: Path,
    data: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Model:
    return sn.train(
        finetune,
        data,
        out=tmp_path_factory.mktemp("run") / "run",
        quiet=True,
        from_=str(published),
        tune=request.param,
        epochs=3,
        batch_size=8,
        lr=3e-3,
        augment="none",
        precision="fp32",
    )


def test_it_begins_as_the_published_model(model: Model, published: Path) -> None:
    theirs = sn.load(published)
    after = {name: value.clone() for name, value in state_tensors(model.module).items()}
    start = load_start_weights(model)
    with torch.no_grad():
        for name, value in state_tensors(model.module).items():
            value.copy_(start[name])
    try:
        for given in (
            {"text": ["a red square", "white"]},
            {"image": [np.full((20, 16, 3), 99, np.uint8)]},
        ):
            np.testing.assert_allclose(model.embed(**given), theirs.embed(**given), atol=1e-6)
    finally:
        with torch.no_grad():
            for name, value in state_tensors(model.module).items():
                value.copy_(after[name])
    changed = [name for name in after if not after[name].equal(start[name])]
    assert changed
    assert model.config.keywords["train"] == "all" or not any(
        n.endswith("original") for n in changed
    )


def test_the_run_needs_nothing_but_itself(model: Model, published: Path) -> None:
    hidden = published.rename(published.with_name("elsewhere"))
    try:
        again = sn.load(model.folder)
        np.testing.assert_array_equal(
            again.embed(text=["a red square"]), model.embed(text=["a red square"])
        )
    finally:
        hidden.rename(published)
    assert model.config.keywords["weights"]["source"] == str(published)
    assert model.schema["image"].size == 16
    assert model.schema["caption"].vocab_size == 300


def test_it_goes_on_with_the_same_command(model: Model, published: Path, data: Dataset) -> None:
    again = sn.train(
        finetune, data, out=model.folder, resume=True, quiet=True, from_=str(published)
    )
    np.testing.assert_array_equal(again.embed(text=["blue"]), model.embed(text=["blue"]))
    with pytest.raises(SensoriumError, match="begun with from_"):
        sn.train(finetune, data, out=model.folder, resume=True, quiet=True, from_="another/model")


def test_the_ends_of_the_curve_are_the_start_and_the_run(model: Model, data: Dataset) -> None:
    before = model.embed(text=["green"])
    found = evaluate_interpolations(model, data, alphas=(0.0, 0.5, 1.0))
    assert found.reference_values[0] == pytest.approx(1.0, abs=1e-5)
    assert found.reference_values[-1] < found.reference_values[1] < found.reference_values[0]
    assert found.target_values[-1] == pytest.approx(evaluate_metric(model, data))
    assert found.best_alpha in found.alphas
    np.testing.assert_array_equal(model.embed(text=["green"]), before)
    on_reference = evaluate_interpolations(model, data, data.take(np.arange(12)), alphas=(0.0, 1.0))
    assert "recall@1" in on_reference.reference_name


def test_a_blend_is_a_run(model: Model, tmp_path: Path) -> None:
    half = sn.load(save_interpolation(model, 0.5, tmp_path / "half"))
    whole = sn.load(save_interpolation(model, 1.0, tmp_path / "whole"))
    np.testing.assert_allclose(whole.embed(text=["green"]), model.embed(text=["green"]), atol=1e-6)
    assert np.abs(half.embed(text=["green"]) - model.embed(text=["green"])).max() > 1e-5
    with pytest.raises(SensoriumError, match="not empty"):
        save_interpolation(model, 0.5, tmp_path / "half")


def test_the_middle_of_a_low_rank_correction_is_half_of_it() -> None:
    up, down = "x.parametrizations.weight.0.up", "x.parametrizations.weight.0.down"
    start = {up: torch.zeros(4, 2), down: torch.randn(2, 3)}
    trained = {up: torch.randn(4, 2), down: torch.randn(2, 3)}
    middle = interpolate_weights(start, trained, 0.5, {down})
    torch.testing.assert_close(middle[up] @ middle[down], 0.5 * trained[up] @ trained[down])


@pytest.mark.parametrize(
    "given, said",
    [
        ("", "which published model"),
        ("nowhere/at/all", "neither a folder nor"),
        ({"family": "clip"}, "a start is"),
    ],
)
def test_a_start_that_is_none(given: object, said: str, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=said):
        sn.train(finetune, data, out=tmp_path / "run", quiet=True, from_=given)
