"""Analysis of errors: which queries a model answers, how its scores spread, and what its memory reads.

Needs a data set, embeddings and ranks (the memory's reads: a model); knows nothing of runs or reports.
"""

from mmlib.analysis.diagnosis import changed_queries, diagnose, nearest_neighbours, queries_of
from mmlib.analysis.memory import memory_health, slot_readers
