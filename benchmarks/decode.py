"""Decode greedily with int8 weights in GPT-2 small's shape, compared with transformers.

    PYTHONPATH=src python benchmarks/decode.py [--threads 2] [--rounds 3] [--batch 1] [--new 64]

Weights are random, and the same for both. A round continues from 16 tokens.
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
from sensorium.pretrained.gpt2 import GPT2
from sensorium.pretrained.weight_mapping import load_into

VOCAB, PROMPT = 50257, 16


def theirs() -> nn.Module:
    """Return transformers' GPT-2."""
    peers.allow_torchvision()
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=None, pad_token_id=0)).eval()


def ours(source: nn.Module) -> Decoder:
    """Return Sensorium's GPT-2 with the same weights."""
    config = vars(source.config) | {"model_type": "gpt2"}
    model = GPT2.build_module(config).eval()
    load_into(model, source.state_dict(), GPT2.map_weights(config))
    return model


def contestants(batch: int, new: int) -> dict[str, Callable[[], Tensor]]:
    """Return a function per library that gives generated ids."""
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
        output = source.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            use_cache=True,
        )
        return output[:, PROMPT:]

    def sensorium(model: Decoder) -> Callable[[], Tensor]:
        return lambda: torch.stack(
            list(generate(model, Batch({"text": ids}), "text", new, SamplingConfig(temperature=0))),
            1,
        )

    return {"transformers": hugging_face} | {
        f"sensorium{suffix}": sensorium(model) for suffix, model in models.items()
    }


@torch.inference_mode()
def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, default in (("--threads", 2), ("--rounds", 3), ("--batch", 1), ("--new", 64)):
        parser.add_argument(option, type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    configure_allocator()  # for both, as they share a process
    peers.record("decode", **peers.machine(), batch=args.batch, new=args.new)
    calls = contestants(args.batch, args.new)
    expected = calls["transformers"]()
    for name in list(calls)[1:]:
        peers.record(
            "decode",
            name=name,
            batch=args.batch,
            same=(calls[name]() == expected).float().mean().item(),
        )
    peers.compare(
        f"decode_{args.batch}", peers.paired(calls, args.rounds, warm=1), ("transformers",)
    )


if __name__ == "__main__":
    main()
