"""What every network returns, and the table of networks."""

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .near import near, unknown

__all__ = [
    "Images",
    "Network",
    "Output",
    "TooLarge",
    "at_most",
    "at_own_size",
    "create_model",
    "init_convs",
    "is_model",
    "model_names",
    "probe",
    "published_weights",
    "register",
    "register_family",
    "register_pattern",
    "run_stages",
]


class Output(NamedTuple):
    """What a network returns when asked for its features (`is_feat=True`)."""

    logits: Tensor  # [B, K]; of a network with a distillation head the mean of both heads', see `separate_heads`
    feats: tuple[Tensor, ...]  # stem, stage 1 .. stage n, as the next stage sees them   [B, C_i, H_i, W_i]
    preacts: tuple[Tensor, ...]  # the same places before their ReLU (WRN: after the next BatchNorm)
    pooled: Tensor  # [B, D], what the classifier reads
    dist: tuple[Tensor, ...] = ()  # the distillation head's logits [B, K]; no tensor where a network has none


class Images(NamedTuple):
    """What networks are given: images of one size, of which `mean` was subtracted and which were divided by `std`."""

    size: tuple[int, int]  # height, width
    mean: tuple[float, ...]  # per channel, of values in 0..1
    std: tuple[float, ...]


class Network(nn.Module):
    """Base of the networks. Subclasses give `features(x) -> (feats, preacts, pooled)` and name their classifier.

    model(x) -> logits [B, K]; model(x, is_feat=True) -> Output.
    """

    head_name = "fc"  # dotted path of the classifier, an nn.Linear
    learning_rate = 0.05  # RepDistiller's rate for this network at batch 64
    separate_heads = False  # True: in train mode the logits of an Output are the class head's alone

    def features(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """Images [B, 3, H, W] to (feats, preacts, pooled) as in Output; the first two have equal lengths."""
        raise NotImplementedError

    def forward(self, x: Tensor, is_feat: bool = False) -> Tensor | Output:
        feats, preacts, pooled = self.features(x)
        logits = self.head(pooled)
        return Output(logits, feats, preacts, pooled) if is_feat else logits

    @property
    def head(self) -> nn.Linear:
        return self.get_submodule(self.head_name)

    @property
    def head_names(self) -> tuple[str, ...]:
        """Paths of the classifiers whose mean the logits are, `head_name` first."""
        return (self.head_name,)

    def reset_head(self, num_classes: int) -> None:
        """Puts new, freshly initialised classifiers in the old ones' places, on their device and of their dtype."""
        like = {"device": self.head.weight.device, "dtype": self.head.weight.dtype}
        self.replace_heads(lambda old: nn.Linear(old.in_features, num_classes, **like))

    def replace_heads(self, new: Callable[[nn.Linear], nn.Module]) -> None:
        """Puts new(classifier) in each classifier's place."""
        for name in self.head_names:
            parent, _, leaf = name.rpartition(".")
            self.get_submodule(parent).register_module(leaf, new(self.get_submodule(name)))

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The BatchNorms whose output a stage's last ReLU reads, stage 1 .. n (the overhaul loss reads margins there).

        Raises ValueError where the network has none.
        """
        raise ValueError(
            f"{type(self).__name__} names no BatchNorms before the last ReLU of its stages, "
            "from which the overhaul loss reads its margins; choose another teacher"
        )


def init_convs(model: nn.Module) -> None:
    """He initialisation of every convolution, by its outputs; biases start at zero (https://arxiv.org/abs/1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def run_stages(
    x: Tensor, stages: Iterable[nn.ModuleList], then: Callable[[Tensor], Tensor] = lambda x: x
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Runs stages of blocks that return what their last ReLU reads; `then` follows that ReLU.

    x: the stem's output, [B, C, H, W]. Returns feats and preacts as in Output.
    """
    feats, preacts = [x], [x]
    for stage in stages:
        for block in stage:
            preact = block(x)
            x = then(F.relu(preact, inplace=block is not stage[-1]))  # the last one's preact is returned
        feats.append(x)
        preacts.append(preact)
    return tuple(feats), tuple(preacts)


class TooLarge(ValueError):
    """A network has more weights than it may have."""


@contextlib.contextmanager
def at_most(parameters: int, elements: int) -> Iterator[None]:
    """Raises TooLarge as soon as what the block builds has more parameters than that, or more elements in them."""
    left = [parameters, elements]

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            left[0] -= 1
            left[1] -= parameter.numel()
        if min(left) < 0:
            raise TooLarge(f"more than {parameters} parameters or {elements} elements")

    handle = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


class Family(Protocol):
    """A package's networks, called `<family>:<name>`, or `<family>:<name>@<size>` for images of that size."""

    def names(self) -> list[str]:
        """Raises ValueError where the package is not there, as all of these do."""

    def build(self, name: str, num_classes: int, images: Images | None, drop_path: float | None = None) -> Network:
        """images: what the network will be given; it makes of them what it needs. None: as it needs them."""

    def own_size(self, name: str) -> int:
        """Pixels of the images that the published weights were trained on."""

    def published(self, name: str) -> dict[str, Tensor]:
        """The published weights. Raises ValueError where there are none or they cannot be had."""


_networks: dict[str, Callable[..., nn.Module]] = {}
_patterns: list[tuple[re.Pattern, Callable[..., nn.Module]]] = []
_families: dict[str, Family] = {}


def register(name: str, build: Callable[..., nn.Module]) -> None:
    """Makes build(num_classes=K) available as `--model name`."""
    _networks[name] = build


def register_pattern(pattern: str, build: Callable[..., nn.Module]) -> None:
    """Makes every name that fully matches the regular expression available; its groups go to build as strings."""
    _patterns.append((re.compile(pattern), build))


def register_family(prefix: str, family: Family) -> None:
    """Makes every network of a package available as `--model prefix:name`."""
    _families[prefix] = family


def model_names() -> list[str]:
    return list(_networks)


def is_model(name: str) -> bool:
    if name.partition(":")[0] in _families:
        try:
            find_in_family(name)
        except ValueError:
            return False
        return True
    return name in _networks or any(p.fullmatch(name) for p, _ in _patterns)


def find_in_family(name: str) -> tuple[Family, str]:
    """Family and name of `prefix:name`. Raises ValueError, with the near names, where there is none."""
    prefix, _, rest = name.partition(":")
    family, known = _families[prefix], _families[prefix].names()
    arch = re.split("[.@]", rest)[0]  # timm names published weights behind a dot
    if arch not in known:
        raise ValueError(f"unknown network {name!r}{near(arch, known, f'{prefix}:')}")
    return family, rest


def create_model(
    name: str, num_classes: int, images: Images | None = None, drop_path: float | None = None
) -> nn.Module:
    """Builds a network by name. Raises ValueError, with the near names, where there is none.

    images: what the network will be given. Ours take any; a package's network is built for their size where it can be,
    else resizes them, and normalises them as its own weights want them. drop_path: the rate at which the network skips
    its blocks in training. Raises ValueError for one that cannot.
    """
    if drop_path is not None and name.partition(":")[0] not in _families:
        raise ValueError("takes no --drop_path, as timm:NAME do")
    if name in _networks:
        return _networks[name](num_classes=num_classes)
    for pattern, build in _patterns:
        if match := pattern.fullmatch(name):
            return build(*match.groups(), num_classes=num_classes)
    if name.partition(":")[0] in _families:
        family, rest = find_in_family(name)
        return family.build(rest, num_classes, images, drop_path)
    raise unknown("network", name, [*_networks, *(f"{prefix}:" for prefix in _families)])


def at_own_size(name: str) -> str:
    """The name with the size of the images that its published weights were trained on, where it says none."""
    if name.partition(":")[0] not in _families or "@" in name:
        return name
    family, rest = find_in_family(name)
    return f"{name}@{family.own_size(rest)}"


def published_weights(name: str) -> dict[str, Tensor]:
    """A state dict. Raises ValueError where none is published or it cannot be had."""
    if name.partition(":")[0] not in _families:
        families = " and ".join(f"{prefix}:NAME" for prefix in _families)
        raise ValueError(f"{name}: no published weights; {families} have some, this needs a file")
    family, rest = find_in_family(name)
    return family.published(rest)


@torch.no_grad()
def probe(model: nn.Module, images: Tensor) -> Output:
    """What the network returns for two images of the size of `images` [..., C, H, W], one lighter from pixel to pixel
    and one darker: shapes to build from, and values that show what is computed from what."""
    was_training = model.training
    parameter, shape = next(model.parameters()), images.shape[-3:]
    ramp = torch.linspace(-2, 2, math.prod(shape), dtype=parameter.dtype, device=parameter.device).view(shape)
    output = model.eval()(torch.stack([ramp, -ramp]), is_feat=True)
    model.train(was_training)
    return output
