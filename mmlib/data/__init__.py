"""Data: images and captions of a data set, packed images, token ids, batches in an exact order."""

from dataclasses import replace

from mmlib import paths
from mmlib.config import DataConfig, TokenizerConfig
from mmlib.data.dataset import SPLITS, Dataset, ImageSource, Split
from mmlib.data.leaks import find_leaks, without_leaks
from mmlib.data.store import ImageStore, open_store
from mmlib.data.tokenizers import Tokenizer, build_tokenizer

__all__ = [
    "SPLITS",
    "Dataset",
    "ImageSource",
    "ImageStore",
    "Split",
    "Tokenizer",
    "build_tokenizer",
    "load_dataset",
    "open_store",
    "tokenizer_for",
]


def load_dataset(config: DataConfig) -> Dataset:
    """The data set that the config names, its training split without images that are held out.

    Drawn scenes need no guard: no two of them are equal, and what looks alike at 32 pixels may differ.

    Raises:
        FileNotFoundError, ValueError: from the loader, naming the file and what is wrong with it.
    """
    if config.dataset == "shapes":
        from mmlib.data.shapes import load_shapes

        return load_shapes(
            config.shapes_seed, config.shapes_train, config.shapes_val, config.shapes_test, config.image_size
        )
    from mmlib.data.flickr8k import load_flickr8k

    dataset = load_flickr8k(paths.from_root(config.folder))
    leaks = find_leaks(dataset, dataset)
    if config.leaks == "exclude" or not leaks:
        return without_leaks(dataset, leaks)
    count = len({leak.train_image for leak in leaks})
    note = f"Leak guard: {count:,} training images are held out too and were kept, as asked (leaks='keep')."
    return replace(dataset, notes=(*dataset.notes, note))


def tokenizer_for(config: TokenizerConfig, dataset: Dataset) -> Tokenizer:
    """The tokenizer that the config names, its vocabulary from the training captions alone."""
    return build_tokenizer(config.tokenizer, dataset.splits["train"].captions, config.min_word_count)
