"""The command line: each command is a few lines over a public function; nothing heavy is imported before one runs."""
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

from sensorium import __version__, keywords
from sensorium.errors import SensoriumError
from sensorium.options import (
    AS_GUESSED,
    DATA,
    Data,
    Flag,
    How,
    Json,
    Out,
    Own,
    Reading,
    Resume,
    Run,
    Split,
    Test,
    with_keywords,
)

if TYPE_CHECKING:
    from sensorium.checkpoint import Model
    from sensorium.data.dataset import Dataset

ABOUT = "One model over pictures, words and everything else about the same things."
EXAMPLES = {
    "sensorium": """
        sensorium demo
        sensorium data photos/
        sensorium train clip photos/ --out runs/photos
        sensorium index runs/photos photos/
        sensorium search runs/photos "a red bicycle" --out results.html""",
    "data": """
        sensorium data photos/
        sensorium data products.csv --column price=ignore --group product_id
        sensorium data emoji --json
        sensorium data build emoji --full --out emoji-full""",
    "build": """
        sensorium data build emoji --out emoji-64
        sensorium data build emoji --full --packages tarballs/ --out emoji-full""",
    "train": """
        sensorium train clip --help
        sensorium train clip photos/ --dim 256 --epochs 5
        sensorium train clip photos/ --out runs/photos --resume
        sensorium train ./mine.py:recipe photos/""",
    "evaluate": """
        sensorium evaluate runs/photos photos/
        sensorium evaluate runs/emoji emoji --split test_both --text caption_de""",
    "index": """
        sensorium index runs/photos photos/
        sensorium index runs/photos new-photos/ --out new.index""",
    "search": """
        sensorium search runs/photos "a red bicycle"
        sensorium search runs/photos --image a.jpg -k 20 --out results.html
        sensorium search runs/photos "at night" --image a.jpg --json""",
    "show": """
        sensorium show clip --dim 1024 --depth 24
        sensorium show clip --data photos/ --batch-size 512
        sensorium show runs/photos""",
    "demo": """
        sensorium demo
        sensorium demo --out somewhere""",
    "doctor": """
        sensorium doctor
        sensorium doctor --json""",
    "completion": """
        sensorium completion bash > ~/.local/share/bash-completion/completions/sensorium""",
}

def data(path: Data, /, *, split: Split = None, test: Test = None, reading: How = AS_GUESSED,
         as_json: Json = False) -> None:
    """Say what is in a data set.

    Columns and what they are taken for, why, what is missing, what is bad, how it is split.
    """
    _print(reading.open(path, split=split, test=test).describe(), as_json)


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
    print(build_emoji(out, full=full, size=size, packages=packages, say=_say))


def train(recipe: str, data: Data, /, *, split: Split = None, test: Test = None, reading: How = AS_GUESSED,
          out: Out = None, resume: Resume = False, **given: Any) -> None:
    """Train a model: sensorium train RECIPE DATA.

    Every keyword of the recipe is an option.
    """
    from sensorium.show import planned
    from sensorium.train import train
    make, found = keywords.made(recipe), reading.open(data, split=split, test=test)
    planned(make, found.schema, given)                  # what does not fit is said before any work
    train(make, found, out=out, resume=resume, **given)


def evaluate(run: Run, data: Annotated[str | None, DATA] = None, /, *, split: Annotated[tuple[str, ...], Flag] = (),
             text: str | None = None, reading: How = AS_GUESSED, recipe: Own = None, as_json: Json = False) -> None:
    """Judge a model on each split.

    Retrieval both ways beside chance and the pixel nearest neighbour, and naming of classes where there are any.
    Written into the run as evaluation.json and evaluation.md too.

    Args:
        split: a split to judge by (once for each); by default all but train
        text: another caption column than the model was trained on, such as another language
    """
    from sensorium.evaluate import evaluate
    model = _model(run, recipe)
    report = evaluate(model, _data(model, data, reading), splits=split or None, text=text)
    report.save(run)
    _print({"figures": report.figures, "about": report.about} if as_json else report.table(), as_json)


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
           made_by: Annotated[str, Parameter(name="--run")] = "", as_json: Json = False) -> None:
    """Find what is nearest to words, to a picture, or to both together.

    Args:
        image: a picture to look for
        k: how many answers
        out: where to draw them: a .png or .html file
        made_by: the run that made the index, if it was moved; with a recipe of your own RUN=./mine.py:recipe
    """
    from sensorium.tasks.search import Index
    run, _, recipe = made_by.partition("=")
    with Index.open(index, model=_model(Path(run), recipe or None) if run else None) as opened:
        found = opened.search(text=text, image=image, k=k)
    if out:
        found.save(out)
    _print(found, as_json)


