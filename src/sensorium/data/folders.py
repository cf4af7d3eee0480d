"""Folders of pictures, in the layouts people already have.

metadata.csv (or captions.*, or the only table there)   rows that name the pictures; .tsv .jsonl .parquet too
train.csv, test.csv; train/..., val/..., test/...       each part in its own file or folder: given splits
a.jpg + a.txt, a.json                                   captions, one a line; other JSON fields become columns
cat/a.jpg, dog/b.jpg                                    a folder per class
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from sensorium.data.splits import KNOWN_SPLITS, normalize_split_name
from sensorium.data.tables import (
    IMAGE_EXTENSIONS,
    TABLE_EXTENSIONS,
    BadSample,
    Table,
    columns_from_records,
    concat_tables,
    open_text,
    parse_json,
    read_table,
)
from sensorium.errors import SensoriumError

_UNSUPPORTED_IMAGE_EXTENSIONS = (
    ".heic",
    ".heif",
    ".avif",
    ".svg",
    ".psd",
    ".jxl",
    ".raw",
    ".cr2",
    ".nef",
    ".dng",
)  # pictures all the same
_NON_CAPTION_STEMS = (
    "readme",
    "license",
    "licence",
    "notice",
    "attribution",
    "requirements",
    "classes",
)
_CAPTION_KEYS = ("caption", "captions", "text")


def read_folder(folder: Path, encoding: str = "utf-8", name: str = "") -> Table:
    """Read a folder in whichever of the layouts above it is in. `name` goes before the names of rows in messages.

    Raises SensoriumError if there is nothing to read.
    """
    tables, folders, pictures = _list_folder(folder)
    parts = [t for t in tables if _split_from_name(t)] or (
        [] if pictures or not all(map(_split_from_name, folders)) else folders
    )
    by_hand = [t for t in tables if t.stem.lower() in ("metadata", "captions")]
    chosen = by_hand[:1] or (tables if len(tables) == 1 and not _split_from_name(tables[0]) else [])
    if chosen:
        return read_table(chosen[0], encoding, name + chosen[0].name)
    if parts:
        return concat_tables(
            [(_split_from_name(p), _read_table_or_folder(p, encoding, name)) for p in parts]
        )
    if tables:
        names = ", ".join(t.name for t in tables[:5])
        raise SensoriumError(
            f"{folder} holds {len(tables)} tables ({names}) and none is called metadata or captions. "
            "Open the one you mean."
        )
    if [f.name for f in folders] == [
        "data"
    ] and not pictures:  # how the Hugging Face hub lays out Parquet shards
        return read_folder(folders[0], encoding, f"{name}data/")
    return _read_image_folder(folder, encoding, name)


def _read_table_or_folder(path: Path, encoding: str, name: str) -> Table:
    name += path.name
    return (
        read_folder(path, encoding, f"{name}/")
        if path.is_dir()
        else read_table(path, encoding, name)
    )


def _list_folder(folder: Path) -> tuple[list[Path], list[Path], bool]:
    """(tables, folders, whether there are pictures), hidden ones left out."""
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))
    except OSError as e:
        raise SensoriumError(f"could not read the folder {folder}: {e.strerror or e}.") from e
    tables = [p for p in entries if p.suffix.lower() in TABLE_EXTENSIONS and p.is_file()]
    return (
        tables,
        [p for p in entries if p.is_dir()],
        any(p.suffix.lower() in IMAGE_EXTENSIONS for p in entries),
    )


def _split_from_name(path: Path) -> str:
    """'train' for the folder train/, for train.csv and train-00000-of-00002.parquet; '' where a name says no split."""
    word = path.name if path.is_dir() else re.split(r"[-_.]", path.name)[0]
    return normalize_split_name(word) if word.lower() in KNOWN_SPLITS else ""


def _read_image_folder(folder: Path, encoding: str, name: str) -> Table:
    try:
        files = list(_walk_files(folder))
    except OSError as e:
        raise SensoriumError(
            f"could not read the folder {e.filename or folder}: {e.strerror or e}."
        ) from e
    pictures = [f for f in files if f.lower().endswith(IMAGE_EXTENSIONS)]
    if not pictures:
        seen = f"{len(files)} files, none of them" if files else "nothing, so no"
        raise SensoriumError(
            f"{folder} holds {seen} picture ({' '.join(IMAGE_EXTENSIONS)}) or table ({' '.join(TABLE_EXTENSIONS)})."
        )
    sidecars: dict[str, list[str]] = {}
    for file in files:
        if file.lower().endswith((".txt", ".json")):
            sidecars.setdefault(_strip_extension(file), []).append(file)
    table = Table(
        {"image": list(pictures)},
        [name + p for p in pictures],
        root=folder,
        kinds={"image": "image"},
    )
    table.reasons["image"] = f"{len(pictures)} picture files in the folder"
    _add_labels(table, pictures)
    alone = sidecars.keys() - {_strip_extension(p) for p in pictures}
    if len(alone) < len(sidecars):
        _add_captions(table, sidecars, encoding, name)
        for file in (f for stem in sorted(alone) for f in sidecars[stem]):
            if PurePosixPath(file).stem.lower() not in _NON_CAPTION_STEMS:
                _add_bad_sample(table, name + file, "there is no picture of this name beside it")
    for file in files:
        if file.lower().endswith(_UNSUPPORTED_IMAGE_EXTENSIONS):
            _add_bad_sample(
                table,
                name + file,
                f"{PurePosixPath(file).suffix} files are not read: save it as JPEG or PNG",
            )
    return table


def _walk_files(
    folder: Path, subfolder: str = "", ancestors: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Every file as a path with '/' below the folder, in order of name, without hidden ones.

    Links are followed, except to a folder they lie in. One that leads nowhere is a file that will not decode.
    """
    here = os.path.realpath(folder / subfolder)
    if here in ancestors:
        return
    with os.scandir(folder / subfolder) as found:
        entries = sorted(found, key=lambda e: e.name)
    for entry in entries:
        if entry.name.startswith((".", "__MACOSX")):
            continue
        if entry.is_dir():
            yield from _walk_files(folder, f"{subfolder}{entry.name}/", ancestors | {here})
        elif entry.is_file() or entry.is_symlink():
            yield subfolder + entry.name


