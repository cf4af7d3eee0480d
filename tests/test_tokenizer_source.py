"""A frozen image tokenizer as the first stage of another model, and its cached tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import tiny_recipe
from fixtures.square_images import SMALL_TOKENIZER, square_images
from torch import Tensor, nn

from sensorium.data.cache.prepared import DataSource, PreparedDataset
from sensorium.data.cache.token_cache import (
    CACHE_FOLDER,
    FrozenImageTokenizer,
    ImageTokenColumn,
    tokenize_images,
)
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.nn.tokens import Batch, ColumnKey
from sensorium.recipes import image_tokenizer
from sensorium.recipes.image_tokenizer import load_frozen_tokenizer
from sensorium.recipes.recipe import DataSpec, Recipe
from sensorium.recipes.training_config import TrainingConfig
from sensorium.training.loop import train

TOKENS_KEY = ("image", "tokens")


@pytest.fixture(scope="module")
def tokenizer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tokenizer"
    train(
        image_tokenizer,
        square_images(),
        out=folder,
        quiet=True,
        batch_size=8,
        epochs=1,
        precision="fp32",
        vocab=64,
        **SMALL_TOKENIZER,
    )
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the batch sizes of all calls of the entokenizer."""
    from sensorium.models.image_tokenizer import ImageTokenizer

    batch_sizes: list[int] = []
    encode = ImageTokenizer.encode

    def counting_encode(self: ImageTokenizer, pixels: Tensor) -> Tensor:
        batch_sizes.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(ImageTokenizer, "encode", counting_encode)
    return batch_sizes


def test_frozen_tokenizer_reconstructs_like_its_run(tokenizer_run: Path) -> None:
    import sensorium as sn

    tokenizer, model = load_frozen_tokenizer(tokenizer_run), sn.load(tokenizer_run)
    assert not any(p.requires_grad for p in tokenizer.model.parameters())
    assert not tokenizer.model.training
    assert (tokenizer.vocab_size, tokenizer.grid_size, tokenizer.fingerprint) == (
        64,
        4,
        model.fingerprint,
    )
    raw = square_images().raw("image", [0, 1])
    ids = tokenizer.model.encode(tokenizer.image.collate([tokenizer.image.load(v) for v in raw]))
    for decoded, generated in zip(
        tokenizer.decode_images(ids), model.generate(image=raw), strict=True
    ):
        assert np.array_equal(np.asarray(decoded), np.asarray(generated))


def test_tokens_are_computed_once_per_image(
    tokenizer_run: Path, encoded: list[int], home: Path
) -> None:
    tokenizer, data = load_frozen_tokenizer(tokenizer_run), square_images()
    first = tokenize_images(tokenizer, data, "image")
    assert sum(encoded) == len(data)
    assert len(list((home / "cache" / CACHE_FOLDER).iterdir())) == 1
    cached = tokenize_images(tokenizer, data, "image")
    assert sum(encoded) == len(data)
    assert torch.equal(first.ids, cached.ids)
    pixels = PreparedDataset(
        data, Schema({"image": data.schema.columns["image"]}), ("image",)
    ).batch([3, 7])["image"]
    assert pixels.shape == (2, 3, 16, 16)
    expected = tokenizer.model.encode(
        tokenizer.image.collate([tokenizer.image.load(v) for v in data.raw("image", [3, 7])])
    )
    assert torch.equal(cached.batch(np.array([3, 7]), None, {}), expected)


def test_augmented_copies_differ_and_batches_sample_one_of_them(
    tokenizer_run: Path, encoded: list[int]
) -> None:
    tokenizer, data = load_frozen_tokenizer(tokenizer_run), square_images()
    plain = tokenize_images(tokenizer, data, "image")
    several = tokenize_images(tokenizer, data, "image", num_copies=3, augment={"flip": 0.5})
    assert torch.equal(several.ids[0], plain.ids[0])
    assert not torch.equal(several.ids[1], several.ids[2])
    rows = np.arange(len(data))
    sampled = several.batch(rows, torch.Generator().manual_seed(0), {})
    same = (sampled == several.ids.long()).all(-1).all(-1)
    assert same.any(0).all()
    assert not same[0].all()
    assert torch.equal(sampled, several.batch(rows, torch.Generator().manual_seed(0), {}))


