"""Invariants of every built-in recipe, in small variants of each."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from fixtures.recipe_cases import RECIPE_CASES, SCHEMA, build, fake_batch

from sensorium.inference.predict import Prediction
from sensorium.io.tensors import load_weights, state_tensors, tensor_writer
from sensorium.recipes import RECIPES
from sensorium.recipes.recipe import InvalidKeywordError, build_recipe, check_choice

IMAGES = list(np.random.default_rng(0).integers(0, 256, (2, 20, 16, 3), dtype=np.uint8))
TEXTS = ["a red bicycle", "two blue cats"]
RAW_VALUES: dict[str, list[Any]] = {
    "image": IMAGES,
    "caption": TEXTS,
    "price": [1.5, None],
    "kind": ["a", "b"],
    "stars": ["2", "4"],
    "day": ["2020-01-02", "2021-03-04"],
    "genres": [["x"], ["x", "y"]],
}
VERBS = {
    "captioner": {"generate"},
    "clip": {"embed"},
    "dalle": {"generate"},
    "finetune": {"embed"},
    "fusion": {"predict"},
    "gpt": {"generate"},
    "image_tokenizer": {"generate"},
    "lit": {"embed"},
}


def cases() -> list[object]:
    return [
        pytest.param(
            name,
            {**case.small, **variant},
            id=f"{name}-{'-'.join(map(str, variant.values())) or 'plain'}",
        )
        for name, case in RECIPE_CASES.items()
        for variant in case.variants
    ]


def loss_values(name: str, keywords: Mapping[str, object], weights: Path) -> dict[str, float]:
    """Return the losses of a recipe with weights from a file."""
    torch.manual_seed(1)
    recipe, _ = build_recipe(RECIPES[name], RECIPE_CASES[name].schema, keywords)
    load_weights(recipe.model, weights)
    losses = recipe.objective(recipe.model.eval(), fake_batch(name))
    return {player: loss.item() for player, loss in losses.items()}


def assert_embeds(embed: Callable[..., np.ndarray]) -> None:
    vectors = {"image": embed(image=IMAGES), "text": embed(text=TEXTS)}
    assert vectors["image"].shape == vectors["text"].shape
    for values in vectors.values():
        assert len(values) == 2
        np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-5)


def assert_generates(
    name: str, keywords: Mapping[str, object], generate: Callable[..., Any]
) -> None:
    inputs: dict[str, Any]
    match name:
        case "captioner":
            inputs = {"image": IMAGES, "max_tokens": 3}
            if "question" in keywords:
                inputs["question"] = TEXTS
        case "gpt":
            inputs = {"text": TEXTS, "max_tokens": 3}
        case "dalle":
            inputs = {"text": TEXTS}
        case _:
            inputs = {"image": IMAGES}
    outputs = generate(**inputs)
    assert len(outputs) == 2
    if name in ("captioner", "gpt"):
        assert all(isinstance(text, str) for text in outputs)
        assert outputs == generate(**inputs)
    else:
        assert [image.size for image in outputs] == [(16, 16), (16, 16)]
        assert all(isinstance(image, PIL.Image.Image) for image in outputs)


def assert_predicts(
    keywords: Mapping[str, Any], predict: Callable[..., dict[str, Prediction]]
) -> None:
    target = keywords["target"]
    targets = {target} if isinstance(target, str) else set(target)
    columns = keywords.get("columns", RAW_VALUES.keys() - targets)
    predictions = predict(**{name: RAW_VALUES[name] for name in columns})
    assert set(predictions) == targets
    for prediction in predictions.values():
        assert len(prediction.value) == 2
        if prediction.probability is not None:
            assert ((prediction.probability >= 0) & (prediction.probability <= 1)).all()
        else:
            assert np.isfinite(np.array(prediction.value, float)).all()


def test_every_recipe_has_a_case() -> None:
    assert set(RECIPE_CASES) == set(RECIPES) == set(VERBS)


@pytest.mark.parametrize(("name", "keywords"), cases())
class TestRecipe:
    def test_losses_are_finite_scalars(self, name: str, keywords: dict[str, object]) -> None:
        recipe = build(name, keywords)
        for player, loss in recipe.objective(recipe.model, fake_batch(name)).items():
            assert loss.shape == (), player
            assert loss.isfinite(), player

    def test_exactly_trainable_parameters_get_gradients(
        self, name: str, keywords: dict[str, object]
    ) -> None:
        recipe = build(name, keywords)
        for loss in recipe.objective(recipe.model, fake_batch(name)).values():
            loss.backward(retain_graph=True)
        for parameter_name, p in recipe.model.named_parameters():
            assert (p.grad is not None) == p.requires_grad, parameter_name

    def test_loss_falls_on_a_repeated_batch(self, name: str, keywords: dict[str, object]) -> None:
        recipe, batch = build(name, keywords), fake_batch(name)
        optimizer = torch.optim.AdamW(recipe.model.parameters(), lr=3e-3)
        losses = []
        for _ in range(150):
            loss = torch.stack([*recipe.objective(recipe.model, batch).values()]).sum()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if recipe.hooks.after_step:
                recipe.hooks.after_step(recipe.model)
        max_ratio = 0.5
        if keywords.get("language_model"):
            max_ratio = 0.85
        if keywords.get("label_smoothing"):
            max_ratio = 0.75
        assert losses[-1] < max_ratio * losses[0]

    def test_saved_weights_give_the_same_losses(
        self, name: str, keywords: dict[str, object], tmp_path: Path
    ) -> None:
        recipe = build(name, keywords)
        path = tmp_path / "model.safetensors"
        tensor_writer(state_tensors(recipe.model))(path)
        losses = recipe.objective(recipe.model.eval(), fake_batch(name))
        expected = {player: loss.item() for player, loss in losses.items()}
        assert loss_values(name, keywords, path) == expected

    def test_verbs_return_results(self, name: str, keywords: dict[str, object]) -> None:
        recipe = build(name, keywords)
        assert set(recipe.verbs) == VERBS[name]
        for verb, call in recipe.verbs.items():
            match verb:
                case "embed":
                    assert_embeds(call)
                case "generate":
                    assert_generates(name, keywords, call)
                case _:
                    assert_predicts(keywords, call)

    def test_meta_device_build_has_the_same_parameters(
        self, name: str, keywords: dict[str, object]
    ) -> None:
        with torch.device("meta"):
            meta, _ = build_recipe(RECIPES[name], RECIPE_CASES[name].schema, keywords)
        parameters = dict(meta.model.named_parameters())
        assert all(p.is_meta for p in parameters.values())
        real = build(name, keywords).model.named_parameters()
        assert {n: p.shape for n, p in parameters.items()} == {n: p.shape for n, p in real}


def test_unknown_keyword_suggests_the_closest_one() -> None:
    with pytest.raises(TypeError, match="Did you mean 'text_layers'"):
        build_recipe(RECIPES["clip"], SCHEMA, {"text_layer": 3})


def test_invalid_choice_names_the_option_and_the_choices() -> None:
    with pytest.raises(TypeError, match="--augment 'wild' is not one of none, light, strong"):
        build_recipe(RECIPES["clip"], SCHEMA, {"augment": "wild"})
    with pytest.raises(
        InvalidKeywordError, match="--image-encoder 'vti' is not one of vit, resnet"
    ):
        check_choice("image_encoder", "vti", ["vit", "resnet"])


def test_class_weight_changes_the_loss_of_unbalanced_classes() -> None:
    batch = fake_batch("fusion")
    losses = []
    for class_weight in (None, "balanced"):
        recipe = build("fusion", {**RECIPE_CASES["fusion"].small, "class_weight": class_weight})
        losses.append(recipe.objective(recipe.model.eval(), batch)["model"].item())
    assert losses[0] != losses[1]


def test_every_keyword_is_stored() -> None:
    _, keywords = build_recipe(RECIPES["clip"], SCHEMA, {"dim": 32, "lr": 0.5})
    assert keywords["dim"] == 32
    assert keywords["lr"] == 0.5
    assert keywords["image_layers"] == 6
    assert keywords["patch_size"] is None
    assert keywords["seed"] == 0


def test_dry_build_does_not_import_the_compiler() -> None:
    """Arithmetic on meta tensors would, at a second of CPU time. Pretrained layouts may."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fixtures.recipe_cases import RECIPE_CASES, RECIPES
from sensorium.recipes.recipe import dry_build
for name, case in RECIPE_CASES.items():
    for variant in case.variants:
        keywords = {{**case.small, **variant}}
        if any(isinstance(value, dict) for value in keywords.values()):
            continue
        dry_build(RECIPES[name], case.schema, keywords)
        assert "torch._dynamo" not in sys.modules, (name, variant)"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert not process.returncode, process.stderr


@pytest.mark.parametrize("name", ["captioner", "gpt"])
def test_label_smoothing_changes_the_loss(name: str) -> None:
    batch = fake_batch(name)
    losses = []
    for label_smoothing in (0.0, 0.3):
        recipe = build(name, {**RECIPE_CASES[name].small, "label_smoothing": label_smoothing})
        losses.append(recipe.objective(recipe.model.eval(), batch)["model"].item())
    assert losses[0] != losses[1]
