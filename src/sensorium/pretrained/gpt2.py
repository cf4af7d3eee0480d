"""GPT-2 (Radford et al. 2019) as transformers stores it: matrices transposed, one for queries, keys and values."""

from collections.abc import Iterator

from sensorium.models.decoder import Decoder
from sensorium.pretrained.decoder import CausalTokenEmbedding, build_text_decoder
from sensorium.pretrained.family import (
    ModelConfig,
    PretrainedFamily,
    WeightMapping,
    rename,
    transpose,
)
from sensorium.pretrained.generate_text import build_verbs, preprocessing
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import TrunkConfig, weight_bias

NORM_NAMES = {"norm": "ln_1", "mlp_norm": "ln_2"}  # ours: theirs
LINEAR_NAMES = {
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}


def detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    """Its config, with "prefix": the first published files leave "transformer." out of every name."""
    if weight_files.config.get("model_type") != "gpt2" or weight_files.layout != "safetensors":
        return None
    return {
        **weight_files.config,
        "prefix": "transformer." if "transformer.wte.weight" in weight_files.tensors else "",
    }


def build_module(config: ModelConfig) -> Decoder:
    dim, depth = config["n_embd"], config["n_layer"]
    shape = TrunkConfig(
        dim,
        depth,
        config["n_head"],
        config.get("n_inner") or 4 * dim,
        config.get("activation_function", "gelu_new"),
        config.get("layer_norm_epsilon", 1e-5),
    )
    return build_text_decoder(
        CausalTokenEmbedding(config["vocab_size"], dim, config["n_positions"]), shape.build_trunk()
    )


def map_weights(config: ModelConfig) -> Iterator[WeightMapping]:
    prefix = config.get("prefix", "transformer.")
    yield rename("parts.text.ids.weight", f"{prefix}wte.weight")
    yield rename("parts.text.ids.weight", "lm_head.weight", optional=True)
    yield rename("parts.text.places", f"{prefix}wpe.weight")
    yield from weight_bias("trunk.last", f"{prefix}ln_f")
    for i in range(config["n_layer"]):
        ours, theirs = f"trunk.blocks.{i}", f"{prefix}h.{i}"
        for mine, other in NORM_NAMES.items():
            yield from weight_bias(f"{ours}.{mine}", f"{theirs}.{other}")
        for mine, other in LINEAR_NAMES.items():
            yield transpose(f"{ours}.{mine}.weight", f"{theirs}.{other}.weight")
            yield rename(f"{ours}.{mine}.bias", f"{theirs}.{other}.bias")


GPT2 = PretrainedFamily(
    "gpt2",
    detect_config,
    build_module,
    map_weights,
    build_verbs=build_verbs,
    unused_tensors=("*.attn.bias", "*.attn.masked_bias"),
    preprocessing=lambda config, opened: preprocessing(
        opened, config["n_positions"], config.get("eos_token_id", 50256)
    ),
)
