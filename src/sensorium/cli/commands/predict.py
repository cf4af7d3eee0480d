"""The command `predict`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sensorium.cli.models import load_model
from sensorium.cli.options import DataArgument, ModelArgument, RecipeOption
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
    recipe: RecipeOption = None,
    max_invalid_fraction: float = 0.01,
) -> None:
    """Predict the targets of each row of a table; missing values are masked.

    A pretrained image classifier predicts the class of each image.

    Args:
        out: Output file: .csv, or .jsonl with the probability of every class.
        coverage: Coverage of the prediction intervals of numeric targets.
        min_accuracy: Selective prediction: leave a label empty where the model is too uncertain to
            reach this accuracy; 0: predict every row.
        max_invalid_fraction: Largest fraction of rows that may be unreadable.
    """
    from sensorium.cli.predict_file import open_table_to_predict, predict_file

    if Path(data).exists() and out.exists() and out.samefile(data):
        raise SensoriumError(f"{out} is the input table. Name another output file with -o.")
    loaded = load_model(model, recipe)
    dataset = open_table_to_predict(loaded, data, max_invalid_fraction)
    rows = predict_file(loaded, dataset, out, log, coverage=coverage, min_accuracy=min_accuracy)
    print(f"{rows:,} rows in {out}")
