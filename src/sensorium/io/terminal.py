"""The terminal: every text that a command or a progress line prints passes through here, escaped.

A `SafeStream` takes the place of sys.stdout and sys.stderr, for `print`, warnings, logging and
tracebacks. A `SafeConsole` writes the tables and progress bars of rich: its own colors and cursor
movements reach the terminal, those in the text do not. Ctrl-C comes from there, too:
pressed several times in a row, it is one request.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.text import Text

from sensorium.errors import escape_controls

if TYPE_CHECKING:
    from rich.console import RenderableType

QUICK_SECONDS = 2.0  # within which a repeated signal is the same request
_last_time = [float("-inf")]  # of a signal


class SafeStream:
    """A text stream that escapes what could command the terminal.

    Args:
        stream: where the text goes.
    """

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text; return the number of its characters."""
        safe = escape_controls(text)
        try:
            self.stream.write(safe)
        except UnicodeEncodeError:  # a terminal without UTF-8
            encoding = getattr(self.stream, "encoding", None) or "ascii"
            self.stream.write(safe.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class SafeConsole(Console):
    """A rich console for text from data: escaped, without markup, emoji codes and hyperlinks.

    Args:
        stderr: write to stderr instead of stdout.
        quiet: write nothing.
    """

    def __init__(self, stderr: bool = False, quiet: bool = False):
        super().__init__(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)

    @property
    def file(self) -> Any:
        """The stream itself, which the console's own control sequences may reach."""
        file: Any = super().file
        while isinstance(file, SafeStream):
            file = file.stream
        return file

    @file.setter
    def file(self, new_file: Any) -> None:
        self._file = new_file

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        """Return the escaped text, before it is measured and laid out."""
        return super().render_str(escape_controls(text), **options)

    def render(
        self, renderable: "RenderableType", options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Yield the segments of a renderable, whose text is escaped."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
                continue
            style = segment.style
            if style is not None and style.link:
                style = style.update_link(None)
            yield Segment(escape_controls(segment.text), style)


@contextmanager
def safe_output() -> Iterator[None]:
    """Replace sys.stdout and sys.stderr by safe streams meanwhile."""
    stdout, stderr = sys.stdout, sys.stderr
    protect_output()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = stdout, stderr


def protect_output() -> None:
    """Replace sys.stdout and sys.stderr by safe streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, SafeStream):
            setattr(sys, name, SafeStream(stream))


@contextmanager
def progress_of_libraries() -> Iterator[None]:
    """Let a library whose texts are its own draw its progress bars on stderr meanwhile."""
    stderr = sys.stderr
    try:
        if isinstance(stderr, SafeStream):
            sys.stderr = stderr.stream
        yield
    finally:
        sys.stderr = stderr


def is_repeated() -> bool:
    """Note that a signal arrived; return whether another one did within QUICK_SECONDS."""
    now = time.monotonic()
    repeated = now - _last_time[0] <= QUICK_SECONDS
    _last_time[0] = now
    return repeated


def raise_interrupt(number: int, frame: object) -> None:  # noqa: ARG001 - a signal handler
    """Raise KeyboardInterrupt on a signal, but not again for those that follow quickly."""
    if not is_repeated():
        raise KeyboardInterrupt
