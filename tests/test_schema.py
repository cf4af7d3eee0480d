"""Type inference, schemas, and the settings of numbers, classes, dates and tags."""

import datetime
import json
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sensorium.data.cell_parsing import parse_number
from sensorium.data.dataset import Dataset
from sensorium.data.schema import Column, Role, Schema
from sensorium.data.tables import Table
from sensorium.data.type_inference import infer_schema
from sensorium.errors import SensoriumError
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.modalities.text import Text


def infer_column(name: str, values: list[Any]) -> tuple[str, str]:
    schema = infer_schema(Table({name: values}, [str(i) for i in range(len(values))]), {})
    column = schema.columns[name] if name in schema.columns else schema.roles[name]
    return column.kind, column.reason


@pytest.mark.parametrize(
    ("name", "values", "kind", "reason"),
    [
        ("price", ["1.5", "2", "n/a", "-3e2"], "numeric", "4 of 4 values are numbers, -300 to 2"),
        ("price", [1, 2.5, None], "numeric", "2 of 2 values"),
        ("zip", ["01234", "04109", "10115"], "text", "3 different values"),
        ("id", ["1", "2", "3"], "ignore", "only numbers the rows"),
        ("order_id", ["a1", "b2", "c3"], "ignore", "only names the rows"),
        ("label", ["1", "2", "1"], "category", "2 different whole numbers"),
        ("label", ["cat", "dog"], "category", "named 'label'"),
        ("colour", ["red", "blue"] * 20, "category", "2 different values among 40"),
        ("colour", ["red"] * 5, "ignore", "the same text in all of 5"),
        ("flag", [True, False], "category", "true or false"),
        ("words", ["a red bike", "a blue car"], "text", "3.0 words each"),
        ("caption", ["bike"] * 30, "text", "named 'caption'"),
        ("many", [["a", "b"], ["c"]], "text", "lists of texts, 1.5 per row"),
        ("many", ['["a", "b"]', '["c"]'], "text", "lists of texts"),
        (
            "sensor",
            [[0.1, 0.2], [0.3, None, 0.4]],
            "series",
            "2 of 2 values are lists of numbers, 2 to 3 steps long",
        ),
        (
            "sensor",
            ["[[1, 2], [3, null]]", "[[1, 2]]"],
            "series",
            "2 of 2 values are lists of numbers, 1 to 2 steps",
        ),
        ("sensor", [np.zeros((5, 2)), np.zeros(7)], "series", "5 to 7 steps long"),
        ("sensor", ["a.csv", "b.csv"], "text", "1.0 words each"),
        ("mixed", [[0.1, "b"], [0.3]], "ignore", "values of type list"),
        ("nested", [{"a": 1}], "ignore", "values of type dict"),
        ("empty", [None, None], "ignore", "no value in any row"),
        ("split", ["train", "test"], "split", "with values test, train"),
        ("split", ["banana", "cherry", "ice"], "text", "1.0 words"),
        ("concept", ["a", "a", "b"], "group", "rows with equal values stay in one split; 2 values"),
        ("homepage", ["https://a.b/c"] * 3, "ignore", "web addresses, and nothing is fetched"),
        ("photo", [np.zeros((8, 8, 3), np.uint8)] * 2, "image", "2 of 2 values are images"),
        ("photo", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n"], "image", "2 of 2 values are images"),
        ("made", ["2024-01-05", "2024-02-29T10:00:00Z"], "datetime", "2 of 2 values are dates"),
        ("price", [Decimal("1.50"), Decimal("2")], "numeric", "1.5 to 2"),
        ("blob", [b"\0\1", b"\2"], "ignore", "values of type bytes"),
        ("photo", ["a.JPG", "b.png"], "image", "2 of 2 values end in .jpg, .png and 0 exist"),
    ],
)
def test_inferred_type_and_reason(name: str, values: list[Any], kind: str, reason: str) -> None:
    inferred = infer_column(name, values)
    assert inferred[0] == kind
    assert reason in inferred[1]


def test_parse_number() -> None:
    good = ("1", "-1.5", "+2", ".5", "1e3", " 7 ", 3, np.float32(2))
    assert [parse_number(v) for v in good] == [1, -1.5, 2, 0.5, 1000, 7, 3, 2]
    assert [
        parse_number(v) for v in ("1_000", "007", "1,5", "x", "0x10", True, None, [1], "--1", "٣")
    ] == [None] * 10
    assert all(np.isnan(parse_number(v) or 0) for v in ("", "NA", "n/a", "-"))


def test_given_types_override_inference(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,year,kind\nbike,1999,1\ncar,2001,2\n")
    columns = {"year": "text", "name": "group", "kind": Category(("1", "2", "3"))}
    data = Dataset.open(tmp_path / "a.csv", types=columns)
    assert data.raw("year", [0]) == ["1999"]
    assert data.group_column == "name"
    assert data.schema.columns["kind"] == Column(
        "kind", Category(("1", "2", "3")), "set by the user"
    )


def test_type_with_settings() -> None:
    table = Table({"photo": ["a.png"], "words": ["x"]}, ["0"])
    schema = infer_schema(
        table,
        {"photo": "image:size=32:resize_mode=pad:mean=[0.1,0.2,0.3]", "words": "text:length=16"},
    )
    assert schema.columns["photo"].modality == Image(
        size=32, resize_mode="pad", mean=(0.1, 0.2, 0.3)
    )
    assert schema.columns["words"].modality == Text(length=16)
    for wrong, error in (
        ("image:size=big", "--type photo=image:size=big: 'size=big' is not a setting of image"),
        ("image:sise=3", "'sise=3' is not a setting of image"),
        ("image:size", "'size' is not a setting of image"),
        ("image:mean=2", "'mean=2' is not a setting of image"),
        ("image:resize_mode=round", "resize_mode='round' is unknown"),
        ("ignore:x=1", "'x=1' is not a setting of ignore. It has no settings"),
    ):
        with pytest.raises(SensoriumError, match=error):
            infer_schema(table, {"photo": wrong})


def test_missing_images_and_urls_are_ignored_beside_other_images() -> None:
    pixels, names = np.zeros((3, 8, 8, 3), np.uint8), ["a.jpg", "b.jpg", "c.jpg"]
    table = Table(
        {"original": names, "url": [f"https://a.b/{n}" for n in names], "image": pixels}, names
    )
    schema = infer_schema(table, {})
    assert list(schema.columns) == ["image"]
    assert "0 exist" in schema.roles["original"].reason
    assert {r.kind for r in schema.roles.values()} == {"ignore"}


def test_image_arrays_keep_their_size() -> None:
    table = Table({"image": np.zeros((3, 24, 24, 3), np.uint8)}, ["a", "b", "c"])
    assert infer_schema(table, {}).columns["image"].modality == Image(size=24)


def schema(**columns: Any) -> Schema:
    return Schema(
        {name: Column(name, modality, "because") for name, modality in columns.items()},
        {"price": Role("price", "ignore", "set by the user")},
    )


def test_resolve_column() -> None:
    s = schema(photo=Image(), thumb=Image(), caption=Text(), caption_de=Text(), mood=Category())
    assert s.resolve_column("image") == "photo"
    assert s.resolve_column("text") == "caption"
    assert s.resolve_column("category") == "mood"
    assert s.resolve_text_columns(["caption", "caption_de"]) == ("caption", "caption_de")
    assert s.resolve_text_columns() == "caption"
    for kind, name, error in [
        ("image", "foto", "did you mean 'photo'"),
        ("image", "caption", "is text, not image"),
        ("numeric", None, "There is no numeric column. Columns: photo (image)"),
        ("text", "price", "The column 'price' cannot be used (ignore: set by the user)"),
    ]:
        with pytest.raises(SensoriumError, match=re.escape(error)):
            s.resolve_column(kind, name)
    with pytest.raises(SensoriumError, match="there are several text columns: front, back"):
        schema(front=Text(), back=Text()).resolve_column("text")


def open_and_fit(tmp_path: Path) -> tuple[Dataset, Schema]:
    rows = [
        {
            "caption": [f"a thing {i}", "again"],
            "other": f"words {i}",
            "price": i,
            "label": "ab"[i % 2],
        }
        for i in range(40)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Dataset.open(tmp_path / "a.jsonl")
    return data, data.schema.fit(data, np.arange(20))


def test_fit_learns_from_given_rows_alone(tmp_path: Path) -> None:
    data, s = open_and_fit(tmp_path)
    number, label, caption, other = (
        s.columns[n].modality for n in ("price", "label", "caption", "other")
    )
    assert isinstance(number, Numeric)
    assert number.mean == 9.5
    assert label == Category(("a", "b"), (10, 10))
    assert isinstance(caption, Text)
    assert isinstance(other, Text)
    assert caption.tokenizer is not None
    assert other.tokenizer is caption.tokenizer
    assert caption.vocab_size == other.vocab_size == caption.tokenizer.get_vocab_size()
    assert (
        data.schema.columns["price"].modality == Numeric()
    )  # the data set's own schema is untouched


def test_saved_schema_loads_equal(tmp_path: Path) -> None:
    _, s = open_and_fit(tmp_path)
    s.save(tmp_path)
    back = Schema.load(tmp_path)
    assert back == s
    saved, loaded = s.columns["other"].modality, back.columns["other"].modality
    caption = back.columns["caption"].modality
    assert isinstance(saved, Text)
    assert isinstance(loaded, Text)
    assert isinstance(caption, Text)
    assert loaded.tokenizer is caption.tokenizer
    assert saved.load("words unseen").tolist() == loaded.load("words unseen").tolist()
    unfitted = schema(image=Image(size=32), caption=Text())
    (tmp_path / "new").mkdir()
    unfitted.save(tmp_path / "new")
    assert Schema.load(tmp_path / "new") == unfitted
    assert not (tmp_path / "new" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d.update(version=2), "has version 2, but this Sensorium reads version 1"),
        (lambda d: d.update(extra=1), "schema has an unknown key 'extra'"),
        (lambda d: d.pop("roles"), "schema has no key 'roles'"),
        (
            lambda d: d["columns"]["price"].update(colour=1),
            "column 'price' has an unknown key 'colour'",
        ),
        (
            lambda d: d["columns"]["price"].update(kind="os.system"),
            "the type 'os.system' of column 'price' is unknown",
        ),
        (lambda d: d["columns"]["price"]["settings"].update(median=1), "unknown key 'median'"),
        (
            lambda d: d["columns"]["price"].update(settings=[]),
            "settings of 'price' must be a JSON object",
        ),
        (lambda d: d.update(columns=[]), "columns must be a JSON object"),
    ],
)
def test_changed_schema_file_is_an_error(tmp_path: Path, change: Any, error: str) -> None:
    open_and_fit(tmp_path)[1].save(tmp_path)
    value = json.loads((tmp_path / "schema.json").read_text())
    change(value)
    (tmp_path / "schema.json").write_text(json.dumps(value))
    with pytest.raises(SensoriumError, match=error):
        Schema.load(tmp_path)


def test_missing_schema_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=r"schema\.json is missing"):
        Schema.load(tmp_path)
    open_and_fit(tmp_path)[1].save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(SensoriumError, match=r"tokenizer\.json is missing"):
        Schema.load(tmp_path)


