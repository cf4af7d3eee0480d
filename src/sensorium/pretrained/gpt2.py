"""GPT-2 (Radford et al. 2019) as transformers stores it: transposed, with fused qkv."""

from collections.abc import Iterator

from sensorium.models.decoder import Decoder
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


def detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    """Return the config with "prefix": the first released files lack "transformer." in names."""
    if weight_files.config.get("model_type") != "gpt2" or weight_files.layout != "safetensors":
        return None
    prefix = "transformer." if "transformer.wte.weight" in weight_files.tensors else ""
    return {**weight_files.config, "prefix": prefix}


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
    return build_text_decoder(embedding, trunk.build_trunk())


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
