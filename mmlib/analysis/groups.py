"""Recall by kind of query: caption length, object word, image cluster.

Words are found by rules of a few lines that need no tagger, made for captions of one plain English sentence
(Flickr8k and its kin, Hodosh et al. 2013).  Rules err on single captions; groups of hundreds can stand that.

Shapes: N images, M captions, D width, Q queries of one direction, C clusters.
"""

import re
from collections import Counter

import numpy as np

from mmlib.data import Split
from mmlib.metrics import RetrievalRanks
from mmlib.metrics.ranks import UnitRows
from mmlib.metrics.summary import recall_with_interval

LEAST_QUERIES = 30  # of an object word: fewer give intervals that say nothing
CLUSTERS = 8
CLUSTER_WORDS = 3
STARTS = 5


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_DETERMINERS = _listed(
    "a an the one two three four five six several some many another his her their its this that"
)
# Words that end a noun phrase: what stands before one of them is most often a noun.
_AFTER_NOUN = _listed(
    """
    about above across after against along and around as at atop before behind below beneath beside
    between but by down during for from has have he in inside into is are was were it near next of off
    on onto or out outside over past she that they through to toward towards under up upon wearing
    when where which while who whose with
    """
)
# Not objects, though they stand where nouns do.
_NO_OBJECTS = _DETERMINERS | _AFTER_NOUN | _listed(
    "back bottom edge front left looks middle other others play right row set side top way"
)  # fmt: skip
_AFTER_DETERMINER = 0.05  # least share of a noun's uses that directly follow a determiner
_ENDS_PHRASE = 0.5  # least share that end their phrase; adjectives rarely do


def recall_by_groups(split: Split, ranks: RetrievalRanks, image_ND, ks=(1, 10)) -> dict:
    """R@K of every group of queries.

    Captions are grouped by length, by the nouns they hold and by the cluster of their image; images by
    cluster and by noun, which is the image's if half of its captions hold it.

    Args:
        split: whose captions are read.
        ranks: of that split, protocol `standard`.
        image_ND: its image embeddings.
        ks: the K of R@K.

    Returns:
        `{direction: {kind: {"r<K>": rows of recall_by_group}}}`, kinds `length`, `word` and `cluster`;
        the words a cluster is named by are those that set its images apart.

    Raises:
        ValueError: embeddings refused by `retrieval_ranks`.
    """
    image_of_text_M = ranks.image_of_text_M
    words = object_words(split.captions, LEAST_QUERIES)
    share_N = {
        word: np.bincount(image_of_text_M, weights=holds_M) / np.bincount(image_of_text_M)
        for word, holds_M in words.items()
    }
    words_of_images = {word: share >= 0.5 for word, share in share_N.items()}
    frequent = {word: has_N for word, has_N in words_of_images.items() if has_N.sum() >= LEAST_QUERIES}
    cluster_N = image_clusters(image_ND)
    clusters = {_cluster_name(c, cluster_N, share_N): cluster_N == c for c in range(cluster_N.max() + 1)}
    groups = {
        "i2t": {"word": frequent, "cluster": clusters},
        "t2i": {
            "length": length_bins(split.captions),
            "word": words,
            "cluster": {name: member_N[image_of_text_M] for name, member_N in clusters.items()},
        },
    }
    cluster_Q = {"i2t": None, "t2i": image_of_text_M}
    return {
        d: {
            kind: {f"r{k}": recall_by_group(ranks.of(d), members, k=k, cluster_Q=cluster_Q[d]) for k in ks}
            for kind, members in kinds.items()
        }
        for d, kinds in groups.items()
    }


def recall_by_group(rank_Q, members: dict[str, np.ndarray], *, k: int = 1, cluster_Q=None) -> list[dict]:
    """R@K of each group of queries.

    Args:
        rank_Q: 1-based ranks of one direction.
        members: by name, which queries belong to a group: bool (Q,), or their numbers.
        k: the K of R@K.
        cluster_Q: the image of each query, where several belong to one.

    Returns:
        Rows of `group`, `n`, `hits`, `value`, `low`, `high` (95 %).
    """
    rows = []
    for name, member in members.items():
        hit_q = np.asarray(rank_Q)[member] <= k
        cluster_q = None if cluster_Q is None else np.asarray(cluster_Q)[member]
        rows.append({"group": name, "n": len(hit_q), **recall_with_interval(hit_q, cluster_q)})
    return rows


