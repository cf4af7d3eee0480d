"""Pictures said code by code: one line of words and codes, guided, gone on with, chosen among, and whole by itself."""

import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

import sensorium as sn
from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.inference.generate_image import ImageGenerator
from sensorium.modalities.image import Image
from sensorium.modalities.text import PaddedTokenEmbedding, Text
from sensorium.models.decoder import Decoder
from sensorium.models.image_tokens import ImageTokenEmbedding
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import NextTokenLoss, SamplingConfig, generate
from sensorium.recipes import dalle
from sensorium.recipes.recipe import Recipe, build_recipe
from sensorium.training.loop import Interrupted

WORDS = ["a red apple", "the green cat", "a blue dog runs", "grey"]
TEXT = Text(length=8, vocab_size=280).fit(WORDS * 3)
SCHEMA = Schema({"image": Column("image", Image(size=16)), "caption": Column("caption", TEXT)})


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    torch.manual_seed(0)
    made = build_recipe(
        dalle, SCHEMA, {"dim": 32, "layers": 2, "dropout": 0.0, "caption_dropout": 0.5}
    )[0]
    made.model.eval()
    with torch.no_grad():
        for p in made.model.parameters():
            p.mul_(3)  # far from uniform, so that choices are clear
    return made


@pytest.fixture(scope="module")
def painter(recipe: Recipe) -> ImageGenerator:
    said = recipe.verbs["generate"]
    assert isinstance(said, ImageGenerator)
    return said