def test_other_images_weights_or_copies_are_not_taken_from_the_cache(
    tokenizer_run: Path, encoded: list[int], home: Path
) -> None:
    tokenizer, data = load_frozen_tokenizer(tokenizer_run), square_images()
    for tokenize in (
        lambda: tokenize_images(tokenizer, data, "image"),
        lambda: tokenize_images(tokenizer, square_images(24), "image"),
        lambda: tokenize_images(
            FrozenImageTokenizer(tokenizer.model, tokenizer.image, "another"), data, "image"
        ),
        lambda: tokenize_images(tokenizer, data, "image", num_copies=2),
        lambda: tokenize_images(tokenizer, data, "image", num_copies=2, augment={"flip": 0.5}),
    ):
        tokenize()
    assert len(list((home / "cache" / CACHE_FOLDER).iterdir())) == 5


def test_damaged_cache_is_computed_again(
    tokenizer_run: Path, encoded: list[int], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, data = load_frozen_tokenizer(tokenizer_run), square_images()
    first = tokenize_images(tokenizer, data, "image")
    (path,) = (home / "cache" / CACHE_FOLDER).iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    cached = tokenize_images(tokenizer, data, "image")
    assert torch.equal(first.ids, cached.ids)
    assert sum(encoded) == 2 * len(data)
    assert "computed again" in capsys.readouterr().err


def test_missing_image_has_no_valid_tokens(tokenizer_run: Path) -> None:
    data = square_images()
    data.table.columns["image"][5] = None
    tokens = tokenize_images(load_frozen_tokenizer(tokenizer_run), data, "image")
    assert not tokens.valid[5]
    assert tokens.valid.sum() == len(data) - 1


def test_only_an_image_tokenizer_run_is_accepted(tmp_path: Path) -> None:
    train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "guess", quiet=True, epochs=1)
    with pytest.raises(
        SensoriumError, match=r"is a run of .*guess\. Name a run of image_tokenizer"
    ):
        load_frozen_tokenizer(tmp_path / "guess")
    with pytest.raises(SensoriumError, match="not a Sensorium run"):
        load_frozen_tokenizer(tmp_path / "nothing")


def test_frozen_tokenizer_builds_on_the_meta_device(tokenizer_run: Path) -> None:
    with torch.device("meta"):
        assert all(p.is_meta for p in load_frozen_tokenizer(tokenizer_run).model.parameters())


class BigramModel(nn.Module):
    """Predicts a token from the previous one, by logits [K K]."""

    def __init__(self, tokenizer: FrozenImageTokenizer):
        super().__init__()
        self.tokenizer = tokenizer.model
        self.table = nn.Embedding(tokenizer.vocab_size, tokenizer.vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


def bigram(schema: Schema, *, tokenizer_run: str) -> Recipe:
    """Return the smallest model of image tokens."""
    tokenizer = load_frozen_tokenizer(tokenizer_run)

    def objective(model: BigramModel, batch: Batch) -> dict[str, Tensor]:
        ids = batch[TOKENS_KEY].flatten(1)
        logits = model(ids[:, :-1])
        return {"model": nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())}

    def derive_columns(data: DataSource) -> dict[ColumnKey, ImageTokenColumn]:
        tokens = tokenize_images(
            tokenizer, data, "image", num_copies=2, augment={"flip": 0.5}, quiet=True
        )
        return {TOKENS_KEY: tokens}

    return Recipe(
        model=BigramModel(tokenizer),
        objective=objective,
        verbs={},
        data=DataSpec(columns=(), derived_columns=derive_columns),
        training=TrainingConfig(epochs=6, batch_size=8, lr=0.1, augment="none", precision="fp32"),
    )


def test_second_stage_trains_on_cached_tokens(
    tokenizer_run: Path, tmp_path: Path, encoded: list[int]
) -> None:
    data = square_images()
    model = train(
        bigram, data, out=tmp_path / "second", quiet=True, tokenizer_run=str(tokenizer_run)
    )
    assert sum(encoded) == 2 * len(data)  # both copies, once, and none in any step
    entries = [
        json.loads(line)
        for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert losses[-1] < losses[0]
    tokenizer = load_frozen_tokenizer(tokenizer_run)
    for name, value in tokenizer.model.state_dict().items():
        assert torch.equal(value, model.module.get_submodule("tokenizer").state_dict()[name])
