"""Measure the perplexity of a pretrained decoder with int8 weights, and print an answer.

PYTHONPATH=src python benchmarks/int8.py WEIGHTS/smollm2
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import sensorium as sn
from sensorium.nn.tokens import Batch

RESULTS = Path(__file__).parent / "results" / "weights.jsonl"
PROSE = Path(__file__).parents[1] / "LICENSE"
QUESTION = "What is the capital of France?"
WINDOW = 512


@torch.inference_mode()
def perplexity(model: Any, text: str) -> float:
    """Return exp of the mean loss of every token except the first of each window."""
    text_input = model.preprocessing["text"]
    windows = torch.from_numpy(text_input.load(text)).long().split(WINDOW)
    losses = []
    for ids in windows:
        hidden = model.module(Batch({"text": ids[None]}))["text"].x[0, :-1]
        losses.append(
            F.cross_entropy(model.module.heads["text"](hidden).float(), ids[1:], reduction="none")
        )
    return math.exp(torch.cat(losses).mean())


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    weights, text = parser.parse_args().weights, PROSE.read_text()
    for quantize in (None, "int8"):
        model = sn.load(weights, quantize=quantize)
        num_bytes = sum(
            x.numel() * x.element_size()
            for x in [*model.module.parameters(), *model.module.buffers()]
        )
        start = time.process_time()
        result = {
            "test": f"quantized {weights.name}",
            "quantize": quantize,
            "mb": round(num_bytes / 2**20, 1),
            "perplexity": round(perplexity(model, text), 4),
            "cpu_s": round(time.process_time() - start, 1),
            "says": model.generate("text", prompt=QUESTION, max_tokens=20)[0],
        }
        print(json.dumps(result), flush=True)
        with open(RESULTS, "a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
