"""Procedural scenes: what is held out is nowhere else, every word is true, every answer is what the program gives."""

import hashlib
import json
import random
import re
from collections import Counter
from itertools import chain, combinations

import numpy as np
import pytest

from sensorium.data.bundled.scenes import open_scenes
from sensorium.data.bundled.scenes_draw import COLOURS, SHAPES, SceneObject, decode_objects
from sensorium.data.bundled.scenes_held import (
    HELD_OUT_ARRANGEMENTS,
    HELD_OUT_PAIRS,
    find_held_out_relation,
    find_relations,
    is_held_out_arrangement,
)
from sensorium.data.bundled.scenes_questions import (
    QUESTION_KINDS,
    QUESTION_TEMPLATES,
    AmbiguousReference,
    execute_program,
    generate_questions,
)
from sensorium.data.bundled.scenes_words import (
    ParsedCaption,
    generate_caption,
    parse_caption,
    score_caption,
)
from sensorium.data.dataset import Dataset
from sensorium.data.tables import Table
from sensorium.errors import SensoriumError

SPLITS = ("train", "val", "test", "test_pairs", "test_four", "test_relations", "test_words")
RED, BLUE = SceneObject("small", "red", "circle", 0, 0), SceneObject("big", "blue", "square", 0, 2)


@pytest.fixture(scope="module")
def table() -> Table:
    return open_scenes(n=2000, seed=1)


@pytest.fixture(scope="module")
def rows(table: Table) -> list[dict[str, object]]:
    names = [name for name in table.columns if name != "image"]
    told = [
        dict(zip(names, values, strict=True))
        for values in zip(*(table.columns[n] for n in names), strict=True)
    ]
    for row in told:
        row["program"] = json.loads(row["program"])
        row["things"] = [SceneObject(*thing) for thing in row["program"]["things"]]
    return told


def by_split(rows: list[dict[str, object]], *names: str) -> list[dict[str, object]]:
    return [row for row in rows if row["split"] in names]


def test_a_seed_gives_the_same_set_to_the_last_bit(table: Table) -> None:
    again, other = open_scenes(n=2000, seed=1), open_scenes(n=2000, seed=2)
    for name, values in table.columns.items():
        if name != "image":
            assert values == again.columns[name], name
    assert (table.columns["image"].cells == again.columns["image"].cells).all()
    assert table.columns["caption"] != other.columns["caption"]


def test_the_drawing_is_the_same_everywhere(table: Table) -> None:
    pixels = np.stack([table.columns["image"][row] for row in range(20)])
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "093a74f02d995a5d"


def test_the_program_names_what_is_drawn(table: Table, rows: list[dict[str, object]]) -> None:
    image = table.columns["image"]
    assert all(
        row["things"] == decode_objects(image.cells[image.scene[i]]) for i, row in enumerate(rows)
    )
    picture = image[0]
    assert picture.shape == (32, 32, 3)
    assert picture.dtype == np.uint8


def test_no_scene_is_there_twice(table: Table) -> None:
    assert len(np.unique(table.columns["image"].cells, axis=0)) == 2000


def test_sizes_of_splits(rows: list[dict[str, object]]) -> None:
    scenes = Counter(split for _, split in {(row["scene"], row["split"]) for row in rows})
    assert scenes["train"] == 1400
    assert all(80 <= scenes[name] <= 100 for name in SPLITS[1:])


def test_captions_are_true_and_are_read_back(rows: list[dict[str, object]]) -> None:
    for row in rows:
        for text in row["caption"]:
            assert score_caption(parse_caption(text), row["things"]).exact, text
            assert len(parse_caption(text).objects) == len(row["things"])


def test_answers_are_what_the_program_gives(rows: list[dict[str, object]]) -> None:
    assert all(
        execute_program(row["program"]["question"], row["things"]) == row["answer"] for row in rows
    )
    assert {row["kind"] for row in by_split(rows, "train")} == set(QUESTION_KINDS)


