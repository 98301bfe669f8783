"""Error statistics of an evaluation, per group of queries; no captions or images, so it can be published.

`queries.json` beside it lists the captions and image names of the queries, for tables of single queries, and
`neighbours.npz` has their first results and small pictures, for the explorer; both share the licence of the
data set.

Shapes: N images, M captions, D width, Q queries of one direction, G gallery items, P pairs that are right,
K results, S sheets of pictures, C clusters.
"""

import io
import re
from collections import Counter

import numpy as np
from PIL import Image, ImageOps

from mmlib.analysis.people import EmbedCaptions, JudgementFiles, agreement_with_people
from mmlib.data import Dataset, Split
from mmlib.metrics import RetrievalRanks, summarise
from mmlib.metrics.ranks import UnitRows
from mmlib.metrics.summary import DIRECTIONS, recall_with_interval

HUB_K = 10
MARGIN_BINS = 10
SIMILARITY_BINS = 60
TOP_K = 10
MAX_IMAGES = 5_000  # of a split that is explored: its page would be too large to open
THUMBNAIL = 112  # side, pixels
COLUMNS = 10  # thumbnails in a row of a sheet, and rows of a sheet
QUALITY = 60  # of WebP: about 3 kB a thumbnail of a photo
MOST_SCORES = 2**25  # held at a time: 256 MiB in float64


def diagnose(
    dataset: Dataset,
    split_name: str,
    image_ND,
    text_MD,
    ranks: RetrievalRanks,
    judgements: JudgementFiles | None = None,
    embed_captions: EmbedCaptions | None = None,
) -> dict:
    """Where a model is right and wrong on one split, ready for JSON.

    Args:
        dataset: the data set.
        split_name: the split that was embedded.
        image_ND, text_MD: its embeddings, of two images or more.
        ranks: their standard ranks.
        judgements: people's judgements of this data set (`mmlib.analysis.people.find_judgements`).
        embed_captions: see `agreement_with_people`.

    Returns:
        `data`, `split` and `standard` (as in `results.json`); `groups`, from `recall_by_groups`, at
        K of 1 and 10; `hubness` and `calibration` by direction; `similarity`; `people`, from
        `agreement_with_people`, or None.

    Raises:
        ValueError: ranks of another protocol or split; fewer than two images; see
            `agreement_with_people`.
    """
    split = dataset.splits[split_name]
    map_M = split.image_of_caption_M
    if ranks.protocol != "standard" or not np.array_equal(ranks.image_of_text_M, map_M):
        raise ValueError(
            f"ranks: expected standard ranks of the {split_name} split, {len(split.captions)} captions of"
            f" {len(split.images)} images, found {ranks.protocol} ranks of {len(ranks.t2i_M)} captions of"
            f" {ranks.images}; rank the embeddings that are diagnosed"
        )
    image, text = UnitRows(image_ND, "image_ND"), UnitRows(text_MD, "text_MD")
    if len(image) < 2:
        raise ValueError("image_ND: expected two images or more, found 1; it has no negatives")
    row_M = np.arange(len(text))
    first = {"i2t": first_results(image, text, map_M, row_M), "t2i": first_results(text, image, row_M, map_M)}
    similarity_of = {
        "positive": (image[map_M] * text[:]).sum(1).cpu().numpy(),
        "hardest_i2t": first["i2t"]["hardest_Q"],
        "hardest_t2i": first["t2i"]["hardest_Q"],
    }
    people = None
    if judgements is not None:
        people = agreement_with_people(
            judgements, dataset, split_name, image_ND, text_MD, ranks, embed_captions
        )
    return {
        "data": dataset.identity,
        "split": split_name,
        "standard": summarise(ranks),
        "groups": recall_by_groups(split, ranks, image_ND),
        "hubness": {d: hubness(first[d]["count_G"], len(ranks.of(d))) for d in DIRECTIONS},
        "similarity": histograms(similarity_of),
        "calibration": {
            d: calibration(first[d]["margin_Q"], ranks.of(d), cluster_Q=map_M if d == "t2i" else None)
            for d in DIRECTIONS
        },
        "people": people,
    }


