r"""Out-of-distribution edits of the ground truth, and of nothing else."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from random import Random

import torch

from .. import checks


class Shift(ABC):
    r"""
    Base of the edits: adds the :meth:`~Shift.detail` :math:`d` of a subclass to every sample, and
    says where. What is random about it depends on ``seed`` and on the number of the sample alone.
    """

    seed = 0

    def __call__(self, x: torch.Tensor, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        Edit a batch.

        :param torch.Tensor x: ground truths, real, shape `(B, ...)`; not modified.
        :param int start: number of the first sample, from 0; after a batch of 16 it is 16.
            Default: 0.
        :return: (:class:`tuple`) the edited truths :math:`x+d`, and where they differ from ``x``:
            boolean, shape `(B, n)` for points `(B, n)`, else `(B, 1, ...)`, as the channels of a
            pixel belong together.
        :raises TypeError: if ``x`` is not a real tensor or ``start`` is not a whole number.
        :raises ValueError: if ``start`` is negative, ``x`` is not finite, or the edit does not fit
            the shape or the precision of ``x``.
        """
        checks.tensor("x", x, real=True)
        checks.finite(x=x)
        start = checks.whole("start", start, 0)
        # A string is hashed, so neighbouring seeds and numbers give unrelated streams
        draws = [Random(f"{self.seed}, {start + i}") for i in range(len(x))]
        edited = torch.stack([s + self.detail(s, r) for s, r in zip(x, draws, strict=True)])
        checks.finite(**{f"x + d of {self!r}, in {x.dtype},": edited.detach()})
        changed = edited != x
        return edited, changed if x.ndim == 2 else changed.any(1, keepdim=True)

    @abstractmethod
    def detail(self, x: torch.Tensor, random: Random) -> torch.Tensor:
        r"""
        The detail :math:`d` of one sample.

        :param torch.Tensor x: ground truth without batch, to be read only.
        :param random.Random random: source of the randomness.
        :return: (:class:`torch.Tensor`) :math:`d`, which broadcasts to ``x``.
        """

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"


class Bias(Shift):
    r"""
    Adds a constant, as the paper's toy problem (section 8) moves its truth to ``(0.005, 0)``.

    :param float, Iterable[float] value: the constant, in the unit of ``x``: a number for all
        entries, or values that broadcast to one sample, such as one per coordinate of a point.
    :raises TypeError: if ``value`` is not made of real numbers; ``True`` and ``False`` are none.
    :raises ValueError: if a value is not finite; in the call, if ``value`` does not broadcast to a
        sample.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> dj.Bias((0.005, 0))(torch.zeros(1, 2))
    (tensor([[0.0050, 0.0000]]), tensor([[ True, False]]))
    """

    def __init__(self, value: float | Iterable[float] | torch.Tensor):
        numbers = checks.reals("value", value)
        if not numbers.isfinite().all():
            raise ValueError(f"value must be finite, got {value!r}.")
        self.value = numbers.tolist()

    def detail(self, x: torch.Tensor, random: Random) -> torch.Tensor:
        """The constant, see :meth:`Shift.detail`."""
        value = torch.tensor(self.value, dtype=x.dtype, device=x.device)
        try:
            return value.expand_as(x)
        except RuntimeError as error:
            raise ValueError(
                f"value must broadcast to a sample of shape {tuple(x.shape)}, "
                f"got {tuple(value.shape)}."
            ) from error


class HorizontalLayer(Shift):
    r"""
    Adds a short horizontal reflector, one time sample thick, to a seismic section.

    The paper (section 8, Table 1, Fig. 2) adds layers of height 0.1 and 0.3 to sections of largest
    magnitude 1.

    :param float height: reflection coefficient, in the unit of ``x``; either sign. Default: 0.1.
    :param int length: number of traces, at least 1. Default: 10.
    :param tuple[int, int], None position: time sample and first trace, from 0. Default: ``None``,
        anywhere that it fits, each place as likely.
    :param int seed: seed of the positions, from 0. Default: 0.
    :raises TypeError: if an argument is not made of numbers of its type.
    :raises ValueError: if an argument is out of range; in the call, if ``x`` is not of shape `(B,
        1, T, X)` or the layer does not fit into it.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> x, region = dj.HorizontalLayer(0.5, length=2, position=(1, 0))(torch.zeros(1, 1, 3, 3))
    >>> x[0, 0]
    tensor([[0.0000, 0.0000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """

    def __init__(
        self,
        height: float = 0.1,
        *,
        length: int = 10,
        position: tuple[int, int] | None = None,
        seed: int = 0,
    ):
        self.height = checks.real("height", height)
        self.length = checks.whole("length", length, 1)
        self.position = None if position is None else checks.sizes("position", position, 2, 0)
        self.seed = checks.whole("seed", seed, 0)

    def detail(self, x: torch.Tensor, random: Random) -> torch.Tensor:
        """The layer, see :meth:`Shift.detail`."""
        if x.ndim != 3 or x.shape[0] != 1:
            raise ValueError(f"sections must have shape (B, 1, T, X), got {('B', *x.shape)}.")
        samples, places = x.shape[-2], x.shape[-1] - self.length + 1
        t, first = self.position or (0, 0)
        if t >= samples or first >= places:
            raise ValueError(
                f"the layer must lie inside the section of T, X = {tuple(x.shape[-2:])}, "
                f"got length={self.length} at position={self.position}."
            )
        if self.position is None:
            t, first = random.randrange(samples), random.randrange(places)
        d = torch.zeros_like(x)
        height = torch.tensor(self.height, dtype=torch.float64, device="cpu").to(x)
        d[:, t, first : first + self.length] = height
        return d


