"""Gradient accumulation: loss and gradients of micro-batches are those of the whole batch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sensorium.data.schema import Column, Schema
from sensorium.modalities.image import Image
from sensorium.modalities.tabular import Category, Numeric
from sensorium.modalities.text import Text
from sensorium.nn.tokens import Batch, ColumnKey
from sensorium.recipes import RECIPES
from sensorium.recipes.recipe import Recipe, build_recipe
from sensorium.training.train_step import TrainStep

COLUMNS = {
    "photo": Image(size=16),
    "caption": Text(length=9, vocab_size=300),
    "size": Numeric(edges=(-1.0, 0.0, 1.0), count=9),
    "kind": Category(("a", "b", "c"), (60, 30, 10)),
    "price": Numeric(10.0, 2.0, (8.0, 12.0), 9),
}
SCHEMA = Schema({name: Column(name, modality) for name, modality in COLUMNS.items()})
FUSION = {
    "target": ["kind", "price"],
    "encoders": {"photo": "vit"},
    "dim": 16,
    "layers": 1,
    "modality_dropout": 0.0,
}
CASES = {
    "captioner": ({"image": "photo", "text": "caption", "vision": "patches"}, 32),
    "gpt": ({"text": "caption"}, 32),
    "dalle": ({"image": "photo", "text": "caption", "caption_dropout": 0.3}, 32),
    "image_tokenizer": ({"image": "photo", "restart_dead_codes": False}, 16),
    "fusion": (FUSION, 0),
    "fusion contrastive": ({**FUSION, "contrastive_weight": 0.5}, 0),
    "fusion sequence": ({**FUSION, "contrastive_weight": 0.5, "fusion": "sequence"}, 0),
    "clip": ({"image": "photo", "text": "caption"}, 32),
}


def ragged_batch(num_rows: int = 10) -> Batch:
    """Return rows whose texts differ in length, and most of whose values are missing at times."""
    rng = torch.Generator().manual_seed(3)
    columns: dict[ColumnKey, Tensor] = {
        name: modality.fake(num_rows, rng) for name, modality in COLUMNS.items()
    }
    lengths = torch.tensor([9, 8, 9, 9, 2, 1, 2, 3, 2, 2])[:num_rows]
    text = torch.randint(5, 250, columns["caption"].shape, generator=rng)
    padding = torch.arange(text.shape[1]) >= lengths[:, None]
    columns["caption"] = text.masked_fill(padding, COLUMNS["caption"].pad)
    present: dict[ColumnKey, Tensor] = {
        "kind": torch.tensor([1, 0, 0, 0, 1, 1, 1, 1, 1, 1]).bool()[:num_rows],
        "price": torch.tensor([1, 1, 1, 1, 1, 0, 0, 0, 0, 0]).bool()[:num_rows],
        "photo": torch.tensor([1, 1, 1, 0, 1, 1, 0, 0, 0, 0]).bool()[:num_rows],
        "size": torch.tensor([1, 0, 1, 1, 1, 1, 1, 0, 1, 1]).bool()[:num_rows],
    }
    return Batch(columns, present, torch.arange(num_rows), torch.arange(num_rows))


def step_of(name: str, micro_batches: int) -> tuple[Recipe[torch.nn.Module], TrainStep]:
    keywords, dim = CASES[name]
    torch.manual_seed(0)
    settings = {**keywords, "dropout": 0.0, **({"dim": dim, "layers": 1} if dim else {})}
    recipe_name = name.split()[0]
    if recipe_name == "image_tokenizer":
        del settings["dropout"]
    if recipe_name == "clip":
        del settings["layers"]
        settings |= {"image_layers": 1, "text_layers": 1}
    recipe, _ = build_recipe(RECIPES[recipe_name], SCHEMA, settings)
    training = replace(recipe.training, grad_accumulation_steps=micro_batches, stochastic_depth=0.0)
    recipe = replace(recipe, training=training)
    return recipe, TrainStep(recipe, 10, "fp32")


@pytest.mark.parametrize("micro_batches", [2, 4, 10])
@pytest.mark.parametrize("name", CASES)
def test_micro_batches_give_the_loss_and_gradients_of_the_batch(
    name: str, micro_batches: int
) -> None:
    losses: list[float] = []
    grads: list[dict[str, Tensor]] = []
    for n in (1, micro_batches):
        recipe, step = step_of(name, n)
        recipe.model.train()
        torch.manual_seed(7)  # of the captions that are dropped
        losses.append(step._backward(ragged_batch())["model"])  # pyright: ignore[reportPrivateUsage]
        parameters = recipe.model.named_parameters()
        grads.append({name: p.grad for name, p in parameters if p.grad is not None})
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert grads[1].keys() == grads[0].keys()
    for parameter, grad in grads[0].items():
        torch.testing.assert_close(grads[1][parameter], grad, atol=2e-6, rtol=1e-4, msg=parameter)
