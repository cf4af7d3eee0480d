"""Words after words (GPT, Radford et al. 2018): a captioner with nothing to look at."""

from collections.abc import Sequence

from sensorium.data.schema import Schema
from sensorium.models.decoder import Decoder
from sensorium.recipes.captioner import captioner
from sensorium.recipes.recipe import Recipe


def gpt(
    schema: Schema,
    *,
    text: str | Sequence[str] | None = None,
    dim: int = 256,
    layers: int = 6,
    dropout: float = 0.1,
    label_smoothing: float = 0.0,
) -> Recipe[Decoder]:
    """Words that go on from words.

    Args:
        text: column of words (once for each, where several are read as one); by default the only one.
        dim: width.
        layers: blocks.
        dropout: share of activations dropped in each block.
        label_smoothing: label smoothing.
    """
    return captioner(
        schema,
        image="",
        text=text,
        dim=dim,
        layers=layers,
        dropout=dropout,
        label_smoothing=label_smoothing,
    )
