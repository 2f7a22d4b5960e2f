"""What the training scripts do in the same way, from the options to the result."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

import dataset

from . import export, loading, networks, options, parallel, validation
from .loops import Group, fit
from .run import Run
from .step import Precision
from .trainee import Trainee


def begin(opt: argparse.Namespace) -> torch.device:
    """Starts the log and this process's device, and settles the seed and the data set. Raises UserError."""
    options.start_log(opt)
    options.settle_seed(opt)
    device = parallel.start(opt)
    networks.settle_data(opt)
    return device


def already_done(opt: argparse.Namespace, finished: Sequence[Run]) -> None:
    """Reports runs that need no training. Raises UserError where the data folder holds other images than they saw."""
    loading.check_data_of(opt, finished)
    for run in finished:
        run.already_done()


def test_only(
    opt: argparse.Namespace, run: Run, name: str, device: torch.device, start: dict[str, Any] | None = None
) -> None:
    """Validates the file of `--test_only`. start: what is tested where the run has none, of `--path_s`."""
    data = loading.load_data(opt, [run])
    flag, state = ("--test_only", run.state) if run.state else ("--path_s", start)
    # a file says itself how its network was wrapped
    network = networks.restore(name, state, flag, run.tested, len(data.classes), loading.images_of(data))
    validation.test(run, network, loading.val_batches(opt, data, device), Precision(opt.amp, device))


def train(trainee: Trainee, data: dataset.ImageSet) -> None:
    """Trains a network without teachers, and saves it in the formats of `--export`."""
    opt, device = trainee.opt, trainee.device
    augment = dataset.augmentation(data, device, opt.aug, opt.reprob)
    batches, val_batches = loading.train_batches(opt, data, augment, device), loading.val_batches(opt, data, device)
    fit(trainee, Group(batches, val_batches, loading.test_batches(opt, data, device)))
    export.save(trainee.run, trainee.network, val_batches, loading.images_of(data), data.classes)
