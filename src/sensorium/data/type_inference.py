"""What each column of a table is taken for, and the reason, in words that can be checked against the data."""

import itertools
import math
import os
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from sensorium.data.cell_parsing import NUMBER_TYPES, is_missing, is_url, parse_list, parse_number
from sensorium.data.schema import (
    MODALITIES,
    ROLES,
    Column,
    Role,
    Schema,
    extensions,
    split_pair,
    unknown_column_error,
)
from sensorium.data.splits import KNOWN_SPLITS
from sensorium.data.tables import IMAGE_EXTENSIONS, Table, parse_json
from sensorium.errors import SensoriumError
from sensorium.modalities.audio import Audio
from sensorium.modalities.base import Modality
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel

MAX_SAMPLED_ROWS = (
    10_000  # rows looked at in each column; what is decided is then held against every row
)
_MAX_CHECKED_PATHS = 1000  # picture files that are looked for before a column is decided on
MAX_AUDIO_SECONDS = 60.0  # the longest sound of a column, unless another is asked for (--column NAME=audio:most=300)
_MAX_CHECKED_STEPS = 100  # of a series, that are looked at before a column is decided on
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_JSON_TYPES = {tuple: list, float: (int, float)}  # how JSON writes the values of settings
TAG_SEPARATORS = ("|", ";")  # that part the tags of a set in one cell
_COMMON_NAMES = {  # names by which people call such columns
    "split": {"split", "subset", "fold"},
    "group": {
        "group",
        "group_id",
        "concept",
        "concept_id",
        "product_id",
        "item_id",
        "sku",
        "patient_id",
        "subject_id",
    },
    "image": {
        "image",
        "picture",
        "photo",
        "img",
        "url",
        "filepath",
        "file_name",
        "image_path",
        "image_url",
    },
    "text": {
        "caption",
        "captions",
        "text",
        "title",
        "description",
        "sentence",
        "keywords",
        "prompt",
    },
    "category": {"label", "class", "category", "target"},
    "key": {"id", "index", "key", "uid", "uuid", "hash", "md5", "sha256", "column 1"},
}
_DATE_PATTERN = re.compile(r"[12]\d{3}-[01]\d-[0-3]\d([ T]\d|$)")
_IMAGE_URL, _MISSING_IMAGE = (
    "address",
    "lost",
)  # web addresses of pictures; names of pictures of which none was found

InferredType = tuple[str, str]  # kind, why


def infer_schema(
    table: Table, types: dict[str, str | Modality], max_invalid_fraction: float = 0.01
) -> Schema:
    """The schema of a table. A `chosen` column is what that says (a kind, a modality); the others are guessed.

    max_invalid_fraction: the share of values that may fail to fit what a column is taken for.
    Raises SensoriumError for a column that is not there, a kind that is none, or pictures that are only addresses.
    """
    types = {
        name: _parse_type(table, name, kind)
        for name, kind in map(partial(_meant, table), types.items())
    }
    taken = {kind: name for name, kind in types.items() if kind in ("split", "group")}
    columns: dict[str, Column] = {}
    roles: dict[str, Role] = {}
    for name, values in table.columns.items():
        kind, why = (
            (types[name], "as you said")
            if name in types
            else _infer_type(table, name, values, max_invalid_fraction)
        )
        if kind in ("split", "group") and taken.setdefault(str(kind), name) != name:
            kind, why = "ignore", f"the {kind} is told by {taken[str(kind)]!r}"
        if not isinstance(kind, str):
            columns[name] = Column(name, kind, why)
        elif kind in MODALITIES:
            columns[name] = Column(name, _default_modality(kind, values), why)
        else:
            roles[name] = Role(name, kind, why)
    return _drop_unusable_images(Schema(columns, roles))


def _meant(table: Table, given: tuple[str, str | Modality]) -> tuple[str, str | Modality]:
    """(column, kind) of what a command line parts at the first "=", which may be in the column's name."""
    name, kind = given
    return (
        split_pair(f"{name}={kind}", table.columns)
        if isinstance(kind, str) and "=" in kind
        else given
    )


