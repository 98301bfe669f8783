"""What the rooms that train share: a place for tiny runs that is no person's."""

import pytest


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory):
    """Packed images of the whole test session: the same few drawings serve every run."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_place(tmp_path, tiny_cache, monkeypatch):
    """Run folders under `tmp_path / "runs"`, one thread; returns that folder."""
    import torch

    from mmlib import paths

    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(paths, "CACHE", tiny_cache)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield paths.RUNS
    torch.set_num_threads(threads)
