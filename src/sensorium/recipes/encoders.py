"""Encoders by keyword: what reads a column, by the kind of its values and a name; or published weights.

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
from sensorium.errors import SensoriumError
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
from sensorium.nn.transformer import Transformer, build_transformer
from sensorium.pretrained.bert import FirstTokenPool
from sensorium.pretrained.resnet import RESNET_CONFIGS, build_resnet
from sensorium.pretrained.source import PretrainedSource
from sensorium.recipes.recipe import BadKeyword

HEAD_DIM = 64  # width of one attention head, about
LONG_SERIES_STEPS = 64  # steps of a series that a recurrent network reads worse than convolutions
EncoderBuilder = Callable[
    [Any, int, int, float], Encoder
]  # (settings of the column, dim, depth, dropout)


def build_encoder(
    modality: Modality,
    spec: str | Mapping[str, Any] | PretrainedSource,
    dim: int,
    depth: int,
    dropout: float = 0.0,
    train: str = "none",
) -> Encoder:
    """What reads a column of this modality: Tokens of width `dim`, padding and gaps not valid, no order among them.

    spec: a name in ENCODERS ("": the first of its kind), or published weights (see `chosen`). depth: blocks or layers,
    where the encoder has any number of them. The width of published weights is brought to `dim` by one layer, which
    always learns; `train` says how much of them does (`sensorium.models.lora.TUNES`).
    Raises BadKeyword naming what there is.
    """
    found = resolve_encoder(modality.kind, spec)
    if isinstance(found, PretrainedSource):
        inner, width = found.build_encoder(modality.kind)
        return ProjectedEncoder(set_trainable(inner, train), width, dim, dropout)
    return ENCODERS[modality.kind][found](modality, dim, depth, dropout)


def resolve_encoder(
    kind: str, spec: str | Mapping[str, Any] | PretrainedSource
) -> str | PretrainedSource:
    """The name of one of the encoders of a kind; or the published model that a folder, a file, a hub id or a run's
    config names: `senses()[kind]` of it are then the settings that its column must have, `told()` what the run keeps.

    Raises BadKeyword where it is neither.
    """
    if isinstance(spec, PretrainedSource):
        return spec
    known = list(ENCODERS.get(kind, ()))
    if not known:
        raise BadKeyword(
            f"no encoder reads a column of the kind {kind!r}; there are some for {', '.join(ENCODERS)}"
        )
    if not spec:
        return known[0]
    if isinstance(spec, Mapping) or (spec not in known and ("/" in spec or Path(spec).exists())):
        return PretrainedSource.from_source(spec)
    if spec not in known:
        raise BadKeyword(
            f"{spec!r} is no encoder of {kind}: choose one of {', '.join(known)}, or give a folder, a file "
            "or a hub id of published weights"
        )
    return spec


def default_encoder(modality: Modality) -> str:
    """The encoder of a column for which none is named: the first of its kind, but for long series convolutions."""
    return (
        "cnn"
        if isinstance(modality, Series) and modality.typical_length >= LONG_SERIES_STEPS
        else ""
    )


class ProjectedEmbedding(nn.Module):
    """Raw values → Tokens of another width, by a whole encoder and one linear layer after it."""

    def __init__(self, encoder: Encoder, width: int, dim: int, dropout: float = 0.0):
        super().__init__()
        self.encoder, self.projection, self.dropout = (
            encoder,
            Linear(width, dim),
            nn.Dropout(dropout),
        )

    def pool_index(self, values: Tensor) -> Int[Tensor, "B"] | None:
        return self.encoder.embed.pool_index(values)

    def forward(self, values: Tensor) -> Tokens:
        t = self.encoder(values)
        return replace(t, x=self.dropout(self.projection(t.x)), order=None)


class ProjectedEncoder(Encoder):
    """An encoder with tokens of another width. Its vector is made of the inner encoder's own: that of a frozen one may
    have been worked out before."""

    def __init__(self, inner: Encoder, width: int, dim: int, dropout: float = 0.0):
        pool = (
            inner.pool if isinstance(inner.pool, FirstTokenPool) else None
        )  # that only picks one of the tokens
        super().__init__(ProjectedEmbedding(inner, width, dim, dropout), pool=pool)

    @property
    def inner(self) -> Encoder:
        """What reads the values, in its own width."""
        assert isinstance(self.embed, ProjectedEmbedding)
        return self.embed.encoder

    def pooled(self, raw: Tensor) -> Float[Tensor, "B D"]:
        assert isinstance(self.embed, ProjectedEmbedding)
        return self.embed.dropout(self.embed.projection(self.inner.pooled(raw)))


def _small_resnet(
    image: Image, dim: int, depth: int, dropout: float, *, block: type[nn.Module]
) -> Encoder:
    return Encoder(
        ResNet(
            dim, max(1, depth // 3), dropout, block=block, stem_stride=4 if image.size >= 64 else 2
        )
    )


def _standard_resnet(image: Image, dim: int, depth: int, dropout: float, *, layout: str) -> Encoder:
    embed, width = build_resnet(RESNET_CONFIGS[layout])
    return ProjectedEncoder(Encoder(embed), width, dim, dropout)


def _vit(image: Image, dim: int, depth: int, dropout: float) -> Encoder:
    patch = min(
        (n for n in range(1, image.size + 1) if not image.size % n),
        key=lambda n: abs(n - image.size / 8),
    )
    return Encoder(
        PatchEmbedding(dim, image.size, patch),
        build_transformer(dim, depth, num_heads(dim), input_norm=True, dropout=dropout),
    )


def _transformer_text(text: Text, dim: int, depth: int, dropout: float) -> Encoder:
    return Encoder(
        TextEmbedding(dim, text, causal=False),
        build_transformer(dim, depth, num_heads(dim), dropout=dropout),
    )


def _rnn_text(text: Text, dim: int, depth: int, dropout: float, *, cell: str) -> Encoder:
    return Encoder(
        BagEmbedding(dim, text, dropout), Recurrent(dim, depth, cell=cell, dropout=dropout)
    )


def _bag(text: Text, dim: int, depth: int, dropout: float) -> Encoder:
    return Encoder(BagEmbedding(dim, text, dropout))


def _subword(text: Text, dim: int, depth: int, dropout: float) -> Encoder:
    return Encoder(SubwordBagEmbedding(dim, text, dropout))


def _transformer_trunk(dim: int, depth: int, *, dropout: float) -> Transformer:
    return build_transformer(dim, depth, num_heads(dim), dropout=dropout)


def _windowed(
    series: Series,
    dim: int,
    depth: int,
    dropout: float,
    *,
    trunk: Callable[..., nn.Module],
    add_positions: bool = False,
) -> Encoder:
    return Encoder(
        WindowEmbedding(dim, series, window_length(series), add_positions=add_positions),
        trunk(dim, depth, dropout=dropout),
    )


def _pyramid(series: Series, dim: int, depth: int, dropout: float) -> Encoder:
    return Encoder(MultiscaleConv(dim, series, max(1, depth // 2), dropout))


def _audio(
    audio: Audio, dim: int, depth: int, dropout: float, *, trunk: Callable[..., nn.Module]
) -> Encoder:
    """A token for every 20 ms, of sounds as long as the column may hold."""
    return Encoder(
        AudioStem(dim, audio.n_mels, math.ceil((audio.seconds or audio.max_seconds) * 50)),
        trunk(dim, depth, dropout=dropout),
    )


def window_length(series: Series) -> int:
    """Steps of a window: about 16 windows make up a usual series, none of more than 16 steps."""
    return max(1, min(16, series.typical_length // 16))


def num_heads(dim: int) -> int:
    """How many attention heads share a width: of HEAD or a little more each, and all of the same."""
    return next(n for n in range(max(1, dim // HEAD_DIM), 0, -1) if not dim % n)


TRUNKS: dict[str, Callable[..., nn.Module]] = {  # over the steps of a series or a sound
    "cnn": Convolutions,
    "gru": partial(Recurrent, cell="gru"),
    "lstm": partial(Recurrent, cell="lstm"),
    "transformer": _transformer_trunk,
}
ENCODERS: dict[str, dict[str, EncoderBuilder]] = {  # the first of each kind is the usual one
    "image": {
        "resnet": partial(_small_resnet, block=BasicBlock),
        "cnn": partial(_small_resnet, block=PlainBlock),
        "vit": _vit,
        **{layout: partial(_standard_resnet, layout=layout) for layout in RESNET_CONFIGS},
    },
    "text": {
        "spelling": _subword,
        "transformer": _transformer_text,
        "gru": partial(_rnn_text, cell="gru"),
        "lstm": partial(_rnn_text, cell="lstm"),
        "bag": _bag,
    },
    "series": {
        "gru": partial(_windowed, trunk=TRUNKS["gru"]),
        "cnn": _pyramid,
        **{
            name: partial(_windowed, trunk=TRUNKS[name], add_positions=name == "transformer")
            for name in ("lstm", "transformer")
        },
    },
    "audio": {name: partial(_audio, trunk=trunk) for name, trunk in TRUNKS.items()},
}
BUILTIN_KINDS, REQUIRED_ATTRIBUTES = (
    frozenset(MODALITIES),
    ("extensions", "fit", "load", "collate", "augment", "to_json", "from_json"),
)


def add_modality(modality: type, **encoders: EncoderBuilder) -> None:
    """One more kind of column, from a file of your own: a run that has learned from one is read where it was added too.

    modality: settings as `Modality` says, all with defaults, and `endings`. encoders: by name, the usual one first;
    each is `build(settings, dim, depth, dropout) -> Encoder`, with Tokens of width `dim`. Added again, it takes the
    place of what was there. Raises SensoriumError saying what it lacks, and for a kind of Sensorium's own.
    """
    kind = getattr(modality, "kind", "")
    if not isinstance(kind, str) or not kind.isidentifier() or kind in (*BUILTIN_KINDS, *ROLES):
        raise SensoriumError(
            f"{modality.__name__}.kind is {kind!r}: a kind is one word that is not taken; "
            f"{', '.join((*BUILTIN_KINDS, *ROLES))} are."
        )
    if lacks := [name for name in REQUIRED_ATTRIBUTES if not hasattr(modality, name)]:
        raise SensoriumError(
            f"{modality.__name__} lacks {', '.join(lacks)}, which every kind of column has."
        )
    if not encoders:
        raise SensoriumError(
            f"add_modality({modality.__name__}, ...) names no encoder, as in together=build."
        )
    try:
        modality()
    except TypeError as e:
        raise SensoriumError(
            f"{modality.__name__} needs a default for each of its settings: {e}."
        ) from e
    MODALITIES[kind], ENCODERS[kind] = modality, encoders
