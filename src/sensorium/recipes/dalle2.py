"""DALL-E 2 (Ramesh et al. 2022): text to CLIP image embedding to image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError, require_type
from sensorium.evaluation.spec import EvaluationSpec
from sensorium.evaluation.validate_denoising import prior_validator
from sensorium.inference.generate_unclip import UnCLIPGenerator
from sensorium.inference.sample_embedding import PRIOR_PROCESS, PriorEmbedder
from sensorium.inference.sample_image import DiffusionImageGenerator
from sensorium.io.run_config import RunConfig
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text, TextEmbedding
from sensorium.models.denoiser import TextConditionalDenoiser
from sensorium.models.prior import DiffusionPrior, ImageInput, ImagePrior, UnCLIP
from sensorium.models.towers import Tower, Towers
from sensorium.nn.tokens import ColumnKey
from sensorium.objectives.diffusion import DenoisingLoss, PriorLoss, default_logit_mean
from sensorium.recipes.from_run import (
    is_unchanged,
    recipe_function,
    require_finished,
    require_unchanged,
    restore_run,
)
from sensorium.recipes.image_targets import HALF, data_spec, image_settings
from sensorium.recipes.imagen import PROCESSES, build_denoiser, denoising_evaluation
from sensorium.recipes.recipe import Hooks, InvalidKeywordError, Recipe, build_recipe, check_choice
from sensorium.recipes.text_encoders import build_text_encoder
from sensorium.recipes.training_config import TrainingConfig


def dalle2_prior(
    schema: Schema,
    *,
    clip_run: str | Mapping[str, Any] = "",
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    dim: int = 256,
    layers: int = 6,
    caption_dropout: float = 0.1,
) -> Recipe[ImagePrior]:
    """Predict CLIP image embeddings from text by diffusion, the first stage of dalle2.

    Args:
        schema: columns of the data.
        clip_run: run folder of the clip whose embeddings are predicted.
        image: image column. Default: the only one.
        text: caption column. Repeat to read several columns as one text. Default: the only one.
        dim: width of the transformer.
        layers: transformer layers.
        caption_dropout: fraction of captions dropped in training, for classifier-free guidance.
    """
    image_column = schema.resolve_column("image", image)
    text_column = schema.resolve_text_columns(text)
    source = CLIPSource.from_run(clip_run)
    texts = source.text or require_type(schema[text_column], Text)
    images = replace(source.image, mean=HALF, std=HALF)
    tower = source.text_tower
    prior = DiffusionPrior(tower.embed_dim, source.text_width, texts.length, dim, layers)
    clip_input = ImageInput(source.image.size, source.image.mean, source.image.std)
    model = ImagePrior(source.image_tower, tower, prior, clip_input)
    objective = PriorLoss(PRIOR_PROCESS, image_column, text_column, caption_dropout)
    return Recipe(
        model=model,
        objective=objective,
        data=data_spec(image_column, text_column, images, texts),
        verbs={"embed": PriorEmbedder(model, texts, images)},
        training=TrainingConfig(batch_size=256, augment="none", ema_decay=0.99),
        evaluation=EvaluationSpec(
            metric="val_loss", mode="min", validate=prior_validator(objective)
        ),
        hooks=Hooks(on_start=require_unchanged(source.metadata)),
        stored_keywords={"clip_run": dict(source.metadata)},
    )


def dalle2(
    schema: Schema,
    *,
    prior: str | Mapping[str, Any] = "",
    clip_run: str = "",
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    size: int | None = None,
    denoiser: Literal["unet", "dit"] = "unet",
    process: Literal["flow", "ddpm"] = "flow",
    dim: int = 48,
    layers: int = 6,
    patch_size: int = 2,
    text_dim: int = 192,
    text_layers: int = 4,
    caption_dropout: float = 0.5,
    embedding_dropout: float = 0.1,
) -> Recipe[UnCLIP]:
    """Generate images from text by way of CLIP image embeddings; vary and blend images.

    Args:
        schema: columns of the data.
        prior: run folder of dalle2_prior. In Python, a mapping gives the keywords of one to train
            first.
        clip_run: run folder of a clip, for which a prior is trained first.
        image: image column. Default: the only one.
        text: caption column. Repeat to read several columns as one text. Default: the only one.
        size: side of the images in pixels. Default: that of the column.
        denoiser: network: unet (convolutions, and attention at low resolutions) or dit (a
            transformer over patches).
        process: flow (rectified flow) or ddpm (a cosine schedule with v-prediction).
        dim: width of the U-Net at full resolution; of a dit, a quarter of its width.
        layers: blocks of a dit.
        patch_size: side of a patch of a dit in pixels.
        text_dim: width of the decoder's text encoder.
        text_layers: layers of the decoder's text encoder.
        caption_dropout: fraction of captions dropped in training.
        embedding_dropout: fraction of image embeddings dropped in training.
    """
    check_choice("process", process, list(PROCESSES))
    image_column = schema.resolve_column("image", image)
    text_column = schema.resolve_text_columns(text)
    images = image_settings(schema, image_column, size)
    trained = PriorSource.resolve(prior, clip_run, schema, (image_column, text_column))
    texts = trained.text or require_type(schema[text_column], Text)
    network = build_denoiser(denoiser, images.size, dim, layers, patch_size)
    encoder = build_text_encoder(texts, text_dim, text_layers)
    decoder = TextConditionalDenoiser(
        network, encoder, text_dim, 4 * dim, image_dim=trained.model.embed_dim
    )
    model = UnCLIP(trained.model, decoder, embedding_dropout)
    objective = DenoisingLoss(
        PROCESSES[process],
        image_column,
        text_column,
        caption_dropout,
        default_logit_mean(images.size),
    )
    generator = DiffusionImageGenerator(model, PROCESSES[process], texts, images)
    return Recipe(
        model=model,
        objective=objective,
        data=data_spec(image_column, text_column, images, texts),
        verbs={"generate": UnCLIPGenerator(generator, model)},
        training=TrainingConfig(
            batch_size=64, lr=3e-3, optimizer="muon", ema_decay=0.998, augment="none"
        ),
        hooks=Hooks(on_start=require_unchanged(trained.metadata)),
        evaluation=denoising_evaluation(generator, objective),
        stored_keywords={"prior": dict(trained.metadata)} if trained.metadata else {},
        prerequisites={} if trained.metadata else {"prior": (dalle2_prior, trained.keywords)},
    )


@dataclass(frozen=True)
class CLIPSource:
    """A frozen CLIP and how a run stores it.

    Attributes:
        image_tower: the image tower.
        text_tower: the text tower.
        image: settings of the images that it reads.
        text: settings of the texts that it reads; None: those of the run's own schema.
        text_width: width of its text tokens.
        metadata: all that is needed to build it again, as plain values.
    """

    image_tower: Tower
    text_tower: Tower
    image: Image
    text: Text | None
    text_width: int
    metadata: Mapping[str, Any]

    @classmethod
    def from_run(cls, source: str | Mapping[str, Any]) -> "CLIPSource":
        """Load the towers of a finished CLIP run.

        Args:
            source: the run folder; or the stored `metadata`, which builds the towers without their
                weights where the folder is gone.

        Raises:
            SensoriumError: the folder is not a finished run of clip.
        """
        if isinstance(source, str):
            return _load_clip(source)
        if is_unchanged(source):
            return _load_clip(source["source"])
        image, text = Image.from_json(source["image"]), Text.from_json(source["text"])
        schema = Schema({"image": Column("image", image), "text": Column("text", text)})
        recipe, _ = build_recipe(recipe_function("clip"), schema, source["keywords"])
        return cls(*_towers(recipe.model), image, None, _text_width(recipe.model), source)


@dataclass(frozen=True)
class PriorSource:
    """A frozen prior and how a run stores it; or an untrained one, and what to train first.

    Attributes:
        model: the prior with its CLIP.
        text: settings of its texts; None: those of the run's own schema.
        metadata: all that is needed to build it again, as plain values; {} if it is not trained.
        keywords: keywords of the prior to train first.
    """

    model: ImagePrior
    text: Text | None
    metadata: Mapping[str, Any]
    keywords: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def resolve(
        cls,
        prior: str | Mapping[str, Any],
        clip_run: str,
        schema: Schema,
        columns: tuple[str, ColumnKey],
    ) -> "PriorSource":
        """Return the prior that the keywords name.

        Args:
            prior: a run folder, stored metadata, or keywords of a prior to train first.
            clip_run: a run folder of a CLIP, for which a prior is trained first.
            schema: columns of the data.
            columns: image and text column.

        Raises:
            InvalidKeywordError: neither is given.
            SensoriumError: the folder is not a finished run of dalle2_prior.
        """
        if isinstance(prior, str) and prior:
            return _load_prior(prior)
        if isinstance(prior, Mapping) and "source" in prior:
            if is_unchanged(prior):
                return _load_prior(prior["source"])
            image, text = Image.from_json(prior["image"]), Text.from_json(prior["text"])
            stored = Schema({"image": Column("image", image), "text": Column("text", text)})
            recipe, _ = build_recipe(dalle2_prior, stored, prior["keywords"])
            return cls(recipe.model, None, prior)
        keywords = dict(prior) if isinstance(prior, Mapping) else {}
        if clip_run:
            keywords["clip_run"] = clip_run
        if not keywords.get("clip_run"):
            raise InvalidKeywordError(
                "dalle2 builds on a CLIP. Name a run of dalle2_prior with --prior, or a run of "
                "clip with --clip-run, for which a prior is trained first."
            )
        keywords |= {"image": columns[0], "text": columns[1]}
        recipe, _ = build_recipe(dalle2_prior, schema, keywords)
        embedder = require_type(recipe.verbs["embed"], PriorEmbedder)
        return cls(recipe.model, embedder.text, {}, keywords)


def _load_clip(folder: str) -> CLIPSource:
    """Load the towers of a CLIP from its run folder."""
    if not folder:
        raise InvalidKeywordError("--clip-run is missing. Name a run folder of clip.")
    recipe = RunConfig.load(Path(folder)).recipe
    if recipe != "clip":
        raise SensoriumError(f"--clip-run {folder} is a run of {recipe}. Name a run of clip.")
    require_finished(folder)
    run = restore_run(folder, recipe_function("clip"))
    image_column, text_column = run.recipe.data.columns
    image = require_type(run.schema[image_column], Image)
    text = require_type(run.schema[text_column], Text)
    metadata = {
        "source": folder,
        "fingerprint": run.fingerprint,
        "image": image.to_json(),
        "text": text.to_json(),
        "keywords": {**run.config.keywords, "image": "image", "text": "text"},
    }
    model = run.recipe.model
    return CLIPSource(*_towers(model), image, text, _text_width(model), metadata)


def _load_prior(folder: str) -> PriorSource:
    """Load a prior from its run folder."""
    recipe = RunConfig.load(Path(folder)).recipe
    if recipe != dalle2_prior.__name__:
        raise SensoriumError(f"--prior {folder} is a run of {recipe}. Name one of dalle2_prior.")
    require_finished(folder)
    run = restore_run(folder, dalle2_prior)
    embedder = require_type(run.recipe.verbs["embed"], PriorEmbedder)
    metadata = {
        "source": folder,
        "fingerprint": run.fingerprint,
        "image": embedder.image.to_json(),
        "text": embedder.text.to_json(),
        "keywords": {**run.config.keywords, "image": "image", "text": "text"},
    }
    return PriorSource(run.recipe.model, embedder.text, metadata)


def _towers(model: Towers) -> tuple[Tower, Tower]:
    """Return the image and the text tower of a CLIP."""
    image_column, text_column = model.columns
    return model[image_column], model[text_column]


def _text_width(model: Towers) -> int:
    """Return the width of the text tokens of a CLIP."""
    embed = require_type(model[model.columns[1]].encoder.embed, TextEmbedding)
    return embed.token_embedding.embedding_dim
