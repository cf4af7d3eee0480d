"""Compare `clip` without options and the pixel baseline on 600 to 2,000 captioned images.

    apt-get download tuxpaint-stamps-default openclipart-svg
    for package in *.deb; do dpkg-deb -x $package packages; done
    export OMP_NUM_THREADS=1
    python benchmarks/retrieval_small.py build packages small
    python benchmarks/retrieval_small.py run small/stamps_de --seed 0

Three datasets: photographs and drawings with German captions (Tux Paint stamps), clip art with
English titles and keywords (Open Clip Art Library), and emoji by one artist with Japanese names.
A fifth of the rows is test, a tenth is validation; each seed holds out others. Rows with the same
caption, the same file name but for digits, or nearly the same pixels are one group, and no group is
in two splits. The baseline, of `sensorium evaluate`, answers with the captions of the training
image that is nearest by pixels, compared with the captions of the candidates by TF-IDF.
"""

import argparse
import hashlib
import io
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import resvg_py
import torch
from peers import machine, record
from PIL import Image

from sensorium.data.dataset import Dataset
from sensorium.evaluation.evaluate import evaluate
from sensorium.recipes import clip
from sensorium.training.loop import train

SIZE = 96  # pixels of a stored image
NEAR_DUPLICATE = 0.97  # cosine of centred pixels
STAMPS = "usr/share/tuxpaint/stamps"
CLIP_ART = "usr/share/openclipart/svg"
CLIP_ART_FOLDERS = ("animals", "food", "plants", "tools", "transportation", "buildings", "people")
DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"
RDF_ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
EMOJI_ARTIST = "google-noto"
METRICS = ("recall@1", "recall@5", "recall@10")
DIRECTIONS = ("image to text", "text to image")
Row = tuple[Image.Image, str, str]  # image, caption, name of its source


def stamps(packages: Path) -> Iterator[Row]:
    """Yield the stamps of Tux Paint with their German captions, without letters and digits."""
    root = packages / STAMPS
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".png", ".svg")):
        description = path.with_suffix(".txt")
        if "alphabets" in path.parts or not description.is_file():
            continue
        lines = description.read_text(encoding="utf-8", errors="replace").splitlines()
        german = [line.removeprefix("de.utf8=").strip() for line in lines if line[:8] == "de.utf8="]
        image = open_image(path)
        if image and german and german[0]:
            yield image, german[0], str(path.relative_to(root))


def clip_art(packages: Path) -> Iterator[Row]:
    """Yield clip art with its English title and keywords."""
    root = packages / CLIP_ART
    for folder in CLIP_ART_FOLDERS:
        for path in sorted((root / folder).rglob("*.svg")):
            caption = svg_caption(path)
            image = open_image(path) if caption else None
            if image:
                yield image, caption, str(path.relative_to(root))


def open_image(path: Path) -> Image.Image | None:
    """Return an image, SVG drawn at `SIZE` pixels; None where it cannot be drawn."""
    if path.suffix == ".png":
        return Image.open(path)
    try:
        png = resvg_py.svg_to_bytes(svg_string=path.read_text("utf-8"), width=SIZE, dpi=96)
    except ValueError:
        return None
    return Image.open(io.BytesIO(bytes(png)))


def svg_caption(path: Path) -> str:
    """Return "title, keyword, keyword" of an SVG file; "" where it has no title or no keywords."""
    try:
        root = ElementTree.parse(path).getroot()  # noqa: S314 - a file of a Debian package
    except ElementTree.ParseError:
        return ""
    title = (root.findtext(f".//{DUBLIN_CORE}title") or "").strip()
    subject = root.find(f".//{DUBLIN_CORE}subject")
    items = [] if subject is None else [(e.text or "").strip() for e in subject.iter(RDF_ITEM)]
    keywords = [item for item in items if item and item.lower() != title.lower()]
    return ", ".join([title, *dict.fromkeys(keywords)]) if title and keywords else ""


def emoji(_: Path) -> Iterator[Row]:
    """Yield the emoji of one artist with their Japanese names."""
    data = Dataset.open("emoji", types={"image": "image:size=96"})
    columns = data.table.columns
    rows = [i for i, artist in enumerate(columns["artist"]) if artist == EMOJI_ARTIST]
    images = data.raw("image", rows)
    for row, image in zip(rows, images, strict=True):
        name = columns["caption_ja"][row][0]
        yield Image.fromarray(np.asarray(image)), name, columns["family"][row]


