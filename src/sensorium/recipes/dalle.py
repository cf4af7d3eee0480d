"""DALL-E (Ramesh et al. 2021): a caption and the tokens of its image as one sequence."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from sensorium.data.cache.prepared import DataSource
from sensorium.data.cache.token_cache import (
    FrozenImageTokenizer,
    ImageTokenColumn,
    tokenize_images,
)
from sensorium.data.schema import Schema
from sensorium.errors import require_type
from sensorium.evaluation.sample_sheets import image_sample_writer
from sensorium.evaluation.spec import EvaluationSpec, Evaluator
from sensorium.evaluation.validate_generation import loss_validator
from sensorium.inference.generate_image import ImageGenerator
from sensorium.modalities.text import PaddedTokenEmbedding, Text
from sensorium.models.decoder import Decoder
from sensorium.models.image_tokens import ImageTokenEmbedding
from sensorium.nn.linear import Linear
from sensorium.nn.tokens import ColumnKey
from sensorium.nn.transformer import build_transformer, num_heads
from sensorium.objectives.autoregressive import NextTokenLoss
from sensorium.recipes.image_tokenizer import image_tokenizer
from sensorium.recipes.recipe import DataSpec, Recipe, RecipeFunction
from sensorium.recipes.tokenizer_source import (
    require_trained,
    resolve_tokenizer,
    tokenizer_to_config,
)
from sensorium.recipes.training_config import TrainingConfig

COPY_AUGMENT = {"shift": 0.06, "scale": 0.1}  # of all tokenized copies of an image but the first
LOSS_WEIGHTS = {"text": 1.0, "image": 7.0}


def dalle(
    schema: Schema,
    *,
    tokenizer: str | Mapping[str, Any] = "",
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    dim: int = 256,
    layers: int = 6,
    dropout: float = 0.1,
    caption_dropout: float = 0.1,
    copies: int = 4,
) -> Recipe[Decoder]:
    """Generate images from text with an autoregressive transformer over image tokens.

    Args:
        schema: columns of the data.
        tokenizer: run folder of an image_tokenizer. Default: one is trained first (in Python, a
            mapping gives its keywords).
        image: image column. Default: the only one.
        text: caption column. Repeat to read several columns as one text. Default: the only one.
        dim: width of the transformer.
        layers: transformer layers.
        dropout: dropout rate.
        caption_dropout: fraction of captions dropped in training, for classifier-free guidance.
        copies: number of times each image is tokenized; all copies but the first are augmented.
    """
    image_column = schema.resolve_column("image", image)
    text_column = schema.resolve_text_columns(text)
    text_settings = require_type(schema[text_column], Text)
    frozen_tokenizer = resolve_tokenizer(tokenizer, schema, image_column)
    text_embedding = PaddedTokenEmbedding(dim, text_settings)
    image_embedding = ImageTokenEmbedding(dim, frozen_tokenizer.model)
    heads: dict[str, nn.Module] = {
        "text": _output_head(dim, text_embedding.vocab_size),
        "image": _output_head(dim, frozen_tokenizer.vocab_size),
    }
    trunk = build_transformer(dim, layers, num_heads(dim), dropout=dropout)
    model = Decoder({"text": text_embedding, "image": image_embedding}, heads, trunk)
    part_columns = {"text": text_column, "image": image_column}
    objective = NextTokenLoss(part_columns, LOSS_WEIGHTS, {"text": caption_dropout})
    generator = ImageGenerator(model, text_settings, frozen_tokenizer.image)

    return Recipe(
        model=model,
        objective=objective,
        data=DataSpec(
            columns=(text_column, image_column),
            column_settings={image_column: frozen_tokenizer.image},
            derived_columns=partial(
                _derive_columns, frozen_tokenizer, tokenizer, image_column, copies
            ),
        ),
        training=TrainingConfig(batch_size=64),
        verbs={"generate": generator},
        evaluation=EvaluationSpec(
            metric="val_loss",
            mode="min",
            validate=loss_validator(objective),
            write_samples=image_sample_writer(generator, objective),
            evaluator=_evaluator(image_column, text_column),
        ),
        stored_keywords={"tokenizer": tokenizer_to_config(tokenizer, frozen_tokenizer)},
        prerequisites=_prerequisites(tokenizer),
    )


def _derive_columns(
    frozen_tokenizer: FrozenImageTokenizer,
    tokenizer: str | Mapping[str, Any],
    image_column: str,
    copies: int,
    data: DataSource,
) -> dict[ColumnKey, ImageTokenColumn]:
    """Return the image tokens of a dataset."""
    trained = require_trained(frozen_tokenizer, tokenizer)
    tokens = tokenize_images(trained, data, image_column, num_copies=copies, augment=COPY_AUGMENT)
    return {image_column: tokens}


def _prerequisites(
    tokenizer: str | Mapping[str, Any],
) -> dict[str, tuple[RecipeFunction[Any], Mapping[str, Any]]]:
    """Return the image tokenizer to train first, unless a trained one is named."""
    if isinstance(tokenizer, str):
        return {} if tokenizer else {"tokenizer": (image_tokenizer, {})}
    if "source" in tokenizer:
        return {}
    return {"tokenizer": (image_tokenizer, tokenizer)}


def _evaluator(image_column: str, text_column: ColumnKey) -> Evaluator:
    # not needed in training
    from sensorium.evaluation.image_generation import image_generation_evaluator

    return image_generation_evaluator(image_column, text_column)


def _output_head(dim: int, vocab_size: int) -> Linear:
    head = Linear(dim, vocab_size, bias=False)
    nn.init.normal_(head.weight, std=0.02)
    return head
