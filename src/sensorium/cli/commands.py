"""What each command does: a few lines over a public function; nothing heavy is imported before one runs."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from sensorium.cli import recipe_options
from sensorium.cli.options import (
    DATA_PARAMETER,
    DEFAULT_DATA_OPTIONS,
    DEFAULT_EVAL_OPTIONS,
    DEFAULT_SAMPLING_OPTIONS,
    FLAG_PARAMETER,
    ComparisonOutputOption,
    DataArgument,
    DataOptions,
    DataOptionsGroup,
    EvalOptionsGroup,
    FoldsOption,
    JsonOption,
    OutputOption,
    PromptArgument,
    QuantizeOption,
    RecipeOption,
    ReferenceOption,
    ResumeOption,
    RunArgument,
    SamplingOptionsGroup,
    SplitOption,
    SynonymsOption,
    TestDataOption,
)
from sensorium.cli.output import emit, log
from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    from sensorium.data.dataset import Dataset
    from sensorium.training.checkpoint import Model


def data(
    path: DataArgument,
    /,
    *,
    split: SplitOption = None,
    test: TestDataOption = None,
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a data set.

    Columns and what they are taken for, why, what is missing, what is bad, how it is split.
    """
    emit(data_options.open(path, split=split, test=test).describe(), as_json)


def build(
    name: Literal["emoji"],
    /,
    *,
    out: Path,
    full: Annotated[bool, FLAG_PARAMETER] = False,
    size: int = 64,
    packages: Path | None = None,
) -> None:
    """Build a data set out of packages of drawings and names.

    Args:
        name: the set
        out: folder to write
        full: ten styles and 28 languages; two of the styles are share-alike
        size: pixels of a drawing's side
        packages: folder with the packages; without it npm fetches them
    """
    from sensorium.data.bundled.emoji_build import build_emoji

    print(build_emoji(out, full=full, size=size, packages_folder=packages, log=log))


def train(
    recipe: str,
    data: DataArgument,
    /,
    *,
    split: SplitOption = None,
    test: TestDataOption = None,
    synonyms: SynonymsOption = (),
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    out: OutputOption = None,
    resume: ResumeOption = False,
    reference: ReferenceOption = None,
    **overrides: Any,
) -> None:
    """Train a model: sensorium train RECIPE DATA.

    Every keyword of the recipe is an option.
    """
    from sensorium.training.loop import train

    make, found = (
        recipe_options.resolve_recipe(recipe),
        data_options.open(data, split=split, test=test, synonyms=synonyms),
    )
    train(
        make,
        found,
        out=out,
        resume=resume,
        reference=data_options.open(reference) if reference else None,
        **overrides,
    )


def compare(
    recipe: str,
    data: DataArgument,
    /,
    *,
    split: SplitOption = None,
    test: TestDataOption = None,
    synonyms: SynonymsOption = (),
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    out: ComparisonOutputOption = None,
    folds: FoldsOption = 0,
    as_json: JsonOption = False,
    **overrides: Any,
) -> None:
    """Train a recipe in several ways, like for like, and say which to take: sensorium compare RECIPE DATA.

    Any keyword may have several values, parted by commas (--dim 64,128); one that takes words is given once for each
    (--optimizer adamw --optimizer muon). Each combination is trained on the same rows, once for each --seed 0,1,2 and
    each of --folds. Without --folds the rows of val judge; with it a part of train that the run did not see. Rows of
    test are never looked at. What is finished in --out is not trained again.
    """
    from sensorium.tuning.compare import compare

    make, found = (
        recipe_options.resolve_recipe(recipe),
        data_options.open(data, split=split, test=test, synonyms=synonyms),
    )
    result = compare(make, found, out=out, folds=folds, log=log, **overrides)
    emit(result.to_json() if as_json else result, as_json)


