"""The verb generate for images: token order, guidance, completion, reranking, and both stages."""

import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

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
from sensorium.training.interruption import Interrupted, StopRequest

TEXTS = ["a red apple", "the green cat", "a blue dog runs", "grey"]
TEXT = Text(length=8, vocab_size=280).fit(TEXTS * 3)
SCHEMA = Schema({"image": Column("image", Image(size=16)), "caption": Column("caption", TEXT)})


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    torch.manual_seed(0)
    keywords = {"dim": 32, "layers": 2, "dropout": 0.0, "caption_dropout": 0.5}
    recipe = build_recipe(dalle, SCHEMA, keywords)[0]
    recipe.model.eval()
    with torch.no_grad():
        for p in recipe.model.parameters():
            p.mul_(3)  # far from uniform, so that there are no near ties
    return recipe


@pytest.fixture(scope="module")
def generator(recipe: Recipe) -> ImageGenerator:
    generator = recipe.verbs["generate"]
    assert isinstance(generator, ImageGenerator)
    return generator


@pytest.fixture(scope="module")
def decoder(recipe: Recipe) -> Decoder:
    assert isinstance(recipe.model, Decoder)
    return recipe.model


def pixels(images: list[PIL.Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def photos(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8))


def make_batch(n: int = 3) -> Batch:
    rng = torch.Generator().manual_seed(1)
    return Batch(
        {
            "caption": TEXT.collate([TEXT.load(text) for text in TEXTS[:n]]),
            "image": torch.randint(0, 512, (n, 4, 4), generator=rng),
        }
    )


def tokenized_batch(model: Decoder) -> Batch:
    batch = make_batch()
    return Batch(
        {
            "text": model.output_part("text").tokenize(batch["caption"]),
            "image": model.output_part("image").tokenize(batch["image"]),
        }
    )


def test_padding_is_filled_with_one_id_per_position() -> None:
    embedding = PaddedTokenEmbedding(16, TEXT)
    ids = embedding.tokenize(TEXT.collate([TEXT.load("a red apple"), TEXT.load("grey")]))
    assert ids.shape == (2, TEXT.length)
    assert embedding.vocab_size == TEXT.vocab_size + TEXT.length
    for row, text in zip(ids.tolist(), ("a red apple", "grey"), strict=True):
        n = len(TEXT.load(text))
        assert row[:n] == TEXT.load(text).tolist()
        assert row[n:] == [TEXT.vocab_size + position for position in range(n, TEXT.length)]
    t = embedding(ids)
    assert t.valid is None
    assert embedding.embed_at(ids, torch.arange(TEXT.length).expand(2, -1)).x.equal(t.x)


def test_separate_heads_equal_one_masked_head(recipe: Recipe, decoder: Decoder) -> None:
    """DALL-E has one head over both vocabularies, with the wrong modality's logits at -inf."""
    objective = recipe.objective
    assert isinstance(objective, NextTokenLoss)
    inputs = Batch(
        {
            part: decoder.output_part(str(part)).tokenize(raw)
            for part, raw in objective.select_inputs(make_batch()).columns.items()
        }
    )
    outputs = decoder(inputs)
    weights: list[torch.Tensor] = [
        decoder.heads[part].get_parameter("weight") for part in ("text", "image")
    ]
    weight = torch.cat(weights)
    text_vocab = len(weights[0])
    offset = {"text": 0, "image": text_vocab}
    losses = {}
    for part in ("text", "image"):
        logits = outputs[part].x[:, :-1] @ weight.T
        allowed = (torch.arange(len(weight)) < text_vocab) == (part == "text")
        logits = logits.masked_fill(~allowed, -torch.inf)
        target = inputs[part][:, 1:] + offset[part]
        losses[part] = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    expected = (losses["text"] + 7 * losses["image"]) / 8
    torch.testing.assert_close(objective(decoder, make_batch())["model"], expected)


def test_image_tokens_see_text_but_text_sees_no_image(decoder: Decoder) -> None:
    inputs = tokenized_batch(decoder)
    outputs = decoder(inputs)
    other_image = decoder(inputs.with_columns({"image": inputs["image"].flip(0)}))
    torch.testing.assert_close(outputs["text"].x, other_image["text"].x)
    other_text = decoder(inputs.with_columns({"text": inputs["text"].flip(0)}))
    assert (other_text["image"].x - outputs["image"].x).abs().amax() > 1e-3


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_cached_guided_generation_equals_full_forward(
    decoder: Decoder, guidance_scale: float
) -> None:
    text = tokenized_batch(decoder)["text"]
    inputs = Batch({"text": text, "image": torch.full((3, 1), 512)})
    before = {name: values.clone() for name, values in inputs.columns.items()}
    sampling = SamplingConfig(temperature=0, guidance_scale=guidance_scale, guided_parts=("text",))
    generated = torch.stack(list(generate(decoder, inputs, "image", 16, sampling)), 1)
    image = torch.cat([inputs["image"], generated], 1)
    conditional = decoder.heads["image"](decoder(inputs.with_columns({"image": image}))["image"].x)
    unconditional = decoder.heads["image"](decoder(Batch({"image": image}))["image"].x)
    guided = unconditional + guidance_scale * (conditional - unconditional)
    best = guided[:, :-1].topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > 1e-4  # no tie that rounding could decide
    assert guided[:, :-1].argmax(-1).equal(generated)
    assert set(inputs.columns) == set(before)
    assert not inputs.present
    assert all(inputs[name].equal(values) for name, values in before.items())
    if guidance_scale != 1:
        greedy = generate(decoder, inputs, "image", 16, SamplingConfig(temperature=0))
        assert not generated.equal(torch.stack(list(greedy), 1))


def test_caption_dropout_does_not_change_the_batch(recipe: Recipe, decoder: Decoder) -> None:
    batch = make_batch()
    before = {name: values.clone() for name, values in batch.columns.items()}
    decoder.train()
    losses = {recipe.objective(decoder, batch)["model"].item() for _ in range(8)}
    decoder.eval()
    assert len(losses) > 1  # different captions are dropped each time
    assert set(batch.columns) == set(before)
    assert not batch.present
    assert all(batch[name].equal(values) for name, values in before.items())


@pytest.mark.parametrize(
    "options",
    [{"seed": 3}, {"top_k": 20, "temperature": 0.8}, {"top_p": 0.7, "guidance_scale": 2.0}],
)
def test_row_does_not_depend_on_the_rest_of_the_batch(
    generator: ImageGenerator, options: dict[str, Any]
) -> None:
    images = generator(text=TEXTS, n=2, **options)
    assert len(images) == 8
    assert pixels(images) == pixels(generator(text=TEXTS, n=2, batch_size=3, **options))
    assert pixels(images[2:4]) == pixels(generator(text=TEXTS[1], n=2, **options))


def test_samples_differ_between_each_other_and_between_seeds(generator: ImageGenerator) -> None:
    assert len(set(pixels(generator(text="a red apple", n=4)))) == 4
    assert pixels(generator(text="grey", seed=1)) != pixels(generator(text="grey", seed=2))


def test_no_text_equals_missing_caption(generator: ImageGenerator) -> None:
    images = pixels(generator())
    assert images == pixels(generator(text=[None]))
    assert images == pixels(generator(text=["grey", None]))[1:]


@pytest.mark.parametrize("prefix_tokens", [1, 7, 15])
def test_prefix_tokens_are_kept(
    generator: ImageGenerator, prefix_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = generator.image.collate([generator.image.load(photo) for photo in photos(2)])
    tokens = generator.token_embedding.tokenize(raw)[:, 1:]
    generated: list[torch.Tensor] = []
    monkeypatch.setattr(generator, "decode_images", lambda ids: generated.append(ids) or [])
    generator(image=photos(2), text=TEXTS[:2], prefix_tokens=prefix_tokens, seed=5)
    (ids,) = generated
    assert ids.shape == (2, 16)
    assert ids[:, :prefix_tokens].equal(tokens[:, :prefix_tokens])
    assert not ids[:, prefix_tokens:].equal(tokens[:, prefix_tokens:])


def test_prefix_of_all_tokens_reconstructs_the_image(generator: ImageGenerator) -> None:
    raw = generator.image.collate([generator.image.load(photo) for photo in photos(2)])
    tokens = generator.token_embedding.tokenize(raw)
    images = generator(image=photos(2), prefix_tokens=16)
    assert pixels(images) == pixels(generator.decode_images(tokens[:, 1:]))


class BrightnessModel:
    """Embeds an image as its brightness, and every text as 'bright'."""

    def embed(self, **inputs: list[Any]) -> np.ndarray:
        if "text" in inputs:
            return np.ones((len(inputs["text"]), 1), np.float32)
        return np.array([[np.asarray(image).mean()] for image in inputs["image"]], np.float32)


def test_rerank_returns_the_best_candidates(generator: ImageGenerator) -> None:
    best = generator(text=TEXTS[:2], n=2, rerank=BrightnessModel(), candidates=6, seed=1)
    for row, text in enumerate(TEXTS[:2]):
        candidates = generator(text=text, n=6, seed=1)
        brightest = sorted(candidates, key=lambda image: -np.asarray(image).mean())
        assert pixels(best[2 * row : 2 * row + 2]) == pixels(brightest[:2])


def test_image_tokens_have_the_position_of_their_cell(generator: ImageGenerator) -> None:
    """The start token has no position; token i at sequence index i is cell i - 1, row by row."""
    embedding = generator.token_embedding
    side = len(embedding.row_embedding)
    ids = torch.full((1, 1 + side * side), 3)
    with torch.no_grad():
        positional = embedding(ids).x[0] - embedding.token_embedding(ids)[0]
        rows = embedding.row_embedding[:, None]
        expected = (rows + embedding.column_embedding[None]).flatten(0, 1)
    assert not positional[0].any()
    torch.testing.assert_close(positional[1:], expected, rtol=1e-5, atol=1e-6)
    cells = [[row, column] for row in range(side) for column in range(side)]
    assert embedding(ids).pos[0, 1:, 1:].tolist() == cells


@pytest.mark.parametrize(
    ("request_options", "message"),
    [
        ({"region": (0, 0, 8, 8), "text": "x"}, "--region is not supported"),
        ({"text": "x", "n": 0}, "n=0"),
        ({"text": "x", "candidates": 0}, "candidates=0"),
        ({"text": "x", "batch_size": 0}, "batch_size=0"),
        ({"text": "x", "guidance_scale": math.nan}, "--guidance-scale nan"),
        ({"text": "x", "guidance_scale": math.inf}, "--guidance-scale inf"),
        ({"text": "x", "temperature": math.nan}, "temperature.nan"),
        ({"text": "x", "top_p": math.nan}, "top.p.nan"),
        ({"prefix_tokens": 4}, "--prefix-tokens 4 needs an image"),
        ({"image": photos(1)}, "--image needs --prefix-tokens"),
        ({"image": photos(1), "prefix_tokens": 17}, "1 to 16"),
        ({"guidance_scale": 2.0}, "--guidance-scale 2 needs a caption"),
        ({"text": "x", "guidance_scale": -1.0}, "--guidance-scale -1.0"),
        ({"text": "x", "rerank": "runs/clip"}, r"rerank=sn\.load"),
        ({"rerank": BrightnessModel()}, "--rerank needs a caption"),
        ({"words": "x"}, "'words'.* text, image"),
    ],
)
def test_invalid_request_is_rejected(
    generator: ImageGenerator, request_options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SensoriumError, match=message):
        generator(**request_options)


def open_photos(folder: Path, n: int = 12) -> sn.Dataset:
    folder.mkdir()
    for i, photo in enumerate(photos(n)):
        PIL.Image.fromarray(photo).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"picture {i}\n")
    return sn.Dataset.open(folder, types={"image": "image:size=16"})


DALLE_OPTIONS: dict[str, Any] = {
    "dim": 32,
    "layers": 1,
    "epochs": 1,
    "batch_size": 4,
    "copies": 2,
    "precision": "fp32",
}
TOKENIZER_OPTIONS = {"dim": 32, "layers": 1, "epochs": 2, "precision": "fp32"}


def test_two_stages_are_trained_into_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    data = open_photos(tmp_path / "photos")
    out = tmp_path / "run"
    model = sn.train(dalle, data, out=out, tokenizer=TOKENIZER_OPTIONS, quiet=True, **DALLE_OPTIONS)
    first_stage = sn.load(out / "tokenizer")
    embedding = model.module.parts["image"]
    assert isinstance(embedding, ImageTokenEmbedding)
    assert not any(p.requires_grad for p in embedding.tokenizer.parameters())
    for name, value in first_stage.module.state_dict().items():
        assert embedding.tokenizer.state_dict()[name].equal(value), name
    images = pixels(model.generate(text="picture 3", n=2))
    reused = sn.train(
        dalle,
        data,
        out=tmp_path / "reused",
        tokenizer=str(out / "tokenizer"),
        quiet=True,
        **DALLE_OPTIONS,
    )
    assert pixels(reused.generate(text="picture 3", n=2)) == images
    shutil.rmtree(out / "tokenizer")
    assert pixels(sn.load(out).generate(text="picture 3", n=2)) == images
    with pytest.raises(SensoriumError, match="tokenizer"):
        sn.train(dalle, data, out=out, resume=True, quiet=True)


def test_run_interrupted_in_its_first_stage_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    data = open_photos(tmp_path / "photos")
    options = {"tokenizer": TOKENIZER_OPTIONS, "quiet": True, **DALLE_OPTIONS}
    uninterrupted = sn.train(dalle, data, out=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["sensorium.training.loop"], "handle_signals", stop_at_once)
        with pytest.raises(Interrupted, match=f"--out {tmp_path / 'run'} --resume"):
            sn.train(dalle, data, out=tmp_path / "run", **options)
    resumed = sn.train(dalle, data, out=tmp_path / "run", resume=True, **options)
    expected = pixels(uninterrupted.generate(text="picture 3"))
    assert pixels(resumed.generate(text="picture 3")) == expected


@contextmanager
def stop_at_once() -> Iterator[StopRequest]:
    """Request a stop at the first step."""
    request = StopRequest()
    request.signal_number = 2
    yield request
