"""Recall by kind of query: caption length, object word, people mentioned, image cluster.

Shapes: N images, M captions, D width, Q queries of one direction, P numbers of people, C clusters.
"""

import numpy as np

from mmlib.data import Split
from mmlib.data.caption_groups import PEOPLE, length_bins, object_words, people_mentioned
from mmlib.metrics import RetrievalRanks
from mmlib.metrics.analysis import recall_by_group
from mmlib.metrics.scores import unit_rows

LEAST_QUERIES = 30  # of an object word: fewer give intervals that say nothing
CLUSTERS = 8
CLUSTER_WORDS = 3
STARTS = 5


def image_clusters(image_ND, clusters: int = CLUSTERS, seed: int = 0) -> np.ndarray:
    """k-means over image directions: the cluster of each image, int64 (N,), 0 the largest.

    The best of `STARTS` runs from random images.  Fewer clusters than asked where images are fewer,
    or embeddings so alike that some stay empty.

    Raises:
        ValueError: embeddings refused by `retrieval_ranks`.
    """
    from scipy.cluster.vq import kmeans, vq

    rows = unit_rows(image_ND, "image_ND")
    unit_UD = rows.unit_UD.cpu().numpy()
    centre_CD, _ = kmeans(unit_UD, min(clusters, len(unit_UD)), iter=STARTS, rng=seed)
    _, label_N = np.unique(vq(unit_UD, centre_CD)[0][rows.distinct_N], return_inverse=True)
    by_size = np.argsort(-np.bincount(label_N), kind="stable")
    return np.argsort(by_size)[label_N]


def recall_by_groups(split: Split, ranks: RetrievalRanks, image_ND, ks=(1, 10)) -> dict:
    """R@K of every group of queries.

    Captions are grouped by length, by the people they mention, by the nouns they hold and by the
    cluster of their image; images by the last three, where a noun is the image's if half of its
    captions hold it, and its people are those that most of its captions mention.  People are left
    out where no caption mentions any.

    Args:
        split: whose captions are read.
        ranks: of that split, protocol `standard`.
        image_ND: its image embeddings.
        ks: the K of R@K.

    Returns:
        `{direction: {kind: {"r<K>": rows of recall_by_group}}}`, kinds `length`, `people`, `word`
        and `cluster`; the words a cluster is named by are those that set its images apart.

    Raises:
        ValueError: embeddings refused by `retrieval_ranks`.
    """
    length_M, length_names = length_bins(split.captions)
    people_M = np.array([people_mentioned(caption) for caption in split.captions])
    cluster_N = image_clusters(image_ND)
    words = object_words(split.captions, LEAST_QUERIES)
    words_N = {
        word: _share_of_captions(holds_M, ranks) >= 0.5 for word, holds_M in words.items()
    }  # an image has a word that half of its captions have
    cluster_names = _cluster_names(cluster_N, words, ranks)
    of_queries = {
        "i2t": {
            "people": (_most_named(people_M, ranks), PEOPLE),
            "word": {word: has_N for word, has_N in words_N.items() if has_N.sum() >= LEAST_QUERIES},
            "cluster": (cluster_N, cluster_names),
        },
        "t2i": {
            "length": (length_M, length_names),
            "people": (people_M, PEOPLE),
            "word": words,
            "cluster": (cluster_N[ranks.image_of_text_M], cluster_names),
        },
    }
    groups = {}
    for direction, kinds in of_queries.items():
        if not people_M.any():
            del kinds["people"]
        groups[direction] = {
            kind: {f"r{k}": _rows(ranks, direction, k, grouping) for k in ks}
            for kind, grouping in kinds.items()
        }
    return groups


def _rows(ranks: RetrievalRanks, direction: str, k: int, grouping) -> list[dict]:
    """Rows of R@K: of a partition `(group_Q, names)`, or of groups that overlap, `{name: member_Q}`."""
    rank_Q, image_Q = ranks.of(direction), ranks.image_of_query(direction)
    clustered = direction == "t2i"
    if isinstance(grouping, tuple):
        group_Q, names = grouping
        rows = recall_by_group(rank_Q, group_Q, k=k, cluster_Q=image_Q if clustered else None)
        return [row | {"group": names[row["group"]]} for row in rows]
    rows = []
    for name, member_Q in grouping.items():
        cluster_q = image_Q[member_Q] if clustered else None
        rows += recall_by_group(rank_Q[member_Q], np.full(member_Q.sum(), name), k=k, cluster_Q=cluster_q)
    return rows


def _share_of_captions(holds_M: np.ndarray, ranks: RetrievalRanks) -> np.ndarray:
    return np.bincount(ranks.image_of_text_M, weights=holds_M) / np.bincount(ranks.image_of_text_M)


def _most_named(people_M: np.ndarray, ranks: RetrievalRanks) -> np.ndarray:
    """The number of people that most of an image's captions mention; of equals, the larger."""
    count_PN = np.stack(
        [np.bincount(ranks.image_of_text_M, weights=people_M == p) for p in range(len(PEOPLE))]
    )
    return len(PEOPLE) - 1 - np.argmax(count_PN[::-1], axis=0)


def _cluster_names(cluster_N: np.ndarray, words: dict, ranks: RetrievalRanks) -> list[str]:
    """The words that set a cluster's captions apart most: their share in it less that in all."""
    shares = {word: _share_of_captions(holds_M, ranks) for word, holds_M in words.items()}
    names = []
    for cluster in range(cluster_N.max() + 1):
        inside = {
            word: share_N[cluster_N == cluster].mean() - share_N.mean() for word, share_N in shares.items()
        }
        typical = [word for word, more in sorted(inside.items(), key=lambda item: -item[1]) if more > 0]
        names.append(f"{cluster + 1}: {', '.join(typical[:CLUSTER_WORDS])}".rstrip(": "))
    return names
