"""This machine and this installation, in a dozen lines: what a report of a fault should hold."""

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

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

PACKAGE_EXTRAS = {
    "pyarrow": "data",
    "simplejpeg": "fast",
    "faiss-cpu": "search",
    "resvg-py": "emoji",
    "scikit-learn": "predict",
    "lightgbm": "boosting",
}  # package -> extra
REQUIRED_PACKAGES = ("torch", "numpy", "pillow", "safetensors", "tokenizers")
KNOWN_BROKEN_PACKAGES = (
    "torchvision",
    "torchaudio",
    "torchcodec",
)  # not used here; a broken one breaks other libraries
MIN_PILLOW_VERSION = 13  # older ones have known holes in their decoders
MIN_FREE_BYTES = 2e9  # bytes that a cache and a run may need


@dataclass(frozen=True)
class Health:
    """Facts by name, and what to do about those that are not as they should be."""

    facts: dict[str, str]
    advice: list[str] = field(default_factory=list)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.markup import escape
        from rich.table import Table

        table = Table(show_header=False)
        for name, value in self.facts.items():
            table.add_row(name, escape(value))
        yield table
        yield from (
            f"[yellow]{escape(line)}[/]" for line in self.advice or ["Nothing is in the way."]
        )


def check_environment(folder: Path = Path()) -> Health:
    """Look. folder: where runs would be written."""
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
        "products": f"{fp32:,.0f} GFLOP/s in fp32, {bf16:,.0f} in bf16",
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
        yield f"Pillow is older than {MIN_PILLOW_VERSION}: update it before you open pictures of strangers."
    if free_bytes < MIN_FREE_BYTES:
        yield f"Little disk: a run and its cache may need {MIN_FREE_BYTES / 1e9:.0f} GB."
    if not os.access(folder, os.W_OK):
        yield f"{folder.absolute()} cannot be written to: give --out."
    if sys.dont_write_bytecode:
        yield "PYTHONDONTWRITEBYTECODE is set: Python is compiled anew at each start, which can take seconds."
    for name in KNOWN_BROKEN_PACKAGES:
        if _installed_version(name) and (fault := _import_error(name)):
            yield f"{name} is installed and does not load ({fault}): pip uninstall {name}. Sensorium does not need it."


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
    """GFLOP/s of a matrix product, the best of a few."""
    a = torch.ones(n, n, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9
