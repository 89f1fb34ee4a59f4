r"""Means with 95 % intervals over training seeds and test images, and what they allow to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student


@dataclass(frozen=True)
class Interval:
    """
    A mean with the half width of its 95 % interval, and the two-sided p-value of its being zero
    (NaN where nothing can be said).
    """

    mean: float
    half: float
    p: float = math.nan

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.half:.2f}"

    @property
    def decided(self) -> bool:
        """Whether zero lies outside."""
        return math.isfinite(self.half) and (self.low > 0 or self.high < 0)


def crossed(values) -> Interval:
    r"""
    The mean over seeds and images, both of which are random: another training would give other
    values, and so would other images.

    The variance of the mean is that of the means of the seeds plus that of the means of the images,
    each over its number, which counts the part that belongs to single values twice and is therefore
    on the safe side; degrees of freedom after Satterthwaite. With one seed only the images count.

    :param values: shape `(seeds, images)`, or the difference of two methods on the same images.
    :return: (:class:`Interval`) mean and half width.
    """
    values = np.asarray(values, dtype=float)
    parts = [means for means in (values.mean(1), values.mean(0)) if len(means) > 1]
    variances = [means.var(ddof=1) / len(means) for means in parts]
    total = sum(variances)
    if not parts or not math.isfinite(total):
        return Interval(float(values.mean()), math.nan)
    if total == 0:
        return Interval(float(values.mean()), 0.0, float(values.mean() == 0))
    freedom = total**2 / sum(
        v**2 / (len(means) - 1) for v, means in zip(variances, parts, strict=True)
    )
    mean, error = values.mean(), math.sqrt(total)
    half, p = student.ppf(0.975, freedom) * error, 2 * student.sf(abs(mean) / error, freedom)
    return Interval(float(mean), float(half), float(p))


def paired(a, b) -> Interval:
    """Of the differences of two methods on the same images, seed by seed; both as in `crossed`."""
    return crossed(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))


def holm(intervals: Sequence[Interval], level: float = 0.05) -> list[bool]:
    """
    Which of several means differ from zero, if none of all may be said to in error (Holm, 1979).

    The smallest p-value is held against the level over the number of means, the next one against
    the level over that number less one, and so on up to the first that fails.
    """
    order = sorted(
        range(len(intervals)), key=lambda i: (math.isnan(intervals[i].p), intervals[i].p)
    )
    decided = [False] * len(intervals)
    for rank, i in enumerate(order):
        if not intervals[i].p <= level / (len(intervals) - rank):
            break
        decided[i] = True
    return decided


def log_ratio(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Of the logarithm of a ratio of two methods, one number for each seed."""
    return crossed([[math.log(u / v)] for u, v in zip(a, b, strict=True)])


def ratio(logarithm: Interval) -> str:
    """A ratio with its interval, from those of its logarithm."""
    low, mid, high = (math.exp(v) for v in (logarithm.low, logarithm.mean, logarithm.high))
    return f"{mid:.2f} [{low:.2f}, {high:.2f}]"
