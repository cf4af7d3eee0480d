"""Stop a run on SIGINT, SIGTERM or SIGHUP after its state is saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sensorium.errors import SensoriumError
from sensorium.io.terminal import is_repeated

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
    """Turn the first SIGINT, SIGTERM or SIGHUP into a stop request; a second one acts as before.

    Signals can only be handled in the main thread; elsewhere no request is ever made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    if previous[signal.SIGHUP] is signal.SIG_IGN:  # started by nohup
        del previous[signal.SIGHUP]

    def restore_handlers() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler
        request.signal_number = number
        is_repeated()  # the command line ignores what follows quickly
        restore_handlers()

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield request
    finally:
        restore_handlers()
