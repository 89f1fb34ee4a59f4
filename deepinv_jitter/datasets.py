r"""Ground truths of the three experiments: points, reflectivity sections, brain slices and fastMRI slices."""

from __future__ import annotations

import functools
import math
import operator
import tempfile
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path

import h5py
import numpy as np
import torch
from deepinv.datasets import (
    FastMRISliceDataset,
    ImageDataset,
    SimpleFastMRISliceDataset,
)
from torch.nn import functional as F

PLANES = ("sagittal", "coronal", "axial")
# Position in mm, modulo the period: the first 25 mm train, 5 mm apart from them the test slices
PERIOD = 40
BLOCKS = {"train": range(0, 25), "test": range(29, 36)}
MIN_AREA = 0.3


class PointDataset(ImageDataset):
    r"""
    The toy problem of the paper: one fixed point of the plane, to be recovered from noisy measurements.

    Every sample is the same ground truth. All randomness is in the measurements, which the physics
    draws: the paper adds Gaussian noise of variance 0.01, hence a standard deviation of 0.1.

    :param int length: number of samples. The paper uses 200 to train and 50 to test.
    :param Iterable[float] center: the point :math:`x`, two numbers. Default: the origin, as in the paper, whose
        biased ground truth is ``(0.005, 0)``.
    :raises TypeError: if ``length`` is no whole number, or ``center`` is not made of numbers.
    :raises ValueError: if ``length`` is below 1, or ``center`` does not hold two finite numbers.

    Each sample is ``{"x": x}`` with ``x`` of shape `(2,)`.

    |sep|

    :Examples:

    >>> import torch, deepinv, deepinv_jitter as dj
    >>> dataset = dj.PointDataset(200)
    >>> physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    >>> batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=50)))
    >>> physics(batch["x"]).shape
    torch.Size([50, 2])
    """

    def __init__(self, length: int, *, center: Iterable[float] = (0.0, 0.0)):
        super().__init__(use_dict_output=True)
        self.length = _whole("length", length, 1)
        center = tuple(center) if isinstance(center, Iterable) else (center,)
        center = tuple(_number("center", c, -math.inf, math.inf) for c in center)
        if len(center) != 2:
            raise ValueError(f"center must hold two numbers, got {len(center)}.")
        self.center = center

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        _index(index, self.length)
        return {"x": torch.tensor(self.center, dtype=torch.float32)}


