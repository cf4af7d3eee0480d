"""The information stored about each row, and the results of a search."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import PIL.Image

from sensorium.errors import SensoriumError, escape_line
from sensorium.io.untrusted import EmbeddedFile, replace_surrogates
from sensorium.modalities.image_decode import decode_image

Matched = Literal["words", "vectors", "both"]
THUMBNAIL_SIZE = 128  # pixels
MAX_CAPTIONS_SHOWN = 3


@dataclass(frozen=True)
class RowInfo:
    """What a search result shows of a row.

    Attributes:
        name: where the row came from.
        kind: column type that was embedded.
        captions: its texts, if any.
        attributes: values of its other columns that are words: categories, tags, identifiers and
            file names, by column.
        path: absolute path of its file; "" where it has none.
    """

    name: str
    kind: str
    captions: list[str]
    attributes: dict[str, list[str]] = field(default_factory=dict)
    path: str = ""

    def pack(self, thumbnail: bytes) -> bytes:
        """Return the row info and its thumbnail (a PNG, or b"") as bytes."""
        return json.dumps(asdict(self), ensure_ascii=False).encode() + b"\n" + thumbnail

    @classmethod
    def unpack(cls, data: bytes) -> "tuple[RowInfo, bytes]":
        """Return the row info and the thumbnail that `pack` encoded.

        Raises:
            SensoriumError: the bytes were not written by `pack`.
        """
        header, _, thumbnail = data.partition(b"\n")
        try:
            values = json.loads(header)
        except ValueError:
            values = None
        types = {"name": str, "kind": str, "captions": list, "attributes": dict, "path": str}
        if isinstance(values, dict):
            values = {"attributes": {}, "path": "", **values}  # indexes of earlier versions lack it
        if not isinstance(values, dict) or {k: type(v) for k, v in values.items()} != types:
            raise SensoriumError(
                "A row of the index was not written by Sensorium. Build the index again."
            )
        return cls(**values), thumbnail


def file_names(file: str | Path | EmbeddedFile) -> list[str]:
    """Return the name of a file, with and without its extension."""
    path = Path(file.name if isinstance(file, EmbeddedFile) else file)
    return list(dict.fromkeys(replace_surrogates([path.name, path.stem])))


def make_thumbnail(raw: Any) -> bytes:
    """Return a square PNG of an image, padded with white.

    Args:
        raw: a path, an array or a PIL image.

    Raises:
        ValueError: it is not a readable image.
    """
    out = io.BytesIO()
    PIL.Image.fromarray(decode_image(raw, THUMBNAIL_SIZE, "pad")).save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True)
class Hit:
    """One row of a search result.

    Attributes:
        id: its id in the index.
        score: at most 1; the cosine similarity if only vectors were compared.
        info: what to show of it.
        matched: "words" if it has words of the query, "vectors" if it is among the nearest vectors,
            or "both".
    """

    id: int
    score: float
    info: RowInfo
    matched: Matched = "vectors"


@dataclass
class SearchResult(Sequence[Hit]):
    """The hits of one query, best first.

    Thumbnails are attributes but not dataclass fields, so that `asdict` and JSON leave them out.

    Attributes:
        query: the query as text.
        hits: the rows found.
        thumbnails: a PNG, or b"", for each hit.
        query_thumbnail: a PNG of the query image, or b"".
    """

    query: str
    hits: list[Hit]
    images: InitVar[Sequence[bytes]] = ()
    query_image: InitVar[bytes] = b""

    def __post_init__(self, images: Sequence[bytes], query_image: bytes) -> None:
        self.thumbnails = images
        self.query_thumbnail = query_image

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, i: Any) -> Any:
        return self.hits[i]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __str__(self) -> str:
        lines = []
        for hit in self.hits:
            captions = "; ".join(hit.info.captions[:MAX_CAPTIONS_SHOWN])
            line = f"{hit.score:6.3f}  {hit.matched:7}  {hit.info.name}  {captions}"
            lines.append(escape_line(line))
        return "\n".join(lines) or "no results"

    def __repr__(self) -> str:
        best = f", best {self.hits[0].info.name!r}" if self.hits else ""
        return f"SearchResult({self.query!r}, {len(self.hits)} hits{best})"

    def _repr_html_(self) -> str:
        from sensorium.search.render import render_notebook

        return render_notebook(self)

    def save(self, path: str | Path) -> None:
        """Write the result as a contact sheet (.png) or a self-contained page (.html)."""
        from sensorium.search.render import save_results

        save_results([self], path)
