"""`sensorium predict`: no row is lost, and what cannot be read is masked, marked and counted."""

import csv
import json
import random
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sensorium.cli import app
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.inference.predict import Unreadable
from sensorium.inference.prediction_table import is_data_frame, shorten
from sensorium.loading import load
from sensorium.recipes import RECIPES
from sensorium.training.loop import train

Row = dict[str, Any]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_sound(path: Path, samples: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(2 * samples))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, sounds, a table of 60 rows and a run trained on it."""
    folder = tmp_path_factory.mktemp("predict")
    rng = random.Random(0)
    rows: list[Row] = []
    for i in range(60):
        red = rng.random() < 0.5
        Image.new("RGB", (16, 16), (255, 0, 0) if red else (0, 0, 255)).save(folder / f"{i}.png")
        write_sound(folder / f"{i}.wav", 1600)
        rows.append(
            {
                "sku": f"A-{i}",
                "photo": f"{i}.png",
                "call": f"{i}.wav",
                "size": round(rng.gauss(0, 1), 2),
                "colour": rng.choice(["green", "white"]),
                "price": round(rng.gauss(5, 1), 3),
                "kind": "=red" if red else "blue",
                "unused": 1,
            }
        )
    data = Dataset.open(
        write_table(folder / "table.csv", rows),
        types={"colour": "category", "kind": "category", "photo": "image:size=16"},
    )
    train(
        RECIPES["fusion"],
        data,
        out=folder / "run",
        quiet=True,
        target=["kind", "price"],
        columns=["photo", "call", "size", "colour"],
        epochs=1,
        dim=16,
        layers=1,
    )
    return folder


def table_rows(folder: Path, num_rows: int = 12) -> list[Row]:
    with (folder / "table.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))[:num_rows]


def predict(folder: Path, rows: Sequence[Row], *options: str) -> list[Row]:
    table = write_table(folder / "new.csv", rows)
    out = folder / "out.csv"
    assert app.run(["predict", str(folder / "run"), str(table), "-o", str(out), *options]) == 0
    with out.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_cannot_be_read_is_masked_marked_and_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table_rows(folder)
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:60])
    write_sound(folder / "empty.wav", 0)
    rows[1]["photo"] = "cut.png"
    rows[2]["call"] = "empty.wav"
    rows[3]["size"] = "abc"
    rows[4]["photo"] = "none.png"
    rows[5]["photo"] = "https://example.org/a.png"
    rows[6] |= {"size": "1e999", "photo": "cut.png"}
    rows[7]["colour"] = "pink"
    result = predict(folder, rows)
    assert [row["row"] for row in result] == [f"new.csv:{i + 2}" for i in range(12)]
    marks = {i: row["unreadable"] for i, row in enumerate(result) if row["unreadable"]}
    assert marks == {
        1: "photo",
        2: "call",
        3: "size",
        4: "photo",
        5: "photo",
        6: "size|photo",
    }
    summary = capsys.readouterr().err
    assert "column photo: 4 of 12 values cannot be read and are masked as missing" in summary
    assert "new.csv:3" in summary
    assert "column call: 1 of 12 values cannot be read" in summary
    assert "column size: 2 of 12 values cannot be read" in summary
    assert "column colour: 1 of 12 values were never seen in training ('pink')" in summary
    for i, column in ((1, "photo"), (2, "call"), (3, "size")):  # as if the cell were empty
        blank = predict(
            folder, [row if k != i else {**row, column: ""} for k, row in enumerate(rows)]
        )
        assert {**result[i], "unreadable": ""} == blank[i]


def test_only_the_columns_that_the_model_reads_are_looked_at(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table_rows(folder)
    expected = predict(folder, rows)
    rows[2] |= {"price": "?", "kind": "", "unused": "not a number"}
    assert predict(folder, rows) == expected
    rows = [{k: v for k, v in row.items() if k not in ("price", "kind", "call")} for row in rows]
    capsys.readouterr()
    assert len(predict(folder, rows)) == len(rows)
    assert "new.csv has no column call: masked as missing in every row" in capsys.readouterr().err


def test_row_that_cannot_be_read_keeps_its_place(folder: Path) -> None:
    table = folder / "broken.jsonl"
    lines = [json.dumps({**row, "size": 1.0}) for row in table_rows(folder, 4)]
    lines[1] = lines[1][:20]
    table.write_text("\n".join(lines), encoding="utf-8")
    out = folder / "out.jsonl"
    assert app.run(["predict", str(folder / "run"), str(table), "-o", str(out)]) == 0
    result = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["row"] for row in result] == [f"broken.jsonl:{i}" for i in (1, 2, 3, 4)]
    assert [len(row["unreadable"]) for row in result] == [0, 4, 0, 0]
    assert result[1]["kind"] is not None, "the prior"


def test_input_columns_id_digits_and_formulas(folder: Path) -> None:
    rows = table_rows(folder)
    result = predict(folder, rows, "--keep-columns", "--id", "sku")
    names = list(result[0])
    inputs = [name for name in rows[0] if name != "sku"]
    assert names[: len(inputs) + 1] == ["sku", *inputs]
    assert names[len(inputs) + 1 :][:2] == ["kind (predicted)", "kind probability"]
    assert [row["sku"] for row in result] == [row["sku"] for row in rows]
    assert [row["size"] for row in result] == [row["size"] for row in rows], "-1.5 is no formula"
    labels = {row["kind (predicted)"] for row in result} | {row["kind"] for row in result}
    assert labels <= {"'=red", "blue"}
    assert "'=red" in labels
    number = result[0]["price (predicted)"]
    assert len(number.replace(".", "").lstrip("-0")) <= 9, number
    assert shorten(1700000124.27, 0.5) == pytest.approx(1700000124.27, abs=1e-2)


def test_limit_of_unreadable_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table_rows(folder)
    rows[0]["size"] = rows[1]["size"] = "abc"
    table = write_table(folder / "new.csv", rows)
    out = folder / "limited.csv"
    arguments = ["predict", str(folder / "run"), str(table), "-o", str(out)]
    assert app.run([*arguments, "--max-invalid-fraction", "0.1"]) == 1
    assert "2 of 12 rows have a value that cannot be read" in capsys.readouterr().err
    assert not out.exists()
    assert app.run([*arguments, "--id", "nothing"]) == 1
    assert "--id nothing: new.csv has no such column" in capsys.readouterr().err


def test_data_frame_gives_a_data_frame(folder: Path) -> None:
    assert not is_data_frame([{"size": 1.0}])
    assert not is_data_frame(SimpleNamespace(columns=[]))
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(table_rows(folder, 3), index=["a", "b", "c"])
    frame["size"] = [1.0, float("nan"), 2.0]
    frame["photo"] = str(folder) + "/" + frame["photo"]
    frame["call"] = str(folder) + "/" + frame["call"]
    model = load(folder / "run")
    result = model.predict(frame)
    assert list(result.index) == ["a", "b", "c"]
    assert list(result.columns)[:3] == ["kind", "kind probability", "price"]
    expected = model.predict(
        photo=frame["photo"].tolist(),
        call=frame["call"].tolist(),
        colour=frame["colour"].tolist(),
        size=[1.0, None, 2.0],
    )
    assert result["kind"].tolist() == expected["kind"].value


def test_encoding_of_the_table(folder: Path, tmp_path: Path) -> None:
    """A table of Windows: "größe" is a column that the model would otherwise not find."""
    lines = ["größe,kind", *(f"{i % 7},{'ab'[i % 2]}" for i in range(60))]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines), encoding="latin-1")
    data = Dataset.open(table, encoding="latin-1")
    run = tmp_path / "run"
    train(RECIPES["fusion"], data, out=run, quiet=True, target="kind", epochs=1, dim=16, layers=1)
    command = ["predict", str(run), str(table), "-o", str(tmp_path / "out.csv"), "--keep-columns"]
    assert app.run(command) == 1
    assert app.run([*command, "--encoding", "latin-1"]) == 0
    assert "größe" in (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()[0]


def test_unreadable_values_of_rows_and_frames(folder: Path) -> None:
    """They are one clear error, or masked and listed where a list is given, as if missing."""
    model = load(folder / "run")
    rows = [{"size": 1.0, "colour": "green"}, {"size": "abc", "colour": "white"}]
    missing = [rows[0], {"size": None, "colour": "white"}]
    with pytest.raises(SensoriumError, match=r"Row 1, column 'size': .*'abc'\. Give None .*=\[\]"):
        model.predict(rows)
    found: list[Unreadable] = []
    result = model.predict(rows, unreadable=found)
    assert [(u.row, u.column) for u in found] == [(1, "size")]
    assert result["kind"].value == model.predict(missing)["kind"].value
    pd = pytest.importorskip("pandas")
    found.clear()
    frame = model.predict(pd.DataFrame(rows), unreadable=found)
    assert [(u.row, u.column) for u in found] == [(1, "size")]
    assert frame["kind"].tolist() == result["kind"].value
