"""Cross entropy and KL distillation: Fantastic Gains and Where to Find Them. Roth et al., ICLR 2024.
https://arxiv.org/abs/2310.17653

The cross entropy is the loop's (`-r`). Differs: softmax is applied once, as in the paper; the authors' code applies it
twice.
"""

from .kl import KL


class XEKL(KL, name="xekl"):
    """`kl` and the cross entropy in equal shares."""

    weights = (0.5, 0.0, 0.5)
