"""Lists as Python and numpy write them: ['a', 'b'], [1.0, nan], [1. 2.], array([1, 2])."""

import math
import re
import sys
from typing import Any

NUMPY_ELLIPSIS = "..."  # numpy's sign for values that it left out when it wrote a long array
_MAX_DEPTH = 16
_OPENING = {"[": "]", "(": ")", "{": "}"}
_WORDS = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "none": None,
    "null": None,
    "na": None,
    "true": True,
    "false": False,
}
_STARTS = ("[", "(", "{", "array(", "np.array(", "tensor(")
_ENDS = ("]", ")", "}")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<open>(?:(?:np\.)?array|tensor|list|tuple|set)?\(|[\[{])
    | (?P<close>[\])}])
    | (?P<comma>,)
    | (?P<option>dtype\s*=\s*[\w.'"<>=|]+|device\s*=\s*['"]\w+['"])
    | [ubr]?(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<number>[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])
    | (?P<word>-?\b(?:nan|inf|none|null|na|true|false)\b)
    )""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_SCALAR = re.compile(r"np\.(?:float|int|uint|str|bool)\w*\(([^()]*)\)")  # as numpy 2 writes
_ESCAPED = re.compile(r"\\(x[\da-f]{2}|u[\da-f]{4}|U[\da-f]{8}|.)", re.DOTALL)


def parse_python_list(cell: str) -> list[Any] | None:
    """Return the list, tuple, set or array in a cell, None if it holds none.

    Items are numbers, texts, None, Booleans, or lists of them. Nothing is evaluated.
    """
    stripped = cell.strip()
    if not stripped.startswith(_STARTS) or not stripped.endswith(_ENDS):
        return None
    if "np." in stripped:
        stripped = _SCALAR.sub(r"\1", stripped)
    parser = _Parser()
    position = 0
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None or not parser.take(match):
            return None
        position = match.end()
    return parser.result()


def is_abbreviated_array(cell: Any) -> bool:
    """Return whether numpy left values out of the array in a cell."""
    if not isinstance(cell, str) or NUMPY_ELLIPSIS not in cell:
        return False
    if not cell.lstrip().startswith(_STARTS):
        return False
    shortened = re.sub(r",?\s*\.\.\.\s*,?", " ", cell)
    items = parse_python_list(shortened)
    return items is not None and not any(isinstance(item, str) for item in items)


class _Parser:
    """A list that is built token by token; depth is bounded, and there is no recursion."""

    def __init__(self) -> None:
        self.stack: list[tuple[str, list[Any]]] = []
        self.outer: list[Any] | None = None
        self.num_commas: list[int] = []
        self.may_append = True  # a text or list may follow only a comma or an opening bracket

    def take(self, match: re.Match[str]) -> bool:
        """Take a token; return whether it may stand there."""
        kind = match.lastgroup
        token = match[kind] if kind else ""
        if self.outer is not None:
            return False
        if kind == "open":
            return self._open(token)
        if not self.stack:
            return False
        if kind == "close":
            return self._close(token)
        if kind == "comma":
            self.num_commas[-1] += 1
            self.may_append = True
            return True
        if kind == "option":
            return True
        return self._append(kind, token)

    def result(self) -> list[Any] | None:
        """Return the list if all brackets are closed."""
        return self.outer

    def _open(self, token: str) -> bool:
        self.stack.append((token, []))
        self.num_commas.append(0)
        self.may_append = True
        return len(self.stack) <= _MAX_DEPTH

    def _close(self, token: str) -> bool:
        opening, items = self.stack.pop()
        num_commas = self.num_commas.pop()
        if _OPENING[opening[-1]] != token:
            return False
        is_call = len(opening) > 1
        if is_call:  # array([1, 2]) is its only argument
            if len(items) != 1 or not isinstance(items[0], list):
                return False
            items = items[0]
        elif opening == "(" and not num_commas:  # (1) is no tuple
            return False
        if not self.stack:
            self.outer = items
        else:
            self.stack[-1][1].append(items)
        self.may_append = False
        return True

    def _append(self, kind: str | None, token: str) -> bool:
        if kind == "number":
            value: Any = _parse_number(token)
        elif kind == "word":
            value = _WORDS[token.lower()]
        else:
            value = _ESCAPED.sub(_unescape, token[1:-1])
        items = self.stack[-1][1]
        if isinstance(value, str) and not self.may_append and not _is_text(items):
            return False
        items.append(value)
        self.may_append = False
        return True


def _is_text(items: list[Any]) -> bool:
    """Return whether texts may follow without commas, as numpy writes them."""
    return bool(items) and all(isinstance(item, str) for item in items)


def _unescape(match: re.Match[str]) -> str:
    """Return the character that an escape stands for."""
    escape = match[1]
    if len(escape) == 1:
        return _ESCAPES.get(escape, escape)
    number = int(escape[1:], 16)
    is_character = number <= sys.maxunicode and not 0xD800 <= number < 0xE000
    return chr(number) if is_character else "\ufffd"


def _parse_number(token: str) -> int | float:
    plain = token.replace("_", "")
    return int(plain) if re.fullmatch(r"[-+]?\d{1,400}", plain) else float(plain)
