"""Decode untrusted image files to upright RGB squares: limits are checked before decoding.

H height   W width   S side of a square

An image is uint8 with three channels. Transparent pixels and padding are white.
"""

from __future__ import annotations

import io
import re
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

from sensorium.io.untrusted import (
    DECODE_BUDGET,
    MAX_IMAGE_FILE_BYTES,
    MAX_IMAGE_PIXELS,
    MAX_IMAGE_SEGMENTS,
    MAX_IMAGE_SIDE,
    MAX_JPEG_SCAN_PIXELS,
    READ_BUDGET,
    EmbeddedFile,
    NotARegularFileError,
    open_regular,
)
from sensorium.modalities.image_resize import flatten_transparency, jpeg_scale, resize_square

JPEG_MAGIC = b"\xff\xd8\xff"
READERS_BY_MAGIC = {  # pattern of the first bytes -> the only reader that may open the file
    rb"\xff\xd8\xff": JpegImageFile,
    rb"\x89PNG\r\n\x1a\n": PngImageFile,
    rb"RIFF....WEBP": WebPImageFile,
    rb"GIF8[79]a": GifImageFile,
    rb"BM": BmpImageFile,
    rb"II\*\0|MM\0\*": TiffImageFile,
}
DECODE_ERRORS = (  # what Pillow's readers raise on randomly corrupted files
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
EXIF_TRANSFORMS = {  # orientation -> (counterclockwise quarter turns, then mirror left to right)
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}
ORIENTATION_TAG = 0x112
EXIF_SHORT = 3  # type code of a 16-bit number
MAX_EXIF_BYTES = 1 << 16  # as far as a file is searched for its EXIF block
MAX_EXIF_ENTRIES = 64
JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # neither stuffing nor a restart
START_OF_SCAN = 0xDA
END_OF_IMAGE = 0xD9
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def decode_image(
    raw: Any, side: int, resize_mode: str = "crop", out: UInt8[np.ndarray, "S S 3"] | None = None
) -> UInt8[np.ndarray, "S S 3"]:
    """Return one image, upright, as a square.

    Args:
        raw: A path, the bytes of a file, a PIL image, or an array uint8 [H W], [H W 1], [H W 3] or
            [H W 4].
        side: Side of the square in pixels.
        resize_mode: See `resize_square`.
        out: An array that may be filled and returned; it saves a copy if the image has that size.

    Raises:
        ValueError: If the image cannot be read or exceeds a limit.
    """
    if isinstance(raw, np.ndarray):
        return np.array(resize_square(_convert_array(raw), side, resize_mode))
    if isinstance(raw, PIL.Image.Image):
        return _resize_upright(raw, side, resize_mode)
    with READ_BUDGET.reserve(_file_bytes(raw)):
        return _decode_bytes(_read_bytes(raw), side, resize_mode, out)


def _decode_bytes(
    data: bytes, side: int, resize_mode: str, out: UInt8[np.ndarray, "S S 3"] | None
) -> UInt8[np.ndarray, "S S 3"]:
    """Return the image in the bytes of a file as a square."""
    if data.startswith(JPEG_MAGIC):
        decoded = _decode_jpeg_fast(data, side, resize_mode, out)
        if decoded is not None:
            pixels, extent = decoded
            square = resize_square(pixels, side, resize_mode, extent)
            return apply_orientation(square, read_orientation(data))
    image = _open_image(data)
    extent = None
    if isinstance(image, JpegImageFile):
        scale = jpeg_scale(*image.size, side, resize_mode)
        if scale > 1:
            extent = (image.width / scale, image.height / scale)
            image.draft(None, (image.width // scale, image.height // scale))
    return _resize_upright(image, side, resize_mode, extent)


def decode_full_image(raw: Any) -> PIL.Image.Image:
    """Return one image in full size, RGB and upright, decoded by Pillow without shortcuts.

    Args:
        raw: As `decode_image` takes it.

    Raises:
        ValueError: If the image cannot be read or exceeds a limit.
    """
    if isinstance(raw, np.ndarray):
        return PIL.Image.fromarray(_convert_array(raw))
    with READ_BUDGET.reserve(_file_bytes(raw)):
        image = raw if isinstance(raw, PIL.Image.Image) else _open_image(_read_bytes(raw))
        with DECODE_BUDGET.reserve(_decoded_bytes(image)):
            pixels = np.array(_decode_pixels(image))
    orientation = read_orientation(image.info.get("exif", b""))
    return PIL.Image.fromarray(apply_orientation(pixels, orientation))


def read_orientation(data: bytes) -> int:
    """Return the EXIF orientation (1 to 8) of a JPEG file or an EXIF block, 1 if there is none."""
    start = 0
    if not data.startswith((b"II*\0", b"MM\0*")):
        marker = data.find(b"Exif\0\0", 0, MAX_EXIF_BYTES)
        if marker < 0:
            return 1
        start = marker + 6
    block = data[start : start + MAX_EXIF_BYTES]
    byte_order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if byte_order is None or len(block) < 8:
        return 1
    first = struct.unpack_from(byte_order + "I", block, 4)[0] + 2  # after the number of entries
    last = min(len(block) - 11, first + 12 * MAX_EXIF_ENTRIES)
    for entry in range(first, last, 12):
        tag, type_code, _, value = struct.unpack_from(byte_order + "HHIH", block, entry)
        if tag == ORIENTATION_TAG and type_code == EXIF_SHORT:
            return value
    return 1


def apply_orientation(
    pixels: UInt8[np.ndarray, "H W 3"], orientation: int
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Return the pixels rotated and mirrored as an EXIF orientation demands.

    It is applied last, on few pixels: cropping a centered square commutes with it.
    """
    if orientation not in EXIF_TRANSFORMS:
        return pixels
    turns, mirror = EXIF_TRANSFORMS[orientation]
    rotated = np.rot90(pixels, turns)
    return np.ascontiguousarray(rotated[:, ::-1] if mirror else rotated)


def _check_pixel_count(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError("the image has no pixels")
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{width} x {height} pixels, more than the limit of {MAX_IMAGE_PIXELS:,} pixels"
        )
    if max(width, height) > MAX_IMAGE_SIDE:
        raise ValueError(
            f"{width} x {height} pixels, more than the limit of {MAX_IMAGE_SIDE:,} pixels a side; "
            "cut the image"
        )


def _file_bytes(raw: Any) -> int:
    """Return the size of a file that will be read, 0 for anything else."""
    try:
        size = Path(raw).stat().st_size if isinstance(raw, str | Path) else 0
    except (OSError, ValueError):
        return 0  # reported when it is opened
    return size if size <= MAX_IMAGE_FILE_BYTES else 0


def _decoded_bytes(image: PIL.Image.Image) -> int:
    """Return about how many bytes decoding an image and converting it to RGB needs."""
    bytes_per_pixel = 12 if image.mode == "I" or isinstance(image, JpegImageFile) else 8
    return image.width * image.height * bytes_per_pixel


def _read_bytes(raw: Any) -> bytes:
    """Return the bytes of a file, or `raw` itself if it is bytes."""
    if isinstance(raw, bytes):
        return raw
    if not isinstance(raw, str | Path | EmbeddedFile):
        raise ValueError(f"expected an image or its path, got {type(raw).__name__}")
    try:
        with open_regular(raw, MAX_IMAGE_FILE_BYTES) as file:
            return file.read()
    except NotARegularFileError as e:
        raise ValueError(str(e.strerror).replace("regular ", "")) from e
    except OSError as e:
        reason = e.strerror or type(e).__name__
        raise ValueError(reason[:1].lower() + reason[1:]) from e


def _open_image(data: bytes) -> PIL.Image.Image:
    """Return an image of which only the header is read, within the limits."""
    if not data:
        raise ValueError("the file is empty")
    matches = (
        reader for magic, reader in READERS_BY_MAGIC.items() if re.match(magic, data, re.DOTALL)
    )
    reader = next(matches, None)
    if reader is None:
        raise ValueError("not a JPEG, PNG, WebP, GIF, BMP or TIFF image")
    if reader is WebPImageFile:  # this reader allocates on opening
        _check_webp_size(data)
    elif reader is PngImageFile:
        _check_png_chunks(data)
    num_scans = _count_jpeg_scans(data) if reader is JpegImageFile else 1
    try:
        image = reader(io.BytesIO(data))
    except DECODE_ERRORS as e:
        raise ValueError(f"the image header is broken ({e or type(e).__name__})") from e
    _check_pixel_count(*image.size)
    _check_scans(num_scans, *image.size)
    if isinstance(image, TiffImageFile):
        _check_tiff_parts(image)
    return image


def _check_webp_size(data: bytes) -> None:
    """Check the size in the header of a WebP file, of one of its three kinds."""
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width = (bits & 0x3FFF) + 1
        height = (bits >> 14 & 0x3FFF) + 1
    else:
        width = int.from_bytes(data[26:28], "little") & 0x3FFF
        height = int.from_bytes(data[28:30], "little") & 0x3FFF
    _check_pixel_count(max(width, 1), max(height, 1))


def _check_png_chunks(data: bytes) -> None:
    """Check the number of chunks, each of which costs time."""
    position = len(PNG_MAGIC)
    for _ in range(MAX_IMAGE_SEGMENTS):
        if position >= len(data):
            return
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    raise ValueError(f"more than the limit of {MAX_IMAGE_SEGMENTS:,} chunks; save the image again")


def _check_tiff_parts(image: TiffImageFile) -> None:
    if len(image.tile) > MAX_IMAGE_SEGMENTS:
        raise ValueError(
            f"{len(image.tile):,} strips or tiles, more than the limit of {MAX_IMAGE_SEGMENTS:,}; "
            "save the image again"
        )


def _count_jpeg_scans(data: bytes) -> int:
    """Return the number of scans of a JPEG file, read from its markers."""
    position = 2
    num_scans = 0
    for _ in range(MAX_IMAGE_SEGMENTS):
        match = JPEG_MARKER.search(data, position)
        if match is None or match[1][0] == END_OF_IMAGE:
            return num_scans
        position = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
        if match[1][0] == START_OF_SCAN:
            num_scans += 1
            if num_scans == 1 and data.count(b"\xff\xda", position) == 0:
                return 1  # the usual file, whose pixels need not be searched for markers
    raise ValueError(
        f"more than the limit of {MAX_IMAGE_SEGMENTS:,} segments; save the image again"
    )


def _check_scans(num_scans: int, width: int, height: int) -> None:
    """Check the work of decoding a progressive JPEG."""
    if num_scans * width * height > MAX_JPEG_SCAN_PIXELS:
        allowed = max(1, MAX_JPEG_SCAN_PIXELS // (width * height))
        raise ValueError(
            f"{num_scans} scans of {width} x {height} pixels, more than the limit of {allowed} "
            "scans at this size; save the image again, not progressive"
        )


def _resize_upright(
    image: PIL.Image.Image, side: int, resize_mode: str, extent: tuple[float, float] | None = None
) -> UInt8[np.ndarray, "S S 3"]:
    with DECODE_BUDGET.reserve(_decoded_bytes(image)):
        square = resize_square(_decode_pixels(image), side, resize_mode, extent)
    return apply_orientation(square, read_orientation(image.info.get("exif", b"")))


def _decode_pixels(image: PIL.Image.Image) -> PIL.Image.Image:
    _check_pixel_count(*image.size)
    try:
        image.load()
        _check_pixel_count(*image.size)
        return _to_rgb(image)
    except DECODE_ERRORS as e:
        raise ValueError(f"the image cannot be decoded ({e or type(e).__name__})") from e


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert to RGB: 16 bits to 8, transparency to white."""
    if image.mode == "F":
        raise ValueError("the pixels are floating-point; convert the image to 8 or 16 bits")
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("the pixels have 32 bits; convert the image to 8 or 16 bits")
        if 0 < wide.max() <= 255:  # 8 bits in a wider type, or nearly black: nothing tells
            bits = 16 if image.mode.startswith("I;16") else 32
            raise ValueError(
                f"the pixels have {bits} bits, but none is above {wide.max()}: their scale is "
                "unknown; convert the image to 8 bits"
            )
        image = PIL.Image.fromarray((wide >> 8).astype(np.uint8))
    return flatten_transparency(image) if image.has_transparency_data else image.convert("RGB")


def _decode_jpeg_fast(
    data: bytes,
    side: int,
    resize_mode: str,
    out: UInt8[np.ndarray, "S S 3"] | None = None,
) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[float, float]] | None:
    """Decode with simplejpeg: the pixels of Pillow, faster, and their extent.

    Return None if simplejpeg is not installed or fails: Pillow then reports what is broken.
    """
    try:
        import simplejpeg
    except ImportError:
        return None
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
        height = int(height)
        width = int(width)
        _check_pixel_count(width, height)
        num_scans = _count_jpeg_scans(data)
        _check_scans(num_scans, width, height)
        if color_space not in ("YCbCr", "RGB", "Gray"):
            return None
        if out is not None and out.shape == (height, width, 3):
            simplejpeg.decode_jpeg(data, "RGB", buffer=out)
            return out, (width, height)
        scale = jpeg_scale(width, height, side, resize_mode)
        coefficient_bytes = 6 if num_scans > 1 else 0  # of a pixel, kept until the last scan
        with DECODE_BUDGET.reserve(width * height * (coefficient_bytes * scale**2 + 3) // scale**2):
            pixels = simplejpeg.decode_jpeg(
                data, "RGB", min_height=-(-height // scale), min_width=-(-width // scale)
            )
        return pixels, (width / scale, height / scale)
    except ValueError:
        return None


def _convert_array(raw: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    grayscale = raw.ndim == 2
    channels_last = raw.ndim == 3 and raw.shape[2] in (1, 3, 4)
    if raw.dtype != np.uint8 or not (grayscale or channels_last):
        raise ValueError(
            f"expected an array uint8 [H W], [H W 1], [H W 3] or [H W 4], "
            f"got {raw.dtype} {list(raw.shape)}"
        )
    _check_pixel_count(raw.shape[1], raw.shape[0])
    if raw.shape[2:] == (3,):
        return raw
    if raw.shape[2:] == (1,):
        raw = raw[..., 0]
    return np.array(_to_rgb(PIL.Image.fromarray(raw)))
