r"""Seismic deconvolution: the convolution of a section with a wavelet along time."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral

import torch
from deepinv.physics import LinearPhysics, NoiseModel, ZeroNoise

from .. import checks

#: Traces of up to so many samples are multiplied by the whole Toeplitz matrix, longer ones by its
#: band, in blocks of the second size. Measured on a CPU, where both are faster than conv2d.
WHOLE, BLOCK = 512, 128


def ricker(
    points: int = 51,
    a: float = 4.0,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    r"""
    Ricker wavelet (Mexican hat) :math:`w_t = (1 - t^2/a^2)\,e^{-t^2/(2a^2)}`, of peak 1.

    The defaults are those of the paper's published code. The spectrum peaks at
    :math:`1/(\sqrt{2}\,\pi a)` cycles per sample.

    :param int points: length in samples, odd. Default: 51.
    :param float a: width in samples, from the centre to the zero crossings. Default: 4.
    :param torch.dtype dtype: real type. Default: torch's default type.
    :param torch.device, str device: device. Default: torch's default device.
    :return: (:class:`torch.Tensor`) wavelet, shape `(points,)`.
    :raises TypeError: if ``points`` or ``a`` is no number of its type, or ``dtype`` not real.
    :raises ValueError: if ``points`` is even or below 1, or ``a`` is not positive and finite.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dj.ricker(5, a=1.0)
    tensor([-0.4060,  0.0000,  1.0000,  0.0000, -0.4060])
    """
    points = checks.number("points", points, Integral, 1)
    if points % 2 != 1:
        raise ValueError(
            f"points must be odd, got {points}: only an odd wavelet has a centre sample."
        )
    a = checks.positive("a", a)
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a real type, got {dtype}.")
    t = torch.arange(points, dtype=dtype or torch.get_default_dtype(), device=device)
    # A spike in any precision below 1e-9, and for u beyond 1e4: neither 0/0 nor inf * 0
    u = (((t - points // 2) / max(a, 1e-9)) ** 2).clamp_max(1e4)
    return (1 - u) * torch.exp(-u / 2)


class SeismicConvolution(LinearPhysics):
    r"""
    Convolution of every trace of a section with a wavelet :math:`w`, along time only.

    .. math::

        (Ax)_t = \sum_{s=0}^{T-1} w_{t-s}\, x_s, \qquad t = 0, \dots, T-1,

    with :math:`w` centred on its middle sample and zeros outside the trace ("same" size). The
    adjoint is the exact transpose, the correlation with :math:`w`.

    The buffer ``wavelet`` is always the wavelet applied. With ``normalize=True`` it is the given
    one divided by its peak frequency response :math:`\max_f |\hat{w}(f)|`, in the constructor and
    in updates alike. The peak is the norm of the convolution of endless traces and bounds that of
    every :math:`T`: so :math:`\|A\| \leq 1` always, and :math:`\|A\| \to 1` with a gap in
    :math:`1/T^2`; for the default wavelet :math:`\|A\|^2` is 0.941, 0.983 and 0.998 at
    :math:`T` = 64, 128 and 352. (Dividing by the norm at one :math:`T` would tie the gain of the
    wavelet to the length of the section.)

    :param torch.Tensor wavelet: real wavelet, shape `(K,)`, :math:`K` odd, one value per time
        sample. Default: ``ricker(51, 4)``.
    :param bool normalize: divide by the peak frequency response; ``False`` applies the wavelet as
        given, of peak 1 in the paper's published code. Default: ``True``.
    :param tuple img_size: section without batch, `(1, T, X)`, if the host asks. Default: ``None``.
    :param deepinv.physics.NoiseModel noise_model: measurement noise. Default: none.
    :param torch.device, str device: device of wavelet and noise. Default: ``"cpu"``.
    :param kwargs: passed to :class:`deepinv.physics.LinearPhysics`.
    :raises TypeError: if the wavelet is not made of numbers.
    :raises ValueError: if it is not 1-D, real, of odd length, finite and non-zero.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> physics = dj.SeismicConvolution(dj.ricker(5, a=1.0), normalize=False)
    >>> spike = torch.tensor([0.0, 0, 0, 1, 0, 0, 0]).reshape(1, 1, 7, 1)
    >>> physics(spike).flatten()
    tensor([ 0.0000, -0.4060,  0.0000,  1.0000,  0.0000, -0.4060,  0.0000])
    >>> physics.update(wavelet=torch.tensor([1.0]))
    >>> torch.equal(physics(spike), spike)
    True
    """

    def __init__(
        self,
        wavelet: torch.Tensor | None = None,
        *,
        normalize: bool = True,
        img_size: tuple[int, ...] | None = None,
        noise_model: NoiseModel | None = None,
        device: torch.device | str = "cpu",
        **kwargs,
    ):
        # The host's default noise is one object shared by every physics.
        noise = ZeroNoise() if noise_model is None else noise_model
        super().__init__(img_size=img_size, noise_model=noise, device=device, **kwargs)
        self.normalize = normalize
        wavelet = ricker() if wavelet is None else wavelet
        self.register_buffer("wavelet", self._applied(wavelet).to(device))
        self._matrix, self._gram = Derived(_toeplitz), Derived(_gram)

    def A(
        self, x: torch.Tensor, wavelet: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        r"""
        Convolve each trace.

        :param torch.Tensor x: reflectivity, shape `(B, 1, T, X)`: time samples by traces.
        :param torch.Tensor wavelet: see :meth:`update_parameters`.
        :return: (:class:`torch.Tensor`) section, shape `(B, 1, T, X)`.
        :raises TypeError: if ``x`` is no tensor or the wavelet is not made of numbers.
        :raises ValueError: if ``x`` is no real section or on another device than the wavelet, or
            the wavelet is refused.
        """
        self.update_parameters(wavelet=wavelet, **kwargs)
        x = _section(x, self.wavelet)
        with torch.autocast(x.device.type, enabled=False):
            if x.shape[-2] > WHOLE:
                return _convolve(self.wavelet, x)
            return self._matrix(self.wavelet, x.shape[-2], x.dtype) @ x

    def A_adjoint(
        self, y: torch.Tensor, wavelet: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        r"""Correlate each trace; arguments, shapes and errors as for :meth:`A`."""
        self.update_parameters(wavelet=wavelet, **kwargs)
        y = _section(y, self.wavelet)
        with torch.autocast(y.device.type, enabled=False):
            if y.shape[-2] > WHOLE:
                return _convolve(self.wavelet.flip(0), y)
            return self._matrix(self.wavelet, y.shape[-2], y.dtype).mT @ y

    def A_adjoint_A(
        self, x: torch.Tensor, wavelet: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        r"""
        :math:`A^\top A x`, up to 512 samples in one product, by the Gram matrix.

        Arguments, shapes and errors are those of :meth:`A`.
        """
        self.update_parameters(wavelet=wavelet, **kwargs)
        x = _section(x, self.wavelet)
        with torch.autocast(x.device.type, enabled=False):
            if x.shape[-2] > WHOLE:
                return self.A_adjoint(self.A(x))
            return self._gram(self.wavelet, x.shape[-2], x.dtype) @ x

    def update_parameters(self, wavelet: torch.Tensor | None = None, **kwargs) -> None:
        r"""
        Replace the wavelet for good, treated as the constructor treats it.

        :param torch.Tensor wavelet: new wavelet, shape `(K,)`, :math:`K` odd, brought to the type
            and device of the current one. Default: keep the current one.
        :raises TypeError: if the wavelet is not made of numbers.
        :raises ValueError: if it is not 1-D, real, of odd length, finite and non-zero.
        """
        if wavelet is not None:
            wavelet = self._applied(wavelet)
        super().update_parameters(wavelet=wavelet, **kwargs)

    def _applied(self, wavelet: torch.Tensor) -> torch.Tensor:
        wavelet = _checked_wavelet(wavelet)
        return wavelet / _peak_gain(wavelet) if self.normalize else wavelet.clone()


def _checked_wavelet(wavelet: torch.Tensor) -> torch.Tensor:
    wavelet = as_tensor("wavelet", wavelet)
    fault = None
    if wavelet.ndim != 1 or len(wavelet) % 2 == 0 or not wavelet.is_floating_point():
        fault = f"shape {tuple(wavelet.shape)} of {wavelet.dtype}"
    elif not wavelet.isfinite().all() or not wavelet.any():
        fault = "zeros only, or values that are not finite"
    elif not _peak_gain(wavelet).square().isfinite():
        fault = "values whose sums overflow when squared"
    if fault:
        raise ValueError(
            "wavelet must be 1-D, real, of odd length, finite and not all zero, "
            f"got {fault}: pass for example ricker(51, 4.0)."
        )
    return wavelet


def _peak_gain(wavelet: torch.Tensor) -> torch.Tensor:
    """Peak of the frequency response, never underestimated: ||A|| <= 1 depends on it."""
    points = 512 * len(wavelet)
    wavelet = wavelet.to(torch.promote_types(wavelet.dtype, torch.float32))
    # Between its n values on a grid, a trigonometric polynomial of degree d exceeds them by at
    # most 1 / cos(pi d / n) (Ehlich and Zeller, 1964).
    excess = 1 / math.cos(math.pi * (len(wavelet) // 2) / points)
    return torch.fft.rfft(wavelet, points).abs().max() * excess


def as_tensor(name: str, values) -> torch.Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a tensor or an array of numbers, got {values!r}."
        ) from error


class Derived:
    """
    What a function makes of a buffer: made once, and again when the buffer is another one or has
    been changed in place (by ``load_state_dict``, for example).
    """

    def __init__(self, function: Callable):
        self.function = function
        self.known = None, None, None

    def __call__(self, buffer: torch.Tensor, *arguments):
        # A graph must not outlive its backward pass; inference tensors tell no version
        if buffer.requires_grad or buffer.is_inference():
            return self.function(buffer, *arguments)
        key = buffer._version, *arguments
        if self.known[0] is not buffer or self.known[1] != key:
            with torch.inference_mode(False):
                self.known = buffer, key, self.function(buffer, *arguments)
        return self.known[2]


def _section(x: torch.Tensor, wavelet: torch.Tensor) -> torch.Tensor:
    """The checked section, in the precision of the wavelet or better."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"sections must be a torch.Tensor, got {type(x).__name__}.")
    if x.device != wavelet.device:
        raise ValueError(
            f"sections must be on the device of the wavelet, {wavelet.device}, got {x.device}: "
            "move one by to()."
        )
    if x.ndim != 4 or x.shape[1] != 1 or not x.is_floating_point() or not x.numel():
        raise ValueError(
            f"sections must be real, of shape (B, 1, T, X), not empty, got {tuple(x.shape)} of "
            f"{x.dtype}: add the missing dimensions, for example x[None, None]."
        )
    return x.to(torch.promote_types(x.dtype, wavelet.dtype))


def _toeplitz(taps: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrix with entries taps[centre + t - s], zero beyond the taps, shape `(size, size)`."""
    # negative, and so a crop, where the taps outlast the matrix
    margin = size - 1 - len(taps) // 2
    lags = torch.nn.functional.pad(taps.to(dtype).flip(0), (margin, margin))
    # lags T-1 .. 1-T: after the flip, row t starts at lag t
    return lags.unfold(0, size, 1).flip(0)


def _gram(taps: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    matrix = _toeplitz(taps, size, dtype)
    return matrix.mT @ matrix


def _convolve(taps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The product with the Toeplitz matrix, without its zeros far from the diagonal."""
    half, samples = len(taps) // 2, x.shape[-2]
    band = _toeplitz(taps, BLOCK + 2 * half, x.dtype)[half : half + BLOCK]
    overhang = -samples % BLOCK
    x = torch.nn.functional.pad(x, (0, 0, half, half + overhang))
    blocks = band @ x.unfold(-2, BLOCK + 2 * half, BLOCK).mT
    return blocks.flatten(-3, -2)[..., :samples, :]
