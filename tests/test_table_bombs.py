"""Tables and series that would take far more time or memory than their size."""

import gzip
import json
import struct
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from sensorium.data import csv_files, table_files, tables
from sensorium.data.table_files import read_table
from sensorium.errors import SensoriumError
from sensorium.io import untrusted
from sensorium.modalities.audio_io import read_audio
from sensorium.modalities.series_io import read_series

MAX_SECONDS = 240  # of a child process that reads one file
READ = """import resource, sys
from pathlib import Path
import pyarrow.parquet
from sensorium.data.table_files import read_table
from sensorium.errors import SensoriumError
kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(len(read_table(Path(sys.argv[1]))), "rows")
except SensoriumError as e:
    print(e)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kib) // 1024)"""


def read_in_child(path: Path) -> tuple[str, int]:
    """Return what reading a table says, and the MiB it needed; a hang fails."""
    command = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MAX_SECONDS, check=True)
    result, mib = done.stdout.splitlines()
    return result, int(mib)


# Text


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_of_too_many_columns_is_refused(suffix: str, tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(200_000 if suffix != ".parquet" else 20_000)]
    path = tmp_path / f"wide{suffix}"
    separator = {".csv": ",", ".tsv": "\t"}.get(suffix, "")
    if separator:
        path.write_text(separator.join(names) + "\n" + separator.join("1" for _ in names) + "\n")
    elif suffix == ".jsonl":
        path.write_text(json.dumps(dict.fromkeys(names, 1)) + "\n")
    else:
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(
            arrow.table({name: [1] for name in names}), path
        )
    result, mib = read_in_child(path)
    assert "16,384" in result
    assert str(path) in result
    assert "columns" in result or "keys" in result
    assert mib < 1000


def test_a_table_of_two_thousand_columns_is_read(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    row = ",".join(map(str, range(2000)))
    path.write_text(",".join(f"c{i}" for i in range(2000)) + f"\n{row}\n" * 50)
    result, _ = read_in_child(path)
    assert result == "50 rows"


def test_rows_that_lack_most_columns_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tables, "MAX_MISSING_CELLS", 10_000)
    sparse = tmp_path / "sparse.jsonl"
    sparse.write_text("".join(json.dumps({f"k{i}": 1}) + "\n" for i in range(1000)))
    with pytest.raises(SensoriumError, match=r"sparse\.jsonl: its rows lack .*limit is 10,000"):
        read_table(sparse)
    ragged = tmp_path / "ragged.csv"
    ragged.write_text(",".join(f"c{i}" for i in range(1000)) + "\n" + "x\n" * 1000)
    with pytest.raises(SensoriumError, match=r"ragged\.csv: its rows lack .*limit is 10,000"):
        read_table(ragged)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_line_without_end_is_refused(
    suffix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tables, "MAX_LINE_CHARACTERS", 100_000)
    path = tmp_path / f"long{suffix}"
    head = "a,b\n" if suffix == ".csv" else '{"a": 1}\n'
    path.write_text(head + "x" * 1_000_000)
    with pytest.raises(SensoriumError, match=rf"long{suffix}:2: the line has more than 100,000"):
        read_table(path)


def test_a_sparse_file_without_line_breaks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n')
        file.truncate(1 << 33)
    result, mib = read_in_child(path)
    assert ":2: the line has more than" in result
    assert mib < 2500


def test_json_that_nests_too_deeply_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    lines = ['{"a": 1}\n'] * 3
    for opening, closing in ("[]", ('{"k":', "}")):
        lines.append('{"a": ' + opening * 100_000 + "1" + closing * 100_000 + "}\n")
    path.write_text("".join(lines))
    table = read_table(path)
    assert [sample.location for sample in table.bad_samples] == ["deep.jsonl:4", "deep.jsonl:5"]
    assert "nested too deeply" in table.bad_samples[0].reason


@pytest.mark.parametrize("content", [b"\n", b"a,b\n", b"\0", b'"', b"1,2\n"])
def test_a_gzip_bomb_is_refused(
    content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(csv_files, "MIN_GZIP_BYTES", 2 << 20)
    monkeypatch.setattr(csv_files, "MAX_CELL_CHARACTERS", 1 << 20)
    monkeypatch.setattr(tables, "MAX_LINE_CHARACTERS", 1 << 20)
    path = tmp_path / "bomb.csv.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b"a,b\n1,2\n" + content * ((8 << 20) // len(content)))
    assert path.stat().st_size < 20_000
    with pytest.raises(SensoriumError, match=r"unpack to|the line has more than|a cell has more"):
        read_table(path)


def test_a_gzip_file_may_unpack_to_a_multiple_of_its_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("a,b\n" + "text that repeats,1\n" * 20_000)
    assert len(read_table(path)) == 20_000
    monkeypatch.setattr(csv_files, "MIN_GZIP_BYTES", 1000)
    with pytest.raises(SensoriumError, match=r"unpack to .* gunzip table\.csv\.gz"):
        read_table(path)


# Parquet


def parquet_bombs(kind: str, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = "x" * (1 << 16)
    if kind == "dictionary":
        codes = pa.array(np.zeros(1_000_000, np.int32))
        column = pa.DictionaryArray.from_arrays(codes, [text])
    elif kind == "text":
        column = pa.array([text] * 3000)
    elif kind == "numbers":
        column = pa.array(np.zeros(6_000_000, np.int8))
    elif kind == "lists":
        offsets = pa.array(np.array([0, 6_000_000], np.int32))
        column = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(6_000_000, np.int8)))
    else:
        codes = pa.array(np.zeros(5_000, np.int32))
        column = pa.DictionaryArray.from_arrays(codes, pa.array([text.encode()], pa.binary()))
    pq.write_table(
        pa.table({"a": column}),
        path,
        compression="zstd",
        use_dictionary=kind != "text",
        row_group_size=1 << 30,
    )


