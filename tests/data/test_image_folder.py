"""Reading image files: every kind of picture comes out as upright RGB, every damage as an OSError."""

import numpy as np
import pytest
from PIL import Image, ImageFile

from mmlib.data.image_folder import ImageFolder

RED, GREEN = (255, 0, 0), (0, 128, 0)


def load(folder, image, **options):
    """Saves without loss and loads by the library."""
    image.save(folder / "x.jpg", format=options.pop("format", "PNG"), **options)
    return ImageFolder(folder).load("x.jpg")


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.new("RGB", (6, 4), "white").convert(mode)
    loaded = load(tmp_path, image, format="TIFF" if mode == "CMYK" else "PNG")
    assert loaded.mode == "RGB"
    assert np.array_equal(np.asarray(loaded), np.full((4, 6, 3), 255))


def test_colours_survive(tmp_path):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    for loaded in (
        load(tmp_path, image),
        load(tmp_path, image.quantize(2)),
        load(tmp_path, image.convert("RGBA")),
    ):
        assert np.array_equal(np.asarray(loaded), [[RED, GREEN]])


def test_transparent_parts_lie_over_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (*RED, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))
    assert np.array_equal(np.asarray(load(tmp_path, image)), [[RED, (255,) * 3, (204,) * 3]])
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, *RED])
    palette.putpixel((1, 0), 1)
    loaded = load(tmp_path, palette, format="GIF", transparency=0)
    assert np.array_equal(np.asarray(loaded), [[(255,) * 3, RED]])


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    assert np.array_equal(np.asarray(load(tmp_path, image, exif=exif)), [[RED], [GREEN]])


@pytest.fixture
def photo(tmp_path):
    """A JPEG of noise, long enough to be cut anywhere."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.jpg")
    return tmp_path / "x.jpg"


@pytest.mark.parametrize("kept", [0, 3, 100, 2000])
@pytest.mark.parametrize("tolerant", [False, True])
def test_a_file_cut_short_is_an_error_even_where_pil_would_tolerate_it(photo, monkeypatch, kept, tolerant):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    photo.write_bytes(photo.read_bytes()[:kept])
    with pytest.raises(OSError):  # noqa: PT011 - PIL words it differently at each length
        ImageFolder(photo.parent).load(photo.name)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


def test_other_decoder_errors_become_os_errors(photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    with pytest.raises(OSError, match=r"cannot decode x\.jpg: Image size \(4096 pixels\) exceeds limit"):
        ImageFolder(photo.parent).load(photo.name)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        ImageFolder(tmp_path).load("gone.jpg")
