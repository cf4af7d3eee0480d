"""Read tar archives as WebDataset and img2dataset write them, in place: nothing is unpacked.

Files that share a name up to its first dot are one row: 000001.jpg, 000001.txt, 000001.json. The
endings say what a file holds:

jpg png webp ...        the column image; with more before it, such as mask.png, a column mask
wav flac ogg mp3        audio
txt caption, json       captions, and fields that become columns
cls class               the column label
npy csv                 series
other texts             a column of that name
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from sensorium.data.bad_samples import BadSample
from sensorium.data.media_folders import add_bad_rows, add_splits_and_labels
from sensorium.data.schema import extensions
from sensorium.data.sidecars import merge_records, parse_sidecar, tag_captions
from sensorium.data.splits import KNOWN_SPLITS, normalize_split_name
from sensorium.data.table_files import columns_from_records
from sensorium.data.tables import TABLE_EXTENSIONS, Table, concat_tables
from sensorium.data.unused_files import count_kinds, describe_unused, describes_folder
from sensorium.errors import SensoriumError
from sensorium.io.tar_files import TarMember
from sensorium.io.tar_index import TarIndex, read_tar_index

TAR_ENDING = ".tar"
PACKED_TAR_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_TEXT_BYTES = 16 << 20
_MAX_ENDINGS = 64  # with more, the dots in the names part no endings
_MAX_PATTERN_FILES = 100_000
_TEXT_ENDINGS = ("txt", "text", "caption", "captions", "cap")
_LABEL_ENDINGS = ("cls", "class", "label")
_PLAIN_ENDINGS = ("cls2", "count", "index", "inx", "id", "transcript", "url", "lang", "source")
_SERIES_ENDINGS = ("npy", "csv")
_TABLE_ENDINGS = ("csv", "tsv", "jsonl", "parquet")
_METADATA_STEMS = ("metadata", "captions", "train", "test", "val", "labels")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]+)\}")


class _Sample(NamedTuple):
    """The files of one row."""

    key: str
    members: list[tuple[str, TarMember]]  # ending, file


def read_shards(paths: Sequence[Path], encoding: str, name: str = "") -> Table:
    """Read tar archives as one table; a split in the name of each becomes its rows' split.

    Args:
        paths: the archives.
        encoding: of texts in them.
        name: a prefix of locations in messages.

    Raises:
        SensoriumError: if one cannot be read, or none holds a sample.
    """
    tables = [
        (_split_from_archive(path), _read_shard(path, encoding, name + path.name)) for path in paths
    ]
    if not any(len(table) for _, table in tables):
        notes = "; ".join(note for _, table in tables for note in table.notes)
        raise SensoriumError(
            f"{paths[0] if len(paths) == 1 else f'{len(paths)} archives'} hold no sample"
            f"{': ' + notes if notes else ''}. A sample is files like 000001.jpg and 000001.txt."
        )
    if len(tables) == 1:
        return tables[0][1]
    has_splits = len({split for split, _ in tables if split}) > 1
    return concat_tables([(split if has_splits else None, table) for split, table in tables])


def _split_from_archive(path: Path) -> str | None:
    """Return 'train' for train-000.tar and cc3m-train-0000.tar, None for other names."""
    for word in re.split(r"[-_.]", path.name.lower()):
        if word in KNOWN_SPLITS:
            return normalize_split_name(word)
    return None


def _read_shard(path: Path, encoding: str, name: str) -> Table:
    """Read one archive."""
    try:
        index = read_tar_index(path)
    except OSError as e:
        raise SensoriumError(f"could not read {path}: {e.strerror or e}.") from e
    samples, others = _group_members(index)
    reader = _SampleReader(encoding, name)
    records = [reader.read(row, sample) for row, sample in enumerate(samples)]
    kept = [i for i, record in enumerate(records) if record]
    table = Table(
        columns_from_records(records[i] for i in kept), [f"{name}/{samples[i].key}" for i in kept]
    )
    row_of = {i: row for row, i in enumerate(kept)}
    table.bad_samples = [
        BadSample(row_of[row], column, location, reason)
        for row, column, location, reason in reader.faults
        if row in row_of
    ]
    _declare_types(table, reader.kinds, path.name)
    folders = [samples[i].key.split("/")[:-1] for i in kept]
    if "label" not in table.columns and "split" not in table.columns:
        add_splits_and_labels(table, folders)
    bad = [(f"{name}/{entry}", reason) for entry, reason in index.skipped]
    bad += [(name, index.damage)] if index.damage else []
    add_bad_rows(table, bad)
    unused = {"not read": [*others, *reader.unused]}
    table.notes += describe_unused(unused, f"{name}/")
    return table


def _group_members(index: TarIndex) -> tuple[list[_Sample], list[str]]:
    """Return the rows in order of their first file, and the files that belong to none."""
    endings = Counter(_split_key(member.name)[1] for member in index.members)
    by_last_dot = len(endings) > _MAX_ENDINGS
    samples: dict[str, _Sample] = {}
    others: list[str] = []
    for member in index.members:
        key, ending = _split_key(member.name, by_last_dot)
        file = member.name.rpartition("/")[2]
        is_table = ending in _TABLE_ENDINGS and file.partition(".")[0].lower() in _METADATA_STEMS
        is_hidden = file.startswith(".") or describes_folder(member.name)
        if not key or not ending or is_hidden or is_table:
            if not describes_folder(member.name):
                others.append(member.name)
            continue
        sample = samples.setdefault(key, _Sample(key, []))
        sample.members.append((ending, member))
    return list(samples.values()), others


def _split_key(name: str, by_last_dot: bool = False) -> tuple[str, str]:
    """Return the key and the ending of a file: 'a/b.seg.png' is 'a/b' and 'seg.png'."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.rpartition(".") if by_last_dot else file.partition(".")
    return (f"{folder}{slash}{stem}" if stem else ""), ending.lower()