def test_yes_is_no_safe_guess(rows: list[dict[str, object]]) -> None:
    for kind in ("exist", "relation", "compare"):
        said = Counter(row["answer"] for row in by_split(rows, "train") if row["kind"] == kind)
        assert 0.35 < said["yes"] / said.total() < 0.65, kind


def test_held_out_pairs(rows: list[dict[str, object]]) -> None:
    assert {colour for colour, _ in HELD_OUT_PAIRS} == set(COLOURS)
    assert {shape for _, shape in HELD_OUT_PAIRS} == set(SHAPES)
    for row in rows:
        pairs = {(t.colour, t.shape) for t in row["things"]} & HELD_OUT_PAIRS
        assert bool(pairs) == (row["split"] == "test_pairs")
        words = f"{row['question']} {' '.join(row['caption'])}"
        assert row["split"] == "test_pairs" or not any(
            f"{colour} {shape}" in words for colour, shape in HELD_OUT_PAIRS
        )
    shown = {(t.colour, t.shape) for row in by_split(rows, "train") for t in row["things"]}
    assert {c for c, _ in shown} == set(COLOURS)
    assert {s for _, s in shown} == set(SHAPES)


def test_held_out_count(rows: list[dict[str, object]]) -> None:
    assert {len(row["things"]) for row in by_split(rows, "test_four")} == {4}
    assert {len(row["things"]) for row in rows if row["split"] != "test_four"} == {1, 2, 3}


def test_held_out_arrangements(rows: list[dict[str, object]]) -> None:
    assert {frozenset((a, b)) for a, _, b in HELD_OUT_ARRANGEMENTS} == set(
        map(frozenset, combinations(SHAPES, 2))
    )
    for row in rows:
        held = any(find_held_out_relation(a, b) for a in row["things"] for b in row["things"])
        assert held == (row["split"] == "test_relations")
        said = [
            (c.objects[i][2], c.relations[i], c.objects[i + 1][2])
            for c in map(parse_caption, row["caption"])
            for i in range(len(c.relations))
        ]
        assert any(is_held_out_arrangement(*s) for s in said) == held
        if held:
            assert row["kind"] == "relation"
            assert is_held_out_arrangement(*said[0])


def test_held_out_words(rows: list[dict[str, object]]) -> None:
    forms = {
        kind: re.compile(re.sub(r"\\{.\\}", ".+", re.escape(said[-1])))
        for kind, said in QUESTION_TEMPLATES.items()
    }
    for row in rows:
        of_last_form = bool(forms[row["kind"]].fullmatch(row["question"]))
        assert of_last_form == (row["split"] == "test_words"), row["question"]


def test_nothing_held_out() -> None:
    table = open_scenes(n=400, holdout="", questions=1)
    assert set(table.columns["split"]) == {"train", "val", "test"}
    seen = [decode_objects(c) for c in table.columns["image"].cells]
    assert max(map(len, seen)) == 4
    assert {(t.colour, t.shape) for s in seen for t in s} & HELD_OUT_PAIRS


def test_one_row_a_scene_without_questions() -> None:
    table = open_scenes(n=100, questions=0, size=64)
    assert len(table) == 100
    assert "question" not in table.columns
    assert table.columns["image"][3].shape == (64, 64, 3)


@pytest.mark.parametrize("options", [{"n": 5}, {"size": 8}, {"questions": 99}, {"hold": "paris"}])
def test_what_cannot_be_is_said(options: dict[str, object]) -> None:
    with pytest.raises(SensoriumError, match=str(list(options)[0])):
        open_scenes(**options)


def test_it_opens_like_any_other_set() -> None:
    data = Dataset.open("scenes", n=200, questions=2)
    assert set(data.splits) == set(SPLITS)
    assert data.group_column == "scene"
    assert [data.schema.columns[n].kind for n in ("image", "caption", "question", "answer")] == [
        "image"
    ] + ["text"] * 3
    assert data.schema["image"].size == 32
    assert data.source == {"path": "scenes", "max_invalid_fraction": 0.01, "n": 200, "questions": 2}
    part = data.take(data.splits["test"])
    assert (part.raw("image", [0])[0] == data.raw("image", data.splits["test"][:1])[0]).all()
    assert {g for split in ("val", "test") for g in data.groups()[data.splits[split]]}.isdisjoint(
        data.groups()[data.splits["train"]]
    )


