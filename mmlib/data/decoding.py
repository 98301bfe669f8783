"""Decode image files that a stranger wrote: which formats, how large, what each pixel mode means in RGB."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mmlib.files import printable

Resize = Literal["squash", "crop"]

# What Pillow may open; JPEG includes MPO.  Others hand the bytes to programs (EPS to Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

MAX_PIXELS = 2**26  # 8192 x 8192; one such picture takes 256 MiB, and four times that with transparency
MAX_BYTES = 8 * MAX_PIXELS  # of a file: four uncompressed channels of 16 bits
MAX_ASPECT = 50  # longer side by shorter: `crop` brings the shorter to full size, the longer grows with it
MAX_SCANS = 100  # of a JPEG: progressive ones have about 10, and each is a pass over all pixels
DRAFT_PIXELS = 2**21  # JPEGs of the field's data sets have at most 640 x 640, and are decoded in full
DRAFT_MARGIN = 2  # a reduced picture still has this many times the pixels a side that are asked for

# Damaged EXIF data is common on the web, changes no pixel, and would be a line without a file's name.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

# Such a picture ends in an error of ours; Pillow's warning before it names no file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, module=r"PIL\.Image")

_KEY_SCALE = {"L;2": 85, "L;4": 17}  # PNG's transparent grey is given in samples of the file's own depth
_TIFF_PHOTOMETRIC, _TIFF_BITS, _TIFF_SAMPLE_FORMAT, _TIFF_TILE_SIDES = 262, 258, 339, (322, 323)
_TIFF_SUBSAMPLING, _UNSIGNED = 530, 1


def decode_image(content: bytes, name: str, size: int | None = None) -> Image.Image:
    """Decode the bytes of an image file to RGB, upright as its EXIF orientation says.

    JPEG (MPO), PNG, WebP, GIF, BMP and TIFF are read, whatever the name ends in; of several frames or
    pages the first.  `to_rgb` says what each pixel mode becomes.  Size and aspect are checked in the
    header, before any pixel is decoded.

    Args:
        content: the file.
        name: of the file, for errors.
        size: pixels a side that the caller will shrink the picture to.  A JPEG of more than
            `DRAFT_PIXELS` is then decoded at a half, quarter or eighth of its size where that leaves at
            least `DRAFT_MARGIN` times `size` on each side (libjpeg's scaled decoding).  In all other
            cases the picture comes at its own size.

    Raises:
        ValueError: not one of these formats, too large, too long and thin, cut short, damaged, or of
            values without a meaning as grey levels.  The message names the file.
    """
    with _opened(content, name) as image:
        if size and image.format in ("JPEG", "MPO") and image.width * image.height > DRAFT_PIXELS:
            image.draft(None, (DRAFT_MARGIN * size, DRAFT_MARGIN * size))
        return to_rgb(image)


def image_suffix(content: bytes, name: str) -> str:
    """The usual ending of an image file's format, without the dot; the pixels are not decoded.

    Raises:
        ValueError: as `decode_image`, as far as the header tells.
    """
    with _opened(content, name) as image:
        return {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(image.format, image.format.lower())


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image to upright 8-bit RGB.

    | mode | becomes |
    |---|---|
    | 1, L, P, RGB, RGBX, CMYK, YCbCr, HSV | as Pillow converts it; the X of RGBX is dropped |
    | LA, La, PA, RGBA, RGBa, and a colour or palette entries marked transparent | laid over white |
    | I;16, I;16B, I;16L, I;16N | the high 8 of 16 bits, or of the 12 that a TIFF declares |

    Pillow itself takes the high 8 bits of 16-bit colour, and undoes the inversion of Adobe's CMYK JPEGs.
    "White is zero" of TIFF is observed at every depth.  ICC profiles are not applied.

    Raises:
        ValueError: signed integers, integers of 32 bits, floats and LAB, of which Pillow does not know what
            is white; a TIFF of uncompressed YCbCr with fewer colours than pixels, which it reads as noise.
    """
    if getattr(image, "format", None) == "TIFF":
        _check_samples(image)
    raw_mode = str(image.tile[0][3]) if getattr(image, "tile", None) else ""
    image.load()
    if image.mode in ("I", "F", "LAB"):
        raise ValueError(_unknown_white(image))
    if image.mode.startswith("I;16"):
        image = _from_deep_grey(image)
    key = image.info.get("transparency")
    if image.mode == "RGB" and raw_mode.startswith("RGB;16") and key is not None:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif image.mode == "L" and raw_mode in _KEY_SCALE and key is not None:
        image.info["transparency"] = key * _KEY_SCALE[raw_mode]
    image = ImageOps.exif_transpose(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def resize_image(image: Image.Image, size: int, resize: Resize) -> np.ndarray:
    """`image` as (size, size, 3) uint8, by PIL's antialiased bicubic filter.

    `squash` ignores the aspect ratio; `crop` brings the shorter side to `size` and cuts out the
    centre, with torchvision's rounding, so that pretrained encoders see what they were trained on.
    """
    if resize == "squash":
        square = image.resize((size, size), Image.Resampling.BICUBIC)
    else:
        short = min(image.size)
        width, height = (size * side // short for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        scaled = image.resize((width, height), Image.Resampling.BICUBIC)
        square = scaled.crop((left, top, left + size, top + size))
    return np.asarray(square)


@contextmanager
def _opened(content: bytes, name: str) -> Iterator[Image.Image]:
    """The image, opened within bounds; whatever goes wrong with it becomes an error that names the file."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError(
            "expected PIL.ImageFile.LOAD_TRUNCATED_IMAGES to be False, found True, with which Pillow fills"
            " what is missing of a picture with grey; set it to False"
        )
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_bounds(image, content)
            yield image
            return
    except UnidentifiedImageError:
        reason = "expected a JPEG, PNG, WebP, GIF, BMP or TIFF image, found other or damaged content"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"[0-9]+", str(error))
        reason = _too_large(f"{int(found[0]):,} pixels" if found else "more")
    except Exception as error:  # decoders raise anything on bytes from the web
        reason = str(error) or type(error).__name__
    raise ValueError(f"cannot decode {printable(name)}: {printable(reason)}")


def _check_bounds(image: Image.Image, content: bytes) -> None:
    width, height = image.size
    if min(width, height) < 1:
        raise ValueError(f"expected at least one pixel, found {width} x {height}")
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large(f"{width:,} x {height:,}"))
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f"expected a longer side of at most {MAX_ASPECT} times the shorter, found {width:,} x {height:,};"
            " cut it or leave it out"
        )
    if image.format == "TIFF":  # a tile is decoded whole, however small the image
        sides = [image.tag_v2.get(tag, 1) for tag in _TIFF_TILE_SIDES]
        if sides[0] * sides[1] > MAX_PIXELS:
            raise ValueError(
                f"expected tiles of at most {MAX_PIXELS:,} pixels, found {sides[0]} x {sides[1]}"
            )
    if image.format in ("JPEG", "MPO") and (scans := content.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"expected at most {MAX_SCANS} scans in a JPEG, found {scans:,}")


def _check_samples(image: Image.Image) -> None:
    """Refuses what Pillow opens and reads as something else."""
    tags = image.tag_v2
    if any(kind != _UNSIGNED for kind in tags.get(_TIFF_SAMPLE_FORMAT, ())):
        raise ValueError(_unknown_white(image))
    raw = any(tile[0] == "raw" for tile in image.tile)
    if image.mode == "YCbCr" and raw and tags.get(_TIFF_SUBSAMPLING, (2, 2)) != (1, 1):
        raise ValueError(
            "expected one colour for each pixel, or compression, in a TIFF of YCbCr, found neither;"
            " save it as RGB"
        )


def _unknown_white(image: Image.Image) -> str:
    return (
        "expected colours or grey levels without sign of at most 16 bits, found other values (mode"
        f" {image.mode}), of which nothing says what is white; save it with 8 or 16 bits"
    )


def _too_large(found: str) -> str:
    return f"expected at most {MAX_PIXELS:,} pixels, found {found}; shrink it or leave it out"


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Grey of 12 or 16 bits as L, or as LA where one value is transparent."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    value_HW = np.asarray(image)
    level_HW = (value_HW >> (tags.get(_TIFF_BITS, (16,))[0] - 8)).astype(np.uint8)
    grey = Image.fromarray(255 - level_HW if tags.get(_TIFF_PHOTOMETRIC) == 0 else level_HW)
    key = image.info.get("transparency")
    if key is not None:
        grey.putalpha(Image.fromarray(np.where(value_HW == key, 0, 255).astype(np.uint8)))
    if "exif" in image.info:
        grey.info["exif"] = image.info["exif"]  # with the orientation
    return grey
