"""Tar shards: the index agrees with tarfile, hostile archives are named, rows are read in place."""

# pyright: reportPrivateUsage=false

import base64
import io
import json
import os
import pickle
import struct
import tarfile
import threading
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.cli import app
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.inference.base import VerbModel
from sensorium.io import tar_files
from sensorium.io.tar_index import read_tar_index
from sensorium.io.untrusted import open_regular
from sensorium.modalities.audio import Audio
from sensorium.modalities.image import Image
from sensorium.modalities.image_decode import decode_image
from sensorium.modalities.series_io import read_series
from sensorium.search.index import Index


def png(seed: int) -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", (6, 6), (seed * 37 % 256, seed * 11 % 256, seed % 256)).save(out, "PNG")
    return out.getvalue()


def wav(seed: int) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(8000)
        f.writeframes(bytes([seed, 1] * 400))
    return out.getvalue()


def write_tar(
    path: Path, files: list[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as f:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            f.addfile(info, io.BytesIO(content))
    return path


def sample(i: int) -> list[tuple[str, bytes]]:
    fields = json.dumps({"caption": f"picture {i}", "width": i, "exif": {}, "url": "http://a.b/c"})
    return [
        (f"{i:06}.png", png(i)),
        (f"{i:06}.txt", f"picture {i}".encode()),
        (f"{i:06}.json", fields.encode()),
        (f"{i:06}.cls", str(i % 2).encode()),
    ]


def shard(path: Path, numbers: range) -> Path:
    return write_tar(path, [file for i in numbers for file in sample(i)])


def kinds(data: Dataset) -> dict[str, str]:
    both = {**data.schema.columns, **data.schema.roles}
    return {name: both[name].kind for name in data.table.columns}


# Rows --------------------------------------------------------------------------------------------


def test_samples_are_rows(tmp_path: Path) -> None:
    data = Dataset.open(shard(tmp_path / "a.tar", range(40)))
    assert len(data) == 40
    assert kinds(data) == {
        "image": "image",
        "caption": "text",
        "width": "numeric",
        "exif": "ignore",
        "url": "ignore",
        "label": "category",
    }
    assert data.raw("caption", [7]) == [["picture 7"]]
    assert data.raw("label", [6, 7]) == ["0", "1"]
    assert data.location(3) == "a.tar/000003"
    member = data.raw("image", [5])[0]
    assert open_regular(member).read() == png(5)
    expected = Image(size=6).load(png(5))
    assert np.array_equal(data.schema.columns["image"].modality.load(member)[:1], expected[:1]) or (
        np.array_equal(Image(size=6).load(member), expected)
    )
    assert not data.notes
    assert not data.bad_samples


def test_all_kinds_of_endings(tmp_path: Path) -> None:
    series = io.BytesIO()
    np.save(series, np.arange(12, dtype=np.float32).reshape(6, 2))
    files = []
    for i in range(20):
        files += [
            (f"set/{i}.jpg", png(i)),
            (f"set/{i}.mask.png", png(i + 1)),
            (f"set/{i}.wav", wav(i)),
            (f"set/{i}.npy", series.getvalue()),
            (f"set/{i}.de.txt", f"Bild {i}".encode()),
            (f"set/{i}.class", b"cat\n"),
            (f"set/{i}.pyd", b"\x80\x04."),
        ]
    data = Dataset.open(write_tar(tmp_path / "a.tar", files))
    assert kinds(data) == {
        "image": "image",
        "mask": "image",
        "audio": "audio",
        "series": "series",
        "caption_de": "text",
        "label": "category",
    }
    assert data.notes == ["a.tar/: 20 .pyd: not read"]
    assert np.array_equal(
        Audio(max_seconds=60).load(data.raw("audio", [3])[0]), Audio(max_seconds=60).load(wav(3))
    )
    _, values = read_series(data.raw("series", [3])[0])
    assert values.shape == (6, 2)
    assert values[5, 1] == 11


def test_folder_of_shards_with_what_img2dataset_leaves(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"{number:05}.tar", range(10 * number, 10 * number + 10))
        (tmp_path / f"{number:05}.parquet").write_bytes(b"metadata")
        (tmp_path / f"{number:05}_stats.json").write_text("{}")
    (tmp_path / "notes.docx").write_text("x")
    data = Dataset.open(tmp_path)
    assert len(data) == 30
    assert "split" not in data.table.columns
    assert data.location(29) == "00002.tar/000029"
    assert data.raw("caption", [29]) == [["picture 29"]]
    assert data.notes == ["notes.docx: not read, since the archives are"]


def test_names_of_shards_and_folders_are_splits(tmp_path: Path) -> None:
    shard(tmp_path / "a" / "cc-train-0000.tar", range(10))
    shard(tmp_path / "a" / "cc-validation-0000.tar", range(10, 14))
    shard(tmp_path / "b" / "train" / "0.tar", range(10))
    shard(tmp_path / "b" / "val" / "0.tar", range(10, 14))
    for folder in ("a", "b"):
        data = Dataset.open(tmp_path / folder)
        assert len(data.splits["train"]) == 10
        assert len(data.splits["val"]) == 4


def test_classes_are_the_folders_in_an_archive(tmp_path: Path) -> None:
    files = [(f"./pets/{('cat', 'dog')[i % 2]}/{i}.png", png(i)) for i in range(8)]
    data = Dataset.open(write_tar(tmp_path / "pets.tar", files))
    assert kinds(data) == {"image": "image", "label": "category"}
    assert set(data.raw("label", range(8))) == {"cat", "dog"}


def test_names_with_many_dots_are_single_images(tmp_path: Path) -> None:
    files = [(f"photo_{i}.{i}m.at 3.15.png", png(i)) for i in range(80)]
    data = Dataset.open(write_tar(tmp_path / "a.tar", files))
    assert kinds(data) == {"image": "image"}
    assert len(data) == 80


@pytest.mark.parametrize(
    "pattern", ["{000..002}.tar", "00{0,1,2}.tar", "*.tar", "00[0-2].tar", "00?.tar"]
)
def test_patterns_of_shards(tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        shard(tmp_path / "shards" / f"{number:03}.tar", range(5 * number, 5 * number + 5))
    data = Dataset.open(tmp_path / "shards" / pattern)
    assert [data.raw("caption", [i]) for i in (0, 14)] == [[["picture 0"]], [["picture 14"]]]
    monkeypatch.chdir(tmp_path)
    relative = Dataset.open(f"shards/{pattern}")
    assert len(relative) == 15
    monkeypatch.chdir(tmp_path.parent)
    assert len(Dataset.open(relative.source["path"])) == 15


def test_missing_shards_of_a_pattern_are_named(tmp_path: Path) -> None:
    shard(tmp_path / "000.tar", range(5))
    with pytest.raises(SensoriumError, match=r"001\.tar"):
        Dataset.open(tmp_path / "{000..001}.tar")
    with pytest.raises(SensoriumError, match="matches"):
        Dataset.open(tmp_path / "x*.tar")
    with pytest.raises(SensoriumError, match="more than"):
        Dataset.open(tmp_path / "{000000..999999}.tar")


def test_patterns_of_tables(tmp_path: Path) -> None:
    for number in range(2):
        lines = "\n".join(f"{i},word {i}" for i in range(5 * number, 5 * number + 5))
        (tmp_path / f"part-{number}.csv").write_text(f"n,text\n{lines}\n")
    assert len(Dataset.open(tmp_path / "part-*.csv")) == 10
    assert len(Dataset.open(tmp_path)) == 10


def test_rows_in_archives_identify_content(tmp_path: Path) -> None:
    files = [(f"{i}.png", png(i % 10)) for i in range(20)]
    data = Dataset.open(write_tar(tmp_path / "a.tar", files))
    groups = data.groups()
    assert groups[3] == groups[13]
    assert len(set(groups.tolist())) == 10


def test_a_dataset_of_archives_pickles(tmp_path: Path) -> None:
    data = Dataset.open(shard(tmp_path / "a.tar", range(5)))
    member = pickle.loads(pickle.dumps(data.raw("image", [3])[0]))  # noqa: S301 - its own
    assert open_regular(member).read() == png(3)


def test_archives_are_read_by_several_threads(tmp_path: Path) -> None:
    data = Dataset.open(shard(tmp_path / "a.tar", range(50)))
    members = data.raw("image", range(50))
    wrong: list[int] = []

    def read() -> None:
        wrong.extend(i for i, m in enumerate(members) if open_regular(m).read() != png(i))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def num_open_files() -> int:
    """Return how many files this process has open, 0 where that is not known."""
    folder = Path("/proc/self/fd")
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def test_few_archives_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_files, "MAX_OPEN_ARCHIVES", 3)
    for number in range(12):
        shard(tmp_path / f"{number:03}.tar", range(2 * number, 2 * number + 2))
    data = Dataset.open(tmp_path)
    before = num_open_files()
    for _ in range(3):
        for i, member in enumerate(data.raw("image", range(24))):
            assert open_regular(member).read() == png(i)
    assert num_open_files() <= before + 3


def test_changed_archive_is_an_error_of_the_row(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", range(5))
    data = Dataset.open(path)
    tar_files._OPEN_FILES.files.clear()
    shard(path, range(50, 57))
    with pytest.raises(ValueError, match="has changed since"):
        Image(size=6).load(data.raw("image", [0])[0])


def test_json_fields_do_not_hide_the_files_of_a_sample(tmp_path: Path) -> None:
    files = []
    for i in range(20):
        fields = {"image": f"http://a.b/{i}.png", "label": f"long name {i}", "caption": f"c {i}"}
        files += [
            (f"{i}.json", json.dumps(fields).encode()),
            (f"{i}.png", png(i)),
            (f"{i}.cls", b"cat"),
        ]
    data = Dataset.open(write_tar(tmp_path / "a.tar", files))
    assert kinds(data) == {
        "image": "image",
        "label": "category",
        "image (json)": "ignore",
        "label (json)": "text",
        "caption": "text",
    }
    assert open_regular(data.raw("image", [4])[0]).read() == png(4)


def test_table_in_an_archive_is_no_sample(tmp_path: Path) -> None:
    files = [*sample(1), *sample(2), ("metadata.csv", b"a,b"), (".hidden.png", b"x")]
    data = Dataset.open(write_tar(tmp_path / "a.tar", files))
    assert len(data) == 2
    assert data.notes == ["a.tar/: 1 .csv, 1 .png: not read"]


def test_archive_beside_the_folder_that_was_unpacked_from_it(tmp_path: Path) -> None:
    (tmp_path / "flowers.tgz").write_bytes(b"\x1f\x8b" + bytes(100))
    write_tar(tmp_path / "flowers.tar", sample(1))
    for i in range(6):
        (tmp_path / "jpg" / ("rose", "lily")[i % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "jpg" / ("rose", "lily")[i % 2] / f"{i}.png").write_bytes(png(i))
    data = Dataset.open(tmp_path)
    assert len(data) == 6
    assert kinds(data) == {"image": "image", "label": "category"}
    assert data.notes == ["1 .tar, 1 .tgz: not read"]


# Hostile and damaged archives --------------------------------------------------------------------


def header(name: str, size: int, type_flag: bytes = b"0", **fields: bytes) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[124:136] = fields.get("digits", f"{size:011o}\0".encode())
    block[156:157] = type_flag
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


GOOD = b"".join(header(f"{i}.png", len(png(i))) + padded(png(i)) for i in range(20))
END = bytes(1024)


@pytest.mark.parametrize(
    ("entry", "location", "reason"),
    [
        (header("../../etc/x.png", 4) + padded(b"abcd"), "../../etc/x.png", "leads out"),
        (header("/etc/x.png", 4) + padded(b"abcd"), "/etc/x.png", "leads out"),
        (header("a/../../x.png", 4) + padded(b"abcd"), "a/../../x.png", "leads out"),
        (header("l.png", 0, b"2"), "l.png", "a link"),
        (header("l.png", 9999, b"1"), "l.png", "a link"),
        (header("d.png", 0, b"3"), "d.png", "a device"),
        (header("f.png", 0, b"6"), "f.png", "a FIFO"),
        (header("u.png", 0, b"Z"), "u.png", "type"),
        (header("3.png", 4) + padded(b"abcd"), "3.png", "occurs twice"),
        (header("s.png", 512, b"S") + bytes(512), "s.png", "sparse"),
    ],
)
def test_entries_that_are_no_files_are_set_aside(
    tmp_path: Path, entry: bytes, location: str, reason: str
) -> None:
    (tmp_path / "a.tar").write_bytes(GOOD + entry + header("z.png", 3) + padded(b"abc") + END)
    data = Dataset.open(tmp_path / "a.tar")
    assert len(data) == 21
    assert [b.location for b in data.bad_samples] == [f"a.tar/{location}"]
    assert reason in data.bad_samples[0].reason
    assert open_regular(data.raw("image", [3])[0]).read() == png(3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (GOOD, "no end mark"),
        (GOOD + header("z.png", 5000) + b"abc", "cut inside z.png, which has 5,000 bytes"),
        (GOOD + header("z.png", 8**11 - 1) + END, "cut inside z.png"),
        (
            GOOD + header("z.png", 0, digits=b"\x80" + (1 << 70).to_bytes(11, "big")) + END,
            "cut inside z.png",
        ),
        (GOOD + header("z.png", 0, digits=b"\xff" * 12) + END, "is not a size"),
        (GOOD + header("z.png", 3)[:300], "inside a header"),
        (GOOD + b"x" * 512 + END, "wrong checksum"),
        (GOOD + header("L", 1 << 30, b"L") + END, "extended header"),
        (GOOD + header("x", 10, b"x") + padded(b"not a pax!") + END, "PAX"),
        (GOOD + header("x", 20, b"x") + padded(b"99999999999999999 a=b\n") + END, "PAX"),
        (
            GOOD + header("x", 14, b"x") + padded(b"14 size=abcde\n") + header("z.png", 0) + END,
            "size",
        ),
        (GOOD + END + bytes(8192) + GOOD + END, "another archive follows"),
    ],
)
def test_damaged_archives_keep_what_comes_before(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    data = Dataset.open(tmp_path / "a.tar")
    assert len(data) == 20
    assert [b.location for b in data.bad_samples] == ["a.tar"]
    assert reason in data.bad_samples[0].reason


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.tar", b"", "not a tar archive"),
        ("a.tar", b"PK\x03\x04" + bytes(2000), "not a tar archive"),
        ("a.tar.gz", b"\x1f\x8b" + bytes(2000), "packed by gzip"),
        ("a.tar", b"\x1f\x8b" + bytes(2000), "packed by gzip"),
        ("a.tar", END, "hold no sample"),
        ("a.tar", header("readme", 0) + END, "hold no sample"),
    ],
)
def test_what_is_no_archive_of_samples_is_an_error(
    tmp_path: Path, name: str, content: bytes, error: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SensoriumError, match=error):
        Dataset.open(tmp_path / name)
    with pytest.raises(SensoriumError, match=error):
        Dataset.open(tmp_path)


def test_archives_that_are_no_files_are_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(SensoriumError, match="not a regular file"):
        Dataset.open(tmp_path / "a.tar")


def test_damaged_texts_in_an_archive_are_bad_rows(tmp_path: Path) -> None:
    files = [file for i in range(20) for file in sample(i)]
    files[1] = ("000000.txt", b"caf\xe9")
    files[6] = ("000001.json", b'{"caption": ')
    data = Dataset.open(write_tar(tmp_path / "a.tar", files))
    assert sorted(b.location for b in data.bad_samples) == [
        "a.tar/000000.txt",
        "a.tar/000001.json",
    ]
    assert len(data) == 18


def test_npy_of_objects_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}], dtype=object))
    huge = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    huge += (
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999,), }".ljust(117) + b"\n"
    )
    path = write_tar(tmp_path / "a.tar", [("1.npy", out.getvalue()), ("2.npy", huge)])
    for member in read_tar_index(path).members:
        with pytest.raises(ValueError, match="damaged, or not an array"):
            read_series(member)


