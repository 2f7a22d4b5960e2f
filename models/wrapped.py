"""Networks around networks, which a method trains in the student's place: a checkpoint says how to build them again."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from .base import Network, TooLarge, create_model

Layers = Sequence[Sequence[Any]]  # [name, arguments] of each Wrapper, the inner one first

MOST = 10  # wrappers around each other

_wrappers: dict[str, type["Wrapper"]] = {}


class Wrapper(Network):
    """Base of networks around `network`: `class Projected(Wrapper, name="projected")`, in the file of its method.

    A subclass takes the network and keyword arguments that JSON can hold, gives these to super().__init__, and has
    `features` and `head_name` as every Network.
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
    """What `wrap` needs to build the wrappers of the network again; of others []."""
    if not isinstance(network, Wrapper):
        return []
    return [*layers_of(network.network), [network.name, network.arguments]]


def wrap(network: nn.Module, layers: Layers) -> nn.Module:
    """The network with these wrappers around it, untrained. Raises ValueError for what no wrapper can be made of."""
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
                except Exception as error:  # arguments of a stranger's file can be anything
                    raise ValueError(f"the wrapper {name}: {error}") from None
            case _:
                raise ValueError(f"unknown wrapper {layer!r:.100}; known: {', '.join(_wrappers) or 'none'}")
    return network


def rebuild(name: str, num_classes: int, images: Any = None, layers: Layers = ()) -> nn.Module:
    """As create_model, with the wrappers that a checkpoint names around it."""
    return wrap(create_model(name, num_classes, images), layers)


def sketch(name: str, layers: Layers = (), num_classes: int = 2) -> nn.Module:
    """The network without memory for its weights: to look at, not to run. Raises ValueError as `rebuild` does."""
    with torch.device("meta"):
        return rebuild(name, num_classes, layers=layers)
