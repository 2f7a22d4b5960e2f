"""Contrastive Representation Distillation. Tian, Krishnan, Isola, ICLR 2020. https://arxiv.org/abs/1910.10699

sum of -log(o / (o + c)) of the positive and -log(c' / (o + c)) of the negatives,  o = exp(e . m / nce_t) / Z
e: a network's embedding,  m: the other network's memory,  c' = K / n_data,  c = c' + eps

Differs: a sample's nce_k negatives are distinct and spread evenly over the other classes; the authors draw each
independently. They are drawn on the training device. One matrix product scores the whole bank. `memory_type queue` is
InfoNCE against a queue of the teacher's last embeddings (giakoumoglou/distillers), whose negatives may be of the
sample's own class.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distiller_zoo.adapters import UnitLinear, full
from distiller_zoo.base import Batch, Count, Distiller, Output, Pair, Temperature, Width

from .memory import MemoryBanks, Momentum, Queue, with_gradient
from .negatives import Negatives


class CRD(Distiller, name="crd"):
    """Each network's embedding must find its own sample in the other network's memory, among nce_k samples of other
    classes.

    Noise-contrastive estimation on pooled features.

    Args:
        feat_dim: width of the embeddings.
        nce_k: negatives of a sample, or the queue's length.
        nce_t: temperature of the scores.
        nce_m: share of the old embedding that a memory keeps.
        mode: the positive is the sample itself (`exact`) or any of its class (`relax`).
        memory_type: `momentum`, a bank of every sample, or `queue`, the last embeddings.
        enqueue: with a queue, the batch joins it `after` the loss or `before`. With `before`, as in the authors' code,
            a sample's own teacher embedding is also among its negatives.

    Raises:
        ValueError: the labels hold a single class (momentum).
    """

    weights = (1.0, 0.0, 0.8)
    one_label = True
    reads = ()
    relational = True  # ranks that see different batches would have different memories
    eps = 1e-7  # added to the noise's density, as in RepDistiller

    def __init__(
        self,
        pair: Pair,
        *,
        feat_dim: Width = 128,
        nce_k: Count = 16384,
        nce_t: Temperature = 0.07,
        nce_m: Momentum = 0.5,
        mode: Literal["exact", "relax"] = "exact",
        memory_type: Literal["queue", "momentum"] = "momentum",
        enqueue: Literal["before", "after"] = "after",
    ) -> None:
        super().__init__(pair)
        self.nce_t, self.enqueue = nce_t, enqueue
        self.embed_s = UnitLinear(pair.s.pooled.shape[1], feat_dim)
        self.embed_t = UnitLinear(pair.t.pooled.shape[1], feat_dim)
        if memory_type == "queue":
            self.memory, self.negatives = Queue(nce_k, feat_dim), None
        else:
            self.memory = MemoryBanks(len(pair.labels), feat_dim, nce_k, nce_t, nce_m)
            self.negatives = Negatives(pair.labels, nce_k, relax=mode == "relax")

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        if self.negatives is None:
            return self.queue_loss(s.pooled, t.pooled.detach())
        return self.contrast_loss(s.pooled, t.pooled.detach(), batch.index, self.negatives(batch.index))

    def contrast_loss(self, f_s: Tensor, f_t: Tensor, index: Tensor, contrast_idx: Tensor) -> Tensor:
        """The loss from memory banks, a scalar.

        Args:
            f_s, f_t: pooled features, [B, D].
            index: the samples' rows in the banks, [B].
            contrast_idx: rows of the positive, then of the negatives, [B, K + 1].
        """
        m, v1, v2 = self.memory, self.embed_s(f_s), self.embed_t(f_t)
        loss = self._nce(v1, m.memory_v2, m.Z_v1, contrast_idx) + self._nce(v2, m.memory_v1, m.Z_v2, contrast_idx)
        m.update(v1, v2, index)
        return full(loss.mean())

    def _nce(self, v: Tensor, bank: Tensor, Z: Tensor, idx: Tensor) -> Tensor:
        """The loss of each sample, [B], as in the formula above."""
        k = idx.shape[1] - 1
        noise = k / self.memory.n_data
        u = self.memory.log_scores(v.detach(), bank, Z, idx) - math.log(noise + self.eps)
        u[:, 0].neg_()
        value = F.softplus(u).sum(1) + k * math.log1p(self.eps / noise)
        weight = u.sigmoid_()
        weight[:, 0].neg_()
        return with_gradient(value, v, self.memory.pull(weight, bank, idx))

    def queue_loss(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Cross entropy of each sample's own pair against the queue."""
        z_s, z_t = self.embed_s(f_s), self.embed_t(f_t)
        if self.enqueue == "before":
            self.memory.push(z_t)
        positive = (z_s * z_t).sum(1) / self.nce_t
        scores = z_s.detach() @ self.memory.queue.T / self.nce_t
        negatives = with_gradient(scores.logsumexp(1), z_s, scores.softmax(1) @ self.memory.queue / self.nce_t)
        if self.enqueue == "after":
            self.memory.push(z_t)
        return full((torch.logaddexp(positive, negatives) - positive).mean())
