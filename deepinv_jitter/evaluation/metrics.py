r"""
The paper's PSNR and SSIM, and scores of a detail.

A metric of the whole image cannot tell a recovered detail of a few pixels from a deleted one.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from deepinv.loss.metric import SSIM, Metric

from .. import checks
from ..attacks.samples import precision

#: Width of the window of SSIM, in pixels
WINDOW = 11


class PaperPSNR(Metric):
    r"""
    PSNR as in the tables of the paper: real channel only, cut to :math:`[0, 1]`, peak 1.

    .. math::
        -10 \log_{10} \frac1n \left\| P_{[0,1]}(\operatorname{Re} \hat x)
        - P_{[0,1]}(\operatorname{Re} x) \right\|_2^2 .

    A dataset's number is the mean over its images. Negative values, such as reflection
    coefficients of a seismic section, count as 0, and so do the imaginary parts of complex images,
    of two channels: this is no substitute for :class:`deepinv.loss.metric.PSNR`, and their numbers
    must never share a column. (For sections the published code cuts the reconstruction but not the
    truth; here both are cut.) Equal images give infinity, and NaN in an image gives NaN for it.

    :param kwargs: as for :class:`deepinv.loss.metric.Metric`.
    :raises TypeError: in the call, if an image is no tensor of real or complex numbers.
    :raises ValueError: in the call, if the images are empty or their shapes differ.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> x = torch.zeros(1, 2, 8, 8)
    >>> x_net = torch.full_like(x, 0.1)
    >>> dj.PaperPSNR()(x_net, x)
    tensor([20.])
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.lower_better = False

    def metric(self, x_net: torch.Tensor, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """PSNR of each image, shape `(B,)`, see :class:`deepinv.loss.metric.Metric`."""
        x_net, x = _real_parts(x_net=x_net, x=x)
        return -10 * (x_net - x).square().flatten(1).mean(1).log10()


class PaperSSIM(SSIM):
    r"""
    SSIM as in the tables of the paper: real channel only, cut to :math:`[0, 1]`, data range 1.

    The window is that of torchmetrics, Gaussian with a standard deviation of 1.5, 11 pixels wide.
    The warnings of :class:`PaperPSNR` hold.

    :param kwargs: as for :class:`deepinv.loss.metric.SSIM`.
    :raises TypeError: in the call, if an image is no tensor of real or complex numbers.
    :raises ValueError: in the call, if the shapes differ or the images are not of shape `(B, C, H,
        W)` with 11 pixels and more.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> x = torch.rand(3, 2, 32, 32)
    >>> dj.PaperSSIM()(x, x)
    tensor([1., 1., 1.])
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def metric(self, x_net: torch.Tensor, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """SSIM of each image, shape `(B,)`, see :class:`deepinv.loss.metric.Metric`."""
        x_net, x = _real_parts(x_net=x_net, x=x)
        if x.ndim != 4 or min(x.shape[2:]) < WINDOW:
            raise ValueError(
                f"images must have shape (B, C, H, W) with H, W at least {WINDOW}, the window of "
                f"SSIM, got {tuple(x.shape)}."
            )
        return super().metric(x_net, x, *args, **kwargs)


def contrast_recovery(
    x_net_shifted: torch.Tensor, x_net: torch.Tensor, x_shifted: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    r"""
    How much of a detail :math:`d` a reconstructor :math:`H` brings back:
    :math:`\langle H(y_d) - H(y), d\rangle / \|d\|_2^2`.

    1 means that the detail is kept and 0 that it is deleted. The measurements :math:`y_d` and
    :math:`y` of the two truths should carry the same noise, which then cancels to first order.

    :param torch.Tensor x_net_shifted: reconstruction :math:`H(y_d)` of the edited truth, shape `(B,
        ...)`.
    :param torch.Tensor x_net: reconstruction :math:`H(y)`, same shape.
    :param torch.Tensor x_shifted: edited truth :math:`x + d`, same shape.
    :param torch.Tensor x: truth, same shape.
    :return: (:class:`torch.Tensor`) recovery of each sample, shape `(B,)`; NaN where the truths do
        not differ, or a reconstruction is not finite.
    :raises TypeError: if an image is no tensor of real numbers.
    :raises ValueError: if the shapes or the devices differ, or there are no samples.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> x = torch.zeros(1, 1, 32, 32)
    >>> x_shifted, _ = dj.HorizontalLayer(0.1)(x)
    >>> dj.contrast_recovery(0.7 * x_shifted, x, x_shifted, x)
    tensor([0.7000])
    """
    _check_alike(x_net_shifted=x_net_shifted, x_net=x_net, x_shifted=x_shifted, x=x)
    d = (x_shifted - x).flatten(1).to(precision(x))
    recovered = (x_net_shifted - x_net).flatten(1)
    # Of largest entry 1, so that no square overflows or vanishes
    largest = d.abs().amax(1, keepdim=True)
    d, recovered = d / largest, recovered / largest
    return (recovered * d).sum(1) / d.square().sum(1)


def error_outside(
    x_net_shifted: torch.Tensor, x_shifted: torch.Tensor, region: torch.Tensor
) -> torch.Tensor:
    r"""
    Root-mean-square error outside the edited region: what a detail changes where nothing changed.

    :param torch.Tensor x_net_shifted: reconstruction of the edited truth, shape `(B, ...)`.
    :param torch.Tensor x_shifted: edited truth, same shape.
    :param torch.Tensor region: boolean, as a :class:`Shift` returns it; broadcasts to the shape.
    :return: (:class:`torch.Tensor`) error of each sample in the unit of ``x_shifted``, shape
        `(B,)`; NaN where the region is everything.
    :raises TypeError: if an image is no tensor of real numbers, or ``region`` is not boolean.
    :raises ValueError: if the shapes or the devices differ, there are no samples, or ``region``
        does not broadcast to them.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> x, region = dj.HorizontalLayer(0.1)(torch.zeros(1, 1, 32, 32))
    >>> dj.error_outside(torch.full_like(x, 0.25), x, region)
    tensor([0.2500])
    """
    _check_alike(x_net_shifted=x_net_shifted, x_shifted=x_shifted)
    kind = getattr(region, "dtype", type(region).__name__)
    if kind != torch.bool:
        raise TypeError(f"region must be a boolean tensor, got {kind}.")
    if region.device != x_shifted.device:
        raise ValueError(
            f"region must be on the device of the images, {x_shifted.device}, got {region.device}."
        )
    try:
        outside = ~region.expand_as(x_shifted).flatten(1)
    except RuntimeError as error:
        raise ValueError(
            f"region must broadcast to {tuple(x_shifted.shape)}, got {tuple(region.shape)}."
        ) from error
    # where, not a product: an infinite error inside must not leak out as NaN
    errors = (x_net_shifted - x_shifted).flatten(1)
    squares = errors.to(precision(errors)).square().where(outside, 0)
    return (squares.sum(1) / outside.sum(1)).sqrt()


def _real_parts(**images: torch.Tensor) -> Iterable[torch.Tensor]:
    """The real channel of complex images, real ones as they are; cut to [0, 1]."""
    for name, image in images.items():
        checks.tensor(name, image)
        pair = image.ndim > 2 and image.shape[1] == 2 and not image.is_complex()
        images[name] = (image[:, :1] if pair else image.real).clamp(0, 1)
    _check_alike(**images)
    return images.values()


def _check_alike(**images: torch.Tensor) -> None:
    for name, image in images.items():
        checks.tensor(name, image, real=True)
    places = [f"{tuple(image.shape)} on {image.device}" for image in images.values()]
    checks.alike(" and ".join(images), "shape and device", places)
