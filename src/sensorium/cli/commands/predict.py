"""The command `predict`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sensorium.cli.models import load_model
from sensorium.cli.options import FLAG, DataArgument, ModelArgument, RecipeOption
from sensorium.cli.output import log
from sensorium.errors import SensoriumError


def predict(
    model: ModelArgument,
    data: DataArgument,
    /,
    *,
    out: Annotated[Path, Parameter(name=("--out", "-o"))] = Path("predicted.csv"),
    coverage: float = 0.9,
    min_accuracy: float = 0.0,
    keep_columns: Annotated[bool, FLAG] = False,
    id_column: Annotated[str | None, Parameter(name="--id")] = None,
    encoding: str | None = None,
    recipe: RecipeOption = None,
    max_invalid_fraction: float = 1.0,
) -> None:
    """Predict the targets of each row of a table; what is missing or cannot be read is masked.

    A pretrained image classifier predicts the class of each image.

    Args:
        out: Output file: .csv, or .jsonl with the probability of every class.
        coverage: Coverage of the prediction intervals of numeric targets.
        min_accuracy: Selective prediction: leave a label empty where the model is too uncertain to
            reach this accuracy; 0: predict every row.
        keep_columns: Write all input columns before the predictions.
        id_column: Input column that names a row in the output. Default: file and line.
        encoding: Encoding of a text table, such as latin-1. Default: UTF-8.
        max_invalid_fraction: Largest fraction of rows with a value that cannot be read; with more,
            nothing is written.
    """
    from sensorium.cli.predict_file import OutputOptions, open_table_to_predict, predict_file

    if Path(data).exists() and out.exists() and out.samefile(data):
        raise SensoriumError(f"{out} is the input table. Name another output file with -o.")
    loaded = load_model(model, recipe)
    dataset = open_table_to_predict(loaded, data, encoding)
    output = OutputOptions(
        keep_columns=keep_columns, id_column=id_column, max_unreadable=max_invalid_fraction
    )
    rows = predict_file(
        loaded, dataset, out, log, coverage=coverage, min_accuracy=min_accuracy, output=output
    )
    print(f"{rows:,} rows in {out}")
