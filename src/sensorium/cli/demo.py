"""Demo of the whole workflow on the bundled emoji: train, evaluate, index, search."""

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
from sensorium.io import atomic, web_page
from sensorium.io.web_page import escape_text, image_tag, render_table
from sensorium.recipes import clip
from sensorium.search.index import Index
from sensorium.search.render import RESULTS_CSS, SCORE_LEGEND, render_section, save_results
from sensorium.search.results import SearchResult
from sensorium.training.checkpoint import Model, load_checkpoint
from sensorium.training.interruption import Interrupted
from sensorium.training.loop import train

TEXT_QUERIES = (
    "red apple",
    "birthday cake",
    "fire engine",
    "train",
    "fish in the sea",
    "heart",
    "ghost",
)
IMAGE_AND_TEXT_QUERY = ("grinning face", "cat")  # an image of the first, with the second as text
SPLIT_DESCRIPTIONS = {
    "val": "validation: selects the best weights",
    "val_unseen_concept": "validation: unseen concepts",
    "test_unseen_artist": "known concepts, by an unseen artist",
    "test_unseen_concept": "unseen concepts, by known artists",
    "test_unseen_both": "unseen concepts, by an unseen artist",
}
METRIC_DESCRIPTIONS = {
    "text to image recall@1": "text finds its image first",
    "text to image recall@10": "… in the first ten",
    "image to text recall@10": "image finds its text in the first ten",
    "random recall@10": "chance, first ten",
    "pixel neighbour recall@10": "nearest pixels, first ten",
}
DEMO_CSS = """
.curve{max-width:640px}
header{margin-bottom:28px}header p{font-size:17px;max-width:46em}
"""
DEMO_BODY = """<header><h1>Sensorium</h1><p>A model of {size:.1f} million parameters was trained on
emoji by several artists and their names, on this machine, in minutes. Here all of them are
searched, including concepts and artists that were not in its training data: by the words of their
names, and by what the model sees in the images. The table below evaluates the model alone, on
those.</p></header><p class="legend">{legend}</p>
{results}
<section><h2>How good is it?</h2>{table}<p><small>Fraction of queries with a correct result. Images
and texts compete within one split; chance and the nearest image by pixels are baselines.</small>
</p></section>
<section><h2>Training</h2><figure class="curve">{curve}</figure></section>
<section><h2>What next?</h2><pre>{commands}</pre></section>
"""


def demo(out: Path = Path("demo")) -> Path:
    """Run the demo, or resume it.

    Args:
        out: output folder. What is already finished there is not repeated.

    Returns:
        The path of the page of results.

    Raises:
        SensoriumError: if the folder cannot be written.
        Interrupted: on Ctrl-C; the same call resumes.
    """
    start = time.monotonic()
    dataset = Dataset.open("emoji", types={"image": "image:size=32:resize_mode=trim"})
    model = _run_stage(1, "training", lambda: _train_or_load(dataset, out / "run"))
    report = _run_stage(2, "evaluating", lambda: _evaluate_or_load(model, dataset))
    folder = out / "run" / "index"
    index = _run_stage(3, "indexing", lambda: _build_or_open_index(model, dataset, folder))
    results = _run_stage(4, "searching", lambda: _search_examples(index, dataset))
    for name in ("results.png", "results.html"):
        save_results(results, out / name)
    page = out / "index.html"
    atomic.write_file(page, render_page(model, report, results).encode())
    minutes = (time.monotonic() - start) / 60
    lines = [f"[5/5] done in {minutes:.1f} minutes. Open:", str(page), str(out / "results.png")]
    print("\n  ".join(lines))
    print("\n  ".join(["What to do next:", *_next_commands(out / "run")]))
    return page


def _run_stage(number: int, description: str, run: Callable[[], Any]) -> Any:
    print(f"[{number}/5] {description}", flush=True)
    return run()


def _train_or_load(dataset: Dataset, folder: Path) -> Model:
    """Return the finished run, trained or resumed now. A run writes its model card last."""
    if (folder / "README.md").exists():
        print(f"      already trained: {folder}")
        return load_checkpoint(folder)
    resume = (folder / "config.json").exists()
    try:
        return train(clip, dataset, out=folder, resume=resume, epochs=20, eval_interval=5)
    except Interrupted as e:
        raise Interrupted(
            "Interrupted; progress is saved. Resume with the same command.", e.exit_code
        ) from None


def _evaluate_or_load(model: Model, dataset: Dataset) -> EvaluationReport:
    path = model.folder / "evaluation.json"
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["metadata"].get("fingerprint") == model.fingerprint:
            return EvaluationReport(stored["metrics"], stored["metadata"])
    report = evaluate(model, dataset)
    report.save(model.folder)
    return report


def _build_or_open_index(model: Model, dataset: Dataset, folder: Path) -> Index:
    try:
        index = Index.open(folder, model=model)
        index.verify()
    except SensoriumError:  # missing, unfinished, or built by another model
        index = Index.build(model, dataset, folder)
    print(f"      {len(index):,} images")
    return index


def _search_examples(index: Index, dataset: Dataset) -> list[SearchResult]:
    """Search by text, by an image, and by both."""
    unseen_image = dataset.raw("image", dataset.splits["test_unseen_concept"][:1])[0]
    name, text = IMAGE_AND_TEXT_QUERY
    training_image = dataset.raw("image", [_find_row(dataset, name)])[0]
    results = [index.search(text=query, k=6) for query in TEXT_QUERIES]
    results += [
        index.search(image=unseen_image, k=6),
        index.search(image=training_image, text=text, k=6),
    ]
    for result in results:
        captions = ", ".join(hit.info.captions[0] for hit in result.hits[:3])
        print(f"      {result.query}: {captions}")
    return results


def _find_row(dataset: Dataset, name: str) -> int:
    """Return the first training row with this caption."""
    rows = dataset.splits["train"]
    captions = dataset.raw("caption", rows)
    return next(int(row) for row, texts in zip(rows, captions, strict=True) if name in texts)


def render_page(model: Model, report: EvaluationReport, results: list[SearchResult]) -> str:
    """Return one self-contained HTML page of results.

    Args:
        model: the trained model.
        report: its evaluation.
        results: results of the example searches.
    """
    size = sum(p.numel() for p in model.module.parameters()) / 1e6
    curve = (model.folder / "curve.svg").read_bytes()
    body = DEMO_BODY.format(
        size=size,
        legend=SCORE_LEGEND,
        results="".join(render_section(result) for result in results),
        table=_metrics_table(report),
        curve=image_tag(curve, "loss and metric by step", "image/svg+xml"),
        commands=escape_text("\n".join(_next_commands(model.folder))),
    )
    return web_page.render_page("Sensorium demo", body, RESULTS_CSS + DEMO_CSS)


def _metrics_table(report: EvaluationReport) -> str:
    rows = [
        [
            f"{SPLIT_DESCRIPTIONS.get(split, split)} ({metrics['rows']:.0f} images)",
            *(_format_share(metrics.get(metric)) for metric in METRIC_DESCRIPTIONS),
        ]
        for split, metrics in report.metrics.items()
    ]
    return render_table(["", *METRIC_DESCRIPTIONS.values()], rows)


def _format_share(value: float | None) -> str:
    return "not applicable" if value is None else f"{value:.1%}"


def _next_commands(run: Path) -> list[str]:
    folder = shlex.quote(str(run))
    return [
        f'sensorium search {folder} "a happy cat"',
        f"sensorium search {folder} --image photo.png --out results.html",
        "sensorium data photos/",
        "sensorium train clip photos/ --out runs/photos",
    ]
