"""Read and write config.json of a run folder: everything that defines a run, except the data."""

import platform
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium import __version__
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.json_files import read_object

FORMAT_VERSION = 2  # of a run folder; any other version is refused
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INITIAL_WEIGHTS_FILE = "start.safetensors"
MODEL_CARD_FILE = "README.md"  # written last
CHECKPOINT_FOLDER = "state"
TRAINED_ROWS_FILE = "trained_rows.safetensors"


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a run depends on."""
    return {
        "sensorium": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run, except the data.

    Attributes:
        recipe: a name in RECIPES, or FILE:FUNCTION of a custom recipe.
        keywords: all keywords of the recipe and of `TrainingConfig`.
        precision: fp32 or bf16, as chosen where `precision` is "auto".
        data: name, number of rows, splits, and hashes of the splits and of the values read.
        versions: package versions at the time of training.
        format: format version of the run folder.
        library_name: read by model hubs.
    """

    recipe: str
    keywords: dict[str, Any]
    precision: str
    data: dict[str, Any]
    versions: dict[str, str] = field(default_factory=package_versions)
    format: int = FORMAT_VERSION
    library_name: str = "sensorium"

    def save(self, folder: Path) -> None:
        """Write config.json into a run folder."""
        atomic.write_json(folder / CONFIG_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "RunConfig":
        """Read config.json of a run folder.

        Raises:
            SensoriumError: the folder is not a run, or config.json is damaged or of another format
                version.
        """
        path = folder / CONFIG_FILE
        try:
            values = read_object(path)
        except FileNotFoundError as e:
            raise SensoriumError(
                f"{folder} is not a Sensorium run: it has no {CONFIG_FILE}. Name the folder that "
                "`sensorium train` wrote."
            ) from e
        if "format" not in values:
            raise _not_a_run_error(folder, values)
        if values["format"] != FORMAT_VERSION:
            raise SensoriumError(
                f"{folder} is a run of format {values['format']!r}; sensorium {__version__} reads "
                f"format {FORMAT_VERSION}. Train it again, or use the version that wrote it "
                f"({_written_by(values)})."
            )
        unexpected = {f.name for f in fields(cls)} ^ {"library_name", *values}
        if unexpected:
            raise SensoriumError(
                f"{path} has missing or unknown keys: {', '.join(sorted(unexpected))}. "
                "It was edited or damaged: restore it, or train again."
            )
        keywords = {
            name: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
            for name, value in values["keywords"].items()
        }
        return cls(**{**values, "keywords": keywords})


def _not_a_run_error(folder: Path, values: dict[str, Any]) -> SensoriumError:
    """Return the error for a folder whose config.json was not written by Sensorium."""
    model_type = values.get("model_type")
    if isinstance(model_type, str):
        return SensoriumError(
            f"{folder} is not a Sensorium run. It looks like pretrained {model_type} weights: load "
            f'them with sn.load("{folder}").'
        )
    return SensoriumError(
        f"{folder} is not a Sensorium run: its {CONFIG_FILE} has no format. If it holds pretrained "
        f'weights, load them with sn.load("{folder}").'
    )


def _written_by(values: dict[str, Any]) -> str:
    """Return the version of sensorium that wrote a config."""
    versions = values.get("versions")
    version = versions.get("sensorium") if isinstance(versions, dict) else None
    return f"sensorium {version}" if version else "unknown"
