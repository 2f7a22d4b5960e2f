"""Paraphrasing Complex Network: Network Compression via Factor Transfer. Kim, Park, Kwak, NeurIPS 2018.
https://arxiv.org/abs/1802.04977

mean(|a_s - a_t|^p2),  a = q / |q|,  q = mean over channels of u^p1,  u_s = translator(F_s),  u_t = paraphraser(F_t)

As in RepDistiller, factors u are averaged over their channels (the paper compares whole factors), the paraphraser has
no BatchNorm, and its learning rate is 0.01, for ResNet and WRN students.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import BatchNorm, full, same_size, unit
from .base import Batch, Distiller, Output, Pair, Power, Range

Ratio = Annotated[float, Range(float, 0, 16, "(]")]


def chain(conv: type[nn.Module], widths: list[int], norm: bool) -> nn.Sequential:
    """3x3 convolutions of these widths, each followed by BatchNorm (if norm) and LeakyReLU."""
    layers: list[nn.Module] = []
    for c_in, c_out in zip(widths[:-1], widths[1:], strict=True):
        layers += [conv(c_in, c_out, 3, padding=1), *([BatchNorm(c_out)] if norm else []), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


class FT(Distiller, name="ft", aliases=("factor",)):
    """A translator of the student's last map imitates the teacher's factor, from a pre-trained paraphraser.

    Args:
        ft_k: channels of a factor, as a share of the teacher's.
        ft_p1: power of a factor, before its channels are averaged.
        ft_p2: power of the differences.

    Raises:
        ValueError: ft_k leaves no channel.
    """

    weights = (1.0, 0.0, 200.0)
    reads = ("feats",)
    translator_norm = True  # BatchNorm in the translator
    init_learning_rate = 0.01
    init_runs_student = False

    def __init__(self, pair: Pair, *, ft_k: Ratio = 0.5, ft_p1: Power = 2, ft_p2: Power = 1) -> None:
        super().__init__(pair)
        c_s, c_t = pair.s.feats[-1].shape[1], pair.t.feats[-1].shape[1]
        k = int(c_t * ft_k)
        if k < 1:
            raise ValueError(f"ft_k {ft_k} leaves no factor of the teacher's {c_t} channels")
        self.p1, self.p2 = ft_p1, ft_p2
        self.translator = chain(nn.Conv2d, [c_s, c_s, k, k], norm=self.translator_norm)
        self.encoder = chain(nn.Conv2d, [c_t, c_t, k, k], norm=False)
        self.decoder = chain(nn.ConvTranspose2d, [k, k, c_t, c_t], norm=False)

    def init_loss(self, s: Output, t: Output, batch: Batch) -> Tensor:
        """Trains the paraphraser (encoder and decoder) to reconstruct the teacher's map. The student is not used."""
        f_t = full(t.feats[-1].detach())
        return F.mse_loss(self.decoder(self.encoder(f_t)), f_t)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        with torch.no_grad():
            target = self.encoder(full(t.feats[-1]))
        return self.factor_loss(self.translator(full(s.feats[-1])), target)

    def factor_loss(self, factor_s: Tensor, factor_t: Tensor) -> Tensor:
        a_s, a_t = (unit(f.pow(self.p1).mean(1).flatten(1)) for f in same_size(factor_s, factor_t))
        return (a_s - a_t).abs().pow(self.p2).mean() if self.p2 != 1 else F.l1_loss(a_s, a_t)
