"""The command `classify`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sensorium.cli.models import load_model, order_sources
from sensorium.cli.options import FLAG, JsonOption, ModelArgument, QuantizeOption, RecipeOption

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
    from sensorium.cli.classify_request import ClassifyRequest, classify_inputs

    if len(data) == 1:
        model, source = order_sources(model, data[0])
        data = (source,)
    request = ClassifyRequest(data, label, labels, template, column, class_column, top_k, out)
    request.check()
    classify_inputs(load_model(model, recipe), request, quantize, as_json)
