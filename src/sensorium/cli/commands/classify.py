"""The command `classify`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sensorium.cli.models import load_model, order_sources
from sensorium.cli.options import FLAG, JsonOption, ModelArgument, QuantizeOption, RecipeOption
from sensorium.cli.output import emit, log
from sensorium.errors import SensoriumError

InputsArgument = Annotated[
    tuple[str, ...],
    Parameter(
        help="Image files, folders, tables or bundled datasets. Repeatable.", show_default=False
    ),
]


def classify(
    model: ModelArgument,
    data: InputsArgument = (),
    /,
    *,
    label: Annotated[tuple[str, ...], FLAG] = (),
    labels: Path | None = None,
    template: Annotated[tuple[str, ...], FLAG] = (),
    column: str | None = None,
    class_column: str | None = None,
    top_k: Annotated[int, Parameter(name=("--top-k", "-k"))] = 3,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    quantize: QuantizeOption = None,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Classify images by labels given as words, without training (zero-shot).

    For any model that embeds images and text: a CLIP or SigLIP as it is, or a run. CLIP's
    probabilities of the labels sum to 1; SigLIP's are independent, and all may be low. Texts, in a
    table without images, are classified by cosine similarity.

    Args:
        label: A label. Repeatable.
        labels: File with one label on each line.
        template: Text with {} for the label, such as "a photo of a {}". Repeatable; the embeddings
            are averaged. Default: the label alone; of pretrained weights also "a photo of {}".
        column: Column to classify. Default: the image column.
        class_column: Column with the true classes: the default labels, and an accuracy at the end.
        top_k: Number of labels shown for each row.
        out: Output file, .csv or .jsonl. Default: print a table.
    """
    from sensorium.cli import classify_file as files
    from sensorium.inference.classify import ZeroShotClassifier
    from sensorium.loading import prepare_for_inference

    if len(data) == 1:
        model, source = order_sources(model, data[0])
        data = (source,)
    if label and labels:
        raise SensoriumError("Give --label or --labels, not both.")
    if top_k < 1:
        raise SensoriumError(f"--top-k {top_k} is out of range. Use 1 or more.")
    if out is not None:
        files.check_output(out)
    loaded = load_model(model, recipe)
    classifier = loaded.classify
    if not isinstance(classifier, ZeroShotClassifier):
        raise SensoriumError(f"{loaded} has a verb classify of its own. Call it in Python.")
    prepare_for_inference(loaded.module, quantize)
    parts = files.open_inputs(list(classifier.embedder.modalities), data, column, class_column)
    names = files.collect_labels(files.read_labels(labels) if labels else label, parts)
    top_k = min(top_k, len(names))
    rows = files.Tally(files.iter_classified(classifier, parts, names, template or None, top_k))
    if out is not None:
        files.write_rows(iter(rows), out, top_k)
        print(f"{rows.num_rows:,} rows in {out}")
    elif as_json:
        emit([files.row_fields(row) for row in rows], as_json)
    else:
        for row in rows:
            emit(files.format_row(row), as_json)
    for line in rows.summary():
        log(line)
