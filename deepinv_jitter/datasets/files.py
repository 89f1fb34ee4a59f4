r"""Ground truths from files: fastMRI volumes and SEG-Y sections, by the readers of others."""

from __future__ import annotations

import re
import tempfile
from numbers import Integral
from pathlib import Path

import h5py
import numpy as np
import torch
from deepinv.datasets import FastMRISliceDataset, SimpleFastMRISliceDataset

from .. import checks

DIRECTIONS = ("inline", "crossline", "trace")


def fastmri_slices(
    root: str | Path,
    *,
    save_path: str | Path | None = None,
    img_size: tuple[int, int] = (320, 320),
    slice_index: str | int | tuple[int, ...] = "all",
) -> SimpleFastMRISliceDataset:
    r"""
    Slices of a folder of fastMRI volumes (Zbontar et al., arXiv:1811.08839), by deepinv's loaders.

    The images are those in the files, ``reconstruction_esc`` or ``reconstruction_rss``, each
    brought to [0, 1] by its own minimum and maximum and then centre-cropped or padded with zeros.
    deepinv reads the k-space of every slice along with them and shows progress bars. All files are
    looked at before any is read: one that is broken or not a volume is an error, so that a data set
    never lacks volumes without a word. fastMRI's test and challenge files hold no images.

    :param str, pathlib.Path root: folder of ``.h5`` files, from https://fastmri.med.nyu.edu.
    :param str, pathlib.Path, None save_path: file in which to keep the slices, overwritten if it
        exists; :class:`deepinv.datasets.SimpleFastMRISliceDataset` loads it again with
        ``root_dir``, ``file_name`` and ``use_dict_output=True``. Default: ``None``, not kept.
    :param tuple[int, int] img_size: `(H, W)`. Default: the paper's `(320, 320)`, which take 0.4 MB
        of memory per slice.
    :param str, int, tuple[int, ...] slice_index: slices of each volume: ``"all"``, ``"middle"``,
        ``"middle+i"`` (the middle one and ``i`` on either side), or indices. Default: ``"all"``.
    :return: (:class:`deepinv.datasets.SimpleFastMRISliceDataset`) samples ``{"x": x}`` with ``x``
        of shape `(2, H, W)`, the real part in [0, 1] and the imaginary part 0.
    :raises FileNotFoundError: if ``root`` is no folder or holds no ``.h5`` file.
    :raises IsADirectoryError: if ``save_path`` is a folder.
    :raises TypeError: if ``slice_index`` is none of the above.
    :raises ValueError: if a file is no fastMRI volume with images or holds NaN or infinity in a
        slice, or an argument is out of range.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dj.fastmri_slices("knee/singlecoil_train")
    Traceback (most recent call last):
    FileNotFoundError: root must be a folder of fastMRI .h5 files, got knee/singlecoil_train.
    """
    img_size = checks.sizes("img_size", img_size, 2)
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"root must be a folder of fastMRI .h5 files, got {root}."
        )
    if save_path is not None and Path(save_path).is_dir():
        raise IsADirectoryError(
            f"save_path must be a file, got the folder {save_path}."
        )
    paths = sorted(Path(root).glob("*.h5"))
    if not paths:
        raise FileNotFoundError(
            f"root must hold fastMRI .h5 files, found none in {root}."
        )
    for path in paths:
        _check_slices(slice_index, _fastmri_slices_in(path), path)
    volumes = FastMRISliceDataset(
        root, slice_index=slice_index, transform=_finite_slice, use_dict_output=True
    )
    # The host returns its dataset through a file, all of which it has read back by then
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "slices.pt") if save_path is None else Path(save_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return volumes.save_simple_dataset(path, pad_to_size=img_size)


def _fastmri_slices_in(path: Path) -> int:
    """The number of slices of a volume, once what it holds has been checked."""
    try:
        with h5py.File(path) as file:
            names = sorted(file)
            k = file.get("kspace")
            x = file.get("reconstruction_esc", file.get("reconstruction_rss"))
            k, x = ((v.shape, v.dtype) if hasattr(v, "dtype") else None for v in (k, x))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"every .h5 file must be a fastMRI volume, {path} cannot be read ({error}): load it "
            "down again, or take it out of the folder."
        ) from error
    if k is None:
        raise ValueError(
            f"every file must hold kspace, {path} holds {names}: take it out of the folder."
        )
    if x is None:
        raise ValueError(
            f"every file must hold reconstruction_esc or reconstruction_rss, {path} holds "
            f"{names}: use fastMRI's train or val files."
        )
    if k[1].kind != "c" or len(k[0]) not in (3, 4) or 0 in k[0]:
        raise ValueError(
            "kspace must be complex, of shape (slices, H, W) or (slices, coils, H, W), "
            f"{path} holds {k[0]} of {k[1]}."
        )
    if x[1].kind != "f" or len(x[0]) != 3 or x[0][0] != k[0][0] or 0 in x[0]:
        raise ValueError(
            f"images must be real, of shape (slices, H, W) with the {k[0][0]} slices of kspace, "
            f"{path} holds {x[0]} of {x[1]}."
        )
    return x[0][0]


