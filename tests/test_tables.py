"""Folders, table files, splits and groups: what is read, what is left out, and the errors."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import sensorium.data.type_inference
from sensorium.data.dataset import Dataset
from sensorium.data.splits import split_by_hash
from sensorium.errors import SensoriumError

NAMES = [f"p{i:02}.png" for i in range(20)]
CAPTIONS = [f"a picture of thing number {i}, seen at noon" for i in range(20)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty small images, all different."""
    for i, name in enumerate(NAMES):
        PIL.Image.new("RGB", (4, 4), (i * 12, 0, 255 - i * 12)).save(tmp_path / name)
    return tmp_path


def table(path: Path, rows: list[list[Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f, delimiter=delimiter).writerows(rows)
    return path


def open_error(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(SensoriumError) as e:
        Dataset.open(*args, **kwargs)
    return str(e.value)


def kinds(data: Dataset) -> dict[str, str]:
    both = {**data.schema.columns, **data.schema.roles}
    return {name: both[name].kind for name in data.table.columns}


# Folders ----------------------------------------------------------------------


def test_captions_from_sidecar_files(photos: Path) -> None:
    for name, caption in zip(NAMES, CAPTIONS, strict=True):
        (photos / name).with_suffix(".txt").write_text(
            f"{caption}\n\nthe same in other words\n{caption}\n"
        )
    data = Dataset.open(photos)
    assert kinds(data) == {"image": "image", "caption": "text"}
    assert len(data) == 20
    assert not data.bad_samples
    assert data.raw("image", [3]) == [photos / NAMES[3]]
    assert data.raw("caption", [3]) == [[CAPTIONS[3], "the same in other words"]]
    assert "20 of 20 images" in data.schema.columns["caption"].reason


def test_json_sidecars_become_columns(photos: Path) -> None:
    shapes: list[Any] = [
        "one",
        ["one", "two"],
        {"caption": "one", "price": 3},
        {"text": ["one", "two"], "price": 4.5},
        {"captions": ["one"], "image": "shadow"},
    ]
    for name, value in zip(NAMES, shapes, strict=False):
        (photos / name).with_suffix(".json").write_text(json.dumps(value))
    data = Dataset.open(photos)
    assert data.raw("caption", range(6)) == [
        ["one"],
        ["one", "two"],
        ["one"],
        ["one", "two"],
        ["one"],
        None,
    ]
    assert data.raw("price", range(5)) == [None, None, 3, 4.5, None]
    assert kinds(data)["image (sidecar)"] == "text"


def test_text_and_json_sidecars_are_merged(photos: Path) -> None:
    (photos / "p00.txt").write_text("one")
    (photos / "p00.json").write_text(
        '{"caption": "one", "captions_more": "x", "url": "https://a.b/c.jpg"}'
    )
    data = Dataset.open(photos)
    assert data.raw("caption", [0, 1]) == [["one"], None]
    assert kinds(data)["url"] == "ignore"


def test_broken_sidecars_are_bad_samples(photos: Path) -> None:
    for name, caption in zip(NAMES, CAPTIONS, strict=True):
        (photos / name).with_suffix(".txt").write_text(caption)
    (photos / "p00.txt").write_bytes(b"caf\xe9")
    (photos / "p01.txt").unlink()
    (photos / "p01.json").write_text('{"caption": ')
    (photos / "p02.txt").unlink()
    (photos / "p02.json").write_text('{"caption": [1, 2]}')
    (photos / "alone.txt").write_text("no picture")
    (photos / "README.txt").write_text("not a caption")
    (photos / "p99.heic").write_bytes(b"x")
    message = open_error(photos, max_invalid_fraction=0)
    assert "5 of 22 rows" in message
    assert "--max-invalid-fraction" in message
    assert "p00.txt" in message
    data = Dataset.open(photos, max_invalid_fraction=0.5)
    reasons = {b.location: b.reason for b in data.bad_samples}
    assert sorted(reasons) == ["alone.txt", "p00.txt", "p01.json", "p02.json", "p99.heic"]
    assert "utf-8" in reasons["p00.txt"]
    assert "invalid JSON" in reasons["p01.json"]
    assert "JPEG" in reasons["p99.heic"]
    assert len(data) == 17
    assert all(b.row == -1 for b in data.bad_samples)


def test_folder_per_class(photos: Path) -> None:
    for i, name in enumerate(NAMES):
        (photos / ("cat", "dog")[i % 2]).mkdir(exist_ok=True)
        (photos / name).rename(photos / ("cat", "dog")[i % 2] / name)
    data = Dataset.open(photos)
    assert kinds(data) == {"image": "image", "label": "category"}
    assert sorted(set(data.raw("label", range(20)))) == ["cat", "dog"]
    assert data.location(0) == "cat/p00.png"


def test_folders_named_like_splits_are_splits(photos: Path) -> None:
    for i, name in enumerate(NAMES):
        folder = photos / ("training", "validation", "test")[i % 3] / ("cat", "dog")[i // 10]
        folder.mkdir(parents=True, exist_ok=True)
        (photos / name).rename(folder / name)
    data = Dataset.open(photos)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 7, "val": 7, "test": 6}
    assert data.raw("image", data.splits["test"])[0] == photos / "test" / "cat" / "p02.png"
    assert set(data.raw("label", range(20))) == {"cat", "dog"}
    assert data.split_rule == "from the column 'split'"


@pytest.mark.parametrize("name", ["metadata.csv", "captions.tsv", "metadata.jsonl", "anything.csv"])
def test_table_in_a_folder(photos: Path, name: str) -> None:
    if name.endswith("jsonl"):
        rows = [
            json.dumps({"file_name": n, "text": c}) for n, c in zip(NAMES, CAPTIONS, strict=True)
        ]
        (photos / name).write_text("\n".join(rows))
    else:
        table(
            photos / name,
            [["file_name", "text"], *map(list, zip(NAMES, CAPTIONS, strict=True))],
            "\t" if name.endswith("tsv") else ",",
        )
    data = Dataset.open(photos)
    assert kinds(data) == {"file_name": "image", "text": "text"}
    assert data.raw("text", [5]) == [CAPTIONS[5]]
    assert "20 of 20 values end in .png and 20 exist" in data.schema.columns["file_name"].reason
    assert data.location(0).startswith(name)


def test_folder_of_tables_per_split(photos: Path) -> None:
    for part, part_names in (("train", NAMES[:12]), ("test", NAMES[12:])):
        (photos / part).mkdir()
        for name in part_names:
            (photos / name).rename(photos / part / name)
        table(
            photos / part / "metadata.csv",
            [["file_name", "text"], *([n, f"about {n}"] for n in part_names)],
        )
    data = Dataset.open(photos)
    assert data.splits["test"].tolist() == list(range(8))
    assert len(data.splits["train"]) + len(data.splits["val"]) == 12
    assert data.location(0) == "test/metadata.csv:2"
    assert data.raw("file_name", [0]) == [photos / "test" / "p12.png"]
    assert "val is 10 % of train" in data.split_rule


def test_folder_with_several_tables_is_read_by_the_one_that_names_images(photos: Path) -> None:
    for name in ("a.csv", "b.csv"):
        table(photos / name, [["file", "text"], ["p00.png", "x"]])
    assert (
        Dataset.open(photos).table.notes
        == [
            "b.csv: not read, since a.csv names the most files",
            "19 .png: not named in a.csv",
        ][::-1]
    )
    for name in ("a.csv", "b.csv"):
        table(photos / name, [["price", "text"], ["1", "x"]])
    assert "a.csv, b.csv" in open_error(photos)


def test_hidden_files_are_ignored(photos: Path) -> None:
    (photos / "._p00.png").write_bytes(b"what macOS leaves")
    (photos / "__MACOSX").mkdir()
    (photos / "__MACOSX" / "p00.png").write_bytes(b"x")
    assert len(Dataset.open(photos)) == 20


def test_symlinks_are_followed_without_cycles(
    photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("linked")
    (folder / "cat").symlink_to(photos)
    (folder / "dog").mkdir()
    (folder / "dog" / "again").symlink_to(folder)
    (folder / "dog" / "gone.png").symlink_to(folder / "nowhere.png")
    data = Dataset.open(folder)
    assert len(data) == 21
    assert data.location(20) == "dog/gone.png"


# Files of rows ----------------------------------------------------------------


def test_csv_of_spreadsheets(photos: Path) -> None:
    text = (
        'file;words;price\r\np00.png;"one; with ""marks""";1.5\r\n\r\np01.png;"two\nlines";\r\n'
        "p02.png;drei Äpfel;n/a\r\n"
    )
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (photos / "a.csv").write_text(text, encoding=encoding, newline="")
        data = Dataset.open(photos / "a.csv", types={"words": "text", "price": "numeric"})
        assert data.raw("words", range(3)) == ['one; with "marks"', "two\nlines", "drei Äpfel"]
        assert data.raw("price", range(3)) == [1.5, None, None]
        assert [data.location(i) for i in range(3)] == ["a.csv:2", "a.csv:4", "a.csv:6"]


def test_unreadable_rows_are_bad_samples(photos: Path) -> None:
    rows = [f"{n},{c}" for n, c in zip(NAMES, ["words"] * 20, strict=True)]
    rows[3:5] = ["p03.png", "p04.png,a,b,c"]
    rows[7] = 'p07.png,"a "quoted" word"'
    (photos / "a.csv").write_text("file,caption\n" + "\n".join(rows) + "\n")
    data = Dataset.open(photos / "a.csv", max_invalid_fraction=0.2)
    assert [b.location for b in data.bad_samples] == ["a.csv:5", "a.csv:6", "a.csv:9"]
    assert len(data) == 17
    assert "1 cells, but the header has 2" in data.bad_samples[0].reason
    assert "quotation marks" in data.bad_samples[2].reason
    assert data.raw("file", [5]) == [photos / "p08.png"]  # reading went on with the next line
    assert "3 of 20 rows" in open_error(photos / "a.csv", max_invalid_fraction=0)
    (photos / "a.csv").write_text("file,caption\np00.png,x\n" + 'p01.png,"x\np02.png,"y"\n')
    assert (
        Dataset.open(photos / "a.csv", max_invalid_fraction=0.5).bad_samples[0].location
        == "a.csv:3-4"
    )  # two lines that became one row
    (photos / "a.csv").write_text("file,caption\np00.png\n")
    assert "1 of 1 rows" in open_error(
        photos / "a.csv", max_invalid_fraction=1
    )  # nothing would be left


def test_unclosed_quotation_mark_is_an_error(photos: Path) -> None:
    (photos / "a.csv").write_text(
        'file,caption\np00.png,one\np01.png,"two\n' + "p02.png,three\n" * 20_000
    )
    assert "a.csv:3: a quotation mark opens here" in open_error(photos / "a.csv")
    (photos / "a.csv").write_text('file,caption\np00.png,one\np01.png,"two\np02.png,three\n')
    assert "a.csv:3: a quotation mark opens here" in open_error(photos / "a.csv")


def test_wrong_encoding_is_an_error_with_line(photos: Path) -> None:
    (photos / "a.csv").write_bytes(b"file,caption\np00.png,one\np01.png,caf\xe9\n")
    assert "a.csv:3" in open_error(photos / "a.csv")
    assert "--source-option encoding=latin-1" in open_error(photos / "a.csv")
    data = Dataset.open(photos / "a.csv", encoding="latin-1")
    assert data.raw("caption", [1]) == ["café"]
    assert "unknown encoding 'utf-9'" in open_error(photos / "a.csv", encoding="utf-9")


def test_tsv_with_bare_quotation_marks(photos: Path) -> None:
    (photos / "a.csv").write_text('filepath\ttitle\np00.png\t"Hello, she said\np01.png\t5" nails\n')
    data = Dataset.open(photos / "a.csv")
    assert kinds(data) == {"filepath": "image", "title": "text"}
    assert data.raw("title", range(2)) == ['"Hello, she said', '5" nails']


def test_lists_of_captions(photos: Path) -> None:
    (photos / "a.jsonl").write_text(
        "\n".join(
            json.dumps({"image": n, "captions": [c, "other"], "n": i})
            for i, (n, c) in enumerate(zip(NAMES, CAPTIONS, strict=True))
        )
    )
    table(
        photos / "a.csv",
        [
            ["image", "captions"],
            *([n, json.dumps([c, "other"])] for n, c in zip(NAMES, CAPTIONS, strict=True)),
        ],
    )
    for name in ("a.jsonl", "a.csv"):
        data = Dataset.open(photos / name)
        assert data.raw("captions", [2]) == [[CAPTIONS[2], "other"]]
        assert kinds(data)["captions"] == "text"
        assert "lists of texts, 2.0 per row" in data.schema.columns["captions"].reason


def test_invalid_jsonl_lines_are_bad_samples(photos: Path) -> None:
    lines = [json.dumps({"image": n, "text": c}) for n, c in zip(NAMES, CAPTIONS, strict=True)]
    lines[4], lines[5], lines[6] = '{"image": ', "[1, 2]", "[" * 100_000
    (photos / "a.jsonl").write_text("\n".join(lines))
    data = Dataset.open(photos / "a.jsonl", max_invalid_fraction=0.2)
    assert [b.location for b in data.bad_samples] == ["a.jsonl:5", "a.jsonl:6", "a.jsonl:7"]
    assert len(data) == 17


def test_parquet(photos: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pictures = [{"bytes": (photos / n).read_bytes(), "path": n} for n in NAMES]
    whole = pa.table(
        {
            "image": pictures,
            "raw": [p["bytes"] for p in pictures],
            "label": [i % 2 for i in range(20)],
            "captions": [[c, "other"] for c in CAPTIONS],
            "nested": [{"a": 1}] * 20,
            "price": np.arange(20) / 7,
            "when": np.arange(20).astype("M8[ns]"),
        }
    )
    classes = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    pq.write_table(
        whole.replace_schema_metadata({"huggingface": json.dumps(classes)}), photos / "a.parquet"
    )
    data = Dataset.open(photos / "a.parquet")
    assert kinds(data) == {
        "image": "image",
        "raw": "image",
        "label": "category",
        "captions": "text",
        "nested": "ignore",
        "price": "numeric",
        "when": "datetime",
    }
    assert data.raw("image", [1]) == [pictures[1]["bytes"]]
    assert data.raw("label", [0, 1]) == ["cat", "dog"]
    assert data.raw("captions", [1]) == [[CAPTIONS[1], "other"]]
    assert data.location(0) == "a.parquet:1"
    for part in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        (photos / "hub" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(whole, photos / "hub" / "data" / f"{part}.parquet")
    hub = Dataset.open(photos / "hub")
    assert {k: len(v) for k, v in hub.splits.items()} == {"train": 40, "val": 20}
    assert hub.location(20) == "data/train-00001-of-00002.parquet:1"
    (photos / "b.parquet").write_bytes(b"PAR1 not really")
    assert "b.parquet is not a readable Parquet file" in open_error(photos / "b.parquet")


def test_parquet_without_pyarrow_names_the_extra(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "a.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'pip install "sensorium[data]"' in open_error(photos / "a.parquet")


# Errors -----------------------------------------------------------------------


def wide_record(row: int) -> str:
    """Return a record of 2,000 keys, which no other row has."""
    return json.dumps({f"k{row}_{i}": 1 for i in range(2000)})


def broken(write: Callable[[Path], Any], name: str = "a.csv") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    return make


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda folder: folder / "nothing.csv", "There is no file or folder"),
        (broken(lambda p: p.mkdir(), "empty"), "holds no image"),
        (
            broken(lambda p: (p.mkdir(), (p / "notes.md").write_text("x")), "notes"),
            "1 files, but no image",
        ),
        (broken(lambda p: p.write_text("")), "a.csv is empty"),
        (broken(lambda p: p.write_text("a,b\n")), "a.csv has no rows"),
        (broken(lambda p: p.write_text(""), "a.jsonl"), "a.jsonl is empty"),
        (broken(lambda p: p.write_text("a,b,a\n1,2,3\n")), "the column name 'a' occurs twice"),
        (broken(lambda p: p.write_text('"a"b,c\n1,2\n')), "a.csv:1: the header cannot be read"),
        (broken(lambda p: p.write_text("p00.png,words\n")), "has no header"),
        (broken(lambda p: p.write_text("x"), "a.xlsx"), "has an unsupported file type"),
        (
            broken(lambda p: p.write_text("image,text\nhttps://a.b/c.jpg,x\nhttp://a.b/d.jpg,y\n")),
            "nothing is fetched",
        ),
        (
            broken(lambda p: p.write_text("image,text\n../../etc/x.png,x\n")),
            "leads out of the data folder",
        ),
        (broken(lambda p: p.write_text("image,text\ngone/x.png,x\n")), "there is no file"),
        (
            broken(
                lambda p: p.write_text("\n".join(map(wide_record, range(10)))),
                "a.jsonl",
            ),
            "different keys",
        ),
    ],
)
def test_unreadable_source_is_an_error(
    photos: Path, make: Callable[[Path], Path], error: str
) -> None:
    path = make(photos)
    assert error in open_error(path)


def test_unknown_columns_and_options_are_errors(photos: Path) -> None:
    path = table(photos / "a.csv", [["file", "caption"], ["p00.png", "x"]])
    assert "did you mean 'caption'?" in open_error(path, types={"captoin": "text"})
    assert "--type caption=sound: 'sound' is not a type. Choose image, text" in open_error(
        path, types={"caption": "sound"}
    )
    assert "no column 'artist'" in open_error(path, group="artist")
    assert "--split fold.csv is neither a column nor a file" in open_error(path, split="fold.csv")
    assert "unknown option 'langs' (--source-option). This source takes encoding" in open_error(
        path, langs=["en"]
    )
    with pytest.raises(SensoriumError, match="no column 'captoin'"):
        Dataset.open(path).raw("captoin", [0])


def test_relative_paths_outside_the_folder_are_bad_samples(photos: Path) -> None:
    (photos / "sub").mkdir()
    path = table(
        photos / "sub" / "a.csv",
        [
            ["file", "caption"],
            ["../p00.png", "x"],
            [str(photos / "p01.png"), "y"],
            ["./x/../../p02.png", "z"],
            ["..\\p03.png", "w"],
        ],
    )
    data = Dataset.open(path, max_invalid_fraction=1)
    assert [b.location for b in data.bad_samples] == ["a.csv:2", "a.csv:4", "a.csv:5"]
    assert "full path" in data.bad_samples[0].reason
    assert data.raw("file", [0]) == [photos / "p01.png"]


def test_values_of_another_type_are_bad_samples(photos: Path) -> None:
    rows = [
        {"image": n, "price": i, "text": c}
        for i, (n, c) in enumerate(zip(NAMES, CAPTIONS, strict=True))
    ]
    rows[2]["price"], rows[3]["text"], rows[4]["image"] = "cheap", {"en": "x"}, 5
    rows[5]["image"], rows[6]["price"] = "https://a.b/c.png", 1e999
    (photos / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Dataset.open(photos / "a.jsonl", max_invalid_fraction=0.3)
    found = [f"{b.location} {b.column}".removeprefix("a.jsonl:") for b in data.bad_samples]
    assert sorted(found) == ["3 price", "4 text", "5 image", "6 image", "7 price"]
    assert len(data) == 15
    assert kinds(data) == {"image": "image", "price": "numeric", "text": "text"}


# Splits and groups ------------------------------------------------------------


def test_split_by_hash_is_stable_and_keeps_groups_together() -> None:
    keys = [f"k{i % 500}" for i in range(1500)]
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    splits = split_by_hash(keys, shares)
    sides = {name: {keys[i] for i in rows} for name, rows in splits.items()}
    assert sum(map(len, sides.values())) == 500
    assert 340 < len(sides["train"]) < 440
    longer = split_by_hash([*keys, *(f"new{i}" for i in range(300))], shares)
    assert all(set(rows) <= set(longer[name]) for name, rows in splits.items())


def test_split_by_hash_leaves_no_split_empty() -> None:
    for n in (3, 5, 10, 20):
        splits = split_by_hash([f"k{i}" for i in range(n)], {"train": 0.8, "val": 0.1, "test": 0.1})
        assert all(len(rows) for rows in splits.values())
        assert sum(map(len, splits.values())) == n
    assert [len(r) for r in split_by_hash(["a", "a"], {"train": 0.8, "val": 0.2}).values()] in (
        [2, 0],
        [0, 2],
    )


def test_identical_images_are_one_group(photos: Path) -> None:
    for i in range(5):
        (photos / f"copy{i}.png").write_bytes((photos / NAMES[i]).read_bytes())
    data = Dataset.open(photos)
    groups = data.groups()
    assert groups.dtype == np.int64
    assert len(set(groups.tolist())) == 20
    side = {int(i): name for name, rows in data.splits.items() for i in rows}
    names = [p.name for p in data.raw("image", range(25))]
    for i in range(5):
        a, b = names.index(f"copy{i}.png"), names.index(NAMES[i])
        assert groups[a] == groups[b]
        assert side[a] == side[b]
    assert "md5 of the content of 'image'" in data.split_rule


def test_groups_stay_in_one_split(photos: Path) -> None:
    path = table(
        photos / "a.csv",
        [
            ["file", "caption", "product_id"],
            *([n, c, i // 4] for i, (n, c) in enumerate(zip(NAMES, CAPTIONS, strict=True))),
        ],
    )
    data = Dataset.open(path)
    assert data.group_column == "product_id"
    assert len(set(data.groups().tolist())) == 5
    sides = [{int(data.groups()[i]) for i in rows} for rows in data.splits.values()]
    assert sum(map(len, sides)) == 5
    assert len(set.union(*sides)) == 5
    other = Dataset.open(path, group="caption")
    assert other.group_column == "caption"
    assert kinds(other)["product_id"] == "ignore"


def test_splits_from_a_column_and_from_a_file(photos: Path) -> None:
    path = table(
        photos / "a.csv",
        [
            ["file", "caption", "fold"],
            *(
                [n, c, ("Training", "valid", "test", "test_artist")[i % 4]]
                for i, (n, c) in enumerate(zip(NAMES, CAPTIONS, strict=True))
            ),
        ],
    )
    assert list(Dataset.open(path).splits) == ["train", "val", "test", "test_artist"]
    forms: dict[str, str] = {
        "s.csv": "file,split\n"
        + "".join(f"{n},{'test' if i < 5 else 'train'}\n" for i, n in enumerate(NAMES[:15])),
        "s.txt": "".join(f"{i} {'test' if i < 5 else 'train'}\n" for i in range(15)),
        "s.json": json.dumps(
            {"test": NAMES[:5], "train": [f"a.csv:{i + 2}" for i in range(5, 15)]}
        ),
        "t.json": json.dumps({n: "test" if i < 5 else "train" for i, n in enumerate(NAMES[:15])}),
    }
    for name, text in forms.items():
        (photos / name).write_text(text)
        data = Dataset.open(path, split=str(photos / name))
        assert data.splits["test"].tolist() == [0, 1, 2, 3, 4]
        assert kinds(data)["fold"] == "ignore"
        assert len(data.splits["train"]) + len(data.splits["val"]) == 10
        assert data.describe().num_unassigned == 5
    (photos / "s.csv").write_text("p00.png,test\nnobody.png,train\n")
    assert "s.csv:2 puts 'nobody.png'" in open_error(path, split=str(photos / "s.csv"))


def test_second_source_is_the_test_split(photos: Path) -> None:
    a = table(
        photos / "a.csv", [["file", "caption"], *map(list, zip(NAMES[:15], CAPTIONS, strict=False))]
    )
    (photos / "more").mkdir()
    (photos / "p19.png").rename(photos / "more" / "p19.png")
    b = table(photos / "more" / "b.csv", [["file", "caption"], ["p19.png", "held out"]])
    data = Dataset.open(a, test=b)
    assert data.splits["test"].tolist() == [15]
    assert len(data.splits["train"]) + len(data.splits["val"]) == 15
    assert data.raw("file", [15]) == [photos / "more" / "p19.png"]
    assert data.location(15) == "b.csv:2"


def test_take_keeps_rows_in_their_splits(photos: Path) -> None:
    data = Dataset.open(photos)
    part = data.take(data.splits["test"])
    assert len(part) == len(data.splits["test"])
    assert part.splits["test"].tolist() == list(range(len(part)))
    assert not len(part.splits["train"])
    assert part.raw("image", [0]) == data.raw("image", data.splits["test"][:1])
    assert part.location(0) == data.location(int(data.splits["test"][0]))


# Summaries --------------------------------------------------------------------


def test_describe_is_plain_data_that_rich_prints(photos: Path) -> None:
    path = table(
        photos / "a.csv",
        [
            ["file", "caption", "price"],
            *([n, c if i else "", i] for i, (n, c) in enumerate(zip(NAMES, CAPTIONS, strict=True))),
        ],
    )
    summary = Dataset.open(path).describe()
    assert [(c.name, c.kind, c.num_missing) for c in summary.columns] == [
        ("file", "image", 0),
        ("caption", "text", 1),
        ("price", "numeric", 0),
    ]
    assert summary.num_rows == 20
    assert sum(summary.split_sizes.values()) == 20
    assert summary.columns[2].examples == ("0", "1")
    from rich.console import Console

    console = Console(width=150, record=True, file=io.StringIO())
    console.print(summary)
    text = console.export_text()
    assert "20 of 20 values end in .png" in text
    assert "80 : 10 : 10 by md5" in text


def test_repr(photos: Path) -> None:
    assert repr(Dataset.open(photos)) == f"Dataset({photos.name!r}, 20 rows: image (image); 0 bad)"


def test_types_of_long_files_are_inferred_from_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensorium.data.type_inference, "MAX_SAMPLED_ROWS", 50)
    path = table(
        tmp_path / "a.csv",
        [["n", "text"], *(["x" if i == 5 else i, f"words {i}"] for i in range(1000))],
    )
    data = Dataset.open(path)
    assert "(in a sample of 50 of 1,000 rows)" in data.schema.columns["n"].reason
    assert [b.location for b in data.bad_samples] == ["a.csv:7"]
    assert len(data) == 999


def test_open_needs_no_extras(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for extra in ("pyarrow", "simplejpeg", "faiss"):
        monkeypatch.setitem(sys.modules, extra, None)
    assert len(Dataset.open(photos).describe().columns) == 1


def test_undecodable_images_are_found_by_prepare(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(photos / ".home"))
    (photos / "p03.png").write_bytes(b"not a picture")
    assert len(Dataset.open(photos)) == 20
    data = Dataset.open(photos, max_invalid_fraction=0)
    with pytest.raises(SensoriumError, match=r"1 of 20 rows.*\n.*p03\.png"):
        data.prepare(data.schema, ["image"])
    data = Dataset.open(photos, max_invalid_fraction=0.1)
    assert [(b.row, b.location) for b in data.prepare(data.schema, ["image"]).bad_samples] == [
        (3, "p03.png")
    ]


def test_empty_cells_are_a_row_and_blank_lines_are_not(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b\n1,x\n,\n\n \n2,y\n")
    data = Dataset.open(tmp_path / "table.csv")
    assert list(data.raw("a", range(len(data)))) == [1.0, None, 2.0]
    assert not data.bad_samples
    assert [data.location(row).rpartition(":")[2] for row in range(3)] == ["2", "3", "6"]
