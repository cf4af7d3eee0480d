"""What published classifiers of pictures share: a tower with a head on it, and the verb that names pictures.

B batch   C classes
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.inference.base import load_value
from sensorium.inference.embed import Embedder
from sensorium.modalities.image import Image
from sensorium.models.towers import Encoder, Tower
from sensorium.nn.linear import Linear
from sensorium.pretrained.family import ModelConfig, Preprocessing, Verbs
from sensorium.pretrained.preprocessing import RESAMPLE_NAMES

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures


class ClassPrediction(NamedTuple):
    """One class that a picture may show."""

    label: str
    class_index: int
    probability: float


class Classifier(nn.ModuleDict):
    """The tower `image`, and `head`, a number for each of `labels`, where it was published with one."""

    labels: tuple[str, ...]

    def __init__(self, encoder: Encoder, width: int, labels: Sequence[str]):
        super().__init__({"image": Tower(encoder, nn.Identity(), width)})
        self.labels = tuple(labels)
        if labels:
            self["head"] = Linear(width, len(labels))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        tower = self["image"]
        assert isinstance(tower, Tower)
        return self["head"](tower.encoder.pooled(image))


class ImageClassifier:
    """predict(image=[...], k=5) → for each picture the k likeliest classes, the likeliest first."""

    def __init__(self, model: Classifier, image: Image):
        self.model, self.image = model, image

    @torch.inference_mode()
    def __call__(
        self, *, image: Sequence[Any], top_k: int = 5, batch_size: int = 64
    ) -> list[list[ClassPrediction]]:
        """Raises SensoriumError naming the first picture that cannot be read."""
        loaded = [load_value(self.image, one) for one in image]
        found: list[list[ClassPrediction]] = []
        for start in range(0, len(loaded), batch_size):
            likely = (
                self.model(self.image.collate(loaded[start : start + batch_size]))
                .float()
                .softmax(-1)
            )
            best = likely.topk(min(top_k, likely.shape[1]))
            found += [
                [
                    ClassPrediction(self.model.labels[n], n, p)
                    for n, p in zip(numbers, shares, strict=True)
                ]
                for numbers, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        return found


def build_verbs(module: nn.Module, preprocessing: Preprocessing) -> Verbs:
    """`embed`, and `predict` where there is a head."""
    assert isinstance(module, Classifier)
    image = preprocessing["image"]
    assert isinstance(image, Image)
    answers: Verbs = {"embed": Embedder(module, {"image": (module["image"], image)})}
    return {**answers, "predict": ImageClassifier(module, image)} if "head" in module else answers


def timm_image_preprocessing(
    pretrained_cfg: Mapping[str, Any], image_size: int, resize_edge: int, resample: str
) -> Image:
    """Pictures as timm's `pretrained_cfg` asks; without one the middle of pictures whose shorter side is `edge`.

    Raises SensoriumError for a way of cutting that is not known here.
    """
    if (
        pretrained_cfg.get("crop_mode", "center") != "center"
        or pretrained_cfg.get("interpolation", resample) not in RESAMPLE_NAMES.values()
    ):
        raise SensoriumError(
            f"config.json asks for pictures by {pretrained_cfg.get('crop_mode')} and "
            f"{pretrained_cfg.get('interpolation')}, which is not known here"
        )
    resize_edge = (
        int(image_size / pretrained_cfg["crop_pct"])
        if "crop_pct" in pretrained_cfg
        else resize_edge
    )
    return Image(
        size=image_size,
        resize_mode="centre",
        shortest_edge=resize_edge,
        resample=pretrained_cfg.get("interpolation", resample),
        mean=tuple(pretrained_cfg.get("mean", IMAGENET_MEAN)),
        std=tuple(pretrained_cfg.get("std", IMAGENET_STD)),
    )


def class_labels(config: ModelConfig, num_classes: int) -> list[str]:
    """Names of the classes, by `id2label` (Hugging Face) or `label_names` (timm), else by their numbers."""
    named = config.get("id2label") or dict(enumerate(config.get("label_names") or []))
    named = {int(number): str(name) for number, name in named.items()}
    return [named.get(number, f"class {number}") for number in range(num_classes)]
