"""Judges of words and pictures, on models whose worth is known: one is right, one copies, one guesses."""

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
from sensorium.inference.base import VerbModel
from sensorium.recipes.recipe import DataSpec, EvaluationSpec, Recipe

Judge = Callable[..., Any]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset.open("scenes", n=400, seed=3)


@pytest.fixture(scope="module")
def schema(data: Dataset) -> Schema:
    return data.schema.fit(data, data.splits["train"])


class Known(VerbModel):
    """A model that does what it is told."""

    def __init__(self, schema: Schema, judge: Judge | None, **verbs: Callable[..., Any]):
        super().__init__("known", verbs)
        self.module, self.schema, self.folder, self.fingerprint = (
            nn.Identity(),
            schema,
            "nowhere",
            "0",
        )
        self.recipe = Recipe(
            model=self.module,
            objective=lambda model, batch: {},
            verbs=dict(verbs),
            data=DataSpec(columns=("image", "caption")),
            evaluation=EvaluationSpec(metric="loss", mode="min", evaluator=judge),
        )
        self.config = type("Config", (), {"recipe": "known"})


def figures(model: Known, data: Dataset, **asked: Any) -> dict[str, float]:
    return evaluate(model, data, splits=["test"], **asked).metrics["test"]


def by_pixels(data: Dataset, column: str) -> Callable[[Any, str], str]:
    """(picture, question) -> what the data say."""
    rows = range(len(data))
    first = [v if isinstance(v, str) else v[0] for v in data.raw(column, rows)]
    pixels, asked = data.raw("image", rows), data.raw("question", rows)
    exact = {(p.tobytes(), q): v for p, q, v in zip(pixels, asked, first, strict=True)}
    any_question = {p.tobytes(): v for p, v in zip(pixels, first, strict=True)}
    return lambda picture, question="": exact.get(
        (picture.tobytes(), question), any_question[picture.tobytes()]
    )


# Captions -------------------------------------------------------------------------------------------------------------


def test_a_captioner_that_is_right(data: Dataset, schema: Schema) -> None:
    tell = by_pixels(data, "caption")
    model = Known(
        schema,
        caption_evaluator("image", "caption"),
        generate=lambda what, image: [tell(p) for p in image],
    )
    found = figures(model, data)
    assert found["pictures"] == 20
    assert found["chrF"] == pytest.approx(100)
    assert found["CIDEr-D"] > 5
    assert (found["exact"], found["true"], found["things"], found["relations"]) == (1, 1, 1, 1)
    assert found["neighbour true"] < 0.1 < found["neighbour chrF"] < 90
    assert found["most common true"] < 0.1


def test_a_captioner_that_says_nothing(data: Dataset, schema: Schema) -> None:
    model = Known(
        schema,
        caption_evaluator("image", "caption"),
        generate=lambda what, image: ["?"] * len(image),
    )
    found = figures(model, data, most=7)
    assert found["pictures"] == 7
    assert found["chrF"] == found["true"] == found["things"] == 0


def test_a_clip_finds_another_neighbour(data: Dataset, schema: Schema) -> None:
    """One that sees nothing but how red a picture is finds, for every row, the caption of the reddest of all."""
    seen = VerbModel(
        "red",
        {
            "embed": lambda image: np.stack(
                [np.asarray(p, np.float32)[..., :1].mean((0, 1)) for p in image]
            )
        },
    )
    model = Known(
        schema,
        caption_evaluator("image", "caption"),
        generate=lambda what, image: ["?"] * len(image),
    )
    found = figures(model, data, by=seen)
    train = data.splits["train"]
    red = [np.asarray(p)[..., 0].mean() for p in data.raw("image", train)]
    reddest = data.raw("caption", train)[int(np.argmax(red))]
    same = Known(
        schema,
        caption_evaluator("image", "caption"),
        generate=lambda what, image: [reddest[0]] * len(image),
    )
    assert found["CLIP neighbour chrF"] == figures(same, data)["chrF"] != found["neighbour chrF"]


# Answers --------------------------------------------------------------------------------------------------------------


def answering(data: Dataset, schema: Schema, looks: bool) -> Known:
    tell = by_pixels(data, "answer")

    def generate(what: str, image: list[Any], question: list[str]) -> list[str]:
        return [
            tell(p, q) if looks and p is not None else "yes"
            for p, q in zip(image, question, strict=True)
        ]

    return Known(schema, answer_evaluator("image", "question", "answer"), generate=generate)


def test_a_model_that_looks_is_above_all_controls(data: Dataset, schema: Schema) -> None:
    found = figures(answering(data, schema, True), data)
    controls = [
        found[name]
        for name in ("without picture", "other picture", "majority", "question's majority")
    ]
    assert found["accuracy"] == 1
    assert max(controls) < 0.7
    assert found["accuracy of count"] == 1


def test_a_model_that_does_not_look_is_found_out(data: Dataset, schema: Schema) -> None:
    found = figures(answering(data, schema, False), data)
    assert found["accuracy"] == found["without picture"] == found["other picture"] < 0.5


def test_a_blind_model_stands_for_no_picture(data: Dataset, schema: Schema) -> None:
    blind = Known(schema, None, generate=lambda what, question: ["no"] * len(question))
    found = figures(answering(data, schema, True), data, blind=blind)
    no = np.mean([a == "no" for a in data.raw("answer", data.splits["test"])])
    assert found["without picture"] == pytest.approx(no)


# Pictures -------------------------------------------------------------------------------------------------------------


def painter(data: Dataset, schema: Schema, paint: Callable[[str], np.ndarray]) -> Known:
    return Known(
        schema,
        image_generation_evaluator("image", "caption"),
        generate=lambda what, text, seed: [Image.fromarray(paint(caption)) for caption in text],
    )


