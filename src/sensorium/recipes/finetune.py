"""A published pair of towers (CLIP, SigLIP) trained further on one's own pairs, with care for what it knows."""
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sensorium.adapt import TUNES, tuned
from sensorium.data.schema import Schema
from sensorium.models import Towers
from sensorium.objectives.contrastive import Contrastive
from sensorium.published.start import Start
from sensorium.recipes.clip import AUGMENT
from sensorium.recipes.judge_retrieval import retrieval_evaluation
from sensorium.recipes.recipe import BadKeyword, DataSpec, Hooks, Recipe, one_of
from sensorium.recipes.training_config import TrainingConfig, training_defaults
from sensorium.tokens import ColumnKey
from sensorium.verbs.embed import Embedder

RATES = {"all": 1e-5, "lora": 3e-4, "none": 1e-3}              # a small step for what has learned much


@training_defaults(lr="1e-05; 0.0003 with --tune lora, 0.001 with --tune none")
def finetune(schema: Schema, *, from_: str | Mapping[str, Any] = "", image: str | None = None,
             text: str | Sequence[str] | None = None, tune: Literal["all", "lora", "none"] = "all",
             smoothing: float = 0.0) -> Recipe[Towers]:
    """A published CLIP or SigLIP, trained further on your pictures and words; `sensorium blend` then finds the middle.

    Its own tokenizer, picture size and loss are kept. Lower blocks learn more slowly (layer_decay).

    Args:
        from_: folder, file or hub id of the published model.
        image: picture column; by default the only one.
        text: caption column (once for each, where several are read as one); by default the only one.
        tune: what learns: all of it, lora (corrections of low rank), or none (the projections and the temperature).
        smoothing: label smoothing of infonce.
    """
    one_of("tune", tune, TUNES)
    start = Start.of(from_)
    module = start.module()
    if not isinstance(module, Towers) or not {"image", "text"} <= set(module):
        raise BadKeyword(f"from_={start.source!r} is a {start.family.name}, which does not embed pictures and words; "
                         "for one that reads either, use the recipe lit")
    pair = picture, words = schema.pick("image", image), schema.texts(text)
    kinds: dict[ColumnKey, ColumnKey] = {"image": picture, "text": words}
    model = module.called(kinds)
    for tower in (model[name] for name in pair):
        tower.encode = tuned(tower.encode, tune)
    senses = start.senses()
    settings = {kinds[kind]: settings for kind, settings in senses.items()}
    fitted = schema.taking(settings)
    return Recipe(
        model=model, objective=Contrastive(*pair, "infonce" if model.bias is None else "siglip", smoothing),
        data=DataSpec(columns=pair, column_settings=settings, augment={
            strength: dict(zip(pair, how, strict=True)) for strength, how in AUGMENT.items()}),
        training=TrainingConfig(epochs=5, lr=RATES[tune], layer_decay=0.75, weight_decay=0.05, beta2=0.98,
                                warmup_ratio=0.1),
        verbs={"embed": Embedder(model, {"image": (model[picture], fitted[picture]),
                                         "text": (model[words], fitted[words])})},
        hooks=Hooks(after_step=Towers.clamp),
        evaluation=retrieval_evaluation(pair),
        stored_keywords={"from_": start.told()}, measures_forgetting=True)
