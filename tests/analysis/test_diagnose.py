"""The diagnosis of an evaluation: its groups and counts against loops, what it keeps, what it refuses."""

import json

import numpy as np
import pytest
from scipy.stats import kendalltau

from mmlib import files
from mmlib.analysis.diagnosis import diagnose, image_clusters, queries_of
from mmlib.analysis.people import agreement_with_people, find_judgements
from mmlib.data import Dataset, Split
from mmlib.files import write_json
from mmlib.metrics import paired_ranks, retrieval_ranks
from mmlib.training.runs import read_diagnosis, read_queries, run_folder

IMAGES, PER_IMAGE = 48, 5
THINGS = ("man", "dog", "two men", "ball")


def flickr(redistributable=False) -> Dataset:
    """Captions that say what kind of image they are of, in one test split."""
    rng = np.random.default_rng(0)
    order_M = rng.permutation(np.repeat(np.arange(IMAGES), PER_IMAGE))
    captions = [f"a {THINGS[n % 4]} on the grass , {m}" for m, n in enumerate(order_M)]
    names = tuple(f"photo{n}.jpg" for n in range(IMAGES))
    train = Split("train", ("other.jpg",), ("a cat in the snow",), np.array([0]))
    test = Split("test", names, tuple(captions), order_M)
    return Dataset(
        "flickr8k", {"train": train, "test": test}, None, "0" * 16, redistributable=redistributable
    )


def embedded(dataset: Dataset, noise=0.8):
    rng = np.random.default_rng(1)
    map_M = dataset.splits["test"].image_of_caption_M
    image_ND = rng.standard_normal((IMAGES, 12)) + 3 * rng.standard_normal((4, 12))[np.arange(IMAGES) % 4]
    text_MD = image_ND[map_M] + noise * rng.standard_normal((len(map_M), 12))
    return image_ND, text_MD, retrieval_ranks(image_ND, text_MD, map_M)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return flickr()


@pytest.fixture(scope="module")
def embeddings(dataset):
    return embedded(dataset)


@pytest.fixture(scope="module")
def diagnosis(dataset, embeddings) -> dict:
    return diagnose(dataset, "test", *embeddings)


def test_groups_are_those_of_a_loop(dataset, embeddings, diagnosis):
    ranks, split = embeddings[2], dataset.splits["test"]
    for k in (1, 10):
        rows = {row["group"]: row for row in diagnosis["groups"]["t2i"]["word"][f"r{k}"]}
        assert {"man", "men", "dog", "ball", "grass"} <= set(rows)
        for word, row in rows.items():
            member_M = np.array([word in caption.split() for caption in split.captions])
            assert (row["n"], row["hits"]) == (member_M.sum(), (ranks.t2i_M[member_M] <= k).sum())
            assert row["low"] <= row["value"] <= row["high"]
    assert sum(row["n"] for row in diagnosis["groups"]["t2i"]["length"]["r1"]) == len(split.captions)


def test_words_of_fewer_than_thirty_queries_are_left_out(diagnosis):
    assert {row["group"] for row in diagnosis["groups"]["i2t"]["word"]["r1"]} == {"grass"}  # 12 images each


def test_clusters_are_found_and_named_by_their_words(embeddings, diagnosis):
    image_ND = embeddings[0]
    label_N = image_clusters(image_ND, clusters=4)
    kinds = {tuple(np.unique(label_N[np.arange(IMAGES) % 4 == kind])) for kind in range(4)}
    assert sorted(kinds) == [(0,), (1,), (2,), (3,)]
    assert (image_clusters(image_ND, 4) == label_N).all()
    assert (np.diff(np.bincount(image_clusters(image_ND, 6))) <= 0).all()
    rows = diagnosis["groups"]["i2t"]["cluster"]["r1"]
    assert sum(row["n"] for row in rows) == IMAGES
    assert any(word in rows[0]["group"] for word in ("man", "dog", "men", "ball"))
    assert len(np.unique(image_clusters(np.ones((9, 3))))) == 1


