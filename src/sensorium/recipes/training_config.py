"""Settings of the training loop, shared by all recipes."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, TypeVar

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the training loop.

    A recipe sets defaults. Every field is a keyword of `train` and an option of its command.

    Attributes:
        epochs: passes over the training rows.
        minutes: time budget: as many of the epochs as fit into it, evaluations included; 0: none.
        batch_size: rows per optimizer step.
        grad_accumulation_steps: micro-batches that each batch is split into, to save memory.
        samples_per_group: rows of the same group next to each other in a batch; 0: groups are
            ignored.
        augment: strength of the random augmentation of training samples.
        lr: peak learning rate.
        optimizer: optimization algorithm.
        weight_decay: weight decay, applied to weight matrices only.
        beta2: Adam β2, the decay of the running average of squared gradients.
        layer_decay: layer-wise learning-rate decay: factor per block below the last one (0.7 is
            usual in fine-tuning).
        stochastic_depth: drop probability of the last residual block; it decreases linearly
            towards the first.
        warmup_ratio: fraction of the steps with linear learning-rate warm-up.
        max_grad_norm: maximum gradient norm (gradient clipping); 0: no clipping.
        ema_decay: decay of the exponential moving average of the weights; 0: no average.
        precision: numeric precision; auto: fp32 or bf16, whichever trains faster on this machine.
        early_stopping_patience: evaluations without improvement before training stops; 0: never
            stop early.
        eval_interval: epochs between evaluations.
        checkpoint_interval: epochs between checkpoints.
        seed: random seed for initialization, shuffling and augmentation.
        init: run of the same recipe to start from: all weights that fit are taken from it.
    """

    epochs: float = 20
    minutes: float = 0.0
    batch_size: int = 128
    grad_accumulation_steps: int = 1
    samples_per_group: int = 0
    augment: Literal["none", "light", "strong"] = "light"
    lr: float = 1e-3
    optimizer: Literal["adamw", "adam", "sgd", "lion", "muon"] = "adamw"
    weight_decay: float = 0.1
    beta2: float = 0.98
    layer_decay: float = 1.0
    stochastic_depth: float = 0.0
    warmup_ratio: float = 0.05
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    early_stopping_patience: int = 0
    eval_interval: float = 1.0
    checkpoint_interval: float = 1.0
    seed: int = 0
    init: str = ""


def training_defaults(**defaults: str | float) -> Callable[[F], F]:
    """Declare the training defaults that a recipe computes, for its `--help`.

    The command line reads recipes without running them, so it sees only the literals in a
    recipe's own `TrainingConfig(...)`. A default that depends on the data or on a keyword is
    described here as text:

        @training_defaults(epochs="by number of rows", lr="0.0003 with --train lora, else 1e-05")
        def my_recipe(schema: Schema, *, train: str = "all") -> Recipe: ...

    Args:
        **defaults: field of `TrainingConfig` to its value, or to a text that says what the value
            depends on.

    Returns:
        A decorator that returns the recipe unchanged.

    Raises:
        TypeError: for a name that is not a field of `TrainingConfig`.
    """
    if unknown := defaults.keys() - {field.name for field in fields(TrainingConfig)}:
        raise TypeError(f"TrainingConfig has no field {min(unknown)!r}")
    return lambda recipe: recipe
