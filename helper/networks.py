"""The network that a file of weights belongs to: finds its name, checks that the weights fit, and builds it."""

import argparse
from typing import Any

import torch
from torch import Tensor, nn

import dataset
import models

from . import checkpoint, parsing
from .util import UserError, as_user_error

TIMES = 6  # a package's network is built several times to find out how to use it
SLACK = 100, 10**6  # more parameters and elements, for older names and other image sizes


def named(files: dict[str, str | None]) -> str | None:
    """The network that the first of these (flag -> file) names. Raises UserError if its weights do not fit."""
    for flag, path in files.items():
        state = checkpoint.load_if_there(path, flag) if path else {}  # a finished run does not need it
        if state and (name := checkpoint.find_name(state, path, models.is_model)):
            sketch(name, state, flag, path)
            return name
    return None


def settle_data(opt: argparse.Namespace) -> None:
    """Default of --dataset: that of --test_only FILE's options, with its image size; else CIFAR-100."""
    state = checkpoint.load(opt.test_only, "--test_only") if opt.test_only and opt.dataset is None else {}
    before = state.get("options")
    if isinstance(before, dict) and "dataset" in before:
        try:
            opt.dataset = parsing.known(dataset.find_dataset)(str(before["dataset"]))
            if opt.image_size is None and before.get("image_size") is not None:
                opt.image_size = parsing.pixels(str(before["image_size"]))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--test_only {opt.test_only}: its options: {error}") from None
    opt.dataset = opt.dataset or "cifar100"


def sketch(name: str, state: dict[str, Any], flag: str, path: str) -> nn.Module:
    """The network on the meta device. Raises UserError if the file's weights are not this network's.

    Name and wrappers may come from a downloaded file, so the network may have only a few times as many weights as the
    file.
    """
    weights = checkpoint.weights_of(state, flag, path)
    most = (TIMES * n + slack for n, slack in zip(sizes(weights), SLACK, strict=True))
    with as_user_error(f"{flag} {path}"):
        try:
            with models.at_most(*most):
                network = models.sketch(name, layers := state.get("wrapped", []))
                if layers:  # a wrapper may have its own classifier
                    network = models.sketch(name, layers, checkpoint.class_count(network, state, flag, path))
        except models.TooLarge:
            raise UserError(f"{flag} {path}: not a {checkpoint.name_of(state, name)}: that has more weights") from None
    if not hasattr(network, "convert"):  # otherwise names and shapes depend on the image size
        checkpoint.compare(network, name, state, flag, path)
    return network


def create(name: str, flag: str, num_classes: int, images: models.Images, drop_path: float | None = None) -> nn.Module:
    """An untrained network. Raises UserError for an unknown name, or images that it does not take."""
    with as_user_error(f"{flag} {name}"):
        network = models.create_model(name, num_classes, images, drop_path)
    look(network, f"{flag} {name}", images)
    return network


def published(flag: str, name: str) -> dict[str, Tensor]:
    """The published weights of a network. Raises UserError if there are none or the download fails."""
    with as_user_error(flag):
        return models.published_weights(name)


def begun(
    network: nn.Module, name: str, state: dict[str, Any], flag: str, path: str, new_head: bool | None
) -> nn.Module:
    """The network with the weights that its training starts from.

    new_head: keep the network's own classifiers; None: only if the file's have another number of classes.
    """
    sketch(name, state, flag, path)
    if new_head is None:
        new_head = checkpoint.class_count(network, state, flag, path) != len(network.head.weight)
    if new_head:
        own = network.state_dict()
        kept = {key: own[key] for key in checkpoint.head_keys(network)}
        state = state | {"model": checkpoint.weights_of(state, flag, path) | kept}
    return fill(network, name, state, flag, path, None)


def restore(
    name: str, state: dict[str, Any], flag: str, path: str, num_classes: int, images: models.Images | None
) -> nn.Module:
    """The network with the file's weights. Raises UserError if they are not this network's."""
    sketch(name, state, flag, path)
    with as_user_error(f"{flag} {path}"):
        network = models.create_model(name, num_classes, images)
    return fill(network, name, state, flag, path, images)


def fill(
    network: nn.Module, name: str, state: dict[str, Any], flag: str, path: str, images: models.Images | None
) -> nn.Module:
    """The network, after `sketch` has checked it, with the file's wrappers and weights."""
    with as_user_error(f"{flag} {path}"):
        network = models.wrap(network, state.get("wrapped", []))
    checkpoint.load_weights(network, name, state, flag, path)
    look(network, f"{flag} {path}: {name}", images)
    return network


def look(network: nn.Module, what: str, images: models.Images | None) -> None:
    """Raises UserError if the network does not take such images. Other packages' networks have been checked already."""
    if images and not hasattr(network, "convert"):
        try:
            models.probe(network, torch.empty(3, *images.size))
        except RuntimeError as error:
            sides = "x".join(map(str, images.size))
            raise UserError(f"{what} does not take images of {sides}: {checkpoint.first_line(error)}") from None


def sizes(weights: dict[str, Tensor]) -> tuple[int, int]:
    """Number of tensors, and of their elements. Shared memory counts once."""
    storages = [(x.untyped_storage(), x.element_size()) for x in weights.values()]
    return len(weights), sum({storage.data_ptr(): storage.nbytes() // size for storage, size in storages}.values())
