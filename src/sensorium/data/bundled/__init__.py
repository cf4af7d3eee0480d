"""Bundled datasets: emoji and procedurally generated scenes."""

from sensorium.data.bundled.emoji import is_sheets_folder, open_sheets
from sensorium.data.bundled.registry import BUNDLED_DATASETS
from sensorium.data.bundled.scenes import open_scenes

__all__ = ["BUNDLED_DATASETS", "is_sheets_folder", "open_scenes", "open_sheets"]
