"""Three ways to train: ours, open_clip's own loop, and the plain loop of a textbook.

Each function prepares a loop and returns a call that runs it and gives the seconds of its steps.
Shapes: B pairs, H = W pixels, L tokens.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from benchmarks.clock import StepClock
from benchmarks.places import scratch
from mmlib.config import TrainConfig, build
from mmlib.data import build_tokenizer, load_dataset
from mmlib.model import build_model
from mmlib.training import train

SKIP = 2  # steps before the clock starts
CAPTIONS = 5  # of each drawn scene
PHOTO = 500  # pixels: about what a photo of Flickr has
CHARACTERS = 34  # token ids of the reference's tokenizer


def config_of(values: dict, steps: int, **changes) -> TrainConfig:
    """A run of one epoch on drawn scenes that lasts for `steps` steps."""
    images = math.ceil((SKIP + steps + 1) * values["batch_size"] / CAPTIONS)
    data = {"dataset": "shapes", "shapes_train": images, "shapes_val": 4, "shapes_test": 4}
    data["captions_per_image"] = "all"  # as the textbook loop and open_clip's batches have them
    place = {"run": "benchmark", "overwrite": True, "epochs": 1, "lr": 1e-4}
    return build(TrainConfig, {**data, **place, **values, **changes})


def ours(values: dict, steps: int, count: bool = False) -> Callable[[], float]:
    """`mmlib.training.train` as a user calls it; with `count` see `StepClock`."""
    scratch()
    config = config_of(values, steps, **({"compile": "off"} if count else {}))

    def work() -> float:
        with StepClock(SKIP, steps, count) as clock:
            train(config, log=lambda line: None)
        work.clock = clock
        return clock.seconds

    return work


def open_clip_loop(values: dict, steps: int, count: bool = False) -> Callable[[], float]:
    """open_clip's `train_one_epoch` on its `CLIP` of the same size, with `ClipLoss` and its AdamW groups.

    Its batches lie ready in memory, on the device: nothing is read, decoded or looked up for them.
    """
    from open_clip.loss import ClipLoss
    from open_clip_train.train import train_one_epoch

    device = _device(values)
    model = open_clip_model(values).to(device)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": values["weight_decay"]},
        {"params": others, "weight_decay": 0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4)
    loss, data = ClipLoss(cache_labels=True), {"train": _ReadyBatches(values, SKIP + steps + 1, device)}
    precision = {"fp32": "fp32", "bf16": "amp_bf16"}[values["precision"]]
    settings = argparse.Namespace(
        device=str(device), precision=precision, distill=False, accum_freq=1, skip_scheduler=True,
        horovod=False, grad_clip_norm=values["clip_norm"], log_every_n_steps=100, rank=0, local_rank=0,
        log_local=False, world_size=1, batch_size=values["batch_size"], wandb=False,
    )  # fmt: skip

    def work() -> float:
        with StepClock(SKIP, steps, count) as clock:
            train_one_epoch(model, data, loss, 0, optimizer, None, None, None, settings)
        work.clock = clock
        return clock.seconds

    return work


def open_clip_model(values: dict) -> torch.nn.Module:
    """open_clip's CLIP with the sizes of `values`: widths, layers, heads, patches and positions."""
    from open_clip.model import CLIP

    width, layers, heads = (values[name] for name in ("latent_dim", "num_layers", "num_heads"))
    image = {
        "layers": layers, "width": width, "head_width": width // heads, "mlp_ratio": values["mlp_ratio"],
        "patch_size": values["patch_size"], "image_size": values["image_size"],
    }  # fmt: skip
    text = {
        "context_length": values["max_tokens"], "vocab_size": CHARACTERS, "width": width, "heads": heads,
        "layers": layers, "mlp_ratio": values["mlp_ratio"],
    }  # fmt: skip
    return CLIP(width, image, text, output_dict=True)


