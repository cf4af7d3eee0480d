"""Evaluators of captions, answers and generated images, on models of known quality."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import sensorium as sn
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.data.schema import Schema
from sensorium.data.splits import sample_evenly
from sensorium.errors import SensoriumError
from sensorium.evaluation.baselines import MAX_IMAGE_SIZE, inverted_pixels, load_pixels
from sensorium.evaluation.captioning import answer_evaluator, caption_evaluator
from sensorium.evaluation.evaluate import evaluate
from sensorium.evaluation.image_generation import image_generation_evaluator
from sensorium.evaluation.spec import EvaluationSpec, Evaluator
from sensorium.inference.base import VerbModel
from sensorium.io.run_config import RunConfig
from sensorium.recipes.recipe import DataSpec, Recipe

Metrics = dict[str, float]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset.open("scenes", n=400, seed=3)


@pytest.fixture(scope="module")
def schema(data: Dataset) -> Schema:
    return data.schema.fit(data, data.splits["train"])


class FakeModel(VerbModel):
    """A model with given verbs."""

    def __init__(self, schema: Schema, evaluator: Evaluator | None, **verbs: Callable[..., Any]):
        super().__init__("fake", verbs)
        self.module = nn.Identity()
        self.schema = schema
        self.folder = Path("nowhere")
        self.fingerprint = "0"
        self.recipe = Recipe(
            model=self.module,
            objective=lambda model, batch: {},
            verbs=dict(verbs),
            data=DataSpec(columns=("image", "caption")),
            evaluation=EvaluationSpec(metric="loss", mode="min", evaluator=evaluator),
        )
        self.config = RunConfig(recipe="fake", keywords={}, precision="fp32", data={})


def evaluate_test_split(model: FakeModel, data: Dataset, **options: Any) -> Metrics:
    return evaluate(model, data, splits=["test"], **options).metrics["test"]


def lookup(data: Dataset, column: str) -> Callable[..., str]:
    """(image, question) -> the true value of a column."""
    rows = range(len(data))
    values = [v if isinstance(v, str) else v[0] for v in data.raw(column, rows)]
    images, questions = data.raw("image", rows), data.raw("question", rows)
    exact = {(p.tobytes(), q): v for p, q, v in zip(images, questions, values, strict=True)}
    any_question = {p.tobytes(): v for p, v in zip(images, values, strict=True)}
    return lambda image, question="": exact.get(
        (image.tobytes(), question), any_question[image.tobytes()]
    )


# Captions


def test_correct_captions_are_exact(data: Dataset, schema: Schema) -> None:
    caption_of = lookup(data, "caption")
    model = FakeModel(
        schema,
        caption_evaluator("image", "caption"),
        generate=lambda what, image: [caption_of(p) for p in image],
    )
    metrics = evaluate_test_split(model, data)
    assert metrics["images"] == 20
    assert metrics["chrF"] == pytest.approx(100)
    assert metrics["CIDEr-D"] > 5
    for name in ("exact match", "exact", "objects", "relations"):
        assert metrics[name] == 1
    assert metrics["pixel neighbour exact"] < 0.1 < metrics["pixel neighbour chrF"] < 90
    assert metrics["most common exact"] < 0.1


def test_meaningless_captions_score_zero(data: Dataset, schema: Schema) -> None:
    model = FakeModel(
        schema,
        caption_evaluator("image", "caption"),
        generate=lambda what, image: ["?"] * len(image),
    )
    metrics = evaluate_test_split(model, data, max_samples=7)
    assert metrics["images"] == 7
    assert metrics["chrF"] == metrics["exact"] == metrics["objects"] == 0


def test_feature_model_selects_the_nearest_training_image(data: Dataset, schema: Schema) -> None:
    """With redness as the only feature, the reddest training image is nearest to every image."""
    redness = VerbModel(
        "red",
        {
            "embed": lambda image: np.stack(
                [np.asarray(p, np.float32)[..., :1].mean((0, 1)) for p in image]
            )
        },
    )
    model = FakeModel(
        schema,
        caption_evaluator("image", "caption"),
        generate=lambda what, image: ["?"] * len(image),
    )
    metrics = evaluate_test_split(model, data, feature_model=redness)
    train = data.splits["train"]
    red = [np.asarray(p)[..., 0].mean() for p in data.raw("image", train)]
    reddest = data.raw("caption", train)[int(np.argmax(red))]
    reddest_model = FakeModel(
        schema,
        caption_evaluator("image", "caption"),
        generate=lambda what, image: [reddest[0]] * len(image),
    )
    assert metrics["CLIP neighbour chrF"] == evaluate_test_split(reddest_model, data)["chrF"]
    assert metrics["CLIP neighbour chrF"] != metrics["pixel neighbour chrF"]


# Answers


def answer_model(data: Dataset, schema: Schema, uses_image: bool) -> FakeModel:
    answer_to = lookup(data, "answer")

    def generate(what: str, image: list[Any], question: list[str]) -> list[str]:
        return [
            answer_to(p, q) if uses_image and p is not None else "yes"
            for p, q in zip(image, question, strict=True)
        ]

    return FakeModel(schema, answer_evaluator("image", "question", "answer"), generate=generate)


def test_model_that_uses_the_image_is_above_all_baselines(data: Dataset, schema: Schema) -> None:
    metrics = evaluate_test_split(answer_model(data, schema, True), data)
    baselines = [
        metrics[name] for name in ("without image", "other image", "majority", "question majority")
    ]
    assert metrics["accuracy"] == 1
    assert max(baselines) < 0.7
    assert metrics["accuracy of count"] == 1


def test_model_that_ignores_the_image_equals_its_baselines(data: Dataset, schema: Schema) -> None:
    metrics = evaluate_test_split(answer_model(data, schema, False), data)
    assert metrics["accuracy"] == metrics["without image"] == metrics["other image"] < 0.5


def test_blind_model_replaces_the_missing_image(data: Dataset, schema: Schema) -> None:
    blind = FakeModel(schema, None, generate=lambda what, question: ["no"] * len(question))
    metrics = evaluate_test_split(answer_model(data, schema, True), data, blind_model=blind)
    share_of_no = np.mean([a == "no" for a in data.raw("answer", data.splits["test"])])
    assert metrics["without image"] == pytest.approx(share_of_no)


# Generated images


def image_model(schema: Schema, draw: Callable[[str], np.ndarray]) -> FakeModel:
    return FakeModel(
        schema,
        image_generation_evaluator("image", "caption"),
        generate=lambda what, text, seed: [Image.fromarray(draw(caption)) for caption in text],
    )


@pytest.fixture(scope="module")
def real_images(data: Dataset) -> dict[str, np.ndarray]:
    rows = range(len(data))
    return {
        c[0]: p for c, p in zip(data.raw("caption", rows), data.raw("image", rows), strict=True)
    }


def test_real_images_as_generated_ones_score_best(
    data: Dataset, schema: Schema, real_images: dict[str, np.ndarray]
) -> None:
    metrics = evaluate_test_split(image_model(schema, real_images.__getitem__), data)
    assert metrics["generated Fréchet"] == pytest.approx(0, abs=1e-6)
    assert metrics["real Fréchet"] > 0.01
    assert (
        metrics["generated exact"]
        == metrics["generated objects"]
        == metrics["generated relations"]
        == metrics["real exact"]
        == 1
    )
    assert metrics["generated copies"] == metrics["real copies"] == 0
    assert metrics["nearest caption copies"] == 1
    assert metrics["mean image exact"] == metrics["mean image diversity"] == 0
    assert metrics["nearest caption exact"] < 0.3
    assert metrics["generated diversity"] == pytest.approx(metrics["real diversity"])
    assert metrics["nearest caption objects"] > metrics["mean image objects"]


def test_each_distinct_caption_is_generated_once(
    data: Dataset, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same caption gives the same image; duplicates would distort every distance."""
    monkeypatch.setattr(PreparedDataset, "caption", lambda self, column, row: "abcdefg"[row % 7])
    captions: list[str] = []

    def generate(what: str, text: list[str], seed: int) -> list[Image.Image]:
        captions.extend(text)
        return [Image.fromarray(np.full((24, 24, 3), ord(caption), np.uint8)) for caption in text]

    metrics = evaluate_test_split(
        FakeModel(schema, image_generation_evaluator("image", "caption"), generate=generate), data
    )
    assert sorted(captions) == list("abcdefg")
    assert metrics["images"] == 7


