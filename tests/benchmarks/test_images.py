"""The two ways to deliver images do the same work."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import images
from mmlib import files

COUNT = 70


@pytest.fixture(autouse=True)
def _own_places(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)  # no data/flickr8k
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(images, "scratch", lambda: tmp_path)
    monkeypatch.setattr(images, "OUR_EPOCHS", 1)
    images.jpegs.cache_clear()
    images.packed.cache_clear()
    yield
    images.jpegs.cache_clear()
    images.packed.cache_clear()


@pytest.mark.parametrize("augmented", [False, True])
def test_both_deliver_every_image_in_equal_batches(augmented):
    expected = [(torch.Size((n, 3, 32, 32)), torch.float32) for n in (64, 6)]
    for make in (images.ours, images.loader):
        work = make(count=COUNT, size=32, augmented=augmented)
        work()
        assert work.result == expected


def test_without_augmentation_both_deliver_the_same_pictures():
    from torchvision import transforms

    from mmlib.data.augment import normalise

    files, kind = images.jpegs(3)
    assert "drawn scenes" in kind
    size = images.DRAWN_SIZE
    found = normalise(torch.from_numpy(np.array(images.packed(3, size).array)), (0, 0, 0), (1, 1, 1))
    for one, file in zip(found, files):
        expected = transforms.ToTensor()(Image.open(file).convert("RGB"))
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-6)


def test_real_photos_are_taken_where_they_are(tmp_path):
    folder = tmp_path / "data" / "flickr8k" / "Flicker8k_Dataset"
    folder.mkdir(parents=True)
    for name in "abc":
        Image.new("RGB", (8, 6)).save(folder / f"{name}.jpg")
    assert images.jpegs(2) == ([folder / "a.jpg", folder / "b.jpg"], "Flickr8k")
    drawn, kind = images.jpegs(4)
    assert "there is no data/flickr8k" in kind
    assert len(drawn) == 4
