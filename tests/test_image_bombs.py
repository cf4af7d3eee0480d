"""Images that would take far more time or memory than their size: refused by their headers."""

# pyright: reportPrivateUsage=false

import io
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from sensorium.io.untrusted import MAX_IMAGE_SEGMENTS, MemoryBudget, check_unpacked_size
from sensorium.modalities import image_decode
from sensorium.modalities.image import Image
from sensorium.modalities.image_resize import trim_border

MAX_SECONDS = 240  # of a child process that decodes one file
LIMIT_AND_DECODE = """import resource, sys, time
from sensorium.modalities.image_decode import decode_image
import simplejpeg
kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(decode_image(sys.argv[1], 224, sys.argv[2]).shape)
except ValueError as e:
    print(e)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kib) // 1024)"""


def decode_in_child(data: bytes, folder: Path, mode: str = "crop") -> tuple[str, int]:
    """Return what decoding says, and the MiB it needed; a hang fails."""
    path = folder / "image"
    path.write_bytes(data)
    command = [sys.executable, "-c", LIMIT_AND_DECODE, str(path), mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MAX_SECONDS, check=True)
    result, mib = done.stdout.splitlines()
    return result, int(mib)


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png(
    width: int, height: int, depth: int = 8, color: int = 0, interlaced: int = 0, extra: bytes = b""
) -> bytes:
    """Return a PNG of zeros."""
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[color]
    packer = zlib.compressobj(1)
    row = bytes(1 + (width * channels * depth + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
    return start + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def jpeg(width: int, height: int, num_scans: int) -> bytes:
    """Return a progressive JPEG whose header claims this size and that has so many scans."""
    out = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), "red").save(out, "JPEG", progressive=True)
    data = out.getvalue()
    start = data.index(b"\xff\xc2") + 5
    data = data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff", data.index(b"\xff\xda", first) + 2 + 12)
    scan = data[first:second]
    present = data.count(b"\xff\xda", first)
    return data[:-2] + scan * (num_scans - present) + data[-2:]


@pytest.mark.parametrize("size", [(1, 88_999_999), (88_999_999, 1), (65_536, 2)])
def test_a_side_beyond_the_limit_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="more than the limit of 65,535 pixels a side"):
        Image().load(png_header(*size))


def test_a_jpeg_of_many_scans_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"300 scans of 9000 x 9000 .*limit of 17 scans.*not"):
        Image().load(jpeg(9000, 9000, 300))
    with pytest.raises(ValueError, match="more than the limit"):
        image_decode.decode_full_image(jpeg(9000, 9000, 300))


def test_scans_are_counted_without_those_of_thumbnails() -> None:
    plain = jpeg(64, 64, 10)
    assert image_decode._count_jpeg_scans(plain) == 10
    thumbnail = b"Exif\0\0" + jpeg(8, 8, 40)
    app1 = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    assert image_decode._count_jpeg_scans(plain[:2] + app1 + plain[2:]) == 10
    out = io.BytesIO()
    PIL.Image.new("RGB", (300, 300), "red").save(out, "JPEG")
    assert image_decode._count_jpeg_scans(out.getvalue()) == 1
    assert Image(size=8).load(plain).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: b"\xff\xd8" + b"\xff\xe0\0\2" * n + b"\xff\xd9",
        lambda n: png(2, 2, extra=chunk(b"vpAg", b"") * n),
    ],
    ids=["jpeg segments", "png chunks"],
)
def test_too_many_segments_are_refused(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decode, "MAX_IMAGE_SEGMENTS", 1000)
    assert callable(make)
    start = time.monotonic()
    with pytest.raises(ValueError, match="more than the limit of 1,000"):
        Image().load(make(2000))
    assert time.monotonic() - start < 5
    assert MAX_IMAGE_SEGMENTS >= 100_000  # of an honest PNG of a gigabyte


def test_tiff_of_many_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    PIL.Image.new("L", (4, 400)).save(out, "TIFF", tiffinfo={278: 1})
    assert Image(size=8).load(out.getvalue()).shape == (8, 8, 3)
    monkeypatch.setattr(image_decode, "MAX_IMAGE_SEGMENTS", 100)
    with pytest.raises(ValueError, match="400 strips or tiles, more than the limit of 100"):
        Image().load(out.getvalue())


