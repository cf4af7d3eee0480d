"""Text encoders of image generators: trained with them, or frozen: of a run, or pretrained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError, require_type
from sensorium.io.run_config import RunConfig
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text, TextEmbedding
from sensorium.models.decoder import Decoder
from sensorium.models.towers import Encoder, Towers
from sensorium.nn.transformer import build_transformer, num_heads
from sensorium.recipes.from_run import is_unchanged, recipe_function, require_finished, restore_run
from sensorium.recipes.recipe import InvalidKeywordError, build_recipe

TEXT_RUN_RECIPES = ("gpt", "captioner", "clip")


@dataclass(frozen=True)
class TextSource:
    """A frozen text encoder and how a run stores it.

    Attributes:
        encoder: the text encoder.
        width: width of its tokens.
        text: settings of the texts that it encodes; None: those of the run's own schema.
        metadata: all that is needed to build it again, as plain values.
    """

    encoder: Encoder
    width: int
    text: Text | None
    metadata: Mapping[str, Any]

    @classmethod
    def from_run(cls, source: str | Mapping[str, Any]) -> "TextSource":
        """Load the text encoder of a finished run.

        Args:
            source: the run folder; or the stored `metadata`, which builds the encoder without its
                weights where the folder is gone.

        Raises:
            SensoriumError: where the folder is not a run with a text encoder.
        """
        if isinstance(source, str):
            return _load_text_run(source)
        if is_unchanged(source):
            return _load_text_run(source["source"])
        text = Text.from_json(source["text"])
        schema = Schema({"image": Column("image", Image()), "text": Column("text", text)})
        recipe, _ = build_recipe(recipe_function(source["recipe"]), schema, source["keywords"])
        return cls(*_text_encoder(recipe.model), None, source)

    @classmethod
    def from_pretrained(cls, source: str | Mapping[str, Any]) -> "TextSource":
        """Load a pretrained text encoder.

        Args:
            source: a folder, a file or a Hugging Face id; or the stored `metadata` of a run.

        Raises:
            SensoriumError: where the weights have no text encoder.
        """
        from sensorium.pretrained.source import PretrainedSource  # only for such weights

        pretrained = PretrainedSource.from_source(source)
        encoder, width = pretrained.build_encoder("text")
        text = pretrained.preprocessing().get("text")
        text = None if text is None else require_type(text, Text)
        return cls(encoder.requires_grad_(False), width, text, pretrained.to_config())


def resolve_text_source(
    run: str | Mapping[str, Any], weights: str | Mapping[str, Any]
) -> TextSource | None:
    """Return the frozen text encoder that a keyword names; None to train one.

    Raises:
        InvalidKeywordError: where both are given.
    """
    if run and weights:
        raise InvalidKeywordError(
            "--text-run and --text-weights both name a text encoder. Give only one of them."
        )
    if run:
        return TextSource.from_run(run)
    return TextSource.from_pretrained(weights) if weights else None


def build_text_encoder(text: Text, dim: int, layers: int) -> Encoder:
    """Build a transformer that is trained with the generator."""
    return Encoder(
        TextEmbedding(dim, text, causal=False), build_transformer(dim, layers, num_heads(dim))
    )


def _load_text_run(folder: str) -> TextSource:
    recipe = RunConfig.load(Path(folder)).recipe
    if recipe not in TEXT_RUN_RECIPES:
        raise SensoriumError(
            f"--text-run {folder} is a run of {recipe}. Name a run of "
            f"{', '.join(TEXT_RUN_RECIPES)}."
        )
    require_finished(folder)
    run = restore_run(folder, recipe_function(recipe))
    column = next(c for c in run.recipe.data.columns if isinstance(run.schema[c], Text))
    text = require_type(run.schema[column], Text)
    keywords = {**run.config.keywords, "text": "text"}
    if "image" in keywords and keywords["image"] != "":
        keywords["image"] = "image"
    metadata = {
        "source": folder,
        "fingerprint": run.fingerprint,
        "recipe": recipe,
        "text": text.to_json(),
        "keywords": keywords,
    }
    return TextSource(*_text_encoder(run.recipe.model), text, metadata)


def _text_encoder(model: nn.Module) -> tuple[Encoder, int]:
    """Return the frozen text encoder of a decoder or of a dual encoder, and its width."""
    if isinstance(model, Decoder):
        embedding = require_type(model.parts["text"], TextEmbedding)
        encoder = Encoder(embedding, model.trunk)
    else:
        towers = require_type(model, Towers)
        column = towers.columns[1]
        encoder = towers[column].encoder
        embedding = require_type(encoder.embed, TextEmbedding)
    return encoder.requires_grad_(False), embedding.token_embedding.embedding_dim
