"""Images inside tar files as an image source, and decoding bytes that a stranger wrote.

Light on purpose: the packed store's worker processes import it.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, ImageFile, ImageOps

from mmlib.data.image_folder import _to_rgb


@dataclass(frozen=True)
class TarImages:
    """Reads images out of tar files on a disk, by name; an `ImageSource`.

    Attributes:
        members: image name to path of the tar, offset and size in it, bytes.
    """

    members: dict[str, tuple[str, int, int]]

    def load(self, name: str, size: int | None = None) -> Image.Image:
        """The image `name` in RGB, at its own size and upright.

        Raises:
            OSError: the tar is missing or cut short, or the image cannot be decoded.
        """
        return decode_image(self.read(name), name)

    def read(self, name: str) -> bytes:
        """The bytes of the image's file.

        Raises:
            OSError: there is no such image, or the tar is missing or cut short.
        """
        if name not in self.members:
            raise FileNotFoundError(f"expected one of {len(self.members)} images of shards, found {name!r}")
        path, offset, size = self.members[name]
        with open(path, "rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) != size:
            raise OSError(f"cannot read {name}: {path} is cut short")
        return content


def decode_image(content: bytes, name: str) -> Image.Image:
    """Bytes of an image file in RGB, as `mmlib.data.image_folder.ImageFolder` reads a file.

    Raises:
        OSError: cut short, no image, or so damaged that the decoder fails in any other way.
    """
    try:
        with _strict(), Image.open(io.BytesIO(content)) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except OSError:
        raise
    except Exception as error:  # decoders raise anything on bytes from the web
        raise OSError(f"cannot decode {name}: {error or type(error).__name__}") from error


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
