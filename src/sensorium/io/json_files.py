"""Read JSON objects from files, with errors that name the file."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sensorium.errors import SensoriumError


def read_object(
    path: Path, known_keys: Collection[str] | None = None, *, max_bytes: int | None = None
) -> dict[str, Any]:
    """Read a JSON object from a UTF-8 file.

    Args:
        path: the file.
        known_keys: the keys that the object must have, no more and no fewer; None: any keys.
        max_bytes: the largest file that is read; None: no limit.

    Raises:
        FileNotFoundError: if the file is missing; the caller reports what it is for.
        SensoriumError: if the file cannot be read, is too large or holds anything else.
    """
    try:
        if max_bytes is not None and path.stat().st_size > max_bytes:
            raise SensoriumError(
                f"{path} is larger than the limit of {max_bytes >> 20} MiB. "
                "Check that it is the right file."
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as e:
        raise SensoriumError(f"{path} cannot be read as JSON: {e}.") from e
    if known_keys is None:
        return check_object(path, "the file", value)
    return check_keys(path, "the file", value, known_keys)


def check_object(path: Path, label: str, value: Any) -> dict[str, Any]:
    """Return `value`, a part of `path` called `label`, if it is a JSON object.

    Raises:
        SensoriumError: if it is not.
    """
    if not isinstance(value, dict):
        raise SensoriumError(
            f"{path}: {label} must be a JSON object, not {str(value)[:40]!r}. "
            "The file was damaged or edited by hand."
        )
    return value


def check_keys(path: Path, label: str, value: Any, keys: Collection[str]) -> dict[str, Any]:
    """Return `value`, a part of `path` called `label`, if it is a JSON object with exactly `keys`.

    Raises:
        SensoriumError: naming the first key that is missing or unknown.
    """
    value = check_object(path, label, value)
    differing = sorted(value.keys() ^ set(keys))
    if differing:
        fault = "an unknown" if differing[0] in value else "no"
        raise SensoriumError(
            f"{path}: {label} has {fault} key {differing[0]!r}. "
            "The file was written by another version or edited by hand."
        )
    return value
