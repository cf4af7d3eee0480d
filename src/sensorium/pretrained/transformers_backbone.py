"""Any encoder of the library `transformers` as a tower, where no family of ours hosts it: the whole zoo, at its speed.

B batch   T tokens   D width
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.models.towers import Encoder, Tower
from sensorium.nn.tokens import Tokens, sequence_positions
from sensorium.pretrained.bert import FirstTokenPool, is_cls_pooling
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily
from sensorium.pretrained.preprocessing import (
    build_embed_verb,
    drop_missing,
    image_preprocessing,
    text_preprocessing,
)
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import WeightMappings

POOLER_TENSORS = {"pooler.dense.weight", "pooler.dense.bias"}
DEFAULT_IMAGE = Image(size=224, resample="bilinear")


class TransformersBackbone(nn.Module):
    """Raw values → Tokens, by somebody else's module. No token of it speaks for the whole."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        from transformers import AutoModel

        self.model: Any = _remove_pooler(AutoModel.from_config(_to_hf_config(config)))
        self.is_vision, self.pad_token_id = "image_size" in config, config.get("pad_token_id") or 0

    def pool_index(self, raw: Tensor) -> None:
        return None

    def forward(self, raw: Tensor) -> Tokens:
        valid = None if self.is_vision else self._valid_mask(raw)
        given = (
            {"pixel_values": raw}
            if valid is None
            else {"input_ids": raw, "attention_mask": valid.long()}
        )
        x = self.model(**given).last_hidden_state
        return Tokens(x, sequence_positions(x), valid=valid)

    def _valid_mask(self, ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        return ids != self.pad_token_id


def build_module(config: ModelConfig) -> nn.ModuleDict:
    """One tower, `image` or `text`, of the model that the config names."""
    backbone = TransformersBackbone(config)
    kind, width = ("image" if backbone.is_vision else "text"), backbone.model.config.hidden_size
    encoder = Encoder(backbone, pool=FirstTokenPool() if config["first"] else None)
    return nn.ModuleDict({kind: Tower(encoder, nn.Identity(), width)})


def map_weights(config: ModelConfig) -> WeightMappings:
    """None: which tensor of a file is which, transformers knows, and `carry` asks it."""
    return []


def custom_load(module: nn.Module, config: ModelConfig, weight_files: WeightFiles) -> None:
    """The weights of a file, found and renamed by transformers. Raises SensoriumError where one is missing."""
    from transformers import MODEL_MAPPING
    from transformers.utils import logging

    for tower in module.children():
        assert isinstance(tower, Tower)
        assert isinstance(backbone := tower.encoder.embed, TransformersBackbone)
        made: Any = MODEL_MAPPING[type(_to_hf_config(config))]
        before = logging.get_verbosity()
        logging.set_verbosity_error()
        model, found = made.from_pretrained(
            None,
            config=_to_hf_config(config),
            state_dict=dict(weight_files.tensors),
            output_loading_info=True,
        )
        logging.set_verbosity(before)
        if lost := sorted({*found["missing_keys"], *found["mismatched_keys"]} - POOLER_TENSORS):
            raise SensoriumError(
                f"{weight_files.path} lacks the tensor {lost[0]}, or it has another shape: it is not the "
                "model that its config describes, or is incomplete"
            )
        backbone.model = _remove_pooler(model)


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Pictures as preprocessor_config.json makes them, words as tokenizer.json cuts them."""
    if "image_size" in config:
        return {
            "image": image_preprocessing(
                weight_files.read_json("preprocessor_config.json"),
                config["image_size"],
                DEFAULT_IMAGE,
            )
        }
    return drop_missing(
        text=text_preprocessing(
            weight_files, config.get("max_position_embeddings", 512), config["vocab_size"]
        )
    )


def _to_hf_config(config: ModelConfig) -> Any:
    if find_spec("transformers") is None:
        raise SensoriumError(
            f"{config['model_type']} is not hosted here, but by the library transformers: pip install "
            '"sensorium[hf]"'
        )
    from transformers import AutoConfig

    plain = {key: value for key, value in config.items() if key not in ("first", "model_type")}
    return AutoConfig.for_model(config["model_type"], **plain)


def _remove_pooler(module: Any) -> Any:
    """The module without what pools for another task, and is not in every file."""
    if getattr(module, "pooler", None) is not None:
        module.pooler = None
    return module


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    """Whatever transformers has a model for, if it is installed."""
    model_type = weight_files.config.get("model_type")
    if not isinstance(model_type, str) or find_spec("transformers") is None:
        return None
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_MAPPING:
        return None
    return {**weight_files.config, "first": is_cls_pooling(weight_files)}


BACKBONE = PretrainedFamily(
    "transformers",
    _detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_embed_verb,
    custom_load=custom_load,
)
