"""Imagen (Saharia et al. 2022): images by denoising, with a text encoder taught beforehand."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sensorium.data.schema import Schema
from sensorium.errors import require_type
from sensorium.evaluation.caption_sheets import caption_sheet_writer
from sensorium.evaluation.spec import EvaluationSpec
from sensorium.evaluation.validate_denoising import denoising_validator
from sensorium.inference.sample_image import DiffusionImageGenerator
from sensorium.modalities.text import Text
from sensorium.models.denoiser import AUGMENTATION_DIM, Cascade, TextConditionalDenoiser
from sensorium.nn.denoising import Channels
from sensorium.nn.dit import DiT
from sensorium.nn.transformer import num_heads
from sensorium.nn.unet import UNet
from sensorium.objectives.diffusion import (
    CosineSchedule,
    DenoisingLoss,
    DiffusionProcess,
    FlowSchedule,
    default_logit_mean,
)
from sensorium.recipes.cascade_base import CascadeBase
from sensorium.recipes.from_run import require_unchanged
from sensorium.recipes.image_targets import (
    data_spec,
    image_evaluator,
    image_settings,
    text_keywords,
)
from sensorium.recipes.recipe import Hooks, Recipe, check_choice
from sensorium.recipes.text_encoders import build_text_encoder, resolve_text_source
from sensorium.recipes.training_config import TrainingConfig

SMALLEST_SIDE = 6  # of the lowest level of a U-Net
ATTENTION_SIDE = 16  # of the largest level with attention
PROCESSES = {
    "flow": DiffusionProcess(FlowSchedule(), "flow"),
    "ddpm": DiffusionProcess(CosineSchedule(), "v"),
}


def imagen(
    schema: Schema,
    *,
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    size: int | None = None,
    base: str | Mapping[str, Any] = "",
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
) -> Recipe[TextConditionalDenoiser | Cascade]:
    """Generate images from text by diffusion.

    Args:
        schema: columns of the data.
        image: image column. Default: the only one.
        text: caption column. Repeat to read several columns as one text. Default: the only one.
        size: side of the images in pixels. Default: that of the column.
        base: run folder of imagen at a smaller size: this model enlarges its images, and generates
            by both (a cascade). In Python, a mapping gives the keywords of a base to train first.
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
    check_choice("process", process, list(PROCESSES))
    image_column = schema.resolve_column("image", image)
    text_column = schema.resolve_text_columns(text)
    images = image_settings(schema, image_column, size)
    texts = require_type(schema[text_column], Text)
    small = CascadeBase.resolve(base, images.size)
    source = None if small else resolve_text_source(text_run, text_weights)
    if small:
        texts = small.text or texts
        encoder, text_width = small.text_encoder()
    elif source:
        texts, encoder, text_width = source.text or texts, source.encoder, source.width
    else:
        encoder, text_width = build_text_encoder(texts, text_dim, text_layers), text_dim
    network = build_denoiser(
        denoiser, images.size, dim, layers, patch_size, low_resolution=small is not None
    )
    stage = TextConditionalDenoiser(
        network, encoder, text_width, 4 * dim, low_resolution=small is not None
    )
    model = Cascade(small.model, stage, small.size) if small else stage
    objective = DenoisingLoss(
        PROCESSES[process],
        image_column,
        text_column,
        caption_dropout,
        default_logit_mean(images.size),
        gamma=min_snr_gamma,
    )
    generator = DiffusionImageGenerator(
        model, PROCESSES[process], texts, images, small.generator if small else None
    )
    return Recipe(
        model=model,
        objective=objective,
        data=data_spec(image_column, text_column, images, texts if small or source else None),
        verbs={"generate": small.wrap(generator) if small else generator},
        training=TrainingConfig(
            batch_size=64, lr=3e-3, optimizer="muon", ema_decay=0.998, augment="none"
        ),
        hooks=Hooks(
            on_start=require_unchanged(*(part.metadata for part in (source, small) if part))
        ),
        evaluation=denoising_evaluation(generator, objective),
        stored_keywords=text_keywords(text_run, source)
        | ({"base": dict(small.metadata)} if small else {}),
        prerequisites={} if isinstance(base, str) or "source" in base else {"base": (imagen, base)},
    )


def _channels(context_dim: int, *, low_resolution: bool) -> Channels:
    """Return the channels of a stage; an upsampler also reads a small image and its noise."""
    if low_resolution:
        return Channels(6, 3, context_dim, context_dim + AUGMENTATION_DIM)
    return Channels(3, 3, context_dim, context_dim)


def denoising_evaluation(
    generator: DiffusionImageGenerator, objective: DenoisingLoss
) -> EvaluationSpec[Any]:
    """Return how a model that generates images by denoising is evaluated."""
    return EvaluationSpec(
        metric="val_loss",
        mode="min",
        validate=denoising_validator(objective),
        write_samples=caption_sheet_writer(
            objective.image, objective.text, generator.generate_images
        ),
        evaluator=image_evaluator(objective.image, objective.text),
    )


def build_denoiser(
    kind: str, size: int, dim: int, layers: int, patch_size: int, *, low_resolution: bool = False
) -> UNet | DiT:
    """Build the network of a stage, with a context of width 4 `dim`.

    Args:
        kind: unet or dit.
        size: side of the images in pixels.
        dim: width of a unet at full resolution, a quarter of the width of a dit.
        layers: blocks of a dit.
        patch_size: side of a patch of a dit in pixels.
        low_resolution: whether it also reads a small image and the level of its noise.

    Raises:
        InvalidKeywordError: the kind is unknown.
    """
    check_choice("denoiser", kind, ["unet", "dit"])
    channels = _channels(4 * dim, low_resolution=low_resolution)
    if kind == "unet":
        return build_unet(size, dim, channels)
    return DiT(size, channels, 4 * dim, layers, num_heads(4 * dim), patch_size=patch_size)


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
