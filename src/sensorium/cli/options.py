"""Options that several commands share."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    from sensorium.data.dataset import Dataset

FLAG = Parameter(negative="", show_default=False)
DATA_HELP = (
    "A folder, a CSV, TSV, JSON, JSONL, Parquet or tar file, a pattern (shards/{000..004}.tar), or "
    "a bundled dataset: emoji, scenes."
)
MODEL_HELP = "A run folder, or pretrained weights: a folder, a file or a Hugging Face id."

DataArgument = Annotated[str, Parameter(help=DATA_HELP)]
OptionalDataArgument = Annotated[str | None, Parameter(help=DATA_HELP)]
ModelArgument = Annotated[str, Parameter(help=MODEL_HELP)]
RunArgument = Annotated[str, Parameter(help="A run folder.")]
PromptArgument = Annotated[
    tuple[str, ...],
    Parameter(help="Prompts: captions of images, or the beginnings of texts.", show_default=False),
]
JsonOption = Annotated[
    bool, Parameter(name="--json", negative="", show_default=False, help="Print JSON.")
]
RecipeOption = Annotated[
    str | None,
    Parameter(
        name="--recipe",
        help="The recipe of a run that was trained with your own: ./mine.py:recipe.",
    ),
]
QuantizeOption = Annotated[
    Literal["int8"] | None,
    Parameter(
        name="--quantize",
        help="Weights as int8: a quarter of the memory, and faster on a CPU.",
    ),
]
SplitOption = Annotated[
    str | None,
    Parameter(
        group="Data",
        help="Column with the split of each row, or a file that lists rows and their splits.",
    ),
]
SynonymsOption = Annotated[
    tuple[str, ...],
    FLAG,
    Parameter(
        group="Data",
        help="Synonym list for a text column (COLUMN=FILE, one comma-separated group per line), "
        "used to augment training text. Repeatable.",
    ),
]
TestDataOption = Annotated[
    str | None, Parameter(group="Data", help="A second dataset, whose rows become the test split.")
]
OutputOption = Annotated[
    Path | None,
    Parameter(group="Output", help="Run folder. Default: the next free runs/RECIPE-0001."),
]
ComparisonOutputOption = Annotated[
    Path | None,
    Parameter(
        group="Output",
        help="Folder of the runs and of comparison.md. Default: the next free runs/compare-0001.",
    ),
]
FoldsOption = Annotated[
    int,
    Parameter(
        group="Output",
        show_default=False,
        help="Cross-validation: split the training rows into this many folds (5 is usual), train "
        "on all but one and evaluate on that one, for each fold.",
    ),
]
ReferenceOption = Annotated[
    str | None,
    Parameter(
        group="Data",
        help="Dataset of the original task, to measure forgetting. Default: cosine similarity to "
        "the original embeddings.",
    ),
]
ResumeOption = Annotated[
    bool,
    FLAG,
    Parameter(
        group="Output",
        help="Resume the run in --out exactly where it stopped; more --epochs extend it.",
    ),
]
NewRowsOption = Annotated[
    bool,
    FLAG,
    Parameter(
        group="Output",
        help="With --resume: rows were added to the data; train on them, too.",
    ),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How a dataset is read, where the inferred types (`sensorium data PATH`) are wrong."""

    type: Annotated[tuple[str, ...], FLAG] = ()
    """Column type, NAME=TYPE: caption=text, price=ignore, photo=image:size=128. Repeatable."""
    group: str | None = None
    """Column whose equal values mark rows of one group, which stay in one split."""
    max_invalid_fraction: float = 0.01
    """Largest fraction of unreadable rows. Up to 9 are left out if most rows are good; 0: none."""
    source_option: Annotated[tuple[str, ...], FLAG] = ()
    """Option of a bundled dataset or file reader: n=5000, encoding=latin-1. Repeatable."""

    def open(self, path: str, *, quiet: bool = False, **overrides: Any) -> "Dataset":
        """Open a dataset, and name on stderr what is left out and not used.

        Args:
            path: folder, file or name of a bundled dataset.
            quiet: name nothing.
            **overrides: further keywords of `Dataset.open`.

        Raises:
            SensoriumError: if the data cannot be read or an option is malformed.
        """
        from sensorium.data.dataset import Dataset

        options = {
            name: _parse_value(text)
            for name, text in _split_pairs(
                "source-option", self.source_option, "NAME=VALUE", "n=5000"
            )
        }
        synonyms = _split_pairs(
            "synonyms", overrides.pop("synonyms", ()), "COLUMN=FILE", "title=words.txt"
        )
        if synonyms:
            overrides["synonyms"] = dict(synonyms)
        keywords = {
            "group": self.group,
            "types": self.column_types(),
            "max_invalid_fraction": self.max_invalid_fraction,
        }
        dataset = Dataset.open(path, **{**keywords, **overrides, **options})
        if not quiet:
            report_unused(dataset)
        return dataset

    def column_types(self) -> dict[str, str]:
        """Return the type set for each column."""
        return dict(_split_pairs("type", self.type, "NAME=TYPE", "caption=text"))


