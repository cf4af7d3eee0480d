"""Find files by name: exactly, or in another Unicode form or letter case where that is unambiguous.

A name may have been written by another system: macOS decomposes letters (NFD), Windows does not
tell "A.JPG" from "a.jpg".
"""

import os
import unicodedata
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath

_MAX_LISTED = 3  # names shown in an error
_MAX_SHOWN = 200  # characters of a path


def normalize_name(name: str) -> str:
    """Return what names have in common that differ only in Unicode form and letter case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def describe_name_difference(a: str, b: str) -> str:
    """Return in words how two names differ that look alike, with the code points if needed."""
    if unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b):
        forms = [f for f in ("NFC", "NFD") if unicodedata.is_normalized(f, b)]
        return f"{b!r} (in Unicode form {forms[0] if forms else 'mixed'})"
    return f"{b!r} (in another letter case)"


class FileFinder:
    """Finds files below folders, listing each folder once, since checking files singly is slow."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, list[str]]] = {}
        self._exact: dict[Path, frozenset[str]] = {}
        self._listed: dict[tuple[Path, str], frozenset[str]] = {}

    def find(self, base: Path, path: str) -> str | None:
        """Return the path of a file as it is spelled on the disk, None if there is none.

        Args:
            base: the folder of a relative path.
            path: with '/' between its parts.
        """
        found, _ = self._find(base, path)
        return found

    def explain(self, base: Path, path: str) -> str:
        """Return why there is no such file, with the names that are like it."""
        _, alike = self._find(base, path)
        name = path.rpartition("/")[2]
        shown_path = path if len(path) <= _MAX_SHOWN else f"{path[:_MAX_SHOWN]}..."
        reason = f"there is no file {base / shown_path}"
        if not alike:
            return reason
        shown = ", ".join(describe_name_difference(name, other) for other in alike[:_MAX_LISTED])
        return f"{reason}, but several that are spelled nearly so: {shown}; rename all but one"

    def _find(self, base: Path, path: str) -> tuple[str | None, list[str]]:
        """Return the path found and, where several are alike, their names."""
        folder, slash, name = path.rpartition("/")
        key = (base, folder + slash)
        if key not in self._listed:
            self._listed[key] = self._list(Path(*key))
        if name in self._listed[key] or _is_file(base / path):
            return path, []
        actual = self._find_folder(base, folder) if slash else ""
        if actual is None:
            return None, []
        directory = base / actual if actual else base
        if slash and not actual:
            directory = Path("/")
        alike = [n for n in self._alike(directory, name) if _is_file(directory / n)]
        if len(alike) == 1:
            return f"{actual}{slash}{alike[0]}", []
        return None, alike

    def _find_folder(self, base: Path, folder: str) -> str | None:
        """Return the path of a folder as it is spelled on the disk, None if there is none."""
        if _is_folder(base / folder):
            return folder
        parent, slash, name = folder.rpartition("/")
        actual_parent = self._find_folder(base, parent) if parent else parent
        if actual_parent is None:
            return None
        directory = base / (actual_parent + slash)
        alike = [n for n in self._alike(directory, name) if _is_folder(directory / n)]
        return f"{actual_parent}{slash}{alike[0]}" if len(alike) == 1 else None

    def _alike(self, folder: Path, name: str) -> list[str]:
        """Return the names in a folder that differ from a name in spelling alone."""
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            for other in sorted(self._list(folder)):
                names.setdefault(normalize_name(other), []).append(other)
            self._names[folder] = names
        return self._names[folder].get(normalize_name(name), [])

    def _list(self, folder: Path) -> frozenset[str]:
        """Return the names in a folder; none if it cannot be listed."""
        if folder not in self._exact:
            try:
                self._exact[folder] = frozenset(os.listdir(folder))  # noqa: PTH208 - names alone
            except (OSError, ValueError):
                self._exact[folder] = frozenset()
        return self._exact[folder]


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - no error for a path that cannot be one


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - no error for a path that cannot be one


class NameIndex:
    """Files by their name, with or without folder and ending.

    Args:
        files: paths with '/' below one folder.
    """

    def __init__(self, files: Iterable[str]):
        self.files = list(files)
        self._exact = set(self.files)

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def _by_key(self) -> dict[str, list[str]]:
        """The files by path and name, each with and without ending."""
        by_key: dict[str, list[str]] = {}
        for file in self.files:
            path = normalize_name(file)
            name = path.rpartition("/")[2]
            stem = _without_ending(name)
            number = stem.lstrip("0") or "0"  # 0007.jpg is also 7
            keys = {path, name, _without_ending(path), stem, *([number] * stem.isdecimal())}
            for key in keys:
                by_key.setdefault(key, []).append(file)
        return by_key

    def find(self, name: str, folder_hint: str = "") -> str | None:
        """Return the only file of a name, None if there is none or more than one.

        Args:
            name: a path or name, with or without ending.
            folder_hint: of several files, the one with this in the path of its folder is meant.
        """
        name = name.replace("\\", "/").removeprefix("./").strip("/")
        if name in self._exact:
            return name
        candidates = self._by_key.get(normalize_name(name), [])
        if not candidates and "/" in name:  # the folder may have another name
            candidates = self._by_key.get(normalize_name(PurePosixPath(name).name), [])
            parts = PurePosixPath(name).parts
            same_parent = [f for f in candidates if PurePosixPath(f).parts[-2:] == parts[-2:]]
            candidates = same_parent or candidates
        if len(candidates) > 1 and folder_hint:
            hint = folder_hint.lower()
            candidates = [f for f in candidates if hint in f.rpartition("/")[0].lower()]
        return candidates[0] if len(candidates) == 1 else None


def _without_ending(path: str) -> str:
    stem, dot, ending = path.rpartition(".")
    return stem if dot and "/" not in ending else path
