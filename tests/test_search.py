"""Search: the evaluation's own order, what an index keeps and notices, and what is refused."""

import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import tiny_config, tiny_evaluate, tiny_train

from mmlib import files
from mmlib.cli import main
from mmlib.config import ParameterError
from mmlib.data import load_dataset
from mmlib.data.own_photos import walk_images
from mmlib.files import read_bounded
from mmlib.search import Retriever
from mmlib.training import evaluation

PHOTOS = 8  # of the test split of the tiny run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A trained run and its test images as PNG files, in two folders; one process of the module."""
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("search")
    patch.setattr(files, "RUNS", root / "runs")
    patch.setattr(files, "CACHE", root / "cache")
    tiny_train()
    dataset = load_dataset(tiny_config())
    split = dataset.split("test")
    (root / "photos" / "more").mkdir(parents=True)
    for number, name in enumerate(split.images):
        target = root / "photos" / ("more" if number % 2 else ".") / f"{number:02d}.png"
        dataset.source.load(name, 16).save(target)
    yield root, split
    patch.undo()


@pytest.fixture
def photos(place, tmp_path):
    """A copy of the photos, and no index of the run."""
    root, _ = place
    for index in (files.RUNS / "tiny" / "search").glob("*"):
        index.unlink()
    folder = tmp_path / "photos"
    for path in sorted((root / "photos").rglob("*.png")):
        target = folder / path.relative_to(root / "photos")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder


def number_of(hit) -> int:
    return int(hit.file.stem)


def test_a_search_finds_what_the_evaluation_ranks_first(place, photos, monkeypatch):
    _, split = place
    seen = {}

    def noting(model, data, *arguments, **settings):
        seen["embeddings"] = embed_split(model, data, *arguments, **settings)
        return seen["embeddings"]

    embed_split = evaluation.embed_split
    monkeypatch.setattr(evaluation, "embed_split", noting)
    tiny_evaluate()
    image_ND, caption_MD = (part.double().numpy() for part in seen["embeddings"])
    image_ND /= np.linalg.norm(image_ND, axis=1, keepdims=True)
    retriever = Retriever.load("tiny")
    assert retriever.index(photos).images == PHOTOS
    for caption, caption_D in zip(split.captions, caption_MD):
        score_N = image_ND @ caption_D / np.linalg.norm(caption_D)
        hits = retriever.search(text=caption, top=5)
        found = [number_of(hit) for hit in hits]
        np.testing.assert_allclose([hit.similarity for hit in hits], score_N[found], atol=1e-5)
        np.testing.assert_allclose(score_N[found], np.sort(score_N)[::-1][:5], atol=1e-6)


def test_a_photo_finds_itself_first_and_top_is_the_number_of_hits(photos):
    retriever = Retriever.load("tiny")
    retriever.index(photos)
    hits = retriever.search(image=photos / "more" / "03.png", top=3)
    assert number_of(hits[0]) == 3
    assert hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert len(hits) == 3
    assert len(retriever.search(image=photos / "more" / "03.png", top=99)) == PHOTOS


def test_an_index_embeds_only_what_is_new_or_changed(photos, monkeypatch):
    assert Retriever.load("tiny").index(photos).new == PHOTOS
    monkeypatch.setattr(evaluation, "load_run", None)  # of an unchanged folder nothing is embedded
    again = Retriever.load("tiny").index(photos)
    assert (again.images, again.new, again.removed) == (PHOTOS, 0, 0)
    monkeypatch.undo()
    (photos / "00.png").unlink()
    (photos / "new.png").write_bytes((photos / "02.png").read_bytes())
    Image.new("RGB", (16, 16), "red").save(photos / "04.png")
    retriever = Retriever.load("tiny")
    changed = retriever.index(photos)
    assert (changed.images, changed.new, changed.removed) == (PHOTOS, 2, 2)
    names = {hit.file.name for hit in retriever.search(image=photos / "02.png", top=99)}
    assert names == {"01.png", "02.png", "03.png", "04.png", "05.png", "06.png", "07.png", "new.png"}


