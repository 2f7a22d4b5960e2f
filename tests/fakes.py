"""The smallest teacher, student and outputs of given shapes that a method accepts."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import models
from dataset.base import Batch
from distiller_zoo.base import Output, Pair, find_method


class FakeNet(nn.Module):
    """A classifier without a body; `head` and the BatchNorms are what methods may look at. Reads the first pixels."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(features, classes)
        self.bns = nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)[:, : self.head.in_features].to(self.head.weight.dtype))

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        if not self.bns:
            raise ValueError("no BatchNorm before a ReLU")
        return list(self.bns)


class Fixed(models.Network):
    """A network that returns these outputs whatever it sees, for what a method wraps around a student."""

    def __init__(self, given: Output) -> None:
        super().__init__()
        self.given, self.fc = given, nn.Linear(given.pooled.shape[1], given.logits.shape[1])

    def forward(self, images: Tensor | None, is_feat: bool = True) -> Output:
        return self.given


class TwoHeads(models.Network):
    """resnet8 with a second classifier, as networks with a distillation token have it."""

    head_name, head_names = "net.fc", ("net.fc", "head_dist")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = models.create_model("resnet8", num_classes)
        self.head_dist = nn.Linear(self.net.head.in_features, num_classes)

    def forward(self, x: Tensor, is_feat: bool = False) -> Tensor | Output:
        out = self.net(x, is_feat=True)
        z_dist = self.head_dist(out.pooled)
        apart = self.training and self.separate_heads
        out = out._replace(logits=out.logits if apart else (out.logits + z_dist) / 2, dist=(z_dist,))
        return out if is_feat else out.logits


models.register_pattern("fake_two_heads", TwoHeads)


def student_for(method: str, name: str) -> str:
    """The network, or where the method needs two heads one that has them."""
    return "fake_two_heads" if find_method(method).separate_heads else name


def output(
    *,
    logits: Tensor | None = None,
    feats: Sequence[Tensor] = (),
    preacts: Sequence[Tensor] = (),
    pooled: Tensor | None = None,
    dist: Sequence[Tensor] = (),
) -> Output:
    """An Output with placeholders for what is left out, of the batch size and dtype of what is given."""
    given = next(x for x in (logits, pooled, *feats, *preacts) if x is not None)
    logits = given.new_zeros(len(given), 10) if logits is None else logits
    pooled = given.new_zeros(len(given), 4) if pooled is None else pooled.flatten(1)
    return Output(logits, tuple(feats), tuple(preacts), pooled, tuple(dist))


def pair(s: Output, t: Output, labels: Tensor | None = None, teacher_bns: Sequence[nn.BatchNorm2d] = ()) -> Pair:
    """labels: of the whole training set; two alternating classes of 50 samples where left out."""
    student, teacher = (FakeNet(o.pooled.shape[1], o.logits.shape[1]) for o in (s, t))
    teacher.bns.extend(teacher_bns)
    pair = Pair(s, t, student, teacher, torch.arange(50) % 2 if labels is None else labels)
    return pair._replace(anew=lambda: FakeNet(s.pooled.shape[1], s.logits.shape[1]))


def batch(s: Output, index: Tensor | None = None, labels: Tensor | None = None, views: int = 1) -> Batch:
    """views: how many rows of `s` each sample has."""
    n, device = len(s.logits) // views, s.logits.device
    index = torch.arange(n, device=device) if index is None else index
    return Batch(torch.ones(n, 3, 8, 8, device=device), index % 2 if labels is None else labels, index)


def sgd_options(**given: Any) -> argparse.Namespace:
    """What an Update reads of a run's options."""
    usual = {"opt": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False}
    return argparse.Namespace(**usual | {"clip_grad": None, "accumulate": 1} | given)
