"""Graphs of towers and of what predicts, for any subset of columns: they answer as the run does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from fixtures.export_cases import TEXTS, run

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
WALKS = [RNG.normal(size=(n, 2)) for n in (30, 21, 9)]
RAW: dict[str, list[Any]] = {
    "photo": [
        RNG.integers(0, 256, (20, 30, 3), np.uint8),
        None,
        RNG.integers(0, 256, (16, 16, 3), np.uint8),
    ],
    "words": ["a red bicycle", "two reddish cats, long ago", None],
    "walk": [None, WALKS[0], WALKS[2]],
    "size": [1.5, None, -3.0],
    "kind": ["b", "never seen", None],
    "when": [None, "2020-02-03", "2021-01-01"],
    "marks": [["x"], None, ["y", "z"]],
}
COLUMNS = {
    "photo": Image(size=16),
    "words": Text(length=12, vocab_size=300).fit([*TEXTS, "a red bicycle"] * 4),
    "walk": Series().fit(WALKS),
    "size": Numeric().fit(RNG.normal(size=50)),
    "kind": Category().fit(["a", "b", "c"] * 5),
    "when": Datetime().fit(["2020-01-02", "2021-03-04"] * 5),
    "marks": Multilabel().fit([["x", "y"], ["y"], ["z", "x"]] * 4),
}
TARGETS = {
    "label": Category().fit(["u", "v", "w"] * 5),
    "price": Numeric().fit(10 + 3 * RNG.normal(size=50)),
    "rank": Ordinal().fit(["1", "2", "3", "4"] * 5),
    "said": Multilabel().fit([["p", "q"], ["q"]] * 4),
}


def predicting(folder: Path, columns: dict[str, Any] = COLUMNS, **keywords: object) -> Model:
    """A run of `fusion` with first weights, whose answers are read as none would be by chance."""
    schema = Schema(
        {name: Column(name, modality) for name, modality in (columns | TARGETS).items()}
    )
    torch.manual_seed(0)
    asked = {"target": tuple(TARGETS), "dim": 32, "layers": 1} | keywords
    recipe, filled = build_recipe(RECIPES["fusion"], schema, asked)
    with torch.no_grad():
        for value in recipe.model.parameters():
            value.add_(0.05 * torch.randn(value.shape))
        for name, scale in zip(TARGETS, (0.5, 2.0, 0.7, 1.5), strict=True):
            recipe.model.get_calibration(name).scale.fill_(scale)
    spell(recipe.model, schema["words"] if "words" in columns else None)
    return Model(recipe, schema, RunConfig("fusion", filled, "fp32", {}), "", folder / "run")


def spell(model: torch.nn.Module, text: Any) -> None:
    """Let it know pieces of words."""
    for part in model.modules():
        if isinstance(part, SubwordBagEmbedding):
            part.fit_on_data([text.collate(text.encode(TEXTS))] * 2)


def asked(
    columns: dict[str, Any], raw: dict[str, list[Any]], nothing: float
) -> dict[str, torch.Tensor]:
    """What a graph is given; `nothing` stands where no value is."""
    given = {}
    for name, modality in columns.items():
        there = torch.tensor([value is not None for value in raw[name]])
        some = next(value for value in [*raw[name], *RAW.get(name, ())] if value is not None)
        values = modality.collate(
            [modality.load(some if value is None else value) for value in raw[name]]
        )
        if values.is_floating_point():
            values[~there] = nothing
        given |= {name: values, f"{name}.valid": there}
    return given


def told(model: Model, raw: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    """What the verb says, by the names that a graph has for it."""
    found = {}
    for name, said in model.predict(**raw).items():
        found |= (
            {name: said.probability}
            if said.probability is not None
            else {name: np.array(said.value), f"{name}.spread": said.spread}
        )
    return found


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without checks of shapes, which would tie a graph to those of its example."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("keywords", [{}, {"image_encoder": "resnet", "image_layers": 3}])
def test_towers_become_graphs(tmp_path: Path, keywords: dict[str, Any]) -> None:
    off = export_model(run(tmp_path, **keywords), "torch", tmp_path / "out")
    assert set(off) == {"picture", "words"}
    assert max(off.values()) < 1e-5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "picture.pt2",
        "words.pt2",
        "README.md",
        "schema.json",
        "tokenizer.json",
    }


@pytest.mark.usefixtures("unchecked")
def test_towers_become_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    off = export_model(run(tmp_path), "onnx", tmp_path / "out")
    assert set(off) == {"picture", "words"}
    assert max(off.values()) < 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| picture.onnx | `values` | float32 [rows, 3, 16, 16] |" in card
    assert "| words.onnx | `values` | int64 [rows, any] |" in card
    assert "`vectors`" in card


@pytest.mark.usefixtures("unchecked")
def test_words_by_their_pieces_become_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = run(tmp_path, recipe="clip_small")
    text = model.schema["words"]
    spell(model.module, text)
    assert max(export_model(model, "onnx", tmp_path / "out").values()) < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "words.onnx"))
    for texts in (
        ["reddish bicycles"],
        ["x", "", "<end> of it", "a blue sofa behind two cats", "漢字 ü"],
    ):
        (said,) = session.run(None, {"values": text.collate(text.encode(texts)).numpy()})
        assert np.abs(said - model.embed(text=texts)).max() < 1e-5


@pytest.mark.usefixtures("unchecked")
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
def test_a_graph_says_what_predict_says_for_any_subset(
    tmp_path: Path, keywords: dict[str, Any]
) -> None:
    model = predicting(tmp_path, **keywords)
    assert export_model(model, "torch", tmp_path / "out")["predict"] < 1e-5
    loaded = torch.export.load(tmp_path / "out" / "predict.pt2").module()
    some = {name: [values[0], None] for name, values in RAW.items()} | {
        "size": [None, None],
        "kind": [None, "a"],
    }
    for raw in (RAW, some):
        wanted = told(model, raw)
        for nothing in (0.0, float("nan")):
            with torch.inference_mode():
                said = loaded(asked(COLUMNS, raw, nothing))
            assert set(said) == set(wanted) == {*TARGETS, "price.spread"}
            for name, values in wanted.items():
                assert np.allclose(said[name].numpy(), values, atol=1e-5), name


@pytest.mark.usefixtures("unchecked")
def test_what_predicts_becomes_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    columns = {**COLUMNS, "sound": Audio()}
    raw = {**RAW, "sound": [None, RNG.normal(size=8000) * 0.1, RNG.normal(size=4000) * 0.1]}
    model = predicting(tmp_path, columns)
    assert export_model(model, "onnx", tmp_path / "out")["predict"] < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "predict.onnx"))
    given = {name: value.numpy() for name, value in asked(columns, raw, 0.0).items()}
    said = dict(
        zip([one.name for one in session.get_outputs()], session.run(None, given), strict=True)
    )
    for name, values in told(model, raw).items():
        assert np.allclose(said[name], values, atol=1e-5), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `walk` | float32 [rows, any, 4] |" in card
    assert "| `size.valid` | bool [rows] |" in card
    assert "`price.spread`" in card
    again = Schema.load(tmp_path / "out")
    assert again["kind"].load("c") == COLUMNS["kind"].load("c")


def test_the_least_so_far_is_the_same_in_a_graph() -> None:
    said = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    made = torch.export.export(_Least(), (said,))
    assert torch.equal(made.module()(said), monotone_logits(said))
    assert "cummin" not in str(made.graph)


class _Least(torch.nn.Module):
    def forward(self, said: torch.Tensor) -> torch.Tensor:
        return monotone_logits(said)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_graph_that_answers_otherwise_is_not_written(
    tmp_path: Path, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = predicting(tmp_path, {"size": COLUMNS["size"]})

    class Otherwise(graph.PredictionGraph):
        def forward(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            said = super().forward(given)
            return (
                {name: value + wrong for name, value in said.items()}
                if torch.compiler.is_exporting()
                else said
            )

    monkeypatch.setattr(graph, "Predictions", Otherwise)
    with pytest.raises(SensoriumError, match="nothing is written"):
        export_model(model, "torch", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_no_graph_can_be_is_said(tmp_path: Path) -> None:
    model = predicting(tmp_path, {"size": COLUMNS["size"]})
    model.module.boosted.append(torch.nn.Identity())
    with pytest.raises(SensoriumError, match="boosting"):
        build_graphs(model)
    text = {"words": COLUMNS["words"]}
    recipe, filled = build_recipe(
        RECIPES["gpt"], Schema({"words": Column("words", text["words"])}), {"dim": 32, "layers": 1}
    )
    writer = Model(
        recipe, Schema({}), RunConfig("gpt", filled, "fp32", {}), "", tmp_path / "writer"
    )
    with pytest.raises(SensoriumError, match="neither has towers nor predicts"):
        export_model(writer, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
