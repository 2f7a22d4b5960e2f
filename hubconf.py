"""The networks for torch.hub: each name of `models.model_names()` is an entry point, and `network` takes any name.

torch.hub.load("DIR", "resnet8x4", source="local", num_classes=100)
torch.hub.load("DIR", "resnet8x4", source="local", weights="save/student_model/RUN/last.pth")
torch.hub.load("DIR", "network", "timm:test_resnet", source="local")
"""

from functools import partial as _partial

from torch import nn as _nn

import models as _models

dependencies = ["torch", "torchvision"]


def network(
    name: str, num_classes: int | None = None, weights: str | None = None, pretrained: bool | str = False
) -> _nn.Module:
    """A network that gives logits [B, num_classes], and with is_feat=True the features too.

    num_classes: default: as many as the file of weights has, else 100. weights: a checkpoint, read and compared as
    --path_t is; pretrained=FILE is the same, pretrained=True loads the published weights of torchvision: and timm:.
    Raises ValueError for an unknown name, helper.util.UserError for weights that are not this network's.
    """
    file = weights or (pretrained if isinstance(pretrained, str) else None)
    if not (file or pretrained):
        return _models.create_model(name, num_classes or 100)

    import crd  # noqa: F401  with it come the networks that methods put around a student
    from helper import checkpoint, networks

    flag, path = ("weights", file) if file else ("pretrained", name)
    state = checkpoint.load(file, flag) if file else _models.published_weights(name)
    count = num_classes or checkpoint.class_count(networks.sketch(name, state, flag, path), state, flag, path)
    return networks.restore(name, state, flag, path, count, None)


# hub looks a name up among those of the module
_wide = [f"wrn_{depth}_{width}" for depth in range(10, 41, 6) for width in range(1, 11)]
for _name in dict.fromkeys([*_models.model_names(), *_wide]):
    globals()[_name] = _partial(network, _name)
    globals()[_name].__doc__ = f"{_name}: see `network` for the other arguments."
