"""Weights between a pretrained model and its fine-tuned version (WiSE-FT, Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console, ConsoleOptions
from rich.table import Table
from torch import Tensor

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.evaluation.spec import Validate
from sensorium.evaluation.validate_retrieval import embed_rows
from sensorium.io import atomic
from sensorium.io.run_config import INITIAL_WEIGHTS_FILE, WEIGHTS_FILE
from sensorium.io.tensors import read_tensors, state_tensors, tensor_writer
from sensorium.models.lora import LoRA
from sensorium.models.towers import Towers
from sensorium.training.checkpoint import Model

FORGETTING_THRESHOLD = 0.8  # fraction of the original metric below which a warning is due
SIMILARITY_ROWS = 512
ALPHAS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class InterpolationCurve:
    """Metrics of interpolated weights.

    Attributes:
        alphas: 0 are the pretrained weights, 1 the fine-tuned ones.
        target_values: the run's metric on its own held-out rows, by alpha.
        reference_values: the same metric on the reference dataset, or the similarity to the
            pretrained embeddings, by alpha.
        metric_name: name of `target_values`.
        reference_name: name of `reference_values`.
    """

    alphas: tuple[float, ...]
    target_values: tuple[float, ...]
    reference_values: tuple[float, ...]
    metric_name: str
    reference_name: str

    @property
    def best_alpha(self) -> float:
        """The alpha with the highest mean of both metrics, each relative to its best value."""
        best_target = max(*self.target_values, 1e-9)
        best_reference = max(*self.reference_values, 1e-9)
        scores = [
            target / best_target + reference / best_reference
            for target, reference in zip(self.target_values, self.reference_values, strict=True)
        ]
        return self.alphas[int(np.argmax(scores))]

    @property
    def has_forgotten(self) -> bool:
        """Whether the fine-tuned weights are much worse at the original task."""
        return self.reference_values[-1] < FORGETTING_THRESHOLD * self.reference_values[0]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        caption = f"best trade-off: alpha {self.best_alpha:g}"
        table = Table("alpha", self.metric_name, self.reference_name, caption=caption)
        for row in zip(self.alphas, self.target_values, self.reference_values, strict=True):
            table.add_row(*(f"{value:.3g}" for value in row))
        yield table


def evaluate_interpolations(
    model: Model,
    dataset: Dataset,
    reference: Dataset | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> InterpolationCurve:
    """Evaluate weights between the initial and the final ones of a run; the model is unchanged.

    Args:
        model: the fine-tuned model.
        dataset: the data of the run.
        reference: data of the original task, with the same columns; None: measure the mean cosine
            similarity to the pretrained embeddings of the run's held-out rows instead.
        alphas: fractions of the way from the initial to the final weights.

    Raises:
        SensoriumError: the run has no initial weights, or its recipe no metric.
    """
    _require_validate(model)
    inner = _inner_factor_names(model)
    start = load_start_weights(model)
    finetuned = {name: value.clone() for name, value in state_tensors(model.module).items()}
    target_values: list[float] = []
    reference_values: list[float] = []
    first_embeddings: Tensor | None = None
    try:
        for alpha in alphas:
            set_weights(model, interpolate_weights(start, finetuned, alpha, inner))
            target_values.append(evaluate_metric(model, dataset))
            if reference is not None:
                reference_values.append(evaluate_metric(model, reference))
                continue
            embeddings = _embed_sample(model, dataset)
            if first_embeddings is None:
                first_embeddings = embeddings
            reference_values.append(_mean_cosine(first_embeddings, embeddings))
    finally:
        set_weights(model, finetuned)
    metric_name = model.recipe.evaluation.metric
    reference_name = "similarity to pretrained"
    if reference is not None:
        reference_name = f"{metric_name}, {reference.name}"
    return InterpolationCurve(
        alphas=tuple(alphas),
        target_values=tuple(target_values),
        reference_values=tuple(reference_values),
        metric_name=metric_name,
        reference_name=reference_name,
    )


def interpolate_weights(
    start: Mapping[str, Tensor],
    finetuned: Mapping[str, Tensor],
    alpha: float,
    inner: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return the weights at `alpha` of the way from `start` to `finetuned`.

    Args:
        start: initial weights by name.
        finetuned: final weights by name.
        alpha: 0 to 1.
        inner: names of the inner LoRA factors, which keep their final value: the outer factor alone
            scales the update.
    """
    weights: dict[str, Tensor] = {}
    for name, value in finetuned.items():
        fixed = name in inner or not value.is_floating_point()
        weights[name] = value if fixed else start[name].lerp(value, alpha)
    return weights