def image_clusters(image_ND, clusters: int = CLUSTERS, seed: int = 0) -> np.ndarray:
    """k-means over image directions: the cluster of each image, int64 (N,), 0 the largest.

    The best of `STARTS` runs from random images.  Fewer clusters than asked where images are fewer,
    or embeddings so alike that some stay empty.

    Raises:
        ValueError: embeddings refused by `retrieval_ranks`.
    """
    from scipy.cluster.vq import kmeans, vq

    unit_ND = UnitRows(image_ND, "image_ND")[:].cpu().numpy()
    centre_CD, _ = kmeans(unit_ND, min(clusters, len(unit_ND)), iter=STARTS, rng=seed)
    _, label_N = np.unique(vq(unit_ND, centre_CD)[0], return_inverse=True)
    by_size = np.argsort(-np.bincount(label_N), kind="stable")
    return np.argsort(by_size)[label_N]


def _cluster_name(cluster: int, cluster_N: np.ndarray, share_N: dict[str, np.ndarray]) -> str:
    """The words that set a cluster's captions apart most: their share in it less that in all."""
    more = {word: share[cluster_N == cluster].mean() - share.mean() for word, share in share_N.items()}
    typical = [word for word in sorted(more, key=lambda word: -more[word]) if more[word] > 0]
    return f"{cluster + 1}: {', '.join(typical[:CLUSTER_WORDS])}".rstrip(": ")


def length_bins(captions) -> dict[str, np.ndarray]:
    """Quartiles of caption length in words; punctuation that stands alone is none.

    Returns:
        By name of a bin, from short to long, which captions are in it, bool (M,).  Fewer than four bins
        where many captions are equally long.
    """
    words_M = np.array([sum(any(map(str.isalnum, token)) for token in c.split()) for c in captions])
    cuts = np.unique(np.quantile(words_M, (0.25, 0.5, 0.75), method="inverted_cdf"))
    bin_M = np.searchsorted(cuts, words_M)
    bins = {}
    for member_M in (bin_M == b for b in np.unique(bin_M)):
        low, high = words_M[member_M].min(), words_M[member_M].max()
        bins[f"{low} words" if low == high else f"{low}–{high} words"] = member_M
    return bins


def object_words(captions, minimum: int = 30, limit: int = 20) -> dict[str, np.ndarray]:
    """The most frequent nouns, found by position: they follow determiners and end their phrases.

    Of a word's uses at least 5 % directly follow a determiner (verbs do not) and at least half
    stand before a preposition, a conjunction, a form of "be", an -ing form, punctuation or the end
    (adjectives do not).  Words in -ing count where their plural occurs too ("building").  Singular
    and plural are two words.

    Args:
        captions: M texts.
        minimum: captions that a word must occur in.
        limit: number of words.

    Returns:
        By word, the most frequent first: which captions hold it, bool (M,).
    """
    uses, determined, ends = Counter(), Counter(), Counter()
    holders: dict[str, set[int]] = {}
    for m, caption in enumerate(captions):
        tokens = ["", *re.findall(r"[a-z]+|[^\sa-z]", caption.lower()), "."]
        for before, word, after in zip(tokens, tokens[1:], tokens[2:]):
            uses[word] += 1
            determined[word] += before in _DETERMINERS
            ends[word] += not after.isalpha() or after in _AFTER_NOUN or after.endswith("ing")
            holders.setdefault(word, set()).add(m)
    nouns = [
        word
        for word in uses
        if len(word) > 1
        and word not in _NO_OBJECTS
        and (not word.endswith("ing") or f"{word}s" in uses)
        and len(holders[word]) >= minimum
        and determined[word] >= _AFTER_DETERMINER * uses[word]
        and ends[word] >= _ENDS_PHRASE * uses[word]
    ]
    nouns.sort(key=lambda word: (-len(holders[word]), word))
    return {word: np.isin(np.arange(len(captions)), list(holders[word])) for word in nouns[:limit]}
