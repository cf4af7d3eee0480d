"""What runs in the process of its own: a checkpoint's weights into a safetensors file, a report to standard output."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from sensorium.io.pickles.sandbox import enter
from sensorium.io.pickles.torch_archive import DTYPE_BYTES, TorchArchive, get_dtype
from sensorium.io.pickles.unpickler import TensorRef, UnsafePickle

STATE_DICT_KEYS = (
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
)  # where weights lie, the first first
MAX_DEPTH, MAX_TENSORS = 6, 100_000  # dicts in dicts, tensors
MAX_GROWTH_FACTOR = 4  # times its own size that a file may grow (expanded views)


def find_state_dict(value: Any, key: str | None = None) -> tuple[dict[str, TensorRef], list[str]]:
    """Name → tensor, and what is left out. key: which part holds the weights, where it is not the usual one."""
    dropped: list[str] = []
    at = ""
    for _ in range(MAX_DEPTH):
        if not isinstance(value, dict):
            raise UnsafePickle(f"it holds a {type(value).__name__}, not a dict of weights")
        if key is None and any(isinstance(part, TensorRef) for part in value.values()):
            break
        part = key or next(
            (name for name in STATE_DICT_KEYS if isinstance(value.get(name), dict)), None
        )
        if part is None:
            break
        if part not in value:
            raise UnsafePickle(f"it has no part {part!r}; there are {', '.join(map(str, value))}")
        dropped += [f"{at}{name}" for name in value if name != part]
        value, at, key = value[part], f"{at}{part}.", None
    found = _flatten_dict(value, at, dropped, MAX_DEPTH)
    if not found or len(found) > MAX_TENSORS:
        raise UnsafePickle(f"it holds {len(found):,} tensors; 1 to {MAX_TENSORS:,} are read")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found, dropped


def _flatten_dict(
    value: dict[Any, Any], prefix: str, dropped: list[str], max_depth: int
) -> dict[str, TensorRef]:
    """The tensors of a dict and of the dicts in it, by names joined with dots."""
    found: dict[str, TensorRef] = {}
    for name, part in value.items():
        if isinstance(part, TensorRef) and isinstance(name, str):
            found[name] = part
        elif isinstance(part, dict) and isinstance(name, str) and max_depth:
            found |= {
                f"{name}.{inner}": x
                for inner, x in _flatten_dict(
                    part, f"{prefix}{name}.", dropped, max_depth - 1
                ).items()
            }
        else:
            dropped.append(f"{prefix}{name}")
    return found


def write_safetensors(archive: TorchArchive, tensors: dict[str, TensorRef], out: Path) -> int:
    """A safetensors file of these; its bytes. Tensors that share numbers each get their own."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in sorted(tensors.items()):
        size = math.prod(tensor.shape) * DTYPE_BYTES[get_dtype(tensor)]
        header[name] = {
            "dtype": get_dtype(tensor),
            "shape": tensor.shape,
            "data_offsets": [place, place + size],
        }
        place += size
    if place > MAX_GROWTH_FACTOR * archive.num_bytes + (1 << 20):
        raise UnsafePickle(
            f"its tensors would fill {place:,} bytes, out of a file of {archive.num_bytes:,}"
        )
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(out, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in sorted(tensors.items()):
            file.write(archive.read_tensor(tensor).data)
    return place


def main(source: str, out: str, key: str, sandbox_limits: list[str]) -> int:
    """Convert, and print what was done or why it was not, as JSON."""
    sandbox_limits.append(enter())
    try:
        archive = TorchArchive(Path(source))
        tensors, dropped = find_state_dict(archive.value, key or None)
        size = write_safetensors(archive, tensors, Path(out))
    except MemoryError:
        print(json.dumps({"error": "it asks for more memory than a file of its size may"}))
        return 1
    except (
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
    ) as e:
        why = str(e) if isinstance(e, UnsafePickle) else f"it is damaged ({type(e).__name__}: {e})"
        print(json.dumps({"error": why}))
        return 1
    print(
        json.dumps(
            {"tensors": len(tensors), "bytes": size, "dropped": dropped, "enforced": sandbox_limits}
        )
    )
    return 0
