r"""The forward operators :math:`A` of the paper: seismic convolution and single-coil MRI."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real

import torch
from deepinv.physics import MRI, LinearPhysics, NoiseModel, ZeroNoise
from deepinv.physics.generator import PhysicsGenerator
from fastmri.data.subsample import EquispacedMaskFractionFunc, RandomMaskFunc

from . import checks

MASK_KINDS = {"random": RandomMaskFunc, "equispaced": EquispacedMaskFractionFunc}

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
        self._matrix, self._gram = _Derived(_toeplitz), _Derived(_gram)

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


class SingleCoilMRI(MRI):
    r"""
    Single-coil 2-D MRI :math:`y = MFx`, with a mask that is checked and copied.

    :math:`F` is the centred orthonormal FFT, the same as ``fastmri.fft2c``, and :math:`M` the
    mask, of zeros and ones: :math:`\|A\| \leq 1`. The measurements have the size of the image and
    are zero off the mask, noise included. The rest is :class:`deepinv.physics.MRI`, which takes any
    mask, may alias it, and counts weights other than 0 and 1 twice in ``physics(x)``.

    A mask stays until the next one: after a batch of 2 masks, a batch of 3 images needs new ones.

    :param torch.Tensor mask: 1 where k-space is sampled, else 0, shape `(W,)` (columns), `(H, W)`,
        `(C, H, W)` or `(B, C, H, W)` with :math:`C` 1 or 2. Default: everything sampled.
    :param tuple img_size: image size, ending in `H, W`. Default: that of the mask, or (320, 320).
    :param deepinv.physics.NoiseModel noise_model: measurement noise. Default: none.
    :param torch.device, str device: device of mask and noise. Default: ``"cpu"``.
    :param kwargs: passed to :class:`deepinv.physics.MRI`.
    :raises TypeError: if the mask is not made of numbers, or ``img_size`` not of whole ones.
    :raises ValueError: if a mask does not fit, holds other values, or is zero everywhere.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> mask = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
    >>> noise = dinv.physics.GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
    >>> physics = dj.SingleCoilMRI(mask, img_size=(4, 5), noise_model=noise)
    >>> physics(torch.ones(1, 2, 4, 5))[0, 0, 0] != 0
    tensor([False,  True,  True,  True, False])
    """

    def __init__(
        self,
        mask: torch.Tensor | None = None,
        img_size: tuple[int, ...] | None = None,
        *,
        noise_model: NoiseModel | None = None,
        device: torch.device | str = "cpu",
        **kwargs,
    ):
        if mask is None:
            img_size = checks.sizes(
                "img_size", (320, 320) if img_size is None else img_size
            )
            mask = torch.ones(img_size[-2:])
        else:
            mask = _as_tensor("mask", mask)
            img_size = checks.sizes(
                "img_size", mask.shape if img_size is None else img_size
            )
        super().__init__(
            mask=_owned_mask(mask, img_size[-2:]),
            img_size=img_size,
            three_d=False,
            # The host's default noise is one object shared by every physics.
            noise_model=ZeroNoise() if noise_model is None else noise_model,
            device=device,
            **kwargs,
        )
        self._columns = _Derived(_columns)

    def update_parameters(self, mask: torch.Tensor | None = None, **kwargs) -> None:
        r"""
        Replace the mask for good, by a copy.

        :param torch.Tensor mask: new mask, of any shape the constructor takes and of any batch
            size. Default: keep the current one.
        :raises TypeError: if the mask is not made of numbers.
        :raises ValueError: if a mask does not fit, holds other values, or is zero everywhere.
        """
        if mask is not None:
            mask = _owned_mask(mask, tuple(self.img_size[-2:]))
        super().update_parameters(mask=mask, **kwargs)

    def A(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        r"""
        Transform and mask.

        :param torch.Tensor x: image, shape `(B, 2, H, W)`.
        :param torch.Tensor mask: see :meth:`update_parameters`.
        :return: (:class:`torch.Tensor`) measurements, shape `(B, 2, H, W)`.
        :raises TypeError: if ``x`` is no tensor or the mask is not made of numbers.
        :raises ValueError: if ``x`` has not the size or the device of the mask, there are several
            masks but not one per image, or the mask is refused.
        """
        self.update_parameters(mask=mask, **kwargs)
        return super().A(_image("images", x, self.mask))

    def A_adjoint(
        self, y: torch.Tensor, mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        r"""
        Adjoint, see :meth:`deepinv.physics.MRI.A_adjoint`, in contiguous memory.

        The host's image has the layout of channels_last, which the iterates of an unrolled network
        would inherit from it, and its convolutions with them.

        :param torch.Tensor y: measurements, shape `(B, 2, H, W)`.
        :param torch.Tensor mask: see :meth:`update_parameters`.
        :return: (:class:`torch.Tensor`) image, shape `(B, 2, H, W)`.

        Errors are those of :meth:`A`.
        """
        options = {name: kwargs.pop(name) for name in ("mag", "crop") if name in kwargs}
        self.update_parameters(mask=mask, **kwargs)
        y = _image("measurements", y, self.mask)
        return super().A_adjoint(y, **options).contiguous()

    def A_adjoint_A(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        r"""
        :math:`A^\top A x`. Where the mask is made of whole columns, as those of fastMRI are, by
        transforms along the rows alone: those along the columns cancel, and so do the shifts.

        :param torch.Tensor x: image, shape `(B, 2, H, W)`.
        :param torch.Tensor mask: see :meth:`update_parameters`.
        :return: (:class:`torch.Tensor`) image, shape `(B, 2, H, W)`.

        Errors are those of :meth:`A`.
        """
        self.update_parameters(mask=mask, **kwargs)
        x = _image("images", x, self.mask)
        x = x.to(torch.promote_types(x.dtype, self.mask.dtype))
        columns = self._columns(self.mask)
        if columns is None:
            return super().A_adjoint_A(x).contiguous()
        z = torch.fft.fft(self.to_torch_complex(x))
        return self.from_torch_complex(torch.fft.ifft(columns * z)).contiguous()


class FastMRIMaskGenerator(PhysicsGenerator):
    r"""
    The column masks of the fastMRI challenge, drawn by package ``fastmri`` itself.

    Both kinds sample the ``n_center = round(center_fraction * W)`` central columns. ``"random"``,
    ``RandomMaskFunc``, keeps each other column with the probability that makes
    :math:`W/\text{acceleration}` columns on average; ``"equispaced"``,
    ``EquispacedMaskFractionFunc``, keeps a comb of about as many at a random offset.

    One integer per mask is drawn from ``rng`` and seeds ``fastmri``; global generators are neither
    read nor moved. Without ``rng``, the host's generators all share one constant seed, so training
    and test masks coincide: here ``rng`` or ``seed`` must be given.

    :param tuple img_size: image size, `(H, W)` or `(C, H, W)`.
    :param int acceleration: acceleration factor, at least 1. Default: 4.
    :param float center_fraction: fraction of columns sampled at the centre, in (0, 1). Default:
        0.08 for an acceleration below 8, else 0.04, as in the challenge.
    :param str kind: ``"random"`` or ``"equispaced"``. Default: ``"random"``.
    :param torch.Generator rng: source of the randomness, on ``device``.
    :param int seed: seed of a new source, instead of ``rng``.
    :param torch.device, str device: device of the masks. Default: ``"cpu"``.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of range, not exactly one of ``rng`` and ``seed`` is
        given, or the centre takes none or all of the columns.

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
        img_size = checks.sizes("img_size", img_size)
        if len(img_size) not in (2, 3):
            raise ValueError(f"img_size must be (H, W) or (C, H, W), got {img_size}.")
        checks.number("acceleration", acceleration, Real, 1)
        if center_fraction is None:
            center_fraction = 0.08 if acceleration < 8 else 0.04
        checks.positive("center_fraction", center_fraction, below=1)
        if kind not in tuple(MASK_KINDS):
            raise ValueError(f"kind must be one of {tuple(MASK_KINDS)}, got {kind!r}.")
        if (rng is None) == (seed is None):
            raise ValueError(
                f"give exactly one of rng and seed, got rng={rng} and seed={seed}: "
                "for example seed=0 for training and seed=1 for testing."
            )
        if rng is None:
            rng = torch.Generator(device).manual_seed(checks.seed("seed", seed))
        elif not isinstance(rng, torch.Generator):
            raise TypeError(f"rng must be a torch.Generator, got {type(rng).__name__}.")
        super().__init__(rng=rng, device=device)
        self.img_size = img_size
        self.acceleration = acceleration
        self.center_fraction = center_fraction
        self.kind = kind
        self.mask_func = MASK_KINDS[kind]([center_fraction], [acceleration])
        self.n_center = self._center_columns(self.img_size[-1])

    def step(
        self,
        batch_size: int = 1,
        seed: int | str | None = None,
        img_size: tuple[int, int] | None = None,
        **kwargs,
    ) -> dict[str, torch.Tensor]:
        r"""
        Draw masks of zeros and ones.

        :param int batch_size: number of masks; 0, as in the host, is one without batch. Default: 1.
        :param int, str seed: restart the generator from this seed. Default: carry on.
        :param tuple img_size: `(H, W)` for this call. Default: that of the constructor.
        :return: (:class:`dict`) key ``"mask"``, shape `(B, C, H, W)`, :math:`C = 1` if the
            constructor was given `(H, W)`.
        :raises TypeError: if an argument is of the wrong type.
        :raises ValueError: if an argument is out of range, or the centre takes none or all of the
            columns of this size.
        """
        batch_size = checks.number("batch_size", batch_size, Integral, 0)
        size = (
            self.img_size[-2:]
            if img_size is None
            else checks.sizes("img_size", img_size)
        )
        if len(size) != 2:
            raise ValueError(f"img_size must be (H, W) in a call, got {size}.")
        if seed is not None:
            self.rng_manual_seed(
                seed if isinstance(seed, str) else checks.seed("seed", seed)
            )
        height, width = size
        channels = self.img_size[0] if len(self.img_size) == 3 else 1
        self.n_center = self._center_columns(width)
        seeds = torch.randint(
            2**32, (max(batch_size, 1),), generator=self.rng, device=self.rng.device
        )
        columns = torch.cat(
            [self.mask_func((height, width, 2), seed=s)[0] for s in seeds.tolist()]
        )
        mask = columns.mT[:, None].expand(-1, channels, height, -1)
        mask = mask.to(**self.factory_kwargs).contiguous()
        return {"mask": mask if batch_size else mask[0]}

    def _center_columns(self, width: int) -> int:
        # fastmri samples some other column only where this holds, and without any central
        # one a mask may come out empty
        columns = round(self.center_fraction * width)
        if not 0 < columns < width / self.acceleration:
            raise ValueError(
                "the centre must take at least 1 and fewer than W / acceleration = "
                f"{width} / {self.acceleration} columns, got {columns} with center_fraction="
                f"{self.center_fraction}: change center_fraction or acceleration."
            )
        return columns


