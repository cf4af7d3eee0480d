"""Verify captions and images of the dataset `scenes` against the program of each scene.

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
    """Return how accurate captions of these rows are: exact, objects, relations.

    A text that cannot be parsed as the caption of a scene counts as wrong.
    """
    programs = [json.loads(program) for program in dataset.raw("program", rows)]
    scores = []
    for caption, program in zip(captions, programs, strict=True):
        objects = [SceneObject(*features) for features in program["objects"]]
        scores.append(_score_text(caption, objects))
    return _average(scores)


def image_metrics(
    images: Sequence[PIL.Image.Image], captions: Sequence[str], size: int
) -> dict[str, float]:
    """Return how accurate images are for their captions: exact, objects, relations.

    Args:
        images: images of scenes, of any size.
        captions: the caption of each.
        size: side in pixels at which scenes are recognized.
    """
    recognized = recognize_images(images, size)
    return _average(
        [_score_image(cells, caption) for cells, caption in zip(recognized, captions, strict=True)]
    )


def _score_image(cells: Integer[np.ndarray, "9"], caption: str) -> CaptionAccuracy:
    """Score a caption of recognized cells; an image with an unknown cell is never exact."""
    score = _score_text(caption, decode_objects(cells))
    return score if cells.min() >= 0 else replace(score, exact=False)


def _score_text(caption: str, objects: Sequence[SceneObject]) -> CaptionAccuracy:
    parsed = parse_caption(caption)
    if parsed is None:
        return CaptionAccuracy(exact=False, objects=0.0, relations=0.0)
    return score_caption(parsed, objects)


def _average(scores: Sequence[CaptionAccuracy]) -> dict[str, float]:
    relations = [score.relations for score in scores if score.relations is not None]
    return {
        "exact": _mean([score.exact for score in scores]),
        "objects": _mean([score.objects for score in scores]),
        "relations": _mean(relations),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
