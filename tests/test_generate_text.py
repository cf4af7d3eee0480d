"""The verb generate for words: neither the batch nor the pieces in which words come change what is said."""

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.inference.generate_text import TextGenerator
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.objectives.autoregressive import SamplingConfig
from sensorium.recipes import captioner, gpt
from sensorium.recipes.recipe import Recipe, build_recipe

WORDS = [
    "a red apple on a table",
    "the cat sat, naïve and 漢字",
    "what colour is the apple?",
    "a dog runs far away",
]
TEXT = Text(length=16, vocab_size=300).fit(WORDS * 3)
SCHEMA = Schema(
    {
        "image": Column("image", Image(size=16)),
        "caption": Column("caption", TEXT),
        "question": Column("question", TEXT),
    }
)


def speaker(recipe: Recipe) -> TextGenerator:
    with torch.no_grad():
        for p in recipe.model.parameters():
            p.mul_(3)  # far from uniform, so that choices are clear
    said = recipe.verbs["generate"]
    assert isinstance(said, TextGenerator)
    return said


@pytest.fixture(scope="module")
def sees() -> TextGenerator:
    torch.manual_seed(0)
    return speaker(
        build_recipe(captioner, SCHEMA, {"dim": 32, "layers": 2, "question": "question"})[0]
    )


@pytest.fixture(scope="module")
def talks() -> TextGenerator:
    torch.manual_seed(1)
    return speaker(build_recipe(gpt, SCHEMA, {"dim": 32, "layers": 2})[0])


def pictures(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (n, 20, 20, 3), dtype=np.uint8))


def test_a_row_is_said_alike_whatever_is_asked_beside(sees: TextGenerator) -> None:
    asked = {"image": pictures(3), "question": WORDS[1:4], "text": ["a", None, "the cat"]}
    for how in (
        {},
        {"temperature": 1.0, "seed": 4},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
        {"beams": 3},
    ):
        together = sees(**asked, **how)
        assert together == sees(**asked, **how, batch_size=1)
        assert len(together) == 3
        assert together[2:] == sees(**{name: values[2:] for name, values in asked.items()}, **how)


def test_several_of_one_row_differ_and_stand_side_by_side(sees: TextGenerator) -> None:
    image, first = pictures(2), sees(image=pictures(2), n=3, temperature=1.0, batch_size=4)
    assert len(first) == 6
    assert len(set(first[:3])) > 1
    assert first[3:] == sees(image=image[1], n=3, temperature=1.0)
    assert first[::3] == sees(image=image, temperature=1.0)
    with pytest.raises(SensoriumError, match="give a temperature"):
        sees(image=image, n=2)


def test_pieces_joined_are_the_whole(sees: TextGenerator, talks: TextGenerator) -> None:
    asked = {"image": pictures(2), "question": WORDS[:2]}
    for how in ({}, {"temperature": 1.5, "seed": 2}):
        pieces = list(sees.stream(**asked, **how))
        assert len(pieces) > 1
        assert ["".join(row) for row in zip(*pieces, strict=True)] == sees(**asked, **how)
    begun = {"text": ["the", "a red"], "temperature": 1.0, "seed": 3}
    assert ["".join(row) for row in zip(*talks.stream(**begun), strict=True)] == talks(**begun)


def test_a_letter_of_several_tokens_is_streamed_whole(
    talks: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = TEXT.load("ö漢ö")[1:]
    monkeypatch.setattr(talks, "_steps", lambda *_: iter(torch.tensor(ids)[:, None]))
    pieces = [piece for (piece,) in talks.stream()]
    assert "".join(pieces) == "ö漢ö"
    assert len([p for p in pieces if p]) == 3


def test_what_is_missing_is_not_there(sees: TextGenerator) -> None:
    image = pictures(2)
    assert sees(image=[image[0], None], question=[None, "what?"]) == sees(image=image[:1]) + sees(
        question=["what?"]
    )
    assert sees(image=[None]) == sees()
    assert sees(text="a")[0] != sees(image=image[0], text="a")[0]


def test_raw_values_of_every_kind_are_read_alike(sees: TextGenerator) -> None:
    array = pictures(1)[0]
    assert (
        sees(image=array)
        == sees(image=[array])
        == sees(image=Picture.fromarray(array))
        == sees("text", image=array)
    )


def test_the_batch_given_is_left_alone_and_the_model_as_it_was(talks: TextGenerator) -> None:
    batch = {"text": torch.tensor([[TEXT.start, 7], [TEXT.start, TEXT.pad]])}
    talks.model.train()
    talks.generate_tokens(batch, SamplingConfig(seed=1))
    assert talks.model.training
    assert batch["text"].tolist() == [[TEXT.start, 7], [TEXT.start, TEXT.pad]]
    talks.model.eval()


def test_a_length_is_kept(talks: TextGenerator) -> None:
    short, full = talks(text="a", length=3)[0], talks(text="a")[0]
    assert full.startswith(short)
    assert len(TEXT.load("a" + talks(text="a", temperature=2.0)[0])) <= TEXT.length + 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"picture": [1]}, "image, question, text, not picture"),
        ({"image": pictures(2), "question": ["what?"]}, "2 of image, 1 of question"),
        ({"image": ["nowhere.png"]}, "nowhere.png"),
        ({"text": "a red apple " * 9}, "leaves no room"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"beams": -1}, "beams=-1"),
        ({"beams": 100_000}, "256 at most"),
        ({"beams": 2, "temperature": 1.0}, "one of the two"),
        ({"length": -1}, "length=-1"),
        ({"n": 0}, "n=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_is_said(
    sees: TextGenerator, asked: dict[str, object], message: str
) -> None:
    with pytest.raises(SensoriumError, match=message):
        sees(**asked)


def test_another_kind_is_refused(sees: TextGenerator) -> None:
    with pytest.raises(SensoriumError, match="makes text, not image"):
        sees("image", text="a red apple")
