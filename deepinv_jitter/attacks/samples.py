r"""What each sample of a batch has of its own: a radius, a scale, a draw."""

from __future__ import annotations

import torch

from .. import checks


def per_sample(
    name: str, value: float | torch.Tensor, y: torch.Tensor, unit: float | torch.Tensor = 1.0
) -> torch.Tensor:
    """A checked radius as one number per sample of y, in single precision at least."""
    value = check_radius(name, value, look=False)
    dtype, largest = precision(y), torch.finfo(y.dtype).max
    if isinstance(value, torch.Tensor):
        if value.ndim and value.shape not in ((1,), (len(y),)):
            raise ValueError(
                f"{name} must be a number or one number per sample, shape ({len(y)},), got shape "
                f"{tuple(value.shape)}."
            )
        value = value.to(y.device, dtype)
    radius = value * unit
    radii = torch.zeros(len(y), dtype=dtype, device=y.device) + radius
    # It must not overflow in the type of the perturbation. For a look at its values a GPU waits: at
    # a tensor once, at a plain number not at all
    tensor = isinstance(radius, torch.Tensor)
    fits = ((radii >= 0) & (radii <= largest)).all() if tensor else radius <= largest
    if not fits:
        check_radius(name, value)
        raise ValueError(
            f"{name} must be finite in the precision of y, {y.dtype}, got {radii.tolist()}."
        )
    return radii


def column(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One number per sample, shaped to multiply a tensor of shape `(B, ...)`."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def check_radius(name: str, value: float | torch.Tensor, look: bool = True) -> float | torch.Tensor:
    """The checked radius; the values of a tensor are looked at, or its type and shape alone."""
    if not isinstance(value, torch.Tensor):
        return checks.real(name, value, 0)
    if value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"{name} must be a real number or a tensor of such, got {value!r}.")
    if value.ndim > 1:
        raise ValueError(
            f"{name} must be a number or one number per sample, got shape {tuple(value.shape)}."
        )
    if look and not (value.isfinite() & (value >= 0)).all():
        raise ValueError(f"{name} must be finite and at least 0, got {value}.")
    return value


def check_pair(name: str, like: torch.Tensor, eps: torch.Tensor) -> None:
    """The shapes alone: the values would be looked at once per step of an attack."""
    checks.tensor(name, like)
    if not isinstance(eps, torch.Tensor) or eps.shape not in ((1,), (len(like),)):
        got = tuple(eps.shape) if isinstance(eps, torch.Tensor) else repr(eps)
        raise ValueError(
            f"eps must be a tensor with one radius per sample, shape ({len(like)},), got {got}."
        )
    if eps.device != like.device:
        raise ValueError(
            f"eps must be on the device of the perturbation, {like.device}, got {eps.device}."
        )


def precision(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype.to_real(), torch.float32)


def scaled(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest modulus of each sample, shape `(B,)`, and the samples divided by it, flat.

    So norms neither overflow nor vanish, however large or small the gradient is.
    """
    flat = tensor.flatten(1)
    peak = flat.abs().amax(1).to(precision(tensor))
    return peak, flat / peak.clamp_min(torch.finfo(peak.dtype).tiny)[:, None]


def inside(eps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A radius whose rounding, in the type of the perturbation, stays within eps."""
    return eps * (1 - 2 * torch.finfo(like.dtype).eps)


def same_normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers, the same for every sample, device and precision."""
    dtype = torch.complex64 if like.is_complex() else torch.float32
    draw = torch.randn(like.shape[1:], generator=generator, dtype=dtype, device=generator.device)
    return draw.to(like).expand_as(like)


def where(chosen: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Samples of ``a`` where chosen, else of ``b``."""
    return torch.where(column(chosen, a), a, b)
