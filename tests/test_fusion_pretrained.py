"""Fusion with pretrained encoders, frozen or trained: caching and resumable runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.interruption import call_at_step, crash, send_signal
from fixtures.squares import COLOURS
from fixtures.squares import clip_folder as clip_folder
from fixtures.squares import data as data

import sensorium as sn
from sensorium.data.cache.columns import TextColumn
from sensorium.data.cache.embedding_cache import EmbeddingColumn, embed_column
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.modalities.subword_bag import EMPTY_HASH, SubwordBagEmbedding
from sensorium.models.lora import FrozenEncoder, LoRA
from sensorium.models.multimodal_predictor import ColumnEncoder, MultimodalPredictor
from sensorium.pretrained.source import PretrainedSource
from sensorium.recipes import fusion
from sensorium.recipes.encoders import ProjectedEncoder, resolve_encoder
from sensorium.recipes.recipe import Recipe, build_recipe
from sensorium.training.interruption import Interrupted

SHORT = {
    "target": "colour",
    "epochs": 4,
    "batch_size": 8,
    "dim": 16,
    "layers": 1,
    "precision": "fp32",
    "quiet": True,
}


@pytest.fixture(scope="module")
def table(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return the squares with a title of every second one, and their colour."""
    names, folder = list(COLOURS), tmp_path_factory.mktemp("table")
    rows = []
    for i in range(len(data)):
        photo = data.raw("image", [i])[0]
        title = "" if i % 2 else "a square"
        colour = names[int(Path(data.location(i)).stem) % 4]
        split = "val" if i % 6 == 5 else "train"
        rows.append(f"{photo},{title},{colour},{split}")
    (folder / "table.csv").write_text("\n".join(["photo,title,colour,split", *rows]) + "\n")
    return Dataset.open(folder / "table.csv", types={"title": "text", "colour": "category"})


def build(data: Dataset, **keywords: object) -> Recipe:
    keywords = {
        "target": "colour",
        "dim": 16,
        "layers": 1,
        "dropout": 0.0,
        "modality_dropout": 0.0,
    } | keywords
    return build_recipe(
        fusion, data.schema.fit(data, np.arange(len(data)), [*data.schema.columns]), keywords
    )[0]


def test_embeddings_of_frozen_encoders_are_computed_once(
    clip_folder: Path, table: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    recipe = build(table, encoders={"photo": str(clip_folder), "title": str(clip_folder)})
    schema = table.schema.fit(
        table, np.arange(len(table)), recipe.data.columns, recipe.data.column_settings
    )
    assert recipe.data.derived_columns is not None
    derived, rows = recipe.data.derived_columns(table), np.arange(12)
    assert set(derived) == {"photo", "title"}
    assert all(isinstance(column, EmbeddingColumn) for column in derived.values())
    raw = table.prepare(schema, recipe.data.columns).batch(rows)
    cached = table.prepare(schema, recipe.data.columns, derived_columns=derived).batch(rows)
    assert cached.present["title"].equal(raw.present["title"])
    assert not cached["title"][~cached.present["title"]].any()
    model = recipe.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model(cached)["colour"], model(raw)["colour"], atol=1e-5, rtol=1e-4
        )
        title_encoder = model.get_submodule("encoders.1.encoder")
        assert title_encoder.pooled(raw["title"]).isfinite().all()  # also of missing values
    with monkeypatch.context() as patch:
        patch.setattr(FrozenEncoder, "forward", lambda *_: pytest.fail("encoded again"))
        assert all(
            column.batch(rows, None, {}).equal(cached[name])
            for name, column in recipe.data.derived_columns(table).items()
        )


def test_encoders_are_not_cached_where_tokens_or_gradients_are_needed(
    clip_folder: Path, table: Dataset
) -> None:
    frozen = {"photo": str(clip_folder)}
    assert build(table, encoders=frozen).data.derived_columns is not None
    for keywords in (
        {"encoders": {}},
        {"encoders": frozen, "encoder_train": {"photo": "lora"}},
        {"encoders": frozen} | {"fusion": "sequence"},
        {"encoders": frozen, "projection": "multiscale"},
    ):
        assert build(table, **keywords).data.derived_columns is None


