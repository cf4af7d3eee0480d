"""Time a CLIP training step, compared with open_clip on the same weights and batch.

    PYTHONPATH=src python benchmarks/clip_train.py [--threads 2] [--rounds 7] [--batch 128]
    ... --curve 200    loss over 200 steps, Sensorium's against open_clip's
    ... --rss          peak memory of each, in separate processes
    ... --ways         Sensorium with each kernel choice
    ... --profile NAME profile of one of them

14.1 M parameters: images of 64 pixels in patches of 8, width 192, 6 blocks; captions of 6 to 20
tokens, 4 blocks.
"""

import argparse
import os
from collections.abc import Callable

import peers
import torch
from torch import Tensor, nn

from sensorium.data.schema import Column, Schema
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.models.towers import Towers
from sensorium.nn.cpu_dispatch import LINEAR_BACKENDS, configure_allocator, linear_backend
from sensorium.nn.tokens import Batch
from sensorium.recipes.clip import clip

VOCAB, START, END, LENGTH, SIZE = 49408, 49406, 49407, 32, 64
BASE = "open_clip fp32"
NAMES = (BASE, "open_clip bf16", "sensorium fp32", "sensorium bf16")
Step = Callable[[Tensor, Tensor], float]


def linear_backends() -> dict[str, str]:
    """Return how Sensorium computes matrix products here, for the record."""
    return {
        "fp32_backend": linear_backend(torch.float32),
        "bf16_backend": linear_backend(torch.bfloat16),
    }


