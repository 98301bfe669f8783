"""The leak guard of a stream finds what the guard of data on a disk finds, and names it."""

import json

import pytest
import torch
from PIL import ImageOps
from tiny_shards import config_of, dataset_of, encoded, picture, write_tar

from mmlib.data.image_folder import ImageFolder
from mmlib.data.shards import ShardStream, load_shards, reading
from mmlib.data.tokenizers import build_tokenizer

TOKENIZER = build_tokenizer("word", ["a caption"], 1)


def sample(key, content, **facts):
    return key, {"jpg": content, "json": json.dumps({"caption": "a caption", **facts}).encode()}


@pytest.fixture
def held_out(tmp_path):
    """Three photos in val and test, in a folder."""
    for name, number in (("3333333333_00000000ab.jpg", 0), ("b.jpg", 1), ("c.jpg", 2)):
        (tmp_path / name).write_bytes(encoded(picture(number, 80), "JPEG", quality=95))
    return dataset_of(
        ImageFolder(tmp_path),
        val=[("3333333333_00000000ab.jpg", ["v"])],
        test=[("b.jpg", ["w"]), ("c.jpg", ["x"])],
    )


@pytest.fixture
def shards(held_out, tmp_path):
    copy = (tmp_path / "b.jpg").read_bytes()
    url = "https://live.staticflickr.com/7/3333333333_00000000ab_b.jpg"
    samples = [
        sample("0", encoded(picture(10))),
        sample("1", encoded(picture(11)), url=url),  # id by its address
        sample("2", encoded(picture(12)), name="3333333333.jpg", dataset="flickr30k"),  # id by its name
        sample("3", copy),
        sample("4", encoded(ImageOps.mirror(picture(2, 80)), "JPEG", quality=60)),
        sample("5", encoded(picture(13)), url="https://elsewhere.org/3333333333.jpg"),  # no id
        sample("3333333333", encoded(picture(14)), url="https://elsewhere.org/x.jpg"),  # img2dataset's key
        sample("7", encoded(picture(15))),
    ]
    return [write_tar(tmp_path / "s.tar", samples)]


def stream_of(shards, held_out, **changes):
    config = config_of(shards, batch_size=2, **changes)
    return ShardStream(config, TOKENIZER, held_out, 0, 1, 2, torch.device("cpu"), buffer=3)


def seen(stream, epoch=1):
    return [i for batch in stream.batches(0, epoch) for i in batch.image_id_R.tolist()]


def test_what_is_held_out_is_left_out_and_named(shards, held_out, monkeypatch):
    stream = stream_of(shards, held_out)
    assert set(seen(stream)) == {0, 5, 6, 7}
    leaks = {
        "id": {"count": 2, "first": ["s.tar: 1", "s.tar: 2"]},
        "bytes": {"count": 1, "first": ["s.tar: 3"]},
        "look": {"count": 1, "first": ["s.tar: 4"]},
    }
    assert stream.report()["leaks"] == leaks
    assert stream.report()["broken_samples"] == {}

    # In the next epoch, and the next process, leaks are known and others are not looked at again.
    decoded = []
    decode = reading.decode_image
    monkeypatch.setattr(reading, "decode_image", lambda c, name: decoded.append(name) or decode(c, name))
    monkeypatch.setattr("mmlib.data.shards.guard.LeakGuard.sign", None)
    again = stream_of(shards, held_out)
    assert set(seen(again, epoch=2)) == {0, 5, 6, 7}
    assert set(decoded) == {"0", "5", "3333333333", "7"}
    assert {kind: leak["count"] for kind, leak in again.report()["leaks"].items()} == {
        "id": 2, "bytes": 1, "look": 1,
    }  # fmt: skip


def test_leaks_are_kept_where_that_is_asked_for(shards, held_out):
    stream = stream_of(shards, held_out, leaks="keep")
    assert sorted(seen(stream)) == list(range(8))
    assert stream.report()["leaks"] == {}
    assert set(seen(stream_of(shards, held_out))) == {0, 5, 6, 7}  # not remembered as good


def test_other_held_out_images_are_another_question(shards, held_out, tmp_path):
    assert set(seen(stream_of(shards, held_out))) == {0, 5, 6, 7}
    (tmp_path / "b.jpg").write_bytes(encoded(picture(13, 80), "JPEG", quality=95))
    other = dataset_of(held_out.source, name="other", val=[("b.jpg", ["v"])])
    object.__setattr__(other, "fingerprint", "fedcba9876543210")
    assert set(seen(stream_of(shards, other))) == {0, 1, 2, 3, 4, 6, 7}


def test_held_out_images_may_be_in_shards_too(shards, tmp_path):
    content = encoded(picture(15))
    val = write_tar(tmp_path / "v.tar", [sample("v", content)])
    held_out = load_shards(config_of(shards, val_shards=[str(val)]))
    stream = stream_of(shards, held_out)
    assert set(seen(stream)) == set(range(7))
    assert stream.report()["leaks"] == {"bytes": {"count": 1, "first": ["s.tar: 7"]}}


def test_nothing_left_is_an_error(tmp_path, held_out):
    content = (tmp_path / "b.jpg").read_bytes()
    shards = [write_tar(tmp_path / "s.tar", [sample(str(n), content) for n in range(3)])]
    with pytest.raises(ValueError, match="a usable sample for process 0 of 1, found that all of its samples"):
        seen(stream_of(shards, held_out))
