r"""Seismic deconvolution: the convolution of a section with a wavelet along time."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import torch
from deepinv.physics import NoiseModel

from .. import checks
from .parameters import OwnParameters, check_input, checked_noise
from .wavelets import checked_wavelet, peak_gain, ricker

#: Traces are multiplied by their Toeplitz matrix, longer ones by its band, in blocks of so many
#: samples. With conv2d, whose backward pass is slow on a CPU, a training step takes 1.4 to 1.5
#: times as long.
WHOLE, BLOCK = 256, 64


class SeismicConvolution(OwnParameters):
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
    :math:`T` = 64, 128 and 352.

    :param torch.Tensor wavelet: real wavelet, shape `(K,)`, :math:`K` odd, one value per time
        sample, one for all sections. Default: ``ricker(51, 4)``.
    :param bool normalize: divide by the peak frequency response; ``False`` applies the wavelet as
        given, of peak 1 in the paper's published code. Default: ``True``.
    :param tuple img_size: section without batch, `(1, T, X)`, if the host asks. Default: ``None``.
    :param deepinv.physics.NoiseModel noise_model: measurement noise. Default: none.
    :param torch.device, str device: device of wavelet and noise. Default: ``"cpu"``.
    :param kwargs: passed to :class:`deepinv.physics.LinearPhysics`.
    :raises TypeError: if the wavelet or ``img_size`` is not made of numbers, or ``noise_model``
        cannot be called.
    :raises ValueError: if the wavelet is not 1-D, real, of odd length, finite and non-zero, or
        ``img_size`` is none of a section.

    Whatever a call replaces stays: the wavelet, and the noise levels.

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
        if img_size is not None:
            img_size = checks.sizes("img_size", img_size, 3)
            if img_size[0] != 1:
                raise ValueError(f"img_size must be (1, T, X), got {img_size}.")
        super().__init__(
            img_size=img_size, noise_model=checked_noise(noise_model), device=device, **kwargs
        )
        self.normalize = normalize
        wavelet = ricker(device="cpu") if wavelet is None else wavelet
        self.register_buffer("wavelet", self._applied(wavelet).to(device))

    def A(self, x: torch.Tensor, wavelet: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
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
        return _convolve(self.wavelet, _section(x, self.wavelet))

    def A_adjoint(
        self, y: torch.Tensor, wavelet: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        r"""Correlate each trace; arguments, shapes and errors as for :meth:`A`."""
        self.update_parameters(wavelet=wavelet, **kwargs)
        return _convolve(self.wavelet.flip(0), _section(y, self.wavelet))

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

    def prox_l2(self, z, y, gamma, *args, **kwargs) -> torch.Tensor:
        r"""See :meth:`deepinv.physics.LinearPhysics.prox_l2`; the solver of a call is its own."""
        with self._solver_kept():
            return super().prox_l2(z, y, gamma, *args, **kwargs)

    def A_dagger(self, y: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        r"""See :meth:`deepinv.physics.LinearPhysics.A_dagger`; the solver of a call is its own."""
        with self._solver_kept():
            return super().A_dagger(y, *args, **kwargs)

    @contextmanager
    def _solver_kept(self):
        # The host's solvers store the arguments of a call for all later ones
        kept = self.solver, self.max_iter, self.tol
        try:
            yield
        finally:
            self.solver, self.max_iter, self.tol = kept

    def _applied(self, wavelet: torch.Tensor) -> torch.Tensor:
        wavelet = checked_wavelet(wavelet)
        return wavelet / peak_gain(wavelet) if self.normalize else wavelet.clone()


def _section(x: torch.Tensor, wavelet: torch.Tensor) -> torch.Tensor:
    """The checked section, in the precision of the wavelet or better."""
    check_input("sections", x, "wavelet", wavelet)
    if x.ndim != 4 or x.shape[1] != 1 or not x.is_floating_point() or not x.numel():
        raise ValueError(
            f"sections must be real, of shape (B, 1, T, X), not empty, got {tuple(x.shape)} of "
            f"{x.dtype}: {_advice(x)}."
        )
    return x.to(torch.promote_types(x.dtype, wavelet.dtype))


def _advice(x: torch.Tensor) -> str:
    if x.is_complex():
        return "take their real parts"
    if not x.is_floating_point():
        return "convert whole numbers by float()"
    if x.ndim in (2, 3):
        missing = "x[None, None]" if x.ndim == 2 else "x[:, None]"
        return f"add the missing dimensions, for example {missing}"
    return "give each section as one image of one channel"


def _toeplitz(taps: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrix with entries taps[centre + t - s], zero beyond the taps, shape `(size, size)`."""
    # negative, and so a crop, where the taps outlast the matrix
    margin = size - 1 - len(taps) // 2
    lags = torch.nn.functional.pad(taps.to(dtype).flip(0), (margin, margin))
    # lags T-1 .. 1-T: after the flip, row t starts at lag t
    return lags.unfold(0, size, 1).flip(0)


def _convolve(taps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The product with the Toeplitz matrix, of long traces without its zeros off the band."""
    half, samples = len(taps) // 2, x.shape[-2]
    # autocast does not know the meta device
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        if samples <= WHOLE:
            return _toeplitz(taps, samples, x.dtype) @ x
        block = max(BLOCK, 2 * half)
        band = _toeplitz(taps, block + 2 * half, x.dtype)[half : half + block]
        count = -(-samples // block)
        x = torch.nn.functional.pad(x, (0, 0, half, (count + 1) * block - samples - half))
        x = x.unflatten(-2, (count + 1, block))
        # What a block depends on: a block, and the beginning of the next
        x = torch.cat([x[..., :-1, :, :], x[..., 1:, : 2 * half, :]], -2)
        return (band @ x).flatten(-3, -2)[..., :samples, :]
