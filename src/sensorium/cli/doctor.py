"""Check this machine and this installation; attach the output to bug reports."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sensorium import __version__
from sensorium.errors import escape_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

PACKAGE_EXTRAS = {  # package -> extra
    "pyarrow": "data",
    "simplejpeg": "fast",
    "faiss-cpu": "search",
    "resvg-py": "emoji",
    "scikit-learn": "predict",
    "lightgbm": "boosting",
}
REQUIRED_PACKAGES = ("torch", "numpy", "pillow", "safetensors", "tokenizers")
# not used here, but a broken one breaks other libraries
KNOWN_BROKEN_PACKAGES = ("torchvision", "torchaudio", "torchcodec")
MIN_PILLOW_VERSION = 13  # older versions have known vulnerabilities in their decoders
MIN_FREE_BYTES = 2e9  # what a cache and a run may need


@dataclass(frozen=True)
class Health:
    """The state of the installation.

    Attributes:
        facts: versions and properties by name.
        advice: what to do about known problems.
    """

    facts: dict[str, str]
    advice: list[str] = field(default_factory=list)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        table = Table(show_header=False)
        for name, value in self.facts.items():
            table.add_row(name, Text(escape_line(value)))
        yield table
        for line in self.advice or ["No problems found."]:
            yield Text(escape_line(line), "yellow")


def check_environment(folder: Path = Path()) -> Health:
    """Check this machine and installation.

    Args:
        folder: where runs would be written.
    """
    free = shutil.disk_usage(folder).free
    fp32, bf16 = (_matmul_gflops(dtype) for dtype in (torch.float32, torch.bfloat16))
    facts = {
        "sensorium": f"{__version__} in {Path(__file__).parents[1]}",
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: version for name in REQUIRED_PACKAGES if (version := _installed_version(name))},
        **{
            name: _installed_version(name) or f'absent: pip install "sensorium[{extra}]"'
            for name, extra in PACKAGE_EXTRAS.items()
        },
        "devices": ", ".join(_iter_devices()),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "matrix products": f"{fp32:,.0f} GFLOP/s in fp32, {bf16:,.0f} in bf16",
        "disk": f"{free / 1e9:,.1f} GB free",
    }
    return Health(facts, list(_iter_advice(folder, free)))


def _iter_devices() -> Iterator[str]:
    yield "cpu"
    yield from (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        yield "mps"


def _iter_advice(folder: Path, free_bytes: int) -> Iterator[str]:
    if int((_installed_version("pillow") or "0").split(".")[0]) < MIN_PILLOW_VERSION:
        yield (
            f"Pillow is older than {MIN_PILLOW_VERSION}: update it before opening images from "
            "untrusted sources."
        )
    if free_bytes < MIN_FREE_BYTES:
        yield f"Low disk space: a run and its cache may need {MIN_FREE_BYTES / 1e9:.0f} GB."
    if not os.access(folder, os.W_OK):
        yield f"{folder.absolute()} is not writable: use --out."
    if sys.dont_write_bytecode:
        yield (
            "PYTHONDONTWRITEBYTECODE is set: Python recompiles every module at each start, which "
            "can take seconds."
        )
    for name in KNOWN_BROKEN_PACKAGES:
        fault = _import_error(name) if _installed_version(name) else ""
        if fault:
            yield (
                f"{name} is installed and does not load ({fault}). Sensorium does not need it: pip "
                f"uninstall {name}."
            )


def _installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _import_error(module: str) -> str:
    try:
        import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as e:
        return str(e).split("\n")[0][:80]
    return ""


def _matmul_gflops(dtype: torch.dtype, n: int = 512) -> float:
    """Return GFLOP/s of a matrix product, the best of a few."""
    a = torch.ones(n, n, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9
