"""Measure memory and time of `data`, `train fusion` (one epoch) and `predict` on a million rows.

    export OMP_NUM_THREADS=1 PYTHONPATH=src
    python benchmarks/million.py FOLDER
    python benchmarks/million.py FOLDER --rows 100000 --step data predict

The table comes from a fixed seed: six numbers (two with gaps), three categories (one of 1,000
names), a short text, and a price that depends on them. Each step is a command in a process of its
own: `peak_mb` is its peak memory, `cpu_seconds` its CPU time, Python's start and imports included.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from peers import machine, record

PIECE = 50_000
WORDS = [
    "red",
    "green",
    "blue",
    "old",
    "new",
    "small",
    "large",
    "round",
    "flat",
    "soft",
    "plain",
    "bright",
    "chair",
    "table",
    "lamp",
    "shelf",
    "box",
    "cup",
    "plate",
    "bowl",
    "coat",
    "shoe",
    "hat",
    "bag",
    "ring",
    "clock",
]


def lines(rows: int, seed: int = 0) -> Iterator[str]:
    """Yield the table's lines; the same for the same seed."""
    yield "width,height,depth,weight,age,stock,colour,shop,maker,title,price\n"
    rng = np.random.default_rng(seed)
    for start in range(0, rows, PIECE):
        n = min(PIECE, rows - start)
        x, gap = rng.normal(size=(6, n)), rng.random((2, n)) < 0.1
        colour, shop, maker = (rng.integers(0, k, n) for k in (8, 40, 1000))
        words = rng.integers(0, len(WORDS), (n, 4))
        known = 0.3 * x[0] + 0.2 * x[1] * x[2] + 0.1 * (shop % 7) + 0.02 * words[:, 0]
        price = np.exp(known + 0.2 * rng.normal(size=n))
        for i in range(n):
            numbers = [f"{value:.4f}" for value in x[:, i]]
            numbers[3:5] = ["" if g else v for g, v in zip(gap[:, i], numbers[3:5], strict=True)]
            names = f"c{colour[i]},shop {shop[i]},maker {maker[i]}"
            title = " ".join(WORDS[w] for w in words[i])
            yield f"{','.join(numbers)},{names},{title} {start + i},{price[i]:.4f}\n"


def steps(folder: Path, table: Path) -> dict[str, list[str]]:
    """Return the commands by name."""
    run = folder / f"run-{table.stem}"
    return {
        "data": ["data", str(table)],
        "train": [
            "train",
            "fusion",
            str(table),
            "--target",
            "price",
            "--epochs",
            "1",
            "--out",
            str(run),
        ],
        "predict": [
            "predict",
            str(run),
            str(table),
            "-o",
            str(folder / f"predicted-{table.stem}.csv"),
        ],
    }


def run_command(command: list[str], log: Path) -> dict[str, float]:
    """Return what a command took. Raises CalledProcessError where it fails."""
    start = time.perf_counter()
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "sensorium", *command], stdout=file, stderr=file
        )
        _, status, used = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise subprocess.CalledProcessError(code, command, log.read_text()[-2000:])
    return {
        "peak_mb": used.ru_maxrss / 1024,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "wall_seconds": time.perf_counter() - start,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--step",
        nargs="+",
        choices=["data", "train", "predict"],
        default=["data", "train", "predict"],
    )
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (table := args.folder / f"rows-{args.rows}.csv").exists():
        with open(table, "w") as file:
            file.writelines(lines(args.rows))
    for name in args.step:
        usage = run_command(steps(args.folder, table)[name], args.folder / f"{name}.log")
        record(
            "million",
            step=name,
            rows=args.rows,
            table_mb=table.stat().st_size / 2**20,
            **usage,
            machine=machine(),
        )


if __name__ == "__main__":
    main()
