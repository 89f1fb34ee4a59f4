r"""Networks as priors: as the gradient of one, as its proximal operator, or as a denoiser."""

from __future__ import annotations

import inspect
from functools import partial
from types import SimpleNamespace

import torch
from deepinv.optim import RED, PnP, Prior
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .. import checks

#: Names of the argument by which networks are told the noise level; the first is deepinv's.
LEVELS = ("sigma", "sigma_denoiser", "noise_level")


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, below torch.compile and the parallel wrappers."""
    parallel = isinstance(network, (DataParallel, DistributedDataParallel))
    inner = getattr(network, "module" if parallel else "_orig_mod", network)
    return network if inner is network else unwrapped(inner)


def level_argument(network: nn.Module) -> inspect.Parameter | None:
    """The argument by which a network, wrapped or not, takes a noise level, if it has one."""
    try:
        arguments = inspect.signature(unwrapped(network).forward).parameters
    except ValueError:  # of a network that torch.jit has traced
        return None
    return next((p for name, p in arguments.items() if name in LEVELS), None)


class NetworkPrior(Prior):
    r"""Base of the priors that are defined by a network :math:`f_\theta`."""

    def __init__(self, network: nn.Module, reads_y: bool = False):
        super().__init__()
        checks.instance("network", network, nn.Module, "torch.nn.Module")
        self.network = network
        self.reads_y = reads_y
        level = level_argument(network)
        self.level_name = None if level is None else level.name

    def given(self, y: torch.Tensor) -> SimpleNamespace:
        """What stands in for this prior in one iteration, as it knows the measurements."""
        return SimpleNamespace(grad=partial(self.grad, y=y), prox=partial(self.prox, y=y))

    def _apply_network(self, x, sigma_denoiser=None, *args, y=None, **kwargs) -> torch.Tensor:
        if self.reads_y and y is None:
            raise ValueError(
                f"The network of this {type(self).__name__} reads the measurements, but the model "
                "showed it none: build the model with UnfoldedGD or UnfoldedPGD, or wrap its "
                "iterator in a ConditionedIterator."
            )
        told = {}
        if self.level_name is not None and sigma_denoiser is not None:
            told[self.level_name] = sigma_denoiser
        out = self.network(x, y, **told) if self.reads_y else self.network(x, **told)
        # Another shape could be broadcast silently
        if not isinstance(out, torch.Tensor) or out.shape != x.shape:
            got = getattr(out, "shape", type(out).__name__)
            raise ValueError(
                f"The network must return the shape of x, {tuple(x.shape)}, got {got}."
            )
        return out


class GradientPrior(NetworkPrior):
    r"""
    A network as the gradient of a prior, :math:`\nabla r(x) = f_\theta(x)`: equations (4) and (8).

    Used by algorithms that take a gradient step on the prior (GD).

    :param torch.nn.Module network: :math:`f_\theta`, from shape `(B, ...)` to the same shape;
        called as ``network(x)``, or ``network(x, y)`` with ``reads_y``.
    :param bool reads_y: whether the network also reads the measurements, as the paper's seismic
        one does. Such a prior works in :class:`UnfoldedGD` and :class:`UnfoldedPGD`. Default:
        ``False``.

    A network whose ``forward`` has an argument ``sigma`` (or ``sigma_denoiser``, ``noise_level``)
    is told the model's ``sigma_denoiser``; others are called without.

    :raises TypeError: if ``network`` is not a module.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> prior = dj.GradientPrior(dj.PointMLP())
    >>> prior.grad(torch.zeros(5, 2), None).shape
    torch.Size([5, 2])
    """

    def grad(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        r"""
        :math:`f_\theta(x)`.

        :param torch.Tensor x: iterate, shape `(B, ...)`.
        :param float, torch.Tensor, None sigma_denoiser: noise level, for a network that takes one.
        :param torch.Tensor, None y: measurements, for a network that reads them.
        :return: (:class:`torch.Tensor`) gradient, of the shape of ``x``.
        :raises ValueError: if the network reads the measurements and gets none, or returns another
            shape.
        """
        return self._apply_network(x, *args, **kwargs)


class ProximalPrior(NetworkPrior):
    r"""
    A network as the proximal map, :math:`\operatorname{prox}_r = f_\theta`: equation (12).

    Used by algorithms that take a proximal step on the prior (PGD, FISTA, HQS, ADMM, DRS). The
    parameters and errors are those of :class:`GradientPrior`.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> prior = dj.ProximalPrior(dj.UnrolledDnCNN(1, depth=3, width=8, residual=True))
    >>> prior.prox(torch.zeros(1, 1, 16, 16), None).shape
    torch.Size([1, 1, 16, 16])
    """

    def prox(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        r""":math:`f_\theta(x)`; arguments and errors are those of :meth:`GradientPrior.grad`."""
        return self._apply_network(x, *args, **kwargs)


class DenoiserPnP(PnP):
    """The host's plug-and-play prior, for denoisers with and without a noise level."""

    def prox(self, x: torch.Tensor, sigma_denoiser, *args, **kwargs) -> torch.Tensor:
        return denoised(self.denoiser, x, sigma_denoiser)


class DenoiserRED(RED):
    """The host's regularisation by denoising, for denoisers with and without a noise level."""

    def grad(self, x: torch.Tensor, sigma_denoiser, *args, **kwargs) -> torch.Tensor:
        return x - denoised(self.denoiser, x, sigma_denoiser)


def denoised(
    denoiser: nn.Module, x: torch.Tensor, level: float | torch.Tensor | None
) -> torch.Tensor:
    """The output of a deepinv denoiser, which may need no noise level."""
    argument = level_argument(denoiser)
    try:
        # By name if it has one: the level need not be the second argument
        if argument is not None:
            return denoiser(x, **{argument.name: level})
        return denoiser(x, level)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        if level is not None or isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise ValueError(
            f"{type(denoiser).__name__} failed without a noise level ({error}): if it needs one, "
            "pass sigma_denoiser."
        ) from error
