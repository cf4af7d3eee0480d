"""Kills a small training run with SIGKILL, over and over, at chosen and at random instants, and looks what is left.

    python nursery.py FOLDER KILLS ours|naive

Many lives are needed and importing torch takes seconds, so one process imports everything and forks each life. A life
writes down a pipe what it is about to do; the last line tells where it was killed. Half of the kills come from within,
at a numbered instant (also with half of a file written), half from without, at a random time. "naive" replaces the
writer by one that writes in place, and is killed only with half of a file written: the control that must fail. Prints a
JSON object for each kill and for each end.
"""
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny
import torch

from sensorium import config, durable, progress, run, snapshot, step, stored
from sensorium.errors import SensoriumError
from sensorium.train import train

KEYWORDS: dict[str, Any] = {"epochs": 3, "checkpoint_interval": 3 / 7, "eval_interval": 4 / 7, "ema_decay": 0.9, "dropout": 0.2}
DATA = tiny.rows()
phase, instants, fatal, torn, pipe = ["start"], 0, 0, False, -1


def instant(what: str, tear: Callable[[], object] | None = None) -> None:
    """One more place where a life may end."""
    global instants
    instants += 1
    os.write(pipe, f"{phase[-1]}\t{what}\n".encode())
    if instants == fatal:
        if torn and tear:
            os.write(pipe, f"{phase[-1]}\thalf of {what}\n".encode())
            tear()
        os.kill(os.getpid(), signal.SIGKILL)


def watched(function: Callable[..., Any], name: str, tear: Callable[..., object] | None = None) -> Callable[..., Any]:
    def call(*given: Any, **more: Any) -> Any:
        what = f"{name} {next((Path(os.fsdecode(g)).name for g in given if isinstance(g, str | os.PathLike)), '')}"
        instant(f"before {what}", tear and (lambda: tear(*given)))
        result = function(*given, **more)
        instant(f"after {what}")
        return result
    return call