# The index against tarfile -----------------------------------------------------------------------

NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=80
)
PATHS = st.lists(NAMES.filter(lambda n: n not in (".", "..")), min_size=1, max_size=6).map("/".join)


@settings(max_examples=60, deadline=None)
@given(
    files=st.dictionaries(PATHS, st.binary(max_size=2000), min_size=1, max_size=8),
    tar_format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_index_agrees_with_tarfile(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], tar_format: int
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    write_tar(path, list(files.items()), tar_format)
    index = read_tar_index(path)
    assert not index.damage
    assert not index.skipped
    with tarfile.open(path) as f:
        expected = {m.name: (m.offset_data, m.size) for m in f if m.isfile()}
    assert {m.name: (m.offset, m.size) for m in index.members} == expected
    assert {m.name: m.read() for m in index.members} == files


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_random_damage_is_an_error_or_fewer_rows(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(GOOD[:6000] + END)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(content[:cut])
    try:
        index = read_tar_index(path)
    except SensoriumError:
        return
    for member in index.members:
        assert len(member.read()) == member.size


def test_long_names_in_all_formats(tmp_path: Path) -> None:
    long = "/".join(["folder" * 10] * 4) + "/" + "n" * 120 + ".png"
    ustar = "/".join(["folder"] * 20) + "/" + "n" * 60 + ".png"
    for tar_format, name in (
        (tarfile.PAX_FORMAT, long),
        (tarfile.GNU_FORMAT, long),
        (tarfile.USTAR_FORMAT, ustar),
    ):
        path = write_tar(tmp_path / "a.tar", [(name, png(1)), ("b.png", png(2))], tar_format)
        assert [m.name for m in read_tar_index(path).members] == [name, "b.png"]


def as_columns(data: Dataset) -> dict[str, list[Any]]:
    return {name: data.raw(name, range(len(data))) for name in data.table.columns}


def test_unpacked_and_packed_samples_are_the_same_rows(tmp_path: Path) -> None:
    names = [file for i in range(12) for file in sample(i)[:3]]
    write_tar(tmp_path / "packed" / "a.tar", names)
    for name, content in names:
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / name).write_bytes(content)
    packed, files = Dataset.open(tmp_path / "packed"), Dataset.open(tmp_path / "files")
    assert kinds(packed) == kinds(files)
    left, right = as_columns(packed), as_columns(files)
    assert [open_regular(m).read() for m in left.pop("image")] == [
        p.read_bytes() for p in right.pop("image")
    ]
    del left["exif"], right["exif"]
    assert left == right
    assert packed.groups().tolist() == files.groups().tolist()
    assert {k: v.tolist() for k, v in packed.splits.items()} == {
        k: v.tolist() for k, v in files.splits.items()
    }


# Train, index, evaluate and predict --------------------------------------------------------------


class PixelModel(VerbModel):
    """Embeds an image as its pixels."""

    fingerprint = "f" * 64

    def __init__(self) -> None:
        super().__init__("model of pixels", {"embed": self._embed})

    def _embed(self, image: Sequence[Any]) -> np.ndarray:
        vectors = np.stack([decode_image(i, 4).reshape(-1) + 1.0 for i in image])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def coloured(i: int) -> bytes:
    out = io.BytesIO()
    color = (255, 0, i % 50) if i % 2 else (0, 0, 200 + i % 50)
    PIL.Image.new("RGB", (16, 16), color).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("source", ["shards", "base64.csv"])
def test_runs_on_rows_that_are_no_files(
    tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        (f"{i:03}.{ending}", content)
        for i in range(60)
        for ending, content in (("png", coloured(i)), ("cls", str(i % 2).encode()))
    ]
    write_tar(tmp_path / "shards" / "0.tar", files[:60])
    write_tar(tmp_path / "shards" / "1.tar", files[60:])
    lines = [f"{base64.b64encode(coloured(i)).decode()},{i % 2}" for i in range(60)]
    (tmp_path / "base64.csv").write_text("image,label\n" + "\n".join(lines) + "\n")
    path = str(tmp_path / source)
    run = str(tmp_path / "run")
    options = [
        "--target",
        "label",
        "--epochs",
        "2",
        "--batch-size",
        "16",
        "--precision",
        "fp32",
        "--dim",
        "16",
    ]

    def command(*arguments: str) -> str:
        code = app.run(list(arguments))
        output = capsys.readouterr()
        assert not code, output.err
        return output.out + output.err

    assert "60 rows, 0 bad" in command("data", path)
    command("train", "fusion", path, "--out", run, *options)
    command("train", "fusion", path, "--out", run, "--resume", *options)
    command("evaluate", run, path)
    out = tmp_path / "out.csv"
    command("predict", run, path, "-o", str(out))
    lines = out.read_text().splitlines()
    assert len(lines) == 61
    with Index.build(PixelModel(), Dataset.open(path)) as index:
        assert len(index) == 60
