"""Import packages and print one JSON line about each: run by `doctor` as a process of its own.

A broken package may end the process, which must not be that of `doctor`. This file imports nothing
of Sensorium, so that it runs whatever is broken. It ends at the first package that does not load;
`doctor` then starts it again with the others.
"""

import importlib
import json
import sys
import time
from typing import Any


def check_import(module: str) -> dict[str, Any]:
    """Import a module and return its version, {"version": text or None}."""
    version = getattr(importlib.import_module(module), "__version__", None)
    return {"version": version if isinstance(version, str) else None}


def describe_torch() -> dict[str, Any]:
    """Return the devices, the threads and the speed of matrix products, {"facts": ...}."""
    import torch

    devices = ["cpu"]
    devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    speeds = {name: _matmul_gflops(torch, name) for name in ("float32", "bfloat16")}
    facts = {
        "devices": ", ".join(devices),
        "threads": str(torch.get_num_threads()),
        "matrix products": (
            f"{speeds['float32']:,.0f} GFLOP/s in fp32, {speeds['bfloat16']:,.0f} in bf16"
        ),
    }
    return {"facts": facts}


def _matmul_gflops(torch: Any, dtype: str, n: int = 512) -> float:
    """Return GFLOP/s of a matrix product, the best of a few."""
    a = torch.ones(n, n, dtype=getattr(torch, dtype))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9


def main(modules: list[str]) -> None:
    """Check modules in turn; "torch facts" describes torch, which was imported before.

    The first that fails ends the process; its line is {"error": one line, "is_absent": bool}.
    """
    stdout = sys.stdout
    sys.stdout = sys.stderr  # packages that print must not disturb the report

    def emit(**line: Any) -> None:
        print(json.dumps(line), file=stdout, flush=True)

    for module in modules:
        emit(begin=module)
        try:
            result = describe_torch() if module == "torch facts" else check_import(module)
        except BaseException as e:  # whatever a broken package raises
            reason = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            is_absent = isinstance(e, ModuleNotFoundError) and e.name == module
            emit(module=module, error=reason, is_absent=is_absent)
            raise
        emit(module=module, **result)


if __name__ == "__main__":
    main(sys.argv[1:])
