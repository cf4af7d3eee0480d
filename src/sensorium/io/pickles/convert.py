"""Convert a pickled checkpoint to safetensors; a sandboxed worker process reads the pickle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.pickles.sandbox import cpu_seconds

WORKER_SCRIPT = """import sys
root, source, out, key, size = sys.argv[1:]
sys.path.insert(0, root)
from sensorium.io.pickles.sandbox import limit_resources
limits = limit_resources(int(size))
from sensorium.io.pickles.worker import main
sys.exit(main(source, out, key, limits))"""
WORKER_ENV = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONIOENCODING": "utf-8",
}


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion wrote.

    Attributes:
        path: the safetensors file.
        num_tensors: tensors in it.
        num_bytes: size of their values.
        dropped_keys: what the checkpoint held besides weights: step, optimizer_state, ...
        sandbox_limits: the limits that this system enforced on the worker process.
    """

    path: Path
    num_tensors: int
    num_bytes: int
    dropped_keys: list[str]
    sandbox_limits: list[str]

    def __str__(self) -> str:
        dropped = f"; dropped: {', '.join(self.dropped_keys)}" if self.dropped_keys else ""
        return (
            f"{self.path}: {self.num_tensors:,} tensors, {self.num_bytes:,} bytes{dropped}\n"
            f"sandbox limits: {'; '.join(self.sandbox_limits)}"
        )


def convert_checkpoint(
    source: str | Path, out: str | Path | None = None, *, key: str | None = None
) -> ConversionResult:
    """Convert the weights in a torch checkpoint to safetensors; nothing in it is executed.

    Args:
        source: the checkpoint (.pt, .pth, .bin, .ckpt).
        out: the file to write, which must not exist; None: the same name with .safetensors.
        key: the entry that holds the weights; None: a usual name (state_dict, model, ...).

    Raises:
        SensoriumError: the file asks for anything but tensors and plain values, is damaged, or
            would need more memory or time than a file of its size may.
    """
    source = Path(source)
    out = Path(out) if out is not None else source.with_suffix(".safetensors")
    if not source.is_file():
        raise SensoriumError(f"{source} is not a file. Name a torch checkpoint (.pt, .pth, .bin).")
    if out.exists():
        raise SensoriumError(f"{out} already exists. Remove it, or choose another file with --out.")
    reports: list[dict[str, Any]] = []

    def write(path: Path) -> None:
        reports.append(_run_worker(source, path, key or ""))
        _check_output(path, reports[0]["num_tensors"], source)

    atomic.write_file(out, write)
    return ConversionResult(out, **reports[0])


def _run_worker(source: Path, out: Path, key: str) -> dict[str, Any]:
    """Convert in a worker process; return its report."""
    root = Path(__file__).parents[3]
    size = source.stat().st_size
    arguments = [str(root), str(source.resolve()), str(out.resolve()), key, str(size)]
    timeout = 60 + 2 * cpu_seconds(size)
    try:
        completed = subprocess.run(
            [sys.executable, "-I", "-c", WORKER_SCRIPT, *arguments],
            env=WORKER_ENV,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise SensoriumError(
            f"{source} was not converted: reading it took more than {timeout} seconds. "
            "Save it again as model.state_dict()."
        ) from e
    report = _parse_report(completed)
    if "error" in report:
        raise SensoriumError(f"{source} was not converted: {report['error']}.")
    return report


def _parse_report(completed: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """Return what the worker reported, or an error if it was stopped before."""
    try:
        report: dict[str, Any] = json.loads(completed.stdout)
    except ValueError:
        if completed.returncode == -getattr(signal, "SIGXCPU", 0):
            return {"error": "reading it took more processor time than a file of its size may"}
        stderr_lines = completed.stderr.decode(errors="replace").strip().splitlines()
        reason = stderr_lines[-1] if stderr_lines else f"status {completed.returncode}"
        return {"error": f"the worker process was stopped ({reason})"}
    return report


def _check_output(path: Path, num_tensors: int, source: Path) -> None:
    """Read the written file back as every loader will: its header, sizes and number of tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:  # type: ignore[no-untyped-call]
            num_read = len(file.keys())
    except (SafetensorError, OSError) as e:
        raise SensoriumError(
            f"{source} was not converted: no safetensors file can hold its tensors ({e})."
        ) from e
    if num_read != num_tensors:
        raise SensoriumError(
            f"{source} was not converted: {num_tensors} tensors were written, {num_read} read back."
        )