def batch(size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noise for images, and captions of 6 to 20 tokens (13 on average), padded to 32."""
    texts = torch.randint(1, VOCAB - 408, (size, LENGTH), generator=rng)
    ends = 5 + torch.arange(size) % 15
    texts[:, 0] = START
    texts[torch.arange(size), ends] = END
    return torch.randn(size, 3, SIZE, SIZE, generator=rng), texts * (
        torch.arange(LENGTH) <= ends[:, None]
    )


def theirs() -> nn.Module:
    """Return open_clip's CLIP of that size."""
    peers.allow_torchvision()
    from open_clip.model import CLIP

    return CLIP(
        embed_dim=256,
        vision_cfg={
            "image_size": SIZE,
            "patch_size": 8,
            "width": 192,
            "layers": 6,
            "head_width": 64,
        },
        text_cfg={
            "context_length": LENGTH,
            "vocab_size": VOCAB,
            "width": 192,
            "heads": 3,
            "layers": 4,
        },
    )


def ours() -> Towers:
    """Return Sensorium's recipe of that size."""
    text = Text(length=LENGTH, vocab_size=VOCAB, start=START, end=END)
    schema = Schema({"image": Column("image", Image(size=SIZE)), "text": Column("text", text)})
    recipe = clip(schema, size="base")
    assert isinstance(recipe.model, Towers)
    recipe.model.objective = recipe.objective  # stored on the model for `step_of`
    return recipe.model


def copy_weights(source: nn.Module, into: Towers) -> Towers:
    """Copy open_clip's weights into our model."""
    theirs = source.state_dict()
    into.load_state_dict(
        {
            name: theirs[old].reshape(value.shape) if not transposed else theirs[old].T.contiguous()
            for name, value in into.state_dict().items()
            for old, transposed in [counterpart(name)]
        }
    )
    return into


def counterpart(name: str) -> tuple[str, bool]:
    """Return open_clip's name of one of our weights, and whether it is stored transposed."""
    if name == "logit_scale":
        return name, False
    tower, _, rest = name.partition(".")
    is_image = tower == "image"
    if rest == "projection.weight":
        return ("visual.proj" if is_image else "text_projection"), True
    fixed = {
        "embed.projection.weight": "visual.conv1.weight",
        "embed.cls_token": "visual.class_embedding",
        "embed.token_embedding.weight": "token_embedding.weight",
        "embed.position_embedding": "visual.positional_embedding"
        if is_image
        else "positional_embedding",
    }
    rest = rest.removeprefix("encoder.")
    if rest in fixed:
        return fixed[rest], False
    rest = rest.removeprefix("trunk.")
    for new, old in (
        ("input_norm.", "ln_pre."),
        ("final_norm.", "ln_post." if is_image else "ln_final."),
        ("blocks.", "transformer.resblocks."),
        (".norm.", ".ln_1."),
        (".mlp_norm.", ".ln_2."),
        (".attention.qkv.", ".attn.in_proj_"),
        (".attention.out.", ".attn.out_proj."),
        (".mlp.up.", ".mlp.c_fc."),
        (".mlp.down.", ".mlp.c_proj."),
    ):
        rest = rest.replace(new, old)
    return ("visual." if is_image else "") + rest, False


def step_of(name: str, model: nn.Module, lr: float) -> Step:
    """Return one training step.

    open_clip in fp32 has torch's default AdamW, the others the fused one; all else is equal.
    """
    if isinstance(model, Towers):

        def loss(images: Tensor, texts: Tensor) -> Tensor:
            return model.objective(model, Batch({"image": images, "text": texts}))["model"]
    else:
        from open_clip import ClipLoss

        contrast = ClipLoss()

        def loss(images: Tensor, texts: Tensor) -> Tensor:
            return contrast(*model(images, texts))

    optimizer = torch.optim.AdamW(
        model.train().parameters(), lr=lr, fused=True if name != BASE else None
    )

    def step(images: Tensor, texts: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in name):
            value = loss(images, texts)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def build(name: str, lr: float = 1e-3) -> Step:
    """Return the step of one contestant; all have the same weights."""
    torch.manual_seed(0)
    source = theirs()
    return step_of(
        name, source if name.startswith("open_clip") else copy_weights(source, ours()), lr
    )


def contestant(name: str, size: int, settle: bool) -> Callable[[], float]:
    """Return a step on one batch.

    Only Sensorium keeps freed memory, as in a training run, unless `settle` grants it to all.
    "sensorium bf16 by widen" forces a kernel choice.
    """
    name, _, forced = name.partition(" by ")
    if forced:
        os.environ["SENSORIUM_KERNELS"] = forced
    if settle or name.startswith("sensorium"):
        configure_allocator()
    step, args = build(name), batch(size, torch.Generator().manual_seed(0))
    return lambda: step(*args)


def time_steps(names: list[str], size: int, rounds: int, settle: bool) -> None:
    """Time a step of each contestant in its own process, in alternating rounds."""
    calls = {name: peers.Apart(contestant, name, size, settle) for name in names}
    for name, call in calls.items():
        call.seconds()
        peers.record("clip_train", name=name, first_loss=call.value)
    seconds = peers.paired(calls, rounds)
    peers.compare(
        "clip_train",
        seconds,
        tuple(n for n in names if n.startswith("open_clip")) or tuple(names[:1]),
    )


def curve(names: list[str], size: int, steps: int) -> None:
    """Record how far the losses diverge over a run, each name against the first.

    Four repeated batches, which the models memorize: on fresh noise the loss stays at log B and any
    two models agree. The learning rate is a tenth of the timed one, as there is no warm-up.
    """
    rng, losses = torch.Generator().manual_seed(0), {}
    batches = [batch(size, rng) for _ in range(4)]
    for name in names:
        step = build(name, lr=1e-4)
        losses[name] = [step(*batches[i % 4]) for i in range(steps)]
    for name in names[1:]:
        apart = [abs(a - b) for a, b in zip(losses[name], losses[names[0]], strict=True)]
        peers.record(
            "clip_curve",
            name=name,
            against=names[0],
            steps=steps,
            batch=size,
            first=losses[name][0],
            last=losses[name][-1],
            apart_first=apart[0],
            apart_most=max(apart),
            at=apart.index(max(apart)),
        )


def memory(names: list[str], size: int) -> None:
    """Record peak memory after four steps, with freed memory returned to the system and kept."""
    for name in names:
        for settle in (False, True):
            call = peers.Apart(_peak_of, name, size, settle)
            call.seconds()
            peers.record("clip_rss", name=name, batch=size, settled=settle, peak_mb=call.value)


def _peak_of(name: str, size: int, settle: bool) -> Callable[[], float]:
    if settle:
        configure_allocator()
    step, args = build(name), batch(size, torch.Generator().manual_seed(0))
    for _ in range(4):
        step(*args)
    return peers.peak_mb


def profile(name: str, size: int) -> None:
    """Print a profile of one step."""
    call = contestant(name, size, False)
    call(), call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    print(
        profiler.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=50
        )
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", default=",".join(NAMES))
    for option, default in (("--threads", 2), ("--rounds", 7), ("--batch", 128), ("--curve", 0)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument(
        "--settle", action="store_true", help="all contestants keep freed memory, as Sensorium does"
    )
    parser.add_argument("--rss", action="store_true")
    parser.add_argument("--ways", action="store_true")
    parser.add_argument("--profile")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = args.names.split(",")
    peers.record("clip_train", **peers.machine(), **linear_backends(), settle=args.settle)
    if args.profile:
        profile(args.profile, args.batch)
    elif args.curve:
        curve([n for n in names if "fp32" in n], args.batch, args.curve)
    elif args.ways:
        time_steps(
            [f"sensorium {p} by {w}" for p in ("fp32", "bf16") for w in LINEAR_BACKENDS],
            args.batch,
            args.rounds,
            True,
        )
    elif args.rss:
        memory(names, args.batch)
    else:
        time_steps(names, args.batch, args.rounds, args.settle)


if __name__ == "__main__":
    main()
