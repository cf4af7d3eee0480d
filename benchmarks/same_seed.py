"""Compare two checkouts: trained with the same seed, do they give the same numbers to the last bit?

    git worktree add ../before 707b49a
    python benchmarks/same_seed.py ../before .

Small runs of each recipe family are trained and evaluated from the command line of both checkouts.
Weights are compared by their bits, whatever they are called; losses and metrics by their values. A
checkout from before the renaming (0.1.0) is given the same commands in its own words.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

SCENES = ["scenes", "--source-option", "n=300", "--source-option", "size=32"]
TRAIN = ["--seed", "0", "--precision", "fp32"]
SMALL = ["--dim", "128", "--layers", "2"]
FEW = ["--split", "val", "--max-samples", "20"]
RUNS: dict[str, list[str]] = {  # run -> what `sensorium train` is given, in today's words
    "clip": ["clip", "--size", "small", *SCENES, "--epochs", "2", *TRAIN],
    "image_tokenizer": ["image_tokenizer", *SCENES, "--epochs", "2", *TRAIN],
    "dalle": ["dalle", *SCENES, "--tokenizer", "image_tokenizer", "--epochs", "1", *SMALL, *TRAIN],
    "captioner": ["captioner", *SCENES, "--epochs", "1", *SMALL, *TRAIN],
    "gpt": ["gpt", *SCENES, "--text", "caption", "--epochs", "1", *SMALL, *TRAIN],
    "fusion": ["fusion", "mixed.csv", "--target", "price", "--epochs", "6", *TRAIN],
    "fusion_classes": [
        *["fusion", "mixed.csv", "--target", "colour", "--target", "labels"],
        *["--type", "labels=multilabel", "--fusion", "sequence", "--epochs", "3", *TRAIN],
    ],
}
EVALUATE = {"clip": [], "dalle": FEW, "captioner": FEW, "fusion": [], "fusion_classes": []}
OLD_WORDS = {
    "image_tokenizer": "codes",
    "--source-option": "--option",
    "--layers": "--depth",
    "--tokenizer": "--codes",
    "--type": "--column",
    "labels=multilabel": "labels=set",
    "--fusion": "--fuse",
    "--max-samples": "--most",
}
WORDS = [
    "red",
    "blue",
    "green",
    "large",
    "small",
    "fast",
    "slow",
    "cheap",
    "dear",
    "old",
    "new",
    "round",
    "flat",
    "heavy",
    "light",
]


def write_table(path: Path) -> None:
    """Write a table with columns of every type and some values missing."""
    rng = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "size", "colour", "sold", "labels", "grade", "price"])
        for _ in range(600):
            title, size = [rng.choice(WORDS) for _ in range(6)], round(rng.uniform(1, 9), 2)
            price = size * 3 - 4 * ("cheap" in title) + 2 * ("large" in title) + rng.gauss(0, 1)
            labels = {rng.choice(["a1", "b2", "c3", "d4"]) for _ in range(rng.randint(1, 3))}
            sold = f"20{rng.randint(10, 24)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
            row = [" ".join(title), "" if rng.random() < 0.1 else size]
            row += [rng.choice(["red", "blue", "green", ""]), sold, "|".join(sorted(labels))]
            writer.writerow([*row, rng.choice(["low", "mid", "high"]), round(price, 2)])


def in_old_words(argv: list[str]) -> list[str]:
    """Return a command as 0.1.0 has it: other names, and columns joined by commas."""
    words = [OLD_WORDS.get(word, word) for word in argv]
    if words.count("--target") > 1:
        first = words.index("--target")
        second = words.index("--target", first + 1)
        words[first + 1] = f"{words[first + 1]},{words[second + 1]}"
        del words[second : second + 2]
    return words


def run_checkout(checkout: Path, folder: Path) -> dict[str, Any]:
    """Train and evaluate everything with the package of one checkout; weights, losses, metrics."""
    write_table(folder / "mixed.csv")
    is_old = not (checkout / "src" / "sensorium" / "cli" / "app.py").exists()
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}

    def sensorium(*argv: str) -> str:
        words = in_old_words(list(argv)) if is_old else list(argv)
        command = [sys.executable, "-m", "sensorium", *words]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        return done.stdout

    results = {}
    for name, argv in RUNS.items():
        sensorium("train", *argv, "--out", OLD_WORDS.get(name, name) if is_old else name)
        run = folder / (OLD_WORDS.get(name, name) if is_old else name)
        metrics = []
        if name in EVALUATE:
            metrics = sorted(
                numbers(json.loads(sensorium("evaluate", run.name, *EVALUATE[name], "--json")))
            )
        results[name] = {"weights": weights(run), "losses": losses(run), "metrics": metrics}
    return results


def weights(run: Path) -> list[str]:
    """Return a digest of every tensor of a run, sorted."""
    with safe_open(run / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name).contiguous() for name in file.keys()]  # noqa: SIM118 - not a dict
    return sorted(hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in tensors if t.numel())


def losses(run: Path) -> list[float | None]:
    """Return the loss of each logged step."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get("loss") for line in lines]


def numbers(value: Any) -> Iterator[float]:
    """Yield every number in nested JSON."""
    match value:
        case dict():
            for one in value.values():
                yield from numbers(one)
        case list():
            for one in value:
                yield from numbers(one)
        case bool() | str() | None:
            pass
        case _:
            yield value


def main() -> None:
    """Compare two checkouts and print a line per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        before = run_checkout(options.before.resolve(), Path(one))
        after = run_checkout(options.after.resolve(), Path(other))
    different = []
    for name in RUNS:
        same = {part: before[name][part] == after[name][part] for part in before[name]}
        print(f"{name}: " + ", ".join(f"{k} {'equal' if v else 'DIFFER'}" for k, v in same.items()))
        different += [name for v in same.values() if not v]
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
