"""A CLIP training step beside open_clip's: same weights, same batch, each as its user would run it.

    PYTHONPATH=src python benchmarks/clip_train.py [--threads 2] [--rounds 7] [--batch 128]
    ... --curve 200    the loss over 200 steps, ours against open_clip's
    ... --rss          peak memory of each, in processes of their own
    ... --ways         sensorium by each way of kernels.py
    ... --profile NAME where the time of one of them goes

14.1 M parameters: pictures of 64 pixels in patches of 8, 192 wide, 6 blocks; captions of 6 to 20 tokens, 4 blocks.
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


def ways() -> dict[str, str]:
    """How sensorium computes products here, for the record."""
    return {"fp32_way": linear_backend(torch.float32), "bf16_way": linear_backend(torch.bfloat16)}


def batch(size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise for pictures; captions of 6 to 20 tokens (13 on average), padded to 32."""
    texts = torch.randint(1, VOCAB - 408, (size, LENGTH), generator=rng)
    ends = 5 + torch.arange(size) % 15
    texts[:, 0] = START
    texts[torch.arange(size), ends] = END
    return torch.randn(size, 3, SIZE, SIZE, generator=rng), texts * (
        torch.arange(LENGTH) <= ends[:, None]
    )


def theirs() -> nn.Module:
    """open_clip's CLIP of that size."""
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
    """Sensorium's recipe of that size."""
    text = Text(length=LENGTH, vocab_size=VOCAB, start=START, end=END)
    schema = Schema({"image": Column("image", Image(size=SIZE)), "text": Column("text", text)})
    recipe = clip(schema, dim=192, image_layers=6, text_layers=4)
    assert isinstance(recipe.model, Towers)
    recipe.model.objective = recipe.objective  # kept beside the model for `step_of`
    return recipe.model


def copied(source: nn.Module, into: Towers) -> Towers:
    """open_clip's weights in our model."""
    theirs = source.state_dict()
    into.load_state_dict(
        {
            name: theirs[old].reshape(value.shape) if not turned else theirs[old].T.contiguous()
            for name, value in into.state_dict().items()
            for old, turned in [counterpart(name)]
        }
    )
    return into


def counterpart(name: str) -> tuple[str, bool]:
    """What open_clip calls one of our weights, and whether it keeps it transposed."""
    if name == "log_scale":
        return "logit_scale", False
    tower, _, rest = name.partition(".")
    eye = tower == "image"
    if rest == "align.weight":
        return ("visual.proj" if eye else "text_projection"), True
    fixed = {
        "embed.linear.weight": "visual.conv1.weight",
        "embed.whole": "visual.class_embedding",
        "embed.ids.weight": "token_embedding.weight",
        "embed.places": "visual.positional_embedding" if eye else "positional_embedding",
    }
    rest = rest.removeprefix("encode.")
    if rest in fixed:
        return fixed[rest], False
    rest = rest.removeprefix("trunk.")
    for new, old in (
        ("first.", "ln_pre."),
        ("last.", "ln_post." if eye else "ln_final."),
        ("blocks.", "transformer.resblocks."),
        (".norm.", ".ln_1."),
        (".mlp_norm.", ".ln_2."),
        (".attention.qkv.", ".attn.in_proj_"),
        (".attention.out.", ".attn.out_proj."),
        (".mlp.up.", ".mlp.c_fc."),
        (".mlp.down.", ".mlp.c_proj."),
    ):
        rest = rest.replace(new, old)
    return ("visual." if eye else "") + rest, False


def step_of(name: str, model: nn.Module, lr: float) -> Step:
    """One update. open_clip in fp32 has torch's default AdamW; the rest the fused one. Everything else is equal."""
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
    """The step of one contestant; the same weights for all."""
    torch.manual_seed(0)
    source = theirs()
    return step_of(name, source if name.startswith("open_clip") else copied(source, ours()), lr)


def contestant(name: str, size: int, settle: bool) -> Callable[[], float]:
    """A step on one batch. Only ours keeps freed memory, as a run of ours does, unless `settle` grants it to all.

    "sensorium bf16 by widen" has its way of computing products decided by hand.
    """
    name, _, forced = name.partition(" by ")
    if forced:
        os.environ["SENSORIUM_KERNELS"] = forced
    if settle or name.startswith("sensorium"):
        configure_allocator()
    step, given = build(name), batch(size, torch.Generator().manual_seed(0))
    return lambda: step(*given)


def time_steps(names: list[str], size: int, rounds: int, settle: bool) -> None:
    """Milliseconds of a step, each contestant in a process of its own, taking turns."""
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
    """How far the losses come apart over a run, each name against the first.

    Four batches in turn, which the models learn by heart: on fresh noise nothing is learned, the loss stays at log B
    and any two models agree. The rate is a tenth of the one that is timed, as there is no warm-up.
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
    """Peak memory after four steps, with freed memory given back to the system and kept."""
    for name in names:
        for settle in (False, True):
            call = peers.Apart(_peak_of, name, size, settle)
            call.seconds()
            peers.record("clip_rss", name=name, batch=size, settled=settle, peak_mb=call.value)


def _peak_of(name: str, size: int, settle: bool) -> Callable[[], float]:
    if settle:
        configure_allocator()
    step, given = build(name), batch(size, torch.Generator().manual_seed(0))
    for _ in range(4):
        step(*given)
    return peers.peak_mb


def profile(name: str, size: int) -> None:
    """A table of where the time of one step goes."""
    call = contestant(name, size, False)
    call(), call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        call()
    print(
        seen.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=50
        )
    )


def main() -> None:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("--names", default=",".join(NAMES))
    for option, default in (("--threads", 2), ("--rounds", 7), ("--batch", 128), ("--curve", 0)):
        parse.add_argument(option, type=int, default=default)
    parse.add_argument(
        "--settle", action="store_true", help="all contestants keep freed memory, as ours does"
    )
    parse.add_argument("--rss", action="store_true")
    parse.add_argument("--ways", action="store_true")
    parse.add_argument("--profile")
    a = parse.parse_args()
    torch.set_num_threads(a.threads)
    names = a.names.split(",")
    peers.record("clip_train", **peers.machine(), **ways(), settle=a.settle)
    if a.profile:
        profile(a.profile, a.batch)
    elif a.curve:
        curve([n for n in names if "fp32" in n], a.batch, a.curve)
    elif a.ways:
        time_steps(
            [f"sensorium {p} by {w}" for p in ("fp32", "bf16") for w in LINEAR_BACKENDS],
            a.batch,
            a.rounds,
            True,
        )
    elif a.rss:
        memory(names, a.batch)
    else:
        time_steps(names, a.batch, a.rounds, a.settle)


if __name__ == "__main__":
    main()
