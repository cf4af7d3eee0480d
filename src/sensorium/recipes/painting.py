"""Samples of recipes that paint: held-out captions, their pictures, and what is painted for them."""
from pathlib import Path

import numpy as np

from sensorium.data.cache import Prepared
from sensorium.models import Decoder
from sensorium.objectives.next_token import NextToken, Sampling
from sensorium.recipes.drawing import sheet
from sensorium.recipes.recipe import WriteSamples
from sensorium.tokens import Batch
from sensorium.verbs.paint import Painter


def painted_for(painter: Painter, objective: NextToken, captions: int = 8, each: int = 5) -> WriteSamples[Decoder]:
    """A picture: a few held-out captions, the picture of each as its codes show it, and what is painted for it."""
    def draw(model: Decoder, prepared: Prepared, rows: np.ndarray, path: Path) -> None:
        rows = prepared.complete(rows)
        rows = rows[np.linspace(0, len(rows) - 1, min(captions, len(rows))).astype(int)]
        given = objective.given(prepared.batch(rows))
        text = model.said("text").spelt(given["text"]).repeat_interleave(each, 0)
        begun = Batch({"text": text, "image": painter.start(len(text))})
        painted = painter.shown(painter.paint(begun, Sampling(top_p=0.95)))
        true = painter.shown(model.said("image").spelt(given["image"])[:, 1:])
        lines = [(prepared.caption(objective.columns["text"], row), [true[i], *painted[i * each:(i + 1) * each]])
                 for i, row in enumerate(rows.tolist())]
        sheet(lines).save(path)
    return draw
