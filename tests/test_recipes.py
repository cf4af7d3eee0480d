"""One test over everything shipped: whatever a recipe is made of, this must hold."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sensorium.data.schema import Column, Schema
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.modalities.text import Text
from sensorium.nn.tokens import Batch
from sensorium.recipes import RECIPES
from sensorium.recipes.recipe import Recipe, build_recipe

SCHEMA = Schema(
    {
        "image": Column("image", Image(size=16)),
        "caption": Column("caption", Text(length=12, vocab_size=300)),
    }
)


@dataclass(frozen=True)
class Shipped:
    """How one recipe is tried: keywords that keep it small, variants of them, and what it is shown."""

    small: Mapping[str, object]
    variants: Sequence[Mapping[str, object]] = ({},)
    schema: Schema = SCHEMA


PUBLISHED_CLIP = {
    "source": "theirs",
    "family": "clip",
    "config": {
        "projection_dim": 16,
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        "text_config": {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": 300,
            "max_position_embeddings": 12,
            "eos_token_id": 2,
        },
    },
}
OUR_CLIP = {
    "source": "ours",
    "fingerprint": "",
    "recipe": "clip_small",
    "image": Image(size=16).to_json(),
    "keywords": {"dim": 32, "text_layers": 1, "embed_dim": 16},
}
PUBLISHED_LLAMA = {
    "source": "theirs",
    "family": "llama",
    "config": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
        "layout": "safetensors",
        "tied": False,
        "qkv_bias": False,
        "out_bias": False,
    },
}
QUESTIONS = Schema(
    {**SCHEMA.columns, "question": Column("question", Text(length=8, vocab_size=300))}
)
SINGLE = {
    "price": Numeric(edges=(-2.0, 0.0, 0.5, 2.0), count=8),
    "kind": Category(("a", "b", "c"), (4, 2, 2)),
    "stars": Ordinal(("1", "2", "3", "4"), (2, 2, 2, 2)),
    "day": Datetime(),
    "genres": Multilabel("|", ("x", "y"), (4, 5), 8),
}
ROWS = Schema(
    {**SCHEMA.columns, **{name: Column(name, modality) for name, modality in SINGLE.items()}}
)
FUSIONS = ["sum", "gated", "attention", "sequence", "parallel", "bottleneck", "product"]

SHIPPED = {
    "captioner": Shipped(
        {"dim": 32, "layers": 2, "dropout": 0.0},
        [
            {},
            {"vision": "patches"},
            {"question": "question"},
            {"dropout": 0.1},
            {"label_smoothing": 0.1},
            {"clip_run": OUR_CLIP},
            {"vision_weights": PUBLISHED_CLIP},
            {"language_model": PUBLISHED_LLAMA},
            {"vision_weights": PUBLISHED_CLIP, "language_model": PUBLISHED_LLAMA},
        ],
        QUESTIONS,
    ),
    "clip": Shipped(
        {"dim": 32, "image_layers": 2, "text_layers": 2, "embed_dim": 16},
        [
            {},
            {"image_encoder": "resnet"},
            {"loss": "siglip"},
            {"projection": "nonlinear"},
            {"projection": "multiscale"},
            {"dropout": 0.1},
            {"label_smoothing": 0.1},
        ],
    ),
    "clip_small": Shipped({"dim": 32, "text_layers": 1, "embed_dim": 16}),
    "dalle": Shipped(
        {"dim": 32, "layers": 2, "dropout": 0.0}, [{}, {"dropout": 0.1}, {"caption_dropout": 0.0}]
    ),
    "finetune": Shipped({"weights": PUBLISHED_CLIP}, [{}, {"train": "lora"}, {"train": "none"}]),
    "fusion": Shipped(
        {"target": "kind", "dim": 32, "layers": 1, "dropout": 0.0, "modality_dropout": 0.0},
        [
            {},
            *({"fusion": how} for how in FUSIONS),
            {"fusion": "sequence", "projection": "multiscale"},
            {"projection": "multiscale"},
            {"projection": "nonlinear"},
            {"target": "price"},
            {"target": "stars"},
            {"target": "genres"},
            {"target": ("price", "kind", "genres")},
            {"columns": ("image", "caption")},
            {"columns": ("price", "day")},
            {"contrastive_weight": 0.1},
            {"head": "balanced"},
            {"head": "boosting"},
            {"modality_dropout": 0.05},
            {"mixup": 0.1},
            {"encoders": {"image": "cnn", "caption": "gru"}},
        ],
        ROWS,
    ),
    "lit": Shipped(
        {"image_weights": PUBLISHED_CLIP, "text_weights": PUBLISHED_CLIP, "embed_dim": 16},
        [{}, {"image_train": "lora", "text_train": "all"}, {"projection": "linear"}],
    ),
    "gpt": Shipped({"dim": 32, "layers": 2, "dropout": 0.0}),
    "image_tokenizer": Shipped(
        {"dim": 32, "layers": 1, "width": 8},
        [
            {},
            {"quantizer": "vq"},
            {"quantizer": "dvae", "pixel": "laplace"},
            {"pixel": "l1"},
            {"quantizer": "vq", "restart": False},
        ],
    ),
}


def cases() -> list[object]:
    assert set(SHIPPED) == set(RECIPES), "every recipe shipped is tried here"
    return [
        pytest.param(
            name, {**how.small, **more}, id=f"{name}-{'-'.join(map(str, more.values())) or 'plain'}"
        )
        for name, how in SHIPPED.items()
        for more in how.variants
    ]


def made(name: str, keywords: Mapping[str, object]) -> Recipe:
    torch.manual_seed(0)
    return build_recipe(RECIPES[name], SHIPPED[name].schema, keywords)[0]


def fake(name: str, n: int = 8) -> Batch:
    """n rows of every column that the recipe may read."""
    rng = torch.Generator().manual_seed(0)
    columns = {c.name: c.modality.fake(n, rng) for c in SHIPPED[name].schema.columns.values()}
    return Batch({**columns}, row=torch.arange(n), group=torch.arange(n))


@pytest.mark.parametrize("name, keywords", cases())
class TestRecipe:
    def test_losses_are_finite_scalars(self, name: str, keywords: dict[str, object]) -> None:
        recipe = made(name, keywords)
        for player, loss in recipe.objective(recipe.model, fake(name)).items():
            assert loss.shape == () and loss.isfinite(), player

    def test_what_may_learn_gets_a_gradient_and_nothing_else(
        self, name: str, keywords: dict[str, object]
    ) -> None:
        recipe = made(name, keywords)
        for loss in recipe.objective(recipe.model, fake(name)).values():
            loss.backward(retain_graph=True)
        for parameter_name, p in recipe.model.named_parameters():
            assert (p.grad is not None) == p.requires_grad, parameter_name

    def test_the_loss_falls_on_what_is_seen_again(
        self, name: str, keywords: dict[str, object]
    ) -> None:
        recipe, batch = made(name, keywords), fake(name)
        optimizer = torch.optim.AdamW(recipe.model.parameters(), lr=3e-3)
        losses = []
        for _ in range(150):
            losses.append(loss := sum(recipe.objective(recipe.model, batch).values()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if recipe.hooks.after_step:
                recipe.hooks.after_step(recipe.model)
        floor = (
            0.75
            if keywords.get("label_smoothing")
            else 0.85
            if keywords.get("language_model")
            else 0.5
        )
        assert losses[-1] < floor * losses[0]

    def test_saved_weights_say_the_same(
        self, name: str, keywords: dict[str, object], tmp_path: Path
    ) -> None:
        recipe, other = (
            made(name, keywords),
            build_recipe(RECIPES[name], SHIPPED[name].schema, keywords)[0],
        )
        save_file(recipe.model.state_dict(), tmp_path / "model.safetensors")
        other.model.load_state_dict(load_file(tmp_path / "model.safetensors"))
        recipe.model.eval(), other.model.eval()
        a, b = (r.objective(r.model, fake(name)) for r in (recipe, other))
        assert {p: v.item() for p, v in a.items()} == {p: v.item() for p, v in b.items()}

    def test_verbs_are_answered(self, name: str, keywords: dict[str, object]) -> None:
        recipe = made(name, keywords)
        assert recipe.verbs
        assert set(recipe.verbs) <= {"embed", "generate", "predict"}

    def test_it_stands_on_the_meta_device(self, name: str, keywords: dict[str, object]) -> None:
        with torch.device("meta"):
            recipe, _ = build_recipe(RECIPES[name], SHIPPED[name].schema, keywords)
        assert all(p.is_meta for p in recipe.model.parameters())


def test_a_typo_is_named_with_what_was_meant() -> None:
    with pytest.raises(TypeError, match="did you mean 'depth'"):
        build_recipe(RECIPES["clip"], SCHEMA, {"dpeth": 3})
    with pytest.raises(TypeError, match="none, light, strong"):
        build_recipe(RECIPES["clip"], SCHEMA, {"augment": "wild"})


def test_every_keyword_is_recorded() -> None:
    _, keywords = build_recipe(RECIPES["clip"], SCHEMA, {"dim": 32, "lr": 0.5})
    assert (keywords["dim"], keywords["lr"], keywords["image_layers"], keywords["seed"]) == (
        32,
        0.5,
        6,
        0,
    )


def test_a_plan_does_not_load_torch_s_compiler() -> None:
    """Arithmetic with tensors on the meta device would: a second of CPU before anything is shown. Published layouts
    may: their places are worked out as their makers do."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_recipes import RECIPES, SHIPPED
from sensorium.recipes.recipe import planned
for name, how in SHIPPED.items():
    for more in how.variants:
        if any(isinstance(value, dict) for value in {{**how.small, **more}}.values()):
            continue
        planned(RECIPES[name], how.schema, {{**how.small, **more}})
        assert "torch._dynamo" not in sys.modules, (name, more)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


@pytest.mark.parametrize("name", ["captioner", "gpt"])
def test_smoothing_reaches_the_loss(name: str) -> None:
    batch, losses = fake(name), []
    for smoothing in (0.0, 0.3):
        recipe = made(name, {**SHIPPED[name].small, "label_smoothing": smoothing})
        losses.append(recipe.objective(recipe.model.eval(), batch)["model"].item())
    assert losses[0] != losses[1]
