"""Data sets that come with Sensorium, by name, and folders of contact sheets."""
from collections.abc import Callable
from functools import partial

from sensorium.data.emoji import EMBEDDED, is_sheets, open_sheets
from sensorium.data.scenes import open_scenes
from sensorium.data.sources import Table

__all__ = ["EXAMPLES", "is_sheets", "open_sheets"]

EXAMPLES: dict[str, Callable[..., Table]] = {"emoji": partial(open_sheets, EMBEDDED), "scenes": open_scenes}
