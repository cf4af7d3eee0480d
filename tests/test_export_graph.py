"""Export of towers and of predictors as graphs, which return what the run returns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.export_cases import TEXTS, untrained_run

from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.export import graph
from sensorium.export.export import export_model
from sensorium.export.graph import build_graphs
from sensorium.io.run_config import RunConfig
from sensorium.modalities.audio import Audio
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.series import Series
from sensorium.modalities.subword_bag import SubwordBagEmbedding
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.modalities.text import Text
from sensorium.models.calibration import monotone_logits
from sensorium.recipes import RECIPES
from sensorium.recipes.recipe import build_recipe
from sensorium.training.checkpoint import Model

RNG = np.random.default_rng(0)
SERIES = [RNG.normal(size=(n, 2)) for n in (30, 21, 9)]
RAW: dict[str, list[Any]] = {
    "photo": [
        RNG.integers(0, 256, (20, 30, 3), np.uint8),
        None,
        RNG.integers(0, 256, (16, 16, 3), np.uint8),
    ],
    "words": ["a red bicycle", "two reddish cats, long ago", None],
    "walk": [None, SERIES[0], SERIES[2]],
    "size": [1.5, None, -3.0],
    "kind": ["b", "never seen", None],
    "when": [None, "2020-02-03", "2021-01-01"],
    "marks": [["x"], None, ["y", "z"]],
}
COLUMNS = {
    "photo": Image(size=16),
    "words": Text(length=12, vocab_size=300).fit([*TEXTS, "a red bicycle"] * 4),
    "walk": Series().fit(SERIES),
    "size": Numeric().fit(RNG.normal(size=50)),
    "kind": Category().fit(["a", "b", "c"] * 5),
    "when": Datetime().fit(["2020-01-02", "2021-03-04"] * 5),
    "marks": Multilabel().fit([["x", "y"], ["y"], ["z", "x"]] * 4),
}
TARGETS = {
    "label": Category().fit(["u", "v", "w"] * 5),
    "price": Numeric().fit(10 + 3 * RNG.normal(size=50)),
    "rank": Ordinal().fit(["1", "2", "3", "4"] * 5),
    "tags": Multilabel().fit([["p", "q"], ["q"]] * 4),
}


def untrained_predictor(
    folder: Path, columns: dict[str, Any] = COLUMNS, **keywords: object
) -> Model:
    """Return a fusion run with random weights and calibration scales other than 1."""
    schema = Schema(
        {name: Column(name, modality) for name, modality in (columns | TARGETS).items()}
    )
    torch.manual_seed(0)
    keywords = {"target": tuple(TARGETS), "dim": 32, "layers": 1} | keywords
    recipe, stored_keywords = build_recipe(RECIPES["fusion"], schema, keywords)
    with torch.no_grad():
        for value in recipe.model.parameters():
            value.add_(0.05 * torch.randn(value.shape))
        for name, scale in zip(TARGETS, (0.5, 2.0, 0.7, 1.5), strict=True):
            recipe.model.get_calibration(name).scale.fill_(scale)
    fit_subwords(recipe.model, schema["words"] if "words" in columns else None)
    return Model(
        recipe, schema, RunConfig("fusion", stored_keywords, "fp32", {}), "", folder / "run"
    )


def fit_subwords(model: torch.nn.Module, text: Any) -> None:
    """Fit the subword vocabulary of a model on example texts."""
    for part in model.modules():
        if isinstance(part, SubwordBagEmbedding):
            part.fit_on_data([text.collate(text.encode(TEXTS))] * 2)


def graph_inputs(
    columns: dict[str, Any], raw: dict[str, list[Any]], fill_value: float
) -> dict[str, torch.Tensor]:
    """Return the inputs of a graph, with a fill value for missing values."""
    inputs = {}
    for name, modality in columns.items():
        present = torch.tensor([value is not None for value in raw[name]])
        example = next(value for value in [*raw[name], *RAW.get(name, ())] if value is not None)
        values = modality.collate(
            [modality.load(example if value is None else value) for value in raw[name]]
        )
        if values.is_floating_point():
            values[~present] = fill_value
        inputs |= {name: values, f"{name}.valid": present}
    return inputs


def predictions(model: Model, raw: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the predictions of a run by the output names of its graph."""
    outputs = {}
    for name, prediction in model.predict(**raw).items():
        if prediction.probability is None:
            outputs[name] = np.array(prediction.value)
            outputs[f"{name}.std"] = prediction.std
        else:
            outputs[name] = prediction.probability
    return outputs


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("keywords", [{}, {"image_encoder": "resnet", "image_layers": 3}])
def test_towers_export_to_torch(tmp_path: Path, keywords: dict[str, Any]) -> None:
    errors = export_model(untrained_run(tmp_path, **keywords), "torch", tmp_path / "out")
    assert set(errors) == {"picture", "words"}
    assert max(errors.values()) < 1e-5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "picture.pt2",
        "words.pt2",
        "README.md",
        "schema.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "preprocessing.py",
        "model.json",
    }


