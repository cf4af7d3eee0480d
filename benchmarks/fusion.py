r"""Predict from any columns on thirteen real datasets, compared with baselines and peers.

    python benchmarks/fusion_data.py FOLDER
    export OMP_NUM_THREADS=1 PYTHONPATH=src
    python benchmarks/fusion.py FOLDER --who auto
    python benchmarks/fusion.py FOLDER --who ours quick --seeds 0 1 2
    python benchmarks/fusion.py FOLDER --who ours --seeds 0 1 2 --ablate
    TEXT_MODEL=weights/minilm python benchmarks/fusion.py FOLDER --who advised --seeds 0 1 2
    TEXT_MODEL=weights/minilm python benchmarks/fusion.py FOLDER --who pretrained tuned retrained \
        --task icons emoji
    peers/bin/python benchmarks/fusion.py FOLDER --who majority linear boosting lightgbm
    peers/bin/python benchmarks/fusion.py FOLDER --who widedeep --task icons bikes

Each model is trained on `train`, may choose on `val`, and is evaluated once on `test`, in a process
of its own. `cpu_seconds` is the time from raw files to predictions, imports excluded
(`import_seconds`); `peak_mb` the peak memory. One thread. With --columns, only those are used; with
--ablate, each modality (image, text, series, tabular) alone, where a dataset has several.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from itertools import product
from pathlib import Path

import fusion_ours
import fusion_peers
import fusion_simple
import numpy as np
import torch
from fusion_data import TASKS, Task
from fusion_rows import Rows, figures, read
from peers import allow_torchvision, machine, peak_mb, record

LIBRARIES = {
    "linear": ("scikit-learn", "sklearn.ensemble"),
    "boosting": ("scikit-learn", "sklearn.ensemble"),
    "lightgbm": ("lightgbm", "lightgbm"),
    "widedeep": ("pytorch-widedeep", "pytorch_widedeep"),
    "autogluon": ("autogluon.multimodal", "autogluon.multimodal"),
    "ludwig": ("ludwig", "ludwig.api"),
    "auto": ("sensorium", "sensorium.training"),
    "ours": ("sensorium", "sensorium.training"),
    "pretrained": ("sensorium", "sensorium.training"),
    "tuned": ("sensorium", "sensorium.training"),
    "retrained": ("sensorium", "sensorium.training"),
    "advised": ("sensorium", "sensorium.training"),
    "quick": ("sensorium", "sensorium.training"),
}
WHO: dict[str, Callable[[dict[str, Rows], int], np.ndarray]] = {
    "majority": fusion_simple.majority,
    "linear": fusion_simple.linear,
    "boosting": fusion_simple.boosting,
    "lightgbm": fusion_simple.lightgbm,
    "widedeep": fusion_peers.widedeep,
    "autogluon": fusion_peers.autogluon,
    "ludwig": fusion_peers.ludwig,
    "auto": fusion_ours.auto,
    "ours": fusion_ours.ours,
    "pretrained": fusion_ours.pretrained,
    "tuned": fusion_ours.tuned,
    "retrained": fusion_ours.retrained,
    "advised": fusion_ours.advised,
    "quick": fusion_ours.quick,
}


def run_once(folder: Path, name: str, who: str, columns: list[str], seed: int) -> None:
    """Record one result: metrics, time and memory."""
    torch.set_num_threads(1)
    allow_torchvision()
    task, start, library = TASKS[name], time.process_time(), {}
    if who == "ludwig":
        fusion_peers.stub_torchaudio()
    if who in LIBRARIES:
        library = {"version": version(LIBRARIES[who][0])}
        import_module(LIBRARIES[who][1])
    imported = time.process_time()
    splits = {
        split: rows.only(columns or rows.columns) for split, rows in read(folder, task).items()
    }
    metrics = figures(task, splits["test"], WHO[who](splits, seed))
    seconds = {"import_seconds": imported - start, "cpu_seconds": time.process_time() - imported}
    record(
        "fusion",
        task=name,
        who=who,
        **library,
        columns=columns or "all",
        seed=seed,
        **metrics,
        **seconds,
        peak_mb=peak_mb(),
        machine=machine(),
    )


def modalities(folder: Path, task: Task) -> list[list[str]]:
    """Return the columns of each modality, where a task has several."""
    metrics: dict[str, list[str]] = {}
    for name, kind in read(folder, task)["train"].kinds.items():
        metrics.setdefault(kind if kind in ("image", "text", "series") else "table", []).append(
            name
        )
    return list(metrics.values()) if len(metrics) > 1 else []


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--who", nargs="+", choices=WHO, required=True)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--columns", nargs="+", default=[])
    which.add_argument("--ablate", action="store_true")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for name in args.task:
        parts = modalities(args.folder, TASKS[name]) if args.ablate else [args.columns]
        for who, columns, seed in product(args.who, parts, args.seeds):
            run = context.Process(target=run_once, args=(args.folder, name, who, columns, seed))
            run.start()
            run.join()


if __name__ == "__main__":
    main()
