"""Data: images and captions of a data set, packed images, token ids, batches in an exact order."""

from mmlib.config import DataConfig
from mmlib.data.dataset import SPLITS, Dataset, ImageSource, Split
from mmlib.data.store import Store, open_store
from mmlib.data.tokenizers import Tokenizer, build_tokenizer, restore_tokenizer


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
    if config.dataset == "shards":
        from mmlib.data.leaks import guarded
        from mmlib.data.shards import load_shards

        dataset = load_shards(config)
        return guarded(dataset, [dataset], config.leaks) if "train" in dataset.splits else dataset

    from mmlib.data.mixture import mix, parse_addition
    from mmlib.data.own_photos import load_folder
    from mmlib.data.photos import LOADERS

    parsed = [parse_addition(text) for text in config.also_train_on]
    additions = [(LOADERS[name](folder or f"data/{name}"), weight) for name, folder, weight in parsed]
    first = load_folder(config) if config.dataset == "folder" else LOADERS[config.dataset](config.folder)
    return mix(first, additions, config.leaks)
