"""Image encoders for the captioner: from scratch, of a finished CLIP run, or pretrained.

B batch   S image size in pixels   E width of an image embedding   T tokens   D token width
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from sensorium.data.cache.columns import ColumnStore
from sensorium.data.cache.prepared import DataSource
from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError, require_type
from sensorium.io.run_config import RunConfig
from sensorium.modalities.base import Modality
from sensorium.modalities.image import Image, PatchEmbedding
from sensorium.modalities.text import Text
from sensorium.models.lora import set_trainable
from sensorium.models.towers import Encoder, Tower
from sensorium.nn.linear import Linear
from sensorium.nn.resnet import ResNet
from sensorium.nn.tokens import ColumnKey, Tokens, sequence_positions
from sensorium.pretrained.source import PretrainedSource
from sensorium.recipes.clip import clip
from sensorium.recipes.from_run import is_unchanged, require_finished, restore_run
from sensorium.recipes.recipe import DeriveColumns, build_recipe

NUM_PREFIX_TOKENS = 8  # tokens that an image embedding is projected to


class PrefixProjection(nn.Module):
    """The embedding of a frozen image encoder, projected to prefix tokens.

    After ClipCap (Mokady et al. 2021). The tokens have the positions before 0, where the text
    starts.

    Args:
        tower: image encoder; it stays frozen and in evaluation mode.
        dim: width of the tokens.
        num_tokens: number of prefix tokens.
        dropout: dropout rate of the image embedding.
    """

    def __init__(self, tower: Tower, dim: int, num_tokens: int, dropout: float):
        super().__init__()
        self.tower = tower.requires_grad_(False)
        self.num_tokens = num_tokens
        self.projection = Linear(tower.embed_dim, num_tokens * dim)
        self.dropout = nn.Dropout(dropout)
        self.train(self.training)

    def train(self, mode: bool = True) -> "PrefixProjection":
        """Set the training mode of everything but the image encoder."""
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, images: Tensor) -> Tokens:
        """Return the prefix tokens.

        Args:
            images: images [B 3 S S], or cached embeddings [B E] of a pretrained encoder.
        """
        with torch.no_grad():
            embedding = self.tower(images) * self.tower.embed_dim**0.5  # unit variance
        x = rearrange(
            self.projection(self.dropout(embedding)), "b (t d) -> b t d", t=self.num_tokens
        )
        return Tokens(x, sequence_positions(x, -self.num_tokens))


@dataclass(frozen=True)
class VisionSource:
    """A trained image encoder and how a run stores it.

    Attributes:
        tower: the image encoder.
        image: settings of the images it encodes; None: those of the run's own schema.
        metadata: all that is needed to build it again, as plain values.
        available: whether `tower` has its trained weights.
    """

    tower: Tower
    image: Image | None
    metadata: Mapping[str, Any]
    available: bool = True

    @classmethod
    def from_run(cls, source: str | Mapping[str, Any]) -> "VisionSource":
        """Load the image encoder of a CLIP run.

        Args:
            source: the run folder; or the stored `metadata`, which builds the encoder without its
                weights where the folder is gone.

        Raises:
            SensoriumError: where the folder is not a run of clip.
        """
        if isinstance(source, str):
            return _load_clip_run(source)
        if is_unchanged(source):
            return _load_clip_run(source["source"])
        image = Image.from_json(source["image"])
        schema = Schema({"image": Column("image", image), "text": Column("text", Text())})
        recipe, _ = build_recipe(clip, schema, source["keywords"])
        return cls(recipe.model["image"], image, source, available=False)

    @classmethod
    def from_pretrained(cls, source: str | Mapping[str, Any]) -> "VisionSource":
        """Load a pretrained image encoder.

        Args:
            source: a folder, a file or a Hugging Face id; or the stored `metadata` of a run.

        Raises:
            SensoriumError: where the weights have no image encoder.
        """
        pretrained = PretrainedSource.from_source(source)
        encoder, width = pretrained.build_encoder("image")
        image = pretrained.preprocessing().get("image")
        image = None if image is None else require_type(image, Image)
        tower = Tower(set_trainable(encoder, "none"), nn.Identity(), width)
        return cls(tower, image, pretrained.to_config())

    def build_embedding(
        self, image: Modality, dim: int, patch_size: int | None, dropout: float
    ) -> nn.Module:
        """Return a module from images to prefix tokens of width `dim`."""
        del image, patch_size  # those of the trained encoder
        return PrefixProjection(self.tower, dim, NUM_PREFIX_TOKENS, dropout)

    def derived_columns(self, column: ColumnKey, schema: Schema) -> DeriveColumns:
        """Return a function that computes the embeddings of a pretrained encoder once.

        The function raises SensoriumError where the encoder lacks its trained weights.

        Args:
            column: the image column.
            schema: columns of the data, with the settings of the encoder.
        """
        return partial(self._compute_columns, column, schema)

    def _compute_columns(
        self, column: ColumnKey, schema: Schema, data: DataSource
    ) -> Mapping[ColumnKey, ColumnStore]:
        from sensorium.recipes.lit import frozen_embeddings  # only for a trained encoder

        if not self.available:
            raise SensoriumError(
                f"The image encoder of this run, {self.metadata['source']}, is missing or has "
                "changed. Restore it to resume training."
            )
        compute = frozen_embeddings(self.tower.encoder, column, schema)
        return {} if compute is None else compute(data)


def _load_clip_run(folder: str) -> VisionSource:
    recipe = RunConfig.load(Path(folder)).recipe
    if recipe != clip.__name__:
        raise SensoriumError(f"--clip-run {folder} is a run of {recipe}. Name a run of clip.")
    require_finished(folder)
    run = restore_run(folder, clip)
    column = run.recipe.data.columns[0]
    image = require_type(run.schema[column], Image)
    metadata = {
        "source": folder,
        "fingerprint": run.fingerprint,
        "recipe": recipe,
        "image": image.to_json(),
        "keywords": {**run.config.keywords, "image": "image", "text": "text"},
    }
    return VisionSource(run.recipe.model[column], image, metadata)


def _resnet(image: Modality, dim: int, patch_size: int | None, dropout: float) -> nn.Module:
    """Return a ResNet with one token per 8 x 8 pixels."""
    del patch_size  # convolutional
    image = require_type(image, Image)
    return Encoder(ResNet(dim, 1, dropout, image_size=image.size))


def _patches(image: Modality, dim: int, patch_size: int | None, dropout: float) -> nn.Module:
    """Return a linear embedding of patches."""
    del dropout  # has none
    image = require_type(image, Image)
    return Encoder(PatchEmbedding(dim, image.size, patch_size or image.size // 8))


VISION_ENCODERS: dict[str, Callable[[Modality, int, int | None, float], nn.Module]] = {
    "resnet": _resnet,
    "patches": _patches,
}