class ReflectivityDataset(ImageDataset):
    r"""
    Synthetic reflectivity sections of a layered, folded and faulted earth, for seismic deconvolution.

    The law of a section, from its traces to its structure:

    - *Trace*: Bernoulli-Gaussian [1]_. Each time sample holds an interface with probability
      :math:`1/\text{thickness}`, and each interface a reflection coefficient :math:`a \sim \mathcal{N}(0,1)`.
    - *Lateral continuity* [2]_: an interface runs on from trace to trace, and its coefficient varies by
      20 % along it. Where two interfaces meet in one sample, their coefficients add up.
    - *Pinch-outs*: every second interface ends with probability ``pinch_out``, at a slope of 1/16 to 1/4 sample
      per trace, on the interface above or below it.
    - *Structure*, as in [3]_: interface :math:`z` moves to :math:`z + g(z) f(x)`, with :math:`f` a dip
      plus two cosines and :math:`g` growing linearly with depth up to 1. Interfaces never cross.
    - *Faults*: 0 to ``faults`` of them, each number as likely. The side above the fault line slides
      down along it, as in a normal fault; the line has a slope of 0.2 to 0.7 traces per sample to either side.
      A later fault cuts the earlier ones. The fault itself reflects nothing.

    Each section is divided by its largest magnitude, so that :math:`\max|x| = 1`; its mean is not removed. Sections
    without any interface are drawn again. Sample :math:`i` depends on ``seed``, :math:`i` and the shape and
    geometry arguments alone: neither on ``length``, nor on the order of access, nor on a global generator. To train
    and to test, use two seeds. This law stands in for the paper's own data, which are not published.

    :param int length: number of sections.
    :param tuple[int, int] img_size: time samples and traces `(T, X)`. Default: the paper's `(352, 352)`.
    :param int seed: seed of the sections, from 0. Default: 0.
    :param float thickness: mean thickness of a layer in time samples, from 1 to `T`; about one entry in
        ``thickness`` is not zero. Default: 12.
    :param float dip: largest dip of the layers, in time samples per trace. Default: 0.1.
    :param float fold: largest amplitude of the folds, in time samples. Default: 8. The wavelengths are 0.5 to
        1.5 times `X`, lengthened where the slope would exceed 0.5 sample per trace.
    :param float pinch_out: probability that an interface which may pinch out does. Default: 0.3.
    :param int faults: largest number of faults of a section. Default: 3.
    :param float throw: largest vertical offset across a fault in time samples, at least 1; each is drawn
        from the upper two thirds. Default: 24.
    :raises TypeError: if a number is of the wrong type.
    :raises ValueError: if a number is out of its range, or dip and fold displace layers by half the section.

    Each sample is ``{"x": x}`` with ``x`` of shape `(1, T, X)`.

    .. [1] J. Kormylo and J. M. Mendel, "Maximum likelihood detection and estimation of Bernoulli-Gaussian
        processes", IEEE Transactions on Information Theory, 1982.
    .. [2] A. Heimer and I. Cohen, "Multichannel seismic deconvolution using Markov-Bernoulli random-field
        modeling", IEEE Transactions on Geoscience and Remote Sensing, 2009.
    .. [3] X. Wu, L. Liang, Y. Shi and S. Fomel, "FaultSeg3D: using synthetic data sets to train an end-to-end
        convolutional neural network for 3D seismic fault segmentation", Geophysics, 2019.

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
        pinch_out: float = 0.3,
        faults: int = 3,
        throw: float = 24.0,
    ):
        super().__init__(use_dict_output=True)
        self.length = _whole("length", length, 1)
        self.img_size = _size(img_size)
        self.seed = _whole("seed", seed, 0)
        self.thickness = _number("thickness", thickness, 1, self.img_size[0])
        self.dip = _number("dip", dip, 0, math.inf)
        self.fold = _number("fold", fold, 0, math.inf)
        self.pinch_out = _number("pinch_out", pinch_out, 0, 1)
        self.faults = _whole("faults", faults, 0)
        self.throw = _number("throw", throw, 1, math.inf)
        # Faults bring in rocks from above and from either side, so they are drawn on a larger canvas
        slide = self.faults * math.ceil(self.throw)
        self._margin = (slide, math.ceil(0.7 * slide))
        self._canvas = (
            self.img_size[0] + slide,
            self.img_size[1] + 2 * self._margin[1],
        )
        self._relief = self.dip * self._canvas[1] / 2 + self.fold
        if 2 * self._relief >= self._canvas[0]:
            raise ValueError(
                f"dip and fold must displace layers by less than half the section, {self._canvas[0] / 2} "
                f"samples with the margin for faults, got {self._relief:.1f}: reduce dip or fold."
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = _rng(self.seed, _index(index, self.length))
        (top, left), (height, width) = self._margin, self.img_size
        peak = 0
        while peak == 0:
            canvas = self._faulted(self._layers(rng), rng)
            x = canvas[top : top + height, left : left + width]
            peak = np.abs(x).max()
        return {"x": torch.from_numpy(x / peak).unsqueeze(0)}

    def _layers(self, rng: np.random.Generator) -> np.ndarray:
        """Layers before faulting, painted on the canvas."""
        height, width = self._canvas
        x = np.arange(width)
        relief = math.ceil(self._relief)
        z = np.flatnonzero(
            rng.random(height + 2 * relief) < 1 / self.thickness
        ) - float(relief)
        a = rng.standard_normal(len(z))[:, None]
        phase = rng.uniform(0, 2 * np.pi, (len(z), 1))
        a = a * (1 + 0.2 * np.cos(2 * np.pi * x / width + phase))
        z, a = self._pinched(z, a, rng)

        # Wavelengths of at least 4 pi times the amplitude keep the slopes below 0.5
        shortest = 4 * np.pi * self.fold
        waves = np.maximum(rng.uniform(0.5, 1.5, (2, 1)) * self.img_size[1], shortest)
        phases, share = rng.uniform(0, 2 * np.pi, (2, 1)), rng.random()
        cosines = np.cos(2 * np.pi * x / waves + phases)
        f = self.fold * rng.random() * (share * cosines[0] + (1 - share) * cosines[1])
        f = f + self.dip * rng.uniform(-1, 1) * (x - width / 2)
        surface = rng.random()
        growth = surface + (1 - surface) * np.clip(z / height, 0, 1)

        t = np.rint(z + growth * f).astype(np.int64)
        inside = (t >= 0) & (t < height)
        cells = (t * width + x)[inside]
        return np.bincount(cells, a[inside], height * width).astype(np.float32).reshape(height, width)

    def _pinched(
        self, z: np.ndarray, a: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Depth and coefficient of each interface at each trace, after some have pinched out."""
        width = self._canvas[1]
        # Every second one only: the neighbour on which an interface ends must not end itself
        ends = np.arange(1, len(z) - 1, 2)
        ends = ends[rng.random(len(ends)) < self.pinch_out]
        n = (len(ends), 1)
        gap = z[ends + rng.choice((-1, 1), len(ends))][:, None] - z[ends][:, None]
        start, toward = rng.uniform(0, width, n), rng.choice((-1, 1), n)
        run = np.abs(gap) * rng.uniform(4, 16, n)
        progress = np.clip((np.arange(width) - start) * toward / run, 0, 1)
        z = np.repeat(z[:, None], width, axis=1)
        z[ends] += gap * progress
        # Closer than one sample to its neighbour, the layer is thinner than the grid resolves
        a[ends] *= np.abs(gap) * (1 - progress) >= 1
        return z, a

    def _faulted(self, canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The canvas after each fault has slid its upper side down along its line."""
        height, width = canvas.shape
        t, x = np.arange(height)[:, None], np.arange(width)
        for _ in range(rng.integers(self.faults + 1)):
            middle = self._margin[1] + rng.uniform(0, self.img_size[1])
            slope = rng.uniform(0.2, 0.7) * rng.choice((-1, 1))
            down = max(1, round(self.throw * rng.uniform(1 / 3, 1)))
            along = round(slope * down)
            line = middle + slope * (t - height / 2)
            above = x > line if slope > 0 else x < line
            # The margin is wide enough that what np.roll wraps around never reaches the section
            canvas = np.where(above, np.roll(canvas, (down, along), (0, 1)), canvas)
        return canvas


class BrainSliceDataset(ImageDataset):
    r"""
    Slices of a human brain, from the MNI152 T1 template that the nilearn package carries: no download.

    The template (ICBM 2009a nonlinear symmetric [1]_, 1 mm, skull removed) is the average of 152 heads: real anatomy,
    smoother than one scan. It suits examples and tests, not claims about patients. Training and test
    slices are different anatomy of one head, not different heads.

    The split works on the position :math:`p` of a slice in whole mm of MNI space (:math:`x`, :math:`y` or :math:`z`):
    :math:`p \bmod 40` in 0 to 24 is for training, in 29 to 35 for testing, the others are left out, so
    that the two sets of one plane are at least 5 mm apart. Slices of different planes do intersect. The template is
    mirror-symmetric, so sagittal slices come from :math:`p \geq 0` only. Slices with less than 30 % of
    the brain area of the largest in their plane are left out.

    Pictures are upright and in radiological view: anterior or superior on top, the patient's right on the
    left, in sagittal slices anterior on the left. They are centred on the brain's bounding box (181 x 145 mm axial,
    155 x 145 mm coronal, 155 x 181 mm sagittal), cropped or padded with zeros, and divided by their maximum.

    :param str split: ``"train"`` or ``"test"``. Default: ``"train"``.
    :param tuple[int, int] img_size: height and width `(H, W)` in pixels. Default: `(192, 192)`.
    :param str plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``. Default: ``"axial"``.
    :param float resolution: size of a pixel in mm, up to half a mm over the whole picture. Default: 1. Use 2 with
        `(96, 96)` to show the whole brain; other values than 1 resample with an antialiasing filter.
    :param int spacing: keep the slices whose position is a multiple of this many mm. Default: 1.
    :param int copies: how often each slice appears, each time with an augmentation of its own. Default: 1.
    :param bool contrast: whether to raise each sample to a power, log-uniform in 2/3 to 3/2. Default: ``False``.
    :param bool flip: whether to mirror half of the samples, front to back. For sagittal slices only, as
        the others are symmetric. Default: ``False``.
    :param int seed: seed of the augmentation, from 0. Sample :math:`i` depends on ``seed`` and :math:`i` alone, in
        every epoch; for fresh augmentation use more ``copies`` or another seed. Default: 0.
    :raises ImportError: if nilearn, an optional extra, is missing.
    :raises TypeError: if a number is of the wrong type.
    :raises ValueError: if an argument is unknown or out of its range, ``flip`` is asked for a symmetric plane, or no
        slice is left.

    Each sample is ``{"x": x}`` with ``x`` of shape `(2, H, W)`, real part in [0, 1] and imaginary part 0. The
    attribute ``positions`` holds the position in mm of each sample.

    .. [1] V. Fonov et al., "Unbiased average age-appropriate atlases for pediatric studies", NeuroImage, 2011.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dataset = dj.BrainSliceDataset("test", img_size=(96, 96), resolution=2)
    >>> dataset[0]["x"].shape
    torch.Size([2, 96, 96])
    >>> dataset.positions[:4]
    tensor([-11., -10.,  -9.,  -8.])
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
        if split not in BLOCKS:
            raise ValueError(f"split must be one of {tuple(BLOCKS)}, got {split!r}.")
        if plane not in PLANES:
            raise ValueError(f"plane must be one of {PLANES}, got {plane!r}.")
        if flip and plane != "sagittal":
            raise ValueError(
                f"flip needs plane='sagittal', got {plane!r}: the template is symmetric, so its "
                "mirrored axial and coronal slices are the same slices."
            )
        img_size = _size(img_size)
        resolution = _number("resolution", resolution, 0.1, 10)
        spacing, copies = _whole("spacing", spacing, 1), _whole("copies", copies, 1)
        self.contrast, self.flip = contrast, flip
        self.seed = _whole("seed", seed, 0)

        volume, positions = _template()
        axis = PLANES.index(plane)
        stack, positions = volume.movedim(axis, 0).mT, positions[axis]
        area = (stack > 0).sum((1, 2))
        keep = (area >= MIN_AREA * area.max()) & (positions % spacing == 0)
        keep &= torch.isin(positions % PERIOD, torch.tensor(BLOCKS[split]))
        if plane == "sagittal":
            keep &= positions >= 0
        if not keep.any():
            raise ValueError(
                f"spacing must leave a slice, got {spacing} mm: reduce it."
            )
        self._slices = _resampled(stack[keep], img_size, resolution)
        self.positions = positions[keep].float().repeat(copies)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = _index(index, len(self))
        x = self._slices[index % len(self._slices)]
        rng = _rng(self.seed, index)
        # Drawn whether used or not, so that neither option changes the other
        exponent, mirrored = 1.5 ** rng.uniform(-1, 1), rng.random() < 0.5
        if self.contrast:
            x = x**exponent
        if self.flip and mirrored:
            x = x.flip(-1)
        return {"x": torch.stack([x, torch.zeros_like(x)])}


