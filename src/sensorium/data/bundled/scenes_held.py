"""What no training scene shows and no training text says: pairs of colour and shape, and arrangements of two shapes.

    N scenes   K codes of a cell   s shapes, and none

Every shape and every colour is held out in some pair and shown in others. Of each two shapes one arrangement is held
out: "circle left of square" is, for one, and with it "square right of circle", which says the same.
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
    """(shape, "left of" or "above", shape), one for each two shapes."""
    two = [(a, b) for i, a in enumerate(SHAPES) for b in SHAPES[i + 1 :]]
    for i, (a, b) in enumerate(two):
        first, second = (a, b) if i % 2 == 0 else (b, a)
        yield first, "left of" if i % 4 < 2 else "above", second


HELD_OUT_ARRANGEMENTS = frozenset(_build_arrangements())


def find_relations(a: SceneObject, b: SceneObject) -> list[str]:
    """All that is true of where `a` lies, seen from `b`."""
    true = (a.column < b.column, a.column > b.column, a.row < b.row, a.row > b.row)
    return [name for name, so in zip(RELATIONS, true, strict=True) if so]


def is_held_out_arrangement(a: str, relation: str, b: str) -> bool:
    """Whether "shape `a` is `relation` shape `b`" is held out, in these words or turned round."""
    return bool({(a, relation, b), (b, OPPOSITE_RELATIONS[relation], a)} & HELD_OUT_ARRANGEMENTS)


def find_held_out_relation(a: SceneObject, b: SceneObject) -> str | None:
    """The relation of `a` to `b` that is held out, where there is one."""
    return next(
        (name for name in find_relations(a, b) if is_held_out_arrangement(a.shape, name, b.shape)),
        None,
    )


def has_held_out_pair(cells: Integer[np.ndarray, "N 9"]) -> Bool[np.ndarray, "N"]:
    """Which scenes show a held-out pair."""
    return np.any(_HELD_OUT_CODES[cells], 1)


def has_held_out_arrangement(cells: Integer[np.ndarray, "N 9"]) -> Bool[np.ndarray, "N"]:
    """Which scenes show a held-out arrangement."""
    shape = np.where(cells > 0, (cells - 1) // (len(COLOURS) * len(SIZES)), len(SHAPES))
    found = np.zeros(len(cells), bool)
    for relation, first, second in _CELL_PAIRS:
        found |= _HELD_OUT_SHAPES[relation, shape[:, first], shape[:, second]]
    return found


def _build_held_out_codes() -> Bool[np.ndarray, "K"]:
    held = np.zeros(NUM_CODES, bool)
    for colour, shape in HELD_OUT_PAIRS:
        held[
            [
                encode_object(size, list(COLOURS).index(colour), SHAPES.index(shape))
                for size in range(len(SIZES))
            ]
        ] = True
    return held


def _build_held_out_shapes() -> Bool[np.ndarray, "2 s s"]:
    held = np.zeros((2, len(SHAPES) + 1, len(SHAPES) + 1), bool)
    for a, relation, b in HELD_OUT_ARRANGEMENTS:
        held[("left of", "above").index(relation), SHAPES.index(a), SHAPES.index(b)] = True
    return held


def _build_cell_pairs() -> Sequence[tuple[int, int, int]]:
    """(0: left of, 1: above; a cell; another of which it is true)."""
    at = [divmod(cell, GRID_SIZE) for cell in range(NUM_CELLS)]
    return [
        (how, p, q)
        for how, axis in ((0, 1), (1, 0))
        for p in range(NUM_CELLS)
        for q in range(NUM_CELLS)
        if at[p][axis] < at[q][axis]
    ]


_HELD_OUT_CODES, _HELD_OUT_SHAPES, _CELL_PAIRS = (
    _build_held_out_codes(),
    _build_held_out_shapes(),
    _build_cell_pairs(),
)
