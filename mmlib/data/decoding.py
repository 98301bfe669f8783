"""Decoding bytes of an image that a stranger wrote.

Light on purpose: the packed store's worker processes import it.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError


def decode_image(content: bytes, name: str) -> Image.Image:
    """Bytes of an image file in RGB, at its own size and upright as its EXIF orientation says.

    Grey, palette and CMYK images are converted; transparent parts are laid over white.

    Raises:
        OSError: cut short, no image, or so damaged that the decoder fails in any other way.
    """
    try:
        with _strict(), Image.open(io.BytesIO(content)) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise OSError(f"cannot identify {name} as an image") from None
    except OSError:
        raise
    except Exception as error:  # decoders raise anything on bytes from the web
        raise OSError(f"cannot decode {name}: {error or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


_lock = threading.Lock()
_decoding = 0
_tolerant = False


@contextmanager
def _strict() -> Iterator[None]:
    """Keeps PIL from filling what is missing with grey while any thread decodes; then puts it back."""
    global _decoding, _tolerant
    with _lock:
        if not _decoding:
            _tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        _decoding += 1
    try:
        yield
    finally:
        with _lock:
            _decoding -= 1
            if not _decoding:
                ImageFile.LOAD_TRUNCATED_IMAGES = _tolerant
