"""Stop a run on SIGINT, SIGTERM or SIGHUP after its state is saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sensorium.errors import SensoriumError
from sensorium.io.signals import is_repeated

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(SensoriumError):  # noqa: N818 - like KeyboardInterrupt
    """A run was interrupted (Ctrl-C, SIGTERM, SIGHUP); its state is saved and it can be resumed.

    Args:
        message: what was saved and how to resume.
        exit_code: exit status for the shell, 128 + the signal's number.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """A request to stop.

    Attributes:
        signal_number: the signal received; 0: none.
    """

    signal_number: int = 0


@contextmanager
def handle_signals() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGHUP into a stop request.

    One that follows within seconds of another, as of an impatient Ctrl-C, changes nothing;
    a later one acts as before, so that a run that does not reach its next step can be stopped.

    Signals can only be handled in the main thread; elsewhere no request is ever made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {
        number: handler
        for number in STOP_SIGNALS
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN  # nohup ignores SIGHUP
    }

    def restore_handlers() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler
        repeated = is_repeated()
        if not request.signal_number:
            request.signal_number = number
        elif not repeated:
            restore_handlers()
            signal.raise_signal(number)

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield request
    finally:
        restore_handlers()
