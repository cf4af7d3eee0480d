"""Cells as real files hold them: class names, numbers, dates and missing markers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sensorium.data.dataset import Dataset
from sensorium.data.number_format import NumberFormat, find_number_format
from sensorium.errors import SensoriumError
from sensorium.inference.predict import decode_prediction
from sensorium.modalities.tabular import Category, Numeric, spell_class
from sensorium.models.calibration import Calibration
from sensorium.search.query import as_query_lists


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, "1"),
        (1.0, "1"),
        ("1.0", "1"),
        (" +1 ", "1"),
        ("1.50", "1.5"),
        (1.5, "1.5"),
        (".5", "0.5"),
        ("-0", "0"),
        ("1e3", "1000"),
        (np.float64(2), "2"),
        (np.int8(3), "3"),
        ("12345678901234567890", "12345678901234567890"),
        ("007", "007"),
        ("1.2.3", "1.2.3"),
        ("nan", "nan"),
        (True, "true"),
        (np.True_, "true"),
        ("FALSE", "false"),
        ("red", "red"),
    ],
)
def test_class_names_have_one_spelling(value: object, expected: str) -> None:
    assert spell_class(value) == expected


def test_classes_are_the_same_whatever_the_file_format(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    csv = tmp_path / "train.csv"
    csv.write_text("grade,flag,y\n" + "".join(f"{i % 3 + 1},{i % 2 == 0},{i}\n" for i in range(40)))
    data = Dataset.open(csv, types={"grade": "category"})
    assert data.schema.columns["flag"].kind == "category"
    schema = data.schema.fit(data, np.arange(40))
    pq.write_table(
        pa.table({"grade": [1.0, 2.0, 3.0, None], "flag": [True, False, True, None]}),
        tmp_path / "new.parquet",
    )
    (tmp_path / "new.csv").write_text("grade,flag\n1.0,True\n2.00,FALSE\n+3,true\n,\n")
    (tmp_path / "new.jsonl").write_text(
        '{"grade": 1.0, "flag": true}\n{"grade": 2, "flag": false}\n'
        '{"grade": "3.0", "flag": "True"}\n{"grade": null, "flag": null}\n'
    )
    for name in ("new.parquet", "new.csv", "new.jsonl"):
        new = Dataset.open_with_schema(tmp_path / name, schema)
        assert new.raw("grade", range(4)) == ["1", "2", "3", None]
        assert new.raw("flag", range(4)) == ["true", "false", "true", None]
        grade, flag = schema["grade"], schema["flag"]
        assert [int(grade.load(v)) for v in new.raw("grade", range(3))] == [0, 1, 2]
        assert [int(flag.load(v)) for v in new.raw("flag", range(3))] == [1, 0, 1]


def test_interval_of_large_numbers_holds_the_value() -> None:
    target = Numeric(mean=1_700_000_000.0, std=1_000.0)
    calibration = Calibration()
    calibration.conformal_quantiles.fill_(0.01)
    prediction = decode_prediction(target, torch.tensor([[0.124, -4.0]]), calibration)
    assert prediction.interval is not None
    low, high = prediction.interval[0].tolist()
    assert low < prediction.value[0] < high
    assert prediction.value[0] - low == pytest.approx(high - prediction.value[0], rel=1e-3)
    assert prediction.value[0] == pytest.approx(1_700_000_124, abs=0.001)


def test_given_classes_match_any_spelling() -> None:
    grade = Category(classes=("1.0", "True"))
    assert [int(grade.load(v)) for v in (1, "1", True, "2")] == [0, 0, 1, 2]


def test_class_label_minus_one_is_missing(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    info = {"info": {"features": features}}
    table = pa.table({"label": [0, 1, -1, None], "x": [1.0, 2.0, 3.0, 5.0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, tmp_path / "a.parquet")
    data = Dataset.open(tmp_path / "a.parquet")
    assert data.raw("label", range(4)) == ["cat", "dog", None, None]


def _kinds(data: Dataset) -> dict[str, str]:
    return {c.name: c.kind for c in (*data.schema.columns.values(), *data.schema.roles.values())}


@pytest.mark.parametrize("name", ["__index_level_0__", "passenger"])
def test_the_index_of_pandas_is_no_feature(tmp_path: Path, name: str) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"x": [(i * 7) % 31 / 2 for i in range(60)], name: [i * 3 for i in range(60)]})
    metadata = {"pandas": json.dumps({"index_columns": [name], "columns": []})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    data = Dataset.open(tmp_path / "a.parquet")
    assert _kinds(data) == {"x": "numeric", name: "ignore"}
    summary = {c.name: c.reason for c in data.describe().columns}
    assert "index of a pandas table" in summary[name]
    kept = Dataset.open(tmp_path / "a.parquet", types={name: "numeric"})
    assert _kinds(kept)[name] == "numeric"


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("", "{i}"),
        ("", "{half}"),
        ("", "Mazda RX{i}"),
        ("Unnamed: 0", "{i}"),
        ("Unnamed: 0.1", "{half}"),
        ("index", "{half}"),
        ("row", "{i}"),
        ("PassengerId", "{i}"),
        ("#", "{i}"),
    ],
)
def test_row_numbers_are_no_feature(tmp_path: Path, name: str, first: str) -> None:
    rows = [f"{first.format(i=i, half=i % 30)},{(i * 7) % 31 / 2}\n" for i in range(60)]
    (tmp_path / "a.csv").write_text(f"{name},x\n" + "".join(rows))
    data = Dataset.open(tmp_path / "a.csv")
    assert list(data.schema.columns) == ["x"]
    assert "rows" in data.describe().columns[0].reason


def test_a_measurement_with_the_name_of_a_key_stays_a_feature(tmp_path: Path) -> None:
    rows = [f"{(i * 7) % 13},{i / 2}\n" for i in range(60)]
    (tmp_path / "a.csv").write_text("row,x\n" + "".join(rows))
    assert _kinds(Dataset.open(tmp_path / "a.csv")) == {"row": "numeric", "x": "numeric"}


@pytest.mark.parametrize(
    ("cells", "numbers", "number_format"),
    [
        (["1", "2.5", "#N/A", "?", ".", "<NA>", "NaN"], [1, 2.5], NumberFormat()),
        (["$1,200", "$300.50", "($5)", "-$1"], [1200, 300.5, -5, -1], NumberFormat(".", "$")),
        (["12.5%", "7 %", "0%"], [12.5, 7, 0], NumberFormat(".", "%")),
        (["3,14", "2,5", "1"], [3.14, 2.5, 1], NumberFormat(",")),
        (["1.234,5", "2", "3,25"], [1234.5, 2, 3.25], NumberFormat(",")),
        (["1,234.5", "2,000", "7"], [1234.5, 2000, 7], NumberFormat()),
        (["1 234,5 €", "7 €"], [1234.5, 7], NumberFormat(",", "€")),
        (["1,00,000", "20,000"], [100000, 20000], NumberFormat()),
    ],
)
def test_numbers_as_people_write_them(
    tmp_path: Path, cells: list[str], numbers: list[float], number_format: NumberFormat
) -> None:
    assert find_number_format(cells) == number_format
    lines = "".join(f'"{cell}",{i}\n' for i, cell in enumerate(cells))
    (tmp_path / "a.csv").write_text("price,y\n" + lines)
    data = Dataset.open(tmp_path / "a.csv")
    assert data.schema.columns["price"].kind == "numeric"
    read = data.raw("price", range(len(cells)))
    assert read == [*numbers, *[None] * (len(cells) - len(numbers))]
    again = Dataset.open_with_schema(tmp_path / "a.csv", data.schema)
    assert again.raw("price", range(len(cells))) == read


def test_what_keeps_a_column_from_being_numbers_is_said(tmp_path: Path) -> None:
    cells = [str(i * 1.5) for i in range(292)] + [f"about {i}" for i in range(8)]
    (tmp_path / "a.csv").write_text("size,y\n" + "".join(f"{c},{i}\n" for i, c in enumerate(cells)))
    reason = Dataset.open(tmp_path / "a.csv").schema.columns["size"].reason
    assert "292 of 300 are numbers; the others: 'about 0', 'about 1'" in reason


def test_percentages_among_plain_numbers_are_not_read_as_one_unit(tmp_path: Path) -> None:
    lines = "".join(f"{'12%' if i % 2 else '0.12'},{i}\n" for i in range(40))
    (tmp_path / "a.csv").write_text("rate,y\n" + lines)
    column = Dataset.open(tmp_path / "a.csv").schema.columns["rate"]
    assert column.kind != "numeric"
    assert "20 of 40 are numbers; the others: " in column.reason


@pytest.mark.parametrize(
    ("cells", "seconds"),
    [
        (["2023-03-31 10:00:00 UTC", "NA"], [1680256800.0, None]),
        (["07:00", "19:30"], [25200.0, 70200.0]),
        (["03/31/2023", "04/01/2023"], [1680220800.0, 1680307200.0]),
        (["31/03/2023", "01/04/2023"], [1680220800.0, 1680307200.0]),
        (["31.03.2023", "01.04.2023 12:00"], [1680220800.0, 1680350400.0]),
        (["31 March 2023", "Apr 1, 2023"], [1680220800.0, 1680307200.0]),
        (["Fri, 31 Mar 2023 00:00:00 GMT", "2023/04/01"], [1680220800.0, 1680307200.0]),
    ],
)
def test_dates_as_people_write_them(
    tmp_path: Path, cells: list[str], seconds: list[float | None]
) -> None:
    lines = "".join(f'"{cell}",{i}\n' for i, cell in enumerate(cells * 20))
    (tmp_path / "a.csv").write_text("day,y\n" + lines)
    data = Dataset.open(tmp_path / "a.csv")
    settings = data.schema["day"]
    assert data.schema.columns["day"].kind == "datetime"
    assert not data.bad_samples
    read = [None if v is None else float(settings.load(v)) for v in data.raw("day", [0, 1])]
    assert read == seconds


def test_dates_that_do_not_tell_their_order_are_asked_about(tmp_path: Path) -> None:
    lines = "".join(f"0{i % 9 + 1}/0{i % 7 + 1}/2023,{i}\n" for i in range(40))
    (tmp_path / "a.csv").write_text("day,y\n" + lines)
    with pytest.raises(SensoriumError, match=r"--type day=datetime:order=dmy"):
        Dataset.open(tmp_path / "a.csv")
    data = Dataset.open(tmp_path / "a.csv", types={"day": "datetime:order=mdy"})
    assert float(data.schema["day"].load("02/01/2023")) == 1675209600.0


def test_versions_and_codes_are_no_dates(tmp_path: Path) -> None:
    lines = "".join(f"1.{i % 9}.{i % 7},0{i:07}\n" for i in range(40))
    (tmp_path / "a.csv").write_text("version,code\n" + lines)
    assert "datetime" not in _kinds(Dataset.open(tmp_path / "a.csv")).values()


def test_caption_with_bars_is_text_by_its_name(tmp_path: Path) -> None:
    cells = ["red shoe | sale", "blue shoe | new", "red hat | sale"] * 8
    for name, kind in (("caption", "text"), ("image_caption", "text"), ("genres", "multilabel")):
        (tmp_path / "a.csv").write_text(f"{name},y\n" + "".join(f"{c},{c[0]}\n" for c in cells))
        data = Dataset.open(tmp_path / "a.csv")
        assert data.schema.columns[name].kind == kind
    data = Dataset.open(tmp_path / "a.csv", types={"genres": "multilabel"})
    with pytest.raises(SensoriumError, match=r"add --type genres=text"):
        data.schema.resolve_column("text", "genres")


@pytest.mark.parametrize("number", ["1e308", "-1e39", "1e400"])
def test_huge_number_is_set_aside_by_name(tmp_path: Path, number: str) -> None:
    cells = ["1.5", "2.5"] * 99 + [number]
    (tmp_path / "a.csv").write_text("size,y\n" + "".join(f"{c},{i}\n" for i, c in enumerate(cells)))
    data = Dataset.open(tmp_path / "a.csv")
    assert [str(b)[:16] for b in data.bad_samples] == ["a.csv:200, size:"]
    with pytest.raises(ValueError, match=r"beyond the limit|finite"):
        Numeric().load(float(number))


@pytest.mark.parametrize("text", ["half \ud83d of it", "\udce9t\xe9"])
def test_lone_surrogates_are_replaced_at_the_door(tmp_path: Path, text: str) -> None:
    lines = [{"caption": text, "tag": text, "y": i} for i in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = Dataset.open(tmp_path / "a.jsonl")
    for name in ("caption", "tag"):
        value = data.raw(name, [0])[0]
        assert "\ufffd" in value
        value.encode()
    caption = data.schema.fit(data, np.arange(30), ["caption"])["caption"]
    assert len(caption.load(text)) > 0
    lists, _ = as_query_lists({"text": text})
    assert "\ufffd" in lists["text"][0]
