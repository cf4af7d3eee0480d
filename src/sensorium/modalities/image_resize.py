"""Resize images to squares.

H height   W width   S side of a square
"""

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from sensorium.io.untrusted import MAX_IMAGE_PIXELS

BAND_PIXELS = 1 << 22  # of a large image that are converted or compared at a time
BORDER_TOLERANCE = 24  # a pixel that differs less from the corner pixel belongs to the border
BICUBIC = PIL.Image.Resampling.BICUBIC


def resize_square(
    image: PIL.Image.Image | np.ndarray,
    side: int,
    resize_mode: str,
    extent: tuple[float, float] | None = None,
) -> UInt8[np.ndarray, "S S 3"]:
    """Return the image as a square, resized with antialiasing.

    Args:
        image: An RGB image.
        side: Side of the square in pixels.
        resize_mode: "crop" (shorter side to `side`, center kept), "pad" (longer side to `side`,
            padded with white), "trim" (a plain border removed, then "pad") or "stretch".
        extent: Width and height of the image in pixels, if a reduced decoding left its last row
            or column covered in part.
    """
    if isinstance(image, np.ndarray):
        if image.shape == (side, side, 3) and resize_mode != "trim":
            return image
        image = PIL.Image.fromarray(image)
    if resize_mode == "trim":
        image = trim_border(image)
        return _resize_padded(image, side, *image.size)
    width, height = extent or image.size
    if resize_mode == "pad":
        return _resize_padded(image, side, width, height)
    if resize_mode == "stretch":
        box = (0, 0, width, height)
    else:
        edge = min(width, height)
        box = (
            (width - edge) / 2,
            (height - edge) / 2,
            (width + edge) / 2,
            (height + edge) / 2,
        )
    return np.array(image.resize((side, side), BICUBIC, box, reducing_gap=3.0))


def resize_exact(
    image: PIL.Image.Image, side: int, resize_mode: str, shortest_edge: int, resample: str
) -> UInt8[np.ndarray, "S S 3"]:
    """Return the image as a square, bit for bit as the preprocessing of a pretrained model.

    Args:
        image: An RGB image.
        side: Side of the square in pixels.
        resize_mode: "stretch" resizes both sides to `shortest_edge`, the others the shorter side.
            Then the center is cut out; an odd remainder is rounded down, as in Hugging Face
            transformers, but half to even by "centre", as in torchvision.
        shortest_edge: Shorter side before cropping, in pixels; at least `side`.
        resample: Name of a Pillow filter, such as "bicubic".
    """
    method = PIL.Image.Resampling[resample.upper()]
    if resize_mode == "stretch":
        edge, margin = shortest_edge, (shortest_edge - side) // 2
        resized = image.resize((edge, edge), method)
        return np.array(resized.crop((margin, margin, margin + side, margin + side)))
    short = min(image.size)
    width, height = (
        shortest_edge if length == short else int(shortest_edge * length / short)
        for length in image.size
    )
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels, resized to {width} x {height}: more than the "
            f"limit of {MAX_IMAGE_PIXELS:,} pixels"
        )
    if resize_mode == "centre":
        left = round((width - side) / 2)
        top = round((height - side) / 2)
    else:
        left = (width - side) // 2
        top = (height - side) // 2
    resized = image.resize((width, height), method)
    return np.array(resized.crop((left, top, left + side, top + side)))


def jpeg_scale(width: int, height: int, side: int, resize_mode: str) -> int:
    """Return the factor (1, 2, 4 or 8) by which a JPEG may be reduced while it is decoded.

    At least twice the resolution that is needed remains.
    """
    if resize_mode == "trim":
        return 1  # the size of the border is not known yet
    edge = min(width, height)
    if resize_mode == "pad":
        edge = min(max(width, height), 2 * side * edge)
    return 1 << min(3, max(0, (edge // (2 * side)).bit_length() - 1))


def flatten_transparency(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert a transparent image to RGB on white, in bands that need little memory."""
    flat = PIL.Image.new("RGB", image.size)
    num_rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, num_rows):
        bottom = min(top + num_rows, image.height)
        band = image.crop((0, top, image.width, bottom)).convert("RGBA")
        white = PIL.Image.new("RGBA", band.size, "white")
        flat.paste(PIL.Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return flat


def trim_border(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return the image without its plain border, but for a thirtieth of the content's size.

    A plain border has the color of the top left pixel.
    """
    pixels = np.asarray(image)
    row_has_content = np.zeros(len(pixels), bool)
    column_has_content = np.zeros(pixels.shape[1], bool)
    num_rows = max(1, BAND_PIXELS // pixels.shape[1])
    for top in range(0, len(pixels), num_rows):
        band = pixels[top : top + num_rows].astype(np.int16)
        content = np.abs(band - pixels[0, 0].astype(np.int16)).max(-1) > BORDER_TOLERANCE
        row_has_content[top : top + num_rows] = content.any(1)
        column_has_content |= content.any(0)
    rows = np.flatnonzero(row_has_content)
    columns = np.flatnonzero(column_has_content)
    if not len(rows):
        return image
    top = int(rows[0])
    bottom = int(rows[-1]) + 1
    left = int(columns[0])
    right = int(columns[-1]) + 1
    margin = max(1, round(max(bottom - top, right - left) / 30))
    return image.crop(
        (
            max(0, left - margin),
            max(0, top - margin),
            min(image.width, right + margin),
            min(image.height, bottom + margin),
        )
    )


def _resize_padded(
    image: PIL.Image.Image, side: int, width: float, height: float
) -> UInt8[np.ndarray, "S S 3"]:
    """Resize the longer side to `side` and center the image on white."""
    scale = side / max(width, height)
    new_width = max(1, round(width * scale))
    new_height = max(1, round(height * scale))
    resized = image.resize(
        (new_width, new_height), BICUBIC, (0, 0, width, height), reducing_gap=3.0
    )
    top = (side - new_height) // 2
    left = (side - new_width) // 2
    out = np.full((side, side, 3), 255, np.uint8)
    out[top : top + new_height, left : left + new_width] = np.asarray(resized)
    return out
