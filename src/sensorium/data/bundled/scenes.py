"""Procedural scenes: coloured shapes on a grid, captions, questions and answers, all by one program, all to be checked.

    N scenes   S side in pixels

A scene has one to four things, each one of 5 shapes, 8 colours and 2 sizes in one of 9 places. A row is a question
about a scene: `image`, `caption` (two wordings), `question`, `answer`, `kind` of question, `program` (JSON: the things
and the question's program) and `scene`. The column `split` says what a row is good for. No scene is there twice, and
what is held out is neither shown, said nor asked elsewhere:

    train, val, test    at most three things, nothing held out
    test_pairs          shows a colour on a shape that never had it (`scenes_held.PAIRS`), and asks about that thing
    test_four           four things
    test_relations      shows two shapes arranged as they never were, says so and asks about it (`ARRANGEMENTS`)
    test_words          asks in words that were never used (the last of each kind in `scenes_questions.PHRASES`)

Drawn and written by this project's own code, under its own licence (Apache-2.0); no other work is part of it.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from sensorium.data.bundled.scenes_draw import (
    MIN_IMAGE_SIZE,
    NUM_CELLS,
    NUM_CODES,
    decode_objects,
    draw_scenes,
)
from sensorium.data.bundled.scenes_held import has_held_out_arrangement, has_held_out_pair
from sensorium.data.bundled.scenes_questions import QUESTION_KINDS, generate_questions
from sensorium.data.bundled.scenes_words import generate_caption
from sensorium.data.tables import Table
from sensorium.errors import SensoriumError

HOLDOUTS = ("pairs", "four", "relations", "words")
HELD = {f"test_{hold}": hold for hold in HOLDOUTS}  # split -> what only it has
SPLIT_FRACTIONS = {"val": 0.05, "test": 0.05, **dict.fromkeys(HELD, 0.05)}
MAX_SCENES = 1_000_000  # scenes
_CAPTIONS_PER_SCENE = 2
_COLUMN_KINDS = {
    "image": "image",
    "caption": "text",
    "question": "text",
    "answer": "text",
    "kind": "ignore",
    "program": "ignore",
}


class SceneImages(Sequence[UInt8[np.ndarray, "S S 3"]]):
    """The picture of each row, drawn when it is asked for."""

    def __init__(self, cells: Integer[np.ndarray, "N 9"], scene_indices: Sequence[int], side: int):
        self.cells, self.scene_indices, self.side = cells, scene_indices, side

    def __len__(self) -> int:
        return len(self.scene_indices)

    def __getitem__(self, row: Any) -> Any:
        return draw_scenes(self.cells[self.scene_indices[row]][None], self.side)[0]


def open_scenes(
    *,
    n: int = 10_000,
    seed: int = 0,
    size: int = 32,
    questions: int = 3,
    holdout: str | Sequence[str] = HOLDOUTS,
) -> Table:
    """`n` scenes, each with as many rows as it has questions, at most `questions`.

    size: side of a picture. questions: 0 for one row a scene, without the columns of questions. hold: what is held out
    ("pairs", "four", "relations", "words"; "" for nothing). The same options give the same set, to the last bit.
    Raises SensoriumError for options that cannot be.
    """
    holdout = [h for h in (holdout.split(",") if isinstance(holdout, str) else holdout) if h]
    _check_options(n, size, questions, holdout)
    rng, pen = np.random.default_rng(seed), random.Random(seed)
    split, cells = _sample_scenes(n, holdout, rng)
    rows = [
        (i, *row)
        for i in range(n)
        for row in _build_rows(cells[i], split[i], pen, questions, holdout)
    ]
    scene, *values = map(list, zip(*rows, strict=True))
    columns = {
        "image": SceneImages(cells, scene, size),
        **dict(zip(list(_COLUMN_KINDS)[1:], values, strict=True)),
    }
    if not questions:
        columns = {
            name: v for name, v in columns.items() if name not in ("question", "answer", "kind")
        }
    columns |= {"scene": [f"scene {i}" for i in scene], "split": [split[i] for i in scene]}
    kinds = {name: kind for name, kind in _COLUMN_KINDS.items() if name in columns}
    return Table(
        columns,
        [f"scenes:{i}" for i in range(len(rows))],
        split_column="split",
        group_column="scene",
        kinds=kinds,
        reasons={
            **dict.fromkeys(kinds, "the set says so"),
            "split": "the set says so",
            "scene": "rows of one scene show the same thing",
        },
    )


def _check_options(n: Any, size: Any, questions: Any, holdout: Sequence[str]) -> None:
    for name, value, least, most in (
        ("n", n, 100, MAX_SCENES),
        ("size", size, MIN_IMAGE_SIZE, 1024),
        ("questions", questions, 0, len(QUESTION_KINDS)),
    ):
        if not isinstance(value, int) or not least <= value <= most:
            raise SensoriumError(
                f"scenes: {name}={value!r} is no whole number from {least} to {most:,}"
            )
    if wrong := set(holdout) - set(HOLDOUTS):
        raise SensoriumError(f"scenes: hold={min(wrong)!r} is not one of {', '.join(HOLDOUTS)}")


def _sample_scenes(
    n: int, holdout: Sequence[str], rng: np.random.Generator
) -> tuple[list[str], Integer[np.ndarray, "N 9"]]:
    """(the split of each scene, all scenes), no two the same."""
    sizes = {
        name: round(n * share)
        for name, share in SPLIT_FRACTIONS.items()
        if HELD.get(name, name) in (*holdout, *SPLIT_FRACTIONS)
    }
    plain = {name: sizes[name] for name in ("val", "test", "test_words") if name in sizes}
    special = {name: size for name, size in sizes.items() if name not in plain}
    plain = {"train": n - sum(sizes.values()), **plain}
    most, seen = 3 if "four" in holdout else 4, set[bytes]()
    ordinary = _sample_cells(
        sum(plain.values()), range(1, most + 1), _build_holdout_filter(holdout), rng, seen
    )
    found = [ordinary]
    for name, size in special.items():
        counts = (
            [4] if name == "test_four" else range(2 if name == "test_relations" else 1, most + 1)
        )
        found.append(
            _sample_cells(
                size, counts, _build_holdout_filter(holdout, HELD.get(name, name)), rng, seen
            )
        )
    names = [name for name, size in {**plain, **special}.items() for _ in range(size)]
    return names, np.concatenate(found)


SceneFilter = Callable[[Integer[np.ndarray, "N 9"]], Bool[np.ndarray, "N"]]


def _build_holdout_filter(holdout: Sequence[str], required: str = "") -> SceneFilter:
    """Which scenes show nothing that is held out, but `only`."""

    def allowed(cells: Integer[np.ndarray, "N 9"]) -> Bool[np.ndarray, "N"]:
        fits = np.ones(len(cells), bool)
        for name, shows in (("pairs", has_held_out_pair), ("relations", has_held_out_arrangement)):
            if name in holdout:
                fits &= shows(cells) == (name == required)
        return fits

    return allowed


def _sample_cells(
    n: int,
    object_counts: Sequence[int],
    scene_filter: SceneFilter,
    rng: np.random.Generator,
    existing: set[bytes],
) -> Integer[np.ndarray, "N 9"]:
    """`n` scenes that are allowed and not yet `seen`, as many of each count as there can be."""
    found: list[np.ndarray] = []
    while len(found) < n:
        count = rng.choice(np.array(object_counts), max(256, n))
        some = np.where(
            rng.random((len(count), NUM_CELLS)).argsort(1) < count[:, None],
            rng.integers(1, NUM_CODES, (len(count), NUM_CELLS)),
            0,
        ).astype(np.uint8)
        for cells in some[scene_filter(some)]:
            if (key := cells.tobytes()) not in existing and len(found) < n:
                existing.add(key)
                found.append(cells)
    return np.stack(found) if found else np.zeros((0, NUM_CELLS), np.uint8)


def _build_rows(
    cells: Integer[np.ndarray, "9"],
    split: str,
    rng: random.Random,
    questions: int,
    holdout: Sequence[str],
) -> Iterator[tuple[Any, ...]]:
    """(captions, question, answer, kind, program) for each question about a scene."""
    seen, only = decode_objects(cells), HELD.get(split, "")
    captions = [
        generate_caption(seen, rng, held_out=only == "relations")
        for _ in range(_CAPTIONS_PER_SCENE if len(seen) > 1 else 1)
    ]
    told = [astuple(thing) for thing in seen]
    if not questions:
        yield captions, None, None, None, json.dumps({"things": told})
        return
    for kind, question, answer, program in generate_questions(
        seen, rng, questions, holdout=[h for h in holdout if h != only], required=only
    ):
        yield captions, question, answer, kind, json.dumps({"things": told, "question": program})
