r"""The paper's own image metrics, beside the host's: their numbers must never share a column."""

from __future__ import annotations

import torch
from deepinv.loss.metric import SSIM, Metric

from .. import checks

#: Width of the window of SSIM, in pixels
WINDOW = 11


class PaperPSNR(Metric):
    r"""
    PSNR as in the tables of the paper: real channel only, cut to :math:`[0, 1]`, peak 1,

    .. math::
        -10 \log_{10} \frac1n \left\| P_{[0,1]}(\operatorname{Re} \hat x)
        - P_{[0,1]}(\operatorname{Re} x) \right\|_2^2 .

    A dataset's number is the mean over its images. Negative values, such as reflection
    coefficients of a seismic section, count as 0, and so do imaginary parts: this is not the PSNR
    of :class:`deepinv.loss.metric.PSNR`, and no substitute for it. (For sections the published code
    cuts the reconstruction but not the truth, so that a perfect one is not perfect; here both are
    cut.)

    Images of shape `(B, 2, ...)` are complex, as everywhere in deepinv. Equal images give infinity,
    and NaN in an image gives NaN for it.

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

    def metric(
        self, x_net: torch.Tensor, x: torch.Tensor, *args, **kwargs
    ) -> torch.Tensor:
        """PSNR of each image, shape `(B,)`, see :class:`deepinv.loss.metric.Metric`."""
        x_net, x = _real_parts(x_net, x)
        squares = (x_net - x).square()
        return -10 * squares.flatten(1).mean(1).log10()


class PaperSSIM(SSIM):
    r"""
    SSIM as in the tables of the paper: real channel only, cut to :math:`[0, 1]`, data range 1.

    The window is that of torchmetrics, Gaussian with a standard deviation of 1.5, 11 pixels wide;
    images must be no smaller. The warnings of :class:`PaperPSNR` hold.

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

    def metric(
        self, x_net: torch.Tensor, x: torch.Tensor, *args, **kwargs
    ) -> torch.Tensor:
        """SSIM of each image, shape `(B,)`, see :class:`deepinv.loss.metric.Metric`."""
        x_net, x = _real_parts(x_net, x)
        if x.ndim != 4 or min(x.shape[2:]) < WINDOW:
            raise ValueError(
                f"images must have shape (B, C, H, W) with H, W at least {WINDOW}, the window of "
                f"SSIM, got {tuple(x.shape)}."
            )
        return super().metric(x_net, x, *args, **kwargs)


def _real_parts(
    x_net: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    for name, image in {"x_net": x_net, "x": x}.items():
        checks.tensor(name, image)
    x_net, x = _real_part(x_net), _real_part(x)
    if x_net.shape != x.shape or x_net.device != x.device:
        raise ValueError(
            "x_net and x must have one shape and device, got "
            f"{tuple(x_net.shape)} on {x_net.device} and {tuple(x.shape)} on {x.device}."
        )
    return x_net, x


def _real_part(x: torch.Tensor) -> torch.Tensor:
    """The real channel of complex images, real ones as they are; cut to [0, 1]."""
    if x.is_complex():
        x = x.real
    elif x.shape[1] == 2:
        x = x[:, :1]
    return x.clamp(0, 1)
