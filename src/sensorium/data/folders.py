"""Read folders of images, in the layouts people already have.

metadata.csv (or captions.*, or the only table)     rows that name the images
train.csv, test.csv; train/..., val/..., test/...   one file or folder per split
a.jpg + a.txt, a.json                               captions, one per line; JSON fields are columns
cat/a.jpg, dog/b.jpg                                one folder per class

A table is CSV, TSV, JSONL or Parquet.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sensorium.data.bad_samples import BadSample
from sensorium.data.splits import KNOWN_SPLITS, normalize_split_name
from sensorium.data.table_files import columns_from_records, read_table
from sensorium.data.tables import (
    IMAGE_EXTENSIONS,
    TABLE_EXTENSIONS,
    UNSUPPORTED_IMAGE_EXTENSIONS,
    Table,
    concat_tables,
    open_text,
    parse_json,
    table_extension,
)
from sensorium.errors import SensoriumError
from sensorium.io.untrusted import replace_surrogates

_NON_CAPTION_STEMS = (  # of text files that describe the whole folder
    "readme",
    "license",
    "licence",
    "notice",
    "attribution",
    "requirements",
    "classes",
)
_MAX_LOOSE_FRACTION = 1 / 3  # of images that lie beside the folders of classes
_METADATA_STEMS = ("metadata", "captions")
_CAPTION_KEYS = ("caption", "captions", "text")
_HIDDEN_PREFIXES = (".", "__MACOSX")


class _Listing(NamedTuple):
    """What lies directly in a folder, hidden entries left out."""

    tables: list[Path]
    folders: list[Path]
    has_images: bool


def read_folder(
    folder: Path, encoding: str = "utf-8", name: str = "", delimiter: str = ""
) -> Table:
    """Read a folder in whichever of the layouts above it has.

    Args:
        folder: the folder.
        encoding: of its text files.
        name: a prefix of the row locations in messages.
        delimiter: between the cells of its CSV or TSV files; by default it is recognised.

    Raises:
        SensoriumError: if there is nothing to read, or several tables to choose from.
    """
    listing = _list_folder(folder)
    table = _choose_table(listing.tables)
    if table is not None:
        return read_table(table, encoding, name + table.name, delimiter)
    parts = _split_parts(listing)
    if parts:
        return concat_tables(
            [
                (_split_from_name(p), _read_table_or_folder(p, encoding, name, delimiter))
                for p in parts
            ]
        )
    if listing.tables:
        names = ", ".join(t.name for t in listing.tables[:5])
        raise SensoriumError(
            f"{folder} holds {len(listing.tables)} tables ({names}) and none is called metadata or "
            "captions. Open the one you mean."
        )
    is_hub_layout = [f.name for f in listing.folders] == ["data"] and not listing.has_images
    if is_hub_layout:  # as the Hugging Face hub lays out Parquet shards
        return read_folder(listing.folders[0], encoding, f"{name}data/", delimiter)
    return _read_image_folder(folder, encoding, name)


def _choose_table(tables: Sequence[Path]) -> Path | None:
    """Return the table that describes the whole folder, if there is one."""
    for table in tables:
        if table.name.lower().split(".")[0] in _METADATA_STEMS:
            return table
    if len(tables) == 1 and not _split_from_name(tables[0]):
        return tables[0]
    return None


def _split_parts(listing: _Listing) -> list[Path]:
    """Return the tables or folders that are one split each."""
    tables = [t for t in listing.tables if _split_from_name(t)]
    if tables:
        return tables
    if listing.has_images or not all(map(_split_from_name, listing.folders)):
        return []
    return listing.folders


def _read_table_or_folder(path: Path, encoding: str, name: str, delimiter: str) -> Table:
    """Read one split."""
    name += path.name
    if path.is_dir():
        return read_folder(path, encoding, f"{name}/", delimiter)
    return read_table(path, encoding, name, delimiter)


def _list_folder(folder: Path) -> _Listing:
    """List the entries of a folder."""
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith(_HIDDEN_PREFIXES))
    except OSError as e:
        raise SensoriumError(f"could not read the folder {folder}: {e.strerror or e}.") from e
    return _Listing(
        tables=[p for p in entries if table_extension(p) and p.is_file()],
        folders=[p for p in entries if p.is_dir()],
        has_images=any(p.suffix.lower() in IMAGE_EXTENSIONS for p in entries),
    )


def _split_from_name(path: Path) -> str:
    """Return 'train' for train/, train.csv and train-00000-of-00002.parquet; '' for other names."""
    word = path.name if path.is_dir() else re.split(r"[-_.]", path.name)[0]
    return normalize_split_name(word) if word.lower() in KNOWN_SPLITS else ""


def _read_image_folder(folder: Path, encoding: str, name: str) -> Table:
    """Read a folder of image files, with captions and classes if it has them."""
    try:
        files = list(_walk_files(folder))
    except OSError as e:
        raise SensoriumError(
            f"could not read the folder {e.filename or folder}: {e.strerror or e}."
        ) from e
    unnamed = [f for f in files if replace_surrogates(f) != f]
    files = [f for f in files if f not in unnamed] if unnamed else files
    images = [f for f in files if f.lower().endswith(IMAGE_EXTENSIONS)]
    unread = _count_unread(files)
    if not images:
        content = f"{len(files)} files, but no" if files else "no"
        others = f"; not read: {unread}" if unread else ""
        raise SensoriumError(
            f"{folder} holds {content} image ({' '.join(IMAGE_EXTENSIONS)}) or table "
            f"({' '.join(TABLE_EXTENSIONS)}){others}. Choose another folder."
        )
    table = Table(
        {"image": list(images)}, [name + f for f in images], root=folder, kinds={"image": "image"}
    )
    table.reasons["image"] = f"{len(images)} image files in the folder"
    if unread:
        table.reasons["image"] += f"; not read: {unread}"
    _add_labels(table, images)
    _add_sidecars(table, files, images, encoding, name)
    for file in files:
        if file.lower().endswith(UNSUPPORTED_IMAGE_EXTENSIONS):
            suffix = PurePosixPath(file).suffix
            reason = f"{suffix} files are not supported: save it as JPEG or PNG"
            _add_bad_sample(table, name + file, reason)
    for file in unnamed:
        if file.lower().endswith(IMAGE_EXTENSIONS):
            reason = "its name is not UTF-8: rename the file or its folder"
            _add_bad_sample(table, replace_surrogates(name + file), reason)
    return table


def _count_unread(files: Sequence[str]) -> str:
    """Return how many files of each kind are not read, such as "3 .mp4, 1 .pdf"."""
    read = (*IMAGE_EXTENSIONS, *TABLE_EXTENSIONS, ".txt", ".json")
    kinds = Counter(
        PurePosixPath(f).suffix.lower() or "without an extension"
        for f in files
        if not f.lower().endswith(read) and PurePosixPath(f).stem.lower() not in _NON_CAPTION_STEMS
    )
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))


def _walk_files(
    folder: Path, subfolder: str = "", ancestors: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield every file that is not hidden as a path with '/' below the folder, sorted by name.

    Links are followed, except to a folder that contains them. A dangling link is a file that cannot
    be decoded.
    """
    real_path = os.path.realpath(folder / subfolder)
    if real_path in ancestors:
        return
    with os.scandir(folder / subfolder) as iterator:
        entries = sorted(iterator, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith(_HIDDEN_PREFIXES):
            continue
        if entry.is_dir():
            yield from _walk_files(folder, f"{subfolder}{entry.name}/", ancestors | {real_path})
        elif entry.is_file() or entry.is_symlink():
            yield subfolder + entry.name


def _strip_extension(file: str) -> str:
    return file[: file.rindex(".")]


def _add_sidecars(
    table: Table, files: Sequence[str], images: Sequence[str], encoding: str, name: str
) -> None:
    """Add the columns of .txt and .json files named like the images.

    Without a single match they are unrelated files.
    """
    sidecars: dict[str, list[str]] = {}
    for file in files:
        if file.lower().endswith((".txt", ".json")):
            sidecars.setdefault(_strip_extension(file), []).append(file)
    unmatched = sidecars.keys() - {_strip_extension(f) for f in images}
    if len(unmatched) == len(sidecars):
        return
    _add_captions(table, sidecars, encoding, name)
    for stem in sorted(unmatched):
        for file in sidecars[stem]:
            if PurePosixPath(file).stem.lower() not in _NON_CAPTION_STEMS:
                _add_bad_sample(table, name + file, "there is no image of the same name")


def _add_captions(table: Table, sidecars: dict[str, list[str]], encoding: str, name: str) -> None:
    """Add the columns that the sidecar files hold."""
    records: list[dict[str, Any]] = []
    for row, image in enumerate(table.columns["image"]):
        record: dict[str, Any] = {}
        for file in sidecars.get(_strip_extension(image), []):
            try:
                record = _merge_records(
                    record, _read_sidecar(table.base_folder(row) / file, encoding)
                )
            except (ValueError, OSError) as e:
                table.bad_samples.append(BadSample(row, "caption", name + file, str(e)))
        records.append(record)
    for column, values in columns_from_records(records).items():
        table.columns[f"{column} (sidecar)" if column in table.columns else column] = values
    if "caption" in table.columns:
        num_captioned = sum(v is not None for v in table.columns["caption"])
        table.kinds["caption"] = "text"
        table.reasons["caption"] = (
            f"{num_captioned} of {len(table)} images have a .txt or .json file of the same name"
        )


def _read_sidecar(path: Path, encoding: str) -> dict[str, Any]:
    """Return the fields of a sidecar file, captions as `caption`; ValueError if it is invalid."""
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
    if key is None:
        return value
    others = {k: v for k, v in value.items() if k != key}
    return {"caption": _parse_captions(value[key]), **others}


def _parse_captions(value: Any) -> list[str] | None:
    """Return the captions that are not empty, each once; None if there is none."""
    if value is None:
        return None
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"expected captions, not {str(value)[:60]!r}")
    return list(dict.fromkeys(line.strip() for line in lines if line.strip())) or None


def _merge_records(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Merge two sidecars of one image (img2dataset writes both): all fields, each caption once."""
    merged = {**a, **b}
    if "caption" in merged:
        captions = [*(a.get("caption") or []), *(b.get("caption") or [])]
        merged["caption"] = list(dict.fromkeys(captions)) or None
    return merged


def _add_labels(table: Table, images: Sequence[str]) -> None:
    """Add the folders of the images as classes, if most images lie in one and there are several."""
    labels = [image.rpartition("/")[0] or None for image in images]
    num_folders = len(set(labels) - {None})
    num_loose = labels.count(None)
    if num_folders < 2 or num_loose > _MAX_LOOSE_FRACTION * len(labels):
        return
    table.columns["label"] = labels
    table.kinds["label"] = "category"
    table.reasons["label"] = f"the images lie in {num_folders} folders"
    if num_loose:
        table.reasons["label"] += f", {num_loose} beside them"


def _add_bad_sample(table: Table, location: str, reason: str) -> None:
    """Add an empty row that is left out and counted like every other bad one."""
    table.bad_samples.append(BadSample(len(table), "", location, reason))
    table.locations = [*table.locations, location]
    for column in table.columns.values():
        column.append(None)