def pixels(pictures: list[Picture.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def photos(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8))


def batch(n: int = 3) -> Batch:
    rng = torch.Generator().manual_seed(1)
    return Batch(
        {
            "caption": TEXT.collate([TEXT.load(w) for w in WORDS[:n]]),
            "image": torch.randint(0, 512, (n, 4, 4), generator=rng),
        }
    )


def test_what_a_text_leaves_free_is_filled_with_ids_of_each_place() -> None:
    words = PaddedTokenEmbedding(16, TEXT)
    ids = words.tokenize(TEXT.collate([TEXT.load("a red apple"), TEXT.load("grey")]))
    assert ids.shape == (2, TEXT.length)
    assert words.vocab_size == TEXT.vocab_size + TEXT.length
    for row, text in zip(ids.tolist(), ("a red apple", "grey"), strict=True):
        n = len(TEXT.load(text))
        assert row[:n] == TEXT.load(text).tolist()
        assert row[n:] == [TEXT.vocab_size + place for place in range(n, TEXT.length)]
    t = words(ids)
    assert t.valid is None
    assert words.embed_at(ids, torch.arange(TEXT.length).expand(2, -1)).x.equal(t.x)


def test_heads_of_their_own_are_one_head_with_the_other_kind_masked(recipe: Recipe) -> None:
    """DALL-E's one head over words and codes, logits of the wrong kind at minus infinity, gives the same loss."""
    model, objective = recipe.model, recipe.objective
    assert isinstance(model, Decoder)
    assert isinstance(objective, NextTokenLoss)
    given = Batch(
        {
            part: model.output_part(part).tokenize(raw)
            for part, raw in objective.select_inputs(batch()).columns.items()
        }
    )
    said = model(given)
    both, lost = torch.cat([model.heads[part].weight for part in ("text", "image")]), {}
    vocab, offset = (
        model.heads["text"].weight.shape[0],
        {"text": 0, "image": model.heads["text"].weight.shape[0]},
    )
    for part in ("text", "image"):
        logits = said[part].x[:, :-1] @ both.T
        legal = (torch.arange(len(both)) < vocab) == (part == "text")
        logits = logits.masked_fill(~legal, -torch.inf)
        target = given[part][:, 1:] + offset[part]
        lost[part] = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    torch.testing.assert_close(
        objective(model, batch())["model"], (lost["text"] + 7 * lost["image"]) / 8
    )


def test_a_picture_sees_its_words_and_words_see_no_picture(recipe: Recipe) -> None:
    model = recipe.model
    assert isinstance(model, Decoder)
    given = Batch(
        {
            "text": model.output_part("text").tokenize(batch()["caption"]),
            "image": model.output_part("image").tokenize(batch()["image"]),
        }
    )
    other = given.with_columns({"image": given["image"].flip(0)})
    before, after = model(given), model(other)
    torch.testing.assert_close(before["text"].x, after["text"].x)
    swapped = model(given.with_columns({"text": given["text"].flip(0)}))
    assert (swapped["image"].x - before["image"].x).abs().amax() > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_with_a_cache_and_guided_it_says_what_it_says_without(
    recipe: Recipe, guidance: float
) -> None:
    model = recipe.model
    assert isinstance(model, Decoder)
    given = Batch(
        {
            "text": model.output_part("text").tokenize(batch()["caption"]),
            "image": torch.full((3, 1), 512),
        }
    )
    before = {name: values.clone() for name, values in given.columns.items()}
    how = SamplingConfig(temperature=0, guidance_scale=guidance, guided_parts=("text",))
    said = torch.stack(list(generate(model, given, "image", 16, how)), 1)
    whole = torch.cat([given["image"], said], 1)
    with_it = model.heads["image"](model(given.with_columns({"image": whole}))["image"].x)
    without = model.heads["image"](model(Batch({"image": whole}))["image"].x)
    guided = without + guidance * (with_it - without)
    best = guided[:, :-1].topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > 1e-4  # no tie that rounding could decide
    assert guided[:, :-1].argmax(-1).equal(said)
    assert set(given.columns) == set(before)
    assert not given.present
    assert all(given[name].equal(value) for name, value in before.items())
    assert guidance == 1 or not said.equal(
        torch.stack(list(generate(model, given, "image", 16, SamplingConfig(temperature=0))), 1)
    )


def test_dropping_captions_leaves_the_callers_batch_alone(recipe: Recipe) -> None:
    model, given = recipe.model, batch()
    before = {name: values.clone() for name, values in given.columns.items()}
    model.train()
    losses = {recipe.objective(model, given)["model"].item() for _ in range(8)}
    model.eval()
    assert len(losses) > 1  # another caption dropped each time
    assert set(given.columns) == set(before)
    assert not given.present
    assert all(given[name].equal(value) for name, value in before.items())


def test_a_picture_is_painted_alike_whatever_is_asked_beside(painter: ImageGenerator) -> None:
    for how in ({"seed": 3}, {"top_k": 20, "temperature": 0.8}, {"top_p": 0.7, "guidance": 2.0}):
        together = painter(text=WORDS, n=2, **how)
        assert len(together) == 8
        assert pixels(together) == pixels(painter(text=WORDS, n=2, batch_size=3, **how))
        assert pixels(together[2:4]) == pixels(painter(text=WORDS[1], n=2, **how))
    assert len(set(pixels(painter(text="a red apple", n=4)))) == 4
    assert pixels(painter(text="grey", seed=1)) != pixels(painter(text="grey", seed=2))


def test_without_words_it_paints_what_a_missing_caption_paints(painter: ImageGenerator) -> None:
    assert (
        pixels(painter())
        == pixels(painter(text=[None]))
        == pixels(painter(text=["grey", None]))[1:]
    )


def test_what_is_kept_of_a_picture_stays(painter: ImageGenerator) -> None:
    given = photos(2)
    raw = painter.image.collate([painter.image.load(photo) for photo in given])
    cells = painter.token_embedding.tokenize(raw)
    for keep in (1, 7, 15):
        kept = painter._build_batch({"image": given, "text": WORDS[:2]}, keep, 2)
        said = painter.generate_tokens(kept, SamplingConfig(seed=5))
        assert said.shape == (2, 16)
        assert said[:, :keep].equal(cells[:, 1 : 1 + keep])
        assert not said[:, keep:].equal(cells[:, 1 + keep :])
    assert pixels(painter(image=given, keep=16)) == pixels(painter.decode_images(cells[:, 1:]))


def test_the_best_of_many_are_chosen(painter: ImageGenerator) -> None:
    class Bright:
        """Whose words are all 'bright'."""

        def embed(self, **given: list[object]) -> np.ndarray:
            if "text" in given:
                return np.ones((len(given["text"]), 1), np.float32)
            return np.array(
                [[np.asarray(picture).mean()] for picture in given["image"]], np.float32
            )

    best = painter(text=WORDS[:2], n=2, rerank=Bright(), candidates=6, seed=1)
    for row, words in enumerate(WORDS[:2]):
        light = sorted(painter(text=words, n=6, seed=1), key=lambda p: -np.asarray(p).mean())
        assert pixels(best[2 * row : 2 * row + 2]) == pixels(light[:2])


def test_every_code_stands_in_the_row_and_column_that_it_paints(painter: ImageGenerator) -> None:
    """The start has no place; code i, which is said at place i, is that of cell i - 1, row by row."""
    cells, side = painter.token_embedding, len(painter.token_embedding.row_embedding)
    ids = torch.full((1, 1 + side * side), 3)
    with torch.no_grad():
        said = cells(ids).x[0] - cells.token_embedding(ids)[0]
        expected = (cells.row_embedding[:, None] + cells.column_embedding[None]).flatten(0, 1)
    assert not said[0].any()
    torch.testing.assert_close(said[1:], expected, rtol=1e-5, atol=1e-6)
    assert cells(ids).pos[0, 1:, 1:].tolist() == [
        [row, column] for row in range(side) for column in range(side)
    ]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"region": (0, 0, 8, 8), "text": "x"}, "MaskGIT.* can, which are planned"),
        ({"text": "x", "n": 0}, "n=0: expected 1"),
        ({"text": "x", "candidates": 0}, "candidates=0"),
        ({"text": "x", "batch_size": 0}, "batch_size=0"),
        ({"text": "x", "guidance": math.nan}, "guidance=nan"),
        ({"text": "x", "guidance": math.inf}, "guidance=inf"),
        ({"text": "x", "temperature": math.nan}, "temperature=nan"),
        ({"text": "x", "top_p": math.nan}, "top_p=nan"),
        ({"keep": 4}, "keep=4"),
        ({"image": photos(1)}, "keep=0"),
        ({"image": photos(1), "keep": 17}, "1 to 16"),
        ({"guidance": 2.0}, "words to be guided by"),
        ({"text": "x", "guidance": -1.0}, "guidance=-1.0"),
        ({"text": "x", "rerank": "runs/clip"}, "rerank=sn.load"),
        ({"words": "x"}, "text, image, not words"),
    ],
)
def test_what_cannot_be_painted_is_said(
    painter: ImageGenerator, asked: dict[str, object], message: str
) -> None:
    with pytest.raises(SensoriumError, match=message):
        painter(**asked)