@pytest.mark.parametrize("kind", ["lossy", "lossless"])
def test_webp_size_is_checked_before_it_is_opened(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.BytesIO()
    PIL.Image.new("RGB", (300, 200), "red").save(out, "WEBP", lossless=kind == "lossless")
    assert Image(size=8).load(out.getvalue()).shape == (8, 8, 3)
    monkeypatch.setattr(image_decode, "MAX_IMAGE_PIXELS", 59_999)
    monkeypatch.setitem(image_decode.READERS_BY_MAGIC, rb"RIFF....WEBP", image_decode.WebPImageFile)
    with pytest.raises(ValueError, match="300 x 200 pixels"):
        Image().load(out.getvalue())


@pytest.mark.parametrize("kind", ["zTXt", "iCCP", "iTXt"])
def test_packed_metadata_of_a_png_is_not_unpacked(kind: str, tmp_path: Path) -> None:
    packed = zlib.compress(bytes(512 << 20), 9)
    prefix = {"zTXt": b"k\0\0", "iCCP": b"k\0\0", "iTXt": b"k\0\1\0\0\0"}[kind]
    data = png(4, 4, extra=chunk(kind.encode(), prefix + packed))
    result, mib = decode_in_child(data, tmp_path)
    assert result == "(224, 224, 3)" or "header is broken" in result
    assert mib < 200


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_only_the_first_frame_is_decoded(format: str, tmp_path: Path) -> None:
    frames = [PIL.Image.new("RGB", (64, 64), (i % 256, i // 256, 9)) for i in range(1500)]
    out = io.BytesIO()
    frames[0].save(out, format, save_all=True, append_images=frames[1:])
    result, mib = decode_in_child(out.getvalue(), tmp_path)
    assert result == "(224, 224, 3)"
    assert mib < 100


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (png(8192, 8192, color=2), "crop"),
        (png(9400, 9400, color=6), "trim"),
        (png(9400, 9400, depth=16, color=0), "pad"),
        (png(9400, 9400, depth=1, color=0, interlaced=0), "crop"),
        (png(65_535, 1300, color=6), "pad"),
    ],
    ids=["8192 square", "transparent", "16 bits", "1 bit", "panorama"],
)
def test_a_large_image_is_decoded_within_the_budget(data: bytes, mode: str, tmp_path: Path) -> None:
    result, mib = decode_in_child(data, tmp_path, mode)
    assert result == "(224, 224, 3)" or "scale is unknown" in result or "have 16 bits" in result
    assert mib < 1400


@pytest.mark.parametrize("progressive", [False, True])
def test_a_photo_of_50_megapixels_is_decoded(progressive: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = PIL.Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
    out = io.BytesIO()
    small.resize((8192, 6144)).save(out, "JPEG", progressive=progressive)
    result, mib = decode_in_child(out.getvalue(), tmp_path)
    assert result == "(224, 224, 3)"
    assert mib < 700


def test_banded_conversion_equals_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (37, 23, 4), np.uint8)
    image = PIL.Image.fromarray(pixels)
    palette = PIL.Image.fromarray(pixels[..., :3]).quantize(16)
    palette.info["transparency"] = 3
    framed = np.full((37, 23, 3), 200, np.uint8)
    framed[5:20, 7:15] = 10
    whole = [np.asarray(image_decode._to_rgb(i)) for i in (image, palette)]
    trimmed = np.asarray(trim_border(PIL.Image.fromarray(framed)))
    monkeypatch.setattr("sensorium.modalities.image_resize.BAND_PIXELS", 100)
    for expected, banded in zip(whole, (image, palette), strict=True):
        assert np.array_equal(np.asarray(image_decode._to_rgb(banded)), expected)
    assert np.array_equal(np.asarray(trim_border(PIL.Image.fromarray(framed))), trimmed)
    white = PIL.Image.new("RGBA", image.size, "white")
    assert np.array_equal(
        whole[0], np.asarray(PIL.Image.alpha_composite(white, image).convert("RGB"))
    )


# Budgets


def test_threads_share_one_budget() -> None:
    budget = MemoryBudget(100)
    held: list[int] = [0]
    highest: list[int] = [0]
    lock = threading.Lock()

    def work(amount: int) -> None:
        with budget.reserve(amount):
            with lock:
                held[0] += min(amount, 100)
                highest[0] = max(highest[0], held[0])
            time.sleep(0.005)
            with lock:
                held[0] -= min(amount, 100)

    threads = [threading.Thread(target=work, args=(n,)) for n in [30, 60, 1000, 10, 50] * 6]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert 60 < highest[0] <= 100


def test_decoding_takes_part_in_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved: list[int] = []

    class Recorder(MemoryBudget):
        def reserve(self, num_bytes: int):  # type: ignore[no-untyped-def]
            reserved.append(num_bytes)
            return super().reserve(num_bytes)

    monkeypatch.setattr(image_decode, "DECODE_BUDGET", Recorder(1000))
    Image(size=8).load(png(50, 40, color=6))
    Image(size=8).load(jpeg(64, 64, 10))
    image_decode.decode_full_image(png(50, 40))
    assert reserved[0] == reserved[-1] == 50 * 40 * 8
    assert reserved[1] >= 64 * 64 * 6


def test_packed_files_have_a_limit_that_grows_with_them() -> None:
    assert check_unpacked_size(1000, 1, 1000) == ""
    assert check_unpacked_size(100_000, 1000, 1000) == ""
    message = check_unpacked_size(100_001, 1000, 1000)
    assert "its 1,000 bytes unpack to 100,001 or more; the limit is 100,000" in message
