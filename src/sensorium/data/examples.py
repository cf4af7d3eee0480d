"""Data sets that come with Sensorium, by name, and folders of contact sheets."""
from collections.abc import Callable

from sensorium.data.emoji import is_sheets, open_emoji, open_sheets
from sensorium.data.sources import Table

__all__ = ["EXAMPLES", "is_sheets", "open_sheets"]

EXAMPLES: dict[str, Callable[..., Table]] = {"emoji": open_emoji}
