"""Procedural scenes: coloured shapes on a grid, with captions, questions and answers.

    N scenes   S side in pixels

One program generates images and texts, and another can verify both. A scene has one to four
objects, each of 5 shapes, 8 colours and 2 sizes in one of 9 cells. A row is a question about a
scene: `image`, `caption` (two wordings), `question`, `answer`, `kind` of question, `program` (JSON:
the objects and the question's program) and `scene`. No scene occurs twice. The column `split` says
what a row is for; what a split holds out is neither shown, stated nor asked in the others:

    train, val, test    at most three objects, nothing held out
    test_pairs          shows a held-out pair of colour and shape (`scenes_held.HELD_OUT_PAIRS`),
                        and asks about that object
    test_four           four objects
    test_relations      shows two shapes in a held-out arrangement (`HELD_OUT_ARRANGEMENTS`),
                        states it and asks about it
    test_words          asks in a held-out wording (the last of each kind in
                        `scenes_questions.QUESTION_TEMPLATES`)

Images and texts are made by this project's own code, under its own licence (Apache-2.0).
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
HOLDOUT_SPLITS = {f"test_{holdout}": holdout for holdout in HOLDOUTS}  # split -> what only it has
SPLIT_FRACTIONS = {"val": 0.05, "test": 0.05, **dict.fromkeys(HOLDOUT_SPLITS, 0.05)}
MIN_SCENES, MAX_SCENES = 100, 1_000_000
MAX_IMAGE_SIZE = 1024
_CAPTIONS_PER_SCENE = 2
_COLUMN_TYPES = {
    "image": "image",
    "caption": "text",
    "question": "text",
    "answer": "text",
    "kind": "ignore",
    "program": "ignore",
}
_QUESTION_COLUMNS = ("question", "answer", "kind")


class SceneImages(Sequence[UInt8[np.ndarray, "S S 3"]]):
    """The image of each row, drawn on access.

    Args:
        cells: codes of all scenes.
        scene_indices: index of the scene of each row.
        side: side of the images in pixels.
    """

    def __init__(self, cells: Integer[np.ndarray, "N 9"], scene_indices: Sequence[int], side: int):
        self.cells = cells
        self.scene_indices = scene_indices
        self.side = side

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
    """Generate scenes as a table. The same options give the same table, bit by bit.

    Args:
        n: number of scenes.
        seed: random seed.
        size: side of the images in pixels.
        questions: questions (rows) per scene, at most; 0 for one row without questions.
        holdout: what to hold out: "pairs", "four", "relations", "words"; "" for nothing. A text
            may list several, comma-separated.

    Raises:
        SensoriumError: if an option is out of range.
    """
    names = holdout.split(",") if isinstance(holdout, str) else holdout
    held_out = [name for name in names if name]
    _check_options(n, size, questions, held_out)
    rng, text_rng = np.random.default_rng(seed), random.Random(seed)
    splits, cells = _sample_scenes(n, held_out, rng)
    rows = [
        (i, *row)
        for i in range(n)
        for row in _build_rows(cells[i], splits[i], text_rng, questions, held_out)
    ]
    scene, *values = map(list, zip(*rows, strict=True))
    columns: dict[str, Any] = {"image": SceneImages(cells, scene, size)}
    columns |= dict(zip(list(_COLUMN_TYPES)[1:], values, strict=True))
    if not questions:
        columns = {k: v for k, v in columns.items() if k not in _QUESTION_COLUMNS}
    columns["scene"] = [f"scene {i}" for i in scene]
    columns["split"] = [splits[i] for i in scene]
    types = {name: type_ for name, type_ in _COLUMN_TYPES.items() if name in columns}
    return Table(
        columns,
        [f"scenes:{i}" for i in range(len(rows))],
        split_column="split",
        group_column="scene",
        kinds=types,
        reasons={
            **dict.fromkeys([*types, "split"], "defined by the dataset"),
            "scene": "rows of one scene share an image",
        },
    )


def _check_options(n: Any, size: Any, questions: Any, holdout: Sequence[str]) -> None:
    for name, value, low, high in (
        ("n", n, MIN_SCENES, MAX_SCENES),
        ("size", size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE),
        ("questions", questions, 0, len(QUESTION_KINDS)),
    ):
        if not isinstance(value, int) or not low <= value <= high:
            raise SensoriumError(
                f"scenes: {name}={value!r} is not a whole number from {low} to {high:,}. "
                "Change --source-option."
            )
    unknown = sorted(set(holdout) - set(HOLDOUTS))
    if unknown:
        raise SensoriumError(
            f"scenes: holdout={unknown[0]!r} is unknown. Choose from {', '.join(HOLDOUTS)}."
        )


def _sample_scenes(
    n: int, holdout: Sequence[str], rng: np.random.Generator
) -> tuple[list[str], Integer[np.ndarray, "N 9"]]:
    """Sample distinct scenes; return the split of each, and all codes."""
    allowed = (*holdout, *SPLIT_FRACTIONS)
    sizes = {
        split: round(n * fraction)
        for split, fraction in SPLIT_FRACTIONS.items()
        if HOLDOUT_SPLITS.get(split, split) in allowed
    }
    plain = {split: sizes[split] for split in ("val", "test", "test_words") if split in sizes}
    special = {split: size for split, size in sizes.items() if split not in plain}
    plain = {"train": n - sum(sizes.values()), **plain}
    max_objects = 3 if "four" in holdout else 4
    existing = set[bytes]()
    counts = range(1, max_objects + 1)
    plain_filter = _build_holdout_filter(holdout)
    cells = [_sample_cells(sum(plain.values()), counts, plain_filter, rng, existing)]
    for split, size in special.items():
        if split == "test_four":
            counts = [4]
        else:
            counts = range(2 if split == "test_relations" else 1, max_objects + 1)
        scene_filter = _build_holdout_filter(holdout, HOLDOUT_SPLITS.get(split, split))
        cells.append(_sample_cells(size, counts, scene_filter, rng, existing))
    names = [split for split, size in {**plain, **special}.items() for _ in range(size)]
    return names, np.concatenate(cells)


SceneFilter = Callable[[Integer[np.ndarray, "N 9"]], Bool[np.ndarray, "N"]]


def _build_holdout_filter(holdout: Sequence[str], required: str = "") -> SceneFilter:
    """Return a filter of scenes that show nothing held out, but do show `required`."""

    def is_allowed(cells: Integer[np.ndarray, "N 9"]) -> Bool[np.ndarray, "N"]:
        allowed = np.ones(len(cells), bool)
        for name, shows in (("pairs", has_held_out_pair), ("relations", has_held_out_arrangement)):
            if name in holdout:
                allowed &= shows(cells) == (name == required)
        return allowed

    return is_allowed


def _sample_cells(
    n: int,
    object_counts: Sequence[int],
    scene_filter: SceneFilter,
    rng: np.random.Generator,
    existing: set[bytes],
) -> Integer[np.ndarray, "N 9"]:
    """Sample `n` allowed scenes that do not exist yet, and add them to `existing`."""
    accepted: list[np.ndarray] = []
    while len(accepted) < n:
        count = rng.choice(np.array(object_counts), max(256, n))
        batch = np.where(
            rng.random((len(count), NUM_CELLS)).argsort(1) < count[:, None],
            rng.integers(1, NUM_CODES, (len(count), NUM_CELLS)),
            0,
        ).astype(np.uint8)
        for cells in batch[scene_filter(batch)]:
            key = cells.tobytes()
            if key not in existing and len(accepted) < n:
                existing.add(key)
                accepted.append(cells)
    return np.stack(accepted) if accepted else np.zeros((0, NUM_CELLS), np.uint8)


def _build_rows(
    cells: Integer[np.ndarray, "9"],
    split: str,
    rng: random.Random,
    questions: int,
    holdout: Sequence[str],
) -> Iterator[tuple[Any, ...]]:
    """Yield (captions, question, answer, kind, program) for each question about a scene."""
    objects = decode_objects(cells)
    required = HOLDOUT_SPLITS.get(split, "")
    num_captions = _CAPTIONS_PER_SCENE if len(objects) > 1 else 1
    captions = [
        generate_caption(objects, rng, held_out=required == "relations")
        for _ in range(num_captions)
    ]
    features = [astuple(scene_object) for scene_object in objects]
    if not questions:
        yield captions, None, None, None, json.dumps({"objects": features})
        return
    others = [name for name in holdout if name != required]
    for kind, question, answer, program in generate_questions(
        objects, rng, questions, holdout=others, required=required
    ):
        content = {"objects": features, "question": program}
        yield captions, question, answer, kind, json.dumps(content)
