"""What reads pictures for a family that speaks of them: an eye that learns with it, that of a finished run of CLIP, or
a published one.

    B batch   S side in pixels   E width of CLIP's space   T tokens   D width of a token
"""
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from sensorium.adapt import tuned
from sensorium.config import WEIGHTS, Config
from sensorium.data.cache import Source, Stored
from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.kernels import Linear
from sensorium.modalities.image import Image, Patches
from sensorium.modalities.modality import Modality
from sensorium.modalities.resnet import ResNet
from sensorium.modalities.text import Text
from sensorium.models import Encoder, Tower, Towers
from sensorium.published.start import Start
from sensorium.recipes.clip import clip, clip_small
from sensorium.recipes.recipe import DeriveColumns, Make, build
from sensorium.recipes.stage import restored
from sensorium.stored import digest
from sensorium.tokens import ColumnKey, Tokens, line

LOOKS = 8                                   # tokens that a trained eye's one vector becomes
MAKES: dict[str, Make[Towers]] = {"clip": clip, "clip_small": clip_small}


class Impression(nn.Module):
    """A picture as a few tokens, made of the vector that a trained tower has for it (ClipCap, Mokady et al. 2021).

    The tower learns no more, and its statistics stand still. The tokens end where the words begin, at time 0.
    """

    def __init__(self, tower: Tower, dim: int, looks: int, dropout: float):
        super().__init__()
        self.tower, self.looks = tower.requires_grad_(False), looks
        self.spread, self.drop = Linear(tower.width, looks * dim), nn.Dropout(dropout)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Impression":
        """All but the tower."""
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, pictures: Tensor) -> Tokens:
        """Pictures [B 3 S S], or what a published eye said of them before [B E]."""
        with torch.no_grad():
            vector = self.tower(pictures) * self.tower.width ** 0.5         # about 1 each number
        x = rearrange(self.spread(self.drop(vector)), "b (t d) -> b t d", t=self.looks)
        return Tokens(x, line(x, -self.looks))


@dataclass(frozen=True)
class Eye:
    """A trained tower that reads pictures, how they are read (None: as the run's schema says), and all that a run must
    keep to build it again. `there`: whether it has the weights it was trained to."""

    tower: Tower
    image: Image | None
    told: Mapping[str, Any]
    there: bool = True

    @classmethod
    def of(cls, source: str | Mapping[str, Any]) -> "Eye":
        """That of a run's folder; or what `told` said of one, whose weights lie with those of the run that keeps it.

        Raises SensoriumError where the folder is no run of CLIP.
        """
        if isinstance(source, str):
            return _trained(source)
        path = Path(source["source"]) / WEIGHTS
        if path.is_file() and digest(path) == source["fingerprint"]:
            return _trained(source["source"])
        image = Image.from_json(source["image"])
        columns = {"image": Column("image", image), "text": Column("text", Text())}
        recipe, _ = build(MAKES[source["recipe"]], Schema(columns), source["keywords"])
        return cls(recipe.model["image"], image, source, False)

    @classmethod
    def published(cls, source: str | Mapping[str, Any]) -> "Eye":
        """A published encoder of pictures, or what `told` said of one. Raises SensoriumError where it does not see."""
        start = Start.of(source)
        encoder, width = start.encoder("image")
        image = start.senses().get("image")
        assert image is None or isinstance(image, Image)
        return cls(Tower(tuned(encoder, "none"), nn.Identity(), width), image, start.told())

    def look(self, image: Modality, dim: int, patch: int, dropout: float) -> nn.Module:
        """What makes pictures tokens of that width."""
        return Impression(self.tower, dim, LOOKS, dropout)

    def derived(self, picture: ColumnKey, schema: Schema) -> DeriveColumns:
        """What a published eye says of each picture, as a column; of others, nothing.

        Raises SensoriumError where training would go on with an eye that has not learned.
        """
        from sensorium.recipes.lit import looked  # not needed with an eye that learns

        def ready(data: Source) -> Mapping[ColumnKey, Stored]:
            if not self.there:
                raise SensoriumError(f"pictures are seen by {self.told['source']}, which is not there any more: to go "
                                     "on, put it back")
            look = looked(self.tower.encode, picture, schema)
            return {} if look is None else look(data)
        return ready


def _trained(folder: str) -> Eye:
    name = Config.load(Path(folder)).recipe
    if name not in MAKES:
        raise SensoriumError(f"{folder} is a run of {name}; here one of {' or '.join(MAKES)} is needed.")
    found = restored(folder, MAKES[name])
    picture = found.recipe.data.columns[0]
    image = found.schema[picture]
    assert isinstance(image, Image)
    told = {"source": folder, "fingerprint": found.fingerprint, "recipe": name, "image": image.to_json(),
            "keywords": {**found.config.keywords, "image": "image", "text": "text"}}
    return Eye(found.recipe.model[picture], image, told)


def resnet(image: Modality, dim: int, patch: int, dropout: float) -> nn.Module:
    """Convolutions: a token for each 8 x 8 pixels."""
    assert isinstance(image, Image)
    return Encoder(ResNet(dim, 1, dropout, size=image.size))


def patches(image: Modality, dim: int, patch: int, dropout: float) -> nn.Module:
    """Nothing but a token for each patch."""
    assert isinstance(image, Image)
    return Encoder(Patches(dim, image.size, patch or image.size // 8))


EYES = {"resnet": resnet, "patches": patches}
