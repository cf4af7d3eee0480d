"""LiT (Zhai et al. 2022): a published eye and a published voice, each trained alone, learn to meet in one space."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from sensorium.adapt import TUNES, Still, tuned
from sensorium.align import ALIGNS
from sensorium.data.cache import Source, Stored, beside
from sensorium.data.schema import Schema
from sensorium.data.vectors import vectors
from sensorium.models import Encoder, Tower, Towers
from sensorium.objectives.contrastive import Contrastive
from sensorium.published.start import Start
from sensorium.recipes.judge_retrieval import retrieval_evaluation
from sensorium.recipes.recipe import DataSpec, DeriveColumns, Hooks, Objective, Recipe, one_of
from sensorium.recipes.training_config import TrainingConfig
from sensorium.stored import content_hash, weights
from sensorium.tokens import Batch, ColumnKey
from sensorium.verbs.embed import Embedder

WAYS = ["linear", "nonlinear"]


def lit(schema: Schema, *, image_from: str | Mapping[str, Any] = "", text_from: str | Mapping[str, Any] = "",
        image: str | None = None, text: str | Sequence[str] | None = None,
        image_tune: Literal["none", "lora", "all"] = "none",
        text_tune: Literal["none", "lora", "all"] = "none", embed_dim: int = 256,
        align: Literal["linear", "nonlinear"] = "nonlinear") -> Recipe[Towers]:
    """Two published encoders aligned on your pairs. What a frozen eye says of a picture is worked out once and kept.

    Args:
        image_from: folder, file or hub id of a published model that sees (EfficientNet, ResNet, ViT, CLIP, ...).
        text_from: the same of one that reads (MiniLM, BERT, CLIP, ...).
        image: picture column; by default the only one.
        text: caption column (once for each, where several are read as one); by default the only one.
        image_tune: what of the eye learns: none, lora (corrections of low rank), or all.
        text_tune: the same of the voice.
        embed_dim: width of the shared space.
        align: the way into the shared space: linear or nonlinear.
    """
    pair = picture, words = schema.pick("image", image), schema.texts(text)
    starts, way = {"image": Start.of(image_from), "text": Start.of(text_from)}, ALIGNS[one_of("align", align, WAYS)]
    model = Towers({picture: _tower(starts["image"], "image", image_tune, way, embed_dim),
                    words: _tower(starts["text"], "text", text_tune, way, embed_dim)})
    settings = {column: start.senses()[kind] for column, (kind, start) in zip(pair, starts.items(), strict=True)
                if start.opened}
    seen = schema.taking(settings)
    return Recipe(
        model=model, objective=_matching(*pair),
        data=DataSpec(columns=pair, column_settings=settings,
                      derived_columns=looked(model[picture].encode, picture, seen)),
        training=TrainingConfig(epochs=20, lr=1e-3, augment="none", batch_size=256, eval_interval=5.0, ema_decay=0.99),
        verbs={"embed": Embedder(model, {"image": (model[picture], seen[picture]),
                                         "text": (model[words], seen[words])})},
        hooks=Hooks(after_step=Towers.clamp),
        evaluation=retrieval_evaluation(pair),
        stored_keywords={f"{kind}_from": start.told() for kind, start in starts.items()})


def _tower(start: Start, kind: str, tune: str, way: Callable[[int, int], nn.Module], embed_dim: int) -> Tower:
    encoder, width = start.encoder(kind)
    return Tower(tuned(encoder, one_of(f"{kind}_tune", tune, TUNES)), way(width, embed_dim), embed_dim)


def _matching(picture: ColumnKey, words: ColumnKey) -> Objective[Towers]:
    """InfoNCE, on what a frozen eye said before where that is at hand."""
    match = Contrastive(picture, words)

    def objective(model: Towers, batch: Batch) -> dict[str, Tensor]:
        key = beside(picture)
        return match(model, batch.changed({picture: batch[key]}) if key in batch else batch)
    return objective


def looked(eye: Encoder, picture: ColumnKey, seen: Schema) -> DeriveColumns | None:
    """What a frozen eye says of every picture, as a column."""
    def derived(data: Source) -> dict[ColumnKey, Stored]:
        return {beside(picture): vectors(eye.whole, content_hash(weights(eye)), data, picture, seen)}
    return derived if isinstance(eye, Still) else None
