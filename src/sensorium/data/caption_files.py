"""Read files of captions beside a folder of images: COCO JSON, Flickr8k tokens, JSON of records."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from sensorium.data.file_names import NameIndex
from sensorium.data.media_folders import FolderFiles, add_bad_rows
from sensorium.data.sidecars import parse_captions
from sensorium.data.splits import KNOWN_SPLITS, normalize_split_name
from sensorium.data.table_files import columns_from_records
from sensorium.data.tables import IMAGE_EXTENSIONS, Table, open_text, parse_json
from sensorium.data.unused_files import describe_unused
from sensorium.errors import SensoriumError
from sensorium.io.untrusted import open_regular

MAX_JSON_BYTES = 2 << 30
_MAX_FILES = 64  # JSON files that are looked into
_HEAD_BYTES = 1 << 12
_DETECTION_NAME = re.compile(r"instances|keypoints|panoptic|stuff|image_info", re.IGNORECASE)
_TOKEN = re.compile(r"(?P<name>[^\t,|;]+?\.\w{3,4})(#\d+)? *[\t,|;] *(?P<caption>.*)")
_SPLIT_WORD = re.compile(r"train|val|valid|validation|dev|test", re.IGNORECASE)
_METADATA_STEMS = ("metadata", "captions", "annotations", "dataset")
_MAX_FORMATS_CHECKED = 5  # lines by which a file of tokens is recognised


def read_caption_files(
    folder: Path, files: FolderFiles, encoding: str, name: str = ""
) -> Table | None:
    """Return the rows of a folder whose captions are in files of their own, None if they are not.

    A row is an image with all its captions. Files are tried in this order: tokens of Flickr8k,
    COCO's JSON, JSON of records called metadata or captions.

    Args:
        folder: the folder.
        files: what lies below it.
        encoding: of its text files.
        name: a prefix of locations in messages.

    Raises:
        SensoriumError: if a file cannot be read.
    """
    stems = {file.rpartition(".")[0] for file in files.images}
    texts = [f for f in files.others if f.lower().endswith(".txt") and f[:-4] not in stems]
    jsons = [f for f in files.others if f.lower().endswith(".json") and f[:-5] not in stems]
    tokens = [f for f in texts if _holds_tokens(folder / f, encoding)]
    if tokens:
        return _read_tokens(folder, files, tokens, encoding, name)
    coco = [f for f in jsons[:_MAX_FILES] if _may_be_coco(folder / f)]
    captions = [f for f in coco if not _DETECTION_NAME.search(PurePosixPath(f).name)]
    records = _CaptionRows(files)
    without_images: list[str] = []
    for file in captions or coco:
        value = _read_json(folder / file, encoding)
        if is_coco(value):
            found = coco_records(value, f"{name}{file}")
            if any(records.index.find(r["image"], _split_word(file)) for r in found):
                records.add_all(found, _split_word(file))
            else:
                without_images.append(file)
    if not len(records):
        for file in jsons:
            if PurePosixPath(file).stem.lower() in _METADATA_STEMS:
                found = json_records(_read_json(folder / file, encoding))
                records.add_all(found or [], "")
    if not len(records):
        return None
    table = records.to_table(folder, name)
    others = [f for f in coco if f not in captions] if captions else []
    unused = {"none of its images is there": without_images}
    unused["boxes and masks, which are not used"] = others
    table.notes += describe_unused(unused, name)
    return table


def read_json_file(path: Path, encoding: str, name: str) -> Table:
    """Read a JSON file of records or of COCO, whose images are named by a column.

    Raises:
        SensoriumError: if it holds neither.
    """
    value = _read_json(path, encoding)
    records = coco_records(value, name) if is_coco(value) else json_records(value)
    if not records:
        raise SensoriumError(
            f"{path} holds no rows. Give a list of JSON objects, an object of file names and "
            "captions, or COCO's images and annotations."
        )
    columns = columns_from_records(records)
    locations = [f"{name}:{number}" for number in range(1, len(records) + 1)]
    kinds = {"caption": "text"} if "caption" in columns else {}
    reasons = {"caption": "the captions of each image"} if kinds else {}
    return Table(columns, locations, root=path.parent, kinds=kinds, reasons=reasons)


def _read_json(path: Path, encoding: str) -> Any:
    """Return the value in a JSON file."""
    try:
        open_regular(path, MAX_JSON_BYTES).close()
        with open_text(path, encoding) as f:
            value = parse_json(f.read())
    except UnicodeError as e:
        raise SensoriumError(f"{path} is not {encoding} text: {e}.") from e
    except OSError as e:
        raise SensoriumError(f"could not read {path}: {e.strerror or e}.") from e
    if isinstance(value, ValueError):
        raise SensoriumError(f"{path}: {value}.")
    return value


# COCO ------------------------------------------------------------------------------------------


def _may_be_coco(path: Path) -> bool:
    """Return whether a JSON file begins or is named like one of COCO."""
    try:
        with open_regular(path) as f:
            head = f.read(_HEAD_BYTES)
    except OSError:
        return False
    return head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") and bool(
        re.search(rb'"(info|images|annotations|licenses|categories|type)"\s*:', head)
    )


def is_coco(value: Any) -> bool:
    """Return whether a JSON value has COCO's lists of images and annotations."""
    if not isinstance(value, dict):
        return False
    images = value.get("images")
    return (
        isinstance(images, list)
        and isinstance(value.get("annotations"), list)
        and all(isinstance(image, dict) for image in images)
    )


