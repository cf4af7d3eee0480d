"""Run alternating rounds with a peer, and record ratios of neighbors and the machine.

Peers are installed in an environment of their own, without CUDA (see requirements.txt). Each result
is one JSON line.
"""

import gc
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
Function = Callable[[], object]
RESULTS = Path(__file__).parent / "results"
_OPS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor",
    "qroi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, "
    "int pooled_width, int sampling_ratio, bool aligned) -> Tensor",
)
_kept: list[torch.library.Library] = []


def allow_torchvision() -> None:
    """Declare torchvision's compiled operators, so that it imports with a CPU build of torch."""
    if not _kept:
        _kept.append(torch.library.Library("torchvision", "DEF"))
        for op in _OPS:
            _kept[0].define(op)


def clock() -> float:
    """Return wall time; with one thread the process's CPU time, which excludes waiting."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Apart:
    """A function in a process of its own, with its own memory allocator; `seconds` runs it there.

    `build(*given)` makes the function in that process. It is found by name, so it is defined at
    module level.
    """

    def __init__(self, build: Callable[..., Function], *args: object):
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(there, torch.get_num_threads(), build, args), daemon=True
        )
        self._process.start()
        self.value: object = None  # the function's last result

    def seconds(self) -> float:
        """Return what one call took; `value` is its result."""
        self._here.send(True)
        seconds, self.value = self._here.recv()
        return seconds


def _serve(
    pipe: Connection, threads: int, build: Callable[..., Function], args: tuple[object, ...]
) -> None:
    torch.set_num_threads(threads)
    function = build(*args)
    while True:
        try:
            pipe.recv()
        except EOFError:  # whoever asked is gone
            return
        pipe.send(timed(function))


def timed(function: Function) -> tuple[float, object]:
    """Return the seconds a call took, and its result."""
    gc.collect()
    start = clock()
    result = function()
    return clock() - start, result


def paired(
    calls: Mapping[str, Function | Apart], rounds: int, warm: int = 2
) -> dict[str, list[float]]:
    """Return seconds of each call, in the order A B C, C B A, A B C, ... against load."""
    for _ in range(warm):
        for call in calls.values():
            _seconds(call)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: 1 if i % 2 == 0 else -1]:
            seconds[name].append(_seconds(calls[name]))
    return seconds


def _seconds(call: Function | Apart) -> float:
    return call.seconds() if isinstance(call, Apart) else timed(call)[0]


def faster(seconds: Mapping[str, list[float]], than: str, name: str) -> float:
    """Return how many times `name` is faster than `than`: the median over rounds."""
    return statistics.median(a / b for a, b in zip(seconds[than], seconds[name], strict=True))


def compare(test: str, seconds: Mapping[str, list[float]], baselines: tuple[str, ...]) -> None:
    """Record one line of results for each function."""
    for name, times in seconds.items():
        record(
            test,
            name=name,
            ms=1e3 * statistics.median(times),
            least=1e3 * min(times),
            most=1e3 * max(times),
            rounds=len(times),
            **{f"times_{b}": faster(seconds, b, name) for b in baselines},
        )


def record(test: str, **figures: object) -> None:
    """Print one result, and append it to results/<test>.jsonl."""
    rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in figures.items()}
    line = json.dumps({"test": test, **rounded})
    print(line, flush=True)
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / f"{test}.jsonl", "a") as file:
        file.write(line + "\n")


def machine() -> dict[str, object]:
    """Return the properties of the machine."""
    can = torch.cpu.get_capabilities()
    return {
        "cpu": can.get("cpu_name"),
        "cores": os.cpu_count(),
        "amx": can.get("amx_bf16"),
        "avx512_bf16": can.get("avx512_bf16"),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def peak_mb() -> float:
    """Return this process's peak memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
