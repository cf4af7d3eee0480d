"""Exclusive locks that the system releases when the process ends, however it ends."""

import sys

from sensorium.errors import SensoriumError


def try_lock(fd: int) -> bool:
    """Take the exclusive lock of an open file or folder without waiting.

    Returns:
        False if another process, or another descriptor of this one, holds the lock.

    Raises:
        SensoriumError: on Windows, which has no such lock.
    """
    if sys.platform == "win32":
        raise SensoriumError(
            "Windows has no POSIX file locks, which training and search indexes need. "
            "Use Linux, macOS or WSL."
        )
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
