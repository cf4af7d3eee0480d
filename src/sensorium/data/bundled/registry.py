"""Bundled datasets by name, and folders of contact sheets."""

from collections.abc import Callable
from functools import partial

from sensorium.data.bundled.emoji import BUNDLED_FOLDER, is_sheets_folder, open_sheets
from sensorium.data.bundled.scenes import open_scenes
from sensorium.data.tables import Table

__all__ = ["BUNDLED_DATASETS", "is_sheets_folder", "open_sheets"]

BUNDLED_DATASETS: dict[str, Callable[..., Table]] = {
    "emoji": partial(open_sheets, BUNDLED_FOLDER),
    "scenes": open_scenes,
}