def test_two_images_are_enough():
    split = Split("test", ("a", "b"), ("a red circle", "a blue square"), np.array([0, 1]))
    shapes = Dataset("shapes", {"test": split}, None, "0" * 16)
    ranks = retrieval_ranks(np.eye(2), np.eye(2), split.image_of_caption_M)
    found = diagnose(shapes, "test", np.eye(2), np.eye(2), ranks)
    assert found["groups"]["t2i"]["length"]["r1"][0]["hits"] == 2
    assert found["people"] is None
    json.dumps(found, allow_nan=False)


def test_a_collapsed_model_is_diagnosed_too(dataset, tmp_path):
    split = dataset.splits["test"]
    image_ND, text_MD = np.ones((IMAGES, 4)), np.ones((len(split.captions), 4))
    ranks = retrieval_ranks(image_ND, text_MD, split.image_of_caption_M)
    judge(tmp_path, dataset)
    found = diagnose(dataset, "test", image_ND, text_MD, ranks, find_judgements(tmp_path))
    json.dumps(found, allow_nan=False)
    assert found["people"]["expert"]["tau"] is None
    assert "scores and ratings that vary" in found["people"]["expert"]["reason"]


def test_hubs_similarities_and_margins_count_every_query(embeddings, diagnosis):
    image_ND, text_MD, ranks = embeddings
    unit_ND, unit_MD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image_ND, text_MD))
    top_MK = np.argsort(-(unit_MD @ unit_ND.T), axis=1)[:, :10]
    count_N = np.bincount(top_MK.ravel(), minlength=IMAGES)
    hubs = diagnosis["hubness"]["t2i"]
    assert (hubs["largest"], hubs["never"]) == (count_N.max(), (count_N == 0).mean())
    assert count_N[hubs["largest_item"]] == count_N.max()
    assert hubs["expected"] == 50
    similarity = diagnosis["similarity"]
    for name, n in (("positive", 240), ("hardest_i2t", IMAGES), ("hardest_t2i", 240)):
        assert similarity[name]["n"] == sum(similarity[name]["counts"]) == n
    for direction in ("i2t", "t2i"):
        rows = diagnosis["calibration"][direction]
        assert sum(row["n"] for row in rows) == len(ranks.of(direction))
        assert sum(row["hits"] for row in rows) == (ranks.of(direction) == 1).sum()


def test_ranks_of_something_else_are_refused(dataset, embeddings):
    image_ND, text_MD, ranks = embeddings
    with pytest.raises(ValueError, match="of the test split, 240 captions of 48 images, found p"):
        diagnose(dataset, "test", image_ND, text_MD, paired_ranks(image_ND, text_MD, ranks.image_of_text_M))
    with pytest.raises(ValueError, match="of the train split, 1 captions of 1 images, found s"):
        diagnose(dataset, "train", image_ND, text_MD, ranks)
    with pytest.raises(ValueError, match="expected two images or more, found 1; it has no negatives"):
        diagnose(dataset, "train", one := np.ones((1, 2)), one, retrieval_ranks(one, one, np.array([0])))


# The run folder


@pytest.fixture
def run(tmp_path, monkeypatch, diagnosis) -> str:
    monkeypatch.setattr(files, "RUNS", tmp_path)
    (tmp_path / "tiny").mkdir()
    result = {"run": "tiny", "checkpoint": "best", "epoch": 1, "split": "test", "pretraining": "none"}
    result |= {"data": diagnosis["data"], "protocols": {"standard": diagnosis["standard"]}}
    (tmp_path / "tiny" / "results.json").write_text(json.dumps(result))
    return "tiny"


