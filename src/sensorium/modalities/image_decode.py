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

MAX_IMAGE_PIXELS = (
    89_000_000  # no larger picture is decoded; from a little more on Pillow itself warns
)
MAX_FILE_BYTES = 1 << 30  # and no larger file is read
OPEN_FLAGS = os.O_RDONLY | sum(
    getattr(os, flag, 0) for flag in ("O_BINARY", "O_NONBLOCK", "O_NOCTTY")
)  # waits for none
JPEG_MAGIC = b"\xff\xd8\xff"
READERS_BY_MAGIC = {  # how a file begins -> the one reader that may open it
    rb"\xff\xd8\xff": JpegImageFile,
    rb"\x89PNG\r\n\x1a\n": PngImageFile,
    rb"RIFF....WEBP": WebPImageFile,
    rb"GIF8[79]a": GifImageFile,
    rb"BM": BmpImageFile,
    rb"II\*\0|MM\0\*": TiffImageFile,
}
BORDER_TOLERANCE = 24  # levels by which a pixel must differ from a plain border to be none of it
DECODE_ERRORS = (  # what Pillow's readers raise on files changed at random
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    PIL.Image.DecompressionBombError,
    Warning,
)
EXIF_TRANSFORMS = {
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}


def decode_image(
    raw: Any, side: int, resize_mode: str = "crop", out: UInt8[np.ndarray, "S S 3"] | None = None
) -> UInt8[np.ndarray, "S S 3"]:
    """One picture (a path, bytes, a PIL image, a uint8 array), upright, side x side pixels.

    Raises ValueError with the reason it cannot be. square: "crop" (shorter side to fit, centre kept), "pad" (longer
    side to fit, white beside), "trim" (a plain border cut away, then pad) or "stretch". into: room that may be used for
    it, which spares a copy where the picture has that size already.
    """
    if isinstance(raw, np.ndarray):
        return np.array(resize_square(_convert_array(raw), side, resize_mode))
    if isinstance(raw, PIL.Image.Image):
        return _resize_upright(raw, side, resize_mode)
    if not isinstance(raw, bytes | str | Path):
        raise ValueError(f"expected a picture or its path, found {type(raw).__name__}")
    data = raw if isinstance(raw, bytes) else _read_file(raw)
    if (
        data.startswith(JPEG_MAGIC)
        and (found := _decode_jpeg_fast(data, side, resize_mode, out)) is not None
    ):
        pixels, extent = found
        return apply_orientation(
            resize_square(pixels, side, resize_mode, extent), read_orientation(data)
        )
    picture = _open_image(data)
    scale = (
        jpeg_scale(*picture.size, side, resize_mode) if isinstance(picture, JpegImageFile) else 1
    )
    extent = None
    if scale > 1:
        extent = (picture.width / scale, picture.height / scale)
        picture.draft(None, (picture.width // scale, picture.height // scale))
    return _resize_upright(picture, side, resize_mode, extent)


def decode_full_image(raw: Any) -> PIL.Image.Image:
    """All of one picture (as `decode` takes it), RGB and upright, by Pillow and with no shortcut.

    Raises ValueError with the reason it cannot be.
    """
    if isinstance(raw, np.ndarray):
        return PIL.Image.fromarray(_convert_array(raw))
    if not isinstance(raw, bytes | str | Path | PIL.Image.Image):
        raise ValueError(f"expected a picture or its path, found {type(raw).__name__}")
    picture = (
        raw
        if isinstance(raw, PIL.Image.Image)
        else _open_image(raw if isinstance(raw, bytes) else _read_file(raw))
    )
    pixels = np.array(_decode_pixels(picture))
    return PIL.Image.fromarray(
        apply_orientation(pixels, read_orientation(picture.info.get("exif", b"")))
    )


def resize_exact(
    image: PIL.Image.Image, side: int, resize_mode: str, shortest_edge: int, resample: str
) -> UInt8[np.ndarray, "H W 3"]:
    """side x side pixels as published models were shown them, to the last bit; `resample` names a filter of Pillow.

    resize_mode: "stretch"; or the shorter side is brought to `edge` pixels and the middle cut out, in whole pixels: where it
    lies between two, "crop" takes the first (Hugging Face), "centre" the even one (torchvision).
    """
    how = PIL.Image.Resampling[resample.upper()]
    if resize_mode == "stretch":
        return np.array(image.resize((side, side), how))
    short = min(image.size)
    wide, high = (
        shortest_edge if length == short else int(shortest_edge * length / short)
        for length in image.size
    )
    left, top = (
        round((n - side) / 2) if resize_mode == "centre" else (n - side) // 2 for n in (wide, high)
    )
    return np.array(image.resize((wide, high), how).crop((left, top, left + side, top + side)))


def jpeg_scale(width: int, height: int, side: int, resize_mode: str) -> int:
    """By how much (1, 2, 4, 8) a JPEG may be reduced while it is decoded, with twice what is kept still there."""
    if resize_mode == "trim":
        return 1  # how much is border is not known yet
    edge = (
        min(max(width, height), 2 * side * min(width, height))
        if resize_mode == "pad"
        else min(width, height)
    )
    return 1 << min(3, max(0, (edge // (2 * side)).bit_length() - 1))


def resize_square(
    image: PIL.Image.Image | np.ndarray,
    side: int,
    resize_mode: str,
    extent: tuple[float, float] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Resized, with antialiasing, to side x side. extent: width and height, where the last pixels are there in part."""
    if isinstance(image, np.ndarray):
        if image.shape == (side, side, 3) and resize_mode != "trim":
            return image
        image = PIL.Image.fromarray(image)
    if resize_mode == "trim":
        image = trim_border(image)
        return _resize_padded(image, side, *image.size)
    wide, high = extent or image.size
    if resize_mode == "pad":
        return _resize_padded(image, side, wide, high)
    edge = min(wide, high)
    box = (
        (0, 0, wide, high)
        if resize_mode == "stretch"
        else ((wide - edge) / 2, (high - edge) / 2, (wide + edge) / 2, (high + edge) / 2)
    )
    return np.array(image.resize((side, side), PIL.Image.Resampling.BICUBIC, box, reducing_gap=3.0))


def trim_border(image: PIL.Image.Image) -> PIL.Image.Image:
    """Without the border that is all of the top left pixel's colour, but for a thirtieth of what is left."""
    pixels = np.asarray(image).astype(np.int16)
    there = np.abs(pixels - pixels[0, 0]).max(-1) > BORDER_TOLERANCE
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    if not len(rows):
        return image
    top, bottom, left, right = (
        int(rows[0]),
        int(rows[-1]) + 1,
        int(columns[0]),
        int(columns[-1]) + 1,
    )
    keep = max(1, round(max(bottom - top, right - left) / 30))
    return image.crop(
        (
            max(0, left - keep),
            max(0, top - keep),
            min(image.width, right + keep),
            min(image.height, bottom + keep),
        )
    )


def read_orientation(data: bytes) -> int:
    """The EXIF orientation (1 to 8) of a JPEG file or an EXIF block; 1 where none can be read."""
    at = data.find(b"Exif\0\0", 0, 1 << 16) + 6 if not data.startswith((b"II*\0", b"MM\0*")) else 0
    if at == 5:
        return 1
    block = data[at : at + (1 << 16)]
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return 1
    first = struct.unpack_from(order + "I", block, 4)[0] + 2  # past the number of entries
    for at in range(first, min(len(block) - 11, first + 12 * 64), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", block, at)
        if tag == 0x112 and kind == 3:
            return value
    return 1


def apply_orientation(
    pixels: UInt8[np.ndarray, "H W 3"], orientation: int
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Turned as its orientation asks. Done last, where there is little to turn: cutting a square commutes with it."""
    if orientation not in EXIF_TRANSFORMS:
        return pixels
    turns, mirror = EXIF_TRANSFORMS[orientation]
    turned = np.rot90(pixels, turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirror else turned)


def _check_pixel_count(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError("it has no pixels")
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{width} x {height} pixels, more than the {MAX_IMAGE_PIXELS:,} that are decoded"
        )


def _read_file(path: str | Path) -> bytes:
    try:
        file = os.open(path, OPEN_FLAGS)
        try:
            about = os.fstat(file)
            if not stat.S_ISREG(about.st_mode):
                raise ValueError("not a file")
            if about.st_size > MAX_FILE_BYTES:
                raise ValueError(
                    f"a file of {about.st_size:,} bytes, more than the {MAX_FILE_BYTES:,} that are read"
                )
            data = os.read(file, about.st_size + 1)
            return (
                data
                if len(data) == about.st_size
                else b"".join([data, *iter(lambda: os.read(file, 1 << 20), b"")])
            )
        finally:
            os.close(file)
    except OSError as e:
        raise ValueError((e.strerror or type(e).__name__).lower()) from e


def _open_image(data: bytes) -> PIL.Image.Image:
    """A picture of which only the header is read yet, within the budget."""
    if not data:
        raise ValueError("the file is empty")
    reader = next(
        (reader for start, reader in READERS_BY_MAGIC.items() if re.match(start, data, re.DOTALL)),
        None,
    )
    if reader is None:
        raise ValueError("not a JPEG, PNG, WebP, GIF, BMP or TIFF picture")
    if reader is WebPImageFile and data[12:16] == b"VP8X":  # its reader allocates as it opens
        _check_pixel_count(*(int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27)))
    try:
        picture = reader(io.BytesIO(data))
    except DECODE_ERRORS as e:
        raise ValueError(f"its header is broken ({e or type(e).__name__})") from e
    _check_pixel_count(*picture.size)
    return picture


def _resize_upright(
    image: PIL.Image.Image, side: int, resize_mode: str, extent: tuple[float, float] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    plain = _decode_pixels(image)
    return apply_orientation(
        resize_square(plain, side, resize_mode, extent),
        read_orientation(image.info.get("exif", b"")),
    )


def _decode_pixels(image: PIL.Image.Image) -> PIL.Image.Image:
    _check_pixel_count(*image.size)
    try:
        image.load()
        _check_pixel_count(*image.size)
        return _to_rgb(image)
    except DECODE_ERRORS as e:
        raise ValueError(f"it cannot be decoded ({e or type(e).__name__})") from e


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """As RGB: 16 bits to 8, what is transparent to white."""
    if image.mode == "F":
        raise ValueError("its pixels are fractions: convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("its pixels have 32 bits: convert it to 8 or 16")
        image = PIL.Image.fromarray((deep >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _decode_jpeg_fast(
    data: bytes,
    side: int,
    resize_mode: str,
    out: UInt8[np.ndarray, "S S 3"] | None = None,
) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[float, float]] | None:
    """The pixels that Pillow would decode, sooner, and their extent; None without simplejpeg, or where that fails."""
    try:
        import simplejpeg
    except ImportError:
        return None
    try:
        high, wide, colours, _ = simplejpeg.decode_jpeg_header(data)
        high, wide = int(high), int(wide)
        _check_pixel_count(wide, high)
        if colours not in ("YCbCr", "RGB", "Gray"):
            return None
        if out is not None and out.shape == (high, wide, 3):
            simplejpeg.decode_jpeg(data, "RGB", buffer=out)
            return out, (wide, high)
        scale = jpeg_scale(wide, high, side, resize_mode)
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=-(-high // scale), min_width=-(-wide // scale)
        )
        return pixels, (wide / scale, high / scale)
    except ValueError:
        return None  # Pillow has the last word on what is broken, and says why


def _resize_padded(
    image: PIL.Image.Image, side: int, width: float, height: float
) -> UInt8[np.ndarray, "H W 3"]:
    scale = side / max(width, height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    out = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - h) // 2, (side - w) // 2
    small = image.resize(
        (w, h), PIL.Image.Resampling.BICUBIC, (0, 0, width, height), reducing_gap=3.0
    )
    out[top : top + h, left : left + w] = np.asarray(small)
    return out


def _convert_array(raw: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    if (
        raw.dtype != np.uint8
        or raw.ndim not in (2, 3)
        or (raw.ndim == 3 and raw.shape[2] not in (1, 3, 4))
    ):
        raise ValueError(
            f"an array of {raw.dtype} {list(raw.shape)}: expected uint8 [height, width, 1, 3 or 4]"
        )
    _check_pixel_count(raw.shape[1], raw.shape[0])
    if raw.shape[2:] == (3,):
        return raw
    return np.array(_to_rgb(PIL.Image.fromarray(raw[..., 0] if raw.shape[2:] == (1,) else raw)))
