"""Any column name works: it changes no number and breaks no command."""

import csv
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.in_memory import InMemoryDataset
from fixtures.shape_checks import unchecked_shapes as unchecked_shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from sensorium.cli import app
from sensorium.cli.predict_file import name_headings, predict_file
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.data.loader import BatchLoader
from sensorium.data.schema import Column, Schema, split_pair
from sensorium.data.table_files import columns_from_records, read_table
from sensorium.data.tables import Table
from sensorium.data.type_inference import infer_schema
from sensorium.errors import SensoriumError
from sensorium.export.export import ExportFormat, export_model
from sensorium.export.graph import file_name
from sensorium.io.run_config import RunConfig
from sensorium.io.tensors import state_tensors
from sensorium.loading import load as load_run
from sensorium.modalities.image import Image
from sensorium.modalities.subword_bag import SubwordBagEmbedding
from sensorium.modalities.tabular import Category, Numeric
from sensorium.modalities.text import Text
from sensorium.models.towers import Towers, module_name
from sensorium.nn.tokens import Batch, ColumnKey, column_names
from sensorium.recipes import RECIPES
from sensorium.recipes.recipe import build_recipe
from sensorium.training.checkpoint import Model
from sensorium.training.loop import train

AWKWARD = (
    "row",
    "group",
    "split",
    "x",
    "x.valid",
    "x.vector",
    "x.spread",
    "x low",
    "x low (bound)",
    "x probability",
    "colour",
    "colour.valid",
    "Size, cm",
    "a,b",
    "a",
    "b",
    'say "so"',
    "it's",
    "keys",
    "pop",
    "type",
    "training",
    "log_scale",
    "bias",
    "forward",
    "vector",
    "valid",
    "text",
    "image",
    "target",
    "a=b",
    "=",
    "%",
    "%2E",
    "..",
    "a/b",
    "a\\b",
    "Größe",
    "日本",
    "é" * 200,
    "n" * 200,
    "two\nlines",
    "tab\there",
    "`code`",
    "|",
    "[bold]x",
)
NAMES = st.sampled_from(AWKWARD) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8
)
few = settings(max_examples=25, deadline=None, derandomize=True)
fewer = settings(max_examples=3, deadline=None, derandomize=True)


def distinct(n: int) -> st.SearchStrategy[list[str]]:
    return st.lists(NAMES, min_size=n, max_size=n, unique=True)


# Where names enter ------------------------------------------------------------


