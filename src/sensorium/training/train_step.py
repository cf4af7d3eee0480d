"""One optimizer step: forward, backward, check that all is finite, clip, update."""

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from sensorium.errors import SensoriumError
from sensorium.nn.stochastic_depth import set_stochastic_depth
from sensorium.nn.tokens import Batch, column_label
from sensorium.recipes.recipe import Recipe, option_name
from sensorium.recipes.training_config import TrainingConfig
from sensorium.training import optimizers
from sensorium.training.nonfinite import NonFiniteError, first_nonfinite_module, nonfinite_rows

Losses = dict[str, Tensor]
BETA1 = 0.9
MIN_SPEEDUP = 0.9  # bf16 is used where it takes less than this fraction of the time of fp32
PRECISIONS = ("auto", "fp32", "bf16")
MINIMUM_VALUES = {  # of the fields of TrainingConfig
    "epochs": 0,
    "minutes": 0,
    "batch_size": 1,
    "grad_accumulation_steps": 1,
    "lr": 0,
    "weight_decay": 0,
    "ema_decay": 0,
    "warmup_ratio": 0,
    "max_grad_norm": 0,
    "early_stopping_patience": 0,
    "eval_interval": 0,
    "checkpoint_interval": 0,
    "layer_decay": 0,
    "stochastic_depth": 0,
}
FRACTIONS = ("ema_decay", "warmup_ratio", "beta2", "layer_decay")  # at most 1


@runtime_checkable
class AccumulatesGradients(Protocol):
    """An objective whose loss is not the mean of its rows' losses.

    It may be a mean over tokens or known targets, or its rows may depend on each other. The losses
    of other objectives are weighed by the rows of each micro-batch.
    """

    def accumulate(self, model: Any, batches: Sequence[Batch]) -> Losses:
        """Compute the losses of all micro-batches as one, and add their gradients."""
        ...


