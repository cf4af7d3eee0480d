"""Imagen (Saharia et al. 2022): images by denoising, with a text encoder taught beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from sensorium.data.schema import Schema
from sensorium.errors import require_type
from sensorium.evaluation.spec import EvaluationSpec, Evaluator
from sensorium.evaluation.validate_denoising import denoising_sample_writer, denoising_validator
from sensorium.inference.sample_image import DiffusionImageGenerator
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.models.denoiser import TextConditionalDenoiser
from sensorium.nn.denoising import Channels
from sensorium.nn.dit import DiT
from sensorium.nn.tokens import ColumnKey
from sensorium.nn.transformer import num_heads
from sensorium.nn.unet import UNet
from sensorium.objectives.diffusion import (
    CosineSchedule,
    DenoisingLoss,
    DiffusionProcess,
    FlowSchedule,
    default_logit_mean,
)
from sensorium.recipes.recipe import DataSpec, Recipe, check_choice
from sensorium.recipes.text_encoders import TextSource, build_text_encoder, resolve_text_source
from sensorium.recipes.training_config import TrainingConfig

SMALLEST_SIDE = 6  # of the lowest level of a U-Net
ATTENTION_SIDE = 16  # of the largest level with attention
HALF = (0.5, 0.5, 0.5)  # mean and deviation by which pixels lie between -1 and 1
IMAGE_AUGMENT = {"light": {"shift": 0.05}, "strong": {"shift": 0.1, "scale": 0.1}}
PROCESSES = {
    "flow": DiffusionProcess(FlowSchedule(), "flow"),
    "ddpm": DiffusionProcess(CosineSchedule(), "v"),
}


def imagen(
    schema: Schema,
    *,
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    denoiser: Literal["unet", "dit"] = "unet",
    process: Literal["flow", "ddpm"] = "flow",
    dim: int = 48,
    layers: int = 6,
    patch_size: int = 2,
    text_run: str | Mapping[str, Any] = "",
    text_weights: str | Mapping[str, Any] = "",
    text_dim: int = 192,
    text_layers: int = 4,
    caption_dropout: float = 0.1,
    min_snr_gamma: float = 0.0,
) -> Recipe[TextConditionalDenoiser]:
    """Generate images from text by diffusion.

    Args:
        schema: columns of the data.
        image: image column. Default: the only one.
        text: caption column. Repeat to read several columns as one text. Default: the only one.
        denoiser: network: unet (convolutions, and attention at low resolutions) or dit (a
            transformer over patches).
        process: flow (rectified flow) or ddpm (a cosine schedule with v-prediction).
        dim: width of the U-Net at full resolution; of a dit, a quarter of its width.
        layers: blocks of a dit.
        patch_size: side of a patch of a dit in pixels.
        text_run: run folder of gpt, captioner or clip, trained on the same captions, whose text
            encoder is used, frozen. Default: one is trained with the denoiser, which learns what
            is shown but hardly where.
        text_weights: pretrained text encoder, used frozen: a folder, a file or a Hugging Face id.
        text_dim: width of the text encoder that is trained here.
        text_layers: layers of the text encoder that is trained here.
        caption_dropout: fraction of captions dropped in training, for classifier-free guidance.
        min_snr_gamma: limit of the weight of low noise (min-SNR, usually 5); 0: none.
    """
    check_choice("denoiser", denoiser, ["unet", "dit"])
    check_choice("process", process, list(PROCESSES))
    image_column = schema.resolve_column("image", image)
    text_column = schema.resolve_text_columns(text)
    images = replace(require_type(schema[image_column], Image), mean=HALF, std=HALF)
    source = resolve_text_source(text_run, text_weights)
    texts = require_type(schema[text_column], Text)
    if source and source.text:
        texts = source.text
    context_dim = 4 * dim
    channels = Channels(context=context_dim, vector=context_dim)
    if denoiser == "unet":
        network = build_unet(images.size, dim, channels)
    else:
        heads = num_heads(4 * dim)
        network = DiT(images.size, channels, 4 * dim, layers, heads, patch_size=patch_size)
    encoder = source.encoder if source else build_text_encoder(texts, text_dim, text_layers)
    text_width = source.width if source else text_dim
    model = TextConditionalDenoiser(network, encoder, text_width, context_dim)
    objective = DenoisingLoss(
        PROCESSES[process],
        image_column,
        text_column,
        caption_dropout,
        default_logit_mean(images.size),
        gamma=min_snr_gamma,
    )
    generator = DiffusionImageGenerator(model, PROCESSES[process], texts, images)
    return Recipe(
        model=model,
        objective=objective,
        data=DataSpec(
            columns=(text_column, image_column),
            column_settings={image_column: images, **({text_column: texts} if source else {})},
            required=(image_column,),
            augment={name: {image_column: values} for name, values in IMAGE_AUGMENT.items()},
        ),
        verbs={"generate": generator},
        training=TrainingConfig(
            batch_size=64, lr=3e-3, optimizer="muon", ema_decay=0.998, augment="none"
        ),
        evaluation=EvaluationSpec(
            metric="val_loss",
            mode="min",
            validate=denoising_validator(objective),
            write_samples=denoising_sample_writer(generator, objective),
            evaluator=_evaluator(image_column, text_column),
        ),
        stored_keywords=_stored_keywords(text_run, source),
    )


def build_unet(size: int, dim: int, channels: Channels) -> UNet:
    """Build a U-Net for square images; deeper for larger ones.

    Args:
        size: side of the images in pixels.
        dim: width at full resolution; it doubles at each lower one.
        channels: channels of the image and widths of the condition.
    """
    sides = [size]
    while sides[-1] % 2 == 0 and sides[-1] // 2 >= SMALLEST_SIDE:
        sides.append(sides[-1] // 2)
    return UNet(
        channels,
        [dim * 2**level for level in range(len(sides))],
        [1 if side > ATTENTION_SIDE else 2 for side in sides],
        attention_levels=[level for level, side in enumerate(sides) if side <= ATTENTION_SIDE],
    )


def _stored_keywords(run: str | Mapping[str, Any], source: TextSource | None) -> dict[str, Any]:
    """Return the keywords that name a frozen text encoder, as config.json stores them."""
    if source is None:
        return {}
    return {"text_run" if run else "text_weights": dict(source.metadata)}


def _evaluator(image_column: str, text_column: ColumnKey) -> Evaluator:
    # not needed in training
    from sensorium.evaluation.image_generation import image_generation_evaluator

    return image_generation_evaluator(image_column, text_column)
