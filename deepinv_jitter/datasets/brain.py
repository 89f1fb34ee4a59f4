r"""Slices of a real brain that need no download."""

from __future__ import annotations

import functools

import numpy as np
import torch
from deepinv.datasets import ImageDataset
from torch.nn import functional as F

from .. import checks
from .indexed import from_zero, sample_rng

PLANES = ("sagittal", "coronal", "axial")
# The positions of each split in every 40 mm along an axis; the splits are 5 mm apart everywhere
PERIOD = 40
BLOCKS = {"train": range(0, 25), "test": range(29, 36)}
SMALLEST_AREA = 0.3  # of that of the largest slice of a plane


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
    mm apart, though slices of different planes cross. Sagittal slices with :math:`p < 0`, the
    mirror images of the others, are left out as well, and so are slices with less than 30 % of the
    brain area of the largest in their plane.

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

    The attribute ``positions`` holds the position of each sample in mm, shape `(length,)`, and
    ``peak``, 1, the range of the values, which PSNR and SSIM refer to in
    :func:`evaluate_robustness`.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dataset = dj.BrainSliceDataset("test", img_size=(96, 96), resolution=2)
    >>> dataset[0]["x"].shape
    torch.Size([2, 96, 96])
    >>> dataset.positions[:3]
    tensor([35., 34., 33.])
    """

    peak = 1.0

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
        checks.choice("split", split, tuple(BLOCKS))
        checks.choice("plane", plane, PLANES)
        size = checks.sizes("img_size", img_size, 2)
        resolution = checks.real("resolution", resolution, 0.1, 10)
        spacing = checks.whole("spacing", spacing, 1, 1000)
        copies = checks.whole("copies", copies, 1)
        self.contrast, self.flip = contrast, flip
        # The template is its own mirror image from left to right
        self._mirrored_axis = -1 if plane == "sagittal" else -2
        self.seed = checks.whole("seed", seed, 0)

        volume, positions = _brain()
        axis = PLANES.index(plane)
        slices, p = volume.movedim(axis, 0).mT, positions[axis]
        area = (slices > 0).sum((1, 2))
        keep = (area >= SMALLEST_AREA * area.max()) & (p % spacing == 0)
        keep &= torch.isin(p % PERIOD, torch.tensor(BLOCKS[split], device="cpu"))
        if plane == "sagittal":
            keep &= p >= 0
        if not keep.any():
            raise ValueError(f"spacing must leave a {split} slice, {spacing} mm leaves none.")
        self.positions = p[keep].float().repeat(copies)
        self._slices = _resampled(slices[keep], size, resolution)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = from_zero(index, len(self))
        x = self._slices[index % len(self._slices)]
        rng = sample_rng(self.seed, index)
        # Both are drawn in any case, so that neither option changes the other
        power, mirrored = 1.5 ** rng.uniform(-1, 1), rng.random() < 0.5
        if self.contrast:
            x = x**power
        if self.flip and mirrored:
            x = x.flip(self._mirrored_axis)
        return {"x": torch.stack([x, torch.zeros_like(x)])}


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
    brain = volume.nonzero()
    box = tuple(map(slice, brain.amin(0).tolist(), (brain.amax(0) + 1).tolist()))
    # The axes run to the right, to the front and up; a radiological view shows each from its end
    positions = [
        round(o) + torch.arange(s.start, s.stop, device="cpu").flip(0)
        for o, s in zip(template.affine[:3, 3], box, strict=True)
    ]
    return volume[box].flip(0, 1, 2), positions


def _resampled(slices: torch.Tensor, size: tuple[int, ...], resolution: float) -> torch.Tensor:
    """Slices of 1 mm per pixel, cut to ``size`` pixels of ``resolution`` mm and scaled."""
    field = [max(1, round(n * resolution)) for n in size]
    height, width = slices.shape[1:]
    rows, columns = field[0] - height, field[1] - width
    # Negative padding crops
    x = F.pad(slices, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    if tuple(field) != size:
        x = F.interpolate(x[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
    return x / x.amax((1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
