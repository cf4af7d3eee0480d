"""Whisper (Radford et al. 2022), from transformers or from CTranslate2: sound in, words out."""
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sensorium.attention import Attention, CrossAttention
from sensorium.modalities.audio import Audio, Sound
from sensorium.models import Decoder, Encoder
from sensorium.published.decoder import Ids
from sensorium.published.files import Opened
from sensorium.published.parts import Shape, affine
from sensorium.published.published import Config, Name, Published, Senses, Verbs, same, stacked
from sensorium.published.transcribe import Transcriber, script
from sensorium.transformer import LookingBlock, Transformer

SOUND, SAID = "beside.audio", "parts.text"


def recognise(opened: Opened) -> Config | None:
    """Its config as transformers writes it; of CTranslate2's file, as the shapes of its tensors say."""
    if opened.layout == "ctranslate2":
        return _of_shapes(opened) if opened.config["ctranslate2"]["spec"] == "WhisperSpec" else None
    known = opened.config.get("model_type") == "whisper" and opened.layout == "safetensors"
    return {**opened.config, "layout": opened.layout} if known else None


def _of_shapes(opened: Opened) -> Config:
    about, shape = opened.config["ctranslate2"], opened.tensors.shape

    def depth(side: str) -> int:
        return len({name.split("/")[1] for name in opened.tensors if name.startswith(f"{side}/layer_")
                    and name.split("/")[1] != "layer_norm"})
    vocab, dim = shape("decoder/embeddings/weight") or (0, 0)
    sizes = {f"{side}_{what}": value for side in ("encoder", "decoder") for what, value in {
        "layers": depth(side), "attention_heads": about[f"{side}/num_heads"],
        "ffn_dim": (shape(f"{side}/layer_0/ffn/linear_0/weight") or (0,))[0]}.items()}
    return {**sizes, "layout": "ctranslate2", "d_model": dim, "vocab_size": vocab,
            "num_mel_bins": (shape("encoder/conv1/weight") or (0, 0))[1],
            "max_source_positions": (shape("encoder/position_encodings/encodings") or (0,))[0],
            "max_target_positions": (shape("decoder/position_encodings/encodings") or (0,))[0]}


def build(config: Config) -> Decoder:
    dim, act = config["d_model"], config.get("activation_function", "gelu")
    hears = Shape(dim, config["encoder_layers"], config["encoder_attention_heads"], config["encoder_ffn_dim"], act)
    says = Shape(dim, config["decoder_layers"], config["decoder_attention_heads"], config["decoder_ffn_dim"], act)
    blocks = [LookingBlock(Attention(dim, says.heads), CrossAttention(dim, says.heads, bias=True), says.mlp(),
                           (says.norm(), says.norm(), says.norm())) for _ in range(says.depth)]
    ids = Ids(config["vocab_size"], dim, config["max_target_positions"])
    sound = Encoder(Sound(dim, config["num_mel_bins"], config["max_source_positions"]), hears.trunk())
    return Decoder({"text": ids}, {"text": ids.head()}, Transformer(blocks, last=says.norm()), {"audio": sound})


def names(config: Config) -> Iterator[Name]:
    return _of_ctranslate2(config) if config["layout"] == "ctranslate2" else _of_transformers(config)


def _of_transformers(config: Config) -> Iterator[Name]:
    yield same(f"{SAID}.ids.weight", "model.decoder.embed_tokens.weight")
    yield same(f"{SAID}.ids.weight", "proj_out.weight", optional=True)
    yield same(f"{SAID}.places", "model.decoder.embed_positions.weight")
    yield same(f"{SOUND}.embed.places", "model.encoder.embed_positions.weight")
    for ours, theirs in (("first", "conv1"), ("second", "conv2")):
        yield from affine(f"{SOUND}.embed.{ours}", f"model.encoder.{theirs}")
    for side, trunk in (("encoder", f"{SOUND}.trunk"), ("decoder", "trunk")):
        yield from affine(f"{trunk}.last", f"model.{side}.layer_norm")
        for i in range(config[f"{side}_layers"]):
            yield from _layer(f"{trunk}.blocks.{i}", f"model.{side}.layers.{i}", side)


