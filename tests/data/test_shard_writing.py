"""Writing shards and reading them back: nothing is lost, and the same data give the same bytes."""

import hashlib
import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image
from tiny_shards import SIZE, Pictures, config_of, dataset_of, encoded, picture

from mmlib import files
from mmlib.data.dataset import ImageFolder
from mmlib.data.shapes import load_shapes
from mmlib.data.shards import load_shards, write_shards

SPLITS = {
    "train": [("3.jpg", ["one", " two \n"]), ("1.jpg", ["", "un café à 北京"]), ("2.jpg", ["three"])],
    "val": [("5.jpg", ["four", "four"])],
    "test": [("4.jpg", ["five"]), ("6.jpg", ["six"])],
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of each test's own."""
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")


@pytest.fixture
def on_disk(tmp_path):
    """The same splits with JPEG files behind them."""
    for images in SPLITS.values():
        for name, _ in images:
            number = int(name[0])
            (tmp_path / name).write_bytes(encoded(picture(number), "JPEG", quality=70 + number))
    return dataset_of(ImageFolder(tmp_path), **SPLITS)


def files_in(path):
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def load_back(folder):
    return load_shards(
        config_of(
            [folder / "train-*.tar"],
            val_shards=[str(folder / "val-*.tar")],
            test_shards=[str(folder / "test-*.tar")],
        )
    )


def test_every_file_of_a_sample_is_there(on_disk, tmp_path):
    write_shards(on_disk, tmp_path / "out", samples_per_shard=2)
    assert sorted(os.listdir(tmp_path / "out")) == [
        "shards.json", "test-000000.tar", "train-000000.tar", "train-000001.tar", "val-000000.tar",
    ]  # fmt: skip
    files = files_in(tmp_path / "out" / "train-000000.tar")
    assert sorted(files) == [f"{n:09d}.{suffix}" for n in (0, 1) for suffix in ("jpg", "json", "txt")]
    assert files["000000000.jpg"] == (tmp_path / "3.jpg").read_bytes()
    assert json.loads(files["000000000.json"]) == {
        "name": "3.jpg", "captions": ["one", " two \n"], "dataset": "tiny", "fingerprint": "0123456789abcdef",
    }  # fmt: skip
    assert files["000000000.txt"] == b"one"
    assert files["000000001.txt"] == b""
    assert next(iter(files_in(tmp_path / "out" / "train-000001.tar"))) == "000000002.jpg"


def test_the_manifest_says_what_is_in_each_shard(on_disk, tmp_path):
    manifest = write_shards(on_disk, tmp_path / "out", samples_per_shard=2)
    assert json.loads((tmp_path / "out" / "shards.json").read_text()) == manifest
    assert manifest["dataset"] == on_disk.identity
    tar = (tmp_path / "out" / "train-000000.tar").read_bytes()
    assert manifest["shards"]["train-000000.tar"] == {
        "split": "train", "samples": 2, "captions": 4, "bytes": len(tar),
        "sha256": hashlib.sha256(tar).hexdigest(),
    }  # fmt: skip


def test_the_same_data_give_the_same_bytes(on_disk, tmp_path):
    digests = []
    for name in ("a", "b"):
        write_shards(on_disk, tmp_path / name)
        digests.append(
            {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / name).iterdir()}
        )
    assert digests[0] == digests[1]
    with tarfile.open(tmp_path / "a" / "val-000000.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in archive} == {(0, 0, 0, "", "")}


def test_drawn_images_are_kept_without_loss(tmp_path):
    write_shards(dataset_of(Pictures(), **SPLITS), tmp_path / "out")
    files = files_in(tmp_path / "out" / "val-000000.tar")
    assert sorted(files) == ["000000000.json", "000000000.png", "000000000.txt"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(files["000000000.png"]))), picture(5))


def test_all_splits_come_back_as_they_were(tmp_path):
    shapes = load_shapes(train=4, val=3, test=5, size=SIZE)
    write_shards(shapes, tmp_path / "out", samples_per_shard=3)
    back = load_back(tmp_path / "out")
    assert (back.name, list(back.splits), back.notes) == ("shapes", ["train", "val", "test"], ())
    for name, split in back.splits.items():
        assert split.images == shapes.splits[name].images
        assert split.captions == shapes.splits[name].captions
        assert np.array_equal(split.image_of_caption_M, shapes.splits[name].image_of_caption_M)
        for image in split.images:
            assert np.array_equal(np.asarray(back.source.load(image)), shapes.source.load(image))


def test_odd_captions_survive(on_disk, tmp_path):
    write_shards(on_disk, tmp_path / "out", samples_per_shard=2)
    back = load_back(tmp_path / "out")
    assert back.splits["val"].captions == ("four", "four")
    assert back.splits["train"].captions == ("one", " two \n", "", "un café à 北京", "three")


def test_shards_can_be_written_again_from_shards(on_disk, tmp_path):
    write_shards(on_disk, tmp_path / "out")
    write_shards(load_back(tmp_path / "out"), tmp_path / "again")
    again = load_back(tmp_path / "again")
    assert again.source.read("5.jpg") == (tmp_path / "5.jpg").read_bytes()
    assert again.identity == load_back(tmp_path / "out").identity


# --- interruptions and errors


def test_an_interrupted_writing_leaves_no_half_shard_and_goes_on(on_disk, tmp_path):
    out = tmp_path / "out"
    expected = write_shards(on_disk, tmp_path / "whole", samples_per_shard=1)
    gone = tmp_path / "1.jpg"
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.jpg"):
        write_shards(on_disk, out, samples_per_shard=1)
    assert os.listdir(out) == ["train-000000.tar"]
    gone.write_bytes(content)
    assert write_shards(on_disk, out, samples_per_shard=1) == expected
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_finished_or_foreign_shards_are_not_touched(on_disk, tmp_path):
    write_shards(on_disk, tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"found finished ones in .*out; choose another folder"):
        write_shards(on_disk, tmp_path / "out")
    (tmp_path / "out" / "shards.json").unlink()
    (tmp_path / "out" / "train-000001.tar").touch()
    with pytest.raises(FileExistsError, match=r"without other shards, found train-000001\.tar \(1 in all\)"):
        write_shards(on_disk, tmp_path / "out")


def test_what_cannot_be_written_is_refused(tmp_path):
    dataset = dataset_of(train=[("1.jpg", ["a"])])
    with pytest.raises(ValueError, match="at least 1 sample per shard, found 0"):
        write_shards(dataset, tmp_path, samples_per_shard=0)
    with pytest.raises(ValueError, match="expected images to write, found none in data set 'tiny'"):
        write_shards(dataset_of(train=[]), tmp_path)
    silent = dataset_of(train=[("1.jpg", ["a"]), ("2.jpg", [])])
    with pytest.raises(ValueError, match=r"found none of '2\.jpg' in train of 'tiny' \(1 in all\)"):
        write_shards(silent, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
