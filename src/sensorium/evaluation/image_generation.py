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

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.data.splits import sample_evenly
from sensorium.evaluation.baselines import (
    is_scenes_dataset,
    load_pixels,
    nearest_indices,
    training_rows,
    unique_image_rows,
)
from sensorium.evaluation.captioning import Evaluator
from sensorium.evaluation.protocol import Trained
from sensorium.evaluation.report import EvaluationReport
from sensorium.metrics.image_generation import (
    clip_score,
    diversity,
    frechet_distance,
    kernel_distance,
    nearest_neighbors,
)
from sensorium.metrics.text_generation import normalize_text
from sensorium.modalities.image import Image
from sensorium.modalities.image_decode import resize_square
from sensorium.nn.tokens import ColumnKey, column_label, l2_normalize

PILImage = PIL.Image.Image
MAX_COPY_RMSE = 0.02  # of the range of a pixel
PIXEL_FEATURE_SIZE = 8  # side of what stands for a picture where no model does
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


def image_generation_evaluator(image_column: str, text_column: ColumnKey) -> Evaluator:
    """A judge of pictures made for captions, for the columns of a recipe."""

    def evaluate(
        model: Trained,
        dataset: Dataset,
        splits: Sequence[str],
        *,
        max_samples: int = 500,
        seed: int = 0,
        feature_model: Any = None,
    ) -> EvaluationReport:
        """most: captions of a split that pictures are made for, each once, evenly spaced. by: a model with
        `embed(image=)` and `embed(text=)`, trained on none of the model's pictures, best by other artists; its vectors
        are the features. Without it features are the pixels of small pictures, and there is no CLIP score."""
        prepared = dataset.prepare(model.schema, (image_column, text_column))
        train = unique_image_rows(prepared, image_column, training_rows(dataset, prepared))
        found = _ImageComparison(prepared, (image_column, text_column), train, feature_model)
        figures = {}
        for split in splits:
            rows = unique_image_rows(
                prepared, image_column, prepared.complete_rows(dataset.splits[split])
            )
            asked = {
                prepared.caption(text_column, row): row for row in rows[::-1].tolist()
            }  # the same words, one picture
            rows = sample_evenly(np.array(sorted(asked.values())), max_samples)
            if len(rows) >= 4:  # two halves of two
                made = model.generate(
                    "image",
                    text=[prepared.caption(text_column, row) for row in rows.tolist()],
                    seed=seed,
                )
                figures[split] = {
                    "pictures": float(len(rows)),
                    **found.compute_metrics(dataset, rows, made),
                }
        features = (
            f"{PIXEL_FEATURE_SIZE} x {PIXEL_FEATURE_SIZE} pixels"
            if feature_model is None
            else f"vectors of {feature_model}"
        )
        return EvaluationReport(
            figures,
            {"text": column_label(text_column), "features": features},
            "pictures",
            (),
            DEFINITIONS,
        )

    return evaluate


class _ImageComparison:
    """Training pictures, and the space in which pictures are compared."""

    def __init__(
        self,
        prepared: PreparedDataset,
        columns: tuple[str, ColumnKey],
        train_rows: Int[np.ndarray, "T"],
        feature_model: Any,
    ):
        self.prepared, self.train_rows, self.feature_model = prepared, train_rows, feature_model
        self.image_column, self.text_column = columns
        self.train_pixels = (
            load_pixels(prepared, self.image_column, train_rows) if len(train_rows) else None
        )
        image = prepared.schema[self.image_column]
        assert isinstance(image, Image)
        self.image_size = image.stored_size

    def compute_metrics(
        self, dataset: Dataset, rows: Int[np.ndarray, "N"], generated: Sequence[PILImage]
    ) -> dict[str, float]:
        """All figures of one split."""
        captions = [self.prepared.caption(self.text_column, row) for row in rows.tolist()]
        kinds = {
            "made": generated,
            "real": self._load_images(rows),
            **self._baseline_images(captions),
        }
        real = self._extract_features(kinds["real"])
        found: dict[str, float] = {}
        for name, shown in kinds.items():
            features = self._extract_features(shown)
            halves = (features[::2], features[1::2]) if name == "real" else (features, real)
            figures = {
                "Fréchet": frechet_distance(*halves),
                "kernel": kernel_distance(*halves),
                "diversity": diversity(features),
            }
            if self.feature_model is not None:
                figures["CLIP"] = clip_score(
                    features, torch.from_numpy(self.feature_model.embed(text=captions))
                )
            figures |= self._copy_metrics(shown)
            if is_scenes_dataset(dataset):
                from sensorium.evaluation.scenes import image_metrics  # not needed for other data

                figures |= image_metrics(shown, captions, self.image_size)
            found |= {f"{name} {figure}": value for figure, value in figures.items()}
        return found

    def _load_images(self, rows: Int[np.ndarray, "N"]) -> list[PILImage]:
        return [self.prepared.image(self.image_column, row) for row in rows.tolist()]

    def _baseline_images(self, captions: Sequence[str]) -> dict[str, list[PILImage]]:
        """Pictures that cost nothing."""
        if self.train_pixels is None:
            return {}
        known = [self.prepared.caption(self.text_column, row) for row in self.train_rows.tolist()]
        mean = (
            (255 * self.train_pixels.mean(0))
            .round()
            .to(torch.uint8)
            .reshape(self.image_size, self.image_size, 3)
        )
        return {
            "neighbour": self._load_images(
                self.train_rows[_nearest_captions(captions, known).numpy()]
            ),
            "mean": [PIL.Image.fromarray(mean.numpy())] * len(captions),
        }

    def _extract_features(self, images: Sequence[PILImage]) -> Float[Tensor, "N E"]:
        return (
            _image_vectors(images, PIXEL_FEATURE_SIZE)
            if self.feature_model is None
            else torch.from_numpy(self.feature_model.embed(image=list(images)))
        )

    def _copy_metrics(self, images: Sequence[PILImage]) -> dict[str, float]:
        if self.train_pixels is None:
            return {}
        apart = (
            nearest_neighbors(_image_vectors(images, self.image_size), self.train_pixels)[0]
            / self.train_pixels.shape[1] ** 0.5
        )
        return {
            "nearest": apart.mean().item(),
            "copies": (apart < MAX_COPY_RMSE).double().mean().item(),
        }


def _image_vectors(images: Sequence[PILImage], size: int) -> Float[Tensor, "N P"]:
    """Pictures brought to one size, as numbers from 0 to 1."""
    found = np.stack([resize_square(p.convert("RGB"), size, "stretch") for p in images])
    return torch.from_numpy(found).flatten(1).float() / 255


def _nearest_captions(captions: Sequence[str], candidates: Sequence[str]) -> Int[Tensor, "N"]:
    """The known caption that has most words in common with each, rare ones counting for more (cosine of tf-idf)."""
    there = [set(normalize_text(text).split()) for text in candidates]
    rows = Counter(word for words in there for word in words)
    number = {word: i for i, word in enumerate(rows)}
    rare = torch.tensor([math.log(1 + len(candidates) / count) for count in rows.values()])

    def tfidf_vectors(texts: Sequence[set[str]]) -> Tensor:
        table = torch.zeros(len(texts), len(number))
        for row, words in zip(table, texts, strict=True):
            row[[number[word] for word in words if word in number]] = 1
        return l2_normalize(table * rare)

    return nearest_indices(
        tfidf_vectors([set(normalize_text(text).split()) for text in captions]),
        tfidf_vectors(there),
    )