def test_copied_training_image_is_reported(data: Dataset, schema: Schema) -> None:
    copied = data.raw("image", data.splits["train"][:1])[0]
    metrics = evaluate_test_split(image_model(schema, lambda caption: copied), data)
    assert metrics["generated copies"] == 1
    assert metrics["generated nearest"] == pytest.approx(0, abs=1e-6)
    assert metrics["generated diversity"] == 0
    assert metrics["generated Fréchet"] > 2 * metrics["real Fréchet"]


def test_image_with_an_unknown_cell_is_not_exact(
    data: Dataset, schema: Schema, real_images: dict[str, np.ndarray]
) -> None:
    def corrupted(caption: str) -> np.ndarray:
        image = real_images[caption].copy()
        image[22:, 22:] = np.random.default_rng(0).integers(0, 256, (10, 10, 3))
        return image

    assert evaluate_test_split(image_model(schema, corrupted), data)["generated exact"] == 0


def test_feature_model_gives_features_and_clip_scores(
    data: Dataset, schema: Schema, real_images: dict[str, np.ndarray]
) -> None:
    class Embedder:
        def embed(self, **inputs: list[Any]) -> np.ndarray:
            ((kind, values),) = inputs.items()
            images = [real_images[v] if kind == "text" else np.asarray(v) for v in values]
            vectors = np.stack([v.reshape(-1)[::97].astype(np.float32) + 1 for v in images])
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    metrics = evaluate_test_split(
        image_model(schema, real_images.__getitem__), data, feature_model=Embedder()
    )
    assert metrics["generated CLIP"] == pytest.approx(100) == metrics["real CLIP"]
    assert metrics["mean image CLIP"] < 99.9


