"""What each column of a table is taken for, and the reason, in words that can be checked against the data."""
import itertools
import math
import os
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from sensorium.data.cell import NUMBERS, absent, as_list, as_number, is_address
from sensorium.data.schema import MODALITIES, ROLES, Column, Role, Schema, endings, split_pair, unknown
from sensorium.data.sources import PICTURES, Table, parse_json
from sensorium.data.splits import KNOWN
from sensorium.errors import SensoriumError
from sensorium.modalities.audio import Audio
from sensorium.modalities.image import Image
from sensorium.modalities.modality import Modality
from sensorium.modalities.tags import Tags

SAMPLE = 10_000             # rows looked at in each column; what is decided is then held against every row
_LOOKED_FOR = 1000          # picture files that are looked for before a column is decided on
SECONDS = 60.0              # the longest sound of a column, unless another is asked for (--column NAME=audio:most=300)
_STEPS = 100                # of a series, that are looked at before a column is decided on
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_WRITTEN = {tuple: list, float: (int, float)}    # how JSON writes the values of settings
SEPARATORS = ("|", ";")     # that part the tags of a set in one cell
_NAMES = {                  # names by which people call such columns
    "split": {"split", "subset", "fold"},
    "group": {"group", "group_id", "concept", "concept_id", "product_id", "item_id", "sku", "patient_id", "subject_id"},
    "image": {"image", "picture", "photo", "img", "url", "filepath", "file_name", "image_path", "image_url"},
    "text": {"caption", "captions", "text", "title", "description", "sentence", "keywords", "prompt"},
    "category": {"label", "class", "category", "target"},
    "key": {"id", "index", "key", "uid", "uuid", "hash", "md5", "sha256", "column 1"}}
_DATE = re.compile(r"[12]\d{3}-[01]\d-[0-3]\d([ T]\d|$)")
_ADDRESS, _LOST = "address", "lost"     # web addresses of pictures; names of pictures of which none was found

Guess = tuple[str, str]     # kind, why


def infer(table: Table, chosen: dict[str, str | Modality], tolerance: float = 0.01) -> Schema:
    """The schema of a table. A `chosen` column is what that says (a kind, a modality); the others are guessed.

    tolerance: the share of values that may fail to fit what a column is taken for.
    Raises SensoriumError for a column that is not there, a kind that is none, or pictures that are only addresses.
    """
    chosen = {name: _said(table, name, kind) for name, kind in map(partial(_meant, table), chosen.items())}
    taken = {kind: name for name, kind in chosen.items() if kind in ("split", "group")}
    columns: dict[str, Column] = {}
    roles: dict[str, Role] = {}
    for name, values in table.columns.items():
        kind, why = (chosen[name], "as you said") if name in chosen else _guess(table, name, values, tolerance)
        if kind in ("split", "group") and taken.setdefault(str(kind), name) != name:
            kind, why = "ignore", f"the {kind} is told by {taken[str(kind)]!r}"
        if not isinstance(kind, str):
            columns[name] = Column(name, kind, why)
        elif kind in MODALITIES:
            columns[name] = Column(name, _settings(kind, values), why)
        else:
            roles[name] = Role(name, kind, why)
    return _without_pictures(Schema(columns, roles))


def _meant(table: Table, given: tuple[str, str | Modality]) -> tuple[str, str | Modality]:
    """(column, kind) of what a command line parts at the first "=", which may be in the column's name."""
    name, kind = given
    return split_pair(f"{name}={kind}", table.columns) if isinstance(kind, str) and "=" in kind else given


def _said(table: Table, name: str, kind: str | Modality) -> str | Modality:
    """What the user says a column is: a modality, a kind, or a kind with settings ("image:size=128:square=pad")."""
    if name not in table.columns:
        raise unknown(name, table.columns, f"Columns: {', '.join(table.columns)}.")
    if not isinstance(kind, str):
        return kind
    kind, *pairs = kind.split(":")
    if kind not in (*MODALITIES, *ROLES):
        raise SensoriumError(f"column {name!r}: {kind!r} is no kind; choose {', '.join((*MODALITIES, *ROLES))}. A file "
                             "of your own that adds one is named before the command: sensorium --use mine.py ...")
    if not pairs:
        return kind
    plain = MODALITIES[kind]() if kind in MODALITIES else None
    given = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        usual = getattr(plain, key, None)
        value = text if isinstance(usual, str) else parse_json(text)
        if usual is None or not isinstance(value, _WRITTEN.get(type(usual), type(usual))):
            raise SensoriumError(f"column {name!r}: {kind} cannot be set to {pair!r}; it is {plain}.")
        given[key] = value
    return MODALITIES[kind].from_json(given)


