"""`python mortal.py RANK EPOCH train …` is `python -m mmlib train …`, but process RANK is killed in EPOCH."""

import os
import signal
import sys

from mmlib.cli import main
from mmlib.training.loop import Learner


def train_until_killed(rank: str, epoch: int, command: list[str]) -> int:
    step = Learner.backward

    def mortal(training, batch):
        if training.position.epoch == epoch and os.environ["RANK"] == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(training, batch)

    Learner.backward = mortal
    return main(command)


if __name__ == "__main__":
    sys.exit(train_until_killed(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
