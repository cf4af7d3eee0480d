"""Encoders of columns by type and name, and encoders with pretrained weights.

B batch   T tokens   D width
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.data.schema import MODALITIES, ROLES
from sensorium.errors import SensoriumError, require_type
from sensorium.modalities.audio import Audio, AudioStem
from sensorium.modalities.base import Modality
from sensorium.modalities.image import Image, PatchEmbedding
from sensorium.modalities.series import Series, WindowEmbedding
from sensorium.modalities.series_pyramid import MultiscaleConv
from sensorium.modalities.subword_bag import SubwordBagEmbedding
from sensorium.modalities.text import BagEmbedding, Text, TextEmbedding
from sensorium.models.lora import set_trainable
from sensorium.models.towers import Encoder
from sensorium.nn.conv1d import Convolutions
from sensorium.nn.linear import Linear
from sensorium.nn.recurrent import Recurrent
from sensorium.nn.resnet import BasicBlock, PlainBlock, ResNet
from sensorium.nn.tokens import Tokens
from sensorium.nn.transformer import Transformer, build_transformer, num_heads
from sensorium.pretrained.bert import FirstTokenPool
from sensorium.pretrained.resnet import RESNET_CONFIGS, build_resnet
from sensorium.pretrained.source import PretrainedSource
from sensorium.recipes.recipe import InvalidKeywordError

LONG_SERIES_STEPS = 64  # from this length on, convolutions encode a series better than a GRU
EncoderBuilder = Callable[
    [Any, int, int, float], Encoder
]  # (column settings, dim, layers, dropout)


def build_encoder(
    modality: Modality,
    spec: str | Mapping[str, Any] | PretrainedSource,
    dim: int,
    layers: int,
    dropout: float = 0.0,
    train: str = "none",
) -> Encoder:
    """Build the encoder of a column. Its tokens have no order; padding and gaps are not valid.

    Pretrained weights are projected to `dim` by a linear layer that is always trained.

    Args:
        modality: settings of the column.
        spec: a name in ENCODERS ("": the first of its type) or pretrained weights, as
            `resolve_encoder` takes them.
        dim: width of the tokens.
        layers: layers, of encoders that have any number of them.
        dropout: dropout rate.
        train: how much of pretrained weights is trained, one of `TRAIN_MODES`.

    Raises:
        InvalidKeywordError: for an unknown encoder, naming the known ones.
    """
    resolved = resolve_encoder(modality.kind, spec)
    if isinstance(resolved, PretrainedSource):
        inner, width = resolved.build_encoder(modality.kind)
        return ProjectedEncoder(set_trainable(inner, train), width, dim, dropout)
    return ENCODERS[modality.kind][resolved](modality, dim, layers, dropout)


def resolve_encoder(
    kind: str, spec: str | Mapping[str, Any] | PretrainedSource
) -> str | PretrainedSource:
    """Resolve the encoder that a user named for a column.

    Args:
        kind: type of the column.
        spec: a name in ENCODERS; or a folder, a file or a Hugging Face id of pretrained weights;
            or the stored config of such weights.

    Returns:
        A name in ENCODERS, or the pretrained weights. A column that pretrained weights encode must
        have the settings `preprocessing()[kind]`.

    Raises:
        InvalidKeywordError: for an unknown encoder, naming the known ones.
    """
    if isinstance(spec, PretrainedSource):
        return spec
    names = list(ENCODERS.get(kind, ()))
    if not names:
        raise InvalidKeywordError(
            f"There is no encoder for columns of type {kind}. Encoders exist for "
            f"{', '.join(ENCODERS)}."
        )
    if not spec:
        return names[0]
    if isinstance(spec, Mapping):
        return PretrainedSource.from_source(spec)
    if spec in names:
        return spec
    if "/" in spec or Path(spec).exists():
        return PretrainedSource.from_source(spec)
    raise InvalidKeywordError(
        f"{spec!r} is not an encoder for {kind} columns. Choose one of {', '.join(names)}, or "
        "give a folder, a file or a Hugging Face id of pretrained weights."
    )


def default_encoder(modality: Modality) -> str:
    """Return the encoder to use where none is named; "" is the first of the column's type."""
    if isinstance(modality, Series) and modality.typical_length >= LONG_SERIES_STEPS:
        return "cnn"
    return ""


