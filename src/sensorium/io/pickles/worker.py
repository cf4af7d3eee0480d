"""The worker process: write a checkpoint's weights as safetensors, print a report to stdout."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from sensorium.io.pickles.sandbox import enter
from sensorium.io.pickles.torch_archive import DTYPE_BYTES, TorchArchive, get_dtype
from sensorium.io.pickles.unpickler import MAX_SHOWN_ITEMS, OpaqueObject, TensorRef, UnsafePickle
from sensorium.io.wrapper_prefixes import strip_wrapper_prefixes

STATE_DICT_KEYS = (  # entries that may hold the weights, most likely first
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "params_ema",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema",
)
MAX_DEPTH = 6  # of nested dicts
MAX_TENSORS = 100_000
MAX_ENTRIES = 1_000_000  # of nested dicts, which may be shared
MAX_NAME_CHARS = 2_000  # of a tensor
MAX_SHOWN_NAMES = 1_000  # of dropped entries
MAX_SHOWN_CHARS = 200  # of a dropped entry
MAX_REASON_CHARS = 2_000
MAX_HEADER_BYTES = 100_000_000  # what safetensors reads
RESERVED_NAME = "__metadata__"  # in a safetensors header
MAX_GROWTH_FACTOR = 4  # output bytes per input byte (expanded views)
NUMPY_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
DAMAGED_FILE_ERRORS = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    RecursionError,
    AttributeError,
    OSError,
    NotImplementedError,
    EOFError,
    struct.error,
)


def find_state_dict(value: Any, key: str | None = None) -> tuple[dict[str, TensorRef], list[str]]:
    """Find the weights in the value of a checkpoint.

    Args:
        value: what was pickled.
        key: the entry that holds the weights; None: the first of the usual ones.

    Returns:
        Tensors by name, and the entries that are dropped.

    Raises:
        UnsafePickle: there are no weights, or too many.
    """
    dropped: list[str] = []
    prefix = ""
    for _ in range(MAX_DEPTH):
        if not isinstance(value, dict):
            raise UnsafePickle(f"it holds a {type(value).__name__}, not a dict of weights")
        entry = key or _weights_entry(value)
        if entry is None:
            break
        if entry not in value:
            names = ", ".join(_shorten(name) for name in list(value)[:MAX_SHOWN_ITEMS])
            raise UnsafePickle(f"it has no entry {entry!r}; it has {names}")
        dropped += [prefix + _shorten(name) for name in value if name != entry]
        value = value[entry]
        prefix = f"{prefix}{entry}."
        key = None
    tensors = _flatten_dict(value, prefix, dropped)
    if not tensors or len(tensors) > MAX_TENSORS:
        raise UnsafePickle(f"it holds {len(tensors):,} tensors; 1 to {MAX_TENSORS:,} are supported")
    tensors = strip_wrapper_prefixes(tensors)
    if RESERVED_NAME in tensors:
        raise UnsafePickle(
            f"it holds a tensor called {RESERVED_NAME}, which is reserved in safetensors files. "
            "Rename it and save the checkpoint again"
        )
    if len(dropped) > MAX_SHOWN_NAMES:
        dropped[MAX_SHOWN_NAMES:] = [f"and {len(dropped) - MAX_SHOWN_NAMES:,} more"]
    return tensors, dropped


def write_safetensors(archive: TorchArchive, tensors: dict[str, TensorRef], out: Path) -> int:
    """Write a safetensors file; tensors that share a storage are each written in full.

    Returns:
        Bytes of all values.

    Raises:
        UnsafePickle: the file would be far larger than the checkpoint.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    offsets: dict[str, int] = {}
    for name, tensor in sorted(tensors.items()):
        num_bytes = math.prod(tensor.shape) * DTYPE_BYTES[get_dtype(tensor)]
        header[name] = {
            "dtype": get_dtype(tensor),
            "shape": tensor.shape,
            "data_offsets": [offset, offset + num_bytes],
        }
        offsets[name] = offset
        offset += num_bytes
    if offset > MAX_GROWTH_FACTOR * archive.num_bytes + (1 << 20):
        raise UnsafePickle(
            f"its tensors would fill {offset:,} bytes, out of a file of {archive.num_bytes:,}"
        )
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise UnsafePickle(
            f"its names would fill {len(text):,} bytes; safetensors files have at most "
            f"{MAX_HEADER_BYTES:,} of them"
        )
    with out.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        for name in sorted(tensors, key=lambda name: (tensors[name].storage.key, offsets[name])):
            file.seek(start + offsets[name])  # each storage is read once
            file.write(archive.read_tensor(tensors[name]).data)
        file.truncate(start + offset)
    return offset


