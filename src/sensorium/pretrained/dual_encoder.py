"""Configs of image-text models in transformers' layout, whole or one half of them alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensorium.pretrained.config_rules import ConfigRules, require_section
from sensorium.pretrained.family import ModelConfig
from sensorium.pretrained.weight_files import WeightFiles

SECTIONS = {"image": "vision_config", "text": "text_config"}
HALVES = {"image": "vision_model", "text": "text_model"}


def detect_dual_encoder(
    weight_files: WeightFiles, family: str, rules: Mapping[str, ConfigRules]
) -> dict[str, Any] | None:
    """Return the config of an image-text model, or None if the files hold another model.

    A half has a flat config and, from transformers 5 on, tensors without the prefix that they have
    in the whole model.

    Args:
        weight_files: The opened files.
        family: Model type of the whole model; those of the halves begin with it.
        rules: Rules of the config of each tower.

    Returns:
        The config with the sections "vision_config" and "text_config", with defaults; and, of a
        half, "kinds", the tower that it has, and "prefix", the prefix of its tensors.

    Raises:
        SensoriumError: If a setting is out of range or not supported.
    """
    config = weight_files.config
    model_type = config.get("model_type")
    if model_type == family:
        sections = {
            SECTIONS[kind]: rules[kind].apply(
                _merged_section(config, SECTIONS[kind], rules[kind], weight_files),
                weight_files,
                SECTIONS[kind],
            )
            for kind in SECTIONS
        }
        return {**config, **sections}
    for kind, half in HALVES.items():
        if model_type == f"{family}_{half}":
            is_nested = any(name.startswith(f"{half}.") for name in weight_files.tensors)
            return {
                **config,
                SECTIONS[kind]: rules[kind].apply(config, weight_files),
                "kinds": [kind],
                "prefix": f"{half}." if is_nested else "",
            }
    return None


def _merged_section(
    config: ModelConfig, key: str, rules: ConfigRules, weight_files: WeightFiles
) -> dict[str, Any]:
    """Return a section; like transformers, a complete one under the old key goes before it."""
    section = dict(require_section(config, key, weight_files))
    old = require_section(config, f"{key}_dict", weight_files)
    return {**section, **rules.defaults, **old} if old else section


def tower_kinds(config: ModelConfig) -> list[str]:
    """Return the towers of a model, "image" and "text" or one of them."""
    return config.get("kinds", list(SECTIONS))


def tower_prefix(config: ModelConfig, kind: str) -> str:
    """Return the prefix of a tower's tensors."""
    return config.get("prefix", f"{HALVES[kind]}.")