def _layer(ours: str, theirs: str, side: str) -> Iterator[Name]:
    yield from affine(f"{ours}.norm", f"{theirs}.self_attn_layer_norm")
    yield from affine(f"{ours}.mlp_norm", f"{theirs}.final_layer_norm")
    yield from affine(f"{ours}.mlp.up", f"{theirs}.fc1")
    yield from affine(f"{ours}.mlp.down", f"{theirs}.fc2")
    yield from affine(f"{ours}.attention.out", f"{theirs}.self_attn.out_proj")
    q, k, v = (f"{theirs}.self_attn.{x}_proj" for x in "qkv")
    yield stacked(f"{ours}.attention.qkv.weight", f"{q}.weight", f"{k}.weight", f"{v}.weight")
    yield Name(f"{ours}.attention.qkv.bias", (f"{q}.bias", f"{v}.bias"), _without_k, lambda x: x.chunk(3)[::2])
    if side == "decoder":
        yield from affine(f"{ours}.look_norm", f"{theirs}.encoder_attn_layer_norm")
        yield from affine(f"{ours}.look.q", f"{theirs}.encoder_attn.q_proj")
        yield from affine(f"{ours}.look.out", f"{theirs}.encoder_attn.out_proj")
        k, v = (f"{theirs}.encoder_attn.{x}_proj" for x in "kv")
        yield stacked(f"{ours}.look.kv.weight", f"{k}.weight", f"{v}.weight")
        yield Name(f"{ours}.look.kv.bias", (f"{v}.bias",), lambda v: torch.cat([torch.zeros_like(v), v]),
                   lambda x: x.chunk(2)[1:])


def _without_k(q: Tensor, v: Tensor) -> Tensor:
    """Keys have no bias: it would be the same to all of them, and softmax does not see it."""
    return torch.cat([q, torch.zeros_like(q), v])


def _of_ctranslate2(config: Config) -> Iterator[Name]:
    yield same(f"{SAID}.ids.weight", "decoder/embeddings/weight")
    yield same(f"{SAID}.ids.weight", "decoder/projection/weight", optional=True)
    yield same(f"{SAID}.places", "decoder/position_encodings/encodings")
    yield same(f"{SOUND}.embed.places", "encoder/position_encodings/encodings")
    for ours, theirs in (("first", "conv1"), ("second", "conv2")):
        yield from _pair(f"{SOUND}.embed.{ours}", f"encoder/{theirs}")
    for side, trunk in (("encoder", f"{SOUND}.trunk"), ("decoder", "trunk")):
        yield from _norm(f"{trunk}.last", f"{side}/layer_norm")
        for i in range(config[f"{side}_layers"]):
            yield from _fused(f"{trunk}.blocks.{i}", f"{side}/layer_{i}", side)


def _fused(ours: str, theirs: str, side: str) -> Iterator[Name]:
    """A layer whose q, k and v lie as ours do."""
    yield from _norm(f"{ours}.norm", f"{theirs}/self_attention/layer_norm")
    yield from _norm(f"{ours}.mlp_norm", f"{theirs}/ffn/layer_norm")
    layers = {"attention.qkv": "self_attention/linear_0", "attention.out": "self_attention/linear_1",
              "mlp.up": "ffn/linear_0", "mlp.down": "ffn/linear_1"}
    if side == "decoder":
        yield from _norm(f"{ours}.look_norm", f"{theirs}/attention/layer_norm")
        layers |= {"look.q": "attention/linear_0", "look.kv": "attention/linear_1", "look.out": "attention/linear_2"}
    for mine, other in layers.items():
        yield from _pair(f"{ours}.{mine}", f"{theirs}/{other}")


def _pair(ours: str, theirs: str) -> list[Name]:
    return [same(f"{ours}.{part}", f"{theirs}/{part}") for part in ("weight", "bias")]


def _norm(ours: str, theirs: str) -> list[Name]:
    return [same(f"{ours}.weight", f"{theirs}/gamma"), same(f"{ours}.bias", f"{theirs}/beta")]


def senses(config: Config, opened: Opened) -> Senses:
    """Sounds, in windows of so many seconds as there are places for; and the words that are made of them."""
    said = script(opened, config["max_target_positions"])
    return {} if said is None else {"audio": Audio(mels=config["num_mel_bins"]), "text": said}


def verbs(module: nn.Module, senses: Senses) -> Verbs:
    """`generate`, where there is a tokenizer."""
    assert isinstance(module, Decoder)
    return {"generate": Transcriber(module, senses)} if senses else {}


WHISPER = Published("whisper", recognise, build, names, senses, verbs, unused=("decoder/alignment_heads",))
