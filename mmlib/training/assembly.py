"""What a run trains and validates on, put together from its parameters."""

from mmlib.config import TrainConfig
from mmlib.data import Dataset, Tokenizer, open_store
from mmlib.data.batches import PairSource, SplitTensors
from mmlib.model import MemoryNetwork
from mmlib.training.processes import Processes, share


def training_data(
    config: TrainConfig, dataset: Dataset, tokenizer: Tokenizer, model: MemoryNetwork, processes: Processes
) -> tuple[PairSource, SplitTensors]:
    """The training pairs of this process, and the validation split.

    Raises:
        ValueError: fewer training pairs than one batch, or images that cannot be packed.
    """
    data = {split: split_tensors(config, dataset, tokenizer, split, processes) for split in ("train", "val")}
    source = PairSource(
        data["train"],
        config.batch_size,
        config.captions_per_image,
        config.seed,
        config,
        lambda count: share(count, processes.rank, processes.count),
    )
    return source, data["val"]


def split_tensors(
    config: TrainConfig, dataset: Dataset, tokenizer: Tokenizer, split: str, processes: Processes
) -> SplitTensors:
    """A split as the model reads it."""
    store = open_store(dataset, config.image_size, config.resize)
    return SplitTensors(
        dataset, store, tokenizer, split, config.max_tokens, config.padding_mask, processes.device
    )