def test_diagnosis_comes_back_and_holds_no_caption_and_no_image(run, tmp_path, dataset, diagnosis):
    with pytest.raises(FileNotFoundError, match=r"'tiny' was not evaluated: expected .*diagnosis\.json"):
        read_diagnosis(run)
    write_json(run_folder(run) / "diagnosis.json", diagnosis)
    assert read_diagnosis(run) == json.loads(json.dumps(diagnosis))
    text = (tmp_path / run / "diagnosis.json").read_text()
    split = dataset.splits["test"]
    assert not any(part in text for part in (*split.captions, *split.images))
    assert [path.name for path in (tmp_path / run).glob("*.part")] == []


def test_a_diagnosis_with_people_comes_back(run, tmp_path, dataset, embeddings, diagnosis):
    judge(tmp_path, dataset)
    people = agreement_with_people(find_judgements(tmp_path), dataset, "test", *embeddings, resamples=100)
    write_json(run_folder(run) / "diagnosis.json", diagnosis | {"people": people})
    assert read_diagnosis(run)["people"] == json.loads(json.dumps(people))
    people["human_aware"][0]["threshold"] = 5.0
    write_json(run_folder(run) / "diagnosis.json", diagnosis | {"people": people})
    with pytest.raises(ValueError, match=r"people\.human_aware\.0\.threshold: .* found 5\.0"):
        read_diagnosis(run)


def test_queries_are_kept_with_their_licence(run, dataset):
    with pytest.raises(FileNotFoundError, match=r"'tiny' was not evaluated: expected .*queries\.json"):
        read_queries(run)
    write_json(run_folder(run) / "queries.json", queries_of(dataset, "test"))
    queries = read_queries(run)
    assert queries["captions"] == list(dataset.splits["test"].captions)
    assert queries["redistributable"] is False


# People


def ids(dataset: Dataset) -> tuple[dict[str, str], list[int]]:
    """Text by caption id, and the caption row of each id, for the test split."""
    split, seen, texts, rows = dataset.splits["test"], {}, {}, []
    for row, (text, image) in enumerate(zip(split.captions, split.image_of_caption_M)):
        number = seen[image] = seen.get(image, -1) + 1
        texts[f"{split.images[image]}#{number}"] = text
        rows.append(row)
    return texts, rows


def judge(folder, dataset: Dataset, tokens=True, more=()) -> list[tuple]:
    """Writes both judgement files; returns (image row, caption row, ratings) of each expert pair."""
    rng = np.random.default_rng(2)
    texts, rows = ids(dataset)
    split, names = dataset.splits["test"], list(texts)
    pairs = []
    for _ in range(80):
        image, place = int(rng.integers(IMAGES)), int(rng.integers(len(names)))
        if split.image_of_caption_M[rows[place]] != image:
            pairs.append((image, rows[place], rng.integers(1, 5, 3).tolist()))
    lines = ["\t".join([split.images[n], names[m], *map(str, r)]) for n, m, r in pairs]
    (folder / "ExpertAnnotations.txt").write_text("\n".join([*lines, *more]) + "\n")
    crowd = [f"{split.images[n]}\t{names[m]}\t{sum(r) / 12}\t1\t2" for n, m, r in pairs]
    (folder / "CrowdFlowerAnnotations.txt").write_text("\n".join(crowd) + "\n")
    if tokens:
        other = {"other.jpg#0": "a cat in the snow"}
        text = "".join(f"{key}\t{caption} \n" for key, caption in (texts | other).items())
        (folder / "Flickr8k.token.txt").write_text(text)
    return pairs


