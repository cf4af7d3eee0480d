"""Write the text-to-image section of docs/benchmarks/generation.md.

Run it with `python benchmarks/generation_page.py`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from peers import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "generation.md"
BEGIN = "<!-- text-to-image: written by benchmarks/generation_page.py -->\n"
END = "<!-- end of text-to-image -->\n"
SPLITS = {
    "val": "validation (chose the settings)",
    "test_unseen_artist": "known concepts, unseen artist",
    "test_unseen_concept": "unseen concepts, known artists",
    "test_unseen_both": "unseen concepts, unseen artist",
    "test": "new scenes",
    "test_relations": "unseen arrangement of two shapes",
    "test_four": "four objects (training: at most three)",
    "test_pairs": "unseen pair of color and shape",
    "test_words": "captions in other words",
}
KINDS = ("generated", "real", "nearest caption", "mean image")
SETTINGS = {"guidance": "guidance scale"}
EMOJI = """## Text to image: emoji

{table}

Conditions: `dalle` on the bundled emoji at 32 pixels, one seed, one thread;
{seconds}.
Up to 150
captions per split, each once. CLIP scores and Fréchet features come from a CLIP trained on two
artists in none of the generator's training images (OpenMoji and the first EmojiOne; a later
EmojiOne by the same studio is among them). Nearest caption: the training image whose caption
shares most words. Real Fréchet: between two halves of the real images. Nearest: difference (0 to
1) to the most similar training image; copies: share below 0.02.

![Emoji generated from captions: the best 6 of 16 by that CLIP](../generated_emoji.png)

"""
SCENES = """## Text to image: scenes

{table}

Conditions: `dalle` on `scenes` at 24 pixels, one seed, one thread;
{seconds}.
Up to 200 captions
per split. A program checks each image. Exact: it shows all that the caption states and nothing
else. Objects, relations: share of those stated that are present. Real images, and real images
through the image tokenizer and back, are exact in every case; the mean image in none.

![Scenes generated from captions; green: exact; left of the frames: the real image](../scenes.png)

"""
Results = dict[tuple[str, str], dict]


def read_lines() -> list[dict]:
    """Return the records of results/generation.jsonl."""
    return [json.loads(line) for line in (RESULTS / "generation.jsonl").read_text().splitlines()]


def read_results(stage: str) -> Results:
    """Return (sampling settings, split) -> the last result of a stage."""
    results: Results = {}
    for line in read_lines():
        sampled = line.get("sampled")
        if line.get("stage") != stage or not isinstance(sampled, dict):
            continue
        settings = [f"{SETTINGS.get(name, name)} {value:g}" for name, value in sampled.items()]
        results[", ".join(settings) or "plain", line["split"]] = line
    return results


def training_cost(stages: dict[str, str]) -> str:
    """Return what the last run of each stage took.

    Args:
        stages: name in the results -> name in the page.
    """
    last = {line["stage"]: line for line in read_lines() if "cpu_seconds" in line}
    parts = [
        f"{last[stage]['cpu_seconds']:,.0f} CPU seconds ({name})" for stage, name in stages.items()
    ]
    cpu = last[[*stages][-1]].get("machine", {}).get("cpu")
    return " and ".join(parts) + (f" on {cpu}" if cpu else "")


def table(results: Results, columns: dict[str, tuple[str, ...]], digits: int) -> str:
    """Return a row for each split and sampling setting.

    Args:
        results: what `read_results` returned.
        columns: metric -> kinds of images it is given for.
        digits: decimals, except of CLIP scores.
    """
    names = [f"{metric}: {kind}" for metric, kinds in columns.items() for kind in kinds]
    return "\n".join(
        [
            f"| split | sampling | {' | '.join(names)} |",
            "|---" * (len(names) + 2) + "|",
            *_rows(results, columns, digits),
        ]
    )


def _rows(results: Results, columns: dict[str, tuple[str, ...]], digits: int) -> Iterator[str]:
    for split, title in SPLITS.items():
        for (settings, name), line in results.items():
            if name != split:
                continue
            cells = [
                _format(line.get(f"{kind} {metric}"), 1 if metric == "CLIP" else digits)
                for metric, kinds in columns.items()
                for kind in kinds
            ]
            yield f"| {title} | {settings} | {' | '.join(cells)} |"


def _format(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def section() -> str:
    """Return the section."""
    every = KINDS
    emoji = {
        "CLIP": every,
        "Fréchet": every,
        "diversity": ("generated", "real"),
        "nearest": ("generated", "real"),
        "copies": ("generated", "real"),
    }
    scenes = {
        "exact": ("generated", "nearest caption"),
        "objects": ("generated", "nearest caption"),
        "relations": ("generated", "nearest caption"),
        "copies": ("generated", "real"),
    }
    return EMOJI.format(
        table=table(read_results("emoji"), emoji, 3),
        seconds=training_cost({"emoji-tokenizer": "tokenizer", "emoji": "generator"}),
    ) + SCENES.format(
        table=table(read_results("scenes"), scenes, 2),
        seconds=training_cost({"scenes-tokenizer": "tokenizer", "scenes": "generator"}),
    )


def main() -> None:
    """Replace the section in the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + section() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
