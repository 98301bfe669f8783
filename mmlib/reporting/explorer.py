"""Pages of pictures: the explorer of every query of a split, of one run or two; and the answer of a search.

One file without outside parts: texts, results and thumbnails lie in it, and a policy lets only its own
scripts run.
"""

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from mmlib.analysis.diagnosis import COLUMNS, THUMBNAIL, TOP_K
from mmlib.data.decoding import MAX_BYTES, decode_image
from mmlib.files import parse_json, printable, read_bounded, write_text_atomic
from mmlib.metrics import RetrievalRanks
from mmlib.metrics.summary import percent
from mmlib.reporting.pages import TEMPLATES, page_from, script_json
from mmlib.search import Hit
from mmlib.training.embed import MOST_BYTES
from mmlib.training.runs import evaluated_file, read_arrays, read_queries, read_result

SIDE = 320  # pixels of the longer side of a thumbnail
WITHOUT_SCRIPTS = 100  # queries in the table that stands in for the page where scripts do not run


def explorer_page(experiment: str, runs: Sequence[str]) -> tuple[str, bytes] | None:
    """File name and content of the explorer over evaluated runs.

    Runs that were evaluated on other queries than the last one, or whose split is too large, are left out.

    Args:
        experiment: stands in the title.
        runs: evaluated ones.

    Returns:
        None if no run can be explored; the name ends in `.private.html` where texts and pictures of the data
        may not be passed on.

    Raises:
        FileNotFoundError, ValueError: files of an evaluation are missing or damaged.
    """
    loaded = {run: _neighbours(run) for run in runs}
    explored = [run for run in runs if loaded[run]]
    if not explored:
        return None
    queries = read_queries(explored[-1])
    explored = [run for run in explored if read_queries(run) == queries]
    ranks = {run: RetrievalRanks.load(evaluated_file(run, "ranks.npz")) for run in explored}
    for run in explored:
        _check_sizes(run, loaded[run], ranks[run], queries)
    arrays, last = loaded[explored[-1]], ranks[explored[-1]]
    data = {
        "captions": [printable(caption) for caption in queries["captions"]],
        "images": [printable(name) for name in queries["images"]],
        "imageOfCaption": last.image_of_text_M.tolist(),
        "columns": COLUMNS,
        "side": THUMBNAIL,
        "runs": [_run(run, loaded[run], ranks[run]) for run in explored],
    }
    result = read_result(explored[-1])
    html = page_from(
        "explore.html.j2",
        (TEMPLATES / "minisearch.min.js").read_text(encoding="utf-8"),
        (TEMPLATES / "text_encoder.js").read_text(encoding="utf-8"),
        (TEMPLATES / "explore.js").read_text(encoding="utf-8"),
        experiment=experiment,
        split=queries["split"],
        data_name=result["data"]["name"],
        sheets=_sheets(arrays),
        data=script_json(data),
        towers=_towers(explored, loaded),
        run=explored[-1],
        rows=_table(data, last),
        queries=len(data["captions"]),
    )
    kind = "html" if queries["redistributable"] else "private.html"
    return f"explore.{kind}", html.encode()


def _towers(runs: Sequence[str], loaded: dict[str, dict[str, np.ndarray]]) -> dict[int, Markup]:
    """Text towers by the number of their run, of the last runs first, as many as a page can hold."""
    found, room = {}, MOST_BYTES
    for number, run in reversed([*enumerate(runs)]):
        packed, weights = (loaded[run].get(name, np.empty(0)) for name in ("tower", "tower_weights"))
        if not len(packed) or len(weights) > room:
            continue
        tower = parse_json(packed.tobytes(), f"the text tower in neighbours.npz of run {run!r}")
        room -= len(weights)
        found[number] = script_json({**tower, "weights": base64.b64encode(weights.tobytes()).decode()})
    return found


