r"""Ground truths without download: points, reflectivity sections, brain slices."""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Iterable
from numbers import Integral, Real

import numpy as np
import torch
from deepinv.datasets import ImageDataset
from deepinv.datasets.base import batch_as_dict
from torch.nn import functional as F
from torch.utils.data import Dataset

from . import checks

PLANES = ("sagittal", "coronal", "axial")
# Of every 40 mm along an axis, those of each split, 5 mm apart within a period and across periods
PERIOD = 40
BLOCKS = {"train": range(0, 25), "test": range(29, 36)}
SMALLEST_AREA = 0.3
# Of a section with its margins: a gigabyte in double precision
LARGEST_CANVAS = 2**27


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
        self.length = checks.number("length", length, Integral, 1, sys.maxsize)
        center = tuple(center) if isinstance(center, Iterable) else (center,)
        largest = torch.finfo(torch.float32).max
        self.center = tuple(
            checks.number("center", c, Real, -largest, largest) for c in center
        )
        if len(center) != 2:
            raise ValueError(f"center must hold two numbers, got {len(center)}.")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        _from_zero(index, self.length)
        return {"x": torch.tensor(self.center, dtype=torch.float32)}


class ReflectivityDataset(ImageDataset):
    r"""
    Synthetic reflectivity sections of a layered, folded and faulted earth, for deconvolution.

    Each sample is ``{"x": x}`` with ``x`` of shape `(1, T, X)`, time samples by traces. Its law:

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
    generator. Train and test on different seeds. The law stands in for the paper's own data.

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

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> x = dj.ReflectivityDataset(1000, img_size=(64, 96), seed=1)[0]["x"]
    >>> x.shape, x.abs().max()
    (torch.Size([1, 64, 96]), tensor(1.))
    """

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
        self.length = checks.number("length", length, Integral, 1, sys.maxsize)
        self.img_size = checks.sizes("img_size", img_size, 2)
        self.seed = checks.number("seed", seed, Integral, 0)
        self.thickness = checks.number(
            "thickness", thickness, Real, 1, self.img_size[0]
        )
        self.dip = checks.number("dip", dip, Real, 0)
        self.fold = checks.number("fold", fold, Real, 0)
        self.pinch_out = checks.number("pinch_out", pinch_out, Real, 0, 1)
        self.faults = checks.number("faults", faults, Integral, 0, LARGEST_CANVAS)
        self.throw = checks.number("throw", throw, Real, 1, LARGEST_CANVAS)
        # Faults bring in rock from above and from the sides: sections are cut from a larger canvas
        slide = self.faults * math.ceil(self.throw)
        self._margin = (slide, math.ceil(0.7 * slide))
        self._canvas = (
            self.img_size[0] + slide,
            self.img_size[1] + 2 * self._margin[1],
        )
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
        rng = _rng(self.seed, _from_zero(index, self.length))
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
        z = np.flatnonzero(
            rng.random(height + 2 * relief) < 1 / self.thickness
        ) - float(relief)
        phase = rng.uniform(0, 2 * np.pi, (len(z), 1))
        a = rng.standard_normal((len(z), 1)) * (
            1 + 0.2 * np.cos(2 * np.pi * x / width + phase)
        )
        z, a = self._pinched(z, a, rng)

        waves = np.maximum(
            rng.uniform(0.5, 1.5, (2, 1)) * self.img_size[1], 4 * np.pi * self.fold
        )
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


