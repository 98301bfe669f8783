"""Decoding: what each kind of picture becomes in RGB, what is refused before it is decoded, and fuzz."""

import struct
import subprocess
import sys
import zlib

import image_files as files
import numpy as np
import pytest
from image_files import chunk, png, saved, tiff
from PIL import Image, ImageFile

from mmlib.data import decoding
from mmlib.data.decoding import decode_image, image_suffix, resize_image, to_rgb

RED, GREEN, BLACK, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 0), (255, 255, 255)


def grey(*levels):
    return [(level,) * 3 for level in levels]


def pixels_of(image: Image.Image) -> list[tuple]:
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def of_values(dtype, *values) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


def coloured(mode: str, *colours) -> Image.Image:
    image = Image.new(mode, (len(colours), 1))
    for x, colour in enumerate(colours):
        image.putpixel((x, 0), colour)
    return image


def u16(*values):
    return struct.pack(f"<{len(values)}H", *values)


ONE = saved(coloured("1", 0, 255), "PNG")
# 16 bits: 40,000 >> 8 = 156, as Pillow gives it in colour.  12 bits: 2,048 >> 4 = 128; three bytes hold two.
TABLE = {
    "1": (ONE, [BLACK, WHITE]),
    "1, black transparent": (saved(coloured("1", 0, 255), "PNG", transparency=0), [WHITE, WHITE]),
    "L": (saved(coloured("L", 0, 77), "PNG"), grey(0, 77)),
    "L, 77 transparent": (saved(coloured("L", 0, 77), "PNG", transparency=77), grey(0, 255)),
    "L of 2 bits": (png(4, 1, 2, 0, b"\0\x1b"), grey(0, 85, 170, 255)),
    "L of 2 bits, 1 transparent": (
        png(4, 1, 2, 0, b"\0\x1b", chunk(b"tRNS", b"\0\1")), grey(0, 255, 170, 255)),
    "L of 4 bits, 14 transparent": (png(2, 1, 4, 0, b"\0\x3e", chunk(b"tRNS", b"\0\x0e")), grey(51, 255)),
    "L, white is zero": (tiff(2, 1, 8, b"\0\x4d", white_is_zero=True), grey(255, 178)),
    "P": (saved(coloured("RGB", RED, GREEN).quantize(2), "PNG"), [RED, GREEN]),
    "LA": (saved(coloured("LA", (0, 255), (0, 0), (0, 51)), "PNG"), grey(0, 255, 204)),
    "RGB, red transparent": (saved(coloured("RGB", RED, GREEN), "PNG", transparency=RED), [WHITE, GREEN]),
    "RGB of 16 bits": (png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 40000, 257, 65535)), [(156, 1, 255)]),
    "RGB of 16 bits, one transparent": (
        png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 40000, 257, 65535, 0, 0, 0),
            chunk(b"tRNS", struct.pack(">3H", 40000, 257, 65535))), [WHITE, BLACK]),
    "RGBA": (saved(coloured("RGBA", (*RED, 255), (0, 0, 0, 0), (0, 0, 0, 51)), "PNG"),
             [RED, WHITE, (204,) * 3]),
    "RGBA of WebP": (saved(coloured("RGBA", (*RED, 255), (9, 9, 9, 0)), "WEBP", lossless=True), [RED, WHITE]),
    "RGBX of TIFF": (saved(coloured("RGBX", (*RED, 7)), "TIFF"), [RED]),
    "CMYK": (saved(coloured("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "TIFF"), [RED, BLACK]),
    "CMYK of Adobe's inverted JPEG": (
        saved(Image.new("CMYK", (1, 1), (0, 0, 0, 255)), "JPEG", quality=100), [BLACK]),
    "YCbCr": (saved(coloured("YCbCr", (100, 128, 128)), "TIFF"), grey(100)),
    "I;16 of PNG": (saved(of_values(np.uint16, 0, 40000, 65535), "PNG"), grey(0, 156, 255)),
    "I;16 of PNG, 40000 transparent": (
        saved(of_values(np.uint16, 0, 40000, 65535), "PNG", transparency=40000), grey(0, 255, 255)),
    "I;16 of TIFF": (tiff(3, 1, 16, u16(0, 40000, 65535)), grey(0, 156, 255)),
    "I;16 of compressed TIFF": (
        saved(of_values(np.uint16, 0, 40000, 65535), "TIFF", compression="tiff_lzw"), grey(0, 156, 255)),
    "I;16 of TIFF, white is zero": (
        tiff(3, 1, 16, u16(0, 40000, 65535), white_is_zero=True), grey(255, 99, 0)),
    "I;16B": (saved(Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 256, 40000)), "TIFF"), grey(1, 156)),
    "12 bits": (tiff(2, 1, 12, b"\x80\x0f\xff"), grey(128, 255)),
    "first frame of GIF": (
        saved(coloured("P", 0), "GIF", save_all=True, append_images=[Image.new("L", (1, 1), 9)]), [BLACK]),
    "first frame of WebP": (
        saved(coloured("RGB", RED), "WEBP", save_all=True, append_images=[Image.new("RGB", (1, 1))],
              lossless=True), [RED]),
    "first page of TIFF": (
        saved(coloured("L", 7), "TIFF", save_all=True, append_images=[coloured("L", 200)]), grey(7)),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLE)
