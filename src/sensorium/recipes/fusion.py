"""Predict from any columns, any of them missing: pictures, words, series and single values, fused."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sensorium.adapt import TUNES, Still
from sensorium.align import ALIGNS, MultiscaleAlign
from sensorium.data.cache import Source, Stored
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.fused import ROW, Fused, Head, Sense
from sensorium.fusion import FUSIONS
from sensorium.modalities.modality import Modality
from sensorium.modalities.row import KINDS, Row
from sensorium.modalities.spelling import Spelling
from sensorium.modalities.table import Category, Number
from sensorium.modalities.tags import Tags
from sensorium.objectives.supervised import Supervised, Target
from sensorium.objectives.supervised import target as kind_of
from sensorium.published.start import Start
from sensorium.recipes.encoders import Narrowed, chosen, encoder, usual
from sensorium.recipes.prediction import judged
from sensorium.recipes.recipe import BadKeyword, Recipe, Training, meet, one_of
from sensorium.stored import content_hash, weights
from sensorium.verbs.predict import Predictor

HEADS = ("linear", "balanced", "boosting")
WAYS = {"fuse": [*FUSIONS]}                 # that are compared where nothing else is asked
TARGETS = ("category", "number", "ordinal", "set")
RATES: dict[str, dict[str, float]] = {      # what of published weights learns -> fields of the training
    "none": {}, "lora": {"lr": 1e-3, "epochs": 10}, "all": {"lr": 1e-3, "layer_decay": 0.7, "epochs": 10}}
USUAL = ("target", "label", "class", "y")   # names of columns that are predicted where none is named
AUGMENT: dict[str, dict[str, dict[str, float]]] = {        # strength -> kind of column -> how
    "light": {"image": {"crop": 0.8, "brightness": 0.2, "contrast": 0.2}, "category": {"unseen": 0.02}},
    "strong": {"image": {"flip": 0.5, "rotate": 10, "scale": 0.2, "shift": 0.1, "brightness": 0.3, "contrast": 0.3,
                         "tint": 0.2, "grey": 0.1}, "text": {"drop": 0.2}, "category": {"unseen": 0.05},
               "set": {"drop": 0.1}, "number": {"noise": 0.05},
               "series": {"crop": 0.6, "warp": 0.1, "scale": 0.1, "jitter": 0.1}}}


@dataclass(frozen=True)
class Preset:
    """What suits so many training rows."""

    rows: int                               # at most
    dim: int
    depth: int
    dropout: float
    epochs: int
    batch_size: int

    def given(self, dim: int, depth: int, dropout: float) -> "Preset":
        """The same, where these do not say otherwise: 0, 0 and below 0 say nothing."""
        return replace(self, dim=dim or self.dim, depth=depth or self.depth,
                       dropout=self.dropout if dropout < 0 else dropout)

    def training(self) -> Training:
        return Training(epochs=self.epochs, batch_size=self.batch_size, lr=2e-3, ema=0.99,
                        patience=max(2, self.epochs // 4))


PRESETS = (Preset(1_000, 64, 1, 0.2, 60, 16), Preset(2_000, 64, 1, 0.2, 60, 32), Preset(10_000, 96, 2, 0.15, 30, 64),
           Preset(100_000, 128, 3, 0.1, 15, 128), Preset(1 << 62, 192, 4, 0.1, 4, 512))


def fusion(schema: Schema, *, target: str = "", columns: str = "", encoders: str | Mapping[str, Any] = "",
           fuse: Literal["concat", "sum", "gated", "attention", "sequence", "parallel", "bottleneck",
                         "product"] = "concat",
           align: Literal["linear", "nonlinear", "multiscale"] = "linear", contrast: float = 0.0, dim: int = 0,
           depth: int = 0, drop: float = 0.5, dropout: float = -1.0, mixup: float = 0.0,
           head: Literal["linear", "balanced", "boosting"] = "linear") -> Recipe:
    """Labels, numbers, ranks or sets of tags from any columns; what is missing in a row is masked, never made up.

    Sizes follow the number of training rows where they are not given.

    Args:
        target: the column to predict, or several joined by commas.
        columns: what to predict from, joined by commas; by default all others.
        encoders: what reads a column, such as photo=resnet18,title=gru; or published weights: photo=their/folder; they
            stay as they are (and each value is read once, and not changed at random) or, with +lora or +all, learn on.
        fuse: how parts meet: concat, sum, gated, attention, sequence, parallel, bottleneck, product.
        align: from each encoder to the fusion: linear, nonlinear, multiscale (parts and their whole).
        contrast: weight of a loss by which the parts of a row find each other; 0: none.
        dim: width; 0: by the number of rows.
        depth: blocks of an encoder, and of a fusion that has blocks; 0: by the number of rows.
        drop: share of rows of which some values, few or most, are hidden while training: it learns to do without.
        dropout: share of activations dropped; below 0: by the number of rows.
        mixup: how strongly rows are mixed while training (0.2 is usual); 0: never.
        head: linear; balanced (each class counts the same, however rare); boosting (and trees; numbers, classes).
    """
    how = one_of("fuse", fuse, list(FUSIONS)), one_of("align", align, list(ALIGNS)), drop
    aims = {name: schema[name] for name in _targets(schema, target)}
    found, settings = _read(schema, _inputs(schema, columns, aims), encoders)
    size = _preset([*aims.values()]).given(dim, depth, dropout)
    kinds = {name: kind_of(m, balance=one_of("head", head, HEADS) == "balanced") for name, m in aims.items()}
    reads = {name: settings.get(name, schema[name]) for name in found}
    model = _model({name: (reads[name], how) for name, how in found.items()}, kinds, size, how)
    objective = Supervised(kinds, mixup, contrast)
    grown = _boosting(model, reads, objective, aims, size.dim) if head == "boosting" else {}
    return Recipe(
        model=model, objective=objective, columns=(*reads, *aims), settings=settings, told=_told(found),
        begin=lambda model, *seen: meet(dict(zip(model.names, model.senses, strict=True)), *seen),
        derived=_once(model, schema.taking(settings)), training=_training(size, found), compared=WAYS,
        verbs={"predict": Predictor(model, reads, aims)}, augment=_changes(reads), metric="val_loss",
        **judged(objective, aims), judge=_judge(aims), **grown)


def _boosting(model: Fused, reads: Mapping[str, Modality], objective: Supervised, aims: Mapping[str, Modality],
              dim: int) -> dict[str, Any]:
    """Fields of the recipe whose model has trees."""
    from sensorium.recipes.boosting import grown, with_trees  # not needed without trees
    with_trees(model, reads, aims, dim)
    return {"finish": grown(objective, aims), "needs": {"lightgbm": "boosting"}}


def _judge(aims: Mapping[str, Modality]) -> Callable[..., Any]:
    from sensorium.recipes.judge_predict import predictions  # not needed while training
    return predictions(aims)


def _model(reads: Mapping[str, tuple[Modality, str | Start]], kinds: Mapping[str, Target], size: Preset,
           how: tuple[str, str, float]) -> Fused:
    """reads: column → its settings and what reads it. how: fuse, align, drop."""
    fuse, align, drop = how
    single = {name: modality for name, (modality, _) in reads.items() if modality.kind in KINDS}
    senses = {name: Sense(encoder(modality, by, size.dim, size.depth, size.dropout), ALIGNS[align](size.dim, size.dim))
              for name, (modality, by) in reads.items() if name not in single}
    names = [*senses, *([ROW] if single else [])]
    meet = FUSIONS[fuse](names, size.dim, size.depth, size.dropout)
    row = Row(single, size.dim, 0 if meet.tokens else 4 * size.dim, size.dropout) if single else None
    heads = {name: Head(size.dim, kind.prior(), size.dropout) for name, kind in kinds.items()}
    spelt = any(isinstance(part, Spelling) for sense in senses.values() for part in sense.modules())
    return Fused(senses, row, meet, heads, dim=size.dim, drop=drop, straight=spelt)


def _once(model: Fused, schema: Schema) -> Callable[[Source], Mapping[str, Stored]] | None:
    """In the place of the columns that frozen encoders read: what those say of each value, as one vector."""
    still = {name: sense.encode.inner for name, sense in zip(model.names, model.senses, strict=True)
             if isinstance(sense.encode, Narrowed) and isinstance(sense.encode.inner, Still)
             and not isinstance(sense.align, MultiscaleAlign)}

    def derived(data: Source) -> dict[str, Stored]:
        from sensorium.data.vectors import vectors  # not needed where all encoders learn
        return {name: vectors(inner.whole, content_hash(weights(inner)), data, name, schema)
                for name, inner in still.items()}
    return derived if still and not model.fuse.tokens else None


def _read(schema: Schema, names: Sequence[str],
          said: str | Mapping[str, Any]) -> tuple[dict[str, str | Start], dict[str, Modality]]:
    """(column → what reads it, settings that columns of published weights must have)."""
    pairs = dict(said) if isinstance(said, Mapping) else {
        name.strip(): how for name, _, how in (one.partition("=") for one in said.split(",") if one.strip())}
    for name, how in pairs.items():
        if name not in names or schema.find(name).kind in KINDS or not how:
            raise BadKeyword(f"encoders: {name!r} is no column that an encoder reads; give COLUMN=ENCODER for "
                             f"{', '.join(n for n in names if schema[n].kind not in KINDS) or 'pictures or words'}")
    found = {name: "" if schema[name].kind in KINDS else
             chosen(schema[name].kind, pairs.get(name) or usual(schema[name])) for name in names}
    return found, {name: how.senses()[schema[name].kind] for name, how in found.items()
                   if isinstance(how, Start) and how.opened}


def _training(size: Preset, found: Mapping[str, str | Start]) -> Training:
    """Where published weights learn further, steps are small, and few."""
    tunes = [how.tune for how in found.values() if isinstance(how, Start)]
    return replace(size.training(), **RATES[max(tunes, key=TUNES.index, default="none")])


def _told(found: Mapping[str, str | Start]) -> dict[str, Any]:
    """What a run keeps of its encoders, where published weights are among them; else it keeps what it was told."""
    if not any(isinstance(how, Start) for how in found.values()):
        return {}
    return {"encoders": {name: how.told() if isinstance(how, Start) else how for name, how in found.items() if how}}


def _changes(reads: Mapping[str, Modality]) -> dict[str, dict[str, dict[str, float]]]:
    """strength → column → how."""
    return {strength: {name: how[m.kind] for name, m in reads.items() if m.kind in how}
            for strength, how in AUGMENT.items()}


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


def _inputs(schema: Schema, named: str, aims: Mapping[str, Modality]) -> list[str]:
    names = [n.strip() for n in named.split(",") if n.strip()]
    for name in names:
        schema.find(name)
        if name in aims:
            raise BadKeyword(f"columns: {name!r} is the target, which cannot be predicted from itself.")
    found = [name for name in names or schema.columns if name not in aims]
    if not found:
        raise SensoriumError(f"there is no column to predict {', '.join(aims)} from.")
    return found


def _preset(aims: Sequence[Modality]) -> Preset:
    """By the number of rows that have the rarest target."""
    rows = [m.rows if isinstance(m, Tags) else m.count if isinstance(m, Number) else sum(getattr(m, "counts", ()))
            for m in aims]
    return next(p for p in PRESETS if min(rows) <= p.rows)
