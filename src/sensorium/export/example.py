"""Run the exported ONNX graphs of a folder, with onnxruntime and without Sensorium.

`sensorium export --format onnx` copies this file into the folder of the graphs:

    python example.py --image a.jpg b.jpg --text "a red bicycle" "a dog"     two encoders
    python example.py rows.jsonl                                             a predictor
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.export.preprocessing import Preprocessor


class ExportedModel:
    """The graphs of a folder.

    Args:
        folder: The folder, with model.json.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.config = json.loads((self.folder / "model.json").read_text(encoding="utf-8"))
        self.preprocess = Preprocessor(folder)
        self._sessions: dict[str, Any] = {}

    def embed(self, column: str, values: Sequence[Any]) -> np.ndarray:
        """Return a vector of length 1 for each raw value of a column, float32 [N, dim]."""
        inputs, _ = self.preprocess(column, values)
        return self._run(self.config["encoders"][column]["file"], {"values": inputs})["vectors"]

    def match(self, images: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
        """Return the probability of each text for each image, [images, texts].

        They sum to 1 where the model was trained with a softmax (CLIP); each is independent where
        it was trained with a sigmoid (SigLIP).
        """
        columns = {entry["kind"]: name for name, entry in self.config["encoders"].items()}
        vectors = self.embed(columns["image"], images), self.embed(columns["text"], texts)
        logits = self.config["logit_scale"] * vectors[0] @ vectors[1].T
        if self.config["logit_bias"] is not None:
            if self.config["subtract_log_of_other_texts"]:  # one text of them all matches
                logits = logits - np.log(max(1, len(texts) - 1))
            return 1 / (1 + np.exp(-(logits + self.config["logit_bias"])))
        exp = np.exp(logits - logits.max(1, keepdims=True))
        return exp / exp.sum(1, keepdims=True)

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the predictions of each target for each row; a column may be missing."""
        feed: dict[str, np.ndarray] = {}
        for column, names in self.config["columns"].items():
            values, present = self.preprocess(column, [row.get(column) for row in rows])
            feed |= {names["values"]: values, names["valid"]: present}
        outputs = self._run(self.config["file"], feed)
        predicted: list[dict[str, Any]] = [{} for _ in rows]
        for target, entry in self.config["targets"].items():
            for i, row in enumerate(predicted):
                std = outputs[entry["std"]][i] if "std" in entry else None
                row[target] = decode(entry, outputs[entry["output"]][i], std)
        return predicted

    def _run(self, file: str, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import onnxruntime

        if file not in self._sessions:
            self._sessions[file] = onnxruntime.InferenceSession(
                str(self.folder / file), providers=["CPUExecutionProvider"]
            )
        session = self._sessions[file]
        read = {node.name: feed[node.name] for node in session.get_inputs()}
        names = [node.name for node in session.get_outputs()]
        return dict(zip(names, session.run(None, read), strict=True))


def decode(target: Mapping[str, Any], output: Any, std: Any = None) -> dict[str, Any]:
    """Return one prediction.

    Args:
        target: Its entry of model.json: type, classes and calibration.
        output: The mean of a number, or the probability of each class or tag.
        std: The standard deviation of a number.
    """
    if target["kind"] == "numeric":
        interval = interval_of(target, float(output), float(std))
        return {"value": float(output), "std": float(std), "interval": interval}
    probability = {
        name: float(p) for name, p in zip(target["classes"], output.tolist(), strict=False)
    }
    if target["kind"] == "multilabel":
        return {"value": [n for n, p in probability.items() if p > 0.5], "probability": probability}
    index = int(np.argmax(output))
    if target["kind"] == "ordinal":  # the median of the ranks
        reached = np.cumsum(np.asarray(output, np.float64)) < 0.5 - 1e-9
        index = min(int(reached.sum()), len(output) - 1)
    return {"value": target["classes"][index], "probability": probability}


def interval_of(
    target: Mapping[str, Any], mean: float, std: float, coverage: str = "0.9"
) -> list[float] | None:
    """Return the bounds that contain a number with a probability; None if that was not calibrated.

    With a log offset, the distance from it is log-normal; else the bounds are symmetric.
    """
    quantile, offset = target["interval_quantiles"][coverage], target.get("log_offset")
    lower, upper = target.get("lower"), target.get("upper")
    if quantile is None:
        return None
    bounds = [mean - quantile * std, mean + quantile * std]
    if offset is not None:
        origin = (lower or 0.0) - offset
        variance = np.log1p((std / (mean - origin)) ** 2)
        median, width = np.log(mean - origin) - variance / 2, quantile * np.sqrt(variance)
        low, high = np.exp(median - width) + origin, np.exp(median + width) + origin
        bounds = [min(float(low), mean), max(float(high), mean)]
    low = -np.inf if lower is None else lower
    high = np.inf if upper is None else upper
    return [float(min(max(bound, low), high)) for bound in bounds]


def main() -> None:
    """Run the graphs on the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="?", help="a file with one JSON object on each line")
    parser.add_argument("--image", nargs="*", default=[], help="image files")
    parser.add_argument("--text", nargs="*", default=[], help="texts")
    arguments = parser.parse_args()
    model = ExportedModel(Path(__file__).parent)
    if arguments.rows:
        lines = Path(arguments.rows).read_text(encoding="utf-8").splitlines()
        for prediction in model.predict([json.loads(line) for line in lines if line.strip()]):
            print(json.dumps(prediction, ensure_ascii=False))
        return
    matches = model.match(arguments.image, arguments.text)
    for image, row in zip(arguments.image, matches.tolist(), strict=True):
        print(image, dict(zip(arguments.text, row, strict=True)))


if __name__ == "__main__":
    main()
