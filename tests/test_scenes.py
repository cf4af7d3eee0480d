"""Procedural scenes: held-out combinations, true captions, and answers by program."""

import hashlib
import json
import random
import re
from collections import Counter
from itertools import chain, combinations
from typing import Any

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
    AmbiguousReferenceError,
    execute_program,
    generate_questions,
)
from sensorium.data.bundled.scenes_words import (
    CaptionAccuracy,
    ParsedCaption,
    generate_caption,
    parse_caption,
    score_caption,
)
from sensorium.data.dataset import Dataset
from sensorium.data.tables import Table
from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image

Row = dict[str, Any]
SPLITS = ("train", "val", "test", "test_pairs", "test_four", "test_relations", "test_words")
RED, BLUE = SceneObject("small", "red", "circle", 0, 0), SceneObject("big", "blue", "square", 0, 2)


@pytest.fixture(scope="module")
def table() -> Table:
    return open_scenes(n=2000, seed=1)


@pytest.fixture(scope="module")
def rows(table: Table) -> list[Row]:
    names = [name for name in table.columns if name != "image"]
    rows = [
        dict(zip(names, values, strict=True))
        for values in zip(*(table.columns[n] for n in names), strict=True)
    ]
    for row in rows:
        row["program"] = json.loads(row["program"])
        row["objects"] = [SceneObject(*features) for features in row["program"]["objects"]]
    return rows


def parse(text: str) -> ParsedCaption:
    """Parse a valid caption."""
    parsed = parse_caption(text)
    assert parsed is not None
    return parsed


def by_split(rows: list[Row], *names: str) -> list[Row]:
    return [row for row in rows if row["split"] in names]


def test_same_seed_gives_the_same_table(table: Table) -> None:
    again = open_scenes(n=2000, seed=1)
    other = open_scenes(n=2000, seed=2)
    for name, values in table.columns.items():
        if name != "image":
            assert values == again.columns[name], name
    assert (table.columns["image"].cells == again.columns["image"].cells).all()
    assert table.columns["caption"] != other.columns["caption"]


def test_pixels_are_pinned(table: Table) -> None:
    pixels = np.stack([table.columns["image"][row] for row in range(20)])
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "093a74f02d995a5d"


def test_program_lists_the_drawn_objects(table: Table, rows: list[Row]) -> None:
    image = table.columns["image"]
    for row, scene in zip(rows, image.scene_indices, strict=True):
        assert row["objects"] == decode_objects(image.cells[scene])
    assert image[0].shape == (32, 32, 3)
    assert image[0].dtype == np.uint8


def test_scenes_are_distinct(table: Table) -> None:
    assert len(np.unique(table.columns["image"].cells, axis=0)) == 2000


def test_split_sizes(rows: list[Row]) -> None:
    scenes = Counter(split for _, split in {(row["scene"], row["split"]) for row in rows})
    assert scenes["train"] == 1400
    assert all(80 <= scenes[name] <= 100 for name in SPLITS[1:])


def test_captions_are_true_and_parsed_back(rows: list[Row]) -> None:
    for row in rows:
        for text in row["caption"]:
            parsed = parse(text)
            assert score_caption(parsed, row["objects"]).exact, text
            assert len(parsed.objects) == len(row["objects"])


def test_answers_are_results_of_the_programs(rows: list[Row]) -> None:
    assert all(
        execute_program(row["program"]["question"], row["objects"]) == row["answer"] for row in rows
    )
    assert {row["kind"] for row in by_split(rows, "train")} == set(QUESTION_KINDS)


def test_yes_and_no_are_balanced(rows: list[Row]) -> None:
    for kind in ("exist", "relation", "compare"):
        answers = Counter(row["answer"] for row in by_split(rows, "train") if row["kind"] == kind)
        assert 0.35 < answers["yes"] / answers.total() < 0.65, kind


