"""Output of commands: results on stdout, as a table or as JSON; messages on stderr.

Both streams are safe ones (`sensorium.io.terminal`): what is printed from data is escaped there.
"""

import json
import sys
from dataclasses import asdict, is_dataclass


def emit(result: object, as_json: bool) -> None:
    """Print a result on stdout.

    Args:
        result: a dataclass, a string, anything rich can draw, or plain data.
        as_json: print JSON instead of a table.
    """
    if as_json:
        plain = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
        print(json.dumps(plain, indent=2, ensure_ascii=False, default=str))
    elif hasattr(result, "__rich_console__"):
        from sensorium.io.terminal import SafeConsole

        SafeConsole().print(result)
    else:
        print(result)


def log(message: str) -> None:
    """Print a message on stderr."""
    print(message, file=sys.stderr, flush=True)
