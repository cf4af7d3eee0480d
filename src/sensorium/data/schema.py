"""What each column is: the modality with its settings, why it was taken for that, and which columns stand aside."""
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from sensorium import durable
from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.modalities.modality import Modality
from sensorium.modalities.table import Category, Number
from sensorium.modalities.text import Text

VERSION = 1
MODALITIES: dict[str, type[Image] | type[Text] | type[Number] | type[Category]] = {
    m.kind: m for m in (Image, Text, Number, Category)}
ROLES = ("split", "group", "ignore")
_USUAL = {"image": ("image", "picture", "photo", "img", "file_name", "filepath"),
          "text": ("caption", "captions", "text", "title", "description"), "category": ("label", "class", "category")}


class Rows(Protocol):
    """What a schema needs of a data set to learn its settings."""

    def raw(self, column: str, rows: Sequence[int] | np.ndarray) -> list[Any]: ...


@dataclass(frozen=True)
class Column:
    """A column that a model may take or give."""

    name: str
    modality: Modality
    why: str = ""

    @property
    def kind(self) -> str:
        return self.modality.kind


@dataclass(frozen=True)
class Role:
    """A column that says something about the rows (split, group), or that nobody reads (ignore)."""

    name: str
    kind: str
    why: str = ""


@dataclass(frozen=True)
class Schema:
    """Column name → modality with its settings; `roles` holds the columns that are no model's business."""

    columns: dict[str, Column]
    roles: dict[str, Role] = field(default_factory=dict)

    def pick(self, kind: str, name: str | None = None) -> str:
        """The column of that kind called `name` ('caption,caption_de': several text columns read as one).

        Without a name: the only one of its kind, or else the one with a usual name (image, photo; caption, text, title).
        Raises SensoriumError, listing what there is, where the name is wrong or several would do.
        """
        if name is not None:
            for part in name.split(","):
                self._check(kind, part)
            return name
        found = [c.name for c in self.columns.values() if c.kind == kind]
        usual = [c for u in _USUAL.get(kind, ()) for c in found if c.lower() == u]
        if len(found) == 1 or usual:
            return usual[0] if usual else found[0]
        if found:
            raise SensoriumError(f"which {kind} column? There are {', '.join(found)}: name one.")
        raise SensoriumError(f"there is no {kind} column. {self._listed()}")

    def _check(self, kind: str, name: str) -> None:
        if name not in self.columns:
            raise unknown(name, [*self.columns, *self.roles], self._listed())
        if (found := self.columns[name].kind) != kind:
            raise SensoriumError(f"the column {name!r} is {found}, not {kind} ({self.columns[name].why}). {self._listed()}")

    def _listed(self) -> str:
        there = ", ".join(f"{c.name} ({c.kind})" for c in (*self.columns.values(), *self.roles.values()))
        return f"Columns: {there or 'none'}. What a column is taken for can be set: columns={{'name': 'image'}}."

    def role(self, kind: str) -> str | None:
        """The column that has this role."""
        return next((r.name for r in self.roles.values() if r.kind == kind), None)

    def fit(self, dataset: Rows, rows: Sequence[int] | np.ndarray) -> "Schema":
        """A copy with everything learned that must be, from `rows` alone; all text columns share one tokenizer."""
        def values(name: str) -> Iterator[Any]:
            return (v for v in dataset.raw(name, rows) if v is not None)

        texts = {name: c.modality for name, c in self.columns.items() if isinstance(c.modality, Text)}
        fitted: dict[str, Modality] = {}
        if texts:
            first = next((t for t in texts.values() if t.tokenizer), next(iter(texts.values())))
            shared = first.fit(v for name in texts for v in values(name))
            for name, text in texts.items():
                fitted[name] = replace(text, tokenizer=shared.tokenizer, vocab_size=shared.vocab_size)
        for name, c in self.columns.items():
            if name not in texts:
                fitted[name] = c.modality.fit(values(name))
        return replace(self, columns={name: replace(c, modality=fitted[name]) for name, c in self.columns.items()})

    def save(self, folder: str | Path) -> None:
        """Write schema.json, and tokenizer.json where there is a tokenizer, durably."""
        folder, tokenizer = Path(folder), self._tokenizer()
        if tokenizer:
            durable.write(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
        durable.write_json(folder / "schema.json", {
            "version": VERSION, "tokenizer": tokenizer is not None,
            "columns": {c.name: {"kind": c.kind, "why": c.why, "settings": c.modality.to_json()} for c in self.columns.values()},
            "roles": {r.name: {"kind": r.kind, "why": r.why} for r in self.roles.values()}})

    def _tokenizer(self) -> Tokenizer | None:
        found = [c.modality.tokenizer for c in self.columns.values() if isinstance(c.modality, Text) and c.modality.tokenizer]
        if any(t is not found[0] for t in found):
            raise SensoriumError("the text columns have different tokenizers; a run keeps one. Use Schema.fit, which shares it.")
        return found[0] if found else None

    @classmethod
    def load(cls, folder: str | Path) -> "Schema":
        """Read what `save` wrote. Raises SensoriumError for a file of another version or with anything unknown in it."""
        path = Path(folder) / "schema.json"
        given = _closed(path, "schema", _read_json(path), {"version", "tokenizer", "columns", "roles"}, version=True)
        tokenizer = Tokenizer.from_str(json.dumps(_read_json(path.with_name("tokenizer.json")))) if given["tokenizer"] else None
        columns, roles = {}, {}
        for name, c in _object(path, "columns", given["columns"]).items():
            c = _closed(path, f"column {name!r}", c, {"kind", "why", "settings"})
            modality = MODALITIES[_known(path, c["kind"], MODALITIES)].from_json(_object(path, "settings", c["settings"]))
            if isinstance(modality, Text):
                modality = replace(modality, tokenizer=tokenizer)
            columns[name] = Column(name, modality, str(c["why"]))
        for name, r in _object(path, "roles", given["roles"]).items():
            r = _closed(path, f"column {name!r}", r, {"kind", "why"})
            roles[name] = Role(name, _known(path, r["kind"], ROLES), str(r["why"]))
        return cls(columns, roles)


def unknown(name: str, known: Iterable[str], more: str = "") -> SensoriumError:
    """There is no such column; the nearest name is offered."""
    near = get_close_matches(name, list(known), 1)
    return SensoriumError(f"there is no column {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} {more}".strip())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise SensoriumError(f"could not read {path}: {e}. It is written with every run; restore it or train again.") from e


def _object(path: Path, what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SensoriumError(f"{path}: {what} should be a JSON object, found {str(value)[:40]!r}.")
    return value


def _closed(path: Path, what: str, value: Any, keys: set[str], version: bool = False) -> dict[str, Any]:
    value = _object(path, what, value)
    if version and value.get("version") != VERSION:
        raise SensoriumError(f"{path} is of version {value.get('version')!r}; this Sensorium reads version {VERSION}. "
                             "Use the Sensorium that wrote it.")
    if value.keys() != keys:
        wrong = sorted(value.keys() ^ keys)[0]
        raise SensoriumError(f"{path}: {what} has {'an unknown' if wrong in value else 'no'} key {wrong!r}. "
                             "The file was written by another version or changed by hand.")
    return value


def _known(path: Path, kind: Any, kinds: Iterable[str]) -> str:
    if kind not in kinds:
        raise SensoriumError(f"{path}: {kind!r} is no kind of column; known: {', '.join(kinds)}.")
    return kind
