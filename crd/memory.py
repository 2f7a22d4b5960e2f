"""What the contrastive methods remember: banks of the whole training set, or a queue of the last batches."""

import math
import warnings
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo.adapters import unit
from distiller_zoo.base import Range

Momentum = Annotated[float, Range(float, 0, 1, "[)")]  # 1: the banks would stay as they begin

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


def with_gradient(value: Tensor, v: Tensor, grad: Tensor) -> Tensor:
    """Per-row values [B] whose gradient to the rows of v [B, D] is known to be grad [B, D].

    Autograd would keep the bank for its backward pass, and the step overwrites the bank before that.
    """
    return value + ((v - v.detach()) * grad).sum(1)


def sampled_dots(v: Tensor, bank: Tensor, idx: Tensor) -> Tensor:
    """v [B, D] times the rows idx [B, K] of bank [N, D], each row with its own: [B, K].

    On a CPU without a copy of these rows, [B, K, D], which would take three times as long.
    """
    if v.is_cuda:
        return torch.bmm(bank[idx], v.unsqueeze(2)).squeeze(2)
    ends = torch.arange(0, idx.numel() + 1, idx.shape[1])
    shape, zeros = (len(v), len(bank)), v.new_zeros(idx.numel())
    pattern = torch.sparse_csr_tensor(ends, idx.flatten(), zeros, shape, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, v, bank.T).values().view_as(idx)


class MemoryBanks(nn.Module):
    """One embedding per training sample and network, [n_data, feat_dim], and the normalisers of their scores.

    v1 is the student's bank, v2 the teacher's. Z is -1 until the first training batch fixes it.
    """

    def __init__(self, n_data: int, feat_dim: int, nce_k: int, nce_t: float, nce_m: float) -> None:
        super().__init__()
        self.n_data, self.nce_t, self.nce_m = n_data, nce_t, nce_m
        # The product costs n_data a row, the gather nce_k; measured on a CPU they cross where n_data / nce_k is between
        # 8 and 14 for feat_dim 128, between 3 and 8 for 32.
        self.gather = n_data > 12 * nce_k
        bound = 1 / math.sqrt(feat_dim / 3)
        for name in ("v1", "v2"):
            self.register_buffer(f"memory_{name}", torch.empty(n_data, feat_dim).uniform_(-bound, bound))
            self.register_buffer(f"Z_{name}", torch.tensor(-1.0))

    def log_scores(self, v: Tensor, bank: Tensor, Z: Tensor, idx: Tensor) -> Tensor:
        """log(exp(bank[idx] . v / nce_t) / Z), [B, K + 1]; the first training call estimates Z, without a sync."""
        dots = (sampled_dots(v, bank, idx) if self.gather else (v @ bank.T).gather(1, idx)) / self.nce_t
        estimate = torch.where(Z < 0, dots.exp().mean() * self.n_data, Z)
        if self.training:
            Z.copy_(estimate)
        return dots - estimate.log()

    def pull(self, weight: Tensor, bank: Tensor, idx: Tensor) -> Tensor:
        """Gradient with respect to v of sum(weight * log_scores), [B, feat_dim]."""
        if self.gather:
            return F.embedding_bag(idx, bank, mode="sum", per_sample_weights=weight) / self.nce_t
        spread = weight.new_zeros(len(weight), len(bank)).scatter_add_(1, idx, weight)
        return spread @ bank / self.nce_t

    @torch.no_grad()
    def update(self, v1: Tensor, v2: Tensor, index: Tensor) -> None:
        """Moves the banks' rows of this batch towards its embeddings, back onto the unit sphere."""
        if self.training:
            for bank, v in ((self.memory_v1, v1), (self.memory_v2, v2)):
                bank.index_copy_(0, index, unit(self.nce_m * bank[index] + (1 - self.nce_m) * v))


class Queue(nn.Module):
    """The last size embeddings of the teacher, [size, feat_dim], in a ring. Starts as random unit vectors."""

    def __init__(self, size: int, feat_dim: int) -> None:
        super().__init__()
        self.register_buffer("queue", unit(torch.randn(size, feat_dim)))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def push(self, z: Tensor) -> None:
        """Overwrites the oldest rows. Any batch size: the ring wraps, and of a batch above size the end stays."""
        if self.training:
            size, z = len(self.queue), z[-len(self.queue) :]
            self.queue.index_copy_(0, (self.queue_ptr + torch.arange(len(z), device=z.device)) % size, z)
            self.queue_ptr.copy_((self.queue_ptr + len(z)) % size)
