"""What contrastive methods remember: memory banks of the whole training set, or a queue of the last embeddings."""

import math
import warnings
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo.adapters import unit
from distiller_zoo.base import Range

Momentum = Annotated[float, Range(float, 0, 1, "[)")]  # with 1 the banks would never change

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


def with_gradient(value: Tensor, v: Tensor, grad: Tensor) -> Tensor:
    """Values [B] with the given gradient [B, D] to v [B, D].

    Autograd would keep the bank for its backward pass, but the step overwrites the bank first.

    Example:
        scores = v.detach() @ queue.T
        loss = with_gradient(scores.logsumexp(1), v, scores.softmax(1) @ queue).mean()
    """
    return value + ((v - v.detach()) * grad).sum(1)


def sampled_dots(v: Tensor, bank: Tensor, idx: Tensor) -> Tensor:
    """Inner products of each row of v [B, D] with its own rows idx [B, K] of bank [N, D]: [B, K].

    On a CPU, without copying these rows [B, K, D], which would take three times as long.
    """
    if v.is_cuda:
        return torch.bmm(bank[idx], v.unsqueeze(2)).squeeze(2)
    ends = torch.arange(0, idx.numel() + 1, idx.shape[1])
    shape, zeros = (len(v), len(bank)), v.new_zeros(idx.numel())
    pattern = torch.sparse_csr_tensor(ends, idx.flatten(), zeros, shape, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, v, bank.T).values().view_as(idx)


class MemoryBanks(nn.Module):
    """An embedding of every training sample for each network, [n_data, feat_dim], and the normalisers Z of their
    scores.

    `memory_v1` is the student's bank, `memory_v2` the teacher's. Z is -1 until the first training batch estimates it.

    Args:
        n_data: number of training samples.
        feat_dim: width of the embeddings.
        nce_k: negatives of a sample.
        nce_t: temperature of the scores.
        nce_m: share of the old embedding in an update.
    """

    def __init__(self, n_data: int, feat_dim: int, nce_k: int, nce_t: float, nce_m: float) -> None:
        super().__init__()
        self.n_data, self.nce_t, self.nce_m = n_data, nce_t, nce_m
        # A product with the whole bank costs n_data a row, a gather nce_k. On a CPU they break even at n_data / nce_k
        # between 8 and 14 for feat_dim 128, between 3 and 8 for 32 (measured).
        self.gather = n_data > 12 * nce_k
        bound = 1 / math.sqrt(feat_dim / 3)
        for name in ("v1", "v2"):
            self.register_buffer(f"memory_{name}", torch.empty(n_data, feat_dim).uniform_(-bound, bound))
            self.register_buffer(f"Z_{name}", torch.tensor(-1.0))

    def log_scores(self, v: Tensor, bank: Tensor, Z: Tensor, idx: Tensor) -> Tensor:
        """log(exp(bank[idx] . v / nce_t) / Z), [B, K + 1].

        The first training call estimates Z, without a host-device sync.

        Args:
            v: embeddings, [B, feat_dim].
            bank, Z: a bank and its normaliser.
            idx: rows of the bank, [B, K + 1].
        """
        dots = (sampled_dots(v, bank, idx) if self.gather else (v @ bank.T).gather(1, idx)) / self.nce_t
        estimate = torch.where(Z < 0, dots.exp().mean() * self.n_data, Z)
        if self.training:
            Z.copy_(estimate)
        return dots - estimate.log()

    def pull(self, weight: Tensor, bank: Tensor, idx: Tensor) -> Tensor:
        """Gradient of sum(weight * log_scores) with respect to v, [B, feat_dim]."""
        if self.gather:
            return F.embedding_bag(idx, bank, mode="sum", per_sample_weights=weight) / self.nce_t
        spread = weight.new_zeros(len(weight), len(bank)).scatter_add_(1, idx, weight)
        return spread @ bank / self.nce_t

    @torch.no_grad()
    def update(self, v1: Tensor, v2: Tensor, index: Tensor) -> None:
        """Moves this batch's rows of the banks towards its embeddings, and normalises them. Only in train mode.

        Args:
            v1, v2: embeddings of student and teacher, [B, feat_dim].
            index: the samples' rows, [B].
        """
        if self.training:
            for bank, v in ((self.memory_v1, v1), (self.memory_v2, v2)):
                bank.index_copy_(0, index, unit(self.nce_m * bank[index] + (1 - self.nce_m) * v))


class Queue(nn.Module):
    """The teacher's last `size` embeddings in a ring buffer, [size, feat_dim]. Starts with random unit vectors."""

    def __init__(self, size: int, feat_dim: int) -> None:
        super().__init__()
        self.register_buffer("queue", unit(torch.randn(size, feat_dim)))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def push(self, z: Tensor) -> None:
        """Overwrites the oldest rows with z [B, feat_dim].

        Of a batch larger than the queue, the last rows stay. Only in train mode.
        """
        if self.training:
            size = len(self.queue)
            z = z[-size:]
            self.queue.index_copy_(0, (self.queue_ptr + torch.arange(len(z), device=z.device)) % size, z)
            self.queue_ptr.copy_((self.queue_ptr + len(z)) % size)
