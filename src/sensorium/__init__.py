"""Sensorium: train multimodal models on images, text, audio, time series and tables.

`import sensorium` loads no other module. Each public name is imported on first use, so that the
import is fast and touches neither PyTorch nor the disk.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sensorium import recipes as recipes
    from sensorium.data.dataset import Dataset as Dataset
    from sensorium.errors import SensoriumError as SensoriumError
    from sensorium.evaluation.evaluate import evaluate as evaluate
    from sensorium.loading import load as load
    from sensorium.recipes.encoders import add_modality as add_modality
    from sensorium.search.index import Index as Index
    from sensorium.training.loop import train as train
    from sensorium.tuning.compare import compare as compare

__version__ = "0.2.0.dev0"

_LAZY_IMPORTS = {
    "Dataset": "sensorium.data.dataset",
    "Index": "sensorium.search.index",
    "SensoriumError": "sensorium.errors",
    "add_modality": "sensorium.recipes.encoders",
    "compare": "sensorium.tuning.compare",
    "evaluate": "sensorium.evaluation.evaluate",
    "load": "sensorium.loading",
    "train": "sensorium.training.loop",
}
__all__ = [
    "Dataset",
    "Index",
    "SensoriumError",
    "add_modality",
    "compare",
    "evaluate",
    "load",
    "recipes",
    "train",
]


def __getattr__(name: str) -> object:
    if name == "recipes":
        return import_module("sensorium.recipes")
    if name in _LAZY_IMPORTS:
        return getattr(import_module(_LAZY_IMPORTS[name]), name)
    raise AttributeError(f"module 'sensorium' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