def _neighbours(run: str) -> dict[str, np.ndarray]:
    """The first results of a run's queries; none of one that was evaluated before there were any."""
    try:
        return read_arrays(run, "neighbours")
    except FileNotFoundError:
        return {}


def _check_sizes(run: str, arrays: dict[str, np.ndarray], ranks: RetrievalRanks, queries: dict) -> None:
    images, captions = len(queries["images"]), len(queries["captions"])
    fits = (len(ranks.t2i_M), len(ranks.i2t_N)) == (captions, images)
    for direction, rows, items in (("t2i", captions, images), ("i2t", images, captions)):
        top, similarity = arrays.get(f"{direction}_top"), arrays.get(f"{direction}_similarity")
        fits = fits and top is not None and similarity is not None and top.dtype.kind == "i"
        fits = fits and top.shape == similarity.shape == (rows, min(TOP_K, items))
        fits = fits and bool(((top >= 0) & (top < items)).all() and np.isfinite(similarity).all())
    if not fits:
        raise ValueError(
            f"run {run!r}: expected the first results of {captions:,} captions and {images:,} images in"
            " neighbours.npz and ranks.npz, found others; evaluate it again"
        )


def _run(run: str, arrays: dict[str, np.ndarray], ranks: RetrievalRanks) -> dict:
    found = {"name": run}
    for direction, rank_Q, ties_Q in (
        ("t2i", ranks.t2i_M, ranks.ties_t2i_M),
        ("i2t", ranks.i2t_N, ranks.ties_i2t_N),
    ):
        found[direction] = {
            "top": arrays[f"{direction}_top"].tolist(),
            "similarity": np.round(1000 * arrays[f"{direction}_similarity"]).astype(int).tolist(),
            "rank": rank_Q.tolist(),
            "ties": ties_Q.tolist(),
            "hits": percent(float((rank_Q == 1).mean())),
        }
    return found


def _sheets(arrays: dict[str, np.ndarray]) -> list[dict]:
    """Each sheet of thumbnails as an address that holds it, with its size in pixels."""
    sheets = []
    for content in _contents(arrays):
        with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
            width, height = image.size
        address = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
        sheets.append({"address": address, "width": width, "height": height})
    return sheets


def _contents(arrays: dict[str, np.ndarray]) -> list[bytes]:
    """The WebP file of each sheet."""
    ends = np.cumsum(arrays.get("sheet_sizes", ()), dtype=int)
    return [arrays["sheets"][start:end].tobytes() for start, end in zip([0, *ends], ends)]


def thumbnails(run: str) -> Callable[[int], str | None] | None:
    """A function from the number of an image of the evaluated split to its small picture, as an address.

    None, and None for an image, where the run's evaluation left none that can be read.
    """
    try:
        contents = _contents(read_arrays(run, "neighbours"))
    except (OSError, ValueError, KeyError):
        return None

    def picture(image: int) -> str | None:
        sheet, place = divmod(image, COLUMNS**2)
        x, y = place % COLUMNS * THUMBNAIL, place // COLUMNS * THUMBNAIL
        small = io.BytesIO()
        try:
            with Image.open(io.BytesIO(contents[sheet]), formats=["WEBP"]) as whole:
                whole.crop((x, y, x + THUMBNAIL, y + THUMBNAIL)).save(small, "WEBP", quality=70)
        except (OSError, ValueError, IndexError):
            return None
        return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"

    return picture if contents else None


def _table(data: dict, ranks: RetrievalRanks) -> list[dict]:
    """The captions with the worst ranks, for who sees the page without scripts."""
    worst = np.argsort(-ranks.t2i_M, kind="stable")[:WITHOUT_SCRIPTS]
    top = data["runs"][-1]["t2i"]["top"]
    return [
        {
            "caption": data["captions"][m],
            "rank": int(ranks.t2i_M[m]),
            "own": data["images"][data["imageOfCaption"][m]],
            "first": data["images"][top[m][0]],
        }
        for m in worst
    ]


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
