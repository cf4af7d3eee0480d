"""Ctrl-C: pressed several times in a row, it is one request."""

import time

QUICK_SECONDS = 2.0  # within which a repeated signal is the same request
_last_time = [float("-inf")]  # of a signal


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
