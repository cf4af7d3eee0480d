"""Images: every format, rejected files with the reason, settings, and augmentation."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch

from sensorium.errors import SensoriumError
from sensorium.modalities import image_decode, image_resize
from sensorium.modalities.image import Image
from sensorium.modalities.image_augment import ImageAugmentation

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
LOSSY = {"JPEG": 12, "WEBP": 25, "GIF": 20}
AUGMENTATIONS = [field.name for field in fields(ImageAugmentation)]


def gradient_image(width: int = 60, height: int = 40) -> PIL.Image.Image:
    """Return an image with a gradient in each channel, to tell rotations and channels apart."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 / width, y * 255 / height, 255 - x * 255 / width], -1)
    return PIL.Image.fromarray(pixels.astype(np.uint8))


def encode(image: PIL.Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


# Readable images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_the_same_pixels(format: str, tmp_path: Path) -> None:
    image = Image(size=32)
    data = encode(gradient_image(), format)
    (tmp_path / "a").write_bytes(data)
    expected = image.load(gradient_image())
    assert expected.shape == (32, 32, 3)
    assert expected.dtype == np.uint8
    assert mean_difference(image.load(data), expected) <= LOSSY.get(format, 0)
    assert np.array_equal(image.load(tmp_path / "a"), image.load(data))
    assert (
        np.array_equal(image.load(PIL.Image.open(io.BytesIO(data))), image.load(data))
        or format == "JPEG"
    )


def test_arrays_of_one_three_and_four_channels() -> None:
    image, pixels = Image(size=16), np.asarray(gradient_image(16, 16))
    assert np.array_equal(image.load(pixels), pixels)
    grey = np.asarray(gradient_image(16, 16).convert("L"))
    assert np.array_equal(image.load(grey), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(image.load(grey[..., None]), image.load(grey))
    clear = np.dstack([pixels, np.zeros((16, 16), np.uint8)])
    assert (image.load(clear) == 255).all()


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"]
)
def test_every_pillow_mode_is_converted_to_rgb(mode: str) -> None:
    if mode == "PA":
        source = gradient_image().convert("P").convert("PA")
    elif mode in ("I;16", "I"):
        source = gradient_image().convert("L")
        wide = np.asarray(source).astype(np.uint16) * 257
        source = PIL.Image.fromarray(wide if mode == "I;16" else wide.astype(np.int32))
        assert source.mode == mode
    else:
        source = gradient_image().convert(mode)
    reference = (
        gradient_image()
        .convert("L" if mode in ("L", "LA", "I;16", "I", "1") else "RGB")
        .convert("RGB")
    )
    image = Image(size=5 if mode == "1" else 40)  # dithering averages out
    assert mean_difference(image.load(source), image.load(reference)) < 16


def test_transparent_pixels_are_white() -> None:
    source = gradient_image().convert("RGBA")
    source.putalpha(PIL.Image.new("L", source.size, 0))
    palette = gradient_image().convert("P")
    palette.info["transparency"] = bytes(256)
    clear = encode(palette, "PNG", transparency=bytes(256))
    for data in (encode(source), encode(source, "WEBP", lossless=True), clear):
        assert (Image(size=8).load(data) == 255).all()
    half = PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert np.abs(Image(size=8).load(half).astype(int) - 127).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("resize_mode", ["crop", "pad", "stretch"])
def test_exif_orientation_is_applied(orientation: int, format: str, resize_mode: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x112] = orientation
    data = encode(gradient_image(), format, exif=exif)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB")
    image = Image(size=24, resize_mode=resize_mode)
    assert mean_difference(image.load(data), image.load(expected)) < 2.5


def test_animation_gives_its_first_frame() -> None:
    other = PIL.Image.new("RGB", (60, 40), "black")
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encode(gradient_image(), format, save_all=True, append_images=[other])
        assert (
            mean_difference(Image(size=16).load(data), Image(size=16).load(gradient_image())) < 25
        )


def test_crop_pad_and_stretch() -> None:
    source = PIL.Image.new("RGB", (80, 40), "red")
    source.paste("blue", (0, 0, 20, 40))
    crop, pad, stretch = (
        Image(size=40, resize_mode=s).load(source) for s in ("crop", "pad", "stretch")
    )
    assert (crop[:, 2:] == (255, 0, 0)).all()  # the blue quarter is cropped
    assert (pad[:10] == 255).all()
    assert (pad[30:] == 255).all()
    assert tuple(pad[20, 4]) == tuple(stretch[20, 4]) == (0, 0, 255)
    assert tuple(stretch[0, 39]) == (255, 0, 0)


def test_margin_stores_more_of_the_image() -> None:
    image, plain = Image(size=16, margin=4), Image(size=20)
    assert np.array_equal(image.load(gradient_image()), plain.load(gradient_image()))
    x = image.collate([image.load(gradient_image())])
    assert torch.equal(x, plain.collate([plain.load(gradient_image())])[..., 2:18, 2:18])


def test_large_jpegs_are_reduced_while_decoding() -> None:
    source = gradient_image(1000, 700)
    for resize_mode in ("crop", "pad", "stretch"):
        image = Image(size=32, resize_mode=resize_mode)
        assert image_resize.jpeg_scale(1000, 700, 32, resize_mode) == 8
        assert (
            mean_difference(image.load(encode(source, "JPEG", quality=95)), image.load(source))
            < 1.5
        )


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 60}]
)
@pytest.mark.parametrize("size", [(64, 64), (101, 77), (640, 480), (3000, 40)])
def test_simplejpeg_gives_the_pixels_of_pillow(
    options: dict[str, Any], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("simplejpeg")
    data = encode(gradient_image(*size), "JPEG", **options)
    loaders = [Image(size=s, resize_mode=q) for s in (16, 64) for q in ("crop", "pad", "stretch")]
    fast = []
    with monkeypatch.context() as patch:
        patch.setattr(image_decode, "_open_image", lambda _: pytest.fail("decoded by Pillow"))
        fast = [i.load(data) for i in loaders]
    monkeypatch.setattr(image_decode, "_decode_jpeg_fast", lambda *_: None)
    for image, pixels in zip(loaders, fast, strict=True):
        assert np.abs(pixels.astype(int) - image.load(data)).max() <= 1


@pytest.mark.parametrize("size", [(24, 24), (24, 30), (90, 60)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_load_fills_the_given_array(format: str, size: tuple[int, int]) -> None:
    exif = PIL.Image.Exif()
    exif[0x112] = 6
    options: dict[str, Any]
    for options in ({}, {"exif": exif}):
        data = encode(gradient_image(*size), format, **options)
        for image in (
            Image(size=24),
            Image(size=24, resize_mode="trim"),
            Image(size=24, resample="bicubic"),
        ):
            out = np.full((2, 24, 24, 3), 7, np.uint8)
            assert image.load(data, out=out[1]) is not None
            assert np.array_equal(out[1], image.load(data))
            assert (out[0] == 7).all()


# Rejected images ----------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


def bmp_header(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHIIiiHHIIIIII", 100, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        + bytes(60)
    )


def gif_header(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + frame


def webp_header(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size


def tiff_header(width: int, height: int) -> bytes:
    tags = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, 4),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(encode(PIL.Image.new("RGB", (8, 8)), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "header", [png_header, bmp_header, gif_header, webp_header, tiff_header, jpeg_header]
)
def test_decompression_bomb_is_rejected_by_its_header(header: Callable[[int, int], bytes]) -> None:
    with pytest.raises(
        ValueError, match=r"60000 x 50000 pixels|header is broken|exceeds limit|more than the limit"
    ):
        Image().load(header(60_000, 50_000))


def test_pixel_and_file_size_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decode, "MAX_IMAGE_PIXELS", 2399)
    for raw in (
        encode(gradient_image()),
        encode(gradient_image(), "JPEG"),
        gradient_image(),
        np.asarray(gradient_image()),
    ):
        with pytest.raises(ValueError, match="60 x 40 pixels, more than the limit of 2,399"):
            Image(size=8).load(raw)
    monkeypatch.setattr(image_decode, "MAX_IMAGE_FILE_BYTES", 100)
    with pytest.raises(ValueError, match="more than the limit of 100"):
        Image(size=8).load(Path(__file__))


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_file_is_rejected_or_complete(format: str) -> None:
    data, image = encode(gradient_image(), format), Image(size=16)
    complete = image.load(data)
    for end in range(0, len(data), max(1, len(data) // 50)):
        try:
            pixels = image.load(data[:end])
        except ValueError:
            continue
        assert np.array_equal(pixels, complete), "an incomplete image was accepted"
        assert end > 0.8 * len(data)  # only trailing data is missing


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am text", "not a JPEG, PNG"),
        (b"%PDF-1.4", "not a JPEG"),
        (b"<svg/>", "not a JPEG"),
        (Path("no/such/file.png"), "no such file"),
        (Path(), "not a file"),
        (np.zeros((4, 4, 3), np.float32), "expected an array uint8"),
        (np.zeros((4, 4, 2), np.uint8), "expected an array uint8"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((2, 2, 2, 3), np.uint8), "expected an array uint8"),
    ],
)
def test_value_that_is_not_an_image_is_rejected(raw: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Image().load(raw)


def test_pixels_without_a_known_range_are_rejected() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        Image().load(encode(PIL.Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))
    with pytest.raises(ValueError, match="32 bits"):
        Image().load(encode(PIL.Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"))


@pytest.mark.parametrize("format", FORMATS)
def test_corrupted_file_loads_or_raises_valueerror(format: str) -> None:
    rng, data = np.random.default_rng(1), encode(gradient_image(), format)
    for _ in range(120):
        broken = bytearray(data)
        end = min(len(data), int(rng.choice([60, len(data)])))
        for position in rng.integers(0, end, rng.integers(1, 6)):
            broken[position] = rng.integers(0, 256)
        try:
            pixels = Image(size=8).load(bytes(broken))
        except ValueError:
            continue
        assert pixels.shape == (8, 8, 3)


# Settings -----------------------------------------------------------------------------------------


def test_settings_json_round_trip() -> None:
    image = Image(size=48, resize_mode="pad", margin=3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert Image.from_json(image.to_json()) == image
    with pytest.raises(SensoriumError, match="sise"):
        Image.from_json({"sise": 3})


@pytest.mark.parametrize(
    "settings",
    [
        {"resize_mode": "round"},
        {"size": 0},
        {"margin": -1},
        {"size": 10**6},
        {"std": (1.0, 0.0, 1.0)},
        {"resample": "cubic"},
        {"resample": "bicubic", "resize_mode": "pad"},
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    name = list(settings)[-1]
    with pytest.raises(SensoriumError, match=f"{name}="):
        Image(**settings)


def test_fit_learns_mean_and_std_of_readable_images() -> None:
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) // np.array([1, 2, 4], np.uint8)
        for _ in range(300)
    ]
    image = Image(size=8).fit([*images, b"broken", None])
    x = image.collate(images)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=0.02)
    assert torch.allclose(x.std((0, 2, 3)), torch.ones(3), atol=0.02)
    assert Image(size=8).fit([None, b"broken"]) == Image(size=8)
    assert min(Image(size=8).fit([np.zeros((8, 8, 3), np.uint8)]).std) > 0


def test_collate_normalizes_and_decode_inverts_it() -> None:
    image = Image(size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    pixels = [
        np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8) for i in range(70)
    ]
    x = image.collate(pixels)
    expected = (np.stack(pixels) / 255 - image.mean) / image.std
    assert x.dtype == torch.float32
    assert np.allclose(x.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert np.array_equal(np.asarray(image.decode(x[3])), pixels[3])
    assert image.collate([]).shape == (0, 3, 16, 16)
    assert image.fake(5, generator()).shape == (5, 3, 16, 16)


# Augmentation -------------------------------------------------------------------------------------


@pytest.fixture
def stored() -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (24, 3, 20, 20), dtype=np.uint8)
    )


IMAGE = Image(size=16, margin=4)


def denormalize(x: torch.Tensor) -> torch.Tensor:
    return IMAGE.denormalize(x)


def test_no_augmentation_without_options(stored: torch.Tensor) -> None:
    plain = IMAGE.preprocess(stored)
    assert torch.equal(IMAGE.preprocess(stored, generator()), plain)
    assert torch.equal(IMAGE.augment(plain, generator()), plain)
    assert torch.equal(denormalize(plain), stored[..., 2:18, 2:18])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_keeps_shape_and_range_and_is_reproducible(
    name: str, stored: torch.Tensor
) -> None:
    before = stored.clone()
    options = {name: 10.0 if name == "rotate" else 0.5}
    x = IMAGE.preprocess(stored, generator(1), **options)
    assert x.shape == (24, 3, 16, 16)
    assert x.isfinite().all()
    raw = x * 0.5 + 0.5
    assert raw.min() >= -1e-3
    assert raw.max() <= 1 + 1e-3
    assert not torch.equal(x, IMAGE.preprocess(stored))
    assert torch.equal(x, IMAGE.preprocess(stored, generator(1), **options))
    assert not torch.equal(x, IMAGE.preprocess(stored, generator(2), **options))
    assert torch.equal(stored, before), "stored images must not change"


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_of_normalized_batches(name: str) -> None:
    image = Image(size=16)
    x = image.fake(8, generator())
    before = x.clone()
    y = image.augment(x, generator(), **{name: 0.5})
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert torch.equal(x, before)


@pytest.mark.parametrize("options", [{"flip": 1.0}, {"flip": 1.0, "rotate": 1e-6}])
def test_flip_mirrors_the_image(options: dict[str, float], stored: torch.Tensor) -> None:
    x = denormalize(IMAGE.preprocess(stored, generator(), **options))
    assert (x.int() - stored[..., 2:18, 2:18].flip(-1).int()).abs().max() <= 1


def test_shift_uses_the_margin_then_repeats_the_border() -> None:
    y, x = torch.meshgrid(torch.arange(20), torch.arange(20), indexing="ij")
    stored = torch.stack([y, x, x + y]).to(torch.uint8).expand(64, 3, 20, 20).contiguous()
    for options, limit in (({"shift": 2 / 16}, 2), ({"shift": 6 / 16}, 6)):
        output = denormalize(IMAGE.preprocess(stored, generator(), **options)).int()
        dy, dx = output[:, 0, 8, 8] - 10, output[:, 1, 8, 8] - 10
        assert dy.abs().max() == limit
        assert dx.abs().max() == limit
        position = torch.arange(16)
        expected = (2 + dy[:, None] + position).clamp(0, 19)
        assert torch.equal(output[:, 0, :, 0], expected.int())


def test_color_augmentations_keep_their_invariants() -> None:
    stored = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (32, 3, 20, 20), dtype=np.uint8)
    )
    grey = denormalize(IMAGE.preprocess(stored, generator(), grayscale=1.0)).int()
    assert (grey.amax(1) - grey.amin(1)).max() <= 1
    plain = denormalize(IMAGE.preprocess(stored)).int()
    shuffled = denormalize(IMAGE.preprocess(stored, generator(), channel_shuffle=1.0)).int()
    assert (shuffled.sort(1).values - plain.sort(1).values).abs().max() <= 1
    flat = torch.full((8, 3, 20, 20), 77, dtype=torch.uint8)
    for name in ("contrast", "saturation", "blur", "outline", "erase", "rotate", "crop"):
        output = denormalize(IMAGE.preprocess(flat, generator(), **{name: 0.5})).int()
        assert (output - 77).abs().max() <= 1, name


def test_outlines_are_dark_and_only_at_edges() -> None:
    stored = torch.full((1, 3, 20, 20), 255, dtype=torch.uint8)
    stored[..., 10:] = 60
    for seed in range(10):  # column 7 is the last bright one
        output = denormalize(IMAGE.preprocess(stored, generator(seed), outline=1.0))[0, 0]
        assert output[:, 7].max() <= 115
        assert (output[:, :7] == 255).all()
        assert (output[:, 9:] == 60).all()


def test_tint_keeps_white() -> None:
    white = torch.full((8, 3, 20, 20), 255, dtype=torch.uint8)
    white[..., 5:9] = 90
    output = denormalize(IMAGE.preprocess(white, generator(), tint=0.5)).int()
    assert (output[..., 8:] == 255).all()
    assert (output[..., 4] - 90).abs().max() > 20


def test_erase_fills_one_rectangle(stored: torch.Tensor) -> None:
    plain = IMAGE.preprocess(stored)
    erased = (plain != IMAGE.preprocess(stored, generator(), erase=1.0)).any(1)
    size = erased.any(1).sum(1) * erased.any(2).sum(1)
    # A pixel that had the mean color before does not count as erased.
    assert (erased.sum((1, 2)) == size).float().mean() > 0.9
    assert size.min() >= 4
    assert size.max() <= 36


@pytest.mark.parametrize(
    "options", [{"flip": -0.1}, {"shift": float("nan")}, {"crop": float("inf")}]
)
def test_invalid_strength_is_rejected(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ImageAugmentation(**options)


def test_unknown_augmentation_is_a_typeerror(stored: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="flop"):
        IMAGE.preprocess(stored, generator(), flop=0.5)
