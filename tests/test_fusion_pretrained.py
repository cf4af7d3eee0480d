"""Fusion on published encoders: a frozen one reads each value once, one that learns each time; a run stands alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.squares import COLOURS
from fixtures.squares import data as data
from fixtures.squares import published as published
from test_resume import ask, at_step, killed

import sensorium as sn
from sensorium.data.cache.embedding_cache import EmbeddingColumn, embed_column
from sensorium.data.cache.prepared import TextColumn
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.modalities.subword_bag import EMPTY_HASH, SubwordBagEmbedding
from sensorium.models.lora import FrozenEncoder, LoRA
from sensorium.models.multimodal_predictor import ColumnEncoder, MultimodalPredictor
from sensorium.recipes import fusion
from sensorium.recipes.encoders import ProjectedEncoder, resolve_encoder
from sensorium.recipes.recipe import Recipe, build_recipe
from sensorium.training.loop import Interrupted

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
    """The squares, what is said of every second, and their colour."""
    names, folder = list(COLOURS), tmp_path_factory.mktemp("table")
    rows = [
        f"{data.raw('image', [i])[0]},{'' if i % 2 else 'a square'},{names[int(Path(data.location(i)).stem) % 4]},"
        f"{'val' if i % 6 == 5 else 'train'}"
        for i in range(len(data))
    ]
    (folder / "table.csv").write_text("\n".join(["photo,title,colour,split", *rows]) + "\n")
    return Dataset.open(folder / "table.csv", types={"title": "text", "colour": "category"})


def made(data: Dataset, **keywords: object) -> Recipe:
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


def test_what_frozen_encoders_say_is_worked_out_once_and_is_right(
    published: Path, table: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    recipe = made(table, encoders={"photo": str(published), "title": str(published)})
    schema = table.schema.fit(
        table, np.arange(len(table)), recipe.data.columns, recipe.data.column_settings
    )
    assert recipe.data.derived_columns is not None
    derived, rows = recipe.data.derived_columns(table), np.arange(12)
    assert set(derived) == {"photo", "title"}
    assert all(isinstance(column, EmbeddingColumn) for column in derived.values())
    raw = table.prepare(schema, recipe.data.columns).batch(rows)
    read = table.prepare(schema, recipe.data.columns, derived_columns=derived).batch(rows)
    assert read.present["title"].equal(raw.present["title"])
    assert not read["title"][~read.present["title"]].any()
    model = recipe.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model(read)["colour"], model(raw)["colour"], atol=1e-5, rtol=1e-4
        )
        model.senses[1].encode.whole(raw["title"])  # nor does it hurt to be asked for nothing
    with monkeypatch.context() as blind:
        blind.setattr(FrozenEncoder, "forward", lambda *_: pytest.fail("it read again"))
        assert all(
            again.batch(rows, None, {}).equal(read[name])
            for name, again in recipe.data.derived_columns(table).items()
        )


def test_what_must_be_read_each_time_is(published: Path, table: Dataset) -> None:
    frozen = {"photo": str(published)}
    assert made(table, encoders=frozen).data.derived_columns is not None
    for keywords in (
        {"encoders": {}},
        {"encoders": frozen, "encoder_train": {"photo": "lora"}},
        {"encoders": frozen} | {"fusion": "sequence"},
        {"encoders": frozen, "projection": "multiscale"},
    ):
        assert made(table, **keywords).data.derived_columns is None


@pytest.mark.parametrize("titles", ['["a sun", "a star"]', "null"])
def test_of_several_captions_none_is_read_for_all_and_of_nothing_nothing(
    titles: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"title": {titles}, "kind": "x"}}\n' * 3)
    data = Dataset.open(tmp_path / "rows.jsonl", types={"title": "text", "kind": "category"})
    schema = data.schema.fit(data, np.arange(3), ["title", "kind"])
    found = embed_column(
        lambda raw: pytest.fail("it was read"), "", data, "title", schema, quiet=True
    )
    assert isinstance(found, TextColumn)


@pytest.mark.parametrize("tune", ["none", "lora", "all"])
def test_a_run_learns_as_much_of_them_as_was_asked_and_stands_alone(
    published: Path, table: Dataset, tmp_path: Path, tune: str
) -> None:
    train = () if tune == "none" else (f"photo={tune}",)
    model = sn.train(
        fusion,
        table,
        out=tmp_path / "run",
        encoders=f"photo={published}",
        encoder_train=train,
        **SHORT,
    )
    assert isinstance(model.module, MultimodalPredictor)
    assert isinstance(sense := model.module.encoders[0], ColumnEncoder)
    assert isinstance(sense.encoder, ProjectedEncoder)
    assert isinstance(sense.encoder.inner, FrozenEncoder) == (tune == "none")
    assert any(isinstance(part, LoRA) for part in sense.encoder.modules()) == (tune == "lora")
    start = resolve_encoder("image", str(published))
    before = start.build_encoder("image")[0].state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    after = {
        name.replace("parametrizations.", "").replace(".original", ""): value
        for name, value in sense.encoder.inner.state_dict().items()
    }
    assert all(value.equal(after[name]) for name, value in before.items()) == (tune != "all")
    assert model.config.keywords["encoder_train"] == list(train)
    photos = [table.raw("photo", [i])[0] for i in range(6)]
    said = model.predict(photo=photos)["colour"].probability
    hidden = published.rename(published.with_name("hidden"))
    try:
        np.testing.assert_array_equal(
            sn.load(tmp_path / "run").predict(photo=photos)["colour"].probability, said
        )
    finally:
        hidden.rename(published)


def test_what_learns_is_lora_or_all(published: Path, table: Dataset, tmp_path: Path) -> None:
    for train in (
        "photo=loar",
        "title=lora",
        "photo",
    ):  # no such mode, no pretrained weights, no mode
        with pytest.raises(SensoriumError, match=f"encoder_train: {train}"):
            sn.train(
                fusion,
                table,
                out=tmp_path / "run",
                encoders=f"photo={published}",
                encoder_train=(train,),
                **SHORT,
            )


@pytest.mark.parametrize("saved", [True, False])
def test_a_resumed_run_ends_as_one_never_stopped(
    saved: bool, published: Path, table: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it took from training texts, and what it starts from, are those it was begun with."""
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    keywords = {**SHORT, "encoders": f"photo={published}", "columns": ("photo", "title"), "seed": 1}
    whole = sn.train(fusion, table, out=tmp_path / "whole", **keywords)
    at_step(monkeypatch, 6 if saved else 1, ask() if saved else killed)
    with pytest.raises(Interrupted if saved else KeyboardInterrupt):
        sn.train(fusion, table, out=tmp_path / "cut", **keywords)
    assert (
        sn.train(fusion, table, out=tmp_path / "cut", resume=True, quiet=True).fingerprint
        == whole.fingerprint
    )
    assert any(
        part.known.min() < EMPTY_HASH
        for part in whole.module.modules()
        if isinstance(part, SubwordBagEmbedding)
    )
