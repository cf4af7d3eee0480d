"""A finished codes run as the first stage of another: frozen, its codes computed once, then only read."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import tiny_recipe
from test_image_tokenizer import SMALL, dataset
from torch import Tensor, nn

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.cache.token_cache import FrozenImageTokenizer, ImageTokenColumn, tokenize_images
from sensorium.data.dataset import Dataset
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.nn.tokens import Batch
from sensorium.recipes import image_tokenizer
from sensorium.recipes.image_tokenizer import load_frozen_tokenizer
from sensorium.recipes.recipe import DataSpec, Recipe
from sensorium.recipes.training_config import TrainingConfig
from sensorium.training.loop import train

CODES = ("image", "codes")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "codes"
    train(
        image_tokenizer,
        dataset(),
        out=folder,
        quiet=True,
        batch_size=8,
        epochs=1,
        precision="fp32",
        vocab=64,
        **SMALL,
    )
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pictures the encoder was asked about, call by call."""
    from sensorium.models.image_tokenizer import ImageTokenizer

    calls, encode = list[int](), ImageTokenizer.encode

    def counted(self: ImageTokenizer, pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(ImageTokenizer, "encode", counted)
    yield calls


def test_a_frozen_stage_learns_no_more_and_says_what_it_said(first: Path) -> None:
    import sensorium as sn

    coder, model = load_frozen_tokenizer(first), sn.load(first)
    assert not any(p.requires_grad for p in coder.model.parameters())
    assert not coder.model.training
    assert (coder.vocab_size, coder.grid_size, coder.fingerprint) == (64, 4, model.fingerprint)
    raw = dataset().raw("image", [0, 1])
    ids = coder.model.encode(coder.image.collate([coder.image.load(v) for v in raw]))
    for ours, theirs in zip(coder.decode_images(ids), model.generate(image=raw), strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_codes_are_those_of_the_pictures_and_are_computed_once(
    first: Path, encoded: list[int], home: Path
) -> None:
    coder, data = load_frozen_tokenizer(first), dataset()
    once = tokenize_images(coder, data, "image")
    assert sum(encoded) == len(data)
    assert len(list((home / "cache" / "codes").iterdir())) == 1
    again = tokenize_images(coder, data, "image")
    assert sum(encoded) == len(data)
    assert torch.equal(once.ids, again.ids)
    pixels = PreparedDataset(
        data, Schema({"image": data.schema.columns["image"]}), ("image",)
    ).batch([3, 7])["image"]
    assert pixels.shape == (2, 3, 16, 16)
    wanted = coder.model.encode(
        coder.image.collate([coder.image.load(v) for v in data.raw("image", [3, 7])])
    )
    assert torch.equal(again.batch(np.array([3, 7]), None, {}), wanted)


def test_copies_are_changed_each_in_its_own_way(first: Path, encoded: list[int]) -> None:
    coder, data = load_frozen_tokenizer(first), dataset()
    plain, several = (
        tokenize_images(coder, data, "image"),
        tokenize_images(coder, data, "image", num_copies=3, augment={"flip": 0.5}),
    )
    assert torch.equal(several.ids[0], plain.ids[0])
    assert not torch.equal(several.ids[1], several.ids[2])
    rows = np.arange(len(data))
    drawn = several.batch(rows, torch.Generator().manual_seed(0), {})
    same = (drawn == several.ids.long()).all(-1).all(-1)
    assert same.any(0).all()
    assert not same[0].all()
    assert torch.equal(drawn, several.batch(rows, torch.Generator().manual_seed(0), {}))


def test_other_pictures_weights_or_copies_are_coded_anew(
    first: Path, encoded: list[int], home: Path
) -> None:
    coder, data = load_frozen_tokenizer(first), dataset()
    for ask in (
        lambda: tokenize_images(coder, data, "image"),
        lambda: tokenize_images(coder, dataset(24), "image"),
        lambda: tokenize_images(
            FrozenImageTokenizer(coder.model, coder.image, "another"), data, "image"
        ),
        lambda: tokenize_images(coder, data, "image", num_copies=2),
        lambda: tokenize_images(coder, data, "image", num_copies=2, augment={"flip": 0.5}),
    ):
        ask()
    assert len(list((home / "cache" / "codes").iterdir())) == 5


def test_damaged_codes_are_coded_again(
    first: Path, encoded: list[int], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coder, data = load_frozen_tokenizer(first), dataset()
    once = tokenize_images(coder, data, "image")
    (path,) = (home / "cache" / "codes").iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    again = tokenize_images(coder, data, "image")
    assert torch.equal(once.ids, again.ids)
    assert sum(encoded) == 2 * len(data)
    assert "working it out again" in capsys.readouterr().err


def test_a_picture_that_is_missing_is_not_valid(first: Path) -> None:
    data = dataset()
    data.table.columns["image"][5] = None
    found = tokenize_images(load_frozen_tokenizer(first), data, "image")
    assert not found.valid[5]
    assert found.valid.sum() == len(data) - 1


def test_only_a_codes_run_is_a_first_stage(tmp_path: Path) -> None:
    train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "guess", quiet=True, epochs=1)
    with pytest.raises(SensoriumError, match="guess.*codes"):
        load_frozen_tokenizer(tmp_path / "guess")
    with pytest.raises(SensoriumError, match="not a run"):
        load_frozen_tokenizer(tmp_path / "nothing")


def test_a_frozen_stage_stands_on_the_meta_device(first: Path) -> None:
    with torch.device("meta"):
        assert all(p.is_meta for p in load_frozen_tokenizer(first).model.parameters())


class Neighbours(nn.Module):
    """A code from the one before it: logits [K K]."""

    def __init__(self, coder: FrozenImageTokenizer):
        super().__init__()
        self.coder, self.table = coder.model, nn.Embedding(coder.vocab_size, coder.vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


def neighbours(schema: Schema, *, first: str) -> Recipe:
    """A second stage as small as can be."""
    coder = load_frozen_tokenizer(first)

    def objective(model: Neighbours, batch: Batch) -> dict[str, Tensor]:
        ids = batch[CODES].flatten(1)
        return {
            "model": nn.functional.cross_entropy(
                model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()
            )
        }

    def derived(data: Dataset) -> dict[str, ImageTokenColumn]:
        return {
            CODES: tokenize_images(
                coder, data, "image", num_copies=2, augment={"flip": 0.5}, quiet=True
            )
        }

    return Recipe(
        model=Neighbours(coder),
        objective=objective,
        verbs={},
        data=DataSpec(columns=(), derived_columns=derived),
        training=TrainingConfig(epochs=6, batch_size=8, lr=0.1, augment="none", precision="fp32"),
    )


def test_a_second_stage_trains_on_codes_without_the_encoder(
    first: Path, tmp_path: Path, encoded: list[int]
) -> None:
    data = dataset()
    model = train(neighbours, data, out=tmp_path / "second", quiet=True, first=str(first))
    assert sum(encoded) == 2 * len(data)  # both copies, once, and none in any step
    entries = [
        json.loads(line)
        for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert losses[-1] < losses[0]
    coder = load_frozen_tokenizer(first)
    for name, value in coder.model.state_dict().items():
        assert torch.equal(value, model.module.get_submodule("coder").state_dict()[name])
