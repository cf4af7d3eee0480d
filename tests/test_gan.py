"""The text-conditional GAN: penalties, wrong texts, augmentation, and what each player learns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn

import sensorium as sn
from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.models.gan import TextConditionalGAN
from sensorium.nn.tokens import Batch
from sensorium.objectives.adversarial import (
    AdversarialLoss,
    augment,
    gradient_penalty,
    wrong_rows,
)
from sensorium.recipes import gan
from sensorium.recipes.recipe import Recipe, build_recipe

TEXTS = ["a red apple", "the green cat", "a blue dog runs", "grey"]
TEXT = Text(length=8, vocab_size=280).fit(TEXTS * 3)
SCHEMA = Schema({"image": Column("image", Image(size=16)), "caption": Column("caption", TEXT)})
SMALL: dict[str, Any] = {"dim": 8, "latent_dim": 8, "text_dim": 16}


def build(**keywords: object) -> Recipe[TextConditionalGAN]:
    torch.manual_seed(0)
    return build_recipe(gan, SCHEMA, {**SMALL, **keywords})[0]


def make_batch(n: int = 8) -> Batch:
    rng = torch.Generator().manual_seed(1)
    texts = TEXT.collate([TEXT.load(TEXTS[i % 4]) for i in range(n)])
    return Batch({"image": 2 * torch.rand(n, 3, 16, 16, generator=rng) - 1, "caption": texts})


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (lambda x, _: 0 * x.sum((1, 2, 3)) + 3.0, lambda _: 0.0),
        (lambda x, w: (x * w).sum((1, 2, 3)), lambda w: w.square().sum().item()),
    ],
    ids=["constant", "linear"],
)
def test_the_penalty_of_simple_discriminators(
    score: Callable[[Tensor, Tensor], Tensor], expected: Callable[[Tensor], float]
) -> None:
    x, w = torch.randn(5, 3, 4, 4, requires_grad=True), torch.randn(3, 4, 4)
    assert gradient_penalty(score(x, w), x).item() == pytest.approx(expected(w), rel=1e-5)


def test_a_wrong_text_is_never_the_right_one() -> None:
    raw = torch.tensor([[1, 2], [1, 2], [3, 0], [3, 0], [4, 5], [6, 7]])
    keep = torch.tensor([True, True, True, True, True, False])
    torch.manual_seed(0)
    seen: set[int] = set()
    for _ in range(50):
        wrong = wrong_rows(raw, keep)
        for row, other in enumerate(wrong.tolist()):
            if row == 5:
                assert other == -1  # a missing text has no wrong one
                continue
            assert other in range(5)
            assert not torch.equal(raw[row], raw[other])
        seen |= set(wrong[:5].tolist())
    assert seen == {0, 1, 2, 3, 4}
    same = torch.ones(3, 2, dtype=torch.long)
    assert wrong_rows(same, torch.ones(3, dtype=torch.bool)).tolist() == [-1, -1, -1]


def test_augmentation_keeps_shapes_and_gradients() -> None:
    torch.manual_seed(0)
    images = torch.randn(6, 3, 16, 16, requires_grad=True)
    changed = augment(images)
    assert changed.shape == images.shape
    (gradient,) = torch.autograd.grad(changed.sum(), images)
    assert gradient.flatten(1).abs().sum(1).min() > 0
    white = augment(torch.ones(6, 3, 16, 16))
    spread = white.flatten(1).std(1)
    assert spread.max() < 1e-5  # a plain image stays plain: shifts repeat the border


def test_each_player_gets_gradients_of_its_own_loss() -> None:
    recipe = build(unconditional_steps=0, ramp_steps=0)
    losses = recipe.objective(recipe.model.train(), make_batch())
    assert set(losses) == {"generator", "discriminator"}
    for player in ("generator", "discriminator"):
        params = list(recipe.model.get_submodule(player).parameters())
        gradients = torch.autograd.grad(
            losses[player], params, retain_graph=True, allow_unused=True
        )
        assert any(g is not None and g.abs().sum() > 0 for g in gradients)


def test_a_discriminator_learns_to_tell_real_from_generated_and_right_from_wrong() -> None:
    recipe = build(unconditional_steps=0, ramp_steps=0, caption_dropout=0.0, gamma=0.05)
    model, batch = recipe.model.train(), make_batch()
    optimizer = torch.optim.Adam(model.discriminator.parameters(), lr=2e-3, betas=(0.0, 0.99))
    history: list[float] = []
    for _ in range(60):
        loss = recipe.objective(model, batch)["discriminator"]
        history.append(loss.item())
        optimizer.zero_grad()
        loss.backward(inputs=list(model.discriminator.parameters()))
        optimizer.step()
    assert np.mean(history[-5:]) < 0.6 * np.mean(history[:5])


def test_the_text_comes_in_gradually() -> None:
    recipe = build(unconditional_steps=2, ramp_steps=4)
    objective, model = recipe.objective, recipe.model.train()
    assert isinstance(objective, AdversarialLoss)
    weights: list[float] = []
    for _ in range(8):
        weights.append(objective.text_weight_at(model))
        assert recipe.hooks.after_step is not None
        recipe.hooks.after_step(model)
    assert weights == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert objective.text_weight_at(model.eval()) == 1


def test_rows_without_a_text_are_trained_on() -> None:
    recipe = build(unconditional_steps=0, ramp_steps=0)
    batch = make_batch(4).with_columns(present={"caption": torch.tensor([True, False, True, True])})
    losses = recipe.objective(recipe.model.train(), batch)
    assert all(loss.isfinite() for loss in losses.values())


def test_the_same_seed_gives_the_same_image_in_any_batch() -> None:
    recipe = build()
    for p in recipe.model.parameters():
        nn.init.normal_(p, std=0.1)
    generate = recipe.verbs["generate"]
    together = generate(text=TEXTS, n=2, seed=3, batch_size=3)
    alone = generate(text="the green cat", n=2, seed=3)
    for a, b in zip(together[2:4], alone, strict=True):
        assert np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max() <= 1
    assert generate(n=1, text=[None])[0].size == (16, 16)


def test_a_side_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(SensoriumError, match="Images of 26 pixels cannot be halved"):
        build(size=26)


def test_a_run_is_trained_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:02}.png")
        (tmp_path / "photos" / f"{i:02}.txt").write_text(f"picture {i % 4}\n")
    data = sn.Dataset.open(str(tmp_path / "photos"), types={"image": "image:size=16"})
    options: dict[str, Any] = {**SMALL, "epochs": 3, "batch_size": 8, "quiet": True}
    options |= {"unconditional_steps": 1, "ramp_steps": 2}
    model = sn.train(gan, data, out=tmp_path / "run", **options)
    assert int(model.module.step) > 0
    loaded = sn.load(tmp_path / "run")
    a, b = (m.generate(text="picture 1", seed=1)[0].tobytes() for m in (model, loaded))
    assert a == b
