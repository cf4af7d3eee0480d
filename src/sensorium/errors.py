r"""The exception for mistakes in the user's input, and escapes for text that comes from data.

Escaped as in JSON (`\u001b`): control characters but tab and newline, bidirectional embeddings,
overrides and isolates, lone surrogates, and invisible characters where no script needs them.
Text of every script stays as it is: joiners after the letters and emoji that use them, direction
marks beside right-to-left letters, word separators of Thai, Lao, Khmer and Burmese, variation
selectors, flags.
"""

import html
import re
from typing import TypeVar

T = TypeVar("T")
_RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u05ff\u0600-\u061b\u061d-\u08ff\ufb1d-\ufdff\ufe70-\ufefc"
    "\U00010800-\U00010fff\U0001e800-\U0001efff]"
)
_HOSTILE = re.compile(
    "(?P<flag>\U0001f3f4[\U000e0020-\U000e007e]{1,8}\U000e007f)"  # a flag of a region
    "|(?P<joiner>[\u034f\u200c\u200d])"
    "|(?P<mark>[\u061c\u200e\u200f])"
    "|(?P<separator>\u200b)"
    "|(?P<mongolian>[\u180b-\u180f])"
    "|(?P<selector>[\ufe00-\ufe0f\U000e0100-\U000e01ef])"
    "|(?P<filler>[\u115f\u1160])"
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u17b4\u17b5\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff"
    "\ufeff\uffa0\ufff0-\uffff\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_SHOWN = {"\ufffc", "\ufffd"}  # of the range fff0-ffff: visible characters
_LINE_BREAKS = str.maketrans({"\n": "\\n", "\t": "\\t"})


class SensoriumError(Exception):
    """A mistake in the input rather than in the program.

    The message names the file, row, column or option, says what is wrong with it and what to do.
    The command line prints the message without a traceback and exits with status 1. As a string it
    is escaped for the terminal, wherever it is shown; `args` holds the message as it was given.
    """

    def __str__(self) -> str:
        return escape_controls(super().__str__())


def require_type(value: object, expected: type[T]) -> T:
    """Return a value as the type that the program guarantees it to have.

    Args:
        value: a part of a model or a schema whose static type is wider.
        expected: its type.

    Raises:
        TypeError: if it is of another type, which is a mistake in the program.
    """
    if not isinstance(value, expected):
        raise TypeError(f"Expected {expected.__name__}, found {type(value).__name__}.")
    return value


def escape_controls(text: str) -> str:
    """Return a text, of any number of lines, with its deceiving characters as JSON escapes."""
    if text.isascii() and text.isprintable():
        return text
    return _HOSTILE.sub(_escape_unless_needed, text)


def escape_line(text: str) -> str:
    r"""Return a text on one line: as `escape_controls`, and newlines and tabs as \n and \t."""
    return escape_controls(text).translate(_LINE_BREAKS)


def escape_html(text: str) -> str:
    """Return a text for HTML and SVG, as content or as a quoted attribute."""
    return html.escape(escape_controls(text))


def _escape_unless_needed(match: re.Match[str]) -> str:
    """Return the match itself where its script needs it, or else its escape."""
    found = match.group()
    if match.lastgroup == "flag" or found in _SHOWN:
        return found
    before = match.string[: match.start()][-1:]
    after = match.string[match.end() : match.end() + 1]
    if _is_needed(match.lastgroup, found, before, after, match.string):
        return found
    units = found.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _is_needed(kind: str | None, found: str, before: str, after: str, text: str) -> bool:
    """Whether an invisible character of a kind follows a letter or emoji that it belongs to."""
    match kind:
        case "joiner":  # scripts from Armenian on; not Latin, Greek, Cyrillic, nor another joiner
            selected_emoji = "\ufe00" <= before <= "\ufe0f"
            return selected_emoji or (before >= "\u0530" and not _is_invisible(before))
        case "mark":
            return not _is_invisible(before) and _RIGHT_TO_LEFT.search(text) is not None
        case "separator":  # Thai, Lao, Tibetan, Burmese, Khmer, ... set no spaces between words
            return "\u0e00" <= before <= "\u109f" or "\u1780" <= before <= "\u1aff"
        case "mongolian":
            return "\u1800" <= before <= "\u18af"
        case "selector" if found <= "\ufe0f":  # of emoji, keycaps, symbols and ideographs
            return before in set("#*0123456789©®") or (
                before >= "\u0530" and not _is_invisible(before)
            )
        case "selector":
            return "\u2e80" <= before <= "\ufaff" or "\U00020000" <= before <= "\U0003ffff"
        case "filler":  # of an incomplete Hangul syllable
            return any("\u1100" <= letter <= "\u11ff" for letter in (before, after) if letter)
        case _:
            return False


def _is_invisible(character: str) -> bool:
    return character == "" or _HOSTILE.fullmatch(character) is not None
