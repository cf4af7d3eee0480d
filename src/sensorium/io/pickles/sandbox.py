"""What the process that reads a pickle may not do. Each limit says whether this system enforces it."""

from __future__ import annotations

import codecs
import ctypes
import os
import sys
from typing import NoReturn

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # of Linux's unshare
MAX_CPU_SECONDS = 600
PRELOADED_CODECS = (
    "cp437",
    "ascii",
    "raw-unicode-escape",
    "unicode-escape",
)  # of names in archives, of old pickles
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
    """Limit this process for a file of `size` bytes, before anything of it is read; what is enforced, in words."""
    memory, written = (1 << 30) + 3 * file_bytes, 4 * file_bytes + (2 << 20)
    limits = {
        "RLIMIT_AS": memory,
        "RLIMIT_CPU": MAX_CPU_SECONDS,
        "RLIMIT_FSIZE": written,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,
    }
    enforced = [name for name, most in limits.items() if _set_limit(name, most)]
    return [*enforced, *(["no network (namespace)"] if _isolate_network() else [])]


def enter() -> str:
    """From here on nothing is imported, compiled, called up or connected to: Python itself raises where it is tried."""

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(FORBIDDEN_AUDIT_EVENTS):
            _refuse(f"{event} {arguments[:1]}")

    for name in PRELOADED_CODECS:
        codecs.lookup(name)  # Python imports a codec when it is first used
    sys.addaudithook(watch)
    return "no imports, processes or connections (audit hook)"


def _refuse(event: str) -> NoReturn:
    raise PermissionError(f"{event} is not allowed while a pickle is read")


def _set_limit(name: str, limit: int) -> bool:
    try:
        import resource

        hard = resource.getrlimit(getattr(resource, name))[1]
        least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(getattr(resource, name), (least, least))
    except (ImportError, AttributeError, ValueError, OSError):
        return False
    return True


def _isolate_network() -> bool:
    """Leave the network behind: a namespace without one (Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    return libc.unshare(CLONE_NEWNET) == 0 or (
        os.getuid() != 0 and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
    )
