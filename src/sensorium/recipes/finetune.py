"""A published pair of towers (CLIP, SigLIP) trained further on one's own pairs, with care for what it knows."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sensorium.data.schema import Schema
from sensorium.evaluation.retrieval import retrieval_evaluation
from sensorium.inference.embed import Embedder
from sensorium.models.lora import TRAIN_MODES, set_trainable
from sensorium.models.towers import Towers
from sensorium.nn.tokens import ColumnKey
from sensorium.objectives.contrastive import ContrastiveLoss
from sensorium.pretrained.source import PretrainedSource
from sensorium.recipes.clip import AUGMENT
from sensorium.recipes.recipe import BadKeyword, DataSpec, Hooks, Recipe, check_choice
from sensorium.recipes.training_config import TrainingConfig, training_defaults

LEARNING_RATES = {"all": 1e-5, "lora": 3e-4, "none": 1e-3}  # a small step for what has learned much


@training_defaults(lr="1e-05; 0.0003 with --tune lora, 0.001 with --tune none")
def finetune(
    schema: Schema,
    *,
    weights: str | Mapping[str, Any] = "",
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    train: Literal["all", "lora", "none"] = "all",
    label_smoothing: float = 0.0,
) -> Recipe[Towers]:
    """A published CLIP or SigLIP, trained further on your pictures and words; `sensorium blend` then finds the middle.

    Its own tokenizer, picture size and loss are kept. Lower blocks learn more slowly (layer_decay).

    Args:
        weights: folder, file or hub id of the published model.
        image: picture column; by default the only one.
        text: caption column (once for each, where several are read as one); by default the only one.
        train: what learns: all of it, lora (corrections of low rank), or none (the projections and the temperature).
        label_smoothing: label smoothing of infonce.
    """
    check_choice("train", train, TRAIN_MODES)
    start = PretrainedSource.from_source(weights)
    module = start.build_module()
    if not isinstance(module, Towers) or not {"image", "text"} <= set(module):
        raise BadKeyword(
            f"from_={start.source!r} is a {start.family.name}, which does not embed pictures and words; "
            "for one that reads either, use the recipe lit"
        )
    pair = picture, words = schema.resolve_column("image", image), schema.texts(text)
    kinds: dict[ColumnKey, ColumnKey] = {"image": picture, "text": words}
    model = module.renamed(kinds)
    for tower in (model[name] for name in pair):
        tower.encoder = set_trainable(tower.encoder, train)
    senses = start.preprocessing()
    settings = {kinds[kind]: settings for kind, settings in senses.items()}
    fitted = schema.with_settings(settings)
    return Recipe(
        model=model,
        objective=ContrastiveLoss(
            *pair, "infonce" if model.logit_bias is None else "siglip", label_smoothing
        ),
        data=DataSpec(
            columns=pair,
            column_settings=settings,
            augment={
                strength: dict(zip(pair, how, strict=True)) for strength, how in AUGMENT.items()
            },
        ),
        training=TrainingConfig(
            epochs=5,
            lr=LEARNING_RATES[train],
            layer_decay=0.75,
            weight_decay=0.05,
            beta2=0.98,
            warmup_ratio=0.1,
        ),
        verbs={
            "embed": Embedder(
                model,
                {"image": (model[picture], fitted[picture]), "text": (model[words], fitted[words])},
            )
        },
        hooks=Hooks(after_step=Towers.clamp_logit_scale),
        evaluation=retrieval_evaluation(pair),
        stored_keywords={"weights": start.to_config()},
        measures_forgetting=True,
    )
