"""The first results of every query and small pictures of the images, for the explorer of a report.

Shapes: N images, M captions, D width, K results, S sheets of pictures.
"""

import io

import numpy as np
from PIL import Image, ImageOps

from mmlib.data import Dataset
from mmlib.metrics.ranks import UnitRows

TOP_K = 10
MAX_IMAGES = 5_000  # of a split that is explored: its page would be too large to open
THUMBNAIL = 112  # side, pixels
COLUMNS = 10  # thumbnails in a row of a sheet, and rows of a sheet
QUALITY = 60  # of WebP: about 3 kB a thumbnail of a photo


def nearest_neighbours(dataset: Dataset, split_name: str, image_ND, caption_MD) -> dict[str, np.ndarray]:
    """What the explorer shows of one split.

    Args:
        dataset, split_name: where pictures come from.
        image_ND, caption_MD: embeddings of the split.

    Returns:
        `t2i_top` (M, K) and `i2t_top` (N, K), int32: items by falling cosine similarity, equal ones in their
        order; `t2i_similarity` and `i2t_similarity`, float32; `sheets` uint8, the bytes of all WebP sheets of
        10 x 10 thumbnails behind each other, and `sheet_sizes` (S,), int64.  Nothing if the split has more
        than `MAX_IMAGES` images.
    """
    split = dataset.split(split_name)
    if len(split.images) > MAX_IMAGES:
        return {}
    image, caption = UnitRows(image_ND, "image_ND"), UnitRows(caption_MD, "caption_MD")
    sheets = [_sheet(dataset, split.images[i : i + COLUMNS**2]) for i in range(0, len(image), COLUMNS**2)]
    found = {
        "sheets": np.frombuffer(b"".join(sheets), np.uint8),
        "sheet_sizes": np.array([len(sheet) for sheet in sheets]),
    }
    for direction, query, gallery in (("t2i", caption, image), ("i2t", image, caption)):
        found[f"{direction}_top"], found[f"{direction}_similarity"] = _first(query, gallery)
    return found


def _first(query: UnitRows, gallery: UnitRows) -> tuple[np.ndarray, np.ndarray]:
    everything, k = gallery[:], min(TOP_K, len(gallery))
    tops, similarities = [], []
    for start in range(0, len(query), 256):
        score_BG = query[start : start + 256] @ everything.T
        similarity_BK, top_BK = score_BG.sort(dim=1, descending=True, stable=True)
        tops.append(top_BK[:, :k].cpu().numpy().astype(np.int32))
        similarities.append(similarity_BK[:, :k].cpu().numpy().astype(np.float32))
    return np.concatenate(tops), np.concatenate(similarities)


def _sheet(dataset: Dataset, names: tuple[str, ...]) -> bytes:
    rows = -(-len(names) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * THUMBNAIL, rows * THUMBNAIL))
    for number, name in enumerate(names):
        picture = ImageOps.fit(dataset.source.load(name, THUMBNAIL).convert("RGB"), (THUMBNAIL, THUMBNAIL))
        sheet.paste(picture, (number % COLUMNS * THUMBNAIL, number // COLUMNS * THUMBNAIL))
    content = io.BytesIO()
    sheet.save(content, "WEBP", quality=QUALITY)
    return content.getvalue()
