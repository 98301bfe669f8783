"""Broken samples and shards: passed over, counted, named, and refused where they are more than a few."""

from pathlib import Path

import pytest
import torch
from tiny_shards import NO_IMAGES, config_of, encoded, picture, sample, write_numbered, write_tar

from mmlib import paths
from mmlib.data.shards import ShardStream, load_shards, verdicts
from mmlib.data.shards.places import Place, find_shards
from mmlib.data.tokenizers import build_tokenizer

TOKENIZER = build_tokenizer("word", ["sample caption 0"], 1)
JPEG = encoded(picture(0), "JPEG")


def stream_of(shards, **changes):
    return ShardStream(
        config_of(shards, **changes), TOKENIZER, NO_IMAGES, 0, 1, 2, torch.device("cpu"), buffer=9
    )


@pytest.fixture
def tolerant(monkeypatch):
    """A tenth may be broken, so that a test needs not hundreds of samples."""
    monkeypatch.setattr(verdicts, "MOST_BROKEN", 0.5)


def ids_of(stream, **options):
    return [i for batch in stream.batches(0, 1, **options) for i in batch.image_id_R.tolist()]


BROKEN = {
    "undecodable": ("image", {"jpg": b"no image", "txt": b"a"}),
    "cut": ("image", {"jpg": JPEG[: len(JPEG) // 2], "txt": b"a"}),
    "no image": ("image", {"txt": b"a"}),
    "no caption": ("caption", {"jpg": JPEG}),
    "empty caption": ("caption", {"jpg": JPEG, "txt": b" \n"}),
    "no text": ("caption", {"jpg": JPEG, "txt": b"\xff"}),
    "captions no list": ("caption", {"jpg": JPEG, "json": b'{"captions": "a"}'}),
    "captions empty": ("caption", {"jpg": JPEG, "json": b'{"captions": []}'}),
    "caption null": ("caption", {"jpg": JPEG, "json": b'{"caption": null}'}),
    "bad json": ("json", {"jpg": JPEG, "txt": b"a", "json": b'{"caption": "a'}),
    "json a list": ("json", {"jpg": JPEG, "txt": b"a", "json": b"[]"}),
}


@pytest.mark.usefixtures("tolerant")
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_sample_is_left_out_and_named(tmp_path, kind):
    reason, files = BROKEN[kind]
    samples = [sample(0), sample(1), ("bad", files), sample(3), sample(4)]
    stream = stream_of([write_tar(tmp_path / "s.tar", samples)], batch_size=2)
    for epoch in (1, 2):
        seen = [i for batch in stream.batches(0, epoch) for i in batch.image_id_R.tolist()]
        assert set(seen) <= {0, 1, 3, 4}
        assert len(set(seen)) == 4
    assert stream.report() == {
        "samples": 5, "read": 5, "good": 4, "broken_shards": {}, "leaks": {},
        "broken_samples": {reason: {"count": 1, "first": ["s.tar: bad"]}},
    }  # fmt: skip


@pytest.mark.usefixtures("tolerant")
def test_a_process_with_too_few_pairs_starts_again_from_its_beginning(tmp_path):
    """Two of eight are broken: the last two pairs are the first two again, resumed there or not."""
    bad = ("bad", {"jpg": b"no image", "txt": b"a"})
    samples = [sample(0), bad, *(sample(n) for n in range(2, 5)), bad, sample(6), sample(7)]
    shards = [write_tar(tmp_path / "s.tar", samples)]
    seen = ids_of(stream_of(shards, batch_size=2))
    assert len(seen) == 8
    assert sorted(seen[:6]) == [0, 2, 3, 4, 6, 7]
    assert seen[6:] == seen[:2]
    for start in range(5):
        assert ids_of(stream_of(shards, batch_size=2), start_step=start) == seen[2 * start :]
        for file in (paths.CACHE / "shards").glob("*.verdicts"):
            file.unlink()


def test_more_than_a_hundredth_broken_is_an_error(tmp_path):
    samples = [sample(n) for n in range(10)]
    samples[4] = ("bad", {"jpg": b"no image", "txt": b"a"})
    stream = stream_of([write_tar(tmp_path / "s.tar", samples)])
    with pytest.raises(
        ValueError, match=r"at most 1% broken samples, found 1 of 10: .*decoded \(s\.tar: bad\); get these"
    ):
        ids_of(stream)
    samples[4] = ("bad", {"jpg": JPEG})
    with pytest.raises(ValueError, match=r"found 1 of 10: .*no caption \(t\.tar: bad\)"):
        stream_of([write_tar(tmp_path / "t.tar", samples)])


def test_a_hundredth_is_passed_over(tmp_path):
    bad = ("bad", {"jpg": b"no image", "txt": b"a"})
    shards = [*write_numbered(tmp_path, [99]), write_tar(tmp_path / "bad.tar", [bad])]
    stream = stream_of(shards, batch_size=10)
    assert sorted(ids_of(stream))[-1] == 98
    assert stream.report()["broken_samples"] == {"image": {"count": 1, "first": ["bad.tar: bad"]}}
    again = stream_of(shards, batch_size=10)  # counts are remembered
    assert again.report()["broken_samples"]["image"]["count"] == 1


@pytest.mark.usefixtures("tolerant")
@pytest.mark.parametrize(
    ("file", "kept", "whole"),
    [
        (b"000000006.jpg", 512, 2),  # right behind its header
        (b"000000006.jpg", 600, 2),
        (b"000000006.txt", 512, 2),
        (b"000000007.txt", 512, 3),
        (b"000000006.jpg", 13, 1),  # in its header: nobody knows if the sample before it was whole
        (b"000000005.jpg", 512, 1),
    ],
)
def test_of_a_shard_that_is_cut_short_the_whole_samples_are_used(tmp_path, file, kept, whole):
    shards = write_numbered(tmp_path, [4, 4, 4])
    content = Path(shards[1]).read_bytes()
    Path(shards[1]).write_bytes(content[: content.index(file) + kept])
    stream = stream_of(shards, batch_size=8 + whole)
    assert set(ids_of(stream)) == set(range(8 + whole))
    report = stream.report()
    assert (report["samples"], report["good"]) == (8 + whole, 8 + whole)
    assert report["broken_shards"].keys() == {"00001.tar"}
    assert report["broken_shards"]["00001.tar"]["lost"] == 4 - whole
    assert "cut short" in report["broken_shards"]["00001.tar"]["fault"]


@pytest.mark.usefixtures("tolerant")
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100, bytes(10)])
def test_a_shard_that_is_no_tar_counts_as_many_samples_as_others_have(tmp_path, content):
    shards = write_numbered(tmp_path, [6, 6, 6])
    Path(shards[0]).write_bytes(content)
    stream = stream_of(shards)
    assert stream.report()["broken_shards"]["00000.tar"]["lost"] == 6
    assert len(set(ids_of(stream))) == 12


def test_a_broken_shard_is_an_error_where_it_holds_more_than_a_hundredth(tmp_path):
    shards = write_numbered(tmp_path, [6, 6, 6])
    Path(shards[0]).write_bytes(b"")
    with pytest.raises(ValueError, match=r"found 6 of 18: 6 missing from .*00000\.tar \(it is no whole tar"):
        stream_of(shards)


@pytest.mark.usefixtures("tolerant")
def test_a_header_damaged_in_the_middle_is_seen(tmp_path):
    (shard,) = write_numbered(tmp_path, [6])
    content = bytearray(Path(shard).read_bytes())
    middle = content.index(b"000000003.jpg")
    content[middle : middle + 512] = b"\xff" * 512
    Path(shard).write_bytes(content)
    report = stream_of([shard, *write_numbered(tmp_path / "b", [6])]).report()
    assert report["broken_shards"]["00000.tar"] == {
        "fault": "it is cut short or damaged: no end mark", "lost": 4,
    }  # fmt: skip


@pytest.mark.usefixtures("tolerant")
def test_a_shard_that_was_cut_after_it_was_counted(tmp_path):
    shards = write_numbered(tmp_path, [4, 4])
    stream = stream_of(shards, batch_size=2)
    content = Path(shards[0]).read_bytes()
    Path(shards[0]).write_bytes(content[: len(content) // 3])
    assert set(ids_of(stream)) >= {4, 5, 6, 7}
    assert stream.report()["broken_samples"]["shard"]["first"][0].startswith("00000.tar: sample ")


def test_shards_without_one_usable_sample(tmp_path):
    shards = [write_tar(tmp_path / "s.tar", [("a", {"bin": b"1"})])]
    with pytest.raises(
        ValueError, match="samples of an image and a caption in 1 shards, found none; is this"
    ):
        stream_of(shards)


# --- val and test


def held_out(*shards):
    return load_shards(config_of(["x"], val_shards=[str(shard) for shard in shards]))


@pytest.mark.usefixtures("tolerant")
def test_broken_samples_of_val_are_left_out_and_noted(tmp_path, monkeypatch):
    from mmlib.data.shards import held_out as module

    monkeypatch.setattr(module, "MOST_BROKEN", 0.5)
    samples = [sample(0), ("bad", BROKEN["undecodable"][1]), sample(2), ("mute", {"jpg": JPEG})]
    shard = write_tar(tmp_path / "v.tar", samples)
    for _ in range(2):  # listed, then read from the cache
        dataset = held_out(shard)
        assert dataset.splits["val"].images == ("000000000.jpg", "000000002.jpg")
        assert dataset.notes == (
            "Left out of val: 2 broken samples or shards: v.tar: bad (no image, or one that cannot be"
            " decoded), v.tar: mute (no caption).",
        )


def test_more_broken_samples_of_val_are_an_error(tmp_path):
    shard = write_tar(tmp_path / "v.tar", [sample(0), ("mute", {"jpg": JPEG})])
    with pytest.raises(
        ValueError, match=r"val_shards: expected at most 1% broken samples, found 1 of 2: v\.t"
    ):
        held_out(shard)
    shard = write_tar(tmp_path / "w.tar", [("mute", {"jpg": JPEG})])
    with pytest.raises(
        ValueError, match=r"val_shards: expected samples .*found none in 1 shards: w\.tar: mute"
    ):
        held_out(shard)
    with pytest.raises(ValueError, match="expected val_shards or test_shards, found neither"):
        load_shards(config_of(["x"]).model_copy(update={"val_shards": []}))


def test_images_of_one_name_are_told_apart(tmp_path):
    shards = [write_tar(tmp_path / f"{name}/0.tar", [sample(n)]) for n, name in enumerate("ab")]
    dataset = held_out(*shards)
    assert dataset.splits["val"].images == ("000000000.jpg", "000000001.jpg")
    shards = [write_tar(tmp_path / f"{name}/0.tar", [("k", sample(n)[1])]) for n, name in enumerate("cdef")]
    images = held_out(*shards).splits["val"].images
    assert images[:2] == ("k.jpg", "0/k.jpg")
    assert len(set(images)) == 4
    assert [held_out(*shards).source.read(image) for image in images] == [
        sample(n)[1]["jpg"] for n in range(4)
    ]


# --- patterns


def test_patterns_name_shards_in_their_order_each_once(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for name in ("a-000.tar", "a-001.tar", "b.tar", "c [1].tar"):
        (tmp_path / name).touch()
    found = find_shards(
        ["b.tar", "a-{000..001}.tar", "a-*.tar", f"file://{tmp_path}/c%20%5B1%5D.tar", "c [1].tar"], "x"
    )
    assert [place.name for place in found] == ["b.tar", "a-000.tar", "a-001.tar", "c [1].tar"]
    urls = find_shards(["http://host/d/{00..01}.tar?key=a/b", "HTTPS://host/e.tar"], "x")
    assert [(u.where, u.name, u.folder, u.is_url) for u in urls] == [
        ("http://host/d/00.tar?key=a/b", "00.tar", "http://host/d/", True),
        ("http://host/d/01.tar?key=a/b", "01.tar", "http://host/d/", True),
        ("https://host/e.tar", "e.tar", "https://host/", True),
    ]
    assert Place(str(tmp_path / "b.tar")).folder == f"{tmp_path}/"


def test_a_pattern_that_nothing_matches_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "a-000.tar").touch()
    with pytest.raises(
        FileNotFoundError, match=r"train_shards: expected tar files that match 'gone-\*\.tar'"
    ):
        find_shards(["a-000.tar", "gone-*.tar"], "train_shards")
    with pytest.raises(
        FileNotFoundError, match=r"'a-\{000\.\.001\}\.tar', found none \(for 'a-001\.tar' of it"
    ):
        find_shards(["a-{000..001}.tar"], "train_shards")
    with pytest.raises(FileNotFoundError, match=r"it is a folder, add /train-\*\.tar or the like"):
        find_shards([str(tmp_path)], "train_shards")
    with pytest.raises(ValueError, match="a URL of http, https or file, found 's3://bucket/a"):
        find_shards(["s3://bucket/a.tar"], "train_shards")
    with pytest.raises(ValueError, match="a URL of http, https or file, found 'pipe:"):
        find_shards(["pipe:cat a.tar"], "train_shards")
    with pytest.raises(ValueError, match=r"balanced braces in 'a-\{0"):
        find_shards(["a-{0..1.tar"], "train_shards")
