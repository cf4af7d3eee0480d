"""Questions about scenes: each is a small program, and its answer is what the program gives.

    ["filter", {"colour": "red"}]               the red things
    ["beside", "left of", P]                    what lies left of the one thing that P gives
    ["exist", P] ["count", P] ["more", P, Q] ["related", "above", P, Q] ["colour", P] ["shape", P]

Of "beside" and the last three, P and Q must give one thing each; a question for which they do not is never asked.
"""
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sensorium.data.scenes_draw import COLOURS, SHAPES, SIZES, Thing
from sensorium.data.scenes_held import OPPOSITE, PAIRS, RELATIONS, held_arrangement, held_statement, relations
from sensorium.data.scenes_words import named, phrase

Program = list[Any]
Asked = tuple[str, str, str, Program]       # kind, question, answer, program

VALUES: Mapping[str, Sequence[str]] = {"size": tuple(SIZES), "colour": tuple(COLOURS), "shape": SHAPES}
PHRASES = {                                 # the last of each is held out
    "exist": ("is there {a}?", "do you see {a}?", "does the picture show {a}?", "can {a} be found here?"),
    "count": ("how many {a} are there?", "how many {a} do you see?", "count the {a}.", "what is the number of {a}?"),
    "colour": ("what colour is {a}?", "which colour does {a} have?", "name the colour of {a}.", "how is {a} painted?"),
    "shape": ("what shape is {a}?", "which shape does {a} have?", "name the shape of {a}.", "what is {a}?"),
    "relation": ("is {a} {r} {b}?", "does {a} lie {r} {b}?", "is it true that {a} is {r} {b}?",
                 "{r} {b}, is {a} there?"),
    "compare": ("are there more {a} than {b}?", "do you see more {a} than {b}?",
                "is the number of {a} greater than that of {b}?", "do {a} outnumber {b}?"),
    "two-hop": ("what {k} is the thing {r} {b}?", "which {k} does the thing {r} {b} have?",
                "name the {k} of the thing {r} {b}.", "{r} {b} is a thing of which {k}?")}
KINDS = tuple(PHRASES)


class Unclear(Exception):
    """The program asks for one thing, and there is none or there are several."""


def answer(program: Program, things: Sequence[Thing]) -> str:
    """What a program gives for a scene. Raises Unclear where it asks for one thing and finds none or several."""
    match program:
        case ["exist", of]:
            return _yes(bool(found(of, things)))
        case ["count", of]:
            return str(len(found(of, things)))
        case ["more", of, other]:
            return _yes(len(found(of, things)) > len(found(other, things)))
        case ["related", relation, of, other]:
            return _yes(relation in relations(_only(of, things), _only(other, things)))
        case ["colour" | "shape" as key, of]:
            return getattr(_only(of, things), key)
    raise ValueError(f"no program {program!r}")


def found(program: Program, things: Sequence[Thing]) -> list[Thing]:
    """The things that "filter" or "beside" gives."""
    match program:
        case ["filter", features]:
            return [t for t in things if all(getattr(t, key) == value for key, value in features.items())]
        case ["beside", relation, of]:
            other = _only(of, things)
            return [t for t in things if relation in relations(t, other)]
    raise ValueError(f"no program {program!r}")


def ask(things: Sequence[Thing], rng: random.Random, n: int, *, hold: Sequence[str] = (),
        only: str = "") -> list[Asked]:
    """At most `n` questions of different kinds. hold: what must not be said ("pairs", "relations", "words").

    only: "words", in the wording held out; "pairs", about things of a held-out pair; "relations", whether a held-out
    arrangement is there: it is, or its opposite is asked for.
    """
    if only == "relations":
        kinds = ["relation"]
    else:
        kinds = rng.sample(KINDS, len(KINDS))
    about = [t for t in things if (t.colour, t.shape) in PAIRS] if only == "pairs" else things
    asked = (_ask(kind, rng.choice(about), things, rng, hold, only) for kind in kinds)
    return [one for one, _ in zip((a for a in asked if a), range(n), strict=False)]


def _ask(kind: str, focus: Thing, things: Sequence[Thing], rng: random.Random, hold: Sequence[str],
         only: str) -> Asked | None:
    made = _held_relation(things, rng) if only == "relations" else _MAKE[kind](focus, things, rng)
    try:
        if made is None or any(_held(part, hold) for part in _parts(made)):
            return None
        said = answer(made, things)
    except Unclear:
        return None
    phrases = PHRASES[kind]
    phrases = phrases[-1:] if only == "words" else phrases[:-1] if "words" in hold else phrases
    return kind, rng.choice(phrases).format(**_slots(made)), said, made


