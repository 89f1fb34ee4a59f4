r"""The entries of the measurements, or of the image, that a perturbation may touch."""

from __future__ import annotations

from typing import TypeAlias

import torch
from deepinv.utils import TensorList

from .parts import Layout, Measurements, named_parts

Support: TypeAlias = str | Measurements | None


def check_support(support: Support) -> None:
    """What a budget may be given as its support."""
    if isinstance(support, (torch.Tensor, TensorList)):
        parts = named_parts("support", support)
        for name, part in parts.items():
            if not part.isfinite().all():
                raise ValueError(f"{name} must be finite, got NaN or infinity.")
        if not any(part.any() for part in parts.values()):
            raise ValueError(
                "support must not be zero everywhere, where nothing may be perturbed, got zeros of "
                f"shape {_shapes(parts)}."
            )
    elif support is not None and not (isinstance(support, str) and support == "auto"):
        raise ValueError(
            f"support must be 'auto', a tensor, a TensorList or None, got {support!r}."
        )


def broadcast(support: Measurements, like: Measurements) -> torch.Tensor:
    """A given support as that of a perturbation, in one tensor."""
    given, parts = named_parts("", support), named_parts("", like)
    try:
        expanded = [
            (entries.to(part.device) != 0).expand_as(part)
            for entries, part in zip(given.values(), parts.values(), strict=True)
        ]
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"support must broadcast to the perturbation, of shape {_shapes(parts)}, got "
            f"{_shapes(given)}."
        ) from error
    if not isinstance(like, TensorList):
        return expanded[0]
    return Layout(like).pack(TensorList(expanded))


def _shapes(parts: dict[str, torch.Tensor]) -> str:
    return " and ".join(str(tuple(part.shape)) for part in parts.values())
