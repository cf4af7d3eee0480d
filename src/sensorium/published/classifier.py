"""What published classifiers of pictures share: a tower with a head on it, and the verb that names pictures.

    B batch   C classes
"""
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.kernels import Linear
from sensorium.modalities.image import Image
from sensorium.models import Encoder, Tower
from sensorium.published.published import Config, Senses, Verbs
from sensorium.published.senses import RESAMPLE
from sensorium.verbs.embed import Embedder
from sensorium.verbs.verb import load

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)           # of ImageNet's pictures


class Guess(NamedTuple):
    """One class that a picture may show."""

    label: str
    number: int
    probability: float


class Classifier(nn.ModuleDict):
    """The tower `image`, and `head`, a number for each of `labels`, where it was published with one."""

    labels: tuple[str, ...]

    def __init__(self, encode: Encoder, width: int, labels: Sequence[str]):
        super().__init__({"image": Tower(encode, nn.Identity(), width)})
        self.labels = tuple(labels)
        if labels:
            self["head"] = Linear(width, len(labels))

    def forward(self, picture: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        tower = self["image"]
        assert isinstance(tower, Tower)
        return self["head"](tower.encode.whole(picture))


class Namer:
    """predict(image=[...], k=5) → for each picture the k likeliest classes, the likeliest first."""

    def __init__(self, model: Classifier, image: Image):
        self.model, self.image = model, image

    @torch.inference_mode()
    def __call__(self, *, image: Sequence[Any], k: int = 5, batch_size: int = 64) -> list[list[Guess]]:
        """Raises SensoriumError naming the first picture that cannot be read."""
        loaded = [load(self.image, one) for one in image]
        found: list[list[Guess]] = []
        for start in range(0, len(loaded), batch_size):
            likely = self.model(self.image.collate(loaded[start:start + batch_size])).float().softmax(-1)
            best = likely.topk(min(k, likely.shape[1]))
            found += [[Guess(self.model.labels[n], n, p) for n, p in zip(numbers, shares, strict=True)]
                      for numbers, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        return found


def verbs(module: nn.Module, senses: Senses) -> Verbs:
    """`embed`, and `predict` where there is a head."""
    assert isinstance(module, Classifier)
    image = senses["image"]
    assert isinstance(image, Image)
    answers: Verbs = {"embed": Embedder(module, {"image": (module["image"], image)})}
    return {**answers, "predict": Namer(module, image)} if "head" in module else answers


def timm_picture(given: Mapping[str, Any], size: int, edge: int, resample: str) -> Image:
    """Pictures as timm's `pretrained_cfg` asks; without one the middle of pictures whose shorter side is `edge`.

    Raises SensoriumError for a way of cutting that is not known here.
    """
    if given.get("crop_mode", "center") != "center" or given.get("interpolation", resample) not in RESAMPLE.values():
        raise SensoriumError(f"config.json asks for pictures by {given.get('crop_mode')} and "
                             f"{given.get('interpolation')}, which is not known here")
    edge = int(size / given["crop_pct"]) if "crop_pct" in given else edge
    return Image(size=size, square="centre", edge=edge, resample=given.get("interpolation", resample),
                 mean=tuple(given.get("mean", MEAN)), std=tuple(given.get("std", STD)))


def labels(config: Config, classes: int) -> list[str]:
    """Names of the classes, by `id2label` (Hugging Face) or `label_names` (timm), else by their numbers."""
    named = config.get("id2label") or dict(enumerate(config.get("label_names") or []))
    named = {int(number): str(name) for number, name in named.items()}
    return [named.get(number, f"class {number}") for number in range(classes)]
