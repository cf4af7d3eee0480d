"""What each column is: the modality with its settings, why it was taken for that, and which columns stand aside."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tokenizers import Tokenizer

from sensorium.data.tables import IMAGE_EXTENSIONS
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.modalities.audio import Audio
from sensorium.modalities.base import Modality
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.series import Series
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.modalities.text import Text
from sensorium.nn.tokens import ColumnKey, column_key, column_names

SCHEMA_VERSION = 1
MODALITIES: dict[str, Any] = {
    m.kind: m
    for m in (Image, Text, Numeric, Category, Ordinal, Datetime, Multilabel, Series, Audio)
}
ROLES = ("split", "group", "ignore")
_COMMON_NAMES = {
    "image": ("image", "picture", "photo", "img", "file_name", "filepath"),
    "text": ("caption", "captions", "text", "title", "description"),
    "category": ("label", "class", "category"),
}


@runtime_checkable
class RowSource(Protocol):
    """What a schema needs of a data set to learn its settings."""

    def raw(self, column: str, rows: Sequence[int] | np.ndarray) -> list[Any]: ...


def extensions(kind: str) -> tuple[str, ...] | None:
    """How the names of files end that hold a value of this kind each; None for values that are never in files."""
    return (
        IMAGE_EXTENSIONS if kind == "image" else getattr(MODALITIES.get(kind), "extensions", None)
    )


@dataclass(frozen=True)
class Column:
    """A column that a model may take or give."""

    name: str
    modality: Modality
    reason: str = ""

    @property
    def kind(self) -> str:
        return self.modality.kind


@dataclass(frozen=True)
class Role:
    """A column that says something about the rows (split, group), or that nobody reads (ignore)."""

    name: str
    kind: str
    reason: str = ""


@dataclass(frozen=True)
class Schema:
    """Column name → modality with its settings; `roles` holds the columns that are no model's business."""

    columns: dict[str, Column]
    roles: dict[str, Role] = field(default_factory=dict)

    def __getitem__(self, key: ColumnKey) -> Modality:
        """The settings of a column; of several text columns read as one, those of the first."""
        return self.columns[column_names(key)[0]].modality

    def texts(self, names: str | Sequence[str] | None = None) -> ColumnKey:
        """The text column of that name, several that are read as one, or, as `pick` has it, the usual one."""
        if not names:
            return self.resolve_column("text")
        for name in column_names(key := column_key(names)):
            self.resolve_column("text", name)
        return key

    def resolve_column(self, kind: str, name: str | None = None) -> str:
        """The column of that kind called `name`.

        Without a name: the one with a usual name (image, photo; caption, title), or else the only one of its kind.
        Raises SensoriumError, listing what there is, where the name is wrong or several would do.
        """
        if name is not None:
            self._check_kind(kind, name)
            return name
        found = [c.name for c in self.columns.values() if c.kind == kind]
        usual = [c for u in _COMMON_NAMES.get(kind, ()) for c in found if c.lower() == u]
        if len(found) == 1 or usual:
            return usual[0] if usual else found[0]
        if found:
            raise SensoriumError(f"which {kind} column? There are {', '.join(found)}: name one.")
        raise SensoriumError(f"there is no {kind} column. {self._describe_columns()}")

    def get_column(self, name: str) -> Column:
        """The column of that name. Raises SensoriumError, offering the nearest, where there is none."""
        if role := self.roles.get(name):
            raise SensoriumError(
                f"no model reads the column {name!r} ({role.kind}: {role.reason}). {self._describe_columns()}"
            )
        if name not in self.columns:
            several = [part.strip() for part in name.split(",")]
            hint = (
                f"Several are named each by itself, as in {several}. "
                if {*several} <= {*self.columns}
                else ""
            )
            raise unknown_column_error(
                name, [*self.columns, *self.roles], hint + self._describe_columns()
            )
        return self.columns[name]

    def _check_kind(self, kind: str, name: str) -> None:
        if (found := self.get_column(name).kind) != kind:
            why = self.columns[name].reason
            raise SensoriumError(
                f"the column {name!r} is {found}, not {kind}: {why}. {self._describe_columns()}"
            )

    def _describe_columns(self) -> str:
        there = ", ".join(
            f"{c.name} ({c.kind})" for c in (*self.columns.values(), *self.roles.values())
        )
        return f"Columns: {there or 'none'}. What a column is taken for can be set: columns={{'name': 'image'}}."

    def find_role(self, kind: str) -> str | None:
        """The column that has this role."""
        return next((r.name for r in self.roles.values() if r.kind == kind), None)

    def fit(
        self,
        dataset: RowSource,
        rows: Sequence[int] | np.ndarray,
        columns: Iterable[ColumnKey] | None = None,
        column_settings: Mapping[ColumnKey, Modality] | None = None,
    ) -> Schema:
        """A copy with everything learned that must be, from `rows` alone; all text columns share one tokenizer.

        columns: the columns that a model reads (default: all). The others teach nothing. given: settings of columns that
        are not learned but taken as they are, because the weights that read them were trained with these.
        """
        if column_settings:
            return (
                self.with_settings(column_settings)
                .fit(dataset, rows, columns)
                .with_settings(column_settings)
            )
        known = (
            set(self.columns)
            if columns is None
            else {part for key in columns for part in column_names(key)}
        )

        def values(name: str) -> Iterator[Any]:
            return (v for v in dataset.raw(name, rows) if v is not None)

        texts: dict[str, Text] = {
            n: c.modality for n, c in self.columns.items() if isinstance(c.modality, Text)
        }
        fitted: dict[str, Modality] = {}
        if texts:
            first = next((t for t in texts.values() if t.tokenizer), next(iter(texts.values())))
            shared = first.fit(v for name in texts if name in known for v in values(name))
            fitted |= {
                name: replace(text, tokenizer=shared.tokenizer, vocab_size=shared.vocab_size)
                for name, text in texts.items()
            }
        for name, c in self.columns.items():
            if name not in texts:
                fitted[name] = _fit_column(c, values(name)) if name in known else c.modality
        return replace(
            self,
            columns={name: replace(c, modality=fitted[name]) for name, c in self.columns.items()},
        )

    def with_settings(self, column_settings: Mapping[ColumnKey, Modality]) -> Schema:
        """A copy in which these columns have these settings."""
        parts = {
            part: settings
            for key, settings in column_settings.items()
            for part in column_names(key)
        }
        return replace(
            self,
            columns={
                name: replace(c, modality=parts.get(name, c.modality))
                for name, c in self.columns.items()
            },
        )

    def save(self, folder: str | Path) -> None:
        """Write schema.json, and tokenizer.json where there is a tokenizer, durably."""
        folder, tokenizer = Path(folder), self._shared_tokenizer()
        columns = {
            c.name: {"kind": c.kind, "why": c.reason, "settings": c.modality.to_json()}
            for c in self.columns.values()
        }
        roles = {r.name: {"kind": r.kind, "why": r.reason} for r in self.roles.values()}
        if tokenizer:
            atomic.write_file(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
        atomic.write_json(
            folder / "schema.json",
            {
                "version": SCHEMA_VERSION,
                "tokenizer": tokenizer is not None,
                "columns": columns,
                "roles": roles,
            },
        )

    def _shared_tokenizer(self) -> Tokenizer | None:
        texts = [c.modality for c in self.columns.values() if isinstance(c.modality, Text)]
        found = [t.tokenizer for t in texts if t.tokenizer]
        if any(t is not found[0] for t in found):
            raise SensoriumError(
                "the text columns have different tokenizers; a run keeps one, as Schema.fit does."
            )
        return found[0] if found else None

    @classmethod
    def load(cls, folder: str | Path) -> Schema:
        """Read what `save` wrote. Raises SensoriumError for another version, or for anything unknown in it."""
        path = Path(folder) / "schema.json"
        given = _read_json(path)
        if isinstance(given, dict) and given.get("version") != SCHEMA_VERSION:
            raise SensoriumError(
                f"{path} is of version {given.get('version')!r}; this Sensorium reads {SCHEMA_VERSION}: "
                "use the Sensorium that wrote it."
            )
        given = _check_keys(path, "schema", given, {"version", "tokenizer", "columns", "roles"})
        tokenizer = (
            _read_tokenizer(path.with_name("tokenizer.json")) if given["tokenizer"] else None
        )
        columns, roles = (_check_object(path, key, given[key]) for key in ("columns", "roles"))
        return cls(
            {name: _parse_column(path, name, c, tokenizer) for name, c in columns.items()},
            {name: _parse_role(path, name, r) for name, r in roles.items()},
        )


def _fit_column(column: Column, values: Iterator[Any]) -> Modality:
    try:
        return column.modality.fit(values)
    except ValueError as e:
        raise SensoriumError(f"column {column.name!r} ({column.kind}): {e}") from e


def _parse_column(path: Path, name: str, entry: Any, tokenizer: Tokenizer | None) -> Column:
    entry = _check_keys(path, f"column {name!r}", entry, {"kind", "why", "settings"})
    if entry["kind"] not in list(MODALITIES):
        raise SensoriumError(
            f"{path}: the column {name!r} is of the kind {entry['kind']!r}, which is none of "
            f"{', '.join(MODALITIES)}. If a file of your own adds it, name that file: sensorium --use "
            "mine.py ...; in Python, import it first."
        )
    kind = MODALITIES[entry["kind"]]
    modality = kind.from_json(_check_object(path, f"settings of {name!r}", entry["settings"]))
    if isinstance(modality, Text):
        modality = replace(modality, tokenizer=tokenizer)
    return Column(name, modality, entry["why"])


def _parse_role(path: Path, name: str, entry: Any) -> Role:
    entry = _check_keys(path, f"column {name!r}", entry, {"kind", "why"})
    return Role(name, _check_kind(path, entry["kind"], ROLES), entry["why"])


def split_pair(text: str, known: Container[str]) -> tuple[str, str]:
    """NAME=VALUE as (name, value), whatever signs a name holds.

    The name is the longest that is known, or else what is before the first "=".
    """
    ends = [at for at, sign in enumerate(text) if sign == "="]
    at = next(
        (end for end in reversed(ends) if text[:end] in known), ends[0] if ends else len(text)
    )
    return text[:at], text[at + 1 :]


def unknown_column_error(name: str, known: Iterable[str], hint: str = "") -> SensoriumError:
    """There is no such column; the nearest name is offered."""
    near = get_close_matches(name, list(known), 1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    return SensoriumError(f"there is no column {name!r}{guess} {hint}".strip())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise SensoriumError(
            f"could not read {path}: {e}. Every run writes it; restore it or train again."
        ) from e


def _read_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(_read_json(path)))


def _check_object(path: Path, label: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SensoriumError(f"{path}: {label} should be a JSON object, found {str(value)[:40]!r}.")
    return value


def _check_keys(path: Path, label: str, value: Any, keys: set[str]) -> dict[str, Any]:
    value = _check_object(path, label, value)
    if value.keys() != keys:
        wrong = sorted(value.keys() ^ keys)[0]
        raise SensoriumError(
            f"{path}: {label} has {'an unknown' if wrong in value else 'no'} key {wrong!r}. "
            "The file was written by another version or changed by hand."
        )
    return value


def _check_kind(path: Path, kind: Any, known_kinds: Iterable[str]) -> str:
    if kind not in known_kinds:
        raise SensoriumError(
            f"{path}: {kind!r} is no kind of column; known: {', '.join(known_kinds)}."
        )
    return kind