class ProjectedEmbedding(nn.Module):
    """A whole encoder as an input embedding, with a linear projection to another width.

    Args:
        encoder: the encoder.
        width: width of its tokens.
        dim: width of the projected tokens.
        dropout: dropout rate of the projected tokens.
    """

    def __init__(self, encoder: Encoder, width: int, dim: int, dropout: float = 0.0):
        super().__init__()
        self.encoder = encoder
        self.projection = Linear(width, dim)
        self.dropout = nn.Dropout(dropout)

    def pool_index(self, values: Tensor) -> Int[Tensor, "B"] | None:
        """Return the token that the encoder pools by, if it is a single one."""
        return self.encoder.embed.pool_index(values)

    def forward(self, values: Tensor) -> Tokens:
        """Return the projected tokens, without an order."""
        t = self.encoder(values)
        return replace(t, x=self.dropout(self.projection(t.x)), order=None)


class ProjectedEncoder(Encoder):
    """An encoder with a linear projection of its tokens and of its pooled embedding.

    The pooled embedding is a projection of the inner encoder's own, which may come from a cache if
    the encoder is frozen.

    Args:
        inner: the encoder.
        width: width of its tokens.
        dim: width of the projected tokens.
        dropout: dropout rate of the projected tokens.
    """

    def __init__(self, inner: Encoder, width: int, dim: int, dropout: float = 0.0):
        # Only a pool that selects a token works on projected tokens.
        pool = inner.pool if isinstance(inner.pool, FirstTokenPool) else None
        super().__init__(ProjectedEmbedding(inner, width, dim, dropout), pool=pool)

    @property
    def inner(self) -> Encoder:
        """The encoder before the projection."""
        return require_type(self.embed, ProjectedEmbedding).encoder

    def pooled(self, raw: Tensor) -> Float[Tensor, "B D"]:
        """Return the projection of the inner encoder's pooled embedding."""
        embed = require_type(self.embed, ProjectedEmbedding)
        return embed.dropout(embed.projection(embed.encoder.pooled(raw)))


