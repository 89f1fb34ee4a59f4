r"""Sections of SEG-Y files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import checks

# Where the code of the samples' format lies in a file, and the codes that segyio reads
CODE, FORMATS = slice(3224, 3226), {1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 16}


def segy_sections(
    path: str | Path,
    *,
    img_size: tuple[int, int] = (352, 352),
    direction: str = "inline",
    verbose: bool = True,
) -> torch.Tensor:
    r"""
    Sections of a post-stack SEG-Y file, read by `segyio <https://segyio.readthedocs.io>`_.

    The file is cut into windows side by side, from the first sample and the first trace; what is
    left over at the far ends fills no window and is left out. Each section is divided by its
    largest magnitude, so that it lies in :math:`[-1, 1]`; a section of dead traces stays 0. The
    order of the bytes, big-endian as in the standard or little-endian, is seen from the file.

    Whether the sections are truths or measurements is for you to say: a reflectivity model is
    ``deepinv.datasets.TensorDataset(x=sections)``, recorded data are ``TensorDataset(y=sections)``.

    :param str, pathlib.Path path: the file.
    :param tuple[int, int] img_size: `(samples, traces)` of a section. Default: the paper's
        `(352, 352)`.
    :param str direction: ``"inline"`` (default) or ``"crossline"``, for files with that geometry,
        or ``"trace"``: one line, all traces in the order of the file.
    :param bool verbose: show progress, in a terminal. Default: ``True``.
    :return: (:class:`torch.Tensor`) the sections, shape `(N, 1, samples, traces)`, time downwards,
        in single precision.
    :raises ImportError: if segyio is not installed.
    :raises FileNotFoundError: if there is no such file.
    :raises PermissionError: if the file may not be read.
    :raises ValueError: if the file is no SEG-Y file or not whole, has no inlines and crosslines or
        several offsets along them, is smaller than one section or holds values that are not finite,
        or if ``direction`` is unknown.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dj.segy_sections("survey.sgy", direction="trace")
    Traceback (most recent call last):
    FileNotFoundError: path must be a SEG-Y file, got survey.sgy.
    """
    size = checks.sizes("img_size", img_size, 2)
    checks.choice("direction", direction, ("inline", "crossline", "trace"))
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"path must be a SEG-Y file, got {path}.")
    lines = _lines(path, direction, verbose)
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


def _lines(path: Path, direction: str, verbose: bool) -> list[torch.Tensor]:
    """The lines of a file, each of shape `(samples, traces)`."""
    try:
        import segyio  # inside the function, as it is an optional extra
    except ImportError as error:
        raise ImportError(
            "segy_sections needs segyio, which is not installed: "
            'run pip install "deepinv_jitter[segy]".'
        ) from error
    endian, whole = _endian(path), direction == "trace"
    try:
        with segyio.open(str(path), strict=False, ignore_geometry=whole, endian=endian) as file:
            if whole:
                lines = [file.trace.raw[:]]
            elif file.unstructured:
                raise ValueError(
                    f"direction={direction!r} needs a file with inlines and crosslines, {path} has "
                    "none: use direction='trace'."
                )
            elif len(file.offsets) > 1:
                raise ValueError(
                    f"direction={direction!r} needs a post-stack file, {path} has "
                    f"{len(file.offsets)} offsets at each place: stack it, or use "
                    "direction='trace'."
                )
            else:
                lines = file.iline if direction == "inline" else file.xline
            # None: in a terminal only
            disable = None if verbose else True
            bar = tqdm(lines, f"{path.name}, read", disable=disable, unit="line")
            return [torch.from_numpy(np.array(line.T, np.float32)) for line in bar]
    except (RuntimeError, OSError, IndexError) as error:
        raise ValueError(
            f"path must be a SEG-Y file with whole traces of one length, {path} is none ({error}): "
            "download it or write it again."
        ) from error


def _endian(path: Path) -> str:
    with path.open("rb") as file:
        code = file.read(CODE.stop)[CODE]
    # A code is below 256: read in the wrong order, it is a multiple of that
    for endian in ("big", "little"):
        if int.from_bytes(code, endian) in FORMATS:
            return endian
    raise ValueError(
        f"path must be a SEG-Y file, {path} names no known format of its samples in bytes 3225 and "
        f"3226, but {int.from_bytes(code, 'big')}, not one of {sorted(FORMATS)}: correct that "
        "header if the file is SEG-Y."
    )
