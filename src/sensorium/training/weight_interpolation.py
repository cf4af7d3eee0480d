"""Fine-tuning guarded: what a model could do before and can do after, and the weights in between (WiSE-FT, Wortsman et
al. 2022)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console, ConsoleOptions
from rich.table import Table
from torch import Tensor

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.evaluation.validate_retrieval import embed_rows
from sensorium.io import atomic
from sensorium.io.run_config import INITIAL_WEIGHTS_FILE, WEIGHTS_FILE
from sensorium.io.tensors import read_tensors, state_tensors, tensor_writer
from sensorium.models.lora import LoRA
from sensorium.models.towers import Towers
from sensorium.training.checkpoint import Model

FORGETTING_THRESHOLD = 0.8  # of what it could do before; below that a warning is due
ALPHAS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class InterpolationCurve:
    """What each blend can do. alpha 0 is the start, 1 what was trained."""

    alphas: tuple[float, ...]
    target_values: tuple[float, ...]  # the run's metric on its own held-out rows
    reference_values: tuple[
        float, ...
    ]  # the same metric on the reference, or likeness to the start
    metric_name: str
    reference_name: str

    @property
    def best_alpha(self) -> float:
        """The blend with the highest mean of both, each as a share of its own best."""
        shares = [
            a / max(max(self.target_values), 1e-9) + b / max(max(self.reference_values), 1e-9)
            for a, b in zip(self.target_values, self.reference_values, strict=True)
        ]
        return self.alphas[int(np.argmax(shares))]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        table = Table(
            "alpha",
            f"{self.metric_name}, own data",
            self.reference_name,
            caption=f"best of both: alpha {self.best_alpha:g}",
        )
        for row in zip(self.alphas, self.target_values, self.reference_values, strict=True):
            table.add_row(*(f"{value:.3g}" for value in row))
        yield table

    @property
    def has_forgotten(self) -> bool:
        """Whether the trained end can do much less of the old than the start."""
        return self.reference_values[-1] < FORGETTING_THRESHOLD * self.reference_values[0]


def evaluate_interpolations(
    model: Model,
    dataset: Dataset,
    reference: Dataset | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> InterpolationCurve:
    """Measure the blends between what a run started from and what it became; the model is left as it was.

    dataset: the run's own. reference: data of the old task, with the same columns; without them the old task is likeness
    to the start: the mean cosine between what both say of the run's own held-out rows.
    Raises SensoriumError for a run that has no start, or one whose recipe has no metric.
    """
    if model.recipe.evaluation.validate is None:
        raise SensoriumError(f"a run of {model.config.recipe} has no metric to blend by")
    inner = _inner(model)
    ends = (
        load_start_weights(model),
        {name: value.clone() for name, value in state_tensors(model.module).items()},
    )
    new, old, first = [], [], None
    try:
        for alpha in alphas:
            set_weights(model, interpolate_weights(*ends, alpha, inner))
            new.append(evaluate_metric(model, dataset))
            said = None if reference is not None else _embed_sample(model, dataset)
            first = said if first is None else first
            old.append(
                evaluate_metric(model, reference)
                if reference is not None
                else _mean_cosine(first, said)
            )
    finally:
        set_weights(model, ends[1])
    told = (
        f"{model.recipe.evaluation.metric}, {reference.name}"
        if reference is not None
        else "likeness to the start"
    )
    return InterpolationCurve(
        tuple(alphas), tuple(new), tuple(old), model.recipe.evaluation.metric, told
    )


def interpolate_weights(
    start: Mapping[str, Tensor],
    finetuned: Mapping[str, Tensor],
    alpha: float,
    inner: Collection[str] = (),
) -> dict[str, Tensor]:
    """Weights alpha of the way from start to tuned.

    inner: names of inner factors of low-rank corrections: a correction is made smaller by its outer factor alone.
    """
    return {
        name: value
        if name in inner or not value.is_floating_point()
        else start[name].lerp(value, alpha)
        for name, value in finetuned.items()
    }


def load_start_weights(model: Model) -> dict[str, Tensor]:
    """The weights a run started from. Raises SensoriumError where it kept none."""
    if not (path := model.folder / INITIAL_WEIGHTS_FILE).is_file():
        raise SensoriumError(
            f"{model.folder} did not start from published weights, so there is nothing to blend with: "
            "train with a recipe that takes --from"
        )
    return read_tensors(path)


def set_weights(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Give a model these weights."""
    with torch.no_grad():
        for name, held in state_tensors(model.module).items():
            held.copy_(tensors[name])


def evaluate_metric(model: Model, dataset: Dataset) -> float:
    """The model's own metric on held-out rows: of the split val, else test, else all."""
    rows = dataset.splits.get("val", dataset.splits.get("test", np.arange(len(dataset))))
    prepared, evaluation = (
        dataset.prepare(model.schema, model.recipe.data.columns),
        model.recipe.evaluation,
    )
    assert evaluation.validate is not None
    return evaluation.validate(model.module, prepared, prepared.complete_rows(rows)).figures[
        evaluation.metric
    ]


def save_interpolation(model: Model, alpha: float, out: str | Path) -> Path:
    """Write the blend as a run of its own, which loads as every run does."""
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise SensoriumError(f"{out} is not empty: choose a new folder for the blend")
    out.mkdir(parents=True, exist_ok=True)
    now = {name: value.clone() for name, value in state_tensors(model.module).items()}
    atomic.write_file(
        out / WEIGHTS_FILE,
        tensor_writer(
            interpolate_weights(load_start_weights(model), now, alpha, _inner(model)),
            {"alpha": str(alpha)},
        ),
    )
    model.schema.save(out)
    replace(model.config, data={**model.config.data, "blend": alpha}).save(out)
    return out


def _inner(model: Model) -> set[str]:
    """Names of the inner factors of all low-rank corrections."""
    return {f"{name}.down" for name, part in model.module.named_modules() if isinstance(part, LoRA)}


def _embed_sample(model: Model, dataset: Dataset) -> Tensor:
    rows = dataset.splits.get("val", np.arange(len(dataset)))[:512]
    pair = model.recipe.data.columns[0], model.recipe.data.columns[1]
    assert isinstance(towers := model.module, Towers)
    return torch.cat(embed_rows(towers, dataset.prepare(model.schema, pair), rows, pair)[0])


def _mean_cosine(a: Tensor | None, b: Tensor | None) -> float:
    assert a is not None
    assert b is not None
    return (a * b).sum(1).mean().item()
