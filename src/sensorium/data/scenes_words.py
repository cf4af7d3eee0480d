"""What is said of a scene, and what can be read out of such words again: captions are claims that a program can check.

A caption names every thing of its scene and how each lies to the next: "a small red circle left of a big blue ring,
which is above a small green cross". A thing that is alone is said to be somewhere: "a big red ring at the top left".
"""
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from sensorium.data.scenes_draw import COLOURS, SHAPES, SIZES, Thing
from sensorium.data.scenes_held import RELATIONS, held_statement, relations

PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
KEYS = ("size", "colour", "shape")
_THING = rf"an? ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(rf"{_THING}( at the ({'|'.join(PLACES)})|(,? (which is )?({'|'.join(RELATIONS)}) {_THING})*)")
_NEXT = re.compile(rf"({'|'.join(RELATIONS)}) {_THING}")


@dataclass(frozen=True)
class Claim:
    """What a caption says: things as (size, colour, shape), how each lies to the next, or where the only one is."""

    things: tuple[tuple[str, ...], ...]
    relations: tuple[str, ...] = ()
    place: str | None = None


@dataclass(frozen=True)
class Verdict:
    """How true a claim is of a scene. `relations` is None where none was claimed."""

    exact: bool                         # all of it is true, and nothing else is there
    things: float                       # share of the things claimed that are there
    relations: float | None             # share of the relations (or the place) claimed that hold


def caption(things: Sequence[Thing], rng: random.Random, *, held: bool = False) -> str:
    """One of the true captions of a scene. held: it begins with an arrangement that is held out."""
    order = list(things)
    rng.shuffle(order)
    if held:
        a, b = next((a, b) for a in order for b in order if held_statement(a, b))
        order = [a, b, *(t for t in order if t not in (a, b))]
    first = phrase(named(order[0]), "a")
    if len(order) == 1:
        return f"{first} at the {PLACES[3 * order[0].row + order[0].column]}"
    for i, (a, b) in enumerate(pairwise(order)):
        stated = held_statement(a, b) if held and i == 0 else None
        first += f"{', which is ' if i else ' '}{stated or rng.choice(relations(a, b))} {phrase(named(b), 'a')}"
    return first


def named(thing: Thing, keys: Sequence[str] = KEYS) -> dict[str, str]:
    """Some of a thing's features."""
    return {key: getattr(thing, key) for key in keys}


def phrase(features: Mapping[str, str], article: str = "") -> str:
    """Features in words: "a small ring", "the red thing"; without an article, several: "blue crosses"."""
    words = [features[key] for key in KEYS if key in features] + ["thing"] * ("shape" not in features)
    if not article:
        return " ".join(words) + ("es" if words[-1].endswith("ss") else "s")
    return f"{'an' if article == 'a' and words[0][0] in 'aeiou' else article} {' '.join(words)}"


def claim(text: str) -> Claim | None:
    """What a caption claims; None for words that are no caption of a scene."""
    text = " ".join(text.lower().replace(",", ", ").split()).replace(" ,", ",").rstrip(".")
    if not (whole := _CAPTION.fullmatch(text)):
        return None
    found = [m.groups() for m in _NEXT.finditer(text)]
    return Claim((whole.groups()[:3], *(g[1:] for g in found)), tuple(g[0] for g in found), whole.group(5))


def verdict(claimed: Claim, things: Sequence[Thing]) -> Verdict:
    """How true it is of these things, each thing claimed being the one that makes most of it true."""
    best, exact = (0.0, -1.0), False
    for chosen in _choices(claimed, things):
        there = sum(thing is not None for thing in chosen)
        true = _true(claimed, chosen)
        best = max(best, (there / len(chosen), sum(true) / len(true) if true else 0.0))
        exact |= there == len(chosen) == len(things) and all(true)
    return Verdict(exact, best[0], best[1] if claimed.relations or claimed.place else None)


def _choices(claimed: Claim, things: Sequence[Thing]) -> Iterator[tuple[Thing | None, ...]]:
    """For each thing claimed one that looks like it, no thing twice; None where there is none."""
    like = [[t for t in things if tuple(named(t).values()) == features] for features in claimed.things]
    for chosen in product(*([*some, None] for some in like)):
        there = [thing for thing in chosen if thing is not None]
        if len(set(there)) == len(there):
            yield chosen


def _true(claimed: Claim, chosen: Sequence[Thing | None]) -> list[bool]:
    if claimed.place:
        return [t is not None and PLACES[3 * t.row + t.column] == claimed.place for t in chosen]
    return [a is not None and b is not None and said in relations(a, b)
            for said, (a, b) in zip(claimed.relations, pairwise(chosen), strict=True)]
