"""Held-out combinations of scenes: pairs of colour and shape, and arrangements of two shapes.

    N scenes   K codes of a cell   s shapes and none

Training scenes do not show them, and training texts do not state them. Every shape and every colour
is held out in some pair and shown in others. Of each two shapes one arrangement is held out, such
as "circle left of square", and with it "square right of circle", which says the same.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Integer

from sensorium.data.bundled.scenes_draw import (
    COLOURS,
    GRID_SIZE,
    NUM_CELLS,
    NUM_CODES,
    SHAPES,
    SIZES,
    SceneObject,
    encode_object,
)

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE_RELATIONS: dict[str, str] = dict(
    zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True)
)
HELD_OUT_PAIRS = frozenset((colour, SHAPES[i % len(SHAPES)]) for i, colour in enumerate(COLOURS))


def _build_arrangements() -> Iterator[tuple[str, str, str]]:
    """Yield (shape, "left of" or "above", shape), one for each two shapes."""
    pairs = [(a, b) for i, a in enumerate(SHAPES) for b in SHAPES[i + 1 :]]
    for i, (a, b) in enumerate(pairs):
        first, second = (a, b) if i % 2 == 0 else (b, a)
        yield first, "left of" if i % 4 < 2 else "above", second


HELD_OUT_ARRANGEMENTS = frozenset(_build_arrangements())


def find_relations(a: SceneObject, b: SceneObject) -> list[str]:
    """Return all relations of `a` to `b`."""
    holds = (a.column < b.column, a.column > b.column, a.row < b.row, a.row > b.row)
    return [relation for relation, true in zip(RELATIONS, holds, strict=True) if true]


def is_held_out_arrangement(a: str, relation: str, b: str) -> bool:
    """Return whether "shape `a` `relation` shape `b`", or its converse, is held out."""
    converse = (b, OPPOSITE_RELATIONS[relation], a)
    return (a, relation, b) in HELD_OUT_ARRANGEMENTS or converse in HELD_OUT_ARRANGEMENTS


def find_held_out_relation(a: SceneObject, b: SceneObject) -> str | None:
    """Return the relation of `a` to `b` that is held out, or None."""
    for relation in find_relations(a, b):
        if is_held_out_arrangement(a.shape, relation, b.shape):
            return relation
    return None


def has_held_out_pair(cells: Integer[np.ndarray, "N 9"]) -> Bool[np.ndarray, "N"]:
    """Return which scenes show a held-out pair."""
    return np.any(_HELD_OUT_CODES[cells], 1)


def has_held_out_arrangement(cells: Integer[np.ndarray, "N 9"]) -> Bool[np.ndarray, "N"]:
    """Return which scenes show a held-out arrangement."""
    shapes = np.where(cells > 0, (cells - 1) // (len(COLOURS) * len(SIZES)), len(SHAPES))
    shown = np.zeros(len(cells), bool)
    for relation, first, second in _CELL_PAIRS:
        shown |= _HELD_OUT_SHAPES[relation, shapes[:, first], shapes[:, second]]
    return shown


def _build_held_out_codes() -> Bool[np.ndarray, "K"]:
    """Whether a code is an object of a held-out pair."""
    held_out = np.zeros(NUM_CODES, bool)
    for colour, shape in HELD_OUT_PAIRS:
        for size in range(len(SIZES)):
            code = encode_object(size, list(COLOURS).index(colour), SHAPES.index(shape))
            held_out[code] = True
    return held_out


def _build_held_out_shapes() -> Bool[np.ndarray, "2 s s"]:
    """Whether two shapes are held out in the relation 0: left of, 1: above."""
    held_out = np.zeros((2, len(SHAPES) + 1, len(SHAPES) + 1), bool)
    for a, relation, b in HELD_OUT_ARRANGEMENTS:
        held_out[("left of", "above").index(relation), SHAPES.index(a), SHAPES.index(b)] = True
    return held_out


def _build_cell_pairs() -> Sequence[tuple[int, int, int]]:
    """(0: left of, 1: above; a cell; another to which it has that relation)."""
    positions = [divmod(cell, GRID_SIZE) for cell in range(NUM_CELLS)]
    return [
        (relation, first, second)
        for relation, axis in ((0, 1), (1, 0))
        for first in range(NUM_CELLS)
        for second in range(NUM_CELLS)
        if positions[first][axis] < positions[second][axis]
    ]


_HELD_OUT_CODES = _build_held_out_codes()
_HELD_OUT_SHAPES = _build_held_out_shapes()
_CELL_PAIRS = _build_cell_pairs()