def _check_slices(chosen: str | int | tuple[int, ...], count: int, path: Path) -> None:
    if isinstance(chosen, str):
        match = re.fullmatch(r"all|middle(?:\+(\d+))?", chosen)
        if not match:
            raise ValueError(
                "slice_index must be 'all', 'middle', 'middle+i' or indices, got "
                f"{chosen!r}."
            )
        around = int(match[1] or 0)
        wanted = (count // 2 - around, count // 2 + around)
    else:
        wanted = chosen if isinstance(chosen, (tuple, list)) else (chosen,)
        for index in wanted:
            checks.number("slice_index", index, Integral)
        around = 0
        wanted = [i + count if i < 0 else i for i in wanted]
    if not wanted or not 0 <= min(wanted) <= max(wanted) < count:
        raise ValueError(
            f"slice_index must choose slices of every volume, got {chosen!r}, but {path} has "
            f"{count}."
        )


def _finite_slice(target, kspace, seed, metadata, **params):
    """A transform of the host's, which changes nothing: it sees all that is read."""
    for name, values in {"kspace": kspace, "the image": target}.items():
        if not values.isfinite().all():
            # The host's seed is the path and the number
            path, number = seed.rsplit(".h5", 1)
            raise ValueError(
                f"{name} must be finite, got NaN or infinity in slice {number} of {path}.h5: take "
                "the file out of the folder, or leave the slice out by slice_index."
            )
    return target, kspace, params


def segy_sections(
    path: str | Path,
    *,
    img_size: tuple[int, int] = (352, 352),
    direction: str = "inline",
) -> torch.Tensor:
    r"""
    Sections of a post-stack SEG-Y file, read by `segyio <https://segyio.readthedocs.io>`_.

    The file is cut into windows side by side, from the first sample and the first trace; what is
    left over at the far ends fills no window and is left out. Each section is divided by its
    largest magnitude, so that it lies in :math:`[-1, 1]`; a section of dead traces stays 0.

    Whether the sections are truths or measurements is for you to say: a reflectivity model is
    ``deepinv.datasets.TensorDataset(x=sections)``, recorded data are ``TensorDataset(y=sections)``.

    :param str, pathlib.Path path: the file.
    :param tuple[int, int] img_size: `(samples, traces)` of a section. Default: the paper's
        `(352, 352)`.
    :param str direction: ``"inline"`` (default) or ``"crossline"``, for files with that geometry,
        or ``"trace"``: one line, all traces in the order of the file.
    :return: (:class:`torch.Tensor`) the sections, shape `(N, 1, samples, traces)`, time downwards,
        in single precision.
    :raises ImportError: if segyio is not installed.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is no SEG-Y file, has no inlines and crosslines, is smaller than
        one section or holds values that are not finite, or if ``direction`` is unknown.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dj.segy_sections("survey.sgy", direction="trace")
    Traceback (most recent call last):
    FileNotFoundError: path must be a SEG-Y file, got survey.sgy.
    """
    size = checks.sizes("img_size", img_size, 2)
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {DIRECTIONS}, got {direction!r}.")
    if not Path(path).is_file():
        raise FileNotFoundError(f"path must be a SEG-Y file, got {path}.")
    lines = _segy_lines(path, direction)
    windows = [
        line.unfold(0, size[0], size[0]).unfold(1, size[1], size[1]).flatten(0, 1)
        for line in lines
        if line.shape[0] >= size[0] and line.shape[1] >= size[1]
    ]
    if not windows:
        raise ValueError(
            f"img_size must fit into the file, got {size}, but its lines along {direction!r} have "
            f"{tuple(lines[0].shape)} samples and traces."
        )
    x = torch.cat(windows)[:, None]
    if not x.isfinite().all():
        raise ValueError(f"sections must be finite, {path} holds NaN or infinity.")
    largest = x.abs().amax((1, 2, 3), keepdim=True)
    return x / largest.clamp_min(torch.finfo(x.dtype).tiny)


def _segy_lines(path: str | Path, direction: str) -> list[torch.Tensor]:
    """The lines of a file, each of shape `(samples, traces)`."""
    try:
        import segyio  # inside the function, as it is an optional extra
    except ImportError as error:
        raise ImportError(
            "segy_sections needs segyio, which is not installed: "
            'run pip install "deepinv_jitter[segy]".'
        ) from error
    along_line = direction != "trace"
    try:
        with segyio.open(str(path), strict=False, ignore_geometry=not along_line) as f:
            if not along_line:
                lines = [f.trace.raw[:]]
            elif f.unstructured:
                raise ValueError(
                    f"direction={direction!r} needs a file with inlines and crosslines, {path} has "
                    "none: use direction='trace'."
                )
            else:
                lines = f.iline if direction == "inline" else f.xline
            return [torch.from_numpy(np.array(line.T, np.float32)) for line in lines]
    except (RuntimeError, OSError) as error:
        raise ValueError(f"path must be a SEG-Y file, {path}: {error}.") from error