def _settings(kind: str, values: Any) -> Any:
    """The modality as it comes; but pictures that are arrays already keep their size, tags are parted as they are, and
    sounds are short.
    """
    if kind == "audio":
        return Audio(most=SECONDS)
    some = [v for v in itertools.islice(values, SAMPLE) if v is not None] if kind in ("image", "set") else []
    if kind == "set":
        return Tags(separator=max(SEPARATORS, key=lambda mark: sum(mark in v for v in some if isinstance(v, str))))
    first = next(iter(some), None)
    return Image(size=max(first.shape[:2])) if isinstance(first, np.ndarray) else MODALITIES[kind]()


def _without_pictures(schema: Schema) -> Schema:
    """Addresses and lost names of pictures are passed over where there are other pictures, not where they are all."""
    columns, roles = dict(schema.columns), dict(schema.roles)
    doubtful = [r for r in roles.values() if r.kind in (_ADDRESS, _LOST)]
    others = any(c.kind == "image" for c in columns.values())
    for role in doubtful:
        roles[role.name] = Role(role.name, "ignore", role.why)
        if role.kind == _LOST and not others:       # every row of it will be bad, and the error will show some
            columns[role.name] = Column(role.name, Image(), roles.pop(role.name).why)
        elif not others and not any(r.kind == _LOST for r in doubtful):
            raise SensoriumError(f"column {role.name!r}: {role.why}. Download the pictures and give their paths, or go "
                                 f"on without them: --column {role.name}=ignore.")
    return Schema(columns, roles)


def _guess(table: Table, name: str, values: Any, tolerance: float) -> Guess:
    for kind, told in (("split", table.split), ("group", table.group), (table.kinds.get(name, ""), name)):
        if kind and told == name:
            return kind, table.why.get(name, "said by the source")
    rows = _sampled(values)
    if not rows:
        return "ignore", "no value in any row"
    some = [values[i] for i in rows]
    guess = _pixels(some, tolerance) or _paths(name.lower(), table, rows, some)
    guess = guess or _addresses(name.lower(), some)
    for rule in (_series, _role, _captions, _numbers, _words):
        guess = guess or rule(name.lower(), some, tolerance)
    kinds = sorted({type(v).__name__ for v in some})
    kind, why = guess or ("ignore", f"values of type {', '.join(kinds[:4])} are not read")
    return kind, why + (f" ({SAMPLE:,} of {len(values):,} rows were looked at)" if len(values) > SAMPLE else "")


def _sampled(values: Any) -> list[int]:
    """Rows with a value, among at most SAMPLE evenly spaced ones."""
    n = len(values)
    rows = range(n) if n <= SAMPLE else np.linspace(0, n - 1, SAMPLE).astype(int).tolist()
    return [i for i in rows if not absent(values[i])]


# Rules, from the surest to the vaguest; `some` are the values of the sample -------------------------------------------


def _pixels(some: list[Any], tolerance: float) -> Guess | None:
    fit = sum(map(_is_picture, some))
    return ("image", f"{fit} of {len(some)} values are pictures") if _enough(fit, some, tolerance) else None


def _is_picture(v: Any) -> bool:
    if isinstance(v, np.ndarray):
        return v.ndim == 3 and v.shape[2] == 3 and v.dtype == np.uint8
    return isinstance(v, bytes) and (v.startswith(_MAGIC) or (v[:4] == b"RIFF" and v[8:12] == b"WEBP"))


