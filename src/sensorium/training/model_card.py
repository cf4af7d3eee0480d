"""The model card of a finished run, and the summary printed at its end."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sensorium.io import atomic
from sensorium.io.run_config import MODEL_CARD_FILE, WEIGHTS_FILE
from sensorium.io.tensors import file_sha256
from sensorium.nn.tokens import column_label
from sensorium.training.run import TrainingRun

_CARD_TEMPLATE = """---
library_name: sensorium
tags:
- {recipe}
---
# {title}

A `{recipe}` model with {parameters:,} parameters, trained by Sensorium {sensorium} on `{data}`.
Verbs: {verbs}.

```python
import sensorium as sn
model = sn.load("{folder}"{recipe_argument})
```

## Data

{rows:,} rows of `{data}`. Columns: {columns}.

{splits}

Column settings were fitted and weights were trained on `train` only. `val` chose the best weights;
no other rows were used.

## Results

{result}

![training loss and validation metric](curve.svg)

## Settings

{keywords}

Precision {precision}; {steps:,} steps. Versions: {versions}.

## Licence and use

No licence has been chosen for this model: it depends on the licence and terms of `{data}`, which
Sensorium does not know. Before sharing the model, state here: the licence, whom the data show or
quote and whether they consented, what the model is for and what it is not for.
"""


def write_model_card(run: TrainingRun, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the model card, README.md, into the run folder.

    Args:
        run: the finished run.
        entries: entries of its metrics.jsonl.
    """
    config, data = run.config, run.config.data
    recipe_file, _, recipe_name = config.recipe.rpartition(":")
    text = _CARD_TEMPLATE.format(
        title=run.folder.resolve().name,
        folder=run.folder.resolve().name,
        recipe=recipe_name,
        recipe_argument=f", recipe_fn={recipe_name}" if recipe_file else "",
        verbs=", ".join(run.recipe.verbs) or "none",
        parameters=sum(p.numel() for p in run.recipe.model.parameters()),
        sensorium=config.versions["sensorium"],
        data=data["name"],
        rows=data["rows"],
        columns=", ".join(f"`{column_label(key)}`" for key in run.recipe.data.columns),
        splits=_markdown_table(("split", "rows"), data["splits"].items()),
        result=_result_section(run, entries),
        keywords=_markdown_table(("keyword", "value"), config.keywords.items()),
        precision=config.precision,
        steps=run.progress.step,
        versions=", ".join(f"{name} {number}" for name, number in config.versions.items()),
    )
    atomic.write_file(run.folder / MODEL_CARD_FILE, text.encode())


def verdict(run: TrainingRun, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the saved model is worth, in sentences; nothing where the recipe does not say.

    Args:
        run: the finished run.
        entries: entries of its metrics.jsonl.
    """
    assess = run.recipe.evaluation.assess
    if assess is None:
        return []
    evaluation = _best_evaluation(run, entries)
    return list(assess(evaluation, len(run.train_rows), len(run.validation_rows)))


def summary_message(run: TrainingRun, entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the best metric, the run folder, the verdict, and commands to try next."""
    progress = run.progress
    result = ""
    if progress.best_metric is not None:
        metric = run.recipe.evaluation.metric
        result = f"{metric} {progress.best_metric:.4g} at step {progress.best_step}, "
    commands = "\n".join(f"  sensorium {command}" for command in _next_commands(run))
    sentences = "".join(f"{sentence}\n" for sentence in verdict(run, entries))
    return f"{result}saved in {run.folder}.\n{sentences}What to try next:\n{commands}"


def _next_commands(run: TrainingRun) -> list[str]:
    """Return commands that suit the verbs of a model."""
    folder, data, verbs = run.folder, run.config.data["name"], run.recipe.verbs
    output = getattr(verbs.get("generate"), "output_modality", None)
    if output is not None:
        example = _generate_example(output, len(run.recipe.data.columns))
        return [f"generate {folder} {example}", f"summary {folder}"]
    if "embed" in verbs:
        return [
            f"evaluate {folder} {data}",
            f"index {folder} {data}",
            f'search {folder} "a red bicycle"',
        ]
    if "predict" in verbs:
        return [
            f"evaluate {folder} {data}",
            f"predict {folder} new.csv -o predicted.csv",
            f"summary {folder}",
        ]
    return [f"summary {folder}", f"evaluate {folder} {data}"]


def _generate_example(output_modality: str, num_columns: int) -> str:
    """Return example arguments of `sensorium generate`."""
    if output_modality == "image":
        return '"a red apple" -n 4 -o apples.png'
    if num_columns > 2:
        return '--image photo.png --question "what is this?"'
    if num_columns > 1:
        return "--image photo.png"
    return '"once" --temperature 0.8'


def _result_section(run: TrainingRun, entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the validation metrics of the saved weights."""
    best_step = run.progress.best_step
    sha256 = file_sha256(run.folder / WEIGHTS_FILE)
    weights = f"The saved weights are those of step {best_step}, SHA-256 `{sha256}`."
    evaluation = _best_evaluation(run, entries)
    if not evaluation:
        return f"{weights} There were no validation rows, so their quality was not measured."
    values = [(name, f"{value:.4g}") for name, value in evaluation.items()]
    table = _markdown_table(("metric", "value"), values)
    sentences = "\n".join(verdict(run, entries))
    card = f"{weights} On the {len(run.validation_rows):,} rows of `val`:\n\n{table}"
    return f"{card}\n\n{sentences}" if sentences else card


def _best_evaluation(run: TrainingRun, entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the validation metrics of the saved weights; empty without validation rows."""
    evaluations = [
        e["evaluation"]
        for e in entries
        if e["step"] == run.progress.best_step and e.get("evaluation")
    ]
    return evaluations[-1] if evaluations else {}


def _markdown_table(header: tuple[str, str], rows: Iterable[tuple[str, object]]) -> str:
    """Return a markdown table of two columns."""
    lines = [f"| {name} | {value} |" for name, value in [header, ("---", "---"), *rows]]
    return "\n".join(lines)
