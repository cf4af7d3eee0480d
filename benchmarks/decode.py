"""Greedy decoding in GPT-2 small's shape with bytes for weights, beside Hugging Face's `generate` on the same weights.

    PYTHONPATH=src python benchmarks/decode.py [--threads 2] [--rounds 3] [--batch 1] [--new 64]

Weights are random, and the same for both: what they say is nonsense, and takes as long. A round goes on from 16 tokens.
"""

import argparse
import copy
from collections.abc import Callable

import peers
import torch
from torch import Tensor, nn

from sensorium.models.decoder import Decoder
from sensorium.models.int8 import quantize_int8
from sensorium.nn.cpu_dispatch import configure_allocator
from sensorium.nn.linear import transpose_weights
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import SamplingConfig, generate
from sensorium.pretrained.family import load_into
from sensorium.pretrained.gpt2 import GPT2

VOCAB, PROMPT = 50257, 16


def theirs() -> nn.Module:
    peers.allow_torchvision()
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=None, pad_token_id=0)).eval()


def ours(source: nn.Module) -> Decoder:
    config = vars(source.config) | {"model_type": "gpt2"}
    model = GPT2.build_module(config).eval()
    load_into(model, source.state_dict(), GPT2.map_weights(config))
    return model


def contestants(batch: int, new: int) -> dict[str, Callable[[], Tensor]]:
    """The ids that each says."""
    source, ids = (
        theirs(),
        torch.randint(VOCAB, (batch, PROMPT), generator=torch.Generator().manual_seed(0)),
    )
    plain = ours(source)
    models = {
        "": plain,
        " bf16": copy.deepcopy(plain).bfloat16(),
        " int8": quantize_int8(copy.deepcopy(plain)),
    }
    transpose_weights(plain)  # as `sensorium.loading` does

    def hugging_face() -> Tensor:
        said = source.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            use_cache=True,
        )
        return said[:, PROMPT:]

    def sensorium(model: Decoder) -> Callable[[], Tensor]:
        return lambda: torch.stack(
            list(generate(model, Batch({"text": ids}), "text", new, SamplingConfig(temperature=0))),
            1,
        )

    return {"transformers": hugging_face} | {
        f"sensorium{how}": sensorium(model) for how, model in models.items()
    }


@torch.inference_mode()
def main() -> None:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, default in (("--threads", 2), ("--rounds", 3), ("--batch", 1), ("--new", 64)):
        parse.add_argument(option, type=int, default=default)
    a = parse.parse_args()
    torch.set_num_threads(a.threads)
    configure_allocator()  # for both, as they share a process
    peers.record("decode", **peers.machine(), batch=a.batch, new=a.new)
    calls = contestants(a.batch, a.new)
    expected = calls["transformers"]()
    for name in list(calls)[1:]:
        peers.record(
            "decode",
            name=name,
            batch=a.batch,
            same=(calls[name]() == expected).float().mean().item(),
        )
    peers.compare(f"decode_{a.batch}", peers.paired(calls, a.rounds, warm=1), ("transformers",))


if __name__ == "__main__":
    main()
