"""Whisper (Radford et al. 2022), from transformers or CTranslate2: speech to text."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sensorium.errors import SensoriumError, require_type
from sensorium.modalities.audio import Audio, AudioStem
from sensorium.models.decoder import Decoder
from sensorium.models.towers import Encoder
from sensorium.nn.attention import Attention, CrossAttention
from sensorium.nn.decoder_block import DecoderBlock
from sensorium.nn.transformer import Transformer
from sensorium.pretrained.config_rules import ConfigRules
from sensorium.pretrained.decoder import CausalTokenEmbedding
from sensorium.pretrained.family import (
    ModelConfig,
    Preprocessing,
    PretrainedFamily,
    Verbs,
)
from sensorium.pretrained.image_processor import read_processor_config
from sensorium.pretrained.transcribe import Transcriber, load_transcript_prompt
from sensorium.pretrained.trunk import TrunkConfig
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import WeightMapping, concat, rename, weight_bias

CONFIG_RULES = ConfigRules(
    sizes={
        "d_model": 384,
        "vocab_size": 51865,
        "num_mel_bins": 80,
        "encoder_ffn_dim": 1536,
        "decoder_ffn_dim": 1536,
        "max_source_positions": 1500,
        "max_target_positions": 448,
    },
    layers={"encoder_layers": 4, "decoder_layers": 4},
    heads={"encoder_attention_heads": ("d_model", 6), "decoder_attention_heads": ("d_model", 6)},
    names={"activation_function": "gelu"},
    fixed={"scale_embedding": (False,)},
    unused=frozenset(
        {
            "encoder_layerdrop",
            "decoder_layerdrop",
            "dropout",
            "activation_dropout",
            "init_std",
            "decoder_start_token_id",
            "suppress_tokens",
            "begin_suppress_tokens",
            "use_weighted_layer_sum",  # of the audio classifier
            "classifier_proj_size",
            "apply_spec_augment",
            "mask_time_prob",
            "mask_time_length",
            "mask_time_min_masks",
            "mask_feature_prob",
            "mask_feature_length",
            "mask_feature_min_masks",
            "median_filter_width",  # of word timestamps
        }
    ),
)
FEATURE_SETTINGS = {  # of the feature extractor
    "sampling_rate": 16_000,
    "n_fft": 400,
    "hop_length": 160,
    "do_normalize": False,
    "dither": 0.0,
    "padding_value": 0.0,
}
AUDIO, TEXT = "context_encoders.audio", "parts.text"  # our modules
TRUNKS = {"encoder": f"{AUDIO}.trunk", "decoder": "trunk"}  # their side -> our trunk
NORM_LAYERS = {  # of each block: ours -> transformers'
    "norm": "self_attn_layer_norm",
    "mlp_norm": "final_layer_norm",
}
LINEAR_LAYERS = {
    "mlp.up": "fc1",
    "mlp.down": "fc2",
    "attention.out": "self_attn.out_proj",
}
CROSS_ATTENTION_LAYERS = {
    "cross_norm": "encoder_attn_layer_norm",
    "cross_attention.q": "encoder_attn.q_proj",
    "cross_attention.out": "encoder_attn.out_proj",
}
CTRANSLATE2_NORM_LAYERS = {  # of each block: ours -> CTranslate2's
    "norm": "self_attention/layer_norm",
    "mlp_norm": "ffn/layer_norm",
}
CTRANSLATE2_LINEAR_LAYERS = {
    "attention.qkv": "self_attention/linear_0",
    "attention.out": "self_attention/linear_1",
    "mlp.up": "ffn/linear_0",
    "mlp.down": "ffn/linear_1",
}
CTRANSLATE2_CROSS_ATTENTION_LAYERS = {
    "cross_attention.q": "attention/linear_0",
    "cross_attention.kv": "attention/linear_1",
    "cross_attention.out": "attention/linear_2",
}


def detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    """Return transformers' config; of a CTranslate2 model, it is derived from the shapes."""
    if weight_files.layout == "ctranslate2":
        is_whisper = weight_files.config["ctranslate2"]["spec"] == "WhisperSpec"
        if not is_whisper:
            return None
        return CONFIG_RULES.apply(_config_from_shapes(weight_files), weight_files)
    if weight_files.config.get("model_type") != "whisper" or weight_files.layout != "safetensors":
        return None
    config = CONFIG_RULES.apply(weight_files.config, weight_files)
    return {**config, "layout": weight_files.layout}