def test_the_example_of_the_docs_finds_photos(photos, capsys):
    text = (files.ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?)^```", text, re.M | re.S)[1]
    exec(example.replace("flickr8k-frozen-train", "tiny").replace("path/to/photos", str(photos)), {})
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_several_folders_are_searched_together(photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (40, 30), "blue").save(other / "blue.jpg")
    retriever = Retriever.load("tiny")
    retriever.index(photos)
    retriever.index(other)
    found = {hit.file for hit in Retriever.load("tiny").search(text="a circle", top=99)}
    assert len(found) == PHOTOS + 1
    assert (other / "blue.jpg").resolve() in found


def test_what_cannot_be_read_is_named_and_links_out_are_not_followed(photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"no image")
    (photos / "notes.txt").write_text("no image either")
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (16, 16)).save(outside / "secret.png")
    os.symlink(outside, photos / "link")
    os.symlink(outside / "secret.png", photos / "secret.png")
    indexed = Retriever.load("tiny").index(photos)
    assert list(indexed.unreadable) == ["broken.jpg"]
    assert "expected a JPEG" in indexed.unreadable["broken.jpg"]
    assert (indexed.images, indexed.outside) == (PHOTOS, 2)
    again = Retriever.load("tiny").index(photos)
    assert (again.new, list(again.unreadable)) == (0, ["broken.jpg"])


def test_what_was_embedded_before_an_interruption_is_kept(photos, monkeypatch):
    monkeypatch.setattr("mmlib.search.BATCH", 3)
    fourth = list(walk_images(photos)[0])[3]

    def interrupted(path, most):
        if path == photos / fourth:
            raise KeyboardInterrupt
        return read_bounded(path, most)

    monkeypatch.setattr("mmlib.search.read_bounded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Retriever.load("tiny").index(photos)
    monkeypatch.undo()
    assert Retriever.load("tiny").index(photos).new == PHOTOS - 3


def test_several_workers_embed_as_one_does_and_torch_keeps_its_threads(photos, monkeypatch):
    monkeypatch.setattr("mmlib.search.BATCH", 3)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            for path in (files.RUNS / "tiny" / "search").glob("*.npz"):
                path.unlink()
            assert Retriever.load("tiny").index(photos).new == PHOTOS
            assert torch.get_num_threads() == number
            (path,) = (files.RUNS / "tiny" / "search").glob("*.npz")
            found.append(np.load(path)["unit_ND"])
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_names_of_any_kind_are_found_and_shown_as_text(photos, tmp_path, capsys):
    names = [
        "<script>alert(1)</script>.png",
        "שלום \u202e.png",
        "a\x1b[31mred.png",
        "🎈'\".png",
        " 0.999  two\nlines\t.png",
    ]
    for number, name in enumerate(names):
        target = photos / name.replace("/", "∕")
        target.write_bytes((photos / f"{2 * (number % 3):02d}.png").read_bytes())
    assert main(["index", "tiny", str(photos)]) == 0
    page = tmp_path / "page.html"
    query = "<img src=x onerror=alert(1)> \x1b[31m 'a' & b"
    assert main(["search", "tiny", query, "--top", "99", "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert len(printed.splitlines()) == 1 + PHOTOS + len(names)
    assert r"0.999  two\nlines\t.png" in printed
    html = page.read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "<img src=x" not in html
    assert html.count("data:image/webp") == PHOTOS + len(names)
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"', "", html)


def test_json_lists_files_and_similarities(photos, capsys):
    assert main(["index", "tiny", str(photos)]) == 0
    capsys.readouterr()
    assert main(["search", "tiny", "--image", str(photos / "00.png"), "--top", "2", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert hits[0]["file"] == str((photos / "00.png").resolve())
    assert hits[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert len(hits) == 2


def test_an_index_of_other_weights_is_refused_and_made_again(photos):
    Retriever.load("tiny").index(photos)
    path = next((files.RUNS / "tiny" / "search").glob("*.npz"))
    arrays = dict(np.load(path))
    record = json.loads(arrays["record"].tobytes()) | {"model": "0" * 64}
    arrays["record"] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(
        ValueError, match=r"was made with other weights .* make it again: python -m mmlib index"
    ):
        Retriever.load("tiny").search(text="a circle")
    assert Retriever.load("tiny").index(photos).new == PHOTOS


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", None])
def test_a_damaged_index_is_named(photos, damage):
    Retriever.load("tiny").index(photos)
    path = next((files.RUNS / "tiny" / "search").glob("*.npz"))
    if damage is None:
        arrays = dict(np.load(path))
        np.savez(path, record=arrays["record"], unit_ND=arrays["unit_ND"][1:])
    else:
        path.write_bytes(damage)
    with pytest.raises(ValueError, match=r"is damaged \(.*\); delete it and index the folder again"):
        Retriever.load("tiny").search(text="a circle")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "tiny"], 2, "expected a text or an image to search with, found neither"),
        (["search", "tiny", "dog", "--image", "x.png"], 2, "found both"),
        (["search", "tiny", " "], 2, "expected a text to search with, found an empty one"),
        (["search", "tiny", "dog", "--top", "0"], 2, "top: expected at least 1, found 0"),
        (
            ["search", "tiny", "dog"],
            2,
            "run 'tiny' has no index to search; make one: python -m mmlib index tiny",
        ),
        (["search", "absent", "dog"], 2, "absent"),
        (["index", "absent", "."], 2, "absent"),
        (["index", "tiny", "no/such/folder"], 2, "no/such/folder, found none; correct it"),
        (["index", "tiny", "{photos}/00.png"], 2, "/00.png, found a file; correct it"),
        (
            ["search", "tiny", "x", "--html", "no/such/page.html"],
            2,
            "expected a page in a folder that exists",
        ),
        (["search", "tiny", "x", "--html", "{photos}"], 2, "expected the name of a file"),
        (["index", "tiny", "{empty}"], 1, "expected images (JPEG, PNG, WebP, GIF, BMP or TIFF) in"),
    ],
)
def test_what_cannot_be_searched_is_said(photos, tmp_path, capsys, arguments, code, message):
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "photos": photos}
    arguments = [word.format(**places) for word in arguments]
    assert main(arguments) == code
    assert message in capsys.readouterr().err


def test_a_photo_that_is_missing_or_damaged_is_named(photos, tmp_path):
    retriever = Retriever.load("tiny")
    retriever.index(photos)
    with pytest.raises(FileNotFoundError, match="expected a photo to search with, found none at"):
        retriever.search(image=tmp_path / "none.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot decode bad"):
        retriever.search(image=tmp_path / "bad.png")
    with pytest.raises(ParameterError, match="found both"):
        retriever.search(text="x", image=tmp_path / "bad.png")


def test_a_run_that_is_not_complete_is_refused(photos):
    status = files.RUNS / "tiny" / "status.json"
    said = status.read_text()
    try:
        status.write_text(said.replace('"complete"', '"failed"'))
        with pytest.raises(ValueError, match="run 'tiny' is not complete but failed"):
            Retriever.load("tiny")
    finally:
        status.write_text(said)


def test_what_is_skipped_and_long_hostile_sentences_stay_text(photos, tmp_path, capsys):
    (photos / "bad\x1b[31m\u202e<i>.jpg").write_bytes(b"no image")
    folder = photos / ("\u202e" + "sub\x1b[2J" + "e" * 200)
    folder.mkdir()
    (photos / "00.png").rename(folder / "00.png")
    assert main(["index", "tiny", str(photos)]) == 0
    sentence = " ".join(["a red circle \x1b[31m \u202e שלום 🎈 <i>"] * 80)
    assert len(sentence.split()) >= 500
    page = tmp_path / "long.html"
    assert main(["search", "tiny", sentence, "--top", "99", "--html", str(page)]) == 0
    assert main(["search", "tiny", sentence, "--top", "99", "--json"]) == 0
    printed = capsys.readouterr()
    assert "skipped: bad" in printed.err
    for said in (printed.out, printed.err, page.read_text(encoding="utf-8")):
        assert not {"\x1b", "\u202e"} & set(said)
    hits = json.loads(printed.out[printed.out.index("[\n") :])
    assert str((folder / "00.png").resolve()) in {hit["file"] for hit in hits}
    assert "<i>" not in page.read_text(encoding="utf-8")


def test_an_index_of_nothing_readable_and_a_folder_of_one_photo(photos, tmp_path, capsys):
    one = tmp_path / "one"
    one.mkdir()
    (one / "only.jpg").write_bytes(b"no image")
    assert main(["index", "tiny", str(one)]) == 0
    assert "0 images can be searched" in capsys.readouterr().out
    assert main(["search", "tiny", "a circle"]) == 2
    assert "has no index to search" in capsys.readouterr().err
    Image.new("L", (30, 20)).save(one / "only.jpg")
    assert main(["index", "tiny", str(one)]) == 0
    assert main(["search", "tiny", "a circle"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("only.jpg")
    (one / "only.jpg").unlink()
    assert main(["index", "tiny", str(one)]) == 1
    assert "expected images (JPEG" in capsys.readouterr().err