class Lesion(Shift):
    r"""
    Adds a disc with a smooth edge to an image.

    The profile is 1 up to half the radius :math:`R` and falls to 0 at the radius as
    :math:`\sin^2(\pi (R-r)/R)`. In an image of 2 channels, which are taken as real and imaginary
    part, the magnitude changes by contrast times profile, but not below zero, and the phase stays
    (0 where the magnitude was 0); otherwise every channel changes. The lesions of the paper's Table
    2 are real ones; of these the truth is known.

    :param float radius: :math:`R` in pixels, at least 1: the disc is where :math:`r < R`.
    :param float contrast: change at the centre, in the unit of ``x``; negative for a dark lesion.
    :param tuple[int, int], None position: row and column of the centre, from 0; the disc may reach
        over the border. Default: ``None``, centred in the object, where the magnitude exceeds a
        tenth of its largest value, with the disc inside the image, each such place as likely.
    :param int seed: seed of the positions, from 0. Default: 0.
    :raises TypeError: if an argument is not made of numbers of its type.
    :raises ValueError: if an argument is out of range; in the call, if ``x`` is not of shape `(B,
        C, H, W)`, the position lies outside or there is no place for the disc.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> x, region = dj.Lesion(radius=2, contrast=0.4, position=(2, 2))(torch.zeros(1, 1, 5, 5))
    >>> x[0, 0, 2]
    tensor([0.0000, 0.4000, 0.4000, 0.4000, 0.0000])
    """

    def __init__(
        self,
        radius: float,
        contrast: float,
        *,
        position: tuple[int, int] | None = None,
        seed: int = 0,
    ):
        self.radius = checks.real("radius", radius, 1)
        self.contrast = checks.real("contrast", contrast)
        self.position = None if position is None else checks.sizes("position", position, 2, 0)
        self.seed = checks.whole("seed", seed, 0)

    def detail(self, x: torch.Tensor, random: Random) -> torch.Tensor:
        """The disc, see :meth:`Shift.detail`."""
        if x.ndim != 3:
            raise ValueError(f"images must have shape (B, C, H, W), got {('B', *x.shape)}.")
        height, width = x.shape[-2:]
        magnitude = x.norm(dim=0)
        row, column = self.position or self._inside(magnitude, random)
        if row >= height or column >= width:
            raise ValueError(
                f"position must lie inside the image of H, W = {(height, width)}, "
                f"got {self.position}."
            )
        # Whole numbers, squared and summed without rounding: the disc is symmetric
        rows, columns = (
            torch.arange(n, dtype=checks.widest(x.device), device=x.device) - center
            for n, center in ((height, row), (width, column))
        )
        distance = (rows[:, None] ** 2 + columns**2).sqrt()
        ramp = (2 - 2 * distance / self.radius).clamp(0, 1)
        d = (self.contrast * torch.sin(math.pi / 2 * ramp) ** 2).to(x)
        if x.shape[0] != 2:
            return d
        phase = torch.where(magnitude > 0, x / magnitude, x.new_tensor([[[1]], [[0]]]))
        return d.maximum(-magnitude) * phase

    def _inside(self, magnitude: torch.Tensor, random: Random) -> tuple[int, int]:
        margin = math.ceil(self.radius) - 1
        height, width = magnitude.shape
        rows, columns = (slice(min(margin, n), max(n - margin, 0)) for n in (height, width))
        centres = (magnitude > 0.1 * magnitude.max())[rows, columns].nonzero()
        if not len(centres):
            raise ValueError(
                f"a lesion of radius {self.radius} needs a centre in the object of an image of "
                f"{height} x {width}, got none: make it smaller or give its position."
            )
        row, column = centres[random.randrange(len(centres))].tolist()
        return row + margin, column + margin
