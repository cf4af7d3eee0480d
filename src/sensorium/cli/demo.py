"""The main job from end to end, on the emoji that come with Sensorium: train, judge, index, search, and a page."""

import base64
import html
import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.evaluation.evaluate import evaluate
from sensorium.evaluation.report import EvaluationReport
from sensorium.io import atomic
from sensorium.recipes import clip_small
from sensorium.search.index import Index
from sensorium.search.render import BASE_CSS, render_section, save_results
from sensorium.search.results import SearchResult
from sensorium.training.checkpoint import Model, load_checkpoint
from sensorium.training.loop import Interrupted, train

TEXT_QUERIES = (
    "red apple",
    "birthday cake",
    "fire engine",
    "train",
    "fish in the sea",
    "heart",
    "ghost",
)
IMAGE_AND_TEXT_QUERY = ("grinning face", "cat")  # a drawing of the one, with the other as words
SPLIT_DESCRIPTIONS = {
    "val": "held out to choose the best weights",
    "val_concept": "things held out to choose the best weights",
    "test_artist": "known things, by an artist never seen",
    "test_concept": "things never seen, by known artists",
    "test_both": "things never seen, by an artist never seen",
}
METRIC_DESCRIPTIONS = {
    "text to image recall@1": "words find the picture first",
    "text to image recall@10": "… in the first ten",
    "image to text recall@10": "pictures find the words in the first ten",
    "chance recall@10": "ten by chance",
    "pixel neighbour recall@10": "ten by likeness of pixels",
}
BASELINES = ("chance recall@10", "pixel neighbour recall@10")
EXTRA_CSS = """
table{border-collapse:collapse;width:100%;background:var(--card);border-radius:14px;overflow:hidden}
th,td{padding:10px 14px;text-align:right;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}th{font-weight:500;color:var(--pale);font-size:13px}td b{font-size:17px}
.curve{max-width:100%;height:auto;border-radius:14px;aspect-ratio:auto}
pre{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:16px;overflow:auto}
header p{font-size:17px;max-width:46em}small{color:var(--pale)}
"""


def demo(out: Path = Path("demo")) -> Path:
    """Do it, or what is left of it, in the folder `out`; the page that shows it.

    Raises SensoriumError where folder or disk do not allow it; Stopped on Ctrl-C, after which the same call goes on.
    """
    start = time.monotonic()
    data = Dataset.open("emoji", types={"image": "image:size=32:square=trim"})
    model = _run_stage(
        1, "training a model of pictures and words", lambda: _train_or_load(data, out / "run")
    )
    report = _run_stage(
        2, "judging it on what it has not seen", lambda: _evaluate_or_load(model, data)
    )
    index = _run_stage(
        3,
        "making pictures searchable",
        lambda: _build_or_open_index(model, data, out / "run" / "index"),
    )
    answers = _run_stage(4, "searching", lambda: _search_examples(index, data))
    for name in ("results.png", "results.html"):
        save_results(answers, out / name)
    atomic.write_file(out / "index.html", render_page(model, report, answers).encode())
    print(
        f"[5/5] done in {(time.monotonic() - start) / 60:.1f} minutes. To look at:\n  {out / 'index.html'}\n"
        f"  {out / 'results.png'}\nTo do next:",
        *_next_commands(out / "run"),
        sep="\n  ",
    )
    return out / "index.html"


def _run_stage(number: int, description: str, fn: Callable[[], Any]) -> Any:
    print(f"[{number}/5] {description}", flush=True)
    return fn()


def _train_or_load(dataset: Dataset, run: Path) -> Model:
    """The finished run, or one begun or gone on with now. Its model card is what a run writes last."""
    if (run / "README.md").exists():
        print(f"      is done: {run}")
        return load_checkpoint(run)
    try:
        return train(
            clip_small,
            dataset,
            out=run,
            resume=(run / "config.json").exists(),
            epochs=20,
            eval_interval=5,
        )
    except Interrupted as stopped:
        raise Interrupted(
            "stopped, and all is saved: the same command goes on from here", stopped.exit_code
        ) from None


