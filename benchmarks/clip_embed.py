"""Embed images and texts with CLIP ViT-B/32, compared with open_clip on the same weights.

    PYTHONPATH=src python benchmarks/clip_embed.py [--threads 2] [--rounds 5] [--batch 16]

Images of 224 pixels; texts of 8 to 22 tokens, which open_clip's tokenizer pads to 77.
"""

import argparse
import copy
from collections.abc import Callable

import peers
import torch
from clip_train import END, START, VOCAB, copy_weights, linear_backends
from torch import Tensor, nn

from sensorium.modalities.image import PatchEmbedding
from sensorium.modalities.text import Text, TextEmbedding
from sensorium.models.int8 import quantize_int8
from sensorium.models.towers import Encoder, Tower, Towers
from sensorium.nn.cpu_dispatch import configure_allocator
from sensorium.nn.projection import LinearProjection
from sensorium.nn.transformer import build_transformer

SIZE, PATCH, LENGTH, OUT = 224, 32, 77, 512


def inputs(size: int) -> tuple[Tensor, Tensor]:
    """Return noise for images, and texts of 8 to 22 tokens."""
    rng = torch.Generator().manual_seed(0)
    texts, ends = (
        torch.randint(1, VOCAB - 408, (size, LENGTH), generator=rng),
        7 + torch.arange(size) % 15,
    )
    texts[:, 0] = START
    texts[torch.arange(size), ends] = END
    return torch.randn(size, 3, SIZE, SIZE, generator=rng), texts * (
        torch.arange(LENGTH) <= ends[:, None]
    )


def theirs() -> nn.Module:
    """Return open_clip's model."""
    peers.allow_torchvision()
    import open_clip

    torch.manual_seed(0)
    return open_clip.create_model("ViT-B-32", pretrained=None).eval()


def ours(source: nn.Module) -> Towers:
    """Return Sensorium's model with the weights of open_clip's."""
    vision = Encoder(
        PatchEmbedding(768, SIZE, PATCH), build_transformer(768, 12, 12, input_norm=True)
    )
    text = Text(length=LENGTH, vocab_size=VOCAB, start=START, end=END)
    text_encoder = Encoder(TextEmbedding(512, text), build_transformer(512, 12, 8))
    towers = {
        "image": Tower(vision, LinearProjection(768, OUT), OUT),
        "text": Tower(text_encoder, LinearProjection(512, OUT), OUT),
    }
    return copy_weights(source, Towers(towers)).eval()


def contestants(kind: str, size: int) -> dict[str, Callable[[], Tensor]]:
    """Return a function per library that gives unit embeddings of images or of texts."""
    batch = inputs(size)[0 if kind == "image" else 1]
    source = theirs()
    model = ours(source)
    encode = source.encode_image if kind == "image" else source.encode_text

    def bf16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model[kind](batch)

    small = quantize_int8(copy.deepcopy(model[kind]))
    return {
        "open_clip": lambda: encode(batch, normalize=True),
        "sensorium": lambda: model[kind](batch),
        "sensorium bf16": bf16,
        "sensorium int8": lambda: small(batch),
    }


@torch.inference_mode()
def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, default in (("--threads", 2), ("--rounds", 5), ("--batch", 16)):
        parser.add_argument(option, type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    configure_allocator()  # for both, as they share a process
    peers.record("clip_embed", **peers.machine(), **linear_backends(), batch=args.batch)
    for kind in ("image", "text"):
        calls = contestants(kind, args.batch)
        expected = calls["open_clip"]()
        for name in list(calls)[1:]:
            output = calls[name]()
            peers.record(
                "clip_embed",
                kind=kind,
                name=name,
                apart=(output - expected).abs().max().item(),
                cosine=(output * expected).sum(1).min().item(),
            )
        peers.compare(
            f"clip_embed_{kind}", peers.paired(calls, args.rounds, warm=1), ("open_clip",)
        )


if __name__ == "__main__":
    main()
