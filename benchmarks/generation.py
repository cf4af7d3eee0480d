r"""Train and evaluate text and image generation on emoji and scenes.

    sensorium data build emoji --full --out emoji-full     # for the evaluation CLIP: unseen artists
    export PYTHONPATH=src
    python benchmarks/generation.py emoji-full [--runs runs/generation] [--only captions]
    python benchmarks/generation.py emoji-full --only pretrained-captions \
        --vision efficientnet-lite0 --language-model smollm2

Stages: `captions` (emoji, held-out artist and concepts; on the features of a CLIP, `clip`),
`pretrained-captions` (the full set, with a pretrained vision encoder and language model: folders
as benchmarks/fetch_weights.py makes them), `reference-clip` (a CLIP trained on the artists
OpenMoji and EmojiOne 1, which the generator has not seen), `emoji-tokenizer` and `emoji` (emoji),
`scenes-tokenizer` and `scenes` (images for captions, checked by a program), `answers` and `blind`
(questions on scenes, with and without images). Finished stages are skipped, interrupted ones
resumed. Results go to results/generation.jsonl with CPU seconds of one thread, tables to
docs/benchmarks/generation.md, images to docs/generated_emoji.png and docs/scenes.png.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import generation_page
import numpy as np
import peers
import PIL.Image
import torch

import sensorium as sn
from sensorium.data.splits import sample_evenly
from sensorium.evaluation.contact_sheet import add_frame, draw_contact_sheet
from sensorium.evaluation.scenes import image_metrics
from sensorium.training.checkpoint import Model, load_checkpoint

DOCS = Path(__file__).parents[1] / "docs"
SIDE = 24  # of a scene: 8 pixels a cell
SIZE = "image:size=32:resize_mode=trim"
OTHERS = ("openmoji", "emojione-1")  # artists in none of the generator's training images
MUON: dict[str, Any] = {"optimizer": "muon", "lr": 0.01, "precision": "bf16"}
PRETRAINED: dict[str, Any] = {
    "epochs": 2,
    "lr": 5e-4,
    "batch_size": 32,
    "eval_interval": 0.5,
    "checkpoint_interval": 0.5,
}
HELD = ("test", "test_pairs", "test_four", "test_relations")
SHOWN = (
    "red apple",
    "grinning face with smiling eyes",
    "blue heart",
    "cat face",
    "Christmas tree",
    "green apple",
    "flag",
    "black cat",
)


def emoji() -> sn.Dataset:
    """Return the bundled emoji."""
    return sn.Dataset.open("emoji", types={"image": SIZE, "caption": "text:length=16"})


def scenes(n: int, texts: dict[str, int]) -> sn.Dataset:
    """Return scenes with texts of some maximum lengths: a caption, or a question and its answer."""
    columns = {name: f"text:length={length}" for name, length in texts.items()}
    return sn.Dataset.open(
        "scenes",
        n=n,
        size=SIDE,
        questions=3 if "question" in texts else 0,
        types={"image": f"image:size={SIDE}", **columns},
    )


def reference_emoji(full: Path) -> sn.Dataset:
    """Return drawings of all concepts by artists that the generator has not seen."""
    whole = sn.Dataset.open(full, types={"image": SIZE, "split": "ignore"})
    artists = whole.raw("artist", range(len(whole)))
    return whole.take(np.array([artist in OTHERS for artist in artists]))


def sample_rows(data: sn.Dataset, split: str, most: int) -> tuple[list[Any], list[str]]:
    """Return images of a split, evenly spaced, and a caption of each."""
    rows = sample_evenly(data.splits[split], most)
    return data.raw("image", rows), [texts[0] for texts in data.raw("caption", rows)]


def frame(image: PIL.Image.Image, caption: str) -> PIL.Image.Image:
    """Return the image in a frame: green if it matches the caption exactly, grey if not."""
    return add_frame(
        image, "green" if image_metrics([image], [caption], SIDE)["exact"] else "lightgrey"
    )


class Stages:
    """Runs in a folder, each trained once."""

    def __init__(self, folder: Path, full: Path, pretrained: dict[str, str]):
        self.folder, self.full, self.pretrained = folder, full, pretrained

    def run(
        self, name: str, make: Callable[..., Any], data: Callable[[], sn.Dataset], **keywords: Any
    ) -> Model:
        """Return the finished run of that name, trained or resumed if need be."""
        at, start = self.folder / name, time.process_time()
        stages = {
            key: Path(keywords[key]).name
            for key in ("tokenizer", "clip_run", "vision_weights", "language_model")
            if key in keywords
        }
        if not (at / "README.md").exists():
            model = sn.train(make, data(), out=at, resume=(at / "config.json").exists(), **keywords)
            peers.record(
                "generation",
                stage=name,
                cpu_seconds=time.process_time() - start,
                settings=keywords | stages,
                parameters=sum(p.numel() for p in model.module.parameters()),
                learned=sum(p.numel() for p in model.module.parameters() if p.requires_grad),
                seed=keywords.get("seed", 0),
                machine=peers.machine(),
            )
        return load_checkpoint(at)

    def clip(self) -> Model:
        """Return the CLIP whose features the captioner reads, trained on the same rows."""
        return self.run("clip", sn.recipes.clip, emoji, size="small", epochs=20, eval_interval=5)

    def captions(self) -> None:
        """Train and evaluate captions on held-out artists and concepts.

        The last weights are kept: validation holds unseen concepts only.
        """
        clip = self.clip()
        model = self.run(
            "captions",
            sn.recipes.captioner,
            emoji,
            clip_run=str(clip.folder),
            epochs=20,
            augment="strong",
            dropout=0.2,
            label_smoothing=0.1,
            eval_interval=20,
            **MUON,
        )
        self._evaluate("captions", model, emoji(), max_samples=300, feature_model=clip)

    def pretrained_captions(self) -> None:
        """Train and evaluate captions of a frozen language model on frozen features."""

        def data() -> sn.Dataset:
            return sn.Dataset.open(self.full, types={"caption": "text:length=16"})

        model = self.run(
            "pretrained-captions",
            sn.recipes.captioner,
            data,
            text="caption",
            precision="bf16",
            **PRETRAINED,
            **self.pretrained,
        )
        self._evaluate(
            "pretrained-captions",
            model,
            data(),
            max_samples=300,
            feature_model=sn.load(self.pretrained["vision_weights"]),
        )

    def reference_clip(self) -> Model:
        """Return the CLIP that evaluates generated emoji."""
        return self.run(
            "reference-clip",
            sn.recipes.clip,
            lambda: reference_emoji(self.full),
            size="small",
            epochs=20,
            eval_interval=20,
        )

    def emoji_tokenizer(self) -> Model:
        """Return the image tokenizer."""
        return self.run(
            "emoji-tokenizer",
            sn.recipes.image_tokenizer,
            emoji,
            epochs=4,
            precision="bf16",
            eval_interval=2,
        )

    def emoji(self) -> None:
        """Train and evaluate emoji for captions."""
        self.emoji_tokenizer()
        model = self.run(
            "emoji",
            sn.recipes.dalle,
            emoji,
            tokenizer=str(self.folder / "emoji-tokenizer"),
            dim=192,
            layers=5,
            epochs=10,
            copies=3,
            eval_interval=2.5,
            **MUON,
        )
        reference = self.reference_clip()
        self._evaluate_samples(
            "emoji",
            model,
            emoji(),
            {"guidance_scale": 2.0, "top_p": 0.95},
            max_samples=150,
            feature_model=reference,
        )
        images = model.generate(text=list(SHOWN), n=6, rerank=reference, candidates=16)
        draw_contact_sheet(
            [(caption, images[6 * i : 6 * i + 6]) for i, caption in enumerate(SHOWN)]
        ).save(DOCS / "generated_emoji.png")

    def scenes(self) -> None:
        """Train and evaluate scenes for captions, also for unseen combinations."""

        def data() -> sn.Dataset:
            return scenes(60_000, {"caption": 32})

        tokenizer = self.run(
            "scenes-tokenizer",
            sn.recipes.image_tokenizer,
            data,
            epochs=1.5,
            batch_size=32,
            eval_interval=0.5,
            precision="bf16",
        )
        model = self.run(
            "scenes",
            sn.recipes.dalle,
            data,
            tokenizer=str(tokenizer.folder),
            dim=192,
            layers=4,
            epochs=3.5,
            copies=1,
            dropout=0.0,
            eval_interval=0.5,
            **MUON,
        )
        for split in HELD:  # upper bound: what the tokenizer can reconstruct
            real, captions = sample_rows(data(), split, 200)
            peers.record(
                "generation",
                stage="scenes-tokenizer",
                split=split,
                **image_metrics(tokenizer.generate(image=real), captions, SIDE),
            )
        self._evaluate_samples(
            "scenes", model, data(), {"guidance_scale": 1.5, "top_p": 0.9}, max_samples=200
        )  # chosen on val
        requests = [
            (split, *pair)
            for split in HELD
            for pair in zip(*sample_rows(data(), split, 2), strict=True)
        ]
        painted = model.generate(text=[caption for *_, caption in requests], n=6)
        lines = [
            (
                f"{split}: {caption}",
                [
                    PIL.Image.fromarray(real),
                    *(frame(image, caption) for image in painted[6 * i : 6 * i + 6]),
                ],
            )
            for i, (split, real, caption) in enumerate(requests)
        ]
        draw_contact_sheet(lines).save(DOCS / "scenes.png")

    def answers(self) -> None:
        """Train and evaluate answers about scenes, compared with a model without images."""

        def data() -> sn.Dataset:
            return scenes(60_000, {"question": 24, "answer": 4})

        options: dict[str, Any] = {
            "question": "question",
            "text": "answer",
            "dim": 128,
            "batch_size": 64,
            "dropout": 0.0,
            **MUON,
        }
        model = self.run(
            "answers",
            sn.recipes.captioner,
            data,
            epochs=7,
            augment="none",
            eval_interval=1,
            **options,
        )
        blind = self.run("blind", sn.recipes.captioner, data, image="", epochs=1.5, **options)
        self._evaluate("answers", model, data(), blind_model=blind)

    def _evaluate_samples(
        self, name: str, model: Model, data: sn.Dataset, guided: dict[str, float], **options: Any
    ) -> None:
        """Evaluate plain samples, then guided ones, with which the model continues."""
        generate = model.generate
        for sampled in ({}, guided):
            model.verbs = {"generate": partial(generate, **sampled)}
            self._evaluate(name, model, data, sampled=sampled, **options)

    def _evaluate(
        self,
        name: str,
        model: Model,
        data: sn.Dataset,
        *,
        sampled: dict[str, float] | None = None,
        **options: Any,
    ) -> None:
        """Evaluate a model and record its metrics."""
        report, extra = (
            sn.evaluate(model, data, **options),
            {} if sampled is None else {"sampled": sampled},
        )
        report.save(model.folder)
        for split, figures in report.metrics.items():
            peers.record("generation", stage=name, **extra, split=split, **figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("full", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/generation"))
    parser.add_argument("--only", nargs="*", default=["captions", "emoji", "scenes", "answers"])
    parser.add_argument("--vision", default="efficientnet-lite0")
    parser.add_argument("--language-model", default="smollm2")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.runs.mkdir(parents=True, exist_ok=True)
    for stage in args.only:
        getattr(
            Stages(
                args.runs,
                args.full,
                {"vision_weights": args.vision, "language_model": args.language_model},
            ),
            stage.replace("-", "_"),
        )()
    generation_page.main()