def _paths(name: str, table: Table, rows: list[int], some: list[Any]) -> Guess | None:
    """Names of files, by how they end. Those of pictures are taken for such even where none is there."""
    for kind in ("image", *(kind for kind in MODALITIES if kind != "image" and endings(kind))):
        paths = {i: v for i, v in zip(rows, some, strict=True)
                 if isinstance(v, str) and v.lower().endswith(endings(kind) or ()) and not is_address(v)}
        if len(paths) < 0.5 * len(some) or name in _NAMES["text"]:
            continue
        seen = sorted({p[p.rindex("."):].lower() for p in paths.values()})
        looked = list(paths)[::-(-len(paths) // _LOOKED_FOR)]
        there = sum(os.path.isfile(table.base(i) / paths[i].replace("\\", "/")) for i in looked)
        found = f"{there} exist" if len(looked) == len(paths) else f"{there} of {len(looked)} looked for exist"
        if there or kind == "image":
            taken = kind if there else _LOST
            return taken, f"{len(paths)} of {len(some)} values end in {', '.join(seen)} and {found}"
    return None


def _addresses(name: str, some: list[Any]) -> Guess | None:
    fit = [v for v in some if is_address(v)]
    if len(fit) < 0.5 * len(some):
        return None
    pictures = sum(v.lower().split("?")[0].endswith(PICTURES) for v in fit) * 2 > len(fit) or name in _NAMES["image"]
    what = "web addresses of pictures" if pictures else "web addresses"
    return _ADDRESS if pictures else "ignore", f"{len(fit)} of {len(some)} values are {what}, and nothing is fetched"


def _role(name: str, some: list[Any], tolerance: float) -> Guess | None:
    if name not in _NAMES["split"] | _NAMES["group"] or not all(isinstance(v, str | int) for v in some):
        return None
    found = sorted({str(v) for v in some})
    if name in _NAMES["group"]:
        return "group", f"named {name!r}: rows of one value are the same thing; {len(found)} values"
    if len(found) <= 20 and any(v.strip().lower() in KNOWN for v in found):
        return "split", f"named {name!r} and holds {', '.join(found[:5])}"
    return None


def _series(name: str, some: list[Any], tolerance: float) -> Guess | None:
    fit = [v for v in map(readings, some) if v is not None]
    if not _enough(len(fit), some, tolerance):
        return None
    lengths = sorted(map(len, fit))
    return "series", f"{len(fit)} of {len(some)} values are lists of numbers, {lengths[0]} to {lengths[-1]} steps long"


def readings(v: Any) -> list[Any] | np.ndarray | None:
    """The series that a cell holds, or spells in JSON: numbers, or at each step a list of them. None if it is none."""
    v = as_list(v) if isinstance(v, str) else v
    if isinstance(v, np.ndarray):
        return v if v.ndim in (1, 2) and len(v) and v.dtype.kind in "fiu" else None
    if not isinstance(v, list) or not v:
        return None
    flat = [x for step in v[:_STEPS] for x in (step if isinstance(step, list) else [step])]
    numbers = [x for x in flat if x is not None]
    return v if numbers and all(isinstance(x, NUMBERS) and not isinstance(x, bool) for x in numbers) else None


def _captions(name: str, some: list[Any], tolerance: float) -> Guess | None:
    lists = [v if isinstance(v, list) else as_list(v) for v in some]
    sizes = [len(v) for v in lists if v is not None and all(isinstance(t, str) for t in v)]
    if _enough(len(sizes), some, tolerance):
        return "text", f"{len(sizes)} of {len(some)} values are lists of texts, {sum(sizes) / len(sizes):.1f} a row"
    return None


def _numbers(name: str, some: list[Any], tolerance: float) -> Guess | None:
    fit = [n for n in map(as_number, some) if n is not None]
    there = [n for n in fit if math.isfinite(n)]
    if not there or not _enough(len(fit), some, tolerance):
        return None
    different, whole = len(set(there)), all(n.is_integer() for n in there)
    if whole and different == len(there) > 1 and _is_key(name):
        return "ignore", f"named {name!r}, and no number is there twice: it only counts the rows"
    if whole and name in _NAMES["category"] and different <= max(20, min(1000, len(there) // 10)):
        return "category", f"named {name!r} and holds {different} different whole numbers"
    if different == 1 and len(there) > 1:
        return "ignore", f"the same number in all of {len(there)} values"
    return "number", f"{len(fit)} of {len(some)} values are numbers, {min(there):g} to {max(there):g}"


def _words(name: str, some: list[Any], tolerance: float) -> Guess | None:
    if isinstance(some[0], bool):
        return "category", "true or false"
    texts = [v for v in some if isinstance(v, str)]
    if not _enough(len(texts), some, tolerance):
        return None
    different, longest = len(set(texts)), max(map(len, texts))
    words = sum(len(v.split()) for v in texts) / len(texts)
    if all(map(_DATE.match, texts)):
        return "date", f"{len(texts)} of {len(texts)} values are dates"
    for mark in SEPARATORS:
        if tags := _tags(texts, mark):
            return "set", f"values are tags parted by {mark!r}: {tags} different ones"
    if name in _NAMES["category"] or name in _NAMES["text"]:
        kind = "category" if name in _NAMES["category"] else "text"
        return kind, f"named {name!r}; {different} different values, {words:.1f} words each"
    if different == 1 and len(texts) > 1:
        return "ignore", f"the same text in all of {len(texts)} values"
    if different * 10 <= len(texts) and longest <= 64:
        return "category", f"{different} different values among {len(texts)}, none over {longest} characters"
    if words == 1 and different == len(texts) > 1 and _is_key(name):
        return "ignore", f"named {name!r}, and no value is there twice: it only names the rows"
    return "text", f"{different} different values among {len(texts)}, {words:.1f} words each"


def _tags(texts: list[str], mark: str) -> int:
    """How many different tags there are, if the texts are sets of them: many with several, and few are new."""
    parts = [[tag.strip() for tag in text.split(mark)] for text in texts]
    found, several = {tag for tags in parts for tag in tags}, sum(len(tags) > 1 for tags in parts)
    few = len(found) * 5 <= sum(map(len, parts)) and max(map(len, found)) <= 64
    return len(found) if few and several * 10 >= len(texts) else 0


def _is_key(name: str) -> bool:
    return name in _NAMES["key"] or name.endswith("_id")


def _enough(fit: int, some: Sequence[Any], tolerance: float) -> bool:
    return fit > 0 and len(some) - fit <= tolerance * len(some)
