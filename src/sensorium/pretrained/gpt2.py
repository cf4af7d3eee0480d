"""GPT-2 (Radford et al. 2019) as transformers stores it: transposed, with fused qkv."""

from collections.abc import Iterator

from sensorium.errors import require_type
from sensorium.models.decoder import Decoder
from sensorium.nn.attention import Attention
from sensorium.nn.transformer import Block
from sensorium.pretrained.config_rules import ConfigRules
from sensorium.pretrained.decoder import CausalTokenEmbedding, build_text_decoder
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily
from sensorium.pretrained.generate_text import build_verbs, prompt_preprocessing
from sensorium.pretrained.trunk import TrunkConfig
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import WeightMapping, rename, transpose, weight_bias

NORM_NAMES = {"norm": "ln_1", "mlp_norm": "ln_2"}  # ours -> theirs
LINEAR_NAMES = {
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
DEFAULT_EOS_TOKEN_ID = 50256
CONFIG_RULES = ConfigRules(
    sizes={"n_embd": 768, "vocab_size": 50257, "n_positions": 1024, "n_inner": None},
    layers={"n_layer": 12},
    heads={"n_head": ("n_embd", 12)},
    numbers={"layer_norm_epsilon": 1e-5},
    names={"activation_function": "gelu_new"},
    fixed={
        "scale_attn_weights": (True, False),
        "scale_attn_by_inverse_layer_idx": (True, False),
        "add_cross_attention": (False,),
    },
    unused=frozenset(
        {
            "resid_pdrop",
            "embd_pdrop",
            "attn_pdrop",
            "reorder_and_upcast_attn",
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
        }
    ),
)


def detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    """Return the config with "prefix": the first released files lack "transformer." in names."""
    if weight_files.config.get("model_type") != "gpt2" or weight_files.layout != "safetensors":
        return None
    prefix = "transformer." if "transformer.wte.weight" in weight_files.tensors else ""
    return {**CONFIG_RULES.apply(weight_files.config, weight_files), "prefix": prefix}


def build_module(config: ModelConfig) -> Decoder:
    """Build the decoder."""
    dim = config["n_embd"]
    trunk = TrunkConfig(
        dim,
        config["n_layer"],
        config["n_head"],
        config.get("n_inner") or 4 * dim,
        config.get("activation_function", "gelu_new"),
        config.get("layer_norm_epsilon", 1e-5),
    )
    embedding = CausalTokenEmbedding(config["vocab_size"], dim, config["n_positions"])
    transformer = trunk.build_trunk()
    scales_logits = config.get("scale_attn_weights", True)
    scales_by_layer = config.get("scale_attn_by_inverse_layer_idx", False)
    if scales_by_layer or not scales_logits:
        scale = (dim // config["n_head"]) ** -0.5 if scales_logits else 1.0
        for i, block in enumerate(transformer.blocks):
            attention = require_type(require_type(block, Block).attention, Attention)
            attention.scale = scale / (i + 1) if scales_by_layer else scale
    return build_text_decoder(embedding, transformer)


def map_weights(config: ModelConfig) -> Iterator[WeightMapping]:
    """Map transformers' names to ours."""
    prefix = config.get("prefix", "transformer.")
    yield rename("parts.text.token_embedding.weight", f"{prefix}wte.weight")
    yield rename("parts.text.token_embedding.weight", "lm_head.weight", optional=True)
    yield rename("parts.text.position_embedding", f"{prefix}wpe.weight")
    yield from weight_bias("trunk.final_norm", f"{prefix}ln_f")
    for i in range(config["n_layer"]):
        target, source = f"trunk.blocks.{i}", f"{prefix}h.{i}"
        for ours, theirs in NORM_NAMES.items():
            yield from weight_bias(f"{target}.{ours}", f"{source}.{theirs}")
        for ours, theirs in LINEAR_NAMES.items():
            yield transpose(f"{target}.{ours}.weight", f"{source}.{theirs}.weight")
            yield rename(f"{target}.{ours}.bias", f"{source}.{theirs}.bias")


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Return the tokenizer's settings."""
    stop_id = config.get("eos_token_id", DEFAULT_EOS_TOKEN_ID)
    return prompt_preprocessing(weight_files, config["n_positions"], stop_id)


GPT2 = PretrainedFamily(
    "gpt2",
    detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_verbs,
    unused_tensors=("*.attn.bias", "*.attn.masked_bias"),
)
