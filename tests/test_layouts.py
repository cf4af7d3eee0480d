"""Folders and tables in the layouts people have: columns, rows, groups, splits, nothing unused."""

import base64
import csv
import io
import json
import unicodedata
import wave
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError


def picture(path: Path, seed: int = 0) -> Path:
    """Save a small image of a colour of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (6, 6), (seed * 37 % 256, seed * 11 % 256, seed % 256)).save(path)
    return path


def sound(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(8000)
        f.writeframes(bytes([seed, 0] * 800))
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def rows(path: Path, table: list[list[Any]], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f, delimiter=delimiter).writerows(table)
    return path


def kinds(data: Dataset) -> dict[str, str]:
    both = {**data.schema.columns, **data.schema.roles}
    return {name: both[name].kind for name in data.table.columns}


def values(data: Dataset, column: str) -> list[Any]:
    return data.raw(column, range(len(data)))


def sizes(data: Dataset) -> dict[str, int]:
    return {name: len(members) for name, members in data.splits.items()}


def assert_images_load(data: Dataset, column: str = "image") -> None:
    settings = data.schema.columns[column].modality
    for value in values(data, column):
        if value is not None:
            settings.load(value)


# Class folders -----------------------------------------------------------------------------------


def test_class_folders_with_strays(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / ("cat", "dog", "horse")[i % 3] / f"{i}.png", i)
    picture(tmp_path / "loose.png", 50)
    for name in ("README.md", ".DS_Store", "cat/Thumbs.db", "dog/desktop.ini", "notes.docx"):
        text(tmp_path / name, "x")
    for name in ("cat/a.mp4", "cat/b.mp4", "dog/c.pdf"):
        text(tmp_path / name, "x")
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"image": "image", "label": "category"}
    assert len(data) == 13
    assert sorted(map(str, values(data, "label"))) == sorted(
        [*["cat"] * 4, *["dog"] * 4, *["horse"] * 4, "None"]
    )
    assert data.notes == ["2 .mp4, 1 .pdf, 1 .docx: not read"]
    assert not data.bad_samples


@pytest.mark.parametrize("val", ["val", "validation", "valid", "dev"])
def test_split_folders_with_classes_and_strays(tmp_path: Path, val: str) -> None:
    for i in range(24):
        split = ("train", "train", val, "test")[i % 4]
        picture(tmp_path / split / ("cat", "dog")[i // 4 % 2] / f"{i}.png", i)
    picture(tmp_path / "example.png", 99)
    picture(tmp_path / "docs" / "figure.png", 98)
    text(tmp_path / "README.md", "x")
    data = Dataset.open(tmp_path)
    assert sizes(data) == {"train": 12, "val": 6, "test": 6}
    assert kinds(data) == {"image": "image", "label": "category", "split": "split"}
    assert set(values(data, "label")) == {"cat", "dog"}
    assert len(data.notes) == 1
    assert "docs/" in data.notes[0] or "1 .png" in data.notes[0]


def test_class_called_train_is_a_class(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / ("train", "bus", "car")[i % 3] / f"{i}.png", i)
    data = Dataset.open(tmp_path)
    assert set(values(data, "label")) == {"train", "bus", "car"}
    assert "split" not in data.table.columns


def test_splits_below_a_folder_of_images(tmp_path: Path) -> None:
    for i in range(12):
        split = ("train", "val")[i % 2]
        picture(tmp_path / "images" / split / f"{i}.png", i)
        text(
            tmp_path / "labels" / split / f"{i}.txt", f"0 0.5 0.5 0.{i + 1} 0.25\n1 0.1 0.2 0.3 0.4"
        )
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"image": "image", "split": "split"}
    assert len(data.splits["val"]) == 6
    assert data.notes == ["12 .txt: bounding boxes, which are not used"]


def test_one_folder_inside_another_as_archives_unpack(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / "animals-v2" / "animals" / ("cat", "dog")[i % 2] / f"{i}.png", i)
    data = Dataset.open(tmp_path)
    assert set(values(data, "label")) == {"cat", "dog"}
    assert data.location(0) == "animals-v2/animals/cat/0.png"


def test_class_folders_of_audio(tmp_path: Path) -> None:
    for i in range(8):
        sound(tmp_path / ("bark", "meow")[i % 2] / f"{i}.wav", i)
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"audio": "audio", "label": "category"}
    assert data.raw("audio", [0]) == [tmp_path / "bark" / "0.wav"]


# Sidecars ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["texts", "captions", "labels", "beschreibungen"])
@pytest.mark.parametrize("ending", [".txt", ".caption", ".json", ".jpg.txt"])
def test_sidecars_in_a_second_folder(tmp_path: Path, folder: str, ending: str) -> None:
    for i in range(12):
        picture(tmp_path / "images" / f"a{i}.jpg", i)
        content = json.dumps({"caption": f"picture {i}"}) if ending == ".json" else f"picture {i}"
        text(tmp_path / folder / f"a{i}{ending}", content)
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"image": "image", "caption": "text"}
    by_name = {
        p.name: c for p, c in zip(values(data, "image"), values(data, "caption"), strict=True)
    }
    assert by_name["a3.jpg"] == ["picture 3"]
    assert len(by_name) == 12
    assert not data.notes
    assert not data.bad_samples


def test_sidecars_in_parallel_folders_of_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i in range(4):
            picture(tmp_path / "images" / split / f"{i}.png", i)
            text(tmp_path / "captions" / split / f"{i}.txt", f"{split} {i}")
    data = Dataset.open(tmp_path)
    for path, caption in zip(values(data, "image"), values(data, "caption"), strict=True):
        assert caption == [f"{path.parent.name} {path.stem}"]


def test_languages_are_columns(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / f"a{i}.png", i)
        text(tmp_path / f"a{i}.de.txt", f"Bild {i}")
        text(tmp_path / f"a{i}.en.txt", f"picture {i}")
        if i % 2:
            text(tmp_path / f"a{i}.txt", f"neither {i}")
            text(tmp_path / f"a{i}.pt-BR.caption", f"figura {i}")
    data = Dataset.open(tmp_path)
    assert kinds(data) == {
        "image": "image",
        "caption": "text",
        "caption_de": "text",
        "caption_en": "text",
        "caption_pt-BR": "text",
    }
    assert values(data, "caption_de")[2] == ["Bild 2"]
    assert values(data, "caption")[:2] == [None, ["neither 1"]]
    assert values(data, "caption_pt-BR")[3] == ["figura 3"]


@pytest.mark.parametrize(
    "form", ["{i}_{tag}.txt", "{i}-{tag}.txt", "{tag}/{i}.txt", "texts/{tag}/{i}.txt"]
)
def test_languages_in_other_forms(tmp_path: Path, form: str) -> None:
    for i in range(6):
        picture(tmp_path / f"{i}.png", i)
        for tag in ("de", "en"):
            text(tmp_path / form.format(i=i, tag=tag), f"{tag} {i}")
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"image": "image", "caption_de": "text", "caption_en": "text"}
    assert values(data, "caption_de")[4] == ["de 4"]


def test_languages_in_json(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / f"{i}.png", i)
        text(tmp_path / f"{i}.json", json.dumps({"caption": {"de": f"D {i}", "en": [f"E {i}"]}}))
    data = Dataset.open(tmp_path)
    assert values(data, "caption_de")[4] == ["D 4"]
    assert values(data, "caption_en")[4] == ["E 4"]


def test_sidecars_without_an_image_are_named(tmp_path: Path) -> None:
    for i in range(30):
        picture(tmp_path / f"{i}.png", i)
        text(tmp_path / f"{i}.txt", f"picture {i}")
    text(tmp_path / "31.txt", "no image")
    text(tmp_path / "docs" / "history.txt", "of the collection")
    text(tmp_path / "report.docx", "x")
    data = Dataset.open(tmp_path)
    assert [(b.location, b.reason) for b in data.bad_samples] == [
        ("31.txt", "there is no image of the same name")
    ]
    assert data.notes == ["docs/history.txt: no image of that name; report.docx: not read"]


def test_sidecar_names_in_another_unicode_form_or_case(tmp_path: Path) -> None:
    picture(tmp_path / f"{unicodedata.normalize('NFD', 'Käse')}.jpg", 1)
    text(tmp_path / f"{unicodedata.normalize('NFC', 'Käse')}.txt", "cheese")
    picture(tmp_path / "IMG_2.JPG", 2)
    text(tmp_path / "img_2.txt", "two")
    data = Dataset.open(tmp_path)
    assert sorted(map(str, values(data, "caption"))) == ["['cheese']", "['two']"]
    assert not data.notes


def test_masks_in_a_parallel_folder_are_a_column(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / "images" / ("cat", "dog")[i % 2] / f"{i}.jpg", i)
        picture(tmp_path / "masks" / ("cat", "dog")[i % 2] / f"{i}.png", i + 90)
    picture(tmp_path / "masks" / "cat" / "99.png", 1)
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"image": "image", "label": "category", "masks": "image"}
    assert values(data, "masks")[0] == tmp_path / "masks" / "cat" / "0.png"
    assert data.notes == ["masks/cat/99.png: no image of that name"]


def test_class_folders_called_like_kinds_of_files_are_classes(tmp_path: Path) -> None:
    for i in range(9):
        picture(tmp_path / ("masks", "labels", "gloves")[i % 3] / f"{i // 3}.jpg", i)
    assert set(values(Dataset.open(tmp_path), "label")) == {"masks", "labels", "gloves"}


def test_sound_and_text_of_the_same_name(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / f"{i}.jpg", i)
        sound(tmp_path / f"{i}.wav", i)
        text(tmp_path / f"{i}.txt", f"word {i}")
    sound(tmp_path / "other.wav")
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"image": "image", "audio": "audio", "caption": "text"}
    assert values(data, "audio")[3] == tmp_path / "3.wav"
    assert data.notes == ["other.wav: not read"]


def test_splits_with_equal_names_and_captions_stay_apart(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for i in range(4):
            picture(tmp_path / split / f"{i}.png", i)
            text(tmp_path / split / f"{i}.txt", f"{split} {i}")
    data = Dataset.open(tmp_path)
    assert len(data) == 8
    assert sorted(map(str, values(data, "caption")))[0] == "['train 0']"


def test_repeated_images_with_classes_are_not_grouped(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"{i}.png", i)
    table = [["image", "label"], *([f"{i % 4}.png", "ab"[i // 4 % 2]] for i in range(16))]
    data = Dataset.open(rows(tmp_path / "a.csv", table))
    assert len(data) == 16
    assert kinds(data)["label"] == "category"


# COCO and Flickr ---------------------------------------------------------------------------------


def coco(numbers: range, prefix: str = "") -> dict[str, Any]:
    images = [{"id": 100 + i, "file_name": f"{prefix}{i:06}.jpg", "width": 6} for i in numbers]
    captions = [f"thing {i}, version {j}" for i in numbers for j in range(2)]
    annotations = [
        {"id": n, "image_id": 100 + numbers[n // 2], "caption": c} for n, c in enumerate(captions)
    ]
    return {"info": {}, "images": images, "annotations": annotations}


def test_coco_captions(tmp_path: Path) -> None:
    for split, numbers in (("train", range(8)), ("val", range(8, 12))):
        for i in numbers:
            picture(tmp_path / f"{split}2017" / f"{i:06}.jpg", i)
        name = f"captions_{split}2017.json"
        text(tmp_path / "annotations" / name, json.dumps(coco(numbers)))
        detection = {"images": coco(numbers)["images"], "annotations": [], "categories": []}
        text(tmp_path / "annotations" / f"instances_{split}2017.json", json.dumps(detection))
    picture(tmp_path / "train2017" / "999999.jpg", 99)
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"image": "image", "caption": "text", "split": "split"}
    assert sizes(data) == {"train": 8, "val": 4}
    assert values(data, "caption")[3] == ["thing 3, version 0", "thing 3, version 1"]
    assert values(data, "image")[9] == tmp_path / "val2017" / "000009.jpg"
    assert data.notes == [
        "train2017/999999.jpg: no caption names them",
        "2 .json: boxes and masks, which are not used",
    ]


def test_coco_of_missing_images_is_named(tmp_path: Path) -> None:
    for i in range(8, 12):
        picture(tmp_path / "val2017" / f"{i:06}.jpg", i)
    for split, numbers in (("train", range(8)), ("val", range(8, 12))):
        name = f"captions_{split}2017.json"
        text(tmp_path / "annotations" / name, json.dumps(coco(numbers)))
    data = Dataset.open(tmp_path)
    assert len(data) == 4
    assert data.notes == ["annotations/captions_train2017.json: none of its images is there"]
    (tmp_path / "val2017" / "000008.jpg").unlink()
    data = Dataset.open(tmp_path)
    assert [(b.location, b.reason) for b in data.bad_samples] == [
        ("000008.jpg", "there is no file of this name")
    ]


def test_coco_of_categories_alone(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / "images" / f"{i:06}.jpg", i)
    value = coco(range(6))
    value["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    value["annotations"] = [
        {"image_id": 100 + i, "category_id": c, "bbox": [0, 0, 1, 1]}
        for i in range(6)
        for c in {1, 1 + i % 2}
    ]
    text(tmp_path / "_annotations.coco.json", json.dumps(value))
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"image": "image", "categories": "multilabel"}
    assert values(data, "categories")[:2] == [["cat"], ["cat", "dog"]]


def test_flickr8k_tokens_with_lists_of_splits(tmp_path: Path) -> None:
    names = [f"10002{i}_abc.jpg" for i in range(10)]
    for i, name in enumerate(names):
        picture(tmp_path / "Flicker8k_Dataset" / name, i)
    lines = [f"{n}#{j}\tcaption {j} of {n} ." for n in names for j in range(5)]
    text(tmp_path / "Flickr8k_text" / "Flickr8k.token.txt", "\n".join(lines))
    text(tmp_path / "Flickr8k_text" / "Flickr8k.lemma.token.txt", "\n".join(lines))
    for split, part in (("train", names[:6]), ("dev", names[6:8]), ("test", names[8:])):
        text(tmp_path / "Flickr8k_text" / f"Flickr_8k.{split}Images.txt", "\n".join(part))
    data = Dataset.open(tmp_path)
    assert sizes(data) == {"train": 6, "val": 2, "test": 2}
    assert values(data, "caption")[0] == [f"caption {j} of {names[0]} ." for j in range(5)]
    assert "Flickr8k.lemma.token.txt" in data.notes[0]


@pytest.mark.parametrize("direct", [False, True])
def test_flickr8k_of_kaggle(tmp_path: Path, direct: bool) -> None:
    names = [f"{i}_x.jpg" for i in range(10)]
    for i, name in enumerate(names):
        picture(tmp_path / "Images" / name, i)
    table = [["image", "caption"], *([n, f"a thing, {j}, of {n}"] for n in names for j in range(5))]
    path = rows(tmp_path / "captions.txt", table)
    data = Dataset.open(path if direct else tmp_path)
    assert kinds(data) == {"image": "image", "caption": "text"}
    assert len(data) == 10
    assert values(data, "caption")[2] == [f"a thing, {j}, of {names[2]}" for j in range(5)]
    assert values(data, "image")[2] == tmp_path / "Images" / names[2]
    assert "50 captions of 10 images, grouped" in data.schema.columns["caption"].reason


@pytest.mark.parametrize("direct", [False, True])
def test_flickr30k_of_kaggle(tmp_path: Path, direct: bool) -> None:
    names = [f"{i}00.jpg" for i in range(6)]
    for i, name in enumerate(names):
        picture(tmp_path / "flickr30k_images" / name, i)
    lines = [f"{n}| {j}| Two men , number {j} ." for n in names for j in range(5)]
    path = text(
        tmp_path / "results.csv", "\n".join(["image_name| comment_number| comment", *lines])
    )
    data = Dataset.open(path if direct else tmp_path)
    assert kinds(data) == {"image_name": "image", "comment": "text"}
    assert len(data) == 6
    assert values(data, "comment")[1][4] == "Two men , number 4 ."
    assert_images_load(data, "image_name")


def test_predict_keeps_every_row_of_repeated_images(tmp_path: Path) -> None:
    from sensorium.data.open import open_rows_to_predict

    for i in range(4):
        picture(tmp_path / f"{i}.png", i)
    table = [["image", "caption"], *([f"{i}.png", f"{j}"] for i in range(4) for j in range(3))]
    rows(tmp_path / "captions.csv", table)
    assert len(open_rows_to_predict(tmp_path, None, ["image"]).table) == 12


def test_captions_without_a_header(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / "images" / f"{i}.jpg", i)
    text(tmp_path / "captions.txt", "\n".join(f"{i}.jpg\ta thing {i}, and more" for i in range(6)))
    data = Dataset.open(tmp_path)
    assert values(data, "caption")[2] == ["a thing 2, and more"]


def test_json_of_captions_and_of_records(tmp_path: Path) -> None:
    sentences = [{"raw": "one", "tokens": ["one"]}, {"raw": "two", "tokens": ["two"]}]
    values_of: dict[str, Any] = {
        "mapping": {f"{i}.jpg": ["one", "two"] for i in range(6)},
        "records": [{"file_name": f"{i}.jpg", "captions": sentences} for i in range(6)],
        "karpathy": {
            "dataset": "x",
            "images": [{"filename": f"{i}.jpg", "sentences": sentences} for i in range(6)],
        },
    }
    for name, value in values_of.items():
        for i in range(6):
            picture(tmp_path / name / "images" / f"{i}.jpg", i)
        text(tmp_path / name / "captions.json", json.dumps(value))
        data = Dataset.open(tmp_path / name)
        assert kinds(data) == {"image": "image", "caption": "text"}, name
        assert values(data, "caption")[3] == ["one", "two"]
        assert_images_load(data)


def test_a_json_file_is_opened_directly(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / "images" / f"{i:06}.jpg", i)
    text(tmp_path / "coco.json", json.dumps(coco(range(6))))
    text(tmp_path / "list.json", json.dumps([{"image": "000001.jpg", "n": 1}] * 3))
    data = Dataset.open(tmp_path / "coco.json")
    assert values(data, "image")[4] == tmp_path / "images" / "000004.jpg"
    assert values(data, "caption")[4] == ["thing 4, version 0", "thing 4, version 1"]
    assert len(Dataset.open(tmp_path / "list.json")) == 3
    text(tmp_path / "wrong.json", "[1, 2]")
    with pytest.raises(SensoriumError, match="holds no rows"):
        Dataset.open(tmp_path / "wrong.json")


# Kaggle ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
def test_identifiers_name_images(tmp_path: Path, direct: bool) -> None:
    for i in range(20):
        picture(tmp_path / "images" / f"{15970 + i}.jpg", i)
    picture(tmp_path / "images" / "77.jpg", 77)
    table = [["id", "gender", "price"], *([15970 + i, "MW"[i % 2], i * 3 % 7] for i in range(20))]
    path = rows(tmp_path / "styles.csv", [*table, [1, "M", 3]])
    data = Dataset.open(path if direct else tmp_path)
    assert kinds(data)["image"] == "image"
    assert kinds(data)["id"] == "ignore"
    assert values(data, "image")[3] == tmp_path / "images" / "15973.jpg"
    assert values(data, "image")[20] is None
    assert "1 of 21 rows: no image of their id" in data.notes
    if not direct:
        assert "images/77.jpg: not named in styles.csv" in data.notes


def test_numbers_name_padded_files(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / "images" / f"{i:06}.jpg", i)
    rows(tmp_path / "data.csv", [["id", "price"], *([i, i * 5 % 3] for i in range(12))])
    data = Dataset.open(tmp_path)
    assert values(data, "image")[7] == tmp_path / "images" / "000007.jpg"


def test_images_that_no_row_names_are_said(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / "images" / str(i) / "front.jpg", i)
    rows(tmp_path / "data.csv", [["product", "price"], *([f"p{i}", i * 5 % 3] for i in range(6))])
    assert Dataset.open(tmp_path).notes == ["6 .jpg: not named in data.csv"]


def test_names_without_ending_and_tables_of_splits(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / ("train_images", "test_images")[i // 8] / f"id_{i}.png", i)
    rows(
        tmp_path / "train.csv",
        [["image_id", "label"], *([f"id_{i}", "ab"[i % 2]] for i in range(8))],
    )
    rows(tmp_path / "test.csv", [["image_id"], *([f"id_{i}"] for i in range(8, 12))])
    rows(tmp_path / "sample_submission.csv", [["image_id", "label"], ["id_8", "a"]])
    data = Dataset.open(tmp_path)
    assert kinds(data)["image_id"] == "image"
    assert len(data.splits["test"]) == 4
    assert sum(sizes(data).values()) == 12
    assert_images_load(data, "image_id")
    assert data.notes == ["sample_submission.csv: not read, since the splits beside it are"]


def test_table_that_names_most_files_is_read(tmp_path: Path) -> None:
    for i in range(10):
        picture(tmp_path / "images" / f"{i}.jpg", i)
    rows(
        tmp_path / "images.csv",
        [["filename", "link"], *([f"{i}.jpg", "http://x.y"] for i in range(5))],
    )
    rows(
        tmp_path / "styles.csv",
        [["filename", "style"], *([f"{i}.jpg", "a b c"] for i in range(10))],
    )
    data = Dataset.open(tmp_path)
    assert len(data) == 10
    assert "images.csv: not read, since styles.csv names the most files" in data.notes


def test_table_beside_folders_of_splits(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / ("train", "test")[i // 8] / f"{i}abc.jpg", i)
    rows(tmp_path / "labels.csv", [["id", "breed"], *([f"{i}abc", "ab"[i % 2]] for i in range(8))])
    data = Dataset.open(tmp_path)
    assert len(data) == 8
    assert data.notes == ["4 .jpg: not named in labels.csv"]
    rows(tmp_path / "labels.csv", [["wordnet", "breed"], *([f"n{i}", "a"] for i in range(8))])
    data = Dataset.open(tmp_path)
    assert len(data) == 12
    assert data.notes == ["labels.csv: not read, since the splits beside it are"]


def test_table_in_a_folder_of_its_own(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / "images" / f"{i}.jpg", i)
    table = [["image", "caption"], *([f"{i}.jpg", f"thing {i}"] for i in range(6))]
    rows(tmp_path / "annotations" / "captions.csv", table)
    data = Dataset.open(tmp_path)
    assert values(data, "image")[1] == tmp_path / "images" / "1.jpg"
    assert values(data, "caption")[1] == "thing 1"
    assert not data.notes


def test_paths_of_another_machine(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / "images" / f"{i}.jpg", i)
    for prefix in ("/kaggle/input/x/images/", "C:\\data\\images\\", "./old/"):
        rows(
            tmp_path / "a.csv",
            [["image", "n"], *([f"{prefix}{i}.jpg", i * 5 % 3] for i in range(6))],
        )
        data = Dataset.open(tmp_path)
        assert values(data, "image")[2] == tmp_path / "images" / "2.jpg", prefix


def test_images_named_in_other_spellings_are_not_unused(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / "sub" / f"É{i}.jpg", i)
    picture(tmp_path / "sub" / "other.jpg", 9)
    forms = [
        "./sub/É0.jpg",
        "sub\\É1.jpg",
        f"{tmp_path}/sub/É2.jpg",
        unicodedata.normalize("NFD", "sub/É3.jpg"),
        *(f"SUB/é{i}.JPG" for i in range(4, 8)),
    ]
    rows(
        tmp_path / "metadata.csv", [["file_name", "n"], *([f, i % 3] for i, f in enumerate(forms))]
    )
    data = Dataset.open(tmp_path)
    assert not data.bad_samples
    assert data.notes == ["sub/other.jpg: not named in metadata.csv"]
    assert_images_load(data, "file_name")


# img2dataset -------------------------------------------------------------------------------------


def test_img2dataset_files(tmp_path: Path) -> None:
    for shard in range(2):
        for i in range(5):
            stem = tmp_path / f"{shard:05}" / f"{shard:05}{i:04}"
            picture(stem.with_suffix(".jpg"), 5 * shard + i)
            text(stem.with_suffix(".txt"), f"caption {shard} {i}")
            fields = {"caption": f"caption {shard} {i}", "url": "http://a.b/c.jpg", "width": 6 + i}
            text(stem.with_suffix(".json"), json.dumps(fields))
        text(tmp_path / f"{shard:05}_stats.json", json.dumps({"count": 5}))
        text(tmp_path / f"{shard:05}.parquet", "metadata")
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"image": "image", "caption": "text", "url": "ignore", "width": "numeric"}
    assert values(data, "caption")[6] == ["caption 1 1"]
    assert data.notes == ["2 .parquet: not read"]
    assert not data.bad_samples


# Hugging Face ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_in_the_root_with_split_folders(tmp_path: Path, kind: str) -> None:
    names = [f"{('train', 'test')[i % 2]}/{i:04}.png" for i in range(12)]
    for i, name in enumerate(names):
        picture(tmp_path / name, i)
    if kind == "csv":
        table = [["file_name", "text"], *([n, f"about {n}"] for n in names)]
        rows(tmp_path / "metadata.csv", table)
    elif kind == "jsonl":
        lines = [json.dumps({"file_name": n, "text": f"about {n}"}) for n in names]
        text(tmp_path / "metadata.jsonl", "\n".join(lines))
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        columns = pa.table({"file_name": names, "text": [f"about {n}" for n in names]})
        pq.write_table(columns, tmp_path / "metadata.parquet")
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"file_name": "image", "text": "text", "split": "split"}
    assert len(data.splits["test"]) == 6
    assert not data.notes


def test_audiofolder_with_metadata_per_split(tmp_path: Path) -> None:
    for i in range(8):
        split = ("train", "test")[i % 2]
        sound(tmp_path / "data" / split / f"{i}.wav", i)
    for split in ("train", "test"):
        part = [i for i in range(8) if ("train", "test")[i % 2] == split]
        lines = [json.dumps({"file_name": f"{i}.wav", "transcription": f"word {i}"}) for i in part]
        text(tmp_path / "data" / split / "metadata.jsonl", "\n".join(lines))
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"file_name": "audio", "transcription": "text", "split": "split"}
    assert len(data.splits["test"]) == 4


def test_several_file_names_in_a_row(tmp_path: Path) -> None:
    for i in range(16):
        picture(tmp_path / f"{i}.png", i)
    pairs = [{"file_names": [f"{2 * i}.png", f"{2 * i + 1}.png"], "n": i % 3} for i in range(8)]
    text(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, pairs)))
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"file_names_1": "image", "file_names_2": "image", "n": "numeric"}
    assert values(data, "file_names_2")[1] == tmp_path / "3.png"
    assert not data.notes
    pairs[0]["file_names"].append("15.png")
    text(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, pairs)))
    data = Dataset.open(tmp_path)
    assert kinds(data) == {"file_names": "image", "n": "numeric"}
    assert "column file_names: 9 images beyond the first of a row are not used" in data.notes


def test_columns_of_further_files(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / f"in{i}.png", i)
        picture(tmp_path / f"out{i}.png", i + 50)
    table = [["input_file_name", "target_file_name"]]
    rows(tmp_path / "metadata.csv", [*table, *([f"in{i}.png", f"out{i}.png"] for i in range(6))])
    assert kinds(Dataset.open(tmp_path)) == {
        "input_file_name": "image",
        "target_file_name": "image",
    }


# Base64 ------------------------------------------------------------------------------------------


def encoded(seed: int, ending: str = "png") -> bytes:
    out = io.BytesIO()
    image = PIL.Image.new("RGB", (12, 12), (seed * 37 % 256, seed * 11 % 256, seed))
    image.putpixel((seed % 12, 3), (255, 0, 9))
    image.save(out, {"jpg": "JPEG"}.get(ending, ending.upper()))
    return out.getvalue()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp"])
@pytest.mark.parametrize("form", ["plain", "url", "lines", "urlsafe"])
def test_base64_images_in_cells(tmp_path: Path, ending: str, form: str) -> None:
    cells = []
    for i in range(20):
        cell = base64.b64encode(encoded(i, ending)).decode()
        if form == "url":
            cell = f"data:image/{ending};base64,{cell}"
        elif form == "lines":
            cell = "\n".join(cell[k : k + 76] for k in range(0, len(cell), 76))
        elif form == "urlsafe":
            cell = cell.replace("+", "-").replace("/", "_").rstrip("=")
        cells.append(cell)
    rows(
        tmp_path / "a.csv", [["picture", "caption"], *([c, f"n {i}"] for i, c in enumerate(cells))]
    )
    data = Dataset.open(tmp_path / "a.csv")
    assert kinds(data) == {"picture": "image", "caption": "text"}
    assert values(data, "picture")[3] == encoded(3, ending)
    assert "20 of 20 values are images in base64" in data.schema.columns["picture"].reason
    assert_images_load(data, "picture")
    lines = [json.dumps({"picture": c}) for c in cells]
    text(tmp_path / "a.jsonl", "\n".join(lines))
    assert values(Dataset.open(tmp_path / "a.jsonl"), "picture")[3] == encoded(3, ending)


def test_files_in_columns_of_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    sounds = [sound(tmp_path / f"{i}.wav", i).read_bytes() for i in range(20)]
    columns = {
        "audio": [{"bytes": s, "path": f"{i}.wav"} for i, s in enumerate(sounds)],
        "plain": sounds,
        "image": [{"bytes": encoded(i), "path": None} for i in range(20)],
        "photo": [base64.b64encode(encoded(i)).decode() for i in range(20)],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    data = Dataset.open(tmp_path / "a.parquet")
    assert kinds(data) == {"audio": "audio", "plain": "audio", "image": "image", "photo": "image"}
    settings = data.schema.columns["audio"].modality
    assert len(settings.load(data.raw("audio", [3])[0])) == len(settings.load(tmp_path / "3.wav"))
    assert_images_load(data)
    assert_images_load(data, "photo")
    assert not data.describe().bad_samples


def test_structs_of_files_in_json(tmp_path: Path) -> None:
    cells = [{"bytes": base64.b64encode(encoded(i)).decode(), "path": None} for i in range(20)]
    text(tmp_path / "a.jsonl", "\n".join(json.dumps({"image": c}) for c in cells))
    assert values(Dataset.open(tmp_path / "a.jsonl"), "image")[3] == encoded(3)


def test_data_urls_of_another_kind_are_bad_rows(tmp_path: Path) -> None:
    cells = [f"data:image/png;base64,{base64.b64encode(encoded(i)).decode()}" for i in range(20)]
    cells[3] = "data:image/svg+xml;base64," + base64.b64encode(b"<svg>" * 5000).decode()
    rows(tmp_path / "a.csv", [["image"], *([c] for c in cells)])
    data = Dataset.open(tmp_path / "a.csv")
    assert [b.location for b in data.bad_samples] == ["a.csv:5"]
    assert len(data.bad_samples[0].reason) < 200


def test_damaged_base64_is_a_bad_row(tmp_path: Path) -> None:
    cells = [base64.b64encode(encoded(i)).decode() for i in range(20)]
    cells[4] = cells[4][:81] + "*" + cells[4][82:]
    rows(tmp_path / "a.csv", [["picture"], *([c] for c in cells)])
    data = Dataset.open(tmp_path / "a.csv")
    assert [b.location for b in data.bad_samples] == ["a.csv:6"]
    assert "base64" in data.bad_samples[0].reason


def test_words_are_not_base64(tmp_path: Path) -> None:
    words = [
        f"UklGR is how this sentence begins, and it goes on long enough {i}" for i in range(20)
    ]
    rows(tmp_path / "a.csv", [["words"], *([w] for w in words)])
    assert kinds(Dataset.open(tmp_path / "a.csv")) == {"words": "text"}


# Names -------------------------------------------------------------------------------------------


def test_names_in_another_unicode_form_or_case_are_found(tmp_path: Path) -> None:
    names = [unicodedata.normalize("NFD", f"fête_{i}.jpg") for i in range(10)]
    for i, name in enumerate(names):
        picture(tmp_path / "Été" / name, i)
    written = [f"été/{unicodedata.normalize('NFC', n).upper()}" for n in names]
    rows(
        tmp_path / "a.csv", [["photo", "caption"], *([w, f"n {i}"] for i, w in enumerate(written))]
    )
    data = Dataset.open(tmp_path / "a.csv")
    assert kinds(data)["photo"] == "image"
    assert [p.name for p in values(data, "photo")] == names
    assert_images_load(data, "photo")


def test_ambiguous_names_are_shown(tmp_path: Path) -> None:
    for name in ("a.JPG", "A.jpg"):
        picture(tmp_path / name, 1)
    for i in range(20):
        picture(tmp_path / f"{i}.jpg", i)
    table = [["photo"], ["a.jpg"], *([f"{i}.jpg"] for i in range(20))]
    rows(tmp_path / "a.csv", table)
    data = Dataset.open(tmp_path / "a.csv")
    assert [b.location for b in data.bad_samples] == ["a.csv:2"]
    assert "'A.jpg' (in another letter case)" in data.bad_samples[0].reason
    assert "'a.JPG'" in data.bad_samples[0].reason


# Limits ------------------------------------------------------------------------------------------


def test_few_bad_rows_do_not_stop_and_are_grouped(tmp_path: Path) -> None:
    for i in range(60):
        picture(tmp_path / f"{i}.png", i)
    text(tmp_path / "60.svg", "<svg/>")
    data = Dataset.open(tmp_path)
    assert len(data) == 60
    assert [b.location for b in data.bad_samples] == ["60.svg"]
    for i in range(61, 70):
        text(tmp_path / f"{i}.svg", "<svg/>")
    with pytest.raises(SensoriumError) as error:
        Dataset.open(tmp_path)
    assert "10 of 70 rows" in str(error.value)
    assert "10 x .svg files are not supported: save as JPEG or PNG (60.svg, 61.svg" in str(
        error.value
    )
    assert "--max-invalid-fraction 0.15" in str(error.value)
    assert len(Dataset.open(tmp_path, max_invalid_fraction=0.15)) == 60


def test_limit_of_zero_allows_no_bad_row(tmp_path: Path) -> None:
    for i in range(60):
        picture(tmp_path / f"{i}.png", i)
    text(tmp_path / "60.svg", "<svg/>")
    with pytest.raises(SensoriumError, match="1 of 61 rows"):
        Dataset.open(tmp_path, max_invalid_fraction=0)


def test_mostly_bad_rows_stop_even_if_they_are_few(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"{i}.png", i)
        text(tmp_path / f"{i}.svg", "<svg/>")
    with pytest.raises(SensoriumError, match="4 of 8 rows"):
        Dataset.open(tmp_path)
