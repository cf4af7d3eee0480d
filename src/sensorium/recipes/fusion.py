"""Predict from any columns, any of them missing: pictures, words, series and single values, fused."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from sensorium.adapt import TUNES, Still
from sensorium.align import ALIGNS, MultiscaleAlign
from sensorium.data.cache import Prepared, Source, Stored
from sensorium.data.schema import Schema, split_pair
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
from sensorium.recipes.fusion_config import ColumnInput, FusionConfig
from sensorium.recipes.prediction import calibrate, validate
from sensorium.recipes.recipe import (
    BadKeyword,
    DataSpec,
    DeriveColumns,
    EvaluationSpec,
    Evaluator,
    Hooks,
    OnEnd,
    Recipe,
    meet,
    one_of,
)
from sensorium.recipes.training_config import TrainingConfig, training_defaults
from sensorium.stored import content_hash, weights
from sensorium.tokens import ColumnKey
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

    def training(self) -> TrainingConfig:
        return TrainingConfig(epochs=self.epochs, batch_size=self.batch_size, lr=2e-3, ema_decay=0.99,
                              early_stopping_patience=max(2, self.epochs // 4))


PRESETS = (Preset(1_000, 64, 1, 0.2, 60, 16), Preset(2_000, 64, 1, 0.2, 60, 32), Preset(10_000, 96, 2, 0.15, 30, 64),
           Preset(100_000, 128, 3, 0.1, 15, 128), Preset(1 << 62, 192, 4, 0.1, 4, 512))


@training_defaults(epochs="chosen by the number of rows; 10 where pretrained weights are trained",
                   batch_size="chosen by the number of rows", lr="0.002; 0.001 where pretrained weights are trained",
                   early_stopping_patience="chosen by the number of rows", ema_decay=0.99,
                   layer_decay="1.0; 0.7 with --encoder-train COLUMN=all")
def fusion(schema: Schema, *, target: str | Sequence[str] = (), columns: str | Sequence[str] = (),
           encoders: str | Sequence[str] | Mapping[str, Any] = (),
           encoder_train: str | Sequence[str] | Mapping[str, str] = (),
           fuse: Literal["concat", "sum", "gated", "attention", "sequence", "parallel", "bottleneck",
                         "product"] = "concat",
           align: Literal["linear", "nonlinear", "multiscale"] = "linear", contrast: float = 0.0, dim: int = 0,
           depth: int = 0, drop: float = 0.5, dropout: float = -1.0, mixup: float = 0.0,
           head: Literal["linear", "balanced", "boosting"] = "linear") -> Recipe[Fused]:
    """Labels, numbers, ranks or sets of tags from any columns; what is missing in a row is masked, never made up.

    Sizes follow the number of training rows where they are not given.

    Args:
        target: the column to predict (once for each).
        columns: a column to predict from (once for each); by default all others.
        encoders: what reads a column, such as title=gru (once for each); or published weights: photo=their/folder,
            which stay as they are (and each value is read once, and not changed at random) unless encoder_train says
            more.
        encoder_train: how much of the published weights of a column is trained: COLUMN=none, COLUMN=lora (low-rank
            adaptation) or COLUMN=all (once for each).
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
    one_of("fuse", fuse, list(FUSIONS))
    one_of("align", align, list(ALIGNS))
    aims = {name: schema[name] for name in _targets(schema, target)}
    inputs = _read(schema, _inputs(schema, columns, aims), encoders, encoder_train)
    size = _preset([*aims.values()]).given(dim, depth, dropout)
    config = FusionConfig(fusion=fuse, projection=align, modality_dropout=drop, dim=size.dim, depth=size.depth,
                          dropout=size.dropout)
    kinds = {name: kind_of(m, balance=one_of("head", head, HEADS) == "balanced") for name, m in aims.items()}
    reads = {name: given.modality for name, given in inputs.items()}
    model = _model(inputs, kinds, config)
    objective = Supervised(kinds, mixup, contrast)
    boosted = _boosting(model, reads, objective, aims, size.dim) if head == "boosting" else None
    return Recipe(
        model=model, objective=objective,
        data=_data(schema, inputs, aims, model), training=_training(size, inputs),
        verbs={"predict": Predictor(model, reads, aims)},
        hooks=Hooks(on_start=_begin, calibrate=calibrate(aims), on_end=boosted),
        evaluation=EvaluationSpec(metric="val_loss", mode="min", validate=validate(objective, aims),
                                  evaluator=_judge(aims), sweep=WAYS),
        stored_keywords=_told(inputs), extras={"lightgbm": "boosting"} if boosted else {})


def _data(schema: Schema, inputs: Mapping[str, ColumnInput], aims: Mapping[str, Modality], model: Fused) -> DataSpec:
    """The columns that are read and predicted; published weights bring the settings of theirs along."""
    settings: dict[ColumnKey, Modality] = {
        name: given.modality for name, given in inputs.items()
        if isinstance(given.encoder, Start) and given.encoder.opened}
    return DataSpec(columns=(*inputs, *aims), column_settings=settings,
                    augment=_changes({name: given.modality for name, given in inputs.items()}),
                    derived_columns=_once(model, schema.taking(settings)))


def _begin(model: Fused, prepared: Prepared, rows: np.ndarray) -> None:
    meet(dict(zip(model.names, model.senses, strict=True)), prepared, rows)