DATASETS = {"stamps_de": stamps, "clip_art_en": clip_art, "emoji_ja": emoji}


def build(packages: Path, out: Path) -> None:
    """Write each dataset as images and a table of captions and groups."""
    for name, rows_of in DATASETS.items():
        folder = out / name
        (folder / "images").mkdir(parents=True)
        images: list[Image.Image] = []
        entries: list[tuple[str, str]] = []
        for image, caption, source in rows_of(packages):
            images.append(on_white(image))
            entries.append((caption, source))
        groups = near_duplicates(images, entries)
        lines = []
        for i, (image, (caption, _), group) in enumerate(zip(images, entries, groups, strict=True)):
            image.save(folder / "images" / f"{i:04}.png")
            row = {"image": f"images/{i:04}.png", "caption": caption, "group": str(group)}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        print(name, len(images), "images,", len(set(groups)), "groups")


def on_white(image: Image.Image) -> Image.Image:
    """Return an image on white, at most `SIZE` pixels a side."""
    image = image.convert("RGBA")
    image.thumbnail((SIZE, SIZE))
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image).convert("RGB")


def near_duplicates(images: Sequence[Image.Image], entries: Sequence[tuple[str, str]]) -> list[int]:
    """Return the group of each row: one caption, one file name but for digits, or like pixels."""
    parent = list(range(len(images)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    firsts: dict[str, int] = {}
    for i, (caption, source) in enumerate(entries):
        stem = re.sub(r"[\d_\-]+|\.\w+$", "", source)
        for key in (f"caption {caption.lower()}", f"name {stem}"):
            parent[find(i)] = find(firsts.setdefault(key, i))
    pixels = np.stack([np.asarray(image.resize((24, 24)), np.float32).ravel() for image in images])
    pixels -= pixels.mean(1, keepdims=True)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True).clip(1e-6)
    for i, j in np.argwhere(np.triu(pixels @ pixels.T, 1) > NEAR_DUPLICATE).tolist():
        parent[find(i)] = find(j)
    return [find(i) for i in range(len(images))]


def open_split(folder: Path, seed: int) -> Dataset:
    """Open a dataset with a tenth of the groups as validation and a fifth as test."""
    data = Dataset.open(folder / "rows.jsonl", group="group")
    keys = [f"{seed}:{group}" for group in data.table.columns["group"]]
    uniform = [int(hashlib.md5(k.encode()).hexdigest()[:8], 16) / 16**8 for k in keys]  # noqa: S324
    names = np.array(["test" if u < 0.2 else "val" if u < 0.3 else "train" for u in uniform])
    splits = {name: np.flatnonzero(names == name) for name in ("train", "val", "test")}
    return data.with_splits(splits, f"by hash of the group, seed {seed}")


def run(folder: Path, seed: int, split: str, keywords: dict[str, Any]) -> None:
    """Train on one split and record the model beside the baseline."""
    data = open_split(folder, seed)
    with tempfile.TemporaryDirectory() as scratch:
        start = time.process_time()
        model = train(clip, data, out=Path(scratch) / "run", seed=seed, **keywords)
        seconds = time.process_time() - start
        metrics = evaluate(model, data, splits=[split]).metrics[split]
    result = {
        direction: {
            who: [round(metrics[f"{prefix}{direction} {name}"], 4) for name in METRICS]
            for who, prefix in (("clip", ""), ("baseline", "pixel caption "))
        }
        for direction in DIRECTIONS
    }
    record(
        "retrieval_small",
        dataset=folder.name,
        seed=seed,
        split=split,
        train_rows=len(data.splits["train"]),
        rows=metrics["rows"],
        captions=metrics["captions"],
        random=[round(metrics[f"random recall@{k}"], 4) for k in (1, 10)],
        recall=result,
        cpu_seconds=round(seconds, 1),
        settings=keywords,
        machine=machine(),
    )


def main() -> None:
    """Build the datasets, or run one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build")
    builder.add_argument("packages", type=Path, help="folder of the unpacked Debian packages")
    builder.add_argument("out", type=Path)
    runner = commands.add_parser("run")
    runner.add_argument("data", type=Path, help="a folder that `build` wrote")
    runner.add_argument("--seed", type=int, default=0)
    runner.add_argument("--split", default="test")
    runner.add_argument("--keywords", default="{}", help="JSON of keywords of `train`")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "build":
        build(args.packages, args.out)
    else:
        run(args.data, args.seed, args.split, json.loads(args.keywords))


if __name__ == "__main__":
    main()
