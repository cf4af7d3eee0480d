"""What runs in the process of its own: a checkpoint's weights into a safetensors file, a report to standard output."""
from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from sensorium.convert.archive import BYTES, Archive, kind
from sensorium.convert.fence import shut
from sensorium.convert.opcodes import Lying, Refused

USUAL = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params",
         "params_ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema")      # where weights lie, the first first
DEEP, MOST = 6, 100_000                                 # dicts in dicts, tensors
ROOM = 4                                                # times its own size that a file may grow (expanded views)


def state(value: Any, key: str | None = None) -> tuple[dict[str, Lying], list[str]]:
    """Name → tensor, and what is left out. key: which part holds the weights, where it is not the usual one."""
    dropped: list[str] = []
    at = ""
    for _ in range(DEEP):
        if not isinstance(value, dict):
            raise Refused(f"it holds a {type(value).__name__}, not a dict of weights")
        if key is None and any(isinstance(part, Lying) for part in value.values()):
            break
        part = key or next((name for name in USUAL if isinstance(value.get(name), dict)), None)
        if part is None:
            break
        if part not in value:
            raise Refused(f"it has no part {part!r}; there are {', '.join(map(str, value))}")
        dropped += [f"{at}{name}" for name in value if name != part]
        value, at, key = value[part], f"{at}{part}.", None
    found = _flat(value, at, dropped, DEEP)
    if not found or len(found) > MOST:
        raise Refused(f"it holds {len(found):,} tensors; 1 to {MOST:,} are read")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found, dropped


def _flat(value: dict[Any, Any], at: str, dropped: list[str], deep: int) -> dict[str, Lying]:
    """The tensors of a dict and of the dicts in it, by names joined with dots."""
    found: dict[str, Lying] = {}
    for name, part in value.items():
        if isinstance(part, Lying) and isinstance(name, str):
            found[name] = part
        elif isinstance(part, dict) and isinstance(name, str) and deep:
            found |= {f"{name}.{inner}": x for inner, x in _flat(part, f"{at}{name}.", dropped, deep - 1).items()}
        else:
            dropped.append(f"{at}{name}")
    return found


def write(archive: Archive, tensors: dict[str, Lying], out: Path) -> int:
    """A safetensors file of these; its bytes. Tensors that share numbers each get their own."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in sorted(tensors.items()):
        size = math.prod(tensor.shape) * BYTES[kind(tensor)]
        header[name] = {"dtype": kind(tensor), "shape": tensor.shape, "data_offsets": [place, place + size]}
        place += size
    if place > ROOM * archive.size + (1 << 20):
        raise Refused(f"its tensors would fill {place:,} bytes, out of a file of {archive.size:,}")
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(out, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in sorted(tensors.items()):
            file.write(archive.numbers(tensor).data)
    return place


def main(source: str, out: str, key: str, enforced: list[str]) -> int:
    """Convert, and print what was done or why it was not, as JSON."""
    enforced.append(shut())
    try:
        archive = Archive(Path(source))
        tensors, dropped = state(archive.value, key or None)
        size = write(archive, tensors, Path(out))
    except MemoryError:
        print(json.dumps({"error": "it asks for more memory than a file of its size may"}))
        return 1
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError, AttributeError, OSError,
            NotImplementedError, EOFError, struct.error) as e:
        why = str(e) if isinstance(e, Refused) else f"it is damaged ({type(e).__name__}: {e})"
        print(json.dumps({"error": why}))
        return 1
    print(json.dumps({"tensors": len(tensors), "bytes": size, "dropped": dropped, "enforced": enforced}))
    return 0


