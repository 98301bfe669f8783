"""Shards: data sets as webdataset tar files, written, streamed for training, and read for evaluation."""

from mmlib.data.shards.held_out import load_shards
from mmlib.data.shards.writing import write_shards

__all__ = ["ShardStream", "load_shards", "write_shards"]


def __getattr__(name: str):
    # Loaded when it is asked for: the packed store's worker processes import this package, without torch.
    if name == "ShardStream":
        from mmlib.data.shards.stream import ShardStream

        return ShardStream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
