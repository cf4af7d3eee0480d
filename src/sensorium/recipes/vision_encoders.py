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

from sensorium.data.cache.prepared import ColumnStore, Source
from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.io.run_config import WEIGHTS_FILE, RunConfig
from sensorium.io.tensors import file_sha256
from sensorium.modalities.base import Modality
from sensorium.modalities.image import Image, PatchEmbedding
from sensorium.modalities.text import Text
from sensorium.models.lora import set_trainable
from sensorium.models.towers import Encoder, Tower, Towers
from sensorium.nn.linear import Linear
from sensorium.nn.resnet import ResNet
from sensorium.nn.tokens import ColumnKey, Tokens, sequence_positions
from sensorium.pretrained.source import PretrainedSource
from sensorium.recipes.clip import clip, clip_small
from sensorium.recipes.from_run import restore_run
from sensorium.recipes.recipe import DeriveColumns, RecipeFunction, build_recipe

NUM_PREFIX_TOKENS = 8  # tokens that a trained eye's one vector becomes
CLIP_RECIPES: dict[str, RecipeFunction[Towers]] = {"clip": clip, "clip_small": clip_small}


class PrefixProjection(nn.Module):
    """A picture as a few tokens, made of the vector that a trained tower has for it (ClipCap, Mokady et al. 2021).

    The tower learns no more, and its statistics stand still. The tokens end where the words begin, at time 0.
    """

    def __init__(self, tower: Tower, dim: int, num_tokens: int, dropout: float):
        super().__init__()
        self.tower, self.num_tokens = tower.requires_grad_(False), num_tokens
        self.projection, self.dropout = (
            Linear(tower.embed_dim, num_tokens * dim),
            nn.Dropout(dropout),
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> "PrefixProjection":
        """All but the tower."""
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, images: Tensor) -> Tokens:
        """Pictures [B 3 S S], or what a published eye said of them before [B E]."""
        with torch.no_grad():
            vector = self.tower(images) * self.tower.embed_dim**0.5  # about 1 each number
        x = rearrange(self.projection(self.dropout(vector)), "b (t d) -> b t d", t=self.num_tokens)
        return Tokens(x, sequence_positions(x, -self.num_tokens))


@dataclass(frozen=True)
class VisionSource:
    """A trained tower that reads pictures, how they are read (None: as the run's schema says), and all that a run must
    keep to build it again. `there`: whether it has the weights it was trained to."""

    tower: Tower
    image: Image | None
    metadata: Mapping[str, Any]
    available: bool = True

    @classmethod
    def from_run(cls, source: str | Mapping[str, Any]) -> "VisionSource":
        """That of a run's folder; or what `told` said of one, whose weights lie with those of the run that keeps it.

        Raises SensoriumError where the folder is no run of CLIP.
        """
        if isinstance(source, str):
            return _load_clip_run(source)
        path = Path(source["source"]) / WEIGHTS_FILE
        if path.is_file() and file_sha256(path) == source["fingerprint"]:
            return _load_clip_run(source["source"])
        image = Image.from_json(source["image"])
        columns = {"image": Column("image", image), "text": Column("text", Text())}
        recipe, _ = build_recipe(
            CLIP_RECIPES[source["recipe"]], Schema(columns), source["keywords"]
        )
        return cls(recipe.model["image"], image, source, False)

    @classmethod
    def from_pretrained(cls, source: str | Mapping[str, Any]) -> "VisionSource":
        """A published encoder of pictures, or what `told` said of one. Raises SensoriumError where it does not see."""
        start = PretrainedSource.from_source(source)
        encoder, width = start.build_encoder("image")
        image = start.preprocessing().get("image")
        assert image is None or isinstance(image, Image)
        return cls(
            Tower(set_trainable(encoder, "none"), nn.Identity(), width), image, start.to_config()
        )

    def embed(self, image: Modality, dim: int, patch_size: int, dropout: float) -> nn.Module:
        """What makes pictures tokens of that width."""
        return PrefixProjection(self.tower, dim, NUM_PREFIX_TOKENS, dropout)

    def derived_columns(self, column: ColumnKey, schema: Schema) -> DeriveColumns:
        """What a published eye says of each picture, as a column; of others, nothing.

        Raises SensoriumError where training would go on with an eye that has not learned.
        """
        from sensorium.recipes.lit import frozen_embeddings  # not needed with an eye that learns

        def ready(data: Source) -> Mapping[ColumnKey, ColumnStore]:
            if not self.available:
                raise SensoriumError(
                    f"pictures are seen by {self.metadata['source']}, which is not there any more: to go "
                    "on, put it back"
                )
            look = frozen_embeddings(self.tower.encoder, column, schema)
            return {} if look is None else look(data)

        return ready


def _load_clip_run(folder: str) -> VisionSource:
    name = RunConfig.load(Path(folder)).recipe
    if name not in CLIP_RECIPES:
        raise SensoriumError(
            f"{folder} is a run of {name}; here one of {' or '.join(CLIP_RECIPES)} is needed."
        )
    found = restore_run(folder, CLIP_RECIPES[name])
    picture = found.recipe.data.columns[0]
    image = found.schema[picture]
    assert isinstance(image, Image)
    told = {
        "source": folder,
        "fingerprint": found.fingerprint,
        "recipe": name,
        "image": image.to_json(),
        "keywords": {**found.config.keywords, "image": "image", "text": "text"},
    }
    return VisionSource(found.recipe.model[picture], image, told)


def resnet(image: Modality, dim: int, patch_size: int, dropout: float) -> nn.Module:
    """Convolutions: a token for each 8 x 8 pixels."""
    assert isinstance(image, Image)
    return Encoder(ResNet(dim, 1, dropout, image_size=image.size))


def patch_embedding(image: Modality, dim: int, patch_size: int, dropout: float) -> nn.Module:
    """Nothing but a token for each patch."""
    assert isinstance(image, Image)
    return Encoder(PatchEmbedding(dim, image.size, patch_size or image.size // 8))


VISION_ENCODERS = {"resnet": resnet, "patches": patch_embedding}
