"""Measure what is learned from the full emoji set in some CPU time, compared with open_clip.

    sensorium data build emoji --full --out emoji-full
    export OMP_NUM_THREADS=1
    python benchmarks/learning.py emoji-full --who ours --seed 0 --epochs 40
    python benchmarks/learning.py emoji-full --languages de fr --text caption_de caption_nl
    python benchmarks/learning.py emoji-full --who open_clip --seed 0 --seconds 300

Both use the same rows, preprocessing, augmentation, captions and tokens, and the same evaluation.
open_clip is a ViT of similar size, trained as usual: AdamW with weight decay 0.2, its loss, batches
sampled by row. CPU seconds of one thread, data preparation included for Sensorium.
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
from sensorium.recipes import clip
from sensorium.recipes.clip import image_augment
from sensorium.training.loop import train

CELLS = ("test_unseen_artist", "test_unseen_concept", "test_unseen_both", "val")
FIGURES = (
    "image to text recall@1",
    "image to text recall@10",
    "text to image recall@1",
    "text to image recall@10",
)


def shortened(figures: dict[str, dict[str, float]]) -> dict[str, list[float]]:
    """Return recall of each split: image to text at 1 and 10, text to image at 1 and 10."""
    return {
        cell: [round(figures[cell][name], 4) for name in FIGURES]
        for cell in CELLS
        if cell in figures
    }


def ours(data: Dataset, args: argparse.Namespace) -> dict[str, object]:
    """Train `clip --size small` for some epochs, and return all metrics."""
    settings = json.loads(args.keywords) | {
        "text": ("caption", *(f"caption_{c}" for c in args.languages))
    }
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        model = train(
            clip,
            data,
            size="small",
            out=Path(folder) / "run",
            epochs=args.epochs,
            eval_interval=args.epochs,
            checkpoint_interval=args.epochs,
            seed=args.seed,
            **settings,
        )
        seconds = time.process_time() - start
        parameters = sum(p.numel() for p in model.module.parameters())
        others = {
            column: shortened(evaluate(model, data, text_column=column).metrics)
            for column in args.text
        }
        report, by_all_captions = (
            evaluate(model, data).metrics,
            evaluate(model, data, average_captions=True).metrics,
        )
    baselines = {
        cell: {k: round(v, 4) for k, v in f.items() if "random" in k or "pixel" in k}
        for cell, f in report.items()
    }
    return {
        "cpu_seconds": seconds,
        "epochs": args.epochs,
        "parameters": parameters,
        "recall": shortened(report),
        "recall_of_all_captions": shortened(by_all_captions),
        "beside": baselines,
        "languages": others,
        "settings": settings,
    }


class Peer(nn.ModuleDict):
    """open_clip's towers under our column names, for the same evaluation."""

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
    """Pad texts, and map our end token to the highest id, at which open_clip pools."""

    def __init__(self, encode: object, vocab: int):
        super().__init__(encode)
        self.end = vocab

    def forward(self, ids: Tensor) -> Tensor:
        ids = torch.where(ids == 2, self.end, ids)
        return super().forward(nn.functional.pad(ids, (0, 32 - ids.shape[1])))


def open_clip(data: Dataset, args: argparse.Namespace) -> dict[str, object]:
    """Train open_clip's ViT for some CPU seconds, with warm-up and cosine schedule."""
    allow_torchvision()
    from open_clip import ClipLoss
    from open_clip.model import CLIP

    rows = data.splits["train"]
    schema = data.schema.fit(data, rows, ("image", "caption"))
    prepared, vocab = data.prepare(schema, ("image", "caption")), schema["caption"].vocab_size
    torch.manual_seed(args.seed)
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
    augment = image_augment("image", "caption")["strong"]
    loader = BatchLoader(prepared, rows, 128, seed=args.seed, augment=augment)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.2},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98), eps=1e-6, fused=True)
    start, steps, model_of = time.process_time(), 0, model.train()
    for batch in loader:
        done = (time.process_time() - start) / args.seconds
        if done >= 1:
            break
        rate = done / 0.05 if done < 0.05 else 0.5 * (1 + math.cos(math.pi * (done - 0.05) / 0.95))
        for group in optimizer.param_groups:
            group["lr"] = args.rate * rate
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
        "lr": args.rate,
        "parameters": sum(p.numel() for p in model.parameters()),
        "recall": shortened(figures),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="what `sensorium data build emoji --full` wrote")
    parser.add_argument("--who", choices=("ours", "open_clip"), default="ours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=40, help="ours")
    parser.add_argument("--keywords", default="{}", help="ours: JSON of keywords")
    parser.add_argument(
        "--languages", nargs="*", default=[], help="ours: languages to train on besides English"
    )
    parser.add_argument(
        "--text", nargs="*", default=[], help="ours: further caption columns to evaluate"
    )
    parser.add_argument("--seconds", type=float, default=300, help="open_clip")
    parser.add_argument("--rate", type=float, default=1e-3, help="open_clip: peak learning rate")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = Dataset.open(args.data, types={"image": "image:size=32:resize_mode=trim"})
    result = {"ours": ours, "open_clip": open_clip}[args.who](data, args)
    record("learning", who=args.who, seed=args.seed, **result, machine=machine())


if __name__ == "__main__":
    main()
