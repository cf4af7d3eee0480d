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

from sensorium.data.scenes_draw import CELLS, CODES, SMALLEST, draw, things
from sensorium.data.scenes_held import shows_arrangement, shows_pair
from sensorium.data.scenes_questions import KINDS, ask
from sensorium.data.scenes_words import caption
from sensorium.data.sources import Table
from sensorium.errors import SensoriumError

HOLDS = ("pairs", "four", "relations", "words")
HELD = {f"test_{hold}": hold for hold in HOLDS}         # split -> what only it has
SHARES = {"val": 0.05, "test": 0.05, **dict.fromkeys(HELD, 0.05)}
MOST = 1_000_000                            # scenes
_CAPTIONS = 2
_KINDS = {"image": "image", "caption": "text", "question": "text", "answer": "text", "kind": "ignore",
          "program": "ignore"}


class Drawn(Sequence[UInt8[np.ndarray, "S S 3"]]):
    """The picture of each row, drawn when it is asked for."""

    def __init__(self, cells: Integer[np.ndarray, "N 9"], scene: Sequence[int], side: int):
        self.cells, self.scene, self.side = cells, scene, side

    def __len__(self) -> int:
        return len(self.scene)

    def __getitem__(self, row: Any) -> Any:
        return draw(self.cells[self.scene[row]][None], self.side)[0]


def open_scenes(*, n: int = 10_000, seed: int = 0, size: int = 32, questions: int = 3,
                hold: str | Sequence[str] = HOLDS) -> Table:
    """`n` scenes, each with as many rows as it has questions, at most `questions`.

    size: side of a picture. questions: 0 for one row a scene, without the columns of questions. hold: what is held out
    ("pairs", "four", "relations", "words"; "" for nothing). The same options give the same set, to the last bit.
    Raises SensoriumError for options that cannot be.
    """
    hold = [h for h in (hold.split(",") if isinstance(hold, str) else hold) if h]
    _check(n, size, questions, hold)
    rng, pen = np.random.default_rng(seed), random.Random(seed)
    split, cells = _scenes(n, hold, rng)
    rows = [(i, *row) for i in range(n) for row in _rows(cells[i], split[i], pen, questions, hold)]
    scene, *values = map(list, zip(*rows, strict=True))
    columns = {"image": Drawn(cells, scene, size), **dict(zip(list(_KINDS)[1:], values, strict=True))}
    if not questions:
        columns = {name: v for name, v in columns.items() if name not in ("question", "answer", "kind")}
    columns |= {"scene": [f"scene {i}" for i in scene], "split": [split[i] for i in scene]}
    kinds = {name: kind for name, kind in _KINDS.items() if name in columns}
    return Table(columns, [f"scenes:{i}" for i in range(len(rows))], split="split", group="scene", kinds=kinds,
                 why={**dict.fromkeys(kinds, "the set says so"), "split": "the set says so",
                      "scene": "rows of one scene show the same thing"})


def _check(n: Any, size: Any, questions: Any, hold: Sequence[str]) -> None:
    for name, value, least, most in (("n", n, 100, MOST), ("size", size, SMALLEST, 1024),
                                     ("questions", questions, 0, len(KINDS))):
        if not isinstance(value, int) or not least <= value <= most:
            raise SensoriumError(f"scenes: {name}={value!r} is no whole number from {least} to {most:,}")
    if wrong := set(hold) - set(HOLDS):
        raise SensoriumError(f"scenes: hold={min(wrong)!r} is not one of {', '.join(HOLDS)}")


def _scenes(n: int, hold: Sequence[str], rng: np.random.Generator) -> tuple[list[str], Integer[np.ndarray, "N 9"]]:
    """(the split of each scene, all scenes), no two the same."""
    sizes = {name: round(n * share) for name, share in SHARES.items() if HELD.get(name, name) in (*hold, *SHARES)}
    plain = {name: sizes[name] for name in ("val", "test", "test_words") if name in sizes}
    special = {name: size for name, size in sizes.items() if name not in plain}
    plain = {"train": n - sum(sizes.values()), **plain}
    most, seen = 3 if "four" in hold else 4, set[bytes]()
    ordinary = _drawn(sum(plain.values()), range(1, most + 1), _allowed(hold), rng, seen)
    found = [ordinary]
    for name, size in special.items():
        counts = [4] if name == "test_four" else range(2 if name == "test_relations" else 1, most + 1)
        found.append(_drawn(size, counts, _allowed(hold, HELD.get(name, name)), rng, seen))
    names = [name for name, size in {**plain, **special}.items() for _ in range(size)]
    return names, np.concatenate(found)


Allowed = Callable[[Integer[np.ndarray, "N 9"]], Bool[np.ndarray, "N"]]


def _allowed(hold: Sequence[str], only: str = "") -> Allowed:
    """Which scenes show nothing that is held out, but `only`."""
    def allowed(cells: Integer[np.ndarray, "N 9"]) -> Bool[np.ndarray, "N"]:
        fits = np.ones(len(cells), bool)
        for name, shows in (("pairs", shows_pair), ("relations", shows_arrangement)):
            if name in hold:
                fits &= shows(cells) == (name == only)
        return fits
    return allowed


def _drawn(n: int, counts: Sequence[int], allowed: Allowed, rng: np.random.Generator,
           seen: set[bytes]) -> Integer[np.ndarray, "N 9"]:
    """`n` scenes that are allowed and not yet `seen`, as many of each count as there can be."""
    found: list[np.ndarray] = []
    while len(found) < n:
        count = rng.choice(np.array(counts), max(256, n))
        some = np.where(rng.random((len(count), CELLS)).argsort(1) < count[:, None],
                        rng.integers(1, CODES, (len(count), CELLS)), 0).astype(np.uint8)
        for cells in some[allowed(some)]:
            if (key := cells.tobytes()) not in seen and len(found) < n:
                seen.add(key)
                found.append(cells)
    return np.stack(found) if found else np.zeros((0, CELLS), np.uint8)


def _rows(cells: Integer[np.ndarray, "9"], split: str, pen: random.Random, questions: int,
          hold: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """(captions, question, answer, kind, program) for each question about a scene."""
    seen, only = things(cells), HELD.get(split, "")
    captions = [caption(seen, pen, held=only == "relations") for _ in range(_CAPTIONS if len(seen) > 1 else 1)]
    told = [astuple(thing) for thing in seen]
    if not questions:
        yield captions, None, None, None, json.dumps({"things": told})
        return
    for kind, question, answer, program in ask(seen, pen, questions, hold=[h for h in hold if h != only], only=only):
        yield captions, question, answer, kind, json.dumps({"things": told, "question": program})