def _parse_type(table: Table, name: str, kind: str | Modality) -> str | Modality:
    """What the user says a column is: a modality, a kind, or a kind with settings ("image:size=128:square=pad")."""
    if name not in table.columns:
        raise unknown_column_error(name, table.columns, f"Columns: {', '.join(table.columns)}.")
    if not isinstance(kind, str):
        return kind
    kind, *pairs = kind.split(":")
    if kind not in (*MODALITIES, *ROLES):
        raise SensoriumError(
            f"column {name!r}: {kind!r} is no kind; choose {', '.join((*MODALITIES, *ROLES))}. A file "
            "of your own that adds one is named before the command: sensorium --use mine.py ..."
        )
    if not pairs:
        return kind
    plain = MODALITIES[kind]() if kind in MODALITIES else None
    given = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        usual = getattr(plain, key, None)
        value = text if isinstance(usual, str) else parse_json(text)
        if usual is None or not isinstance(value, _JSON_TYPES.get(type(usual), type(usual))):
            raise SensoriumError(
                f"column {name!r}: {kind} cannot be set to {pair!r}; it is {plain}."
            )
        given[key] = value
    return MODALITIES[kind].from_json(given)


def _default_modality(kind: str, values: Any) -> Any:
    """The modality as it comes; but pictures that are arrays already keep their size, tags are parted as they are, and
    sounds are short.
    """
    if kind == "audio":
        return Audio(max_seconds=MAX_AUDIO_SECONDS)
    some = (
        [v for v in itertools.islice(values, MAX_SAMPLED_ROWS) if v is not None]
        if kind in ("image", "multilabel")
        else []
    )
    if kind == "multilabel":
        return Multilabel(
            separator=max(
                TAG_SEPARATORS, key=lambda mark: sum(mark in v for v in some if isinstance(v, str))
            )
        )
    first = next(iter(some), None)
    return Image(size=max(first.shape[:2])) if isinstance(first, np.ndarray) else MODALITIES[kind]()


def _drop_unusable_images(schema: Schema) -> Schema:
    """Addresses and lost names of pictures are passed over where there are other pictures, not where they are all."""
    columns, roles = dict(schema.columns), dict(schema.roles)
    doubtful = [r for r in roles.values() if r.kind in (_IMAGE_URL, _MISSING_IMAGE)]
    others = any(c.kind == "image" for c in columns.values())
    for role in doubtful:
        roles[role.name] = Role(role.name, "ignore", role.reason)
        if (
            role.kind == _MISSING_IMAGE and not others
        ):  # every row of it will be bad, and the error will show some
            columns[role.name] = Column(role.name, Image(), roles.pop(role.name).reason)
        elif not others and not any(r.kind == _MISSING_IMAGE for r in doubtful):
            raise SensoriumError(
                f"column {role.name!r}: {role.reason}. Download the pictures and give their paths, or go "
                f"on without them: --column {role.name}=ignore."
            )
    return Schema(columns, roles)


def _infer_type(table: Table, name: str, values: Any, max_invalid_fraction: float) -> InferredType:
    for kind, told in (
        ("split", table.split_column),
        ("group", table.group_column),
        (table.kinds.get(name, ""), name),
    ):
        if kind and told == name:
            return kind, table.reasons.get(name, "said by the source")
    rows = _sample_rows(values)
    if not rows:
        return "ignore", "no value in any row"
    some = [values[i] for i in rows]
    guess = _infer_pixels(some, max_invalid_fraction) or _infer_paths(
        name.lower(), table, rows, some
    )
    guess = guess or _infer_urls(name.lower(), some)
    for rule in (_infer_series, _infer_role, _infer_captions, _infer_numeric, _infer_text):
        guess = guess or rule(name.lower(), some, max_invalid_fraction)
    kinds = sorted({type(v).__name__ for v in some})
    kind, why = guess or ("ignore", f"values of type {', '.join(kinds[:4])} are not read")
    return kind, why + (
        f" ({MAX_SAMPLED_ROWS:,} of {len(values):,} rows were looked at)"
        if len(values) > MAX_SAMPLED_ROWS
        else ""
    )


def _sample_rows(values: Any) -> list[int]:
    """Rows with a value, among at most SAMPLE evenly spaced ones."""
    n = len(values)
    rows = (
        range(n)
        if n <= MAX_SAMPLED_ROWS
        else np.linspace(0, n - 1, MAX_SAMPLED_ROWS).astype(int).tolist()
    )
    return [i for i in rows if not is_missing(values[i])]


