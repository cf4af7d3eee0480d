"""What a finished run says of itself: the model card in its folder, and the last lines on the screen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sensorium.io import atomic
from sensorium.io.tensors import file_sha256
from sensorium.nn.tokens import column_label
from sensorium.training.run import TrainingRun

_CARD_TEMPLATE = """---
library_name: sensorium
tags:
- {recipe}
---
# {title}

A `{recipe}` model with {parameters:,} parameters, trained by Sensorium {sensorium} on `{data}`. It can {verbs}.

```python
import sensorium as sn
model = sn.load("{folder}"{given})
```

## Data

{rows:,} rows of `{data}`; the columns read are {columns}.

{splits}

Settings were learned from, and weights were trained on, the rows of `train` alone. `val` chose the best model; no other
rows were looked at.

## Result

{result}

![the loss of every step, and the metric](curve.png)

## Settings

{keywords}

Precision {precision}; {steps:,} steps. Made with {versions}.

## Licence and use

The licence of this model is not decided: it depends on the licence and the terms of `{data}`, which Sensorium does not
know. Whoever passes it on writes here: the licence, whom the data show or quote and whether they agreed, what the model
is for and what not.
"""


def write_model_card(run: TrainingRun, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the model card, README.md, into the run's folder."""
    config, data = run.config, run.config.data
    own = Path(
        config.recipe.rpartition(":")[0]
    ).name  # of a recipe in the user's own file, that file
    text = _CARD_TEMPLATE.format(
        title=run.folder.resolve().name,
        folder=run.folder.resolve().name,
        recipe=config.recipe.rpartition(":")[2],
        given=", recipe=mine" if own else "",
        verbs=", ".join(run.recipe.verbs) or "nothing yet",
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
    atomic.write_file(run.folder / "README.md", text.encode())


def summary_message(run: TrainingRun) -> str:
    """Where the model is, how good it is, and three commands to try."""
    best, data = run.progress.best_metric, run.config.data["name"]
    figure = (
        ""
        if best is None
        else f"{run.recipe.evaluation.metric} {best:.4g} at step {run.progress.best_step}, "
    )
    tries = [
        f"evaluate {run.folder} {data}",
        f"index {run.folder} {data}",
        f'search {run.folder} "a red bicycle"',
    ]
    tries = (
        tries
        if "embed" in run.recipe.verbs
        else [f"show {run.folder}", f"evaluate {run.folder} {data}", "--help"]
    )
    if made := getattr(run.recipe.verbs.get("generate"), "output_modality", None):
        how = (
            '"a red apple" -n 4 -o apples.png'
            if made == "image"
            else "--image picture.png"
            if len(run.recipe.data.columns) > 1
            else '"once" --temperature 0.8'
        )
        tries = [f"generate {run.folder} {how}", f"show {run.folder}"]
    return f"{figure}kept in {run.folder}. What to try next:\n" + "\n".join(
        f"  sensorium {one}" for one in tries
    )


def _result_section(run: TrainingRun, entries: Sequence[Mapping[str, Any]]) -> str:
    kept = run.progress.best_step
    figures = next(
        (e["evaluation"] for e in reversed(entries) if e["step"] == kept and e.get("evaluation")),
        {},
    )
    told = f"The weights kept are those of step {kept}, SHA-256 `{file_sha256(run.folder / 'model.safetensors')}`."
    if not figures:
        return f"{told} There were no validation rows: nothing says how good they are."
    return f"{told} On the {len(run.validation_rows):,} rows of `val`:\n\n" + _markdown_table(
        ("figure", "value"), ((name, f"{value:.4g}") for name, value in figures.items())
    )


def _markdown_table(header: tuple[str, str], rows: Any) -> str:
    lines = [f"| {a} | {b} |" for a, b in rows]
    return "\n".join([f"| {header[0]} | {header[1]} |", "| --- | --- |", *lines])
