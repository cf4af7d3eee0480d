"""How good are pictures for words? Beside real ones, the nearest training picture by caption, and the mean picture.

A judged model says `model.generate("image", text=[...], seed=0)` and gives a PIL image for each caption.

    N captions   E features   P numbers in a picture
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.data.cache import Prepared
from sensorium.data.dataset import Dataset
from sensorium.data.splits import spaced
from sensorium.metrics.pictures import clip_score, diversity, frechet, kernel_distance, nearest
from sensorium.metrics.words import plain
from sensorium.modalities.decode import squared
from sensorium.modalities.image import Image
from sensorium.models import unit
from sensorium.recipes.judge_words import Judge
from sensorium.recipes.judging import alike, distinct, made_of_things, pixels, training_rows
from sensorium.recipes.protocol import Trained
from sensorium.report import Report
from sensorium.tokens import ColumnKey, column_label

Picture = PIL.Image.Image
COPY = 0.02                                 # of the range of a pixel
PIXELS = 8                                  # side of what stands for a picture where no model does
DEFINITIONS = """\
Of each kind of picture: made by the model; real, those of the split; neighbour, the training picture whose caption has
the most words in common with the one asked for (rare words count for more); mean, the mean training picture.
Fréchet, kernel: distances of their features to those of the real pictures of the split (FID and KID, but in the feature
space named above: not to be compared with figures in another). real Fréchet: between the two halves of the real ones;
from few pictures a Fréchet distance is too high, and this says how much. diversity: mean distance of two, in features.
CLIP: 100 times the mean cosine of picture and caption in the judge's space.
nearest: root mean square difference, of pixels from 0 to 1, to the most similar training picture. copies: share in
which that is below 0.02; real copies says how many are as near without being copied.
Of the data set scenes: true is the share of pictures in which a program finds what the caption says and nothing else
(data/scenes_check.py), things and relations are the shares of what it says that is there."""


def pictures(picture: str, words: ColumnKey) -> Judge:
    """A judge of pictures made for captions, for the columns of a recipe."""
    def judge(model: Trained, dataset: Dataset, splits: Sequence[str], *, most: int = 500, seed: int = 0,
              by: Any = None) -> Report:
        """most: captions of a split that pictures are made for, each once, evenly spaced. by: a model with
        `embed(image=)` and `embed(text=)`, trained on none of the model's pictures, best by other artists; its vectors
        are the features. Without it features are the pixels of small pictures, and there is no CLIP score."""
        prepared = dataset.prepare(model.schema, (picture, words))
        train = distinct(prepared, picture, training_rows(dataset, prepared))
        found = _Compared(prepared, (picture, words), train, by)
        figures = {}
        for split in splits:
            rows = distinct(prepared, picture, prepared.complete(dataset.splits[split]))
            asked = {prepared.caption(words, row): row for row in rows[::-1].tolist()}  # the same words, one picture
            rows = spaced(np.array(sorted(asked.values())), most)
            if len(rows) >= 4:                              # two halves of two
                made = model.generate("image", text=[prepared.caption(words, row) for row in rows.tolist()], seed=seed)
                figures[split] = {"pictures": float(len(rows)), **found.figures(dataset, rows, made)}
        features = f"{PIXELS} x {PIXELS} pixels" if by is None else f"vectors of {by}"
        return Report(figures, {"text": column_label(words), "features": features}, "pictures", (), DEFINITIONS)
    return judge


class _Compared:
    """Training pictures, and the space in which pictures are compared."""

    def __init__(self, prepared: Prepared, columns: tuple[str, ColumnKey], train: Int[np.ndarray, "T"], by: Any):
        self.prepared, self.train, self.by = prepared, train, by
        self.picture, self.words = columns
        self.trained = pixels(prepared, self.picture, train) if len(train) else None
        image = prepared.schema[self.picture]
        assert isinstance(image, Image)
        self.side = image.side

    def figures(self, dataset: Dataset, rows: Int[np.ndarray, "N"], made: Sequence[Picture]) -> dict[str, float]:
        """All figures of one split."""
        captions = [self.prepared.caption(self.words, row) for row in rows.tolist()]
        kinds = {"made": made, "real": self._pictures(rows), **self._cheap(captions)}
        real = self._features(kinds["real"])
        found: dict[str, float] = {}
        for name, shown in kinds.items():
            features = self._features(shown)
            halves = (features[::2], features[1::2]) if name == "real" else (features, real)
            figures = {"Fréchet": frechet(*halves), "kernel": kernel_distance(*halves),
                       "diversity": diversity(features)}
            if self.by is not None:
                figures["CLIP"] = clip_score(features, torch.from_numpy(self.by.embed(text=captions)))
            figures |= self._copied(shown)
            if made_of_things(dataset):
                from sensorium.recipes.judge_scenes import true_pictures  # not needed for other data
                figures |= true_pictures(shown, captions, self.side)
            found |= {f"{name} {figure}": value for figure, value in figures.items()}
        return found

    def _pictures(self, rows: Int[np.ndarray, "N"]) -> list[Picture]:
        return [self.prepared.picture(self.picture, row) for row in rows.tolist()]

    def _cheap(self, captions: Sequence[str]) -> dict[str, list[Picture]]:
        """Pictures that cost nothing."""
        if self.trained is None:
            return {}
        known = [self.prepared.caption(self.words, row) for row in self.train.tolist()]
        mean = (255 * self.trained.mean(0)).round().to(torch.uint8).reshape(self.side, self.side, 3)
        return {"neighbour": self._pictures(self.train[_most_alike(captions, known).numpy()]),
                "mean": [PIL.Image.fromarray(mean.numpy())] * len(captions)}

    def _features(self, shown: Sequence[Picture]) -> Float[Tensor, "N E"]:
        return _flat(shown, PIXELS) if self.by is None else torch.from_numpy(self.by.embed(image=list(shown)))

    def _copied(self, shown: Sequence[Picture]) -> dict[str, float]:
        if self.trained is None:
            return {}
        apart = nearest(_flat(shown, self.side), self.trained)[0] / self.trained.shape[1] ** 0.5
        return {"nearest": apart.mean().item(), "copies": (apart < COPY).double().mean().item()}


def _flat(shown: Sequence[Picture], side: int) -> Float[Tensor, "N P"]:
    """Pictures brought to one size, as numbers from 0 to 1."""
    found = np.stack([squared(p.convert("RGB"), side, "stretch") for p in shown])
    return torch.from_numpy(found).flatten(1).float() / 255


def _most_alike(captions: Sequence[str], known: Sequence[str]) -> Int[Tensor, "N"]:
    """The known caption that has most words in common with each, rare ones counting for more (cosine of tf-idf)."""
    there = [set(plain(text).split()) for text in known]
    rows = Counter(word for words in there for word in words)
    number = {word: i for i, word in enumerate(rows)}
    rare = torch.tensor([math.log(1 + len(known) / count) for count in rows.values()])

    def weighed(texts: Sequence[set[str]]) -> Tensor:
        table = torch.zeros(len(texts), len(number))
        for row, words in zip(table, texts, strict=True):
            row[[number[word] for word in words if word in number]] = 1
        return unit(table * rare)
    return alike(weighed([set(plain(text).split()) for text in captions]), weighed(there))
