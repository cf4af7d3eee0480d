"""Options that several commands share, and those that a recipe brings along."""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, Token, convert

from sensorium.cli.recipe_options import NAMES, Keyword, RecipeSignature
from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    from sensorium.data.dataset import Dataset

DATA_PARAMETER = Parameter(
    help="a folder, a CSV, TSV, JSONL or Parquet file, or a set that comes with Sensorium: emoji, scenes"
)
DataArgument = Annotated[str, DATA_PARAMETER]
RunArgument = Annotated[Path, Parameter(help="folder of a run")]
PromptArgument = Annotated[
    tuple[str, ...], Parameter(help="words: what to paint, or how to begin", show_default=False)
]
JsonOption = Annotated[
    bool, Parameter(name="--json", negative="", show_default=False, help="print JSON")
]
RecipeOption = Annotated[
    str | None,
    Parameter(name="--recipe", help="the recipe, where it is your own: ./mine.py:recipe"),
]
QuantizeOption = Annotated[
    Literal["int8"] | None,
    Parameter(
        name="--quantize", help="weights as bytes: a quarter of the memory, and more speed on a CPU"
    ),
]
FLAG_PARAMETER = Parameter(negative="", show_default=False)
SplitOption = Annotated[
    str | None, Parameter(group="Data", help="column, or file, that says which split a row is in")
]
SynonymsOption = Annotated[
    tuple[str, ...],
    FLAG_PARAMETER,
    Parameter(
        group="Data",
        help="of a text column, a file of words that stand for each other, a group a line, parted by commas: "
        "title=words.txt (once for each). Training texts are read with some exchanged, too",
    ),
]
TestDataOption = Annotated[str | None, Parameter(group="Data", help="other data to judge by")]

