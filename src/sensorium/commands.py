"""What each command does: a few lines over a public function; nothing heavy is imported before one runs."""
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from sensorium import keywords
from sensorium.errors import SensoriumError
from sensorium.options import (
    AS_GUESSED,
    AS_USUAL,
    DATA,
    UNSAID,
    Asked,
    Bytes,
    Choice,
    Compared,
    Data,
    Flag,
    Folds,
    How,
    Json,
    Out,
    Own,
    Reading,
    Reference,
    Resume,
    Run,
    Split,
    Synonyms,
    Test,
    Words,
)
from sensorium.tell import say, shown

if TYPE_CHECKING:
    from sensorium.checkpoint import Model
    from sensorium.data.dataset import Dataset


def data(path: Data, /, *, split: Split = None, test: Test = None, reading: How = AS_GUESSED,
         as_json: Json = False) -> None:
    """Say what is in a data set.

    Columns and what they are taken for, why, what is missing, what is bad, how it is split.
    """
    shown(reading.open(path, split=split, test=test).describe(), as_json)


def build(name: Literal["emoji"], /, *, out: Path, full: Annotated[bool, Flag] = False, size: int = 64,
          packages: Path | None = None) -> None:
    """Build a data set out of packages of drawings and names.

    Args:
        name: the set
        out: folder to write
        full: ten styles and 28 languages; two of the styles are share-alike
        size: pixels of a drawing's side
        packages: folder with the packages; without it npm fetches them
    """
    from sensorium.data.emoji_build import build_emoji
    print(build_emoji(out, full=full, size=size, packages=packages, say=say))


def train(recipe: str, data: Data, /, *, split: Split = None, test: Test = None, synonyms: Synonyms = (),
          reading: How = AS_GUESSED, out: Out = None, resume: Resume = False, reference: Reference = None,
          **given: Any) -> None:
    """Train a model: sensorium train RECIPE DATA.

    Every keyword of the recipe is an option.
    """
    from sensorium.train import train
    make, found = keywords.made(recipe), reading.open(data, split=split, test=test, synonyms=synonyms)
    train(make, found, out=out, resume=resume, reference=reading.open(reference) if reference else None, **given)


def compare(recipe: str, data: Data, /, *, split: Split = None, test: Test = None, synonyms: Synonyms = (),
            reading: How = AS_GUESSED, out: Compared = None, folds: Folds = 0, as_json: Json = False,
            **given: Any) -> None:
    """Train a recipe in several ways, like for like, and say which to take: sensorium compare RECIPE DATA.

    Any keyword may have several values, parted by commas (--dim 64,128); one that takes words is given once for each
    (--optimizer adamw --optimizer muon), but names of columns, given once each, are all read together. Each
    combination is trained on the same rows, once for each --seed 0,1,2 and each of --folds. Without --folds the rows of
    val judge; with it a part of train that the run did not see. Rows of test are never looked at. What is finished in
    --out is not trained again.
    """
    from sensorium.tasks.comparison import compare
    make, found = keywords.made(recipe), reading.open(data, split=split, test=test, synonyms=synonyms)
    result = compare(make, found, out=out, folds=folds, say=say, **given)
    shown(result.to_json() if as_json else result, as_json)


def evaluate(run: Run, data: Annotated[str | None, DATA] = None, /, *, split: Annotated[tuple[str, ...], Flag] = (),
             asked: Asked = AS_USUAL, reading: How = AS_GUESSED, recipe: Own = None, as_json: Json = False) -> None:
    """Judge a model on each split, beside chance and trivial answers.

    Retrieval, captions, answers, pictures or predictions, as the model's recipe says. Written into the run as
    evaluation.json and evaluation.md too, with pictures beside them.

    Args:
        split: a split to judge by (once for each); by default all but train
    """
    from sensorium.evaluate import evaluate
    model = _model(run, recipe)
    report = evaluate(model, _data(model, data, reading), splits=split or None, **asked.given(_model))
    report.save(run)
    shown({"figures": report.figures, "about": report.about} if as_json else report.table(), as_json)


