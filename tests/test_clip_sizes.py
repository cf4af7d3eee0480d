"""Tests of the sizes of clip: which one is chosen, what is said about it, and what a run stores."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.colored_squares import TINY_CLIP, colored_squares

import sensorium as sn
from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.models.towers import Towers
from sensorium.nn.resnet import ResNet
from sensorium.recipes import clip
from sensorium.recipes.clip import TextEncoderWithSubwords
from sensorium.recipes.recipe import InvalidKeywordError, Recipe, build_recipe, dry_build


def own_clip(schema: Schema, *, width: int = 32) -> Recipe[Towers]:
    """Return a recipe that calls `clip`, whose keywords it does not take."""
    return clip(schema, dim=width, text_layers=1, embed_dim=8)


def schema_of(num_rows: int | None, image_size: int = 64) -> Schema:
    columns = {
        "photo": Column("photo", Image(size=image_size)),
        "caption": Column("caption", Text(length=8, vocab_size=300)),
    }
    return Schema(columns, num_rows=num_rows)


def size_of(recipe: Recipe[Towers]) -> str:
    """Return the size by what the model is made of."""
    has_resnet = isinstance(recipe.model["photo"].encoder.embed, ResNet)
    has_subwords = isinstance(recipe.model["caption"].encoder, TextEncoderWithSubwords)
    assert has_resnet == has_subwords == (recipe.training.optimizer == "muon")
    return "small" if has_resnet else "base"


@pytest.mark.parametrize(
    ("num_rows", "image_size", "expected"),
    [
        (3, 64, "small"),
        (655, 224, "small"),
        (49_999, 64, "small"),
        (50_000, 64, "base"),
        (50_000, 32, "small"),
        (2_000_000, 224, "base"),
        (None, 64, "base"),
    ],
)
def test_size_follows_from_rows_and_pixels(
    num_rows: int | None, image_size: int, expected: str
) -> None:
    schema = schema_of(num_rows, image_size)
    assert size_of(dry_build(clip, schema, {})) == expected
    for size in ("small", "base"):
        assert size_of(dry_build(clip, schema, {"size": size})) == size


def test_single_options_override_the_size() -> None:
    recipe, keywords = build_recipe(clip, schema_of(700), {"dim": 64, "patch_size": 16})
    assert keywords["size"] == "small"
    assert keywords["image_encoder"] == "vit"
    assert (keywords["dim"], keywords["text_layers"], keywords["embed_dim"]) == (64, 2, 192)
    assert not isinstance(recipe.model["photo"].encoder.embed, ResNet)
    with pytest.raises(InvalidKeywordError, match="the image encoder is resnet"):
        build_recipe(clip, schema_of(700), {"image_encoder": "resnet", "patch_size": 16})


@pytest.mark.parametrize("size", ["small", "base"])
def test_number_of_captions_applies_to_each_augmentation(size: str) -> None:
    augment = dry_build(clip, schema_of(700), {"size": size, "captions_per_row": 4}).data.augment
    assert {strength: options["caption"] for strength, options in augment.items()} == {
        "light": {"captions": 4.0},
        "strong": {"captions": 4.0},
    }
    default = dry_build(clip, schema_of(700), {"size": size}).data.augment
    assert default["light"]["caption"] == {}
    assert default["strong"]["caption"] == ({"captions": 3.0} if size == "small" else {})


def test_run_keeps_the_size_that_was_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither loading nor resuming chooses again, whatever the number of rows."""
    run = tmp_path / "run"
    settings: dict[str, Any] = {**TINY_CLIP, "epochs": 1, "embed_dim": 8}
    model = sn.train(clip, colored_squares(), out=run, **settings)
    err = capsys.readouterr().err
    assert err.startswith("clip --size small (ResNet, ")
    assert "chosen for 32 training rows of 16 pixels; to override: --size base" in err
    assert model.config.keywords["size"] == "small"
    schema = json.loads((run / "schema.json").read_text())
    assert schema["num_rows"] == 32
    schema["num_rows"] = 1_000_000
    (run / "schema.json").write_text(json.dumps(schema))
    text = ["a red square"]
    assert (sn.load(run).embed(text=text) == model.embed(text=text)).all()
    sn.train(clip, colored_squares(), out=run, resume=True, quiet=True, size="auto", **settings)
    with pytest.raises(SensoriumError, match="was trained with --size 'small', not 'base'"):
        sn.train(clip, colored_squares(), out=run, resume=True, quiet=True, size="base", **settings)


def test_schema_without_a_number_of_rows_is_read(tmp_path: Path) -> None:
    schema = schema_of(None)
    replace(schema, num_rows=7).save(tmp_path)
    assert Schema.load(tmp_path).num_rows == 7
    stored = json.loads((tmp_path / "schema.json").read_text())
    del stored["num_rows"]
    (tmp_path / "schema.json").write_text(json.dumps(stored))
    assert Schema.load(tmp_path).num_rows is None


def test_recipe_that_calls_clip_is_loaded_again(tmp_path: Path) -> None:
    """What clip stores of its own keywords is not given to a recipe that does not take them."""
    model = sn.train(own_clip, colored_squares(), out=tmp_path / "run", epochs=1, quiet=True)
    again = sn.load(tmp_path / "run", recipe_fn=own_clip)
    assert "size" not in model.config.keywords
    assert (again.embed(text=["red"]) == model.embed(text=["red"])).all()
