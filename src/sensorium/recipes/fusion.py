"""Multimodal classification and regression from any columns, with any values missing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from sensorium.data.cache.columns import ColumnStore
from sensorium.data.cache.prepared import DataSource, PreparedDataset
from sensorium.data.schema import Schema
from sensorium.errors import require_type
from sensorium.evaluation.spec import Baselines, EvaluationSpec, Evaluator, picklable
from sensorium.evaluation.validate_prediction import prediction_calibrator, prediction_validator
from sensorium.inference.predict import Predictor
from sensorium.io.tensors import state_tensors, tensors_sha256
from sensorium.modalities.base import Modality
from sensorium.modalities.subword_bag import SubwordBagEmbedding
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
from sensorium.objectives.supervised import SupervisedLoss, Target, build_target
from sensorium.pretrained.source import PretrainedSource
from sensorium.recipes.encoders import ProjectedEncoder, build_encoder
from sensorium.recipes.fusion_columns import (
    describe_task,
    encoders_to_config,
    resolve_inputs,
    resolve_targets,
)
from sensorium.recipes.fusion_config import ColumnInput, FusionConfig, Preset, select_preset
from sensorium.recipes.recipe import (
    Augment,
    DataSpec,
    DeriveColumns,
    Hooks,
    OnEnd,
    Recipe,
    check_choice,
    fit_encoders,
)
from sensorium.recipes.training_config import TrainingConfig, training_defaults

HEADS = ("auto", "network", "linear", "boosting")
CLASS_WEIGHTS = ("balanced",)
MAX_TEXT_LENGTH = 512  # tokens of a text that are read
SWEEP = {"fusion": list(FUSIONS)}  # compared by default
# How much of pretrained weights is trained -> fields of TrainingConfig.
TRAIN_MODE_CONFIG: dict[str, dict[str, float]] = {
    "none": {},
    "lora": {"lr": 1e-3, "epochs": 10},
    "all": {"lr": 1e-3, "layer_decay": 0.7, "epochs": 10},
}
# Strength -> column type -> parameters.
AUGMENT: dict[str, dict[str, dict[str, float]]] = {
    "light": {
        "image": {"crop": 0.8, "brightness": 0.2, "contrast": 0.2},
        "category": {"class_dropout": 0.02},
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
        "category": {"class_dropout": 0.05},
        "multilabel": {"tag_dropout": 0.1},
        "numeric": {"noise": 0.05},
        "series": {"crop": 0.6, "warp": 0.1, "scale": 0.1, "jitter": 0.1},
    },
}


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
        "concat", "sum", "gated", "attention", "sequence", "parallel", "bottleneck", "low_rank"
    ] = "concat",
    projection: Literal["linear", "nonlinear", "multiscale"] = "linear",
    contrastive_weight: float = 0.0,
    dim: int | None = None,
    layers: int | None = None,
    modality_dropout: float = 0.5,
    dropout: float | None = None,
    mixup: float = 0.0,
    head: Literal["auto", "network", "linear", "boosting"] = "auto",
    class_weight: Literal["balanced"] | None = None,
) -> Recipe[MultimodalPredictor]:
    """Predict classes, numbers, ranks or tag sets from any columns.

    Missing values are masked, not imputed. Sizes default to a preset for the number of training
    rows.

    Args:
        schema: columns of the data.
        target: column to predict (repeatable). Default: a column named target, label, class or y.
        columns: input column (repeatable). Default: all others.
        encoders: encoder of a column (repeatable): COLUMN=NAME, as in title=gru, or
            COLUMN=WEIGHTS for pretrained weights (a folder, a file or a Hugging Face id). They are
            frozen, and their embeddings cached, unless --encoder-train trains them.
        encoder_train: pretrained weights to train (repeatable): COLUMN=none (frozen), COLUMN=lora
            (low-rank adapters) or COLUMN=all.
        fusion: fusion of the columns: concat, sum, gated, parallel (late fusion), low_rank
            (low-rank tensor fusion), attention (cross-attention), sequence (early fusion) or
            bottleneck (attention bottleneck).
        projection: projection from each encoder to the fusion: linear, nonlinear (MLP) or
            multiscale (tokens and pooled embedding).
        contrastive_weight: weight of a contrastive loss between the columns of a row; 0 is off.
        dim: width of the model. Default: by number of rows.
        layers: layers of each encoder, and of a fusion with layers. Default: by number of rows.
        modality_dropout: fraction of training rows in which values are hidden, to train for
            missing values.
        dropout: dropout rate. Default: by number of rows.
        mixup: alpha of mixup (0.2 is usual); 0 is off.
        head: what predicts: network, linear (a linear model on simple features, such as TF-IDF,
            blended with the network), boosting (LightGBM trees, blended alike; category and
            numeric targets), or auto (all three). Validation rows choose the weights.
        class_weight: balanced: weight classes inversely to their frequency (category and
            multilabel targets).
    """
    check_choice("fusion", fusion, list(FUSIONS))
    check_choice("projection", projection, list(PROJECTIONS))
    check_choice("head", head, HEADS)
    if class_weight is not None:
        check_choice("class_weight", class_weight, CLASS_WEIGHTS)
    targets = resolve_targets(schema, target)
    inputs = resolve_inputs(schema, columns, targets, encoders, encoder_train)
    preset = select_preset(list(targets.values())).with_overrides(dim, layers, dropout)
    config = FusionConfig(
        fusion=fusion,
        projection=projection,
        modality_dropout=modality_dropout,
        dim=preset.dim,
        layers=preset.layers,
        dropout=preset.dropout,
    )
    target_losses = {
        name: build_target(modality, class_weight=class_weight == "balanced")
        for name, modality in targets.items()
    }
    model = _build_model(inputs, target_losses, config)
    objective = SupervisedLoss(target_losses, mixup, contrastive_weight)
    input_settings = {name: column.modality for name, column in inputs.items()}
    on_end = _add_parts(model, input_settings, objective, targets, head)
    return Recipe(
        model=model,
        objective=objective,
        data=_data_spec(schema, inputs, targets, model),
        training=_training_config(preset, inputs),
        verbs={"predict": Predictor(model, input_settings, targets)},
        hooks=Hooks(
            on_start=_fit_encoders,
            calibrate=prediction_calibrator(targets),
            on_end=on_end,
            needs_validation=head in ("linear", "boosting"),
        ),
        evaluation=EvaluationSpec(
            metric="val_loss",
            mode="min",
            validate=prediction_validator(objective, targets),
            evaluator=_evaluator(targets),
            baselines=_baselines(targets),
            sweep=SWEEP,
        ),
        task=describe_task(schema, targets) + _describe_head(head, targets),
        stored_keywords={"encoders": encoders_to_config(encoders, schema, inputs)},
        extras={"lightgbm": "boosting"} if head == "boosting" else {},
    )


def _build_model(
    inputs: Mapping[str, ColumnInput], targets: Mapping[str, Target], config: FusionConfig
) -> MultimodalPredictor:
    dim, layers, dropout = config.dim, config.layers, config.dropout
    scalar_columns = {
        name: column.modality
        for name, column in inputs.items()
        if column.modality.kind in SCALAR_KINDS
    }
    encoders = {
        name: ColumnEncoder(
            build_encoder(column.modality, column.encoder, dim, layers, dropout, column.train),
            PROJECTIONS[config.projection](dim, dim),
        )
        for name, column in inputs.items()
        if name not in scalar_columns
    }
    parts = [*encoders, TABULAR_PART] if scalar_columns else [*encoders]
    fusion_module = FUSIONS[config.fusion](parts, dim, layers, dropout)
    tabular = None
    if scalar_columns:
        pooled_width = 0 if fusion_module.uses_tokens else 4 * dim
        tabular = TabularEmbedding(scalar_columns, dim, pooled_width, dropout)
    heads = {name: Head(dim, target.prior(), dropout) for name, target in targets.items()}
    has_subwords = any(
        isinstance(module, SubwordBagEmbedding)
        for encoder in encoders.values()
        for module in encoder.modules()
    )
    return MultimodalPredictor(
        encoders,
        tabular,
        fusion_module,
        heads,
        dim=dim,
        modality_dropout=config.modality_dropout,
        residual=has_subwords,
    )


def _data_spec(
    schema: Schema,
    inputs: Mapping[str, ColumnInput],
    targets: Mapping[str, Modality],
    model: MultimodalPredictor,
) -> DataSpec:
    """Return the input and target columns; pretrained weights set those that they encode."""
    settings: dict[ColumnKey, Modality] = {
        name: column.modality
        for name, column in inputs.items()
        if isinstance(column.encoder, PretrainedSource) and column.encoder.weight_files
    }
    # A number with two values is a class: its column becomes one.
    settings |= {name: target for name, target in targets.items() if target != schema[name]}
    return DataSpec(
        columns=(*inputs, *targets),
        column_settings=settings,
        augment={strength: _augment(inputs, by_type) for strength, by_type in AUGMENT.items()},
        derived_columns=_frozen_embeddings(model, schema.with_settings(settings)),
        max_text_length=MAX_TEXT_LENGTH,
    )


def _augment(
    inputs: Mapping[str, ColumnInput], by_type: Mapping[str, Mapping[str, float]]
) -> Augment:
    """Return the augmentation of each input column."""
    return {
        name: by_type[column.modality.kind]
        for name, column in inputs.items()
        if column.modality.kind in by_type
    }


@picklable
def _frozen_embeddings(model: MultimodalPredictor, schema: Schema) -> DeriveColumns | None:
    """Return a function that replaces columns of frozen encoders by their pooled embeddings."""
    frozen: dict[str, FrozenEncoder] = {}
    for name, column_encoder in zip(model.encoder_columns, model.encoders, strict=True):
        column_encoder = require_type(column_encoder, ColumnEncoder)
        encoder = column_encoder.encoder
        if (
            isinstance(encoder, ProjectedEncoder)
            and isinstance(encoder.inner, FrozenEncoder)
            and not isinstance(column_encoder.projection, TokenAndGlobalProjection)
        ):
            frozen[name] = encoder.inner
    if not frozen or model.fusion.uses_tokens:
        return None

    def compute_columns(data: DataSource) -> dict[ColumnKey, ColumnStore]:
        # not needed where all encoders are trained
        from sensorium.data.cache.embedding_cache import embed_column

        columns: dict[ColumnKey, ColumnStore] = {}
        for name, encoder in frozen.items():
            weights_hash = tensors_sha256(state_tensors(encoder))
            columns[name] = embed_column(encoder.pooled, weights_hash, data, name, schema)
        return columns

    return compute_columns


def _training_config(preset: Preset, inputs: Mapping[str, ColumnInput]) -> TrainingConfig:
    """Return the preset's settings, with others where pretrained weights are trained."""
    modes = [column.train for column in inputs.values() if column.pretrained]
    mode = max(modes, key=TRAIN_MODES.index, default="none")
    return replace(preset.training_config(), **TRAIN_MODE_CONFIG[mode])