def report_unused(dataset: "Dataset") -> None:
    """Name on stderr the rows left out when a dataset was read, and what it holds unused."""
    from sensorium.cli.output import log
    from sensorium.data.bad_samples import summarize_bad_samples

    for line in summarize_bad_samples(dataset.bad_samples):
        log(f"left out: {line}")
    for note in dataset.notes:
        log(f"unused: {note}")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of an evaluation; each kind of model takes some of these."""

    text_column: Annotated[tuple[str, ...], FLAG] = ()
    """Retrieval: caption column to evaluate with, if not the one trained on. Repeatable."""
    average_captions: Annotated[bool, FLAG] = False
    """Retrieval: average the embeddings of all captions of a row instead of taking the first."""
    max_samples: int | None = None
    """Most rows per split. Default: 1000 to caption, 2000 to answer, 500 to draw, else 100000."""
    ablate_columns: Annotated[bool, FLAG] = False
    """Prediction: also evaluate with each column alone."""
    importance_repeats: int | None = None
    """Prediction: shuffles of each column to measure its importance; none for 0. Default: 5."""
    class_column: str | None = None
    """Retrieval: category column of zero-shot classification. Default: the only one."""
    templates: Annotated[tuple[str, ...], FLAG] = ()
    """Retrieval: text with {} for the name of a class, for zero-shot classification. Repeatable."""
    seed: int | None = None
    """Seed of generated images, or of the shuffles of columns. Default: 0."""
    feature_model: str | None = None
    """Captioning, text-to-image: model that embeds images and text, used to compare them."""
    blind_model: str | None = None
    """Question answering: run trained on the same questions without images."""

    def to_keywords(self, load: Callable[[str], Any]) -> dict[str, Any]:
        """Return the options that were set as keywords of `evaluate`, models loaded by `load`."""
        plain = {
            "text_column": self.text_column or None,
            "average_captions": self.average_captions or None,
            "max_samples": self.max_samples,
            "ablate_columns": self.ablate_columns or None,
            "importance_repeats": self.importance_repeats,
            "class_column": self.class_column,
            "templates": self.templates or None,
            "seed": self.seed,
        }
        models = {"feature_model": self.feature_model, "blind_model": self.blind_model}
        return {name: value for name, value in plain.items() if value is not None} | {
            name: load(source) for name, source in models.items() if source is not None
        }


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Inputs of a model and how it samples; an option that is left out has the model's default."""

    image: Annotated[tuple[Path, ...], FLAG] = ()
    """Input image: to describe, to complete or to change. Repeatable."""
    mask: Annotated[tuple[Path, ...], FLAG] = ()
    """Mask of --image (imagen): its white pixels are generated, all others stay. Repeatable."""
    audio: Annotated[tuple[Path, ...], FLAG] = ()
    """Input audio file, to transcribe. Repeatable."""
    question: Annotated[tuple[str, ...], FLAG] = ()
    """Question about an image. Repeatable."""
    n: Annotated[int | None, Parameter(name="-n")] = None
    """Number of samples per prompt. Default: 1."""
    seed: int | None = None
    """Random seed of sampling. Default: 0."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy decoding. Default: 1 for images, 0 for text."""
    top_k: int | None = None
    """Sample from the k most likely tokens only. Default: 0, all."""
    top_p: float | None = None
    """Nucleus sampling: from the likeliest tokens with this total probability. Default: 1, all."""
    num_beams: int | None = None
    """Beam search with this many beams (text). Default: 0, no beam search."""
    max_tokens: int | None = None
    """Most tokens of a text. Default: 256 of pretrained models, else 0: the model's limit."""
    guidance_scale: float | None = None
    """Classifier-free guidance scale (images); 1 is no guidance. Default: 1 (imagen, dalle2: 2)."""
    steps: int | None = None
    """Steps of the sampler (imagen, dalle2). Default: 12."""
    sampler: str | None = None
    """Sampler (imagen): dpm++, ddim, ddpm, euler or heun. Default: dpm++."""
    strength: float | None = None
    """How much of --image is replaced (imagen, without --mask), from 0 to 1. Default: 0.6."""
    upscale: Annotated[bool | None, Parameter(negative="")] = None
    """Enlarge --image by the last stage of a cascade (imagen)."""
    vary: Annotated[bool | None, Parameter(negative="")] = None
    """Make variations of --image (dalle2)."""
    blend_image: Annotated[tuple[Path, ...], FLAG] = ()
    """Second image: generate what lies between it and --image (dalle2). Repeatable."""
    source_text: Annotated[tuple[str, ...], FLAG] = ()
    """What --image shows, to be changed to what the prompt says (dalle2). Repeatable."""
    amount: float | None = None
    """How far --blend-image or --source-text moves the image (dalle2), 0 to 1. Default: 0.5."""
    prefix_tokens: int | None = None
    """Number of image tokens kept from --image; the rest is completed. Default: 0."""
    region: str | None = None
    """Region of --image to edit. Not possible with an autoregressive model such as dalle."""
    rerank: str | None = None
    """Model that embeds images and text (CLIP), to select the best of --candidates."""
    candidates: int | None = None
    """Number of images sampled per prompt for --rerank. Default: 16."""

    def to_keywords(self, text: Sequence[str]) -> dict[str, Any]:
        """Return the options that were set, and the prompts, as keywords of the verb `generate`."""
        keywords: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if value not in (None, ())
        }
        return {**keywords, **({"text": list(text)} if text else {})}


DataOptionsGroup = Annotated[DataOptions, Parameter(group="Data")]
EvalOptionsGroup = Annotated[EvalOptions, Parameter(group="Evaluation")]
SamplingOptionsGroup = Annotated[SamplingOptions, Parameter(group="Sampling")]
DEFAULT_DATA_OPTIONS = DataOptions()
DEFAULT_EVAL_OPTIONS = EvalOptions()
DEFAULT_SAMPLING_OPTIONS = SamplingOptions()


def _split_pairs(
    option: str, values: Sequence[str], form: str, example: str
) -> list[tuple[str, str]]:
    """Return (before, after) the first "=" of each value; the name may be checked by the caller."""
    pairs = []
    for value in values:
        name, equals, text = value.partition("=")
        if not (name and equals):
            raise SensoriumError(f"--{option} {value}: expected {form}, as in {example}.")
        pairs.append((name, text))
    return pairs


def _parse_value(text: str) -> Any:
    """Return JSON as a value (5000, ["en", "de"]), and anything else as a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text
