"""Sensorium: one model over pictures, words and everything else about the same things.

Nothing is loaded here but names: each is fetched from its room when it is first used, so that `import sensorium`
costs nothing and touches neither torch nor the disk.
"""
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sensorium import recipes as recipes
    from sensorium.data.dataset import Dataset as Dataset
    from sensorium.errors import SensoriumError as SensoriumError
    from sensorium.evaluate import evaluate as evaluate
    from sensorium.load import load as load
    from sensorium.recipes.encoders import add_modality as add_modality
    from sensorium.tasks.comparison import compare as compare
    from sensorium.tasks.search import Index as Index
    from sensorium.train import train as train

__version__ = "0.1.0"

_LAZY_IMPORTS = {
    "Dataset": "sensorium.data.dataset",
    "Index": "sensorium.tasks.search",
    "SensoriumError": "sensorium.errors",
    "add_modality": "sensorium.recipes.encoders",
    "compare": "sensorium.tasks.comparison",
    "evaluate": "sensorium.evaluate",
    "load": "sensorium.load",
    "train": "sensorium.train",
}
__all__ = [*_LAZY_IMPORTS, "recipes"]


def __getattr__(name: str) -> object:
    if name == "recipes":
        return import_module("sensorium.recipes")
    if name in _LAZY_IMPORTS:
        return getattr(import_module(_LAZY_IMPORTS[name]), name)
    raise AttributeError(f"module 'sensorium' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


class _LazyModule(ModuleType):
    """A room that bears the name of its main function (train, evaluate) does not hide it once it is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _LAZY_IMPORTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _LazyModule
