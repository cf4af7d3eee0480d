"""GPT-2 (Radford et al. 2019) as transformers stores it: matrices transposed, one for queries, keys and values."""
from collections.abc import Iterator

from sensorium.models import Decoder
from sensorium.published.decoder import Ids, writer
from sensorium.published.files import Opened
from sensorium.published.parts import Shape, affine
from sensorium.published.published import Config, Name, Published, same, turned
from sensorium.published.write import senses, verbs

PARTS = {"norm": "ln_1", "mlp_norm": "ln_2"}                                            # ours: theirs
PRODUCTS = {"attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj", "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj"}


def recognise(opened: Opened) -> Config | None:
    """Its config, with "prefix": the first published files leave "transformer." out of every name."""
    if opened.config.get("model_type") != "gpt2" or opened.layout != "safetensors":
        return None
    return {**opened.config, "prefix": "transformer." if "transformer.wte.weight" in opened.tensors else ""}


def build(config: Config) -> Decoder:
    dim, depth = config["n_embd"], config["n_layer"]
    shape = Shape(dim, depth, config["n_head"], config.get("n_inner") or 4 * dim,
                  config.get("activation_function", "gelu_new"), config.get("layer_norm_epsilon", 1e-5))
    return writer(Ids(config["vocab_size"], dim, config["n_positions"]), shape.trunk())


def names(config: Config) -> Iterator[Name]:
    prefix = config.get("prefix", "transformer.")
    yield same("parts.text.ids.weight", f"{prefix}wte.weight")
    yield same("parts.text.ids.weight", "lm_head.weight", optional=True)
    yield same("parts.text.places", f"{prefix}wpe.weight")
    yield from affine("trunk.last", f"{prefix}ln_f")
    for i in range(config["n_layer"]):
        ours, theirs = f"trunk.blocks.{i}", f"{prefix}h.{i}"
        for mine, other in PARTS.items():
            yield from affine(f"{ours}.{mine}", f"{theirs}.{other}")
        for mine, other in PRODUCTS.items():
            yield turned(f"{ours}.{mine}.weight", f"{theirs}.{other}.weight")
            yield same(f"{ours}.{mine}.bias", f"{theirs}.{other}.bias")


GPT2 = Published("gpt2", recognise, build, names, verbs=verbs, unused=("*.attn.bias", "*.attn.masked_bias"),
                 senses=lambda config, opened: senses(opened, config["n_positions"], config.get("eos_token_id", 50256)))
