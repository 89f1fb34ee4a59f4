r"""The parts of stacked physics and of their measurements, side by side in one tensor."""

from __future__ import annotations

from typing import TypeAlias

import torch
from deepinv.utils import TensorList

from .. import checks

Measurements: TypeAlias = torch.Tensor | TensorList


class Layout:
    r"""
    How measurements lie in one tensor: a tensor as it is, the parts of a
    :class:`deepinv.utils.TensorList` flat and side by side, shape `(B, N)`.

    Where only some of the parts are complex, those lie as pairs of real numbers. Refused is what
    holds no such numbers, and parts that differ in batch size, device or precision.
    """

    def __init__(self, y: Measurements):
        parts = named_parts("y", y)
        for name, part in parts.items():
            checks.tensor(name, part)
        self.in_parts = isinstance(y, TensorList)
        if self.in_parts:
            names = " and ".join(parts)
            checks.alike(names, "batch size", [len(part) for part in y])
            checks.alike(names, "device", [part.device for part in y])
            checks.alike(names, "precision", [part.dtype.to_real() for part in y])
            self.shapes = [part.shape[1:] for part in y]
            some, every = (f(p.is_complex() for p in y) for f in (any, all))
            self.in_pairs = [part.is_complex() and some != every for part in y]

    def pack(self, y: Measurements) -> torch.Tensor:
        """Measurements, or what has their shapes, such as a support, as one tensor."""
        if not isinstance(y, TensorList):
            return y
        flat = [
            (_in_pairs(part) if pairs else part).flatten(1)
            for part, pairs in zip(y, self.in_pairs, strict=True)
        ]
        return torch.cat(flat, dim=1)

    def unpack(self, flat: torch.Tensor) -> Measurements:
        """One tensor as measurements."""
        if not self.in_parts:
            return flat
        parts, start = [], 0
        for shape, pairs in zip(self.shapes, self.in_pairs, strict=True):
            end = start + shape.numel() * (2 if pairs else 1)
            part, start = flat[:, start:end], end
            if pairs:
                # Not view_as_complex, which refuses a part that begins at an odd place
                part = torch.complex(part[:, ::2], part[:, 1::2])
            parts.append(part.reshape(len(flat), *shape))
        return TensorList(parts)


def named_parts(name: str, y: Measurements) -> dict[str, torch.Tensor]:
    """The parts of measurements by name, for messages: one, called ``name``, if it is a tensor."""
    if isinstance(y, TensorList) and len(y):
        return {f"{name}[{i}]": part for i, part in enumerate(y)}
    return {name: y}


def _in_pairs(part: torch.Tensor) -> torch.Tensor:
    if part.is_complex():
        return torch.view_as_real(part.resolve_conj())
    return torch.stack([part, part], -1)  # a support