@pytest.mark.parametrize("titles", ['["a sun", "a star"]', "null"])
def test_several_or_missing_captions_are_not_embedded(titles: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"title": {titles}, "kind": "x"}}\n' * 3)
    data = Dataset.open(tmp_path / "rows.jsonl", types={"title": "text", "kind": "category"})
    schema = data.schema.fit(data, np.arange(3), ["title", "kind"])
    column = embed_column(
        lambda raw: pytest.fail("embedded"), "", data, "title", schema, quiet=True
    )
    assert isinstance(column, TextColumn)


@pytest.mark.parametrize("train", ["none", "lora", "all"])
def test_encoder_train_selects_trained_weights_and_run_loads_alone(
    clip_folder: Path, table: Dataset, tmp_path: Path, train: str
) -> None:
    encoder_train = () if train == "none" else (f"photo={train}",)
    model = sn.train(
        fusion,
        table,
        out=tmp_path / "run",
        encoders=f"photo={clip_folder}",
        encoder_train=encoder_train,
        **SHORT,
    )
    assert isinstance(model.module, MultimodalPredictor)
    column_encoder = model.module.encoders[0]
    assert isinstance(column_encoder, ColumnEncoder)
    assert isinstance(column_encoder.encoder, ProjectedEncoder)
    assert isinstance(column_encoder.encoder.inner, FrozenEncoder) == (train == "none")
    assert any(isinstance(part, LoRA) for part in column_encoder.encoder.modules()) == (
        train == "lora"
    )
    source = resolve_encoder("image", str(clip_folder))
    assert isinstance(source, PretrainedSource)
    before = source.build_encoder("image")[0].state_dict()
    after = {
        name.replace("parametrizations.", "").replace(".original", ""): value
        for name, value in column_encoder.encoder.inner.state_dict().items()
    }
    assert all(value.equal(after[name]) for name, value in before.items()) == (train != "all")
    assert model.config.keywords["encoder_train"] == list(encoder_train)
    photos = [table.raw("photo", [i])[0] for i in range(6)]
    probabilities = model.predict(photo=photos)["colour"].probability
    hidden = clip_folder.rename(clip_folder.with_name("hidden"))
    try:
        np.testing.assert_array_equal(
            sn.load(tmp_path / "run").predict(photo=photos)["colour"].probability, probabilities
        )
    finally:
        hidden.rename(clip_folder)


def test_invalid_encoder_train_is_reported(
    clip_folder: Path, table: Dataset, tmp_path: Path
) -> None:
    for train in (
        "photo=loar",
        "title=lora",
        "photo",
    ):  # no such mode, no pretrained weights, no mode
        with pytest.raises(SensoriumError, match=f"--encoder-train {train}"):
            sn.train(
                fusion,
                table,
                out=tmp_path / "run",
                encoders=f"photo={clip_folder}",
                encoder_train=(train,),
                **SHORT,
            )


@pytest.mark.parametrize("saved", [True, False])
def test_resumed_run_equals_an_uninterrupted_one(
    saved: bool, clip_folder: Path, table: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fitted subwords and the pretrained weights are those of the first start."""
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    keywords = {
        **SHORT,
        "encoders": f"photo={clip_folder}",
        "columns": ("photo", "title"),
        "seed": 1,
    }
    whole = sn.train(fusion, table, out=tmp_path / "whole", **keywords)
    call_at_step(monkeypatch, 6 if saved else 1, send_signal() if saved else crash)
    with pytest.raises(Interrupted if saved else KeyboardInterrupt):
        sn.train(fusion, table, out=tmp_path / "cut", **keywords)
    resumed = sn.train(
        fusion,
        table,
        out=tmp_path / "cut",
        resume=True,
        quiet=True,
        encoders=(f"photo={clip_folder}",),
    )
    assert resumed.fingerprint == whole.fingerprint
    with pytest.raises(SensoriumError, match="was trained with --encoders"):
        sn.train(
            fusion, table, out=tmp_path / "cut", resume=True, quiet=True, encoders="photo=resnet"
        )
    assert any(
        part.get_buffer("ngram_hashes").min() < EMPTY_HASH
        for part in whole.module.modules()
        if isinstance(part, SubwordBagEmbedding)
    )
