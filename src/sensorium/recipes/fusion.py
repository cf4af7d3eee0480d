"""Predict from any columns, any of them missing: pictures, words, series and single values, fused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from sensorium.data.cache.prepared import ColumnStore, PreparedDataset, Source
from sensorium.data.schema import Schema, split_pair
from sensorium.errors import SensoriumError
from sensorium.evaluation.validate_prediction import prediction_calibrator, prediction_validator
from sensorium.inference.predict import Predictor
from sensorium.io.tensors import state_tensors, tensors_sha256
from sensorium.modalities.base import Modality
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.subword_bag import SubwordBagEmbedding
from sensorium.modalities.tabular import Category, Numeric
from sensorium.modalities.tabular_embedding import SCALAR_KINDS, TabularEmbedding
from sensorium.models.lora import TRAIN_MODES, FrozenEncoder
from sensorium.models.multimodal_predictor import (
    TABULAR_PART,
    ColumnEncoder,
    Head,
    MultimodalPredictor,
)
from sensorium.nn.fusion import FUSIONS
from sensorium.nn.projection import PROJECTIONS, TokenAndGlobalProjection
from sensorium.nn.tokens import ColumnKey
from sensorium.objectives.supervised import SupervisedLoss, Target
from sensorium.objectives.supervised import build_target as kind_of
from sensorium.pretrained.source import PretrainedSource
from sensorium.recipes.encoders import (
    ProjectedEncoder,
    build_encoder,
    default_encoder,
    resolve_encoder,
)
from sensorium.recipes.fusion_config import ColumnInput, FusionConfig
from sensorium.recipes.recipe import (
    BadKeyword,
    DataSpec,
    DeriveColumns,
    EvaluationSpec,
    Evaluator,
    Hooks,
    OnEnd,
    Recipe,
    check_choice,
    fit_encoders,
)
from sensorium.recipes.training_config import TrainingConfig, training_defaults

HEAD_CHOICES = ("linear", "balanced", "boosting")
SWEEP = {"fusion": [*FUSIONS]}  # that are compared where nothing else is asked
TARGET_TYPES = ("category", "numeric", "ordinal", "multilabel")
TRAIN_MODE_CONFIG: dict[
    str, dict[str, float]
] = {  # what of published weights learns -> fields of the training
    "none": {},
    "lora": {"lr": 1e-3, "epochs": 10},
    "all": {"lr": 1e-3, "layer_decay": 0.7, "epochs": 10},
}
DEFAULT_TARGET_NAMES = (
    "target",
    "label",
    "class",
    "y",
)  # names of columns that are predicted where none is named
AUGMENT: dict[str, dict[str, dict[str, float]]] = {  # strength -> kind of column -> how
    "light": {
        "image": {"crop": 0.8, "brightness": 0.2, "contrast": 0.2},
        "category": {"unseen": 0.02},
    },
    "strong": {
        "image": {
            "flip": 0.5,
            "rotate": 10,
            "scale": 0.2,
            "shift": 0.1,
            "brightness": 0.3,
            "contrast": 0.3,
            "tint": 0.2,
            "grayscale": 0.1,
        },
        "text": {"token_dropout": 0.2},
        "category": {"unseen": 0.05},
        "multilabel": {"tag_dropout": 0.1},
        "numeric": {"noise": 0.05},
        "series": {"crop": 0.6, "warp": 0.1, "scale": 0.1, "jitter": 0.1},
    },
}


@dataclass(frozen=True)
class Preset:
    """What suits so many training rows."""

    max_rows: int  # at most
    dim: int
    layers: int
    dropout: float
    epochs: int
    batch_size: int

    def with_overrides(self, dim: int, layers: int, dropout: float) -> "Preset":
        """The same, where these do not say otherwise: 0, 0 and below 0 say nothing."""
        return replace(
            self,
            dim=dim or self.dim,
            layers=layers or self.layers,
            dropout=self.dropout if dropout < 0 else dropout,
        )

    def training_config(self) -> TrainingConfig:
        return TrainingConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=2e-3,
            ema_decay=0.99,
            early_stopping_patience=max(2, self.epochs // 4),
        )


PRESETS = (
    Preset(1_000, 64, 1, 0.2, 60, 16),
    Preset(2_000, 64, 1, 0.2, 60, 32),
    Preset(10_000, 96, 2, 0.15, 30, 64),
    Preset(100_000, 128, 3, 0.1, 15, 128),
    Preset(1 << 62, 192, 4, 0.1, 4, 512),
)


@training_defaults(
    epochs="chosen by the number of rows; 10 where pretrained weights are trained",
    batch_size="chosen by the number of rows",
    lr="0.002; 0.001 where pretrained weights are trained",
    early_stopping_patience="chosen by the number of rows",
    ema_decay=0.99,
    layer_decay="1.0; 0.7 with --encoder-train COLUMN=all",
)
def fusion(
    schema: Schema,
    *,
    target: str | Sequence[str] = (),
    columns: str | Sequence[str] = (),
    encoders: str | Sequence[str] | Mapping[str, Any] = (),
    encoder_train: str | Sequence[str] | Mapping[str, str] = (),
    fusion: Literal[
        "concat", "sum", "gated", "attention", "sequence", "parallel", "bottleneck", "product"
    ] = "concat",
    projection: Literal["linear", "nonlinear", "multiscale"] = "linear",
    contrastive_weight: float = 0.0,
    dim: int = 0,
    layers: int = 0,
    modality_dropout: float = 0.5,
    dropout: float = -1.0,
    mixup: float = 0.0,
    head: Literal["linear", "balanced", "boosting"] = "linear",
) -> Recipe[MultimodalPredictor]:
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
        fusion: how parts meet: concat, sum, gated, attention, sequence, parallel, bottleneck, product.
        projection: from each encoder to the fusion: linear, nonlinear, multiscale (parts and their whole).
        contrastive_weight: weight of a loss by which the parts of a row find each other; 0: none.
        dim: width; 0: by the number of rows.
        layers: blocks of an encoder, and of a fusion that has blocks; 0: by the number of rows.
        modality_dropout: share of rows of which some values, few or most, are hidden while training: it learns to do without.
        dropout: share of activations dropped; below 0: by the number of rows.
        mixup: how strongly rows are mixed while training (0.2 is usual); 0: never.
        head: linear; balanced (each class counts the same, however rare); boosting (and trees; numbers, classes).
    """
    check_choice("fusion", fusion, list(FUSIONS))
    check_choice("projection", projection, list(PROJECTIONS))
    aims = {name: schema[name] for name in _target_columns(schema, target)}
    inputs = _resolve_encoders(
        schema, _input_columns(schema, columns, aims), encoders, encoder_train
    )
    size = _select_preset([*aims.values()]).with_overrides(dim, layers, dropout)
    config = FusionConfig(
        fusion=fusion,
        projection=projection,
        modality_dropout=modality_dropout,
        dim=size.dim,
        depth=size.layers,
        dropout=size.dropout,
    )
    kinds = {
        name: kind_of(m, class_weight=check_choice("head", head, HEAD_CHOICES) == "balanced")
        for name, m in aims.items()
    }
    reads = {name: given.modality for name, given in inputs.items()}
    model = _build_model(inputs, kinds, config)
    objective = SupervisedLoss(kinds, mixup, contrastive_weight)
    boosted = (
        _boosting_fields(model, reads, objective, aims, size.dim) if head == "boosting" else None
    )
    return Recipe(
        model=model,
        objective=objective,
        data=_data(schema, inputs, aims, model),
        training=_training_config(size, inputs),
        verbs={"predict": Predictor(model, reads, aims)},
        hooks=Hooks(on_start=_begin, calibrate=prediction_calibrator(aims), on_end=boosted),
        evaluation=EvaluationSpec(
            metric="val_loss",
            mode="min",
            validate=prediction_validator(objective, aims),
            evaluator=_evaluator(aims),
            sweep=SWEEP,
        ),
        stored_keywords=_stored_keywords(inputs),
        extras={"lightgbm": "boosting"} if boosted else {},
    )


