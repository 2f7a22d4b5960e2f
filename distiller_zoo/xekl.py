"""Cross entropy and KL distillation: Fantastic Gains and Where to Find Them. Roth et al., ICLR 2024.
https://arxiv.org/abs/2310.17653

The cross entropy is the loop's (`-r`). Differs from the authors' code, which applies softmax twice, as the paper does.
"""

from .kl import KL


class XEKL(KL, name="xekl"):
    """`kl` in equal shares with the labels."""

    weights = (0.5, 0.0, 0.5)