def _fit_encoders(model: MultimodalPredictor, prepared: PreparedDataset, rows: np.ndarray) -> None:
    fit_encoders(dict(zip(model.encoder_columns, model.encoders, strict=True)), prepared, rows)


def _add_parts(
    model: MultimodalPredictor,
    inputs: Mapping[str, Modality],
    objective: SupervisedLoss,
    targets: Mapping[str, Modality],
    head: str,
) -> OnEnd[MultimodalPredictor]:
    """Add the parts beside the network and return the hook that fits them."""
    from sensorium.recipes.blending import add_blended_heads, fit_parts  # after training only

    num_outputs = [len(target.prior()) for target in objective.targets.values()]
    add_blended_heads(model, inputs, targets, num_outputs, head)
    return fit_parts(objective, targets, head)


def _describe_head(head: str, targets: Mapping[str, Modality]) -> str:
    """Return what is missing for the best prediction."""
    from sensorium.recipes.boosting import lightgbm_is_installed  # not needed in training

    can_boost = any(target.kind in ("category", "numeric") for target in targets.values())
    if head != "auto" or not can_boost or lightgbm_is_installed():
        return ""
    return (
        "\nLightGBM is not installed: no boosted trees are tried (to have them: pip install "
        '"sensorium[boosting]")'
    )


def _evaluator(targets: Mapping[str, Modality]) -> Evaluator:
    from sensorium.evaluation.prediction import prediction_evaluator  # not needed in training

    return prediction_evaluator(targets)


@picklable
def _baselines(targets: Mapping[str, Modality]) -> Baselines[MultimodalPredictor]:
    """Return a function that computes the main metric of simple models on rows."""

    def compute(
        model: MultimodalPredictor, prepared: PreparedDataset, rows: np.ndarray
    ) -> dict[str, float]:
        from sensorium.evaluation.prediction_baselines import main_baselines  # for compare only

        return main_baselines(model, prepared, rows, targets)

    return compute
