"""docs/painting.md out of results/generation.jsonl: python benchmarks/painting_page.py"""
import json
from collections.abc import Iterator
from pathlib import Path

from peers import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "painting.md"
HELD = {"val": "rows held out to choose settings by", "test_artist": "known things, an artist never seen",
        "test_concept": "things never seen, by known artists", "test_both": "things and artist never seen",
        "test": "new scenes of what it has seen", "test_relations": "two shapes arranged as never before",
        "test_four": "four things, where three were the most", "test_pairs": "a colour on a shape that never had it",
        "test_words": "captions in other words"}
HEAD = """# Pictures from words

Written by `benchmarks/painting_page.py` from `benchmarks/results/generation.jsonl`, which
`python benchmarks/generation.py emoji-full` adds to. One seed, one thread.

"""
EMOJI = """![Emoji painted for words they were asked for](painted.png)

`dalle` on the embedded emoji at 32 pixels, {seconds}. Judged by a CLIP trained on two artists in none of the painter's
pictures (OpenMoji and the first EmojiOne; a later EmojiOne by the same studio is among the painter's); its vectors are
the features of the Fréchet distance. Up to 150 captions of a split, each once. *neighbour*: the training picture whose
caption has most words in common; *mean*: the mean training picture; *real* Fréchet: between two halves of the real
ones. nearest: difference, from 0 to 1, to the most similar training picture; copies: share in which it is below 0.02.
In the picture the best 6 of 16 by that CLIP.

"""
SCENES = """
![Scenes painted for captions; framed in green where a program finds the caption true](scenes.png)

On `scenes` (24 pixels) a program tells whether a picture shows all that its caption says and nothing else: `dalle`,
{seconds}. Up to 200 captions a split. Real pictures, and the same said in codes and back, are true in every case; the
mean picture in none. Left of the frames in the picture: the real one. things, relations: shares of those told that are
there.

"""
Lines = dict[tuple[str, str], dict]


def read(stage: str) -> Lines:
    """(how it was sampled, split) -> the last line measured."""
    found: Lines = {}
    for line in map(json.loads, (RESULTS / "generation.jsonl").read_text().splitlines()):
        if line.get("stage") == stage and isinstance(sampled := line.get("sampled"), dict):
            how = ", ".join(f"{name} {value:g}" for name, value in sampled.items()) or "plain"
            found[how, line["split"]] = line
    return found


def cost(*stages: str) -> str:
    """What the last run of each stage took."""
    last = {line["stage"]: line for line in map(json.loads, (RESULTS / "generation.jsonl").read_text().splitlines())
            if "cpu_seconds" in line}
    told = [f"{last[stage]['cpu_seconds']:,.0f} CPU seconds ({stage})" for stage in stages]
    cpu = last[stages[-1]].get("machine", {}).get("cpu")
    return " and ".join(told) + (f" on {cpu}" if cpu else "")


def table(lines: Lines, columns: dict[str, tuple[str, ...]], digits: int) -> Iterator[str]:
    """A line for each split and way of sampling; columns: figure -> kinds of pictures it is told of."""
    names = [f"{figure}: {kind}" for figure, kinds in columns.items() for kind in kinds]
    yield f"| captions of | sampled | {' | '.join(names)} |"
    yield "|---" * (len(names) + 2) + "|"
    for split, told in HELD.items():
        for how, line in ((how, line) for (how, at), line in lines.items() if at == split):
            cells = [_shown(line.get(f"{kind} {figure}"), 1 if figure == "CLIP" else digits)
                     for figure, kinds in columns.items() for kind in kinds]
            yield f"| {told} | {how} | {' | '.join(cells)} |"


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def main() -> None:
    every = ("made", "real", "neighbour", "mean")
    emoji = table(read("painted"), {"CLIP": every, "Fréchet": every, "diversity": ("made", "real"),
                                    "nearest": ("made", "real"), "copies": ("made", "real")}, 3)
    scenes = table(read("scenes"), {"true": ("made", "neighbour"), "things": ("made", "neighbour"),
                                    "relations": ("made", "neighbour"), "copies": ("made", "real")}, 2)
    PAGE.write_text(HEAD + EMOJI.format(seconds=cost("codes", "painted")) + "\n".join(emoji) + "\n"
                    + SCENES.format(seconds=cost("scene-codes", "scenes")) + "\n".join(scenes) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
