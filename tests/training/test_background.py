"""The writing thread: jobs in order, one at a time, and no error lost."""

import threading

import pytest

from mmlib.training.background import BackgroundWriter


@pytest.fixture
def writer():
    writer = BackgroundWriter()
    yield writer
    writer.close()


def test_jobs_run_in_order_in_another_thread(writer):
    done = []
    for number in range(5):
        writer.submit(lambda number=number: done.append((number, threading.current_thread())))
    writer.finish()
    assert [number for number, _ in done] == [0, 1, 2, 3, 4]
    assert {thread for _, thread in done} != {threading.main_thread()}


def test_handing_over_does_not_wait_for_the_work(writer):
    may_end, done = threading.Event(), []
    writer.submit(lambda: (may_end.wait(30), done.append(1)))
    assert not done
    may_end.set()
    writer.finish()
    assert done == [1]


def test_an_error_is_raised_at_the_next_call_and_later_jobs_are_not_run(writer):
    done = []

    def fail():
        raise OSError("no space left")

    writer.submit(fail)
    writer.submit(lambda: done.append(1))
    with pytest.raises(OSError, match="no space left"):
        writer.finish()
    writer.finish()
    assert not done


def test_at_most_two_jobs_are_under_way(writer):
    running = threading.Event()
    gate = threading.Semaphore(0)

    def job():
        running.set()
        assert gate.acquire(timeout=30)

    writer.submit(job)
    writer.submit(job)
    assert running.wait(30)
    waits, take_result = threading.Event(), writer._take_result
    writer._take_result = lambda: (waits.set(), take_result())
    third = threading.Thread(target=writer.submit, args=(job,))
    third.start()
    assert waits.wait(30), "a third job was taken while two were under way"
    for _ in range(3):
        gate.release()
    third.join(30)
    writer.finish()
