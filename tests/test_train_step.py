"""Tests of the optimizer step: gradients, micro-batches, players and non-finite values."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from fixtures import tiny_recipe
from torch import Tensor, nn

from sensorium.nn.tokens import Batch
from sensorium.training.nonfinite import NonFiniteError
from sensorium.training.train_step import TrainStep


def step_with_loss(change: Callable[[Any, Tensor], Tensor]) -> TrainStep:
    """Return an optimizer step whose loss is changed."""
    recipe = tiny_recipe.guess(tiny_recipe.rows().schema, dropout=0.0)
    return TrainStep(
        replace(
            recipe,
            objective=lambda model, batch: {
                "model": change(model, tiny_recipe.objective(model, batch)["model"])
            },
        ),
        10,
        "fp32",
    )


def random_batch(n: int = 6) -> Batch:
    rng = torch.Generator().manual_seed(0)
    return Batch(
        {name: torch.randn(n, generator=rng) for name in tiny_recipe.COLUMNS},
        row=torch.arange(100, 100 + n),
    )


def test_nonfinite_gradient_stops_before_the_update() -> None:
    step = step_with_loss(
        lambda model, loss: loss + (0 * model.output_layer.weight).abs().sqrt().sum()
    )
    before = [p.detach().clone() for p in step.model.parameters()]
    with pytest.raises(
        NonFiniteError,
        match=r"the gradient of model is nan; the first non-finite value is in the gradient of "
        r"output_layer.weight",
    ):
        step(random_batch(), 0)
    assert all(torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True))


def test_nonfinite_column_is_named() -> None:
    batch = random_batch()
    batch["b"][2] = math.nan
    with pytest.raises(NonFiniteError, match="column b of the batch is not finite") as error:
        step_with_loss(lambda _, loss: loss)(batch, 0)
    assert error.value.rows == [102]


def backward(step: TrainStep) -> dict[str, float]:
    return step._backward(random_batch(6))  # pyright: ignore[reportPrivateUsage]


def test_micro_batch_gradients_sum_to_those_of_the_batch() -> None:
    """Without batch norm, whose statistics differ between micro-batches."""
    net = nn.Linear(3, 1)
    recipe = replace(
        tiny_recipe.guess(tiny_recipe.rows().schema),
        model=net,
        objective=lambda m, b: {
            "model": (m(tiny_recipe.inputs(b)).squeeze(1) - b["y"]).square().mean()
        },
    )
    whole_step, micro_batch_step = (
        TrainStep(
            replace(recipe, training=replace(recipe.training, grad_accumulation_steps=n)),
            10,
            "fp32",
        )
        for n in (1, 4)
    )
    a = backward(whole_step)
    expected = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    b = backward(micro_batch_step)
    assert a["model"] == pytest.approx(b["model"], rel=1e-6)
    for x, y in zip(expected, net.parameters(), strict=True):
        torch.testing.assert_close(x, y.grad)
    assert [len(p) for p in random_batch(6).split(4)] == [2, 2, 1, 1]
    assert len(random_batch(2).split(5)) == 2
    concatenated = Batch.concat(random_batch(6).split(4))
    assert concatenated.row is not None
    assert concatenated.row.tolist() == list(range(100, 106))


def test_objective_may_accumulate_all_micro_batches() -> None:
    sizes: list[int] = []

    class JointObjective:
        def __call__(self, *_: object) -> dict[str, Tensor]:
            raise AssertionError("micro-batches must be accumulated")

        def accumulate(self, model: nn.Module, batches: Any) -> dict[str, Tensor]:
            sizes.extend(len(b) for b in batches)
            loss = torch.stack([tiny_recipe.objective(model, b)["model"] for b in batches]).mean()
            loss.backward()
            return {"model": loss.detach()}

    recipe = tiny_recipe.guess(tiny_recipe.rows().schema)
    step = TrainStep(
        replace(
            recipe,
            objective=JointObjective(),
            training=replace(recipe.training, grad_accumulation_steps=3),
        ),
        10,
        "fp32",
    )
    assert step(random_batch(6), 0)["loss"] > 0
    assert sizes == [2, 2, 2]


def test_each_player_learns_from_its_own_loss() -> None:
    """As in a GAN: one forward, two losses, and neither changes the other's weights."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator, self.discriminator = nn.Linear(3, 3), nn.Linear(3, 1)

    class AdversarialObjective:
        players = ("generator", "discriminator")

        def __call__(self, model: Any, batch: Any) -> dict[str, Tensor]:
            score = model.discriminator(model.generator(tiny_recipe.inputs(batch))).mean()
            return {"generator": -score, "discriminator": score}

    model, objective = Pair(), AdversarialObjective()
    recipe = tiny_recipe.guess(tiny_recipe.rows().schema)
    training = replace(recipe.training, max_grad_norm=0.0, weight_decay=0.0)
    step = TrainStep(
        replace(recipe, model=model, objective=objective, training=training), 10, "fp32"
    )
    generator_loss = objective(model, random_batch())["generator"]
    expected = torch.autograd.grad(generator_loss, list(model.generator.parameters()))
    metrics = step(random_batch(), 0)
    for p, g in zip(model.generator.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)
    assert metrics["loss_generator"] == pytest.approx(-metrics["loss_discriminator"])
    assert "grad_norm_discriminator" in metrics


def test_gradients_are_clipped() -> None:
    step = step_with_loss(lambda _, loss: 1000 * loss)
    metrics = step(random_batch(), 0)
    norm = torch.cat(
        [p.grad.flatten() for p in step.model.parameters() if p.grad is not None]
    ).norm()
    assert metrics["grad_norm"] > 100
    assert norm.item() == pytest.approx(1.0, rel=1e-3)