@pytest.mark.parametrize("kind", ["dictionary", "text", "numbers", "lists", "bytes"])
def test_a_parquet_bomb_is_refused(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(table_files, "MIN_UNPACKED_BYTES", 32 << 20)
    path = tmp_path / "bomb.parquet"
    parquet_bombs(kind, path)
    assert path.stat().st_size < 200_000
    with pytest.raises(SensoriumError) as error:
        read_table(path)
    assert f"{path}: its {path.stat().st_size:,} bytes unpack to" in str(error.value)
    assert "keep only the columns you need" in str(error.value)


def test_a_parquet_bomb_of_a_terabyte_is_refused_within_little_memory(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "bomb.parquet"
    codes = arrow.array(np.zeros(1_000_000, np.int32))
    column = arrow.DictionaryArray.from_arrays(codes, ["x" * (1 << 20)])
    pytest.importorskip("pyarrow.parquet").write_table(
        arrow.table({"a": column}), path, compression="zstd"
    )
    assert path.stat().st_size < 53_000
    result, mib = read_in_child(path)
    assert "unpack to" in result
    assert mib < 500


def test_a_parquet_of_ten_million_small_values_is_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "long.parquet"
    codes = arrow.array(np.arange(10_000_000, dtype=np.int32) % 3)
    table = {
        "a": np.zeros(10_000_000, np.int8),
        "b": arrow.DictionaryArray.from_arrays(codes, ["x", "y", "z"]),
    }
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(table), path)
    result, _ = read_in_child(path)
    assert result == "10000000 rows"


def test_values_of_every_way_of_storing_are_equal(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = ["red", None, "", "blue é", "red"] * 2000
    numbers = [1, None, 3, 4, 5] * 2000
    columns = {
        "text": texts,
        "long": [f"{i} {text}" * 20 for i, text in enumerate(texts)],
        "number": numbers,
        "list": [[text or "x"] * (i % 3) for i, text in enumerate(texts)],
        "bytes": [text.encode() if text else None for text in texts],
    }
    for dictionary in (True, False):
        path = tmp_path / f"{dictionary}.parquet"
        parquet.write_table(
            arrow.table(columns), path, use_dictionary=dictionary, row_group_size=3000
        )
        table = read_table(path)
        expected = {
            name: [None if value in ("", b"") and name != "bytes" else value for value in values]
            for name, values in columns.items()
        }
        assert {name: list(values) for name, values in table.columns.items()} == expected


# Series and audio


@pytest.mark.parametrize(
    "shape", ["(1 << 40,)", "(10**30, 2)", "(-5,)", "(0, 10**18)", "(2,) * 70"]
)
def test_an_npy_header_that_lies_is_refused(shape: str, tmp_path: Path) -> None:
    path = tmp_path / "series.npy"
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {eval_shape(shape)}, }}\n"
    path.write_bytes(
        b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + bytes(64)
    )
    with pytest.raises(ValueError):  # noqa: PT011 - the reason differs
        read_series(path)


def eval_shape(text: str) -> str:
    shapes = {"(1 << 40,)": (1 << 40,), "(2,) * 70": (2,) * 70}
    return str(shapes.get(text, text))


def test_a_wav_header_that_lies_is_bounded_by_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lies.wav"
    with wave.open(str(path), "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(16_000)
        wav.writeframes(np.arange(1600, dtype="<i2").tobytes())
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", 16_000 * 2 * 3000)  # claims 50 minutes
    path.write_bytes(data)
    samples, rate = read_audio(path, 3600)
    assert (len(samples), rate) == (1600, 16_000)
    data[22:24] = struct.pack("<H", 30_000)
    data[32:34] = struct.pack("<H", 30_000 * 2)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="30000 channels, more than the limit of 64"):
        read_audio(path, 3600)
    data[22:24] = struct.pack("<H", 1)
    data[32:36] = struct.pack("<HH", 16, 128)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="128 bits a sample"):
        read_audio(path, 3600)


def test_limits_leave_room_for_honest_files() -> None:
    assert untrusted.MAX_TABLE_COLUMNS >= 10_000
    assert untrusted.MIN_UNPACKED_BYTES >= 10_000_000 * 20 * 8  # ten million rows of 20 numbers
    assert untrusted.MAX_IMAGE_PIXELS >= 8192 * 8192