def _small_resnet(
    image: Image, dim: int, layers: int, dropout: float, *, block: type[nn.Module]
) -> Encoder:
    stem_stride = 4 if image.size >= 64 else 2
    resnet = ResNet(dim, max(1, layers // 3), dropout, block=block, stem_stride=stem_stride)
    return Encoder(resnet)


def _standard_resnet(
    image: Image, dim: int, layers: int, dropout: float, *, layout: str
) -> Encoder:
    del image, layers  # any size; the layout fixes the layers
    embed, width = build_resnet(RESNET_CONFIGS[layout])
    return ProjectedEncoder(Encoder(embed), width, dim, dropout)


def _vit(image: Image, dim: int, layers: int, dropout: float) -> Encoder:
    divisors = [n for n in range(1, image.size + 1) if image.size % n == 0]
    patch_size = min(divisors, key=lambda n: abs(n - image.size / 8))
    return Encoder(
        PatchEmbedding(dim, image.size, patch_size),
        build_transformer(dim, layers, num_heads(dim), input_norm=True, dropout=dropout),
    )


def _transformer_text(text: Text, dim: int, layers: int, dropout: float) -> Encoder:
    return Encoder(
        TextEmbedding(dim, text, causal=False),
        build_transformer(dim, layers, num_heads(dim), dropout=dropout),
    )


def _rnn_text(text: Text, dim: int, layers: int, dropout: float, *, cell: str) -> Encoder:
    return Encoder(
        BagEmbedding(dim, text, dropout), Recurrent(dim, layers, cell=cell, dropout=dropout)
    )


def _bag(text: Text, dim: int, layers: int, dropout: float) -> Encoder:
    del layers  # has none
    return Encoder(BagEmbedding(dim, text, dropout))


def _subword(text: Text, dim: int, layers: int, dropout: float) -> Encoder:
    del layers  # has none
    return Encoder(SubwordBagEmbedding(dim, text, dropout))


def _transformer_trunk(dim: int, layers: int, *, dropout: float) -> Transformer:
    return build_transformer(dim, layers, num_heads(dim), dropout=dropout)


def _windowed(
    series: Series,
    dim: int,
    layers: int,
    dropout: float,
    *,
    trunk: Callable[..., nn.Module],
    add_positions: bool = False,
) -> Encoder:
    """Return an encoder of a series in windows, one token each."""
    return Encoder(
        WindowEmbedding(dim, series, window_length(series), add_positions=add_positions),
        trunk(dim, layers, dropout=dropout),
    )


def _pyramid(series: Series, dim: int, layers: int, dropout: float) -> Encoder:
    return Encoder(MultiscaleConv(dim, series, max(1, layers // 2), dropout))


def _audio(
    audio: Audio, dim: int, layers: int, dropout: float, *, trunk: Callable[..., nn.Module]
) -> Encoder:
    """Return an encoder with one token per 20 ms of audio."""
    max_tokens = math.ceil((audio.seconds or audio.max_seconds) * 50)
    return Encoder(
        AudioStem(dim, audio.n_mels, max_tokens),
        trunk(dim, layers, dropout=dropout),
    )


def window_length(series: Series) -> int:
    """Return the steps of a window: a series of typical length has 16 windows, of 1 to 16 steps."""
    return max(1, min(16, series.typical_length // 16))


TRUNKS: dict[str, Callable[..., nn.Module]] = {  # over the steps of a series or of audio
    "cnn": Convolutions,
    "gru": partial(Recurrent, cell="gru"),
    "lstm": partial(Recurrent, cell="lstm"),
    "transformer": _transformer_trunk,
}
ENCODERS: dict[str, dict[str, EncoderBuilder]] = {  # the first of each type is the default
    "image": {
        "resnet": partial(_small_resnet, block=BasicBlock),
        "cnn": partial(_small_resnet, block=PlainBlock),
        "vit": _vit,
        **{layout: partial(_standard_resnet, layout=layout) for layout in RESNET_CONFIGS},
    },
    "text": {
        "subword": _subword,
        "transformer": _transformer_text,
        "gru": partial(_rnn_text, cell="gru"),
        "lstm": partial(_rnn_text, cell="lstm"),
        "bag": _bag,
    },
    "series": {
        "gru": partial(_windowed, trunk=TRUNKS["gru"]),
        "cnn": _pyramid,
        "lstm": partial(_windowed, trunk=TRUNKS["lstm"]),
        "transformer": partial(_windowed, trunk=TRUNKS["transformer"], add_positions=True),
    },
    "audio": {name: partial(_audio, trunk=trunk) for name, trunk in TRUNKS.items()},
}
BUILTIN_TYPES = frozenset(MODALITIES)
REQUIRED_METHODS = ("fit", "load", "collate", "augment", "to_json", "from_json")


def add_modality(modality: type, **encoders: EncoderBuilder) -> None:
    """Register a column type of your own, for training and for loading runs that use it.

    A type registered again replaces the earlier one.

    Args:
        modality: settings of the column type: a class like `Modality` with the class attributes
            `kind` and `extensions`, and a default for each setting.
        **encoders: encoders by name, the default one first. Each is called with (settings, dim,
            layers, dropout) and returns an `Encoder` with tokens of width `dim`.

    Raises:
        SensoriumError: where the class lacks something, or its `kind` is taken.
    """
    kind = getattr(modality, "kind", "")
    taken = (*BUILTIN_TYPES, *ROLES)
    if not isinstance(kind, str) or not kind.isidentifier() or kind in taken:
        raise SensoriumError(
            f"{modality.__name__}.kind is {kind!r}. A kind is a single word other than "
            f"{', '.join(taken)}."
        )
    missing = [name for name in ("extensions", *REQUIRED_METHODS) if not hasattr(modality, name)]
    if missing:
        raise SensoriumError(
            f"{modality.__name__} lacks {', '.join(missing)}, which every column type needs."
        )
    if not encoders:
        raise SensoriumError(
            f"add_modality({modality.__name__}, ...) names no encoder. Give at least one: "
            f"add_modality({modality.__name__}, encoder=build)."
        )
    try:
        modality()
    except TypeError as e:
        raise SensoriumError(
            f"{modality.__name__} needs a default for each of its settings: {e}."
        ) from e
    MODALITIES[kind] = modality
    ENCODERS[kind] = encoders
