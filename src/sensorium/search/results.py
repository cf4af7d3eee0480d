"""What is kept of a row to show it by, and the answers that show it."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, asdict, dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from sensorium.errors import SensoriumError
from sensorium.modalities.image_decode import decode_image

THUMBNAIL_SIZE = 128  # of the picture kept


@dataclass(frozen=True)
class RowInfo:
    """name: where the row came from. kind: what of it was embedded. captions: its words, if any."""

    name: str
    kind: str
    captions: list[str]

    def pack(self, image: bytes) -> bytes:
        """With the picture (PNG, or nothing), as one run of bytes."""
        return json.dumps(asdict(self), ensure_ascii=False).encode() + b"\n" + image

    @classmethod
    def unpack(cls, data: bytes) -> "tuple[RowInfo, bytes]":
        """(payload, PNG). Raises SensoriumError where the words are not as `pack` writes them."""
        head, _, picture = data.partition(b"\n")
        try:
            found = json.loads(head)
        except ValueError:
            found = None
        types = {"name": str, "kind": str, "captions": list}
        if not isinstance(found, dict) or {k: type(v) for k, v in found.items()} != types:
            raise SensoriumError(
                "a row of the index was not written by Sensorium. Build the index again."
            )
        return cls(**found), picture


def make_thumbnail(raw: Any) -> bytes:
    """A PNG, 128 pixels square, white where the picture does not reach. Raises ValueError for what is no picture."""
    out = io.BytesIO()
    PIL.Image.fromarray(decode_image(raw, THUMBNAIL_SIZE, "pad")).save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True)
class Hit:
    """One row that was found; score is the cosine, at most 1."""

    id: int
    score: float
    info: RowInfo


@dataclass
class SearchResult(Sequence[Hit]):
    """What was found for one query, best first."""

    query: str
    hits: list[Hit]
    images: InitVar[
        Sequence[bytes]
    ] = ()  # a PNG, or b"", for each hit; no part of what is printed or JSON
    query_image: InitVar[bytes] = b""  # the picture that was asked with, as PNG

    def __post_init__(self, images: Sequence[bytes], query_image: bytes) -> None:
        self.thumbnails, self.query_thumbnail = images, query_image

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, i: Any) -> Any:
        return self.hits[i]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __str__(self) -> str:
        lines = [
            f"{h.score:6.3f}  {h.info.name}  {'; '.join(h.info.captions[:3])}" for h in self.hits
        ]
        return "\n".join(lines) or "nothing found"

    def save(self, path: str | Path) -> None:
        """Draw it: a contact sheet (.png), or a page that needs nothing beside it (.html)."""
        from sensorium.search.render import save_results

        save_results([self], path)
