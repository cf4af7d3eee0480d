"""The base of a cascade: a finished run that generates small images, frozen."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError, require_type
from sensorium.inference.generate_unclip import UnCLIPGenerator
from sensorium.inference.sample_image import DiffusionImageGenerator, DiffusionModel
from sensorium.io.run_config import RunConfig
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.models.towers import Encoder
from sensorium.recipes.from_run import is_unchanged, recipe_function, require_finished, restore_run
from sensorium.recipes.recipe import build_recipe

BASE_RECIPES = ("imagen", "dalle2")


@dataclass(frozen=True)
class CascadeBase:
    """A generator of small images and how a run stores it.

    Attributes:
        verb: generates the small images.
        metadata: all that is needed to build it again, as plain values.
    """

    verb: DiffusionImageGenerator | UnCLIPGenerator
    metadata: Mapping[str, Any]

    @classmethod
    def resolve(cls, base: str | Mapping[str, Any], size: int) -> "CascadeBase | None":
        """Return the base that a keyword names; None without one, or if it is not trained yet.

        Args:
            base: the run folder; or the stored metadata, which builds the base without its weights
                where the folder is gone; or keywords of a base to train first.
            size: side of the images of the whole cascade.

        Raises:
            SensoriumError: the folder is not a finished run of imagen or dalle2, or its images are
                not smaller.
        """
        if not base or (isinstance(base, Mapping) and "source" not in base):
            return None
        if isinstance(base, str):
            return _load_base(base, size)
        if is_unchanged(base):
            return _load_base(base["source"], size)
        image, text = Image.from_json(base["image"]), Text.from_json(base["text"])
        schema = Schema({"image": Column("image", image), "text": Column("text", text)})
        recipe, _ = build_recipe(recipe_function(base["recipe"]), schema, base["keywords"])
        return cls(_generate_verb(recipe.verbs), base)

    @property
    def generator(self) -> DiffusionImageGenerator:
        """The generator behind the verb."""
        return self.verb.generator if isinstance(self.verb, UnCLIPGenerator) else self.verb

    @property
    def model(self) -> DiffusionModel:
        """The model of the generator."""
        return self.generator.model

    @property
    def text(self) -> Text | None:
        """The settings of its captions; None: those of the run's own schema."""
        return self.generator.text if self.generator.text.tokenizer else None

    @property
    def size(self) -> int:
        """The side of its images."""
        return self.generator.image.size

    def text_encoder(self) -> tuple[Encoder, int]:
        """Return a frozen copy of its text encoder, and the width of its tokens."""
        network = self.generator.network
        encoder = copy.deepcopy(network.text_encoder).requires_grad_(False)
        return encoder, network.text_norm.normalized_shape[0]

    def wrap(self, cascade: DiffusionImageGenerator) -> DiffusionImageGenerator | UnCLIPGenerator:
        """Return the verb of a cascade on this base; one on dalle2 makes variations too."""
        if isinstance(self.verb, UnCLIPGenerator):
            return UnCLIPGenerator(cascade, self.verb.unclip)
        return cascade


def _load_base(folder: str, size: int) -> CascadeBase:
    """Load the base of a cascade from its run folder."""
    recipe = RunConfig.load(Path(folder)).recipe
    if recipe not in BASE_RECIPES:
        raise SensoriumError(
            f"--base {folder} is a run of {recipe}. Name a run of {' or '.join(BASE_RECIPES)}."
        )
    require_finished(folder)
    run = restore_run(folder, recipe_function(recipe))
    metadata = {
        "source": folder,
        "fingerprint": run.fingerprint,
        "recipe": recipe,
        "keywords": {**run.config.keywords, "image": "image", "text": "text"},
    }
    base = CascadeBase(_generate_verb(run.recipe.verbs), metadata)
    if base.size >= size:
        raise SensoriumError(
            f"--base {folder} generates images of {base.size} pixels, which are not smaller than "
            f"{size}. Set --size to more."
        )
    metadata |= {
        "image": base.generator.image.to_json(),
        "text": base.generator.text.to_json(),
    }
    return base


def _generate_verb(verbs: Mapping[str, Any]) -> DiffusionImageGenerator | UnCLIPGenerator:
    verb = verbs["generate"]
    if isinstance(verb, UnCLIPGenerator):
        return verb
    return require_type(verb, DiffusionImageGenerator)