def test_every_kind_of_file_becomes_the_colours_that_were_meant(kind):
    content, expected = TABLE[kind]
    image = decode_image(content, "x")
    assert (image.mode, pixels_of(image)) == ("RGB", expected)


def test_pixel_modes_that_no_file_has():
    half = coloured("RGBA", (200, 100, 50, 128))  # over white: 200 · 128/255 + 127 = 227, …
    assert pixels_of(to_rgb(half)) == [(227, 177, 152)]
    premultiplied = half.convert("RGBa")
    assert pixels_of(to_rgb(premultiplied)) == [(227, 177, 152)]  # 199, 99, 49 after rounding, over white
    assert pixels_of(to_rgb(coloured("La", (0, 51)))) == grey(204)
    assert pixels_of(to_rgb(coloured("HSV", (0, 255, 255)))) == [RED]
    palette = Image.new("PA", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), (1, 0))
    palette.putpixel((0, 0), (0, 255))
    assert pixels_of(to_rgb(palette)) == [RED, WHITE]
    for mode in ("I;16", "I;16L", "I;16B", "I;16N"):
        order = ">" if mode == "I;16B" else "<" if mode != "I;16N" else "="
        image = Image.frombytes(mode, (1, 1), struct.pack(f"{order}H", 40000))
        assert pixels_of(to_rgb(image)) == grey(156), mode


@pytest.mark.parametrize(
    "content",
    [
        saved(of_values(np.float32, 0, 1), "TIFF"),
        saved(of_values(np.float32, 0, np.nan), "TIFF"),
        saved(of_values(np.int32, 0, 40000), "TIFF"),
        saved(Image.new("LAB", (1, 1)), "TIFF"),
        tiff(2, 1, 32, struct.pack("<2I", 2**31, 2**32 - 1)),
        tiff(1, 1, 16, u16(7), sample_format=2),
        tiff(1, 1, 8, b"\xff", sample_format=2),
    ],
)
def test_values_of_which_nothing_says_what_is_white_are_refused(content):
    with pytest.raises(
        ValueError, match=r"cannot decode x.tif: expected colours or grey .* save it with 8 or 16 bits"
    ):
        decode_image(content, "x.tif")


def test_fewer_colours_than_pixels_are_refused_where_they_would_be_noise():
    """Of 2 x 2 pixels: four of brightness, one pair of colours.  Pillow takes them for two whole pixels."""
    image = Image.new("YCbCr", (2, 2), (100, 128, 128))
    assert pixels_of(decode_image(saved(image, "TIFF"), "x")) == grey(100) * 4
    raw = saved(image, "TIFF", tiffinfo={530: (2, 2)})
    with pytest.raises(ValueError, match=r"cannot decode x\.tif: expected one colour for each pixel, or"):
        decode_image(raw, "x.tif")


def test_a_picture_that_is_too_large_is_an_error_without_a_warning_before_it(tmp_path):
    """In a process of its own, since pytest sets filters for warnings."""
    (tmp_path / "x.png").write_bytes(png(9000, 9000, 8, 0, b"\0"))
    code = (
        "import pathlib, sys; from mmlib.data.decoding import decode_image\n"
        "try: decode_image(pathlib.Path(sys.argv[1]).read_bytes(), 'x.png')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.png"], capture_output=True, text=True, check=True
    )
    message = "cannot decode x.png: expected at most 67,108,864 pixels, found 9,000 x 9,000; shrink it or"
    assert (done.stderr, done.stdout[: len(message)]) == ("", message)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "deep"])