def _declare_types(table: Table, kinds: dict[str, str], file_name: str) -> None:
    """Declare the types that the endings tell."""
    for column, kind in kinds.items():
        if column in table.columns:
            num_present = sum(v is not None for v in table.columns[column])
            table.kinds[column] = kind
            table.reasons[column] = f"{num_present:,} of {len(table):,} samples in {file_name}"


class _SampleReader:
    """Turns the files of a row into the fields of a record."""

    def __init__(self, encoding: str, name: str):
        self.encoding = encoding
        self.name = name
        self.kinds: dict[str, str] = {}
        self.faults: list[tuple[int, str, str, str]] = []
        self.unused: list[str] = []
        self.images = tuple(e.removeprefix(".") for e in extensions("image") or ())
        self.audio = tuple(e.removeprefix(".") for e in extensions("audio") or ())

    def read(self, row: int, sample: _Sample) -> dict[str, Any]:
        """Return the fields of a row; none if no file of it is read."""
        record: dict[str, Any] = {}
        last = [
            m for m in sample.members if m[0].endswith("json")
        ]  # other files name columns first
        for ending, member in [*(m for m in sample.members if m not in last), *last]:
            try:
                fields = self._read_member(ending, member)
            except (ValueError, OSError) as e:
                reason = str(getattr(e, "strerror", None) or e)
                column = "" if ending == "json" else ending
                self.faults.append((row, column, f"{self.name}/{member.name}", reason))
                record.setdefault("caption", None)
                continue
            if fields is None:
                self.unused.append(member.name)
            elif any(name in record for name in fields if not name.startswith("caption")):
                record |= {
                    n if n not in record else f"{n} ({ending})": v for n, v in fields.items()
                }
            else:
                record = merge_records(record, fields)
        return record

    def _read_member(self, ending: str, member: TarMember) -> dict[str, Any] | None:
        """Return the fields of one file, None if it is not read."""
        prefix, _, last = ending.rpartition(".")
        for kind, default, endings in (
            ("image", "image", self.images),
            ("audio", "audio", self.audio),
            ("series", "series", _SERIES_ENDINGS),
        ):
            if last in endings:
                column = prefix or default
                self.kinds.setdefault(column, kind)
                return {column: member}
        if last in _TEXT_ENDINGS or last == "json":
            return self._read_text_fields(prefix, last, member)
        if ending in _LABEL_ENDINGS:
            self.kinds.setdefault("label", "category")
            return {"label": self._read_text(member).strip() or None}
        if ending in _PLAIN_ENDINGS:
            return {ending: self._read_text(member).strip() or None}
        return None

    def _read_text_fields(
        self, prefix: str, ending: str, member: TarMember
    ) -> dict[str, Any] | None:
        """Return the captions or JSON fields of a file; a prefix is their language or name."""
        is_json = ending == "json"
        fields = parse_sidecar(self._read_text(member), is_json=is_json)
        if fields is None:
            return None
        if "caption" in fields:
            self.kinds.setdefault(f"caption_{prefix}" if prefix else "caption", "text")
        plain = {n: None if v == "" or v == {} else _plain_value(v) for n, v in fields.items()}
        return tag_captions(plain, prefix.replace(".", "_"))

    def _read_text(self, member: TarMember) -> str:
        if member.size > MAX_TEXT_BYTES:
            raise ValueError(f"{member.size:,} bytes of text, more than {MAX_TEXT_BYTES:,}")
        return member.read().decode(self.encoding)


