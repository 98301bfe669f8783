"""Data: images and captions of a data set, packed images, token ids, batches in an exact order."""

from mmlib import paths
from mmlib.config import DataConfig, TokenizerConfig
from mmlib.data.dataset import SPLITS, Dataset, ImageSource, Split
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
    """The data set that the config names.

    Raises:
        FileNotFoundError, ValueError: from the loader, naming the file and what is wrong with it.
    """
    if config.dataset == "shapes":
        from mmlib.data.shapes import load_shapes

        return load_shapes(
            config.shapes_seed, config.shapes_train, config.shapes_val, config.shapes_test, config.image_size
        )
    from mmlib.data.flickr8k import load_flickr8k

    return load_flickr8k(paths.from_root(config.data_root))


def tokenizer_for(config: TokenizerConfig, dataset: Dataset) -> Tokenizer:
    """The tokenizer that the config names, its vocabulary from the training captions alone."""
    return build_tokenizer(config.tokenizer, dataset.splits["train"].captions, config.min_word_count)
