"""What is learned in a given CPU time from the full emoji set: ours, and open_clip of the same size beside it.

    sensorium data build emoji --full --out emoji-full
    OMP_NUM_THREADS=1 python benchmarks/learning.py emoji-full --who ours --seed 0 --epochs 40
    OMP_NUM_THREADS=1 python benchmarks/learning.py emoji-full --languages de fr --text caption_de caption_nl
    OMP_NUM_THREADS=1 python benchmarks/learning.py emoji-full --who open_clip --seed 0 --seconds 300

Both see the same rows, prepared by the same code, changed at random in the same way, with the same captions and tokens,
and are judged by the same function. open_clip is a ViT of about as many parameters, trained as its users do: AdamW
with decay 0.2, its loss, a batch drawn row by row. CPU seconds of one thread, data preparation included for ours.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch
from peers import allow_torchvision, machine, record
from torch import Tensor, nn

from sensorium.data.dataset import Dataset
from sensorium.data.loader import BatchLoader
from sensorium.evaluation.evaluate import evaluate
from sensorium.evaluation.validate_retrieval import compute_retrieval_metrics
from sensorium.nn.tokens import l2_normalize
from sensorium.recipes import clip_small
from sensorium.recipes.clip import AUGMENT
from sensorium.training.loop import train

CELLS = ("test_artist", "test_concept", "test_both", "val")
FIGURES = (
    "image to text recall@1",
    "image to text recall@10",
    "text to image recall@1",
    "text to image recall@10",
)


def shortened(figures: dict[str, dict[str, float]]) -> dict[str, list[float]]:
    """Recall of each cell: picture to text at 1 and 10, text to picture at 1 and 10."""
    return {
        cell: [round(figures[cell][name], 4) for name in FIGURES]
        for cell in CELLS
        if cell in figures
    }


def ours(data: Dataset, given: argparse.Namespace) -> dict[str, object]:
    """`clip_small`, for a number of epochs; every figure of its report is kept."""
    settings = json.loads(given.keywords) | {
        "text": ("caption", *(f"caption_{c}" for c in given.languages))
    }
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        model = train(
            clip_small,
            data,
            out=Path(folder) / "run",
            epochs=given.epochs,
            eval_interval=given.epochs,
            checkpoint_interval=given.epochs,
            seed=given.seed,
            **settings,
        )
        seconds = time.process_time() - start
        parameters = sum(p.numel() for p in model.module.parameters())
        others = {
            column: shortened(evaluate(model, data, text=column).metrics) for column in given.text
        }
        report, described = evaluate(model, data).metrics, evaluate(model, data, every=True).metrics
    baselines = {
        cell: {k: round(v, 4) for k, v in f.items() if "chance" in k or "pixel" in k}
        for cell, f in report.items()
    }
    return {
        "cpu_seconds": seconds,
        "epochs": given.epochs,
        "parameters": parameters,
        "recall": shortened(report),
        "recall_of_all_captions": shortened(described),
        "beside": baselines,
        "languages": others,
        "settings": settings,
    }


class Peer(nn.ModuleDict):
    """open_clip's towers under our column names, so that the same function judges them."""

    def __init__(self, model: nn.Module, vocab: int):
        super().__init__(
            {"image": _Side(model.encode_image), "caption": _Words(model.encode_text, vocab)}
        )
        self.model = model


class _Side(nn.Module):
    def __init__(self, encode: object):
        super().__init__()
        self.encode = encode

    def forward(self, x: Tensor) -> Tensor:
        return l2_normalize(self.encode(x))


class _Words(_Side):
    """open_clip pools at the highest id: our end token becomes that. Texts are padded to its context length."""

    def __init__(self, encode: object, vocab: int):
        super().__init__(encode)
        self.end = vocab

    def forward(self, ids: Tensor) -> Tensor:
        ids = torch.where(ids == 2, self.end, ids)
        return super().forward(nn.functional.pad(ids, (0, 32 - ids.shape[1])))


def open_clip(data: Dataset, given: argparse.Namespace) -> dict[str, object]:
    """open_clip's ViT for a number of CPU seconds, warm-up and cosine over them."""
    allow_torchvision()
    from open_clip import ClipLoss
    from open_clip.model import CLIP

    rows = data.splits["train"]
    schema = data.schema.fit(data, rows, ("image", "caption"))
    prepared, vocab = data.prepare(schema, ("image", "caption")), schema["caption"].vocab_size
    torch.manual_seed(given.seed)
    model = CLIP(
        embed_dim=192,
        vision_cfg={"image_size": 32, "patch_size": 4, "width": 128, "layers": 3, "head_width": 32},
        text_cfg={
            "context_length": 32,
            "vocab_size": vocab + 1,
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    )
    peer, loss_of = Peer(model, vocab), ClipLoss()
    augment = dict(zip(("image", "caption"), AUGMENT["strong"], strict=True))
    loader = BatchLoader(prepared, rows, 128, seed=given.seed, augment=augment)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.2},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=given.rate, betas=(0.9, 0.98), eps=1e-6, fused=True)
    start, steps, model_of = time.process_time(), 0, model.train()
    for batch in loader:
        done = (time.process_time() - start) / given.seconds
        if done >= 1:
            break
        rate = done / 0.05 if done < 0.05 else 0.5 * (1 + math.cos(math.pi * (done - 0.05) / 0.95))
        for group in optimizer.param_groups:
            group["lr"] = given.rate * rate
        loss = loss_of(
            peer["image"](batch["image"]),
            peer["caption"](batch["caption"]),
            model_of.logit_scale.exp(),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        steps += 1
    figures = {
        cell: compute_retrieval_metrics(
            peer, prepared, prepared.complete_rows(data.splits[cell]), ("image", "caption")
        )
        for cell in CELLS
    }
    return {
        "cpu_seconds": time.process_time() - start,
        "epochs": steps * 128 / len(rows),
        "lr": given.rate,
        "parameters": sum(p.numel() for p in model.parameters()),
        "recall": shortened(figures),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="what `sensorium data build emoji --full` wrote")
    parser.add_argument("--who", choices=("ours", "open_clip"), default="ours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=40, help="ours")
    parser.add_argument("--keywords", default="{}", help="ours: JSON of settings to change")
    parser.add_argument(
        "--languages", nargs="*", default=[], help="ours: captions to learn from beside the English"
    )
    parser.add_argument(
        "--text", nargs="*", default=[], help="ours: more caption columns to judge by"
    )
    parser.add_argument("--seconds", type=float, default=300, help="open_clip")
    parser.add_argument(
        "--rate", type=float, default=1e-3, help="open_clip: the highest learning rate"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = Dataset.open(given.data, types={"image": "image:size=32:square=trim"})
    found = {"ours": ours, "open_clip": open_clip}[given.who](data, given)
    record("learning", who=given.who, seed=given.seed, **found, machine=machine())


if __name__ == "__main__":
    main()
