"""The verb `embed`: raw pictures or words in, unit vectors in the shared space out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.inference.base import eval_mode, load_value
from sensorium.modalities.base import Modality
from sensorium.models.towers import Tower


class Embedder:
    """embed(image=[...]) or embed(text=[...]) → float32 [N, E], rows of length one."""

    def __init__(self, model: nn.Module, modalities: Mapping[str, tuple[nn.Module, Modality]]):
        self.model, self.modalities = (
            model,
            modalities,
        )  # kind -> (its tower, settings of its column)

    def __call__(self, *, batch_size: int = 256, **inputs: Sequence[Any]) -> np.ndarray:
        """One keyword: the kind of value ("image", "text") with a list of raw values.

        Raises SensoriumError naming the first value that cannot be read.
        """
        if len(inputs) != 1:
            raise SensoriumError(
                f"embed takes one kind of value at a time ({' or '.join(self.modalities)}), "
                f"got {', '.join(inputs) or 'none'}"
            )
        ((kind, values),) = inputs.items()
        if kind not in self.modalities:
            raise SensoriumError(f"this model embeds {' and '.join(self.modalities)}, not {kind}")
        tower, modality = self.modalities[kind]
        loaded = [load_value(modality, value) for value in values]
        assert isinstance(tower, Tower)
        vectors = np.zeros((len(loaded), tower.embed_dim), dtype=np.float32)
        by_length = sorted(
            range(len(loaded)), key=lambda i: len(loaded[i])
        )  # so that little is padding
        with eval_mode(self.model), torch.inference_mode():
            for rows in (
                by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)
            ):
                vectors[rows] = tower(modality.collate([loaded[i] for i in rows])).numpy()
        return vectors
