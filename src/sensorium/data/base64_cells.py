"""Files in cells of a table as base64, alone or in a data: URL: images and audio."""

import base64
import binascii
import re
from typing import Any

MAX_BASE64_CHARACTERS = 64 << 20  # of one cell
_DATA_URL = re.compile(
    r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+=-]+)*;base64,|data:;base64,", re.IGNORECASE
)
_MIN_CHARACTERS = 64  # shorter text is a word
_NUM_CHECKED = 64  # characters, by which base64 is recognised
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_AUDIO_MAGIC = (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")


def detect_content(data: bytes) -> str:
    """Return "image" or "audio" by the first bytes of a file, "" for anything else."""
    if data[:4] == b"RIFF":
        return {b"WEBP": "image", b"WAVE": "audio"}.get(data[8:12], "")
    if data.startswith(IMAGE_MAGIC):
        return "image"
    return "audio" if data.startswith(_AUDIO_MAGIC) else ""


def detect_base64(cell: Any) -> str:
    """Return "image" or "audio" for a cell that holds such a file as base64, "" for another.

    Only the beginning is decoded.
    """
    if not isinstance(cell, str):
        return ""
    start = _content_start(cell)
    if not start and len(cell) < _MIN_CHARACTERS:
        return ""
    head = cell[start : start + _NUM_CHECKED]
    if not _BASE64.fullmatch(head):
        return ""
    try:
        return detect_content(_decode(head[: len(head) // 4 * 4]))
    except ValueError:
        return ""


def decode_base64_file(cell: str) -> bytes | None:
    """Return the file that a cell holds as base64, None if it holds none.

    Raises:
        ValueError: if it is too long or damaged.
    """
    if not detect_base64(cell):
        if cell[:5].lower() == "data:" and "," in cell[:200]:
            raise ValueError(
                f"{cell[:40]!r} is not base64 of an image or audio of a kind that is read"
            )
        return None
    if len(cell) > MAX_BASE64_CHARACTERS:
        raise ValueError(
            f"{len(cell):,} characters of base64, more than the limit of {MAX_BASE64_CHARACTERS:,}"
        )
    content = cell[_content_start(cell) :]
    try:
        return _decode("".join(content.split()))
    except ValueError as e:
        raise ValueError(f"damaged base64: {e}") from e


def _content_start(cell: str) -> int:
    """Return where base64 begins, behind the head of a data: URL."""
    match = _DATA_URL.match(cell[:200])
    return match.end() if match else 0


def _decode(text: str) -> bytes:
    """Decode base64, in the plain or the URL-safe alphabet, with or without padding."""
    plain = text.translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error as e:
        raise ValueError(str(e)) from e
