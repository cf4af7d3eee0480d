"""A pickle of weights → a safetensors file beside it. The pickle is read in a process that may do nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.pickles.sandbox import MAX_CPU_SECONDS

WORKER_SCRIPT = """import sys
root, source, out, key, size = sys.argv[1:]
sys.path.insert(0, root)
from sensorium.convert.fence import fence
enforced = fence(int(size))
from sensorium.io.pickles.worker import main
sys.exit(main(source, out, key, enforced))"""
WORKER_ENV = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONIOENCODING": "utf-8",
}


@dataclass(frozen=True)
class ConversionResult:
    """What was made of a pickle."""

    path: Path
    num_tensors: int
    num_bytes: int
    dropped_keys: list[str]  # what it held beside the weights: step, optimizer_state, ...
    sandbox_limits: list[str]  # how the process was held back

    def __str__(self) -> str:
        left = f"; left out: {', '.join(self.dropped_keys)}" if self.dropped_keys else ""
        made = f"{self.path}: {self.num_tensors:,} tensors, {self.num_bytes:,} bytes{left}"
        return f"{made}\nread with: {'; '.join(self.sandbox_limits)}"


def convert_checkpoint(
    source: str | Path, out: str | Path | None = None, *, key: str | None = None
) -> ConversionResult:
    """The weights in a checkpoint of torch (.pt, .pth, .bin, .ckpt) as safetensors; nothing in it is executed.

    out: the file to write, which must not be there; by default the same name with .safetensors. key: which part holds
    the weights, where it is not one of the usual. Raises SensoriumError where the file asks for anything but tensors
    and plain values, is damaged, or would take more memory or time than a file of its size may.
    """
    source = Path(source)
    out = Path(out) if out is not None else source.with_suffix(".safetensors")
    if not source.is_file():
        raise SensoriumError(f"{source} is no file")
    if out.exists():
        raise SensoriumError(f"{out} is there already: remove it, or name another with --out")
    reports: list[dict[str, object]] = []
    atomic.write_file(out, lambda place: reports.append(_run_worker(source, place, key or "")))
    return ConversionResult(out, **reports[0])  # type: ignore[arg-type]


def _run_worker(source: Path, out: Path, key: str) -> dict[str, object]:
    root, size = str(Path(__file__).parents[3]), str(source.stat().st_size)
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-I",
                "-c",
                WORKER_SCRIPT,
                root,
                str(source.resolve()),
                str(out.resolve()),
                key,
                size,
            ],
            env=WORKER_ENV,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2 * MAX_CPU_SECONDS,
        )
    except subprocess.TimeoutExpired as e:
        raise SensoriumError(
            f"{source} was not converted: it took more than {2 * MAX_CPU_SECONDS} seconds"
        ) from e
    try:
        report: dict[str, object] = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [
            f"status {done.returncode}"
        ]
        report = {"error": f"the process that read it was stopped ({last[0]})"}
    if "error" in report:
        raise SensoriumError(f"{source} was not converted: {report['error']}")
    return report
