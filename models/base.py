"""The contract of the networks, and their registry."""

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
    """What a network returns for `is_feat=True`."""

    logits: Tensor  # [B, K]; with a distillation head, the mean of both heads' (see `separate_heads`)
    feats: tuple[Tensor, ...]  # stem, stage 1 .. stage n, as the next stage sees them   [B, C_i, H_i, W_i]
    preacts: tuple[Tensor, ...]  # the same places before their ReLU (WRN: after the next BatchNorm)
    pooled: Tensor  # [B, D], what the classifier reads
    dist: tuple[Tensor, ...] = ()  # the distillation head's logits [B, K]; empty for networks without one


class Images(NamedTuple):
    """What networks are given: images of one size, normalised by mean and std."""

    size: tuple[int, int]  # height, width
    mean: tuple[float, ...]  # per channel, of values in 0..1
    std: tuple[float, ...]


class Network(nn.Module):
    """Base class of the networks: model(x) -> logits [B, K]; model(x, is_feat=True) -> Output.

    A subclass implements `features` and names its classifier in `head_name`.
    """

    head_name = "fc"  # dotted path of the classifier, an nn.Linear
    learning_rate = 0.05  # RepDistiller's rate for this network at batch 64
    separate_heads = False  # True: in train mode, an Output's logits are only the class head's

    def features(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """Images [B, 3, H, W] to (feats, preacts, pooled) as in Output. feats and preacts have equal lengths."""
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
        """Paths of the classifiers, `head_name` first. The logits are their mean."""
        return (self.head_name,)

    def reset_head(self, num_classes: int) -> None:
        """Replaces the classifiers by new, freshly initialised ones, of the same device and dtype."""
        like = {"device": self.head.weight.device, "dtype": self.head.weight.dtype}
        self.replace_heads(lambda old: nn.Linear(old.in_features, num_classes, **like))

    def replace_heads(self, new: Callable[[nn.Linear], nn.Module]) -> None:
        """Replaces each classifier by new(classifier)."""
        for name in self.head_names:
            parent, _, leaf = name.rpartition(".")
            self.get_submodule(parent).register_module(leaf, new(self.get_submodule(name)))

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The BatchNorms before the last ReLU of stages 1 .. n, from which the overhaul loss reads its margins.

        Raises ValueError if the network has none.
        """
        raise ValueError(
            f"{type(self).__name__} names no BatchNorms before the last ReLU of its stages; "
            "the overhaul loss reads its margins from these: choose another teacher"
        )


def init_convs(model: nn.Module) -> None:
    """He initialisation of every convolution, by fan-out; zero biases (https://arxiv.org/abs/1502.01852)."""
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
    """A network has more weights than allowed."""


@contextlib.contextmanager
def at_most(parameters: int, elements: int) -> Iterator[None]:
    """Raises TooLarge as soon as the block builds more parameters, or more elements in them, than these."""
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
        """All names. Like every method here, raises ValueError if the package is not installed."""

    def build(self, name: str, num_classes: int, images: Images | None, drop_path: float | None = None) -> Network:
        """images: what the network will be given, and is adapted to. None: images as its own weights need them."""

    def own_size(self, name: str) -> int:
        """Image size in pixels that the published weights were trained on."""

    def published(self, name: str) -> dict[str, Tensor]:
        """The published weights. Raises ValueError if there are none or the download fails."""


_networks: dict[str, Callable[..., nn.Module]] = {}
_patterns: list[tuple[re.Pattern, Callable[..., nn.Module]]] = []
_families: dict[str, Family] = {}


def register(name: str, build: Callable[..., nn.Module]) -> None:
    """Makes build(num_classes=K) available as `--model name`."""
    _networks[name] = build


def register_pattern(pattern: str, build: Callable[..., nn.Module]) -> None:
    """Makes every name that fully matches the regular expression available. build gets its groups as strings."""
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
    """Family and name of `prefix:name`. Raises ValueError, listing similar names, if there is none."""
    prefix, _, rest = name.partition(":")
    family, known = _families[prefix], _families[prefix].names()
    arch = re.split("[.@]", rest)[0]  # timm names published weights behind a dot
    if arch not in known:
        raise ValueError(f"unknown network {name!r}{near(arch, known, f'{prefix}:')}")
    return family, rest


def create_model(
    name: str, num_classes: int, images: Images | None = None, drop_path: float | None = None
) -> nn.Module:
    """Builds a network by name.

    Args:
        name: one of `model_names()`, a registered pattern such as `wrn_28_4`, or `timm:NAME`, `torchvision:NAME`.
        num_classes: outputs of the classifier.
        images: what the network will be given. This project's networks take any size. A package's network is built for
            that size or, if it cannot be, resizes the images; it also normalises them as its own weights need.
        drop_path: rate at which timm's networks skip blocks in training.

    Raises:
        ValueError: unknown name (the message lists similar ones), or a network without drop_path.

    Example:
        model = create_model("resnet8x4", num_classes=100)
        logits, feats, preacts, pooled, _ = model(torch.randn(2, 3, 32, 32), is_feat=True)
    """
    if drop_path is not None and name.partition(":")[0] not in _families:
        raise ValueError("does not take --drop_path; timm:NAME networks do")
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
    """The name, with the image size of its published weights if it gives no size."""
    if name.partition(":")[0] not in _families or "@" in name:
        return name
    family, rest = find_in_family(name)
    return f"{name}@{family.own_size(rest)}"


def published_weights(name: str) -> dict[str, Tensor]:
    """The published state dict. Raises ValueError if there is none or the download fails."""
    if name.partition(":")[0] not in _families:
        families = " and ".join(f"{prefix}:NAME" for prefix in _families)
        raise ValueError(f"{name}: no published weights; {families} have some, this needs a file")
    family, rest = find_in_family(name)
    return family.published(rest)


@torch.no_grad()
def probe(model: nn.Module, images: Tensor) -> Output:
    """Runs the network on two dummy images, to read shapes, and to find out which value is computed from which.

    Args:
        model: any Network; its mode is restored.
        images: any images of the size to use, [..., C, H, W]. Only the shape is read.

    Returns:
        The Output in eval mode for a ramp of brightness and its negative.
    """
    was_training = model.training
    parameter, shape = next(model.parameters()), images.shape[-3:]
    ramp = torch.linspace(-2, 2, math.prod(shape), dtype=parameter.dtype, device=parameter.device).view(shape)
    output = model.eval()(torch.stack([ramp, -ramp]), is_feat=True)
    model.train(was_training)
    return output
