"""How well pictures come back from a grid of codes: FSQ, VQ with and without restart, dVAE, and what needs no training.

    OMP_NUM_THREADS=1 python benchmarks/codes.py        # all of it, on the embedded emoji: about ten minutes of CPU
    OMP_NUM_THREADS=1 python benchmarks/codes.py --only fsq --epochs 20 --picture docs/codes.png

32 pixels, 8 x 8 codes, 512 of them, the same net, batches and number of steps for each; judged on concepts and artists
held out. mse and psnr on pixels in 0..1. CPU seconds of one thread.
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
CELLS = ("val", "test_artist", "test_concept", "test_both")
TRAINED: dict[str, dict[str, Any]] = {
    "fsq": {"pixel": "l1"},
    "vq": {"quantizer": "vq", "pixel": "l1"},
    "vq without restart": {"quantizer": "vq", "restart": False, "pixel": "l1"},
    "dvae": {"quantizer": "dvae"},
    "dvae, laplace": {"quantizer": "dvae", "pixel": "laplace", "edges": 0.0},
    "fsq, l2": {"pixel": "l2"},
    "fsq, no edges": {"pixel": "l1", "edges": 0.0},
}
Again = Callable[[Tensor], Tensor]  # pixels in 0..1 [N 3 S S], there and back


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help=f"{', '.join(TRAINED)}, untrained")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--picture", type=Path, help="where to draw originals above what each says again"
    )
    given = parser.parse_args()
    data = Dataset.open("emoji", types={"image": f"image:size={SIZE}:square=trim"})
    prepared = data.prepare(data.schema, ("image",), quiet=True)
    shown = [("as drawn", pictures(prepared, sample(data)))]
    for name in given.only or ["untrained", *TRAINED]:
        made = (
            untrained(data, prepared) if name == "untrained" else {name: trained(name, data, given)}
        )
        for what, (again, about) in made.items():
            figures = {cell: judged(again, pictures(prepared, data.splits[cell])) for cell in CELLS}
            shown.append((what, again(shown[0][1])))
            record("codes", who=what, **about, **figures, machine=machine())
    if given.picture:
        draw(shown, given.picture)


def trained(name: str, data: Dataset, given: argparse.Namespace) -> tuple[Again, dict[str, Any]]:
    """One recipe, and what it cost."""
    steps = round(given.epochs * (len(data.splits["train"]) // 128))
    more = {"anneal": steps} if TRAINED[name].get("quantizer") == "dvae" else {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        model = train(
            image_tokenizer,
            data,
            out=Path(folder) / "run",
            epochs=given.epochs,
            eval_interval=given.epochs,
            seed=given.seed,
            **TRAINED[name],
            **more,
        )
        seconds = time.process_time() - start
    image, module = model.schema["image"], model.module

    @torch.inference_mode()
    def again(unit: Tensor) -> Tensor:
        ids.append(module.encode((unit - module.mean) / module.std))
        return module.unit(module.decode(ids[-1])).clamp(0, 1)

    ids: list[Tensor] = []
    again(pictures(data.prepare(model.schema, ("image",), quiet=True), data.splits["val"]))
    counts = torch.bincount(ids[0].flatten(), minlength=module.vocab).float()
    return again, {
        "seed": given.seed,
        "epochs": given.epochs,
        "cpu_seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in module.parameters()),
        "vocab": module.vocab,
        "settings": TRAINED[name],
        "side": image.size // PATCH,
        "val codes used": int((counts > 0).sum()),
        "val perplexity": round(codebook_perplexity(counts), 1),
    }


def untrained(data: Dataset, prepared: PreparedDataset) -> dict[str, tuple[Again, dict[str, Any]]]:
    """The mean picture; the mean of each 4 x 4 block, unquantized; each block as the nearest of 512 by k-means."""
    train_pictures = pictures(prepared, data.splits["train"])
    mean, blocks = train_pictures.mean(0), nearest_blocks(train_pictures)
    return {
        "mean picture": (lambda x: mean.expand_as(x), {}),
        "block means": (lambda x: F.interpolate(F.avg_pool2d(x, PATCH), scale_factor=PATCH), {}),
        "blocks by k-means": (blocks, {"vocab": VOCAB}),
    }


def nearest_blocks(x: Tensor, passes: int = 3) -> Again:
    """As many bits as codes take, and no net: a codebook of whole blocks."""
    torch.manual_seed(0)
    book = VQ(VOCAB, 3 * PATCH * PATCH, decay=0.9)
    for part in x[torch.randperm(len(x))].repeat(passes, 1, 1, 1).split(128):
        book(cut(part))
        book.after_step()
    return lambda pictures: paste(book.to_vectors(book.to_ids(cut(pictures))))


def cut(x: Tensor) -> Tensor:
    return rearrange(x, "b c (h p) (w q) -> b h w (c p q)", p=PATCH, q=PATCH)


def paste(x: Tensor) -> Tensor:
    return rearrange(x, "b h w (c p q) -> b c (h p) (w q)", p=PATCH, q=PATCH)


def pictures(prepared: PreparedDataset, rows: np.ndarray) -> Tensor:
    """Pixels in 0..1 [N 3 S S]."""
    stored = np.stack([np.asarray(prepared.image("image", row)) for row in rows.tolist()])
    return torch.from_numpy(stored).permute(0, 3, 1, 2).float() / 255


def judged(again: Again, x: Tensor) -> dict[str, float]:
    mse = (
        torch.cat([(again(part) - part).square().mean((1, 2, 3)) for part in x.split(256)])
        .mean()
        .item()
    )
    return {"mse": round(mse, 5), "psnr": round(psnr(mse), 2)}


def sample(data: Dataset, n: int = 12) -> np.ndarray:
    """Concepts and artists never seen, evenly spaced."""
    rows = data.splits["test_both"]
    return rows[np.linspace(0, len(rows) - 1, n).astype(int)]


def draw(shown: list[tuple[str, Tensor]], path: Path, scale: int = 2) -> None:
    grid = torch.cat([torch.cat(list(F.pad(x, (2, 2, 2, 2), value=1.0)), 2) for _, x in shown], 1)
    sheet = Image.fromarray(
        (grid.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    )
    sheet.resize((scale * sheet.width, scale * sheet.height), Image.Resampling.NEAREST).save(path)
    print(json.dumps({"picture": str(path), "rows": [name for name, _ in shown]}))


if __name__ == "__main__":
    main()