def show(recipe: str, /, *, data: Annotated[str | None, Parameter(help="take the columns of these data")] = None,
         reading: How = AS_GUESSED, as_json: Json = False, **given: Any) -> None:
    """Say how large a model would be: parameters, work and memory of a training step. Nothing is trained."""
    from sensorium.show import made_up, summary
    schema = reading.open(data).schema if data else made_up(reading.columns())
    _print(summary(keywords.made(recipe), schema, given), as_json)


def show_run(run: Run, /, *, recipe: Own = None, as_json: Json = False) -> None:
    """Say how large a model is: parameters, work and memory of a training step."""
    from sensorium.show import summary_of
    if not run.is_dir():
        raise SensoriumError(f"{run} is neither a run nor a recipe; recipes are {', '.join(keywords.shipped())}.")
    _print(summary_of(_model(run, recipe)), as_json)


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
    _print(examine(), as_json)


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print what makes a shell complete commands and options."""
    print(command_line(["train"]).generate_completion(shell=shell))


def command_line(argv: Sequence[str] = ()) -> App:
    """The whole of it, with recipes only where `argv` asks for them; one of the user's own becomes a command too."""
    app = _app("sensorium", version=__version__, help=ABOUT)
    reader, shower = _app("data", default_command=data), _app("show", default_command=show_run)
    trainer = _app("train", help=train.__doc__)
    reader.command(build, help_epilogue=_examples("build"))
    asked = argv[:2] if argv and argv[0] in ("train", "show") else ()
    own = [keywords.read(name) for name in asked[1:] if keywords.is_file(name)]
    for recipe in [*keywords.shipped(*asked[1:]).values(), *own] if asked else []:
        trainer.command(with_keywords(train, recipe, recipe.doc), name=recipe.name, help_epilogue=_examples("train"))
        shower.command(with_keywords(show, recipe, show.__doc__), name=recipe.name, help_epilogue=_examples("show"))
    order = [reader, trainer, evaluate, index, search, shower, demo, doctor, completion]
    for place, command in enumerate(order):
        if isinstance(command, App):
            command.sort_key = place
            app.command(command)
        else:
            app.command(command, sort_key=place, help_epilogue=_examples(command.__name__))
    return app


def run(argv: Sequence[str]) -> int:
    """Run a command line; the exit status: 0 done, 1 could not be done, 2 was not understood."""
    try:
        command_line(argv)(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as e:
        return _failed(2, f"{e} See: {' '.join(['sensorium', *(e.command_chain or ())])} --help")
    except SensoriumError as e:
        if os.environ.get("SENSORIUM_DEBUG"):
            raise
        return _failed(getattr(e, "code", 1), str(e))
    except KeyboardInterrupt:
        return _failed(130, "stopped")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # nobody reads: say no more
    return 0


def main() -> NoReturn:
    """What the command `sensorium` calls."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")          # torch reads it once: large tensors on huge pages
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(sys.argv[1:]))


def _app(name: str, **settings: Any) -> App:
    return App(name, help_format="plaintext", help_epilogue=_examples(name), suppress_keyboard_interrupt=False,
               version_flags="--version" if "version" in settings else (), **settings)


def _examples(command: str) -> str:
    return "Examples:" + EXAMPLES[command].replace("\n        ", "\n  ")


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


def _print(found: object, as_json: bool) -> None:
    """A result to stdout: a table for people, or JSON."""
    if as_json:
        plain = asdict(found) if is_dataclass(found) and not isinstance(found, type) else found
        print(json.dumps(plain, indent=2, ensure_ascii=False))
    elif hasattr(found, "__rich_console__"):
        from rich.console import Console
        Console().print(found)
    else:
        print(found)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _failed(code: int, text: str) -> int:
    _say(f"sensorium: {text}")
    return code


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)
