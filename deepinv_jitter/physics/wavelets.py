r"""Wavelets: the Ricker wavelet, and what a wavelet must be."""

from __future__ import annotations

import math
import warnings

import torch

from .. import checks
from .parameters import as_tensor


def ricker(
    points: int = 51,
    a: float | None = None,
    *,
    frequency: float | None = None,
    dt: float | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    r"""
    Ricker wavelet (Mexican hat) :math:`w_t = (1 - t^2/a^2)\,e^{-t^2/(2a^2)}`, of peak 1.

    Its width is given in one of two ways: by ``a``, or by the peak frequency :math:`f` of its
    spectrum and the sampling interval, as seismic surveys do: :math:`a = 1/(\sqrt{2}\,\pi f
    \,\Delta t)` samples. 25 Hz at 4 ms are :math:`a = 2.25`. The defaults are those of the paper's
    published code.

    :param int points: length in samples, odd. Default: 51.
    :param float a: width in samples, from the centre to the zero crossings; a warning says where
        ``points`` cut it off before twice that. Default: 4, if there is no ``frequency``.
    :param float frequency: peak frequency in Hz, instead of ``a``; below half of the sampling rate.
    :param float dt: sampling interval in ms, together with ``frequency``.
    :param torch.dtype dtype: real type. Default: torch's default type.
    :param torch.device, str device: device. Default: torch's default device.
    :return: (:class:`torch.Tensor`) wavelet, shape `(points,)`.
    :raises TypeError: if a number is none of its type, or ``dtype`` not real.
    :raises ValueError: if ``points`` is even or below 1, another number is not positive and finite,
        the width is given in both ways or by half of one, ``frequency`` cannot be sampled at
        ``dt``, or ``points`` cut off a wavelet of that frequency before it has died away.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dj.ricker(5, a=1.0)
    tensor([-0.4060,  0.0000,  1.0000,  0.0000, -0.4060])
    >>> wavelet = dj.ricker(51, frequency=25.0, dt=4.0)
    >>> wavelet[25:28]
    tensor([1.0000, 0.7272, 0.1418])
    """
    points = checks.whole("points", points, 1)
    if points % 2 != 1:
        raise ValueError(
            f"points must be odd, got {points}: only an odd wavelet has a centre sample."
        )
    if (frequency is None) != (dt is None) or None not in (a, frequency):
        raise ValueError(
            "give either a, in samples, or both frequency, in Hz, and dt, in ms, got "
            f"a={a}, frequency={frequency} and dt={dt}."
        )
    if frequency is None or dt is None:
        given, a = a is not None, checks.positive("a", 4.0 if a is None else a)
        if given and 1 < points < 4 * a:
            warnings.warn(
                f"the wavelet is cut off: {points} points hold less than two widths of a={a:g} "
                "samples on either side. A frequency in Hz is given as frequency, with dt in ms.",
                stacklevel=2,
            )
    else:
        a = _width(frequency, dt, points)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a real type, got {dtype}.")
    t = torch.arange(points, dtype=dtype or torch.get_default_dtype(), device=device)
    # A spike in any precision below 1e-9, and for u beyond 1e4: neither 0/0 nor inf * 0
    u = (((t - points // 2) / max(a, 1e-9)) ** 2).clamp_max(1e4)
    return (1 - u) * torch.exp(-u / 2)


def _width(frequency: float, dt: float, points: int) -> float:
    """The width, in samples, of a wavelet that is sampled finely and long enough."""
    dt = checks.positive("dt", dt)
    frequency = checks.positive("frequency", frequency)
    nyquist = 500 / dt
    if frequency >= nyquist:
        raise ValueError(
            f"frequency must be below half of the sampling rate, {nyquist:g} Hz at dt={dt:g} ms, "
            f"got {frequency:g} Hz: frequency is in Hz, dt in ms."
        )
    a = 1000 / (math.sqrt(2) * math.pi) / frequency / dt
    # Four widths from its centre it has fallen to half a percent of its peak
    needed = 2 * math.ceil(4 * min(a, 1e9)) + 1
    if points < needed:
        raise ValueError(
            f"points must be at least {needed} for {frequency:g} Hz at dt={dt:g} ms, got {points}, "
            "which would cut the wavelet off: frequency is in Hz, dt in ms."
        )
    return a


def checked_wavelet(wavelet: torch.Tensor) -> torch.Tensor:
    wavelet = as_tensor("wavelet", wavelet)
    whole = not (wavelet.is_floating_point() or wavelet.is_complex())
    if whole and wavelet.dtype != torch.bool:
        wavelet = wavelet.to(torch.get_default_dtype())
    shape = f"shape {tuple(wavelet.shape)} of {wavelet.dtype}"
    fault = None
    if wavelet.ndim != 1:
        fault = shape, "give one wavelet for all traces, as a vector"
    elif len(wavelet) % 2 == 0:
        fault = shape, "add a zero at the end nearer to its peak"
    elif not wavelet.is_floating_point():
        fault = shape, "take its real part" if wavelet.is_complex() else "give numbers"
    # One look at the values of a good wavelet, for which a GPU waits
    elif not peak_gain(wavelet).square().isfinite() & wavelet.any():
        if wavelet.isfinite().all() and wavelet.any():
            fault = ("values whose sums overflow when squared", "divide it by its maximum")
        else:
            fault = ("zeros only, or values that are not finite", "ricker(51, 4.0) is one")
    if fault:
        raise ValueError(
            "wavelet must be 1-D, real, of odd length, finite and not all zero, "
            f"got {fault[0]}: {fault[1]}."
        )
    return wavelet


def peak_gain(wavelet: torch.Tensor) -> torch.Tensor:
    """Peak of the frequency response, never underestimated: ||A|| <= 1 depends on it."""
    points = 512 * len(wavelet)
    wavelet = wavelet.to(torch.promote_types(wavelet.dtype, torch.float32))
    # Between its n values on a grid, a trigonometric polynomial of degree d exceeds them by at
    # most 1 / cos(pi d / n) (Ehlich and Zeller, 1964).
    excess = 1 / math.cos(math.pi * (len(wavelet) // 2) / points)
    return torch.fft.rfft(wavelet, points).abs().max() * excess
