"""Pretrained image classifiers: an image tower with a head, and the verbs `embed` and `predict`.

B batch   C classes
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sensorium.data.batching import iter_batches
from sensorium.errors import SensoriumError, require_type
from sensorium.inference.base import load_value
from sensorium.inference.embed import Embedder
from sensorium.modalities.image import Image
from sensorium.models.towers import Encoder, Tower
from sensorium.nn.linear import Linear
from sensorium.pretrained.family import ModelConfig, Preprocessing, Verbs
from sensorium.pretrained.image_processor import RESAMPLE_NAMES

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ClassPrediction(NamedTuple):
    """A class that an image may show."""

    label: str
    class_index: int
    probability: float


class Classifier(nn.ModuleDict):
    """The tower `image`, and the linear layer `head` if there are labels.

    Args:
        encoder: Encoder of the tower.
        width: Width of its pooled embedding.
        labels: Names of the classes; () for a backbone without a head.
    """

    labels: tuple[str, ...]

    def __init__(self, encoder: Encoder, width: int, labels: Sequence[str]):
        super().__init__({"image": Tower(encoder, nn.Identity(), width)})
        self.labels = tuple(labels)
        if labels:
            self["head"] = Linear(width, len(labels))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """Return the logits of the classes."""
        tower = require_type(self["image"], Tower)
        return self["head"](tower.encoder.pooled(image))


class ImageClassifier:
    """The verb `predict` of an image classifier.

    Args:
        model: The classifier, with a head.
        image: Settings of its images.
    """

    def __init__(self, model: Classifier, image: Image):
        self.model = model
        self.image = image

    @torch.inference_mode()
    def __call__(
        self, *, image: Sequence[Any], top_k: int = 5, batch_size: int = 64
    ) -> list[list[ClassPrediction]]:
        """Return the most probable classes of each image, the most probable first.

        Args:
            image: Raw images: paths, bytes, PIL images or arrays.
            top_k: The number of classes for each.
            batch_size: The number of images that are computed together.

        Raises:
            SensoriumError: Naming the first image that cannot be read.
        """
        loaded = [load_value(self.image, value) for value in image]
        predictions: list[list[ClassPrediction]] = []
        for values in iter_batches(loaded, batch_size):
            probabilities = self.model(self.image.collate(values)).float().softmax(-1)
            top = probabilities.topk(min(top_k, probabilities.shape[1]))
            rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            predictions += [self._top_classes(indices, shares) for indices, shares in rows]
        return predictions

    def _top_classes(
        self, indices: Sequence[int], probabilities: Sequence[float]
    ) -> list[ClassPrediction]:
        return [
            ClassPrediction(self.model.labels[index], index, probability)
            for index, probability in zip(indices, probabilities, strict=True)
        ]


def build_verbs(module: nn.Module, preprocessing: Preprocessing) -> Verbs:
    """Return `embed`, and `predict` if there is a head."""
    model = require_type(module, Classifier)
    image = require_type(preprocessing["image"], Image)
    embedder = Embedder(model, {"image": (model["image"], image)})
    if "head" not in model:
        return {"embed": embedder}
    return {"embed": embedder, "predict": ImageClassifier(model, image)}


def timm_image_preprocessing(
    pretrained_cfg: Mapping[str, Any], image_size: int, resize_edge: int, resample: str
) -> Image:
    """Return the image settings of timm's `pretrained_cfg`.

    Args:
        pretrained_cfg: The config; {} if there is none.
        image_size: Side of the images that the model takes, in pixels.
        resize_edge: Shorter side before the center crop, if the config has no `crop_pct`.
        resample: Resampling filter, if the config names none.

    Raises:
        SensoriumError: If the config crops or resamples in a way that is not supported.
    """
    crop_mode = pretrained_cfg.get("crop_mode", "center")
    resample = pretrained_cfg.get("interpolation", resample)
    if crop_mode != "center" or resample not in RESAMPLE_NAMES.values():
        raise SensoriumError(
            f"config.json has crop_mode={crop_mode!r} and interpolation={resample!r}. Supported "
            f"are 'center' and {', '.join(RESAMPLE_NAMES.values())}."
        )
    if "crop_pct" in pretrained_cfg:
        resize_edge = int(image_size / pretrained_cfg["crop_pct"])
    return Image(
        size=image_size,
        resize_mode="centre",
        shortest_edge=resize_edge,
        resample=resample,
        mean=tuple(pretrained_cfg.get("mean", IMAGENET_MEAN)),
        std=tuple(pretrained_cfg.get("std", IMAGENET_STD)),
    )


def class_labels(config: ModelConfig, num_classes: int) -> list[str]:
    """Return the class names of `id2label` (transformers) or `label_names` (timm), or "class N"."""
    names = config.get("id2label") or dict(enumerate(config.get("label_names") or []))
    try:
        names = {int(index): str(name) for index, name in names.items()}
    except (AttributeError, ValueError) as error:
        raise SensoriumError(
            f"The config names its classes by id2label={str(names)[:80]}. Give an object of "
            "numbers and names."
        ) from error
    return [names.get(index, f"class {index}") for index in range(num_classes)]
