"""Measure the loss with values missing: masking, compared with imputation and boosted trees.

    export OMP_NUM_THREADS=1 PYTHONPATH=src
    python benchmarks/fusion_missing.py FOLDER --seeds 0 1 2
    python benchmarks/fusion_missing.py FOLDER --seeds

Rows and metrics are those of `fusion.py`. Each model is trained on `train` and selected on `val`,
both complete; then 10, 25, 50 and 75 % of the values of `test` are hidden at random, the same for
every model and nested; metrics are means over three draws. Results go to
results/fusion_missing.jsonl and from there, also with `--seeds` alone, to
docs/benchmarks/prediction.md. One thread, a process each.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import fusion_page
import numpy as np
import torch
from fusion_data import TASKS
from fusion_ours import open_table, to_array, train_model
from fusion_rows import Rows, calendar, figures, read
from peers import machine, record

SHARES, DRAWS = (0.0, 0.1, 0.25, 0.5, 0.75), 3
NAMES = ("icons", "solar", "diamonds", "bikes", "cancer", "caravan", "flights", "emoji")
TABLES = ("diamonds", "bikes", "cancer", "caravan")
Splits = dict[str, Rows]
Answers = Callable[
    [np.ndarray], np.ndarray
]  # hidden values of the test rows, bool [N C] -> predictions


def network(splits: Splits, seed: int, folder: Path, fill: str) -> Answers:
    """Return `fusion` with hidden values masked, or imputed (trained on whole rows)."""
    from sensorium.evaluation.missing_values import ValueMasking
    from sensorium.evaluation.validate_prediction import predict_rows
    from sensorium.inference.predict import decode_prediction

    mode = {
        "precision": "fp32",
        "head": "network",
        **({"modality_dropout": 0.0} if fill else {}),
    }  # so "zeros" and "filled" train the same way
    model, test = train_model(splits, seed, folder, **mode), splits["test"]
    data, target = open_table(test), TASKS[test.folder.name].target
    prepared, rows = (
        data.prepare(model.schema, model.recipe.data.columns),
        np.sort(data.splits["test"]),
    )
    assert len(rows) == len(test), "rows were left out: the hidden values would differ"

    def answer(cells: np.ndarray) -> np.ndarray:
        gone = torch.zeros(len(prepared), len(test.columns), dtype=torch.bool)
        gone[rows] = torch.from_numpy(cells)
        hiding = ValueMasking({name: model.schema[name] for name in test.columns}, gone)
        change = {
            "": hiding.mask,
            "zeros": partial(hiding.impute, imputer=zero),
            "filled": hiding.impute,
        }[fill]
        numbers, _ = predict_rows(model.module, prepared, rows, [target], change)
        return to_array(
            decode_prediction(
                model.schema[target], numbers[target], model.module.get_calibration(target)
            ),
            test,
        )

    return answer


def zero(of: Any, values: torch.Tensor) -> torch.Tensor:
    """Return zeros of the type of a batch."""
    from sensorium.evaluation.missing_values import imputation_value

    match of.kind:
        case "numeric" | "datetime":
            return of.collate([np.array(0.0)])[0]
        case "image":
            return of.collate([np.zeros((of.stored_size, of.stored_size, 3), np.uint8)])[0]
        case "series":
            return of.collate([of.load(np.zeros((values.shape[1], len(of.channels))))])[0]
        case "text":
            return imputation_value(of, values)
    return torch.zeros_like(values[0])


def trees(splits: Splits, seed: int, folder: Path, hide: str) -> Answers:
    """Return scikit-learn's boosted trees.

    With `hide` each row is used twice, once with some of its values hidden.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    train, test, rng = splits["train"], splits["test"], np.random.default_rng(seed)
    kind = HistGradientBoostingClassifier if train.classes else HistGradientBoostingRegressor
    known = {
        name: {value: i for i, value in enumerate(sorted({*values} - {""}))}
        for name, values in train.of("category").items()
    }
    named = [
        train.kinds[name] == "category"
        for name in train.columns
        for _ in range(4 if train.kinds[name] == "datetime" else 1)
    ]
    model = kind(
        learning_rate=0.05,
        max_iter=1000,
        early_stopping=True,
        n_iter_no_change=20,
        random_state=seed,
        categorical_features=named,
    )
    x, y = {}, {}
    for split in ("train", "val"):
        rows = splits[split]
        x[split], y[split] = (
            coded(rows, known, np.zeros((len(rows), len(rows.columns)), bool)),
            rows.target,
        )
        if hide:
            some = rng.random((len(rows), len(rows.columns))) < rng.random((len(rows), 1))
            x[split], y[split] = (
                np.concatenate([x[split], coded(rows, known, some)]),
                np.tile(y[split], 2),
            )
    model.fit(x["train"], y["train"], X_val=x["val"], y_val=y["val"])
    ask = model.predict_proba if train.classes else model.predict  # type: ignore[union-attr]
    return lambda cells: ask(coded(test, known, cells))


def coded(rows: Rows, known: dict[str, dict[str, int]], gone: np.ndarray) -> np.ndarray:
    """Return float [N F], NaN where missing: numbers, class indices, four numbers a date."""
    out = []
    for i, (name, values) in enumerate(rows.columns.items()):
        plain = [known[name].get(v, np.nan) for v in values] if name in known else values
        x = np.array(
            [calendar(v) for v in values] if rows.kinds[name] == "datetime" else plain, float
        )
        x = x.reshape(len(rows), -1)
        x[gone[:, i]] = np.nan
        out.append(x)
    return np.hstack(out)


WHO: dict[str, tuple[Callable[[Splits, int, Path, str], Answers], str, str]] = {
    "ours": (network, "", "sensorium"),
    "zeros": (network, "zeros", "sensorium"),
    "filled": (network, "filled", "sensorium"),
    "trees": (trees, "", "scikit-learn"),
    "trees, hidden": (trees, "hidden", "scikit-learn"),
}


def run_once(folder: Path, name: str, who: str, seed: int) -> None:
    """Record the task's main metric with more and more values hidden."""
    torch.set_num_threads(1)
    make, mode, library = WHO[who]
    splits, start = read(folder, TASKS[name]), time.process_time()
    test = splits["test"]
    drawn = np.random.default_rng(0).random((DRAWS, len(test), len(test.columns)))
    with tempfile.TemporaryDirectory() as place:
        answer = make(splits, seed, Path(place), mode)
        points = {
            share: [
                figures(TASKS[name], test, answer(cells < share))
                for cells in drawn[: DRAWS if share else 1]
            ]
            for share in SHARES
        }
    figure = next(iter(points[0.0][0]))
    metrics = {
        f"hidden_{share:.0%}": mean(one[figure] for one in several)
        for share, several in points.items()
    }
    record(
        "fusion_missing",
        task=name,
        who=who,
        version=version(library),
        seed=seed,
        figure=figure,
        **metrics,
        cpu_seconds=time.process_time() - start,
        machine=machine(),
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--who", nargs="+", choices=WHO, default=list(WHO))
    parser.add_argument("--task", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for name, who, seed in product(args.task, args.who, args.seeds):
        if WHO[who][0] is network or name in TABLES:
            run = context.Process(target=run_once, args=(args.folder, name, who, seed))
            run.start()
            run.join()
    fusion_page.main()


if __name__ == "__main__":
    main()