def load_start_weights(model: Model) -> dict[str, Tensor]:
    """Return the initial weights of a run.

    Raises:
        SensoriumError: the run did not start from pretrained weights.
    """
    path = model.folder / INITIAL_WEIGHTS_FILE
    if not path.is_file():
        raise SensoriumError(
            f"{model.folder} did not start from pretrained weights, so there is nothing to "
            "interpolate with. Train it with --weights."
        )
    return read_tensors(path)


def set_weights(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Copy weights into a model."""
    with torch.no_grad():
        for name, value in state_tensors(model.module).items():
            value.copy_(tensors[name])


def evaluate_metric(model: Model, dataset: Dataset) -> float:
    """Return the model's own metric on held-out rows: the split val, else test, else all.

    Raises:
        SensoriumError: the recipe has no metric.
    """
    validate = _require_validate(model)
    rows = dataset.splits.get("val", dataset.splits.get("test", np.arange(len(dataset))))
    prepared = dataset.prepare(model.schema, model.recipe.data.columns)
    result = validate(model.module, prepared, prepared.complete_rows(rows))
    return result.metrics[model.recipe.evaluation.metric]


def save_interpolation(model: Model, alpha: float, out: str | Path) -> Path:
    """Write interpolated weights as a run folder.

    Args:
        model: the fine-tuned model.
        alpha: 0 to 1; 1 are the fine-tuned weights.
        out: a new or empty folder.

    Raises:
        SensoriumError: the folder is not empty, or the run has no initial weights.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise SensoriumError(f"{out} is not empty. Choose a new folder with --out.")
    finetuned = {name: value.clone() for name, value in state_tensors(model.module).items()}
    inner = _inner_factor_names(model)
    weights = interpolate_weights(load_start_weights(model), finetuned, alpha, inner)
    with atomic.new_folder(out) as folder:
        writer = tensor_writer(weights, {"alpha": str(alpha)})
        atomic.write_file(folder / WEIGHTS_FILE, writer)
        model.schema.save(folder)
        replace(model.config, data={**model.config.data, "interpolation": alpha}).save(folder)
    return out


def _require_validate(model: Model) -> Validate[Any]:
    """Return the function that computes the metric of a recipe."""
    validate = model.recipe.evaluation.validate
    if validate is None:
        raise SensoriumError(
            f"{model.folder} has no metric to compare weights by: the recipe {model.config.recipe} "
            "does not validate. Use a run of a recipe that does."
        )
    return validate


def _inner_factor_names(model: Model) -> set[str]:
    """Return the names of the inner factors of all LoRA layers."""
    return {
        f"{name}.lora_A" for name, part in model.module.named_modules() if isinstance(part, LoRA)
    }


def _embed_sample(model: Model, dataset: Dataset) -> Tensor:
    """Return unit embeddings [N, D] of both columns of a sample of the held-out rows."""
    rows = dataset.splits.get("val", np.arange(len(dataset)))[:SIMILARITY_ROWS]
    towers = model.module
    if not isinstance(towers, Towers):
        raise SensoriumError(
            f"{model.folder} does not embed two columns. Name a dataset of the original task with "
            "--reference."
        )
    pair = (model.recipe.data.columns[0], model.recipe.data.columns[1])
    prepared = dataset.prepare(model.schema, pair)
    return torch.cat(embed_rows(towers, prepared, rows, pair)[0])


def _mean_cosine(a: Tensor, b: Tensor) -> float:
    """Return the mean cosine similarity of unit vectors."""
    return (a * b).sum(1).mean().item()
