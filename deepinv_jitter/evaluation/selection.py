r"""How to choose a noise level."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .. import checks
from .statistics import bootstrap_interval


def choose_sigma(
    accuracy: Mapping[float, torch.Tensor],
    robustness: Mapping[float, torch.Tensor],
    *,
    tolerance: float = 0.0,
    reference: torch.Tensor | None = None,
    higher_is_better: bool = True,
) -> float:
    r"""
    The noise level that makes a model most robust at no cost in accuracy (section 8.2).

    The paper reads the level off a curve, its Fig. 6. Here the levels that are *accurate enough*
    are those whose mean accuracy is below the reference's by at most ``tolerance``, or not worse
    than it beyond doubt, by the 95 % paired bootstrap interval of
    :meth:`RobustnessReport.compare`; among them the one with the best mean robustness is returned,
    and of equals the smallest. The reference is the smallest level: let that be ``0.0``, training
    without noise, which is then what comes out if no level does better.

    Measure both on validation data: on the test data, the choice would flatter its own result.

    :param Mapping[float, torch.Tensor] accuracy: level to the metric of each clean sample, such as
        ``report.values["clean"]["PSNR"]``, shape `(N,)`, the same samples for all.
    :param Mapping[float, torch.Tensor] robustness: the same under attack.
    :param float tolerance: loss of mean accuracy that is accepted, in the unit of the metric, not
        negative. Default: 0.
    :param torch.Tensor, None reference: accuracy to be kept, shape `(N,)`. Default: ``None``, that
        of the smallest level.
    :param bool higher_is_better: whether the metric grows with quality, as PSNR does and the
        squared error does not. Default: ``True``.
    :return: (:class:`float`) the level :math:`\sigma`.
    :raises TypeError: if an argument is no mapping, or a level, a value or ``tolerance`` no number.
    :raises ValueError: if there are no levels, those of the two mappings differ, values are not of
        one shape `(N,)`, none or not finite, a number is negative, or no level is accurate enough
        for the reference.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> clean = {0.0: torch.tensor([30.0, 31.0]), 0.1: torch.tensor([30.1, 30.9]),
    ...     1.0: torch.tensor([25.0, 26.0])}
    >>> attacked = {0.0: torch.tensor([20.0, 21.0]), 0.1: torch.tensor([24.0, 25.0]),
    ...     1.0: torch.tensor([24.5, 25.5])}
    >>> dj.choose_sigma(clean, attacked)
    0.1
    >>> dj.choose_sigma(clean, attacked, tolerance=6.0)
    1.0
    """
    for name, mapping in {"accuracy": accuracy, "robustness": robustness}.items():
        checks.instance(name, mapping, Mapping, "mapping of levels to values")
    if not accuracy or set(accuracy) != set(robustness):
        raise ValueError(
            "accuracy and robustness must hold the same levels, at least one, got "
            f"{sorted(accuracy, key=str)} and {sorted(robustness, key=str)}."
        )
    tolerance = checks.real("tolerance", tolerance, 0)
    levels = sorted(checks.real("a level", level, 0) for level in accuracy)
    sign = 1 if higher_is_better else -1
    clean, attacked = (
        {level: sign * _checked(values[level]) for level in levels}
        for values in (accuracy, robustness)
    )
    kept = clean[levels[0]] if reference is None else sign * _checked(reference)
    shapes = {tuple(v.shape) for v in [kept, *clean.values(), *attacked.values()]}
    if len(shapes) > 1:
        raise ValueError(
            f"all levels must be judged on the same samples, got shapes {sorted(shapes)}."
        )

    def accurate_enough(level: float) -> bool:
        loss = kept - clean[level]
        # The interval of a single sample is NaN, which leaves no doubt
        return bool(loss.mean() <= tolerance) or bootstrap_interval(loss)[0] <= 0

    candidates = [level for level in levels if accurate_enough(level)]
    if not candidates:
        raise ValueError(
            f"tolerance must leave a level, {tolerance:g} leaves none of {levels}: accept a larger "
            "loss, or try smaller levels."
        )
    return max(candidates, key=lambda level: attacked[level].mean())


def _checked(values: torch.Tensor) -> torch.Tensor:
    values = checks.reals("the values of a level", values)
    if values.ndim != 1 or not len(values) or not values.isfinite().all():
        raise ValueError(
            "the values of a level must be finite and of shape (N,), one per sample, got shape "
            f"{tuple(values.shape)}."
        )
    return values