def _checked_wavelet(wavelet: torch.Tensor) -> torch.Tensor:
    wavelet = _as_tensor("wavelet", wavelet)
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


def _owned_mask(mask: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """A checked copy of the mask, of shape `(B, 2, H, W)` and real type."""
    mask = _as_tensor("mask", mask)
    shape = tuple(mask.shape)
    channels = shape[-3] if mask.ndim > 2 else 1
    fits = mask.ndim <= 4 and channels in (1, 2) and len(size) == 2
    fits = fits and shape[-2:] == (size if mask.ndim > 1 else size[-1:])
    if not fits:
        raise ValueError(
            "mask must have shape (W,), (H, W), (C, H, W) or (B, C, H, W) with C = 1 or 2 and "
            f"img_size must end in its H, W, got a mask {shape} and img_size {size}."
        )
    binary = not mask.is_complex() and ((mask == 0) | (mask == 1)).all()
    mask = mask.reshape((1,) * (4 - mask.ndim) + shape).expand(-1, 2, *size).clone()
    if not binary or not mask.flatten(1).any(1).all():
        raise ValueError(
            "mask must be made of zeros and ones and sample something of every image, "
            f"got {'only zeros for an image' if binary else 'other values'}: threshold the "
            "mask, or draw it again."
        )
    return mask if mask.is_floating_point() else mask.to(torch.get_default_dtype())


def _as_tensor(name: str, values) -> torch.Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a tensor or an array of numbers, got {values!r}."
        ) from error


def _image(name: str, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The checked image or k-space, in single precision at least."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}.")
    height, width = size = mask.shape[-2:]
    if x.is_complex() or x.ndim != 4 or not len(x) or x.shape[1:] != (2, *size):
        raise ValueError(
            f"{name} must be real, of shape (B, 2, {height}, {width}) like the mask, got "
            f"{tuple(x.shape)} of {x.dtype}: give complex numbers as 2 channels."
        )
    if len(mask) not in (1, len(x)) and len(x) > 1:
        raise ValueError(
            f"there must be one mask for all or one for each of the {len(x)} images, got "
            f"{len(mask)} masks: give new ones, for example by update(mask=mask)."
        )
    if x.device != mask.device:
        raise ValueError(
            f"{name} must be on the device of the mask, {mask.device}, got {x.device}: move one "
            "by to()."
        )
    # The transforms know no half precision, which is what autocast hands over
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Derived:
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


def _columns(mask: torch.Tensor) -> torch.Tensor | None:
    """The columns of a mask that is made of such, zero frequency first, shape `(B, 1, W)`."""
    columns = mask[:, 0, :1]
    whole = (mask == columns[:, None]).all()
    return torch.fft.ifftshift(columns, dim=-1) if whole else None
