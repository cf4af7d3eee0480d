"""Align two frozen pretrained encoders (recipe `lit`) on the full emoji set.

    sensorium data build emoji --full --out emoji-full
    python benchmarks/fetch_weights.py weights
    OMP_NUM_THREADS=1 python benchmarks/lit.py emoji-full weights/efficientnet-lite0 weights/minilm

Compare with `learning.py`, which trains CLIP from scratch on the same rows with the same metrics.
CPU seconds of one thread, embedding every image once included.
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
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("vision")
    parser.add_argument("text_encoder")
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = Dataset.open(args.data)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        model = train(
            lit,
            data,
            out=Path(folder) / "run",
            image_weights=args.vision,
            text_weights=args.text_encoder,
            text="caption",
            image="image",
            epochs=args.epochs,
            eval_interval=args.epochs,
            seed=args.seed,
        )
        seconds = time.process_time() - start
        report, by_all_captions = (
            evaluate(model, data).metrics,
            evaluate(model, data, average_captions=True).metrics,
        )
        trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    for name in CELLS:
        print(f"{name}: recall@1 / @10, image to text and back: {shortened(report)[name]}")
    record(
        "learning",
        who="lit",
        vision=Path(args.vision).name,
        text_encoder=Path(args.text_encoder).name,
        seed=args.seed,
        epochs=args.epochs,
        cpu_seconds=seconds,
        parameters_learned=trained,
        recall=shortened(report),
        recall_of_all_captions=shortened(by_all_captions),
        machine=machine(),
    )


if __name__ == "__main__":
    main()
