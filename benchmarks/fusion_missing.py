"""How much is lost where values are missing: ours, which masks them, beside filling them in and boosted trees.

    export OMP_NUM_THREADS=1 PYTHONPATH=src
    python benchmarks/fusion_missing.py FOLDER --seeds 0 1 2
    python benchmarks/fusion_missing.py FOLDER --seeds

Rows and figures are those of `fusion.py`. Each learns from `train` as it is and chooses on `val` as it is; then 10, 25,
50 and 75 % of the cells of `test` are hidden at random, the same ones from everyone and more of them each time; figures
are means over three such draws. Lines go to results/fusion_missing.jsonl; docs/missing.md is written from them, or with
`--seeds` alone from those that are there. One thread, a process of its own each.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from fusion_data import TASKS
from fusion_ours import opened, told, trained
from fusion_rows import Rows, calendar, figures, read
from peers import RESULTS, machine, record

SHARES, DRAWS = (0.0, 0.1, 0.25, 0.5, 0.75), 3
NAMES = ("icons", "solar", "diamonds", "bikes", "cancer", "caravan", "flights", "emoji")
TABLES = ("diamonds", "bikes", "cancer", "caravan")
PAGE = Path(__file__).parents[1] / "docs" / "missing.md"
HEAD = """# Where values are missing

Written by `benchmarks/fusion_missing.py` from `benchmarks/results/fusion_missing.jsonl`.

Every cell of the test rows is hidden with a chance of one half (of a row with two columns, a quarter have nothing left
and get the prior), the same cells from everyone; means over three draws, and over {seeds} of training. Whole → half.

- **ours**: the recipe as it comes. A hidden value is masked.
- **zeros**: the same network, taught with no value hidden (`drop=0`), which knows of no missing values: a hidden number
  is 0, a date 1970, a class the first one, a text empty, a picture black, a series 0 throughout.
- **filled**: the same, but filled in as well as can be without a mask: a hidden number or date becomes the mean, a
  class the commonest, a text empty, a picture its mean colour, a series its mean.
- **trees**: scikit-learn's boosted trees on the same columns. A hidden value is NaN, which they take.
- **trees, hidden**: the same trees, taught on each row twice, once with a random share of its values hidden.
- **of zeros**, **of filled**: of what those lose, the part that ours loses all the same; over several seeds the least
  and the most.

"""
Splits = dict[str, Rows]
Answers = Callable[
    [np.ndarray], np.ndarray
]  # hidden cells of the test rows, bool [N C] → what is said of the rows


def network(splits: Splits, seed: int, folder: Path, fill: str) -> Answers:
    """Ours, with hidden cells masked; or without value dropout, with hidden cells filled in, "zeros" or "filled"."""
    from sensorium.evaluation.missing_values import ValueMasking
    from sensorium.evaluation.validate_prediction import predict_rows
    from sensorium.inference.predict import decode_prediction as said

    how = {
        "precision": "fp32",
        **({"modality_dropout": 0.0} if fill else {}),
    }  # so "zeros" and "filled" learn the same
    model, test = trained(splits, seed, folder, **how), splits["test"]
    data, target = opened(test), TASKS[test.folder.name].target
    prepared, rows = (
        data.prepare(model.schema, model.recipe.data.columns),
        np.sort(data.splits["test"]),
    )
    assert len(rows) == len(test), "rows were left out: the hidden cells would be others"

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
        return told(
            said(model.schema[target], numbers[target], model.module.calibration(target)), test
        )

    return answer


def zero(of: Any, values: torch.Tensor) -> torch.Tensor:
    """A value like those of a batch, of zeros as they stand in a file."""
    from sensorium.evaluation.missing_values import imputation_value

    match of.kind:
        case "numeric" | "datetime":
            return of.collate([np.array(0.0)])[0]
        case "image":
            return of.collate([np.zeros((of.side, of.side, 3), np.uint8)])[0]
        case "series":
            return of.collate([of.load(np.zeros((values.shape[1], len(of.channels))))])[0]
        case "text":
            return imputation_value(of, values)
    return torch.zeros_like(values[0])


def trees(splits: Splits, seed: int, folder: Path, hide: str) -> Answers:
    """scikit-learn's boosted trees; with `hide` each row is learned twice, once with some of its cells hidden."""
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
    """float [N F], NaN where hidden or missing: numbers, the number of a class, four for a date."""
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


