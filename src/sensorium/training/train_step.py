"""One update of the weights: forward, backward, look whether all is finite, clip, step. Nothing here knows a family."""

import copy
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sensorium.errors import SensoriumError
from sensorium.nn.stochastic_depth import set_stochastic_depth
from sensorium.nn.tokens import Batch, column_label
from sensorium.recipes.recipe import Recipe
from sensorium.recipes.training_config import TrainingConfig
from sensorium.training import optimizers
from sensorium.training.nonfinite import NonFiniteError, _nonfinite_rows, first_nonfinite_module

Losses = dict[str, Tensor]


BETA1 = 0.9


MIN_SPEEDUP = 0.9  # bf16 is taken where it needs less than this part of the time


@runtime_checkable
class AccumulatesGradients(Protocol):
    """An objective whose rows depend on one another, so that a batch in parts needs its own way (GradCache)."""

    def accumulate(self, model: Any, batches: Sequence[Batch]) -> Losses:
        """The losses of all the batches as one; their gradients are added to the parameters."""
        ...


class TrainStep:
    """A recipe with one optimiser per player. An objective of several players names them in `objective.players`."""

    def __init__(self, recipe: Recipe[Any], total_steps: int, precision: str):
        self.recipe, self.training, self.total_steps, self.precision = (
            recipe,
            recipe.training,
            total_steps,
            precision,
        )
        self.model = recipe.model
        if (
            not set_stochastic_depth(self.model, self.training.stochastic_depth)
            and self.training.stochastic_depth
        ):
            raise SensoriumError(
                "no block of this model adds to what passes it and learns: leave stochastic_depth out"
            )
        players: Sequence[str] = getattr(recipe.objective, "players", ("model",))
        modules = {
            name: self.model if name == "model" else self.model.get_submodule(name)
            for name in players
        }
        options = optimizers.OptimizerConfig(
            self.training.lr,
            self.training.weight_decay,
            (BETA1, self.training.beta2),
            self.training.layer_decay,
        )
        self.optimizers = {
            name: optimizers.build_optimizers(self.training.optimizer, m, options)
            for name, m in modules.items()
        }
        self.params = {
            name: [p for p in m.parameters() if p.requires_grad] for name, m in modules.items()
        }
        self.ema = (
            optimizers.EMA(self.model, self.training.ema_decay) if self.training.ema_decay else None
        )

    def __call__(self, batch: Batch, step: int) -> dict[str, float]:
        """Update k (from 0): the loss, that of each player, gradient norms, learning rate.

        Raises NonFinite, the weights untouched.
        """
        self.model.train()
        chance = torch.get_rng_state()
        losses = self._backward(batch)
        norms = {name: self._clip_gradients(params) for name, params in self.params.items()}
        if bad := [name for name in losses if not math.isfinite(losses[name])]:
            raise self._locate_nonfinite(f"the loss of {bad[0]} is {losses[bad[0]]}", batch, chance)
        if bad := [name for name in norms if not math.isfinite(norms[name])]:
            raise self._locate_nonfinite(
                f"the gradient of {bad[0]} is {norms[bad[0]]}", batch, chance
            )
        part = optimizers.lr_scale(step, self.total_steps, self.training.warmup_ratio)
        self._optimizer_step(part, step)
        return {
            "loss": sum(losses.values()),
            **_prefix_names("loss", losses),
            **_prefix_names("grad_norm", norms),
            "lr": self.training.lr * part,
        }

    def _backward(self, batch: Batch) -> dict[str, float]:
        for optimizer in (o for several in self.optimizers.values() for o in several):
            optimizer.zero_grad()
        objective, parts = self.recipe.objective, batch.split(self.training.grad_accumulation_steps)
        if len(parts) > 1 and isinstance(objective, AccumulatesGradients):
            with autocast(self.precision, self.model):
                return {
                    name: loss.item()
                    for name, loss in objective.accumulate(self.model, parts).items()
                }
        totals = dict.fromkeys(self.params, 0.0)
        for part in parts:
            weight = len(part) / len(batch)
            with autocast(self.precision, self.model):
                losses = objective(self.model, part)
            for left, (name, loss) in zip(
                range(len(losses) - 1, -1, -1), losses.items(), strict=True
            ):
                (loss * weight if weight < 1 else loss).backward(
                    inputs=self.params[name], retain_graph=left > 0
                )
                totals[name] += loss.item() * weight
        return totals

    def _clip_gradients(self, params: list[nn.Parameter]) -> float:
        norm = get_total_norm([p.grad for p in params if p.grad is not None])
        if self.training.max_grad_norm and norm.isfinite():
            clip_grads_with_norm_(params, self.training.max_grad_norm, norm)
        return norm.item()

    def _optimizer_step(self, lr_scale: float, step: int) -> None:
        for optimizer in (o for several in self.optimizers.values() for o in several):
            for group in optimizer.param_groups:
                group["lr"] = group["top"] * lr_scale
            optimizer.step()
        if self.recipe.hooks.after_step:
            self.recipe.hooks.after_step(self.model)
        if self.ema:
            self.ema.update(step)

    def _locate_nonfinite(self, reason: str, batch: Batch, rng_state: Tensor) -> NonFiniteError:
        """Where it began: a column of the batch, else the first module of a second forward, else a parameter."""
        for column, values in batch.columns.items():
            if rows := _nonfinite_rows(values, len(batch)):
                return NonFiniteError(
                    reason,
                    f"column {column_label(column)} of the batch is not finite",
                    _dataset_rows(batch, rows),
                )
        torch.set_rng_state(rng_state)
        with torch.no_grad(), autocast(self.precision, self.model):
            found = first_nonfinite_module(
                self.model, lambda: self.recipe.objective(self.model, batch), len(batch)
            )
        if found:
            return NonFiniteError(
                reason, f"it begins in module {found[0]}", _dataset_rows(batch, found[1])
            )
        graded = [(name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None]
        names = [name for name, grad in graded if not grad.isfinite().all()]
        place = (
            f"it begins in the gradient of {names[-1]}"
            if names
            else "every module's output is finite"
        )
        return NonFiniteError(reason, place, _dataset_rows(batch, list(range(len(batch)))))


def choose_precision(recipe: Recipe[Any], batch: Batch) -> str:
    """fp32 or bf16: whichever trains a copy of the model faster on this batch. Weights and chance stay as they are."""
    seconds = {}
    with torch.random.fork_rng():
        for precision in ("fp32", "bf16"):
            trial = copy.deepcopy(recipe.model).train()
            seconds[precision] = min(
                [_time_step(trial, recipe, batch, precision) for _ in range(3)][1:]
            )
    return "bf16" if seconds["bf16"] < MIN_SPEEDUP * seconds["fp32"] else "fp32"


def autocast(precision: str, model: nn.Module) -> AbstractContextManager[object]:
    """The context in which a forward runs in that precision, on the device of the model."""
    if precision not in ("fp32", "bf16"):
        raise SensoriumError(f"precision {precision!r} is not one of auto, fp32, bf16")
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def check_training_config(training: TrainingConfig) -> None:
    """Raises SensoriumError for settings that cannot train."""
    for name, least in (
        ("epochs", 0),
        ("batch_size", 1),
        ("grad_accumulation_steps", 1),
        ("lr", 0),
        ("weight_decay", 0),
        ("ema_decay", 0),
        ("warmup_ratio", 0),
        ("max_grad_norm", 0),
        ("early_stopping_patience", 0),
        ("eval_interval", 0),
        ("checkpoint_interval", 0),
        ("layer_decay", 0),
        ("stochastic_depth", 0),
    ):
        if not getattr(training, name) >= least:
            raise SensoriumError(
                f"{name} is {getattr(training, name)}; it must be at least {least}"
            )
    for name in ("ema_decay", "warmup_ratio", "beta2", "layer_decay"):
        if getattr(training, name) > 1:
            raise SensoriumError(f"{name} is {getattr(training, name)}; it must be at most 1")
    if training.stochastic_depth >= 1:
        raise SensoriumError(f"stochastic_depth is {training.stochastic_depth}; it must be below 1")
    if training.precision not in ("auto", "fp32", "bf16"):
        raise SensoriumError(f"precision {training.precision!r} is not one of auto, fp32, bf16")


def _time_step(model: nn.Module, recipe: Recipe[Any], batch: Batch, precision: str) -> float:
    start = time.perf_counter()
    with autocast(precision, model):
        losses = recipe.objective(model, batch)
    torch.stack(list(losses.values())).sum().backward()
    return time.perf_counter() - start


def _prefix_names(prefix: str, values: dict[str, float]) -> dict[str, float]:
    """The one player called model needs no name in the log."""
    return {
        prefix if name == "model" else f"{prefix}_{name}": value for name, value in values.items()
    }


def _dataset_rows(batch: Batch, rows: list[int]) -> list[int]:
    """Positions in the batch as rows of the data set."""
    return rows if batch.row is None else batch.row[rows].tolist()
