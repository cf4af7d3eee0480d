"""Docstrings as help texts: one line a paragraph, since the terminal decides where to break."""

import functools
import inspect
from collections.abc import Callable

Command = Callable[..., None]


def with_flat_help(command: Command) -> Command:
    """Return a command whose paragraphs and argument descriptions are one line each.

    Args:
        command: function with a Google style docstring.
    """

    @functools.wraps(command)
    def flat(*args: object, **options: object) -> None:
        command(*args, **options)

    flat.__doc__ = flatten(command.__doc__ or "")
    return flat


def description(command: Command) -> str:
    """Return a command's flat docstring without its arguments."""
    return flatten(command.__doc__ or "").partition("\n\nArgs:\n")[0]


def flatten(doc: str) -> str:
    """Return a docstring with every paragraph and every argument's description on one line."""
    text, _, arguments = inspect.cleandoc(doc).partition("\n\nArgs:\n")
    flat = "\n\n".join(" ".join(part.split()) for part in text.split("\n\n") if part.strip())
    if not arguments:
        return flat
    lines: list[str] = []
    for line in arguments.splitlines():
        if line.startswith("     ") and lines:  # continues the description above
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join([f"{flat}\n\nArgs:", *lines])
