"""Whisper (Radford et al. 2022), from transformers or from CTranslate2: sound in, words out."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sensorium.modalities.audio import Audio, AudioStem
from sensorium.models.decoder import Decoder
from sensorium.models.towers import Encoder
from sensorium.nn.attention import Attention, CrossAttention
from sensorium.nn.transformer import DecoderBlock, Transformer
from sensorium.pretrained.decoder import CausalTokenEmbedding
from sensorium.pretrained.family import (
    ModelConfig,
    Preprocessing,
    PretrainedFamily,
    Verbs,
    WeightMapping,
    concat,
    rename,
)
from sensorium.pretrained.transcribe import Transcriber, load_transcript_prompt
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import TrunkConfig, weight_bias

AUDIO_PREFIX, TEXT_PREFIX = "beside.audio", "parts.text"


def detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    """Its config as transformers writes it; of CTranslate2's file, as the shapes of its tensors say."""
    if weight_files.layout == "ctranslate2":
        return (
            _config_from_shapes(weight_files)
            if weight_files.config["ctranslate2"]["spec"] == "WhisperSpec"
            else None
        )
    known = (
        weight_files.config.get("model_type") == "whisper" and weight_files.layout == "safetensors"
    )
    return {**weight_files.config, "layout": weight_files.layout} if known else None


def _config_from_shapes(weight_files: WeightFiles) -> ModelConfig:
    about, shape = weight_files.config["ctranslate2"], weight_files.tensors.get_shape

    def depth(side: str) -> int:
        return len(
            {
                name.split("/")[1]
                for name in weight_files.tensors
                if name.startswith(f"{side}/layer_") and name.split("/")[1] != "layer_norm"
            }
        )

    vocab, dim = shape("decoder/embeddings/weight") or (0, 0)
    sizes = {
        f"{side}_{what}": value
        for side in ("encoder", "decoder")
        for what, value in {
            "layers": depth(side),
            "attention_heads": about[f"{side}/num_heads"],
            "ffn_dim": (shape(f"{side}/layer_0/ffn/linear_0/weight") or (0,))[0],
        }.items()
    }
    return {
        **sizes,
        "layout": "ctranslate2",
        "d_model": dim,
        "vocab_size": vocab,
        "num_mel_bins": (shape("encoder/conv1/weight") or (0, 0))[1],
        "max_source_positions": (shape("encoder/position_encodings/encodings") or (0,))[0],
        "max_target_positions": (shape("decoder/position_encodings/encodings") or (0,))[0],
    }


def build_module(config: ModelConfig) -> Decoder:
    dim, act = config["d_model"], config.get("activation_function", "gelu")
    hears = TrunkConfig(
        dim,
        config["encoder_layers"],
        config["encoder_attention_heads"],
        config["encoder_ffn_dim"],
        act,
    )
    says = TrunkConfig(
        dim,
        config["decoder_layers"],
        config["decoder_attention_heads"],
        config["decoder_ffn_dim"],
        act,
    )
    blocks = [
        DecoderBlock(
            Attention(dim, says.heads),
            CrossAttention(dim, says.heads, bias=True),
            says.build_mlp(),
            (says.build_norm(), says.build_norm(), says.build_norm()),
        )
        for _ in range(says.depth)
    ]
    ids = CausalTokenEmbedding(config["vocab_size"], dim, config["max_target_positions"])
    sound = Encoder(
        AudioStem(dim, config["num_mel_bins"], config["max_source_positions"]), hears.build_trunk()
    )
    return Decoder(
        {"text": ids},
        {"text": ids.build_tied_head()},
        Transformer(blocks, final_norm=says.build_norm()),
        {"audio": sound},
    )


def map_weights(config: ModelConfig) -> Iterator[WeightMapping]:
    return (
        _map_ctranslate2_weights(config)
        if config["layout"] == "ctranslate2"
        else _map_transformers_weights(config)
    )


def _map_transformers_weights(config: ModelConfig) -> Iterator[WeightMapping]:
    yield rename(f"{TEXT_PREFIX}.ids.weight", "model.decoder.embed_tokens.weight")
    yield rename(f"{TEXT_PREFIX}.ids.weight", "proj_out.weight", optional=True)
    yield rename(f"{TEXT_PREFIX}.places", "model.decoder.embed_positions.weight")
    yield rename(f"{AUDIO_PREFIX}.embed.places", "model.encoder.embed_positions.weight")
    for ours, theirs in (("first", "conv1"), ("second", "conv2")):
        yield from weight_bias(f"{AUDIO_PREFIX}.embed.{ours}", f"model.encoder.{theirs}")
    for side, trunk in (("encoder", f"{AUDIO_PREFIX}.trunk"), ("decoder", "trunk")):
        yield from weight_bias(f"{trunk}.last", f"model.{side}.layer_norm")
        for i in range(config[f"{side}_layers"]):
            yield from _map_layer(f"{trunk}.blocks.{i}", f"model.{side}.layers.{i}", side)


