r"""Statistics of paired samples: bootstrap intervals and verdicts."""

from __future__ import annotations

import math

import torch
from scipy.special import ndtr, stdtrit

RESAMPLES = 2000

#: With fewer samples a difference of the same sign in all of them is likelier than 5 % by chance.
FEWEST = 6


def bootstrap_interval(values: torch.Tensor) -> tuple[float, float]:
    """
    The 95 % interval of a mean: expanded percentiles of the means of resamples; NaN if there is one
    value only, or one that is not finite.
    """
    count = len(values)
    if count < 2 or not values.isfinite().all():
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(count, (RESAMPLES, count), generator=generator, device="cpu")
    means = values.double()[picks].mean(1)
    # The share of resamples beyond each end, smaller for few samples
    tail = float(ndtr(-stdtrit(count - 1, 0.975) * math.sqrt(count / (count - 1))))
    low, high = means.quantile(means.new_tensor([tail, 1 - tail]))
    return low.item(), high.item()


def badness(values: torch.Tensor, best: float) -> torch.Tensor:
    """The larger the worse."""
    if math.isfinite(best):
        return (values - best).abs()
    return -values if best > 0 else values


def paired(a: torch.Tensor, b: torch.Tensor, best: float) -> dict[str, str | float]:
    """The difference of two models on the same samples, and what it allows to say."""
    worse_by = badness(a, best) - badness(b, best)
    low, high = bootstrap_interval(worse_by)
    verdict = "undecided"
    if len(a) >= FEWEST:
        verdict = "better" if high < 0 else "worse" if low > 0 else verdict
    if best == math.inf:
        worse_by, low, high = -worse_by, 0.0 - high, 0.0 - low
    return {"difference": worse_by.mean().item(), "low": low, "high": high, "verdict": verdict}


def better(best: float) -> str:
    if math.isfinite(best):
        return f"closer to {best:g}"
    return "higher" if best > 0 else "lower"
