"""Image files made byte by byte, where Pillow does not write what others do."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """`rows`: each with its filter byte before it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body


def with_right_sums(content: bytes) -> bytes:
    """A PNG whose chunks have been changed, with checksums that fit again, as far as there are chunks."""
    out, at = bytearray(content), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def tiff(
    width: int, height: int, bits: int, data: bytes, *, white_is_zero=False, sample_format=1, **tags: int
) -> bytes:
    """Grey, little-endian, one strip; `tags`: further ones, as `t322=16`."""
    entries = {
        256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 277: 1,
        278: height, 279: len(data), 339: sample_format,
    } | {int(tag[1:]): value for tag, value in tags.items()}  # fmt: skip
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    directory = struct.pack("<H", len(entries)) + packed + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def of_every_format(seed: int = 0) -> dict[str, bytes]:
    """A small picture by name of its file, in all the ways that may be read."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6

    def frames() -> dict:  # anew each time, since Pillow leaves settings of the last format on an image
        return {"save_all": True, "append_images": [image.rotate(90)]}

    return {
        "a.jpg": saved(image, "JPEG", exif=exif),
        "progressive.jpg": saved(image, "JPEG", progressive=True),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "two.mpo": saved(image, "MPO", **frames()),
        "a.png": saved(image, "PNG", exif=exif),
        "palette.png": saved(image.quantize(8), "PNG", transparency=3),
        "deep.png": saved(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG"),
        "a.webp": saved(image, "WEBP"),
        "lossless.webp": saved(image.convert("RGBA"), "WEBP", lossless=True),
        "moving.webp": saved(image, "WEBP", **frames()),
        "moving.gif": saved(image, "GIF", **frames()),
        "a.bmp": saved(image, "BMP"),
        "two.bmp": saved(image.convert("1"), "BMP"),
        "a.tif": saved(image, "TIFF", exif=exif),
        "pages.tif": saved(image, "TIFF", **frames()),
        "lzw.tif": saved(image, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": saved(image, "TIFF", compression="jpeg"),
        "fax.tif": saved(image.convert("1"), "TIFF", compression="group3"),
    }
