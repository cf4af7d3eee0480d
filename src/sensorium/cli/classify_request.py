"""What the command `classify` does once its options are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sensorium.cli import classify_file as files
from sensorium.cli.output import emit, log
from sensorium.errors import SensoriumError
from sensorium.inference.classify import ZeroShotClassifier
from sensorium.loading import prepare_for_inference

if TYPE_CHECKING:
    from sensorium.pretrained.load import PretrainedModel
    from sensorium.training.checkpoint import Model


@dataclass(frozen=True)
class ClassifyRequest:
    """The options of `classify`.

    Attributes:
        data: files, folders, tables or bundled datasets.
        label: the labels.
        labels: a file of labels instead.
        template: texts with {} for the label.
        column: the column to classify.
        class_column: column with the true classes.
        top_k: number of labels shown for each row.
        out: output file; None: print a table.
    """

    data: Sequence[str]
    label: Sequence[str]
    labels: Path | None
    template: Sequence[str]
    column: str | None
    class_column: str | None
    top_k: int
    out: Path | None

    def check(self) -> None:
        """Raise SensoriumError where options contradict each other or are out of range."""
        if self.label and self.labels:
            raise SensoriumError("Give --label or --labels, not both.")
        if self.top_k < 1:
            raise SensoriumError(f"--top-k {self.top_k} is out of range. Use 1 or more.")
        if self.out is not None:
            files.check_output(self.out)


def classify_inputs(
    model: Model | PretrainedModel, request: ClassifyRequest, quantize: str | None, as_json: bool
) -> None:
    """Classify the inputs of a request and write or print the result.

    Args:
        model: a model that embeds images and text.
        request: the options.
        quantize: "int8", or None.
        as_json: whether the result is printed as JSON.

    Raises:
        SensoriumError: the model cannot classify, or an input cannot be opened.
    """
    classifier = model.classify
    if not isinstance(classifier, ZeroShotClassifier):
        raise SensoriumError(f"{model} has a verb classify of its own. Call it in Python.")
    prepare_for_inference(model.module, quantize)
    kinds = list(classifier.embedder.modalities)
    parts = files.open_inputs(kinds, request.data, request.column, request.class_column)
    given = files.read_labels(request.labels) if request.labels else request.label
    names = files.collect_labels(given, parts)
    top_k = min(request.top_k, len(names))
    templates = request.template or None
    rows = files.Tally(files.iter_classified(classifier, parts, names, templates, top_k))
    if request.out is not None:
        files.write_rows(iter(rows), request.out, top_k)
        print(f"{rows.num_rows:,} rows in {request.out}")
    elif as_json:
        emit([files.row_fields(row) for row in rows], as_json)
    else:
        for row in rows:
            emit(files.format_row(row), as_json)
    for line in rows.summary():
        log(line)
