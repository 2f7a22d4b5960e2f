"""timm's networks, `timm:vit_tiny_patch16_224` and over a thousand more. Optional: pip install timm.

https://github.com/huggingface/pytorch-image-models
"""

import re
import sys
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from . import external
from .base import Images, register_family
from .external import IMAGENET, PackageFamily, Place, Plan


def package() -> ModuleType:
    try:
        import timm  # here, because it is optional and slow to import
    except ImportError:
        raise ValueError("timm:NAME needs the package timm (pip install timm)") from None
    return timm


def kind(module: str) -> str:
    """`layer` of `layer1`, `stages.` of `stages.0`."""
    return re.split(r"\d", module)[0]


class Timm(PackageFamily):
    prefix = "timm"

    def names(self) -> list[str]:
        return package().list_models()

    def own(self, name: str) -> Images:
        cfg = package().get_pretrained_cfg(name)
        return Images(tuple(cfg.input_size[1:]), cfg.mean, cfg.std) if cfg else IMAGENET

    def create(self, name: str, num_classes: int, **arguments: Any) -> nn.Module:
        return package().create_model(name, num_classes=num_classes, **arguments)

    def arguments_for(self, name: str, net: nn.Module, size: tuple[int, int]) -> tuple[dict, tuple[int, int]]:
        cfg = package().get_pretrained_cfg(name)
        if not (cfg and cfg.fixed_input_size) or size == self.own(name).size:
            return {}, size
        patch = max(stage["reduction"] for stage in net.feature_info)
        size = tuple(-(-n // patch) * patch for n in size)
        return {"img_size": size}, size

    def dropping(self, name: str, rate: float) -> dict[str, Any]:
        arguments = {"drop_path_rate": rate}
        try:
            self.skeleton(name, **arguments)
        except TypeError:
            raise ValueError(f"{self.prefix}:{name}: does not take --drop_path") from None
        return arguments

    def plan(self, net: nn.Module, images: Tensor) -> Plan:
        stages = list(net.feature_info)
        indices = list(range(len(stages)))
        one_resolution = len({stage["reduction"] for stage in stages}) == 1
        if one_resolution:
            # the first block stands for the stem, the last block of each quarter of the depth for a stage
            indices = sorted({0, *(-(-len(stages) * quarter // 4) - 1 for quarter in (1, 2, 3, 4))})
        first = stages[0]["module"]
        # `act1` before `layer1` is a stem; `stages.0` before `stages.1` is not: there its input is the stem's map
        has_stem = one_resolution or kind(first) != kind(stages[1]["module"])
        classifier = net.get_classifier()
        # two with a distillation head; the network returns their mean, because `distilled_training` stays off
        several = isinstance(classifier, tuple) and hasattr(net, "set_distilled_training")
        parts = classifier if several else (classifier,)
        heads = tuple(name for part in parts for name, module in net.named_modules() if module is part)
        if len(heads) != len(parts):
            raise ValueError(f"its classifier is a {type(classifier).__name__}, not one linear layer")

        found: dict[str, Tensor] = {}
        watched = [*external.relus(net), *heads]
        if not has_stem and first in dict(net.named_modules()):  # a few networks name modules that do not exist
            watched.append(first)
        calls = external.look(net, watched, lambda: found.update(logits=self.run(net, images, tuple(indices), found)))
        places = external.classifiers(net, heads, calls, found.pop("logits"))
        feats: list[tuple[str, str | int]] = [(key, "NCHW") for key in found]
        maps = list(found.values())
        if not has_stem:
            stem = [call.input for call in calls if call.name == first and call.input.dim() == 4]
            if stem:
                places["stem"] = Place(first, True)
            # tokens of a network with stages may be in any order, so the first stage's map stands for the stem too
            feats.insert(0, ("stem", external.layout_of(stem[0])) if stem else feats[0])
            maps.insert(0, stem[0] if stem else maps[0])
        if any(x.dim() != 4 for x in maps):
            raise ValueError("its stages return no maps [B, C, H, W]")
        return Plan(heads, places | external.preacts(net, calls, maps), tuple(feats), tuple(indices))

    def run(self, net: nn.Module, x: Tensor, indices: tuple[int, ...], kept: dict[str, Tensor]) -> Tensor:
        last, maps = net.forward_intermediates(x, indices=list(indices), output_fmt="NCHW")
        kept.update({f"map {i}": x for i, x in enumerate(maps)})
        return net.forward_head(last)

    def convert(self, net: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return sys.modules[type(net).__module__].checkpoint_filter_fn(weights, net)

    def download(self, name: str) -> dict[str, Tensor]:
        return package().create_model(name, pretrained=True).state_dict()


register_family("timm", Timm())
