"""DALL-E (Ramesh et al. 2021): a caption and the codes of its picture as one line, said from left to right."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sensorium.data.cache.token_cache import tokenize_images
from sensorium.data.schema import Schema
from sensorium.evaluation.sample_sheets import image_sample_writer
from sensorium.evaluation.validate_generation import loss_validator
from sensorium.inference.generate_image import ImageGenerator
from sensorium.modalities.text import PaddedTokenEmbedding, Text
from sensorium.models.decoder import Decoder
from sensorium.models.image_tokens import ImageTokenEmbedding
from sensorium.nn.linear import Linear
from sensorium.nn.tokens import ColumnKey
from sensorium.nn.transformer import build_transformer
from sensorium.objectives.autoregressive import NextTokenLoss
from sensorium.recipes.image_tokenizer import image_tokenizer as first_stage
from sensorium.recipes.recipe import DataSpec, EvaluationSpec, Evaluator, Recipe, RecipeFunction
from sensorium.recipes.tokenizer_source import (
    require_trained,
    resolve_tokenizer,
    tokenizer_to_config,
)
from sensorium.recipes.training_config import TrainingConfig

HEAD_DIM = 64  # width of one attention head
COPY_AUGMENT = {"shift": 0.06, "scale": 0.1}  # how copies of a picture differ
LOSS_WEIGHTS = {"text": 1.0, "image": 7.0}  # of the loss


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
    """Pictures from words, said code by code.

    Args:
        tokenizer: folder of a finished run of `codes`, in which pictures are said. Without one it is trained first, in
            Python with these keywords.
        image: picture column; by default the only one.
        text: caption column (once for each, where several are read as one); by default the only one.
        dim: width.
        layers: blocks.
        dropout: share of activations dropped in each block.
        caption_dropout: how often a caption is left out while training, so that pictures can be guided by captions.
        copies: how many times each picture is coded, all but the first moved a little.
    """
    picture, caption = schema.resolve_column("image", image), schema.texts(text)
    words, spoken = schema[caption], resolve_tokenizer(tokenizer, schema, picture)
    assert isinstance(words, Text)
    parts = {
        "text": PaddedTokenEmbedding(dim, words),
        "image": ImageTokenEmbedding(dim, spoken.model),
    }
    model = Decoder(
        parts,
        {
            "text": _output_head(dim, parts["text"].vocab_size),
            "image": _output_head(dim, spoken.vocab_size),
        },
        build_transformer(dim, layers, max(1, dim // HEAD_DIM), dropout=dropout),
    )
    objective = NextTokenLoss(
        {"text": caption, "image": picture}, LOSS_WEIGHTS, {"text": caption_dropout}
    )
    painter = ImageGenerator(model, words, spoken.image)
    return Recipe(
        model=model,
        objective=objective,
        data=DataSpec(
            columns=(caption, picture),
            column_settings={picture: spoken.image},
            derived_columns=lambda data: {
                picture: tokenize_images(
                    require_trained(spoken, tokenizer),
                    data,
                    picture,
                    num_copies=copies,
                    augment=COPY_AUGMENT,
                )
            },
        ),
        training=TrainingConfig(batch_size=64),
        verbs={"generate": painter},
        evaluation=EvaluationSpec(
            metric="val_loss",
            mode="min",
            validate=loss_validator(objective),
            write_samples=image_sample_writer(painter, objective),
            evaluator=_evaluator(picture, caption),
        ),
        stored_keywords={"tokenizer": tokenizer_to_config(tokenizer, spoken)},
        prerequisites=_prerequisites(tokenizer),
    )


def _prerequisites(
    tokenizer: str | Mapping[str, Any],
) -> dict[str, tuple[RecipeFunction[Any], Mapping[str, Any]]]:
    """What is trained first, unless it is there."""
    if isinstance(tokenizer, str):
        return {} if tokenizer else {"tokenizer": (first_stage, {})}
    return {} if "source" in tokenizer else {"tokenizer": (first_stage, tokenizer)}


def _evaluator(image_column: str, text_column: ColumnKey) -> Evaluator:
    from sensorium.evaluation.image_generation import (
        image_generation_evaluator,  # not needed while training
    )

    return image_generation_evaluator(image_column, text_column)


def _output_head(dim: int, vocab: int) -> Linear:
    head = Linear(dim, vocab, bias=False)
    nn.init.normal_(head.weight, std=0.02)
    return head