def test_text_columns_share_one_tokenizer(tmp_path: Path) -> None:
    one, two = Text().fit(["a b c"]), Text().fit(["d e f"])
    with pytest.raises(SensoriumError, match="different tokenizers"):
        schema(a=one, b=two).save(tmp_path)
    mixed = replace(schema(a=one, b=Text()))
    both = mixed.fit(Dataset(Table({"a": ["x"], "b": ["y"]}, ["0"]), mixed), [0])
    assert both.columns["b"].modality.tokenizer is one.tokenizer  # type: ignore[attr-defined]


def test_numeric_is_standardized() -> None:
    number = Numeric().fit([1.0, None, 3.0])
    assert number == Numeric(2.0, 1.0, (1.0, 3.0), 2, lower=0.0)
    assert Numeric().fit([]) == Numeric()
    assert Numeric().fit([5, 5]).std == 1
    batch = number.collate([number.load(v) for v in (1, 2.0, np.float32(3))])
    assert batch.dtype == torch.float32
    assert batch.tolist() == [-1, 0, 1]
    assert number.decode(batch[0]) == 1
    assert Numeric.from_json(json.loads(json.dumps(number.to_json()))) == number
    for invalid in ("1", None, True, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="number"):
            number.load(invalid)
    stamps = Numeric().fit([1.7e9, 1.7e9 + 1])
    assert stamps.collate([stamps.load(1.7e9), stamps.load(1.7e9 + 1)]).tolist() == [-1, 1]


