"""The learning rate of each epoch, numbered from 1."""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

Schedule = Callable[[int], float]


class Steps(NamedTuple):
    """The rate is multiplied by `decay` after each of these epochs.

    timm's MultiStepLRScheduler says the same by the epoch that follows, each of these plus 1.
    """

    rate: float
    after: Sequence[int] = ()
    decay: float = 0.1

    def __call__(self, epoch: int) -> float:
        return self.rate * self.decay ** sum(epoch > e for e in self.after)


class Cosine(NamedTuple):
    """From `rate` in the first epoch along half a cosine, which would reach `lowest` in the epoch after the last.

    SGDR. Loshchilov, Hutter, ICLR 2017, without restarts. https://arxiv.org/abs/1608.03983
    """

    rate: float
    epochs: int
    lowest: float = 0.0

    def __call__(self, epoch: int) -> float:
        return self.lowest + 0.5 * (self.rate - self.lowest) * (1 + math.cos(math.pi * (epoch - 1) / self.epochs))


class Warmup(NamedTuple):
    """From `first` evenly up to the rate of `then`, which has its say after these epochs, as if it had begun before."""

    first: float
    epochs: int
    then: Steps | Cosine

    def __call__(self, epoch: int) -> float:
        if epoch > self.epochs:
            return self.then(epoch)
        return self.first + (epoch - 1) * ((self.then.rate - self.first) / self.epochs)


def of(opt: argparse.Namespace) -> Schedule:
    """`--sched` and `--warmup_epochs`: epoch by epoch as timm's schedulers without cycles, noise and warmup_prefix.

    https://github.com/huggingface/pytorch-image-models/tree/main/timm/scheduler
    """
    schedule = Steps(opt.learning_rate, opt.lr_decay_epochs, opt.lr_decay_rate)
    if opt.sched == "cosine":
        schedule = Cosine(opt.learning_rate, opt.epochs, opt.min_lr)
    return Warmup(opt.warmup_lr, opt.warmup_epochs, schedule) if opt.warmup_epochs else schedule
