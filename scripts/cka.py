"""Linear centred kernel alignment: how alike two networks' features are, whatever their widths.

Similarity of Neural Network Representations Revisited, Kornblith, Norouzi, Lee, Hinton, ICML 2019,
https://arxiv.org/abs/1905.00414, of the flattened maps. 10,000 images' full Gram matrices and features would not fit:
as in Nguyen, Raghu, Kornblith, ICLR 2021, https://arxiv.org/abs/2010.15327, HSIC is averaged over batches, by its
unbiased estimator (Song et al., JMLR 2012, https://jmlr.org/papers/v13/song12a.html), which needs batches drawn at
random, of 4 images or more. Its CKA can be a little below 0 or above 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def gram(features: Tensor) -> Tensor:
    """Of a batch's features [n, ...]: inner products [n, n] in float64, of the centred features for their precision.

    Centring changes nothing else: the unbiased HSIC is the same whatever vector is subtracted from all features.
    """
    x = features.flatten(1).float()
    x = x - x.mean(0)
    return (x @ x.T).double()


def hsic(a: Tensor, b: Tensor) -> Tensor:
    """Unbiased HSIC of Gram matrices [..., n, n], n >= 4: [...]."""
    n = a.shape[-1]
    diagonal = torch.eye(n, dtype=torch.bool, device=a.device)
    a, b = a.masked_fill(diagonal, 0), b.masked_fill(diagonal, 0)
    rows_a, rows_b = a.sum(-1), b.sum(-1)
    total = (a * b).sum((-1, -2)) + rows_a.sum(-1) * rows_b.sum(-1) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (rows_a * rows_b).sum(-1)) / (n * (n - 3))


def cka(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Between each layer of one network and each of the other: [A, B].

    a, b: for each batch the Gram matrices of the layers, [A, n, n] and [B, n, n].
    """
    cross = sum(torch.stack([hsic(layer, two) for layer in one]) for one, two in zip(a, b, strict=True))
    own_a, own_b = (sum(hsic(grams, grams) for grams in batches) for batches in (a, b))
    return cross / (own_a[:, None] * own_b).sqrt()
