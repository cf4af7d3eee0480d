"""Strip the prefixes that wrappers of torch put before the names of all tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")
WRAPPER_PREFIXES = (
    "module.",  # DataParallel, DistributedDataParallel
    "_orig_mod.",  # torch.compile
    "_fsdp_wrapped_module.",  # FullyShardedDataParallel
)


def strip_wrapper_prefixes(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the tensors without the wrapper prefixes that all of their names share.

    Wrappers may be nested, as in `_orig_mod.module.`.
    """
    stripped = dict(tensors)
    while stripped:
        prefix = next((p for p in WRAPPER_PREFIXES if all(n.startswith(p) for n in stripped)), None)
        if prefix is None:
            break
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped
