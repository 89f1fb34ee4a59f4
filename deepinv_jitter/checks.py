r"""What an argument must be, said in one way everywhere: the rule, what came."""

from __future__ import annotations

import math
from numbers import Integral, Real


def number(
    name: str,
    value: float,
    kind: type[Real] = Real,
    low: float = -math.inf,
    high: float = math.inf,
) -> int | float:
    r"""
    A finite number within bounds.

    :param str name: what the error message calls it.
    :param float value: the number.
    :param type kind: :class:`numbers.Real`, or :class:`numbers.Integral` for whole numbers.
    :param float low: least value. Default: none.
    :param float high: largest value. Default: none.
    :return: ``value`` as :class:`int` or :class:`float`.
    :raises TypeError: if it is not a number of its kind; ``True`` and ``False`` are none.
    :raises ValueError: if it is not finite or out of bounds.

    |sep|

    :Examples:

    >>> from deepinv_jitter import checks
    >>> checks.number("seed", 3, checks.Integral, 0)
    3
    """
    if isinstance(value, bool) or not isinstance(value, kind):
        noun = "a whole number" if kind is Integral else "a number"
        raise TypeError(f"{name} must be {noun}, got {value!r}.")
    if not (math.isfinite(value) and low <= value <= high):
        bounds = "" if low == -math.inf else f" and at least {low}"
        if high < math.inf:
            bounds = f" and lie from {low} to {high}"
        raise ValueError(f"{name} must be finite{bounds}, got {value}.")
    return int(value) if kind is Integral else float(value)
