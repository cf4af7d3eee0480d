"""Picture files, which may be hostile, to upright squares of pixels: every limit is checked before anything is decoded.

    H height   W width   S side of a square

A picture is uint8 with three channels. What is transparent, or padded, is white.
"""
from __future__ import annotations

import io
import os
import re
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import UInt8
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

PIXELS = 89_000_000                     # no larger picture is decoded; from a little more on Pillow itself warns
BYTES = 1 << 30                         # and no larger file is read
READ = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_BINARY", "O_NONBLOCK", "O_NOCTTY"))      # waits for none
JPEG = b"\xff\xd8\xff"
FORMATS = {                             # how a file begins -> the one reader that may open it
    rb"\xff\xd8\xff": JpegImageFile, rb"\x89PNG\r\n\x1a\n": PngImageFile, rb"RIFF....WEBP": WebPImageFile,
    rb"GIF8[79]a": GifImageFile, rb"BM": BmpImageFile, rb"II\*\0|MM\0\*": TiffImageFile}
BORDER = 24                             # levels by which a pixel must differ from a plain border to be none of it
BROKEN = (                              # what Pillow's readers raise on files changed at random
    OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError, OverflowError,
    MemoryError, PIL.Image.DecompressionBombError, Warning)
UPRIGHT = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}


