"""Decode 32 tokens of 10 seconds of audio in Whisper tiny's shape, compared with transformers.

    PYTHONPATH=src python benchmarks/whisper.py [--threads 1] [--rounds 5]

Weights are random, and the same for both. transformers reads 30 s, the rest silence, as its encoder
demands; Sensorium the same (`same`: the share of equal ids), and 10 s alone, also with bf16 and
int8 weights. A round is from mel bands to ids; bands are computed before.
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
from sensorium.nn.kv_cache import KVCache
from sensorium.nn.linear import transpose_weights
from sensorium.pretrained.weight_mapping import load_into
from sensorium.pretrained.whisper import WHISPER

MELS, FRAMES, SECONDS, NEW = 80, 100, 10, 32


def theirs() -> nn.Module:
    """Return transformers' Whisper."""
    peers.allow_torchvision()
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        suppress_tokens=None,
        begin_suppress_tokens=None,
        eos_token_id=None,
        pad_token_id=0,
        decoder_start_token_id=1,
        forced_decoder_ids=None,
    )
    return WhisperForConditionalGeneration(config).eval()


def ours(source: nn.Module) -> Decoder:
    """Return Sensorium's Whisper with the same weights."""
    config = vars(source.config) | {"model_type": "whisper", "layout": "safetensors"}
    model = WHISPER.build_module(config)
    assert isinstance(model, Decoder)
    load_into(model, source.state_dict(), WHISPER.map_weights(config))
    return model.eval()


def decode(model: Decoder, mels: Tensor) -> Tensor:
    """Return the NEW greedy ids after the first."""
    cache, ids = KVCache(1 + NEW), torch.ones(1, dtype=torch.long)
    logits, out = (
        model.prefill({"audio": mels, "text": ids[:, None]}, "text", cache),
        list[Tensor](),
    )
    while True:
        out.append(ids := logits.argmax(1))
        if len(out) == NEW:
            return torch.stack(out, 1)
        logits = model.decode_step("text", ids, torch.full_like(ids, cache.length), cache)


@torch.inference_mode()
def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    configure_allocator()  # for both, as they share a process
    source = theirs()
    model, silence = ours(source), torch.full((1, MELS, 30 * FRAMES), -0.5)
    mels = torch.cat([torch.randn(1, MELS, SECONDS * FRAMES), silence[..., SECONDS * FRAMES :]], 2)

    def transformers() -> Tensor:
        return source.generate(
            mels, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, num_beams=1
        )[:, -NEW:]

    bf16, int8, short = (
        copy.deepcopy(model).bfloat16(),
        quantize_int8(copy.deepcopy(model)),
        mels[..., : SECONDS * FRAMES],
    )
    transpose_weights(model)  # as `sensorium.loading` does
    calls: dict[str, Callable[[], Tensor]] = {
        "transformers": transformers,
        "sensorium, 30 s": lambda: decode(model, mels),
        "sensorium, 10 s": lambda: decode(model, short),
        "sensorium bf16, 10 s": lambda: decode(bf16, short.bfloat16()),
        "sensorium int8, 10 s": lambda: decode(int8, short),
    }
    same = (calls["sensorium, 30 s"]() == transformers()).float().mean().item()
    peers.record("whisper", **peers.machine(), same=same, new=NEW)
    peers.compare("whisper", peers.paired(calls, args.rounds, warm=1), ("transformers",))


if __name__ == "__main__":
    main()