def blend(run: Run, data: Annotated[str | None, DATA] = None, /, *, reference: Reference = None,
          alpha: float | None = None, out: Path | None = None, reading: How = AS_GUESSED, recipe: Own = None,
          as_json: Json = False) -> None:
    """Weigh what a fine-tuned model learned against what it could do before.

    A table of the weights in between (WiSE-FT); with --out, one of them as a run.

    Args:
        alpha: how far from the start towards what was trained, 0 to 1; by default the best of the table
        out: folder to write that blend to
    """
    from sensorium.blend import curve, save
    model = _model(run, recipe)
    if alpha is None or not out:
        found = curve(model, _data(model, data, reading), reading.open(reference) if reference else None)
        shown(found, as_json)
        alpha = found.best
    if out:
        print(f"alpha {alpha:g} in {save(model, alpha, out)}")


def index(run: Run, data: Data, /, *, split: str | None = None, out: Path | None = None, reading: How = AS_GUESSED,
          recipe: Own = None) -> None:
    """Make the pictures of a data set searchable.

    Args:
        split: only the pictures of this split
        out: folder of the index; by default `index` in the run
    """
    from sensorium.tasks.search import Index
    out = out or run / "index"
    with Index.build(_model(run, recipe), reading.open(data), out, split=split) as index:
        print(f"{len(index):,} rows in {out}. To search them: sensorium search {out} \"...\"")


def search(index: Annotated[Path, Parameter(help="folder of an index, or of a run that holds one")],
           text: Annotated[str | None, Parameter(help="what to look for, in words")] = None, /, *,
           image: Path | None = None, k: Annotated[int, Parameter(name="-k")] = 10, out: Path | None = None,
           made_by: Annotated[Path | None, Parameter(name="--run")] = None, recipe: Own = None,
           as_json: Json = False) -> None:
    """Find what is nearest to words, to a picture, or to both together.

    Args:
        image: a picture to look for
        k: how many answers
        out: where to draw them: a .png or .html file
        made_by: the run that made the index, if it was moved
    """
    from sensorium.tasks.search import Index
    with Index.open(index, model=_model(made_by, recipe) if made_by else None) as opened:
        found = opened.search(text=text, image=image, k=k)
    if out:
        found.save(out)
    shown(found, as_json)


def export(run: Run, /, *, to: Literal["hf", "open_clip", "onnx", "torch"], out: Path, recipe: Own = None,
           as_json: Json = False) -> None:
    """Write a model as others load it, and say how far each part is from what the run itself answers.

    Args:
        to: hf (a CLIPModel of transformers), open_clip, or graphs of towers or of what predicts: onnx, torch
            (torch.export)
        out: a new folder
    """
    from sensorium.interop.export import export
    off = export(_model(run, recipe), to, out)
    told = "\n".join(f"{part}: at most {far:.1e} from the run" for part, far in off.items())
    shown(off if as_json else told, as_json)


def generate(run: Run, text: Words = (), /, *, choice: Choice = UNSAID,
             out: Annotated[Path, Parameter(name=("--out", "-o"))] = Path("generated.png"), quantize: Bytes = None,
             recipe: Own = None, as_json: Json = False) -> None:
    """Make pictures from words, or words from pictures, whichever the model has learned.

    Args:
        out: file for pictures; several stand in a grid, a line for each caption
    """
    from sensorium.load import settle
    from sensorium.tasks.generation import makes, painted, told
    model, asked = _model(run, recipe), choice.given(text)
    settle(model.module, quantize)
    if "rerank" in asked:
        asked["rerank"] = _model(asked["rerank"], None)
    if makes(model) == "image":
        found = painted(model, out, asked)
        shown(found if as_json else f"{found['pictures']} in {found['file']}", as_json)
    else:
        words = told(model, asked, (lambda piece: None) if as_json else partial(print, end="", flush=True))
        if as_json:
            shown({"text": words}, as_json)


