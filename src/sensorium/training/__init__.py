"""The training loop, checkpoints and logs.

The names are imported on first use: inference needs `checkpoint`, not the loop.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sensorium.training.checkpoint import Model, load_checkpoint
    from sensorium.training.interruption import Interrupted
    from sensorium.training.loop import train
    from sensorium.training.nonfinite import NonFiniteError

__all__ = ["Interrupted", "Model", "NonFiniteError", "load_checkpoint", "train"]

_MODULES = {
    "Interrupted": "interruption",
    "Model": "checkpoint",
    "NonFiniteError": "nonfinite",
    "load_checkpoint": "checkpoint",
    "train": "loop",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
