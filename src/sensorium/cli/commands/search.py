"""Commands of search: `index`, `search`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sensorium.cli.models import (
    is_model,
    is_run,
    load_model,
    load_run,
    open_data,
    order_sources,
)
from sensorium.cli.options import (
    DEFAULT_DATA_OPTIONS,
    FLAG,
    MODEL_HELP,
    DataOptionsGroup,
    JsonOption,
    OptionalDataArgument,
    RecipeOption,
)
from sensorium.cli.output import emit, log
from sensorium.errors import SensoriumError


def index(
    model: Annotated[str, Parameter(help=f"{MODEL_HELP} With --model, the data instead.")],
    data: OptionalDataArgument = None,
    /,
    *,
    model_option: Annotated[str | None, Parameter(name="--model")] = None,
    split: str | None = None,
    out: Path | None = None,
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    recipe: RecipeOption = None,
) -> None:
    """Embed the images of a dataset (or its texts, if it has no images) and store them for search.

    The words of captions, categories, tags, identifiers and file names are stored, too. Rows that
    cannot be used are left out and counted, up to --max-invalid-fraction.

    A pretrained CLIP or SigLIP needs no training: sensorium index photos/ --model FOLDER. A run is
    indexed with the data that it was trained on, unless others are named.

    Args:
        model_option: The model, if it is not named before the data.
        split: Index the rows of this split only.
        out: Index folder. Default: `index` in the run folder; with pretrained weights, DATA.index
            here.
    """
    from sensorium.data.bad_samples import summarize_bad_samples
    from sensorium.search.index import Index

    model, source = _model_and_data(model, data, model_option)
    folder = out or (
        Path(model) / "index" if is_run(model) else _default_index_folder(source or model)
    )
    if source is None:
        loaded = load_run(model, recipe, "index")
        dataset = open_data(loaded, None, data_options)
    else:
        loaded, dataset = load_model(model, recipe), data_options.open(source)
    with Index.build(loaded, dataset, folder, split=split) as built:
        for line in summarize_bad_samples(built.bad_samples):
            log(f"left out: {line}")
        print(f'{len(built):,} rows in {folder}. Search them: sensorium search {folder} "..."')


def _model_and_data(first: str, second: str | None, model: str | None) -> tuple[str, str | None]:
    """Return the model and the data: MODEL DATA, DATA MODEL, DATA --model MODEL, or RUN alone."""
    if model is not None and second is not None:
        raise SensoriumError(
            f"The model is named twice, by --model {model} and before the options. "
            f"Name the data alone: sensorium index DATA --model {model}."
        )
    if model is not None:
        return model, first
    if second is None and is_run(first):
        return first, None  # the data that it was trained on
    if second is None:
        missing = f"{first} DATA" if is_model(first) else f"{first} --model MODEL"
        what = "the data" if is_model(first) else "the model: a run, or pretrained weights"
        raise SensoriumError(f"Name {what}, as in sensorium index {missing}.")
    return order_sources(first, second)


def _default_index_folder(source: str) -> Path:
    """Return photos.index for photos/ and for photos.csv."""
    path = Path(source).expanduser().resolve()
    return Path(f"{path.stem if path.is_file() else path.name}.index")


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
    model: str | None = None,
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
        model: Model that built the index, if it was moved: a run or pretrained weights.
    """
    from sensorium.search.index import Index

    loaded = load_model(model, recipe) if model else None
    with Index.open(index, model=loaded) as opened:
        result = opened.search(
            text=text, image=image, k=k, vector_only=vector_only, text_only=text_only
        )
    if out:
        result.save(out)
    emit(result, as_json)