def fastmri_slices(
    root: str | Path,
    *,
    save_path: str | Path | None = None,
    img_size: tuple[int, int] = (320, 320),
    slice_index: str | int | tuple[int, ...] = "all",
    subsample_volumes: float = 1.0,
    rng: torch.Generator | None = None,
) -> SimpleFastMRISliceDataset:
    r"""
    Slices of a folder of fastMRI volumes [1]_, held in memory, by deepinv's own loaders.

    The images are those of the files: ``reconstruction_esc`` (single-coil) or ``reconstruction_rss``. Each is brought
    to [0, 1] by its minimum and maximum, then centre-cropped or padded with zeros. fastMRI's test and
    challenge files hold no images and are refused; files that cannot be read are skipped with a warning. deepinv also
    reads the k-space of each slice, though only the image is kept, and shows progress bars.

    :param str, pathlib.Path root: folder of ``.h5`` files, from https://fastmri.med.nyu.edu.
    :param str, pathlib.Path, None save_path: file to keep the slices in, overwritten if it exists. Loading it later
        with :class:`deepinv.datasets.SimpleFastMRISliceDataset` (``root_dir``, ``file_name``,
        ``use_dict_output=True``) takes seconds instead of minutes. Default: ``None``, not kept.
    :param tuple[int, int] img_size: height and width `(H, W)`. Default: the paper's `(320, 320)`, 0.4 MB a slice.
    :param str, int, tuple[int] slice_index: slices of each volume: ``"all"`` (default), ``"middle"``, ``"middle+i"``,
        ``"random"``, one index or several.
    :param float subsample_volumes: share of the volumes to keep, chosen at random. Default: 1.
    :param torch.Generator, None rng: source of the random choices. Default: ``None``, the global generator.
    :return: (:class:`deepinv.datasets.SimpleFastMRISliceDataset`) samples ``{"x": x}`` with ``x`` of shape
        `(2, H, W)`, real part in [0, 1] and imaginary part 0.
    :raises FileNotFoundError: if ``root`` is no folder, or holds no readable ``.h5`` file.
    :raises ValueError: if a file holds no images, or an argument is out of its range.

    .. [1] J. Zbontar et al., "fastMRI: an open dataset and benchmarks for accelerated MRI", arXiv:1811.08839, 2018.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> train = dj.fastmri_slices("singlecoil_train", slice_index="middle+5")  # doctest: +SKIP
    >>> train[0]["x"].shape  # doctest: +SKIP
    torch.Size([2, 320, 320])
    """
    img_size = _size(img_size)
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"root must be a folder of fastMRI .h5 files, {root} is none."
        )
    volumes = FastMRISliceDataset(
        root,
        slice_index=slice_index,
        subsample_volumes=subsample_volumes,
        rng=rng,
        use_dict_output=True,
    )
    if len(volumes) == 0:
        raise FileNotFoundError(
            f"root must hold readable fastMRI .h5 files, {root} holds none."
        )
    for path in {sample.fname for sample in volumes.samples}:
        with h5py.File(path) as file:
            if not {"reconstruction_esc", "reconstruction_rss"} & set(file):
                raise ValueError(
                    f"every file must hold reconstruction_esc or reconstruction_rss, {path} holds "
                    f"{sorted(file)}: use fastMRI's train or val files."
                )
    # deepinv builds the dataset through a file, and reads all of it back before it returns
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "slices.pt") if save_path is None else Path(save_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return volumes.save_simple_dataset(path, pad_to_size=img_size)


@functools.cache
def _template() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Template cropped to the brain, each axis in order of display, and the positions in mm along each."""
    try:
        # An optional extra that takes seconds to import, for this one function
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise ImportError(
            "BrainSliceDataset needs nilearn, which is not installed: "
            'pip install "deepinv_jitter[examples]".'
        ) from error
    image = load_mni152_template(resolution=1)
    # The axes run to the right, to the front and up; radiological view shows each the other way
    volume = torch.from_numpy(image.get_fdata(dtype=np.float32)).flip(0, 1, 2)
    brain = volume.nonzero()
    box = [
        slice(a, b + 1) for a, b in zip(brain.amin(0).tolist(), brain.amax(0).tolist())
    ]
    origin = image.affine[:3, 3].round().astype(int).tolist()
    positions = [(o + torch.arange(n)).flip(0) for o, n in zip(origin, volume.shape)]
    return volume[tuple(box)], [p[s] for p, s in zip(positions, box)]


def _resampled(
    stack: torch.Tensor, size: tuple[int, int], resolution: float
) -> torch.Tensor:
    """Slices of 1 mm, centred in a field of view of size x resolution mm, resampled and scaled."""
    before, pad = [], []
    for n, have in zip(size, stack.shape[1:]):
        missing = max(1, round(n * resolution)) - have
        before.append(missing // 2)
        pad = [missing // 2, missing - missing // 2, *pad]
    # Negative padding crops
    stack = F.pad(stack, pad).unsqueeze(1)
    if stack.shape[2:] != size:
        stack = F.interpolate(stack, size=size, mode="bilinear", antialias=True)
    stack = stack.squeeze(1)
    return stack / stack.amax((1, 2), keepdim=True).clamp_min(
        torch.finfo(stack.dtype).tiny
    )


def _rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))


def _index(index: int, length: int) -> int:
    """The index counted from 0, after the rules of a sequence."""
    i = operator.index(index)
    if not -length <= i < length:
        raise IndexError(f"index must lie from {-length} to {length - 1}, got {i}.")
    return i % length


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def _number(name: str, value: float, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(
            f"{name} must be finite and lie from {low} to {high}, got {value}."
        )
    return float(value)


def _size(img_size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(img_size, Iterable) or len(size := tuple(img_size)) != 2:
        raise ValueError(f"img_size must hold two whole numbers, got {img_size!r}.")
    return _whole("img_size", size[0], 1), _whole("img_size", size[1], 1)
