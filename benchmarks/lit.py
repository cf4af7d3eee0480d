"""What two published encoders that stay as they are learn to say of each other (recipe `lit`) on the full emoji set.

    sensorium data build emoji --full --out emoji-full
    python benchmarks/fetch_weights.py weights
    OMP_NUM_THREADS=1 python benchmarks/lit.py emoji-full weights/efficientnet-lite0 weights/minilm --seed 0

Stands beside `learning.py`, which trains CLIP from nothing on the same rows and judges it by the same figures. CPU
seconds of one thread; looking at every picture once is part of them.
"""

import argparse
import tempfile
import time
from pathlib import Path

from learning import CELLS, shortened
from peers import machine, record

from sensorium.data.dataset import Dataset
from sensorium.evaluation.evaluate import evaluate
from sensorium.recipes import lit
from sensorium.training.loop import train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("eye")
    parser.add_argument("voice")
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    data = Dataset.open(given.data)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        model = train(
            lit,
            data,
            out=Path(folder) / "run",
            image_from=given.eye,
            text_from=given.voice,
            text="caption",
            image="image",
            epochs=given.epochs,
            eval_interval=given.epochs,
            seed=given.seed,
        )
        seconds = time.process_time() - start
        report, described = evaluate(model, data).metrics, evaluate(model, data, every=True).metrics
        learned = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    for name in CELLS:
        print(f"{name}: recall@1 / @10, picture to text and back: {shortened(report)[name]}")
    record(
        "learning",
        who="lit",
        eye=Path(given.eye).name,
        voice=Path(given.voice).name,
        seed=given.seed,
        epochs=given.epochs,
        cpu_seconds=seconds,
        parameters_learned=learned,
        recall=shortened(report),
        recall_of_all_captions=shortened(described),
        machine=machine(),
    )


if __name__ == "__main__":
    main()
