r"""Networks as priors: as the gradient of one, or as its proximal operator."""

from __future__ import annotations

import torch
from deepinv.optim import Prior
from torch import nn


class NetworkPrior(Prior):
    r"""
    Base of the priors that are known only through a network :math:`f_\theta`.

    :param torch.nn.Module network: :math:`f_\theta`, called as ``network(x)``, or ``network(x,
        y)`` with ``reads_y``.
    :param bool reads_y: whether the network also reads the measurements ``y``. Default: ``False``.
    :raises TypeError: if ``network`` is not a module.
    """

    def __init__(self, network: nn.Module, reads_y: bool = False):
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"network must be a torch.nn.Module, got {type(network).__name__}."
            )
        self.network = network
        self.reads_y = reads_y

    def given(self, y: torch.Tensor) -> PriorGivenY:
        r"""
        The prior which knows the measurements.

        :param torch.Tensor y: measurements.
        :return: (:class:`PriorGivenY`) the prior in its place for one iteration.
        """
        return PriorGivenY(self, y)

    def _apply_network(self, x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        if self.reads_y and y is None:
            raise ValueError(
                f"The network of this {type(self).__name__} reads the measurements, but the model "
                "showed it none: build the model with UnfoldedGD or UnfoldedPGD, or wrap its "
                "iterator in a ConditionedIterator."
            )
        out = self.network(x, y) if self.reads_y else self.network(x)
        # Another shape could be broadcast without a word
        if not isinstance(out, torch.Tensor) or out.shape != x.shape:
            got = getattr(out, "shape", type(out).__name__)
            raise ValueError(
                f"The network must return the shape of x, {tuple(x.shape)}, got {got}."
            )
        return out


class PriorGivenY:
    r"""
    A :class:`NetworkPrior` together with the measurements, for one iteration.

    :param NetworkPrior prior: the prior.
    :param torch.Tensor y: measurements.
    """

    def __init__(self, prior: NetworkPrior, y: torch.Tensor):
        self.prior = prior
        self.y = y

    def grad(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """The prior's gradient, see :meth:`GradientPrior.grad`."""
        return self.prior.grad(x, *args, y=self.y, **kwargs)

    def prox(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """The prior's proximal operator, see :meth:`ProximalPrior.prox`."""
        return self.prior.prox(x, *args, y=self.y, **kwargs)


class GradientPrior(NetworkPrior):
    r"""
    A network as the gradient of a prior, :math:`\nabla r(x) = f_\theta(x)`: equations (4) and (8).

    Used by algorithms that take a gradient step on the prior (GD).

    :param torch.nn.Module network: :math:`f_\theta`, from shape `(B, ...)` to the same shape;
        called as ``network(x)``, or ``network(x, y)`` with ``reads_y``.
    :param bool reads_y: whether the network also reads the measurements, as the paper's seismic
        one does. Such a prior works in :class:`UnfoldedGD`. Default: ``False``.
    :raises TypeError: if ``network`` is not a module.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> prior = dj.GradientPrior(dj.PointMLP())
    >>> prior.grad(torch.zeros(5, 2), None).shape
    torch.Size([5, 2])
    """

    def grad(
        self,
        x: torch.Tensor,
        sigma_denoiser: float | None = None,
        *args,
        y: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        r"""
        :math:`f_\theta(x)`.

        :param torch.Tensor x: iterate, shape `(B, ...)`.
        :param float, None sigma_denoiser: ignored, a deepinv convention.
        :param torch.Tensor, None y: measurements, for a network that reads them.
        :return: (:class:`torch.Tensor`) gradient, of the shape of ``x``.
        :raises ValueError: if the network reads the measurements and gets none, or returns another
            shape.
        """
        return self._apply_network(x, y)


class ProximalPrior(NetworkPrior):
    r"""
    A network as the proximal map, :math:`\operatorname{prox}_r = f_\theta`: equation (12).

    Used by algorithms that take a proximal step on the prior (PGD, FISTA, HQS, ADMM, DRS).

    :param torch.nn.Module network: :math:`f_\theta`, from shape `(B, ...)` to the same shape;
        called as ``network(x)``, or ``network(x, y)`` with ``reads_y``.
    :param bool reads_y: whether the network also reads the measurements, as the paper's seismic
        one does. Such a prior works in :class:`UnfoldedPGD`. Default: ``False``.
    :raises TypeError: if ``network`` is not a module.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> prior = dj.ProximalPrior(dj.UnrolledDnCNN(1, depth=3, width=8, residual=True))
    >>> prior.prox(torch.zeros(1, 1, 16, 16), None).shape
    torch.Size([1, 1, 16, 16])
    """

    def prox(
        self,
        x: torch.Tensor,
        sigma_denoiser: float | None = None,
        *args,
        y: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        r"""
        :math:`f_\theta(x)`.

        :param torch.Tensor x: stepped iterate, shape `(B, ...)`.
        :param float, None sigma_denoiser: ignored, a deepinv convention.
        :param torch.Tensor, None y: measurements, for a network that reads them.
        :return: (:class:`torch.Tensor`) proximal point, of the shape of ``x``.
        :raises ValueError: if the network reads the measurements and gets none, or returns another
            shape.
        """
        return self._apply_network(x, y)
