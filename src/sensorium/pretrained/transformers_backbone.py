"""Encoders of the transformers library as towers, for architectures that no family here implements.

B batch   T tokens   D width
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.errors import SensoriumError, require_type
from sensorium.modalities.image import Image
from sensorium.models.towers import Encoder, Tower
from sensorium.nn.tokens import Tokens, sequence_positions
from sensorium.pretrained.bert import FirstTokenPool, is_cls_pooling, sentence_preprocessing
from sensorium.pretrained.config_rules import ConfigRules
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily, skip_init
from sensorium.pretrained.image_processor import image_preprocessing
from sensorium.pretrained.preprocessing import (
    build_embed_verb,
    drop_missing,
)
from sensorium.pretrained.text_ids import (
    find_text_ids,
    text_end_id,
    text_pad_id,
    unpadded_mask,
)
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import WeightMappings

DERIVED_KEYS = (  # of our config, which are not those of transformers
    "model_type",
    "cls_pooling",
    "text_pad_id",
    "text_end_id",
    "num_positions",
)
# Heads of pretraining and of tasks, which the encoder does without.
HEAD_TENSORS = (
    "*pooler.*",
    "*position_ids",
    "*.num_batches_tracked",
    "cls.*",
    "lm_head.*",
    "classifier.*",
    "score.*",
    "qa_outputs.*",
    "vocab_transform.*",
    "vocab_layer_norm.*",
    "vocab_projector.*",
    "predictions.*",
    "generator_predictions.*",
    "generator_lm_head.*",
    "discriminator_predictions.*",
    "mask_predictions.*",
    "lm_predictions.*",
    "sop_classifier.*",
    "pre_classifier.*",
)
POOLER_TENSORS = {"pooler.dense.weight", "pooler.dense.bias"}
HALF_MODEL_ENDINGS = ("_vision_model", "_text_model")
CONFIG_RULES = ConfigRules(
    sizes=dict.fromkeys(
        ("hidden_size", "intermediate_size", "vocab_size", "patch_size", "type_vocab_size")
    ),
    layers=dict.fromkeys(("num_hidden_layers", "n_layers", "num_layers")),
    heads={"num_attention_heads": ("", None), "n_heads": ("", None)},
    lengths=dict.fromkeys(("max_position_embeddings", "image_size")),
    refuses_foreign=False,  # transformers follows all keys
)
DEFAULT_IMAGE = Image(size=224, resample="bilinear")
DEFAULT_MAX_LENGTH = 512


class TransformersBackbone(nn.Module):
    """An encoder of the transformers library, without its pooler.

    Args:
        config: Its config; an encoder with an `image_size` reads images, any other token ids.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        from transformers import AutoModel

        self.model: Any = _remove_pooler(AutoModel.from_config(_to_hf_config(config)))
        self.is_vision = "image_size" in config
        self.pad_id = text_pad_id(config)
        self.end_id = text_end_id(config)

    def pool_index(self, raw: Tensor) -> None:
        """Return None: pooled over all tokens."""

    def forward(self, raw: Tensor) -> Tokens:
        """Return the last hidden states of images or token ids; padding is not valid."""
        if self.is_vision:
            valid = None
            x = self.model(pixel_values=raw).last_hidden_state
        else:
            valid = unpadded_mask(raw, self.end_id, self.pad_id)
            x = self.model(input_ids=raw, attention_mask=valid.long()).last_hidden_state
        return Tokens(x, sequence_positions(x), valid=valid)


def build_module(config: ModelConfig) -> nn.ModuleDict:
    """Build one tower, `image` or `text`."""
    backbone = TransformersBackbone(config)
    kind = "image" if backbone.is_vision else "text"
    encoder = Encoder(backbone, pool=FirstTokenPool() if config["cls_pooling"] else None)
    return nn.ModuleDict({kind: Tower(encoder, nn.Identity(), backbone.model.config.hidden_size)})


def map_weights(config: ModelConfig) -> WeightMappings:  # noqa: ARG001 - as in PretrainedFamily
    """Return no mappings: transformers maps the names, see `custom_load`."""
    return []


