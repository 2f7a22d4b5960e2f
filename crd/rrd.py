"""Relational Representation Distillation. Giakoumoglou, Stathaki, 2024. https://arxiv.org/abs/2407.12073 (first called
RCD)

-sum_k softmax(e_t m / nce_t_t)_k log softmax(e_s m / nce_t_s)_k,  e: embeddings,  m: remembered teacher embeddings

The authors' releases disagree on temperatures and on the order of enqueueing; both are options. By default the teacher
is sharper (0.02) than the student (0.1), as in their later code. The batch is enqueued after the loss, as in their
first code: if a sample found its own embedding in the queue, nearly all of the teacher's mass at 0.02 would be on it,
and the relations to others would be lost.
"""

from typing import Literal

import torch
from torch import Tensor

from distiller_zoo.adapters import UnitLinear, full
from distiller_zoo.base import Batch, Count, Distiller, Output, Pair, Temperature, Width

from .memory import MemoryBanks, Momentum, Queue, with_gradient
from .negatives import Negatives


class RRD(Distiller, name="rrd", aliases=("rcd",)):
    """Cross entropy between teacher's and student's softmax similarities to remembered teacher embeddings.

    embed_t is detached and stays a random projection. `memory_type momentum` compares CRD's scores over CRD's
    candidates. As published, it softens scores that are already exponentials divided by Z, so with real numbers of
    samples its gradient vanishes.

    Args:
        feat_dim: width of the embeddings.
        nce_k: length of the queue, or candidates of a sample (momentum).
        nce_t_s: temperature of the student's similarities.
        nce_t_t: temperature of the teacher's similarities.
        nce_t: temperature of CRD's scores (momentum).
        nce_m: share of the old embedding that a memory keeps (momentum).
        memory_type: `queue`, the last embeddings, or `momentum`, a bank of every sample.
        enqueue: with a queue, the batch joins it `after` the loss or `before`.

    Raises:
        ValueError: the labels hold a single class (momentum).
    """

    weights = (1.0, 0.0, 1.0)
    one_label = True
    reads = ()
    relational = True

    def __init__(
        self,
        pair: Pair,
        *,
        feat_dim: Width = 128,
        nce_k: Count = 16384,
        nce_t_s: Temperature = 0.1,
        nce_t_t: Temperature = 0.02,
        nce_t: Temperature = 0.07,
        nce_m: Momentum = 0.5,
        memory_type: Literal["queue", "momentum"] = "queue",
        enqueue: Literal["before", "after"] = "after",
    ) -> None:
        super().__init__(pair)
        self.t_s, self.t_t, self.enqueue = nce_t_s, nce_t_t, enqueue
        self.embed_s = UnitLinear(pair.s.pooled.shape[1], feat_dim)
        self.embed_t = UnitLinear(pair.t.pooled.shape[1], feat_dim).requires_grad_(False)
        if memory_type == "queue":
            self.memory, self.negatives = Queue(nce_k, feat_dim), None
        else:
            self.memory = MemoryBanks(len(pair.labels), feat_dim, nce_k, nce_t, nce_m)
            self.negatives = Negatives(pair.labels, nce_k)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        if self.negatives is None:
            return self.queue_loss(s.pooled, t.pooled)
        return self.contrast_loss(s.pooled, t.pooled, batch.index, self.negatives(batch.index))

    def contrast_loss(self, f_s: Tensor, f_t: Tensor, index: Tensor, contrast_idx: Tensor) -> Tensor:
        """The loss from memory banks. Arguments as CRD's."""
        m, v1, v2 = self.memory, self.embed_s(f_s), self.embed_t(f_t).detach()
        o1 = m.log_scores(v1.detach(), m.memory_v2, m.Z_v1, contrast_idx).exp()
        o2 = m.log_scores(v2, m.memory_v1, m.Z_v2, contrast_idx).exp()
        value, weight = self._relate(o1 / self.t_s, o2 / self.t_t)
        loss = with_gradient(value, v1, m.pull(weight * o1 / self.t_s, m.memory_v2, contrast_idx)).mean()
        m.update(v1, v2, index)
        return full(loss)

    def queue_loss(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        z_s, z_t, queue = self.embed_s(f_s), self.embed_t(f_t).detach(), self.memory.queue
        if self.enqueue == "before":
            self.memory.push(z_t)
        value, weight = self._relate(z_s.detach() @ queue.T / self.t_s, z_t @ queue.T / self.t_t)
        loss = with_gradient(value, z_s, weight @ queue / self.t_s).mean()
        if self.enqueue == "after":
            self.memory.push(z_t)
        return full(loss)

    @staticmethod
    def _relate(u_s: Tensor, u_t: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy of softmax(u_s) under softmax(u_t), [B], and its gradient to u_s."""
        log_s, p_t = torch.log_softmax(u_s, 1), torch.softmax(u_t, 1)
        return -(p_t * log_s).sum(1), log_s.exp() - p_t