class BrainSliceDataset(ImageDataset):
    r"""
    Slices of a human brain, from the template that the nilearn package carries: no download.

    Each sample is ``{"x": x}`` with ``x`` of shape `(2, H, W)`, the real part in [0, 1] and the
    imaginary part 0. The template is MNI152 T1 (ICBM 2009a nonlinear symmetric, 1 mm, skull
    removed; Fonov et al., NeuroImage, 2011): real anatomy, but the average of 152 heads, smoother
    than one scan and mirror-symmetric. Training and test slices are different anatomy of this one
    head, not different heads.

    The split is by position :math:`p` in mm of MNI space, a whole number: :math:`p \bmod 40` in 0
    to 24 trains, in 29 to 35 tests, the rest is left out. So the sets of one plane are at least 5
    mm apart, though slices of different planes cross. Left out are also sagittal slices with
    :math:`p < 0`, the mirror images of the others, and slices with less than 30 % of the brain area
    of the largest in their plane.

    Pictures are upright and in radiological view: front or top of the head up, the patient's right
    on the left; sagittal slices face left. They are centred on the brain, 181 x 145 mm axial, 155
    x 145 coronal and 155 x 181 sagittal, cropped or zero-padded, and divided by their maximum.

    :param str split: ``"train"`` or ``"test"``. Default: ``"train"``.
    :param tuple[int, int] img_size: `(H, W)` in pixels. Default: `(192, 192)`.
    :param str plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``. Default: ``"axial"``.
    :param float resolution: size of a pixel in mm; other than 1, slices are resampled with an
        antialiasing filter. ``img_size=(96, 96), resolution=2`` shows the whole brain. Default: 1.
    :param int spacing: keep slices at multiples of this position, in mm. Default: 1.
    :param int copies: how often each slice appears, each time augmented anew. Default: 1.
    :param bool contrast: raise each sample to a power, log-uniform from 2/3 to 3/2. Default: no.
    :param bool flip: mirror half of the samples, sagittal ones left to right, the others, which are
        symmetric, top to bottom. Default: no.
    :param int seed: seed of the augmentation, from 0. Sample :math:`i` depends on ``seed`` and
        :math:`i` alone, at every epoch: for more variety ask for more ``copies``. Default: 0.
    :raises ImportError: if nilearn, an optional extra, is missing.
    :raises TypeError: if a number is of the wrong type.
    :raises ValueError: if an argument is unknown or out of range, or no slice is left.

    The attribute ``positions`` holds the position of each sample in mm, shape `(length,)`.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dataset = dj.BrainSliceDataset("test", img_size=(96, 96), resolution=2)
    >>> dataset[0]["x"].shape
    torch.Size([2, 96, 96])
    >>> dataset.positions[:3]
    tensor([35., 34., 33.])
    """

    def __init__(
        self,
        split: str = "train",
        *,
        img_size: tuple[int, int] = (192, 192),
        plane: str = "axial",
        resolution: float = 1.0,
        spacing: int = 1,
        copies: int = 1,
        contrast: bool = False,
        flip: bool = False,
        seed: int = 0,
    ):
        super().__init__(use_dict_output=True)
        if split not in tuple(BLOCKS):
            raise ValueError(f"split must be one of {tuple(BLOCKS)}, got {split!r}.")
        if plane not in PLANES:
            raise ValueError(f"plane must be one of {PLANES}, got {plane!r}.")
        img_size = checks.sizes("img_size", img_size, 2)
        resolution = checks.number("resolution", resolution, Real, 0.1, 10)
        spacing = checks.number("spacing", spacing, Integral, 1, 1000)
        copies = checks.number("copies", copies, Integral, 1)
        self.contrast, self.flip = contrast, flip
        # The template is its own mirror image from left to right
        self._mirrored_axis = -1 if plane == "sagittal" else -2
        self.seed = checks.number("seed", seed, Integral, 0)

        volume, positions = _brain()
        axis = PLANES.index(plane)
        slices, p = volume.movedim(axis, 0).mT, positions[axis]
        area = (slices > 0).sum((1, 2))
        keep = (area >= SMALLEST_AREA * area.max()) & (p % spacing == 0)
        keep &= torch.isin(p % PERIOD, torch.tensor(BLOCKS[split]))
        if plane == "sagittal":
            keep &= p >= 0
        if not keep.any():
            raise ValueError(
                f"spacing must leave a {split} slice, {spacing} mm leaves none."
            )
        self.positions = p[keep].float().repeat(copies)
        self._slices = _resampled(slices[keep], img_size, resolution)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = _from_zero(index, len(self))
        x = self._slices[index % len(self._slices)]
        rng = _rng(self.seed, index)
        # Both are drawn in any case, so that neither option changes the other
        power, mirrored = 1.5 ** rng.uniform(-1, 1), rng.random() < 0.5
        if self.contrast:
            x = x**power
        if self.flip and mirrored:
            x = x.flip(self._mirrored_axis)
        return {"x": torch.stack([x, torch.zeros_like(x)])}


class IndexedDataset(ImageDataset):
    r"""
    A data set whose samples also tell their index, as the key ``"index"`` of the dictionary.

    For what keeps something for each sample from epoch to epoch, such as
    :class:`AttackTrainer` with ``persistent=True``. deepinv ignores the key.

    :param torch.utils.data.Dataset dataset: data set in any of deepinv's formats.
    :raises TypeError: if ``dataset`` has no length or no items.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dj.IndexedDataset(dj.PointDataset(200))[7]
    {'x': tensor([0., 0.]), 'index': 7}
    """

    def __init__(self, dataset: Dataset):
        super().__init__(use_dict_output=True)
        if not all(hasattr(dataset, name) for name in ("__len__", "__getitem__")):
            raise TypeError(
                f"dataset must have a length and items, got {type(dataset).__name__}."
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        # One number for each sample, however it is asked for
        index = _from_zero(index, len(self))
        return batch_as_dict(self.dataset[index]) | {"index": index}


@functools.cache
def _brain() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The template cut to the brain, its axes as displayed, and the positions along each in mm."""
    try:
        # Inside the function, as it is an optional extra that takes seconds to import
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise ImportError(
            "BrainSliceDataset needs nilearn, which is not installed: "
            'run pip install "deepinv_jitter[examples]".'
        ) from error
    template = load_mni152_template(resolution=1)
    volume = torch.from_numpy(template.get_fdata(dtype=np.float32))
    positions = [
        round(o) + torch.arange(n) for o, n in zip(template.affine[:3, 3], volume.shape)
    ]
    brain = volume.nonzero()
    low, high = brain.amin(0).tolist(), (brain.amax(0) + 1).tolist()
    box = tuple(slice(a, b) for a, b in zip(low, high))
    # The axes run to the right, to the front and up; a radiological view shows each from its end
    return volume[box].flip(0, 1, 2), [p[s].flip(0) for p, s in zip(positions, box)]


def _resampled(
    slices: torch.Tensor, size: tuple[int, int], resolution: float
) -> torch.Tensor:
    """Slices of 1 mm per pixel, cut to ``size`` pixels of ``resolution`` mm and scaled."""
    field = [max(1, round(n * resolution)) for n in size]
    rows, columns = (n - have for n, have in zip(field, slices.shape[1:]))
    # Negative padding crops
    x = F.pad(
        slices, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    )
    if tuple(field) != size:
        x = F.interpolate(x[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
    return x / x.amax((1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def _rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))


def _from_zero(index: int, length: int) -> int:
    """The index of a sequence, counted from its start."""
    i = operator.index(index)
    if not -length <= i < length:
        raise IndexError(f"index must lie from {-length} to {length - 1}, got {i}.")
    return i % length
