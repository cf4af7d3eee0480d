"""LiT (Zhai et al. 2022): pretrained image and text encoders aligned on image-text pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from sensorium.data.cache.columns import ColumnStore
from sensorium.data.cache.embedding_cache import embed_column
from sensorium.data.cache.prepared import DataSource, embedding_key
from sensorium.data.schema import Schema
from sensorium.evaluation.retrieval import retrieval_evaluation
from sensorium.evaluation.spec import picklable
from sensorium.inference.embed import Embedder
from sensorium.io.tensors import state_tensors, tensors_sha256
from sensorium.models.lora import TRAIN_MODES, FrozenEncoder, set_trainable
from sensorium.models.towers import Encoder, Tower, Towers
from sensorium.nn.projection import PROJECTIONS
from sensorium.nn.tokens import Batch, ColumnKey
from sensorium.objectives.contrastive import ContrastiveLoss
from sensorium.pretrained.source import PretrainedSource
from sensorium.recipes.recipe import (
    DataSpec,
    DeriveColumns,
    Hooks,
    Recipe,
    check_choice,
    require_weights,
)
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
    """Align two pretrained encoders on your image-text pairs (LiT).

    The embeddings of a frozen image encoder are computed once and cached.

    Args:
        schema: columns of the data.
        image_weights: pretrained image encoder (EfficientNet, ResNet, ViT, CLIP, ...): a folder,
            a file or a Hugging Face id.
        text_weights: pretrained text encoder (MiniLM, BERT, CLIP, ...): a folder, a file or a
            Hugging Face id.
        image: image column. Default: the only one.
        text: caption column. Repeat to read several columns as one text. Default: the only one.
        image_train: weights of the image encoder to train: none (frozen), lora (low-rank
            adapters) or all.
        text_train: weights of the text encoder to train: none (frozen), lora (low-rank adapters)
            or all.
        embed_dim: width of the embeddings.
        projection: projection into the embedding space: linear or nonlinear (MLP).
    """
    image_column = schema.resolve_column("image", image)
    text_column = schema.resolve_text_columns(text)
    pair: tuple[ColumnKey, ColumnKey] = (image_column, text_column)
    sources = {
        "image": PretrainedSource.from_source(require_weights("image_weights", image_weights)),
        "text": PretrainedSource.from_source(require_weights("text_weights", text_weights)),
    }
    build_projection = PROJECTIONS[check_choice("projection", projection, PROJECTION_CHOICES)]
    model = Towers(
        {
            image_column: _build_tower(
                sources["image"], "image", image_train, build_projection, embed_dim
            ),
            text_column: _build_tower(
                sources["text"], "text", text_train, build_projection, embed_dim
            ),
        }
    )
    settings = {
        column: source.preprocessing()[kind]
        for column, (kind, source) in zip(pair, sources.items(), strict=True)
        if source.weight_files
    }
    fitted = schema.with_settings(settings)
    verb_inputs = {
        "image": (model[image_column], fitted[image_column]),
        "text": (model[text_column], fitted[text_column]),
    }
    return Recipe(
        model=model,
        objective=CachedContrastiveLoss(*pair),
        data=DataSpec(
            columns=pair,
            required=pair,
            column_settings=settings,
            derived_columns=frozen_embeddings(model[image_column].encoder, image_column, fitted),
        ),
        training=TrainingConfig(
            epochs=20, lr=1e-3, augment="none", batch_size=256, eval_interval=5.0, ema_decay=0.99
        ),
        verbs={"embed": Embedder(model, verb_inputs)},
        hooks=Hooks(after_step=Towers.clamp_logit_scale),
        evaluation=retrieval_evaluation(pair),
        stored_keywords={f"{kind}_weights": source.to_config() for kind, source in sources.items()},
    )


def _build_tower(
    source: PretrainedSource,
    kind: str,
    train: str,
    build_projection: Callable[[int, int], nn.Module],
    embed_dim: int,
) -> Tower:
    encoder, width = source.build_encoder(kind)
    check_choice(f"{kind}_train", train, TRAIN_MODES)
    return Tower(set_trainable(encoder, train), build_projection(width, embed_dim), embed_dim)


@dataclass(frozen=True)
class CachedContrastiveLoss(ContrastiveLoss):
    """Contrastive loss, computed on cached embeddings of column `a` where a batch has them."""

    def __call__(self, model: Towers, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of a batch."""
        return super().__call__(model, self._use_cached(batch))

    def accumulate(self, model: Towers, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Add the gradients of one large batch, given as micro-batches, to the parameters."""
        return super().accumulate(model, [self._use_cached(batch) for batch in batches])

    def _use_cached(self, batch: Batch) -> Batch:
        key = embedding_key(self.a)
        return batch.with_columns({self.a: batch[key]}) if key in batch else batch


@picklable
def frozen_embeddings(
    encoder: Encoder, image_column: ColumnKey, schema: Schema
) -> DeriveColumns | None:
    """Return a function that computes the embeddings of all images once, if the encoder is frozen.

    Args:
        encoder: the image encoder.
        image_column: the column that it encodes.
        schema: columns of the data, with the settings of the encoder.

    Returns:
        The function, whose column has the key `embedding_key(image_column)`; None for an encoder
        that is trained.
    """
    if not isinstance(encoder, FrozenEncoder):
        return None

    def compute_columns(data: DataSource) -> dict[ColumnKey, ColumnStore]:
        weights_hash = tensors_sha256(state_tensors(encoder))
        embeddings = embed_column(encoder.pooled, weights_hash, data, image_column, schema)
        return {embedding_key(image_column): embeddings}

    return compute_columns
