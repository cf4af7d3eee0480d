"""Whether a difference to a baseline is more than the luck of the test rows: both asked about the same ones.

    export OMP_NUM_THREADS=1 PYTHONPATH=src
    TEXT_MODEL=weights/minilm python benchmarks/fusion_noise.py FOLDER bikes=boosting solar=boosting cancer=linear

`advised` of `fusion.py`, seed 0, and the baseline named. Test rows are drawn again with replacement 2,000 times; `low`
and `high` hold 95 % of the differences. Lines go to results/fusion_noise.jsonl, and from there into docs/predict.md.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import fusion_simple
import numpy as np
import torch
from fusion_data import TASKS
from fusion_ours import advised
from fusion_page import FIGURES
from fusion_rows import Rows, figures, read
from peers import machine, record

DRAWS = 2000


def differences(
    name: str, test: Rows, ours: np.ndarray, theirs: np.ndarray
) -> tuple[str, np.ndarray]:
    """(which figure, ours less theirs on rows drawn again: DRAWS times, the first time all as they are)."""
    rng, n, found = np.random.default_rng(0), len(test.target), []
    for draw in range(1 + DRAWS):
        rows = rng.integers(0, n, n) if draw else np.arange(n)
        drawn = replace(test, target=test.target[rows])
        a, b = (figures(TASKS[name], drawn, said[rows]) for said in (ours, theirs))
        key = next(figure for figure in FIGURES if figure in a)
        found.append(a[key] - b[key])
    return key, np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("pairs", nargs="+", help="SET=BASELINE, a baseline of fusion_simple.py")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, baseline in (pair.split("=") for pair in given.pairs):
        splits = read(given.folder, TASKS[name])
        said = advised(splits, 0), getattr(fusion_simple, baseline)(splits, 0)
        key, found = differences(name, splits["test"], *said)
        low, high = np.quantile(found[1:], [0.025, 0.975])
        record(
            "fusion_noise",
            task=name,
            against=baseline,
            figure=key,
            difference=found[0],
            low=low,
            high=high,
            rows=len(splits["test"].target),
            machine=machine(),
        )


if __name__ == "__main__":
    main()
