"""Tables that name images without their folder or ending, as on Kaggle: find the files.

captions.csv + images/            the column `image` holds names of files in a folder beside
styles.csv + images/15970.jpg     the column `id` holds names without ending
metadata.csv + train/, test/      paths that begin with a split
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.data.common_names import COMMON_NAMES, is_key_name, is_text_name
from sensorium.data.file_names import FileFinder, NameIndex, normalize_name
from sensorium.data.media_folders import HIDDEN_PREFIXES, FolderFiles
from sensorium.data.schema import extensions
from sensorium.data.splits import KNOWN_SPLITS, normalize_split_name
from sensorium.data.tables import IMAGE_EXTENSIONS, Table
from sensorium.data.unused_files import describe_unused

_MEDIA_EXTENSIONS = (*IMAGE_EXTENSIONS, *(extensions("audio") or ()))
_MAX_CHECKED_VALUES = 200  # of a column
_MIN_FOUND_FRACTION = 0.5  # of values that name files, for a column that does
_MIN_KEYED_FRACTION = 0.9  # of values that name files without ending
_MIN_CAPTIONS_PER_IMAGE = 1.5  # from which on the captions of an image are grouped
_MIN_CAPTION_WORDS = 3.0  # on average
_CAPTION_WORDS = re.compile(r"comment|caption|sentence|descri")
_MAX_IMAGE_COLUMNS = 4  # made of a column of lists of files
_MAX_SUBFOLDERS = 100
_IMAGE_WORDS = re.compile(r"image|img|photo|pic|file|path|frame|scan")
_COUNTER_NAMES = re.compile(r"(comment|caption|sent\w*|raw)?_?(number|no|nr|index|idx|id)|")


def resolve_files(table: Table, files: FolderFiles, split: str = "") -> bool:
    """Replace names of files by paths, in place, where the files are found in another folder.

    A column of identifiers that name images stays, and a column `image` is added. Paths that begin
    with a split become a column of splits.

    Args:
        table: the rows of a table in the folder, or of the folder.
        files: what lies below the folder.
        split: the split that the table is, which tells equal names in two folders apart.

    Returns:
        Whether names were replaced or images added.
    """
    index = NameIndex([*files.images, *files.audio])
    if not len(index):
        return False
    columns = [c for c, v in table.columns.items() if _names_files(table, c, v, index, split)]
    for column in columns:
        _replace_names(table, column, index, split)
    is_keyed = not columns and not _names_existing_files(table)
    is_keyed = is_keyed and _add_keyed_images(table, index, split)
    _add_split_from_paths(table)
    return bool(columns) or is_keyed


def count_named(table: Table, files: FolderFiles) -> int:
    """Return how many different files the rows name."""
    known = {*files.images, *files.audio}
    values = (v for column in table.columns.values() for v in column if isinstance(v, str))
    return len(known.intersection(values))


def _texts(table: Table) -> Iterator[str]:
    """Yield the texts in all cells, also those in lists."""
    for values in table.columns.values():
        for value in values:
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                yield from (item for item in value if isinstance(item, str))


def note_unnamed_files(table: Table, files: FolderFiles, name: str) -> None:
    """Note the images that no row names.

    Args:
        table: the rows.
        files: what lies below the folder.
        name: what messages call the table.
    """
    prefix = f"{table.base_folder(0).as_posix()}/" if len(table) else ""
    used = {v.replace("\\", "/").removeprefix("./").removeprefix(prefix) for v in _texts(table)}
    unnamed = [file for file in files.images if file not in used]
    if unnamed:  # or named in another spelling
        names = set(map(normalize_name, used))
        unnamed = [file for file in unnamed if normalize_name(file) not in names]
    table.notes += describe_unused({f"not named in {name}": unnamed})


def list_subfolder_files(folder: Path) -> FolderFiles:
    """Return the images in the folders beside a table, not in theirs."""
    images: list[str] = []
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith(HIDDEN_PREFIXES))
        for entry in islice((p for p in entries if p.is_dir()), _MAX_SUBFOLDERS):
            names = sorted(p.name for p in entry.iterdir())
            images += [f"{entry.name}/{n}" for n in names if n.lower().endswith(_MEDIA_EXTENSIONS)]
    except OSError:  # a folder that may not be listed has no file for the table
        return FolderFiles(images, [], [], [])
    return FolderFiles(images, [], [], [])


def lacks_files(table: Table) -> bool:
    """Return whether a column of image names, or of identifiers, names no file directly."""
    finder = FileFinder()
    for column, values in table.columns.items():
        sample = _sample_texts(values)
        if any(t.lower().endswith(_MEDIA_EXTENSIONS) for t in sample):
            return not any(_exists(finder, table, t) for t in sample)
        if column.lower() in COMMON_NAMES["image"] or is_key_name(column.lower()):
            return True
    return False


def _sample_texts(values: Any) -> list[str]:
    """Return some of the values as texts."""
    present = [v for v in islice(values, 10 * _MAX_CHECKED_VALUES) if isinstance(v, str | int)]
    step = -(-len(present) // _MAX_CHECKED_VALUES) or 1
    return [str(value) for value in present[::step]]


def _exists(finder: FileFinder, table: Table, path: str) -> bool:
    """Return whether a path is one already."""
    return finder.find(table.base_folder(0), path.replace("\\", "/")) is not None


def _names_files(table: Table, column: str, values: Any, index: NameIndex, split: str) -> bool:
    """Return whether a column names files that lie elsewhere than it says."""
    sample = _sample_texts(values)
    has_endings = sum(t.lower().endswith(_MEDIA_EXTENSIONS) for t in sample) * 2 > len(sample)
    is_image_name = _IMAGE_WORDS.search(column.lower()) is not None
    if not sample or is_text_name(column.lower()) or not (has_endings or is_image_name):
        return False
    finder = FileFinder()
    num_existing = sum(_exists(finder, table, text) for text in sample)
    if num_existing == len(sample):
        return False
    num_found = sum(index.find(text, split) is not None for text in sample)
    return num_found > num_existing and num_found >= _MIN_FOUND_FRACTION * len(sample)


def _names_existing_files(table: Table) -> bool:
    """Return whether a column holds paths of files as they are."""
    finder = FileFinder()
    return any(
        _exists(finder, table, text)
        for values in table.columns.values()
        for text in _sample_texts(values)
        if text.lower().endswith(_MEDIA_EXTENSIONS)
    )


def _replace_names(table: Table, column: str, index: NameIndex, split: str) -> None:
    """Replace the names in a column by the paths of the files."""
    values = table.columns[column]
    paths = [index.find(str(v), split) if isinstance(v, str | int) else None for v in values]
    table.columns[column] = [v if p is None else p for v, p in zip(values, paths, strict=True)]
    folders = Counter(p.rpartition("/")[0] for p in paths if p is not None)
    table.kinds[column] = "image" if _are_images(paths) else "audio"
    table.reasons[column] = (
        f"{folders.total():,} of {len(values):,} values name files in {_describe(folders)}"
    )


def _add_keyed_images(table: Table, index: NameIndex, split: str) -> bool:
    """Add the images that a column of identifiers names without ending; return whether one does."""
    for column, values in table.columns.items():
        sample = _sample_texts(values)
        is_key = is_key_name(column.lower()) or column == next(iter(table.columns))
        if not sample or not is_key or len(set(sample)) < _MIN_KEYED_FRACTION * len(sample):
            continue
        num_found = sum(index.find(text, split) is not None for text in sample)
        if num_found < _MIN_KEYED_FRACTION * len(sample):
            continue
        paths = [index.find(str(v), split) if v is not None else None for v in values]
        name = "image" if "image" not in table.columns else f"image of {column}"
        folders = Counter(p.rpartition("/")[0] for p in paths if p is not None)
        table.columns = {name: paths, **table.columns}
        table.kinds[name] = "image" if _are_images(paths) else "audio"
        table.reasons[name] = (
            f"{folders.total():,} of {len(paths):,} values of {column!r} name files in "
            f"{_describe(folders)}"
        )
        num_missing = len(paths) - folders.total()
        if num_missing:
            table.notes.append(
                f"{num_missing:,} of {len(paths):,} rows: no image of their {column}"
            )
        return True
    return False


def _are_images(paths: Iterable[str | None]) -> bool:
    return any(p is not None and p.lower().endswith(IMAGE_EXTENSIONS) for p in paths)


def _describe(folders: Counter[str]) -> str:
    """Return the folders with most files, as text."""
    names = ", ".join(f"{folder or '.'}/" for folder, _ in folders.most_common(3))
    return names + (", ..." if len(folders) > 3 else "")


def _add_split_from_paths(table: Table) -> None:
    """Add a column of splits if every path of a column begins with the name of one."""
    if any(name.lower() in COMMON_NAMES["split"] for name in table.columns):
        return
    for column, values in table.columns.items():
        first = [
            v.replace("\\", "/").partition("/") if isinstance(v, str) else None for v in values
        ]
        present = [part[0].lower() for part in first if part is not None]
        if not present or not set(present) <= KNOWN_SPLITS:
            continue
        splits = [None if part is None else normalize_split_name(part[0]) for part in first]
        if len(set(splits) - {None}) > 1 and all(part is None or part[1] for part in first):
            table.columns["split"] = splits
            table.split_column = "split"
            table.reasons["split"] = f"the first folder in {column!r}"
            return


def expand_file_lists(table: Table) -> None:
    """Replace columns of lists of image files by a column for each place in the lists.

    Of lists of different lengths, or of more than _MAX_IMAGE_COLUMNS files, the first file is
    taken; the others are noted as unused.
    """
    for column, values in list(table.columns.items()):
        lists = [v for v in values if isinstance(v, list) and v]
        if not lists or not all(_is_file_list(v) for v in lists[:_MAX_CHECKED_VALUES]):
            continue
        sizes = {len(v) for v in lists}
        size = max(sizes) if len(sizes) == 1 and max(sizes) <= _MAX_IMAGE_COLUMNS else 1
        names = [column] if size == 1 else [f"{column}_{i + 1}" for i in range(size)]
        expanded: dict[str, list[Any]] = {
            name: [v[i] if isinstance(v, list) and len(v) > i else None for v in values]
            for i, name in enumerate(names)
        }
        columns: dict[str, Any] = {}
        for other, others in table.columns.items():
            columns |= expanded if other == column else {other: others}
        table.columns = columns
        num_unused = sum(len(v) - size for v in lists if len(v) > size)
        if num_unused:
            table.notes.append(
                f"column {column}: {num_unused:,} images beyond the first of a row are not used"
            )


def _is_file_list(items: Sequence[Any]) -> bool:
    return all(isinstance(v, str) and v.lower().endswith(_MEDIA_EXTENSIONS) for v in items)


def group_captions(table: Table) -> Table:
    """Return one row for each image of a table that repeats it with a caption each time.

    The table has a column of images, one of texts, and perhaps one that numbers the texts.
    """
    found = _caption_columns(table)
    if found is None:
        return table
    image, text = found
    bad_rows = {sample.row for sample in table.bad_samples}
    rows_of: dict[tuple[Path, Any], list[int]] = {}
    for row, value in enumerate(table.columns[image]):
        is_alone = value is None or row in bad_rows
        rows_of.setdefault((table.base_folder(row), row if is_alone else value), []).append(row)
    if len(table) < _MIN_CAPTIONS_PER_IMAGE * len(rows_of):
        return table
    groups = list(rows_of.values())
    first_rows = np.array([rows[0] for rows in groups], np.int64)
    grouped = table.take(first_rows)
    texts = table.columns[text]
    captions = [[str(texts[r]) for r in rows if texts[r] is not None] or None for rows in groups]
    columns = {image: grouped.columns[image], text: captions}
    columns |= {n: v for n, v in grouped.columns.items() if n == table.split_column}
    new_row = {int(row): i for i, row in enumerate(first_rows)}
    bad_samples = [replace(sample, row=new_row[sample.row]) for sample in table.bad_samples]
    kinds = {**table.kinds, text: "text"}
    reason = f"{len(table):,} captions of {len(groups):,} images, grouped"
    reasons = {**table.reasons, text: reason}
    return replace(grouped, columns=columns, bad_samples=bad_samples, kinds=kinds, reasons=reasons)


def _are_captions(name: str, sample: Sequence[str]) -> bool:
    """Return whether texts are captions, not classes."""
    is_named = is_text_name(name.lower()) or _CAPTION_WORDS.search(name.lower()) is not None
    num_words = sum(len(text.split()) for text in sample)
    return is_named or num_words >= _MIN_CAPTION_WORDS * len(sample) > 0


def _caption_columns(table: Table) -> tuple[str, str] | None:
    """Return the columns of images and of captions, None if the table holds anything else."""
    images: list[str] = []
    texts: list[str] = []
    for name, values in table.columns.items():
        if name == table.split_column:
            continue
        if any(isinstance(v, list) for v in values):
            return None
        sample = _sample_texts(values)
        has_endings = all(t.lower().endswith(_MEDIA_EXTENSIONS) for t in sample)
        if sample and has_endings and not is_text_name(name.lower()):
            images.append(name)
        elif sample and all(t.strip().isdigit() for t in sample):
            if not _COUNTER_NAMES.fullmatch(name.lower()):
                return None
        elif _are_captions(name, sample) and table.kinds.get(name, "text") == "text":
            texts.append(name)
        else:
            return None
    return (images[0], texts[0]) if len(images) == 1 and len(texts) == 1 else None
