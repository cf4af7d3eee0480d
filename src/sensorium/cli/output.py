"""How commands answer: results to stdout, as a table for people or as JSON; what happens meanwhile to stderr."""

import json
import sys
from dataclasses import asdict, is_dataclass


def emit(result: object, as_json: bool) -> None:
    """A result to stdout: a table for people, or JSON."""
    if as_json:
        plain = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
        print(json.dumps(plain, indent=2, ensure_ascii=False, default=str))
    elif hasattr(result, "__rich_console__"):
        from rich.console import Console

        Console().print(result)
    else:
        print(result)


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
