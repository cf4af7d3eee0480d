"""CLIP (Radford et al. 2021): an image and a text encoder trained with a contrastive loss."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.schema import Schema
from sensorium.errors import require_type
from sensorium.evaluation.retrieval import retrieval_evaluation
from sensorium.inference.embed import Embedder
from sensorium.modalities.image import Image, PatchEmbedding
from sensorium.modalities.text import Text, TextEmbedding
from sensorium.models.towers import Encoder, Tower, Towers
from sensorium.nn.projection import PROJECTIONS
from sensorium.nn.resnet import ResNet
from sensorium.nn.tokens import ColumnKey, Tokens, column_names
from sensorium.nn.transformer import build_transformer, num_heads
from sensorium.objectives.contrastive import CONTRASTIVE_LOSSES, ContrastiveLoss
from sensorium.recipes.recipe import Augment, DataSpec, Hooks, Recipe, check_choice, fit_encoders
from sensorium.recipes.training_config import TrainingConfig

IMAGE_AUGMENT: dict[str, dict[str, float]] = {  # strength -> parameters
    "light": {"crop": 0.7, "flip": 0.5, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
    "strong": {
        "flip": 0.5,
        "rotate": 15,
        "scale": 0.25,
        "shift": 0.1,
        "outline": 0.5,
        "brightness": 0.2,
        "contrast": 0.3,
        "tint": 0.3,
        "grayscale": 0.2,
        "channel_shuffle": 0.3,
    },
}
MIN_CAPTIONS_PER_ROW = 3  # of clip_small


def clip(
    schema: Schema,
    *,
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    image_encoder: Literal["vit", "resnet"] = "vit",
    dim: int = 192,
    image_layers: int = 6,
    text_layers: int = 4,
    embed_dim: int = 256,
    patch_size: int | None = None,
    projection: Literal["linear", "nonlinear", "multiscale"] = "linear",
    loss: Literal["infonce", "siglip"] = "infonce",
    dropout: float = 0.0,
    label_smoothing: float = 0.0,
) -> Recipe[Towers]:
    """Embed images and texts in one space: retrieval, search and zero-shot classification.

    Args:
        schema: columns of the data.
        image: image column. Default: the only one.
        text: caption column. Repeat to read several columns as one text. Default: the only one.
        image_encoder: image encoder: vit (vision transformer) or resnet (convolutional; faster on
            small images).
        dim: width of both encoders.
        image_layers: layers of the image encoder; of a resnet, a multiple of 3.
        text_layers: layers of the text encoder.
        embed_dim: width of the embeddings.
        patch_size: side of a ViT patch in pixels. Default: an eighth of the image size.
        projection: projection into the embedding space: linear, nonlinear (MLP), or multiscale
            (also compares single tokens).
        loss: contrastive loss: infonce (CLIP) or siglip (pairwise sigmoid).
        dropout: dropout rate.
        label_smoothing: label smoothing of the infonce loss.
    """
    check_choice("projection", projection, list(PROJECTIONS))
    check_choice("loss", loss, CONTRASTIVE_LOSSES)
    check_choice("image_encoder", image_encoder, list(IMAGE_ENCODERS))
    image_column = schema.resolve_column("image", image)
    text_column = schema.resolve_text_columns(text)
    image_settings = require_type(schema[image_column], Image)
    text_settings = require_type(schema[text_column], Text)
    build_image_encoder = IMAGE_ENCODERS[image_encoder]
    encoders: dict[ColumnKey, Encoder] = {
        image_column: build_image_encoder(image_settings, dim, image_layers, patch_size, dropout),
        text_column: Encoder(
            TextEmbedding(dim, text_settings),
            build_transformer(dim, text_layers, num_heads(dim), dropout=dropout),
        ),
    }
    towers: dict[ColumnKey, Tower] = {
        column: Tower(encoder, PROJECTIONS[projection](dim, embed_dim), embed_dim)
        for column, encoder in encoders.items()
    }
    sigmoid = loss == "siglip"
    model = Towers(towers, temperature=0.1 if sigmoid else 0.07, use_logit_bias=sigmoid)
    pair: tuple[ColumnKey, ColumnKey] = (image_column, text_column)
    verb_inputs = {
        "image": (model[image_column], image_settings),
        "text": (model[text_column], text_settings),
    }
    return Recipe(
        model=model,
        objective=ContrastiveLoss(*pair, loss, label_smoothing),
        data=DataSpec(columns=pair, required=pair, augment=image_augment(*pair)),
        verbs={"embed": Embedder(model, verb_inputs)},
        hooks=Hooks(after_step=Towers.clamp_logit_scale),
        evaluation=retrieval_evaluation(pair),
    )


def image_augment(image_column: ColumnKey, text_column: ColumnKey) -> dict[str, Augment]:
    """Return the augmentation of image-text pairs by strength; text is left unchanged."""
    return {
        strength: {image_column: parameters, text_column: {}}
        for strength, parameters in IMAGE_AUGMENT.items()
    }


def clip_small(
    schema: Schema,
    *,
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    dim: int = 128,
    image_layers: int = 3,
    text_layers: int = 2,
    embed_dim: int = 192,
    subword_features: bool = True,
    captions_per_row: int | None = None,
    dropout: float = 0.0,
    label_smoothing: float = 0.0,
) -> Recipe[Towers]:
    """Train CLIP on a small dataset: ResNet, Muon, strong augmentation, several captions per step.

    Rows of one group are batched together: it works best with several images per concept, marked
    by a group column.

    Args:
        schema: columns of the data.
        image: image column. Default: the only one.
        text: caption column. Repeat to read several columns, such as languages, as one text.
            Default: the only one.
        dim: width of both encoders.
        image_layers: layers of the ResNet, a multiple of 3.
        text_layers: layers of the text encoder.
        embed_dim: width of the embeddings.
        subword_features: also embed words by their character n-grams, which generalizes to
            unseen words.
        captions_per_row: captions of a row sampled in each step. Default: 3, or the number of text
            columns if that is larger.
        dropout: dropout rate.
        label_smoothing: label smoothing of the loss.
    """
    recipe = clip(
        schema,
        image=image,
        text=text,
        image_encoder="resnet",
        dim=dim,
        image_layers=image_layers,
        text_layers=text_layers,
        embed_dim=embed_dim,
        dropout=dropout,
        label_smoothing=label_smoothing,
    )
    image_column, text_column = recipe.data.columns
    if subword_features:
        _add_subword_features(recipe.model[text_column], schema, text_column, dim, dropout)
    if captions_per_row is None:
        captions_per_row = max(MIN_CAPTIONS_PER_ROW, len(column_names(text_column)))
    strong: Augment = {
        image_column: IMAGE_AUGMENT["strong"],
        text_column: {"captions": float(captions_per_row)},
    }
    return replace(
        recipe,
        data=replace(recipe.data, augment={**recipe.data.augment, "strong": strong}),
        hooks=replace(
            recipe.hooks,
            on_start=_fit_towers,
        ),
        training=TrainingConfig(
            samples_per_group=2, augment="strong", optimizer="muon", lr=0.012, max_grad_norm=0.0
        ),
    )


def _fit_towers(model: Towers, prepared: PreparedDataset, rows: np.ndarray) -> None:
    fit_encoders(model.by_column(), prepared, rows)


def _add_subword_features(
    tower: Tower, schema: Schema, column: ColumnKey, dim: int, dropout: float
) -> None:
    from sensorium.modalities.subword_bag import SubwordBagEmbedding  # only needed by clip_small

    text = require_type(schema[column], Text)
    subword_encoder = Encoder(SubwordBagEmbedding(dim, text, dropout))
    tower.encoder = TextEncoderWithSubwords(tower.encoder, subword_encoder)


class TextEncoderWithSubwords(Encoder):
    """The sum of a sequence encoder's and a bag-of-subwords encoder's pooled embeddings.

    Args:
        sequence_encoder: encodes the tokens in order.
        subword_encoder: encodes words and their character n-grams without order.
    """

    def __init__(self, sequence_encoder: Encoder, subword_encoder: Encoder):
        super().__init__(sequence_encoder.embed, sequence_encoder.trunk, sequence_encoder.pool)
        self.subword_encoder = subword_encoder

    def pooled(self, raw: Tensor) -> Float[Tensor, "B D"]:
        """Return the sum of both pooled embeddings."""
        return super().pooled(raw) + self.subword_encoder.pooled(raw)

    def pooled_and_tokens(self, raw: Tensor) -> tuple[Float[Tensor, "B D"], Tokens]:
        """Return the sum of both pooled embeddings, and the tokens of the sequence encoder."""
        pooled, tokens = super().pooled_and_tokens(raw)
        return pooled + self.subword_encoder.pooled(raw), tokens


def _vit_encoder(
    image: Image, dim: int, layers: int, patch_size: int | None, dropout: float
) -> Encoder:
    return Encoder(
        PatchEmbedding(dim, image.size, patch_size or image.size // 8),
        build_transformer(dim, layers, num_heads(dim), input_norm=True, dropout=dropout),
    )


def _resnet_encoder(
    image: Image, dim: int, layers: int, patch_size: int | None, dropout: float
) -> Encoder:
    del image, patch_size  # convolutional, for any image size
    return Encoder(ResNet(dim, max(1, layers // 3), dropout))


IMAGE_ENCODERS = {"vit": _vit_encoder, "resnet": _resnet_encoder}
