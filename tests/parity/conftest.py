"""Parity with open_clip, timm and torchvision, installed in an environment of their own."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks"), str(Path(__file__).parents[1])]
try:
    import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
except ImportError:
    pass
except RuntimeError:  # it lacks its compiled operators beside a CPU build of torch
    from peers import allow_torchvision

    allow_torchvision()
