"""GPT (Radford et al. 2018): a causal language model, which is a captioner without an image."""

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
    """Generate and continue text with a causal language model.

    Args:
        schema: columns of the data.
        text: text column. Repeat to read several columns as one text. Default: the only one.
        dim: width of the transformer.
        layers: transformer layers.
        dropout: dropout rate.
        label_smoothing: label smoothing of the loss.
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