def test_held_out_pairs_are_only_in_their_split(rows: list[Row]) -> None:
    assert {colour for colour, _ in HELD_OUT_PAIRS} == set(COLOURS)
    assert {shape for _, shape in HELD_OUT_PAIRS} == set(SHAPES)
    for row in rows:
        pairs = {(t.colour, t.shape) for t in row["objects"]} & HELD_OUT_PAIRS
        assert bool(pairs) == (row["split"] == "test_pairs")
        texts = f"{row['question']} {' '.join(row['caption'])}"
        stated = any(f"{colour} {shape}" in texts for colour, shape in HELD_OUT_PAIRS)
        assert row["split"] == "test_pairs" or not stated
    shown = {(t.colour, t.shape) for row in by_split(rows, "train") for t in row["objects"]}
    assert {c for c, _ in shown} == set(COLOURS)
    assert {s for _, s in shown} == set(SHAPES)


def test_four_objects_are_only_in_their_split(rows: list[Row]) -> None:
    assert {len(row["objects"]) for row in by_split(rows, "test_four")} == {4}
    assert {len(row["objects"]) for row in rows if row["split"] != "test_four"} == {1, 2, 3}


def test_held_out_arrangements_are_only_in_their_split(rows: list[Row]) -> None:
    assert {frozenset((a, b)) for a, _, b in HELD_OUT_ARRANGEMENTS} == set(
        map(frozenset, combinations(SHAPES, 2))
    )
    for row in rows:
        shown = any(find_held_out_relation(a, b) for a in row["objects"] for b in row["objects"])
        assert shown == (row["split"] == "test_relations")
        stated = [
            (c.objects[i][2], c.relations[i], c.objects[i + 1][2])
            for c in map(parse, row["caption"])
            for i in range(len(c.relations))
        ]
        assert any(is_held_out_arrangement(*arrangement) for arrangement in stated) == shown
        if shown:
            assert row["kind"] == "relation"
            assert is_held_out_arrangement(*stated[0])


def test_held_out_wordings_are_only_in_their_split(rows: list[Row]) -> None:
    held_out = {
        kind: re.compile(re.sub(r"\\{.\\}", ".+", re.escape(templates[-1])))
        for kind, templates in QUESTION_TEMPLATES.items()
    }
    for row in rows:
        is_held_out = bool(held_out[row["kind"]].fullmatch(row["question"]))
        assert is_held_out == (row["split"] == "test_words"), row["question"]


def test_empty_holdout_holds_out_nothing() -> None:
    table = open_scenes(n=400, holdout="", questions=1)
    assert set(table.columns["split"]) == {"train", "val", "test"}
    scenes = [decode_objects(c) for c in table.columns["image"].cells]
    assert max(map(len, scenes)) == 4
    assert {(t.colour, t.shape) for s in scenes for t in s} & HELD_OUT_PAIRS


def test_without_questions_there_is_one_row_per_scene() -> None:
    table = open_scenes(n=100, questions=0, size=64)
    assert len(table) == 100
    assert "question" not in table.columns
    assert table.columns["image"][3].shape == (64, 64, 3)


@pytest.mark.parametrize(
    "options", [{"n": 5}, {"size": 8}, {"questions": 99}, {"holdout": "paris"}]
)
def test_invalid_option_is_named_in_the_error(options: dict[str, Any]) -> None:
    with pytest.raises(SensoriumError, match=next(iter(options))):
        open_scenes(**options)


def test_dataset_opens_scenes_by_name() -> None:
    data = Dataset.open("scenes", n=200, questions=2)
    assert set(data.splits) == set(SPLITS)
    assert data.group_column == "scene"
    assert [data.schema.columns[n].kind for n in ("image", "caption", "question", "answer")] == [
        "image"
    ] + ["text"] * 3
    image = data.schema["image"]
    assert isinstance(image, Image)
    assert image.size == 32
    assert data.source == {"path": "scenes", "max_invalid_fraction": 0.01, "n": 200, "questions": 2}
    part = data.take(data.splits["test"])
    assert (part.raw("image", [0])[0] == data.raw("image", data.splits["test"][:1])[0]).all()
    assert {g for split in ("val", "test") for g in data.groups()[data.splits[split]]}.isdisjoint(
        data.groups()[data.splits["train"]]
    )


