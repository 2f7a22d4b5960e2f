"""What the timed processes share: a slice of an epoch that carries a clock, and the talk with the process that asks.

A timed process trains as ever, but its function for an epoch trains on short slices of one, each when it is asked to.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import torch


class Slice:
    """Batches for `warm_up` steps that do not count and for `steps` that do, of as many epochs as it takes.

    The clock is read when the loop asks for a batch, so that it spans whole steps; `seconds` ends it early.
    """

    def __init__(self, epoch: Callable[[int], Iterable], warm_up: int, steps: int, seconds: float) -> None:
        self.batches, self.warm_up, self.steps, self.seconds = epoch, warm_up, steps, seconds
        self.first = self.start = self.end = 0.0
        self.images = self.done = 0

    def __len__(self) -> int:
        return self.warm_up + self.steps

    def __iter__(self) -> Iterator:
        return self.epoch(1)

    def epoch(self, epoch: int, *_: Any) -> Iterator:
        step = 0
        for number in count(epoch):
            for batch in self.batches(number):
                if step == 1:
                    self.first = now(wall=True)
                if step == self.warm_up:
                    self.start = now()
                counted = step - self.warm_up
                if counted >= self.steps or counted > 0 and time.perf_counter() - self.start >= self.seconds:
                    self.end, self.done = now(), counted
                    return
                if counted >= 0:
                    self.images += len(batch[1])  # in every loop the labels come second
                step += 1
                yield batch


def now(wall: bool = False) -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.time() if wall else time.perf_counter()


def peak_memory_mb() -> float:
    """As helper.util's, which a process of RepDistiller, whose package is called helper too, cannot import."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    # getrusage would say what the parent held when it forked, where that was more
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**10


def kept_stdout() -> TextIO:
    """The standard output; what is printed from now on goes to the standard error."""
    kept = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return kept


def serve(train: Callable[[Slice], object], batches: Callable[[int], Iterable], answers: TextIO) -> None:
    """Trains on a slice for every line on the standard input, and exits at its end."""
    for line in sys.stdin:
        part = Slice(batches, **json.loads(line))
        train(part)
        answer = {"images_per_second": part.images / (part.end - part.start), "steps": part.done}
        answer |= {"first_step": part.first, "peak_memory_mb": peak_memory_mb()}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # no worker is waited for, nothing is saved
