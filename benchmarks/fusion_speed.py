r"""Time some epochs on images, texts and a table, compared with pytorch-widedeep and AutoGluon.

    python benchmarks/fusion_data.py FOLDER icons
    export OMP_NUM_THREADS=1 PYTHONPATH=src TEXT_MODEL=weights/minilm
    python benchmarks/fusion_speed.py FOLDER --rounds 3 --epochs 1 \
        --pairs ours:widedeep retrained:autogluon \
        --python widedeep=wd/bin/python autogluon=ag/bin/python

In alternating runs, each as in `fusion.py` except for the number of epochs: CPU seconds of the
whole process on one thread, from raw files to predictions of `test`, imports excluded.
`retrained` trains the same MiniLM further as AutoGluon does.
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
    """Train and predict in this process, and print time and metrics."""
    torch.set_num_threads(1)
    allow_torchvision()
    import_module(LIBRARIES[who][1])
    start, splits = time.process_time(), read(folder, TASKS[task])
    predictions = WHO[who](splits, 0, epochs=epochs)
    seconds = time.process_time() - start
    about = {"version": version(LIBRARIES[who][0]), "machine": machine()}
    print(
        "\n"
        + json.dumps(
            {"seconds": seconds, **figures(TASKS[task], splits["test"], predictions), **about}
        )
    )


def run_apart(args: argparse.Namespace, who: str) -> tuple[float, dict[str, Any]]:
    """Run `once` in a process of its own, with the Python that has its library."""
    python = dict(pair.split("=", 1) for pair in args.python).get(who, sys.executable)
    predictions = subprocess.run(
        [
            python,
            __file__,
            str(args.folder),
            "--task",
            args.task,
            "--epochs",
            str(args.epochs),
            "--once",
            who,
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    result = json.loads(predictions.strip().splitlines()[-1])
    return result.pop("seconds"), result


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", choices=TASKS, default="icons")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--pairs", nargs="+", default=["ours:widedeep"], metavar="OURS:PEER")
    parser.add_argument("--python", nargs="+", default=[], metavar="WHO=PYTHON")
    parser.add_argument("--once", choices=WHO)
    args = parser.parse_args()
    if args.once:
        once(args.folder, args.task, args.once, args.epochs)
        return
    for pair in args.pairs:
        names = pair.split(":")
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for i in range(args.rounds):
            for name in names[:: 1 if i % 2 == 0 else -1]:
                took, result = run_apart(args, name)
                seconds[name].append(took)
                record(
                    "fusion_speed",
                    task=args.task,
                    name=name,
                    epochs=args.epochs,
                    seconds=took,
                    **result,
                )
        compare("fusion_speed", seconds, (names[-1],))


if __name__ == "__main__":
    main()
