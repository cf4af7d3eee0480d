"""How fast words and pictures are said, token by token: beside dalle-pytorch, and beside Hugging Face's `generate`.

    PYTHONPATH=src python benchmarks/generation_speed.py image    a picture of 256 codes for 32 words, batch 1
    PYTHONPATH=src python benchmarks/generation_speed.py step     a training step on 4 of them
    PYTHONPATH=src python benchmarks/generation_speed.py text     128 tokens by a GPT-2 of 10 M parameters, batch 1

The line of words and codes is 256 wide, 6 blocks of 4 heads with gated feed-forward (dalle-pytorch's shape). Its
`use_cache=True` never reaches its attention in 1.6.6: that is how it is timed. float32 unless a name says bf16.
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

WORDS, LENGTH, CODES, CELLS, DIM, DEPTH, HEADS = 1000, 32, 1024, 256, 256, 6, 4
VOCAB, CONTEXT, NEW, PROMPT = 8192, 512, 128, 16


class Line(nn.Module):
    """Codes without pictures: what `Cells` does, for any number of them."""

    def __init__(self) -> None:
        super().__init__()
        self.ids, self.places = (
            nn.Embedding(CODES + 1, DIM),
            nn.Parameter(torch.randn(CELLS + 1, DIM) * 0.02),
        )

    def spelt(self, raw: Tensor) -> Tensor:
        return nn.functional.pad(raw, (1, 0), value=CODES)

    def forward(self, ids: Tensor) -> Tokens:
        x = self.ids(ids) + self.places[: ids.shape[1]]
        return Tokens(x, sequence_positions(x), CAUSAL)

    def at(self, ids: Tensor, places: Tensor) -> Tokens:
        x = self.ids(ids) + self.places[places]
        return Tokens(x, sequence_positions(x), CAUSAL)


def painter() -> Decoder:
    """Sensorium's DALL-E in dalle-pytorch's shape."""
    blocks = [
        Block(
            Attention(DIM, HEADS),
            GatedFeedForward(DIM, 4 * DIM, nn.GELU()),
            (nn.LayerNorm(DIM), nn.LayerNorm(DIM)),
        )
        for _ in range(DEPTH)
    ]
    words = PaddedTokenEmbedding(DIM, Text(length=LENGTH, vocab_size=WORDS))
    return Decoder(
        {"text": words, "image": Line()},
        {"text": Linear(DIM, words.vocab_size), "image": Linear(DIM, CODES)},
        Transformer(blocks, final_norm=nn.LayerNorm(DIM)),
    )


def dalle_pytorch() -> nn.Module:
    """The peer. What it imports for VQGAN and its tokenizers, and cannot be installed any more, is left empty."""
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
        num_text_tokens=WORDS,
        text_seq_len=LENGTH,
        depth=DEPTH,
        heads=HEADS,
        dim_head=64,
        rotary_emb=False,
        shift_tokens=False,
        attn_types=("full",),
    )


def image(rounds: int) -> None:
    """Milliseconds of 256 codes."""
    text, ours, theirs = (
        torch.randint(3, WORDS, (1, LENGTH)),
        painter().eval(),
        dalle_pytorch().eval(),
    )
    transpose_weights(ours)  # as `sensorium.loading` does
    given, how = (
        Batch({"text": text, "image": torch.full((1, 1), CODES)}),
        SamplingConfig(top_k=CODES // 2),
    )
    calls = {
        "dalle-pytorch": lambda: theirs.generate_images(text, use_cache=True),
        "sensorium": lambda: list(generate(ours, given, "image", CELLS, how)),
    }
    peers.compare("generation_image", peers.paired(calls, rounds, warm=1), ("dalle-pytorch",))


def step(rounds: int) -> None:
    """Milliseconds of forward, backward and AdamW, codes given."""
    text, codes = torch.randint(3, WORDS, (4, LENGTH)), torch.randint(0, CODES, (4, CELLS))
    ours, theirs = painter().train(), dalle_pytorch().train()
    objective = NextTokenLoss({"text": "text", "image": "image"}, {"text": 1.0, "image": 7.0})

    def stepped(model: nn.Module, loss: object, bf16: bool = False) -> object:
        learned = [p for name, p in model.named_parameters() if not name.startswith("vae")]
        optimizer = torch.optim.AdamW(learned, lr=3e-4, fused=model is ours)

        def once() -> float:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            return value.item()

        return once

    said = Batch({"text": text, "image": codes})
    calls = {
        "dalle-pytorch": stepped(theirs, lambda: theirs(text, codes, return_loss=True)),
        "sensorium": stepped(ours, lambda: objective(ours, said)["model"]),
        "sensorium bf16": stepped(ours, lambda: objective(ours, said)["model"], bf16=True),
    }
    peers.compare("generation_step", peers.paired(calls, rounds, warm=1), ("dalle-pytorch",))


def text(rounds: int) -> None:
    """Milliseconds of 128 greedy tokens after 16, GPT-2's layout, 10 M parameters."""
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
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("what", choices=("image", "step", "text"))
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--threads", type=int, default=1)
    given = asked.parse_args()
    torch.set_num_threads(given.threads)
    configure_allocator()
    peers.record("machine", **peers.machine())
    torch.manual_seed(0)
    {"image": image, "step": step, "text": text}[given.what](given.rounds)