class _ReadyBatches:
    """What `train_one_epoch` asks of its data: a few batches, again and again."""

    def __init__(self, values: dict, steps: int, device: torch.device):
        size, side, length = (values[name] for name in ("batch_size", "image_size", "max_tokens"))
        self.batches = [
            (torch.randn(size, 3, side, side, device=device), tokens.to(device))
            for tokens in torch.randint(1, CHARACTERS, (4, size, length))
        ]
        self.num_batches, self.num_samples = steps, steps * size
        self.dataloader = self

    def set_epoch(self, epoch: int) -> None:
        """Nothing is shuffled."""

    def __iter__(self):
        return (self.batches[step % len(self.batches)] for step in range(self.num_batches))


def textbook(values: dict, steps: int, count: bool = False) -> Callable[[], float]:
    """The plain loop on our network: JPEG files, PIL, DataLoader with two workers, `.item()` each step.

    Captions are padded to the longest that is allowed, arithmetic is float32, and a caption of the
    same image counts as a negative.
    """
    config = config_of(values, steps)
    pairs = PictureFiles(config, write_pictures(config))
    device = _device(values)
    torch.manual_seed(0)
    model = build_model(config, pairs.vocabulary).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    loader = DataLoader(pairs, config.batch_size, shuffle=True, num_workers=2, persistent_workers=True)

    def work() -> float:
        with StepClock(SKIP, steps, count) as clock:
            textbook_epoch(model, optimizer, loader, config, device)
        work.clock = clock
        return clock.seconds

    return work


def textbook_epoch(model, optimizer, loader, config, device) -> float:
    """One epoch; the mean loss."""
    losses = []
    for image_BCHW, tokens_BL, length_B in loader:
        parts = image_BCHW.to(device), tokens_BL.to(device), length_B.to(device)
        image_BD, text_BD = (F.normalize(x, dim=-1) for x in model(*parts))
        sim_BB = image_BD @ text_BD.T / config.temperature
        own_B = torch.arange(len(sim_BB), device=device)
        loss = (F.cross_entropy(sim_BB, own_B) + F.cross_entropy(sim_BB.T, own_B)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


class PictureFiles(TorchDataset):
    """Pairs of a picture file and a caption, decoded and resized each time they are asked for."""

    def __init__(self, config: TrainConfig, folder: Path):
        dataset = load_dataset(config)
        split = dataset.splits["train"]
        tokenizer = build_tokenizer(config.tokenizer, split.captions)
        self.vocabulary, self.size = tokenizer.size, config.image_size
        self.tokens_ML, self.length_M = tokenizer.encode(split.captions, config.max_tokens)
        self.file_M = [picture_path(folder, split.images[i]) for i in split.image_of_caption_M]

    def __len__(self) -> int:
        return len(self.file_M)

    def __getitem__(self, index: int):
        image = read_picture(self.file_M[index], self.size)
        image_CHW = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        normal_CHW = (image_CHW - mean[:, None, None]) / std[:, None, None]
        return normal_CHW, torch.from_numpy(self.tokens_ML[index]), int(self.length_M[index])


def write_pictures(config: TrainConfig) -> Path:
    """The training images of the drawn scenes as JPEG files of `PHOTO` pixels; those there are kept.

    Drawn small and enlarged: as much to decode and resize as a photo, and soon done.
    """
    folder = scratch() / f"pictures-{config.shapes_seed}"
    folder.mkdir(exist_ok=True)
    dataset = load_dataset(config)
    for name in dataset.splits["train"].images:
        path = picture_path(folder, name)
        if not path.exists():
            dataset.source.load(name, config.image_size).resize((PHOTO, PHOTO)).save(path, quality=90)
    return folder


def picture_path(folder: Path, name: str) -> Path:
    """The file of an image."""
    return folder / f"{Path(name).stem}.jpg"


def read_picture(path: Path, size: int) -> np.ndarray:
    """One file as (size, size, 3) uint8."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def _device(values: dict) -> torch.device:
    return torch.device(values["device"])
