"""docs/predict.md out of results/fusion.jsonl: python benchmarks/fusion_page.py"""
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from fusion_data import TASKS
from peers import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "predict.md"
WHO = ("advised", "quick", "ours", "pretrained", "tuned", "retrained", "majority", "linear", "boosting", "lightgbm",
       "widedeep", "autogluon", "ludwig")
FIGURES = ("auroc", "r2", "accuracy")       # the first that a line has is the one that counts
Lines = dict[tuple[str, str], dict[int, dict]]
HEAD = """# Predicting from any columns, measured

Written by `benchmarks/fusion_page.py` from `benchmarks/results/fusion.jsonl`; `benchmarks/fusion_data.py` says what the
sets are and how they are split, `benchmarks/fusion.py` how each was run. Test rows, which nothing was chosen by.

- **advised**: one rule for every table: `sensorium train fusion` with `--head boosting` and, where there are texts,
  read by a MiniLM (the one that AutoGluon has) all of which learns on, `--encoders COLUMN=minilm+all`. **quick**: no
  such reader, `--head boosting --epochs 8`. **ours**: as it comes. All are told which columns there are and which is
  the target; the mean over seeds, the least and the most.
- **pretrained**, **tuned**, **retrained**: as it comes, but words read by that MiniLM, frozen, with corrections of low
  rank (`+lora`), and learning on as a whole (`+all`).
- **linear**, **boosting** (scikit-learn), **lightgbm**: on tf-idf of words and letters, principal directions of pixels,
  statistics of series; one seed, as all that follow. **widedeep**: pytorch-widedeep. **autogluon**:
  AutoGluon-Multimodal, with a trained text model, until it stops by itself.

"""


def read() -> Lines:
    """(set, who) -> seed -> the last line measured of it with all columns."""
    found: Lines = {}
    for text in (RESULTS / "fusion.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line["columns"] == "all":
            found.setdefault((line["task"], line["who"]), {})[line["seed"]] = line
    return found


def table(lines: Lines, cell: str) -> Iterator[str]:
    """cell: what is shown of each, "figure" or a key of the lines."""
    yield f"| set | {'figure | ' if cell == 'figure' else ''}{' | '.join(WHO)} |"
    yield "|---" * (len(WHO) + 1 + (cell == "figure")) + "|"
    for name in TASKS:
        several = {who: [*lines.get((name, who), {}).values()] for who in WHO}
        key = next(k for k in FIGURES if k in several["majority"][0])
        best = max(mean(line[key] for line in of) for of in several.values() if of)
        shown = key if cell == "figure" else cell
        cells = [_shown([line[shown] for line in of], cell, best) for of in several.values()]
        yield f"| {name} | {f'{key} | ' if cell == 'figure' else ''}{' | '.join(cells)} |"


def _shown(values: list[float], cell: str, best: float) -> str:
    if not values:
        return ""
    if cell != "figure":
        return f"{mean(values):,.0f}" if mean(values) >= 10 else f"{mean(values):.1f}"
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"**{mean(values):.3f}**{spread}" if mean(values) == best else f"{mean(values):.3f}{spread}"


def alone() -> Iterator[str]:
    """Each sense alone, where that was measured; the last line of each."""
    found: dict[tuple[str, str, int], str] = {}
    for text in (RESULTS / "fusion.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line["columns"] != "all" and line["who"] == "ours":
            key = next(k for k in FIGURES if k in line)
            few = line["columns"] if len(line["columns"]) < 4 else [f"{len(line['columns'])} columns of the table"]
            found[line["task"], ", ".join(few), line["seed"]] = f"{key} {line[key]:.3f}"
    yield from (f"| {task} | {few} | {told} | {seed} |" for (task, few, seed), told in found.items())


def noise() -> Iterator[str]:
    """The last line of each set in results/fusion_noise.jsonl."""
    path = RESULTS / "fusion_noise.jsonl"
    last = {line["task"]: line for line in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    for name, line in last.items():
        yield (f"| {name} | {line['against']} | {line['figure']} {line['difference']:+.3f} | {line['low']:+.3f} to "
               f"{line['high']:+.3f} | {line['rows']:,} |")


def speed() -> Iterator[str]:
    """Ours beside each peer in results/fusion_speed.jsonl: seconds, what each had learned by then, the ratio."""
    path = RESULTS / "fusion_speed.jsonl"
    runs: dict[str, list[dict]] = {}
    ratios: dict[tuple[str, str], float] = {}
    for line in map(json.loads, path.read_text().splitlines() if path.exists() else []):
        if "task" in line:
            runs.setdefault(line["name"], []).append(line)
        else:
            ratios |= {(line["name"], key.removeprefix("times_")): value for key, value in line.items()
                       if key.startswith("times_") and key != f"times_{line['name']}"}
    for (own, peer), ratio in ratios.items():
        cells = [f"{mean(one['seconds'] for one in runs[who]):.1f} | {runs[who][-1]['accuracy']:.3f}"
                 for who in (own, peer)]
        yield f"| {own} | {cells[0]} | {peer} {runs[peer][-1]['version']} | {cells[1]} | **{ratio:.1f}** |"


def main() -> None:
    lines, parts = read(), [HEAD.rstrip()]
    parts += ["", "\n".join(table(lines, "figure"))]
    if found := [*noise()]:
        parts += ["", "What **advised** has more than the best baseline on the same test rows, and where 95 % of such",
                  "differences lie if those rows are drawn again (`benchmarks/fusion_noise.py`, seed 0):", "",
                  "| set | baseline | difference | 95 % | test rows |", "|---|---|---|---|---|", *found]
    for what, cell in (("CPU seconds of the whole process on one thread, imports aside (ours 0.4 beyond torch, "
                        "widedeep's and AutoGluon's 9 to 12):", "cpu_seconds"),
                       ("Most memory held, in MB:", "peak_mb")):
        parts += ["", what, "", "\n".join(table(lines, cell))]
    if found := [*speed()]:
        parts += ["", "One epoch over icons (2,078 rows to learn from: picture, text, four columns of the table), CPU",
                  "seconds from raw files to predictions and the accuracy on `test` by then, in alternating runs",
                  "(`benchmarks/fusion_speed.py`):", "",
                  "| ours | seconds | accuracy | beside | seconds | accuracy | times as fast |",
                  "|---" * 7 + "|", *found]
    if rows := [*alone()]:
        parts += ["", "Ours with one sense alone:", "", "| set | columns | test | seed |", "|---|---|---|---|", *rows]
    PAGE.write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