# Rules, from the surest to the vaguest; `some` are the values of the sample -------------------------------------------


def _infer_pixels(sample: list[Any], max_invalid_fraction: float) -> InferredType | None:
    fit = sum(map(_is_image, sample))
    return (
        ("image", f"{fit} of {len(sample)} values are pictures")
        if _is_within_tolerance(fit, sample, max_invalid_fraction)
        else None
    )


def _is_image(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 3 and value.shape[2] == 3 and value.dtype == np.uint8
    return isinstance(value, bytes) and (
        value.startswith(_IMAGE_MAGIC) or (value[:4] == b"RIFF" and value[8:12] == b"WEBP")
    )


def _infer_paths(
    name: str, table: Table, rows: list[int], sample: list[Any]
) -> InferredType | None:
    """Names of files, by how they end. Those of pictures are taken for such even where none is there."""
    for kind in ("image", *(kind for kind in MODALITIES if kind != "image" and extensions(kind))):
        paths = {
            i: v
            for i, v in zip(rows, sample, strict=True)
            if isinstance(v, str) and v.lower().endswith(extensions(kind) or ()) and not is_url(v)
        }
        if len(paths) < 0.5 * len(sample) or name in _COMMON_NAMES["text"]:
            continue
        seen = sorted({p[p.rindex(".") :].lower() for p in paths.values()})
        looked = list(paths)[:: -(-len(paths) // _MAX_CHECKED_PATHS)]
        there = sum(
            os.path.isfile(table.base_folder(i) / paths[i].replace("\\", "/")) for i in looked
        )
        found = (
            f"{there} exist"
            if len(looked) == len(paths)
            else f"{there} of {len(looked)} looked for exist"
        )
        if there or kind == "image":
            taken = kind if there else _MISSING_IMAGE
            return (
                taken,
                f"{len(paths)} of {len(sample)} values end in {', '.join(seen)} and {found}",
            )
    return None


def _infer_urls(name: str, sample: list[Any]) -> InferredType | None:
    fit = [v for v in sample if is_url(v)]
    if len(fit) < 0.5 * len(sample):
        return None
    pictures = (
        sum(v.lower().split("?")[0].endswith(IMAGE_EXTENSIONS) for v in fit) * 2 > len(fit)
        or name in _COMMON_NAMES["image"]
    )
    what = "web addresses of pictures" if pictures else "web addresses"
    return (
        _IMAGE_URL if pictures else "ignore",
        f"{len(fit)} of {len(sample)} values are {what}, and nothing is fetched",
    )


def _infer_role(name: str, sample: list[Any], max_invalid_fraction: float) -> InferredType | None:
    if name not in _COMMON_NAMES["split"] | _COMMON_NAMES["group"] or not all(
        isinstance(v, str | int) for v in sample
    ):
        return None
    found = sorted({str(v) for v in sample})
    if name in _COMMON_NAMES["group"]:
        return "group", f"named {name!r}: rows of one value are the same thing; {len(found)} values"
    if len(found) <= 20 and any(v.strip().lower() in KNOWN_SPLITS for v in found):
        return "split", f"named {name!r} and holds {', '.join(found[:5])}"
    return None


def _infer_series(name: str, sample: list[Any], max_invalid_fraction: float) -> InferredType | None:
    fit = [v for v in map(parse_series, sample) if v is not None]
    if not _is_within_tolerance(len(fit), sample, max_invalid_fraction):
        return None
    lengths = sorted(map(len, fit))
    return (
        "series",
        f"{len(fit)} of {len(sample)} values are lists of numbers, {lengths[0]} to {lengths[-1]} steps long",
    )


def parse_series(value: Any) -> list[Any] | np.ndarray | None:
    """The series that a cell holds, or spells in JSON: numbers, or at each step a list of them. None if it is none."""
    value = parse_list(value) if isinstance(value, str) else value
    if isinstance(value, np.ndarray):
        return value if value.ndim in (1, 2) and len(value) and value.dtype.kind in "fiu" else None
    if not isinstance(value, list) or not value:
        return None
    flat = [
        x
        for step in value[:_MAX_CHECKED_STEPS]
        for x in (step if isinstance(step, list) else [step])
    ]
    numbers = [x for x in flat if x is not None]
    return (
        value
        if numbers and all(isinstance(x, NUMBER_TYPES) and not isinstance(x, bool) for x in numbers)
        else None
    )


def _infer_captions(
    name: str, sample: list[Any], max_invalid_fraction: float
) -> InferredType | None:
    lists = [v if isinstance(v, list) else parse_list(v) for v in sample]
    sizes = [len(v) for v in lists if v is not None and all(isinstance(t, str) for t in v)]
    if _is_within_tolerance(len(sizes), sample, max_invalid_fraction):
        return (
            "text",
            f"{len(sizes)} of {len(sample)} values are lists of texts, {sum(sizes) / len(sizes):.1f} a row",
        )
    return None


def _infer_numeric(
    name: str, sample: list[Any], max_invalid_fraction: float
) -> InferredType | None:
    fit = [n for n in map(parse_number, sample) if n is not None]
    there = [n for n in fit if math.isfinite(n)]
    if not there or not _is_within_tolerance(len(fit), sample, max_invalid_fraction):
        return None
    different, whole = len(set(there)), all(n.is_integer() for n in there)
    if whole and different == len(there) > 1 and _is_id_name(name):
        return "ignore", f"named {name!r}, and no number is there twice: it only counts the rows"
    if (
        whole
        and name in _COMMON_NAMES["category"]
        and different <= max(20, min(1000, len(there) // 10))
    ):
        return "category", f"named {name!r} and holds {different} different whole numbers"
    if different == 1 and len(there) > 1:
        return "ignore", f"the same number in all of {len(there)} values"
    return (
        "numeric",
        f"{len(fit)} of {len(sample)} values are numbers, {min(there):g} to {max(there):g}",
    )


def _infer_text(name: str, sample: list[Any], max_invalid_fraction: float) -> InferredType | None:
    if isinstance(sample[0], bool):
        return "category", "true or false"
    texts = [v for v in sample if isinstance(v, str)]
    if not _is_within_tolerance(len(texts), sample, max_invalid_fraction):
        return None
    different, longest = len(set(texts)), max(map(len, texts))
    words = sum(len(v.split()) for v in texts) / len(texts)
    if all(map(_DATE_PATTERN.match, texts)):
        return "datetime", f"{len(texts)} of {len(texts)} values are dates"
    for mark in TAG_SEPARATORS:
        if tags := _count_tags(texts, mark):
            return "multilabel", f"values are tags parted by {mark!r}: {tags} different ones"
    if name in _COMMON_NAMES["category"] or name in _COMMON_NAMES["text"]:
        kind = "category" if name in _COMMON_NAMES["category"] else "text"
        return kind, f"named {name!r}; {different} different values, {words:.1f} words each"
    if different == 1 and len(texts) > 1:
        return "ignore", f"the same text in all of {len(texts)} values"
    if different * 10 <= len(texts) and longest <= 64:
        return (
            "category",
            f"{different} different values among {len(texts)}, none over {longest} characters",
        )
    if words == 1 and different == len(texts) > 1 and _is_id_name(name):
        return "ignore", f"named {name!r}, and no value is there twice: it only names the rows"
    return "text", f"{different} different values among {len(texts)}, {words:.1f} words each"


def _count_tags(texts: list[str], separator: str) -> int:
    """How many different tags there are, if the texts are sets of them: many with several, and few are new."""
    parts = [[tag.strip() for tag in text.split(separator)] for text in texts]
    found, several = {tag for tags in parts for tag in tags}, sum(len(tags) > 1 for tags in parts)
    few = len(found) * 5 <= sum(map(len, parts)) and max(map(len, found)) <= 64
    return len(found) if few and several * 10 >= len(texts) else 0


def _is_id_name(name: str) -> bool:
    return name in _COMMON_NAMES["key"] or name.endswith("_id")


def _is_within_tolerance(num_fit: int, sample: Sequence[Any], max_invalid_fraction: float) -> bool:
    return num_fit > 0 and len(sample) - num_fit <= max_invalid_fraction * len(sample)
