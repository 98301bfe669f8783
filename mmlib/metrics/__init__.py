"""Retrieval metrics: ranks of both directions, and what can honestly be said of them.

Needs embeddings alone, of any model; imports nothing of the other rooms.
"""

from mmlib.metrics.compare import compare_runs, summarise_seeds, verdict_from_counts
from mmlib.metrics.protocols import PROTOCOLS
from mmlib.metrics.ranks import RetrievalRanks, paired_ranks, retrieval_ranks
from mmlib.metrics.resampling import bootstrap_intervals
from mmlib.metrics.summary import recall_at_k, recall_interval, summarise
