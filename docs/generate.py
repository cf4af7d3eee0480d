"""Write docs/cli.md from what `--help` prints; with --check, only report whether it is current."""

import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

os.environ.pop("FORCE_COLOR", None)
from sensorium.cli.app import build_app
from sensorium.cli.recipe_signature import builtin_recipes

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# The command line

Written by `python docs/generate.py` from `sensorium ... --help`. Change the command, not this page.
"""
COMMANDS = [
    "",
    "data",
    "data build",
    "train",
    *(f"train {recipe}" for recipe in builtin_recipes()),
    "compare",
    "compare fusion",
    "evaluate",
    "interpolate",
    "index",
    "search",
    "generate",
    "predict",
    "classify",
    "export",
    "summary",
    "summary clip",
    "convert-checkpoint",
    "demo",
    "doctor",
    "completion",
]


def page() -> str:
    """Return the whole of docs/cli.md."""
    return HEAD + "".join(_sections())


def _sections() -> Iterator[str]:
    for command in COMMANDS:
        words = command.split()
        text = io.StringIO()
        console = Console(
            file=text, width=100, force_terminal=False, color_system=None, legacy_windows=False
        )
        build_app(words or ["train"]).help_print(words, console=console)
        body = "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())
        yield f"\n## sensorium {command}".rstrip() + f"\n\n```\n{body}\n```\n"


def is_current() -> bool:
    """Return whether docs/cli.md has the words of --help, whatever the width of its boxes."""
    written, now = (
        re.findall(r"[\w.:/=-]+", text) for text in (PAGE.read_text(encoding="utf-8"), page())
    )
    return written == now


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(None if is_current() else f"{PAGE.name} is outdated: run python docs/generate.py")
    PAGE.write_text(page(), encoding="utf-8")
