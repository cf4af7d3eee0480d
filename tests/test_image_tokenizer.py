"""Pictures as codes: the autoencoder, the losses it learns by, the recipe, and a run that stops and goes on."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as Pillow

from sensorium.data.dataset import Dataset
from sensorium.data.schema import Column, Schema
from sensorium.data.tables import Table
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
from sensorium.recipes.recipe import build_recipe
from sensorium.training.loop import train

IMAGE = Image(size=16, mean=(0.6, 0.5, 0.4), std=(0.2, 0.3, 0.25))
SMALL = {"dim": 32, "layers": 1, "width": 8}


def made(quantizer: Quantizer, laplace: bool = False, patch: int = 4) -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(
        IMAGE, quantizer, patch_size=patch, dim=32, blocks_per_scale=1, laplace=laplace
    )


def pictures(n: int = 6) -> torch.Tensor:
    return IMAGE.fake(n, torch.Generator().manual_seed(0))


def dataset(n: int = 40) -> Dataset:
    """Squares of two colours; every eighth judges."""
    rng = np.random.default_rng(0)
    drawn = [
        np.kron(rng.integers(0, 256, (2, 2, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        for _ in range(n)
    ]
    values = np.empty(n, object)
    values[:] = drawn
    table = Table({"image": values}, [f"squares:{i}" for i in range(n)], root=Path())
    return Dataset(table, Schema({"image": Column("image", Image(size=16))}), "squares")


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_a_picture_becomes_a_grid_and_comes_back(patch: int) -> None:
    model, x = made(FSQ(), patch=patch).eval(), pictures()
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
def test_what_is_decoded_is_what_was_trained(quantizer: Quantizer, laplace: bool) -> None:
    model, x = made(quantizer, laplace).eval(), pictures()
    found = model(x)
    assert torch.equal(found.ids, model.encode(x))
    torch.testing.assert_close(model.decode(found.ids), found.pixels)


def test_each_code_stands_for_its_own_place() -> None:
    model, ids = made(FSQ(), patch=2).eval(), torch.zeros(1, 8, 8, dtype=torch.long)
    other = ids.clone()
    other[0, 7, 7] = 300
    changed = (model.decode(ids) - model.decode(other)).abs().amax((0, 1)) > 1e-6
    assert changed[14:, 14:].all()
    assert not changed[:8, :8].any()


def test_pictures_of_another_shape_keep_their_grid() -> None:
    model = made(FSQ()).eval()
    ids = model.encode(torch.randn(1, 3, 8, 32))
    assert ids.shape == (1, 2, 8)
    assert model.decode(ids).shape == (1, 3, 8, 32)


@pytest.mark.parametrize("patch", [0, 1, 3, 12, 32])
def test_a_patch_that_does_not_fit_is_said(patch: int) -> None:
    with pytest.raises(SensoriumError, match=f"patch={patch}"):
        made(FSQ(), patch=patch)


def test_logit_laplace_is_a_density_of_squeezed_pixels() -> None:
    u = torch.linspace(-25, 25, 1001).double()  # logits: the density falls off evenly on both sides
    x = u.sigmoid()
    for location, log_scale in ((0.0, 0.0), (1.5, -1.0), (-2.0, 0.5)):
        said = torch.tensor([location] * 3 + [log_scale] * 3).double().view(1, 6, 1, 1)
        each = torch.stack(
            [logit_laplace_loss(said, unit.expand(1, 3, 1, 1)) for unit in (x - 0.1) / 0.8]
        )
        assert torch.trapezoid((-each).exp() * x * (1 - x), u).item() == pytest.approx(1, abs=5e-3)


def test_the_likeliest_pixel_is_what_the_location_says() -> None:
    target = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    right = squeeze_pixels(target).logit()
    said = torch.cat([right, torch.full_like(right, -2)], 1)
    best = logit_laplace_loss(said, target)
    for moved in (right + 0.1, right - 0.1):
        assert logit_laplace_loss(torch.cat([moved, said[:, 3:]], 1), target) > best
    torch.testing.assert_close(unsqueeze_pixels(said[:, :3].sigmoid()), target)
    assert squeeze_pixels(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.1, 0.9])


def test_edges_see_shape_and_not_brightness() -> None:
    a = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    b = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert edge_distance(a, a).item() == 0
    assert edge_distance(a, a + 0.2).item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(edge_distance(a, b), edge_distance(b, a))
    blurred = F.avg_pool2d(F.pad(a, (1, 1, 1, 1), mode="replicate"), 3, 1)
    assert 0 < edge_distance(a, blurred) < edge_distance(a, b)


@pytest.mark.parametrize("pixel", ["l1", "l2", "laplace"])
def test_the_loss_is_the_same_for_a_batch_twice_over(pixel: str) -> None:
    model = made(GumbelQuantizer(32, 8, anneal_steps=5), pixel == "laplace").eval()
    for _ in range(3):
        model.after_step()
    objective, x = ReconstructionLoss("image", pixel), pictures()
    once, twice = (objective(model, Batch({"image": torch.cat([x] * n)}))["model"] for n in (1, 2))
    torch.testing.assert_close(once, twice)


def test_a_missing_picture_is_left_out() -> None:
    model, x = made(FSQ()).eval(), pictures()
    gap = Batch({"image": x}, {"image": torch.tensor([True, True, False, True, False, True])})
    torch.testing.assert_close(
        ReconstructionLoss("image")(model, gap)["model"],
        ReconstructionLoss("image")(model, Batch({"image": x[[0, 1, 3, 5]]}))["model"],
    )


def test_pixels_are_compared_on_one_scale_whatever_the_settings() -> None:
    model, x = made(FSQ()).eval(), pictures()
    found = model.denormalize(model(x).pixels) - model.denormalize(x)
    torch.testing.assert_close(
        ReconstructionLoss("image", "l2", 0)(model, Batch({"image": x}))["model"],
        found.square().mean(),
    )


def test_figures_of_codes() -> None:
    assert codebook_perplexity(torch.ones(512)) == pytest.approx(512)
    assert codebook_perplexity(torch.tensor([0.0, 9, 0])) == pytest.approx(1)
    assert codebook_perplexity(torch.tensor([3.0, 3, 0])) == pytest.approx(2)
    assert psnr(0.01) == pytest.approx(20)
    assert psnr(0) == float("inf")


@pytest.mark.parametrize(("pixel", "part"), [("laplace", 1.0), ("l2", 0.04), ("l1", 0.04)])
def test_kl_weighs_as_much_as_codes_do_among_values(pixel: str, part: float) -> None:
    schema = Schema({"image": Column("image", IMAGE)})
    for patch in (2, 4):
        made = build_recipe(
            image_tokenizer,
            schema,
            {**SMALL, "quantizer": "dvae", "pixel": pixel, "patch_size": patch},
        )[0]
        assert made.model.quantizer.weight == pytest.approx(part / (3 * patch**2))


def test_fsq_says_which_vocabularies_it_has() -> None:
    schema = Schema({"image": Column("image", IMAGE)})
    with pytest.raises(SensoriumError, match="64, 512, 1000"):
        build_recipe(image_tokenizer, schema, {"vocab": 300})
    for wrong in (
        {"quantizer": "vq", "vocab": 0},
        {"quantizer": "dvae", "width": 0},
        {"layers": -1},
        {"dim": 0},
    ):
        with pytest.raises(SensoriumError, match="or more"):
            build_recipe(image_tokenizer, schema, {**SMALL, **wrong})
    for vocab in (64, 512, 1000, 4096, 16384):
        assert (
            build_recipe(image_tokenizer, schema, {"vocab": vocab, **SMALL})[0].model.vocab_size
            == vocab
        )


@pytest.mark.parametrize(
    "keywords",
    [
        {"quantizer": "fsq"},
        {"quantizer": "vq", "vocab": 64},
        {"quantizer": "dvae", "vocab": 64, "pixel": "laplace", "anneal": 6},
    ],
    ids=lambda k: k["quantizer"],
)
def test_a_run_says_pictures_again_and_resumes_bit_for_bit(
    keywords: dict[str, object], tmp_path: Path
) -> None:
    how = {
        **SMALL,
        **keywords,
        "batch_size": 8,
        "epochs": 2,
        "lr": 1e-3,
        "precision": "fp32",
        "quiet": True,
        "eval_interval": 2,
    }  # the interrupted run is not judged half-way either
    data = dataset()
    whole = train(image_tokenizer, data, out=tmp_path / "whole", **how)
    half = tmp_path / "half"
    run_for(half, data, how, steps=4)
    again = train(image_tokenizer, data, out=half, resume=True, quiet=True)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    assert whole.fingerprint == again.fingerprint
    moved = {"vq": lambda q: q.counts.sum() > 0, "dvae": lambda q: q.step > 0}
    assert moved.get(str(keywords["quantizer"]), lambda q: True)(whole.module.quantizer), (
        "no step was taken in"
    )
    said = whole.generate(image=data.raw("image", [0, 1, 2]))
    assert [picture.size for picture in said] == [(16, 16)] * 3
    assert (tmp_path / "whole" / "samples").is_dir()


def run_for(folder: Path, data: Dataset, how: dict[str, object], steps: int) -> None:
    """A run that ends after so many steps, as if its machine had."""
    from sensorium.recipes.recipe import dry_build
    from sensorium.training.run_setup import create_run

    folder.mkdir()
    given = {k: v for k, v in how.items() if k != "quiet"}
    run = create_run(
        image_tokenizer, data, folder, given, dry_build(image_tokenizer, data.schema, given)
    )
    batches = iter(run.loader)
    for k in range(steps):
        run.train_step(next(batches), k)
        run.progress.step += 1
    run.save()


def test_pictures_may_be_named_or_given(tmp_path: Path) -> None:
    model = build_recipe(image_tokenizer, Schema({"image": Column("image", IMAGE)}), SMALL)[0]
    Pillow.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    said = model.verbs["generate"](image=[tmp_path / "red.png", np.zeros((5, 5, 3), np.uint8)])
    assert [picture.size for picture in said] == [(16, 16)] * 2
    with pytest.raises(SensoriumError, match="nothing.png"):
        model.verbs["generate"](image=[tmp_path / "nothing.png"])
