"""Fixtures that several rooms share: a place for tiny runs, and synthetic embeddings."""

import os
import threading

import numpy as np
import pytest


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory):
    """Packed images of the whole test session: the same few drawings serve every run."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_place(tmp_path, tiny_cache, monkeypatch):
    """Run folders under `tmp_path / "runs"`, one thread; returns that folder."""
    import torch

    from mmlib import files

    monkeypatch.setattr(files, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(files, "CACHE", tiny_cache)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield files.RUNS
    torch.set_num_threads(threads)


@pytest.fixture
def renamed(monkeypatch):
    """Names of renamed files; each was flushed, and its folder too before anything else was renamed."""
    names, flushed, waiting = [], {}, {}
    fsync, replace = os.fsync, os.replace

    def identity(path) -> tuple[int, int]:
        found = os.stat(path)
        return found.st_dev, found.st_ino

    def synced(descriptor):
        fsync(descriptor)
        flushed[identity(descriptor)] = True
        if waiting.get(threading.get_ident()) == identity(descriptor):
            del waiting[threading.get_ident()]

    def replaced(source, target):
        assert flushed.get(identity(source)), f"{source} was renamed and not flushed"
        assert threading.get_ident() not in waiting, f"{names[-1]} was renamed, its folder was not flushed"
        replace(source, target)
        names.append(os.path.basename(target))
        waiting[threading.get_ident()] = identity(os.path.dirname(target))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    yield names
    assert not waiting, f"{names[-1]} was renamed, its folder was not flushed"


@pytest.fixture
def sample():
    """Makes image embeddings, noisy caption embeddings in random order, and the image of each caption."""

    def make(seed=0, images=30, width=16, captions=5, noise=1.5):
        rng = np.random.default_rng(seed)
        image_of_text_M = rng.permutation(np.repeat(np.arange(images), captions))
        image_ND = rng.standard_normal((images, width))
        text_MD = image_ND[image_of_text_M] + noise * rng.standard_normal((len(image_of_text_M), width))
        return image_ND.astype(np.float32), text_MD.astype(np.float32), image_of_text_M

    return make
