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
from sensorium.models import Encoder, Tower
from sensorium.published.bert import First, pools_first
from sensorium.published.files import Opened
from sensorium.published.parts import Names
from sensorium.published.published import Config, Published, Senses
from sensorium.published.senses import embedding, picture, present, words
from sensorium.tokens import Tokens, line

POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
SEEN = Image(size=224, resample="bilinear")


class Backbone(nn.Module):
    """Raw values → Tokens, by somebody else's module. No token of it speaks for the whole."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        from transformers import AutoModel
        self.model: Any = _headless(AutoModel.from_config(_config(config)))
        self.sees, self.pad = "image_size" in config, config.get("pad_token_id") or 0

    def summary(self, raw: Tensor) -> None:
        return None

    def forward(self, raw: Tensor) -> Tokens:
        valid = None if self.sees else self._real(raw)
        given = {"pixel_values": raw} if valid is None else {"input_ids": raw, "attention_mask": valid.long()}
        x = self.model(**given).last_hidden_state
        return Tokens(x, line(x), valid=valid)

    def _real(self, ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        return ids != self.pad


def build(config: Config) -> nn.ModuleDict:
    """One tower, `image` or `text`, of the model that the config names."""
    backbone = Backbone(config)
    kind, width = ("image" if backbone.sees else "text"), backbone.model.config.hidden_size
    encoder = Encoder(backbone, pool=First() if config["first"] else None)
    return nn.ModuleDict({kind: Tower(encoder, nn.Identity(), width)})


def names(config: Config) -> Names:
    """None: which tensor of a file is which, transformers knows, and `carry` asks it."""
    return []


def carry(module: nn.Module, config: Config, opened: Opened) -> None:
    """The weights of a file, found and renamed by transformers. Raises SensoriumError where one is missing."""
    from transformers import MODEL_MAPPING
    from transformers.utils import logging
    for tower in module.children():
        assert isinstance(tower, Tower) and isinstance(backbone := tower.encode.embed, Backbone)
        made: Any = MODEL_MAPPING[type(_config(config))]
        before = logging.get_verbosity()
        logging.set_verbosity_error()
        model, found = made.from_pretrained(None, config=_config(config), state_dict=dict(opened.tensors),
                                            output_loading_info=True)
        logging.set_verbosity(before)
        if lost := sorted({*found["missing_keys"], *found["mismatched_keys"]} - POOLER):
            raise SensoriumError(f"{opened.place} lacks the tensor {lost[0]}, or it has another shape: it is not the "
                                 "model that its config describes, or is incomplete")
        backbone.model = _headless(model)


def senses(config: Config, opened: Opened) -> Senses:
    """Pictures as preprocessor_config.json makes them, words as tokenizer.json cuts them."""
    if "image_size" in config:
        return {"image": picture(opened.json("preprocessor_config.json"), config["image_size"], SEEN)}
    return present(text=words(opened, config.get("max_position_embeddings", 512), config["vocab_size"]))


def _config(config: Config) -> Any:
    if find_spec("transformers") is None:
        raise SensoriumError(f"{config['model_type']} is not hosted here, but by the library transformers: pip install "
                             '"sensorium[hf]"')
    from transformers import AutoConfig
    plain = {key: value for key, value in config.items() if key not in ("first", "model_type")}
    return AutoConfig.for_model(config["model_type"], **plain)


def _headless(module: Any) -> Any:
    """The module without what pools for another task, and is not in every file."""
    if getattr(module, "pooler", None) is not None:
        module.pooler = None
    return module


def _recognise(opened: Opened) -> Config | None:
    """Whatever transformers has a model for, if it is installed."""
    model_type = opened.config.get("model_type")
    if not isinstance(model_type, str) or find_spec("transformers") is None:
        return None
    from transformers import CONFIG_MAPPING, MODEL_MAPPING
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_MAPPING:
        return None
    return {**opened.config, "first": pools_first(opened)}


BACKBONE = Published("transformers", _recognise, build, names, senses, embedding, carry=carry)
