"""So many epochs over pictures, texts and a table together: ours beside pytorch-widedeep and AutoGluon, in turns.

    python benchmarks/fusion_data.py FOLDER icons
    export OMP_NUM_THREADS=1 PYTHONPATH=src TEXT_MODEL=weights/minilm
    python benchmarks/fusion_speed.py FOLDER --rounds 3 --epochs 1 --pairs ours:widedeep retrained:autogluon \\
        --python widedeep=wd/bin/python autogluon=ag/bin/python

Each as in `fusion.py`, but for the number of epochs: CPU seconds of the whole process on one thread, from raw files to
predictions of `test`, imports aside. `retrained` learns on from the same MiniLM as AutoGluon does.
"""

import argparse
import json
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fusion_ours
import fusion_peers
import torch
from fusion import LIBRARIES
from fusion_data import TASKS
from fusion_rows import figures, read
from peers import allow_torchvision, compare, machine, record

WHO = {
    "ours": fusion_ours.ours,
    "retrained": fusion_ours.retrained,
    "widedeep": fusion_peers.widedeep,
    "autogluon": fusion_peers.autogluon,
}


def once(folder: Path, task: str, who: str, epochs: int) -> None:
    """Train and ask, here; one line says how long it took and how good it is."""
    torch.set_num_threads(1)
    allow_torchvision()
    import_module(LIBRARIES[who][1])
    start, splits = time.process_time(), read(folder, TASKS[task])
    said = WHO[who](splits, 0, epochs=epochs)
    seconds = time.process_time() - start
    about = {"version": version(LIBRARIES[who][0]), "machine": machine()}
    print(
        "\n"
        + json.dumps({"seconds": seconds, **figures(TASKS[task], splits["test"], said), **about})
    )


def apart(given: argparse.Namespace, who: str) -> tuple[float, dict[str, Any]]:
    """`once` in a process of its own, by the Python that has its library."""
    python = dict(pair.split("=", 1) for pair in given.python).get(who, sys.executable)
    said = subprocess.run(
        [
            python,
            __file__,
            str(given.folder),
            "--task",
            given.task,
            "--epochs",
            str(given.epochs),
            "--once",
            who,
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = json.loads(said.strip().splitlines()[-1])
    return found.pop("seconds"), found


def main() -> None:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("folder", type=Path)
    parse.add_argument("--task", choices=TASKS, default="icons")
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--epochs", type=int, default=1)
    parse.add_argument("--pairs", nargs="+", default=["ours:widedeep"], metavar="OURS:PEER")
    parse.add_argument("--python", nargs="+", default=[], metavar="WHO=PYTHON")
    parse.add_argument("--once", choices=WHO)
    given = parse.parse_args()
    if given.once:
        once(given.folder, given.task, given.once, given.epochs)
        return
    for pair in given.pairs:
        names = pair.split(":")
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for i in range(given.rounds):
            for name in names[:: 1 if i % 2 == 0 else -1]:
                took, found = apart(given, name)
                seconds[name].append(took)
                record(
                    "fusion_speed",
                    task=given.task,
                    name=name,
                    epochs=given.epochs,
                    seconds=took,
                    **found,
                )
        compare("fusion_speed", seconds, (names[-1],))


if __name__ == "__main__":
    main()
