"""The verb `embed`: raw values to unit vectors in the shared space.

N values   E width of the shared space
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from sensorium.data.batching import iter_batches
from sensorium.errors import SensoriumError
from sensorium.inference.base import eval_mode, load_value
from sensorium.modalities.base import Modality
from sensorium.models.towers import Tower


class Embedder:
    """Embed values of one modality: `embed(image=[...])` or `embed(text=[...])`.

    Args:
        model: The model that holds the towers; it is in evaluation mode during a call.
        modalities: Modality → its tower and the settings of its column.
    """

    def __init__(self, model: nn.Module, modalities: Mapping[str, tuple[nn.Module, Modality]]):
        self.model = model
        self.modalities = modalities

    def __call__(
        self, *, batch_size: int = 256, **inputs: Sequence[Any]
    ) -> Float32[np.ndarray, "N E"]:
        """Return one vector of length 1 for each value.

        Args:
            batch_size: Values per forward pass.
            **inputs: One keyword, the modality, with a list of raw values.

        Raises:
            SensoriumError: If not exactly one supported modality is given, or a value cannot be
                read.
        """
        supported = ", ".join(self.modalities)
        if len(inputs) != 1:
            raise SensoriumError(
                f"embed got {', '.join(inputs) or 'no input'}. "
                f"Give values of exactly one of: {supported}."
            )
        ((kind, values),) = inputs.items()
        if kind not in self.modalities:
            raise SensoriumError(f"This model cannot embed {kind}. It embeds: {supported}.")
        modality = self.modalities[kind][1]
        return self.embed_loaded(
            kind, [load_value(modality, value) for value in values], batch_size
        )

    def embed_loaded(
        self, kind: str, loaded: Sequence[np.ndarray], batch_size: int = 256
    ) -> Float32[np.ndarray, "N E"]:
        """Return one vector of length 1 for each value that the modality has loaded.

        Args:
            kind: The modality.
            loaded: Values as `Modality.load` returns them.
            batch_size: Values per forward pass.
        """
        tower, modality = self.modalities[kind]
        if not isinstance(tower, Tower):
            raise TypeError(f"expected a Tower for {kind}, got {type(tower).__name__}")
        vectors = np.zeros((len(loaded), tower.embed_dim), dtype=np.float32)
        by_length = sorted(range(len(loaded)), key=lambda i: len(loaded[i]))  # little padding
        with eval_mode(self.model), torch.inference_mode():
            for rows in iter_batches(by_length, batch_size):
                vectors[rows] = tower(modality.collate([loaded[i] for i in rows])).numpy()
        return vectors