def _boosting(model: Fused, reads: Mapping[str, Modality], objective: Supervised, aims: Mapping[str, Modality],
              dim: int) -> OnEnd[Fused]:
    """Give the model trees; what grows them at the end."""
    from sensorium.recipes.boosting import grown, with_trees  # not needed without trees
    with_trees(model, reads, aims, dim)
    return grown(objective, aims)


def _judge(aims: Mapping[str, Modality]) -> Evaluator:
    from sensorium.recipes.judge_predict import predictions  # not needed while training
    return predictions(aims)


def _model(inputs: Mapping[str, ColumnInput], kinds: Mapping[str, Target], config: FusionConfig) -> Fused:
    dim, depth, dropout = config.dim, config.depth, config.dropout
    single = {name: given.modality for name, given in inputs.items() if given.modality.kind in KINDS}
    senses = {name: Sense(encoder(given.modality, given.encoder, dim, depth, dropout, given.train),
                          ALIGNS[config.projection](dim, dim))
              for name, given in inputs.items() if name not in single}
    names = [*senses, *([ROW] if single else [])]
    meet = FUSIONS[config.fusion](names, dim, depth, dropout)
    row = Row(single, dim, 0 if meet.tokens else 4 * dim, dropout) if single else None
    heads = {name: Head(dim, kind.prior(), dropout) for name, kind in kinds.items()}
    spelt = any(isinstance(part, Spelling) for sense in senses.values() for part in sense.modules())
    return Fused(senses, row, meet, heads, dim=dim, drop=config.modality_dropout, straight=spelt)


def _once(model: Fused, schema: Schema) -> DeriveColumns | None:
    """In the place of the columns that frozen encoders read: what those say of each value, as one vector."""
    still = {name: sense.encode.inner for name, sense in zip(model.names, model.senses, strict=True)
             if isinstance(sense.encode, Narrowed) and isinstance(sense.encode.inner, Still)
             and not isinstance(sense.align, MultiscaleAlign)}

    def derived(data: Source) -> dict[ColumnKey, Stored]:
        from sensorium.data.vectors import vectors  # not needed where all encoders learn
        return {name: vectors(inner.whole, content_hash(weights(inner)), data, name, schema)
                for name, inner in still.items()}
    return derived if still and not model.fuse.tokens else None


def _read(schema: Schema, names: Sequence[str], encoders: str | Sequence[str] | Mapping[str, Any],
          encoder_train: str | Sequence[str] | Mapping[str, str]) -> dict[str, ColumnInput]:
    """Column → how it is read: published weights bring the settings of their column along."""
    pairs = _pairs(encoders, schema)
    for name, how in pairs.items():
        if name not in names or schema.find(name).kind in KINDS or not how:
            raise BadKeyword(f"encoders: {name!r} is no column that an encoder reads; give COLUMN=ENCODER for "
                             f"{', '.join(n for n in names if schema[n].kind not in KINDS) or 'pictures or words'}")
    inputs = {name: ColumnInput(schema[name]) for name in names}
    for name, modality in ((name, schema[name]) for name in names if schema[name].kind not in KINDS):
        found = chosen(modality.kind, pairs.get(name) or usual(modality))
        if isinstance(found, Start) and found.opened:
            modality = found.senses()[modality.kind]
        inputs[name] = ColumnInput(modality, found)
    for name, mode in _pairs(encoder_train, schema).items():
        if name not in inputs or not inputs[name].pretrained or mode not in TUNES:
            raise BadKeyword(f"encoder_train: {name}={mode} is not COLUMN=none, COLUMN=lora or COLUMN=all of a column "
                             "that encoders= has published weights read")
        inputs[name] = replace(inputs[name], train=mode)
    return inputs


def _pairs(given: str | Sequence[str] | Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """COLUMN=VALUE, each, as a mapping. Raises BadKeyword for a column that is given twice."""
    if isinstance(given, Mapping):
        return dict(given)
    pairs = [split_pair(one, schema.columns) for one in _list(given)]
    if twice := {name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1}:
        raise BadKeyword(f"{min(twice)!r} is given twice; to compare several, give a list of mappings in Python")
    return dict(pairs)


def _training(size: Preset, inputs: Mapping[str, ColumnInput]) -> TrainingConfig:
    """Where published weights learn further, steps are small, and few."""
    trained = [given.train for given in inputs.values() if given.pretrained]
    return replace(size.training(), **RATES[max(trained, key=TUNES.index, default="none")])


def _told(inputs: Mapping[str, ColumnInput]) -> dict[str, Any]:
    """What a run keeps of its encoders, where published weights are among them; else it keeps what it was told."""
    if not any(given.pretrained for given in inputs.values()):
        return {}
    return {"encoders": {name: by.told() if isinstance(by, Start) else by
                         for name, by in ((name, given.encoder) for name, given in inputs.items()) if by}}


def _changes(reads: Mapping[str, Modality]) -> dict[str, dict[ColumnKey, dict[str, float]]]:
    """strength → column → how."""
    return {strength: {name: how[m.kind] for name, m in reads.items() if m.kind in how}
            for strength, how in AUGMENT.items()}


def _list(given: str | Sequence[str]) -> list[str]:
    """What is given once, or several times."""
    return [*filter(None, [given])] if isinstance(given, str) else [*given]


def _targets(schema: Schema, named: str | Sequence[str]) -> list[str]:
    """The columns to predict. Raises SensoriumError where none is named, or one cannot be predicted."""
    names = list(dict.fromkeys(_list(named))) or [
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


def _inputs(schema: Schema, named: str | Sequence[str], aims: Mapping[str, Modality]) -> list[str]:
    names = list(dict.fromkeys(_list(named)))
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
