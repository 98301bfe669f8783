"""The stream: the same whoever decodes, wherever it starts, and every sample once."""

import gc
import threading
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_shards import NO_IMAGES, SIZE, config_of, encoded, picture, sample, write_numbered, write_tar

from mmlib import paths
from mmlib.data.decoding import decode_image
from mmlib.data.packing import resize_image
from mmlib.data.shards import ShardStream, reading
from mmlib.data.tokenizers import build_tokenizer

CPU = torch.device("cpu")
SIZES = [7, 3, 9, 1, 5]  # 25 samples
NUMBERS = [f"sample {n} caption {c}" for n in range(400) for c in range(3)]
TOKENIZER = build_tokenizer("word", NUMBERS, 1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """25 samples in 5 shards, one to three captions each."""
    return write_numbered(tmp_path_factory.mktemp("shards"), SIZES, lambda number: 1 + number % 3)


def stream_of(shards, rank=0, processes=1, workers=2, buffer=10, held_out=NO_IMAGES, retry=None, **changes):
    config = config_of(shards, **changes)
    return ShardStream(config, TOKENIZER, held_out, rank, processes, workers, CPU, buffer=buffer, retry=retry)


def texts_of(batch):
    return [
        TOKENIZER.decode(ids[:length]) for ids, length in zip(batch.tokens.tolist(), batch.length_R.tolist())
    ]


def content_of(batches):
    """All that a model would see of batches, comparable."""
    return [
        (texts_of(b), b.image_id_R.tolist(), b.image.contiguous().numpy().tobytes(), b.rows, b.size)
        for b in batches
    ]


def forget():
    """Leaves nothing of what earlier passes found out."""
    gc.collect()
    for file in (paths.CACHE / "shards").glob("*.verdicts"):
        file.unlink()


def test_a_pair_is_its_own_picture_and_caption(shards):
    stream = stream_of(shards, batch_size=5)
    assert (stream.pairs, stream.steps) == (49, 9)
    batches = list(stream.batches(seed=3, epoch=1))
    assert len(batches) == 9
    for batch in batches:
        assert batch.image.dtype == torch.uint8
        assert batch.image.shape == (5, 3, SIZE, SIZE)
        assert (batch.rows, batch.size) == (5, 5)
        for text, number, image_CHW in zip(texts_of(batch), batch.image_id_R.tolist(), batch.image):
            assert text.startswith(f"sample {number} caption ")
            expected_HWC = resize_image(picture(number), SIZE, "squash").astype(int)
            assert abs(image_CHW.permute(1, 2, 0).numpy() - expected_HWC).mean() < 12  # JPEG


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    processes=st.sampled_from([1, 2, 3, 5]),
    workers=st.integers(1, 4),
    buffer=st.integers(1, 60),
    epoch=st.integers(1, 3),
    data=st.data(),
)
def test_started_anywhere_it_goes_on_as_the_whole_epoch(shards, processes, workers, buffer, epoch, data):
    rank = data.draw(st.integers(0, processes - 1))
    whole = stream_of(shards, rank, processes, 1, buffer, batch_size=2 * processes)
    expected = content_of(whole.batches(seed=7, epoch=epoch))
    assert len(expected) == whole.steps
    if data.draw(st.booleans(), label="a machine without the verdicts of the first pass"):
        forget()
    start = data.draw(st.integers(0, whole.steps), label="start_step")
    again = stream_of(shards, rank, processes, workers, buffer, batch_size=2 * processes)
    assert content_of(again.batches(seed=7, epoch=epoch, start_step=start)) == expected[start:]


@settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
@given(processes=st.sampled_from([1, 2, 3, 4, 7]), rows=st.integers(1, 4), epoch=st.integers(1, 5))
def test_the_processes_see_every_pair_once_but_for_the_last_ones(shards, processes, rows, epoch):
    if processes * rows > 49 or processes * rows < 2:
        return
    streams = [stream_of(shards, r, processes, batch_size=processes * rows) for r in range(processes)]
    assert {stream.steps for stream in streams} == {49 // (processes * rows)}
    seen = Counter()
    for stream in streams:
        own = [text for batch in stream.batches(0, epoch) for text in texts_of(batch)]
        assert len(own) == stream.steps * rows
        planned = list(stream._planned(_segments(stream, 0, epoch)))
        # The first of its own order again, once it is through; or a few of it left over.
        assert own[len(planned) :] == own[: max(0, len(own) - len(planned))]
        assert len(set(own[: len(planned)])) == min(len(own), len(planned))
        assert set(own) <= {f"sample {n} caption {c}" for n, c in planned}
        seen.update(set(own))
    assert set(seen.values()) == {1}
    if processes == 1:
        assert sum(seen.values()) >= 49 - rows + 1


def _segments(stream, seed, epoch):
    from mmlib.data.shards.order import epoch_segments

    return epoch_segments(stream._index.samples, seed, epoch, stream._rank, stream._processes)


def test_epochs_and_seeds_differ_and_repeat(shards):
    stream = stream_of(shards)
    orders = {
        key: [text for batch in stream.batches(*key) for text in texts_of(batch)]
        for key in ((0, 1), (0, 2), (1, 1))
    }
    assert len({tuple(order) for order in orders.values()}) == 3
    assert [text for batch in stream.batches(0, 2) for text in texts_of(batch)] == orders[0, 2]


def test_what_is_passed_over_is_not_decoded(shards, monkeypatch):
    decoded = []
    decode = reading.decode_image
    monkeypatch.setattr(
        reading, "decode_image", lambda content, name: decoded.append(name) or decode(content, name)
    )
    stream = stream_of(shards, buffer=4, batch_size=4)
    batches = content_of(stream.batches(0, 1))
    assert len(decoded) == 25
    decoded.clear()
    assert content_of(stream_of(shards, buffer=4).batches(0, 1, start_step=9)) == batches[9:]
    # 12 of 48 pairs are left, and what waits beside them in the buffer.
    assert 4 <= len(decoded) <= 13
    decoded.clear()
    assert list(stream.batches(0, 1, start_step=12)) == []
    assert decoded == []


def test_order_does_not_depend_on_which_decoder_is_slow(shards, monkeypatch):
    """The first picture is done only when others that were started after it are."""
    expected = content_of(stream_of(shards).batches(0, 1))
    decode, others = reading.decode_image, threading.Semaphore(0)
    first = []

    def late(content, name):
        if not first:
            first.append(name)
            for _ in range(3):
                others.acquire(timeout=10)
        else:
            others.release()
        return decode(content, name)

    monkeypatch.setattr(reading, "decode_image", late)
    assert content_of(stream_of(shards, workers=3).batches(0, 1)) == expected


def test_memory_is_bounded_by_the_buffer_not_by_the_data(tmp_path):
    shards = write_numbered(tmp_path, [60] * 5)
    stream = stream_of(shards, buffer=20, image_size=96, batch_size=4)
    image = 3 * 96 * 96

    def peak():
        tracemalloc.start()
        try:
            for _ in stream.batches(0, 1):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak()  # what is imported and compiled at the first use
    assert 20 * image < peak() < 70 * image  # of 300 images: 20 in the buffer, 16 ahead, encoded ones


def test_closing_early_leaves_no_thread_and_no_open_file(shards):
    before = threading.active_count()
    batches = stream_of(shards, workers=3).batches(0, 1)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


# --- what it says of itself


def test_identity_knows_names_sizes_and_counts(shards, tmp_path):
    stream = stream_of(shards)
    assert stream.identity == {
        "fingerprint": stream.identity["fingerprint"], "shards": 5, "images": 25, "captions": 49,
    }  # fmt: skip
    prints = [
        stream_of(some).identity["fingerprint"] for some in (shards, shards[:4], [*shards[1:], shards[0]])
    ]
    assert len(set(prints)) == 3
    copies = write_numbered(tmp_path / "elsewhere", SIZES, lambda number: 1 + number % 3)
    assert stream_of(copies).identity == stream.identity


def test_captions_for_a_vocabulary_come_in_the_order_of_the_shards(shards):
    config = config_of(shards)
    stream = ShardStream(config, None, NO_IMAGES, 0, 1, 1, CPU)
    captions = list(stream.captions_for_tokenizer())
    assert captions == [f"sample {n} caption {c}" for n in range(25) for c in range(1 + n % 3)]
    assert list(stream.captions_for_tokenizer(limit=8)) == captions[:8]
    with pytest.raises(ValueError, match="expected a tokenizer, found None"):
        next(stream.batches(0, 1))
    stream.tokenizer = build_tokenizer("word", captions, 1)
    assert len(list(stream.batches(0, 1))) == stream.steps


def test_tokens_are_cut_to_the_longest_caption_where_padding_is_masked(tmp_path):
    long = ("1", {"jpg": sample(1)[1]["jpg"], "txt": b"sample 1 caption 0 caption 0"})
    shards = [write_tar(tmp_path / "a.tar", [sample(0), long])]
    (batch,) = stream_of(shards, batch_size=2).batches(0, 1)
    assert batch.tokens.shape == (2, 6)
    (batch,) = stream_of(shards, batch_size=2, padding_mask=False).batches(0, 1)
    assert batch.tokens.shape == (2, 8)
    assert sorted(batch.length_R.tolist()) == [4, 6]


def test_the_last_batch_that_is_not_full_is_dropped(shards):
    assert [stream_of(shards, batch_size=size).steps for size in (2, 7, 25, 48, 49)] == [24, 7, 1, 1, 1]


# --- errors


def test_fewer_pairs_than_a_batch(shards):
    with pytest.raises(
        ValueError, match="at least one batch of 50, found 49 in 5 shards; name more train_sh"
    ):
        stream_of(shards, batch_size=50)


def test_more_processes_than_samples(tmp_path):
    shards = [write_tar(tmp_path / "a.tar", [sample(n, 3) for n in range(2)])]
    with pytest.raises(ValueError, match="at least one sample for each of 3 processes, found 2"):
        stream_of(shards, 0, 3, batch_size=3)
    streams = [stream_of(shards, rank, 2, batch_size=2) for rank in range(2)]
    assert {i for stream in streams for b in stream.batches(0, 1) for i in b.image_id_R.tolist()} == {0, 1}


@pytest.mark.parametrize(("rank", "processes", "workers"), [(2, 2, 1), (0, 3, 1), (0, 1, 0)])
def test_a_share_that_cannot_be(shards, rank, processes, workers):
    with pytest.raises(
        ValueError, match=f"found rank {rank} of {processes}, {workers} workers, batch_size 4"
    ):
        stream_of(shards, rank, processes, workers)


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_pixels_are_those_that_the_packed_store_would_have(tmp_path, resize):
    """A training image is resized as images of val and test are."""
    wide = picture(1).resize((60, 30))
    content = encoded(wide, "JPEG")
    shards = [write_tar(tmp_path / "a.tar", [(key, {"jpg": content, "txt": b"sample"}) for key in "ab"])]
    (batch,) = stream_of(shards, batch_size=2, resize=resize).batches(0, 1)
    expected_HWC = resize_image(decode_image(content, "1"), SIZE, resize)
    for image_CHW in batch.image:
        assert np.array_equal(image_CHW.permute(1, 2, 0), expected_HWC)
