"""A text-conditional GAN with the relativistic loss and gradient penalties of R3GAN (2024)."""

from collections.abc import Mapping, Sequence
from typing import Any

from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError, require_type
from sensorium.evaluation.caption_sheets import caption_sheet_writer
from sensorium.evaluation.spec import EvaluationSpec
from sensorium.evaluation.validate_gan import gan_validator
from sensorium.inference.generate_gan import GANGenerator
from sensorium.modalities.text import Text
from sensorium.models.gan import Discriminator, Generator, TextConditionalGAN, TextVector
from sensorium.objectives.adversarial import AdversarialLoss
from sensorium.recipes.from_run import require_unchanged
from sensorium.recipes.image_targets import (
    data_spec,
    image_evaluator,
    image_settings,
    text_keywords,
)
from sensorium.recipes.recipe import Hooks, Recipe
from sensorium.recipes.text_encoders import TextSource, build_text_encoder, resolve_text_source
from sensorium.recipes.training_config import TrainingConfig

SMALLEST_SIDE = 4
MAX_WIDENING = 4  # channels of the smallest side, in units of those of the largest


def gan(
    schema: Schema,
    *,
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    size: int | None = None,
    dim: int = 48,
    latent_dim: int = 64,
    text_run: str | Mapping[str, Any] = "",
    text_weights: str | Mapping[str, Any] = "",
    text_dim: int = 128,
    text_layers: int = 1,
    gamma: float = 2.0,
    penalty_interval: int = 1,
    wrong_text_weight: float = 0.5,
    unconditional_steps: int = 200,
    ramp_steps: int = 400,
    caption_dropout: float = 0.1,
) -> Recipe[TextConditionalGAN]:
    """Generate images from text in a single step, by a generator trained against a discriminator.

    Args:
        schema: columns of the data.
        image: image column. Default: the only one.
        text: caption column. Repeat to read several columns as one text. Default: the only one.
        size: side of the images in pixels. Default: that of the column.
        dim: channels at full resolution; up to four times as many at lower ones.
        latent_dim: width of the noise.
        text_run: run folder of gpt, captioner or clip, whose text encoder both players use, frozen.
            Default: each player trains its own.
        text_weights: pretrained text encoder, used frozen: a folder, a file or a Hugging Face id.
        text_dim: width of the text encoders that are trained here, and of the text vectors.
        text_layers: layers of the text encoders that are trained here.
        gamma: weight of the gradient penalties (R1 and R2); raise it if training diverges.
        penalty_interval: steps between gradient penalties.
        wrong_text_weight: weight of the loss on real images with a wrong text.
        unconditional_steps: steps before the discriminator looks at the text.
        ramp_steps: steps over which the text gains its weight.
        caption_dropout: fraction of captions dropped in training.
    """
    image_column = schema.resolve_column("image", image)
    text_column = schema.resolve_text_columns(text)
    images = image_settings(schema, image_column, size)
    source = resolve_text_source(text_run, text_weights)
    texts = source.text if source and source.text else require_type(schema[text_column], Text)
    encoders = [_build_text_vector(source, texts, text_dim, text_layers) for _ in range(2)]
    dims = level_dims(images.size, dim)
    model = TextConditionalGAN(
        Generator(encoders[0], images.size, text_dim, latent_dim, dims[::-1]),
        Discriminator(encoders[1], images.size, text_dim, dims),
    )
    objective = AdversarialLoss(
        image_column,
        text_column,
        gamma,
        penalty_interval,
        wrong_text_weight,
        unconditional_steps,
        ramp_steps,
        caption_dropout,
    )
    verb = GANGenerator(model, texts, images)
    start = require_unchanged(source.metadata) if source else None
    return Recipe(
        model=model,
        objective=objective,
        data=data_spec(image_column, text_column, images, texts if source else None),
        verbs={"generate": verb},
        training=TrainingConfig(
            batch_size=64,
            lr=3e-4,
            optimizer="adam",
            beta1=0.0,
            beta2=0.99,
            weight_decay=0.0,
            max_grad_norm=0.0,
            ema_decay=0.995,
            augment="none",
            precision="fp32",
        ),
        hooks=Hooks(on_start=start, after_step=TextConditionalGAN.count_step),
        evaluation=EvaluationSpec(
            metric="frechet",
            mode="min",
            validate=gan_validator(verb, objective),
            write_samples=caption_sheet_writer(image_column, text_column, verb.generate_images),
            evaluator=image_evaluator(image_column, text_column),
        ),
        stored_keywords=text_keywords(text_run, source),
    )


def level_dims(size: int, dim: int) -> list[int]:
    """Return the channels of each level, from the full side to the smallest.

    Raises:
        SensoriumError: the side cannot be halved.
    """
    sides = [size]
    while sides[-1] % 2 == 0 and sides[-1] // 2 >= SMALLEST_SIDE:
        sides.append(sides[-1] // 2)
    if sides[-1] >= 2 * SMALLEST_SIDE:
        raise SensoriumError(
            f"Images of {size} pixels cannot be halved down to {SMALLEST_SIDE} to "
            f"{2 * SMALLEST_SIDE - 1}. Choose a --size such as 32, 48 or 64."
        )
    return [dim * min(2**level, MAX_WIDENING) for level in range(len(sides))]


def _build_text_vector(source: TextSource | None, texts: Text, dim: int, layers: int) -> TextVector:
    """Return the text encoder of a player: frozen, or one that it trains."""
    if source:
        return TextVector(source.encoder, source.width, dim)
    return TextVector(build_text_encoder(texts, dim, layers), dim, dim)