# Captions and programs by hand


def test_find_relations() -> None:
    assert find_relations(RED, BLUE) == ["left of"]
    assert find_relations(BLUE, RED) == ["right of"]
    assert find_relations(RED, SceneObject("big", "red", "ring", 1, 1)) == ["left of", "above"]


def test_parse_caption() -> None:
    parsed = parse_caption(
        "A small red circle left of a big blue square, which is above an big red ring."
    )
    assert parsed == ParsedCaption(
        (("small", "red", "circle"), ("big", "blue", "square"), ("big", "red", "ring")),
        ("left of", "above"),
    )
    assert parse_caption("a big red ring at the top left") == ParsedCaption(
        (("big", "red", "ring"),), (), "top left"
    )
    for text in (
        "a cat",
        "",
        "a small red circle left of",
        "a small red circle a big blue square",
    ):
        assert parse_caption(text) is None


def test_score_caption() -> None:
    parsed = parse("a small red circle left of a big blue square")
    assert score_caption(parsed, [RED, BLUE]).exact
    mirrored = [
        SceneObject("small", "red", "circle", 0, 2),
        SceneObject("big", "blue", "square", 0, 0),
    ]
    assert score_caption(parsed, mirrored) == CaptionAccuracy(False, 1, 0)
    assert score_caption(parsed, [RED]) == CaptionAccuracy(False, 0.5, 0)
    more = [RED, BLUE, SceneObject("big", "red", "ring", 2, 2)]
    assert score_caption(parsed, more) == CaptionAccuracy(False, 1, 1)
    assert score_caption(parse("a small red circle at the top left"), [RED]).exact
    assert not score_caption(parse("a small red circle at the centre"), [RED]).exact


def test_score_caption_takes_the_most_favourable_reading() -> None:
    """Of two objects with the same features, the one that makes the caption true is meant."""
    low = SceneObject("small", "red", "circle", 2, 0)
    right = SceneObject("small", "red", "circle", 0, 1)
    parsed = parse(
        "a small red circle left of a big blue square, which is above a small red circle"
    )
    assert score_caption(parsed, [low, BLUE, RED]).exact
    assert score_caption(parsed, [right, BLUE, RED]).relations == 0.5
    twice = parse("a small red circle left of a small red circle")
    assert score_caption(twice, [RED, RED]).objects == 0.5


def test_execute_program() -> None:
    scene = [RED, BLUE]
    assert execute_program(["exist", ["filter", {"colour": "red"}]], scene) == "yes"
    assert execute_program(["count", ["filter", {"size": "small"}]], scene) == "1"
    assert (
        execute_program(
            ["more", ["filter", {"colour": "red"}], ["filter", {"colour": "blue"}]], scene
        )
        == "no"
    )
    assert (
        execute_program(["colour", ["beside", "right of", ["filter", {"shape": "circle"}]]], scene)
        == "blue"
    )
    assert (
        execute_program(
            ["related", "left of", ["filter", {"colour": "red"}], ["filter", {"colour": "blue"}]],
            scene,
        )
        == "yes"
    )
    with pytest.raises(AmbiguousReferenceError):
        execute_program(["colour", ["filter", {"shape": "ring"}]], scene)


def test_every_kind_is_asked_in_several_wordings() -> None:
    rng = random.Random(0)
    many = (generate_questions([RED, BLUE], rng, 7) for _ in range(200))
    questions = list(chain.from_iterable(many))
    assert {kind for kind, *_ in questions} == set(QUESTION_KINDS)
    for _, question, *_ in questions:
        assert question.endswith((".", "?"))
        assert "{" not in question
    assert len({question for kind, question, *_ in questions if kind == "two-hop"}) >= 16
    assert generate_caption([RED], rng) == "a small red circle at the top left"
