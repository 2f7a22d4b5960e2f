"""Networks that return their features. A new one: its file, which registers it, and its name in the import below."""

# ruff: noqa: F401
from functools import partial

from . import (
    mobilenetv2,
    resnet,
    resnetv2,
    shufflenetv1,
    shufflenetv2,
    timm_nets,
    torchvision_nets,
    vgg,
    wrn,
)
from .base import (
    Images,
    Network,
    Output,
    TooLarge,
    at_most,
    at_own_size,
    create_model,
    is_model,
    model_names,
    probe,
    published_weights,
    register,
    register_family,
    register_pattern,
)
from .wrapped import Wrapper, layers_of, rebuild, sketch, wrap

# RepDistiller's table: model_dict["resnet8"](num_classes=100)
model_dict = {name: partial(create_model, name) for name in model_names()}
