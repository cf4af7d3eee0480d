"""Read folders of image files (or, without any, of audio files): captions, classes and splits."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sensorium.data.bad_samples import BadSample
from sensorium.data.schema import extensions
from sensorium.data.sidecars import (
    SIDECAR_ENDINGS,
    Sidecar,
    match_sidecars,
    merge_records,
    read_sidecar,
    separate_parallel_images,
    tag_captions,
)
from sensorium.data.splits import KNOWN_SPLITS, normalize_split_name
from sensorium.data.table_files import columns_from_records
from sensorium.data.tables import (
    IMAGE_EXTENSIONS,
    TABLE_EXTENSIONS,
    UNSUPPORTED_IMAGE_EXTENSIONS,
    Table,
)
from sensorium.data.unused_files import count_kinds, describe_unused, describes_folder
from sensorium.errors import SensoriumError
from sensorium.io.untrusted import replace_surrogates

HIDDEN_PREFIXES = (".", "__MACOSX", "@eaDir", "$RECYCLE.BIN")
_MAX_LOOSE_FRACTION = 1 / 3  # of images that lie beside the folders of classes
_SHARD_NAME = re.compile(r"\d{4,}")
_STATISTICS_ENDING = "_stats.json"  # which img2dataset writes for each shard


class FolderFiles(NamedTuple):
    """The files below a folder, as paths with '/' in order of their names.

    Attributes:
        images: images.
        audio: audio files.
        others: all other files.
        unnamed: files whose name is not UTF-8.
    """

    images: list[str]
    audio: list[str]
    others: list[str]
    unnamed: list[str]


def list_files(folder: Path) -> FolderFiles:
    """List all files below a folder.

    Raises:
        SensoriumError: if a folder cannot be read.
    """
    try:
        files = list(_walk_files(folder))
    except OSError as e:
        raise SensoriumError(
            f"could not read the folder {e.filename or folder}: {e.strerror or e}."
        ) from e
    audio_extensions = extensions("audio") or ()
    images: list[str] = []
    audio: list[str] = []
    others: list[str] = []
    unnamed: list[str] = []
    for file in files:
        lower = file.lower()
        if replace_surrogates(file) != file:
            unnamed.append(file)
        elif lower.endswith(IMAGE_EXTENSIONS):
            images.append(file)
        elif lower.endswith(audio_extensions):
            audio.append(file)
        else:
            others.append(file)
    return FolderFiles(images, audio, others, unnamed)


def has_media(folder: Path) -> bool:
    """Return whether an image or audio file lies below a folder."""
    endings = (*IMAGE_EXTENSIONS, *(extensions("audio") or ()))
    try:
        return any(file.lower().endswith(endings) for file in _walk_files(folder))
    except OSError:
        return False


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
        if entry.name.startswith(HIDDEN_PREFIXES):
            continue
        if entry.is_dir():
            yield from _walk_files(folder, f"{subfolder}{entry.name}/", ancestors | {real_path})
        elif entry.is_file() or entry.is_symlink():
            yield subfolder + entry.name


def read_media_folder(folder: Path, encoding: str, name: str) -> Table:
    """Read a folder of image or audio files, with captions, classes and splits if it has them.

    Args:
        folder: the folder.
        encoding: of its text files.
        name: a prefix of the row locations in messages.

    Raises:
        SensoriumError: if there are no such files.
    """
    files = list_files(folder)
    images, parallel = separate_parallel_images(files.images)
    kind, media = ("image", images) if images else ("audio", files.audio)
    if not media:
        raise _no_media_error(folder, files)
    table = Table(
        {kind: list(media)}, [name + file for file in media], root=folder, kinds={kind: kind}
    )
    table.reasons[kind] = f"{len(media):,} {kind} files in the folder"
    folders = [file.split("/")[:-1] for file in media]
    add_splits_and_labels(table, folders, shards=_shard_folders(files.others))
    sidecars = _SidecarReader(table, kind, encoding, name)
    unpaired = [
        f for column, of in parallel.items() for f in sidecars.add_files(column, "image", of)
    ]
    unused = sidecars.read(files, media)
    unused[f"no {kind} of that name"] += unpaired
    _set_aside_unsupported(table, files, name)
    is_other_kind = files.audio if kind == "image" else []
    unused["not read"] = [*_unread_files(files.others), *_not_in(is_other_kind, sidecars.used)]
    table.notes += describe_unused(unused, name)
    return table


def _no_media_error(folder: Path, files: FolderFiles) -> SensoriumError:
    num_files = sum(map(len, files))
    content = f"{num_files} files, but no" if num_files else "no"
    unread = _unread_files(files.others)
    others = f"; not read: {count_kinds(unread)}" if unread else ""
    return SensoriumError(
        f"{folder} holds {content} image ({' '.join(IMAGE_EXTENSIONS)}), table "
        f"({' '.join(TABLE_EXTENSIONS)}), audio or .tar file{others}. Choose another folder."
    )


def _unread_files(files: Sequence[str]) -> list[str]:
    """Return the files of kinds that are not read, without those that describe the folder."""
    read = (*SIDECAR_ENDINGS, *UNSUPPORTED_IMAGE_EXTENSIONS)
    return [f for f in files if not f.lower().endswith(read) and not describes_folder(f)]


def _not_in(files: Sequence[str], used: set[str]) -> list[str]:
    return [file for file in files if file not in used]


def _set_aside_unsupported(table: Table, files: FolderFiles, name: str) -> None:
    """Add a bad row for each image of an unsupported kind or with a name that is not UTF-8."""
    bad = [
        (name + file, f"{PurePosixPath(file).suffix} files are not supported: save as JPEG or PNG")
        for file in files.others
        if file.lower().endswith(UNSUPPORTED_IMAGE_EXTENSIONS)
    ]
    bad += [
        (replace_surrogates(name + file), "its name is not UTF-8: rename the file or its folder")
        for file in files.unnamed
        if file.lower().endswith(IMAGE_EXTENSIONS)
    ]
    add_bad_rows(table, bad)


def add_bad_rows(table: Table, bad: Sequence[tuple[str, str]]) -> None:
    """Add empty rows that are left out and counted like every other bad one.

    Args:
        table: the rows, whose columns are lists.
        bad: the location of each, and why it is not read.
    """
    for row, (location, reason) in enumerate(bad, len(table)):
        table.bad_samples.append(BadSample(row, "", location, reason))
    table.locations = [*table.locations, *(location for location, _ in bad)]
    for column in table.columns.values():
        column.extend([None] * len(bad))


# Classes and splits ----------------------------------------------------------------------------


def add_splits_and_labels(
    table: Table, folders: Sequence[Sequence[str]], shards: frozenset[str] = frozenset()
) -> None:
    """Add a column of splits and one of classes, as far as the folders of the files tell them.

    Args:
        table: the rows.
        folders: the folders of each row's file, from the outermost to the innermost.
        shards: folders that hold parts of one set, and are no classes.
    """
    parts = [[part for part in folder if part not in shards] for folder in folders]
    depth = _split_depth(parts)
    if depth is not None:
        table.columns["split"] = [normalize_split_name(p[depth]) if p else None for p in parts]
        table.split_column = "split"
        table.reasons["split"] = "the folder of each file"
        parts = [[*p[:depth], *p[depth + 1 :]] for p in parts]
    nested = [p for p in parts if p]
    num_shared = _num_shared(nested)
    labels = ["/".join(p[num_shared:]) or None for p in parts]
    num_folders = len(set(labels) - {None})
    num_loose = labels.count(None)
    if num_folders < 2 or num_loose > _MAX_LOOSE_FRACTION * len(labels):
        return
    table.columns["label"] = labels
    table.kinds["label"] = "category"
    table.reasons["label"] = f"the files lie in {num_folders} folders"
    if num_loose:
        table.reasons["label"] += f", {num_loose} beside them"


def _num_shared(parts: Sequence[Sequence[str]]) -> int:
    """Return how many of the outer folders are the same for all files."""
    num_shared = 0
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        num_shared += 1
    return num_shared


def _split_depth(parts: Sequence[Sequence[str]]) -> int | None:
    """Return which of the folders above the files are splits, None if none are."""
    nested = [p for p in parts if p]
    if not nested or len(nested) < len(parts) * (1 - _MAX_LOOSE_FRACTION):
        return None
    for depth in range(min(map(len, nested))):
        names = {p[depth].lower() for p in nested}
        if names <= KNOWN_SPLITS and len({normalize_split_name(n) for n in names}) > 1:
            return depth
    return None


def _shard_folders(files: Sequence[str]) -> frozenset[str]:
    """Return the numbered folders beside which img2dataset left a table or statistics."""
    names = (PurePosixPath(f).name for f in files)
    stems = {n.removesuffix(_STATISTICS_ENDING).removesuffix(".parquet") for n in names}
    return frozenset(stem for stem in stems if _SHARD_NAME.fullmatch(stem))


# Sidecars --------------------------------------------------------------------------------------


class _SidecarReader:
    """Adds the columns that sidecar files hold.

    Args:
        table: the rows; its column `kind` holds their files.
        kind: "image" or "audio".
        encoding: of the sidecar files.
        name: a prefix of the locations in messages.
    """

    def __init__(self, table: Table, kind: str, encoding: str, name: str):
        self.table = table
        self.kind = kind
        self.encoding = encoding
        self.name = name
        self.used: set[str] = set()
        self.boxes: list[str] = []

    def read(self, files: FolderFiles, media: Sequence[str]) -> dict[str, list[str]]:
        """Read the sidecars; return the files that are not used, by reason."""
        candidates = [f for f in files.others if not f.lower().endswith(_STATISTICS_ENDING)]
        matched, unmatched = match_sidecars(candidates, media)
        unmatched = [f for f in unmatched if not describes_folder(f)]
        if self.kind == "image" and files.audio:
            self.add_files("audio", "audio", files.audio)
        if matched:
            self._add_records(matched)
            used_folders = {s.file.rpartition("/")[0] for found in matched.values() for s in found}
            strays = [f for f in unmatched if f.rpartition("/")[0] in used_folders]
            unmatched = [f for f in unmatched if f.rpartition("/")[0] not in used_folders]
            reason = f"there is no {self.kind} of the same name"
            add_bad_rows(self.table, [(self.name + file, reason) for file in strays])
        return {
            f"no {self.kind} of that name": unmatched,
            "bounding boxes, which are not used": self.boxes,
        }

    def _add_records(self, matched: Mapping[str, Sequence[Sidecar]]) -> None:
        table = self.table
        records: list[dict[str, Any]] = []
        for row, file in enumerate(table.columns[self.kind]):
            record: dict[str, Any] = {}
            for sidecar in matched.get(file, ()):
                record = merge_records(record, self._read_record(row, sidecar))
            records.append(record)
        for column, values in columns_from_records(records).items():
            table.columns[f"{column} (sidecar)" if column in table.columns else column] = values
        for column, values in table.columns.items():
            if column == "caption" or column.startswith("caption_"):
                num_captioned = sum(v is not None for v in values)
                table.kinds[column] = "text"
                table.reasons[column] = (
                    f"{num_captioned:,} of {len(table):,} {self.kind}s have a file of the same name"
                )

    def _read_record(self, row: int, sidecar: Sidecar) -> dict[str, Any]:
        """Return the fields of one file; none of one that is invalid, which is set aside."""
        try:
            record = read_sidecar(self.table.base_folder(row) / sidecar.file, self.encoding)
        except (ValueError, OSError) as e:
            bad = BadSample(row, "caption", self.name + sidecar.file, str(e))
            self.table.bad_samples.append(bad)
            return {}
        if record is None:
            self.boxes.append(sidecar.file)
            return {}
        return tag_captions(record, sidecar.tag)

    def add_files(self, column: str, kind: str, files: Sequence[str]) -> list[str]:
        """Add a column with the file of each image's name; return the files of no image.

        Args:
            column: its name.
            kind: its type.
            files: candidates, as paths below the folder.
        """
        media = self.table.columns[self.kind]
        matched, unmatched = match_sidecars(files, media, extensions(kind) or ())
        if not matched:
            return unmatched
        values = [matched[m][0].file if m in matched else None for m in media]
        self.used |= {sidecars[0].file for sidecars in matched.values()}
        self.table.columns[column] = values
        self.table.kinds[column] = kind
        num_found = sum(v is not None for v in values)
        self.table.reasons[column] = (
            f"{num_found:,} of {len(values):,} {self.kind}s have such a file of the same name"
        )
        return unmatched
