"""Embeddings of a pretrained open_clip model as it is, without any training of ours.

Shapes: N images, M captions, D width.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm import tqdm

from mmlib.config import ParameterError
from mmlib.data import Dataset
from mmlib.model.backbones import create_open_clip

BATCH = 64  # images or captions embedded at once


@torch.no_grad()
def embed_zero_shot(
    model: str, weights: str, dataset: Dataset, split: str, template: str = "{}"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeds a split by open_clip's own preprocessing, tokenizer and towers.

    Args:
        model: `open_clip:<name>`.
        weights: `default` (the model's first tag), a tag, or a file.
        dataset, split: the images and captions.
        template: a prompt in which `{}` stands for the caption, as `a photo of {}`.

    Returns:
        Embeddings of the images (N, D) and captions (M, D), float32, and the image of each caption (M,).

    Raises:
        ParameterError: another library (of which no model embeds both images and texts), an unknown model or
            tag, weights `none`, or a template without `{}`.
        FileNotFoundError, ValueError: weights that are missing, damaged or of another model.
    """
    library, _, name = model.partition(":")
    if library != "open_clip":
        raise ParameterError(
            f"--model: expected open_clip:<name>, found {model!r}; models of other libraries embed images or"
            " texts alone, and need a training to bring them together"
        )
    if "{}" not in template:
        raise ParameterError(f"--template: expected {{}} where the caption goes, found {template!r}")
    if weights == "none":
        raise ParameterError(
            "--weights: expected a tag or a file, found 'none': random weights embed nothing"
        )
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    _, clip, about = create_open_clip(name, weights, "image", True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clip = clip.to(device).eval()
    known = {key: about[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in about}
    transform = image_transform_v2(PreprocessCfg(size=clip.visual.image_size, **known), is_train=False)
    part = dataset.split(split)

    def pixels(image: str) -> torch.Tensor:
        return transform(dataset.source.load(image).convert("RGB"))

    image_parts, caption_parts = [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for names in tqdm(_batches(part.images), desc="images", disable=None):
            image_parts.append(clip.encode_image(torch.stack([*pool.map(pixels, names)]).to(device)))
    tokenizer = open_clip.get_tokenizer(name)
    for captions in tqdm(_batches(part.captions), desc="captions", disable=None):
        tokens = tokenizer([template.replace("{}", caption) for caption in captions])
        caption_parts.append(clip.encode_text(tokens.to(device)))
    image_ND, caption_MD = (torch.cat(parts).float().cpu().numpy() for parts in (image_parts, caption_parts))
    return image_ND, caption_MD, part.image_of_caption_M


def _batches(items: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
