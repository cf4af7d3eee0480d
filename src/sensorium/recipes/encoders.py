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

from sensorium.adapt import tuned
from sensorium.data.schema import MODALITIES, ROLES
from sensorium.errors import SensoriumError
from sensorium.kernels import Linear
from sensorium.modalities.audio import Audio, Sound
from sensorium.modalities.convolution import Convolutions, Levels
from sensorium.modalities.image import Image, Patches
from sensorium.modalities.modality import Modality
from sensorium.modalities.recurrent import Recurrent
from sensorium.modalities.resnet import Plain, Residual, ResNet
from sensorium.modalities.series import Series, Windows
from sensorium.modalities.spelling import Spelling
from sensorium.modalities.text import Text, Words, WordVectors
from sensorium.models import Encoder
from sensorium.published.bert import First
from sensorium.published.resnet import LAYOUTS, residuals
from sensorium.published.start import Start
from sensorium.recipes.recipe import BadKeyword
from sensorium.tokens import Tokens
from sensorium.transformer import Transformer, transformer

HEAD = 64                                   # width of one attention head, about
LONG = 64                                   # steps of a series that a recurrent network reads worse than convolutions
Build = Callable[[Any, int, int, float], Encoder]           # (settings of the column, dim, depth, dropout)


def encoder(modality: Modality, how: str | Mapping[str, Any] | Start, dim: int, depth: int, dropout: float = 0.0,
            train: str = "none") -> Encoder:
    """What reads a column of this modality: Tokens of width `dim`, padding and gaps not valid, no order among them.

    how: a name in ENCODERS ("": the first of its kind), or published weights (see `chosen`). depth: blocks or layers,
    where the encoder has any number of them. The width of published weights is brought to `dim` by one layer, which
    always learns; `train` says how much of them does (`sensorium.adapt.TUNES`).
    Raises BadKeyword naming what there is.
    """
    found = chosen(modality.kind, how)
    if isinstance(found, Start):
        inner, width = found.encoder(modality.kind)
        return Narrowed(tuned(inner, train), width, dim, dropout)
    return ENCODERS[modality.kind][found](modality, dim, depth, dropout)


def chosen(kind: str, how: str | Mapping[str, Any] | Start) -> str | Start:
    """The name of one of the encoders of a kind; or the published model that a folder, a file, a hub id or a run's
    config names: `senses()[kind]` of it are then the settings that its column must have, `told()` what the run keeps.

    Raises BadKeyword where it is neither.
    """
    if isinstance(how, Start):
        return how
    known = list(ENCODERS.get(kind, ()))
    if not known:
        raise BadKeyword(f"no encoder reads a column of the kind {kind!r}; there are some for {', '.join(ENCODERS)}")
    if not how:
        return known[0]
    if isinstance(how, Mapping) or how not in known and ("/" in how or Path(how).exists()):
        return Start.of(how)
    if how not in known:
        raise BadKeyword(f"{how!r} is no encoder of {kind}: choose one of {', '.join(known)}, or give a folder, a file "
                         "or a hub id of published weights")
    return how


def usual(modality: Modality) -> str:
    """The encoder of a column for which none is named: the first of its kind, but for long series convolutions."""
    return "cnn" if isinstance(modality, Series) and modality.usual >= LONG else ""


class Projected(nn.Module):
    """Raw values → Tokens of another width, by a whole encoder and one linear layer after it."""

    def __init__(self, encoder: Encoder, width: int, dim: int, dropout: float = 0.0):
        super().__init__()
        self.encoder, self.project, self.drop = encoder, Linear(width, dim), nn.Dropout(dropout)

    def summary(self, raw: Tensor) -> Int[Tensor, "B"] | None:
        return self.encoder.embed.summary(raw)

    def forward(self, raw: Tensor) -> Tokens:
        t = self.encoder(raw)
        return replace(t, x=self.drop(self.project(t.x)), order=None)


class Narrowed(Encoder):
    """An encoder with tokens of another width. Its vector is made of the inner encoder's own: that of a frozen one may
    have been worked out before."""

    def __init__(self, inner: Encoder, width: int, dim: int, dropout: float = 0.0):
        pool = inner.pool if isinstance(inner.pool, First) else None        # that only picks one of the tokens
        super().__init__(Projected(inner, width, dim, dropout), pool=pool)

    @property
    def inner(self) -> Encoder:
        """What reads the values, in its own width."""
        assert isinstance(self.embed, Projected)
        return self.embed.encoder

    def whole(self, raw: Tensor) -> Float[Tensor, "B D"]:
        assert isinstance(self.embed, Projected)
        return self.embed.drop(self.embed.project(self.inner.whole(raw)))


