"""Read folders of data in the layouts people already have; the first that fits is read.

000.tar, 001.tar, without images in folders         archives (WebDataset, img2dataset)
metadata.csv (or captions.*)                        rows that name the files
train.csv, test.csv; train/..., val/..., test/...   one file or folder per split
captions.txt, annotations/captions_train2017.json   captions of Flickr8k and COCO
the only table, or that which names the most files  rows that name the files
a.jpg + a.txt, a.json; images/a.jpg + texts/a.txt   captions, one per line; JSON fields are columns
cat/a.jpg, dog/b.jpg                                one folder per class

A table is CSV, TSV, JSONL or Parquet.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sensorium.data.caption_files import read_caption_files
from sensorium.data.media_folders import (
    HIDDEN_PREFIXES,
    FolderFiles,
    has_media,
    list_files,
    read_media_folder,
)
from sensorium.data.named_files import count_named, note_unnamed_files, resolve_files
from sensorium.data.shards import PACKED_TAR_ENDINGS, TAR_ENDING, read_shards
from sensorium.data.splits import KNOWN_SPLITS, normalize_split_name
from sensorium.data.table_files import is_text_table, read_table
from sensorium.data.tables import (
    IMAGE_EXTENSIONS,
    Table,
    concat_tables,
    table_extension,
)
from sensorium.data.unused_files import describe_unused, describes_folder
from sensorium.errors import SensoriumError

_METADATA_STEMS = ("metadata", "captions")
_MAX_COMPARED_TABLES = 8  # of which that is read that names the most files
_MAX_TEXT_FILES = 16  # of a folder that are looked into
_DIGITS = re.compile(r"\d+")


class _Listing(NamedTuple):
    """What lies directly in a folder, hidden entries left out."""

    tables: list[Path]
    folders: list[Path]
    archives: list[Path]
    images: list[Path]
    others: list[Path]


class _Reader(NamedTuple):
    """How the text files of a source are read."""

    encoding: str
    delimiter: str

    def read_table(self, path: Path, name: str) -> Table:
        """Read a table."""
        return read_table(path, self.encoding, name, self.delimiter)


def read_folder(
    folder: Path, encoding: str = "utf-8", name: str = "", delimiter: str = ""
) -> Table:
    """Read a folder in the first of the layouts above that fits.

    Args:
        folder: the folder.
        encoding: of its text files.
        name: a prefix of the row locations in messages.
        delimiter: between the cells of its CSV or TSV files; by default it is recognised.

    Raises:
        SensoriumError: if there is nothing to read, or several tables to choose from.
    """
    return _read_folder(folder, _Reader(encoding, delimiter), name)


def _read_folder(folder: Path, reader: _Reader, name: str, split: str = "") -> Table:
    listing = _list_folder(folder)
    if listing.archives and not listing.images and not any(map(has_media, listing.folders)):
        return _read_archives(listing, reader, name)
    metadata = [t for t in listing.tables if t.name.lower().split(".")[0] in _METADATA_STEMS]
    if metadata:
        return _read_named_table(folder, metadata[0], listing, reader, name, split)
    parts = _split_parts(listing)
    single = [t for t in listing.tables if not _split_from_name(t)]
    if parts and len(listing.tables) == len(single) == 1:  # such as labels.csv beside train/
        table = _read_named_table(folder, single[0], listing, reader, name, split)
        if count_named(table, list_files(folder)):
            return table
    if parts:
        return _read_splits(folder, parts, listing, reader, name)
    if len(listing.tables) == len(single) == 1:
        return _read_named_table(folder, single[0], listing, reader, name, split)
    if listing.tables:
        return _read_one_of_tables(folder, listing, reader, name)
    if len(listing.folders) == 1 and not listing.images and not _has_data(listing.others):
        table = _read_folder(listing.folders[0], reader, f"{name}{listing.folders[0].name}/")
        table.notes += _describe_rest([*listing.archives, *listing.others], "not read")
        return table
    files = list_files(folder)
    nested = _read_nested_table(folder, files, reader, name)
    if nested is not None:
        return nested
    captions = read_caption_files(folder, files, reader.encoding, name)
    return read_media_folder(folder, reader.encoding, name) if captions is None else captions


def _list_folder(folder: Path) -> _Listing:
    """List the entries of a folder; a table beside a folder or archive of its name is left out.

    That is how img2dataset describes its shards.
    """
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith(HIDDEN_PREFIXES))
    except OSError as e:
        raise SensoriumError(f"could not read the folder {folder}: {e.strerror or e}.") from e
    folders = [p for p in entries if p.is_dir()]
    archives = [p for p in entries if p.name.lower().endswith((TAR_ENDING, *PACKED_TAR_ENDINGS))]
    stems = {p.name for p in folders} | {p.name.removesuffix(TAR_ENDING) for p in archives}
    is_file = [p for p in entries if p not in set(folders) | set(archives)]
    images = [p for p in is_file if p.suffix.lower() in IMAGE_EXTENSIONS]
    tables = [
        p
        for p in is_file
        if table_extension(p) and p.is_file() and not (p.stem in stems and p.stem.isdigit())
    ]
    texts = [p for p in is_file if p.suffix.lower() == ".txt"]
    if len(texts) <= _MAX_TEXT_FILES:  # more are captions of one image each
        tables += [p for p in texts if is_text_table(p)]
    known = {*tables, *images}
    return _Listing(tables, folders, archives, images, [p for p in is_file if p not in known])


def _has_data(others: Sequence[Path]) -> bool:
    """Return whether files beside the only folder may belong to what it holds."""
    return any(
        p.suffix.lower() in (".txt", ".json") and not describes_folder(p.name) for p in others
    )


def _split_from_name(path: Path) -> str:
    """Return 'train' for train/, train.csv and train-00000-of-00002.parquet; '' for other names."""
    word = path.name if path.is_dir() else re.split(r"[-_.]", path.name)[0]
    return normalize_split_name(word) if word.lower() in KNOWN_SPLITS else ""


def _describe_rest(entries: Sequence[Path], reason: str) -> list[str]:
    """Return a note about entries of a folder that are not read."""
    files = [p.name + ("/" if p.is_dir() else "") for p in entries]
    return describe_unused({reason: [f for f in files if not describes_folder(f)]})


# Archives --------------------------------------------------------------------------------------


def _read_archives(listing: _Listing, reader: _Reader, name: str) -> Table:
    """Read all archives of a folder."""
    table = read_shards(listing.archives, reader.encoding, name)
    stems = {p.name.removesuffix(TAR_ENDING) for p in listing.archives}
    rest = [*listing.folders, *listing.tables, *listing.others]
    rest = [
        p for p in rest if p.name.removesuffix("_stats.json") not in stems and p.stem not in stems
    ]
    table.notes += _describe_rest(rest, "not read, since the archives are")
    return table


# Tables ----------------------------------------------------------------------------------------


def _read_named_table(
    folder: Path, path: Path, listing: _Listing, reader: _Reader, name: str, split: str
) -> Table:
    """Read the table that describes a folder, and find the files that it names."""
    table = reader.read_table(path, name + path.name)
    files = list_files(folder)
    resolve_files(table, files, split)
    note_unnamed_files(table, files, path.name)
    others = [p for p in (*listing.tables, *listing.archives) if p != path]
    table.notes += _describe_rest(others, f"not read, since {path.name} describes the folder")
    return table


def _read_one_of_tables(folder: Path, listing: _Listing, reader: _Reader, name: str) -> Table:
    """Read several tables: shards of one, or the one that names the most files.

    Raises:
        SensoriumError: if none of them names files.
    """
    tables = listing.tables
    if len({_DIGITS.sub("", t.name) for t in tables}) == 1:
        return concat_shards([reader.read_table(t, name + t.name) for t in tables])
    files = list_files(folder)
    candidates = []
    for path in tables[:_MAX_COMPARED_TABLES] if files.images or files.audio else []:
        table = reader.read_table(path, name + path.name)
        resolve_files(table, files)
        candidates.append((count_named(table, files), path, table))
    best = max(candidates, key=lambda candidate: candidate[0], default=None)
    if best is None or not best[0]:
        names = ", ".join(t.name for t in tables[:5])
        raise SensoriumError(
            f"{folder} holds {len(tables)} tables ({names}) and none is called metadata or "
            "captions, or names its images. Open the one you mean."
        )
    _, path, table = best
    note_unnamed_files(table, files, path.name)
    others = [t for t in tables if t != path]
    table.notes += _describe_rest(others, f"not read, since {path.name} names the most files")
    return table


def _read_nested_table(
    folder: Path, files: FolderFiles, reader: _Reader, name: str
) -> Table | None:
    """Read the table in a folder of its own that names the most files, None if none names one."""
    nested = [f for f in files.others if table_extension(Path(f)) and f.count("/") == 1]
    nested = [f for f in nested if not Path(f).stem.isdigit()][:_MAX_COMPARED_TABLES]
    best: tuple[int, str, Table] | None = None
    for file in nested:
        table = reader.read_table(folder / file, name + file)
        if resolve_files(table, files, _split_from_name(Path(file))):
            table.root = folder
            num_named = count_named(table, files)
            best = max(best or (0, "", table), (num_named, file, table), key=lambda c: c[0])
    if best is None or not best[0]:
        return None
    _, file, table = best
    note_unnamed_files(table, files, file)
    others = [f for f in nested if f != file]
    table.notes += describe_unused({f"not read, since {file} names the most files": others}, name)
    return table


def concat_shards(tables: Sequence[Table]) -> Table:
    """Return the rows of tables that are parts of one."""
    return tables[0] if len(tables) == 1 else concat_tables([(None, t) for t in tables])


# Splits ----------------------------------------------------------------------------------------


def _split_parts(listing: _Listing) -> list[Path]:
    """Return the tables or folders that are one split each.

    Folders beside them are no splits, unless there is but one split: a class may be called train.
    """
    tables = [t for t in listing.tables if _split_from_name(t)]
    if tables:
        return tables
    folders = [f for f in listing.folders if _split_from_name(f)]
    num_splits = len({_split_from_name(f) for f in folders})
    if num_splits > 1 or (len(folders) == len(listing.folders) and not listing.images):
        return folders
    return []


def _read_splits(
    folder: Path, parts: Sequence[Path], listing: _Listing, reader: _Reader, name: str
) -> Table:
    """Read the parts that are one split each."""
    named: list[tuple[str | None, Table]] = []
    files = list_files(folder) if any(p.is_file() for p in parts) else None
    for path in parts:
        split = _split_from_name(path)
        if files is None or path.is_dir():
            table = _read_folder(path, reader, f"{name}{path.name}/", split)
        else:
            table = reader.read_table(path, name + path.name)
            resolve_files(table, files, split)
        named.append((split, table))
    tables = {p for p in parts if p.is_file()}
    used = {*parts, *(listing.folders if tables else ())}
    rest = [*listing.folders, *listing.tables, *listing.images, *listing.archives]
    rest = [p for p in rest if p not in used]
    table = concat_tables(named)
    if files is not None:
        note_unnamed_files(table, files, "the tables")
    table.notes += _describe_rest(rest, "not read, since the splits beside it are")
    return table
