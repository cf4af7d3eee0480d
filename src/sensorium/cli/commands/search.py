"""Commands of search: `index`, `search`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sensorium.cli.models import is_run, load_model
from sensorium.cli.options import (
    DEFAULT_DATA_OPTIONS,
    FLAG,
    DataArgument,
    DataOptionsGroup,
    JsonOption,
    ModelArgument,
    RecipeOption,
)
from sensorium.cli.output import emit, log
from sensorium.errors import SensoriumError

MAX_EXAMPLES = 5  # of rows that were left out


def index(
    model: ModelArgument,
    data: DataArgument,
    /,
    *,
    split: str | None = None,
    out: Path | None = None,
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    recipe: RecipeOption = None,
) -> None:
    """Embed the images of a dataset (or its texts, if it has no images) and store them for search.

    The words of captions, categories, tags, identifiers and file names are stored, too. Rows that
    cannot be used are left out and counted, up to --max-invalid-fraction.

    Args:
        split: Index the rows of this split only.
        out: Index folder. Default: `index` in the run folder; pretrained weights need one.
    """
    from sensorium.data.bad_samples import summarize_bad_samples
    from sensorium.search.index import Index

    if out is None and not is_run(model):
        raise SensoriumError(
            f"{model} is not a run folder, so the index needs one of its own. Give --out FOLDER."
        )
    folder = out or Path(model) / "index"
    loaded, dataset = load_model(model, recipe), data_options.open(data)
    with Index.build(loaded, dataset, folder, split=split) as built:
        for line in summarize_bad_samples(built.bad_samples):
            log(f"left out: {line}")
        print(f'{len(built):,} rows in {folder}. Search them: sensorium search {folder} "..."')


def search(
    index: Annotated[Path, Parameter(help="An index folder, or a run folder that contains one.")],
    text: Annotated[str | None, Parameter(help="Text query.")] = None,
    /,
    *,
    image: Path | None = None,
    k: Annotated[int, Parameter(name="-k")] = 10,
    out: Path | None = None,
    vector_only: Annotated[bool, FLAG] = False,
    text_only: Annotated[bool, FLAG] = False,
    run: str | None = None,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search an index by text, by an image, or by both.

    A text finds rows by its words and by its vector; the second column of the results says which. A
    row with a caption equal to the text comes first. With an image, vectors alone are compared.

    Args:
        image: Image query.
        k: Number of results.
        out: Draw the results into a .png or .html file.
        vector_only: Compare vectors alone; the score is the cosine similarity.
        text_only: Compare words alone, without the model.
        run: Model that built the index, if it was moved.
    """
    from sensorium.search.index import Index

    model = load_model(run, recipe) if run else None
    with Index.open(index, model=model) as opened:
        result = opened.search(
            text=text, image=image, k=k, vector_only=vector_only, text_only=text_only
        )
    if out:
        result.save(out)
    emit(result, as_json)
