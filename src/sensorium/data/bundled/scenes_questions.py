"""Questions about scenes: each is a small program, and its answer is the result of the program.

    ["filter", {"colour": "red"}]               the red objects
    ["beside", "left of", P]                    what lies left of the one object that P selects
    ["exist", P] ["count", P] ["more", P, Q] ["related", "above", P, Q] ["colour", P] ["shape", P]

In "beside" and in the last three, P and Q must select one object each; a question for which they do
not is never asked.
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
QUESTION_TEMPLATES = {  # the last wording of each kind is held out
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
_EXIST_FEATURES = (
    ("colour", "shape"),
    ("size", "shape"),
    ("size", "colour"),
    ("size", "colour", "shape"),
)


class AmbiguousReferenceError(Exception):
    """A program refers to one object, and there is none or there are several."""


def execute_program(program: Program, objects: Sequence[SceneObject]) -> str:
    """Return the result of a program for a scene.

    Raises:
        AmbiguousReferenceError: if the program refers to one object and there is not exactly one.
    """
    match program:
        case ["exist", part]:
            return _format_boolean(bool(select_objects(part, objects)))
        case ["count", part]:
            return str(len(select_objects(part, objects)))
        case ["more", part, other]:
            more = len(select_objects(part, objects)) > len(select_objects(other, objects))
            return _format_boolean(more)
        case ["related", relation, part, other]:
            a, b = _select_one(part, objects), _select_one(other, objects)
            return _format_boolean(relation in find_relations(a, b))
        case ["colour" | "shape" as feature, part]:
            return getattr(_select_one(part, objects), feature)
        case _:
            raise ValueError(f"{program!r} is not a program.")


def select_objects(program: Program, objects: Sequence[SceneObject]) -> list[SceneObject]:
    """Return the objects that a "filter" or "beside" program selects."""
    match program:
        case ["filter", features]:
            return [
                o
                for o in objects
                if all(getattr(o, feature) == value for feature, value in features.items())
            ]
        case ["beside", relation, part]:
            other = _select_one(part, objects)
            return [o for o in objects if relation in find_relations(o, other)]
        case _:
            raise ValueError(f"{program!r} is not a program that selects objects.")


def generate_questions(
    objects: Sequence[SceneObject],
    rng: random.Random,
    n: int,
    *,
    holdout: Sequence[str] = (),
    required: str = "",
) -> list[Question]:
    """Return at most `n` questions of different kinds.

    Args:
        objects: the objects of the scene.
        rng: random generator.
        n: number of questions.
        holdout: what must not be asked: "pairs", "relations", "words".
        required: "words" for held-out wordings; "pairs" for questions about objects of a held-out
            pair; "relations" for whether a held-out arrangement (or its opposite) is present.
    """
    kinds = ["relation"]
    if required != "relations":
        kinds = rng.sample(QUESTION_KINDS, len(QUESTION_KINDS))
    subjects = objects
    if required == "pairs":
        subjects = [o for o in objects if (o.colour, o.shape) in HELD_OUT_PAIRS]
    questions: list[Question] = []
    for kind in kinds:
        subject = rng.choice(subjects)
        question = _generate_question(kind, subject, objects, rng, holdout, required)
        if question is None:
            continue
        if len(questions) == n:
            break  # one question more is generated than returned, which advances `rng`
        questions.append(question)
    return questions


def _generate_question(
    kind: str,
    subject: SceneObject,
    objects: Sequence[SceneObject],
    rng: random.Random,
    holdout: Sequence[str],
    required: str,
) -> Question | None:
    """A question about `subject`; None if it would be ambiguous or held out."""
    if required == "relations":
        program = _build_held_out_relation(objects, rng)
    else:
        program = _PROGRAM_BUILDERS[kind](subject, objects, rng)
    if program is None or any(_is_held_out(part, holdout) for part in _iter_subprograms(program)):
        return None
    try:
        answer = execute_program(program, objects)
    except AmbiguousReferenceError:
        return None
    templates = QUESTION_TEMPLATES[kind]
    if required == "words":
        templates = templates[-1:]
    elif "words" in holdout:
        templates = templates[:-1]
    question = rng.choice(templates).format(**_template_slots(program))
    return kind, question, answer, program


def _template_slots(program: Program) -> dict[str, str]:
    """The values of a template's slots."""
    match program:
        case ["exist", ["filter", a]]:
            return {"a": format_features(a, "a")}
        case ["count", ["filter", a]]:
            return {"a": format_features(a)}
        case ["more", ["filter", a], ["filter", b]]:
            return {"a": format_features(a), "b": format_features(b)}
        case ["related", relation, ["filter", a], ["filter", b]]:
            return {"a": format_features(a, "the"), "r": relation, "b": format_features(b, "the")}
        case [feature, ["beside", relation, ["filter", b]]]:
            return {"k": feature, "r": relation, "b": format_features(b, "the")}
        case [_, ["filter", a]]:
            return {"a": format_features(a, "the")}
        case _:
            raise ValueError(f"{program!r} has no template.")