def _evaluate_or_load(model: Model, dataset: Dataset) -> EvaluationReport:
    path = model.folder / "evaluation.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["about"].get("fingerprint") == model.fingerprint:
            return EvaluationReport(found["figures"], found["about"])
    report = evaluate(model, dataset)
    report.save(model.folder)
    return report


def _build_or_open_index(model: Model, dataset: Dataset, path: Path) -> Index:
    try:
        index = Index.open(path, model=model)
        index.verify()
    except SensoriumError:  # there is none yet, it was never finished, or the model is another
        index = Index.build(model, dataset, path)
    print(f"      {len(index):,} drawings")
    return index


def _search_examples(index: Index, dataset: Dataset) -> list[SearchResult]:
    """By words, by a picture, by both."""
    strange = dataset.raw("image", dataset.splits["test_concept"][:1])[0]
    known = dataset.raw("image", [_find_row(dataset, IMAGE_AND_TEXT_QUERY[0])])[0]
    found = [index.search(text=words, k=6) for words in TEXT_QUERIES]
    found += [
        index.search(image=strange, k=6),
        index.search(image=known, text=IMAGE_AND_TEXT_QUERY[1], k=6),
    ]
    print(
        "\n".join(
            f"      {a.query}: {', '.join(hit.info.captions[0] for hit in a.hits[:3])}"
            for a in found
        )
    )
    return found


def _find_row(dataset: Dataset, name: str) -> int:
    """The first training row of that name."""
    rows = dataset.splits["train"]
    return next(
        int(row)
        for row, captions in zip(rows, dataset.raw("caption", rows), strict=True)
        if name in captions
    )


def render_page(model: Model, report: EvaluationReport, results: list[SearchResult]) -> str:
    """One page of HTML that needs nothing beside it."""
    curve = base64.b64encode((model.folder / "curve.png").read_bytes()).decode()
    size = sum(p.numel() for p in model.module.parameters())
    commands = html.escape("\n".join(_next_commands(model.folder)))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sensorium</title>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width,initial-scale=1"><style>{BASE_CSS}{EXTRA_CSS}</style></head><body><main>
<header><h1>Sensorium</h1><p>A model of {size / 1e6:.1f} million parameters has looked at emoji by several artists and
read their names. It was trained on this machine, in minutes. Here it searches all of them, also the things and the
artists it was never shown; how well it does on those alone stands below.</p></header>
{"".join(render_section(answer) for answer in results)}
<section><h2>How good is it?</h2>{_metrics_table(report)}<p><small>Shares of queries with a right answer. Pictures and words
compete within one split; what chance and the likeness of pixels would find stands beside it.</small></p></section>
<section><h2>How it learned</h2><img class="curve" alt="loss and metric by step" src="data:image/png;base64,{curve}">
</section><section><h2>What next?</h2><pre>{commands}</pre></section></main></body></html>
"""


def _metrics_table(report: EvaluationReport) -> str:
    head = "".join(f"<th>{html.escape(what)}</th>" for what in METRIC_DESCRIPTIONS.values())
    rows = "".join(
        f"<tr><td>{html.escape(SPLIT_DESCRIPTIONS.get(split, split))}<br><small>{figures['rows']:.0f} pictures</small></td>"
        + "".join(
            f"<td>{_format_share(figures.get(name), name)}</td>" for name in METRIC_DESCRIPTIONS
        )
        + "</tr>"
        for split, figures in report.metrics.items()
    )
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def _format_share(value: float | None, name: str) -> str:
    if value is None:
        return "<small>cannot answer</small>"
    return f"{value:.1%}" if name in BASELINES else f"<b>{value:.1%}</b>"


def _next_commands(run: Path) -> list[str]:
    folder = shlex.quote(str(run))
    return [
        f'sensorium search {folder} "a happy cat"',
        f"sensorium search {folder} --image any-picture.png --out found.html",
        "sensorium data your-pictures/",
        "sensorium train clip_small your-pictures/ --out runs/yours",
    ]