OutputOption = Annotated[
    Path | None,
    Parameter(group="Run", help="its folder; by default the next of runs/RECIPE-0001, ..."),
]
ComparisonOutputOption = Annotated[
    Path | None,
    Parameter(
        group="Run",
        help="folder of the runs and of comparison.md; by default the "
        "next of runs/compare-0001, ...",
    ),
]
FoldsOption = Annotated[
    int,
    Parameter(
        group="Run",
        show_default=False,
        help="deal the training rows into so many parts (5 "
        "is usual), train on all but one, each in turn, and judge on that one",
    ),
]
ReferenceOption = Annotated[
    str | None,
    Parameter(
        group="Data",
        help="data of what published weights could do before, with "
        "the same columns; by default likeness to what they said before",
    ),
]
ResumeOption = Annotated[
    bool, FLAG_PARAMETER, Parameter(group="Run", help="go on with the run in --out")
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How data are read, where what is guessed (`sensorium data PATH` prints it) is not what is meant."""

    type: Annotated[tuple[str, ...], FLAG_PARAMETER] = ()
    """what a column is taken for: caption=text, price=ignore, photo=image:size=128 (once for each)"""
    group: str | None = None
    """column whose equal values are the same thing, to be kept on one side of a split"""
    max_invalid_fraction: float = 0.01
    """share of rows that may be unusable"""
    source_option: Annotated[tuple[str, ...], FLAG_PARAMETER] = ()
    """how a set that comes along is made, or a file read: n=5000, hold=pairs, encoding=latin-1 (once for each)"""

    def open(self, path: str, **overrides: Any) -> "Dataset":
        """The data set. more: other keywords of Dataset.open."""
        from sensorium.data.dataset import Dataset

        options = {
            name: _parse_value(text)
            for name, text in _split_pairs("option", self.source_option, "NAME=VALUE, as in n=5000")
        }
        if words := dict(
            _split_pairs(
                "synonyms", overrides.pop("synonyms", ()), "COLUMN=FILE, as in title=words.txt"
            )
        ):
            overrides["synonyms"] = words
        known = {"group": self.group, "types": self.types(), "max_invalid_fraction": self.max_invalid_fraction}
        return Dataset.open(path, **{**known, **overrides, **options})

    def types(self) -> dict[str, str]:
        """{column: what it is taken for}."""
        return dict(_split_pairs("column", self.type, "NAME=KIND, as in caption=text"))


def _split_pairs(option: str, values: Sequence[str], expected: str) -> list[tuple[str, str]]:
    """(before, after) the first "=" of each."""
    pairs = [one.partition("=") for one in values]
    if wrong := next(
        (one for one, (name, mark, _) in zip(values, pairs, strict=True) if not (name and mark)),
        None,
    ):
        raise SensoriumError(f"--{option} {wrong}: expected {expected}.")
    return [(name, value) for name, _, value in pairs]


def _parse_value(text: str) -> Any:
    """5000 -> 5000, ["en", "de"] -> a list; what is no JSON is a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What a judge is asked besides; each kind of model takes some of it."""

    text_column: Annotated[tuple[str, ...], FLAG_PARAMETER] = ()
    """retrieval: another caption column than the model was trained on, such as another language (once for each)"""
    average_captions: Annotated[bool, FLAG_PARAMETER] = False
    """retrieval: a row's text is the mean of all its captions, not the first alone"""
    max_samples: int | None = None
    """words, pictures, predictions: how many rows of a split are judged"""
    ablate_columns: Annotated[bool, FLAG_PARAMETER] = False
    """predictions: also with each column alone"""
    feature_model: Path | None = None
    """pictures: run of a model that embeds pictures and words, to compare them by"""
    blind_model: Path | None = None
    """answers: run of a model trained on the same questions without pictures"""

    def to_keywords(self, load: Callable[[Path, None], Any]) -> dict[str, Any]:
        """Those that were set, as keywords of `evaluate`."""
        runs = {"feature_model": self.feature_model, "blind_model": self.blind_model}
        plain = {
            "text": self.text_column or None,
            "average_captions": self.average_captions or None,
            "max_samples": self.max_samples,
            "ablate_columns": self.ablate_columns or None,
        }
        return {name: value for name, value in plain.items() if value is not None} | {
            name: load(run, None) for name, run in runs.items() if run is not None
        }


EvalOptionsGroup = Annotated[EvalOptions, Parameter(group="Judge")]
DEFAULT_EVAL_OPTIONS = EvalOptions()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What a model is given, and how it chooses; what is left out is as the model does it by itself."""

    image: Annotated[tuple[Path, ...], FLAG_PARAMETER] = ()
    """a picture to say something about, or to go on from (once for each)"""
    question: Annotated[tuple[str, ...], FLAG_PARAMETER] = ()
    """a question about a picture (once for each)"""
    n: Annotated[int | None, Parameter(name="-n")] = None
    """how many for each"""
    seed: int | None = None
    """of chance: the same seed, the same answer"""
    temperature: float | None = None
    """0: always the likeliest; 1: as often as it is likely"""
    top_k: int | None = None
    """choose among so many of the likeliest"""
    top_p: float | None = None
    """choose among the likeliest that together have this probability"""
    num_beams: int | None = None
    """follow so many continuations of words at once, and say the likeliest"""
    max_tokens: int | None = None
    """the most tokens of words"""
    guidance_scale: float | None = None
    """how far pictures go from what would be painted without words; 1: not at all"""
    prefix_tokens: int | None = None
    """how many codes of --image stay as they are"""
    region: str | None = None
    """part of --image to paint anew: for models of masked tokens, not for dalle, which says why"""
    rerank: Path | None = None
    """run of a model that embeds, which chooses the best pictures of many"""
    candidates: int | None = None
    """how many --rerank chooses from"""

    def to_keywords(self, text: Sequence[str]) -> dict[str, Any]:
        """Keywords of the verb, without those that were left out."""
        found: dict[str, Any] = {
            name: value for name, value in vars(self).items() if value not in (None, ())
        }
        lists = {name: list(found[name]) for name in ("image", "question") if name in found}
        return {**found, **lists, **({"text": list(text)} if text else {})}


SamplingOptionsGroup = Annotated[SamplingOptions, Parameter(group="Choice")]
DEFAULT_SAMPLING_OPTIONS = SamplingOptions()
DataOptionsGroup = Annotated[DataOptions, Parameter(group="Data")]
DEFAULT_DATA_OPTIONS = DataOptions()


def add_recipe_options(
    command: Callable[..., None], recipe: RecipeSignature, doc: str | None, multiple: bool = False
) -> Callable[..., None]:
    """`command(recipe, ..., **given)` for one recipe: its keywords and those of TrainingConfig are options, as its file
    says.

    multiple: each takes several values, and is given as a tuple.
    Raises SensoriumError for a keyword that is an option of the command already.
    """

    def of_recipe(*given: Any, **named: Any) -> None:
        command(recipe.name, *given, **named)

    kept = [
        p
        for p in inspect.signature(command).parameters.values()
        if p.name not in ("recipe", "overrides")
    ]
    if clash := {p.name for p in kept} & {k.name for k in recipe.model_options}:
        raise SensoriumError(
            f"{recipe.name}: the keyword {min(clash)!r} is an option of the command; rename it."
        )
    option = _multi_value_option if multiple else _recipe_option
    options = [(_names if k.type == NAMES else option)(k, "Recipe") for k in recipe.model_options]
    options += [option(k, "Training") for k in recipe.training_options]
    of_recipe.__doc__ = doc
    vars(of_recipe)["__signature__"] = inspect.Signature([*kept, *options])
    return of_recipe


def _recipe_option(keyword: Keyword, group: str) -> inspect.Parameter:
    shown = (lambda _: keyword.computed) if keyword.computed else keyword.default not in (None, "")
    about = Parameter(group=group, help=keyword.doc.rstrip("."), show_default=shown)
    return inspect.Parameter(
        keyword.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=keyword.default,
        annotation=Annotated[keyword.type, about],
    )


def _names(keyword: Keyword, group: str) -> inspect.Parameter:
    """The same, for names that are given once each: one alone is a str, several are a tuple."""

    def converted(_: Any, tokens: Sequence[Token]) -> Any:
        names = tuple(token.value for token in tokens)
        return names[0] if len(names) == 1 else names

    about = Parameter(
        group=group,
        help=keyword.doc.rstrip("."),
        negative="",
        converter=converted,
        show_default=False,
    )
    return inspect.Parameter(
        keyword.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=keyword.default,
        annotation=Annotated[NAMES, about],
    )


def _multi_value_option(keyword: Keyword, group: str) -> inspect.Parameter:
    """The same, for several values: parted by commas, unless they are words that may hold some, or given again."""
    words = keyword.type is str or str in getattr(keyword.type, "__args__", ())

    def converted(_: Any, tokens: Sequence[Token]) -> Any:
        parts = [
            t.evolve(value=part)
            for t in tokens
            for part in ([t.value] if words else t.value.split(","))
        ]
        return convert(tuple[keyword.type, ...], parts)

    default = keyword.computed or (
        str(keyword.default) if keyword.default not in (None, "") else ""
    )
    about = Parameter(
        group=group,
        help=keyword.doc.rstrip("."),
        negative="",
        converter=converted,
        show_default=(lambda _: default) if default else False,
    )
    shown = str if keyword.type is bool else keyword.type
    return inspect.Parameter(
        keyword.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=(),
        annotation=Annotated[tuple[shown, ...], about],
    )
