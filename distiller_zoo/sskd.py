"""Knowledge Distillation Meets Self-Supervision. Xu et al., ECCV 2020. https://arxiv.org/abs/2006.07114

sskd_tf T^2 KL(p_t || p_s) + sskd_ss T^2 KL(a_t || a_s),  p: of rotated images;  a: of rotated to plain embeddings

Differs: images are flipped at random; the authors train teacher and student without flips.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.augment import Augment, Steps, Views

from .adapters import full, unit
from .base import Batch, Distiller, Output, Pair, Share, Temperature, Weight

VIEWS = 4  # 0, 90, 180 and 270 degrees


class Rotations(Views):
    """Every sample from `augment`, and rotated by 90, 180 and 270 degrees: [B, 4, C, H, W], channels_last."""

    def __init__(self, augment: Augment) -> None:
        super().__init__(augment)
        self.outcomes = augment.outcomes

    def stream(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        for images in self.augment.stream(index, view, steps):
            x = images.permute(0, 2, 3, 1)
            yield torch.stack([x.rot90(quarter, (1, 2)) for quarter in range(VIEWS)], 1).permute(0, 1, 4, 2, 3)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """[4 B, D], the views of a sample side by side -> the plain ones [B, D], the rotated ones [3 B, D]."""
    x = x.unflatten(0, (-1, VIEWS))
    return x[:, 0], x[:, 1:].flatten(0, 1)


def similarity(h: Tensor) -> Tensor:
    """Cosines of the rotated with the plain embeddings, [3 B, B]."""
    plain, rotated = (unit(x) for x in split(h))
    return rotated @ plain.T


def selected_kl(z_s: Tensor, z_t: Tensor, right: Tensor, T: float, ratio: float) -> Tensor:
    """T^2 KL(teacher || student), averaged over the rows that the teacher answers best.

    These are all rows that it answers right, and the share `ratio` of the others, in which the right answer ranks
    highest.

    Args:
        z_s, z_t: logits [N, K].
        right: the right answers, [N].
        T: temperature.
        ratio: share of the wrong rows.
    """
    rank = (z_t > z_t.gather(1, right.unsqueeze(1))).sum(1)
    wrong = (rank > 0).sum()
    n = len(rank) - wrong + (ratio * wrong.double()).long()
    selected = rank.argsort(stable=True).argsort() < n
    log_s, log_t = F.log_softmax(z_s / T, dim=1), F.log_softmax(z_t / T, dim=1)
    kl = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)
    return T**2 * (kl * selected).sum() / n.clamp_min(1)


class SSKD(Distiller, name="sskd"):
    """Imitates the teacher's logits of rotated images, and how it matches rotated with plain images.

    Cross entropy and KD see the plain view only. The heads are not part of the student.

    Args:
        sskd_tf: weight of the rotated images' logits.
        sskd_ss: weight of the matching.
        sskd_tf_T: temperature of the rotated images' logits.
        sskd_ss_T: temperature of the matching.
        sskd_tf_ratio: share of the teacher's wrong classifications that count.
        sskd_ss_ratio: share of the teacher's wrong matches that count.
    """

    weights = (0.1, 0.9, 1.0)
    one_label = True
    reads = ()
    standardisable = True
    init_epochs = 60
    init_runs_student = False
    init_decay_epochs = (30, 45)
    relational = True
    label_all_views = False

    def __init__(
        self,
        pair: Pair,
        *,
        sskd_tf: Weight = 2.7,
        sskd_ss: Weight = 10.0,
        sskd_tf_T: Temperature = 4.0,
        sskd_ss_T: Temperature = 0.5,
        sskd_tf_ratio: Share = 1.0,
        sskd_ss_ratio: Share = 0.75,
    ) -> None:
        super().__init__(pair)
        if not (sskd_tf or sskd_ss):
            raise ValueError("sskd_tf and sskd_ss are both 0")
        self.tf, self.ss = (sskd_tf, sskd_tf_T, sskd_tf_ratio), (sskd_ss, sskd_ss_T, sskd_ss_ratio)
        self.head_s, self.head_t = (
            nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))
            for d in (pair.s.pooled.shape[1], pair.t.pooled.shape[1])
        )

    def views(self, augment: Augment) -> Rotations:
        return Rotations(augment)

    def init_loss(self, s: Output, t: Output, batch: Batch) -> Tensor:
        """The teacher's head learns which plain image a rotated one comes from. Neither network trains."""
        z = similarity(self.head_t(full(t.pooled.detach())))
        return F.cross_entropy(z, torch.arange(z.shape[1], device=z.device).repeat_interleave(VIEWS - 1))

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        with torch.no_grad():
            z_t = similarity(self.head_t(full(t.pooled)))
        z_s = similarity(self.head_s(full(s.pooled)))
        own_sample = torch.arange(z_t.shape[1], device=z_t.device).repeat_interleave(VIEWS - 1)
        (_, y_s), (_, y_t) = split(full(s.logits)), split(full(t.logits.detach()))
        label = batch.labels.repeat_interleave(VIEWS - 1)
        (w_tf, *tf), (w_ss, *ss) = self.tf, self.ss
        return w_tf * selected_kl(y_s, y_t, label, *tf) + w_ss * selected_kl(z_s, z_t, own_sample, *ss)