def measured(folder: Path, name: str, who: str, seed: int) -> None:
    """One line: the task's main figure with more and more of the cells hidden."""
    torch.set_num_threads(1)
    make, how, library = WHO[who]
    splits, start = read(folder, TASKS[name]), time.process_time()
    test = splits["test"]
    drawn = np.random.default_rng(0).random((DRAWS, len(test), len(test.columns)))
    with tempfile.TemporaryDirectory() as place:
        answer = make(splits, seed, Path(place), how)
        points = {
            share: [
                figures(TASKS[name], test, answer(cells < share))
                for cells in drawn[: DRAWS if share else 1]
            ]
            for share in SHARES
        }
    figure = next(iter(points[0.0][0]))
    found = {
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
        **found,
        cpu_seconds=time.process_time() - start,
        machine=machine(),
    )


def page() -> str:
    """docs/missing.md."""
    lines: dict[tuple[str, str], dict[int, dict]] = {}
    for text in (RESULTS / "fusion_missing.jsonl").read_text().splitlines():
        line = json.loads(text)
        lines.setdefault((line["task"], line["who"]), {})[line["seed"]] = line
    seeds = sorted({len(by_seed) for by_seed in lines.values()})
    told = f"{' or '.join(map(str, seeds))} {'seed' if seeds == [1] else 'seeds'}"
    return HEAD.format(seeds=told) + "\n".join(_table(lines)) + "\n"


def _table(lines: dict[tuple[str, str], dict[int, dict]]) -> Iterator[str]:
    yield "| set | figure | " + " | ".join(WHO) + " | of zeros | of filled |"
    yield "|---" * (4 + len(WHO)) + "|"
    for name in NAMES:
        if not all((name, who) in lines for who in ("ours", "filled")):
            continue
        each = [[*lines.get((name, who), {}).values()] for who in WHO]
        cells = [_arrow(several) if several else "" for several in each]
        lost = " | ".join(_lost(lines, name, other) for other in ("zeros", "filled"))
        yield f"| {name} | {each[0][0]['figure']} | {' | '.join(cells)} | {lost} |"


def _arrow(of: list[dict]) -> str:
    return " → ".join(
        f"{mean(line[f'hidden_{share}'] for line in of):.3f}" for share in ("0%", "50%")
    )


def _lost(lines: dict[tuple[str, str], dict[int, dict]], name: str, other: str) -> str:
    """The ratio of what is lost on average, and its range over the seeds that both were measured with."""
    seeds = sorted({*lines[name, "ours"]} & {*lines.get((name, other), {})})
    if not seeds:
        return ""
    ours, theirs = (
        [lines[name, who][s]["hidden_0%"] - lines[name, who][s]["hidden_50%"] for s in seeds]
        for who in ("ours", other)
    )
    if min(theirs) <= 0:
        return "that loses nothing"
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"**{mean(ours) / mean(theirs):.2f}**" + (
        f" ({min(each):.2f} to {max(each):.2f})" if seeds[1:] else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--who", nargs="+", choices=WHO, default=list(WHO))
    parser.add_argument("--task", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    given = parser.parse_args()
    apart = multiprocessing.get_context("spawn")
    for name, who, seed in product(given.task, given.who, given.seeds):
        if WHO[who][0] is network or name in TABLES:
            run = apart.Process(target=measured, args=(given.folder, name, who, seed))
            run.start()
            run.join()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
