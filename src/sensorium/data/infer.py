"""What each column of a table is taken for, and the reason, in words that can be checked against the data."""
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from sensorium.data.schema import MODALITIES, ROLES, Column, Role, Schema, unknown
from sensorium.data.sources import PICTURES, Table, parse_json
from sensorium.data.splits import KNOWN
from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.modalities.modality import Modality

SAMPLE = 10_000             # values looked at in each column; what is decided is then checked on every row
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_GROUP = {"group", "group_id", "concept", "concept_id", "product_id", "item_id", "sku", "patient_id", "subject_id", "scene_id"}
_TEXT = {"caption", "captions", "text", "title", "description", "sentence", "keywords", "prompt"}
_CATEGORY = {"label", "class", "category", "target"}
_SPLIT = {"split", "subset", "fold"}
_IMAGE = {"image", "picture", "photo", "img", "filepath", "file_name", "filename", "image_path", "image_url"}
_MISSING = {"", "na", "n/a", "nan", "null", "none", "-"}

Guess = tuple[str, str]     # kind, why


def infer(table: Table, chosen: dict[str, str | Modality], split: str | None = None, group: str | None = None,
          tolerance: float = 0.01) -> Schema:
    """The schema of a table. `chosen` columns are what it says (a kind, or a modality with settings); the rest is guessed.

    tolerance: the share of values that may fail to fit what the column is taken for.
    Raises SensoriumError for a column that is not there, or a kind that is none.
    """
    wanted = dict(chosen) | ({split: "split"} if split else {}) | ({group: "group"} if group else {})
    for name, kind in wanted.items():
        if name not in table.columns:
            raise unknown(name, table.columns, f"Columns: {', '.join(table.columns)}.")
        if isinstance(kind, str) and kind not in (*MODALITIES, *ROLES):
            raise SensoriumError(f"column {name!r}: {kind!r} is no kind; choose from {', '.join((*MODALITIES, *ROLES))}.")
    taken = {kind: name for name, kind in wanted.items() if kind in ("split", "group")}
    columns, roles = {}, {}
    for name, values in table.columns.items():
        kind, why = (wanted[name], "chosen by you") if name in wanted else _guess(table, name, values, tolerance)
        if kind in ("split", "group") and taken.setdefault(str(kind), name) != name:
            kind, why = "ignore", f"the {kind} is told by {taken[str(kind)]!r}"
        if kind in ROLES:
            roles[name] = Role(name, str(kind), why)
        else:
            columns[name] = Column(name, _settings(kind, values) if isinstance(kind, str) else kind, why)
    return Schema(columns, roles)


def _settings(kind: str, values: Sequence[Any]) -> Modality:
    """The modality as it comes, except that pictures which are arrays already keep their size."""
    first = next((v for v in values if v is not None), None) if kind == "image" else None
    return Image(size=max(first.shape[:2])) if isinstance(first, np.ndarray) else MODALITIES[kind]()


def _guess(table: Table, name: str, values: Sequence[Any], tolerance: float) -> Guess:
    if name == table.split:
        return "split", table.why.get(name, "where the rows come from")
    if name == table.group:
        return "group", table.why.get(name, "said by the source")
    if name in table.kinds:
        return table.kinds[name], table.why.get(name, "said by the source")
    some = sample(values)
    if not some:
        return "ignore", "no value in any row"
    part = "" if len(values) <= SAMPLE else f" (of {len(values)} rows, {SAMPLE} were looked at)"
    for rule in (_split, _group, _pixels, _path, _address, _captions, _number, _mixed, _words):
        if guess := rule(name.lower(), some, tolerance):
            return guess[0], guess[1] + part
    return "ignore", f"values of type {type(some[0]).__name__} are not read"


def sample(values: Sequence[Any]) -> list[Any]:
    """The values that are there among at most SAMPLE rows, evenly spaced."""
    n = len(values)
    rows = range(n) if n <= SAMPLE else np.linspace(0, n - 1, SAMPLE).astype(int)
    return [v for v in (values[i] for i in rows) if not absent(v)]


def absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


# One rule a kind, from the surest to the vaguest. Each is given the name in lower case and the values of the sample. ------------


def _split(name: str, some: list[Any], tolerance: float) -> Guess | None:
    found = sorted({str(v) for v in some}) if name in _SPLIT else []
    if found and len(found) <= 20 and any(v.strip().lower() in KNOWN for v in found):
        return "split", f"named {name!r} and holds {', '.join(found[:5])}"
    return None


def _group(name: str, some: list[Any], tolerance: float) -> Guess | None:
    if name in _GROUP and all(isinstance(v, str | int) for v in some):
        return "group", f"named {name!r}: rows with one value are the same thing; {len(set(some))} values"
    return None


def _pixels(name: str, some: list[Any], tolerance: float) -> Guess | None:
    fit = sum(map(_is_pixels, some))
    if _enough(fit, some, tolerance) and isinstance(some[0], bytes | np.ndarray):
        return "image", f"{fit} of {len(some)} values are pictures"
    return None