def data(folder: Path, n: int = 12) -> sn.Dataset:
    folder.mkdir()
    for i, photo in enumerate(photos(n)):
        Picture.fromarray(photo).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"picture {i}\n")
    return sn.Dataset.open(folder, types={"image": "image:size=16"})


SMALL = {"dim": 32, "layers": 1, "epochs": 1, "batch_size": 4, "copies": 2, "precision": "fp32"}
FIRST = {"dim": 32, "layers": 1, "epochs": 2, "precision": "fp32"}


def test_stages_are_trained_in_turn_into_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    found, out = data(tmp_path / "photos"), tmp_path / "run"
    model = sn.train(dalle, found, out=out, codes=FIRST, quiet=True, **SMALL)
    first = sn.load(out / "codes")
    cells = model.module.parts["image"]
    assert isinstance(cells, ImageTokenEmbedding)
    assert not any(p.requires_grad for p in cells.tokenizer.parameters())
    for name, value in first.module.state_dict().items():
        assert cells.tokenizer.state_dict()[name].equal(value), name
    painted = pixels(model.generate(text="picture 3", n=2))
    named = sn.train(
        dalle, found, out=tmp_path / "named", tokenizer=str(out / "codes"), quiet=True, **SMALL
    )
    assert pixels(named.generate(text="picture 3", n=2)) == painted
    shutil.rmtree(out / "codes")
    assert pixels(sn.load(out).generate(text="picture 3", n=2)) == painted
    with pytest.raises(SensoriumError, match="put it back"):
        sn.train(dalle, found, out=out, resume=True, quiet=True)


def test_a_run_stopped_in_its_first_stage_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    found = data(tmp_path / "photos")
    whole = sn.train(dalle, found, out=tmp_path / "whole", codes=FIRST, quiet=True, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["sensorium.training.loop"], "interruptions", _at_once)
        with pytest.raises(Interrupted, match=f"--out {tmp_path / 'run'} --resume"):
            sn.train(dalle, found, out=tmp_path / "run", codes=FIRST, quiet=True, **SMALL)
    again = sn.train(
        dalle, found, out=tmp_path / "run", codes=FIRST, resume=True, quiet=True, **SMALL
    )
    assert pixels(again.generate(text="picture 3")) == pixels(whole.generate(text="picture 3"))


class _at_once:
    """A signal that asks to stop at the first step."""

    signal = 2

    def __enter__(self) -> "_at_once":
        return self

    def __exit__(self, *_: object) -> None: ...
