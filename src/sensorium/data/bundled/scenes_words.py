"""What is said of a scene, and what can be read out of such words again: captions are claims that a program can check.

A caption names every thing of its scene and how each lies to the next: "a small red circle left of a big blue ring,
which is above a small green cross". A thing that is alone is said to be somewhere: "a big red ring at the top left".
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from sensorium.data.bundled.scenes_draw import COLOURS, SHAPES, SIZES, SceneObject
from sensorium.data.bundled.scenes_held import RELATIONS, find_held_out_relation, find_relations

POSITIONS = (
    "top left",
    "top",
    "top right",
    "left",
    "centre",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
FEATURES = ("size", "colour", "shape")
_OBJECT_PATTERN = rf"an? ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION_PATTERN = re.compile(
    rf"{_OBJECT_PATTERN}( at the ({'|'.join(POSITIONS)})|(,? (which is )?({'|'.join(RELATIONS)}) {_OBJECT_PATTERN})*)"
)
_RELATION_PATTERN = re.compile(rf"({'|'.join(RELATIONS)}) {_OBJECT_PATTERN}")


@dataclass(frozen=True)
class ParsedCaption:
    """What a caption says: things as (size, colour, shape), how each lies to the next, or where the only one is."""

    objects: tuple[tuple[str, ...], ...]
    relations: tuple[str, ...] = ()
    position: str | None = None


@dataclass(frozen=True)
class CaptionAccuracy:
    """How true a claim is of a scene. `relations` is None where none was claimed."""

    exact: bool  # all of it is true, and nothing else is there
    objects: float  # share of the things claimed that are there
    relations: float | None  # share of the relations (or the place) claimed that hold


def generate_caption(
    objects: Sequence[SceneObject], rng: random.Random, *, held_out: bool = False
) -> str:
    """One of the true captions of a scene. held: it begins with an arrangement that is held out."""
    order = list(objects)
    rng.shuffle(order)
    if held_out:
        a, b = next((a, b) for a in order for b in order if find_held_out_relation(a, b))
        order = [a, b, *(t for t in order if t not in (a, b))]
    first = format_features(select_features(order[0]), "a")
    if len(order) == 1:
        return f"{first} at the {POSITIONS[3 * order[0].row + order[0].column]}"
    for i, (a, b) in enumerate(pairwise(order)):
        stated = find_held_out_relation(a, b) if held_out and i == 0 else None
        first += f"{', which is ' if i else ' '}{stated or rng.choice(find_relations(a, b))} {format_features(select_features(b), 'a')}"
    return first


def select_features(
    scene_object: SceneObject, features: Sequence[str] = FEATURES
) -> dict[str, str]:
    """Some of a thing's features."""
    return {key: getattr(scene_object, key) for key in features}


def format_features(features: Mapping[str, str], article: str = "") -> str:
    """Features in words: "a small ring", "the red thing"; without an article, several: "blue crosses"."""
    words = [features[key] for key in FEATURES if key in features] + ["thing"] * (
        "shape" not in features
    )
    if not article:
        return " ".join(words) + ("es" if words[-1].endswith("ss") else "s")
    return f"{'an' if article == 'a' and words[0][0] in 'aeiou' else article} {' '.join(words)}"


def parse_caption(text: str) -> ParsedCaption | None:
    """What a caption claims; None for words that are no caption of a scene."""
    text = " ".join(text.lower().replace(",", ", ").split()).replace(" ,", ",").rstrip(".")
    if not (whole := _CAPTION_PATTERN.fullmatch(text)):
        return None
    found = [m.groups() for m in _RELATION_PATTERN.finditer(text)]
    return ParsedCaption(
        (whole.groups()[:3], *(g[1:] for g in found)), tuple(g[0] for g in found), whole.group(5)
    )


def score_caption(parsed: ParsedCaption, objects: Sequence[SceneObject]) -> CaptionAccuracy:
    """How true it is of these things, each thing claimed being the one that makes most of it true."""
    best, exact = (0.0, -1.0), False
    for chosen in _iter_assignments(parsed, objects):
        there = sum(thing is not None for thing in chosen)
        true = _check_relations(parsed, chosen)
        best = max(best, (there / len(chosen), sum(true) / len(true) if true else 0.0))
        exact |= there == len(chosen) == len(objects) and all(true)
    return CaptionAccuracy(exact, best[0], best[1] if parsed.relations or parsed.position else None)


def _iter_assignments(
    parsed: ParsedCaption, objects: Sequence[SceneObject]
) -> Iterator[tuple[SceneObject | None, ...]]:
    """For each thing claimed one that looks like it, no thing twice; None where there is none."""
    like = [
        [t for t in objects if tuple(select_features(t).values()) == features]
        for features in parsed.objects
    ]
    for chosen in product(*([*some, None] for some in like)):
        there = [thing for thing in chosen if thing is not None]
        if len(set(there)) == len(there):
            yield chosen


def _check_relations(parsed: ParsedCaption, assignment: Sequence[SceneObject | None]) -> list[bool]:
    if parsed.position:
        return [
            t is not None and POSITIONS[3 * t.row + t.column] == parsed.position for t in assignment
        ]
    return [
        a is not None and b is not None and said in find_relations(a, b)
        for said, (a, b) in zip(parsed.relations, pairwise(assignment), strict=True)
    ]
