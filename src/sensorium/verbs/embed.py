"""The verb `embed`: raw pictures or words in, unit vectors in the shared space out."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.modalities.modality import Modality
from sensorium.models import Tower
from sensorium.verbs.verb import at_rest, load


class Embedder:
    """embed(image=[...]) or embed(text=[...]) → float32 [N, E], rows of length one."""

    def __init__(self, model: nn.Module, senses: Mapping[str, tuple[nn.Module, Modality]]):
        self.model, self.senses = model, senses        # kind -> (its tower, settings of its column)

    def __call__(self, *, batch_size: int = 256, **given: Sequence[Any]) -> np.ndarray:
        """One keyword: the kind of value ("image", "text") with a list of raw values.

        Raises SensoriumError naming the first value that cannot be read.
        """
        if len(given) != 1:
            raise SensoriumError(f"embed takes one kind of value at a time ({' or '.join(self.senses)}), "
                                 f"got {', '.join(given) or 'none'}")
        (kind, values), = given.items()
        if kind not in self.senses:
            raise SensoriumError(f"this model embeds {' and '.join(self.senses)}, not {kind}")
        tower, modality = self.senses[kind]
        loaded = [load(modality, value) for value in values]
        assert isinstance(tower, Tower)
        vectors = np.zeros((len(loaded), tower.width), dtype=np.float32)
        by_length = sorted(range(len(loaded)), key=lambda i: len(loaded[i]))         # so that little is padding
        with at_rest(self.model), torch.inference_mode():
            for rows in (by_length[i:i + batch_size] for i in range(0, len(by_length), batch_size)):
                vectors[rows] = tower(modality.collate([loaded[i] for i in rows])).numpy()
        return vectors