def _map_layer(target: str, source: str, side: str) -> Iterator[WeightMapping]:
    yield from weight_bias(f"{target}.norm", f"{source}.self_attn_layer_norm")
    yield from weight_bias(f"{target}.mlp_norm", f"{source}.final_layer_norm")
    yield from weight_bias(f"{target}.mlp.up", f"{source}.fc1")
    yield from weight_bias(f"{target}.mlp.down", f"{source}.fc2")
    yield from weight_bias(f"{target}.attention.out", f"{source}.self_attn.out_proj")
    q, k, v = (f"{source}.self_attn.{x}_proj" for x in "qkv")
    yield concat(f"{target}.attention.qkv.weight", f"{q}.weight", f"{k}.weight", f"{v}.weight")
    yield WeightMapping(
        f"{target}.attention.qkv.bias",
        (f"{q}.bias", f"{v}.bias"),
        _insert_zero_key_bias,
        lambda x: x.chunk(3)[::2],
    )
    if side == "decoder":
        yield from weight_bias(f"{target}.look_norm", f"{source}.encoder_attn_layer_norm")
        yield from weight_bias(f"{target}.look.q", f"{source}.encoder_attn.q_proj")
        yield from weight_bias(f"{target}.look.out", f"{source}.encoder_attn.out_proj")
        k, v = (f"{source}.encoder_attn.{x}_proj" for x in "kv")
        yield concat(f"{target}.look.kv.weight", f"{k}.weight", f"{v}.weight")
        yield WeightMapping(
            f"{target}.look.kv.bias",
            (f"{v}.bias",),
            lambda v: torch.cat([torch.zeros_like(v), v]),
            lambda x: x.chunk(2)[1:],
        )


def _insert_zero_key_bias(q: Tensor, v: Tensor) -> Tensor:
    """Keys have no bias: it would be the same to all of them, and softmax does not see it."""
    return torch.cat([q, torch.zeros_like(q), v])


def _map_ctranslate2_weights(config: ModelConfig) -> Iterator[WeightMapping]:
    yield rename(f"{TEXT_PREFIX}.ids.weight", "decoder/embeddings/weight")
    yield rename(f"{TEXT_PREFIX}.ids.weight", "decoder/projection/weight", optional=True)
    yield rename(f"{TEXT_PREFIX}.places", "decoder/position_encodings/encodings")
    yield rename(f"{AUDIO_PREFIX}.embed.places", "encoder/position_encodings/encodings")
    for ours, theirs in (("first", "conv1"), ("second", "conv2")):
        yield from _map_ctranslate2_linear(f"{AUDIO_PREFIX}.embed.{ours}", f"encoder/{theirs}")
    for side, trunk in (("encoder", f"{AUDIO_PREFIX}.trunk"), ("decoder", "trunk")):
        yield from _map_ctranslate2_norm(f"{trunk}.last", f"{side}/layer_norm")
        for i in range(config[f"{side}_layers"]):
            yield from _map_ctranslate2_layer(f"{trunk}.blocks.{i}", f"{side}/layer_{i}", side)


def _map_ctranslate2_layer(target: str, source: str, side: str) -> Iterator[WeightMapping]:
    """A layer whose q, k and v lie as ours do."""
    yield from _map_ctranslate2_norm(f"{target}.norm", f"{source}/self_attention/layer_norm")
    yield from _map_ctranslate2_norm(f"{target}.mlp_norm", f"{source}/ffn/layer_norm")
    layers = {
        "attention.qkv": "self_attention/linear_0",
        "attention.out": "self_attention/linear_1",
        "mlp.up": "ffn/linear_0",
        "mlp.down": "ffn/linear_1",
    }
    if side == "decoder":
        yield from _map_ctranslate2_norm(f"{target}.look_norm", f"{source}/attention/layer_norm")
        layers |= {
            "look.q": "attention/linear_0",
            "look.kv": "attention/linear_1",
            "look.out": "attention/linear_2",
        }
    for mine, other in layers.items():
        yield from _map_ctranslate2_linear(f"{target}.{mine}", f"{source}/{other}")


def _map_ctranslate2_linear(target: str, source: str) -> list[WeightMapping]:
    return [rename(f"{target}.{part}", f"{source}/{part}") for part in ("weight", "bias")]


def _map_ctranslate2_norm(target: str, source: str) -> list[WeightMapping]:
    return [
        rename(f"{target}.weight", f"{source}/gamma"),
        rename(f"{target}.bias", f"{source}/beta"),
    ]


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Sounds, in windows of so many seconds as there are places for; and the words that are made of them."""
    said = load_transcript_prompt(weight_files, config["max_target_positions"])
    return {} if said is None else {"audio": Audio(n_mels=config["num_mel_bins"]), "text": said}


def build_verbs(module: nn.Module, preprocessing: Preprocessing) -> Verbs:
    """`generate`, where there is a tokenizer."""
    assert isinstance(module, Decoder)
    return {"generate": Transcriber(module, preprocessing)} if preprocessing else {}


WHISPER = PretrainedFamily(
    "whisper",
    detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_verbs,
    unused_tensors=("decoder/alignment_heads",),
)
