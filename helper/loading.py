"""Images, labels and batches as the options ask for them, which the scripts share."""

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

import dataset
import models

from . import identity, labels
from .parallel import local_main_process_first, rank_and_world_size
from .progress import Bar
from .slow import SlowWeights
from .util import UserError, as_user_error


def label_loss(opt: argparse.Namespace, data: dataset.ImageSet) -> labels.LabelLoss:
    """The cross entropy that the options ask for. Raises UserError for a class without samples to be weighed by."""
    weights = None
    if opt.class_weights:
        with as_user_error(f"--class_weights {opt.class_weights}"):
            weights = labels.balanced(data.train_labels, len(data.classes))
    return labels.LabelLoss(opt.smoothing, weights)


def slow_weights(opt: argparse.Namespace, network: nn.Module) -> SlowWeights | None:
    """`--ema`: the average moves with every step of the optimiser."""
    return None if opt.ema is None else SlowWeights(network, opt.ema)


def load_data(opt: argparse.Namespace, runs: Iterable[Any]) -> dataset.ImageSet:
    """The data set of the options, whole or limited, which the runs note.

    Raises UserError where its files are not as they should be, and where one of the runs has seen other images.
    """
    with as_user_error(f"--dataset {opt.dataset}"), local_main_process_first():
        storage = dataset.Storage(opt.loader, opt.memory_gb, opt.num_workers, Bar("decoding images", opt.quiet))
        data = dataset.load(opt.dataset, opt.data_folder, opt.image_size, opt.limit_train, opt.limit_val, storage)
        found = identity.of(data), dataset.listed(opt.dataset, opt.data_folder)
    for run in runs:
        run.sees(*found)
    if opt.val_split and opt.test_only is None:
        with as_user_error(f"--val_split {opt.val_split}"):
            data = dataset.split(data, opt.val_split)
    return data


def check_data_of(opt: argparse.Namespace, finished: Sequence[Any]) -> None:
    """Raises UserError where the data folder holds another set than these runs have seen; it may be gone.

    Only where image files have other names or sizes are they loaded, to see whether that changes anything.
    """
    try:
        with as_user_error(f"--dataset {opt.dataset}"):
            listed = dataset.listed(opt.dataset, opt.data_folder) if finished else ""
    except UserError as error:
        if not isinstance(error.__context__, OSError):
            raise
        return print(f"its images are not there to be compared: {error}")
    if any(run.before.get("listed", listed) != listed for run in finished):
        load_data(opt, finished)


def train_batches(
    opt: argparse.Namespace, data: dataset.ImageSet, augment: dataset.Augment | dataset.Views, device: torch.device
) -> dataset.Batches:
    """This process's part of the training batches, whose images `augment` gives."""
    batches = dataset.Batches(
        augment, data.train_labels.to(device), opt.batch_size, seed=opt.seed, part=rank_and_world_size()
    )
    if opt.mixup or opt.cutmix:
        batches.mixing = dataset.Mixing(opt.mixup, opt.cutmix, data.train_images.shape[-2:])
    return batches


def val_batches(opt: argparse.Namespace, data: dataset.ImageSet, device: torch.device) -> dataset.ValBatches:
    """This process's part of the validation batches: 1,000 images of 32 pixels, of larger ones as many fewer."""
    height, width = data.val_images.shape[-2:]
    size = max(opt.batch_size, 1000 * 32**2 // max(height * width, 32**2))
    return dataset.ValBatches.of(data, size, device, part=rank_and_world_size())


def test_batches(opt: argparse.Namespace, data: dataset.ImageSet, device: torch.device) -> dataset.ValBatches | None:
    """The same of the test set, where others are validated while training."""
    if data.test_labels is None:
        return None
    images, labels, paths = data.test_images, data.test_labels, data.test_paths
    tested = dataclasses.replace(data, val_images=images, val_labels=labels, val_paths=paths)
    return val_batches(opt, tested, device)


def images_of(data: dataset.ImageSet) -> models.Images:
    """What the networks are given: batches are normalised by the data set's mean and deviation."""
    return models.Images(tuple(data.train_images.shape[-2:]), data.mean, data.std)


def facts(name: str, network: nn.Module, data: dataset.ImageSet) -> dict[str, Any]:
    """What a checkpoint says of its network beside the weights."""
    layers = models.layers_of(network)
    return {
        "model_name": name,
        "num_classes": len(data.classes),
        "parameters": sum(p.numel() for p in network.parameters()),
        **({"wrapped": layers} if layers else {}),
    }
