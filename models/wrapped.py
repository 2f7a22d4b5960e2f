"""Wrapped networks, which a method trains in the student's place. A checkpoint says how to rebuild them."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from .base import Network, TooLarge, create_model

Layers = Sequence[Sequence[Any]]  # [name, arguments] of each Wrapper, innermost first

MOST = 10  # nested wrappers

_wrappers: dict[str, type["Wrapper"]] = {}


class Wrapper(Network):
    """Base class of networks around `network`: `class Projected(Wrapper, name="projected")`, in its method's file.

    A subclass implements `features` and sets `head_name` as every Network does. Its `__init__` takes the network and
    keyword arguments that JSON can hold, and passes them to super().__init__.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, name: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name in _wrappers:
            raise ValueError(f"two wrappers are called {name!r}")
        cls.name, _wrappers[name] = name, cls

    def __init__(self, network: nn.Module, **arguments: Any) -> None:
        super().__init__()
        self.network, self.arguments = network, arguments
        self.learning_rate = network.learning_rate


def layers_of(network: nn.Module) -> list[list[Any]]:
    """The wrappers' names and arguments, from which `wrap` rebuilds them; [] for a network without wrappers."""
    if not isinstance(network, Wrapper):
        return []
    return [*layers_of(network.network), [network.name, network.arguments]]


def wrap(network: nn.Module, layers: Layers) -> nn.Module:
    """Puts these wrappers, untrained, around the network.

    Raises ValueError for an unknown wrapper or unfit arguments.
    """
    if not isinstance(layers, (list, tuple)):
        raise ValueError(f"expected a list of wrappers, found {type(layers).__name__}")
    if len(layers) > MOST:
        raise ValueError(f"expected at most {MOST} wrappers, found {len(layers)}")
    for layer in layers:
        match layer:
            case [str(name), dict(arguments)] if name in _wrappers:
                try:
                    network = _wrappers[name](network, **arguments)
                except TooLarge:
                    raise
                except Exception as error:  # the arguments of a downloaded file can be anything
                    raise ValueError(f"the wrapper {name}: {error}") from None
            case _:
                raise ValueError(f"unknown wrapper {layer!r:.100}; known: {', '.join(_wrappers) or 'none'}")
    return network


def rebuild(name: str, num_classes: int, images: Any = None, layers: Layers = ()) -> nn.Module:
    """As create_model, with a checkpoint's wrappers around the network."""
    return wrap(create_model(name, num_classes, images), layers)


def sketch(name: str, layers: Layers = (), num_classes: int = 2) -> nn.Module:
    """The network on the meta device: to look at its shapes without memory for its weights.

    Raises ValueError as `rebuild`.

    Example:
        parameters = sum(p.numel() for p in sketch("resnet8x4", num_classes=100).parameters())
    """
    with torch.device("meta"):
        return rebuild(name, num_classes, layers=layers)
