"""The worker process: write a checkpoint's weights as safetensors, print a report to stdout."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from sensorium.io.pickles.sandbox import enter
from sensorium.io.pickles.torch_archive import DTYPE_BYTES, TorchArchive, get_dtype
from sensorium.io.pickles.unpickler import TensorRef, UnsafePickle
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
MAX_GROWTH_FACTOR = 4  # output bytes per input byte (expanded views)
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
            raise UnsafePickle(f"it has no entry {entry!r}; it has {', '.join(map(str, value))}")
        dropped += [f"{prefix}{name}" for name in value if name != entry]
        value = value[entry]
        prefix = f"{prefix}{entry}."
        key = None
    tensors = _flatten_dict(value, prefix, dropped, MAX_DEPTH)
    if not tensors or len(tensors) > MAX_TENSORS:
        raise UnsafePickle(f"it holds {len(tensors):,} tensors; 1 to {MAX_TENSORS:,} are supported")
    return strip_wrapper_prefixes(tensors), dropped


def write_safetensors(archive: TorchArchive, tensors: dict[str, TensorRef], out: Path) -> int:
    """Write a safetensors file; tensors that share a storage are each written in full.

    Returns:
        Bytes of all values.

    Raises:
        UnsafePickle: the file would be far larger than the checkpoint.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in sorted(tensors.items()):
        num_bytes = math.prod(tensor.shape) * DTYPE_BYTES[get_dtype(tensor)]
        header[name] = {
            "dtype": get_dtype(tensor),
            "shape": tensor.shape,
            "data_offsets": [offset, offset + num_bytes],
        }
        offset += num_bytes
    if offset > MAX_GROWTH_FACTOR * archive.num_bytes + (1 << 20):
        raise UnsafePickle(
            f"its tensors would fill {offset:,} bytes, out of a file of {archive.num_bytes:,}"
        )
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with out.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in sorted(tensors.items()):
            file.write(archive.read_tensor(tensor).data)
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


def _flatten_dict(
    value: dict[Any, Any], prefix: str, dropped: list[str], max_depth: int
) -> dict[str, TensorRef]:
    """Return the tensors of nested dicts by dotted names; other entries go to `dropped`."""
    tensors: dict[str, TensorRef] = {}
    for name, part in value.items():
        if isinstance(part, TensorRef) and isinstance(name, str):
            tensors[name] = part
        elif isinstance(part, dict) and isinstance(name, str) and max_depth:
            nested = _flatten_dict(part, f"{prefix}{name}.", dropped, max_depth - 1)
            tensors |= {f"{name}.{inner}": tensor for inner, tensor in nested.items()}
        else:
            dropped.append(f"{prefix}{name}")
    return tensors


def _report_error(reason: str) -> int:
    """Print an error report; return the exit status."""
    print(json.dumps({"error": reason}))
    return 1