def _strip_extension(file: str) -> str:
    return file[: file.rindex(".")]


def _add_captions(table: Table, sidecars: dict[str, list[str]], encoding: str, name: str) -> None:
    """The columns that the files beside the pictures hold."""
    assert isinstance(table.root, Path)
    records: list[dict[str, Any]] = []
    for row, picture in enumerate(table.columns["image"]):
        record: dict[str, Any] = {}
        for file in sidecars.get(_strip_extension(picture), []):
            try:
                record = _merge_records(record, _read_sidecar(table.root / file, encoding))
            except (ValueError, OSError) as e:
                table.bad_samples.append(BadSample(row, "caption", name + file, str(e)))
        records.append(record)
    for column, values in columns_from_records(records).items():
        table.columns[f"{column} (beside)" if column in table.columns else column] = values
    if "caption" in table.columns:
        table.kinds["caption"] = "text"
        there = sum(v is not None for v in table.columns["caption"])
        table.reasons["caption"] = (
            f"{there} of {len(table)} pictures have a .txt or .json file of the same name"
        )


def _read_sidecar(path: Path, encoding: str) -> dict[str, Any]:
    """What a file beside a picture says, its captions as `caption`. Raises ValueError if it cannot be read."""
    with open_text(path, encoding) as f:
        text = f.read()
    if path.suffix.lower() == ".txt":
        return {"caption": _parse_captions(text.splitlines())}
    value = parse_json(text)
    if isinstance(value, ValueError):
        raise value
    if not isinstance(value, dict):
        return {"caption": _parse_captions(value)}
    key = next((k for k in _CAPTION_KEYS if k in value), None)
    rest = {k: v for k, v in value.items() if k != key}
    return rest if key is None else {"caption": _parse_captions(value[key]), **rest}


def _parse_captions(value: Any) -> list[str] | None:
    lines = [value] if isinstance(value, str) else value
    if lines is None:
        return None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"expected captions, found {str(value)[:60]!r}")
    return list(dict.fromkeys(line.strip() for line in lines if line.strip())) or None


def _merge_records(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two files beside one picture (img2dataset writes both): all their captions, each once, and all other fields."""
    captions = list(dict.fromkeys([*(a.get("caption") or []), *(b.get("caption") or [])]))
    return {**a, **b, **({"caption": captions or None} if "caption" in a or "caption" in b else {})}


def _add_labels(table: Table, images: list[str]) -> None:
    labels = [p.rpartition("/")[0] for p in images]
    if all(labels) and len(set(labels)) > 1:
        table.columns["label"] = labels
        table.kinds["label"], table.reasons["label"] = (
            "category",
            f"the pictures lie in {len(set(labels))} folders",
        )


def _add_bad_sample(table: Table, location: str, reason: str) -> None:
    """A row with nothing in it, to be left out and counted like every other bad one."""
    table.bad_samples.append(BadSample(len(table), "", location, reason))
    table.locations = [*table.locations, location]
    for column in table.columns.values():
        assert isinstance(column, list)
        column.append(None)
