r"""Reflectivity sections with faults, drawn without end."""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from deepinv.datasets import ImageDataset

from .. import checks
from .indexed import from_zero, sample_rng

# Of a section with its margins: a gigabyte in double precision
LARGEST_CANVAS = 2**27


class ReflectivityDataset(ImageDataset):
    r"""
    Synthetic reflectivity sections of a layered, folded and faulted earth, for deconvolution.

    Each sample is ``{"x": x}`` with ``x`` of shape `(1, T, X)`, time samples by traces. The model:

    - *Traces* are Bernoulli-Gaussian (Kormylo and Mendel, IEEE Trans. Information Theory, 1982):
      each time sample holds an interface with probability :math:`1/\text{thickness}`, each
      interface a coefficient :math:`a \sim \mathcal{N}(0,1)`; other entries are zero.
    - *Lateral continuity*, as in Markov-Bernoulli fields (Heimer and Cohen, IEEE Trans. Geoscience
      and Remote Sensing, 2009): interfaces run on from trace to trace, the coefficient varying by
      20 % along each. Where two share a sample, their coefficients add up.
    - *Pinch-outs*: every second interface, with probability ``pinch_out``, leans at 1/16 to 1/4
      sample per trace towards the next above or below, and ends there.
    - *Structure*, by shearing as in FaultSeg3D (Wu et al., Geophysics, 2019): depth :math:`z` moves
      to :math:`z + g(z) f(x)`, with :math:`f` a dip plus two cosines and :math:`g \leq 1` growing
      linearly with depth. Interfaces never cross.
    - *Faults*: 0 to ``faults``, each number as likely, anywhere in the section, the line sloping by
      0.2 to 0.7 traces per sample to either side. The rock above a fault slides down along it;
      later faults cut earlier ones. Faults reflect nothing.

    Finally a section is divided by its largest magnitude, so that :math:`\max|x| = 1`; sections
    without an interface are drawn again. Sample :math:`i` depends on :math:`i`, ``seed`` and the
    arguments below it: neither on ``length``, nor on the order of access, nor on a global
    generator. Train and test on different seeds. The model stands in for the paper's own data.

    :param int length: number of sections.
    :param tuple[int, int] img_size: `(T, X)`. Default: the paper's `(352, 352)`.
    :param int seed: seed of the sections, from 0. Default: 0.
    :param float thickness: mean thickness of a layer in time samples, from 1 to `T`. Default: 12.
    :param float dip: largest dip of the layers, in time samples per trace. Default: 0.1.
    :param float fold: largest amplitude of the folds, in time samples. Default: 8. Wavelengths are
        0.5 to 1.5 times `X`, or longer to keep slopes below 0.5 sample per trace.
    :param float pinch_out: probability that an interface which may pinch out does. Default: 0.5.
    :param int faults: largest number of faults in a section. Default: 3.
    :param float throw: largest vertical offset across a fault in time samples, at least 1; each
        is drawn from a third of it up. Default: 24.
    :raises TypeError: if a number is of the wrong type.
    :raises ValueError: if a number is out of range, dip and fold could turn the layers over, or
        faults and throw need a canvas of more than 2**27 samples.

    The attribute ``peak``, 2, is the range of :math:`[-1, 1]`, which PSNR and SSIM refer to in
    :func:`evaluate_robustness`.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> x = dj.ReflectivityDataset(1000, img_size=(64, 96), seed=1)[0]["x"]
    >>> x.shape, x.abs().max()
    (torch.Size([1, 64, 96]), tensor(1.))
    """

    peak = 2.0

    def __init__(
        self,
        length: int,
        *,
        img_size: tuple[int, int] = (352, 352),
        seed: int = 0,
        thickness: float = 12.0,
        dip: float = 0.1,
        fold: float = 8.0,
        pinch_out: float = 0.5,
        faults: int = 3,
        throw: float = 24.0,
    ):
        super().__init__(use_dict_output=True)
        self.length = checks.whole("length", length, 1, sys.maxsize)
        self.img_size = checks.sizes("img_size", img_size, 2)
        self.seed = checks.whole("seed", seed, 0)
        self.thickness = checks.real("thickness", thickness, 1, self.img_size[0])
        self.dip = checks.real("dip", dip, 0)
        self.fold = checks.real("fold", fold, 0)
        self.pinch_out = checks.real("pinch_out", pinch_out, 0, 1)
        self.faults = checks.whole("faults", faults, 0, LARGEST_CANVAS)
        self.throw = checks.real("throw", throw, 1, LARGEST_CANVAS)
        # Faults bring in rock from above and from the sides: sections are cut from a larger canvas
        slide = self.faults * math.ceil(self.throw)
        self._margin = (slide, math.ceil(0.7 * slide))
        self._canvas = (self.img_size[0] + slide, self.img_size[1] + 2 * self._margin[1])
        if math.prod(self._canvas) > LARGEST_CANVAS:
            raise ValueError(
                f"a section and what its faults may bring in must not exceed {LARGEST_CANVAS} "
                f"samples, got {self._canvas[0]} x {self._canvas[1]}: reduce img_size, faults or "
                "throw."
            )
        self._relief = self.dip * self._canvas[1] / 2 + self.fold
        if self._relief >= self._canvas[0]:
            raise ValueError(
                f"dip and fold must displace layers by less than {self._canvas[0]} samples (the "
                f"section and its margin), got {self._relief:.1f}: reduce dip or fold."
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = sample_rng(self.seed, from_zero(index, self.length))
        (top, left), (height, width) = self._margin, self.img_size
        peak = 0
        while peak == 0:
            canvas = self._faulted(self._layers(rng), rng)
            x = canvas[top : top + height, left : left + width]
            peak = np.abs(x).max()
        return {"x": torch.from_numpy(x / peak).unsqueeze(0)}

    def _layers(self, rng: np.random.Generator) -> np.ndarray:
        """The canvas before faulting."""
        height, width = self._canvas
        x, relief = np.arange(width), math.ceil(self._relief)
        # Layers start above and below the canvas, since the structure brings them in
        z = np.flatnonzero(rng.random(height + 2 * relief) < 1 / self.thickness) - float(relief)
        phase = rng.uniform(0, 2 * np.pi, (len(z), 1))
        a = rng.standard_normal((len(z), 1)) * (1 + 0.2 * np.cos(2 * np.pi * x / width + phase))
        z, a = self._pinched(z, a, rng)

        waves = np.maximum(rng.uniform(0.5, 1.5, (2, 1)) * self.img_size[1], 4 * np.pi * self.fold)
        first, second = np.cos(2 * np.pi * (x / waves + rng.random((2, 1))))
        share = rng.random()
        f = self.fold * rng.random() * (share * first + (1 - share) * second)
        f = f + self.dip * rng.uniform(-1, 1) * (x - width / 2)
        surface = rng.random()
        g = surface + (1 - surface) * np.clip(z / height, 0, 1)

        t = np.rint(z + g * f).astype(np.int64)
        inside = (t >= 0) & (t < height)
        canvas = np.bincount((t * width + x)[inside], a[inside], height * width)
        return canvas.astype(np.float32).reshape(height, width)

    def _pinched(
        self, z: np.ndarray, a: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Depth and coefficient of the interfaces, at each trace, once some have pinched out."""
        x = np.arange(self._canvas[1])
        # Every second one only: the neighbour on which an interface ends must not end itself
        ends = np.arange(1, len(z) - 1, 2)
        ends = ends[rng.random(len(ends)) < self.pinch_out]
        shape = (len(ends), 1)
        gap = (z[ends + rng.choice((-1, 1), len(ends))] - z[ends]).reshape(shape)
        start, onward = rng.uniform(0, len(x), shape), rng.choice((-1, 1), shape)
        progress = (x - start) * onward / (np.abs(gap) * rng.uniform(4, 16, shape))
        progress = np.clip(progress, 0, 1)
        z = np.repeat(z[:, None], len(x), axis=1)
        z[ends] += gap * progress
        # Less than one sample from its neighbour, the layer is thinner than the grid resolves
        a[ends] *= np.abs(gap) * (1 - progress) >= 1
        return z, a

    def _faulted(self, canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The canvas after the rock above each fault has slid down along it."""
        t, x = np.arange(canvas.shape[0])[:, None], np.arange(canvas.shape[1])
        for _ in range(rng.integers(self.faults + 1)):
            middle = self._margin[1] + rng.uniform(0, self.img_size[1])
            slope = rng.uniform(0.2, 0.7) * rng.choice((-1, 1))
            line = middle + slope * (t - len(t) / 2)
            above = x > line if slope > 0 else x < line
            down = max(1, round(self.throw * rng.uniform(1 / 3, 1)))
            # What np.roll wraps around stays in the margin: int, unlike round, keeps it that small
            slid = np.roll(canvas, (down, int(slope * down)), (0, 1))
            canvas = np.where(above, slid, canvas)
        return canvas
