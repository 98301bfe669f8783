"""`standard`, `paired`, folds and `single_caption` against the field's own evaluators.

Each is written anew here from its definition, on one matrix of scores.  Scores are small whole
numbers over a common norm, so that every evaluator sees the same ties.
"""

import numpy as np
import pytest
import torch

from mmlib.metrics import PROTOCOLS, paired_ranks, retrieval_ranks, summarise
from mmlib.metrics.protocols import first_captions, fold_ranks
from mmlib.metrics.summary import summarise_folds

KS = (1, 5, 10)


def vse_i2t_t2i(sim_NM, captions):
    """VSE++/SCAN: captions of image n are rows captions*n and following; smallest index in a sorted list."""
    i2t = []
    for n, score in enumerate(sim_NM):
        order = np.argsort(score)[::-1]
        i2t.append(min(int(np.where(order == m)[0][0]) for m in range(captions * n, captions * (n + 1))))
    t2i = []
    for m, score in enumerate(sim_NM.T):
        t2i.append(int(np.where(np.argsort(score)[::-1] == m // captions)[0][0]))
    return np.array(i2t) + 1, np.array(t2i) + 1


def clip_benchmark_recall(sim_QG, positive_QG, k):
    """CLIP_benchmark: is any of the top k positive under the mask?"""
    top = torch.from_numpy(sim_QG).topk(min(k, sim_QG.shape[1]), dim=1).indices
    return torch.from_numpy(positive_QG).gather(1, top).any(1).double().mean().item()


def blip_recall(sim_QG, ids_of_query, k):
    """BLIP/LAVIS: best rank among the ids of the query, then the share below k."""
    ranks = np.zeros(len(sim_QG))
    for q, score in enumerate(sim_QG):
        order = np.argsort(score)[::-1]
        ranks[q] = min(np.where(order == item)[0][0] for item in ids_of_query[q])
    return float((ranks < k).mean())


def big_vision_recall(dist_NM, correspondence, k, text_queries):
    """big_vision: correspondence[m] is the image of text m; is it among the k nearest of the sorted?"""
    correspondence = np.asarray(correspondence)
    if text_queries:
        return float((dist_NM.T.argsort(axis=1)[:, :k] == correspondence[:, None]).any(1).mean())
    found = correspondence[dist_NM.argsort(axis=1)[:, :k]]
    return float((found == np.arange(len(dist_NM))[:, None]).any(1).mean())


def open_clip_ranks(image_RD, text_RD):
    """open_clip: row r belongs to row r; place of r in the descending order."""
    logits = torch.from_numpy(image_RD) @ torch.from_numpy(text_RD).T
    places = []
    for score in (logits, logits.T):
        order = torch.argsort(score, descending=True)
        places.append(torch.where(order == torch.arange(len(score))[:, None])[1].numpy() + 1)
    return places


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def ordered(images=40, captions=5, noise=2.0, seed=0):
    rng = np.random.default_rng(seed)
    image_of_text = np.repeat(np.arange(images), captions)
    image = unit(rng.standard_normal((images, 16)))
    text = unit(image[image_of_text] + noise / 4 * rng.standard_normal((len(image_of_text), 16)))
    return image, text, image_of_text


def all_recalls(image, text, image_of_text, captions):
    """R@K by each evaluator: {(evaluator, direction, k): value}."""
    sim_NM = image @ text.T
    positive_NM = np.arange(len(image))[:, None] == image_of_text[None]
    found = {}
    vse = dict(zip(("i2t", "t2i"), vse_i2t_t2i(sim_NM, captions))) if captions else {}
    for k in KS:
        for d, sim, positive in (("i2t", sim_NM, positive_NM), ("t2i", sim_NM.T, positive_NM.T)):
            if captions:
                found["vse", d, k] = float((vse[d] <= k).mean())
            found["clip_benchmark", d, k] = clip_benchmark_recall(sim.copy(), positive.copy(), k)
            found["blip", d, k] = blip_recall(sim, [np.flatnonzero(row) for row in positive], k)
            found["big_vision", d, k] = big_vision_recall(1 - sim_NM, image_of_text, k, d == "t2i")
    return found


@pytest.mark.parametrize("noise", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("captions", [1, 5])
def test_standard_equals_every_evaluator(noise, captions):
    image, text, image_of_text = ordered(captions=captions, noise=noise)
    summary = summarise(retrieval_ranks(image, text, image_of_text))
    found = all_recalls(image, text, image_of_text, captions)
    assert len(found) == 4 * 6
    for (evaluator, d, k), value in found.items():
        assert summary[d][f"r{k}"]["value"] == value, evaluator


def test_uneven_captions_in_any_order_equal_those_evaluators_that_allow_them(sample):
    image, text, image_of_text = sample(noise=2)
    keep = np.unique(np.concatenate([first_captions(image_of_text), np.arange(0, 150, 2)]))
    image, text, image_of_text = (
        unit(image.astype(float)),
        unit(text[keep].astype(float)),
        image_of_text[keep],
    )
    assert len(set(np.bincount(image_of_text))) > 1
    summary = summarise(retrieval_ranks(image, text, image_of_text))
    for (evaluator, d, k), value in all_recalls(image, text, image_of_text, captions=None).items():
        assert summary[d][f"r{k}"]["value"] == value, evaluator


@pytest.mark.parametrize("seed", range(5))
def test_on_ties_every_evaluator_lies_between_value_and_best_case(seed):
    """Adversarial: many equal embeddings, among positives, negatives and both."""
    rng = np.random.default_rng(seed)
    axes = np.eye(4)
    image_of_text = np.repeat(np.arange(20), 5)
    image = axes[rng.integers(0, 4, 20)]
    text = axes[rng.integers(0, 4, 100)]
    summary = summarise(retrieval_ranks(image, text, image_of_text))
    for (evaluator, d, k), value in all_recalls(image, text, image_of_text, 5).items():
        recall = summary[d][f"r{k}"]
        assert recall["value"] <= value <= recall["best_case"], (evaluator, d, k)


def test_a_collapsed_model_scores_by_the_sort_elsewhere_and_nothing_here():
    """Ties broken by index: where every image comes first for one query, some evaluator gives it a hit."""
    image, text, image_of_text = np.ones((20, 4)) / 2, np.ones((100, 4)) / 2, np.repeat(np.arange(20), 5)
    assert max(all_recalls(image, text, image_of_text, 5).values()) > 0
    summary = summarise(retrieval_ranks(image, text, image_of_text))
    assert summary["rsum"] == 0


@pytest.mark.parametrize("noise", [0.5, 4.0])
def test_single_caption_equals_open_clips_rows(noise):
    image, text, image_of_text = ordered(noise=noise)
    text = text[first_captions(image_of_text)]
    ranks = retrieval_ranks(image, text, np.arange(len(image)))
    i2t, t2i = open_clip_ranks(image, text)
    np.testing.assert_array_equal(ranks.i2t_N, i2t)
    np.testing.assert_array_equal(ranks.t2i_M, t2i)
    assert summarise(ranks, protocol="single_caption")["protocol"] == "single_caption"


def test_paired_equals_open_clips_rows_up_to_the_ties_of_repeated_images():
    image, text, image_of_text = ordered()
    ranks = paired_ranks(image, text, image_of_text)
    i2t, t2i = open_clip_ranks(image[image_of_text], text)
    np.testing.assert_array_equal(ranks.i2t_N, i2t)
    assert (t2i <= ranks.t2i_M).all()
    assert (t2i >= ranks.best_case("t2i")).all()


def test_folds_equal_the_mean_of_evaluations_one_by_one():
    image, text, image_of_text = ordered(images=50, noise=3)
    folds = fold_ranks(image, text, image_of_text, folds=5)
    summary = summarise_folds(folds, protocol="standard")
    for k in KS:
        of_folds = [
            (vse <= k).mean(axis=1)
            for f in range(5)
            for vse in [
                np.array(vse_i2t_t2i(image[10 * f : 10 * f + 10] @ text[50 * f : 50 * f + 50].T, 5)[:1])
            ]
        ]
        recall = summary["i2t"][f"r{k}"]
        assert recall["value"] == pytest.approx(np.mean(of_folds))
        assert recall["low"] <= recall["value"] <= recall["high"]
    assert (summary["i2t"]["n"], summary["t2i"]["n"], summary["i2t"]["gallery"]) == (50, 250, 50)
    one = summarise_folds(fold_ranks(image, text, image_of_text, folds=1), protocol="standard")
    whole = summarise(retrieval_ranks(image, text, image_of_text))
    assert {key: one[key] for key in whole} == whole


def test_folds_refuse():
    image, text, image_of_text = ordered(images=12)
    with pytest.raises(ValueError, match="folds: expected a divisor of the 12 images, found 5"):
        fold_ranks(image, text, image_of_text)
    folds = fold_ranks(image, text, image_of_text, folds=3)
    with pytest.raises(ValueError, match=r"'coco_1k_folds': expected .* of 1,000 images, found .* 4 images"):
        summarise_folds(folds)
    with pytest.raises(ValueError, match="expected paired ranks, found standard ranks of 4"):
        summarise_folds(folds, protocol="paired")


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("karpathy", r"expected one of standard, paired, full, .*found 'karpathy'"),
        ("paired", "expected paired ranks, found standard ranks of 40 images and 200 captions; call it"),
        ("flickr30k_1k", "expected standard ranks of 1,000 images, found standard ranks of 40 images"),
        ("coco_5k", "expected standard ranks of 5,000 images, found"),
        ("single_caption", "expected standard ranks with one caption each"),
    ],
)
def test_a_protocol_that_the_ranks_do_not_follow_is_refused(protocol, message):
    with pytest.raises(ValueError, match=message):
        summarise(retrieval_ranks(*ordered()), protocol=protocol)


def test_every_protocol_says_what_it_is():
    assert set(PROTOCOLS) == {
        "standard", "paired", "full", "flickr30k_1k", "coco_5k", "coco_1k_folds", "single_caption",
    }  # fmt: skip
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert len(protocol.definition) > 30
    assert summarise(retrieval_ranks(*ordered()), protocol="full")["protocol"] == "full"
