"""Load JPEG files as training batches, compared with webdataset and Hugging Face datasets.

    PYTHONPATH=src python benchmarks/data.py [--n 8192] [--rounds 5]

Samples per CPU second. Images of 72 pixels; batches of 256: a random crop of 64, a flip half of
the time, float32, normalized, with a label. No workers: on two cores they take time from training.
Peers read a tar (webdataset) and an Arrow file, decode with Pillow and transform images with
torchvision's v2 transforms, one by one, as their documentation shows. Sensorium: `uncached`
decodes the files of each batch anew, as the peers do; `first epoch` opens the folder, decodes it
into an empty cache and reads every batch from it; `later epochs` read every batch from the cache.
"""

import argparse
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import peers
import PIL.Image
import torch

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.data.loader import BatchLoader
from sensorium.modalities.image import Image
from sensorium.modalities.tabular import Category

STORED, SIZE, BATCH = 72, 64, 256
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
IMAGE = Image(SIZE, margin=STORED - SIZE, mean=MEAN, std=STD)
CHANGES = {
    "image": {"shift": (STORED - SIZE) / 2 / SIZE, "flip": 0.5}
}  # exactly the crops that RandomCrop draws


def make(folder: Path, n: int) -> None:
    """Write the same JPEG files to a folder per class, a tar and an Arrow file."""
    from datasets import Dataset as Arrow

    rng, files = np.random.default_rng(0), []
    for i in range(n):
        small = PIL.Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8))
        out = io.BytesIO()
        small.resize((STORED, STORED), PIL.Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
        path = folder / "jpeg" / f"class{i % 10}" / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[-1])
    with tarfile.open(folder / "jpeg.tar", "w") as tar:
        for i, data in enumerate(files):
            for name, content in ((f"{i:06}.jpg", data), (f"{i:06}.cls", str(i % 10).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    Arrow.from_dict({"jpg": files, "label": [i % 10 for i in range(n)]}).save_to_disk(
        folder / "arrow"
    )


def transforms() -> Any:
    """Return torchvision's transforms."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomCrop(SIZE),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def webdataset(folder: Path) -> Iterator[Any]:
    """Yield webdataset's batches."""
    import webdataset as wds

    data = (
        wds.WebDataset(str(folder / "jpeg.tar"), shardshuffle=False, empty_check=False)
        .shuffle(1000)
        .decode("pil")
    )
    batches = data.to_tuple("jpg", "cls").map_tuple(transforms(), int).batched(BATCH, partial=False)
    yield from wds.WebLoader(batches, batch_size=None, num_workers=0)


class OneByOne(torch.utils.data.Dataset):
    """Hugging Face datasets under a torch DataLoader."""

    def __init__(self, folder: Path):
        from datasets import load_from_disk

        self.data, self.change = load_from_disk(folder / "arrow"), transforms()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        row = self.data[i]
        return self.change(PIL.Image.open(io.BytesIO(row["jpg"])).convert("RGB")), row["label"]


def huggingface(folder: Path) -> Iterator[Any]:
    """Yield the batches of Hugging Face datasets."""
    yield from torch.utils.data.DataLoader(OneByOne(folder), BATCH, shuffle=True, drop_last=True)


def prepared(folder: Path) -> PreparedDataset:
    """Return the folder as Sensorium reads it, decoded if it has not been yet."""
    classes = Category(tuple(f"class{i}" for i in range(10)))
    data = Dataset.open(folder / "jpeg", types={"image": IMAGE, "label": classes})
    return data.prepare(data.schema, ["image", "label"], quiet=True)


def epoch(data: PreparedDataset, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the batches of one epoch."""
    loader = BatchLoader(data, np.arange(len(data)), BATCH, seed=seed, augment=CHANGES)
    for _, batch in zip(range(loader.steps_per_epoch), loader, strict=False):
        yield batch


def uncached(folder: Path) -> Iterator[Any]:
    """Yield the same batches without a cache: files to pixels to tensors."""
    files = [
        (entry.path, label)
        for label in range(10)
        for entry in os.scandir(folder / "jpeg" / f"class{label}")
    ]
    rng = torch.Generator().manual_seed(0)
    for rows in torch.randperm(len(files), generator=rng)[: len(files) // BATCH * BATCH].split(
        BATCH
    ):
        paths, labels = zip(*(files[i] for i in rows.tolist()), strict=True)
        pixels = np.empty((BATCH, STORED, STORED, 3), np.uint8)
        for path, target in zip(paths, pixels, strict=True):
            IMAGE.load(path, out=target)
        yield (
            IMAGE.preprocess(torch.from_numpy(pixels).permute(0, 3, 1, 2), rng, **CHANGES["image"]),
            torch.tensor(labels),
        )


def first(folder: Path) -> Iterator[Any]:
    """Yield the batches of the first epoch, with an empty cache."""
    shutil.rmtree(os.environ["SENSORIUM_HOME"], ignore_errors=True)
    yield from epoch(prepared(folder), 0)


def exhaust(batches: Iterator[Any], expected: int) -> None:
    """Iterate over all batches and check their number."""
    n = sum(1 for _ in batches)
    assert n == expected, f"{n} batches of {expected}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    peers.allow_torchvision()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["SENSORIUM_HOME"] = str(folder / "home")
        make(folder, args.n)
        data, steps = prepared(folder), args.n // BATCH
        runs = {
            "webdataset": lambda: webdataset(folder),
            "datasets": lambda: huggingface(folder),
            "sensorium, uncached": lambda: uncached(folder),
            "sensorium, first epoch": lambda: first(folder),
            "sensorium, later epochs": lambda: epoch(data, 1),
        }
        drains = {name: lambda run=run: exhaust(run(), steps) for name, run in runs.items()}
        peers.record(
            "data",
            machine=peers.machine(),
            samples=args.n,
            batch=BATCH,
            simplejpeg=find_spec("simplejpeg") is not None,
        )
        for name, times in (seconds := peers.paired(drains, args.rounds, warm=1)).items():
            peers.record(
                "data",
                name=name,
                samples_per_cpu_second=steps * BATCH / float(np.median(times)),
                **{
                    f"times_{base}": peers.faster(seconds, base, name)
                    for base in ("webdataset", "datasets")
                },
            )


if __name__ == "__main__":
    main()
