"""Pictures and captions of the set `scenes` held against the program that made them: what is said, and what is drawn?

    N rows
"""
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import PIL.Image
from jaxtyping import Integer

from sensorium.data.dataset import Dataset
from sensorium.data.scenes_check import read_images
from sensorium.data.scenes_draw import Thing, things
from sensorium.data.scenes_words import Verdict, claim, verdict


def true_captions(dataset: Dataset, rows: Sequence[int], said: Sequence[str]) -> dict[str, float]:
    """How much of what is said is so. A text that is no caption of a scene claims nothing that is so."""
    told = [json.loads(program)["things"] for program in dataset.raw("program", rows)]
    return _shares([_verdict(text, [Thing(*thing) for thing in some]) for text, some in zip(said, told, strict=True)])


def true_pictures(shown: Sequence[PIL.Image.Image], captions: Sequence[str], side: int) -> dict[str, float]:
    """How much of what captions claim a program finds in the pictures. One that is unclear anywhere is not true."""
    return _shares([_seen(cells, caption) for cells, caption in zip(read_images(shown, side), captions, strict=True)])


def _seen(cells: Integer[np.ndarray, "9"], caption: str) -> Verdict:
    found = _verdict(caption, things(cells))
    return found if cells.min() >= 0 else replace(found, exact=False)


def _verdict(text: str, seen: Sequence[Thing]) -> Verdict:
    claimed = claim(text)
    return Verdict(False, 0.0, 0.0) if claimed is None else verdict(claimed, seen)


def _shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    relations = [v.relations for v in verdicts if v.relations is not None]
    return {"true": _mean([v.exact for v in verdicts]), "things": _mean([v.things for v in verdicts]),
            "relations": _mean(relations)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
