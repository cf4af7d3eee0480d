"""Image tokenizers: FSQ, VQ-VAE, and the dVAE of DALL-E.

Sources: Mentzer et al. 2023, van den Oord et al. 2017, Ramesh et al. 2021.

B batch   S image size in pixels   h, w sides of the token grid
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.cache.token_cache import FrozenImageTokenizer
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError, require_type
from sensorium.evaluation.spec import (
    EvaluationSpec,
    Validate,
    ValidationResult,
    WriteSamples,
    picklable,
)
from sensorium.inference.base import eval_mode, load_value
from sensorium.inference.request import require_output
from sensorium.io.run_config import RunConfig
from sensorium.metrics.image_generation import codebook_perplexity, psnr
from sensorium.modalities.image import Image
from sensorium.models.image_tokenizer import ImageTokenizer
from sensorium.models.towers import freeze
from sensorium.nn.vector_quantize import FSQ, VQ, GumbelQuantizer, Quantizer
from sensorium.objectives.reconstruction import PIXEL_LOSSES, ReconstructionLoss
from sensorium.recipes.from_run import require_finished, restore_run
from sensorium.recipes.recipe import DataSpec, Hooks, InvalidKeywordError, Recipe, check_choice
from sensorium.recipes.training_config import TrainingConfig

QUANTIZERS = ["fsq", "vq", "dvae"]
FSQ_LEVELS = {  # vocabulary size -> levels of each dimension
    512: (8, 8, 8),
    1000: (8, 5, 5, 5),
    4096: (8, 8, 8, 8),
    16384: (8, 8, 8, 8, 4),
    64: (8, 8),
}
# Weight of the dVAE's KL term per pixel loss: a log-likelihood is far larger than a distance.
KL_WEIGHTS = {"laplace": 1.0, "l2": 0.04, "l1": 0.04}
DVAE_LOGIT_SCALE = 8.0  # sharpness of the dVAE's initial distribution over tokens
BATCH_SIZE = 256  # images validated at a time
NUM_SAMPLE_IMAGES = 12


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
    """Train an image tokenizer (FSQ, VQ-VAE or dVAE), the first stage of dalle.

    Args:
        schema: columns of the data.
        image: image column. Default: the only one.
        quantizer: quantizer: fsq (no codebook, cannot collapse), vq (learned codebook) or dvae
            (Gumbel softmax, as in DALL-E).
        vocab: vocabulary size; for fsq one of 64, 512, 1000, 4096, 16384.
        patch_size: side in pixels of the patch of one token: a power of two, such as 4 or 8.
        dim: channels at the token grid; half as many at each finer scale.
        layers: residual blocks at each scale.
        codebook_dim: width of a codebook vector (vq, dvae).
        pixel_loss: pixel loss: l2, l1, or laplace (likelihood of the dVAE).
        edge_loss_weight: weight of the loss on image gradients.
        restart_dead_codes: re-initialize codebook vectors that are not used (vq).
        anneal_steps: steps over which the temperature and the KL weight are annealed (dvae).
    """
    check_choice("quantizer", quantizer, QUANTIZERS)
    check_choice("pixel_loss", pixel_loss, PIXEL_LOSSES)
    column = schema.resolve_column("image", image)
    settings = require_type(schema[column], Image)
    built_quantizer: Quantizer
    match quantizer:
        case "fsq":
            built_quantizer = FSQ(_fsq_levels(vocab))
        case "vq":
            built_quantizer = VQ(vocab, codebook_dim, restart_dead_codes=restart_dead_codes)
        case "dvae":
            built_quantizer = GumbelQuantizer(
                vocab,
                codebook_dim,
                anneal_steps=anneal_steps,
                kl_weight=KL_WEIGHTS[pixel_loss] / (3 * patch_size * patch_size),
                logit_scale=DVAE_LOGIT_SCALE,
            )
    model = ImageTokenizer(
        settings,
        built_quantizer,
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
            required=(column,),
            augment={
                "light": {column: {"flip": 0.5}},
                "strong": {column: {"flip": 0.5, "shift": 0.1, "scale": 0.25}},
            },
        ),
        training=TrainingConfig(epochs=10, lr=2e-3, weight_decay=0.0),
        verbs={"generate": reconstruction_verb(model, settings)},
        hooks=Hooks(after_step=ImageTokenizer.after_step),
        evaluation=EvaluationSpec(
            metric="psnr",
            mode="max",
            validate=reconstruction_validator(column),
            write_samples=reconstruction_sample_writer(column, settings),
        ),
    )


def load_frozen_tokenizer(folder: str | Path) -> FrozenImageTokenizer:
    """Load the frozen image tokenizer of a finished run; see `tokenize_images` for its use.

    Raises:
        SensoriumError: where the folder is not a run of image_tokenizer, or not finished.
    """
    recipe = RunConfig.load(Path(folder)).recipe
    if recipe != image_tokenizer.__name__:
        raise SensoriumError(
            f"{folder} is a run of {recipe}. Name a run of image_tokenizer: train one with "
            "sensorium train image_tokenizer DATA."
        )
    require_finished(folder)
    run = restore_run(folder, image_tokenizer)
    image = require_type(run.schema[run.recipe.data.columns[0]], Image)
    freeze(run.recipe.model).eval()
    return FrozenImageTokenizer(run.recipe.model, image, run.fingerprint)


def _fsq_levels(vocab: int) -> tuple[int, ...]:
    if vocab not in FSQ_LEVELS:
        raise InvalidKeywordError(
            f"--vocab {vocab}: fsq has a vocabulary of {', '.join(map(str, sorted(FSQ_LEVELS)))}. "
            "Choose one of them, or --quantizer vq or dvae, which take any."
        )
    return FSQ_LEVELS[vocab]


@picklable
def reconstruction_verb(
    model: ImageTokenizer, image_settings: Image
) -> Callable[..., list[PIL.Image.Image]]:
    """Return the verb `generate(image=[...])`, which encodes and decodes images."""

    def generate(
        modality: str | None = None, /, *, image: Sequence[Any], batch_size: int = 256
    ) -> list[PIL.Image.Image]:
        require_output(modality, "image")
        images = [load_value(image_settings, value) for value in image]
        outputs: list[PIL.Image.Image] = []
        with eval_mode(model), torch.inference_mode():
            for batch in iter_batches(images, batch_size):
                reconstructions = model.decode(model.encode(image_settings.collate(batch)))
                outputs += [image_settings.decode(pixels) for pixels in reconstructions]
        return outputs

    return generate


@picklable
def reconstruction_validator(column: str) -> Validate[ImageTokenizer]:
    """Return a function that validates reconstructions.

    Its metrics are PSNR and mean squared error of pixels in [0, 1], the number of tokens used and
    their perplexity.
    """

    @torch.inference_mode()
    def validate(
        model: ImageTokenizer, prepared: PreparedDataset, rows: np.ndarray
    ) -> ValidationResult:
        rows = prepared.complete_rows(rows)
        squared_errors: list[torch.Tensor] = []
        counts = torch.zeros(model.vocab_size)
        for batch_rows in iter_batches(rows, BATCH_SIZE):
            pixels = prepared.batch(batch_rows)[column]
            ids = model.encode(pixels)
            reconstruction = model.denormalize(model.decode(ids)).clamp(0, 1)
            error = reconstruction - model.denormalize(pixels)
            squared_errors.append(error.square().mean((1, 2, 3)))
            counts += torch.bincount(ids.flatten(), minlength=model.vocab_size)
        mse = torch.cat(squared_errors).mean().item()
        return ValidationResult(
            {
                "psnr": psnr(mse),
                "mse": mse,
                "codes used": float((counts > 0).sum()),
                "perplexity": codebook_perplexity(counts),
            }
        )

    return validate


@picklable
def reconstruction_sample_writer(column: str, image: Image) -> WriteSamples[ImageTokenizer]:
    """Return a function that writes a sheet of validation images above their reconstructions."""

    @torch.inference_mode()
    def write(
        model: ImageTokenizer, prepared: PreparedDataset, rows: np.ndarray, path: Path
    ) -> None:
        rows = prepared.complete_rows(rows)
        count = min(NUM_SAMPLE_IMAGES, len(rows))
        sampled = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
        pixels = prepared.batch(sampled)[column]
        pairs = torch.cat([pixels, model.decode(model.encode(pixels))], 2)
        sheet = image.decode(torch.cat(list(pairs), 2))
        sheet = sheet.resize((2 * sheet.width, 2 * sheet.height), PIL.Image.Resampling.NEAREST)
        sheet.save(path)

    return write