def _config_from_shapes(weight_files: WeightFiles) -> ModelConfig:
    metadata = weight_files.config["ctranslate2"]
    shape = weight_files.tensors.get_shape

    def count_layers(side: str) -> int:
        prefix = f"{side}/layer_"
        names = (name for name in weight_files.tensors if name.startswith(prefix))
        return len({name.split("/")[1] for name in names} - {"layer_norm"})

    vocab_size, dim = shape("decoder/embeddings/weight") or (0, 0)
    sizes: dict[str, int] = {}
    for side in TRUNKS:
        sizes[f"{side}_layers"] = count_layers(side)
        sizes[f"{side}_attention_heads"] = metadata[f"{side}/num_heads"]
        sizes[f"{side}_ffn_dim"] = (shape(f"{side}/layer_0/ffn/linear_0/weight") or (0,))[0]
    return {
        **sizes,
        "layout": "ctranslate2",
        "d_model": dim,
        "vocab_size": vocab_size,
        "num_mel_bins": (shape("encoder/conv1/weight") or (0, 0))[1],
        "max_source_positions": (shape("encoder/position_encodings/encodings") or (0,))[0],
        "max_target_positions": (shape("decoder/position_encodings/encodings") or (0,))[0],
    }


def build_module(config: ModelConfig) -> Decoder:
    """Build the decoder of the part `text`, with the encoder `audio` as context."""
    dim = config["d_model"]
    encoder_config = _trunk_config(config, "encoder")
    decoder_config = _trunk_config(config, "decoder")
    norm, heads = decoder_config.build_norm, decoder_config.heads
    blocks = [
        DecoderBlock(
            Attention(dim, heads),
            CrossAttention(dim, heads, bias=True),
            decoder_config.build_mlp(),
            (norm(), norm(), norm()),
        )
        for _ in range(decoder_config.depth)
    ]
    embedding = CausalTokenEmbedding(config["vocab_size"], dim, config["max_target_positions"])
    stem = AudioStem(dim, config["num_mel_bins"], config["max_source_positions"])
    encoder = Encoder(stem, encoder_config.build_trunk())
    head = embedding.build_tied_head()
    trunk = Transformer(blocks, final_norm=norm())
    return Decoder({"text": embedding}, {"text": head}, trunk, {"audio": encoder})


def _trunk_config(config: ModelConfig, side: str) -> TrunkConfig:
    return TrunkConfig(
        config["d_model"],
        config[f"{side}_layers"],
        config[f"{side}_attention_heads"],
        config[f"{side}_ffn_dim"],
        config.get("activation_function", "gelu"),
    )


def map_weights(config: ModelConfig) -> Iterator[WeightMapping]:
    """Map the names of the layout to ours."""
    if config["layout"] == "ctranslate2":
        return _map_ctranslate2_weights(config)
    return _map_transformers_weights(config)


def _map_transformers_weights(config: ModelConfig) -> Iterator[WeightMapping]:
    yield rename(f"{TEXT}.token_embedding.weight", "model.decoder.embed_tokens.weight")
    yield rename(f"{TEXT}.token_embedding.weight", "proj_out.weight", optional=True)
    yield rename(f"{TEXT}.position_embedding", "model.decoder.embed_positions.weight")
    yield rename(f"{AUDIO}.embed.position_embedding", "model.encoder.embed_positions.weight")
    for conv in ("conv1", "conv2"):
        yield from weight_bias(f"{AUDIO}.embed.{conv}", f"model.encoder.{conv}")
    for side, trunk in TRUNKS.items():
        yield from weight_bias(f"{trunk}.final_norm", f"model.{side}.layer_norm")
        for i in range(config[f"{side}_layers"]):
            target, source = f"{trunk}.blocks.{i}", f"model.{side}.layers.{i}"
            yield from _map_block(target, source)
            if side == "decoder":
                yield from _map_cross_attention(target, source)


def _map_block(target: str, source: str) -> Iterator[WeightMapping]:
    for ours, theirs in (NORM_LAYERS | LINEAR_LAYERS).items():
        yield from weight_bias(f"{target}.{ours}", f"{source}.{theirs}")
    q, k, v = (f"{source}.self_attn.{x}_proj" for x in "qkv")
    yield concat(f"{target}.attention.qkv.weight", f"{q}.weight", f"{k}.weight", f"{v}.weight")
    yield WeightMapping(
        f"{target}.attention.qkv.bias",
        (f"{q}.bias", f"{v}.bias"),
        _insert_zero_key_bias,
        lambda x: x.chunk(3)[::2],
    )