def custom_load(module: nn.Module, config: ModelConfig, weight_files: WeightFiles) -> None:
    """Load the weights through transformers.

    Raises:
        SensoriumError: If one is missing or has another shape.
    """
    from transformers import MODEL_MAPPING
    from transformers.utils import logging

    hf_config = _to_hf_config(config)
    model_class: Any = MODEL_MAPPING[type(hf_config)]
    for tower in module.children():
        backbone = require_type(require_type(tower, Tower).encoder.embed, TransformersBackbone)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        model, loading_info = model_class.from_pretrained(
            None,
            config=hf_config,
            state_dict=dict(weight_files.tensors),
            output_loading_info=True,
        )
        logging.set_verbosity(verbosity)
        faulty = {*loading_info["missing_keys"], *loading_info["mismatched_keys"]} - POOLER_TENSORS
        if faulty:
            raise SensoriumError(
                f"{weight_files.path} lacks the tensor {min(faulty)}, or has it in another shape. "
                "It is incomplete, or not the model that its config describes."
            )
        unused = [
            name
            for name in sorted(loading_info["unexpected_keys"])
            if not any(fnmatchcase(name, pattern) for pattern in HEAD_TENSORS)
        ]
        if unused:
            raise SensoriumError(
                f"{weight_files.path} has the tensor {unused[0]}, which a {config['model_type']} "
                "encoder does not use. Models with a further part are not supported."
            )
        backbone.model = _remove_pooler(model)


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Return the image processor's or the tokenizer's settings."""
    if "image_size" in config:
        return {"image": image_preprocessing(weight_files, config["image_size"], DEFAULT_IMAGE)}
    num_positions = config.get("num_positions", DEFAULT_MAX_LENGTH)
    text = sentence_preprocessing(
        weight_files, num_positions, config["vocab_size"], text_pad_id(config)
    )
    return drop_missing(text=text)


def _to_hf_config(config: ModelConfig) -> Any:
    if find_spec("transformers") is None:
        raise SensoriumError(
            f"{config['model_type']} needs the transformers library. To install it: "
            'pip install "sensorium[hf]".'
        )
    from transformers import AutoConfig

    settings = {key: value for key, value in config.items() if key not in DERIVED_KEYS}
    try:
        return AutoConfig.for_model(config["model_type"], **settings)
    except Exception as error:  # each config class raises others
        raise SensoriumError(_config_message(config, error)) from error


def _config_message(config: ModelConfig, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    return f"transformers refuses the config of this {config['model_type']} model: {reason}."


def _remove_pooler(module: Any) -> Any:
    """Remove the pooler, which is trained for another task and not in every file."""
    if getattr(module, "pooler", None) is not None:
        module.pooler = None
    return module


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    """Return the config of any architecture that transformers knows, if it is installed."""
    model_type = weight_files.config.get("model_type")
    if not isinstance(model_type, str) or find_spec("transformers") is None:
        return None
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_MAPPING:
        return None
    hf_config = _to_hf_config(CONFIG_RULES.apply(weight_files.config, weight_files))
    is_vision = _require_encoder(hf_config, weight_files)
    model = _build_on_meta(hf_config)
    config = {**weight_files.config, "cls_pooling": is_cls_pooling(weight_files)}
    if is_vision:
        return {**config, "image_size": hf_config.image_size}
    return {
        **config,
        **find_text_ids(weight_files, hf_config.pad_token_id),
        "vocab_size": hf_config.vocab_size,
        "num_positions": _num_positions(hf_config, model),
    }


def _require_encoder(hf_config: Any, weight_files: WeightFiles) -> bool:
    """Check that a model is a plain encoder; return whether it reads images.

    Raises:
        SensoriumError: If it is not, or is one half of a model that needs the other.
    """
    from transformers import MODEL_MAPPING

    mapped: Any = MODEL_MAPPING[type(hf_config)]
    model_class = mapped[0] if isinstance(mapped, tuple) else mapped
    model_type = hf_config.model_type
    main_input = model_class.main_input_name
    sizes = {"pixel_values": "image_size", "input_ids": "vocab_size"}
    is_plain = (
        not hf_config.sub_configs
        and not hf_config.is_encoder_decoder
        and not model_type.endswith(HALF_MODEL_ENDINGS)
        and main_input in sizes
        and all(
            isinstance(getattr(hf_config, key, None), int)
            for key in ("hidden_size", sizes[main_input])
        )
    )
    if not is_plain:
        raise SensoriumError(
            f"{weight_files.path} is a {model_type} model, which is not supported. Through "
            "transformers, encoders of texts and transformers of images are, such as RoBERTa and "
            "DINOv2."
        )
    return main_input == "pixel_values"


def _build_on_meta(hf_config: Any) -> Any:
    """Build the model without memory for its weights.

    Raises:
        SensoriumError: If its config cannot be built.
    """
    from transformers import AutoModel

    try:
        with torch.device("meta"), skip_init():
            return AutoModel.from_config(hf_config)
    except Exception as error:  # each architecture raises others
        raise SensoriumError(
            _config_message({"model_type": hf_config.model_type}, error)
        ) from error


def _num_positions(hf_config: Any, model: Any) -> int:
    """Return the most tokens that an encoder takes.

    Some, such as RoBERTa, number the positions from the id of padding + 1.
    """
    num_positions = getattr(hf_config, "max_position_embeddings", None)
    if not isinstance(num_positions, int) or num_positions < 1:
        return DEFAULT_MAX_LENGTH
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - offset
    return num_positions


BACKBONE = PretrainedFamily(
    "transformers",
    _detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_embed_verb,
    custom_load=custom_load,
)
