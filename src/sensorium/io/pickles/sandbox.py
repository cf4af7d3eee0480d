"""Limits of the process that reads a pickle; functions return those that this system enforces."""

from __future__ import annotations

import codecs
import ctypes
import os
import sys
from typing import NoReturn

CLONE_NEWUSER = 0x10000000  # flags of unshare(2), Linux
CLONE_NEWNET = 0x40000000
MIN_CPU_SECONDS = 20
CPU_SECONDS_PER_MIB = 1
MAX_CPU_SECONDS = 600
# Codecs of names in archives and of old pickles, which Python would otherwise import on first use.
PRELOADED_CODECS = ("cp437", "ascii", "raw-unicode-escape", "unicode-escape")
FORBIDDEN_AUDIT_EVENTS = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.putenv",
    "shutil.",
    "pickle.",
    "marshal.",
    "ctypes.",
    "import",
    "compile",
    "exec",
    "urllib.",
    "ftplib.",
    "smtplib.",
    "webbrowser.",
)


def limit_resources(file_bytes: int) -> list[str]:
    """Limit memory, CPU time, output, processes and network of this process.

    Call it before anything of the file is read.

    Args:
        file_bytes: size of the file; memory and output are limited in proportion.

    Returns:
        The limits that this system enforces.
    """
    limits = {
        "RLIMIT_AS": (1 << 30) + 3 * file_bytes,
        "RLIMIT_CPU": cpu_seconds(file_bytes),
        "RLIMIT_FSIZE": 4 * file_bytes + (2 << 20),
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,
    }
    enforced = [name for name, limit in limits.items() if _set_limit(name, limit)]
    if _isolate_network():
        enforced.append("no network (namespace)")
    return enforced


def cpu_seconds(file_bytes: int) -> int:
    """Return the limit of processor time for a file of this size."""
    return min(MIN_CPU_SECONDS + CPU_SECONDS_PER_MIB * (file_bytes >> 20), MAX_CPU_SECONDS)


def enter() -> str:
    """Forbid imports, compilation, processes and connections from here on.

    Python itself then raises PermissionError where code attempts one.

    Returns:
        A description of this limit.
    """

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(FORBIDDEN_AUDIT_EVENTS):
            _refuse(f"{event} {arguments[:1]}")

    for name in PRELOADED_CODECS:
        codecs.lookup(name)
    sys.addaudithook(audit)
    return "no imports, processes or connections (audit hook)"


def _refuse(event: str) -> NoReturn:
    """Raise the error for a forbidden event."""
    raise PermissionError(f"{event} is not allowed while a pickle is read")


def _set_limit(name: str, limit: int) -> bool:
    """Lower a resource limit; return whether the system enforces it."""
    try:
        import resource

        kind = getattr(resource, name)
        hard_limit = resource.getrlimit(kind)[1]
        new_limit = limit if hard_limit == resource.RLIM_INFINITY else min(limit, hard_limit)
        resource.setrlimit(kind, (new_limit, new_limit))
    except (ImportError, AttributeError, ValueError, OSError):
        return False
    return True


def _isolate_network() -> bool:
    """Move this process to a network namespace without interfaces (Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if libc.unshare(CLONE_NEWNET) == 0:
        return True
    return os.getuid() != 0 and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