def decode(raw: Any, side: int, square: str = "crop",
           into: UInt8[np.ndarray, "S S 3"] | None = None) -> UInt8[np.ndarray, "S S 3"]:
    """One picture (a path, bytes, a PIL image, a uint8 array), upright, side x side pixels.

    Raises ValueError with the reason it cannot be. square: "crop" (shorter side to fit, centre kept), "pad" (longer
    side to fit, white beside), "trim" (a plain border cut away, then pad) or "stretch". into: room that may be used for
    it, which spares a copy where the picture has that size already.
    """
    if isinstance(raw, np.ndarray):
        return np.array(squared(_from_array(raw), side, square))
    if isinstance(raw, PIL.Image.Image):
        return _finished(raw, side, square)
    if not isinstance(raw, bytes | str | Path):
        raise ValueError(f"expected a picture or its path, found {type(raw).__name__}")
    data = raw if isinstance(raw, bytes) else _read(raw)
    if data.startswith(JPEG) and (found := _quick_jpeg(data, side, square, into)) is not None:
        pixels, extent = found
        return upright(squared(pixels, side, square, extent), orientation(data))
    picture = _opened(data)
    scale = reduction(*picture.size, side, square) if isinstance(picture, JpegImageFile) else 1
    extent = None
    if scale > 1:
        extent = (picture.width / scale, picture.height / scale)
        picture.draft(None, (picture.width // scale, picture.height // scale))
    return _finished(picture, side, square, extent)


def whole(raw: Any) -> PIL.Image.Image:
    """All of one picture (as `decode` takes it), RGB and upright, by Pillow and with no shortcut.

    Raises ValueError with the reason it cannot be.
    """
    if isinstance(raw, np.ndarray):
        return PIL.Image.fromarray(_from_array(raw))
    if not isinstance(raw, bytes | str | Path | PIL.Image.Image):
        raise ValueError(f"expected a picture or its path, found {type(raw).__name__}")
    picture = raw if isinstance(raw, PIL.Image.Image) else _opened(raw if isinstance(raw, bytes) else _read(raw))
    pixels = np.array(_decoded(picture))
    return PIL.Image.fromarray(upright(pixels, orientation(picture.info.get("exif", b""))))


def resized(picture: PIL.Image.Image, side: int, square: str, edge: int, resample: str) -> UInt8[np.ndarray, "H W 3"]:
    """side x side pixels as published models were shown them, to the last bit; `resample` names a filter of Pillow.

    square: "stretch"; or the shorter side is brought to `edge` pixels and the middle cut out, in whole pixels: where it
    lies between two, "crop" takes the first (Hugging Face), "centre" the even one (torchvision).
    """
    how = PIL.Image.Resampling[resample.upper()]
    if square == "stretch":
        return np.array(picture.resize((side, side), how))
    short = min(picture.size)
    wide, high = (edge if length == short else int(edge * length / short) for length in picture.size)
    left, top = (round((n - side) / 2) if square == "centre" else (n - side) // 2 for n in (wide, high))
    return np.array(picture.resize((wide, high), how).crop((left, top, left + side, top + side)))


def reduction(wide: int, high: int, side: int, square: str) -> int:
    """By how much (1, 2, 4, 8) a JPEG may be reduced while it is decoded, with twice what is kept still there."""
    if square == "trim":
        return 1                            # how much is border is not known yet
    edge = min(max(wide, high), 2 * side * min(wide, high)) if square == "pad" else min(wide, high)
    return 1 << min(3, max(0, (edge // (2 * side)).bit_length() - 1))


def squared(picture: PIL.Image.Image | np.ndarray, side: int, square: str,
            extent: tuple[float, float] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Resized, with antialiasing, to side x side. extent: width and height, where the last pixels are there in part."""
    if isinstance(picture, np.ndarray):
        if picture.shape == (side, side, 3) and square != "trim":
            return picture
        picture = PIL.Image.fromarray(picture)
    if square == "trim":
        picture = trimmed(picture)
        return _padded(picture, side, *picture.size)
    wide, high = extent or picture.size
    if square == "pad":
        return _padded(picture, side, wide, high)
    edge = min(wide, high)
    box = (0, 0, wide, high) if square == "stretch" else (
        (wide - edge) / 2, (high - edge) / 2, (wide + edge) / 2, (high + edge) / 2)
    return np.array(picture.resize((side, side), PIL.Image.Resampling.BICUBIC, box, reducing_gap=3.0))


def trimmed(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Without the border that is all of the top left pixel's colour, but for a thirtieth of what is left."""
    pixels = np.asarray(picture).astype(np.int16)
    there = np.abs(pixels - pixels[0, 0]).max(-1) > BORDER
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    if not len(rows):
        return picture
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    keep = max(1, round(max(bottom - top, right - left) / 30))
    return picture.crop((max(0, left - keep), max(0, top - keep),
                         min(picture.width, right + keep), min(picture.height, bottom + keep)))


def orientation(data: bytes) -> int:
    """The EXIF orientation (1 to 8) of a JPEG file or an EXIF block; 1 where none can be read."""
    at = data.find(b"Exif\0\0", 0, 1 << 16) + 6 if not data.startswith((b"II*\0", b"MM\0*")) else 0
    if at == 5:
        return 1
    block = data[at:at + (1 << 16)]
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return 1
    first = struct.unpack_from(order + "I", block, 4)[0] + 2            # past the number of entries
    for at in range(first, min(len(block) - 11, first + 12 * 64), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", block, at)
        if tag == 0x112 and kind == 3:
            return value
    return 1


def upright(pixels: UInt8[np.ndarray, "H W 3"], orientation: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Turned as its orientation asks. Done last, where there is little to turn: cutting a square commutes with it."""
    if orientation not in UPRIGHT:
        return pixels
    turns, mirror = UPRIGHT[orientation]
    turned = np.rot90(pixels, turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirror else turned)


def _within_budget(wide: int, high: int) -> None:
    if wide < 1 or high < 1:
        raise ValueError("it has no pixels")
    if wide * high > PIXELS:
        raise ValueError(f"{wide} x {high} pixels, more than the {PIXELS:,} that are decoded")


def _read(path: str | Path) -> bytes:
    try:
        file = os.open(path, READ)
        try:
            about = os.fstat(file)
            if not stat.S_ISREG(about.st_mode):
                raise ValueError("not a file")
            if about.st_size > BYTES:
                raise ValueError(f"a file of {about.st_size:,} bytes, more than the {BYTES:,} that are read")
            data = os.read(file, about.st_size + 1)
            return data if len(data) == about.st_size else b"".join([data, *iter(lambda: os.read(file, 1 << 20), b"")])
        finally:
            os.close(file)
    except OSError as e:
        raise ValueError((e.strerror or type(e).__name__).lower()) from e


def _opened(data: bytes) -> PIL.Image.Image:
    """A picture of which only the header is read yet, within the budget."""
    if not data:
        raise ValueError("the file is empty")
    reader = next((reader for start, reader in FORMATS.items() if re.match(start, data, re.DOTALL)), None)
    if reader is None:
        raise ValueError("not a JPEG, PNG, WebP, GIF, BMP or TIFF picture")
    if reader is WebPImageFile and data[12:16] == b"VP8X":              # its reader allocates as it opens
        _within_budget(*(int.from_bytes(data[at:at + 3], "little") + 1 for at in (24, 27)))
    try:
        picture = reader(io.BytesIO(data))
    except BROKEN as e:
        raise ValueError(f"its header is broken ({e or type(e).__name__})") from e
    _within_budget(*picture.size)
    return picture


def _finished(picture: PIL.Image.Image, side: int, square: str,
              extent: tuple[float, float] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    plain = _decoded(picture)
    return upright(squared(plain, side, square, extent), orientation(picture.info.get("exif", b"")))


def _decoded(picture: PIL.Image.Image) -> PIL.Image.Image:
    _within_budget(*picture.size)
    try:
        picture.load()
        _within_budget(*picture.size)
        return _plain(picture)
    except BROKEN as e:
        raise ValueError(f"it cannot be decoded ({e or type(e).__name__})") from e


def _plain(picture: PIL.Image.Image) -> PIL.Image.Image:
    """As RGB: 16 bits to 8, what is transparent to white."""
    if picture.mode == "F":
        raise ValueError("its pixels are fractions: convert it to 8 or 16 bits")
    if picture.mode.startswith("I"):
        deep = np.asarray(picture)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("its pixels have 32 bits: convert it to 8 or 16")
        picture = PIL.Image.fromarray((deep >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _quick_jpeg(data: bytes, side: int, square: str, into: UInt8[np.ndarray, "S S 3"] | None = None,
                ) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[float, float]] | None:
    """The pixels that Pillow would decode, sooner, and their extent; None without simplejpeg, or where that fails."""
    try:
        import simplejpeg
    except ImportError:
        return None
    try:
        high, wide, colours, _ = simplejpeg.decode_jpeg_header(data)
        high, wide = int(high), int(wide)
        _within_budget(wide, high)
        if colours not in ("YCbCr", "RGB", "Gray"):
            return None
        if into is not None and into.shape == (high, wide, 3):
            simplejpeg.decode_jpeg(data, "RGB", buffer=into)
            return into, (wide, high)
        scale = reduction(wide, high, side, square)
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=-(-high // scale), min_width=-(-wide // scale))
        return pixels, (wide / scale, high / scale)
    except ValueError:
        return None                     # Pillow has the last word on what is broken, and says why


def _padded(picture: PIL.Image.Image, side: int, wide: float, high: float) -> UInt8[np.ndarray, "H W 3"]:
    scale = side / max(wide, high)
    w, h = max(1, round(wide * scale)), max(1, round(high * scale))
    out = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - h) // 2, (side - w) // 2
    small = picture.resize((w, h), PIL.Image.Resampling.BICUBIC, (0, 0, wide, high), reducing_gap=3.0)
    out[top:top + h, left:left + w] = np.asarray(small)
    return out


def _from_array(raw: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    if raw.dtype != np.uint8 or raw.ndim not in (2, 3) or raw.ndim == 3 and raw.shape[2] not in (1, 3, 4):
        raise ValueError(f"an array of {raw.dtype} {list(raw.shape)}: expected uint8 [height, width, 1, 3 or 4]")
    _within_budget(raw.shape[1], raw.shape[0])
    if raw.shape[2:] == (3,):
        return raw
    return np.array(_plain(PIL.Image.fromarray(raw[..., 0] if raw.shape[2:] == (1,) else raw)))
