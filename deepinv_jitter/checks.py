r"""Checks of arguments, whose messages all say the same: the rule, what came, what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import TypeVar

import torch

N = TypeVar("N", int, float)


def whole(name: str, value: int, low: float = -math.inf, high: float = math.inf) -> int:
    r"""
    A whole number within bounds.

    :param str name: what the error message calls it.
    :param int value: the number.
    :param float low: least value. Default: none.
    :param float high: largest value. Default: none.
    :return: ``value`` as :class:`int`.
    :raises TypeError: if it is not a whole number; ``True`` and ``False`` are refused, too.
    :raises ValueError: if it is out of bounds.

    |sep|

    :Examples:

    >>> from deepinv_jitter import checks
    >>> checks.whole("seed", 3, 0)
    3
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    return _within(name, int(value), low, high)


def real(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> float:
    r"""
    A finite number within bounds.

    :param str name: what the error message calls it.
    :param float value: the number.
    :param float low: least value. Default: none.
    :param float high: largest value. Default: none.
    :return: ``value`` as :class:`float`.
    :raises TypeError: if it is not a number; ``True`` and ``False`` are refused, too.
    :raises ValueError: if it is not finite or out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    try:
        number = float(value)
    except OverflowError:  # a whole number that no float can hold
        number = math.inf
    return _within(name, number, low, high)


def positive(name: str, value: float, below: float = math.inf) -> float:
    r"""
    A finite number above zero.

    :param str name: what the error message calls it.
    :param float value: the number.
    :param float below: a bound that it must not reach. Default: none.
    :return: ``value`` as :class:`float`.
    :raises TypeError: if it is not a number.
    :raises ValueError: if it is not finite, not positive or not below the bound.
    """
    result = real(name, value)
    if not 0 < result < below:
        bound = f" and below {below:g}" if below < math.inf else ""
        raise ValueError(f"{name} must be positive{bound}, got {value}.")
    return result


def choice(name: str, value: object, options: Sequence) -> None:
    r"""
    One of several options.

    :param str name: what the error message calls it.
    :param object value: the option.
    :param Sequence options: all there are.
    :raises ValueError: if it is none of them.
    """
    if value not in options:
        raise ValueError(f"{name} must be one of {options}, got {value!r}.")


def instance(name: str, value: object, kind: type, label: str) -> None:
    r"""
    An object of some type.

    :param str name: what the error message calls it.
    :param object value: the object.
    :param type kind: its type.
    :param str label: what the error message calls the type.
    :raises TypeError: if it is of another type.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {label}, got {type(value).__name__}.")


def alike(names: str, kind: str, values: list) -> None:
    r"""
    Things that have a property in common.

    :param str names: what the error message calls them.
    :param str kind: what it calls the property, such as the batch size.
    :param list values: that of each.
    :raises ValueError: if they differ.
    """
    if len(set(values)) > 1:
        raise ValueError(f"{names} must have one {kind}, got {' and '.join(map(str, values))}.")


def per_iteration(name: str, count: int, max_iter: int) -> None:
    r"""
    One thing for all iterations, or one for each.

    :param str name: what the error message calls it.
    :param int count: how many there are.
    :param int max_iter: number of iterations.
    :raises ValueError: if there is another number of them.
    """
    if count not in (1, max_iter):
        raise ValueError(
            f"{name} must be one or one per iteration, got {count} for max_iter={max_iter}."
        )


def seed(name: str, value: int) -> int:
    r"""
    A seed that torch's generators accept.

    :param str name: what the error message calls it.
    :param int value: the seed.
    :return: ``value`` as :class:`int`.
    :raises TypeError: if it is not a whole number.
    :raises ValueError: if it is negative or needs more than 63 bits.
    """
    return whole(name, value, 0, 2**63 - 1)


def sizes(name: str, values: Iterable[int], count: int | None = None) -> tuple[int, ...]:
    r"""
    The sizes of an array.

    :param str name: what the error message calls them.
    :param Iterable[int] values: whole numbers, at least 1.
    :param int, None count: how many there must be. Default: ``None``, any number.
    :return: ``values`` as a tuple of :class:`int`.
    :raises TypeError: if they are not whole numbers.
    :raises ValueError: if one is below 1, or their number is not ``count``.
    """
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise TypeError(f"{name} must be made of whole numbers, got {values!r}.")
    numbers = tuple(whole(name, n, 1) for n in values)
    if count is not None and len(numbers) != count:
        raise ValueError(f"{name} must hold {count} whole numbers, got {numbers}.")
    return numbers


def reals(name: str, values: object) -> torch.Tensor:
    r"""
    Real numbers, in double precision where the device has it.

    :param str name: what the error message calls them.
    :param object values: a number, or an array or sequence of such.
    :return: (:class:`torch.Tensor`) of the same shape. NaN and infinity pass.
    :raises TypeError: if they are not real numbers.
    """
    try:
        # as_tensor moves tensors to torch's default device
        given = values if isinstance(values, torch.Tensor) else torch.as_tensor(values)
        if given.dtype == torch.bool or given.is_complex():
            raise TypeError(given.dtype)
        kind = widest(given.device)
        return torch.as_tensor(values, dtype=kind, device=given.device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"{name} must be a real number or an array of such, got {values!r}."
        ) from error


def widest(device: torch.device) -> torch.dtype:
    r"""
    The most precise real type of a device: GPUs of Apple and some of Intel have no double
    precision.

    :param torch.device device: the device.
    :return: (:class:`torch.dtype`) ``torch.float64``, or ``torch.float32``.
    """
    try:
        return torch.empty(0, dtype=torch.float64, device=device).dtype
    except (TypeError, RuntimeError):
        return torch.float32


def tensor(name: str, value: torch.Tensor, real: bool = False) -> None:
    r"""
    A batch of real or complex numbers. Its values are not read: the check costs next to nothing.

    :param str name: what the error messages call it.
    :param torch.Tensor value: the tensor, shape `(B, ...)`.
    :param bool real: whether complex numbers are refused. Default: ``False``.
    :raises TypeError: if it is not a tensor of such numbers.
    :raises ValueError: if it is empty or has fewer than two dimensions.
    """
    instance(name, value, torch.Tensor, "torch.Tensor")
    if not (value.is_floating_point() or (value.is_complex() and not real)):
        kind = "real" if real else "real or complex"
        advice = (
            "give complex images as 2 channels"
            if value.is_complex()
            else "convert it, for example by float()"
        )
        raise TypeError(f"{name} must be a tensor of {kind} numbers, got {value.dtype}: {advice}.")
    if value.ndim < 2 or value.numel() == 0:
        raise ValueError(
            f"{name} must be a batch of shape (B, ...) and not empty, got {tuple(value.shape)}."
        )


def batch(**tensors: torch.Tensor) -> None:
    r"""
    Tensors that belong together, such as truths and their measurements. Their values are read, so
    call it once per batch.

    :param torch.Tensor tensors: by name, each of shape `(B, ...)`.
    :raises TypeError: if one is not a tensor of real or complex numbers.
    :raises ValueError: if one is empty, has fewer than two dimensions or is not finite, or if they
        differ in batch size or device.
    """
    for name, value in tensors.items():
        tensor(name, value)
    names = " and ".join(tensors)
    alike(names, "batch size", [len(value) for value in tensors.values()])
    alike(names, "device", [value.device for value in tensors.values()])
    finite(**tensors)


def finite(**tensors: torch.Tensor) -> None:
    r"""
    Tensors without NaN and infinity. A GPU is waited for once, for the work queued before.

    :param torch.Tensor tensors: by name, each of shape `(B, ...)`, all on one device.
    :raises ValueError: if a value is not finite, or the tensors are on the meta device.
    """
    try:
        good = torch.stack([value.isfinite().all() for value in tensors.values()]).tolist()
    except NotImplementedError as error:
        raise ValueError(
            f"{' and '.join(tensors)} must hold values, got tensors on the meta device."
        ) from error
    for name, value in tensors.items():
        if not good.pop(0):
            bad = (~value.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(
                f"{name} must be finite, got NaN or infinity in {len(bad)} of {len(value)} "
                f"samples, first in sample {bad[0]}."
            )


def _within(name: str, value: N, low: float, high: float) -> N:
    if not (-math.inf < value < math.inf and low <= value <= high):
        bounds = "" if low == -math.inf else f" and at least {low}"
        if high < math.inf:
            bounds = f" and lie from {low} to {high}"
        raise ValueError(f"{name} must be finite{bounds}, got {value}.")
    return value
