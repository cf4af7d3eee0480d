"""Captions of scenes: generated from objects, parsed again and scored against a scene.

A caption names every object of its scene, and the relation of each to the next: "a small red circle
left of a big blue ring, which is above a small green cross". A single object has a position: "a big
red ring at the top left".
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from sensorium.data.bundled.scenes_draw import COLOURS, GRID_SIZE, SHAPES, SIZES, SceneObject
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
    rf"{_OBJECT_PATTERN}( at the ({'|'.join(POSITIONS)})"
    rf"|(,? (which is )?({'|'.join(RELATIONS)}) {_OBJECT_PATTERN})*)"
)
_RELATION_PATTERN = re.compile(rf"({'|'.join(RELATIONS)}) {_OBJECT_PATTERN}")


@dataclass(frozen=True)
class ParsedCaption:
    """The statements of a caption.

    Attributes:
        objects: (size, colour, shape) of each object.
        relations: relation of each object to the next.
        position: position of a single object.
    """

    objects: tuple[tuple[str, ...], ...]
    relations: tuple[str, ...] = ()
    position: str | None = None


@dataclass(frozen=True)
class CaptionAccuracy:
    """How accurate a caption is for a scene.

    Attributes:
        exact: whether all of it is true, and the scene has no other object.
        objects: fraction of the stated objects that are present.
        relations: fraction of the stated relations, or position, that hold; None without any.
    """

    exact: bool
    objects: float
    relations: float | None


def generate_caption(
    objects: Sequence[SceneObject], rng: random.Random, *, held_out: bool = False
) -> str:
    """Return one of the true captions of a scene.

    Args:
        objects: the objects of the scene.
        rng: random generator.
        held_out: begin with a held-out arrangement, which the scene must have.
    """
    order = list(objects)
    rng.shuffle(order)
    if held_out:
        a, b = next((a, b) for a in order for b in order if find_held_out_relation(a, b))
        order = [a, b, *(o for o in order if o not in (a, b))]
    caption = format_features(select_features(order[0]), "a")
    if len(order) == 1:
        return f"{caption} at the {_position(order[0])}"
    for i, (a, b) in enumerate(pairwise(order)):
        relation = find_held_out_relation(a, b) if held_out and i == 0 else None
        relation = relation or rng.choice(find_relations(a, b))
        link = ", which is " if i else " "
        caption += f"{link}{relation} {format_features(select_features(b), 'a')}"
    return caption


def select_features(
    scene_object: SceneObject, features: Sequence[str] = FEATURES
) -> dict[str, str]:
    """Return some features of an object."""
    return {feature: getattr(scene_object, feature) for feature in features}


def format_features(features: Mapping[str, str], article: str = "") -> str:
    """Return features as text: "a small ring", "the red thing"; plural without an article."""
    words = [features[feature] for feature in FEATURES if feature in features]
    if "shape" not in features:
        words.append("thing")
    if not article:
        return " ".join(words) + ("es" if words[-1].endswith("ss") else "s")
    if article == "a" and words[0][0] in "aeiou":
        article = "an"
    return f"{article} {' '.join(words)}"


def parse_caption(text: str) -> ParsedCaption | None:
    """Return the statements of a caption, or None for a text that is no caption of a scene."""
    text = " ".join(text.lower().replace(",", ", ").split()).replace(" ,", ",").rstrip(".")
    caption = _CAPTION_PATTERN.fullmatch(text)
    if caption is None:
        return None
    clauses = [match.groups() for match in _RELATION_PATTERN.finditer(text)]
    return ParsedCaption(
        objects=(caption.groups()[:3], *(clause[1:] for clause in clauses)),
        relations=tuple(clause[0] for clause in clauses),
        position=caption.group(5),
    )


def score_caption(parsed: ParsedCaption, objects: Sequence[SceneObject]) -> CaptionAccuracy:
    """Return how accurate a caption is for a scene, under its most favourable reading.

    Args:
        parsed: the caption.
        objects: the objects of the scene. If several match a stated object, the one that makes
            most of the caption true is taken.
    """
    best = (0.0, -1.0)
    exact = False
    for assignment in _iter_assignments(parsed, objects):
        num_present = sum(assigned is not None for assigned in assignment)
        holds = _check_relations(parsed, assignment)
        relation_score = sum(holds) / len(holds) if holds else 0.0
        best = max(best, (num_present / len(assignment), relation_score))
        exact |= num_present == len(assignment) == len(objects) and all(holds)
    has_relations = bool(parsed.relations or parsed.position)
    return CaptionAccuracy(exact, best[0], best[1] if has_relations else None)


def _iter_assignments(
    parsed: ParsedCaption, objects: Sequence[SceneObject]
) -> Iterator[tuple[SceneObject | None, ...]]:
    """Yield an object (or None) for each stated one, with its features, and none of them twice."""
    candidates = [
        [o for o in objects if tuple(select_features(o).values()) == features]
        for features in parsed.objects
    ]
    for assignment in product(*([*options, None] for options in candidates)):
        assigned = [o for o in assignment if o is not None]
        if len(set(assigned)) == len(assigned):
            yield assignment


def _check_relations(parsed: ParsedCaption, assignment: Sequence[SceneObject | None]) -> list[bool]:
    """Whether each stated relation (or the position) holds for the assigned objects."""
    if parsed.position:
        return [o is not None and _position(o) == parsed.position for o in assignment]
    return [
        a is not None and b is not None and relation in find_relations(a, b)
        for relation, (a, b) in zip(parsed.relations, pairwise(assignment), strict=True)
    ]


def _position(scene_object: SceneObject) -> str:
    return POSITIONS[GRID_SIZE * scene_object.row + scene_object.column]
