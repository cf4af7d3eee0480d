"""Encoders of the transformers library as towers, for architectures that no family here implements.

B batch   T tokens   D width
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn

from sensorium.errors import SensoriumError, require_type
from sensorium.modalities.image import Image
from sensorium.models.towers import Encoder, Tower
from sensorium.nn.tokens import Tokens, sequence_positions
from sensorium.pretrained.bert import FirstTokenPool, is_cls_pooling
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily
from sensorium.pretrained.preprocessing import (
    build_embed_verb,
    drop_missing,
    image_preprocessing,
)
from sensorium.pretrained.tokenizers import text_preprocessing
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import WeightMappings

POOLER_TENSORS = {"pooler.dense.weight", "pooler.dense.bias"}
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
        self.pad_token_id = config.get("pad_token_id") or 0

    def pool_index(self, raw: Tensor) -> None:
        """Return None: pooled over all tokens."""

    def forward(self, raw: Tensor) -> Tokens:
        """Return the last hidden states of images or token ids; padding is not valid."""
        if self.is_vision:
            valid = None
            x = self.model(pixel_values=raw).last_hidden_state
        else:
            valid = self._valid_mask(raw)
            x = self.model(input_ids=raw, attention_mask=valid.long()).last_hidden_state
        return Tokens(x, sequence_positions(x), valid=valid)

    def _valid_mask(self, ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        return ids != self.pad_token_id


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
        backbone.model = _remove_pooler(model)


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Return the image processor's or the tokenizer's settings."""
    if "image_size" in config:
        processor_config = weight_files.read_json("preprocessor_config.json")
        return {"image": image_preprocessing(processor_config, config["image_size"], DEFAULT_IMAGE)}
    max_length = config.get("max_position_embeddings", DEFAULT_MAX_LENGTH)
    return drop_missing(text=text_preprocessing(weight_files, max_length, config["vocab_size"]))


def _to_hf_config(config: ModelConfig) -> Any:
    if find_spec("transformers") is None:
        raise SensoriumError(
            f"{config['model_type']} needs the transformers library. To install it: "
            'pip install "sensorium[hf]".'
        )
    from transformers import AutoConfig

    settings = {
        key: value for key, value in config.items() if key not in ("cls_pooling", "model_type")
    }
    return AutoConfig.for_model(config["model_type"], **settings)


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
    return {**weight_files.config, "cls_pooling": is_cls_pooling(weight_files)}


BACKBONE = PretrainedFamily(
    "transformers",
    _detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_embed_verb,
    custom_load=custom_load,
)
