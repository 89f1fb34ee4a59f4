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

    Where only some of the parts are complex, those lie as pairs of real numbers.

    :param torch.Tensor, deepinv.utils.TensorList y: measurements.
    :raises TypeError: if they are neither, or hold something else than real or complex numbers.
    :raises ValueError: if a part is empty, or the parts differ in batch size, device or precision.

    |sep|

    :Examples:

    >>> import torch
    >>> from deepinv.utils import TensorList
    >>> from deepinv_jitter.attacks.parts import Layout
    >>> y = TensorList([torch.ones(5, 1, 4, 4), torch.ones(5, 3)])
    >>> layout = Layout(y)
    >>> layout.pack(y).shape, layout.unpack(layout.pack(y)).shape
    (torch.Size([5, 19]), [torch.Size([5, 1, 4, 4]), torch.Size([5, 3])])
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
            _in_pairs(part).flatten(1) if pairs else part.flatten(1)
            for part, pairs in zip(y, self.in_pairs, strict=True)
        ]
        return torch.cat(flat, dim=1)

    def unpack(self, flat: torch.Tensor) -> Measurements:
        """One tensor as measurements."""
        if not self.in_parts:
            return flat
        sizes = [
            shape.numel() * (2 if pairs else 1)
            for shape, pairs in zip(self.shapes, self.in_pairs, strict=True)
        ]
        parts = [
            torch.view_as_complex(piece.unflatten(1, (-1, 2))) if pairs else piece
            for piece, pairs in zip(flat.split(sizes, 1), self.in_pairs, strict=True)
        ]
        return TensorList(
            [
                part.reshape(len(part), *shape)
                for part, shape in zip(parts, self.shapes, strict=True)
            ]
        )


def named_parts(name: str, y: Measurements) -> dict[str, torch.Tensor]:
    """The parts of measurements by name, for messages: one, called ``name``, if it is a tensor."""
    if isinstance(y, TensorList) and len(y):
        return {f"{name}[{i}]": part for i, part in enumerate(y)}
    return {name: y}


def _in_pairs(part: torch.Tensor) -> torch.Tensor:
    if part.is_complex():
        return torch.view_as_real(part.resolve_conj())
    return torch.stack([part, part], -1)  # a support