def _data(
    schema: Schema,
    inputs: Mapping[str, ColumnInput],
    aims: Mapping[str, Modality],
    model: MultimodalPredictor,
) -> DataSpec:
    """The columns that are read and predicted; published weights bring the settings of theirs along."""
    settings: dict[ColumnKey, Modality] = {
        name: given.modality
        for name, given in inputs.items()
        if isinstance(given.encoder, PretrainedSource) and given.encoder.weight_files
    }
    return DataSpec(
        columns=(*inputs, *aims),
        column_settings=settings,
        augment=_augmentations({name: given.modality for name, given in inputs.items()}),
        derived_columns=_frozen_embeddings(model, schema.with_settings(settings)),
    )


def _begin(model: MultimodalPredictor, prepared: PreparedDataset, rows: np.ndarray) -> None:
    fit_encoders(dict(zip(model.encoder_columns, model.encoders, strict=True)), prepared, rows)


def _boosting_fields(
    model: MultimodalPredictor,
    inputs: Mapping[str, Modality],
    objective: SupervisedLoss,
    targets: Mapping[str, Modality],
    dim: int,
) -> OnEnd[MultimodalPredictor]:
    """Give the model trees; what grows them at the end."""
    from sensorium.recipes.boosting import add_tree_heads, fit_trees  # not needed without trees

    add_tree_heads(model, inputs, targets, dim)
    return fit_trees(objective, targets)


