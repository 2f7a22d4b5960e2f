"""Differences between methods: their interval, Welch's t-test, and Holm's correction for many of them.

Welch, 1947. https://doi.org/10.1093/biomet/34.1-2.28
Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979. https://www.jstor.org/stable/4615733
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
ROUNDING = 1e-9  # of percentages


class Difference(NamedTuple):
    """How much larger the mean of one sample is than that of another."""

    mean: float
    low: float | None = None  # ends of the 95 % interval; None where a sample has one value
    high: float | None = None
    p: float | None = None  # that the means are equal, two-sided; None likewise


def difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Of two samples whose variances may differ. Two samples without any variance have an interval of length 0."""
    mean = sum(values) / len(values) - sum(reference) / len(reference)
    if min(len(values), len(reference)) < 2:
        return Difference(mean)
    if all(max(sample) - min(sample) < ROUNDING for sample in (values, reference)):
        return Difference(mean, mean, mean, float(abs(mean) < ROUNDING))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a sample of equal values, which has no variance
        test = stats.ttest_ind(values, reference, equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    return Difference(mean, float(low), float(high), float(test.pvalue))


def holm(p: Sequence[float]) -> list[float]:
    """The corrected probabilities. Calling those below 0.05 differences errs anywhere in 5 % of such tables at most."""
    order = sorted(range(len(p)), key=p.__getitem__)
    found, largest = [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - place) * p[i]))
        found[i] = largest
    return found
