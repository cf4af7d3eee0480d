"""Writes docs/cli.md from what `--help` says; with --check it only says whether that is still true."""

import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

os.environ.pop("FORCE_COLOR", None)
from sensorium.cli.app import build_app

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# The command line

Written by `python docs/generate.py` from `sensorium ... --help`. Change the command, not this page.
"""
COMMANDS = [
    "",
    "data",
    "data build",
    "train",
    "train clip",
    "compare",
    "compare fusion",
    "evaluate",
    "index",
    "search",
    "generate",
    "show",
    "show clip",
    "convert",
    "demo",
    "doctor",
    "completion",
]


def page() -> str:
    """The whole of docs/cli.md."""
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


def current() -> bool:
    """Whether docs/cli.md says what --help says, however wide it is drawn."""
    written, now = (
        re.findall(r"[\w.:/=-]+", text) for text in (PAGE.read_text(encoding="utf-8"), page())
    )
    return written == now


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(
            None
            if current()
            else f"{PAGE.name} is not what --help says: run python docs/generate.py"
        )
    PAGE.write_text(page(), encoding="utf-8")
