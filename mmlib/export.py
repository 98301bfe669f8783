"""Both towers of a trained model as ONNX files, which run without torch.

Shapes: B items, H = W pixels, L tokens, D width.
"""

import logging
import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mmlib.files import explained, printable, write_bytes_atomic, write_json, write_text_atomic
from mmlib.output import quiet
from mmlib.search import Retriever

OPSET = 20
TRACED, CHECKED = 2, 3  # items of a batch
CLOSE = 1e-4  # between ONNX and torch, of unit vectors
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
INPUTS = {"image": ("pixels",), "text": ("tokens", "lengths")}
README = """# {run} as ONNX

`image.onnx` takes `pixels` (B, {size}, {size}, 3) uint8, RGB; `text.onnx` takes `tokens` (B, {tokens}) and
`lengths` (B,), int64.  Any B.  Both give `embeddings` (B, {width}) float32 of unit length: the product of an
image's and a caption's is their cosine similarity.  `model.json` says how pixels and tokens are made; below
mmlib makes them (it needs no torch for that).

```python
import json
from pathlib import Path

import onnxruntime
from mmlib.data.decoding import decode_image, resize_image
from mmlib.data.tokenizers import restore_tokenizer

model = json.loads(Path("model.json").read_text(encoding="utf-8"))
image_tower = onnxruntime.InferenceSession("image.onnx")
text_tower = onnxruntime.InferenceSession("text.onnx")
photos = sorted(Path("photos").glob("*.jpg"))
size, resize = model["image"]["size"], model["image"]["resize"]
pixels = [resize_image(decode_image(p.read_bytes(), p.name, size), size, resize) for p in photos]
tokenizer = restore_tokenizer(model["text"]["tokenizer"])
tokens, lengths = tokenizer.encode(["a dog runs on the beach"], model["text"]["max_tokens"])
(images,) = image_tower.run(None, {{"pixels": pixels}})
(texts,) = text_tower.run(None, {{"tokens": tokens, "lengths": lengths}})
best = (texts @ images.T)[0].argsort()[::-1][:10]
print([photos[i].name for i in best])
```
"""


def export_onnx(run: str, folder: str | os.PathLike) -> Path:
    """Write `image.onnx`, `text.onnx`, `model.json` and `README.md` into a folder.

    The towers take uint8 pixels (B, H, W, 3), and token ids (B, L) with lengths (B,); they give
    embeddings (B, D) of unit length.  Each is compared with torch on random input before it is written.

    Args:
        run: name of a complete run; its best weights are taken.
        folder: made if it is missing; files of these names in it are replaced.

    Returns:
        The folder.

    Raises:
        ModuleNotFoundError: the extra `onnx` is not installed.
        FileNotFoundError: there is no such run.
        ValueError: it is not complete, or an encoder cannot be exported.
        OSError: the folder cannot be written.
    """
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise ModuleNotFoundError(
            f"export needs {', '.join(missing)}, found none; install with pip install 'mmlib[onnx]'"
        )
    import torch

    from mmlib.training.evaluation import load_run

    retriever = Retriever.load(run)
    out = Path(folder).expanduser()
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
    parts = load_run(run, "best", torch.device("cpu"))
    encoder, size, tokens = parts.model.image_encoder, parts.config.image_size, parts.config.max_tokens
    readme = README.format(run=run, size=size, tokens=tokens, width=parts.config.latent_dim)
    with explained(out):  # what cannot be written is known before the work
        write_text_atomic(out / "README.md", readme)
    model = {
        "run": run,
        "weights": retriever.model_digest,
        "image": {
            "file": "image.onnx",
            "inputs": {"pixels": ["batch", size, size, 3]},
            "size": size,
            "resize": parts.config.resize,
            "mean": list(encoder.mean),
            "std": list(encoder.std),
            "normalised": "inside: (pixels / 255 - mean) / std",
        },
        "text": {
            "file": "text.onnx",
            "inputs": {"tokens": ["batch", tokens], "lengths": ["batch"]},
            "max_tokens": tokens,
            "padding": parts.tokenizer.padding_id,
            "tokenizer": parts.tokenizer.state,
        },
        "output": {"embeddings": ["batch", parts.config.latent_dim], "length": 1},
    }
    towers = {kind: tower_bytes(parts.model, kind, size, tokens, parts.tokenizer.size) for kind in INPUTS}
    with explained(out):
        for kind, content in towers.items():
            write_bytes_atomic(out / f"{kind}.onnx", content)
        write_json(out / "model.json", model)
    return out


def tower_bytes(model, kind: str, size: int, tokens: int, vocabulary: int) -> bytes:
    """One tower as the content of an ONNX file.

    Args:
        model: a `DualEncoder` in evaluation mode, on the CPU.
        kind: `image` or `text`.
        size: H, of the images.
        tokens: L, to which captions are filled up.
        vocabulary: number of token ids.

    Raises:
        ValueError: torch cannot export it, or ONNX gives other embeddings than torch.
    """
    import onnxruntime
    import torch

    names, tower = INPUTS[kind], _tower(model, kind)
    generator = torch.Generator().manual_seed(0)

    def example(items: int) -> tuple[torch.Tensor, ...]:
        if kind == "image":
            shape = (items, size, size, 3)
            return (torch.randint(256, shape, generator=generator, dtype=torch.uint8),)
        length_B = torch.randint(1, tokens + 1, (items,), generator=generator)
        return torch.randint(vocabulary, (items, tokens), generator=generator), length_B

    batch = torch.export.Dim("batch")
    try:
        with quiet(logging.ERROR), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                tower, example(TRACED), dynamic_shapes=tuple({0: batch} for _ in names), strict=False
            )
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=names, output_names=["embeddings"],
                dynamic_shapes=tuple({0: "batch"} for _ in names), verbose=False,
            )  # fmt: skip
        content = exported.model_proto.SerializeToString()
    except Exception as error:  # torch, its compiler and onnxscript raise many kinds
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"the {kind} tower cannot be exported to ONNX: {printable(said[:300])}; train with another"
            f" {kind}_encoder, or search with the run itself (python -m mmlib index)"
        ) from error
    item = example(CHECKED)
    with torch.no_grad():
        expected_BD = tower(*item).numpy()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found_BD = session.run(None, dict(zip(names, (part.numpy() for part in item))))[0]
    _check_close(kind, expected_BD, found_BD)
    return content


def _check_close(kind: str, expected_BD: np.ndarray, found_BD: np.ndarray) -> None:
    difference = float(np.abs(expected_BD - found_BD).max())
    if not difference <= CLOSE:
        raise ValueError(
            f"the {kind} tower in ONNX: expected torch's embeddings to {CLOSE:g}, found a difference of"
            f" {difference:.2g}; no tower was written; search with the run itself (python -m mmlib index)"
        )


def _tower(model, kind: str):
    """A module of `INPUTS[kind]` that gives unit vectors (B, D)."""
    import torch
    from torch.nn import functional as F

    class ImageTower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            for name, values in (("mean", model.image_encoder.mean), ("std", model.image_encoder.std)):
                self.register_buffer(f"{name}_3", torch.tensor(values))

        def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
            image_BHWC = (pixels_BHWC.float() / 255 - self.mean_3) / self.std_3
            return F.normalize(self.model.embed_images(image_BHWC.permute(0, 3, 1, 2)).float(), dim=-1)

    class TextTower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, tokens_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
            return F.normalize(self.model.embed_captions(tokens_BL, length_B).float(), dim=-1)

    return (ImageTower if kind == "image" else TextTower)().eval()
