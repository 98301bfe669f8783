"""The answer of a search as a page that holds its pictures."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from mmlib.data.decoding import MAX_BYTES, decode_image
from mmlib.files import printable, read_bounded, write_text_atomic
from mmlib.reporting.pages import page_from
from mmlib.search import Hit

SIDE = 320  # pixels of the longer side of a thumbnail


def write_search_page(
    page: Path, run: str, images: int, hits: Sequence[Hit], text: str | None = None, photo: Path | None = None
) -> None:
    """Write one HTML file with the hits in order, each with its picture, similarity and name.

    Args:
        page: the file, replaced as a whole.
        run: whose model searched.
        images: how many were searched.
        hits: from `Retriever.search`.
        text, photo: what was searched with.

    Raises:
        OSError: the page cannot be written.
    """
    shown = [
        {"name": printable(hit.file.name), "similarity": hit.similarity, "picture": _thumbnail(hit.file)}
        for hit in hits
    ]
    html = page_from(
        "search.html.j2",
        run=run,
        images=images,
        query=None if text is None else printable(text),
        photo=None if photo is None else _thumbnail(photo),
        hits=shown,
    )
    write_text_atomic(page, html)


def _thumbnail(file: Path) -> str | None:
    """A small WebP as an address that holds it; None if the file is gone or no image any more."""
    try:
        image = decode_image(read_bounded(file, MAX_BYTES), file.name, SIDE)
    except (OSError, ValueError):
        return None
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
