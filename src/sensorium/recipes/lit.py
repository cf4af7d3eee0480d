"""LiT (Zhai et al. 2022): a published eye and a published voice, each trained alone, learn to meet in one space."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from sensorium.data.cache.embedding_cache import embed_column
from sensorium.data.cache.prepared import ColumnStore, Source, embedding_key
from sensorium.data.schema import Schema
from sensorium.evaluation.retrieval import retrieval_evaluation
from sensorium.inference.embed import Embedder
from sensorium.io.tensors import state_tensors, tensors_sha256
from sensorium.models.lora import TRAIN_MODES, FrozenEncoder, set_trainable
from sensorium.models.towers import Encoder, Tower, Towers
from sensorium.nn.projection import PROJECTIONS
from sensorium.nn.tokens import Batch, ColumnKey
from sensorium.objectives.contrastive import ContrastiveLoss
from sensorium.pretrained.source import PretrainedSource
from sensorium.recipes.recipe import DataSpec, DeriveColumns, Hooks, Objective, Recipe, check_choice
from sensorium.recipes.training_config import TrainingConfig

PROJECTION_CHOICES = ["linear", "nonlinear"]


def lit(
    schema: Schema,
    *,
    image_weights: str | Mapping[str, Any] = "",
    text_weights: str | Mapping[str, Any] = "",
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    image_train: Literal["none", "lora", "all"] = "none",
    text_train: Literal["none", "lora", "all"] = "none",
    embed_dim: int = 256,
    projection: Literal["linear", "nonlinear"] = "nonlinear",
) -> Recipe[Towers]:
    """Two published encoders aligned on your pairs. What a frozen eye says of a picture is worked out once and kept.

    Args:
        image_weights: folder, file or hub id of a published model that sees (EfficientNet, ResNet, ViT, CLIP, ...).
        text_weights: the same of one that reads (MiniLM, BERT, CLIP, ...).
        image: picture column; by default the only one.
        text: caption column (once for each, where several are read as one); by default the only one.
        image_train: what of the eye learns: none, lora (corrections of low rank), or all.
        text_train: the same of the voice.
        embed_dim: width of the shared space.
        projection: the way into the shared space: linear or nonlinear.
    """
    pair = picture, words = schema.resolve_column("image", image), schema.texts(text)
    starts, way = (
        {
            "image": PretrainedSource.from_source(image_weights),
            "text": PretrainedSource.from_source(text_weights),
        },
        PROJECTIONS[check_choice("projection", projection, PROJECTION_CHOICES)],
    )
    model = Towers(
        {
            picture: _build_tower(starts["image"], "image", image_train, way, embed_dim),
            words: _build_tower(starts["text"], "text", text_train, way, embed_dim),
        }
    )
    settings = {
        column: start.preprocessing()[kind]
        for column, (kind, start) in zip(pair, starts.items(), strict=True)
        if start.weight_files
    }
    seen = schema.with_settings(settings)
    return Recipe(
        model=model,
        objective=_contrastive_objective(*pair),
        data=DataSpec(
            columns=pair,
            column_settings=settings,
            derived_columns=frozen_embeddings(model[picture].encoder, picture, seen),
        ),
        training=TrainingConfig(
            epochs=20, lr=1e-3, augment="none", batch_size=256, eval_interval=5.0, ema_decay=0.99
        ),
        verbs={
            "embed": Embedder(
                model,
                {"image": (model[picture], seen[picture]), "text": (model[words], seen[words])},
            )
        },
        hooks=Hooks(after_step=Towers.clamp_logit_scale),
        evaluation=retrieval_evaluation(pair),
        stored_keywords={f"{kind}_weights": start.to_config() for kind, start in starts.items()},
    )


def _build_tower(
    source: PretrainedSource,
    kind: str,
    train: str,
    projection: Callable[[int, int], nn.Module],
    embed_dim: int,
) -> Tower:
    encoder, width = source.build_encoder(kind)
    return Tower(
        set_trainable(encoder, check_choice(f"{kind}_train", train, TRAIN_MODES)),
        projection(width, embed_dim),
        embed_dim,
    )


def _contrastive_objective(image_column: ColumnKey, text_column: ColumnKey) -> Objective[Towers]:
    """InfoNCE, on what a frozen eye said before where that is at hand."""
    match = ContrastiveLoss(image_column, text_column)

    def objective(model: Towers, batch: Batch) -> dict[str, Tensor]:
        key = embedding_key(image_column)
        return match(
            model, batch.with_columns({image_column: batch[key]}) if key in batch else batch
        )

    return objective


def frozen_embeddings(
    encoder: Encoder, image_column: ColumnKey, schema: Schema
) -> DeriveColumns | None:
    """What a frozen eye says of every picture, as a column."""

    def compute_columns(data: Source) -> dict[ColumnKey, ColumnStore]:
        return {
            embedding_key(image_column): embed_column(
                encoder.pooled, tensors_sha256(state_tensors(encoder)), data, image_column, schema
            )
        }

    return compute_columns if isinstance(encoder, FrozenEncoder) else None
