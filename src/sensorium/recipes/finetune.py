"""Fine-tuning of a pretrained pair of encoders (CLIP, SigLIP) on new image-text pairs."""

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
from sensorium.recipes.clip import image_augment
from sensorium.recipes.recipe import (
    DataSpec,
    Hooks,
    InvalidKeywordError,
    Recipe,
    check_choice,
    require_weights,
)
from sensorium.recipes.training_config import TrainingConfig, training_defaults

LEARNING_RATES = {"all": 1e-5, "lora": 3e-4, "none": 1e-3}  # by `train`


@training_defaults(lr="1e-05; 0.0003 with --train lora, 0.001 with --train none")
def finetune(
    schema: Schema,
    *,
    weights: str | Mapping[str, Any] = "",
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    train: Literal["all", "lora", "none"] = "all",
    label_smoothing: float = 0.0,
) -> Recipe[Towers]:
    """Fine-tune a pretrained CLIP or SigLIP on your image-text pairs.

    The tokenizer, the image size and the loss of the pretrained model are kept. Lower layers have
    a smaller learning rate (--layer-decay). `sensorium interpolate` afterwards averages the
    pretrained and the fine-tuned weights (WiSE-FT).

    Args:
        schema: columns of the data.
        weights: pretrained model: a folder, a file or a Hugging Face id.
        image: image column. Default: the only one.
        text: caption column. Repeat to read several columns as one text. Default: the only one.
        train: weights to train: all, lora (low-rank adapters), or none (the projections and the
            temperature only).
        label_smoothing: label smoothing of the loss.
    """
    check_choice("train", train, TRAIN_MODES)
    source = PretrainedSource.from_source(require_weights("weights", weights))
    module = source.build_module()
    if not isinstance(module, Towers) or not {"image", "text"} <= set(module):
        raise InvalidKeywordError(
            f"--weights {source.source!r} is a {source.family.name} model, which does not embed "
            "both images and text. Use the recipe lit for a pretrained image or text encoder."
        )
    image_column = schema.resolve_column("image", image)
    text_column = schema.resolve_text_columns(text)
    columns: dict[ColumnKey, ColumnKey] = {"image": image_column, "text": text_column}
    model = module.renamed(columns)
    for column in columns.values():
        tower = model[column]
        tower.encoder = set_trainable(tower.encoder, train)
    settings = {columns[kind]: modality for kind, modality in source.preprocessing().items()}
    fitted = schema.with_settings(settings)
    verb_inputs = {
        "image": (model[image_column], fitted[image_column]),
        "text": (model[text_column], fitted[text_column]),
    }
    pair: tuple[ColumnKey, ColumnKey] = (image_column, text_column)
    loss = "infonce" if model.logit_bias is None else "siglip"
    return Recipe(
        model=model,
        objective=ContrastiveLoss(*pair, loss, label_smoothing),
        data=DataSpec(
            columns=pair, required=pair, column_settings=settings, augment=image_augment(*pair)
        ),
        training=TrainingConfig(
            epochs=5,
            lr=LEARNING_RATES[train],
            layer_decay=0.75,
            weight_decay=0.05,
            beta2=0.98,
            warmup_ratio=0.1,
        ),
        verbs={"embed": Embedder(model, verb_inputs)},
        hooks=Hooks(after_step=Towers.clamp_logit_scale),
        evaluation=retrieval_evaluation(pair),
        stored_keywords={"weights": source.to_config()},
        measures_forgetting=True,
    )