def _iter_subprograms(program: Program) -> Iterator[Program]:
    """Yield a program and all programs inside it."""
    yield program
    for part in program:
        if isinstance(part, list):
            yield from _iter_subprograms(part)


def _is_held_out(program: Program, holdout: Sequence[str]) -> bool:
    """Whether a program refers to a held-out pair or arrangement."""
    match program:
        case ["filter", features]:
            pair = (features.get("colour"), features.get("shape"))
            return "pairs" in holdout and pair in HELD_OUT_PAIRS
        case ["related", relation, ["filter", a], ["filter", b]]:
            stated = any(
                is_held_out_arrangement(a["shape"], r, b["shape"])
                for r in (relation, OPPOSITE_RELATIONS[relation])
            )
            return "relations" in holdout and stated
        case _:
            return False


# Builders of a program of each kind, about a subject. All take the same arguments.


def _build_exist(
    subject: SceneObject, _objects: Sequence[SceneObject], rng: random.Random
) -> Program:
    features = select_features(subject, rng.choice(_EXIST_FEATURES))
    return ["exist", ["filter", features if rng.random() < 0.5 else _change_feature(features, rng)]]


def _build_count(
    subject: SceneObject, _objects: Sequence[SceneObject], rng: random.Random
) -> Program:
    features = select_features(subject, (rng.choice(("size", "colour", "shape")),))
    return ["count", ["filter", features if rng.random() < 0.8 else _change_feature(features, rng)]]


def _build_colour(
    subject: SceneObject, _objects: Sequence[SceneObject], rng: random.Random
) -> Program:
    features = rng.choice((("shape",), ("size", "shape")))
    return ["colour", ["filter", select_features(subject, features)]]


def _build_shape(
    subject: SceneObject, _objects: Sequence[SceneObject], rng: random.Random
) -> Program:
    features = rng.choice((("colour",), ("size", "colour")))
    return ["shape", ["filter", select_features(subject, features)]]


def _build_relation(
    subject: SceneObject, objects: Sequence[SceneObject], rng: random.Random
) -> Program | None:
    others = [o for o in objects if o != subject]
    if not others:
        return None
    other = rng.choice(others)
    true = find_relations(subject, other)
    relation = rng.choice(true if rng.random() < 0.5 else [r for r in RELATIONS if r not in true])
    return _relation_program(subject, relation, other)


def _build_held_out_relation(objects: Sequence[SceneObject], rng: random.Random) -> Program:
    """A question for a held-out arrangement of the scene, or for its opposite."""
    arrangements = ((a, find_held_out_relation(a, b), b) for a in objects for b in objects)
    a, relation, b = next((a, relation, b) for a, relation, b in arrangements if relation)
    asked = relation if rng.random() < 0.5 else OPPOSITE_RELATIONS[relation]
    return _relation_program(a, asked, b)


def _relation_program(a: SceneObject, relation: str, b: SceneObject) -> Program:
    first, second = (["filter", select_features(o, ("colour", "shape"))] for o in (a, b))
    return ["related", relation, first, second]


def _build_comparison(
    subject: SceneObject, _objects: Sequence[SceneObject], rng: random.Random
) -> Program:
    features = select_features(subject, (rng.choice(("size", "colour", "shape")),))
    filters = [["filter", features], ["filter", _change_feature(features, rng)]]
    rng.shuffle(filters)
    return ["more", *filters]


def _build_two_hop(
    subject: SceneObject, objects: Sequence[SceneObject], rng: random.Random
) -> Program | None:
    others = [o for o in objects if o != subject]
    if not others:
        return None
    other = rng.choice(others)
    reference = ["filter", select_features(other, (rng.choice(("colour", "shape")),))]
    feature = rng.choice(("colour", "shape"))
    return [feature, ["beside", rng.choice(find_relations(subject, other)), reference]]


_PROGRAM_BUILDERS = {
    "exist": _build_exist,
    "count": _build_count,
    "colour": _build_colour,
    "shape": _build_shape,
    "relation": _build_relation,
    "compare": _build_comparison,
    "two-hop": _build_two_hop,
}


def _change_feature(features: Mapping[str, str], rng: random.Random) -> dict[str, str]:
    """The same features with the value of one changed."""
    feature = rng.choice(list(features))
    others = [value for value in FEATURE_VALUES[feature] if value != features[feature]]
    return {**features, feature: rng.choice(others)}


def _select_one(program: Program, objects: Sequence[SceneObject]) -> SceneObject:
    selected = select_objects(program, objects)
    if len(selected) != 1:
        raise AmbiguousReferenceError
    return selected[0]


def _format_boolean(value: bool) -> str:
    return "yes" if value else "no"