def evaluate(
    run: RunArgument,
    data: Annotated[str | None, DATA_PARAMETER] = None,
    /,
    *,
    split: Annotated[tuple[str, ...], FLAG_PARAMETER] = (),
    eval_options: EvalOptionsGroup = DEFAULT_EVAL_OPTIONS,
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a model on each split, beside chance and trivial answers.

    Retrieval, captions, answers, pictures or predictions, as the model's recipe says. Written into the run as
    evaluation.json and evaluation.md too, with pictures beside them.

    Args:
        split: a split to judge by (once for each); by default all but train
    """
    from sensorium.evaluation.evaluate import evaluate

    model = _load_model(run, recipe)
    report = evaluate(
        model,
        _open_dataset(model, data, data_options),
        splits=split or None,
        **eval_options.to_keywords(_load_model),
    )
    report.save(run)
    emit(
        {"figures": report.metrics, "about": report.metadata} if as_json else report.table(),
        as_json,
    )


def interpolate(
    run: RunArgument,
    data: Annotated[str | None, DATA_PARAMETER] = None,
    /,
    *,
    reference: ReferenceOption = None,
    alpha: float | None = None,
    out: Path | None = None,
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Weigh what a fine-tuned model learned against what it could do before.

    A table of the weights in between (WiSE-FT); with --out, one of them as a run.

    Args:
        alpha: how far from the start towards what was trained, 0 to 1; by default the best of the table
        out: folder to write that blend to
    """
    from sensorium.training.weight_interpolation import evaluate_interpolations, save_interpolation

    model = _load_model(run, recipe)
    if alpha is None or not out:
        found = evaluate_interpolations(
            model,
            _open_dataset(model, data, data_options),
            data_options.open(reference) if reference else None,
        )
        emit(found, as_json)
        alpha = found.best_alpha
    if out:
        print(f"alpha {alpha:g} in {save_interpolation(model, alpha, out)}")


def index(
    run: RunArgument,
    data: DataArgument,
    /,
    *,
    split: str | None = None,
    out: Path | None = None,
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    recipe: RecipeOption = None,
) -> None:
    """Make the pictures of a data set searchable.

    Args:
        split: only the pictures of this split
        out: folder of the index; by default `index` in the run
    """
    from sensorium.search.index import Index

    out = out or run / "index"
    with Index.build(_load_model(run, recipe), data_options.open(data), out, split=split) as index:
        print(f'{len(index):,} rows in {out}. To search them: sensorium search {out} "..."')


def search(
    index: Annotated[Path, Parameter(help="folder of an index, or of a run that holds one")],
    text: Annotated[str | None, Parameter(help="what to look for, in words")] = None,
    /,
    *,
    image: Path | None = None,
    k: Annotated[int, Parameter(name="-k")] = 10,
    out: Path | None = None,
    run_path: Annotated[Path | None, Parameter(name="--run")] = None,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find what is nearest to words, to a picture, or to both together.

    Args:
        image: a picture to look for
        k: how many answers
        out: where to draw them: a .png or .html file
        run_path: the run that made the index, if it was moved
    """
    from sensorium.search.index import Index

    with Index.open(index, model=_load_model(run_path, recipe) if run_path else None) as opened:
        found = opened.search(text=text, image=image, k=k)
    if out:
        found.save(out)
    emit(found, as_json)


def export(
    run: RunArgument,
    /,
    *,
    format: Literal["hf", "open_clip", "onnx", "torch"],
    out: Path,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model as others load it, and say how far each part is from what the run itself answers.

    Args:
        format: hf (a CLIPModel of transformers), open_clip, or graphs of towers or of what predicts: onnx, torch
            (torch.export)
        out: a new folder
    """
    from sensorium.export.export import export_model

    off = export_model(_load_model(run, recipe), format, out)
    told = "\n".join(f"{part}: at most {far:.1e} from the run" for part, far in off.items())
    emit(off if as_json else told, as_json)


def generate(
    run: RunArgument,
    text: PromptArgument = (),
    /,
    *,
    sampling: SamplingOptionsGroup = DEFAULT_SAMPLING_OPTIONS,
    out: Annotated[Path, Parameter(name=("--out", "-o"))] = Path("generated.png"),
    quantize: QuantizeOption = None,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make pictures from words, or words from pictures, whichever the model has learned.

    Args:
        out: file for pictures; several stand in a grid, a line for each caption
    """
    from sensorium.cli.generate_output import generate_images, generate_text, output_modality
    from sensorium.loading import prepare_for_inference

    model, asked = _load_model(run, recipe), sampling.to_keywords(text)
    prepare_for_inference(model.module, quantize)
    if "rerank" in asked:
        asked["rerank"] = _load_model(asked["rerank"], None)
    if output_modality(model) == "image":
        found = generate_images(model, out, asked)
        emit(found if as_json else f"{found['pictures']} in {found['file']}", as_json)
    else:
        words = generate_text(
            model, asked, (lambda piece: None) if as_json else partial(print, end="", flush=True)
        )
        if as_json:
            emit({"text": words}, as_json)


def predict(
    run: RunArgument,
    data: DataArgument,
    /,
    *,
    out: Annotated[Path, Parameter(name=("--out", "-o"))] = Path("predicted.csv"),
    coverage: float = 0.9,
    min_accuracy: float = 0.0,
    recipe: RecipeOption = None,
    max_invalid_fraction: float = 0.01,
) -> None:
    """Say the target of each row of a table, from whichever columns it has.

    Args:
        out: file to write: .csv, or .jsonl with the probability of every class
        coverage: how often the range given for a number is to hold the true one
        min_accuracy: how often labels are to be right; rows that are not sure enough are left without. 0: none is
        max_invalid_fraction: share of rows that may be unusable
    """
    from sensorium.cli.predict_file import predict_file
    from sensorium.data.dataset import Dataset

    if Path(data).exists() and out.exists() and out.samefile(data):
        raise SensoriumError(f"{out} is the table to be read: name another file to write with -o")
    model = _load_model(run, recipe)
    n = predict_file(
        model,
        Dataset.open(data, schema_from=model.schema, max_invalid_fraction=max_invalid_fraction),
        out,
        log,
        coverage=coverage,
        min_accuracy=min_accuracy,
    )
    print(f"{n:,} rows in {out}")


def summary(
    recipe: str,
    /,
    *,
    data: Annotated[str | None, Parameter(help="take the columns of these data")] = None,
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    as_json: JsonOption = False,
    **overrides: Any,
) -> None:
    """Say how large a model would be: parameters, work and memory of a training step. Nothing is trained."""
    from sensorium.cli.show import default_schema, summarize_recipe

    schema = data_options.open(data).schema if data else default_schema(data_options.types())
    emit(summarize_recipe(recipe_options.resolve_recipe(recipe), schema, overrides), as_json)


def summarize_run(
    run: RunArgument, /, *, recipe: RecipeOption = None, as_json: JsonOption = False
) -> None:
    """Say how large a model is: a run's parameters, work and memory of a training step; what published weights hold.

    Published weights are a folder, a file, or a hub id such as openai/clip-vit-base-patch32.
    """
    from sensorium.loading import is_run_folder

    if not run.exists() and len(run.parts) != 2:
        raise SensoriumError(
            f"{run} is neither a run nor a recipe; recipes are "
            f"{', '.join(recipe_options.builtin_recipes())}."
        )
    if recipe or is_run_folder(run):
        from sensorium.cli.show import summarize_model

        emit(summarize_model(_load_model(run, recipe)), as_json)
    else:
        from sensorium.pretrained.describe import describe_pretrained

        emit(describe_pretrained(str(run)), as_json)


def convert_checkpoint(
    source: Annotated[Path, Parameter(help="a checkpoint of torch: .pt, .pth, .bin, .ckpt")],
    /,
    *,
    out: Path | None = None,
    key: str | None = None,
    as_json: JsonOption = False,
) -> None:
    """Make a safetensors file of a pickle, in a process of its own that executes nothing of it.

    Weights come over, number for number. What else the file holds (step, optimizer_state) is left out, and listed. One
    that asks for anything but tensors and plain values is refused.

    Args:
        out: the file to write; by default the same name with .safetensors
        key: which part holds the weights, where it is not one of the usual (state_dict, model, ...)
    """
    from sensorium.io.pickles.convert import convert_checkpoint

    emit(convert_checkpoint(source, out, key=key), as_json)


def demo(*, out: Path = Path("demo")) -> None:
    """Do everything once, on the emoji that come with Sensorium: train, evaluate, index, search; and draw a page of it.

    Args:
        out: folder for all of it; what is finished there is not done again
    """
    from sensorium.cli.demo import demo

    demo(out)


def doctor(*, as_json: JsonOption = False) -> None:
    """Look at this machine and this installation: versions, extras, devices, disk, and what is in the way."""
    from sensorium.cli.doctor import check_environment

    emit(check_environment(), as_json)


def _load_model(run: Path, recipe: str | None) -> "Model":
    from sensorium.training.checkpoint import load_checkpoint

    return load_checkpoint(run, recipe=recipe_options.resolve_recipe(recipe) if recipe else None)


def _open_dataset(model: "Model", path: str | None, data_options: DataOptions) -> "Dataset":
    """The data named, or else those the model was trained on, read as they were then."""
    from sensorium.data.dataset import Dataset

    source = dict(model.config.data["source"])
    if path is None and not source:
        raise SensoriumError(
            f"on which data? Name them, as in sensorium evaluate {model.folder} path/to/data"
        )
    return (
        data_options.open(path) if path is not None else Dataset.open(source.pop("path"), **source)
    )