def coco_records(value: dict[str, Any], location: str) -> list[dict[str, Any]]:
    """Return a record for each image of COCO: its file, captions and categories.

    Raises:
        SensoriumError: if an image has no name.
    """
    names = {
        c.get("id"): str(c.get("name"))
        for c in value.get("categories") or ()
        if isinstance(c, dict) and isinstance(c.get("id"), int | str)
    }
    records: dict[Any, dict[str, Any]] = {}
    for number, image in enumerate(value["images"], 1):
        key = image.get("id", image.get("image_id"))
        file = image.get("file_name") or image.get("filename")
        if not isinstance(file, str) or not isinstance(key, int | str):
            raise SensoriumError(
                f"{location}: image {number} has no file_name or no id. Add them, as COCO has."
            )
        records[key] = {"image": file, "caption": [], "categories": []}
    for annotation in value["annotations"]:
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        record = records.get(key) if isinstance(key, int | str) else None
        if record is None:
            continue
        caption = annotation.get("caption")
        if isinstance(caption, str) and caption.strip() not in ("", *record["caption"]):
            record["caption"].append(caption.strip())
        category = names.get(annotation.get("category_id"))
        if category is not None and category not in record["categories"]:
            record["categories"].append(category)
    fields = [f for f in ("caption", "categories") if any(r[f] for r in records.values())]
    return [{"image": r["image"], **{f: r[f] or None for f in fields}} for r in records.values()]


def json_records(value: Any) -> list[dict[str, Any]] | None:
    """Return the records in a JSON value: a list of objects, or an object of names.

    {"a.jpg": "a caption"} and {"a.jpg": {"caption": ...}} become records with the name as `image`.
    """
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list) and v]
        if len(lists) == 1 and all(isinstance(v, dict) for v in lists[0]):
            return lists[0]
        records: list[dict[str, Any]] = []
        for key, item in value.items():
            if isinstance(item, dict):
                records.append({"image": key, **item})
            elif isinstance(item, str) or (
                isinstance(item, list) and all(isinstance(v, str) for v in item)
            ):
                records.append({"image": key, "caption": parse_captions(item)})
        return records if records and len(records) == len(value) else None
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return value
    return None