def test_exif_orientation_is_applied_once(form):
    """6: to be turned by 90 degrees clockwise, which brings the left column to the top."""
    level_HW = np.repeat([[0, 255]], 8, axis=1).repeat(8, axis=0).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    if form == "deep":
        content = saved(Image.fromarray(level_HW.astype(np.uint16) * 257), "PNG", exif=exif)
    else:
        content = saved(Image.fromarray(level_HW).convert("RGB"), form, exif=exif)
    image = decode_image(content, "x")
    assert image.size == (8, 16)
    found_HW = np.asarray(image)[..., 0]
    assert found_HW[:6].max() < 20
    assert found_HW[-6:].min() > 235


def test_only_photo_formats_are_opened(monkeypatch):
    """A PostScript file never reaches Ghostscript, by whatever name."""
    eps = saved(Image.new("RGB", (4, 4)), "EPS")
    monkeypatch.setattr(subprocess, "Popen", None)
    others = [
        eps,
        saved(Image.new("RGB", (4, 4)), "PPM"),
        saved(Image.new("RGB", (16, 16)), "ICO"),
        b"",
        b"x",
    ]
    for content in others:
        with pytest.raises(
            ValueError, match=r"cannot decode x\.jpg: expected a JPEG, PNG, WebP, GIF, BMP or TIFF"
        ):
            decode_image(content, "x.jpg")
    for name, content in files.of_every_format().items():
        ending = {"mpo": "jpg"}.get(name.rpartition(".")[2], name.rpartition(".")[2])
        assert image_suffix(content, name) == ending
        assert decode_image(content, "any.name").size in {(32, 24), (24, 32), (8, 8)}


def test_a_name_from_a_stranger_cannot_move_the_cursor():
    with pytest.raises(ValueError, match=r"cannot decode \\x1b\[2Jx\.jpg: "):
        decode_image(b"", "\x1b[2Jx.jpg")


def patched(content: bytes, at: int, form: str, *values: int) -> bytes:
    return content[:at] + struct.pack(form, *values) + content[at + struct.calcsize(form) :]


def bombs() -> dict[str, tuple[bytes, str]]:
    """Files of some kilobytes that would take gigabytes, and what is said of them."""
    small = Image.new("RGB", (8, 8))
    jpeg, lossless = saved(small, "JPEG"), saved(small, "WEBP", lossless=True)
    header = jpeg.index(b"\xff\xc0") + 5
    many = f"expected at most {decoding.MAX_PIXELS:,} pixels, found "
    thin = "expected a longer side of at most 50 times the shorter, found 1 x 65,500; cut it"
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200 << 20), 9))
    scans = saved(small, "JPEG", progressive=True)
    scan = scans[scans.rindex(b"\xff\xda") : -2]
    row = b"\0" + bytes(30000 // 8)
    return {
        "flat.png": (png(30000, 30000, 1, 0, row * 30000), f"{many}900,000,000 pixels; shrink it"),
        "over.png": (png(9000, 9000, 1, 0, b""), f"{many}9,000 x 9,000; shrink it"),
        "a.jpg": (patched(jpeg, header, ">HH", 65000, 65000), f"{many}4,225,000,000 pixels"),
        "a.webp": (patched(lossless, 21, "<I", 16382 | 16382 << 14), f"{many}268,402,689 pixels"),
        "a.gif": (patched(saved(small, "GIF"), 6, "<HH", 65535, 65535), f"{many}4,294,836,225 pixels"),
        "a.bmp": (patched(saved(small, "BMP"), 18, "<ii", 40000, 40000), f"{many}1,600,000,000 pixels"),
        "a.tif": (tiff(60000, 60000, 8, b"x"), f"{many}3,600,000,000 pixels"),
        "tile.tif": (
            tiff(16, 16, 8, b"x", t322=30000, t323=30000, t324=8, t325=1), "expected tiles of at most 67,"),
        "thin.png": (png(1, 65500, 8, 0, b"\0\0" * 65500), thin),
        "text.png": (png(1, 1, 8, 0, b"\0\0", text), "MAX_TEXT_CHUNK"),
        "scans.jpg": (scans[:-2] + scan * 200 + scans[-2:], "expected at most 100 scans in a JPEG, found 2"),
        "none.bmp": (patched(saved(small, "BMP"), 18, "<ii", 0, 8), "cannot decode none.bmp: "),
        "none.png": (png(0, 5, 8, 0, b""), "cannot decode none.png: "),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_by_name():
    for name, (content, message) in bombs().items():
        assert len(content) < 250_000, name
        with pytest.raises(ValueError, match=f"cannot decode {name}: ") as caught:
            decode_image(content, name)
        assert message in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="bounds a process's memory by Linux's means")
def test_bombs_take_no_memory(tmp_path):
    """In a process that may take 200 MiB more than it has; a picture of 2 million pixels fits in that."""
    for name, (content, _) in bombs().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "sound.png").write_bytes(saved(Image.new("RGBA", (2000, 1000)), "PNG"))
    (tmp_path / "tall.png").write_bytes(saved(Image.new("RGB", (40, 2000)), "PNG"))
    program = """
import pathlib, resource, sys
from mmlib.data.decoding import decode_image
from mmlib.data.decoding import resize_image
files = sorted(pathlib.Path(sys.argv[1]).iterdir())
resize_image(decode_image((files[0].parent / "sound.png").read_bytes(), "sound.png"), 224, "crop")
there = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (there + (200 << 20),) * 2)
for file in files:
    try:
        resize_image(decode_image(file.read_bytes(), file.name, 224), 224, "crop")
        print(file.name)
    except ValueError as error:
        assert "Memory" not in str(error), error
"""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)], capture_output=True, text=True
    )
    assert (ran.stdout.split(), ran.stderr) == (["sound.png", "tall.png"], "")


