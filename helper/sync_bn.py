"""BatchNorm over the whole batch of all processes (--sync_bn)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .parallel import all_reduce, is_distributed


def sync_batch_norms(*networks: nn.Module) -> None:
    """Makes every BatchNorm of the networks compute its statistics over the whole batch of all processes."""
    for network in networks if is_distributed() else ():
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                # in place, because others may hold the module too
                module.__class__ = SyncBatchNorm if next(module.buffers()).is_cuda else SyncBatchNormOnCPU
                module.process_group = None


def with_activation(module: nn.Module, x: Tensor) -> Tensor:
    """Applies the activation that timm's BatchNorms may have."""
    for name in ("drop", "act"):
        x = getattr(module, name, nn.Identity())(x)
    return x


class SyncBatchNorm(nn.SyncBatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        return with_activation(self, super().forward(x))


class AllReduce(torch.autograd.Function):
    """`all_reduce` with a gradient, for sums that each process uses in its own loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_reduce(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_reduce(grad.clone())


class SyncBatchNormOnCPU(_BatchNorm):
    """SyncBatchNorm for CPUs; torch's runs on GPUs only."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return with_activation(self, self.normalise(x) if self.training else super().forward(x))

    def normalise(self, x: Tensor) -> Tensor:
        axes, shape = [d for d in range(x.dim()) if d != 1], [1, -1, *[1] * (x.dim() - 2)]
        wide = x.to(self.running_mean.dtype)
        n = all_reduce(wide.new_tensor([x.numel() / x.shape[1]]))
        mean = AllReduce.apply(wide.sum(axes)) / n
        wide = wide - mean.view(shape)
        var = AllReduce.apply(wide.square().sum(axes)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * n / (n - 1).clamp_min(1), momentum)
        scale = (var + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
        wide = wide * scale.view(shape) + (0 if self.bias is None else self.bias.view(shape))
        return wide.to(x.dtype)
