r"""The balls: bounded energy, bounded size."""

from __future__ import annotations

import torch

from .. import checks
from .budgets import Budget
from .samples import check_pair, column, inside, scaled


class L2Ball(Budget):
    r"""
    Perturbations of bounded energy, :math:`\|\delta_i\|_2 \leq \varepsilon_i` for each sample.

    By default the perturbation is added to the measurements and touches measured entries only;
    stacked physics have one ball over all parts together. In the image domain it is an image
    :math:`\delta_x`, and the model sees :math:`y + A\delta_x`.

    :param float, torch.Tensor radius: one number, or one per sample, shape `(B,)`; not negative. In
        the unit of the measurements (for the image domain, of the image) unless ``relative_to`` is
        given.
    :param str, None relative_to: what the radius multiplies: ``"y"``, the norm of each sample's
        measurements; ``"noise"``, the expected norm :math:`\sigma\sqrt{n}` of the physics' Gaussian
        noise on the :math:`n` entries of the support. Default: ``None``, nothing.
    :param str, torch.Tensor, deepinv.utils.TensorList, None support: entries that may be perturbed:
        ``"auto"``, those the physics measures (see :meth:`Budget.support`); a tensor non-zero on
        them that broadcasts to the perturbation, for stacked physics a list of one per part;
        ``None``, all. Default: ``"auto"``.
    :param str domain: ``"measurement"`` or ``"image"``. Default: ``"measurement"``.
    :raises TypeError: if ``radius`` is no number or tensor of such.
    :raises ValueError: if an argument is none of the above, ``support`` lets nothing be perturbed,
        or an image-domain budget is not absolute.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> y = torch.ones(3, 1, 4, 4)
    >>> dj.L2Ball(0.5, relative_to="y").radii(y, physics)
    tensor([2., 2., 2.])
    >>> dj.L2Ball(2.0, relative_to="noise").radii(y, physics)
    tensor([0.8000, 0.8000, 0.8000])
    """

    def norm(self, delta: torch.Tensor) -> torch.Tensor:
        r""":math:`\|\delta_i\|_2`, see :class:`Budget`."""
        checks.tensor("delta", delta)
        peak, flat = scaled(delta)
        return peak * _norm(flat)

    def project(self, delta: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        r""":math:`\delta_i \min(1, \varepsilon_i / \|\delta_i\|_2)`, see :class:`Budget`."""
        check_pair("delta", delta, eps)
        norm = self.norm(delta)
        factor = torch.where(norm <= eps, 1.0, inside(eps, delta) / norm)
        return (delta * column(factor, delta)).to(delta.dtype)

    def steepest(self, gradient: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        r""":math:`\varepsilon_i\, g_i / \|g_i\|_2`, see :class:`Budget`."""
        check_pair("gradient", gradient, eps)
        _, flat = scaled(gradient)
        # The largest entry is scaled to 1: the norm is smaller where all entries are zero, only
        unit = (flat / _norm(flat).clamp_min(1)[:, None]).reshape(gradient.shape)
        return (unit * column(inside(eps, gradient), gradient)).to(gradient.dtype)

    def _depth(self, sphere, entries, generator):
        # The volume of a ball grows with the power of its dimension
        freedom = entries * (2 if sphere.is_complex() else 1)
        depth = torch.rand(1, generator=generator, device=generator.device).to(entries.device)
        return column(depth ** (1 / freedom), sphere)


class LinfBall(Budget):
    r"""
    Perturbations of bounded size, :math:`|\delta_{ij}| \leq \varepsilon_i` for each entry :math:`j`
    of sample :math:`i`.

    Complex tensors are bounded in modulus; the real and the imaginary part of images in two real
    channels each by themselves, as those of a complex part of measurements beside a real one.

    :param float, torch.Tensor radius: as for :class:`L2Ball`.
    :param str, None relative_to: ``"y"``, the largest modulus in each sample's measurements;
        ``"noise"``, the standard deviation :math:`\sigma` of the physics' Gaussian noise. Default:
        ``None``, an absolute radius.

    The other parameters and the errors are those of :class:`L2Ball`.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> dj.LinfBall(0.1).steepest(torch.tensor([[3.0, 0.0, -2.0]]), eps=torch.tensor([0.1]))
    tensor([[ 0.1000,  0.0000, -0.1000]])
    """

    def norm(self, delta: torch.Tensor) -> torch.Tensor:
        r""":math:`\max_j |\delta_{ij}|`, see :class:`Budget`."""
        checks.tensor("delta", delta)
        return scaled(delta)[0]

    def project(self, delta: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        r"""Each entry cut to :math:`\varepsilon_i` in modulus, see :class:`Budget`."""
        check_pair("delta", delta, eps)
        size = delta.abs().to(eps.dtype)
        factor = torch.where(
            size <= column(eps, delta), 1.0, column(inside(eps, delta), delta) / size
        )
        return (delta * factor).to(delta.dtype)

    def steepest(self, gradient: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        r""":math:`\varepsilon_i \operatorname{sign}(g_{ij})`, see :class:`Budget`."""
        check_pair("gradient", gradient, eps)
        return (torch.sgn(gradient) * column(inside(eps, gradient), gradient)).to(gradient.dtype)

    def _depth(self, sphere, entries, generator):
        depth = torch.rand(sphere.shape[1:], generator=generator, device=generator.device)
        return (depth.sqrt() if sphere.is_complex() else depth).to(sphere.device)


def _norm(flat: torch.Tensor) -> torch.Tensor:
    # GPUs of Apple know none of complex numbers
    return torch.linalg.vector_norm(flat.abs() if flat.is_complex() else flat, dim=1)
