"""Time text and image generation token by token, compared with dalle-pytorch and transformers.

    export PYTHONPATH=src
    python benchmarks/generation_speed.py image    256 image tokens for 32 text tokens
    python benchmarks/generation_speed.py step     a training step on 4 such rows
    python benchmarks/generation_speed.py text     128 tokens by a GPT-2 of 10 M

Batch 1. The decoder has width 256 and 6 blocks of 4 heads with gated feed-forward (dalle-pytorch's
shape). Its `use_cache=True` never reaches its attention in 1.6.6: that is how it is timed. float32
unless a name says bf16.
"""

import argparse
import sys
import types

import peers
import torch
from torch import Tensor, nn

from sensorium.modalities.text import PaddedTokenEmbedding, Text, TextEmbedding
from sensorium.models.decoder import Decoder
from sensorium.nn.attention import Attention
from sensorium.nn.cpu_dispatch import configure_allocator
from sensorium.nn.linear import Linear, transpose_weights
from sensorium.nn.tokens import CAUSAL, Batch, Tokens, sequence_positions
from sensorium.nn.transformer import Block, FeedForward, GatedFeedForward, Transformer
from sensorium.objectives.autoregressive import NextTokenLoss, SamplingConfig, generate

TEXT_VOCAB, LENGTH, CODES, CELLS, DIM, DEPTH, HEADS = 1000, 32, 1024, 256, 256, 6, 4
VOCAB, CONTEXT, NEW, PROMPT = 8192, 512, 128, 16


