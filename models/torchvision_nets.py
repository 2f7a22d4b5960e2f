"""torchvision's networks: `torchvision:resnet34`, ... https://pytorch.org/vision/stable/models.html"""

from collections.abc import Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.ops.misc import Permute

from . import external
from .base import Images, register_family
from .external import Call, PackageFamily, Place, Plan

# parts after a stage's end that only reshape or rescale its map
BETWEEN = (nn.LayerNorm, nn.Dropout, Permute)
CONTAINERS = ("features", "trunk_output", "encoder", "layers", "blocks")


def chain(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Names of the network's parts in order: its children, and those of the containers that hold its stages."""
    for name, child in module.named_children():
        if name in CONTAINERS:
            yield from chain(child, f"{prefix}{name}.")
        else:
            yield prefix + name


def resolution(x: Tensor) -> int:
    return x.shape[1] if external.layout_of(x) == "NHWC" else x.shape[2]


def ends(net: nn.Module, calls: list[Call]) -> list[Call]:
    """The calls that end stem and stages: the last part of each resolution, or the last token block of each quarter."""
    parts = {call.name: net.get_submodule(call.name) for call in calls}
    blocks = [call for call in calls if call.output.dim() == 3 and list(parts[call.name].children())]
    if blocks:  # the first one stands for the stem
        return [blocks[0], *(blocks[-(-len(blocks) * quarter // 4) - 1] for quarter in (1, 2, 3, 4))]
    maps = [
        call
        for call in calls
        if call.output.dim() == 4
        and not isinstance(parts[call.name], BETWEEN)
        and "Pool" not in type(parts[call.name]).__name__
    ]
    stages = list({resolution(call.output): call for call in maps}.values())
    # at the first resolution, a module with children that follows another one is a stage; otherwise it is the stem
    is_stage = stages[0] is not maps[0] and any(parts[stages[0].name].children())
    return [maps[0], *stages] if is_stage else stages


class Torchvision(PackageFamily):
    prefix = "torchvision"

    def names(self) -> list[str]:
        return torchvision.models.list_models(module=torchvision.models)

    def own(self, name: str) -> Images:
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        size = preset.crop_size[0]
        return Images((size, size), tuple(preset.mean), tuple(preset.std))

    def create(self, name: str, num_classes: int, **arguments: Any) -> nn.Module:
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **arguments)

    def arguments_for(self, name: str, net: nn.Module, size: tuple[int, int]) -> tuple[dict, tuple[int, int]]:
        if not hasattr(net, "image_size") or size == (net.image_size, net.image_size):
            return {}, size
        side = -(-max(size) // net.patch_size) * net.patch_size
        return {"image_size": side}, (side, side)

    def plan(self, net: nn.Module, images: Tensor) -> Plan:
        if getattr(net, "aux_logits", False):
            raise ValueError("it has several classifiers in training")
        head = [name for name, module in net.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
        parts, logits = list(chain(net)), []
        watched = dict.fromkeys([*parts, *external.relus(net), head])
        calls = external.look(net, list(watched), lambda: logits.append(net(images)))
        places = external.classifiers(net, [head], calls, logits[0])
        stages = ends(net, [call for call in calls if call.name in parts])
        feats = [(f"feat {i}", external.layout_of(call.output)) for i, call in enumerate(stages)]
        places |= {key: Place(call.name) for (key, _), call in zip(feats, stages, strict=True)}
        places |= external.preacts(net, calls, [call.output for call in stages])
        return Plan((head,), places, tuple(feats))

    def convert(self, net: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(interpolate_embeddings(net.image_size, net.patch_size, weights))

    def download(self, name: str) -> dict[str, Tensor]:
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        # weights_only first, because torchvision itself would unpickle anything in its cache
        torch.hub.load_state_dict_from_url(url, progress=False, check_hash=True, weights_only=True)
        return torchvision.models.get_model(name, weights="DEFAULT", progress=False).state_dict()


register_family("torchvision", Torchvision())