def _plain_value(value: Any) -> Any:
    """Return a value of a JSON field; an object as text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


# Patterns --------------------------------------------------------------------------------------


def is_pattern(source: str) -> bool:
    """Return whether a source names several files: shards/{000..004}.tar, data/*.parquet."""
    is_file = source.lower().endswith((TAR_ENDING, *TABLE_EXTENSIONS))
    return is_file and re.search(r"[*?\[]|\{[^{}]+\}", source) is not None


def expand_pattern(source: str) -> list[Path]:
    """Return the files that a pattern names, in order; ranges and choices in braces, and wildcards.

    Raises:
        SensoriumError: if a file of a range is missing, or no file matches.
    """
    paths: list[Path] = []
    for path in _expand_braces(source):
        if re.search(r"[*?\[]", path):
            root = Path(path).anchor or "."
            relative = path[len(Path(path).anchor) :]
            paths += sorted(Path(root).glob(relative))
        elif Path(path).is_file():
            paths.append(Path(path))
        else:
            raise SensoriumError(f"There is no file {path!r}, which {source!r} names.")
    if not paths:
        raise SensoriumError(f"There is no file that matches {source!r}.")
    return list(dict.fromkeys(paths))


def _expand_braces(source: str) -> Iterator[str]:
    """Yield what braces stand for: {000..002} counts, {a,b} chooses."""
    pieces: list[list[str]] = []
    num_files = 1
    for part in re.split(r"(\{[^{}]+\})", source):
        counted = _RANGE.fullmatch(part)
        chosen = _CHOICE.fullmatch(part)
        if counted:
            first, last = int(counted[1]), int(counted[2])
            num_files *= abs(last - first) + 1
            step = 1 if last >= first else -1
            numbers = range(first, last + step, step) if num_files <= _MAX_PATTERN_FILES else ()
            pieces.append([f"{number:0{len(counted[1])}}" for number in numbers])
        else:
            pieces.append(chosen[1].split(",") if chosen else [part])
            num_files *= len(pieces[-1])
        if num_files > _MAX_PATTERN_FILES:
            raise SensoriumError(f"{source!r} names more than {_MAX_PATTERN_FILES:,} files.")
    return ("".join(combination) for combination in product(*pieces))


def describe_shards(files: Sequence[str]) -> str:
    """Return in words which archives were taken."""
    return f"the archives are read ({count_kinds(files)})"