@few
@given(
    st.lists(
        NAMES | st.text(min_size=1, max_size=4) | st.sampled_from(["\ud800", "a\udfffb"]),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_record_keys_lose_lone_surrogates_alone(names: list[str]) -> None:
    wanted = ["".join("\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in name) for name in names]
    if len(set(wanted)) < len(wanted):
        with pytest.raises(SensoriumError, match="occurs twice"):
            columns_from_records([dict.fromkeys(names, 1)])
    else:
        assert list(columns_from_records([dict.fromkeys(names, 1)])) == wanted


def test_lone_surrogate_in_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a\\ud800": 1}\n')
    assert list(read_table(tmp_path / "t.jsonl").columns) == ["a\ufffd"]


@few
@given(distinct(4))
def test_schema_round_trip(names: list[str]) -> None:
    kinds = dict(zip(names, ("numeric", "category", "text", "group"), strict=True))
    table = Table({name: ["1", "2", "3"] for name in names}, ["1", "2", "3"])
    schema = infer_schema(table, kinds)
    with TemporaryDirectory() as folder:
        schema.save(folder)
        assert Schema.load(folder) == schema


@few
@given(distinct(3), NAMES)
def test_split_pair_prefers_known_names(names: list[str], value: str) -> None:
    for name in names:
        column, rest = split_pair(f"{name}={value}", names)
        assert f"{column}={rest}" == f"{name}={value}"
        assert column in names
        assert len(column) >= len(name)


# Batches ----------------------------------------------------------------------


@few
@given(distinct(5))
def test_batch_has_the_values_of_each_column(names: list[str]) -> None:
    values = {
        name: [i + 10.0 * k if (i + k) % 3 else None for i in range(7)]
        for k, name in enumerate(names)
    }
    schema = Schema({name: Column(name, Numeric()) for name in names})
    prepared = PreparedDataset(
        InMemoryDataset(values, [0, 0, 1, 1, 2, 2, 3]), schema, names, quiet=True
    )
    for batch in (
        prepared.batch([3, 1, 6]),
        BatchLoader(prepared, range(7), 3, seed=1).batch(0, 0),
    ):
        assert len(batch) == 3
        assert batch.row is not None
        assert batch.group is not None
        rows = batch.row.tolist()
        assert batch.group.tolist() == [row // 2 for row in rows]
        for name in names:
            wanted = [values[name][row] for row in rows]
            assert batch.presence(name).tolist() == [value is not None for value in wanted]
            assert batch[name].tolist() == [value or 0.0 for value in wanted]


@few
@given(distinct(4), st.integers(1, 9))
def test_split_and_concat_restore_the_batch(names: list[str], parts: int) -> None:
    flags: dict[ColumnKey, torch.Tensor] = {names[0]: torch.arange(7) % 2 > 0}
    whole = Batch(
        {name: torch.randn(7, 2) for name in names}, flags, torch.arange(7), torch.arange(7) // 2
    )
    pieces = whole.split(parts)
    sizes = [len(piece) for piece in pieces]
    assert len(pieces) == min(parts, 7)
    assert max(sizes) - min(sizes) <= 1
    assert sorted(sizes, reverse=True) == sizes
    again = Batch.concat(pieces)
    assert again.row is not None
    assert again.group is not None
    assert again.row.equal(torch.arange(7))
    assert again.group.equal(torch.arange(7) // 2)
    assert again.presence(names[0]).equal(flags[names[0]])
    assert all(again[name].equal(whole[name]) for name in names)
    assert again.present.keys() == flags.keys()
    assert list(whole.select(names[1:]).columns) == names[1:]
    assert not whole.select(names[1:]).present
    assert not whole.presence("no such column").any()


def test_joined_columns_differ_from_a_name_with_a_comma() -> None:
    text = Text(length=8, vocab_size=300).fit(["one", "two", "three"] * 3)
    schema = Schema({name: Column(name, text) for name in ("a", "b", "a,b")})
    rows = InMemoryDataset({"a": ["one", None], "b": ["two", "two"], "a,b": ["three", None]})
    batch = PreparedDataset(rows, schema, [("a", "b"), "a,b"], quiet=True).batch([0, 1])
    assert text.decode(batch["a", "b"][0]) == "one"
    assert text.decode(batch["a,b"][0]) == "three"
    assert "a,b" in batch.present
    assert ("a", "b") not in batch.present
    assert schema.resolve_text_columns(["a", "b"]) == ("a", "b")
    assert schema.resolve_text_columns("a,b") == schema.resolve_text_columns(["a,b"]) == "a,b"
    with pytest.raises(SensoriumError, match=r"no column 'a, b'.*one by one"):
        schema.resolve_text_columns("a, b")


# Models -----------------------------------------------------------------------


KINDS: dict[str, Any] = {
    "words": Text(length=8, vocab_size=300),
    "n": Numeric(count=9),
    "kind": Category(("p", "q"), (5, 4)),
    "more": Text(length=8, vocab_size=300),
    "y": Numeric(5.0, 2.0, (3.0, 5.0, 7.0), 9),
    "z": Category(("u", "v"), (4, 5)),
}


def model_outputs(names: list[str], fusion: str) -> list[torch.Tensor]:
    """Return loss, predictions and initial weights of a model whose columns have these names."""
    rng = torch.Generator().manual_seed(1)
    renamed = dict(zip(KINDS, names, strict=True))
    schema = Schema({renamed[of]: Column(renamed[of], kind) for of, kind in KINDS.items()})
    torch.manual_seed(0)
    keywords = {"target": (renamed["y"], renamed["z"]), "fusion": fusion, "dim": 16, "layers": 1}
    recipe, _ = build_recipe(RECIPES["fusion"], schema, keywords)
    batch = Batch(
        {renamed[of]: kind.fake(5, rng) for of, kind in KINDS.items()},
        {renamed["n"]: torch.tensor([True, False, True, True, False])},
        torch.arange(5),
        torch.arange(5),
    )
    for part in recipe.model.modules():
        if isinstance(part, SubwordBagEmbedding):
            part.fit_on_data([batch[renamed["words"]], batch[renamed["more"]]])
    loss = recipe.objective(recipe.model, batch)["model"]
    with torch.no_grad():
        logits = recipe.model.eval()(batch)
    return [
        loss.detach(),
        logits[renamed["y"]],
        logits[renamed["z"]],
        *state_tensors(recipe.model).values(),
    ]


@settings(max_examples=6, deadline=None, derandomize=True)
@given(distinct(6), st.sampled_from(["concat", "attention", "bottleneck"]))
def test_model_outputs_do_not_depend_on_names(names: list[str], fusion: str) -> None:
    expected = model_outputs(list(KINDS), fusion)
    for output, wanted in zip(model_outputs(names, fusion), expected, strict=True):
        assert torch.equal(output, wanted)


def test_text_column_named_row() -> None:
    for output, wanted in zip(
        model_outputs(["row", "n", "k", "m", "y", "z"], "concat"),
        model_outputs(list(KINDS), "concat"),
        strict=True,
    ):
        assert torch.equal(output, wanted)


@few
@given(distinct(3))
def test_towers_and_files_get_valid_distinct_names(names: list[str]) -> None:
    image, *texts = names
    keys = [image, texts[0], texts[1], (texts[0], texts[1]), ",".join(texts)]
    modules = {module_name(key) for key in keys}
    assert len(modules) == len(set(keys))
    assert all(name and "." not in name for name in modules)
    assert len({file_name(key) for key in keys}) == len(set(keys))
    assert all(len(file_name(key).encode()) < 250 and "/" not in file_name(key) for key in keys)
    schema = Schema(
        {image: Column(image, Image(size=16)), **{t: Column(t, KINDS["words"]) for t in texts}}
    )
    torch.manual_seed(0)
    small = {
        "image": image,
        "text": texts,
        "dim": 8,
        "image_layers": 1,
        "text_layers": 1,
        "embed_dim": 8,
    }
    model = build_recipe(RECIPES["clip"], schema, small)[0].model
    assert isinstance(model, Towers)
    assert [column_names(key) for key in model.columns] == [(image,), tuple(texts)]
    saved = save({name: value.contiguous() for name, value in model.state_dict().items()})
    model.load_state_dict(load(saved))
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert len(list(model.children())) == 2


# A run and its predictions ----------------------------------------------------


def write_table(path: Path, names: list[str], n: int = 36) -> dict[str, str]:
    """Write two features and two targets with these names; return the type of each."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            size, kind = rng.normal(), "pq"[i % 2]
            row = [
                round(size, 3) if i % 5 else None,
                kind,
                round(2 * size + (kind == "p"), 3),
                "uv"[size > 0],
            ]
            file.write(
                json.dumps(
                    {**dict(zip(names, row, strict=True)), " part ": ("train", "val")[i % 6 == 5]}
                )
                + "\n"
            )
    return dict(
        zip(
            [*names, " part "], ("numeric", "category", "numeric", "category", "split"), strict=True
        )
    )


def train_and_predict(names: list[str]) -> tuple[list[Any], list[list[str]]]:
    """Train on columns with these names; return predictions and the cells of a CSV file of them."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        data = Dataset.open(folder / "t.jsonl", types=write_table(folder / "t.jsonl", names))
        train(
            RECIPES["fusion"],
            data,
            out=folder / "run",
            target=names[2:],
            columns=names[:2],
            dim=8,
            layers=1,
            epochs=1,
            batch_size=10,
            quiet=True,
            precision="fp32",
        )
        model = load_run(folder / "run")
        rows = [{name: data.raw(name, [i])[0] for name in names[:2]} for i in range(6)]
        predictions = [model.predict(rows)[name] for name in names[2:]]
        assert (
            predict_file(model, data, folder / "out.jsonl")
            == predict_file(model, data, folder / "out.csv")
            == 36
        )
        lines = [
            json.loads(line)
            for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        with (folder / "out.csv").open(newline="", encoding="utf-8") as file:
            cells = list(csv.reader(file))
        assert list(lines[0]) == cells[0]
        assert len({*cells[0]}) == 8
        assert all(line[name] is not None for line in lines for name in names[2:])
        price, label = predictions
        return [price.value, label.value, label.probability.tolist()], cells


@fewer
@given(distinct(4).filter(lambda names: " part " not in names))
def test_run_and_predictions_do_not_depend_on_names(names: list[str]) -> None:
    predictions, cells = train_and_predict(names)
    expected, expected_cells = train_and_predict(["size", "kind", "price", "label"])
    assert predictions == expected
    assert cells[1:] == expected_cells[1:]
    assert {*names[2:]} <= {*cells[0]}


def test_bounds_and_targets_have_distinct_headings(tmp_path: Path) -> None:
    names = name_headings({"temp": Numeric(), "temp low": Numeric(), "row": Category(("a", "b"))})
    assert names["temp", "low"] == "temp low (bound)"
    assert names["temp low", ""] == "temp low"
    assert names["", "row"] == "row (name)"
    assert len({*names.values()}) == len(names)
    cells = train_and_predict(["size", "kind", "temp low", "temp"])[1]
    assert cells[0] == [
        "row",
        "temp low",
        "temp low low",
        "temp low high",
        "temp low std",
        "temp",
        "temp probability",
        "unreadable",
    ]
    kinds = write_table(tmp_path / "t.jsonl", ["temp", "kind", "temp low", "label"])
    data = Dataset.open(tmp_path / "t.jsonl", types=kinds)
    model = train(
        RECIPES["fusion"],
        data,
        out=tmp_path / "run",
        target=["temp", "temp low"],
        dim=8,
        layers=1,
        epochs=1,
        batch_size=10,
        quiet=True,
        precision="fp32",
    )
    predict_file(model, data, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    predictions = model.predict(
        [{"kind": data.raw("kind", [i])[0], "label": data.raw("label", [i])[0]} for i in range(3)]
    )
    assert [float(row["temp low"]) for row in rows[:3]] == pytest.approx(
        predictions["temp low"].value
    )
    assert "temp low (bound)" in rows[0]


def write_numbers(path: Path, *names: str) -> Path:
    """Write a CSV file of features with these names and a price that depends on them."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*names, "price"])
        for i in range(40):
            rows.writerow(
                [f"{(i * 7) % 11 + 0.5}" if (i + k) % 9 else "" for k in range(len(names))]
                + [i % 11 + 0.25]
            )
    return path


SMALL = ("--dim", "8", "--layers", "1", "--epochs", "1", "--precision", "fp32")


@pytest.mark.parametrize(
    "names", [("row", "group"), ("colour", "colour.valid"), ("Size, cm", "a=b")]
)
def test_commands_accept_any_column_name(
    names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = write_numbers(tmp_path / "t.csv", *names), str(tmp_path / "run")
    kinds = [part for name in names for part in ("--type", f"{name}=numeric")]
    command = ["train", "fusion", str(path), "--target", "price", *kinds, *SMALL, "--out", run]
    assert app.run([*command, "--columns", names[0], "--columns", names[1]]) == 0, (
        capsys.readouterr().err
    )
    keywords = json.loads((tmp_path / "run" / "config.json").read_text())["keywords"]
    assert keywords["columns"] == [*names]
    assert keywords["target"] == "price"
    config = load_run(run).config
    assert isinstance(config, RunConfig)
    assert config.keywords["columns"] == names
    assert app.run([*command, "--resume", "--columns", names[0], "--columns", names[1]]) == 0
    assert app.run(["predict", run, str(path), "-o", str(tmp_path / "out.csv")]) == 0
    assert app.run(["evaluate", run]) == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        prices = [float(row["price"]) for row in csv.DictReader(file)]
    plain = write_numbers(tmp_path / "plain.csv", "one", "two")
    model = train(
        RECIPES["fusion"],
        Dataset.open(plain, types={"one": "numeric", "two": "numeric"}),
        target="price",
        dim=8,
        layers=1,
        epochs=1,
        precision="fp32",
        out=tmp_path / "plain",
        quiet=True,
    )
    rows = list(csv.DictReader(plain.read_text().splitlines()))
    expected = model.predict(
        [{name: float(row[name]) if row[name] else None for name in ("one", "two")} for row in rows]
    )
    assert prices == pytest.approx(expected["price"].value)


def test_encoder_option_accepts_any_column_name() -> None:
    schema = Schema(
        {name: Column(name, KINDS["words"]) for name in ("a=b", "a, b")}
        | {"y": Column("y", KINDS["y"])}
    )
    for encoders in (["a=b=gru", "a, b=bag"], {"a=b": "gru", "a, b": "bag"}):
        model = build_recipe(
            RECIPES["fusion"], schema, {"target": "y", "dim": 8, "layers": 1, "encoders": encoders}
        )[0].model
        kinds = {type(part).__name__ for encoder in model.encoders for part in encoder.modules()}
        assert "Recurrent" in kinds, kinds
    with pytest.raises(SensoriumError, match="There is no column 'a'"):
        build_recipe(RECIPES["fusion"], schema, {"target": "y", "encoders": "a=gru"})


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("names", "descriptions"),
    [
        (
            ("colour", "colour.valid", "y.std"),
            {"colour.valid_": 'whether "colour"', "y.std_": 'the standard deviation of "y"'},
        ),
        (
            ("two\nlines", 'say "so"', "view"),
            {"two_lines": 'the column "two\\nlines"', "say _so_": "the column"},
        ),
    ],
)
@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_graph_inputs_have_a_name_for_every_column(
    names: tuple[str, ...], descriptions: dict[str, str], format: ExportFormat, tmp_path: Path
) -> None:
    """A name that a graph cannot have is replaced, and the model card says so."""
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    schema = Schema(
        {name: Column(name, KINDS["n"]) for name in names} | {"y": Column("y", KINDS["y"])}
    )
    torch.manual_seed(0)
    recipe, keywords = build_recipe(
        RECIPES["fusion"], schema, {"target": "y", "dim": 8, "layers": 1}
    )
    model = Model(recipe, schema, RunConfig("fusion", keywords, "fp32", {}), "", tmp_path / "run")
    assert export_model(model, format, tmp_path / "out")["predict"] < 1e-5
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}` is {what}" in card for name, what in descriptions.items()), card


def test_column_names_are_not_parsed_as_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sensorium.data.cache.image_cache.PROGRESS_DELAY_SECONDS", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    names = ["{x}", "[/b] a | b"]
    images = [np.full((8, 8, 3), i, np.uint8) for i in range(3)]
    schema = Schema({name: Column(name, Image(size=8)) for name in names})
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    batch = PreparedDataset(InMemoryDataset(dict.fromkeys(names, images)), schema, names).batch([2])
    assert all(batch[name].shape == (1, 3, 8, 8) for name in names)
    path = write_numbers(tmp_path / "t.csv", "[/b] a", "b | c")
    assert app.run(["summary", "fusion", "--data", str(path), "--target", "price"]) == 0
    assert app.run(["data", str(path)]) == 0
    assert "[/b] a" in capsys.readouterr().out
