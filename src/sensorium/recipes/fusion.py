"""Predict from any columns, any of them missing: pictures, words, series and single values, fused."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sensorium.align import ALIGNS
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.fused import ROW, Fused, Head, Sense
from sensorium.fusion import FUSIONS
from sensorium.modalities.image import Image
from sensorium.modalities.modality import Modality
from sensorium.modalities.resnet import ResNet
from sensorium.modalities.row import KINDS, Row
from sensorium.modalities.table import Category, Number
from sensorium.modalities.tags import Tags
from sensorium.modalities.text import Text, Words
from sensorium.models import Encoder
from sensorium.objectives.supervised import Supervised
from sensorium.objectives.supervised import target as kind_of
from sensorium.recipes.prediction import validate
from sensorium.recipes.recipe import BadKeyword, Recipe, Training, one_of
from sensorium.transformer import transformer
from sensorium.verbs.predict import Predictor

TARGETS = ("category", "number", "ordinal", "set")
USUAL = ("target", "label", "class", "y")   # names of columns that are predicted where none is named
AUGMENT: dict[str, dict[str, dict[str, float]]] = {        # strength -> kind of column -> how
    "light": {"image": {"crop": 0.8, "brightness": 0.2, "contrast": 0.2}, "text": {"drop": 0.1},
              "category": {"unseen": 0.02}},
    "strong": {"image": {"flip": 0.5, "rotate": 10, "scale": 0.2, "shift": 0.1, "brightness": 0.3, "contrast": 0.3,
                         "tint": 0.2, "grey": 0.1}, "text": {"drop": 0.2}, "category": {"unseen": 0.05},
               "set": {"drop": 0.1}, "number": {"noise": 0.05}}}


@dataclass(frozen=True)
class Preset:
    """What suits so many training rows."""

    rows: int                               # at most
    dim: int
    depth: int
    dropout: float
    epochs: int
    batch_size: int


PRESETS = (Preset(2_000, 64, 1, 0.2, 60, 32), Preset(10_000, 96, 2, 0.15, 30, 64),
           Preset(100_000, 128, 3, 0.1, 15, 128), Preset(1 << 62, 192, 4, 0.1, 4, 512))


def fusion(schema: Schema, *, target: str = "", columns: str = "", fuse: Literal[
        "concat", "sum", "gated", "attention", "sequence", "parallel", "bottleneck", "product"] = "concat",
           align: Literal["linear", "nonlinear", "multiscale"] = "linear", contrast: float = 0.0, dim: int = 0,
           depth: int = 0, drop: float = 0.1, dropout: float = -1.0, mixup: float = 0.0,
           balance: bool = False) -> Recipe:
    """Labels, numbers, ranks or sets of tags from any columns; what is missing in a row is masked, never made up.

    Sizes follow the number of training rows where they are not given.

    Args:
        target: the column to predict, or several joined by commas.
        columns: what to predict from, joined by commas; by default all others.
        fuse: how parts meet: concat, sum, gated, attention, sequence, parallel, bottleneck, product.
        align: from each encoder to the fusion: linear, nonlinear, multiscale (parts and their whole).
        contrast: weight of a loss by which the parts of a row find each other; 0: none.
        dim: width; 0: by the number of rows.
        depth: blocks of an encoder, and of a fusion that has blocks; 0: by the number of rows.
        drop: share of values hidden while training, so that it learns to do without.
        dropout: share of activations dropped; below 0: by the number of rows.
        mixup: how strongly rows are mixed while training (0.2 is usual); 0: never.
        balance: every class counts the same, however rare.
    """
    aims = _targets(schema, target)
    reads = _inputs(schema, columns, aims)
    preset = _preset([schema[name] for name in aims])
    dim, depth, dropout = dim or preset.dim, depth or preset.depth, preset.dropout if dropout < 0 else dropout
    single = {name: m for name, m in reads.items() if m.kind in KINDS}
    way = ALIGNS[one_of("align", align, list(ALIGNS))]
    senses = {name: Sense(encoder(m, dim, depth, dropout), way(dim, dim))
              for name, m in reads.items() if name not in single}
    names = [*senses, *([ROW] if single else [])]
    meet = FUSIONS[one_of("fuse", fuse, list(FUSIONS))](names, dim, depth, dropout)
    row = Row(single, dim, 0 if meet.tokens else 4 * dim, dropout) if single else None
    kinds = {name: kind_of(schema[name], balance=balance) for name in aims}
    heads = {name: Head(dim, kind.prior(), dropout) for name, kind in kinds.items()}
    model = Fused(senses, row, meet, heads, dim=dim, drop=drop)
    objective = Supervised(kinds, mixup, contrast)
    return Recipe(
        model=model, objective=objective, columns=(*reads, *aims),
        training=Training(epochs=preset.epochs, batch_size=preset.batch_size, lr=1e-3, weight_decay=0.1, ema=0.99),
        verbs={"predict": Predictor(model, reads, {name: schema[name] for name in aims})},
        augment={strength: {name: how[m.kind] for name, m in reads.items() if m.kind in how}
                 for strength, how in AUGMENT.items()},
        metric="val_loss", validate=validate(objective))


def _targets(schema: Schema, named: str) -> list[str]:
    """The columns to predict. Raises SensoriumError where none is named, or one cannot be predicted."""
    names = [n.strip() for n in named.split(",") if n.strip()] or [
        name for usual in USUAL for name in schema.columns if name.lower() == usual][:1]
    if not names:
        raise BadKeyword(f"which column is to be predicted? Name it with target= (--target): "
                         f"{', '.join(c.name for c in schema.columns.values() if c.kind in TARGETS)}")
    for name in names:
        schema.find(name)
        if (kind := schema[name].kind) not in TARGETS:
            raise SensoriumError(f"the target {name!r} is taken for {kind}, which cannot be predicted "
                                 f"({schema.columns[name].why}). If it is one of {', '.join(TARGETS)}, say so: "
                                 f"--column {name}=category (columns={{{name!r}: 'category'}}).")
        _check(name, schema[name])
    return names


def _check(name: str, modality: Modality) -> None:
    """Raises SensoriumError for a target that never changes."""
    if isinstance(modality, Category) and len(modality.classes) == 1:
        raise SensoriumError(f"the target {name!r} has the one class {modality.classes[0]!r} in all training rows: "
                             "there is nothing to learn.")
    if isinstance(modality, Number) and modality.count and len(modality.edges) < 2:
        raise SensoriumError(f"the target {name!r} is {modality.mean:g} in all training rows: there is nothing to "
                             "learn.")


def _inputs(schema: Schema, named: str, aims: Sequence[str]) -> dict[str, Modality]:
    names = [n.strip() for n in named.split(",") if n.strip()]
    for name in names:
        schema.find(name)
        if name in aims:
            raise BadKeyword(f"columns: {name!r} is the target, which cannot be predicted from itself.")
    found = {name: schema[name] for name in names or schema.columns if name not in aims}
    if not found:
        raise SensoriumError(f"there is no column to predict {', '.join(aims)} from.")
    return found


def _preset(aims: Sequence[Modality]) -> Preset:
    """By the number of rows that have the rarest target."""
    rows = [m.rows if isinstance(m, Tags) else m.count if isinstance(m, Number) else sum(getattr(m, "counts", ()))
            for m in aims]
    return next(p for p in PRESETS if min(rows) <= p.rows)


def encoder(modality: Modality, dim: int, depth: int, dropout: float) -> Encoder:
    if isinstance(modality, Image):
        return Encoder(ResNet(dim, max(1, depth // 2), dropout, size=modality.size))
    assert isinstance(modality, Text)
    return Encoder(Words(dim, modality, causal=False), transformer(dim, depth, max(1, dim // 32), dropout=dropout))
