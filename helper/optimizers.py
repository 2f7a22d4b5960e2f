"""`--opt`: what turns gradients into steps, by the names that timm gives them."""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from .util import UserError

Groups = list[dict[str, Any]]
RATE = 1e-3  # of those that scale each parameter's step themselves, where --learning_rate is left out
NEEDS_PACKAGE = {"lamb"}
NOT_CAPTURABLE = {"lamb"}  # their steps read numbers on the host


def sgd(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    how = {"momentum": opt.momentum, "weight_decay": opt.weight_decay, "nesterov": opt.nesterov}
    optimizer = torch.optim.SGD(groups, opt.learning_rate, **how, fused=True)
    for group in optimizer.param_groups if opt.momentum else ():
        # the fused step would begin with stale memory, and leave it so where fp16 overflows
        for p in group["params"]:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def adamw(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    """Decoupled Weight Decay Regularization. Loshchilov, Hutter, ICLR 2019. https://arxiv.org/abs/1711.05101"""
    on_gpu = any(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, opt.learning_rate, weight_decay=opt.weight_decay, fused=True, capturable=on_gpu)


def lamb(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    """Large Batch Optimization for Deep Learning. You et al., ICLR 2020. https://arxiv.org/abs/1904.00962

    timm's, which clips gradients to a norm of 1 itself.
    """
    return package().Lamb(groups, opt.learning_rate, weight_decay=opt.weight_decay)


def package() -> Any:
    """timm's optimisers. Raises UserError where timm is not there."""
    try:
        from timm import optim  # here, because it is optional, and slow to import
    except ImportError:
        raise UserError("--opt lamb needs the package timm (pip install timm)") from None
    return optim


OPTIMIZERS: dict[str, Callable[[Groups, argparse.Namespace], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
    "lamb": lamb,
}
