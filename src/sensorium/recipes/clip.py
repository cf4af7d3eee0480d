"""CLIP (Radford et al. 2021): two towers learn which caption belongs to which picture."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from sensorium.data.schema import Schema
from sensorium.evaluation.retrieval import retrieval_evaluation
from sensorium.inference.embed import Embedder
from sensorium.modalities.image import Image, PatchEmbedding
from sensorium.modalities.text import Text, TextEmbedding
from sensorium.models.towers import Encoder, Tower, Towers
from sensorium.nn.projection import PROJECTIONS
from sensorium.nn.resnet import ResNet
from sensorium.nn.tokens import ColumnKey, Tokens, column_names
from sensorium.nn.transformer import build_transformer
from sensorium.objectives.contrastive import CONTRASTIVE_LOSSES, ContrastiveLoss
from sensorium.recipes.recipe import DataSpec, Hooks, Recipe, check_choice, fit_encoders
from sensorium.recipes.training_config import TrainingConfig

HEAD_DIM = 64  # width of one attention head
AUGMENT: dict[str, tuple[dict[str, float], dict[str, float]]] = {  # of pictures, of words
    "light": (
        {"crop": 0.7, "flip": 0.5, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
        {},
    ),
    "strong": (
        {
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
        {},
    ),
}


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
    patch_size: int = 0,
    projection: Literal["linear", "nonlinear", "multiscale"] = "linear",
    loss: Literal["infonce", "siglip"] = "infonce",
    dropout: float = 0.0,
    label_smoothing: float = 0.0,
) -> Recipe[Towers]:
    """Pictures and words in one space: retrieval both ways, search, zero-shot classification.

    Args:
        image: picture column; by default the only one.
        text: caption column (once for each, where several are read as one); by default the only one.
        image_encoder: what reads pictures: vit (Transformer) or resnet (convolutions; much quicker on small pictures).
        dim: width of both towers.
        image_layers: blocks of the picture tower (a resnet has three stages: use a multiple of 3).
        text_layers: blocks of the text tower.
        embed_dim: width of the shared space.
        patch_size: side of a patch in pixels; 0: an eighth of the picture.
        projection: the way into the shared space: linear, nonlinear, or multiscale (parts are compared too).
        loss: infonce (CLIP) or siglip.
        dropout: share of activations dropped in each block.
        label_smoothing: label smoothing of infonce.
    """
    check_choice("projection", projection, list(PROJECTIONS))
    check_choice("loss", loss, CONTRASTIVE_LOSSES)
    picture, words = schema.resolve_column("image", image), schema.texts(text)
    seen, read = schema[picture], schema[words]
    assert isinstance(seen, Image)
    assert isinstance(read, Text)
    eye = IMAGE_ENCODERS[check_choice("image_encoder", image_encoder, list(IMAGE_ENCODERS))](
        seen, dim, image_layers, patch_size, dropout
    )
    voice = Encoder(
        TextEmbedding(dim, read),
        build_transformer(dim, text_layers, max(1, dim // HEAD_DIM), dropout=dropout),
    )
    towers: dict[ColumnKey, Tower] = {
        name: Tower(encoder, PROJECTIONS[projection](dim, embed_dim), embed_dim)
        for name, encoder in ((picture, eye), (words, voice))
    }
    sigmoid = loss == "siglip"
    model = Towers(towers, temperature=0.1 if sigmoid else 0.07, use_logit_bias=sigmoid)
    pair: tuple[ColumnKey, ColumnKey] = (picture, words)
    return Recipe(
        model=model,
        objective=ContrastiveLoss(*pair, loss, label_smoothing),
        data=DataSpec(
            columns=pair,
            augment={
                strength: dict(zip(pair, how, strict=True)) for strength, how in AUGMENT.items()
            },
        ),
        verbs={
            "embed": Embedder(
                model, {"image": (model[picture], seen), "text": (model[words], read)}
            )
        },
        hooks=Hooks(after_step=Towers.clamp_logit_scale),
        evaluation=retrieval_evaluation(pair),
    )


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
    captions_per_row: int = 0,
    dropout: float = 0.0,
    label_smoothing: float = 0.0,
) -> Recipe[Towers]:
    """CLIP with a residual network, Muon, strong augmentation and several captions of a thing in each step.

    Pictures of the same thing stand side by side in a batch: it wants several of each, or a group column.

    Args:
        image: picture column; by default the only one.
        text: caption column (once for each, where several are read as one: languages); by default the only one.
        dim: width of both towers.
        image_layers: blocks of the residual network: a multiple of 3.
        text_layers: blocks of the text tower.
        embed_dim: width of the shared space.
        subword_features: words are known by their pieces too, one never seen by what it shares with others.
        captions_per_row: captions of a thing in each step; 0: three, or one of each text column where there are more.
        dropout: share of activations dropped in each block.
        label_smoothing: label smoothing of the loss.
    """
    made = clip(
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
    picture, words = made.data.columns
    if subword_features:
        from sensorium.modalities.subword_bag import (
            SubwordBagEmbedding,  # other recipes that take CLIP's towers do without
        )

        assert isinstance(read := schema[words], Text)
        tower = made.model[words]
        tower.encoder = TextEncoderWithSubwords(
            tower.encoder, Encoder(SubwordBagEmbedding(dim, read, dropout))
        )
    each = captions_per_row or max(3, len(column_names(words)))
    strong = {picture: made.data.augment["strong"][picture], words: {"captions": float(each)}}
    return replace(
        made,
        data=replace(made.data, augment={**made.data.augment, "strong": strong}),
        hooks=replace(
            made.hooks,
            on_start=lambda model, prepared, rows: fit_encoders(model.by_column(), prepared, rows),
        ),
        training=TrainingConfig(
            samples_per_group=2, augment="strong", optimizer="muon", lr=0.012, max_grad_norm=0.0
        ),
    )


class TextEncoderWithSubwords(Encoder):
    """Texts as words in their order, and as words and their pieces in none: what both make of the whole, added up."""

    def __init__(self, sequence_encoder: Encoder, subword_encoder: Encoder):
        super().__init__(sequence_encoder.embed, sequence_encoder.trunk, sequence_encoder.pool)
        self.subword_encoder = subword_encoder

    def pooled(self, raw: Tensor) -> Float[Tensor, "B D"]:
        return super().pooled(raw) + self.subword_encoder.pooled(raw)

    def pooled_and_tokens(self, raw: Tensor) -> tuple[Float[Tensor, "B D"], Tokens]:
        whole, tokens = super().pooled_and_tokens(raw)
        return whole + self.subword_encoder.pooled(raw), tokens


def _vit_encoder(image: Image, dim: int, layers: int, patch_size: int, dropout: float) -> Encoder:
    return Encoder(
        PatchEmbedding(dim, image.size, patch_size or image.size // 8),
        build_transformer(dim, layers, max(1, dim // HEAD_DIM), input_norm=True, dropout=dropout),
    )


def _resnet_encoder(
    image: Image, dim: int, layers: int, patch_size: int, dropout: float
) -> Encoder:
    return Encoder(ResNet(dim, max(1, layers // 3), dropout))


IMAGE_ENCODERS = {"vit": _vit_encoder, "resnet": _resnet_encoder}
