"""One line about the files of a folder that were not read, grouped by reason and kind."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

_MAX_NAMED = 1  # files named; of more, the endings are counted
_MAX_KINDS = 5
_NON_DATA_STEMS = (  # of files that describe the whole folder
    "readme",
    "license",
    "licence",
    "notice",
    "attribution",
    "requirements",
    "classes",
    "changelog",
    "citation",
    "dataset_infos",
    "dataset_info",
    "dataset-metadata",
    "state",
)
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "icon\r")


def describes_folder(file: str) -> bool:
    """Return whether a file describes the folder or belongs to the system, such as a README."""
    path = PurePosixPath(file)
    return path.name.lower() in _SYSTEM_FILES or path.stem.lower() in _NON_DATA_STEMS


def describe_unused(files_by_reason: Mapping[str, Sequence[str]], name: str = "") -> list[str]:
    """Return a note about unused files, such as "12 .psd, 1 .svg: not read"; none without files.

    Args:
        files_by_reason: reason -> files.
        name: a prefix of the paths.
    """
    parts = [
        f"{count_kinds(files, name)}: {reason}"
        for reason, files in files_by_reason.items()
        if files
    ]
    return ["; ".join(parts)] if parts else []


def count_kinds(files: Sequence[str], name: str = "") -> str:
    """Return the name of a single file, or how many of each kind there are, "3 .mp4, 1 .pdf"."""
    if len(files) <= _MAX_NAMED:
        return ", ".join(name + file for file in files)
    kinds = Counter(PurePosixPath(f).suffix.lower() or "without an ending" for f in files)
    counts = [f"{count:,} {kind}" for kind, count in kinds.most_common(_MAX_KINDS)]
    rest = kinds.total() - sum(count for _, count in kinds.most_common(_MAX_KINDS))
    where = f"{name}: " if name else ""
    return where + ", ".join([*counts, *([f"{rest:,} others"] if rest else [])])
