"""Networks of other packages under the same contract, by forward hooks. State dicts keep the package's own names."""

import functools
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Images, Network, Output, TooLarge

IMAGENET = Images((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_here = threading.local()  # nn.DataParallel runs each replica in a thread; replicas share their hooks


class Place(NamedTuple):
    """Where a hook reads: the input or the output of a module."""

    module: str
    is_input: bool = False


class Plan(NamedTuple):
    """What running a network once found out about it."""

    heads: tuple[str, ...]  # names of the classifier and, if there is one, of the distillation head
    places: dict[str, Place]  # what hooks store, by key: "pooled", "preact i" if a ReLU ends stage i, maps, "head i"
    feats: tuple[tuple[str, str | int], ...]  # key, and layout: NCHW, NHWC, or number of tokens before the patches
    indices: tuple[int, ...] = ()  # of the maps that the package's own code returns


class Call(NamedTuple):
    """One call of a module."""

    name: str
    input: Tensor
    output: Tensor


def _keep(key: str, is_input: bool, module: nn.Module, args: tuple, output: Tensor | None = None) -> None:
    kept = getattr(_here, "kept", None)
    if kept is not None:
        kept[key] = args[0] if is_input else output


class PackageFamily:
    """What the packages share. A subclass says how its package names, builds, runs and publishes networks."""

    prefix: str

    def names(self) -> list[str]:
        raise NotImplementedError

    def own(self, name: str) -> Images:
        """Image size and normalisation of the published weights."""
        raise NotImplementedError

    def create(self, name: str, num_classes: int, **arguments: Any) -> nn.Module:
        """The package's network, untrained."""
        raise NotImplementedError

    def arguments_for(self, name: str, net: nn.Module, size: tuple[int, int]) -> tuple[dict, tuple[int, int]]:
        """Arguments of `create` for images of this size, and the next larger size that it can be built for."""
        return {}, size

    def plan(self, net: nn.Module, images: Tensor) -> Plan:
        """Finds the places of features by running the network on images of its own size.

        Raises ValueError if it cannot.
        """
        raise NotImplementedError

    def run(self, net: nn.Module, x: Tensor, indices: tuple[int, ...], kept: dict[str, Tensor]) -> Tensor:
        """Logits. Meanwhile hooks fill `kept`; maps that the package returns are added to it."""
        return net(x)

    def convert(self, net: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Converts weights of another input size, or with older names, to this network's."""
        return weights

    def download(self, name: str) -> dict[str, Tensor]:
        raise NotImplementedError

    def skeleton(self, name: str, **arguments: Any) -> nn.Module:
        """The package's network on the meta device, without memory for its weights."""
        try:
            with torch.device("meta"):
                return self.create(name, 2, **arguments)
        except NotImplementedError:  # the network computes shapes from values of tensors
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                return self.create(name, 2, **arguments).to("meta")

    def own_size(self, name: str) -> int:
        return self.own(name).size[0]

    def dropping(self, name: str, rate: float) -> dict[str, Any]:
        """Arguments of `create` for this drop_path rate. Raises ValueError if the network does not have one."""
        raise ValueError(f"{self.prefix}:{name}: does not take --drop_path; timm:NAME networks do")

    def build(self, name: str, num_classes: int, images: Images | None, drop_path: float | None = None) -> Network:
        name, _, at = name.partition("@")
        if at and not (at.isdigit() and int(at)):
            raise ValueError(f"{self.prefix}:{name}@{at}: expected a size in pixels after the @")
        asked = images.size if images else None
        if at:
            asked = (int(at), int(at))
        plan, (arguments, size) = _plan(self, name), _fit(self, name, asked, bool(at))
        if drop_path is not None:
            arguments = arguments | self.dropping(name, drop_path)
        if torch.get_default_device().type == "meta":
            net = self.skeleton(name, **arguments)
        else:
            net = self.create(name, num_classes, **arguments)
        return External(self, plan, net, size, self.own(name), images)

    def published(self, name: str) -> dict[str, Tensor]:
        name = name.partition("@")[0]
        try:
            return self.download(name)
        except Exception as error:  # errors of download libraries have no common base class
            raise ValueError(f"{self.prefix}:{name}: no published weights: {_first_line(error)}") from None


class External(Network):
    """A package's network under the contract of Network.

    If a ReLU ends a stage, its input is the pre-activation; otherwise the map itself is. Images are normalised again
    with the network's own mean and deviation, and resized to `size` if it is given.

    Args:
        family: the package.
        plan: where the features are.
        net: the package's network.
        size: height and width to resize to.
        own: size and normalisation of the published weights.
        images: what the network will be given.
    """

    def __init__(
        self,
        family: PackageFamily,
        plan: Plan,
        net: nn.Module,
        size: tuple[int, int] | None,
        own: Images,
        images: Images | None,
    ) -> None:
        super().__init__()
        self.family, self.plan, self.net, self.size = family, plan, net, size
        self.head_name = self.head_names[0]
        convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        depthwise = any(conv.groups == conv.in_channels > 1 for conv in convs)
        if depthwise or not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()):
            self.learning_rate = 0.01  # RepDistiller's for mobile networks; transformers need a low rate too
        given = images or own
        mean, std, to_mean, to_std = (
            torch.tensor(x, dtype=torch.float64).view(-1, 1, 1) for x in (given.mean, given.std, own.mean, own.std)
        )
        self.register_buffer("scale", (std / to_std).float(), persistent=False)
        self.register_buffer("shift", ((mean - to_mean) / to_std).float(), persistent=False)
        for key, place in plan.places.items():
            self._watch(key, place)
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    def _watch(self, key: str, place: Place) -> None:
        module = self.net.get_submodule(place.module)
        if place.is_input:
            module.register_forward_pre_hook(partial(_keep, key, True))
        else:
            module.register_forward_hook(partial(_keep, key, False))
        if key.startswith("preact"):
            module.inplace = False  # a ReLU must not overwrite its input, which is returned

    def fit(self, x: Tensor) -> Tensor:
        """Normalises and resizes images for the network."""
        x = torch.addcmul(self.shift, x, self.scale)
        if self.size and x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        return x

    def forward(self, x: Tensor, is_feat: bool = False) -> Tensor | Output:
        x = self.fit(x)
        if not is_feat:
            return self.net(x)
        kept: dict[str, Tensor] = {}
        _here.kept = kept
        try:
            logits = self.family.run(self.net, x, self.plan.indices, kept)
        finally:
            _here.kept = None
        feats = tuple(as_map(kept[key], layout, x) for key, layout in self.plan.feats)
        preacts = tuple(kept.get(f"preact {i}", feat) for i, feat in enumerate(feats))
        if self.training and self.separate_heads:
            logits = kept["head 0"]
        return Output(logits, feats, preacts, kept["pooled"], (kept["head 1"],) if "head 1" in kept else ())

    @property
    def head_names(self) -> tuple[str, ...]:
        return tuple(f"net.{name}" for name in self.plan.heads)

    def replace_heads(self, new: Callable[[nn.Linear], nn.Module]) -> None:
        super().replace_heads(new)
        for key, place in self.plan.places.items():
            if place.module in self.plan.heads:
                self._watch(key, place)

    def convert(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights with this network's names and shapes, if they can be converted; otherwise unchanged."""
        own = self.net.state_dict()
        if weights.keys() == own.keys() and all(weights[k].shape == own[k].shape for k in own):
            return weights
        try:
            return self.family.convert(self.net, dict(weights))
        except Exception:  # another network's file: loading it will report the mismatch
            return weights


def _without_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
    for key in [k for k in state if k.startswith(f"{prefix}net.")]:
        state[prefix + key[len(prefix) + 4 :]] = state.pop(key)


def _with_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    for key in [k for k in state if k.startswith(prefix)]:
        state[f"{prefix}net.{key[len(prefix) :]}"] = state.pop(key)


def as_map(x: Tensor, layout: str | int, image: Tensor) -> Tensor:
    """x as a map [B, C, H, W]. Tokens are rows of patches; their grid has the aspect ratio of `image`."""
    if layout == "NCHW":
        return x
    if layout == "NHWC":
        return x.permute(0, 3, 1, 2)
    tokens = x[:, layout:]
    high = round(math.sqrt(tokens.shape[1] * image.shape[-2] / image.shape[-1]))
    return tokens.transpose(1, 2).unflatten(2, (high, -1))


def layout_of(x: Tensor) -> str | int:
    """The layout of a map that was computed from a square image."""
    if x.dim() == 3:
        return x.shape[1] - math.isqrt(x.shape[1]) ** 2
    return "NHWC" if x.shape[1] == x.shape[2] != x.shape[3] else "NCHW"


@torch.no_grad()
def look(net: nn.Module, names: list[str], run: Any) -> list[Call]:
    """Runs `run()` and returns the calls of the named modules, in order, if they take and return a tensor."""
    calls: list[Call] = []

    def note(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            calls.append(Call(name, args[0], output))

    handles = [net.get_submodule(name).register_forward_hook(partial(note, name)) for name in names]
    run()
    for handle in handles:
        handle.remove()
    return calls


def relus(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, nn.ReLU)]


def preacts(net: nn.Module, calls: list[Call], maps: list[Tensor]) -> dict[str, Place]:
    """Places of pre-activations: the inputs of the ReLUs that output the stages' maps."""
    ends = {id(call.output): call.name for call in calls if isinstance(net.get_submodule(call.name), nn.ReLU)}
    return {f"preact {i}": Place(ends[id(x)], True) for i, x in enumerate(maps) if i and id(x) in ends}


def classifiers(net: nn.Module, heads: Sequence[str], calls: list[Call], logits: Tensor) -> dict[str, Place]:
    """Places of the first classifier's input and, if there are several, of each one's output (the logits are their
    mean).

    Raises ValueError if a classifier does not read a vector, or if the only one does not output the logits.
    """
    for head in heads:
        if not isinstance(net.get_submodule(head), nn.Linear):
            raise ValueError(f"its classifier is a {type(net.get_submodule(head)).__name__}, not one linear layer")
        last = [call for call in calls if call.name == head][-1:]
        if not last or last[0].input.dim() != 2 or (len(heads) == 1 and last[0].output is not logits):
            raise ValueError(f"its classifier {head} does not return the logits")
    several = {f"head {i}": Place(head) for i, head in enumerate(heads)} if len(heads) > 1 else {}
    return {"pooled": Place(heads[0], True)} | several


@functools.lru_cache(4)
def _skeleton(family: PackageFamily, name: str, **arguments: Any) -> nn.Module:
    return family.skeleton(name, **arguments).eval()


@functools.cache
def _plan(family: PackageFamily, name: str) -> Plan:
    try:
        arguments, size = family.arguments_for(name, _skeleton(family, name), family.own(name).size)
        return family.plan(_skeleton(family, name, **arguments), torch.zeros(1, 3, *size, device="meta"))
    except TooLarge:
        raise
    except Exception as error:  # an unusual network can raise anything
        raise ValueError(f"{family.prefix}:{name}: cannot be used here: {_first_line(error)}") from None


@functools.cache
def _fit(
    family: PackageFamily, name: str, asked: tuple[int, int] | None, exact: bool
) -> tuple[dict, tuple[int, int] | None]:
    """Arguments for images of the asked size, and the size to resize to (None: no resizing)."""
    own, net = family.own(name).size, _skeleton(family, name)
    for wanted in [asked or own] if exact else [asked or own, own]:
        arguments, size = family.arguments_for(name, net, wanted)
        if size != wanted and exact:
            break
        try:
            with torch.no_grad():
                _skeleton(family, name, **arguments)(torch.zeros(2, 3, *size, device="meta"))
        except TooLarge:
            raise
        except Exception:  # networks raise different errors for sizes that they do not take
            continue
        return arguments, None if size == (asked or own) and not exact and not arguments else size
    sizes = "images of {}x{}; its own are of {}x{}".format(*wanted, *own)
    raise ValueError(f"{family.prefix}:{name}: does not take {sizes}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
