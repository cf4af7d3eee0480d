"""How commands answer: results to stdout, as a table for people or as JSON; what happens meanwhile to stderr."""
import json
import sys
from dataclasses import asdict, is_dataclass


def shown(found: object, as_json: bool) -> None:
    """A result to stdout: a table for people, or JSON."""
    if as_json:
        plain = asdict(found) if is_dataclass(found) and not isinstance(found, type) else found
        print(json.dumps(plain, indent=2, ensure_ascii=False, default=str))
    elif hasattr(found, "__rich_console__"):
        from rich.console import Console
        Console().print(found)
    else:
        print(found)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
