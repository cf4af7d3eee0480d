"""config.json of a run folder: everything that went into a run but the data themselves."""

import json
import platform
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium import __version__
from sensorium.errors import SensoriumError
from sensorium.io import atomic

FORMAT_VERSION = 1  # of a run folder; a reader of 1 refuses any other
WEIGHTS_FILE = "model.safetensors"
INITIAL_WEIGHTS_FILE = (
    "start.safetensors"  # the first weights, of a run that began with trained ones
)


@dataclass(frozen=True)
class RunConfig:
    """config.json: everything that went into a run but the data themselves."""

    recipe: str  # a name in RECIPES, or FILE:FUNCTION of the user's own
    keywords: dict[str, Any]  # the recipe's and the training's, all of them
    precision: str  # fp32 or bf16: what "auto" came to
    data: dict[str, Any]  # name, rows, splits, and a hash of which row is where
    versions: dict[str, str] = field(default_factory=lambda: package_versions())
    format: int = FORMAT_VERSION
    library_name: str = "sensorium"  # what a hub of models asks

    def save(self, folder: Path) -> None:
        """Write config.json."""
        atomic.write_json(folder / "config.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "RunConfig":
        """Read config.json. Raises SensoriumError where it is missing, damaged or of another version."""
        found = _read_json(folder / "config.json")
        if found.get("format") != FORMAT_VERSION:
            raise SensoriumError(
                f"{folder} is a run of format {found.get('format')!r}; sensorium {__version__} reads "
                f"{FORMAT_VERSION}. Use the one that wrote it ({found.get('versions')}) or train again."
            )
        if wrong := {f.name for f in fields(cls)} ^ {"library_name", *found}:
            raise SensoriumError(
                f"{folder / 'config.json'} has missing or unknown keys: {', '.join(sorted(wrong))}. "
                "It was changed by hand or damaged."
            )
        keywords = {
            name: tuple(value) if isinstance(value, list) else value  # as they were given
            for name, value in found["keywords"].items()
        }
        return cls(**{**found, "keywords": keywords})


def package_versions() -> dict[str, str]:
    """What a run was made with."""
    return {
        "sensorium": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise SensoriumError(
            f"{path.parent} is not a run of sensorium: it has no {path.name}"
        ) from e
    except (OSError, ValueError) as e:
        raise SensoriumError(f"{path} cannot be read: {e}") from e
    if not isinstance(found, dict):
        raise SensoriumError(f"{path} does not hold a JSON object")
    return found