def test_large_jpegs_are_reduced_while_they_are_decoded_and_small_ones_never():
    waves = np.add.outer(np.sin(np.arange(1500) / 40), np.cos(np.arange(2000) / 60)) * 60 + 128
    large = Image.fromarray(waves.astype(np.uint8)).convert("RGB")
    content = saved(large, "JPEG", quality=90)
    assert decode_image(content, "x").size == decode_image(content, "x", 400).size == (2000, 1500)
    assert decode_image(content, "x", 375).size == (1000, 750)  # twice the pixels a side that are asked for
    assert decode_image(content, "x", 32).size == (250, 188)
    whole, reduced = (resize_image(decode_image(content, "x", size), 224, "crop") for size in (None, 224))
    assert np.abs(whole.astype(int) - reduced).max() <= 3
    # Photos of Flickr8k, Flickr30k and COCO have at most 640 pixels a side: no size changes them.
    photo = saved(large.resize((640, 640)), "JPEG")
    assert pixels_of(decode_image(photo, "x", 32)) == pixels_of(decode_image(photo, "x"))
    assert decode_image(saved(large, "PNG"), "x", 32).size == (2000, 1500)


def test_a_file_cut_short_is_an_error():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        content = saved(noise, form)
        assert decode_image(content, "x").size == (64, 64)
        for kept in (0, 3, 100, len(content) // 2):
            with pytest.raises(ValueError, match=r"cannot decode x\.jpg: "):
                decode_image(content[:kept], "x.jpg")


def test_no_picture_is_read_where_pillow_fills_up_what_is_missing(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match=r"LOAD_TRUNCATED_IMAGES to be False"):
        decode_image(saved(Image.new("L", (1, 1)), "PNG"), "x.png")


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """The file with one to five small changes, mostly near its beginning, where formats say what they are."""
    out = bytearray(content)
    for _ in range(int(random.integers(1, 6))):
        at = int(random.integers(min(len(out), 200) if random.random() < 0.6 else len(out)))
        match int(random.integers(5)):
            case 0 | 1:
                out[at] = int(random.integers(256))
            case 2:
                numbers = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
                out[at : at + 4] = numbers[int(random.integers(4))]
            case 3:
                del out[at : at + int(random.integers(1, 20))]
            case 4:
                out[at:at] = out[max(0, at - 8) : at]
        if len(out) < 8:
            break
    if random.random() < 0.1:
        out = out[: int(random.integers(len(out) + 1))]
    return files.with_right_sums(bytes(out)) if content.startswith(b"\x89PNG") else bytes(out)


def fuzz(times: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    sources = list(files.of_every_format(seed).items())
    decoded = 0
    for step in range(times):
        name, content = sources[step % len(sources)]
        try:
            said = decode_image(mutated(content, random), name, 16).mode
        except ValueError as error:
            said = str(error)
        assert said == "RGB" or said.startswith(f"cannot decode {name}: "), (seed, step)
        decoded += said == "RGB"
    assert 0.05 < decoded / times < 0.95  # changes that all hit or all miss would show nothing


@pytest.mark.filterwarnings("ignore")
def test_mutated_files_decode_or_are_refused_by_name():
    fuzz(6_000, seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mutated_files_decode_or_are_refused_by_name_in_long():
    for seed in range(1, 11):
        fuzz(40_000, seed)
