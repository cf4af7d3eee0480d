"""Random generators seeded by what they are for."""

from __future__ import annotations

import hashlib

import torch


def generator(*seeds: int) -> torch.Generator:
    """Random numbers that depend on these numbers and on nothing else."""
    digest = hashlib.sha256(",".join(map(str, seeds)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
