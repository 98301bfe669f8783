"""Retrieval metrics: ranks of both directions, and what can honestly be said of them.

Needs embeddings alone, of any model; imports nothing of the other rooms.
"""

from mmlib.metrics.intervals import recall_interval
from mmlib.metrics.protocols import PROTOCOLS
from mmlib.metrics.ranks import RetrievalRanks, paired_ranks, retrieval_ranks
from mmlib.metrics.summary import recall_at_k, summarise

__all__ = [
    "PROTOCOLS",
    "RetrievalRanks",
    "paired_ranks",
    "recall_at_k",
    "recall_interval",
    "retrieval_ranks",
    "summarise",
]