def main(source: str, out: str, key: str, sandbox_limits: list[str]) -> int:
    """Convert a checkpoint, and print the report as JSON: an error, or what was written.

    Args:
        source: the checkpoint.
        out: the file to write.
        key: the entry that holds the weights; "": the usual one.
        sandbox_limits: the limits already in force.

    Returns:
        The exit status.
    """
    limits = [*sandbox_limits, enter()]
    try:
        archive = TorchArchive(Path(source))
        tensors, dropped = find_state_dict(archive.value, key or None)
        num_bytes = write_safetensors(archive, tensors, Path(out))
    except MemoryError:
        return _report_error("it needs more memory than a file of its size may")
    except UnsafePickle as e:
        return _report_error(str(e))
    except DAMAGED_FILE_ERRORS as e:
        return _report_error(f"it is damaged ({type(e).__name__}: {e})")
    report = {
        "num_tensors": len(tensors),
        "num_bytes": num_bytes,
        "dropped_keys": dropped,
        "sandbox_limits": limits,
    }
    print(json.dumps(report))
    return 0


def _weights_entry(value: dict[Any, Any]) -> str | None:
    """Return the usual entry that holds the weights; None if `value` is the weights."""
    if any(isinstance(part, TensorRef) for part in value.values()):
        return None
    return next((name for name in STATE_DICT_KEYS if isinstance(value.get(name), dict)), None)


def _flatten_dict(value: dict[Any, Any], prefix: str, dropped: list[str]) -> dict[str, TensorRef]:
    """Return the tensors of nested dicts by dotted names; other entries go to `dropped`.

    Raises:
        UnsafePickle: two tensors would get the same name, or a name or the nesting is too large.
    """
    tensors: dict[str, TensorRef] = {}
    pending = [("", value, 0)]
    num_entries = 0
    while pending:
        path, part, depth = pending.pop()
        num_entries += len(part)
        if num_entries > MAX_ENTRIES:
            raise UnsafePickle(f"its nested dicts have more than {MAX_ENTRIES:,} entries")
        for key, entry in part.items():
            if not isinstance(key, str) or not isinstance(entry, TensorRef | dict | OpaqueObject):
                dropped.append(prefix + _shorten(f"{path}{key}"))
                continue
            name = f"{path}{key}"
            if isinstance(entry, dict) and depth < MAX_DEPTH:
                _check_name(name)
                pending.append((f"{name}.", entry, depth + 1))
            elif isinstance(entry, TensorRef):
                _check_name(name)
                if name in tensors:
                    raise UnsafePickle(
                        f"two of its tensors would both be called {name!r}. Rename one of them "
                        "and save the checkpoint again"
                    )
                tensors[name] = entry
            elif isinstance(entry, OpaqueObject) and entry.path in NUMPY_ARRAYS:
                raise UnsafePickle(
                    f"its weight {_shorten(name)!r} is a numpy array. Convert it with "
                    "torch.from_numpy and save the checkpoint again"
                )
            else:
                dropped.append(prefix + _shorten(name))
    return tensors


def _check_name(name: str) -> None:
    """Check that a safetensors header can hold a name."""
    if len(name) > MAX_NAME_CHARS:
        raise UnsafePickle(
            f"the name {_shorten(name)!r} has {len(name):,} characters; at most "
            f"{MAX_NAME_CHARS:,} are supported"
        )
    if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
        raise UnsafePickle(f"the name {name!r} holds half a character (a lone surrogate)")


def _shorten(name: object) -> str:
    """Return the beginning of a name."""
    text = str(name)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


def _report_error(reason: str) -> int:
    """Print an error report; return the exit status."""
    if len(reason) > MAX_REASON_CHARS:
        reason = f"{reason[:MAX_REASON_CHARS]}..."
    print(json.dumps({"error": reason}))
    return 1
