"""CLIP (Radford et al. 2021): an image and a text encoder trained with a contrastive loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

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
from sensorium.recipes.recipe import (
    Augment,
    DataSpec,
    Hooks,
    InvalidKeywordError,
    Recipe,
    check_choice,
    fit_encoders,
)
from sensorium.recipes.training_config import TrainingConfig, training_defaults

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
MIN_CAPTIONS_PER_ROW = 3  # of size small
IMAGE_ENCODERS = ("vit", "resnet")
SMALL_SAMPLES = 64_000  # rows that size small sees in training, if it needs more epochs for them
MAX_SMALL_EPOCHS = 100
MIN_TRAINING_ROWS = 500  # fewer give little more than chance
BASE_MIN_ROWS = 50_000  # training rows from which `size="auto"` takes the vision transformer
BASE_MIN_IMAGE_SIZE = 64  # pixels, likewise


@dataclass(frozen=True)
class CLIPSize:
    """Defaults of the keywords that depend on `size`.

    Attributes:
        image_encoder: vit or resnet.
        dim: width of both encoders.
        image_layers: layers of the image encoder.
        text_layers: layers of the text encoder.
        embed_dim: width of the embeddings.
        subword_features: whether words are also embedded by their character n-grams.
        training: defaults of the training loop.
        summary: what it is, for the first line of training.
        scales_stem: whether the stem of a ResNet reduces larger images more, so that they cost
            about as much as small ones.
    """

    image_encoder: str
    dim: int
    image_layers: int
    text_layers: int
    embed_dim: int
    subword_features: bool
    training: TrainingConfig
    summary: str
    scales_stem: bool = False

    def override(self, keywords: Mapping[str, Any]) -> "CLIPSize":
        """Return a copy with the keywords that are not None."""
        given = {name: value for name, value in keywords.items() if value is not None}
        return replace(self, **given)


SIZES = {
    "small": CLIPSize(
        image_encoder="resnet",
        dim=128,
        image_layers=3,
        text_layers=2,
        embed_dim=192,
        subword_features=True,
        training=TrainingConfig(
            samples_per_group=2, augment="strong", optimizer="muon", lr=0.012, max_grad_norm=0.0
        ),
        summary="ResNet, subword features, strong augmentation",
        scales_stem=True,
    ),
    "base": CLIPSize(
        image_encoder="vit",
        dim=192,
        image_layers=6,
        text_layers=4,
        embed_dim=256,
        subword_features=False,
        training=TrainingConfig(),
        summary="vision transformer",
    ),
}


@training_defaults(
    epochs="20; for --size small 64,000 / training rows, from 20 to 100",
    eval_interval="a twentieth of the epochs for --size small, else 1",
    checkpoint_interval="a twentieth of the epochs for --size small, else 1",
    samples_per_group="2 for --size small, else 0",
    augment="strong for --size small, else light",
    optimizer="muon for --size small, else adamw",
    lr="0.012 for --size small, else 0.001",
    max_grad_norm="0 for --size small, else 1",
)
def clip(
    schema: Schema,
    *,
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    size: Literal["auto", "small", "base"] = "auto",
    image_encoder: Literal["vit", "resnet"] | None = None,
    dim: int | None = None,
    image_layers: int | None = None,
    text_layers: int | None = None,
    embed_dim: int | None = None,
    patch_size: int | None = None,
    projection: Literal["linear", "nonlinear", "multiscale"] = "linear",
    loss: Literal["infonce", "siglip"] = "infonce",
    subword_features: bool | None = None,
    captions_per_row: int | None = None,
    dropout: float = 0.0,
    label_smoothing: float = 0.0,
) -> Recipe[Towers]:
    """Embed images and texts in one space: retrieval, search and zero-shot classification.

    Rows of one group are batched together by size small: it gains from several images per concept,
    marked by a group column.

    Args:
        schema: columns of the data.
        image: image column. Default: the only one.
        text: caption column. Repeat to read several columns, such as languages, as one text.
            Default: the only one.
        size: small (ResNet, subword features, strong augmentation: learns from few and small
            images), base (vision transformer), or auto: base from 50,000 training rows of at least
            64 pixels on, else small. It sets the defaults of the options below.
        image_encoder: image encoder: vit (vision transformer) or resnet (convolutional). Default:
            resnet for small, vit for base or where there is a patch size.
        dim: width of both encoders. Default: 128 for small, 192 for base.
        image_layers: layers of the image encoder; of a resnet, a multiple of 3. Default: 3 for
            small, 6 for base.
        text_layers: layers of the text encoder. Default: 2 for small, 4 for base.
        embed_dim: width of the embeddings. Default: 192 for small, 256 for base.
        patch_size: side of a ViT patch in pixels. Default: an eighth of the image size.
        projection: projection into the embedding space: linear, nonlinear (MLP), or multiscale
            (also compares single tokens).
        loss: contrastive loss: infonce (CLIP) or siglip (pairwise sigmoid).
        subword_features: also embed words by their character n-grams, which generalizes to
            unseen words. Default: for small.
        captions_per_row: captions of a row sampled in each step. Default: for small with strong
            augmentation 3, or the number of text columns if that is larger; else 1.
        dropout: dropout rate.
        label_smoothing: label smoothing of the infonce loss.
    """
    check_choice("projection", projection, list(PROJECTIONS))
    check_choice("loss", loss, CONTRASTIVE_LOSSES)
    check_choice("size", size, ["auto", *SIZES])
    image_column = schema.resolve_column("image", image)
    text_column = schema.resolve_text_columns(text)
    image_settings = require_type(schema[image_column], Image)
    size_name = _choose_size(schema, image_settings) if size == "auto" else size
    keywords = {
        "image_encoder": _resolve_image_encoder(image_encoder, patch_size),
        "dim": dim,
        "image_layers": image_layers,
        "text_layers": text_layers,
        "embed_dim": embed_dim,
        "subword_features": subword_features,
    }
    chosen = SIZES[size_name].override(keywords)
    pair: tuple[ColumnKey, ColumnKey] = (image_column, text_column)
    model = _build_towers(schema, pair, chosen, patch_size, dropout, projection, loss == "siglip")
    verb_inputs = {
        "image": (model[image_column], image_settings),
        "text": (model[text_column], require_type(schema[text_column], Text)),
    }
    return Recipe(
        model=model,
        objective=ContrastiveLoss(*pair, loss, label_smoothing),
        data=DataSpec(
            columns=pair,
            required=pair,
            augment=_augment(pair, size_name, captions_per_row),
        ),
        verbs={"embed": Embedder(model, verb_inputs)},
        hooks=Hooks(
            on_start=_fit_towers,
            after_step=Towers.clamp_logit_scale,
        ),
        evaluation=retrieval_evaluation(
            pair, min_training_rows=MIN_TRAINING_ROWS, remedies=_remedies(size_name)
        ),
        training=_training(chosen, size_name, schema),
        stored_keywords={"size": size_name, "image_encoder": chosen.image_encoder}
        | {name: getattr(chosen, name) for name, value in keywords.items() if value is None},
        task=_describe_size(size, size_name, schema, image_settings),
    )


def _training(chosen: CLIPSize, size_name: str, schema: Schema) -> TrainingConfig:
    """Return the defaults of training: size small sees few rows more often."""
    if size_name != "small" or not schema.num_rows:
        return chosen.training
    default = chosen.training.epochs
    epochs = min(max(default, round(SMALL_SAMPLES / schema.num_rows)), MAX_SMALL_EPOCHS)
    interval = epochs / default  # as many evaluations as by default
    return replace(
        chosen.training, epochs=epochs, eval_interval=interval, checkpoint_interval=interval
    )


def _resolve_image_encoder(image_encoder: str | None, patch_size: int | None) -> str | None:
    """Return the image encoder, which is a vision transformer where a patch size is given.

    Raises:
        InvalidKeywordError: for an unknown image encoder, or one that has no patches.
    """
    if image_encoder is not None:
        check_choice("image_encoder", image_encoder, IMAGE_ENCODERS)
    if patch_size is not None and image_encoder not in (None, "vit"):
        raise InvalidKeywordError(
            f"--patch-size {patch_size} is of a vision transformer, but the image encoder is "
            f"{image_encoder}. Leave out one of them."
        )
    return image_encoder if patch_size is None else "vit"


def _remedies(size_name: str) -> list[str]:
    """Return what may help a model that is near chance."""
    return [
        "more pairs of image and text",
        *(["--size small, which learns from fewer rows"] if size_name == "base" else []),
        "more epochs (--epochs)",
        "a pretrained model: sensorium train finetune DATA --weights WEIGHTS, or lit",
    ]


def _choose_size(schema: Schema, image: Image) -> str:
    """Return the size that fits the number of training rows and the size of the images.

    Where the number is unknown, as without data, it is "base".
    """
    if schema.num_rows is None:
        return "base"
    is_large = schema.num_rows >= BASE_MIN_ROWS and image.size >= BASE_MIN_IMAGE_SIZE
    return "base" if is_large else "small"


def _describe_size(size: str, size_name: str, schema: Schema, image: Image) -> str:
    """Return which size is trained and why."""
    text = f"clip --size {size_name} ({SIZES[size_name].summary})"
    if size != "auto" or schema.num_rows is None:
        return text
    other = "base" if size_name == "small" else "small"
    return (
        f"{text}, chosen for {schema.num_rows:,} training rows of {image.size} pixels; "
        f"to override: --size {other} ({SIZES[other].summary})"
    )


def _build_towers(
    schema: Schema,
    pair: tuple[ColumnKey, ColumnKey],
    size: CLIPSize,
    patch_size: int | None,
    dropout: float,
    projection: str,
    sigmoid: bool,
) -> Towers:
    """Build the image and the text encoder with their projections."""
    image_column, text_column = pair
    image = require_type(schema[image_column], Image)
    text = require_type(schema[text_column], Text)
    dim = size.dim
    if size.image_encoder == "vit":
        image_encoder = _vit_encoder(image, dim, size.image_layers, patch_size, dropout)
    else:
        stem_stride = scaled_stem_stride(image.size) if size.scales_stem else 2
        blocks = max(1, size.image_layers // 3)
        image_encoder = Encoder(ResNet(dim, blocks, dropout, stem_stride=stem_stride))
    encoders: dict[ColumnKey, Encoder] = {
        image_column: image_encoder,
        text_column: Encoder(
            TextEmbedding(dim, text),
            build_transformer(dim, size.text_layers, num_heads(dim), dropout=dropout),
        ),
    }
    towers: dict[ColumnKey, Tower] = {
        column: Tower(encoder, PROJECTIONS[projection](dim, size.embed_dim), size.embed_dim)
        for column, encoder in encoders.items()
    }
    model = Towers(towers, temperature=0.1 if sigmoid else 0.07, use_logit_bias=sigmoid)
    if size.subword_features:
        _add_subword_features(model[text_column], text, dim, dropout)
    return model


def scaled_stem_stride(image_size: int) -> int:
    """Return the stride of a ResNet's stem: 2 below 64 pixels, 4 below 128, else 8."""
    return 2 if image_size < 64 else 4 if image_size < 128 else 8


