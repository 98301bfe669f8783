"""Who may write to a folder: one process, which is named; asking about it holds nobody up."""

import fcntl
import os
import shutil

import pytest
from forked import SERVER, ended

from mmlib import files
from mmlib.files import InUse, holder, locked


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def hold(folder, connection):
    with locked(folder, "run 'a'"):
        connection.send("held")
        connection.recv()


def hold_and_die(folder):
    with locked(folder, "run 'a'"):
        os._exit(9)


def ask_on_and_on(folder, connection):
    connection.send("asking")
    while not connection.poll():
        holder(folder)


def begun(target, folder):
    here, there = SERVER.Pipe()
    process = SERVER.Process(target=target, args=(folder, there))
    process.start()
    here.recv()
    return process, here


def test_one_process_holds_a_folder_and_is_named(folder):
    process, connection = begun(hold, folder)
    named = rf"process {process.pid} on .*, since 20\d\d-"
    message = rf"run 'b' is being written by another process \({named}.*\); wait for it, stop it, or choose"
    for _ in range(2):
        with pytest.raises(InUse, match=message), locked(folder, "run 'b'"):
            pass
    assert holder(folder).startswith(f"process {process.pid} on ")
    (folder / ".lock").unlink()  # which names it, and guards nothing on this machine
    with pytest.raises(InUse, match=r"another process \(it has not said which\)"), locked(folder, "run 'b'"):
        pass
    assert holder(folder) == "it has not said which"
    connection.send("end")
    process.join()
    assert holder(folder) is None
    with locked(folder, "run 'b'"):
        assert holder(folder).startswith(f"process {os.getpid()} on ")
    assert holder(folder) is None


def test_a_killed_process_holds_nothing(folder):
    assert ended(hold_and_die, folder) == 9
    assert holder(folder) is None
    with locked(folder, "run 'b'"):
        pass


def test_a_process_of_another_machine_is_seen_by_the_file(folder):
    folder.mkdir()
    (folder / ".lock").write_text("process 7 on another, since noon\x1b[2J")
    with open(folder / ".lock") as file:  # as a network file system shows it: the folder's own lock is not
        fcntl.flock(file, fcntl.LOCK_EX)
        assert holder(folder) == "process 7 on another, since noon\\x1b[2J"
        with pytest.raises(InUse, match="process 7 on another"), locked(folder, "run 'b'"):
            pass
    assert holder(folder) is None


def test_who_asks_holds_nobody_up(folder, monkeypatch):
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # somebody in the middle of asking
    monkeypatch.setattr(files.time, "sleep", lambda _: os.close(descriptor))
    with locked(folder, "run 'a'"):
        pass
    monkeypatch.undo()

    process, connection = begun(ask_on_and_on, folder)
    for _ in range(100):
        with locked(folder, "run 'a'"):
            pass
    connection.send("end")
    process.join()
    assert process.exitcode == 0


def test_asking_writes_nothing(folder):
    assert holder(folder) is None
    assert not folder.exists()
    folder.mkdir()
    assert holder(folder) is None
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_no_longer_the_one_that_was_locked_is_found_out(folder):
    with locked(folder, "run 'a'") as check:
        check()
        shutil.rmtree(folder)
        with pytest.raises(RuntimeError, match=r"run is gone: it was deleted, .* while run 'a' was at work"):
            check()
        with locked(folder, "run 'b'"), pytest.raises(RuntimeError, match="run is gone"):
            check()


def test_a_file_in_the_place_of_a_folder_is_named(folder):
    folder.write_text("")
    with pytest.raises(OSError, match=r"could not write .*run: File exists"), locked(folder, "run 'a'"):
        pass
