"""BERT (Devlin et al. 2018) and MiniLM as sentence encoders, in Hugging Face's and sentence-transformers' layout.

    B batch   T tokens   D width
"""
import json
from dataclasses import replace
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from sensorium.attention import Attention
from sensorium.errors import SensoriumError
from sensorium.models import Encoder, Tower
from sensorium.published.files import Opened
from sensorium.published.parts import Names, activation, affine
from sensorium.published.published import Config, Published, Senses, same, stacked
from sensorium.published.senses import embedding, present, words
from sensorium.tokens import Tokens, line
from sensorium.transformer import FeedForward, PostNormBlock, Transformer

DEFAULT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
           "hidden_act": "gelu", "layer_norm_eps": 1e-12, "vocab_size": 30522, "max_position_embeddings": 512,
           "type_vocab_size": 2, "pad_token_id": 0}
UNUSED = ("*position_ids", "pooler.*", "cls.*")         # places, and heads of the tasks it was trained on
PARTS = ("Transformer", "Pooling", "Normalize")         # of a sentence encoder, that are hosted


class TypedWords(nn.Module):
    """Ids → Tokens: what a word says, where it stands, and that it belongs to the first of two texts."""

    def __init__(self, dim: int, vocab_size: int, length: int, types: int, pad: int):
        super().__init__()
        self.ids, self.places, self.types = (nn.Embedding(n, dim) for n in (vocab_size, length, types))
        self.pad = pad

    def summary(self, ids: Int[Tensor, "B T"]) -> None:
        return None

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        x = self.ids(ids) + self.places.weight[:ids.shape[1]] + self.types.weight[0]
        return Tokens(x, line(x), valid=ids != self.pad)


class First(nn.Module):
    """The first token stands for all."""

    def forward(self, t: Tokens) -> Tokens:
        return Tokens(t.x[:, :1], t.pos[:, :1])


def build(config: Config) -> nn.ModuleDict:
    """One tower, `text`, whose vector is the mean of all words, or the first word's, as the pooling config says."""
    given = _filled(config)
    dim, eps = given["hidden_size"], given["layer_norm_eps"]
    blocks = [PostNormBlock(Attention(dim, given["num_attention_heads"]),
                            FeedForward(dim, given["intermediate_size"], activation(given["hidden_act"])),
                            (nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)))
              for _ in range(given["num_hidden_layers"])]
    read = TypedWords(dim, given["vocab_size"], given["max_position_embeddings"], given["type_vocab_size"],
                      given["pad_token_id"])
    encode = Encoder(read, Transformer(blocks, first=nn.LayerNorm(dim, eps=eps)), First() if config["first"] else None)
    return nn.ModuleDict({"text": Tower(encode, nn.Identity(), dim)})


def names(config: Config) -> Names:
    """Our names and theirs."""
    embed = [same(f"text.encode.embed.{ours}.weight", f"{config['prefix']}embeddings.{theirs}_embeddings.weight")
             for ours, theirs in (("ids", "word"), ("places", "position"), ("types", "token_type"))]
    return [*embed, *affine("text.encode.trunk.first", f"{config['prefix']}embeddings.LayerNorm"),
            *(name for i in range(_filled(config)["num_hidden_layers"])
              for name in _block(f"text.encode.trunk.blocks.{i}", f"{config['prefix']}encoder.layer.{i}"))]


def _block(ours: str, theirs: str) -> Names:
    qkv = [stacked(f"{ours}.attention.qkv.{part}",
                   *(f"{theirs}.attention.self.{x}.{part}" for x in ("query", "key", "value")))
           for part in ("weight", "bias")]
    return [*qkv, *affine(f"{ours}.attention.out", f"{theirs}.attention.output.dense"),
            *affine(f"{ours}.norm", f"{theirs}.attention.output.LayerNorm"),
            *affine(f"{ours}.mlp.up", f"{theirs}.intermediate.dense"),
            *affine(f"{ours}.mlp.down", f"{theirs}.output.dense"),
            *affine(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm")]


def _filled(config: Config) -> dict[str, Any]:
    return {**DEFAULT, **config}


def senses(config: Config, opened: Opened) -> Senses:
    """Words as its tokenizer cuts them; at most as many as sentence-transformers would read."""
    given = _filled(config)
    read = words(opened, given["max_position_embeddings"], given["vocab_size"])
    most = opened.json("sentence_bert_config.json").get("max_seq_length")
    return present(text=read if read is None or not most else replace(read, length=most))


def _recognise(opened: Opened) -> Config | None:
    if opened.config.get("model_type") != "bert":
        return None
    if opened.config.get("position_embedding_type", "absolute") != "absolute":
        raise SensoriumError(f"{opened.place} is a BERT with relative positions, which is not hosted")
    prefix = "bert." if any(name.startswith("bert.") for name in opened.tensors) else ""
    return {**opened.config, "prefix": prefix, "first": pools_first(opened)}


def pools_first(opened: Opened) -> bool:
    """What the pooling config says: the first token, or the mean of all. Raises SensoriumError for anything else."""
    if odd := [kind for kind in _parts(opened) if kind not in PARTS]:
        raise SensoriumError(f"{opened.place}/modules.json adds a {odd[0]} to the encoder; hosted are "
                             f"{', '.join(PARTS)}")
    asked = {mode for mode, on in opened.json("1_Pooling/config.json").items()
             if mode.startswith("pooling_mode_") and on is True}
    if asked <= {"pooling_mode_mean_tokens"}:
        return False
    if asked == {"pooling_mode_cls_token"}:
        return True
    raise SensoriumError(f"{opened.place}/1_Pooling/config.json asks for {', '.join(sorted(asked))}; the mean or the "
                         "first token are read")


def _parts(opened: Opened) -> list[str]:
    """What sentence-transformers lines up: Transformer, Pooling, Normalize, ..."""
    if "modules.json" not in opened.files:
        return []
    try:
        return [str(part["type"]).rpartition(".")[2] for part in json.loads(opened.files["modules.json"].read_text())]
    except (ValueError, TypeError, KeyError) as e:
        raise SensoriumError(f"{opened.files['modules.json']} is no list of modules: {e!r}") from e


BERT = Published("bert", _recognise, build, names, senses, embedding, UNUSED)