def _unwrap_sentences(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the texts in a list of objects as its captions."""
    for name in ("sentences", "captions", "comments"):
        items = record.get(name)
        if not isinstance(items, list) or not items or not isinstance(items[0], dict):
            continue
        key = next((k for k in ("raw", "caption", "text", "sentence") if k in items[0]), "")
        texts = [item.get(key) for item in items if isinstance(item, dict)]
        if key and all(isinstance(t, str) for t in texts):
            rest = {k: v for k, v in record.items() if k != name}
            return {"caption": parse_captions(texts), **rest}
    return record


# Flickr8k --------------------------------------------------------------------------------------


def _holds_tokens(path: Path, encoding: str) -> bool:
    """Return whether the lines of a file are like "a.jpg#0<TAB>a caption", without a header."""
    try:
        with open_text(path, encoding) as f:
            lines = [f.readline(1 << 14) for _ in range(_MAX_FORMATS_CHECKED)]
    except (OSError, UnicodeError):
        return False
    matches = [_TOKEN.fullmatch(line.rstrip("\r\n")) for line in lines if line.strip()]
    names = [m["name"].lower() for m in matches if m is not None]
    return 0 < len(names) == len(matches) and all(n.endswith(IMAGE_EXTENSIONS) for n in names)


def _read_tokens(
    folder: Path, files: FolderFiles, tokens: Sequence[str], encoding: str, name: str
) -> Table:
    """Read a file of tokens, and the lists of names that are its splits.

    Of several, such as lemmatised ones, that with the shortest name is read.
    """
    chosen = min(tokens, key=lambda file: (len(file), file))
    records = _CaptionRows(files)
    with open_text(folder / chosen, encoding) as f:
        for number, line in enumerate(f, 1):
            match = _TOKEN.fullmatch(line.rstrip("\r\n"))
            if match:
                record = {"image": match["name"], "caption": [match["caption"].strip()]}
                records.add(record, "")
            elif line.strip():
                records.bad.append((f"{name}{chosen}:{number}", "not NAME<TAB>CAPTION"))
    splits = _read_name_lists(folder, [f for f in files.others if f.endswith(".txt")], encoding)
    table = records.to_table(folder, name, splits)
    others = {f"other captions of the images; {chosen} is read": [f for f in tokens if f != chosen]}
    table.notes += describe_unused(others, name)
    return table


def _read_name_lists(folder: Path, files: Iterable[str], encoding: str) -> dict[str, str]:
    """Return the split of each image name in files such as Flickr_8k.trainImages.txt."""
    splits: dict[str, str] = {}
    for file in files:
        split = _split_word(PurePosixPath(file).name)
        if not split:
            continue
        with open_text(folder / file, encoding) as f:
            names = [line.strip() for line in f.read().splitlines() if line.strip()]
        if names and all(re.fullmatch(r"\S+\.\w{3,4}", n) for n in names):
            splits |= dict.fromkeys(names, split)
    return splits


def _split_word(file: str) -> str:
    """Return the split in the name of a file such as captions_train2017.json, "" if none."""
    words = re.findall(r"[a-z]+", PurePosixPath(file).name.lower())
    for word in words:
        match = _SPLIT_WORD.match(word)
        if match and (word in KNOWN_SPLITS or word in (match[0] + "images", match[0] + "set")):
            return normalize_split_name(match[0])
    return ""


# Rows ------------------------------------------------------------------------------------------


class _CaptionRows:
    """Rows of images with their captions, of which each image is one.

    Args:
        files: where the images are found.
    """

    def __init__(self, files: FolderFiles):
        self.files = files
        self.records: dict[tuple[str, str], dict[str, Any]] = {}
        self.bad: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def index(self) -> NameIndex:
        """The images by name, made once a file names some."""
        return NameIndex(self.files.images)

    def add_all(self, records: Iterable[dict[str, Any]], split: str) -> None:
        """Add records whose field `image` or `file_name` names an image."""
        for record in records:
            name = next((k for k in ("image", "file_name", "filename", "file") if k in record), "")
            if isinstance(record.get(name), str):
                rest = {k: v for k, v in record.items() if k != name}
                self.add({"image": record[name], **_unwrap_sentences(rest)}, split)

    def add(self, record: dict[str, Any], split: str) -> None:
        """Add the captions and fields of one image."""
        name = record["image"]
        path = self.index.find(name, split) or self.index.find(name)
        known = self.records.get((path or name, split))
        if known is None:
            self.records[path or name, split] = {**record, "image": path, "": name}
            return
        captions = [*(known.get("caption") or []), *(record.get("caption") or [])]
        known["caption"] = list(dict.fromkeys(captions)) or None

    def to_table(self, folder: Path, name: str, splits: dict[str, str] | None = None) -> Table:
        """Return the rows; images without a file are bad rows.

        Args:
            folder: of the images.
            name: a prefix of locations in messages.
            splits: the split of each image name.
        """
        found = {k: r for k, r in self.records.items() if r["image"] is not None}
        records = [{k: v for k, v in r.items() if k} for r in found.values()]
        columns: dict[str, list[Any]] = columns_from_records(records) or {"image": []}
        names = [split for _, split in found]
        if splits:
            names = [splits.get(r[""], "") for r in found.values()]
        table = Table(columns, [name + r["image"] for r in found.values()], root=folder)
        table.kinds = {"image": "image"}
        table.reasons = {"image": f"{len(found):,} images with captions in a file"}
        if "caption" in columns:
            table.kinds["caption"] = "text"
            num_captions = sum(len(c) for c in columns["caption"] if isinstance(c, list))
            table.reasons["caption"] = f"{num_captions:,} captions of {len(found):,} images"
        if "categories" in columns:
            table.kinds["categories"] = "multilabel"
            table.reasons["categories"] = "the categories of each image's annotations"
        if any(names):
            table.columns["split"] = [n or None for n in names]
            table.split_column = "split"
            table.reasons["split"] = "the file that names each image"
        missing = [r[""] for r in self.records.values() if r["image"] is None]
        reason = "there is no file of this name"
        add_bad_rows(table, [*self.bad, *((name + n, reason) for n in missing)])
        used = set(columns["image"])
        unnamed = [file for file in self.files.images if file not in used]
        table.notes += describe_unused({"no caption names them": unnamed}, name)
        return table