class TrainStep:
    """The optimizer step of a recipe, with one list of optimizers per player.

    An objective with several players (such as a GAN) names them, as submodules of the model, in
    `objective.players`.

    Args:
        recipe: the recipe.
        total_steps: optimizer steps of the whole run.
        precision: fp32 or bf16.

    Attributes:
        optimizers: optimizers by player.
        params: trainable parameters by player.
        ema: the averaged weights, if `ema_decay` is not 0.

    Raises:
        SensoriumError: the model has nothing to train, or no block for `stochastic_depth`.
    """

    def __init__(self, recipe: Recipe[Any], total_steps: int, precision: str):
        self.recipe = recipe
        self.training: TrainingConfig = recipe.training
        self.total_steps = total_steps
        self.precision = precision
        self.model: nn.Module = recipe.model
        drop_prob = self.training.stochastic_depth
        if not set_stochastic_depth(self.model, drop_prob) and drop_prob:
            raise SensoriumError(
                "This model has no trainable residual block for --stochastic-depth. Leave the "
                "option out."
            )
        players: Sequence[str] = getattr(recipe.objective, "players", ("model",))
        modules = {
            name: self.model if name == "model" else self.model.get_submodule(name)
            for name in players
        }
        config = optimizers.OptimizerConfig(
            lr=self.training.lr,
            weight_decay=self.training.weight_decay,
            betas=(BETA1, self.training.beta2),
            layer_decay=self.training.layer_decay,
        )
        self.optimizers = {
            name: optimizers.build_optimizers(self.training.optimizer, module, config)
            for name, module in modules.items()
        }
        self.params = {
            name: [p for p in module.parameters() if p.requires_grad]
            for name, module in modules.items()
        }
        self.ema: optimizers.EMA | None = None
        if self.training.ema_decay:
            self.ema = optimizers.EMA(self.model, self.training.ema_decay)

    def __call__(self, batch: Batch, step: int) -> dict[str, float]:
        """Update the weights.

        Args:
            batch: the batch.
            step: number of the update, from 0.

        Returns:
            The loss, losses and gradient norms by player, and the learning rate.

        Raises:
            NonFiniteError: a loss or gradient is not finite. The weights are unchanged.
        """
        self.model.train()
        rng_state = torch.get_rng_state()
        losses = self._backward(batch)
        norms = {name: self._clip_gradients(params) for name, params in self.params.items()}
        for quantity, values in (("loss", losses), ("gradient", norms)):
            for name, value in values.items():
                if not math.isfinite(value):
                    reason = f"the {quantity} of {name} is {value}"
                    raise self._locate_nonfinite(reason, batch, rng_state)
        lr_scale = optimizers.lr_scale(step, self.total_steps, self.training.warmup_ratio)
        self._optimizer_step(lr_scale, step)
        return {
            "loss": sum(losses.values()),
            **_prefix_names("loss", losses),
            **_prefix_names("grad_norm", norms),
            "lr": self.training.lr * lr_scale,
        }

    def _backward(self, batch: Batch) -> dict[str, float]:
        """Compute losses and gradients; return the losses by player."""
        for optimizer in self._iter_optimizers():
            optimizer.zero_grad()
        objective = self.recipe.objective
        micro_batches = batch.split(self.training.grad_accumulation_steps)
        if len(micro_batches) > 1 and isinstance(objective, AccumulatesGradients):
            with autocast(self.precision, self.model):
                losses = objective.accumulate(self.model, micro_batches)
                return {name: loss.item() for name, loss in losses.items()}
        totals = dict.fromkeys(self.params, 0.0)
        for micro_batch in micro_batches:
            weight = len(micro_batch) / len(batch)
            with autocast(self.precision, self.model):
                losses = objective(self.model, micro_batch)
            for i, (name, loss) in enumerate(losses.items()):
                is_last = i == len(losses) - 1
                weighted = loss * weight if weight < 1 else loss
                weighted.backward(inputs=self.params[name], retain_graph=not is_last)
                totals[name] += loss.item() * weight
        return totals

    def _clip_gradients(self, params: list[nn.Parameter]) -> float:
        """Scale the gradients down to `max_grad_norm`; return their norm before."""
        norm = get_total_norm([p.grad for p in params if p.grad is not None])
        if self.training.max_grad_norm and norm.isfinite():
            clip_grads_with_norm_(params, self.training.max_grad_norm, norm)
        return norm.item()

    def _optimizer_step(self, lr_scale: float, step: int) -> None:
        """Update the weights, then their average."""
        for optimizer in self._iter_optimizers():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * lr_scale
            optimizer.step()
        if self.recipe.hooks.after_step:
            self.recipe.hooks.after_step(self.model)
        if self.ema:
            self.ema.update(step)

    def _iter_optimizers(self) -> Iterator[Optimizer]:
        """Yield the optimizers of all players."""
        for player_optimizers in self.optimizers.values():
            yield from player_optimizers

    def _locate_nonfinite(self, reason: str, batch: Batch, rng_state: Tensor) -> NonFiniteError:
        """Return an error that names the first non-finite value.

        That is a column of the batch, else the output of a module in a second forward, else a
        gradient.
        """
        for column, values in batch.columns.items():
            rows = nonfinite_rows(values, len(batch))
            if rows:
                location = f"column {column_label(column)} of the batch is not finite"
                return NonFiniteError(reason, location, _dataset_rows(batch, rows))
        torch.set_rng_state(rng_state)
        with torch.no_grad(), autocast(self.precision, self.model):
            first = first_nonfinite_module(
                self.model, lambda: self.recipe.objective(self.model, batch), len(batch)
            )
        if first:
            module, rows = first
            location = f"the first non-finite value is in the output of module {module}"
            return NonFiniteError(reason, location, _dataset_rows(batch, rows))
        location = "every module's output is finite"
        graded = [(name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None]
        names = [name for name, grad in graded if not grad.isfinite().all()]
        if names:
            location = f"the first non-finite value is in the gradient of {names[-1]}"
        return NonFiniteError(reason, location, _dataset_rows(batch, list(range(len(batch)))))


def choose_precision(recipe: Recipe[Any], batch: Batch) -> str:
    """Return fp32 or bf16, whichever trains a copy of the model faster on this batch.

    Weights and random state are left as they are.
    """
    seconds: dict[str, float] = {}
    with torch.random.fork_rng():
        for precision in ("fp32", "bf16"):
            trial = copy.deepcopy(recipe.model).train()
            times = [_time_step(trial, recipe, batch, precision) for _ in range(3)]
            seconds[precision] = min(times[1:])  # the first is a warm-up
    return "bf16" if seconds["bf16"] < MIN_SPEEDUP * seconds["fp32"] else "fp32"


def autocast(precision: str, model: nn.Module) -> AbstractContextManager[object]:
    """Return the context in which a forward pass runs in fp32 or bf16 on the model's device."""
    if precision not in ("fp32", "bf16"):
        raise SensoriumError(f"--precision {precision!r} is not one of {', '.join(PRECISIONS)}.")
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def check_training_config(training: TrainingConfig) -> None:
    """Raise SensoriumError for a setting that is out of range."""
    for name, minimum in MINIMUM_VALUES.items():
        value = getattr(training, name)
        if not value >= minimum:  # NaN too
            raise SensoriumError(f"{option_name(name)} must be at least {minimum}, not {value}.")
    for name in FRACTIONS:
        value = getattr(training, name)
        if value > 1:
            raise SensoriumError(f"{option_name(name)} must be at most 1, not {value}.")
    if training.minutes == math.inf:
        raise SensoriumError("--minutes must be a number, not inf. Leave it out for no budget.")
    if training.stochastic_depth >= 1:
        raise SensoriumError(
            f"--stochastic-depth must be less than 1, not {training.stochastic_depth}."
        )
    if training.precision not in PRECISIONS:
        raise SensoriumError(
            f"--precision {training.precision!r} is not one of {', '.join(PRECISIONS)}."
        )


def _time_step(model: nn.Module, recipe: Recipe[Any], batch: Batch, precision: str) -> float:
    """Return the seconds of one forward and backward pass."""
    start = time.perf_counter()
    with autocast(precision, model):
        losses = recipe.objective(model, batch)
    torch.stack(list(losses.values())).sum().backward()
    return time.perf_counter() - start


def _prefix_names(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """Return log entries by player; the single player "model" is not named."""
    return {
        prefix if name == "model" else f"{prefix}_{name}": value for name, value in values.items()
    }


def _dataset_rows(batch: Batch, rows: list[int]) -> list[int]:
    """Return the dataset rows of positions in a batch."""
    return rows if batch.row is None else batch.row[rows].tolist()
