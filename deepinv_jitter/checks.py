r"""Checks of arguments, whose messages all say the rule, what came and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import torch

N = TypeVar("N", int, float)


def whole(name: str, value: int, low: float = -math.inf, high: float = math.inf) -> int:
    """A whole number within bounds, as :class:`int`; ``True`` and ``False`` are none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    return _within(name, int(value), low, high)


def real(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within bounds, as :class:`float`; ``True`` and ``False`` are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    try:
        number = float(value)
    except OverflowError:  # a whole number that no float can hold
        number = math.inf
    return _within(name, number, low, high)


def positive(name: str, value: float, below: float = math.inf) -> float:
    """A finite number above zero, and below a bound if there is one."""
    result = real(name, value)
    if not 0 < result < below:
        bound = f" and below {below:g}" if below < math.inf else ""
        raise ValueError(f"{name} must be positive{bound}, got {value}.")
    return result


def choice(name: str, value: object, options: Sequence) -> None:
    """One of several options."""
    if value not in options:
        raise ValueError(f"{name} must be one of {options}, got {value!r}.")


def instance(name: str, value: object, kind: type, label: str) -> None:
    """An object of a type, which messages call by the label."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {label}, got {type(value).__name__}.")


def alike(names: str, kind: str, values: list) -> None:
    """Things that have a property in common, given that of each."""
    if len(set(values)) > 1:
        raise ValueError(f"{names} must have one {kind}, got {' and '.join(map(str, values))}.")


def per_iteration(name: str, count: int, max_iter: int) -> None:
    """One thing for all iterations, or one for each."""
    if count not in (1, max_iter):
        raise ValueError(
            f"{name} must be one or one per iteration, got {count} for max_iter={max_iter}."
        )


def seed(name: str, value: int) -> int:
    """A seed that torch's generators accept."""
    return whole(name, value, 0, 2**63 - 1)


def sizes(
    name: str, values: Iterable[int], count: int | None = None, low: int = 1
) -> tuple[int, ...]:
    """The sizes of an array, or a place in it from 0; ``count`` numbers if that is given."""
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise TypeError(f"{name} must be made of whole numbers, got {values!r}.")
    numbers = tuple(whole(name, n, low) for n in values)
    if count is not None and len(numbers) != count:
        raise ValueError(f"{name} must hold {count} whole numbers, got {numbers}.")
    return numbers


def reals(name: str, values: object) -> torch.Tensor:
    """Real numbers, in double precision where the device has it. NaN and infinity pass."""
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


def constant(name: str, value: object, learn: str) -> None:
    """Numbers that stay what they are; the last words of the message say how to learn one."""
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise TypeError(
            f"{name} must be made of constants, got a tensor that requires grad, which would never "
            f"be learned: give {name}.detach(), or {learn}."
        )


def plain(value: Any) -> Any:
    """Arrays of numpy and tensors as Python's numbers and lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def widest(device: torch.device) -> torch.dtype:
    """
    The most precise real type of a device: GPUs of Apple and some of Intel have no double
    precision.
    """
    try:
        return torch.empty(0, dtype=torch.float64, device=device).dtype
    except (TypeError, RuntimeError):
        return torch.float32


def widest_draw(device: torch.device) -> int:
    """Below what a device draws whole numbers: GPUs of Apple draw those of 32 bits, with a sign."""
    return 2**31 - 1 if device.type == "mps" else 2**62


def tensor(name: str, value: torch.Tensor, real: bool = False) -> None:
    """A batch, shape `(B, ...)`, whose values are not read: the check costs next to nothing."""
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
    """
    Tensors that belong together, such as truths and their measurements. Their values are read, so
    call it once per batch.
    """
    for name, value in tensors.items():
        tensor(name, value)
    names = " and ".join(tensors)
    alike(names, "batch size", [len(value) for value in tensors.values()])
    alike(names, "device", [value.device for value in tensors.values()])
    finite(**tensors)


def finite(**tensors: torch.Tensor) -> None:
    """
    Tensors on one device, without NaN and infinity. A GPU is waited for once, for the work queued
    before.
    """
    try:
        good = torch.stack([value.isfinite().all() for value in tensors.values()]).tolist()
    except NotImplementedError as error:
        if not any(value.is_meta for value in tensors.values()):
            raise
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
