"""Words and pictures made from emoji and from scenes, each model trained here and judged on what it has not seen.

    sensorium data build emoji --full --out emoji-full          # for the judge alone: artists the painter never saw
    PYTHONPATH=src python benchmarks/generation.py emoji-full [--runs runs/generation] [--only captions ...]
    PYTHONPATH=src python benchmarks/generation.py emoji-full --only voiced --eye efficientnet-lite0 --voice smollm2

Stages: `captions` (emoji, held-out artist and things; through the eye of a CLIP, `eye`), `voiced` (the same of the full
set, through a published eye, by a published voice: folders as benchmarks/fetch_weights.py makes them), `judge` (a CLIP
of the artists OpenMoji and EmojiOne 1, whom the painter has not seen), `codes` and `painted` (emoji), `scene-codes` and
`scenes` (pictures for captions, checked by a program), `answers` and `blind` (questions on scenes, with pictures and
without). A stage that is done is not done again, and one that was stopped goes on. Figures go to
results/generation.jsonl with CPU seconds of one thread, tables of pictures to docs/painting.md, pictures to
docs/painted.png and docs/scenes.png.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import painting_page
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
SIZE = "image:size=32:square=trim"
OTHERS = ("openmoji", "emojione-1")  # artists in none of the painter's pictures
MUON: dict[str, Any] = {"optimizer": "muon", "lr": 0.01, "precision": "bf16"}
VOICED: dict[str, Any] = {
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
    """The emoji that come along."""
    return sn.Dataset.open("emoji", types={"image": SIZE, "caption": "text:length=16"})


def scenes(n: int, texts: dict[str, int]) -> sn.Dataset:
    """Shapes with texts of so many tokens: a caption, or a question and its answer."""
    columns = {name: f"text:length={length}" for name, length in texts.items()}
    return sn.Dataset.open(
        "scenes",
        n=n,
        size=SIDE,
        questions=3 if "question" in texts else 0,
        types={"image": f"image:size={SIDE}", **columns},
    )


def others(full: Path) -> sn.Dataset:
    """Drawings by artists whom the painter has not seen, of all things."""
    whole = sn.Dataset.open(full, types={"image": SIZE, "split": "ignore"})
    artists = whole.raw("artist", range(len(whole)))
    return whole.take(np.array([artist in OTHERS for artist in artists]))


def few(data: sn.Dataset, split: str, most: int) -> tuple[list[Any], list[str]]:
    """Pictures of a split, evenly spaced, and a caption of each."""
    rows = sample_evenly(data.splits[split], most)
    return data.raw("image", rows), [said[0] for said in data.raw("caption", rows)]


def marked(picture: PIL.Image.Image, caption: str) -> PIL.Image.Image:
    """In a frame: green if the caption is true of it, grey if not."""
    return add_frame(
        picture, "green" if image_metrics([picture], [caption], SIDE)["true"] else "lightgrey"
    )


class Stages:
    """Runs in a folder, each trained once."""

    def __init__(self, folder: Path, full: Path, published: dict[str, str]):
        self.folder, self.full, self.published = folder, full, published

    def run(
        self, name: str, make: Callable[..., Any], data: Callable[[], sn.Dataset], **keywords: Any
    ) -> Model:
        """The finished run of that name, trained now or gone on with if need be."""
        at, start = self.folder / name, time.process_time()
        stages = {
            key: Path(keywords[key]).name
            for key in ("codes", "clip", "eye_from", "voice")
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

    def eye(self) -> Model:
        """The CLIP through which captions are said: it has seen what the captioner may learn from, and no more."""
        return self.run("eye", sn.recipes.clip_small, emoji, epochs=20, eval_interval=5)

    def captions(self) -> None:
        """Captions on held-out artists and things. Unseen things alone must not say when to stop: the last is kept."""
        eye = self.eye()
        model = self.run(
            "captions",
            sn.recipes.captioner,
            emoji,
            clip=str(eye.folder),
            epochs=20,
            augment="strong",
            dropout=0.2,
            smoothing=0.1,
            eval_interval=20,
            **MUON,
        )
        self._judged("captions", model, emoji(), most=300, by=eye)

    def voiced(self) -> None:
        """English captions by a decoder that learns nothing, of what an eye says that learns nothing."""

        def data() -> sn.Dataset:
            return sn.Dataset.open(self.full, types={"caption": "text:length=16"})

        model = self.run(
            "voiced",
            sn.recipes.captioner,
            data,
            text="caption",
            precision="bf16",
            **VOICED,
            **self.published,
        )
        self._judged("voiced", model, data(), most=300, by=sn.load(self.published["eye_from"]))

    def judge(self) -> Model:
        """A CLIP by which painted emoji are judged."""
        return self.run(
            "judge", sn.recipes.clip_small, lambda: others(self.full), epochs=20, eval_interval=20
        )

    def codes(self) -> Model:
        """What the painter says pictures in."""
        return self.run(
            "codes", sn.recipes.image_tokenizer, emoji, epochs=4, precision="bf16", eval_interval=2
        )

    def painted(self) -> None:
        """Emoji for captions."""
        self.codes()
        model = self.run(
            "painted",
            sn.recipes.dalle,
            emoji,
            codes=str(self.folder / "codes"),
            dim=192,
            depth=5,
            epochs=10,
            copies=3,
            eval_interval=2.5,
            **MUON,
        )
        judge = self.judge()
        self._painted(
            "painted", model, emoji(), {"guidance": 2.0, "top_p": 0.95}, most=150, by=judge
        )
        pictures = model.generate(text=list(SHOWN), n=6, rerank=judge, candidates=16)
        draw_contact_sheet(
            [(words, pictures[6 * i : 6 * i + 6]) for i, words in enumerate(SHOWN)]
        ).save(DOCS / "painted.png")

    def scenes(self) -> None:
        """Scenes for captions, also for combinations never seen."""

        def data() -> sn.Dataset:
            return scenes(60_000, {"caption": 32})

        codes = self.run(
            "scene-codes",
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
            codes=str(codes.folder),
            dim=192,
            depth=4,
            epochs=3.5,
            copies=1,
            dropout=0.0,
            eval_interval=0.5,
            **MUON,
        )
        for split in HELD:  # there and back: no words can better what codes can show
            real, captions = few(data(), split, 200)
            peers.record(
                "generation",
                stage="scene-codes",
                split=split,
                **image_metrics(codes.generate(image=real), captions, SIDE),
            )
        self._painted(
            "scenes", model, data(), {"guidance": 1.5, "top_p": 0.9}, most=200
        )  # chosen on val
        asked = [
            (split, *pair) for split in HELD for pair in zip(*few(data(), split, 2), strict=True)
        ]
        painted = model.generate(text=[caption for *_, caption in asked], n=6)
        lines = [
            (
                f"{split}: {caption}",
                [
                    PIL.Image.fromarray(real),
                    *(marked(picture, caption) for picture in painted[6 * i : 6 * i + 6]),
                ],
            )
            for i, (split, real, caption) in enumerate(asked)
        ]
        draw_contact_sheet(lines).save(DOCS / "scenes.png")

    def answers(self) -> None:
        """Questions about scenes, beside a model that never saw one."""

        def data() -> sn.Dataset:
            return scenes(60_000, {"question": 24, "answer": 4})

        how: dict[str, Any] = {
            "question": "question",
            "text": "answer",
            "dim": 128,
            "batch_size": 64,
            "dropout": 0.0,
            **MUON,
        }
        model = self.run(
            "answers", sn.recipes.captioner, data, epochs=7, augment="none", eval_interval=1, **how
        )
        blind = self.run("blind", sn.recipes.captioner, data, image="", epochs=1.5, **how)
        self._judged("answers", model, data(), blind=blind)

    def _painted(
        self, name: str, model: Model, data: sn.Dataset, guided: dict[str, float], **how: Any
    ) -> None:
        """Pictures sampled plainly, then guided; the model goes on painting the latter way."""
        paint = model.generate
        for sampled in ({}, guided):
            model.verbs = {"generate": partial(paint, **sampled)}
            self._judged(name, model, data, sampled=sampled, **how)

    def _judged(
        self,
        name: str,
        model: Model,
        data: sn.Dataset,
        *,
        sampled: dict[str, float] | None = None,
        **how: Any,
    ) -> None:
        report, told = (
            sn.evaluate(model, data, **how),
            {} if sampled is None else {"sampled": sampled},
        )
        report.save(model.folder)
        for split, figures in report.metrics.items():
            peers.record("generation", stage=name, **told, split=split, **figures)


if __name__ == "__main__":
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("full", type=Path)
    asked.add_argument("--runs", type=Path, default=Path("runs/generation"))
    asked.add_argument("--only", nargs="*", default=["captions", "painted", "scenes", "answers"])
    asked.add_argument("--eye", default="efficientnet-lite0")
    asked.add_argument("--voice", default="smollm2")
    given = asked.parse_args()
    torch.set_num_threads(1)
    given.runs.mkdir(parents=True, exist_ok=True)
    for stage in given.only:
        getattr(
            Stages(
                given.runs, given.full, {"vision_weights": given.eye, "language_model": given.voice}
            ),
            stage,
        )()
    painting_page.main()
