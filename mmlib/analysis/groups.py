"""Recall by kind of query: caption length, object word, people mentioned, image cluster.

Shapes: N images, M captions, D width, Q queries of one direction, P numbers of people, C clusters.
"""

import re
from collections import Counter

import numpy as np

from mmlib.data import Split
from mmlib.metrics import RetrievalRanks
from mmlib.metrics.ranks import UnitRows
from mmlib.metrics.summary import recall_interval

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

    unit_ND = UnitRows(image_ND, "image_ND")[:].cpu().numpy()
    centre_CD, _ = kmeans(unit_ND, min(clusters, len(unit_ND)), iter=STARTS, rng=seed)
    _, label_N = np.unique(vq(unit_ND, centre_CD)[0], return_inverse=True)
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


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


PEOPLE = ("nobody", "one person", "two people", "more people")

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

_ONE = _listed(
    """
    adult baby ballerina bicyclist biker boarder boy bride chef child climber cowboy cyclist dancer
    female gentleman girl girlfriend goalie groom guy gymnast hiker infant jogger kid lady male man mom
    mother father dad musician officer performer person pitcher player policeman racer rider runner
    sailor skateboarder skater skier snowboarder soldier somebody someone son daughter student surfer
    swimmer teenager toddler vendor woman worker wrestler youngster
    """
)
_SEVERAL = _listed(
    """
    adults babies bicyclists bikers boarders boys brides children climbers crowd cyclists dancers
    family females friends gentlemen girls group guys gymnasts hikers infants joggers kids ladies males
    men musicians officers people performers persons players racers riders runners sailors
    skateboarders skaters skiers snowboarders soldiers spectators students surfers swimmers team
    teenagers toddlers women workers wrestlers youngsters
    """
)
_REACH = 3  # words between a number and what it counts: "two very young boys"


def length_bins(captions) -> tuple[np.ndarray, list[str]]:
    """Quartiles of caption length in words; punctuation that stands alone is none.

    Returns:
        The bin of each caption, int64 (M,), and the name of each bin, from short to long.  Fewer
        than four bins where many captions are equally long.
    """
    words_M = np.array([sum(map(_is_word, caption.split())) for caption in captions])
    cuts = np.unique(np.quantile(words_M, (0.25, 0.5, 0.75), method="inverted_cdf"))
    _, bin_M = np.unique(np.searchsorted(cuts, words_M), return_inverse=True)
    ends = [(words_M[bin_M == b].min(), words_M[bin_M == b].max()) for b in range(bin_M.max() + 1)]
    return bin_M, [f"{low} words" if low == high else f"{low}–{high} words" for low, high in ends]


def _is_word(token: str) -> bool:
    return any(map(str.isalnum, token))


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
    found = {}
    for word in nouns[:limit]:
        found[word] = np.zeros(len(captions), dtype=bool)
        found[word][list(holders[word])] = True
    return found


def people_mentioned(caption: str) -> int:
    """How many people a caption mentions: 0, 1, 2, or 3 for more; an index into `PEOPLE`.

    A singular ("man", "girl", "skier") counts one.  A plural counts the number up to three words
    before it ("two young boys"), "couple" two, and without a number more; so do "group", "crowd",
    "team" and "family".  "A man and two girls" are three.  The same person named twice is counted
    twice.
    """
    words = re.findall(r"[a-z]+", caption.lower())
    people, taken = 0, 0
    for place, word in enumerate(words):
        if word in _ONE:
            people += 1
        elif word == "couple" and words[place + 1 : place + 2] != ["of"]:
            people += 2
        elif word in _SEVERAL:
            before = words[max(taken, place - _REACH) : place]
            people += 2 if {"two", "both", "couple"} & set(before) else 3
        else:
            continue
        taken = place + 1
    return min(people, 3)


def recall_by_group(rank_Q, group_Q, *, k: int = 1, cluster_Q=None) -> list[dict]:
    """R@K for each group of queries: caption length, object word, image cluster.

    Args:
        rank_Q: 1-based ranks of one direction.
        group_Q: the group of each query, numbers or words; a row for each, in sorted order.
        k: the K of R@K.
        cluster_Q: the image of each query, where several belong to one.

    Returns:
        Rows of `group`, `n`, `hits`, `value`, `low`, `high` (95 %).

    Raises:
        ValueError: shapes that differ.
    """
    rank_Q, group_Q = np.asarray(rank_Q), np.asarray(group_Q)
    if rank_Q.shape != group_Q.shape:
        raise ValueError(f"group_Q: expected a group per query, shape {rank_Q.shape}, found {group_Q.shape}")
    return [
        {"group": group.item()} | recall_of(rank_Q <= k, np.flatnonzero(group_Q == group), cluster_Q)
        for group in np.unique(group_Q)
    ]


def recall_of(hit_Q, index, cluster_Q) -> dict:
    hit = hit_Q[index]
    low, high = recall_interval(hit, None if cluster_Q is None else np.asarray(cluster_Q)[index])
    return {"n": len(hit), "hits": int(hit.sum()), "value": float(hit.mean()), "low": low, "high": high}
