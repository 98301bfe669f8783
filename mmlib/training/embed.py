"""Embeddings of a split: of a model in training or a finished one, and of a pretrained one as it is.

And a text encoder as a page can run it, which embeds what a person types there.

Shapes: N images, M captions, D width, R rows, C columns.
"""

import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mmlib.analysis import memory_health
from mmlib.config import ParameterError
from mmlib.data import Dataset, Tokenizer
from mmlib.data.batches import SplitTensors
from mmlib.data.tokenizers.pretrained import own_open_clip_tokenizer
from mmlib.metrics import RetrievalRanks, retrieval_ranks
from mmlib.metrics.protocols import protocols_of
from mmlib.model import DualEncoder
from mmlib.model.backbones import create_open_clip, open_clip_tag
from mmlib.model.encoders import GRUEncoder, TextEncoder, WordsEncoder
from mmlib.model.network import CosineMemory, CosineMemoryNetwork, MemoryBlock, MemoryNetwork
from mmlib.output import progress
from mmlib.training.processes import all_gather_objects

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # brings torch's compiler: a second, when a training starts


@torch.no_grad()
def embed_split(
    model: DualEncoder,
    data: SplitTensors,
    batch_size: int = 250,
    write: bool = False,
    fabric: "Fabric | None" = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of a split's images (N, D) and captions (M, D), float32, dropout off.

    Captions are encoded in order of length, so that a batch has little padding.

    Args:
        model: left in the mode (training or evaluation) that it was in.
        data: the split, on the model's device.
        batch_size: items at once; embeddings do not depend on it beyond rounding.
        write: write each batch into the memory after reading it (changes the model's slots).
        fabric: its processes encode the batches between them; which one encodes a batch changes
            nothing, so the embeddings are those of a single process to the bit.  Not with `write`.
    """
    was_training = model.training
    model.eval()
    try:
        image_ND = _of_all(
            torch.arange(data.images).split(batch_size),
            lambda index_B: model.embed_images(data.image_batch(index_B), write=write).float(),
            fabric,
        )
        order_M = torch.argsort(data.length_M.cpu(), stable=True)
        sorted_MD = _of_all(
            order_M.split(batch_size),
            lambda index_B: model.embed_captions(*data.caption_batch(index_B), write=write).float(),
            fabric,
        )
        text_MD = torch.empty_like(sorted_MD)
        text_MD[order_M.to(sorted_MD.device)] = sorted_MD
    finally:
        model.train(was_training)
    return image_ND, text_MD


def _of_all(batches: Sequence[torch.Tensor], embed, fabric: "Fabric | None") -> torch.Tensor:
    """The embeddings of all batches in order, each batch encoded by one process."""
    if fabric is None or fabric.world_size == 1:
        return torch.cat([embed(index_B) for index_B in batches])
    own = [embed(index_B).cpu() for index_B in batches[fabric.global_rank :: fabric.world_size]]
    parts = all_gather_objects(fabric, own)
    in_order = [parts[i % fabric.world_size][i // fabric.world_size] for i in range(len(batches))]
    return torch.cat(in_order).to(fabric.device)


@torch.no_grad()
def embed_captions(
    model: DualEncoder,
    tokenizer: Tokenizer,
    captions: Sequence[str],
    max_tokens: int,
    batch_size: int = 250,
) -> torch.Tensor:
    """Embeddings of any captions (M, D), float32, for a model in evaluation mode; nothing is written."""
    device = next(model.parameters()).device
    tokens_ML, length_M = (torch.from_numpy(part) for part in tokenizer.encode(captions, max_tokens))
    return torch.cat(
        [
            model.embed_captions(tokens_BL.to(device), length_B.to(device)).float()
            for tokens_BL, length_B in zip(tokens_ML.split(batch_size), length_M.split(batch_size))
        ]
    )


def rank_split(
    model: DualEncoder, data: SplitTensors, fabric: "Fabric | None" = None, batch_size: int = 250
) -> tuple[RetrievalRanks, dict]:
    """Ranks of a split under the standard protocol, and the health of its embeddings.

    Returns:
        The ranks; and `embedding_health` with `memory`, the `memory_health` (None without a memory).  The
        same in every process.
    """
    image_ND, text_MD = embed_split(model, data, batch_size, fabric=fabric)
    ranks = retrieval_ranks(image_ND, text_MD, data.split.image_of_caption_M)
    was_training = model.training
    memory = memory_health(model.eval(), data)
    model.train(was_training)
    return ranks, {**embedding_health(image_ND, text_MD), "memory": memory or None}


# --- a pretrained open_clip model as it is, without any training of ours

BATCH = 64  # images or captions embedded at once
OF_ANY_SPLIT = ("standard", "paired", "single_caption")  # protocols


@dataclass(frozen=True)
class ZeroShot:
    """A model to evaluate as it is; what can be known without its weights is checked when it is made.

    Attributes:
        model: `open_clip:<name>`.
        weights: a tag or a file; `default` becomes the model's first tag.
        template: a prompt in which `{}` stands for the caption, as `a photo of {}`.

    Raises:
        ParameterError: another library, an unknown model or tag, weights `none`, or a template without `{}`.
    """

    model: str
    weights: str = "default"
    template: str = "{}"

    def __post_init__(self):
        library, _, name = self.model.partition(":")
        if library in ("timm", "torchvision", "hf"):
            raise ParameterError(
                f"--model: expected open_clip:<name>, found {self.model!r}; models of {library} embed images"
                " or texts alone and have no joint space before a training brings two of them together"
            )
        if library != "open_clip" or not name:
            raise ParameterError(
                f"--model: expected open_clip:<name>, as open_clip:ViT-B-32, found {self.model!r}; only"
                " open_clip's models are evaluated as they are"
            )
        if "{}" not in self.template:
            raise ParameterError(
                f"--template: expected {{}} where the caption goes, as 'a photo of {{}}', found"
                f" {self.template!r}; put it in"
            )
        if self.weights == "none":
            raise ParameterError(
                "--weights: expected a tag or a file, found 'none': random weights embed nothing; leave it"
                " out for the model's first tag"
            )
        tag = open_clip_tag(name, self.weights, "--weights")
        object.__setattr__(self, "weights", tag or self.weights)

    @torch.no_grad()
    def embed(self, dataset: Dataset, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
        """Embeds a split by open_clip's own preprocessing, tokenizer and towers.

        Returns:
            Embeddings of the images (N, D) and captions (M, D), float32, the image of each caption (M,), and
            the preprocessing: `size`, `mean`, `std`, `interpolation`, `resize_mode` and so on.

        Raises:
            ParameterError: no such split.
            FileNotFoundError: weights or a tokenizer that are neither here nor can be fetched.
            ValueError: weights that are damaged or of another model.
        """
        from open_clip.transform import PreprocessCfg, image_transform_v2

        name, part = self.model.partition(":")[2], dataset.split(split)
        tokenizer = own_open_clip_tokenizer(name)
        _, clip, about = create_open_clip(name, self.weights, "--weights", True)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        clip = clip.to(device).eval()
        known = {key: about[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in about}
        preprocess = PreprocessCfg(size=clip.visual.image_size, **known)
        transform = image_transform_v2(preprocess, is_train=False)

        def pixels(image: str) -> torch.Tensor:
            return transform(dataset.source.load(image).convert("RGB"))

        image_parts, caption_parts = [], []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for names in progress(_batches(part.images), desc="images", unit="step"):
                image_parts.append(clip.encode_image(torch.stack([*pool.map(pixels, names)]).to(device)))
        for captions in progress(_batches(part.captions), desc="captions", unit="step"):
            tokens = tokenizer([self.template.replace("{}", caption) for caption in captions])
            caption_parts.append(clip.encode_text(tokens.to(device)))
        image_ND, caption_MD = (
            torch.cat(parts).float().cpu().numpy() for parts in (image_parts, caption_parts)
        )
        return image_ND, caption_MD, part.image_of_caption_M, asdict(preprocess)


def check_protocol_of(dataset: Dataset, split: str, protocol: str) -> None:
    """Passes if the protocol's name stands for this split: known before anything is embedded.

    Raises:
        ParameterError: it does not, or there is no such split.
    """
    images = len(dataset.split(split).images)
    names = [*OF_ANY_SPLIT, *(way.name for way in protocols_of(dataset.name, split, images))]
    if protocol not in names:
        raise ParameterError(
            f"--protocol: expected one of {', '.join(names)} for the {split} split of {dataset.name}"
            f" ({images:,} images), found {protocol!r}; choose one of them"
        )


def _batches(items: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def embedding_health(image_ND: torch.Tensor, caption_MD: torch.Tensor) -> dict[str, float]:
    """How embeddings lie on the unit sphere.

    Args:
        image_ND, caption_MD: embeddings of a split.

    Returns:
        `image_spread` and `caption_spread`, 1 - |mean unit vector|²: 0 if all lie at one point, 1 if they
        cancel out; `modality_gap`, the distance between the two means (Liang et al. 2022).
    """
    image_D, caption_D = (
        torch.nn.functional.normalize(x.double(), dim=1).mean(0) for x in (image_ND, caption_MD)
    )
    return {
        "image_spread": float(1 - image_D @ image_D),
        "caption_spread": float(1 - caption_D @ caption_D),
        "modality_gap": float((image_D - caption_D).norm()),
    }


# --- the text tower in a page: a list of steps, which templates/text_encoder.js takes

MOST_BYTES = 6_000_000  # of weights in a page; a third more as text
FINE_BYTES = 500_000  # below, 16 bits for a number cost a page little


def page_tower(model: DualEncoder, tokenizer: Tokenizer, max_tokens: int, image_ND) -> dict[str, np.ndarray]:
    """What a page needs to rank a split's images for any text, in a few megabytes.

    Every matrix is rounded to 8 bits, of a small tower to 16, row by row with a scale of its own.

    Args:
        model: its encoder of captions is one of `text_steps`.
        tokenizer: whose state goes into the page.
        max_tokens: where a text is cut.
        image_ND: embeddings of the images.

    Returns:
        `tower`, uint8: JSON with `tokenizer`, `maxTokens`, `padded` (whether padding is embedded too),
        `bits`, `steps`, the `mean` of the images' unit vectors and `images`, how they differ from it, where
        `{"at", "shape"}` stands for an array; and `tower_weights`, uint8, the arrays.  Nothing if the
        encoder has no steps, or weights of more than `MOST_BYTES`.
    """
    try:
        steps = text_steps(model)
    except TypeError:
        return {}
    unit_ND = nn.functional.normalize(torch.as_tensor(image_ND).float(), dim=-1)
    mean_D = unit_ND.mean(0)  # apart: where images lie close together, rounding would mix them up
    tower = {
        "tokenizer": tokenizer.state,
        "maxTokens": max_tokens,
        "padded": not getattr(model.text_encoder, "padding_mask", True),
        "steps": steps,
        "mean": mean_D,
        "images": unit_ND - mean_D,
    }
    for bits, most in ((16, FINE_BYTES), (8, MOST_BYTES)):
        parts: dict[int, tuple[dict, bytes]] = {}
        packed = json.dumps({**_packed(tower, bits, parts), "bits": bits}).encode()
        weights = b"".join(content for _, content in parts.values())
        if len(weights) <= most:
            contents = {"tower": packed, "tower_weights": weights}
            return {name: np.frombuffer(content, np.uint8) for name, content in contents.items()}
    return {}


def _packed(value, bits: int, parts: dict[int, tuple[dict, bytes]]):
    """The value with a place and a shape for each tensor, whose bytes go into `parts`, once by its id."""
    if isinstance(value, dict):
        return {name: _packed(part, bits, parts) for name, part in value.items()}
    if isinstance(value, list):
        return [_packed(part, bits, parts) for part in value]
    if not isinstance(value, torch.Tensor):
        return value
    if id(value) not in parts:
        content = _rounded(value.detach().float().cpu().numpy(), bits)
        at = sum(len(other) for _, other in parts.values())
        parts[id(value)] = {"at": at, "shape": list(value.shape)}, content
    return parts[id(value)][0]


def _rounded(values: np.ndarray, bits: int) -> bytes:
    """A matrix as whole numbers, filled up to four bytes, then a scale of each row; a vector as float32."""
    if values.ndim == 1:
        return values.astype("<f4").tobytes()
    highest = 2 ** (bits - 1) - 1
    scale_R = np.maximum(np.abs(values).max(1), np.finfo(np.float32).tiny) / highest
    content = np.rint(values / scale_R[:, None]).astype(f"<i{bits // 8}").tobytes()
    return content + bytes(-len(content) % 4) + scale_R.astype("<f4").tobytes()


def text_steps(part: nn.Module) -> list:
    """What a module does to rows of numbers (R, C), of a model to the ids of one caption, in evaluation.

    Returns:
        Steps `[name, argument, …]`, named as in text_encoder.js; arguments are tensors, numbers and lists
        of steps.

    Raises:
        TypeError: the module has none, as a pretrained encoder.
    """
    match part:
        case nn.Dropout():
            return []
        case nn.GELU() | nn.ReLU():
            return [[type(part).__name__.lower()]]
        case nn.Linear():
            return [["linear", part.weight, part.bias]]
        case nn.LayerNorm():
            return [["norm", part.weight, part.bias]]
        case nn.Sequential() | nn.ModuleList():
            return [step for inner in part for step in text_steps(inner)]
        case nn.TransformerEncoder():
            return text_steps(part.layers)
        case nn.TransformerEncoderLayer():
            inner = [*text_steps(part.linear1), ["gelu"], *text_steps(part.linear2)]
            first, second = text_steps(part.norm1), text_steps(part.norm2)
            return [["add", *_attend(part.self_attn)], *first, ["add", *inner], *second]
        case TextEncoder():
            steps = [["embed", part.token.weight, part.position_LD], *text_steps(part.layers), ["mean"]]
            return [*steps, *text_steps(part.norm), *text_steps(part.project)]
        case GRUEncoder():
            ahead, back = (
                ["gru", gru.weight_ih_l0, gru.bias_ih_l0, gru.weight_hh_l0, gru.bias_hh_l0]
                for gru in (part.ahead, part.back)
            )
            states = ["join", [ahead], [["reverse"], back, ["reverse"]]]
            pooled = ["join", [["mean"]], [["max"]]]
            steps = [["embed", part.token.weight, None], states, pooled]
            return [*steps, *text_steps(part.norm), *text_steps(part.project)]
        case WordsEncoder():
            steps = [["embed", part.token.weight, None], ["mean"]]
            return [*steps, *text_steps(part.norm), *text_steps(part.feed_forward)]
        case MemoryBlock():
            return [["add", *_attend(part.attention, part.slots_SD)], *text_steps(part.norm)]
        case CosineMemory():
            unit_SHE, scale = (
                nn.functional.normalize(part.key_SHE, dim=-1),
                math.exp(-part.log_temperature.item()),
            )
            slots = [[["constant", of.flatten(1)]] for of in (unit_SHE, part.value_SHE)]
            read = ["attend", unit_SHE.shape[1], scale, True, text_steps(part.query), *slots]
            return [["add", read, ["linear", part.gain * part.output.weight, None]]]
        case CosineMemoryNetwork():
            return text_steps(part.text_encoder) + text_steps(part.central_memory)
        case MemoryNetwork():
            return _published_steps(part)
        case DualEncoder():
            return text_steps(part.text_encoder)
    raise TypeError(f"expected a module with steps, found {type(part).__name__}")


def _attend(attention: nn.MultiheadAttention, slots_SD: torch.Tensor | None = None) -> list:
    """Attention of the rows to each other, or to slots, whose projections do not depend on the rows."""
    scale = attention.head_dim**-0.5
    parts = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3))
    query, *rest = [[["linear", weight, bias]] for weight, bias in parts]
    if slots_SD is not None:
        rest = [[["constant", nn.functional.linear(slots_SD, *projection[1:])]] for [projection] in rest]
    return [["attend", attention.num_heads, scale, False, query, *rest], *text_steps(attention.out_proj)]


def _published_steps(network: MemoryNetwork) -> list:
    """A caption alone enters the fusion beside what never changes: the absent image's type, and the bits."""
    joined, absent_D = network.fusion[0], network.type_2D[0]
    D = len(absent_D)
    image_ED, text_ED, bits_E2 = joined.weight.split([D, D, 2], dim=1)
    bias_E = joined.bias + image_ED @ absent_D + text_ED @ network.type_2D[1] + bits_E2[:, 1]
    central = text_steps(network.central_memory)
    return [
        *text_steps(network.text_encoder),
        *text_steps(network.modality_memory["text"]),
        ["linear", text_ED, bias_E],
        *text_steps(network.fusion[1:]),
        *central,
        *[["add", *text_steps(network.feedback)], *central] * network.feedback_steps,
    ]
