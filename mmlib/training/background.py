"""One thread that writes files in the order in which they were handed over, while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """Runs jobs one after another in a thread; what goes wrong in one is raised at the next call.

    At most one job waits while another runs, so copies of a model do not pile up in memory.
    After a job failed, those behind it are not run: a history must not go on without its checkpoint.
    """

    def __init__(self):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mmlib-writer")
        self._jobs: list[Future] = []
        self._failed = False

    def submit(self, job: Callable[[], None]) -> None:
        """Hands a job over; waits while two are under way.

        Raises:
            Exception: what an earlier job raised.
        """
        while len(self._jobs) >= 2:
            self._take_result()
        self._jobs.append(self._pool.submit(self._run, job))

    def finish(self) -> None:
        """Returns when every job is done.

        Raises:
            Exception: what a job raised.
        """
        while self._jobs:
            self._take_result()

    def close(self) -> None:
        """Waits for the running job and ends the thread; never raises."""
        self._pool.shutdown(wait=True)

    def _run(self, job: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            job()
        except BaseException:
            self._failed = True
            raise

    def _take_result(self) -> None:
        self._jobs.pop(0).result()
