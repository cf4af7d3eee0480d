"""Measure the reconstructions of image tokenizers (FSQ, VQ, dVAE) and of baselines.

    export OMP_NUM_THREADS=1
    python benchmarks/image_tokenizer.py        # all, on the bundled emoji: ten CPU minutes
    python benchmarks/image_tokenizer.py --only fsq --epochs 20 --image docs/image_tokenizer.png

32 pixels, 8 x 8 codes, 512 of them, the same network, batches and number of steps for each;
evaluated on held-out concepts and artists. MSE and PSNR on pixels in 0..1. CPU seconds of one
thread.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from peers import machine, record
from PIL import Image
from torch import Tensor

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.metrics.image_generation import codebook_perplexity, psnr
from sensorium.nn.vector_quantize import VQ
from sensorium.recipes import image_tokenizer
from sensorium.training.loop import train

SIZE, PATCH, VOCAB = 32, 4, 512
CELLS = ("val", "test_unseen_artist", "test_unseen_concept", "test_unseen_both")
TRAINED: dict[str, dict[str, Any]] = {
    "fsq": {"pixel_loss": "l1"},
    "vq": {"quantizer": "vq", "pixel_loss": "l1"},
    "vq without restart": {"quantizer": "vq", "restart_dead_codes": False, "pixel_loss": "l1"},
    "dvae": {"quantizer": "dvae"},
    "dvae, laplace": {"quantizer": "dvae", "pixel_loss": "laplace", "edge_loss_weight": 0.0},
    "fsq, l2": {"pixel_loss": "l2"},
    "fsq, no edges": {"pixel_loss": "l1", "edge_loss_weight": 0.0},
}
Reconstruct = Callable[[Tensor], Tensor]  # pixels in 0..1 [N 3 S S], encoded and decoded


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help=f"{', '.join(TRAINED)}, untrained")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--image", type=Path, help="where to save originals above their reconstructions"
    )
    args = parser.parse_args()
    data = Dataset.open("emoji", types={"image": f"image:size={SIZE}:resize_mode=trim"})
    prepared = data.prepare(data.schema, ("image",), quiet=True)
    rows_drawn = [("original", images(prepared, sample(data)))]
    for name in args.only or ["untrained", *TRAINED]:
        reconstructions = (
            untrained(data, prepared) if name == "untrained" else {name: trained(name, data, args)}
        )
        for what, (reconstruct, about) in reconstructions.items():
            figures = {
                cell: metrics_of(reconstruct, images(prepared, data.splits[cell])) for cell in CELLS
            }
            rows_drawn.append((what, reconstruct(rows_drawn[0][1])))
            record("image_tokenizer", who=what, **about, **figures, machine=machine())
    if args.image:
        draw(rows_drawn, args.image)


def trained(
    name: str, data: Dataset, args: argparse.Namespace
) -> tuple[Reconstruct, dict[str, Any]]:
    """Train one setting, and return its reconstruction and cost."""
    steps = round(args.epochs * (len(data.splits["train"]) // 128))
    schedule = {"anneal_steps": steps} if TRAINED[name].get("quantizer") == "dvae" else {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        model = train(
            image_tokenizer,
            data,
            out=Path(folder) / "run",
            epochs=args.epochs,
            eval_interval=args.epochs,
            seed=args.seed,
            **TRAINED[name],
            **schedule,
        )
        seconds = time.process_time() - start
    image, module = model.schema["image"], model.module

    @torch.inference_mode()
    def reconstruct(unit: Tensor) -> Tensor:
        ids.append(module.encode((unit - module.mean) / module.std))
        return module.denormalize(module.decode(ids[-1])).clamp(0, 1)

    ids: list[Tensor] = []
    reconstruct(images(data.prepare(model.schema, ("image",), quiet=True), data.splits["val"]))
    counts = torch.bincount(ids[0].flatten(), minlength=module.vocab_size).float()
    return reconstruct, {
        "seed": args.seed,
        "epochs": args.epochs,
        "cpu_seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in module.parameters()),
        "vocab": module.vocab_size,
        "settings": TRAINED[name],
        "side": image.size // PATCH,
        "val codes used": int((counts > 0).sum()),
        "val perplexity": round(codebook_perplexity(counts), 1),
    }


def untrained(
    data: Dataset, prepared: PreparedDataset
) -> dict[str, tuple[Reconstruct, dict[str, Any]]]:
    """Return the mean image, 4 x 4 block means, and k-means of blocks (512)."""
    train_images = images(prepared, data.splits["train"])
    mean, blocks = train_images.mean(0), nearest_blocks(train_images)
    return {
        "mean image": (lambda x: mean.expand_as(x), {}),
        "block means": (lambda x: F.interpolate(F.avg_pool2d(x, PATCH), scale_factor=PATCH), {}),
        "blocks by k-means": (blocks, {"vocab": VOCAB}),
    }


def nearest_blocks(x: Tensor, passes: int = 3) -> Reconstruct:
    """Return a k-means codebook of whole blocks: as many bits as codes take, and no network."""
    torch.manual_seed(0)
    book = VQ(VOCAB, 3 * PATCH * PATCH, decay=0.9)
    for part in x[torch.randperm(len(x))].repeat(passes, 1, 1, 1).split(128):
        book(cut(part))
        book.after_step()
    return lambda images: paste(book.to_vectors(book.to_ids(cut(images))))


def cut(x: Tensor) -> Tensor:
    """Cut images into blocks."""
    return rearrange(x, "b c (h p) (w q) -> b h w (c p q)", p=PATCH, q=PATCH)


def paste(x: Tensor) -> Tensor:
    """Join blocks to images."""
    return rearrange(x, "b h w (c p q) -> b c (h p) (w q)", p=PATCH, q=PATCH)


def images(prepared: PreparedDataset, rows: np.ndarray) -> Tensor:
    """Return pixels in 0..1 [N 3 S S]."""
    stored = np.stack([np.asarray(prepared.image("image", row)) for row in rows.tolist()])
    return torch.from_numpy(stored).permute(0, 3, 1, 2).float() / 255


def metrics_of(reconstruct: Reconstruct, x: Tensor) -> dict[str, float]:
    """Return metrics of a reconstruction on each split."""
    mse = (
        torch.cat([(reconstruct(part) - part).square().mean((1, 2, 3)) for part in x.split(256)])
        .mean()
        .item()
    )
    return {"mse": round(mse, 5), "psnr": round(psnr(mse), 2)}


def sample(data: Dataset, n: int = 12) -> np.ndarray:
    """Return rows of unseen concepts and artists, evenly spaced."""
    rows = data.splits["test_unseen_both"]
    return rows[np.linspace(0, len(rows) - 1, n).astype(int)]


def draw(rows_drawn: list[tuple[str, Tensor]], path: Path, scale: int = 2) -> None:
    """Save originals above their reconstructions."""
    grid = torch.cat(
        [torch.cat(list(F.pad(x, (2, 2, 2, 2), value=1.0)), 2) for _, x in rows_drawn], 1
    )
    sheet = Image.fromarray(
        (grid.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    )
    sheet.resize((scale * sheet.width, scale * sheet.height), Image.Resampling.NEAREST).save(path)
    print(json.dumps({"image": str(path), "rows": [name for name, _ in rows_drawn]}))


if __name__ == "__main__":
    main()