def test_category_indices() -> None:
    category = Category().fit(["dog", None, "cat", "dog"])
    assert category.classes == ("cat", "dog")
    assert category.counts == (1, 2)
    assert category.fit(["eel", "cat"]) == Category(("cat", "dog"), (1, 0)), (
        "given classes are kept"
    )
    batch = category.collate([category.load(v) for v in ("dog", "cat")])
    assert batch.dtype == torch.int64
    assert batch.tolist() == [1, 0]
    assert category.decode(batch[0]) == "dog"
    assert Category.from_json(json.loads(json.dumps(category.to_json()))) == category
    unseen = category.collate([category.load("eel")])
    assert unseen.tolist() == [2]
    assert category.decode(unseen[0]) is None
    assert [Category(("1", "true")).load(v).item() for v in (1, 1.0, True, "1")] == [0, 0, 1, 0]


def test_ordinal_classes_are_ordered() -> None:
    assert Ordinal().fit(["10", "9", "9", "1.5"]).classes == ("1.5", "9", "10")
    low = Ordinal(("low", "high")).fit(["high", "high", "low"])
    assert low.classes == ("low", "high")
    assert low.counts == (1, 2)
    with pytest.raises(ValueError, match="lowest first"):
        Ordinal().fit(["low", "high"])


def test_datetime_encodes_week_and_year() -> None:
    days = [f"2026-03-{d:02d}T12:00" for d in range(2, 9)]  # a Monday to a Sunday
    date = Datetime().fit([*days, None, "rubbish"])
    batch = date.collate([date.load(v) for v in days])
    assert batch.shape == (7, 9)
    assert batch[:, -1].tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert batch[:, 0].mean().abs() < 1e-5
    assert date.decode(batch[0]).startswith("2026-03-02T12:00")
    a_week_on = date.collate([date.load("2026-03-09T12:00")])
    assert torch.allclose(a_week_on[0, 4:8], batch[0, 4:8], atol=1e-5)
    same = [
        date.load(v) for v in (datetime.date(2026, 3, 2), "2026-03-02", "2026-03-02T01:00+01:00")
    ]
    assert len({float(s) for s in same}) == 1
    for invalid in ("2026-13-01", 5, "soon"):
        with pytest.raises(ValueError, match="expected a date"):
            date.load(invalid)
    assert Datetime.from_json(json.loads(json.dumps(date.to_json()))) == date


def test_multilabel_is_multi_hot() -> None:
    tags = Multilabel(";").fit(["b; a", "a;a", None, ["c"]])
    assert (tags.tags, tags.counts, tags.rows) == (("a", "b", "c"), (2, 1, 1), 3)
    batch = tags.collate([tags.load(v) for v in ("c;a", "z;y;b", "")])
    assert batch.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert tags.decode(batch[0]) == ["a", "c"]
    with pytest.raises(ValueError, match="tags"):
        tags.load(7)
    assert Multilabel.from_json(json.loads(json.dumps(tags.to_json()))) == tags