def queries_of(dataset: Dataset, split_name: str) -> dict:
    """The content of `queries.json`: a split's image names and captions, in order."""
    split = dataset.splits[split_name]
    return {
        "fingerprint": dataset.fingerprint,
        "split": split_name,
        "redistributable": dataset.redistributable,
        "images": list(split.images),
        "captions": list(split.captions),
    }


def first_results(query: UnitRows, gallery: UnitRows, query_P, item_P, *, k: int = HUB_K) -> dict:
    """What the first results of all queries of one direction say.

    Args:
        query, gallery: embeddings; of the gallery two items or more.
        query_P, item_P: the pairs that are right.
        k: results that count as first, or the whole gallery if that is smaller.

    Returns:
        `count_G`: how often each item is among the first k; `margin_Q`: cosine of a query's first item
        minus that of its second; `hardest_Q`: cosine of its best wrong item.
    """
    import torch

    gallery_GD, items = gallery[:], len(gallery)
    query_P, item_P = (torch.as_tensor(index, device=gallery_GD.device) for index in (query_P, item_P))
    count_G, margins, hardest = np.zeros(items, dtype=np.int64), [], []
    step = max(1, MOST_SCORES // items)
    for start in range(0, len(query), step):
        score_qG = query[start : start + step] @ gallery_GD.T
        first_q2 = score_qG.topk(2).values
        margins.append(first_q2[:, 0] - first_q2[:, 1])
        top = score_qG.topk(min(k, items)).indices.flatten()
        count_G += np.bincount(top.cpu().numpy(), minlength=items)
        here_P = (query_P >= start) & (query_P < start + step)
        score_qG[query_P[here_P] - start, item_P[here_P]] = -torch.inf
        hardest.append(score_qG.amax(1))
    margin_Q, hardest_Q = (torch.cat(parts).cpu().numpy() for parts in (margins, hardest))
    return {"count_G": count_G, "margin_Q": margin_Q, "hardest_Q": hardest_Q}


def hubness(count_G: np.ndarray, queries: int) -> dict:
    """How unevenly the first results fall on the gallery, from counts that `first_results` made.

    Radovanović et al. (2010): hubs are items that many queries retrieve whatever they ask. The
    skewness of the counts is 0 where they are symmetric around k Q / G, large where hubs rule.
    """
    from scipy.stats import skew

    gallery, k = len(count_G), int(count_G.sum()) // queries
    return {
        "skewness": float(skew(count_G)) if np.ptp(count_G) else 0.0,
        "never": float((count_G == 0).mean()),
        "largest": int(count_G.max()),
        "k": k,
        "queries": queries,
        "gallery": gallery,
        "largest_item": int(count_G.argmax()),
        "expected": k * queries / gallery,
        # If every query drew its k at random.
        "never_by_chance": (1 - k / gallery) ** queries,
    }


def calibration(margin_Q, rank_Q, *, bins: int = MARGIN_BINS, cluster_Q=None) -> list[dict]:
    """R@1 by margin, in bins of equally many queries: does a wide margin mean a right answer?

    Returns:
        A row per bin, from narrow to wide margins: `margin_low`, `margin_high`, and the fields of
        `recall_by_group`.
    """
    by_margin = np.array_split(np.argsort(margin_Q, kind="stable"), min(bins, len(margin_Q)))
    rows = recall_by_group(rank_Q, dict(enumerate(by_margin)), cluster_Q=cluster_Q)
    for row, query_q in zip(rows, by_margin):
        del row["group"]
        row |= {"margin_low": float(margin_Q[query_q[0]]), "margin_high": float(margin_Q[query_q[-1]])}
    return rows


def histograms(parts: dict[str, np.ndarray]) -> dict:
    """Histograms over common `edges`; by part `n`, `mean`, `median` and `counts`."""
    edges = np.histogram_bin_edges(np.concatenate(list(parts.values())), SIMILARITY_BINS)
    return {"edges": edges.tolist()} | {
        name: {
            "n": len(values),
            "mean": float(values.mean()),
            "median": float(np.median(values)),
            "counts": np.histogram(values, edges)[0].tolist(),
        }
        for name, values in parts.items()
    }


def changed_queries(rank_a_Q, rank_b_Q, *, k: int = 1) -> dict[str, np.ndarray]:
    """Queries that the second run wins or loses against the first, largest change of rank first.

    Returns:
        `gained` (hit at k in b alone) and `lost` (in a alone): int64 query indices.
    """
    rank_a_Q, rank_b_Q = np.asarray(rank_a_Q), np.asarray(rank_b_Q)
    order = np.argsort(-np.abs(rank_b_Q - rank_a_Q), kind="stable")
    hit_a_Q, hit_b_Q = rank_a_Q[order] <= k, rank_b_Q[order] <= k
    return {"gained": order[hit_b_Q & ~hit_a_Q], "lost": order[hit_a_Q & ~hit_b_Q]}


def nearest_neighbours(dataset: Dataset, split_name: str, image_ND, caption_MD) -> dict[str, np.ndarray]:
    """What the explorer shows of one split.

    Args:
        dataset, split_name: where pictures come from.
        image_ND, caption_MD: embeddings of the split.

    Returns:
        `t2i_top` (M, K) and `i2t_top` (N, K), int32: items by falling cosine similarity, equal ones in their
        order; `t2i_similarity` and `i2t_similarity`, float32; `sheets` uint8, the bytes of all WebP sheets of
        10 x 10 thumbnails behind each other, and `sheet_sizes` (S,), int64.  Nothing if the split has more
        than `MAX_IMAGES` images.
    """
    split = dataset.split(split_name)
    if len(split.images) > MAX_IMAGES:
        return {}
    image, caption = UnitRows(image_ND, "image_ND"), UnitRows(caption_MD, "caption_MD")
    sheets = [_sheet(dataset, split.images[i : i + COLUMNS**2]) for i in range(0, len(image), COLUMNS**2)]
    found = {
        "sheets": np.frombuffer(b"".join(sheets), np.uint8),
        "sheet_sizes": np.array([len(sheet) for sheet in sheets]),
    }
    for direction, query, gallery in (("t2i", caption, image), ("i2t", image, caption)):
        found[f"{direction}_top"], found[f"{direction}_similarity"] = _first(query, gallery)
    return found


def _first(query: UnitRows, gallery: UnitRows) -> tuple[np.ndarray, np.ndarray]:
    everything, k = gallery[:], min(TOP_K, len(gallery))
    tops, similarities = [], []
    for start in range(0, len(query), 256):
        score_BG = query[start : start + 256] @ everything.T
        similarity_BK, top_BK = score_BG.sort(dim=1, descending=True, stable=True)
        tops.append(top_BK[:, :k].cpu().numpy().astype(np.int32))
        similarities.append(similarity_BK[:, :k].cpu().numpy().astype(np.float32))
    return np.concatenate(tops), np.concatenate(similarities)


def _sheet(dataset: Dataset, names: tuple[str, ...]) -> bytes:
    rows = -(-len(names) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * THUMBNAIL, rows * THUMBNAIL))
    for number, name in enumerate(names):
        picture = ImageOps.fit(dataset.source.load(name, THUMBNAIL).convert("RGB"), (THUMBNAIL, THUMBNAIL))
        sheet.paste(picture, (number % COLUMNS * THUMBNAIL, number // COLUMNS * THUMBNAIL))
    content = io.BytesIO()
    sheet.save(content, "WEBP", quality=QUALITY)
    return content.getvalue()


# --- recall by kind of query: caption length, object word, image cluster
#
# Words are found by rules of a few lines that need no tagger, made for captions of one plain English
# sentence (Flickr8k and its kin, Hodosh et al. 2013).  Rules err on single captions; groups of hundreds can
# stand that.

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


def image_clusters(image_ND, clusters: int = CLUSTERS) -> np.ndarray:
    """k-means over image directions: the cluster of each image, int64 (N,), 0 the largest.

    The best of `STARTS` runs from random images.  Fewer clusters than asked where images are fewer,
    or embeddings so alike that some stay empty.

    Raises:
        ValueError: embeddings refused by `retrieval_ranks`.
    """
    from scipy.cluster.vq import kmeans, vq

    unit_ND = UnitRows(image_ND, "image_ND")[:].cpu().numpy()
    centre_CD, _ = kmeans(unit_ND, min(clusters, len(unit_ND)), iter=STARTS, rng=0)
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
