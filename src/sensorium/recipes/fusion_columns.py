"""Resolution of the columns, targets and encoders that the keywords of `fusion` name."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sensorium.data.schema import SET_BY_USER, Schema, split_pair
from sensorium.errors import SensoriumError
from sensorium.modalities.base import Modality
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.modalities.tabular_embedding import SCALAR_KINDS
from sensorium.models.lora import TRAIN_MODES
from sensorium.pretrained.source import PretrainedSource
from sensorium.recipes.encoders import default_encoder, resolve_encoder
from sensorium.recipes.fusion_config import ColumnInput
from sensorium.recipes.recipe import InvalidKeywordError

TARGET_TYPES = ("category", "numeric", "ordinal", "multilabel")
DEFAULT_TARGET_NAMES = ("target", "label", "class", "y")  # in this order, case-insensitive
ColumnPairs = str | Sequence[str] | Mapping[str, Any]  # COLUMN=VALUE, several of them, or a mapping


def resolve_targets(schema: Schema, target: str | Sequence[str]) -> dict[str, Modality]:
    """Return the settings of each target column.

    Args:
        schema: columns of the data.
        target: names of the target columns; none: the first column with a default name.

    Raises:
        SensoriumError: where there is no target, or one that cannot be predicted.
    """
    names = _unique_names(target) or _default_target(schema)
    if not names:
        candidates = [c.name for c in schema.columns.values() if c.kind in TARGET_TYPES]
        raise InvalidKeywordError(
            "--target is missing. Name the column to predict, one of "
            f"{', '.join(candidates) or 'none in this data'}."
        )
    targets: dict[str, Modality] = {}
    for name in names:
        column = schema.get_column(name)
        if column.kind not in TARGET_TYPES:
            raise SensoriumError(
                f"The target {name!r} is inferred as {column.kind} ({column.reason}), which cannot "
                f"be predicted. If it is one of {', '.join(TARGET_TYPES)}, say so: --type "
                f"{name}=category."
            )
        targets[name] = column.modality
        is_inferred = column.reason not in ("", SET_BY_USER)
        if isinstance(column.modality, Numeric) and is_inferred:
            targets[name] = column.modality.as_classes() or column.modality
        _check_varies(name, targets[name])
    return targets


def describe_task(schema: Schema, targets: Mapping[str, Modality]) -> str:
    """Return what is predicted of each target, why, and how to change it."""
    return "; ".join(_describe_target(schema, name, target) for name, target in targets.items())


def _describe_target(schema: Schema, name: str, target: Modality) -> str:
    column = schema.get_column(name)
    reason = column.reason
    match target:
        case Ordinal(classes=classes):
            task, change = f"ordinal regression on {len(classes)} ranks", "category"
        case Category(classes=classes):
            shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            task, change = f"classification into {len(classes)} classes ({shown})", "numeric"
            if len(classes) == 2 and reason not in ("", SET_BY_USER):
                reason = "it has two different values"
        case Multilabel(tags=tags):
            task, change = f"multilabel classification with {len(tags)} tags", "category"
        case _:
            task, change = "regression", "category"
    because = f" because: {reason}" if reason else ""
    return f"target {name}: {task}{because} (to change it: --type {name}={change})"


def resolve_inputs(
    schema: Schema,
    columns: str | Sequence[str],
    targets: Mapping[str, Modality],
    encoders: ColumnPairs,
    encoder_train: ColumnPairs,
) -> dict[str, ColumnInput]:
    """Return the settings and the encoder of each input column.

    Pretrained weights come with the settings of their column, such as its tokenizer.

    Args:
        schema: columns of the data.
        columns: names of the input columns; none: all but the targets.
        targets: the target columns.
        encoders: the encoder of a column, as COLUMN=ENCODER or a mapping.
        encoder_train: how much of its pretrained weights is trained, as COLUMN=MODE or a mapping.

    Raises:
        SensoriumError: where a column or an encoder does not exist, or does not fit.
    """
    names = _input_names(schema, columns, targets)
    encoder_columns = [name for name in names if schema[name].kind not in SCALAR_KINDS]
    specs = parse_pairs(encoders, schema, "--encoders")
    for name, spec in specs.items():
        schema.get_column(name)
        if name not in encoder_columns or not spec:
            raise InvalidKeywordError(
                f"--encoders {name!r} is not an input column with an encoder. Give COLUMN=ENCODER "
                f"for {', '.join(encoder_columns) or 'an image, text, audio or series column'}."
            )
    inputs = {name: ColumnInput(schema[name]) for name in names}
    for name in encoder_columns:
        inputs[name] = _encoded_input(schema[name], specs.get(name))
    for name, mode in parse_pairs(encoder_train, schema, "--encoder-train").items():
        if name not in inputs or not inputs[name].pretrained or mode not in TRAIN_MODES:
            raise InvalidKeywordError(
                f"--encoder-train {name}={mode} is not valid. Give COLUMN=none, COLUMN=lora or "
                "COLUMN=all for a column with pretrained weights in --encoders."
            )
        inputs[name] = replace(inputs[name], train=mode)
    return inputs


def encoders_to_config(
    encoders: ColumnPairs, schema: Schema, inputs: Mapping[str, ColumnInput]
) -> dict[str, Any]:
    """Return the `encoders` keyword as a run stores it: column -> name or config of the weights."""
    config: dict[str, Any] = {}
    for name, spec in parse_pairs(encoders, schema, "--encoders").items():
        encoder = inputs[name].encoder
        config[name] = encoder.to_config() if isinstance(encoder, PretrainedSource) else spec
    return config


def parse_pairs(pairs: ColumnPairs, schema: Schema, option: str) -> dict[str, Any]:
    """Parse COLUMN=VALUE pairs into a mapping.

    Raises:
        InvalidKeywordError: for a column that occurs twice.
    """
    if isinstance(pairs, Mapping):
        return dict(pairs)
    mapping: dict[str, Any] = {}
    for pair in _as_list(pairs):
        name, value = split_pair(pair, schema.columns)
        if name in mapping:
            raise InvalidKeywordError(
                f"{option} gives {name!r} twice. To compare several values, give a list of "
                "mappings in Python."
            )
        mapping[name] = value
    return mapping


def _encoded_input(modality: Modality, spec: Any) -> ColumnInput:
    encoder = resolve_encoder(modality.kind, spec or default_encoder(modality))
    if isinstance(encoder, PretrainedSource) and encoder.weight_files:
        modality = encoder.preprocessing()[modality.kind]
    return ColumnInput(modality, encoder)


def _input_names(
    schema: Schema, columns: str | Sequence[str], targets: Mapping[str, Modality]
) -> list[str]:
    names = _unique_names(columns)
    for name in names:
        schema.get_column(name)
        if name in targets:
            raise InvalidKeywordError(
                f"--columns {name!r} is the target, which cannot be predicted from itself. "
                "Leave it out."
            )
    names = names or [name for name in schema.columns if name not in targets]
    if not names:
        raise SensoriumError(
            f"There is no column to predict {', '.join(targets)} from. Add one to the data."
        )
    return names


def _default_target(schema: Schema) -> list[str]:
    for default in DEFAULT_TARGET_NAMES:
        for name in schema.columns:
            if name.lower() == default:
                return [name]
    return []


def _check_varies(name: str, modality: Modality) -> None:
    """Raise SensoriumError for a target with a single value in all training rows."""
    if isinstance(modality, Category) and len(modality.classes) == 1:
        raise SensoriumError(
            f"The target {name!r} has only one class, {modality.classes[0]!r}, in the training "
            "rows. Choose a target that varies."
        )
    if isinstance(modality, Numeric) and modality.count and len(modality.edges) < 2:
        raise SensoriumError(
            f"The target {name!r} is {modality.mean:g} in all training rows. Choose a target that "
            "varies."
        )


def _unique_names(names: str | Sequence[str]) -> list[str]:
    return list(dict.fromkeys(_as_list(names)))


def _as_list(values: str | Sequence[str]) -> list[str]:
    if isinstance(values, str):
        return [values] if values else []
    return list(values)
