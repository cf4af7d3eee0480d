"""The verb generate for text: results depend neither on the batch nor on streaming."""

from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.inference.generate_text import TextGenerator
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import SamplingConfig
from sensorium.recipes import captioner, gpt
from sensorium.recipes.recipe import Recipe, build_recipe

TEXTS = [
    "a red apple on a table",
    "the cat sat, naïve and 漢字",
    "what colour is the apple?",
    "a dog runs far away",
]
TEXT = Text(length=16, vocab_size=300).fit(TEXTS * 3)
SCHEMA = Schema(
    {
        "image": Column("image", Image(size=16)),
        "caption": Column("caption", TEXT),
        "question": Column("question", TEXT),
    }
)


def sharpened_generator(recipe: Recipe) -> TextGenerator:
    with torch.no_grad():
        for p in recipe.model.parameters():
            p.mul_(3)  # far from uniform, so that there are no near ties
    generator = recipe.verbs["generate"]
    assert isinstance(generator, TextGenerator)
    return generator


@pytest.fixture(scope="module")
def image_captioner() -> TextGenerator:
    torch.manual_seed(0)
    keywords = {"dim": 32, "layers": 2, "question": "question"}
    return sharpened_generator(build_recipe(captioner, SCHEMA, keywords)[0])


@pytest.fixture(scope="module")
def language_model() -> TextGenerator:
    torch.manual_seed(1)
    return sharpened_generator(build_recipe(gpt, SCHEMA, {"dim": 32, "layers": 2})[0])


def images(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (n, 20, 20, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0, "seed": 4},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
        {"num_beams": 3},
    ],
)
def test_row_does_not_depend_on_the_rest_of_the_batch(
    image_captioner: TextGenerator, options: dict[str, Any]
) -> None:
    inputs: dict[str, list[Any]] = {
        "image": images(3),
        "question": TEXTS[1:4],
        "text": ["a", None, "the cat"],
    }
    texts = image_captioner(**inputs, **options)
    assert len(texts) == 3
    assert texts == image_captioner(**inputs, **options, batch_size=1)
    last_row = {name: values[2:] for name, values in inputs.items()}
    assert texts[2:] == image_captioner(**last_row, **options)


def test_samples_of_one_row_differ_and_are_consecutive(image_captioner: TextGenerator) -> None:
    image = images(2)
    texts = image_captioner(image=image, n=3, temperature=1.0, batch_size=4)
    assert len(texts) == 6
    assert len(set(texts[:3])) > 1
    assert texts[3:] == image_captioner(image=image[1], n=3, temperature=1.0)
    assert texts[::3] == image_captioner(image=image, temperature=1.0)
    with pytest.raises(SensoriumError, match="Give a --temperature"):
        image_captioner(image=image, n=2)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 2}])
def test_streamed_captions_joined_equal_generated_captions(
    image_captioner: TextGenerator, options: dict[str, Any]
) -> None:
    inputs: dict[str, Any] = {"image": images(2), "question": TEXTS[:2]}
    steps = list(image_captioner.stream(**inputs, **options))
    assert len(steps) > 1
    joined = ["".join(row) for row in zip(*steps, strict=True)]
    assert joined == image_captioner(**inputs, **options)


def test_streamed_continuations_joined_equal_generated_ones(language_model: TextGenerator) -> None:
    request: dict[str, Any] = {"text": ["the", "a red"], "temperature": 1.0, "seed": 3}
    steps = list(language_model.stream(**request))
    joined = ["".join(row) for row in zip(*steps, strict=True)]
    assert joined == language_model(**request)


def test_stream_never_splits_a_character(
    language_model: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = TEXT.load("ö漢ö")[1:]
    monkeypatch.setattr(language_model, "_iter_tokens", lambda *_: iter(torch.tensor(ids)[:, None]))
    pieces = [piece for (piece,) in language_model.stream()]
    assert "".join(pieces) == "ö漢ö"
    assert len([p for p in pieces if p]) == 3


def test_missing_input_equals_no_input(image_captioner: TextGenerator) -> None:
    image = images(2)
    texts = image_captioner(image=[image[0], None], question=[None, "what?"])
    assert texts == image_captioner(image=image[:1]) + image_captioner(question=["what?"])
    assert image_captioner(image=[None]) == image_captioner()
    assert image_captioner(text="a")[0] != image_captioner(image=image[0], text="a")[0]


def test_single_value_list_and_pil_image_are_equivalent(image_captioner: TextGenerator) -> None:
    array = images(1)[0]
    expected = image_captioner(image=[array])
    assert image_captioner(image=array) == expected
    assert image_captioner(image=PIL.Image.fromarray(array)) == expected
    assert image_captioner("text", image=array) == expected


def test_generate_changes_neither_batch_nor_training_mode(language_model: TextGenerator) -> None:
    assert TEXT.start is not None
    ids = [[TEXT.start, 7], [TEXT.start, TEXT.pad]]
    batch = Batch({"text": torch.tensor(ids)})
    language_model.model.train()
    language_model.generate_tokens(batch, SamplingConfig(seed=1))
    assert language_model.model.training
    assert batch["text"].tolist() == ids
    language_model.model.eval()


def test_max_tokens_truncates_the_text(language_model: TextGenerator) -> None:
    short = language_model(text="a", max_tokens=3)[0]
    full = language_model(text="a")[0]
    assert full.startswith(short)
    sample = language_model(text="a", temperature=2.0)[0]
    assert len(TEXT.load("a" + sample)) <= TEXT.length + 2


@pytest.mark.parametrize(
    ("request_options", "message"),
    [
        ({"picture": [1]}, "'picture'.* image, question, text"),
        ({"image": images(2), "question": ["what?"]}, "2 of image, 1 of question"),
        ({"image": ["nowhere.png"]}, "nowhere.png"),
        ({"text": "a red apple " * 9}, "leaves no room"),
        ({"temperature": -1.0}, "temperature.-1.0"),
        ({"top_p": 0.0}, "top.p.0.0"),
        ({"num_beams": -1}, "--num-beams -1"),
        ({"num_beams": 100_000}, "to 256"),
        ({"num_beams": 2, "temperature": 1.0}, "exclude each other"),
        ({"max_tokens": -1}, "--max-tokens -1"),
        ({"n": 0}, "n=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_invalid_request_is_rejected(
    image_captioner: TextGenerator, request_options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SensoriumError, match=message):
        image_captioner(**request_options)


def test_image_output_is_rejected(image_captioner: TextGenerator) -> None:
    with pytest.raises(SensoriumError, match=r"cannot generate image\. It generates text"):
        image_captioner("image", text="a red apple")
