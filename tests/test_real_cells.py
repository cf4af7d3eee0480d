"""Cells as real files hold them: class names, numbers, dates and missing markers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sensorium.data.dataset import Dataset
from sensorium.inference.predict import decode_prediction
from sensorium.modalities.tabular import Category, Numeric, spell_class
from sensorium.models.calibration import Calibration


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