# Options and reports


def test_invalid_options_and_splits_are_named_in_the_error(data: Dataset, schema: Schema) -> None:
    model = FakeModel(
        schema, caption_evaluator("image", "caption"), generate=lambda what, image: []
    )
    with pytest.raises(
        SensoriumError,
        match=r"--average-captions is not an evaluation option of fake. Options.*--max-samples",
    ):
        evaluate(model, data, average_captions=True)
    with pytest.raises(SensoriumError, match="fake has no evaluation report"):
        evaluate(FakeModel(schema, None), data)
    with pytest.raises(SensoriumError, match="no split 'tset'"):
        evaluate(model, data, splits=["tset"])


def test_report_defines_its_metrics(data: Dataset, schema: Schema) -> None:
    model = FakeModel(
        schema,
        caption_evaluator("image", "caption"),
        generate=lambda what, image: ["a cat"] * len(image),
    )
    report = evaluate(model, data, splits=["test", "test_four"])
    assert report.metadata["data"] == "scenes"
    assert report.table().row_count == len(report.metrics["test"])
    page = report.markdown()
    assert "| CIDEr-D |" in page
    assert "all captions of the row" in " ".join(page.split())
    assert "test_four" in page


def test_sample_evenly() -> None:
    assert sample_evenly(np.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert sample_evenly(np.arange(3), 9).tolist() == [0, 1, 2]


def test_trained_captioner_is_evaluated(data: Dataset, tmp_path: Path) -> None:
    """From training to metrics: little is learned in so few steps, and the metrics show it."""
    model = sn.train(
        sn.recipes.captioner,
        data,
        out=tmp_path / "run",
        quiet=True,
        text="answer",
        question="question",
        dim=32,
        layers=1,
        epochs=1,
        batch_size=64,
        precision="fp32",
    )
    report = sn.evaluate(model, data, splits=["test"], max_samples=20)
    assert report.task == "question answering"
    assert 0 <= report.metrics["test"]["accuracy"] <= 0.8
    assert {"without image", "other image", "majority"} <= set(report.metrics["test"])


def test_large_images_are_reduced_for_comparison(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    for name in ("a", "b"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    data = Dataset.open(tmp_path, types={"image": "image:size=160"})
    prepared, rows = data.prepare(data.schema, ("image",)), np.arange(2)
    assert load_pixels(prepared, "image", rows).shape == (2, 3 * 160**2)
    small = inverted_pixels(prepared, "image", rows)
    assert small.shape[1] <= 3 * MAX_IMAGE_SIZE**2
    torch.testing.assert_close((small[0] * small[1]).sum(), torch.tensor(1.0))