def image_augment(image_column: ColumnKey, text_column: ColumnKey) -> dict[str, Augment]:
    """Return the augmentation of image-text pairs by strength; text is left unchanged."""
    return {
        strength: {image_column: parameters, text_column: {}}
        for strength, parameters in IMAGE_AUGMENT.items()
    }


def _augment(
    pair: tuple[ColumnKey, ColumnKey], size_name: str, captions_per_row: int | None
) -> dict[str, Augment]:
    """Return the augmentation by strength, with several captions of a row in each step."""
    image_column, text_column = pair
    augment = image_augment(*pair)
    strengths = list(augment) if captions_per_row else []
    if captions_per_row is None and size_name == "small":
        captions_per_row = max(MIN_CAPTIONS_PER_ROW, len(column_names(text_column)))
        strengths = ["strong"]
    for strength in strengths:
        captions = {"captions": float(captions_per_row or 1)}
        augment[strength] = {image_column: IMAGE_AUGMENT[strength], text_column: captions}
    return augment


def _fit_towers(model: Towers, prepared: PreparedDataset, rows: np.ndarray) -> None:
    fit_encoders(model.by_column(), prepared, rows)


def _add_subword_features(tower: Tower, text: Text, dim: int, dropout: float) -> None:
    from sensorium.modalities.subword_bag import SubwordBagEmbedding  # only for these features

    subword_encoder = Encoder(SubwordBagEmbedding(dim, text, dropout, unicode=True))
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