def _evaluator(targets: Mapping[str, Modality]) -> Evaluator:
    from sensorium.evaluation.prediction import prediction_evaluator  # not needed while training

    return prediction_evaluator(targets)


def _build_model(
    inputs: Mapping[str, ColumnInput], targets: Mapping[str, Target], config: FusionConfig
) -> MultimodalPredictor:
    dim, depth, dropout = config.dim, config.depth, config.dropout
    single = {
        name: given.modality
        for name, given in inputs.items()
        if given.modality.kind in SCALAR_KINDS
    }
    senses = {
        name: ColumnEncoder(
            build_encoder(given.modality, given.encoder, dim, depth, dropout, given.train),
            PROJECTIONS[config.projection](dim, dim),
        )
        for name, given in inputs.items()
        if name not in single
    }
    names = [*senses, *([TABULAR_PART] if single else [])]
    meet = FUSIONS[config.fusion](names, dim, depth, dropout)
    row = TabularEmbedding(single, dim, 0 if meet.uses_tokens else 4 * dim, dropout) if single else None
    heads = {name: Head(dim, kind.prior(), dropout) for name, kind in targets.items()}
    spelt = any(
        isinstance(part, SubwordBagEmbedding)
        for sense in senses.values()
        for part in sense.modules()
    )
    return MultimodalPredictor(
        senses, row, meet, heads, dim=dim, modality_dropout=config.modality_dropout, residual=spelt
    )


def _frozen_embeddings(model: MultimodalPredictor, schema: Schema) -> DeriveColumns | None:
    """In the place of the columns that frozen encoders read: what those say of each value, as one vector."""
    still = {
        name: sense.encoder.inner
        for name, sense in zip(model.encoder_columns, model.encoders, strict=True)
        if isinstance(sense.encoder, ProjectedEncoder)
        and isinstance(sense.encoder.inner, FrozenEncoder)
        and not isinstance(sense.projection, TokenAndGlobalProjection)
    }

    def compute_columns(data: Source) -> dict[ColumnKey, ColumnStore]:
        from sensorium.data.cache.embedding_cache import (
            embed_column,  # not needed where all encoders learn
        )

        return {
            name: embed_column(
                inner.pooled, tensors_sha256(state_tensors(inner)), data, name, schema
            )
            for name, inner in still.items()
        }

    return compute_columns if still and not model.fusion.uses_tokens else None


def _resolve_encoders(
    schema: Schema,
    names: Sequence[str],
    encoders: str | Sequence[str] | Mapping[str, Any],
    encoder_train: str | Sequence[str] | Mapping[str, str],
) -> dict[str, ColumnInput]:
    """Column → how it is read: published weights bring the settings of their column along."""
    pairs = _pairs(encoders, schema)
    for name, how in pairs.items():
        if name not in names or schema.get_column(name).kind in SCALAR_KINDS or not how:
            raise BadKeyword(
                f"encoders: {name!r} is no column that an encoder reads; give COLUMN=ENCODER for "
                f"{', '.join(n for n in names if schema[n].kind not in SCALAR_KINDS) or 'pictures or words'}"
            )
    inputs = {name: ColumnInput(schema[name]) for name in names}
    for name, modality in (
        (name, schema[name]) for name in names if schema[name].kind not in SCALAR_KINDS
    ):
        found = resolve_encoder(modality.kind, pairs.get(name) or default_encoder(modality))
        if isinstance(found, PretrainedSource) and found.weight_files:
            modality = found.preprocessing()[modality.kind]
        inputs[name] = ColumnInput(modality, found)
    for name, mode in _pairs(encoder_train, schema).items():
        if name not in inputs or not inputs[name].pretrained or mode not in TRAIN_MODES:
            raise BadKeyword(
                f"encoder_train: {name}={mode} is not COLUMN=none, COLUMN=lora or COLUMN=all of a column "
                "that encoders= has published weights read"
            )
        inputs[name] = replace(inputs[name], train=mode)
    return inputs


