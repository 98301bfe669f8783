"""Writing shards and reading them back: nothing is lost, any webdataset reader understands them."""

import hashlib
import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_shards import SIZE, Pictures, config_of, dataset_of, encoded, picture

from mmlib.data.image_folder import ImageFolder
from mmlib.data.shapes import load_shapes
from mmlib.data.shards import ShardStream, load_shards, write_shards
from mmlib.data.tokenizers import build_tokenizer

SPLITS = {
    "train": [("3.jpg", ["one", " two \n"]), ("1.jpg", ["", "un café à 北京"]), ("2.jpg", ["three"])],
    "val": [("5.jpg", ["four", "four"])],
    "test": [("4.jpg", ["five"]), ("6.jpg", ["six"])],
}


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


def load_back(folder, **changes):
    return load_shards(
        config_of(
            [folder / "train-*.tar"],
            val_shards=[str(folder / "val-*.tar")],
            test_shards=[str(folder / "test-{000000..000000}.tar")],
            **changes,
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
    assert manifest["shards"]["train-000000.tar"] == {
        "split": "train", "samples": 2, "captions": 4, "captions_per_sample": [[2, 2]],
        "bytes": (tmp_path / "out" / "train-000000.tar").stat().st_size,
    }  # fmt: skip
    assert manifest["shards"]["train-000001.tar"]["captions_per_sample"] == [[1, 1]]


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


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_them(on_disk, tmp_path):
    import webdataset

    write_shards(on_disk, tmp_path / "out")
    shard = str(tmp_path / "out" / "train-000000.tar")
    samples = list(webdataset.WebDataset(shard, shardshuffle=False, empty_check=False).decode("pil"))
    assert [(s["__key__"], s["txt"], s["json"]["name"]) for s in samples] == [
        ("000000000", "one", "3.jpg"), ("000000001", "", "1.jpg"), ("000000002", "three", "2.jpg"),
    ]  # fmt: skip
    assert np.array_equal(np.asarray(samples[2]["jpg"]), on_disk.source.load("2.jpg"))


def test_drawn_images_are_kept_without_loss(tmp_path):
    write_shards(dataset_of(Pictures(), **SPLITS), tmp_path / "out")
    files = files_in(tmp_path / "out" / "val-000000.tar")
    assert sorted(files) == ["000000000.json", "000000000.png", "000000000.txt"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(files["000000000.png"]))), picture(5))


def test_val_and_test_come_back_as_they_were(tmp_path):
    shapes = load_shapes(train=4, val=3, test=5, size=SIZE)
    write_shards(shapes, tmp_path / "out", samples_per_shard=3)
    back = load_shards(
        config_of(
            ["x"],
            val_shards=[str(tmp_path / "out/val-*.tar")],
            test_shards=[str(tmp_path / "out/test-*.tar")],
        )
    )
    assert back.name == "shapes"
    assert list(back.splits) == ["val", "test"]
    for name, split in back.splits.items():
        assert split.images == shapes.splits[name].images
        assert split.captions == shapes.splits[name].captions
        assert np.array_equal(split.image_of_caption_M, shapes.splits[name].image_of_caption_M)
        for image in split.images:
            assert np.array_equal(np.asarray(back.source.load(image)), shapes.source.load(image))


def test_odd_captions_survive_in_the_stream_too(on_disk, tmp_path):
    write_shards(on_disk, tmp_path / "out", samples_per_shard=2)
    held_out = load_back(tmp_path / "out")
    assert held_out.splits["val"].captions == ("four", "four")
    config = config_of([tmp_path / "out" / "train-*.tar"], batch_size=5, tokenizer="char")
    stream = ShardStream(config, None, held_out, 0, 1, 1, torch.device("cpu"))
    captions = list(stream.captions_for_tokenizer())
    assert captions == ["one", " two \n", "", "un café à 北京", "three"]
    stream.tokenizer = build_tokenizer("char", captions, 1)
    (batch,) = stream.batches(0, 1)
    assert sorted(batch.image_id_R.tolist()) == [0, 0, 1, 1, 2]
    assert sorted(batch.length_R.tolist()) == [0, 3, 5, 6, 8]


def test_shards_can_be_written_again_from_shards(on_disk, tmp_path):
    write_shards(on_disk, tmp_path / "out")
    held_out = load_back(tmp_path / "out")
    write_shards(held_out, tmp_path / "again")
    again = load_shards(config_of(["x"], val_shards=[str(tmp_path / "again/val-000000.tar")]))
    name = again.splits["val"].images[0]
    assert again.source.read(name) == (tmp_path / "5.jpg").read_bytes()


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
