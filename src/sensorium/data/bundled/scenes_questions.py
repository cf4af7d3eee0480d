"""Questions about scenes: each is a small program, and its answer is what the program gives.

    ["filter", {"colour": "red"}]               the red things
    ["beside", "left of", P]                    what lies left of the one thing that P gives
    ["exist", P] ["count", P] ["more", P, Q] ["related", "above", P, Q] ["colour", P] ["shape", P]

Of "beside" and the last three, P and Q must give one thing each; a question for which they do not is never asked.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sensorium.data.bundled.scenes_draw import COLOURS, SHAPES, SIZES, SceneObject
from sensorium.data.bundled.scenes_held import (
    HELD_OUT_PAIRS,
    OPPOSITE_RELATIONS,
    RELATIONS,
    find_held_out_relation,
    find_relations,
    is_held_out_arrangement,
)
from sensorium.data.bundled.scenes_words import format_features, select_features

Program = list[Any]
Question = tuple[str, str, str, Program]  # kind, question, answer, program

FEATURE_VALUES: Mapping[str, Sequence[str]] = {
    "size": tuple(SIZES),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
}
QUESTION_TEMPLATES = {  # the last of each is held out
    "exist": (
        "is there {a}?",
        "do you see {a}?",
        "does the picture show {a}?",
        "can {a} be found here?",
    ),
    "count": (
        "how many {a} are there?",
        "how many {a} do you see?",
        "count the {a}.",
        "what is the number of {a}?",
    ),
    "colour": (
        "what colour is {a}?",
        "which colour does {a} have?",
        "name the colour of {a}.",
        "how is {a} painted?",
    ),
    "shape": (
        "what shape is {a}?",
        "which shape does {a} have?",
        "name the shape of {a}.",
        "what is {a}?",
    ),
    "relation": (
        "is {a} {r} {b}?",
        "does {a} lie {r} {b}?",
        "is it true that {a} is {r} {b}?",
        "{r} {b}, is {a} there?",
    ),
    "compare": (
        "are there more {a} than {b}?",
        "do you see more {a} than {b}?",
        "is the number of {a} greater than that of {b}?",
        "do {a} outnumber {b}?",
    ),
    "two-hop": (
        "what {k} is the thing {r} {b}?",
        "which {k} does the thing {r} {b} have?",
        "name the {k} of the thing {r} {b}.",
        "{r} {b} is a thing of which {k}?",
    ),
}
QUESTION_KINDS = tuple(QUESTION_TEMPLATES)


class AmbiguousReference(Exception):
    """The program asks for one thing, and there is none or there are several."""


def execute_program(program: Program, objects: Sequence[SceneObject]) -> str:
    """What a program gives for a scene. Raises Unclear where it asks for one thing and finds none or several."""
    match program:
        case ["exist", of]:
            return _format_boolean(bool(select_objects(of, objects)))
        case ["count", of]:
            return str(len(select_objects(of, objects)))
        case ["more", of, other]:
            return _format_boolean(
                len(select_objects(of, objects)) > len(select_objects(other, objects))
            )
        case ["related", relation, of, other]:
            return _format_boolean(
                relation in find_relations(_select_one(of, objects), _select_one(other, objects))
            )
        case ["colour" | "shape" as key, of]:
            return getattr(_select_one(of, objects), key)
    raise ValueError(f"no program {program!r}")


def select_objects(program: Program, objects: Sequence[SceneObject]) -> list[SceneObject]:
    """The things that "filter" or "beside" gives."""
    match program:
        case ["filter", features]:
            return [
                t
                for t in objects
                if all(getattr(t, key) == value for key, value in features.items())
            ]
        case ["beside", relation, of]:
            other = _select_one(of, objects)
            return [t for t in objects if relation in find_relations(t, other)]
    raise ValueError(f"no program {program!r}")


def generate_questions(
    objects: Sequence[SceneObject],
    rng: random.Random,
    n: int,
    *,
    holdout: Sequence[str] = (),
    required: str = "",
) -> list[Question]:
    """At most `n` questions of different kinds. hold: what must not be said ("pairs", "relations", "words").

    required: "words", in the wording held out; "pairs", about things of a held-out pair; "relations", whether a held-out
    arrangement is there: it is, or its opposite is asked for.
    """
    if required == "relations":
        kinds = ["relation"]
    else:
        kinds = rng.sample(QUESTION_KINDS, len(QUESTION_KINDS))
    about = (
        [t for t in objects if (t.colour, t.shape) in HELD_OUT_PAIRS]
        if required == "pairs"
        else objects
    )
    asked = (
        _generate_question(kind, rng.choice(about), objects, rng, holdout, required)
        for kind in kinds
    )
    return [one for one, _ in zip((a for a in asked if a), range(n), strict=False)]


def _generate_question(
    kind: str,
    focus: SceneObject,
    objects: Sequence[SceneObject],
    rng: random.Random,
    holdout: Sequence[str],
    required: str,
) -> Question | None:
    made = (
        _build_held_out_relation(objects, rng)
        if required == "relations"
        else _PROGRAM_BUILDERS[kind](focus, objects, rng)
    )
    try:
        if made is None or any(_is_held_out(part, holdout) for part in _iter_subprograms(made)):
            return None
        said = execute_program(made, objects)
    except AmbiguousReference:
        return None
    phrases = QUESTION_TEMPLATES[kind]
    phrases = (
        phrases[-1:] if required == "words" else phrases[:-1] if "words" in holdout else phrases
    )
    return kind, rng.choice(phrases).format(**_template_slots(made)), said, made


def _template_slots(program: Program) -> dict[str, str]:
    """The words that a program puts into a phrase."""
    match program:
        case ["exist", ["filter", a]]:
            return {"a": format_features(a, "a")}
        case ["count", ["filter", a]]:
            return {"a": format_features(a)}
        case ["more", ["filter", a], ["filter", b]]:
            return {"a": format_features(a), "b": format_features(b)}
        case ["related", relation, ["filter", a], ["filter", b]]:
            return {"a": format_features(a, "the"), "r": relation, "b": format_features(b, "the")}
        case [key, ["beside", relation, ["filter", b]]]:
            return {"k": key, "r": relation, "b": format_features(b, "the")}
        case [_, ["filter", a]]:
            return {"a": format_features(a, "the")}
    raise ValueError(f"no words for {program!r}")


def _iter_subprograms(program: Program) -> Iterator[Program]:
    """A program and all within it."""
    yield program
    for part in program:
        if isinstance(part, list):
            yield from _iter_subprograms(part)


def _is_held_out(program: Program, holdout: Sequence[str]) -> bool:
    match program:
        case ["filter", features]:
            return (
                "pairs" in holdout
                and (features.get("colour"), features.get("shape")) in HELD_OUT_PAIRS
            )
        case ["related", relation, ["filter", a], ["filter", b]]:
            stated = any(
                is_held_out_arrangement(a["shape"], r, b["shape"])
                for r in (relation, OPPOSITE_RELATIONS[relation])
            )
            return "relations" in holdout and stated
    return False


# How a question of each kind is made, from a thing that it is about --------------------------------------------------


def _build_exist(focus: SceneObject, objects: Sequence[SceneObject], rng: random.Random) -> Program:
    features = select_features(
        focus,
        rng.choice(
            (
                ("colour", "shape"),
                ("size", "shape"),
                ("size", "colour"),
                ("size", "colour", "shape"),
            )
        ),
    )
    return ["exist", ["filter", features if rng.random() < 0.5 else _change_feature(features, rng)]]


def _build_count(focus: SceneObject, objects: Sequence[SceneObject], rng: random.Random) -> Program:
    features = select_features(focus, (rng.choice(("size", "colour", "shape")),))
    return ["count", ["filter", features if rng.random() < 0.8 else _change_feature(features, rng)]]


def _build_colour(
    focus: SceneObject, objects: Sequence[SceneObject], rng: random.Random
) -> Program:
    return [
        "colour",
        ["filter", select_features(focus, rng.choice((("shape",), ("size", "shape"))))],
    ]


def _build_shape(focus: SceneObject, objects: Sequence[SceneObject], rng: random.Random) -> Program:
    return [
        "shape",
        ["filter", select_features(focus, rng.choice((("colour",), ("size", "colour"))))],
    ]


def _build_relation(
    focus: SceneObject, objects: Sequence[SceneObject], rng: random.Random
) -> Program | None:
    others = [t for t in objects if t != focus]
    if not others:
        return None
    other = rng.choice(others)
    true = find_relations(focus, other)
    relation = rng.choice(true if rng.random() < 0.5 else [r for r in RELATIONS if r not in true])
    return [
        "related",
        relation,
        *(["filter", select_features(t, ("colour", "shape"))] for t in (focus, other)),
    ]


def _build_held_out_relation(objects: Sequence[SceneObject], rng: random.Random) -> Program:
    a, b, relation = next(
        (a, b, r) for a in objects for b in objects if (r := find_held_out_relation(a, b))
    )
    relation = relation if rng.random() < 0.5 else OPPOSITE_RELATIONS[relation]
    return [
        "related",
        relation,
        *(["filter", select_features(t, ("colour", "shape"))] for t in (a, b)),
    ]


def _build_comparison(
    focus: SceneObject, objects: Sequence[SceneObject], rng: random.Random
) -> Program:
    features = select_features(focus, (rng.choice(("size", "colour", "shape")),))
    two = [["filter", features], ["filter", _change_feature(features, rng)]]
    rng.shuffle(two)
    return ["more", *two]


def _build_two_hop(
    focus: SceneObject, objects: Sequence[SceneObject], rng: random.Random
) -> Program | None:
    others = [t for t in objects if t != focus]
    if not others:
        return None
    other = rng.choice(others)
    seen_from = ["filter", select_features(other, (rng.choice(("colour", "shape")),))]
    return [
        rng.choice(("colour", "shape")),
        ["beside", rng.choice(find_relations(focus, other)), seen_from],
    ]


_PROGRAM_BUILDERS = dict(
    zip(
        QUESTION_KINDS,
        (
            _build_exist,
            _build_count,
            _build_colour,
            _build_shape,
            _build_relation,
            _build_comparison,
            _build_two_hop,
        ),
        strict=True,
    )
)


def _change_feature(features: Mapping[str, str], rng: random.Random) -> dict[str, str]:
    """The same with one feature another."""
    key = rng.choice(list(features))
    return {**features, key: rng.choice([v for v in FEATURE_VALUES[key] if v != features[key]])}


def _select_one(program: Program, objects: Sequence[SceneObject]) -> SceneObject:
    if len(some := select_objects(program, objects)) != 1:
        raise AmbiguousReference
    return some[0]


def _format_boolean(value: bool) -> str:
    return "yes" if value else "no"
