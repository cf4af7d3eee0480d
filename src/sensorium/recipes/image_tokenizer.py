"""Pictures as codes: the first stage of DALL-E (dVAE, Ramesh et al. 2021), of VQ-VAE, and of FSQ."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.cache.token_cache import FrozenImageTokenizer
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.inference.base import eval_mode, load_value
from sensorium.inference.request import require_output
from sensorium.io.run_config import RunConfig
from sensorium.metrics.image_generation import codebook_perplexity, psnr
from sensorium.modalities.image import Image
from sensorium.models.image_tokenizer import ImageTokenizer
from sensorium.models.towers import freeze as freeze
from sensorium.nn.vector_quantize import FSQ, VQ, GumbelQuantizer, Quantizer
from sensorium.objectives.reconstruction import PIXEL_LOSSES, ReconstructionLoss
from sensorium.recipes.from_run import restore_run
from sensorium.recipes.recipe import (
    DataSpec,
    EvaluationSpec,
    Hooks,
    Recipe,
    Validate,
    ValidationResult,
    WriteSamples,
    check_choice,
)
from sensorium.recipes.training_config import TrainingConfig

FSQ_LEVELS = {
    512: (8, 8, 8),
    1000: (8, 5, 5, 5),
    4096: (8, 8, 8, 8),
    16384: (8, 8, 8, 8, 4),
    64: (8, 8),
}
KL_WEIGHTS = {
    "laplace": 1.0,
    "l2": 0.04,
    "l1": 0.04,
}  # of the dVAE's weight: a likelihood is far larger than a distance
NUM_SAMPLE_IMAGES, DVAE_LOGIT_SCALE = (
    12,
    8.0,
)  # pictures in a sheet of samples; how sharp a dVAE's first draws are


def image_tokenizer(
    schema: Schema,
    *,
    image: str | None = None,
    quantizer: Literal["fsq", "vq", "dvae"] = "fsq",
    vocab: int = 512,
    patch_size: int = 4,
    dim: int = 128,
    layers: int = 2,
    codebook_dim: int = 64,
    pixel_loss: Literal["l2", "l1", "laplace"] = "l2",
    edge_loss_weight: float = 1.0,
    restart_dead_codes: bool = True,
    anneal_steps: int = 500,
) -> Recipe[ImageTokenizer]:
    """Pictures as a grid of codes and back: what generates pictures as words are generated builds on it.

    Args:
        image: picture column; by default the only one.
        quantizer: fsq (nothing to collapse), vq (a codebook) or dvae (Gumbel relaxation, as in DALL-E).
        vocab: how many codes there are; for fsq one of 64, 512, 1000, 4096, 16384.
        patch_size: pixels of a side that one code stands for: 2, 4, 8, ...
        dim: channels at the grid of codes; half as many at each finer scale.
        layers: residual blocks at each scale.
        codebook_dim: width of a code's vector (vq, dvae).
        pixel_loss: distance of pixels: l2, l1, or laplace, the dVAE's likelihood.
        edge_loss_weight: weight of the distance of edges.
        restart_dead_codes: whether codes that are not used begin anew (vq).
        anneal_steps: updates over which temperature and KL weight move (dvae).
    """
    seen = schema[column := schema.resolve_column("image", image)]
    assert isinstance(seen, Image)  # pick has seen to it
    likely = KL_WEIGHTS[check_choice("pixel", pixel_loss, PIXEL_LOSSES)] / (
        3 * patch_size * patch_size
    )
    middle = {
        "fsq": lambda: FSQ(_fsq_levels(vocab)),
        "vq": lambda: VQ(vocab, codebook_dim, restart_dead_codes=restart_dead_codes),
        "dvae": lambda: GumbelQuantizer(
            vocab,
            codebook_dim,
            anneal_steps=anneal_steps,
            kl_weight=likely,
            logit_scale=DVAE_LOGIT_SCALE,
        ),
    }
    made: Quantizer = middle[check_choice("quantizer", quantizer, list(middle))]()
    model = ImageTokenizer(
        seen,
        made,
        patch_size=patch_size,
        dim=dim,
        blocks_per_scale=layers,
        laplace=pixel_loss == "laplace",
    )
    return Recipe(
        model=model,
        objective=ReconstructionLoss(column, pixel_loss, edge_loss_weight),
        data=DataSpec(
            columns=(column,),
            augment={
                "light": {column: {"flip": 0.5}},
                "strong": {column: {"flip": 0.5, "shift": 0.1, "scale": 0.25}},
            },
        ),
        training=TrainingConfig(epochs=10, lr=2e-3, weight_decay=0.0),
        verbs={"generate": reconstruction_verb(model, seen)},
        hooks=Hooks(after_step=ImageTokenizer.after_step),
        evaluation=EvaluationSpec(
            metric="psnr",
            mode="max",
            validate=reconstruction_validator(column),
            write_samples=reconstruction_sample_writer(column, seen),
        ),
    )


def load_frozen_tokenizer(folder: str | Path) -> FrozenImageTokenizer:
    """A finished run of `codes` as the first stage of another model; `data.codes.coded` says how to use it."""
    if (recipe := RunConfig.load(Path(folder)).recipe) != image_tokenizer.__name__:
        raise SensoriumError(
            f"{folder} is a run of {recipe}; here one of codes is needed: sensorium train codes."
        )
    found = restore_run(folder, image_tokenizer)
    image = found.schema[found.recipe.data.columns[0]]
    assert isinstance(image, Image)
    freeze(found.recipe.model).eval()
    return FrozenImageTokenizer(found.recipe.model, image, found.fingerprint)


def _fsq_levels(vocab: int) -> tuple[int, ...]:
    if vocab not in FSQ_LEVELS:
        raise SensoriumError(
            f"vocab={vocab}: fsq has {', '.join(map(str, sorted(FSQ_LEVELS)))} codes; vq and dvae have "
            "any number."
        )
    return FSQ_LEVELS[vocab]


def reconstruction_verb(
    model: ImageTokenizer, inputs: Image
) -> Callable[..., list[PIL.Image.Image]]:
    """The verb: generate(image=[...]) → the pictures as their codes tell them."""

    def generate(
        modality: str | None = None, /, *, image: Sequence[Any], batch_size: int = 256
    ) -> list[PIL.Image.Image]:
        require_output(modality, "image")
        loaded = [load_value(inputs, value) for value in image]
        with eval_mode(model), torch.inference_mode():
            parts = [
                model.decode(model.encode(inputs.collate(loaded[i : i + batch_size])))
                for i in range(0, len(loaded), batch_size)
            ]
        return [inputs.decode(picture) for part in parts for picture in part]

    return generate


def reconstruction_validator(column: str) -> Validate[ImageTokenizer]:
    """Held-out pictures there and back: mean squared error and PSNR on 0..1, codes used, their perplexity."""

    @torch.inference_mode()
    def evaluate(
        model: ImageTokenizer, prepared: PreparedDataset, rows: np.ndarray
    ) -> ValidationResult:
        squares, used, rows = [], torch.zeros(model.vocab), prepared.complete_rows(rows)
        for start in range(0, len(rows), 256):
            pixels = prepared.batch(rows[start : start + 256])[column]
            ids = model.encode(pixels)
            wrong = model.denormalize(model.decode(ids)).clamp(0, 1) - model.denormalize(pixels)
            squares.append(wrong.square().mean((1, 2, 3)))
            used += torch.bincount(ids.flatten(), minlength=model.vocab)
        mse = torch.cat(squares).mean().item()
        return ValidationResult(
            {
                "psnr": psnr(mse),
                "mse": mse,
                "codes used": float((used > 0).sum()),
                "perplexity": codebook_perplexity(used),
            }
        )

    return evaluate


def reconstruction_sample_writer(column: str, image: Image) -> WriteSamples[ImageTokenizer]:
    """A picture: held-out pictures, and below each what its codes say."""

    @torch.inference_mode()
    def write(
        model: ImageTokenizer, prepared: PreparedDataset, rows: np.ndarray, path: Path
    ) -> None:
        rows = prepared.complete_rows(rows)
        pixels = prepared.batch(
            rows[np.linspace(0, len(rows) - 1, min(NUM_SAMPLE_IMAGES, len(rows))).astype(int)]
        )[column]
        both = torch.cat([pixels, model.decode(model.encode(pixels))], 2)
        sheet = image.decode(torch.cat(list(both), 2))
        sheet.resize((2 * sheet.width, 2 * sheet.height), PIL.Image.Resampling.NEAREST).save(path)

    return write