def _pairs(given: str | Sequence[str] | Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """COLUMN=VALUE, each, as a mapping. Raises BadKeyword for a column that is given twice."""
    if isinstance(given, Mapping):
        return dict(given)
    pairs = [split_pair(one, schema.columns) for one in _list(given)]
    if twice := {name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1}:
        raise BadKeyword(
            f"{min(twice)!r} is given twice; to compare several, give a list of mappings in Python"
        )
    return dict(pairs)


def _training_config(preset: Preset, inputs: Mapping[str, ColumnInput]) -> TrainingConfig:
    """Where published weights learn further, steps are small, and few."""
    trained = [given.train for given in inputs.values() if given.pretrained]
    return replace(
        preset.training_config(),
        **TRAIN_MODE_CONFIG[max(trained, key=TRAIN_MODES.index, default="none")],
    )


def _stored_keywords(inputs: Mapping[str, ColumnInput]) -> dict[str, Any]:
    """What a run keeps of its encoders, where published weights are among them; else it keeps what it was told."""
    if not any(given.pretrained for given in inputs.values()):
        return {}
    return {
        "encoders": {
            name: by.to_config() if isinstance(by, PretrainedSource) else by
            for name, by in ((name, given.encoder) for name, given in inputs.items())
            if by
        }
    }


def _augmentations(inputs: Mapping[str, Modality]) -> dict[str, dict[ColumnKey, dict[str, float]]]:
    """strength → column → how."""
    return {
        strength: {name: how[m.kind] for name, m in inputs.items() if m.kind in how}
        for strength, how in AUGMENT.items()
    }


def _list(given: str | Sequence[str]) -> list[str]:
    """What is given once, or several times."""
    return [*filter(None, [given])] if isinstance(given, str) else [*given]


def _target_columns(schema: Schema, target: str | Sequence[str]) -> list[str]:
    """The columns to predict. Raises SensoriumError where none is named, or one cannot be predicted."""
    names = (
        list(dict.fromkeys(_list(target)))
        or [
            name
            for usual in DEFAULT_TARGET_NAMES
            for name in schema.columns
            if name.lower() == usual
        ][:1]
    )
    if not names:
        raise BadKeyword(
            f"which column is to be predicted? Name it with target= (--target): "
            f"{', '.join(c.name for c in schema.columns.values() if c.kind in TARGET_TYPES)}"
        )
    for name in names:
        schema.get_column(name)
        if (kind := schema[name].kind) not in TARGET_TYPES:
            raise SensoriumError(
                f"the target {name!r} is taken for {kind}, which cannot be predicted "
                f"({schema.columns[name].reason}). If it is one of {', '.join(TARGET_TYPES)}, say so: "
                f"--column {name}=category (columns={{{name!r}: 'category'}})."
            )
        _check_target(name, schema[name])
    return names


def _check_target(name: str, modality: Modality) -> None:
    """Raises SensoriumError for a target that never changes."""
    if isinstance(modality, Category) and len(modality.classes) == 1:
        raise SensoriumError(
            f"the target {name!r} has the one class {modality.classes[0]!r} in all training rows: "
            "there is nothing to learn."
        )
    if isinstance(modality, Numeric) and modality.count and len(modality.edges) < 2:
        raise SensoriumError(
            f"the target {name!r} is {modality.mean:g} in all training rows: there is nothing to "
            "learn."
        )


def _input_columns(
    schema: Schema, columns: str | Sequence[str], targets: Mapping[str, Modality]
) -> list[str]:
    names = list(dict.fromkeys(_list(columns)))
    for name in names:
        schema.get_column(name)
        if name in targets:
            raise BadKeyword(
                f"columns: {name!r} is the target, which cannot be predicted from itself."
            )
    found = [name for name in names or schema.columns if name not in targets]
    if not found:
        raise SensoriumError(f"there is no column to predict {', '.join(targets)} from.")
    return found


def _select_preset(targets: Sequence[Modality]) -> Preset:
    """By the number of rows that have the rarest target."""
    rows = [
        m.rows
        if isinstance(m, Multilabel)
        else m.count
        if isinstance(m, Numeric)
        else sum(getattr(m, "counts", ()))
        for m in targets
    ]
    return next(p for p in PRESETS if min(rows) <= p.max_rows)
