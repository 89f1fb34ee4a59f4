r"""The forward operators :math:`A` of the paper: seismic convolution and single-coil MRI."""

from __future__ import annotations

import math

import numpy as np
import torch
from deepinv.physics import MRI, LinearPhysics, NoiseModel, ZeroNoise
from deepinv.physics.generator import PhysicsGenerator
from fastmri.data.subsample import EquispacedMaskFractionFunc, RandomMaskFunc

MASK_KINDS = {"random": RandomMaskFunc, "equispaced": EquispacedMaskFractionFunc}


def ricker(
    points: int = 51,
    a: float = 4.0,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    r"""
    Ricker wavelet (Mexican hat) :math:`w_t = (1 - t^2/a^2)\,e^{-t^2/(2a^2)}`, of peak 1 at its centre.

    The defaults are the paper's source wavelet (Appendix H). Its spectrum peaks at
    :math:`1/(\sqrt{2}\,\pi a)` cycles per sample.

    :param int points: length in samples, odd. Default: 51.
    :param float a: width in samples, the distance from the centre to the zero crossings. Default: 4.
    :param torch.dtype dtype: real type of the wavelet. Default: torch's default type.
    :param torch.device, str device: device of the wavelet. Default: torch's default device.
    :return: (:class:`torch.Tensor`) wavelet, shape `(points,)`.
    :raises ValueError: if ``points`` is even or below 1, or ``a`` is not positive and finite.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dj.ricker(5, a=1.0)
    tensor([-0.4060,  0.0000,  1.0000,  0.0000, -0.4060])
    """
    if points < 1 or points % 2 != 1:
        raise ValueError(
            f"points must be odd and at least 1, got {points}: "
            "only an odd wavelet has a centre sample."
        )
    if not (math.isfinite(a) and a > 0):
        raise ValueError(f"a must be positive and finite, in samples, got {a}.")
    t = torch.arange(points, dtype=dtype or torch.get_default_dtype(), device=device)
    u = ((t - points // 2) / a) ** 2
    return (1 - u) * torch.exp(-u / 2)


class SeismicConvolution(LinearPhysics):
    r"""
    Convolution of every trace of a seismic section with a wavelet :math:`w`, along time only.

    .. math::

        (Ax)_{t} = \sum_{s=0}^{T-1} w_{t-s}\, x_{s}, \qquad t = 0, \dots, T-1,

    with :math:`w` centred on its middle sample and zeros outside the trace ("same" size). :math:`A` is a banded
    Toeplitz matrix applied to each trace, the adjoint is its transpose (correlation with :math:`w`), and both are
    differentiable in the section and in the wavelet.

    The buffer ``physics.wavelet`` is always the wavelet applied. With ``normalize=True`` it is the given one divided
    by its peak frequency response :math:`\max_f |\hat{w}(f)|`, in the constructor and in every update alike. That
    peak is the norm of the convolution of endless traces and bounds the norm for all :math:`T`, so :math:`\|A\| \leq 1`
    whatever the section, and :math:`\|A\| \to 1` as :math:`T` grows, with a gap in :math:`1/T^2`: for the default
    wavelet, :math:`\|A\|^2` is 0.941, 0.983 and 0.998 for :math:`T` = 64, 128 and 352. Dividing by the norm of one
    :math:`T` instead would make the gain of the wavelet depend on the length of the section.

    :param torch.Tensor wavelet: real wavelet, shape `(K,)`, :math:`K` odd, one value per time sample.
        Default: ``ricker(51, 4)``.
    :param bool normalize: divide the wavelet by its peak frequency response. ``False`` applies it as given, as
        in the paper, whose wavelet has peak 1. Default: ``True``.
    :param tuple img_size: shape of a section without batch, `(1, T, X)`, for the host's tools that ask for it.
        Default: ``None``.
    :param deepinv.physics.NoiseModel noise_model: measurement noise. Default: none, in an instance of its own.
    :param torch.device, str device: device of the wavelet and the noise. Default: ``"cpu"``.
    :param kwargs: passed to :class:`deepinv.physics.LinearPhysics`.
    :raises TypeError: if the wavelet is no tensor.
    :raises ValueError: if the wavelet is not 1-D, real, of odd length, finite and non-zero.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> physics = dj.SeismicConvolution(dj.ricker(5, a=1.0), normalize=False)
    >>> spike = torch.zeros(1, 1, 7, 1)
    >>> spike[0, 0, 3] = 1.0
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
        noise_model = ZeroNoise() if noise_model is None else noise_model
        super().__init__(
            img_size=img_size, noise_model=noise_model, device=device, **kwargs
        )
        self.normalize = normalize
        wavelet = self._applied(ricker() if wavelet is None else wavelet)
        self.register_buffer("wavelet", wavelet.to(device))

    def A(
        self, x: torch.Tensor, wavelet: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        r"""
        Convolve each trace with the wavelet.

        :param torch.Tensor x: reflectivity, shape `(B, 1, T, X)`: time samples by traces.
        :param torch.Tensor wavelet: new wavelet, shape `(K,)`, kept from then on. Default: the current one.
        :return: (:class:`torch.Tensor`) section, shape `(B, 1, T, X)`.
        :raises ValueError: if ``x`` is no real section or the wavelet is refused.
        """
        self.update_parameters(wavelet=wavelet, **kwargs)
        return self._matrix(x) @ x

    def A_adjoint(
        self, y: torch.Tensor, wavelet: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        r"""
        Correlate each trace with the wavelet: the exact transpose of :meth:`A`.

        :param torch.Tensor y: section, shape `(B, 1, T, X)`.
        :param torch.Tensor wavelet: new wavelet, shape `(K,)`, kept from then on. Default: the current one.
        :return: (:class:`torch.Tensor`) correlated section, shape `(B, 1, T, X)`.
        :raises ValueError: if ``y`` is no real section or the wavelet is refused.
        """
        self.update_parameters(wavelet=wavelet, **kwargs)
        return self._matrix(y).mT @ y

    def update_parameters(self, wavelet: torch.Tensor | None = None, **kwargs) -> None:
        r"""
        Replace the wavelet, treated as in the constructor (checked, and normalised if ``normalize``).

        :param torch.Tensor wavelet: new wavelet, shape `(K,)`, :math:`K` odd; it takes the type and device of the
            current one. Default: keep the current one.
        :raises TypeError: if the wavelet is no tensor.
        :raises ValueError: if the wavelet is not 1-D, real, of odd length, finite and non-zero.
        """
        if wavelet is not None:
            wavelet = self._applied(wavelet)
        super().update_parameters(wavelet=wavelet, **kwargs)

    def _applied(self, wavelet: torch.Tensor) -> torch.Tensor:
        _check_wavelet(wavelet)
        return wavelet / _peak_gain(wavelet) if self.normalize else wavelet.clone()

    # Built at each call: a stored matrix would outlive update(), to() and load_state_dict().
    # On a CPU the product is several times faster than conv2d all the same.
    def _matrix(self, x: torch.Tensor) -> torch.Tensor:
        """The Toeplitz matrix for the sections ``x``, shape `(T, T)`."""
        if x.ndim != 4 or x.shape[1] != 1 or not x.is_floating_point():
            raise ValueError(
                "a section must be a real tensor of shape (B, 1, T, X), got "
                f"{tuple(x.shape)} of {x.dtype}: add the batch and channel dimensions, "
                "for example x[None, None]."
            )
        samples = x.shape[-2]
        # negative, thus a crop, where the wavelet is longer than the trace
        margin = samples - 1 - len(self.wavelet) // 2
        wavelet = self.wavelet.to(x.dtype).flip(0)
        lags = torch.nn.functional.pad(wavelet, (margin, margin))
        # lags holds w at lags T-1 .. 1-T, so row t of the result holds w at t, t-1, .. t-T+1
        return lags.unfold(0, samples, 1).flip(0)


class SingleCoilMRI(MRI):
    r"""
    Single-coil 2-D MRI :math:`y = M F x` on a mask that is checked and owned.

    :math:`F` is the centred orthonormal 2-D FFT, the same as ``fastmri.fft2c``, and :math:`M` the mask. The
    measurements keep the size of the image and are zero off the mask, noise included; :math:`\|A\| \leq 1` for
    masks of zeros and ones (in general :math:`\|A\| = \max|M|`). Everything else is :class:`deepinv.physics.MRI`,
    whose constructor and updates accept any mask and keep a reference to it rather than a copy.

    A mask set by :meth:`update` or in a call stays: after a batch of 2 masks, images of another batch size
    need new masks.

    :param torch.Tensor mask: 1 where k-space is sampled, else 0, shape `(W,)` (whole columns), `(H, W)`, `(C, H, W)`
        or `(B, C, H, W)` with :math:`C` 1 or 2. Default: everything sampled.
    :param tuple img_size: image size, `(H, W)` last. Default: that of the mask, or (320, 320) without one.
    :param deepinv.physics.NoiseModel noise_model: measurement noise. Default: none, in an instance of its own.
    :param torch.device, str device: device of the mask and the noise. Default: ``"cpu"``.
    :param kwargs: passed to :class:`deepinv.physics.MRI`.
    :raises ValueError: if the shape of the mask does not fit, or a mask is not finite, complex or zero everywhere.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> mask = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
    >>> noise = dinv.physics.GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
    >>> physics = dj.SingleCoilMRI(mask, img_size=(4, 5), noise_model=noise)
    >>> y = physics(torch.ones(1, 2, 4, 5))
    >>> y[0, 0, 0] != 0
    tensor([False,  True,  True,  True, False])
    """

    def __init__(
        self,
        mask: torch.Tensor | np.ndarray | None = None,
        img_size: tuple[int, ...] | None = None,
        *,
        noise_model: NoiseModel | None = None,
        device: torch.device | str = "cpu",
        **kwargs,
    ):
        if mask is not None:
            if img_size is None and mask.ndim == 1:
                raise ValueError(
                    f"a mask of shape (W,) needs an image size, got {tuple(mask.shape)} "
                    "and no img_size: pass img_size=(H, W)."
                )
            img_size = tuple(mask.shape) if img_size is None else img_size
            mask = _owned_mask(mask, tuple(img_size[-2:]))
        super().__init__(
            mask=mask,
            img_size=(320, 320) if img_size is None else img_size,
            three_d=False,
            # The host's default noise is one object shared by every physics.
            noise_model=ZeroNoise() if noise_model is None else noise_model,
            device=device,
            **kwargs,
        )

    def update_parameters(
        self, mask: torch.Tensor | np.ndarray | None = None, **kwargs
    ) -> None:
        r"""
        Replace the mask by a copy of the given one.

        :param torch.Tensor mask: new mask, of any shape the constructor takes and any batch size. Default: keep
            the current one.
        :raises ValueError: if the shape of the mask does not fit, or a mask is not finite, complex or zero everywhere.
        """
        if mask is not None:
            mask = _owned_mask(mask, tuple(self.img_size[-2:]))
        super().update_parameters(mask=mask, **kwargs)


class FastMRIMaskGenerator(PhysicsGenerator):
    r"""
    The column masks of the fastMRI challenge, drawn by package ``fastmri`` itself.

    ``"random"`` is ``RandomMaskFunc``: besides the centre, each column is kept with the probability that makes
    :math:`W/\text{acceleration}` columns on average. ``"equispaced"`` is ``EquispacedMaskFractionFunc``, the
    challenge's ``equispaced_fraction``: a regular comb at a random offset, with about as many columns. Both sample
    the central ``round(center_fraction * W)`` columns; the attribute ``n_center`` counts them.

    One integer seed per mask is drawn from ``rng`` and handed to ``fastmri``; no global generator is read or moved.
    The host's generators, given no ``rng``, all share one constant seed and so draw the same masks for training and
    testing: here ``rng`` or ``seed`` must be given.

    :param tuple img_size: image size, `(H, W)` or `(C, H, W)`.
    :param int acceleration: acceleration factor, at least 1. Default: 4.
    :param float center_fraction: fraction of the columns sampled at the centre, in (0, 1). Default: 0.08 for an
        acceleration below 8, else 0.04, as in the challenge.
    :param str kind: ``"random"`` or ``"equispaced"``. Default: ``"random"``.
    :param torch.Generator rng: source of the randomness, on ``device``. Default: a new one seeded by ``seed``.
    :param int seed: seed of that new generator; give either ``rng`` or ``seed``.
    :param torch.device, str device: device of the masks and of ``rng``. Default: ``"cpu"``.
    :raises ValueError: if an argument is out of range, ``rng`` and ``seed`` are both given or both missing, or the
        centre takes none or all of the columns.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> generator = dj.FastMRIMaskGenerator((1, 50), acceleration=4, seed=0)
    >>> mask = generator.step(batch_size=2)["mask"]
    >>> mask.shape
    torch.Size([2, 1, 1, 50])
    >>> (mask == generator.step(batch_size=2, seed=0)["mask"]).all()
    tensor(True)
    """

    def __init__(
        self,
        img_size: tuple[int, ...],
        *,
        acceleration: int = 4,
        center_fraction: float | None = None,
        kind: str = "random",
        rng: torch.Generator | None = None,
        seed: int | None = None,
        device: torch.device | str = "cpu",
    ):
        if kind not in MASK_KINDS:
            raise ValueError(f"kind must be one of {tuple(MASK_KINDS)}, got {kind!r}.")
        if (rng is None) == (seed is None):
            raise ValueError(
                f"give either rng or seed, got rng={rng} and seed={seed}: for example "
                "seed=0 for training and seed=1 for testing."
            )
        if not acceleration >= 1:
            raise ValueError(f"acceleration must be at least 1, got {acceleration}.")
        if center_fraction is None:
            center_fraction = 0.08 if acceleration < 8 else 0.04
        if not 0 < center_fraction < 1:
            raise ValueError(
                f"center_fraction must lie in (0, 1), got {center_fraction}."
            )
        if len(img_size) not in (2, 3):
            raise ValueError(
                f"img_size must be (H, W) or (C, H, W), got {tuple(img_size)}."
            )
        if rng is None:
            rng = torch.Generator(device).manual_seed(seed)
        super().__init__(rng=rng, device=device)
        self.img_size = tuple(img_size)
        self.acceleration = acceleration
        self.center_fraction = center_fraction
        self.kind = kind
        self.mask_func = MASK_KINDS[kind]([center_fraction], [acceleration])
        self.n_center = self._center_lines(self.img_size[-1])

    def step(
        self,
        batch_size: int = 1,
        seed: int | str | None = None,
        img_size: tuple[int, ...] | None = None,
        **kwargs,
    ) -> dict[str, torch.Tensor]:
        r"""
        Draw masks.

        :param int batch_size: number of masks; 0 gives one mask without batch dimension. Default: 1.
        :param int, str seed: restart the generator at this seed first. Default: carry on.
        :param tuple img_size: image size `(H, W)` of this call. Default: that of the constructor.
        :return: (:class:`dict`) ``{"mask": mask}``, of zeros and ones, shape `(B, C, H, W)`, :math:`C` being 1 if
            the constructor's size was `(H, W)`.
        :raises ValueError: if the centre takes none or all of the columns of this size.
        """
        self.rng_manual_seed(seed)
        height, width = (self.img_size if img_size is None else img_size)[-2:]
        self.n_center = self._center_lines(width)
        channels = self.img_size[0] if len(self.img_size) == 3 else 1
        seeds = torch.randint(
            2**32, (max(batch_size, 1),), generator=self.rng, device=self.rng.device
        )
        columns = torch.cat(
            [self.mask_func((height, width, 2), seed=s)[0] for s in seeds.tolist()]
        )
        mask = columns.mT[:, None].expand(-1, channels, height, -1)
        mask = mask.to(**self.factory_kwargs).contiguous()
        return {"mask": mask if batch_size else mask[0]}

    def _center_lines(self, width: int) -> int:
        lines = round(self.center_fraction * width)
        if not 0 < lines < width / self.acceleration:
            raise ValueError(
                "the centre must take at least 1 column and leave some of the "
                f"W / acceleration = {width} / {self.acceleration} to sample, got {lines} "
                f"with center_fraction={self.center_fraction}: change center_fraction "
                "or acceleration."
            )
        return lines


def _check_wavelet(wavelet: torch.Tensor) -> None:
    rule = "wavelet must be a finite, non-zero, real 1-D tensor of odd length, got "
    advice = ": pass for example ricker(51, 4.0)."
    if not isinstance(wavelet, torch.Tensor):
        raise TypeError(f"{rule}{type(wavelet).__name__}{advice}")
    if wavelet.ndim != 1 or len(wavelet) % 2 == 0:
        raise ValueError(f"{rule}shape {tuple(wavelet.shape)}{advice}")
    if not wavelet.is_floating_point():
        raise ValueError(f"{rule}{wavelet.dtype}{advice}")
    if not wavelet.isfinite().all():
        raise ValueError(f"{rule}non-finite values{advice}")
    if not wavelet.any():
        raise ValueError(f"{rule}zeros only{advice}")


def _peak_gain(wavelet: torch.Tensor) -> torch.Tensor:
    r"""Peak of the frequency response :math:`\max_f |\hat{w}(f)|`, never too small."""
    points = 512 * len(wavelet)
    # A trigonometric polynomial of degree d exceeds its values on n even points by at most
    # 1 / cos(pi d / n) between them (Ehlich and Zeller, 1964): ||A|| <= 1 holds on any grid.
    between = math.cos(math.pi * (len(wavelet) // 2) / points)
    return torch.fft.rfft(wavelet, points).abs().max() / between


def _owned_mask(mask: torch.Tensor | np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """A checked copy of the mask, of shape `(B, 2, H, W)` and real type."""
    mask = torch.as_tensor(mask)
    shape = tuple(mask.shape)
    fits = shape[-2:] == size if mask.ndim > 1 else shape == size[-1:]
    if mask.ndim > 4 or not fits or (mask.ndim > 2 and shape[-3] not in (1, 2)):
        raise ValueError(
            "mask must have shape (W,), (H, W), (C, H, W) or (B, C, H, W) with C = 1 or 2 "
            f"and (H, W) = {size}, got {shape}: resize the mask or pass its img_size."
        )
    if mask.is_complex():
        raise ValueError(f"mask must be real, got {mask.dtype}: take its magnitude.")
    if not mask.is_floating_point():
        mask = mask.to(torch.get_default_dtype())
    while mask.ndim < 4:
        mask = mask[None]
    mask = mask.expand(-1, 2, *size).clone()
    if not mask.isfinite().all():
        raise ValueError("mask must be finite, got NaN or infinite values: repair it.")
    if not mask.flatten(1).any(1).all():
        raise ValueError(
            "mask must sample something of every image, got a mask of zeros: "
            "draw it again or drop that image."
        )
    return mask
