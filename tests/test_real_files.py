"""Files as people have them: delimited text, image folders, devices, odd sample rates."""

import csv
import gzip
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from sensorium.data.dataset import Dataset
from sensorium.data.row_keys import content_digest
from sensorium.errors import SensoriumError
from sensorium.io.untrusted import open_regular
from sensorium.modalities.audio import Audio, resample, resample_interpolated
from sensorium.modalities.image import Image
from sensorium.modalities.series import Series


def _columns(path: Path, **options: Any) -> list[str]:
    return list(Dataset.open(path, **options).table.columns)


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        (
            "a.csv",
            '"size, cm";colour;price\n1,5;red;2\n2,5;blue;3\n',
            ["size, cm", "colour", "price"],
        ),
        ("a.csv", "size, cm;colour, name;y\n1,5;red;2\n", ["size, cm", "colour, name", "y"]),
        ("a.tsv", "caption, long\n a, b\n", ["caption, long"]),
        ("a.tsv", 'x;y;z\tw\n1\t2"\n', ["x;y;z", "w"]),
        ("a.csv", "sep=;\nx;y\n1,5;2\n", ["x", "y"]),
        ("a.csv", "# made by hand, 2023\n# x, z\nx,y\n1,2\n# the end\n", ["x", "y"]),
        ("a.csv", "#x,y\n1,2\n", ["x", "y"]),
        ("a.csv", "\n\nx,y\n1,2\n", ["x", "y"]),
        ("a.csv", "country,2019,2020\nA,1,2\n", ["country", "2019", "2020"]),
        ("a.csv", "label,0,1,2\nA,1,2,3\n", ["label", "0", "1", "2"]),
    ],
)
def test_delimited_text_as_people_write_it(
    tmp_path: Path, name: str, text: str, columns: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert _columns(tmp_path / name) == columns
    assert not Dataset.open(tmp_path / name).bad_samples


def test_packed_csv_and_a_given_delimiter(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"x,y\n1,2\n3,4\n"))
    assert Dataset.open(tmp_path / "a.csv.gz").raw("y", [0, 1]) == [2.0, 4.0]
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"x,y\n1,2\n" * 99)[:-20])
    with pytest.raises(SensoriumError, match=r"could not read .*cut\.csv\.gz"):
        Dataset.open(tmp_path / "cut.csv.gz")
    (tmp_path / "a.csv").write_text("x^y\n1^2\n3^4\n")
    assert _columns(tmp_path / "a.csv", delimiter="^") == ["x", "y"]
    with pytest.raises(SensoriumError, match="is not one character"):
        Dataset.open(tmp_path / "a.csv", delimiter="ab")


