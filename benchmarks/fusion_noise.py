"""Bootstrap intervals of the difference to a baseline on the same test rows.

    export OMP_NUM_THREADS=1 PYTHONPATH=src
    python benchmarks/fusion_noise.py FOLDER bikes=boosting sizes=linear
    TEXT_MODEL=weights/minilm python benchmarks/fusion_noise.py FOLDER bikes=boosting --who advised

`auto` of `fusion.py`, seed 0, or the model named by --who, and the baseline named. Test rows are
resampled with replacement 2,000 times; `low` and `high` hold 95 % of the differences. Results go to
results/fusion_noise.jsonl and from there to docs/benchmarks/prediction.md.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import fusion_simple
import numpy as np
import torch
from fusion_data import TASKS
from fusion_ours import advised, auto
from fusion_page import METRICS
from fusion_rows import Rows, figures, read
from peers import machine, record

DRAWS = 2000


def differences(
    name: str, test: Rows, ours: np.ndarray, theirs: np.ndarray
) -> tuple[str, np.ndarray]:
    """Return the metric's name, and ours minus theirs on resampled rows.

    The first of the 1 + DRAWS differences is on all rows as they are.
    """
    rng, n, values = np.random.default_rng(0), len(test.target), []
    for draw in range(1 + DRAWS):
        rows = rng.integers(0, n, n) if draw else np.arange(n)
        resampled = replace(test, target=test.target[rows])
        a, b = (
            figures(TASKS[name], resampled, predictions[rows]) for predictions in (ours, theirs)
        )
        key = next(figure for figure in METRICS if figure in a)
        values.append(a[key] - b[key])
    return key, np.array(values)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("pairs", nargs="+", help="SET=BASELINE, a baseline of fusion_simple.py")
    parser.add_argument("--who", choices=("auto", "advised"), default="auto")
    args = parser.parse_args()
    model = {"auto": auto, "advised": advised}[args.who]
    torch.set_num_threads(1)
    for name, baseline in (pair.split("=") for pair in args.pairs):
        splits = read(args.folder, TASKS[name])
        predictions = model(splits, 0), getattr(fusion_simple, baseline)(splits, 0)
        key, values = differences(name, splits["test"], *predictions)
        low, high = np.quantile(values[1:], [0.025, 0.975])
        record(
            "fusion_noise",
            task=name,
            who=args.who,
            against=baseline,
            figure=key,
            difference=values[0],
            low=low,
            high=high,
            rows=len(splits["test"].target),
            machine=machine(),
        )


if __name__ == "__main__":
    main()