def within(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(*given: Any, **more: Any) -> Any:
        phase.append(name)
        instant("enter")
        try:
            return function(*given, **more)
        finally:
            instant("leave")
            phase.pop()
    return call


def half_bytes(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content[:len(content) // 2])


def half_tensors(tensors: dict[str, torch.Tensor], path: Path, about: dict[str, str]) -> None:
    from safetensors.torch import save
    half_bytes(path, save(tensors, about))


def watch() -> None:
    """Name every instant of this process at which something on the disk changes, or a step begins."""
    Path.write_bytes = watched(Path.write_bytes, "write", half_bytes)       # type: ignore[method-assign]
    Path.mkdir = watched(Path.mkdir, "mkdir")                               # type: ignore[method-assign]
    Path.unlink = watched(Path.unlink, "unlink")                            # type: ignore[method-assign]
    stored.save_file = watched(stored.save_file, "tensors", half_tensors)
    for name in ("replace", "rename", "fsync", "rmdir"):
        setattr(os, name, watched(getattr(os, name), name))
    run.TrainingRun.save = within(run.TrainingRun.save, "save")                             # type: ignore[method-assign]
    run.TrainingRun.save_best = within(run.TrainingRun.save_best, "best")                   # type: ignore[method-assign]
    run.create_run.__globals__["_assembled"] = within(run._assemble, "begin")
    progress.MetricsLog.log_evaluation = within(progress.MetricsLog.log_evaluation, "evaluation")  # type: ignore[method-assign]
    progress.MetricsLog.log_step = within(progress.MetricsLog.log_step, "log")                    # type: ignore[method-assign]
    step.TrainStep.__call__ = within(step.TrainStep.__call__, "step")                 # type: ignore[method-assign]


def write_in_place(path: str | Path, content: bytes | Callable[[Path], object]) -> None:
    """What `durable.write` must not be."""
    path = Path(path)
    path.write_bytes(content) if isinstance(content, bytes) else content(path)


def save_in_place(self: snapshot.CheckpointStore, at: int, files: dict[str, Any]) -> Path:
    """What `Snapshots.save` must not be: one folder, written over."""
    path = self.folder / "step-000000"
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_in_place(path / name, content)
    return path


def make_naive() -> None:
    durable.write_file = write_in_place
    snapshot.CheckpointStore.save = save_in_place                                 # type: ignore[method-assign]
    snapshot.CheckpointStore.latest = (                                           # type: ignore[method-assign]
        lambda self, say=print: p if (p := self.folder / "step-000000").exists() else None)


@contextmanager
def forked(folder: Path, at: int, half: bool) -> Iterator[tuple[int, int]]:
    """(process, reading end of its pipe) of a life that trains in `folder`, and ends itself at instant `at` if any."""
    global fatal, torn, pipe
    reading, pipe = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.close(reading)
            fatal, torn = at, half
            watch()
            train(tiny.guess, DATA, out=folder, resume=folder.exists(), quiet=True, **KEYWORDS)
            code = 0
        except SensoriumError as e:
            os.write(pipe, f"error\t{e}\n".encode())
        finally:
            os._exit(code)
    os.close(pipe)
    try:
        yield process, reading
    finally:
        os.close(reading)


def live(folder: Path, at: int = 0, half: bool = False, after: float = 0.0) -> tuple[int, list[str], float]:
    """(exit status, what the life said it was about to do, seconds it took)."""
    start = time.monotonic()
    with forked(folder, at, half) as (process, reading):
        if after:
            time.sleep(after)
            os.kill(process, signal.SIGKILL)
        said = b""
        while part := os.read(reading, 65536):
            said += part
        _, status = os.waitpid(process, 0)
    return status, said.decode().splitlines(), time.monotonic() - start


def result(folder: Path) -> dict[str, str]:
    """Everything that must be equal to the last bit."""
    last = snapshot.CheckpointStore(folder / "state").latest()
    files = [folder / name for name in ("metrics.jsonl", "model.safetensors", "config.json", "schema.json")]
    files += sorted(p for p in last.iterdir() if p.name != "manifest.json") if last else []
    return {path.name if path.parent == folder else f"state/{path.name}": snapshot.file_sha256(path) for path in files}


def faults(folder: Path) -> str:
    """What is not whole in a folder in which a life was killed."""
    try:
        snapshot.CheckpointStore(folder / "state").latest(lambda text: None)
        if (folder / "config.json").exists():
            config.RunConfig.load(folder)
        if (folder / config.WEIGHTS_FILE).exists():
            stored.read_tensors(folder / config.WEIGHTS_FILE)
    except SensoriumError as e:
        return str(e)
    return ""


def chain(folder: Path, wanted: dict[str, str], plan: Iterator[dict[str, Any]], kills: int) -> Iterator[dict[str, Any]]:
    """Lives in one folder, each killed but the last, which must come to `wanted`."""
    for _ in range(kills):
        how = next(plan)
        status, said, _ = live(folder, **how)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            break
        where, _, what = said[-1].partition("\t") if said else ("start", "", "")
        yield {"by": "time" if "after" in how else "instant", "where": where, "what": what, "fault": faults(folder)}
    status, said, _ = live(folder)
    found = result(folder) if status == 0 else {}
    other = [name for name in wanted if found.get(name) != wanted[name]] + [p.name for p in folder.glob(".*")]
    yield {"end": said[-1] if status else f"other {', '.join(other)}" if other else "same"}


def main(folder: Path, kills: int, mode: str) -> None:
    torch.set_num_threads(1)
    if mode == "naive":
        make_naive()
    folder.mkdir(parents=True, exist_ok=True)
    train(tiny.guess, DATA, out=folder / "warm", quiet=True, **KEYWORDS)     # what torch imports at its first step
    status, said, seconds = live(folder / "whole")
    assert status == 0, said[-1]
    wanted, rng = result(folder / "whole"), random.Random(0)
    in_saves = [i + 1 for i, line in enumerate(said) if line.startswith(("save", "best"))]
    writes = [i + 1 for i, line in enumerate(said) if line.startswith(("save\tbefore write", "save\tbefore tensors"))]

    def plan() -> Iterator[dict[str, Any]]:
        while True:
            if mode == "naive":      # always in the middle of a file: the control must not depend on the clock
                yield {"at": rng.choice(writes), "half": True}
                continue
            yield {"at": rng.choice(in_saves[:len(in_saves) // 2]), "half": rng.random() < 0.5}
            yield {"after": rng.uniform(0.02, 0.7) * seconds}

    plans, found = plan(), []
    for number in range(kills):
        for entry in chain(folder / f"chain-{number}", wanted, plans, 1 if mode == "naive" else 6):
            found.append({"chain": number, **entry})
            print(json.dumps(found[-1]), flush=True)
        if found[-1]["end"] == "same":
            shutil.rmtree(folder / f"chain-{number}")
        if sum("by" in e for e in found) >= kills:
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