def predict(run: Run, data: Data, /, *, out: Annotated[Path, Parameter(name=("--out", "-o"))] = Path("predicted.csv"),
            level: float = 0.9, accuracy: float = 0.0, recipe: Own = None, max_bad: float = 0.01) -> None:
    """Say the target of each row of a table, from whichever columns it has.

    Args:
        out: file to write: .csv, or .jsonl with the probability of every class
        level: how often the range given for a number is to hold the true one
        accuracy: how often labels are to be right; rows that are not sure enough are left without. 0: none is
        max_bad: share of rows that may be unusable
    """
    from sensorium.data.dataset import Dataset
    from sensorium.tasks.prediction import predict_file
    if Path(data).exists() and out.exists() and out.samefile(data):
        raise SensoriumError(f"{out} is the table to be read: name another file to write with -o")
    model = _model(run, recipe)
    n = predict_file(model, Dataset.open(data, like=model.schema, max_bad=max_bad), out, say, level=level,
                     accuracy=accuracy)
    print(f"{n:,} rows in {out}")


def show(recipe: str, /, *, data: Annotated[str | None, Parameter(help="take the columns of these data")] = None,
         reading: How = AS_GUESSED, as_json: Json = False, **given: Any) -> None:
    """Say how large a model would be: parameters, work and memory of a training step. Nothing is trained."""
    from sensorium.show import made_up, summary
    schema = reading.open(data).schema if data else made_up(reading.columns())
    shown(summary(keywords.made(recipe), schema, given), as_json)


def show_run(run: Run, /, *, recipe: Own = None, as_json: Json = False) -> None:
    """Say how large a model is: a run's parameters, work and memory of a training step; what published weights hold.

    Published weights are a folder, a file, or a hub id such as openai/clip-vit-base-patch32.
    """
    from sensorium.load import is_run
    if not run.exists() and len(run.parts) != 2:
        raise SensoriumError(f"{run} is neither a run nor a recipe; recipes are "
                             f"{', '.join(keywords.shipped())}.")
    if recipe or is_run(run):
        from sensorium.show import summary_of
        shown(summary_of(_model(run, recipe)), as_json)
    else:
        from sensorium.published.describe import describe
        shown(describe(str(run)), as_json)


def convert(source: Annotated[Path, Parameter(help="a checkpoint of torch: .pt, .pth, .bin, .ckpt")], /, *,
            out: Path | None = None, key: str | None = None, as_json: Json = False) -> None:
    """Make a safetensors file of a pickle, in a process of its own that executes nothing of it.

    Weights come over, number for number. What else the file holds (step, optimizer_state) is left out, and listed. One
    that asks for anything but tensors and plain values is refused.

    Args:
        out: the file to write; by default the same name with .safetensors
        key: which part holds the weights, where it is not one of the usual (state_dict, model, ...)
    """
    from sensorium.convert.convert import convert
    shown(convert(source, out, key=key), as_json)


def demo(*, out: Path = Path("demo")) -> None:
    """Do everything once, on the emoji that come with Sensorium: train, evaluate, index, search; and draw a page of it.

    Args:
        out: folder for all of it; what is finished there is not done again
    """
    from sensorium.demo import demo
    demo(out)


def doctor(*, as_json: Json = False) -> None:
    """Look at this machine and this installation: versions, extras, devices, disk, and what is in the way."""
    from sensorium.doctor import examine
    shown(examine(), as_json)


def _model(run: Path, recipe: str | None) -> "Model":
    from sensorium.checkpoint import load
    return load(run, recipe=keywords.made(recipe) if recipe else None)


def _data(model: "Model", given: str | None, reading: Reading) -> "Dataset":
    """The data named, or else those the model was trained on, read as they were then."""
    from sensorium.data.dataset import Dataset
    source = dict(model.config.data["source"])
    if given is None and not source:
        raise SensoriumError(f"on which data? Name them, as in sensorium evaluate {model.folder} path/to/data")
    return reading.open(given) if given is not None else Dataset.open(source.pop("path"), **source)
