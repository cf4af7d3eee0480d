"""Pictures: every format in, every broken file refused with the reason, and changes that keep what they promise."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch

from sensorium.errors import SensoriumError
from sensorium.modalities import image_decode as decoding
from sensorium.modalities.image import Image
from sensorium.modalities.image_augment import ImageAugmentation

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
LOSSY = {"JPEG": 12, "WEBP": 25, "GIF": 20}
CHANGES = [field.name for field in fields(ImageAugmentation)]


def smooth(wide: int = 60, high: int = 40) -> PIL.Image.Image:
    """A picture with a gradient in each channel, so that turns and colours can be told."""
    y, x = np.mgrid[0:high, 0:wide]
    pixels = np.stack([x * 255 / wide, y * 255 / high, 255 - x * 255 / wide], -1)
    return PIL.Image.fromarray(pixels.astype(np.uint8))


def encoded(picture: PIL.Image.Image, format: str = "PNG", **how: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **how)
    return out.getvalue()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mean_gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


# ---------------------------------------------------------------- what can be read


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_the_same_picture(format: str, tmp_path: Path) -> None:
    image = Image(size=32)
    data = encoded(smooth(), format)
    (tmp_path / "a").write_bytes(data)
    expected = image.load(smooth())
    assert expected.shape == (32, 32, 3)
    assert expected.dtype == np.uint8
    assert mean_gap(image.load(data), expected) <= LOSSY.get(format, 0)
    assert np.array_equal(image.load(tmp_path / "a"), image.load(data))
    assert (
        np.array_equal(image.load(PIL.Image.open(io.BytesIO(data))), image.load(data))
        or format == "JPEG"
    )


def test_arrays_of_one_three_and_four_channels() -> None:
    image, pixels = Image(size=16), np.asarray(smooth(16, 16))
    assert np.array_equal(image.load(pixels), pixels)
    grey = np.asarray(smooth(16, 16).convert("L"))
    assert np.array_equal(image.load(grey), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(image.load(grey[..., None]), image.load(grey))
    clear = np.dstack([pixels, np.zeros((16, 16), np.uint8)])
    assert (image.load(clear) == 255).all()


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"]
)
def test_every_mode_comes_as_rgb(mode: str) -> None:
    source = smooth().convert("RGB" if mode == "PA" else mode if mode not in ("I;16", "I") else "L")
    if mode == "PA":
        source = source.convert("P").convert("PA")
    if mode in ("I;16", "I"):
        deep = np.asarray(source).astype(np.uint16) * 257
        source = PIL.Image.fromarray(deep if mode == "I;16" else deep.astype(np.int32))
        assert source.mode == mode
    reference = (
        smooth().convert("L" if mode in ("L", "LA", "I;16", "I", "1") else "RGB").convert("RGB")
    )
    image = Image(size=5 if mode == "1" else 40)  # dots of black and white are grey from afar
    assert mean_gap(image.load(source), image.load(reference)) < 16


def test_what_is_clear_is_white() -> None:
    picture = smooth().convert("RGBA")
    picture.putalpha(PIL.Image.new("L", picture.size, 0))
    palette = smooth().convert("P")
    palette.info["transparency"] = bytes(256)
    clear = encoded(palette, "PNG", transparency=bytes(256))
    for data in (encoded(picture), encoded(picture, "WEBP", lossless=True), clear):
        assert (Image(size=8).load(data) == 255).all()
    half = PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert np.abs(Image(size=8).load(half).astype(int) - 127).max() <= 1


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("square", ["crop", "pad", "stretch"])
def test_pictures_stand_upright(turn: int, format: str, square: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x112] = turn
    data = encoded(smooth(), format, exif=exif)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB")
    assert (
        mean_gap(
            Image(size=24, resize_mode=square).load(data),
            Image(size=24, resize_mode=square).load(expected),
        )
        < 2.5
    )


def test_first_frame_of_an_animation() -> None:
    other = PIL.Image.new("RGB", (60, 40), "black")
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(smooth(), format, save_all=True, append_images=[other])
        assert mean_gap(Image(size=16).load(data), Image(size=16).load(smooth())) < 25


def test_the_three_ways_to_a_square() -> None:
    picture = PIL.Image.new("RGB", (80, 40), "red")
    picture.paste("blue", (0, 0, 20, 40))
    crop, pad, stretch = (
        Image(size=40, resize_mode=s).load(picture) for s in ("crop", "pad", "stretch")
    )
    assert (crop[:, 2:] == (255, 0, 0)).all()  # the blue quarter is cut off
    assert (pad[:10] == 255).all()
    assert (pad[30:] == 255).all()
    assert tuple(pad[20, 4]) == tuple(stretch[20, 4]) == (0, 0, 255)
    assert tuple(stretch[0, 39]) == (255, 0, 0)


def test_margin_keeps_more_of_the_picture() -> None:
    image, plain = Image(size=16, margin=4), Image(size=20)
    assert np.array_equal(image.load(smooth()), plain.load(smooth()))
    x = image.collate([image.load(smooth())])
    assert torch.equal(x, plain.collate([plain.load(smooth())])[..., 2:18, 2:18])


def test_large_jpegs_are_reduced_as_they_are_decoded() -> None:
    picture = smooth(1000, 700)
    for square in ("crop", "pad", "stretch"):
        image = Image(size=32, resize_mode=square)
        assert decoding.jpeg_scale(1000, 700, 32, square) == 8
        assert mean_gap(image.load(encoded(picture, "JPEG", quality=95)), image.load(picture)) < 1.5


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 60}])
@pytest.mark.parametrize("size", [(64, 64), (101, 77), (640, 480), (3000, 40)])
def test_simplejpeg_gives_the_pixels_of_pillow(
    how: dict, size: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("simplejpeg")
    data = encoded(smooth(*size), "JPEG", **how)
    loaders = [Image(size=s, resize_mode=q) for s in (16, 64) for q in ("crop", "pad", "stretch")]
    quick = [i.load(data) for i in loaders]
    assert all(
        decoding._decode_jpeg_fast(data, i.stored_size, i.resize_mode) is not None for i in loaders
    )
    monkeypatch.setattr(decoding, "_quick_jpeg", lambda *a: None)
    for image, pixels in zip(loaders, quick, strict=True):
        assert np.abs(pixels.astype(int) - image.load(data)).max() <= 1


@pytest.mark.parametrize("size", [(24, 24), (24, 30), (90, 60)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_picture_fills_the_room_it_is_given(format: str, size: tuple) -> None:
    turned = PIL.Image.Exif()
    turned[0x112] = 6
    for how in ({}, {"exif": turned}):
        data = encoded(smooth(*size), format, **how)
        for image in (
            Image(size=24),
            Image(size=24, resize_mode="trim"),
            Image(size=24, resample="bicubic"),
        ):
            room = np.full((2, 24, 24, 3), 7, np.uint8)
            assert image.load(data, out=room[1]) is not None
            assert np.array_equal(room[1], image.load(data))
            assert (room[0] == 7).all()


# ---------------------------------------------------------------- what cannot


def png_header(wide: int, high: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", wide, high, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


def bmp_header(wide: int, high: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHIIiiHHIIIIII", 100, 0, 0, 54, 40, wide, high, 1, 24, 0, 0, 0, 0, 0, 0)
        + bytes(60)
    )


def gif_header(wide: int, high: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, wide, high, 0) + b"\x08"
    return b"GIF89a" + struct.pack("<HHBBB", wide, high, 0, 0, 0) + frame


def webp_header(wide: int, high: int) -> bytes:
    size = (wide - 1).to_bytes(3, "little") + (high - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size


def tiff_header(wide: int, high: int) -> bytes:
    tags = [
        (256, wide),
        (257, high),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, high),
        (279, 4),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def jpeg_header(wide: int, high: int) -> bytes:
    data = bytearray(encoded(PIL.Image.new("RGB", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", high, wide)
    return bytes(data)


@pytest.mark.parametrize(
    "header", [png_header, bmp_header, gif_header, webp_header, tiff_header, jpeg_header]
)
def test_a_bomb_is_refused_by_its_header(header: Callable[[int, int], bytes]) -> None:
    with pytest.raises(
        ValueError, match=r"60000 x 50000 pixels|header is broken|exceeds limit|that are decoded"
    ):
        Image().load(header(60_000, 50_000))


def test_the_budget_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PIXELS", 2399)
    for raw in (encoded(smooth()), encoded(smooth(), "JPEG"), smooth(), np.asarray(smooth())):
        with pytest.raises(ValueError, match="60 x 40 pixels, more than the 2,399"):
            Image(size=8).load(raw)
    monkeypatch.setattr(decoding, "BYTES", 100)
    with pytest.raises(ValueError, match="more than the 100 that are read"):
        Image(size=8).load(Path(__file__))


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_cut_off_anywhere_is_refused_or_whole(format: str) -> None:
    data, image = encoded(smooth(), format), Image(size=16)
    whole = image.load(data)
    for end in range(0, len(data), max(1, len(data) // 50)):
        try:
            assert np.array_equal(image.load(data[:end]), whole), (
                "a part of a picture was taken for the whole"
            )
            assert end > 0.8 * len(data)  # only what follows the last pixel is gone
        except ValueError as e:
            assert str(e)


@pytest.mark.parametrize(
    "raw, reason",
    [
        (b"", "empty"),
        (b"hello, I am text", "not a JPEG, PNG"),
        (b"%PDF-1.4", "not a JPEG"),
        (b"<svg/>", "not a JPEG"),
        (Path("no/such/file.png"), "no such file"),
        (Path("."), "not a file"),
        (np.zeros((4, 4, 3), np.float32), "expected uint8"),
        (np.zeros((4, 4, 2), np.uint8), "expected uint8"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((2, 2, 2, 3), np.uint8), "expected uint8"),
    ],
)
def test_what_is_no_picture_is_refused(raw: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Image().load(raw)


def test_pixels_without_a_known_range_are_refused() -> None:
    with pytest.raises(ValueError, match="fractions"):
        Image().load(encoded(PIL.Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))
    with pytest.raises(ValueError, match="32 bits"):
        Image().load(encoded(PIL.Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"))


@pytest.mark.parametrize("format", FORMATS)
def test_files_changed_at_random_load_or_raise_valueerror(format: str) -> None:
    rng, data = np.random.default_rng(1), encoded(smooth(), format)
    for _ in range(120):
        broken = bytearray(data)
        for at in rng.integers(
            0, min(len(data), int(rng.choice([60, len(data)]))), rng.integers(1, 6)
        ):
            broken[at] = rng.integers(0, 256)
        try:
            assert Image(size=8).load(bytes(broken)).shape == (8, 8, 3)
        except ValueError as e:
            assert str(e)


# ---------------------------------------------------------------- settings


def test_settings_go_to_json_and_back() -> None:
    image = Image(size=48, resize_mode="pad", margin=3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert Image.from_json(image.to_json()) == image
    with pytest.raises(SensoriumError, match="sise"):
        Image.from_json({"sise": 3})


@pytest.mark.parametrize(
    "wrong",
    [{"square": "round"}, {"size": 0}, {"margin": -1}, {"size": 10**6}, {"std": (1.0, 0.0, 1.0)}],
)
def test_impossible_settings(wrong: dict) -> None:
    with pytest.raises(SensoriumError):
        Image(**wrong)


def test_fit_learns_mean_and_spread_of_what_can_be_read() -> None:
    rng = np.random.default_rng(0)
    pictures = [
        rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) // np.array([1, 2, 4], np.uint8)
        for _ in range(300)
    ]
    image = Image(size=8).fit([*pictures, b"broken", None])
    x = image.collate(pictures)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=0.02)
    assert torch.allclose(x.std((0, 2, 3)), torch.ones(3), atol=0.02)
    assert Image(size=8).fit([None, b"broken"]) == Image(size=8)
    assert min(Image(size=8).fit([np.zeros((8, 8, 3), np.uint8)]).std) > 0


def test_collate_normalises_and_show_undoes_it() -> None:
    image = Image(size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    pixels = [
        np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8) for i in range(70)
    ]
    x = image.collate(pixels)
    by_hand = (np.stack(pixels) / 255 - image.mean) / image.std
    assert x.dtype == torch.float32
    assert np.allclose(x.permute(0, 2, 3, 1).numpy(), by_hand, atol=1e-5)
    assert np.array_equal(np.asarray(image.decode(x[3])), pixels[3])
    assert image.collate([]).shape == (0, 3, 16, 16)
    assert image.fake(5, generator()).shape == (5, 3, 16, 16)


# ---------------------------------------------------------------- changes


@pytest.fixture
def stored() -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (24, 3, 20, 20), dtype=np.uint8)
    )


IMAGE = Image(size=16, margin=4)


def shown(x: torch.Tensor) -> torch.Tensor:
    return IMAGE._denormalize(x)


def test_nothing_changes_unless_asked(stored: torch.Tensor) -> None:
    plain = IMAGE.preprocess(stored)
    assert torch.equal(IMAGE.preprocess(stored, generator()), plain)
    assert torch.equal(IMAGE.augment(plain, generator()), plain)
    assert torch.equal(shown(plain), stored[..., 2:18, 2:18])


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_keeps_shape_and_range_and_repeats(name: str, stored: torch.Tensor) -> None:
    before, how = stored.clone(), {name: 10.0 if name == "rotate" else 0.5}
    x = IMAGE.preprocess(stored, generator(1), **how)
    assert x.shape == (24, 3, 16, 16)
    assert x.isfinite().all()
    raw = x * 0.5 + 0.5
    assert raw.min() >= -1e-3
    assert raw.max() <= 1 + 1e-3
    assert not torch.equal(x, IMAGE.preprocess(stored))
    assert torch.equal(x, IMAGE.preprocess(stored, generator(1), **how))
    assert not torch.equal(x, IMAGE.preprocess(stored, generator(2), **how))
    assert torch.equal(stored, before), "what is stored must not change"


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_works_on_normalised_batches(name: str) -> None:
    image = Image(size=16)
    x = image.fake(8, generator())
    before = x.clone()
    y = image.augment(x, generator(), **{name: 0.5})
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert torch.equal(x, before)


@pytest.mark.parametrize("how", [{"flip": 1.0}, {"flip": 1.0, "rotate": 1e-6}])
def test_flip_is_a_mirror_image(how: dict, stored: torch.Tensor) -> None:
    x = shown(IMAGE.preprocess(stored, generator(), **how))
    assert (x.int() - stored[..., 2:18, 2:18].flip(-1).int()).abs().max() <= 1


def test_shift_brings_in_the_margin_then_repeats_the_border() -> None:
    y, x = torch.meshgrid(torch.arange(20), torch.arange(20), indexing="ij")
    stored = torch.stack([y, x, x + y]).to(torch.uint8).expand(64, 3, 20, 20).contiguous()
    for how, most in (({"shift": 2 / 16}, 2), ({"shift": 6 / 16}, 6)):
        seen = shown(IMAGE.preprocess(stored, generator(), **how)).int()
        dy, dx = seen[:, 0, 8, 8] - 10, seen[:, 1, 8, 8] - 10
        assert dy.abs().max() == most
        assert dx.abs().max() == most
        place = torch.arange(16)
        expected = (2 + dy[:, None] + place).clamp(0, 19)
        assert torch.equal(seen[:, 0, :, 0], expected.int())


def test_colours_that_must_hold() -> None:
    stored = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (32, 3, 20, 20), dtype=np.uint8)
    )
    grey = shown(IMAGE.preprocess(stored, generator(), grey=1.0)).int()
    assert (grey.amax(1) - grey.amin(1)).max() <= 1
    plain = shown(IMAGE.preprocess(stored)).int()
    shuffled = shown(IMAGE.preprocess(stored, generator(), shuffle=1.0)).int()
    assert (shuffled.sort(1).values - plain.sort(1).values).abs().max() <= 1
    flat = torch.full((8, 3, 20, 20), 77, dtype=torch.uint8)
    for name in ("contrast", "saturation", "blur", "outline", "erase", "rotate", "crop"):
        how = {name: 0.5}
        assert (shown(IMAGE.preprocess(flat, generator(), **how)).int() - 77).abs().max() <= 1, how


def test_outlines_are_dark_and_only_at_edges() -> None:
    stored = torch.full((1, 3, 20, 20), 255, dtype=torch.uint8)
    stored[..., 10:] = 60
    for seed in range(10):  # column 7 is the last light one
        seen = shown(IMAGE.preprocess(stored, generator(seed), outline=1.0))[0, 0]
        assert seen[:, 7].max() <= 115
        assert (seen[:, :7] == 255).all()
        assert (seen[:, 9:] == 60).all()


def test_tint_leaves_paper_white() -> None:
    paper = torch.full((8, 3, 20, 20), 255, dtype=torch.uint8)
    paper[..., 5:9] = 90
    seen = shown(IMAGE.preprocess(paper, generator(), tint=0.5)).int()
    assert (seen[..., 8:] == 255).all()
    assert (seen[..., 4] - 90).abs().max() > 20


def test_a_hole_is_a_rectangle_of_the_mean(stored: torch.Tensor) -> None:
    plain, seen = IMAGE.preprocess(stored), IMAGE.preprocess(stored, generator(), erase=1.0)
    gone = (plain != seen).any(1)
    size = gone.any(1).sum(1) * gone.any(2).sum(1)
    assert (
        gone.sum((1, 2)) == size
    ).float().mean() > 0.9  # a pixel that had the mean colour does not tell
    assert size.min() >= 4
    assert size.max() <= 36


@pytest.mark.parametrize("wrong", [{"flip": -0.1}, {"shift": float("nan")}, {"crop": float("inf")}])
def test_impossible_changes(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImageAugmentation(**wrong)


def test_a_misspelt_change_is_a_typeerror(stored: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="flop"):
        IMAGE.preprocess(stored, generator(), flop=0.5)