def _map_cross_attention(target: str, source: str) -> Iterator[WeightMapping]:
    for ours, theirs in CROSS_ATTENTION_LAYERS.items():
        yield from weight_bias(f"{target}.{ours}", f"{source}.{theirs}")
    k, v = (f"{source}.encoder_attn.{x}_proj" for x in "kv")
    yield concat(f"{target}.cross_attention.kv.weight", f"{k}.weight", f"{v}.weight")
    yield WeightMapping(
        f"{target}.cross_attention.kv.bias",
        (f"{v}.bias",),
        lambda v: torch.cat([torch.zeros_like(v), v]),
        lambda x: x.chunk(2)[1:],
    )


def _insert_zero_key_bias(q: Tensor, v: Tensor) -> Tensor:
    """Add the bias of the keys, which Whisper omits: it would not change the softmax."""
    return torch.cat([q, torch.zeros_like(q), v])


def _map_ctranslate2_weights(config: ModelConfig) -> Iterator[WeightMapping]:
    yield rename(f"{TEXT}.token_embedding.weight", "decoder/embeddings/weight")
    yield rename(f"{TEXT}.token_embedding.weight", "decoder/projection/weight", optional=True)
    yield rename(f"{TEXT}.position_embedding", "decoder/position_encodings/encodings")
    yield rename(f"{AUDIO}.embed.position_embedding", "encoder/position_encodings/encodings")
    for conv in ("conv1", "conv2"):
        yield from _map_ctranslate2_linear(f"{AUDIO}.embed.{conv}", f"encoder/{conv}")
    for side, trunk in TRUNKS.items():
        yield from _map_ctranslate2_norm(f"{trunk}.final_norm", f"{side}/layer_norm")
        for i in range(config[f"{side}_layers"]):
            yield from _map_ctranslate2_block(f"{trunk}.blocks.{i}", f"{side}/layer_{i}", side)


def _map_ctranslate2_block(target: str, source: str, side: str) -> Iterator[WeightMapping]:
    """Map a block, in which query, key and value are concatenated as ours."""
    norms, linears = CTRANSLATE2_NORM_LAYERS, CTRANSLATE2_LINEAR_LAYERS
    if side == "decoder":
        norms = {**norms, "cross_norm": "attention/layer_norm"}
        linears = {**linears, **CTRANSLATE2_CROSS_ATTENTION_LAYERS}
    for ours, theirs in norms.items():
        yield from _map_ctranslate2_norm(f"{target}.{ours}", f"{source}/{theirs}")
    for ours, theirs in linears.items():
        yield from _map_ctranslate2_linear(f"{target}.{ours}", f"{source}/{theirs}")


def _map_ctranslate2_linear(target: str, source: str) -> list[WeightMapping]:
    return [rename(f"{target}.{name}", f"{source}/{name}") for name in ("weight", "bias")]


def _map_ctranslate2_norm(target: str, source: str) -> list[WeightMapping]:
    return [
        rename(f"{target}.weight", f"{source}/gamma"),
        rename(f"{target}.bias", f"{source}/beta"),
    ]


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Return the settings of the audio and of the transcripts; {} without a tokenizer."""
    _check_feature_extractor(config, weight_files)
    text = load_transcript_prompt(weight_files, config["max_target_positions"])
    return {} if text is None else {"audio": Audio(n_mels=config["num_mel_bins"]), "text": text}


def _check_feature_extractor(config: ModelConfig, weight_files: WeightFiles) -> None:
    """Check that the log-mel spectrogram is the one that `Audio` computes.

    Raises:
        SensoriumError: If a setting differs.
    """
    settings, file = read_processor_config(weight_files, "feature_extractor")
    supported = {"feature_size": config["num_mel_bins"], **FEATURE_SETTINGS}
    for key, value in supported.items():
        found = settings.get(key)
        if found is not None and found != value:
            raise SensoriumError(
                f"{weight_files.path}/{file} sets {key}={found!r}, which is not supported. "
                f"Supported is {value!r}."
            )


def build_verbs(module: nn.Module, preprocessing: Preprocessing) -> Verbs:
    """Return `generate` if there is a tokenizer."""
    model = require_type(module, Decoder)
    return {"generate": Transcriber(model, preprocessing)} if preprocessing else {}


WHISPER = PretrainedFamily(
    "whisper",
    detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_verbs,
    unused_tensors=("decoder/alignment_heads",),
)
