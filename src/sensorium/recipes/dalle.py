"""DALL-E (Ramesh et al. 2021): a caption and the codes of its picture as one line, said from left to right."""
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sensorium.data.codes import coded
from sensorium.data.schema import Schema
from sensorium.kernels import Linear
from sensorium.modalities.cells import Cells
from sensorium.modalities.text import PaddedWords, Text
from sensorium.models import Decoder
from sensorium.objectives.next_token import NextToken
from sensorium.recipes.coder import coder, ready, told
from sensorium.recipes.codes import codes as first_stage
from sensorium.recipes.generation import validate
from sensorium.recipes.painting import painted_for
from sensorium.recipes.recipe import DataSpec, EvaluationSpec, Evaluator, Make, Recipe
from sensorium.recipes.training_config import TrainingConfig
from sensorium.tokens import ColumnKey
from sensorium.transformer import transformer
from sensorium.verbs.paint import Painter

HEAD = 64                                   # width of one attention head
MOVED = {"shift": 0.06, "scale": 0.1}       # how copies of a picture differ
SHARES = {"text": 1.0, "image": 7.0}        # of the loss


def dalle(schema: Schema, *, codes: str | Mapping[str, Any] = "", image: str | None = None,
          text: str | Sequence[str] | None = None, dim: int = 256, depth: int = 6, dropout: float = 0.1,
          drop: float = 0.1, copies: int = 4) -> Recipe[Decoder]:
    """Pictures from words, said code by code.

    Args:
        codes: folder of a finished run of `codes`, in which pictures are said. Without one it is trained first, in
            Python with these keywords.
        image: picture column; by default the only one.
        text: caption column (once for each, where several are read as one); by default the only one.
        dim: width.
        depth: blocks.
        dropout: share of activations dropped in each block.
        drop: how often a caption is left out while training, so that pictures can be guided by captions.
        copies: how many times each picture is coded, all but the first moved a little.
    """
    picture, caption = schema.pick("image", image), schema.texts(text)
    words, spoken = schema[caption], coder(codes, schema, picture)
    assert isinstance(words, Text)
    parts = {"text": PaddedWords(dim, words), "image": Cells(dim, spoken.model)}
    model = Decoder(parts, {"text": _head(dim, parts["text"].vocab), "image": _head(dim, spoken.vocab)},
                    transformer(dim, depth, max(1, dim // HEAD), dropout=dropout))
    objective = NextToken({"text": caption, "image": picture}, SHARES, {"text": drop})
    painter = Painter(model, words, spoken.image)
    return Recipe(
        model=model, objective=objective,
        data=DataSpec(
            columns=(caption, picture), column_settings={picture: spoken.image}, derived_columns=lambda data: {
                picture: coded(ready(spoken, codes), data, picture, copies=copies, change=MOVED)}),
        training=TrainingConfig(batch_size=64), verbs={"generate": painter},
        evaluation=EvaluationSpec(
            metric="val_loss", mode="min", validate=validate(objective),
            write_samples=painted_for(painter, objective), evaluator=_judge(picture, caption)),
        stored_keywords={"codes": told(codes, spoken)}, prerequisites=_first(codes))


def _first(codes: str | Mapping[str, Any]) -> dict[str, tuple[Make[Any], Mapping[str, Any]]]:
    """What is trained first, unless it is there."""
    if isinstance(codes, str):
        return {} if codes else {"codes": (first_stage, {})}
    return {} if "source" in codes else {"codes": (first_stage, codes)}


def _judge(picture: str, caption: ColumnKey) -> Evaluator:
    from sensorium.recipes.judge_pictures import pictures  # not needed while training
    return pictures(picture, caption)


def _head(dim: int, vocab: int) -> Linear:
    head = Linear(dim, vocab, bias=False)
    nn.init.normal_(head.weight, std=0.02)
    return head