# Words and programs by hand -------------------------------------------------------------------------------------------


def test_relations_by_hand() -> None:
    assert find_relations(RED, BLUE) == ["left of"]
    assert find_relations(BLUE, RED) == ["right of"]
    assert find_relations(RED, SceneObject("big", "red", "ring", 1, 1)) == ["left of", "above"]


def test_a_caption_is_parsed() -> None:
    said = parse_caption(
        "A small red circle left of a big blue square, which is above an big red ring."
    )
    assert said == ParsedCaption(
        (("small", "red", "circle"), ("big", "blue", "square"), ("big", "red", "ring")),
        ("left of", "above"),
    )
    assert parse_caption("a big red ring at the top left") == ParsedCaption(
        (("big", "red", "ring"),), (), "top left"
    )
    for wrong in (
        "a cat",
        "",
        "a small red circle left of",
        "a small red circle a big blue square",
    ):
        assert parse_caption(wrong) is None


def test_verdicts_by_hand() -> None:
    said = parse_caption("a small red circle left of a big blue square")
    assert score_caption(said, [RED, BLUE]).exact
    turned = [
        SceneObject("small", "red", "circle", 0, 2),
        SceneObject("big", "blue", "square", 0, 0),
    ]
    assert (
        score_caption(said, turned).exact,
        score_caption(said, turned).objects,
        score_caption(said, turned).relations,
    ) == (False, 1, 0)
    half = score_caption(said, [RED])
    assert (half.exact, half.objects, half.relations) == (False, 0.5, 0)
    more = score_caption(said, [RED, BLUE, SceneObject("big", "red", "ring", 2, 2)])
    assert (more.exact, more.objects, more.relations) == (False, 1, 1)
    assert score_caption(parse_caption("a small red circle at the top left"), [RED]).exact
    assert not score_caption(parse_caption("a small red circle at the centre"), [RED]).exact


def test_the_best_reading_of_a_claim_counts() -> None:
    """Of two things that look the same, the one that makes the claim true is meant."""
    low, right = (
        SceneObject("small", "red", "circle", 2, 0),
        SceneObject("small", "red", "circle", 0, 1),
    )
    said = parse_caption(
        "a small red circle left of a big blue square, which is above a small red circle"
    )
    assert score_caption(said, [low, BLUE, RED]).exact
    assert score_caption(said, [right, BLUE, RED]).relations == 0.5
    assert (
        score_caption(
            parse_caption("a small red circle left of a small red circle"), [RED, RED]
        ).objects
        == 0.5
    )


def test_programs_by_hand() -> None:
    seen = [RED, BLUE]
    assert execute_program(["exist", ["filter", {"colour": "red"}]], seen) == "yes"
    assert execute_program(["count", ["filter", {"size": "small"}]], seen) == "1"
    assert (
        execute_program(
            ["more", ["filter", {"colour": "red"}], ["filter", {"colour": "blue"}]], seen
        )
        == "no"
    )
    assert (
        execute_program(["colour", ["beside", "right of", ["filter", {"shape": "circle"}]]], seen)
        == "blue"
    )
    assert (
        execute_program(
            ["related", "left of", ["filter", {"colour": "red"}], ["filter", {"colour": "blue"}]],
            seen,
        )
        == "yes"
    )
    with pytest.raises(AmbiguousReference):
        execute_program(["colour", ["filter", {"shape": "ring"}]], seen)


def test_every_kind_is_asked_in_every_wording() -> None:
    rng = random.Random(0)
    asked = list(chain.from_iterable(generate_questions([RED, BLUE], rng, 7) for _ in range(200)))
    assert {kind for kind, *_ in asked} == set(QUESTION_KINDS)
    assert all(question.endswith((".", "?")) and "{" not in question for _, question, _, _ in asked)
    assert len({question for kind, question, *_ in asked if kind == "two-hop"}) >= 16
    assert generate_caption([RED], rng) == "a small red circle at the top left"
