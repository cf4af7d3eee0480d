"""Tests of the image tokenizer: the autoencoder, its losses, the recipe, and resuming a run."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures.square_images import SMALL_TOKENIZER, square_images
from PIL import Image as Pillow

from sensorium.data.dataset import Dataset
from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.metrics.image_generation import codebook_perplexity, psnr
from sensorium.modalities.image import Image
from sensorium.models.image_tokenizer import ImageTokenizer, squeeze_pixels, unsqueeze_pixels
from sensorium.nn.tokens import Batch
from sensorium.nn.vector_quantize import FSQ, VQ, GumbelQuantizer, Quantizer
from sensorium.objectives.reconstruction import (
    ReconstructionLoss,
    edge_distance,
    logit_laplace_loss,
)
from sensorium.recipes import image_tokenizer
from sensorium.recipes.recipe import build_recipe, dry_build
from sensorium.training.loop import train
from sensorium.training.run_setup import create_run

IMAGE = Image(size=16, mean=(0.6, 0.5, 0.4), std=(0.2, 0.3, 0.25))


def build_tokenizer(quantizer: Quantizer, laplace: bool = False, patch: int = 4) -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(
        IMAGE, quantizer, patch_size=patch, dim=32, blocks_per_scale=1, laplace=laplace
    )


def random_images(n: int = 6) -> torch.Tensor:
    return IMAGE.fake(n, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_encode_and_decode_have_the_right_shapes(patch: int) -> None:
    model, x = build_tokenizer(FSQ(), patch=patch).eval(), random_images()
    ids = model.encode(x)
    assert ids.shape == (6, 16 // patch, 16 // patch)
    assert model.grid_size == 16 // patch
    assert ids.max() < model.vocab_size
    assert model.decode(ids).shape == x.shape


@pytest.mark.parametrize(
    "quantizer",
    [FSQ(), VQ(32, 8), GumbelQuantizer(32, 8, anneal_steps=5)],
    ids=lambda q: type(q).__name__,
)
@pytest.mark.parametrize("laplace", [False, True])
def test_decode_equals_the_training_forward(quantizer: Quantizer, laplace: bool) -> None:
    model, x = build_tokenizer(quantizer, laplace).eval(), random_images()
    result = model(x)
    assert torch.equal(result.ids, model.encode(x))
    torch.testing.assert_close(model.decode(result.ids), result.pixels)


def test_token_changes_only_its_neighborhood() -> None:
    model, ids = build_tokenizer(FSQ(), patch=2).eval(), torch.zeros(1, 8, 8, dtype=torch.long)
    other = ids.clone()
    other[0, 7, 7] = 300
    changed = (model.decode(ids) - model.decode(other)).abs().amax((0, 1)) > 1e-6
    assert changed[14:, 14:].all()
    assert not changed[:8, :8].any()


def test_images_of_another_shape_have_a_grid_of_that_shape() -> None:
    model = build_tokenizer(FSQ()).eval()
    ids = model.encode(torch.randn(1, 3, 8, 32))
    assert ids.shape == (1, 2, 8)
    assert model.decode(ids).shape == (1, 3, 8, 32)


@pytest.mark.parametrize("patch", [0, 1, 3, 12, 32])
def test_patch_size_that_does_not_fit_is_an_error(patch: int) -> None:
    with pytest.raises(SensoriumError, match=f"--patch-size {patch} does not fit"):
        build_tokenizer(FSQ(), patch=patch)


def test_logit_laplace_density_integrates_to_one() -> None:
    u = torch.linspace(-25, 25, 1001).double()  # logits of pixels
    x = u.sigmoid()
    for location, log_scale in ((0.0, 0.0), (1.5, -1.0), (-2.0, 0.5)):
        outputs = torch.tensor([location] * 3 + [log_scale] * 3).double().view(1, 6, 1, 1)
        each = torch.stack(
            [logit_laplace_loss(outputs, unit.expand(1, 3, 1, 1)) for unit in (x - 0.1) / 0.8]
        )
        assert torch.trapezoid((-each).exp() * x * (1 - x), u).item() == pytest.approx(1, abs=5e-3)


def test_logit_laplace_mode_is_at_its_location() -> None:
    target = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    location = squeeze_pixels(target).logit()
    outputs = torch.cat([location, torch.full_like(location, -2)], 1)
    best = logit_laplace_loss(outputs, target)
    for moved in (location + 0.1, location - 0.1):
        assert logit_laplace_loss(torch.cat([moved, outputs[:, 3:]], 1), target) > best
    torch.testing.assert_close(unsqueeze_pixels(outputs[:, :3].sigmoid()), target)
    assert squeeze_pixels(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.1, 0.9])


def test_edge_distance_ignores_brightness() -> None:
    a = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    b = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert edge_distance(a, a).item() == 0
    assert edge_distance(a, a + 0.2).item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(edge_distance(a, b), edge_distance(b, a))
    blurred = F.avg_pool2d(F.pad(a, (1, 1, 1, 1), mode="replicate"), 3, 1)
    assert 0 < edge_distance(a, blurred) < edge_distance(a, b)


@pytest.mark.parametrize("pixel", ["l1", "l2", "laplace"])
def test_loss_is_a_mean_over_the_batch(pixel: str) -> None:
    model = build_tokenizer(GumbelQuantizer(32, 8, anneal_steps=5), pixel == "laplace").eval()
    for _ in range(3):
        model.after_step()
    objective, x = ReconstructionLoss("image", pixel), random_images()
    once, twice = (objective(model, Batch({"image": torch.cat([x] * n)}))["model"] for n in (1, 2))
    torch.testing.assert_close(once, twice)


def test_missing_images_are_left_out_of_the_loss() -> None:
    model, x = build_tokenizer(FSQ()).eval(), random_images()
    gap = Batch({"image": x}, {"image": torch.tensor([True, True, False, True, False, True])})
    torch.testing.assert_close(
        ReconstructionLoss("image")(model, gap)["model"],
        ReconstructionLoss("image")(model, Batch({"image": x[[0, 1, 3, 5]]}))["model"],
    )


def test_pixel_loss_is_on_the_scale_0_to_1() -> None:
    model, x = build_tokenizer(FSQ()).eval(), random_images()
    result = model.denormalize(model(x).pixels) - model.denormalize(x)
    torch.testing.assert_close(
        ReconstructionLoss("image", "l2", 0)(model, Batch({"image": x}))["model"],
        result.square().mean(),
    )


def test_codebook_perplexity_and_psnr() -> None:
    assert codebook_perplexity(torch.ones(512)) == pytest.approx(512)
    assert codebook_perplexity(torch.tensor([0.0, 9, 0])) == pytest.approx(1)
    assert codebook_perplexity(torch.tensor([3.0, 3, 0])) == pytest.approx(2)
    assert psnr(0.01) == pytest.approx(20)
    assert psnr(0) == float("inf")


@pytest.mark.parametrize(("pixel", "part"), [("laplace", 1.0), ("l2", 0.04), ("l1", 0.04)])
def test_kl_weight_follows_the_patch_size(pixel: str, part: float) -> None:
    schema = Schema({"image": Column("image", IMAGE)})
    for patch in (2, 4):
        keywords = {
            **SMALL_TOKENIZER,
            "quantizer": "dvae",
            "pixel_loss": pixel,
            "patch_size": patch,
        }
        quantizer = build_recipe(image_tokenizer, schema, keywords)[0].model.quantizer
        assert isinstance(quantizer, GumbelQuantizer)
        assert quantizer.kl_weight == pytest.approx(part / (3 * patch**2))


def test_invalid_sizes_are_errors() -> None:
    schema = Schema({"image": Column("image", IMAGE)})
    with pytest.raises(SensoriumError, match="64, 512, 1000"):
        build_recipe(image_tokenizer, schema, {"vocab": 300})
    for wrong in (
        {"quantizer": "vq", "vocab": 0},
        {"quantizer": "dvae", "codebook_dim": 0},
        {"layers": -1},
        {"dim": 0},
    ):
        with pytest.raises(SensoriumError, match=r"at least|or more"):
            build_recipe(image_tokenizer, schema, {**SMALL_TOKENIZER, **wrong})
    for vocab in (64, 512, 1000, 4096, 16384):
        assert (
            build_recipe(image_tokenizer, schema, {"vocab": vocab, **SMALL_TOKENIZER})[
                0
            ].model.vocab_size
            == vocab
        )


@pytest.mark.parametrize(
    "keywords",
    [
        {"quantizer": "fsq"},
        {"quantizer": "vq", "vocab": 64},
        {"quantizer": "dvae", "vocab": 64, "pixel_loss": "laplace", "anneal_steps": 6},
    ],
    ids=lambda k: k["quantizer"],
)
def test_run_reconstructs_images_and_resumes_bit_for_bit(
    keywords: dict[str, object], tmp_path: Path
) -> None:
    settings = {
        **SMALL_TOKENIZER,
        **keywords,
        "batch_size": 8,
        "epochs": 2,
        "lr": 1e-3,
        "precision": "fp32",
        "quiet": True,
        "eval_interval": 2,
    }  # no evaluation before the interruption
    data = square_images()
    uninterrupted = train(image_tokenizer, data, out=tmp_path / "uninterrupted", **settings)
    resumed_folder = tmp_path / "resumed_folder"
    interrupted_run(resumed_folder, data, settings, steps=4)
    again = train(image_tokenizer, data, out=resumed_folder, resume=True, quiet=True)
    for name, value in uninterrupted.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    assert uninterrupted.fingerprint == again.fingerprint
    quantizer = uninterrupted.module.quantizer
    if isinstance(quantizer, VQ):
        assert quantizer.ema_counts.sum() > 0, "after_step was not called"
    if isinstance(quantizer, GumbelQuantizer):
        assert quantizer.step > 0, "after_step was not called"
    reconstructed = uninterrupted.generate(image=data.raw("image", [0, 1, 2]))
    assert [image.size for image in reconstructed] == [(16, 16)] * 3
    assert (tmp_path / "uninterrupted" / "samples").is_dir()


def interrupted_run(folder: Path, data: Dataset, settings: dict[str, object], steps: int) -> None:
    """Train for some steps, save, and stop."""
    folder.mkdir()
    keywords = {k: v for k, v in settings.items() if k != "quiet"}
    recipe = dry_build(image_tokenizer, data.schema, keywords)
    run = create_run(image_tokenizer, data, folder, keywords, recipe)
    batches = iter(run.loader)
    for k in range(steps):
        run.train_step(next(batches), k)
        run.progress.step += 1
    run.save()


def test_generate_takes_paths_and_arrays(tmp_path: Path) -> None:
    recipe = build_recipe(
        image_tokenizer, Schema({"image": Column("image", IMAGE)}), SMALL_TOKENIZER
    )[0]
    Pillow.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    images = [tmp_path / "red.png", np.zeros((5, 5, 3), np.uint8)]
    reconstructed = recipe.verbs["generate"](image=images)
    assert [image.size for image in reconstructed] == [(16, 16)] * 2
    with pytest.raises(SensoriumError, match=r"missing\.png"):
        recipe.verbs["generate"](image=[tmp_path / "missing.png"])
