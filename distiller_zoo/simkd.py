"""Knowledge Distillation with the Reused Teacher Classifier. Chen et al., CVPR 2022. https://arxiv.org/abs/2203.14001

mean((project(F_s) - F_t)^2),  F_t: the map that the teacher's classifier reads

Differs: if the teacher's classifier does not read the mean of a returned map, the student imitates its pooled features,
as a map of one cell.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.wrapped import Wrapper

from .adapters import BatchNorm, ClassifierMap, full, same_size
from .base import Batch, Distiller, Output, Pair, Width


class Projected(Wrapper, name="simkd"):
    """The student with a projector after its last map, and the teacher's classifier instead of its own.

    Args:
        network: the student.
        channels: of the student's last map, inside the projector, and of the projected map.
        size: height and width to which a larger map is pooled.
    """

    head_name = "fc"

    def __init__(self, network: nn.Module, channels: list[int], size: list[int]) -> None:
        super().__init__(network, channels=channels, size=size)
        (c_s, mid, c_t), self.size = channels, tuple(size)
        layers: list[nn.Module] = []
        for c_in, c_out, kernel in ((c_s, mid, 1), (mid, mid, 3), (mid, c_t, 1)):
            layers += [nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False), BatchNorm(c_out), nn.ReLU()]
        self.projector = nn.Sequential(*layers[:-1])
        self.fc = nn.Linear(c_t, network.head.out_features).requires_grad_(False)
        network.replace_heads(lambda head: nn.Identity())

    def features(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """The projected map is the last one of feats and preacts."""
        inner = self.network(x, is_feat=True)
        f = inner.feats[-1].to(self.fc.weight.dtype)
        size = tuple(min(a, b) for a, b in zip(f.shape[2:], self.size, strict=True))
        preact = self.projector(f if f.shape[2:] == size else F.adaptive_avg_pool2d(f, size))
        f = F.relu(preact)
        return inner.feats + (f,), inner.preacts + (preact,), f.mean((2, 3))


class SimKD(Distiller, name="simkd"):
    """The student's projected map imitates the map that the teacher's classifier reads.

    Projector and classifier stay in the student.

    Args:
        simkd_factor: how many times narrower the projector is inside.
    """

    weights = (0.0, 0.0, 1.0)

    def __init__(self, pair: Pair, *, simkd_factor: Width = 2) -> None:
        super().__init__(pair)
        self.map_t = ClassifierMap(pair.t)
        self.reads = tuple({"feats", *self.map_t.part})
        f_s, f_t = pair.s.feats[-1], self.map_t(pair.t)
        if simkd_factor < 1 or f_t.shape[1] < simkd_factor:
            raise ValueError(f"simkd_factor lies in 1..{f_t.shape[1]}, the teacher's channels, not {simkd_factor}")
        self.channels = [f_s.shape[1], f_t.shape[1] // simkd_factor, f_t.shape[1]]
        self.size = list(f_t.shape[2:])
        self.head_t = (pair.teacher.head,)  # a tuple, so that it is not a submodule of this one

    @torch.no_grad()
    def wrap(self, student: nn.Module) -> nn.Module:
        """Raises ValueError for a student that was projected for another teacher."""
        if not isinstance(student, Projected):
            student = Projected(student, self.channels, self.size)
        (head,) = self.head_t
        if student.fc.weight.shape != head.weight.shape:
            raise ValueError(f"simkd: the student has a classifier of {list(student.fc.weight.shape)} already")
        student.fc.weight.copy_(head.weight)
        student.fc.bias.zero_()
        if head.bias is not None:
            student.fc.bias.copy_(head.bias)
        return student

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return F.mse_loss(*same_size(full(s.feats[-1]), self.map_t(t).detach()))