def _convolutions(image: Image, dim: int, depth: int, dropout: float, *, block: type[nn.Module]) -> Encoder:
    return Encoder(ResNet(dim, max(1, depth // 3), dropout, block=block, stem=4 if image.size >= 64 else 2))


def _residuals(image: Image, dim: int, depth: int, dropout: float, *, layout: str) -> Encoder:
    embed, width = residuals(LAYOUTS[layout])
    return Narrowed(Encoder(embed), width, dim, dropout)


def _vit(image: Image, dim: int, depth: int, dropout: float) -> Encoder:
    patch = min((n for n in range(1, image.size + 1) if not image.size % n), key=lambda n: abs(n - image.size / 8))
    return Encoder(Patches(dim, image.size, patch), transformer(dim, depth, heads(dim), first=True, dropout=dropout))


def _read(text: Text, dim: int, depth: int, dropout: float) -> Encoder:
    return Encoder(Words(dim, text, causal=False), transformer(dim, depth, heads(dim), dropout=dropout))


def _spelt(text: Text, dim: int, depth: int, dropout: float, *, cell: str) -> Encoder:
    return Encoder(WordVectors(dim, text, dropout), Recurrent(dim, depth, cell=cell, dropout=dropout))


def _bag(text: Text, dim: int, depth: int, dropout: float) -> Encoder:
    return Encoder(WordVectors(dim, text, dropout))


def _letters(text: Text, dim: int, depth: int, dropout: float) -> Encoder:
    return Encoder(Spelling(dim, text, dropout))


def _attending(dim: int, depth: int, *, dropout: float) -> Transformer:
    return transformer(dim, depth, heads(dim), dropout=dropout)


def _along(series: Series, dim: int, depth: int, dropout: float, *, trunk: Callable[..., nn.Module],
           places: bool = False) -> Encoder:
    return Encoder(Windows(dim, series, window(series), places=places), trunk(dim, depth, dropout=dropout))


def _levels(series: Series, dim: int, depth: int, dropout: float) -> Encoder:
    return Encoder(Levels(dim, series, max(1, depth // 2), dropout))


def _heard(audio: Audio, dim: int, depth: int, dropout: float, *, trunk: Callable[..., nn.Module]) -> Encoder:
    """A token for every 20 ms, of sounds as long as the column may hold."""
    return Encoder(Sound(dim, audio.mels, math.ceil((audio.seconds or audio.most) * 50)),
                   trunk(dim, depth, dropout=dropout))


def window(series: Series) -> int:
    """Steps of a window: about 16 windows make up a usual series, none of more than 16 steps."""
    return max(1, min(16, series.usual // 16))


def heads(dim: int) -> int:
    """How many attention heads share a width: of HEAD or a little more each, and all of the same."""
    return next(n for n in range(max(1, dim // HEAD), 0, -1) if not dim % n)


TRUNKS: dict[str, Callable[..., nn.Module]] = {     # over the steps of a series or a sound
    "cnn": Convolutions, "gru": partial(Recurrent, cell="gru"), "lstm": partial(Recurrent, cell="lstm"),
    "transformer": _attending}
ENCODERS: dict[str, dict[str, Build]] = {           # the first of each kind is the usual one
    "image": {"resnet": partial(_convolutions, block=Residual), "cnn": partial(_convolutions, block=Plain), "vit": _vit,
              **{layout: partial(_residuals, layout=layout) for layout in LAYOUTS}},
    "text": {"spelling": _letters, "transformer": _read, "gru": partial(_spelt, cell="gru"),
             "lstm": partial(_spelt, cell="lstm"), "bag": _bag},
    "series": {"gru": partial(_along, trunk=TRUNKS["gru"]), "cnn": _levels, **{
        name: partial(_along, trunk=TRUNKS[name], places=name == "transformer") for name in ("lstm", "transformer")}},
    "audio": {name: partial(_heard, trunk=trunk) for name, trunk in TRUNKS.items()},
}
OWN, NEEDED = frozenset(MODALITIES), ("endings", "fit", "load", "collate", "augment", "to_json", "from_json")


def add_modality(modality: type, **encoders: Build) -> None:
    """One more kind of column, from a file of your own: a run that has learned from one is read where it was added too.

    modality: settings as `Modality` says, all with defaults, and `endings`. encoders: by name, the usual one first;
    each is `build(settings, dim, depth, dropout) -> Encoder`, with Tokens of width `dim`. Added again, it takes the
    place of what was there. Raises SensoriumError saying what it lacks, and for a kind of Sensorium's own.
    """
    kind = getattr(modality, "kind", "")
    if not isinstance(kind, str) or not kind.isidentifier() or kind in (*OWN, *ROLES):
        raise SensoriumError(f"{modality.__name__}.kind is {kind!r}: a kind is one word that is not taken; "
                             f"{', '.join((*OWN, *ROLES))} are.")
    if lacks := [name for name in NEEDED if not hasattr(modality, name)]:
        raise SensoriumError(f"{modality.__name__} lacks {', '.join(lacks)}, which every kind of column has.")
    if not encoders:
        raise SensoriumError(f"add_modality({modality.__name__}, ...) names no encoder, as in together=build.")
    try:
        modality()
    except TypeError as e:
        raise SensoriumError(f"{modality.__name__} needs a default for each of its settings: {e}.") from e
    MODALITIES[kind], ENCODERS[kind] = modality, encoders
