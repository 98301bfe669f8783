"""Search folders of photos with a trained model, by a sentence or by a photo.

`Retriever.load(run).index(folder)` embeds a folder once; `.search(text=...)` then compares with every image.

Shapes: N images, D width, K hits, B items of a batch, H = W pixels.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmlib.arrays import read_npz
from mmlib.config import ParameterError
from mmlib.data.dataset import file_sha256
from mmlib.data.decoding import MAX_BYTES, decode_image, resize_image
from mmlib.data.own_photos import walk_images
from mmlib.files import explained, parse_json, printable, read_bounded, shown
from mmlib.output import progress
from mmlib.training.runs import open_run, require_complete, run_folder

BATCH = 16  # images that a worker embeds at once; on a CPU, 64 cost twice the time in fresh memory
WORKERS = 16  # at most, each with a batch; on a CPU, threads that share one wait for each other
FOLDER = "search"  # of a run, with one file for each indexed folder
_OF_MODEL = ("config.json", "tokenizer.json", "best.pt")


class Hit(NamedTuple):
    """An image that was found."""

    file: Path
    similarity: float  # cosine, in [-1, 1]


@dataclass(frozen=True)
class Indexed:
    """What indexing a folder found.

    Attributes:
        images: that can be searched now.
        new: of them, those embedded in this call; the others were known by size and time of change.
        removed: images of the index before that are gone from the folder, or were replaced.
        unreadable: file name to the reason why it cannot be searched.
        outside: links that lead out of the folder, which are not followed.
    """

    images: int
    new: int
    removed: int
    unreadable: dict[str, str] = field(default_factory=dict)
    outside: int = 0


@dataclass
class _Index:
    """The embedded images of one folder.

    Attributes:
        folder: whose images these are.
        model: `Retriever.model_digest` of the model that embedded them.
        stamps: name to (size, time of change in ns), in the order of the rows.
        unit_ND: embeddings of unit length, float32.
    """

    folder: Path
    model: str
    stamps: dict[str, tuple[int, int]]
    unit_ND: np.ndarray


class Retriever:
    """A trained model that finds images in folders which it has indexed."""

    def __init__(self, run: str):
        self.run = run
        self._indexes: list[_Index] | None = None

    @classmethod
    def load(cls, run: str) -> "Retriever":
        """The model of a run, with its best weights.

        Raises:
            FileNotFoundError: there is no such run.
            ValueError: it is not complete.
        """
        require_complete(run)
        return cls(run)

    @cached_property
    def model_digest(self) -> str:
        """SHA-256 over the run's parameters, tokenizer and best weights."""
        digest = hashlib.sha256()
        for path in (run_folder(self.run) / name for name in _OF_MODEL):
            if not path.is_file():
                raise FileNotFoundError(
                    f"expected {shown(path)}, found none; bring it back from a copy, or train the run again"
                )
            digest.update(bytes.fromhex(file_sha256(path)))
        return digest.hexdigest()

    @cached_property
    def _model(self):
        """The model, loaded when something is embedded for the first time."""
        import torch

        from mmlib.training.evaluation import load_run

        return load_run(self.run, "best", torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def index(self, folder: str | os.PathLike) -> Indexed:
        """Embed the images of a folder and its sub-folders that are new or have changed.

        A file is taken for unchanged if its size and time of change are; one that could not be read is tried
        again.  What was embedded before an interruption is kept.

        Args:
            folder: JPEG, PNG, WebP, GIF, BMP and TIFF files are indexed; hidden folders are passed over, and
                links that lead out of it are not followed.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it holds no image.
            InUse: another process writes to the run.
        """
        root = Path(folder).expanduser().resolve()
        if not root.is_dir():
            found = "a file" if root.exists() else "none"
            raise FileNotFoundError(
                f"expected a folder of images at {shown(root)}, found {found}; correct it"
            )
        there, outside = walk_images(root)
        if not there:
            raise ValueError(
                f"expected images (JPEG, PNG, WebP, GIF, BMP or TIFF) in {shown(root)}, found none; name the"
                " folder that holds the photos"
            )
        path = self._path(root)
        before = _read(path) if path.exists() else None
        if before is None or before.model != self.model_digest:
            before = _Index(root, self.model_digest, {}, np.empty((0, 0), np.float32))
        kept = [name for name, stamp in before.stamps.items() if there.get(name) == stamp]
        new = [name for name, stamp in there.items() if before.stamps.get(name) != stamp]
        removed = len(before.stamps) - len(kept)
        rows = {name: row for row, name in enumerate(before.stamps)}
        parts = [before.unit_ND[[rows[name] for name in kept]]] if kept else []
        done: list[str] = []
        unreadable: dict[str, str] = {}
        try:
            for names, unit_BD, reasons in self._embedded(root, new):
                done += names
                parts.append(unit_BD)
                unreadable |= reasons
        finally:
            if done or removed:
                stamps = {name: there[name] for name in kept + done}
                unit_ND = np.concatenate(parts) if parts else before.unit_ND[:0]
                self._write(path, _Index(root, self.model_digest, stamps, unit_ND))
                self._indexes = None
        return Indexed(len(kept) + len(done), len(done), removed, unreadable, outside)

    def _embedded(
        self, root: Path, names: Sequence[str]
    ) -> Iterator[tuple[list[str], np.ndarray, dict[str, str]]]:
        """Batch by batch: names of the images, their embeddings (B, D), and why others cannot be read."""
        if not names:
            return  # without loading torch
        import torch

        size, resize = self._model.config.image_size, self._model.config.resize

        def load(name: str) -> np.ndarray | str:
            try:
                content = read_bounded(root / name, MAX_BYTES)
                return resize_image(decode_image(content, name, size), size, resize)
            except (OSError, ValueError) as error:
                return str(error)

        def embed(batch: Sequence[str]) -> tuple[list[str], np.ndarray, dict[str, str]]:
            loaded = {name: load(name) for name in batch}
            pixels = {name: image for name, image in loaded.items() if not isinstance(image, str)}
            reasons = {name: image for name, image in loaded.items() if isinstance(image, str)}
            return list(pixels), self._embed_pixels(list(pixels.values())), reasons

        batches = [names[first : first + BATCH] for first in range(0, len(names), BATCH)]
        threads = torch.get_num_threads()
        workers = min(threads, WORKERS)
        torch.set_num_threads(threads // workers)  # of each worker
        try:
            bar = progress(total=len(names), desc="images", unit="image", delay=1)
            with bar, ThreadPoolExecutor(workers) as pool:
                for batch, done in zip(batches, pool.map(embed, batches)):
                    yield done
                    bar.update(len(batch))
        finally:
            torch.set_num_threads(threads)

    def _embed_pixels(self, pixels: list[np.ndarray]) -> np.ndarray:
        """Unit embeddings (B, D) float32 of images (H, W, 3) uint8."""
        import torch

        from mmlib.data.augment import normalise

        if not pixels:
            return np.empty((0, self._model.config.latent_dim), np.float32)
        encoder, device = self._model.model.image_encoder, next(self._model.model.parameters()).device
        with torch.no_grad():
            pixels_BHWC = torch.from_numpy(np.stack(pixels)).to(device)
            image_B3HW = normalise(pixels_BHWC, encoder.mean, encoder.std)
            return _unit(self._model.model.embed_images(image_B3HW))

    def embed_text(self, text: str) -> np.ndarray:
        """The unit embedding of a sentence, (1, D) float32."""
        from mmlib.training.embed import embed_captions

        parts = self._model
        return _unit(embed_captions(parts.model, parts.tokenizer, [text], parts.config.max_tokens))

    def embed_image(self, image: str | os.PathLike) -> np.ndarray:
        """The unit embedding of a photo, (1, D) float32.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be decoded.
        """
        path = Path(image).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"expected a photo to search with, found none at {path}; correct the path"
            )
        config = self._model.config
        picture = decode_image(read_bounded(path, MAX_BYTES), path.name, config.image_size)
        return self._embed_pixels([resize_image(picture, config.image_size, config.resize)])

    def search(
        self, text: str | None = None, image: str | os.PathLike | None = None, top: int = 20
    ) -> list[Hit]:
        """The images of all indexed folders that are most similar to a sentence or to a photo.

        Every image is compared (one matrix product), so the answer is exact.

        Args:
            text: a sentence, in the language of the captions that the model was trained on.
            image: a photo, instead of a sentence.
            top: K, how many hits at most.

        Returns:
            Hits by falling cosine similarity; of equals, in the order in which they were indexed.

        Raises:
            ParameterError: not exactly one of text and image, an empty text, or `top` below 1.
            FileNotFoundError: nothing is indexed, or there is no such photo.
            ValueError: an index of other weights, a damaged index, or a photo that cannot be decoded.
        """
        if (text is None) == (image is None):
            found = "neither" if text is None else "both"
            raise ParameterError(f"expected a text or an image to search with, found {found}; give one")
        if text is not None and not text.strip():
            raise ParameterError("expected a text to search with, found an empty one; describe the photo")
        if top < 1:
            raise ParameterError(f"top: expected at least 1, found {top}")
        top = min(top, self.images)
        query_D = (self.embed_text(text) if image is None else self.embed_image(image))[0]
        files = [index.folder / name for index in self._indexes for name in index.stamps]
        similarity_N = np.concatenate([index.unit_ND @ query_D for index in self._indexes if index.stamps])
        least = np.partition(similarity_N, -top)[-top]
        candidates = np.flatnonzero(similarity_N >= least)
        best = candidates[np.argsort(-similarity_N[candidates], kind="stable")][:top]
        return [Hit(files[row], float(similarity_N[row])) for row in best]

    @property
    def images(self) -> int:
        """How many images a search compares."""
        if self._indexes is None:
            self._indexes = self._read_all()
        return sum(len(index.stamps) for index in self._indexes)

    def _read_all(self) -> list[_Index]:
        command = f"python -m mmlib index {self.run}"
        indexes = [_read(path) for path in sorted((run_folder(self.run) / FOLDER).glob("*.npz"))]
        if not any(index.stamps for index in indexes):
            raise FileNotFoundError(
                f"run {self.run!r} has no index to search; make one: {command} FOLDER_OF_PHOTOS"
            )
        for index in indexes:
            if index.model != self.model_digest:
                raise ValueError(
                    f"the index of {shown(index.folder)} was made with other weights than those of run"
                    f" {self.run!r}, which was trained anew; make it again: {command} {shown(index.folder)}"
                )
        return indexes

    def _path(self, root: Path) -> Path:
        key = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
        return run_folder(self.run) / FOLDER / f"{key}.npz"

    def _write(self, path: Path, index: _Index) -> None:
        record = {
            "folder": str(index.folder),
            "model": index.model,
            "files": [[name, *stamp] for name, stamp in index.stamps.items()],
        }
        content = io.BytesIO()
        text = np.frombuffer(json.dumps(record).encode(), np.uint8)
        np.savez(content, record=text, unit_ND=index.unit_ND)
        with explained(path), open_run(self.run) as folder:
            path.parent.mkdir(exist_ok=True)
            folder.write(f"{FOLDER}/{path.name}", content.getbuffer())


def _unit(embedding_BD) -> np.ndarray:
    vector_BD = embedding_BD.double().cpu().numpy()
    length_B1 = np.linalg.norm(vector_BD, axis=1, keepdims=True)
    return (vector_BD / np.maximum(length_B1, np.finfo(np.float64).tiny)).astype(np.float32)


def _read(path: Path) -> _Index:
    """An index file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        arrays = read_npz(path, ["record", "unit_ND"])
        record = parse_json(arrays["record"].tobytes(), str(path))
        stamps = {str(name): (int(size), int(time)) for name, size, time in record["files"]}
        unit_ND = arrays["unit_ND"]
        if unit_ND.dtype != np.float32 or unit_ND.ndim != 2 or len(unit_ND) != len(stamps):
            raise ValueError(f"embeddings {unit_ND.shape} of {unit_ND.dtype} for {len(stamps):,} images")
        if not np.isfinite(unit_ND).all():
            raise ValueError("embeddings that are not finite")
        return _Index(Path(record["folder"]), str(record["model"]), stamps, unit_ND)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{shown(path)} is damaged ({printable(str(error))}); delete it and index the folder again"
        ) from None
