"""Images inside tar files as an image source.

Light on purpose: the packed store's worker processes import it.
"""

from dataclasses import dataclass

from PIL import Image

from mmlib.data.decoding import decode_image


@dataclass(frozen=True)
class TarImages:
    """Reads images out of tar files on a disk, by name; an `ImageSource`.

    Attributes:
        members: image name to path of the tar, offset and size in it, bytes.
    """

    members: dict[str, tuple[str, int, int]]

    def load(self, name: str, size: int | None = None) -> Image.Image:
        """The image `name` as `decode_image` gives it.

        Raises:
            OSError: the tar is missing or cut short.
            ValueError: the image cannot be decoded.
        """
        return decode_image(self.read(name), name, size)

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
