"""Random generators that are seeded by their purpose."""

from __future__ import annotations

import hashlib

import torch


def generator(*seeds: int) -> torch.Generator:
    """Return a CPU generator whose stream depends on `seeds` and on nothing else.

    Args:
        *seeds: Any integers, such as the seed of a run, an epoch and a row. Their order matters.
    """
    digest = hashlib.sha256(",".join(map(str, seeds)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