@pytest.fixture(scope="module")
def drawn(data: Dataset) -> dict[str, np.ndarray]:
    rows = range(len(data))
    return {
        c[0]: p for c, p in zip(data.raw("caption", rows), data.raw("image", rows), strict=True)
    }


def test_a_painter_that_is_right(
    data: Dataset, schema: Schema, drawn: dict[str, np.ndarray]
) -> None:
    found = figures(painter(data, schema, drawn.__getitem__), data)
    assert found["made Fréchet"] == pytest.approx(0, abs=1e-6)
    assert found["real Fréchet"] > 0.01
    assert (
        found["made true"]
        == found["made things"]
        == found["made relations"]
        == found["real true"]
        == 1
    )
    assert found["made copies"] == found["real copies"] == 0
    assert found["neighbour copies"] == 1
    assert found["mean true"] == found["mean diversity"] == 0
    assert found["neighbour true"] < 0.3
    assert found["made diversity"] == pytest.approx(found["real diversity"])
    assert found["neighbour things"] > found["mean things"]


def test_a_painter_is_asked_for_each_caption_once(
    data: Dataset, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words give the same picture, and copies among those judged would distort every distance."""
    monkeypatch.setattr(PreparedDataset, "caption", lambda self, column, row: "abcdefg"[row % 7])
    asked: list[str] = []

    def generate(what: str, text: list[str], seed: int) -> list[Image.Image]:
        asked.extend(text)
        return [Image.fromarray(np.full((24, 24, 3), ord(caption), np.uint8)) for caption in text]

    found = figures(
        Known(schema, image_generation_evaluator("image", "caption"), generate=generate), data
    )
    assert sorted(asked) == list("abcdefg")
    assert found["pictures"] == 7


def test_a_painter_that_copies_is_found_out(data: Dataset, schema: Schema) -> None:
    copied = data.raw("image", data.splits["train"][:1])[0]
    found = figures(painter(data, schema, lambda caption: copied), data)
    assert found["made copies"] == 1
    assert found["made nearest"] == pytest.approx(0, abs=1e-6)
    assert found["made diversity"] == 0
    assert found["made Fréchet"] > 2 * found["real Fréchet"]


def test_what_is_unclear_is_never_true(
    data: Dataset, schema: Schema, drawn: dict[str, np.ndarray]
) -> None:
    def smeared(caption: str) -> np.ndarray:
        picture = drawn[caption].copy()
        picture[22:, 22:] = np.random.default_rng(0).integers(0, 256, (10, 10, 3))
        return picture

    assert figures(painter(data, schema, smeared), data)["made true"] == 0


def test_a_model_that_embeds_gives_features_and_clip_scores(
    data: Dataset, schema: Schema, drawn: dict[str, np.ndarray]
) -> None:
    class Eye:
        def embed(self, **given: list[Any]) -> np.ndarray:
            ((kind, values),) = given.items()
            seen = [drawn[v] if kind == "text" else np.asarray(v) for v in values]
            vectors = np.stack([v.reshape(-1)[::97].astype(np.float32) + 1 for v in seen])
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    found = figures(painter(data, schema, drawn.__getitem__), data, by=Eye())
    assert found["made CLIP"] == pytest.approx(100) == found["real CLIP"]
    assert found["mean CLIP"] < 99.9


# The front door -------------------------------------------------------------------------------------------------------


def test_what_a_judge_does_not_take_is_said(data: Dataset, schema: Schema) -> None:
    model = Known(schema, caption_evaluator("image", "caption"), generate=lambda what, image: [])
    with pytest.raises(SensoriumError, match="not judged by 'every'; it takes most"):
        evaluate(model, data, every=True)
    with pytest.raises(SensoriumError, match="does not say how it is judged"):
        evaluate(Known(schema, None), data)
    with pytest.raises(SensoriumError, match="no split 'tset'"):
        evaluate(model, data, splits=["tset"])


def test_a_report_says_what_figures_mean(data: Dataset, schema: Schema) -> None:
    model = Known(
        schema,
        caption_evaluator("image", "caption"),
        generate=lambda what, image: ["a cat"] * len(image),
    )
    report = evaluate(model, data, splits=["test", "test_four"])
    assert report.metadata["data"] == "scenes"
    assert report.table().row_count == len(report.metrics["test"])
    page = report.markdown()
    assert "| CIDEr-D |" in page
    assert "all captions of a row" in page
    assert "test_four" in page


def test_rows_are_evenly_spaced() -> None:
    assert sample_evenly(np.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert sample_evenly(np.arange(3), 9).tolist() == [0, 1, 2]


def test_a_trained_captioner_is_judged(data: Dataset, tmp_path: Any) -> None:
    """From training to figures: nothing is learned in so few steps, and the figures say so."""
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
    found = sn.evaluate(model, data, splits=["test"], most=20)
    assert found.task == "answers"
    assert 0 <= found.metrics["test"]["accuracy"] <= 0.8
    assert {"without picture", "other picture", "majority"} <= set(found.metrics["test"])


def test_large_pictures_are_compared_small(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    for name in ("a", "b"):
        Image.fromarray(drawn).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    data = Dataset.open(tmp_path, types={"image": "image:size=160"})
    prepared, rows = data.prepare(data.schema, ("image",)), np.arange(2)
    assert load_pixels(prepared, "image", rows).shape == (2, 3 * 160**2)
    small = inverted_pixels(prepared, "image", rows)
    assert small.shape[1] <= 3 * MAX_IMAGE_SIZE**2
    torch.testing.assert_close((small[0] * small[1]).sum(), torch.tensor(1.0))
