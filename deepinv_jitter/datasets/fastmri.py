r"""Slices of fastMRI volumes."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from deepinv.datasets import SimpleFastMRISliceDataset
from deepinv.datasets.utils import Rescale
from torchvision.transforms import CenterCrop, Compose
from tqdm import tqdm

from .. import checks

IMAGES = ("reconstruction_esc", "reconstruction_rss")


def fastmri_slices(
    root: str | Path,
    *,
    save_path: str | Path | None = None,
    img_size: tuple[int, int] = (320, 320),
    slice_index: str | int | Iterable[int] = "all",
    verbose: bool = True,
) -> SimpleFastMRISliceDataset:
    r"""
    Slices of a folder of fastMRI volumes (Zbontar et al., arXiv:1811.08839).

    The images are those in the files, ``reconstruction_esc`` or ``reconstruction_rss``, each
    scaled to [0, 1] by its own minimum and maximum and then centre-cropped; where an image is
    smaller than ``img_size`` it is padded with zeros, and a warning says so. The k-space, many
    times as large, is not read. All files are looked at before any is read: one that is broken or
    not a volume is an error, so that a data set never lacks volumes without a word. fastMRI's test
    and challenge files hold no images.

    :param str, pathlib.Path root: folder of ``.h5`` files, from https://fastmri.med.nyu.edu. The
        folders in it are not searched.
    :param str, pathlib.Path, None save_path: file in which to keep the slices, overwritten if it
        exists, once all have been read; :class:`deepinv.datasets.SimpleFastMRISliceDataset` loads
        it again with ``root_dir``, ``file_name`` and ``use_dict_output=True``. Default: ``None``,
        not kept.
    :param tuple[int, int] img_size: `(H, W)`. Default: the paper's `(320, 320)`, which take 0.4 MB
        of memory per slice.
    :param str, int, Iterable[int] slice_index: slices of each volume: ``"all"``, ``"middle"``,
        ``"middle+i"`` (the middle one and ``i`` on either side), or indices. Default: ``"all"``.
    :param bool verbose: show progress, in a terminal. Default: ``True``.
    :return: (:class:`deepinv.datasets.SimpleFastMRISliceDataset`) samples ``{"x": x}`` with ``x``
        of shape `(2, H, W)`, in single precision, the real part in [0, 1] and the imaginary part 0.
    :raises FileNotFoundError: if ``root`` is no folder or holds no ``.h5`` file.
    :raises IsADirectoryError: if ``save_path`` is a folder.
    :raises BlockingIOError: if another program has a file open.
    :raises PermissionError: if a file or folder may not be read, or ``save_path`` not be written.
    :raises TypeError: if ``slice_index`` is none of the above.
    :raises ValueError: if a file is no fastMRI volume with images or holds NaN or infinity in a
        slice, ``save_path`` is one of the volumes, or an argument is out of range.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dj.fastmri_slices("knee/singlecoil_train")
    Traceback (most recent call last):
    FileNotFoundError: root must be a folder of fastMRI .h5 files, got knee/singlecoil_train.
    """
    size = checks.sizes("img_size", img_size, 2)
    chosen = _chosen(slice_index)
    paths = _paths(Path(root).expanduser())
    kept = None if save_path is None else Path(save_path).expanduser()
    if kept is not None and kept.is_dir():
        raise IsADirectoryError(f"save_path must be a file, got the folder {save_path}.")
    if kept is not None and kept.exists() and any(kept.samefile(p) for p in paths):
        raise ValueError(f"save_path must be none of the volumes, got {save_path}.")

    # None: in a terminal only
    bar = partial(tqdm, disable=None if verbose else True, unit="file")
    volumes = [_volume(path, chosen) for path in bar(paths, "fastMRI files, checked")]
    small = [v for v in volumes if v.size[0] < size[0] or v.size[1] < size[1]]
    if small:
        warnings.warn(
            f"img_size={size} is larger than the images in {len(small)} of {len(volumes)} files, "
            f"the first {small[0].path} with {small[0].size}: they are padded with zeros, which "
            "adds no detail and makes every error smaller.",
            stacklevel=2,
        )
    crop = Compose([Rescale(), CenterCrop(size)])
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
    # The host's data set is loaded from a file. Beside the one to keep, it takes its place in one
    # step, and a place that may not be written is known before hours of reading
    with tempfile.TemporaryDirectory(dir=kept and kept.parent) as folder:
        # A crop is a view that keeps its whole image, so each is copied to its place
        count = sum(len(volume.slices) for volume in volumes)
        slices = torch.empty(count, *size, dtype=torch.float32, device="cpu")
        free = iter(slices)
        for volume in bar(volumes, "fastMRI files, read"):
            for image in _images(volume):
                next(free).copy_(crop(image)[0])
        path = Path(folder, "slices.pt")
        torch.save(slices, path)
        del slices, free  # the data set holds its own
        dataset = SimpleFastMRISliceDataset(folder, file_name=path.name, use_dict_output=True)
        if kept is not None:
            path.replace(kept)
    dataset.peak = 1.0
    return dataset


class Volume(NamedTuple):
    path: Path
    name: str  # of the images in it
    size: tuple[int, int]
    slices: list[int]


def _paths(root: Path) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder of fastMRI .h5 files, got {root}.")
    # Not glob, which passes over folders that may not be read
    content = sorted(root.iterdir())
    paths = [path for path in content if path.suffix == ".h5"]
    if not paths:
        names = [path.name + "/" * path.is_dir() for path in content[:3]]
        there = ", ".join(names) + ", ..." * (len(content) > 3) or "nothing"
        raise FileNotFoundError(
            f"root must hold fastMRI .h5 files, found none in {root}, which holds {there}."
        )
    return paths


def _volume(path: Path, chosen: str | int | tuple[int, ...]) -> Volume:
    """What a file holds, once that has been checked."""
    with _readable(path), h5py.File(path) as file:
        names = sorted(file)
        images = ((name, file.get(name)) for name in IMAGES)
        found = next(((name, x.shape, x.dtype) for name, x in images if hasattr(x, "dtype")), None)
    if found is None:
        raise ValueError(
            f"every file must hold reconstruction_esc or reconstruction_rss, {path} holds "
            f"{names}: use fastMRI's train or val files, or take it out of the folder."
        )
    name, shape, dtype = found
    if dtype.kind not in "fiu" or len(shape) != 3 or 0 in shape:
        raise ValueError(
            f"images must be real, of shape (slices, H, W), {path} holds {shape} of {dtype}."
        )
    return Volume(path, name, shape[1:], _slices(chosen, shape[0], path))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Errors that say what is the case."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        kind: type[Exception] = ValueError
        rule = "be a fastMRI volume"
        advice = "download it again, or take it out of the folder"
        if isinstance(error, IsADirectoryError):
            advice = "it is a folder, take it out"
        elif isinstance(error, PermissionError):
            rule, kind = "be readable", PermissionError
            advice = "ask for the right to read it, or take it out of the folder"
        elif "lock file" in str(error):
            rule, kind = "be free to be read", BlockingIOError
            advice = (
                "another program has it open for writing, close it there. On a disk without file "
                "locks set HDF5_USE_FILE_LOCKING=FALSE in the environment before Python starts"
            )
        elif "already open for write" in str(error):
            rule, kind = "be free to be read", BlockingIOError
            advice = (
                "close it in the program that writes it. If that has died, run h5clear -s on the "
                "file"
            )
        raise kind(
            f"every .h5 file must {rule}, {path} cannot be read ({error}): {advice}."
        ) from error


def _chosen(slice_index: Any) -> str | int | tuple[int, ...]:
    if isinstance(slice_index, str):
        if not re.fullmatch(r"all|middle(\+\d+)?", slice_index):
            raise ValueError(
                f"slice_index must be 'all', 'middle', 'middle+i' or indices, got {slice_index!r}."
            )
        return slice_index
    slice_index = checks.plain(slice_index)
    if isinstance(slice_index, Iterable):
        return tuple(checks.whole("slice_index", i) for i in slice_index)
    return checks.whole("slice_index", slice_index)


def _slices(chosen: str | int | tuple[int, ...], count: int, path: Path) -> list[int]:
    if chosen == "all":
        return list(range(count))
    if isinstance(chosen, str):
        around = int(chosen.partition("+")[2] or 0)
        wanted = list(range(count // 2 - around, count // 2 + around + 1))
    else:
        indices = chosen if isinstance(chosen, tuple) else (chosen,)
        wanted = [i + count if i < 0 else i for i in indices]
    if not wanted or not 0 <= min(wanted) <= max(wanted) < count:
        raise ValueError(
            f"slice_index must choose slices of every volume, got {chosen!r}, but {path} has "
            f"{count}."
        )
    return wanted


def _images(volume: Volume) -> list[torch.Tensor]:
    """The chosen images, each of shape `(1, H, W)`."""
    images = []
    with _readable(volume.path), h5py.File(volume.path) as file:
        for i in volume.slices:
            image = np.float32(file[volume.name][i])
            if not np.isfinite(image).all():
                raise ValueError(
                    f"images must be finite, got NaN or infinity in slice {i} of {volume.path}: "
                    "take the file out of the folder, or leave the slice out by slice_index."
                )
            images.append(torch.from_numpy(image)[None])
    return images