@pytest.mark.parametrize(
    "text",
    [
        "5.1,3.5,setosa\n4.9,3.0,setosa\n",
        "39,State-gov,77516\n50,Private,83311\n",
        "-1,2\n3,4\n",
        "https://a.b/c.jpg,a cat\nhttps://a.b/d.jpg,a dog\n",
    ],
)
def test_missing_header_is_noticed(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(SensoriumError, match="has no header: its first line is"):
        Dataset.open(tmp_path / "a.csv")


def test_long_cell_is_read(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_text('text,y\n"' + "word " * 60_000 + '",1\nshort,2\n')
    assert len(Dataset.open(tmp_path / "a.csv").raw("text", [0])[0]) == 300_000
    assert csv.field_size_limit() == limit


def _save_image(path: Path, **options: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    color = (len(path.name) * 37 % 256, hash(str(path)) % 256, 90)
    PIL.Image.new("RGB", (8, 8), color).save(path, **options)


def test_images_with_rare_endings_and_kinds_that_are_not_read(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.jpe", "c.JPG"):
        _save_image(tmp_path / name, format="JPEG")
    for name in ("d.heic", "e.svg", "f.mp4", "g.mp4"):
        (tmp_path / name).write_bytes(b"x")
    data = Dataset.open(tmp_path, max_invalid_fraction=0.5)
    assert len(data) == 3
    assert {b.location for b in data.bad_samples} == {"d.heic", "e.svg"}
    assert data.notes == ["2 .mp4: not read"]


def test_column_of_files_that_are_not_read_is_named(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.heic").write_bytes(b"x")
    (tmp_path / "a.csv").write_text("photo,y\n" + "".join(f"{i}.heic,{i}\n" for i in range(20)))
    with pytest.raises(SensoriumError, match=r"(?s)20 of 20 rows.*\.heic files are not supported"):
        Dataset.open(tmp_path)


def test_loose_image_beside_class_folders_has_no_label(tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png", "loose.png"):
        _save_image(tmp_path / name)
    data = Dataset.open(tmp_path)
    assert data.raw("label", range(5)) == ["cat", "cat", "dog", "dog", None]
    assert "1 beside them" in data.schema.columns["label"].reason


def test_file_names_that_are_not_utf8_are_set_aside(tmp_path: Path) -> None:
    for i in range(3):
        _save_image(tmp_path / f"{i}.png")
    bad = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        Path(os.fsdecode(bad)).write_bytes((tmp_path / "0.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    data = Dataset.open(tmp_path, max_invalid_fraction=0.5)
    assert [str(b) for b in data.bad_samples] == [
        "caf\ufffd.png: its name is not UTF-8: rename the file or its folder"
    ]


@pytest.mark.parametrize("bits", ["uint16", "int32"])
def test_wide_pixels_with_a_range_of_8_bits_are_refused(tmp_path: Path, bits: str) -> None:
    pixels = np.arange(256).reshape(16, 16).astype(bits)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="their scale is unknown"):
        Image(size=16).load(tmp_path / "a.tiff")
    PIL.Image.fromarray(pixels.astype(np.float32)).save(tmp_path / "b.tiff")
    with pytest.raises(ValueError, match="floating-point"):
        Image(size=16).load(tmp_path / "b.tiff")
    PIL.Image.fromarray(pixels * 0).save(tmp_path / "black.tiff")
    assert Image(size=16).load(tmp_path / "black.tiff").max() == 0


@pytest.mark.parametrize("name", ["zero", "fifo", "folder"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.wav"
    if name == "zero":
        path.symlink_to("/dev/zero")
    elif name == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(path)
    assert content_digest(path, "here") == "here"
    for modality in (Audio(), Image(), Series()):
        with pytest.raises(ValueError, match=r"not a (regular )?file|extension"):
            modality.load(path)


def test_device_among_images_is_set_aside(tmp_path: Path) -> None:
    for i in range(3):
        _save_image(tmp_path / f"{i}.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo.png")
    rows = ["0.png", "1.png", "2.png", "zero.png", "fifo.png"]
    (tmp_path / "a.csv").write_text("image,y\n" + "".join(f"{r},{i}\n" for i, r in enumerate(rows)))
    data = Dataset.open(tmp_path / "a.csv", max_invalid_fraction=0.5)
    named = {b.location for b in data.describe().bad_samples}
    assert named == {"a.csv:5", "a.csv:6"}


@pytest.mark.parametrize("rate", [16_001, 44_101, 1_009, 767_999])
def test_any_sample_rate_takes_bounded_time(rate: int) -> None:
    tone = torch.sin(2 * math.pi * 220 * torch.arange(rate // 2) / rate)
    start = time.perf_counter()
    resampled = resample(tone, rate, 16_000)
    assert time.perf_counter() - start < 10
    expected = torch.sin(2 * math.pi * 220 * torch.arange(len(resampled)) / 16_000)
    assert abs(len(resampled) - 8_000) <= 8
    inner = slice(len(expected) // 10, -len(expected) // 10)
    assert (resampled - expected)[inner].abs().max() < 0.01


def test_interpolated_filters_agree_with_exact_ones() -> None:
    noise = torch.randn(4_410, generator=torch.Generator().manual_seed(0))
    exact = resample(noise, 44_100, 16_000)
    assert torch.allclose(resample_interpolated(noise, 441, 160, 24), exact, atol=1e-4)
