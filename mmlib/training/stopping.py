"""Stopping between two steps when Ctrl-C is pressed or the system asks for it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class StopRequest:
    """Whether somebody asked the run to stop."""

    requested: bool = False


@contextlib.contextmanager
def stop_requests(patient: bool) -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request, so that a step is never cut in two.

    Only the main thread can handle signals; elsewhere nothing is changed.

    Args:
        patient: whether a second signal is passed over; else it interrupts at once.  On Ctrl-C torchrun
            signals its processes after the terminal has, and kills those that take longer than 30 s.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number, frame):
        if stop.requested and not patient:
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