@pytest.mark.parametrize("tokens", [True, False])
def test_tau_is_that_of_the_pairs(tmp_path, dataset, embeddings, tokens):
    pairs = judge(tmp_path, dataset, tokens)
    image_ND, text_MD, ranks = embeddings
    found = agreement_with_people(
        find_judgements(tmp_path), dataset, "test", image_ND, text_MD, ranks, resamples=100
    )
    unit_ND, unit_MD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image_ND, text_MD))
    score = [float(unit_ND[n] @ unit_MD[m]) for n, m, _ in pairs]
    rated = [r for _, _, three in pairs for r in three]
    expert, crowd = found["expert"], found["crowdflower"]
    assert expert["tau"] == pytest.approx(kendalltau(np.repeat(score, 3), rated, variant="c").statistic)
    assert crowd["tau"] == pytest.approx(kendalltau(score, [sum(r) for _, _, r in pairs]).statistic)
    assert expert["low"] < expert["tau"] < expert["high"]
    assert (expert["n"], crowd["n"]) == (3 * len(pairs), len(pairs))
    assert sum(expert["unscored"].values()) == 0
    assert found["caption_numbers"] == (
        "Flickr8k.token.txt" if tokens else "the order of an image's captions"
    )
    four, three = found["human_aware"]
    assert (four["threshold"], three["threshold"]) == (4.0, 3.0)
    assert three["pairs"] == len({(n, m) for n, m, r in pairs if sum(r) >= 9})
    assert three["t2i"]["judged"] == len({m for _, m, _ in pairs})


def test_judgements_outside_the_split_are_counted_or_embedded(tmp_path, dataset, embeddings):
    image, caption = "photo0.jpg", "other.jpg#0"
    more = [f"{image}\t{caption}\t1\t2\t1"]
    more += [f"{name}\tphoto0.jpg#1\t1\t1\t1" for name in ("other.jpg", "gone.jpg")]
    pairs = judge(tmp_path, dataset, more=more)
    files = find_judgements(tmp_path)
    found = agreement_with_people(files, dataset, "test", *embeddings, resamples=100)["expert"]
    assert found["unscored"] == {"image outside the split": 6, "caption outside the split": 3}
    assert found["n"] == 3 * len(pairs)
    asked = []

    def embed(texts):
        asked.extend(texts)
        return np.ones((len(texts), 12))

    found = agreement_with_people(files, dataset, "test", *embeddings, embed, resamples=100)
    assert asked == ["a cat in the snow"]
    assert found["expert"]["unscored"]["caption outside the split"] == 0
    assert found["expert"]["n"] == 3 * len(pairs) + 3
    assert found["human_aware"][0]["t2i"]["judged"] == len({m for _, m, _ in pairs})


def test_a_split_that_nobody_judged_has_no_tau(tmp_path, dataset):
    judge(tmp_path, dataset)
    (tmp_path / "CrowdFlowerAnnotations.txt").unlink()
    ranks = retrieval_ranks(np.ones((1, 2)), np.ones((1, 2)), np.array([0]))
    found = agreement_with_people(
        find_judgements(tmp_path), dataset, "train", np.ones((1, 2)), np.ones((1, 2)), ranks
    )
    assert found["crowdflower"] is None
    assert found["expert"]["tau"] is None
    assert found["expert"]["n"] == 0
    assert found["expert"]["unscored"]["image outside the split"] == found["expert"]["judgements"]
    assert found["human_aware"][0]["pairs"] == 0


def test_judged_captions_without_a_text_are_named(tmp_path, dataset, embeddings):
    judge(tmp_path, dataset, more=["photo0.jpg\tphoto1.jpg#9\t1\t1\t1"])
    with pytest.raises(ValueError, match=r"judged caption among the 241 given, 1 are missing \(first: ph"):
        agreement_with_people(find_judgements(tmp_path), dataset, "test", *embeddings)
    judge(tmp_path, dataset)
    (tmp_path / "ExpertAnnotations.txt").unlink()
    with open(tmp_path / "CrowdFlowerAnnotations.txt", "a") as file:
        file.write("photo0.jpg\tphoto1.jpg#9\t0\t0\t3\n")
    with pytest.raises(ValueError, match=r"every judged caption .* 1 are missing \(first: photo1\.jpg#9\)"):
        agreement_with_people(find_judgements(tmp_path), dataset, "test", *embeddings)
