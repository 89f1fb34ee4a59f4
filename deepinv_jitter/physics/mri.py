r"""Single-coil Cartesian MRI."""

from __future__ import annotations

import torch
from deepinv.physics import MRI, NoiseModel

from .. import checks
from .parameters import OwnParameters, as_tensor, check_count, check_input, checked_noise


class SingleCoilMRI(OwnParameters, MRI):
    r"""
    Single-coil 2-D MRI :math:`y = MFx`, with a mask that is checked and copied.

    :math:`F` is the centred orthonormal FFT, the same as ``fastmri.fft2c``, and :math:`M` the
    mask, of zeros and ones: :math:`\|A\| \leq 1`. The measurements have the size of the image and
    are zero off the mask, noise included. The rest is :class:`deepinv.physics.MRI`, which takes any
    mask, may alias it, and counts weights other than 0 and 1 twice in ``physics(x)``.

    A mask stays until the next one, and so do noise levels: after a batch of 2 masks, one of 3
    images, or of 1, needs new ones.

    :param torch.Tensor mask: 1 where k-space is sampled, else 0, shape `(W,)` (columns), `(H, W)`,
        `(C, H, W)` or `(B, C, H, W)` with :math:`C` 1 or 2; `(2, H, W)` are two channels, which
        must be alike, not two masks. Default: everything sampled.
    :param tuple img_size: image size, ending in `H, W`. Default: that of the mask, or (320, 320).
    :param deepinv.physics.NoiseModel noise_model: measurement noise. Default: none.
    :param torch.device, str device: device of mask and noise. Default: ``"cpu"``.
    :param kwargs: passed to :class:`deepinv.physics.MRI`.
    :raises TypeError: if the mask is not made of numbers, ``img_size`` not of whole ones, or
        ``noise_model`` cannot be called; if asked for three dimensions.
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
        if kwargs.pop("three_d", False):
            raise TypeError(
                "SingleCoilMRI is of two dimensions: use deepinv.physics.MRI(three_d=True)."
            )
        if mask is None:
            img_size = checks.sizes("img_size", (320, 320) if img_size is None else img_size)
            mask = torch.ones(img_size[-2:], device="cpu")
        else:
            mask = as_tensor("mask", mask)
            img_size = checks.sizes("img_size", mask.shape if img_size is None else img_size)
        super().__init__(
            mask=_owned_mask(mask, img_size[-2:]),
            img_size=img_size,
            three_d=False,
            noise_model=checked_noise(noise_model),
            device=device,
            **kwargs,
        )

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

    def A(self, x: torch.Tensor, mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
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

    # The host's ways of these two check neither size nor number
    def A_adjoint_A(self, x: torch.Tensor, **kwargs) -> torch.Tensor:
        r""":math:`A^\top A x`; arguments, shapes and errors are those of :meth:`A`."""
        return self.A_adjoint(self.A(x, **kwargs))

    def A_A_adjoint(self, y: torch.Tensor, **kwargs) -> torch.Tensor:
        r""":math:`A A^\top y`; arguments, shapes and errors are those of :meth:`A_adjoint`."""
        return self.A(self.A_adjoint(y, **kwargs))

    def A_dagger(self, y: torch.Tensor, mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        r"""
        The pseudoinverse: for a mask of zeros and ones the adjoint, whatever the solver.

        Arguments, shapes and errors are those of :meth:`A_adjoint`; those of solvers are ignored.
        """
        return self.A_adjoint(y, mask)


def _owned_mask(mask: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """A checked copy of the mask, of shape `(B, 2, H, W)` and real type."""
    mask = as_tensor("mask", mask)
    shape = tuple(mask.shape)
    channels = shape[-3] if mask.ndim > 2 else 1
    fits = mask.ndim <= 4 and channels in (1, 2) and len(size) == 2
    fits = fits and shape[-2:] == (size if mask.ndim > 1 else size[-1:])
    if not fits:
        raise ValueError(
            "mask must have shape (W,), (H, W), (C, H, W) or (B, C, H, W) with C = 1 or 2 and "
            f"img_size must end in its H, W, got a mask {shape} and img_size {size}: several masks "
            "(B, H, W) need a dimension for the channel, mask[:, None], and columns need img_size."
        )
    binary = ((mask == 0) | (mask == 1)).all()
    mask = mask.reshape((1,) * (4 - mask.ndim) + shape).expand(-1, 2, *size).clone()
    # One look at the values of a good mask, for which a GPU waits
    if mask.is_complex() or not binary & mask.flatten(1).any(1).all():
        zero = binary and not mask.is_complex()
        raise ValueError(
            "mask must be made of zeros and ones and sample something of every image, "
            f"got {'only zeros for an image' if zero else 'other values'}: threshold the "
            "mask, or draw it again."
        )
    if len(shape) == 3 and not torch.equal(mask[:, 0], mask[:, 1]):
        raise ValueError(
            "the 2 channels of a mask (C, H, W) must be alike, as the real and the imaginary part "
            f"are measured together, got a mask {shape} where they differ: masks for 2 images have "
            "shape (2, 1, H, W)."
        )
    # Zeros and ones are exact in any type, and the images must keep theirs
    return mask.to(torch.get_default_dtype())


def _image(name: str, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The checked image or k-space, in single precision at least."""
    check_input(name, x, "mask", mask)
    height, width = size = mask.shape[-2:]
    if x.is_complex() or x.ndim != 4 or not len(x) or x.shape[1:] != (2, *size):
        raise ValueError(
            f"{name} must be real, of shape (B, 2, {height}, {width}) like the mask, got "
            f"{tuple(x.shape)} of {x.dtype}: {_advice(x)}."
        )
    check_count("mask", mask, x)
    # The transforms know no half precision, which is what autocast hands over
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _advice(x: torch.Tensor) -> str:
    if x.is_complex():
        return "give complex numbers as 2 channels, torch.view_as_real(x).movedim(-1, 1)"
    if x.ndim == 4 and x.shape[-1] == 2:
        return "put the 2 parts second, x.movedim(-1, 1)"
    if x.ndim == 4 and x.shape[1] == 1:
        return "give real images an imaginary part of zeros as second channel"
    if x.ndim == 3 and len(x) == 2:
        return "add the dimension of the batch, x[None]"
    if x.ndim == 5:
        return "for several coils take deepinv.physics.MultiCoilMRI"
    return "crop the images, or give img_size to SingleCoilMRI"