@pytest.mark.usefixtures("no_shape_checks")
def test_towers_export_to_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    errors = export_model(untrained_run(tmp_path), "onnx", tmp_path / "out")
    assert set(errors) == {"picture", "words"}
    assert max(errors.values()) < 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| picture.onnx | `values` | float32 [rows, 3, 16, 16] |" in card
    assert "| words.onnx | `values` | int64 [rows, any] |" in card
    assert "`vectors`" in card


@pytest.mark.usefixtures("no_shape_checks")
def test_subword_encoder_exports_to_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = untrained_run(tmp_path, size="small")
    text = model.schema["words"]
    assert isinstance(text, Text)
    fit_subwords(model.module, text)
    assert max(export_model(model, "onnx", tmp_path / "out").values()) < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "words.onnx"))
    for texts in (
        ["reddish bicycles"],
        ["x", "", "<end> of it", "a blue sofa behind two cats", "漢字 ü"],
    ):
        (vectors,) = session.run(None, {"values": text.collate(text.encode(texts)).numpy()})
        assert np.abs(vectors - model.embed(text=texts)).max() < 1e-5


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"fusion": "sequence", "projection": "multiscale"},
        {"fusion": "bottleneck", "encoders": ("words=gru", "walk=transformer")},
        {
            "fusion": "attention",
            "encoders": {"photo": "vit", "words": "transformer", "walk": "cnn"},
        },
    ],
    ids=str,
)
def test_graph_predicts_like_the_run_for_any_missing_values(
    tmp_path: Path, keywords: dict[str, Any]
) -> None:
    model = untrained_predictor(tmp_path, **keywords)
    assert export_model(model, "torch", tmp_path / "out")["predict"] < 1e-5
    loaded = torch.export.load(tmp_path / "out" / "predict.pt2").module()
    mostly_missing = {name: [values[0], None] for name, values in RAW.items()} | {
        "size": [None, None],
        "kind": [None, "a"],
    }
    for raw in (RAW, mostly_missing):
        expected = predictions(model, raw)
        for fill_value in (0.0, float("nan")):
            with torch.inference_mode():
                outputs = loaded(graph_inputs(COLUMNS, raw, fill_value))
            assert set(outputs) == set(expected) == {*TARGETS, "price.std"}
            for name, values in expected.items():
                assert np.allclose(outputs[name].numpy(), values, atol=1e-5), name


@pytest.mark.usefixtures("no_shape_checks")
def test_predictor_exports_to_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    columns = {**COLUMNS, "sound": Audio()}
    raw = {**RAW, "sound": [None, RNG.normal(size=8000) * 0.1, RNG.normal(size=4000) * 0.1]}
    model = untrained_predictor(tmp_path, columns)
    assert export_model(model, "onnx", tmp_path / "out")["predict"] < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "predict.onnx"))
    inputs = {name: value.numpy() for name, value in graph_inputs(columns, raw, 0.0).items()}
    output_names = [node.name for node in session.get_outputs()]
    outputs = dict(zip(output_names, session.run(None, inputs), strict=True))
    for name, values in predictions(model, raw).items():
        assert np.allclose(outputs[name], values, atol=1e-5), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `walk` | float32 [rows, any, 4] |" in card
    assert "| `size.valid` | bool [rows] |" in card
    assert "`price.std`" in card
    schema = Schema.load(tmp_path / "out")
    assert schema["kind"].load("c") == COLUMNS["kind"].load("c")


class MonotoneLogits(torch.nn.Module):
    """`monotone_logits` as a module."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return monotone_logits(logits)


def test_monotone_logits_export_without_cummin() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(MonotoneLogits(), (logits,))
    assert torch.equal(program.module()(logits), monotone_logits(logits))
    assert "cummin" not in str(program.graph)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_graph_with_other_outputs_is_not_written(
    tmp_path: Path, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = untrained_predictor(tmp_path, {"size": COLUMNS["size"]})

    class WrongInGraph(graph.PredictionGraph):
        def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            outputs = super().forward(inputs)
            if torch.compiler.is_exporting():
                return {name: value + error for name, value in outputs.items()}
            return outputs

    monkeypatch.setattr(graph, "PredictionGraph", WrongInGraph)
    with pytest.raises(SensoriumError, match="Nothing was written"):
        export_model(model, "torch", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_without_a_graph_are_reported(tmp_path: Path) -> None:
    model = untrained_predictor(tmp_path, {"size": COLUMNS["size"]})
    assert model.module.blended is not None
    model.module.blended.weights[:, :, 1] = 0.5
    with pytest.raises(SensoriumError, match="--head network"):
        build_graphs(model)
    schema = Schema({"words": Column("words", COLUMNS["words"])})
    recipe, stored_keywords = build_recipe(RECIPES["gpt"], schema, {"dim": 32, "layers": 1})
    config = RunConfig("gpt", stored_keywords, "fp32", {})
    language_model = Model(recipe, Schema({}), config, "", tmp_path / "gpt")
    with pytest.raises(SensoriumError, match="with the verb generate"):
        export_model(language_model, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
