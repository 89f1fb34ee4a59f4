r"""The 2-D points of the paper."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from deepinv.datasets import ImageDataset

from .. import checks
from .indexed import from_zero


class PointDataset(ImageDataset):
    r"""
    The paper's toy problem: a fixed point of the plane, to be recovered from noisy measurements.

    Every sample is the same ground truth, ``{"x": x}`` with ``x`` of shape `(2,)`. All randomness
    is in the measurements and belongs to the physics: the paper adds Gaussian noise of variance
    0.01, a standard deviation of 0.1.

    :param int length: number of samples. The paper trains on 200 and tests on 50.
    :param Iterable[float] center: the point, two numbers. Default: the origin, as in the paper,
        whose biased ground truth is ``(0.005, 0)``.
    :raises TypeError: if an argument is not made of numbers of its type.
    :raises ValueError: if ``length`` is below 1, or ``center`` does not hold two finite numbers.

    |sep|

    :Examples:

    >>> import torch, deepinv, deepinv_jitter as dj
    >>> physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    >>> loader = torch.utils.data.DataLoader(dj.PointDataset(200), batch_size=50)
    >>> physics(next(iter(loader))["x"]).shape
    torch.Size([50, 2])
    """

    def __init__(self, length: int, *, center: Iterable[float] = (0.0, 0.0)):
        super().__init__(use_dict_output=True)
        self.length = checks.whole("length", length, 1, sys.maxsize)
        center = checks.plain(center)
        center = tuple(center) if isinstance(center, Iterable) else (center,)
        largest = torch.finfo(torch.float32).max
        self.center = tuple(checks.real("center", c, -largest, largest) for c in center)
        if len(center) != 2:
            raise ValueError(f"center must hold two numbers, got {len(center)}.")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        from_zero(index, self.length)
        return {"x": torch.tensor(self.center, dtype=torch.float32, device="cpu")}
