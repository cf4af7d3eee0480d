"""Pictures and captions of the set `scenes` held against the program that made them: what is said, and what is drawn?

N rows
"""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import PIL.Image
from jaxtyping import Integer

from sensorium.data.bundled.scenes_check import recognize_images
from sensorium.data.bundled.scenes_draw import SceneObject, decode_objects
from sensorium.data.bundled.scenes_words import CaptionAccuracy, parse_caption, score_caption
from sensorium.data.dataset import Dataset


def caption_metrics(
    dataset: Dataset, rows: Sequence[int], captions: Sequence[str]
) -> dict[str, float]:
    """How much of what is said is so. A text that is no caption of a scene claims nothing that is so."""
    told = [json.loads(program)["things"] for program in dataset.raw("program", rows)]
    return _average_verdicts(
        [
            _verify_caption(text, [SceneObject(*thing) for thing in some])
            for text, some in zip(captions, told, strict=True)
        ]
    )


def image_metrics(
    images: Sequence[PIL.Image.Image], captions: Sequence[str], size: int
) -> dict[str, float]:
    """How much of what captions claim a program finds in the pictures. One that is unclear anywhere is not true."""
    return _average_verdicts(
        [
            _verify_image(cells, caption)
            for cells, caption in zip(recognize_images(images, size), captions, strict=True)
        ]
    )


def _verify_image(cells: Integer[np.ndarray, "9"], caption: str) -> CaptionAccuracy:
    found = _verify_caption(caption, decode_objects(cells))
    return found if cells.min() >= 0 else replace(found, exact=False)


def _verify_caption(caption: str, objects: Sequence[SceneObject]) -> CaptionAccuracy:
    claimed = parse_caption(caption)
    return CaptionAccuracy(False, 0.0, 0.0) if claimed is None else score_caption(claimed, objects)


def _average_verdicts(verdicts: Sequence[CaptionAccuracy]) -> dict[str, float]:
    relations = [v.relations for v in verdicts if v.relations is not None]
    return {
        "true": _mean([v.exact for v in verdicts]),
        "things": _mean([v.objects for v in verdicts]),
        "relations": _mean(relations),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