def _is_pixels(v: Any) -> bool:
    if isinstance(v, np.ndarray):
        return v.ndim == 3 and v.shape[2] == 3 and v.dtype == np.uint8
    return isinstance(v, bytes) and (v.startswith(_MAGIC) or (v[:4] == b"RIFF" and v[8:12] == b"WEBP"))


def _path(name: str, some: list[Any], tolerance: float) -> Guess | None:
    paths = [v for v in some if isinstance(v, str) and v.lower().endswith(PICTURES) and not is_address(v)]
    if len(paths) < 0.5 * len(some):
        return None
    endings = sorted({p[p.rindex("."):].lower() for p in paths})
    return "image", f"{len(paths)} of {len(some)} values end in {', '.join(endings)}"


def _address(name: str, some: list[Any], tolerance: float) -> Guess | None:
    """Web addresses are left where they are: nothing is fetched."""
    fit = [v for v in some if is_address(v)]
    if len(fit) < 0.5 * len(some):
        return None
    pictures = name in _IMAGE or sum(v.lower().split("?")[0].endswith(PICTURES) for v in fit) * 2 > len(fit)
    return "ignore", f"{len(fit)} of {len(some)} values are web addresses{' of pictures' if pictures else ''}; nothing is fetched"


def is_address(v: Any) -> bool:
    return isinstance(v, str) and v[:8].lower().startswith(("http://", "https://", "s3://", "gs://", "ftp://"))


def _captions(name: str, some: list[Any], tolerance: float) -> Guess | None:
    lists = [v if isinstance(v, list) else as_list(v) for v in some]
    fit = [v for v in lists if v is not None and all(isinstance(t, str) for t in v)]
    if _enough(len(fit), some, tolerance):
        return "text", f"{len(fit)} of {len(some)} values are lists of texts, {sum(map(len, fit)) / len(fit):.1f} a row on average"
    return None


def as_list(v: Any) -> list[Any] | None:
    """The list that a cell of a CSV file spells in JSON."""
    if not (isinstance(v, str) and v.lstrip().startswith("[") and v.rstrip().endswith("]")):
        return None
    value = parse_json(v)
    return value if isinstance(value, list) else None


def _number(name: str, some: list[Any], tolerance: float) -> Guess | None:
    fit = [n for n in map(as_number, some) if n is not None]
    if not _enough(len(fit), some, tolerance):
        return None
    found, whole = set(fit), all(math.isnan(n) or n.is_integer() for n in fit)
    if whole and (name in ("id", "index", "key", "column 1") or name.endswith("_id")) and len(found) == len(fit):
        return "ignore", f"{len(fit)} whole numbers, none twice, and named {name!r}: it only numbers the rows"
    if whole and name in _CATEGORY and len(found) <= 1000:
        return "category", f"named {name!r} and holds {len(found)} different whole numbers"
    if len(found) == 1 and len(fit) > 1:
        return "ignore", f"the same number in all of {len(fit)} values"
    return "number", f"{len(fit)} of {len(some)} values are numbers, {min(found):g} to {max(found):g}"


def as_number(v: Any) -> float | None:
    """The number a cell spells, NaN for 'n/a' and its like; None if it spells none. '007' is a code, not a number."""
    if isinstance(v, str):
        v = v.strip()
        if v.lower() in _MISSING:
            return math.nan
        digits = v.lstrip("+-")
        if not digits[:1] in "0123456789." or "_" in v or (digits[0] == "0" and digits[1:2].isdigit()):
            return None
    elif isinstance(v, bool) or not isinstance(v, int | float | np.number):
        return None
    try:
        return float(v)
    except (ValueError, OverflowError):
        return None


def _mixed(name: str, some: list[Any], tolerance: float) -> Guess | None:
    if isinstance(some[0], bool):
        return "category", "true or false"
    if not _enough(sum(isinstance(v, str) for v in some), some, tolerance):
        kinds = sorted({type(v).__name__ for v in some})
        return "ignore", f"values of type {', '.join(kinds[:4])} are not read"
    return None


def _words(name: str, some: list[Any], tolerance: float) -> Guess | None:
    some = [v for v in some if isinstance(v, str)]
    found, longest = set(some), max(map(len, some))
    words = sum(len(v.split()) for v in some) / len(some)
    if name in _CATEGORY:
        return "category", f"named {name!r}; {len(found)} different values"
    if name in _TEXT:
        return "text", f"named {name!r}; {words:.1f} words a value"
    if len(found) == 1 and len(some) > 1:
        return "ignore", f"the same text in all of {len(some)} values"
    if len(found) * 10 <= len(some) and longest <= 64:
        return "category", f"{len(found)} different values among {len(some)}, none longer than {longest} characters"
    if words == 1 and len(found) == len(some) and (name in ("id", "key", "uid", "uuid", "hash", "md5", "sha256") or name.endswith("_id")):
        return "ignore", f"{len(some)} single words, none twice, and named {name!r}: it only names the rows"
    return "text", f"{len(found)} different values among {len(some)}, {words:.1f} words each"


def _enough(fit: int, some: Iterable[Any], tolerance: float) -> bool:
    n = len(list(some))
    return fit > 0 and n - fit <= tolerance * n