def _slots(program: Program) -> dict[str, str]:
    """The words that a program puts into a phrase."""
    match program:
        case ["exist", ["filter", a]]:
            return {"a": phrase(a, "a")}
        case ["count", ["filter", a]]:
            return {"a": phrase(a)}
        case ["more", ["filter", a], ["filter", b]]:
            return {"a": phrase(a), "b": phrase(b)}
        case ["related", relation, ["filter", a], ["filter", b]]:
            return {"a": phrase(a, "the"), "r": relation, "b": phrase(b, "the")}
        case [key, ["beside", relation, ["filter", b]]]:
            return {"k": key, "r": relation, "b": phrase(b, "the")}
        case [_, ["filter", a]]:
            return {"a": phrase(a, "the")}
    raise ValueError(f"no words for {program!r}")


def _parts(program: Program) -> Iterator[Program]:
    """A program and all within it."""
    yield program
    for part in program:
        if isinstance(part, list):
            yield from _parts(part)


def _held(part: Program, hold: Sequence[str]) -> bool:
    match part:
        case ["filter", features]:
            return "pairs" in hold and (features.get("colour"), features.get("shape")) in PAIRS
        case ["related", relation, ["filter", a], ["filter", b]]:
            stated = any(held_arrangement(a["shape"], r, b["shape"]) for r in (relation, OPPOSITE[relation]))
            return "relations" in hold and stated
    return False


# How a question of each kind is made, from a thing that it is about --------------------------------------------------


def _exist(focus: Thing, things: Sequence[Thing], rng: random.Random) -> Program:
    features = named(focus, rng.choice((("colour", "shape"), ("size", "shape"), ("size", "colour"),
                                        ("size", "colour", "shape"))))
    return ["exist", ["filter", features if rng.random() < 0.5 else _changed(features, rng)]]


def _count(focus: Thing, things: Sequence[Thing], rng: random.Random) -> Program:
    features = named(focus, (rng.choice(("size", "colour", "shape")),))
    return ["count", ["filter", features if rng.random() < 0.8 else _changed(features, rng)]]


def _colour(focus: Thing, things: Sequence[Thing], rng: random.Random) -> Program:
    return ["colour", ["filter", named(focus, rng.choice((("shape",), ("size", "shape"))))]]


def _shape(focus: Thing, things: Sequence[Thing], rng: random.Random) -> Program:
    return ["shape", ["filter", named(focus, rng.choice((("colour",), ("size", "colour"))))]]


def _relation(focus: Thing, things: Sequence[Thing], rng: random.Random) -> Program | None:
    others = [t for t in things if t != focus]
    if not others:
        return None
    other = rng.choice(others)
    true = relations(focus, other)
    relation = rng.choice(true if rng.random() < 0.5 else [r for r in RELATIONS if r not in true])
    return ["related", relation, *(["filter", named(t, ("colour", "shape"))] for t in (focus, other))]


def _held_relation(things: Sequence[Thing], rng: random.Random) -> Program:
    a, b, relation = next((a, b, r) for a in things for b in things if (r := held_statement(a, b)))
    relation = relation if rng.random() < 0.5 else OPPOSITE[relation]
    return ["related", relation, *(["filter", named(t, ("colour", "shape"))] for t in (a, b))]


def _compare(focus: Thing, things: Sequence[Thing], rng: random.Random) -> Program:
    features = named(focus, (rng.choice(("size", "colour", "shape")),))
    two = [["filter", features], ["filter", _changed(features, rng)]]
    rng.shuffle(two)
    return ["more", *two]


def _two_hop(focus: Thing, things: Sequence[Thing], rng: random.Random) -> Program | None:
    others = [t for t in things if t != focus]
    if not others:
        return None
    other = rng.choice(others)
    seen_from = ["filter", named(other, (rng.choice(("colour", "shape")),))]
    return [rng.choice(("colour", "shape")), ["beside", rng.choice(relations(focus, other)), seen_from]]


_MAKE = dict(zip(KINDS, (_exist, _count, _colour, _shape, _relation, _compare, _two_hop), strict=True))


def _changed(features: Mapping[str, str], rng: random.Random) -> dict[str, str]:
    """The same with one feature another."""
    key = rng.choice(list(features))
    return {**features, key: rng.choice([v for v in VALUES[key] if v != features[key]])}


def _only(program: Program, things: Sequence[Thing]) -> Thing:
    if len(some := found(program, things)) != 1:
        raise Unclear
    return some[0]


def _yes(so: bool) -> str:
    return "yes" if so else "no"
