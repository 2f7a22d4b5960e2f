"""Times epochs of train_student.py, which runs as it is: `step_time.py` starts this, with the script's options.

The data set `random` (noise.py) holds noise: what an image shows does not change the times.
"""

import os
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import noise  # noqa: F401  registers the data set, and finds the project
import torch
from sample import Slice, kept_stdout, now, serve

import dataset
import train_student
from helper import loops
from helper.trainee import Trainee

ANSWERS = kept_stdout()
STAGE, BANK = os.environ["STAGE"], int(os.environ["BANK"])


class Paced(Slice):
    """A slice whose clock goes by the steps, since batches are taken ahead of them; for all students of a sweep."""

    over = False

    def epoch(self, epoch: int, *_: Any) -> Iterator:
        for number in count(epoch):
            for batch in self.batches(number):
                if self.over:
                    return
                yield batch

    def stepped(self, samples: int) -> None:
        self.done += 1
        if self.done == 1:
            self.first = now(wall=True)
        if self.done > self.warm_up:
            self.images += samples
        if self.done == self.warm_up:
            self.start = now()
        timed = self.done - self.warm_up
        if timed >= self.steps or timed > 0 and time.perf_counter() - self.start >= self.seconds:
            self.end, self.over = self.end or now(), True


def timed(groups: list[loops.Group], signals: loops.Signals, waiting: int) -> None:
    """In the place of the function that trains an epoch: the same on slices of epochs, when they are asked for."""
    (group,) = groups
    batches, students, step = group.batches, group.trainees, Trainee.step
    assert all(student.stage.name == STAGE for student in students)

    def on(part: Slice) -> None:
        paced = Paced(part.batches, part.warm_up, part.steps, part.seconds)
        paced.batch_size = batches.batch_size

        def watched(student: Trainee, batch: dataset.Batch, t: tuple) -> None:
            step(student, batch, t)
            if student is students[-1] and not paced.over:
                paced.stepped(len(batch.labels) * len(students))

        Trainee.step = watched
        group.batches, group.first = paced, 0
        for student in students:
            student.meters.begin()
        train(groups, signals, waiting)
        part.__dict__.update(paced.__dict__, done=paced.done - part.warm_up)

    serve(on, batches.epoch, ANSWERS)


def with_bank(*fields: Any) -> Any:
    """In the place of Pair: a memory has a row for each label."""
    pair = Pair(*fields)
    return pair._replace(labels=torch.arange(BANK) % 100) if BANK else pair


train, loops.train = loops.train, timed
Pair, train_student.Pair = train_student.Pair, with_bank
train_student.main()
