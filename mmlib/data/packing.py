"""Decoding and resizing of images, as the packed store's worker processes run it.

Light on purpose: a worker starts anew and imports this module, so nothing here may load torch.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from mmlib.data.dataset import ImageSource

Resize = Literal["squash", "crop"]
CHUNK = 32  # images per task: few enough to spread evenly, enough for one large write

Failure = tuple[str, str]  # image name, reason


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


def pack_chunk(
    source: ImageSource, size: int, resize: Resize, file: Path, start: int, names: list[str]
) -> tuple[int, list[Failure]]:
    """Writes the images `names` to rows `start`, `start + 1`, … of `file`, which must exist.

    Returns the number of images and those that cannot be read (their rows are zero).

    Raises:
        OSError: `file` cannot be written, for example because the disk is full.
    """
    images_NHWC = np.zeros((len(names), size, size, 3), dtype=np.uint8)
    failures = []
    for row, name in enumerate(names):
        try:
            images_NHWC[row] = resize_image(source.load(name, size).convert("RGB"), size, resize)
        except (OSError, ValueError) as error:
            failures.append((name, str(error)))
    # A plain write: on a full disk, writing through a memory map kills the process (SIGBUS).
    with open(file, "r+b") as output:
        output.seek(start * images_NHWC[0].nbytes)
        output.write(images_NHWC)
    return len(names), failures


def pack_images(
    source: ImageSource,
    names: list[str],
    size: int,
    resize: Resize,
    file: Path,
    workers: int,
    advance: Callable[[int], object],
) -> list[Failure]:
    """Packs all images into `file`, in `workers` processes; 1 means in this one.

    `advance` is called with the number of images that were just done.  Returns those that cannot be
    read, in the order of `names`.

    Raises:
        OSError: `file` cannot be written.
        RuntimeError: a worker process was killed or could not start.
    """
    file.touch()
    chunks = [(start, names[start : start + CHUNK]) for start in range(0, len(names), CHUNK)]
    failures = []
    # closing: an interruption stops the workers before the caller removes the file under them.
    with closing(_run((source, size, resize, file), chunks, workers)) as results:
        for number, failed in results:
            advance(number)
            failures += failed
    rank = {name: row for row, name in enumerate(names)}
    return sorted(failures, key=lambda failure: rank[failure[0]])


def _run(job: tuple, chunks: list, workers: int) -> Iterator[tuple[int, list[Failure]]]:
    if workers == 1:
        yield from (pack_chunk(*job, *chunk) for chunk in chunks)
        return
    # spawn, not fork: a forked copy of a process with torch's threads can hang for ever.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(job,))
    try:
        tasks = [pool.submit(_pack, *chunk) for chunk in chunks]
        yield from (task.result() for task in as_completed(tasks))
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"expected {workers} worker processes to pack images, found that one was killed or could not"
            " start; a script needs `if __name__ == '__main__':` around its work, and workers=1 packs"
            " without processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_job: tuple = ()  # of this worker process: a source may hold a digest of every image, too much for each chunk


def _pack(start: int, names: list[str]) -> tuple[int, list[Failure]]:
    return pack_chunk(*_job, start, names)


def _start_worker(job: tuple) -> None:
    """Keep the job, leave Ctrl-C to the parent, and end with it.

    A pool whose parent is killed would wait for ever.
    """
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