class Line(nn.Module):
    """Image tokens without images."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding, self.position_embedding = (
            nn.Embedding(CODES + 1, DIM),
            nn.Parameter(torch.randn(CELLS + 1, DIM) * 0.02),
        )

    def tokenize(self, raw: Tensor) -> Tensor:
        return nn.functional.pad(raw, (1, 0), value=CODES)

    def forward(self, ids: Tensor) -> Tokens:
        x = self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]
        return Tokens(x, sequence_positions(x), CAUSAL)

    def embed_at(self, ids: Tensor, positions: Tensor) -> Tokens:
        x = self.token_embedding(ids) + self.position_embedding[positions]
        return Tokens(x, sequence_positions(x), CAUSAL)


def dalle_decoder() -> Decoder:
    """Return Sensorium's DALL-E in dalle-pytorch's shape."""
    blocks = [
        Block(
            Attention(DIM, HEADS),
            GatedFeedForward(DIM, 4 * DIM, nn.GELU()),
            (nn.LayerNorm(DIM), nn.LayerNorm(DIM)),
        )
        for _ in range(DEPTH)
    ]
    text = PaddedTokenEmbedding(DIM, Text(length=LENGTH, vocab_size=TEXT_VOCAB))
    return Decoder(
        {"text": text, "image": Line()},
        {"text": Linear(DIM, text.vocab_size), "image": Linear(DIM, CODES)},
        Transformer(blocks, final_norm=nn.LayerNorm(DIM)),
    )


def dalle_pytorch() -> nn.Module:
    """Return the peer, with stubs for imports that cannot be installed."""
    for name in ("taming", "taming.models", "taming.models.vqgan", "pkg_resources", "youtokentome"):
        sys.modules.setdefault(name, types.ModuleType(name))
    vars(sys.modules["taming.models.vqgan"]).update(VQModel=object, GumbelVQ=object)
    vars(sys.modules["pkg_resources"]).update(
        get_distribution=lambda name: types.SimpleNamespace(version="1.6.6")
    )
    from dalle_pytorch import DALLE, DiscreteVAE

    vae = DiscreteVAE(
        image_size=128, num_layers=3, num_tokens=CODES, codebook_dim=64, hidden_dim=16
    )
    return DALLE(
        dim=DIM,
        vae=vae,
        num_text_tokens=TEXT_VOCAB,
        text_seq_len=LENGTH,
        depth=DEPTH,
        heads=HEADS,
        dim_head=64,
        rotary_emb=False,
        shift_tokens=False,
        attn_types=("full",),
    )


def image(rounds: int) -> None:
    """Time 256 image tokens."""
    text, ours, theirs = (
        torch.randint(3, TEXT_VOCAB, (1, LENGTH)),
        dalle_decoder().eval(),
        dalle_pytorch().eval(),
    )
    transpose_weights(ours)  # as `sensorium.loading` does
    inputs, sampling = (
        Batch({"text": text, "image": torch.full((1, 1), CODES)}),
        SamplingConfig(top_k=CODES // 2),
    )
    calls = {
        "dalle-pytorch": lambda: theirs.generate_images(text, use_cache=True),
        "sensorium": lambda: list(generate(ours, inputs, "image", CELLS, sampling)),
    }
    peers.compare("generation_image", peers.paired(calls, rounds, warm=1), ("dalle-pytorch",))


def step(rounds: int) -> None:
    """Time forward, backward and AdamW on given image tokens."""
    text, codes = torch.randint(3, TEXT_VOCAB, (4, LENGTH)), torch.randint(0, CODES, (4, CELLS))
    ours, theirs = dalle_decoder().train(), dalle_pytorch().train()
    objective = NextTokenLoss({"text": "text", "image": "image"}, {"text": 1.0, "image": 7.0})

    def stepped(model: nn.Module, loss: object, bf16: bool = False) -> object:
        trained = [p for name, p in model.named_parameters() if not name.startswith("vae")]
        optimizer = torch.optim.AdamW(trained, lr=3e-4, fused=model is ours)

        def once() -> float:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            return value.item()

        return once

    tokens = Batch({"text": text, "image": codes})
    calls = {
        "dalle-pytorch": stepped(theirs, lambda: theirs(text, codes, return_loss=True)),
        "sensorium": stepped(ours, lambda: objective(ours, tokens)["model"]),
        "sensorium bf16": stepped(ours, lambda: objective(ours, tokens)["model"], bf16=True),
    }
    peers.compare("generation_step", peers.paired(calls, rounds, warm=1), ("dalle-pytorch",))


def text(rounds: int) -> None:
    """Time 128 greedy tokens after 16 in GPT-2's layout with 10 M parameters."""
    peers.allow_torchvision()
    from transformers import GPT2Config, GPT2LMHeadModel

    ids, dim, depth = torch.randint(3, VOCAB, (1, PROMPT)), 256, 10
    blocks = [
        Block(
            Attention(dim, 4),
            FeedForward(dim, 4 * dim, nn.GELU("tanh")),
            (nn.LayerNorm(dim), nn.LayerNorm(dim)),
        )
        for _ in range(depth)
    ]
    ours = Decoder(
        {"text": TextEmbedding(dim, Text(length=CONTEXT, vocab_size=VOCAB))},
        {"text": Linear(dim, VOCAB, bias=False)},
        Transformer(blocks, final_norm=nn.LayerNorm(dim)),
    ).eval()
    transpose_weights(ours)  # as `sensorium.loading` does
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_embd=dim,
            n_layer=depth,
            n_head=4,
            n_positions=CONTEXT,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    options = {
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "do_sample": False,
        "pad_token_id": 0,
        "use_cache": True,
        "attention_mask": torch.ones_like(ids),
    }
    calls = {
        "transformers": lambda: theirs.generate(ids, **options),
        "sensorium": lambda: list(
            generate(ours, Batch({"text": ids}), "text", NEW, SamplingConfig(temperature=0))
        ),
    }
    peers.compare("generation_text", peers.paired(calls, rounds, warm=1), ("transformers",))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("image", "step", "text"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    configure_allocator()
    peers.record("machine", **peers.machine())
    torch.manual_seed(0)
    {"image": image, "step": step, "text": text}[args.what](args.rounds)
