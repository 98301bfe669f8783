"""Locks of folders that strangers made: links, pipes and folders in the places of our files."""

import os
import threading

import pytest

from mmlib import files
from mmlib.files import InUse, holder, locked
from mmlib.training import run_state
from mmlib.training.runs import open_run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RUNS", tmp_path)
    (tmp_path / "a").mkdir()
    return tmp_path / "a"


@pytest.mark.parametrize("kind", ["link", "link to nothing", "link to itself", "folder"])
def test_a_lock_that_is_no_file_is_refused_and_what_a_link_leads_to_is_untouched(kind, folder, tmp_path):
    lock, other = folder / ".lock", tmp_path / "other"
    other.write_text("precious")
    if kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to({"link": other, "link to nothing": tmp_path / "new", "link to itself": lock}[kind])
    message = r"could not write .*a/\.lock: .*(in its place: (remove|move) it)"
    with pytest.raises(OSError, match=message), open_run("a"):
        pass
    assert holder(folder) is None
    assert other.read_text() == "precious"
    assert not (tmp_path / "new").exists()
    with locked(folder.with_name("b"), "b"):  # where it is placed there while the folder is held
        (folder.with_name("b") / ".lock").unlink()
        lock.rename(folder.with_name("b") / ".lock")
        assert holder(folder.with_name("b")) == "it has not said which"


def test_a_pipe_in_the_place_of_a_lock_holds_nobody_up(folder):
    os.mkfifo(folder / ".lock")
    assert holder(folder) is None
    with locked(folder, "a"):
        assert holder(folder) == "it has not said which"


@pytest.mark.parametrize("kind", ["file", "pipe", "link to itself"])
def test_what_is_no_folder_is_refused_by_name(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RUNS", tmp_path)
    path = tmp_path / "a"
    {"file": path.touch, "pipe": lambda: os.mkfifo(path), "link to itself": lambda: path.symlink_to(path)}[
        kind
    ]()
    message = r"could not write .*/a: File exists. Something else lies in its place"
    with pytest.raises(OSError, match=message), open_run("a"):
        pass
    assert run_state("a")[0] == "failed"


@pytest.mark.parametrize("kind", ["file", "link to itself", "nothing"])
def test_a_folder_that_something_else_replaced_is_gone(kind, folder):
    with locked(folder, "run 'a'") as check:
        folder.rename(folder.with_name("moved"))
        {"file": folder.touch, "link to itself": lambda: folder.symlink_to("a"), "nothing": lambda: None}[
            kind
        ]()
        with pytest.raises(RuntimeError, match="a is gone: it was deleted, moved or replaced"):
            check()


def test_overwriting_removes_links_and_never_what_they_lead_to(folder, tmp_path):
    (tmp_path / "kept" / "inside").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "kept")
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    (folder / "last.pt.x.part").mkdir()
    with open_run("a", overwrite=True):
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert (tmp_path / "kept" / "inside").is_dir()


def test_a_start_is_not_refused_because_others_read(folder):
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            holder(folder)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(30):
            with locked(folder, "a"), pytest.raises(InUse), locked(folder, "a"):
                pass
    finally:
        stop.set()
        for reader in readers:
            reader.join()


def test_a_run_that_ends_while_its_state_is_read_was_not_killed(folder, monkeypatch):
    (folder / "status.json").write_text('{"state": "running"}')

    def ended(path):
        (folder / "status.json").write_text('{"state": "complete"}')
        return holder(path)

    monkeypatch.setattr(files, "holder", ended)
    assert run_state("a") == ("complete", None)


def test_a_run_that_has_said_nothing_yet_is_at_work_while_it_is_held(folder):
    with open_run("a"):
        assert run_state("a") == ("running", None)
    state, reason = run_state("a")
    assert state == "failed"
    assert "status.json, found nothing there" in reason
