r"""The paper's two unrolled networks, over the host's own algorithms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral

import torch
from deepinv.models import Denoiser, Reconstructor
from deepinv.optim import GD, PGD, RED, DataFidelity, PnP, Prior
from deepinv.physics import Physics
from torch import nn

from .. import checks
from ..optim.fidelities import NormalL2
from ..optim.iterators import (
    CheckpointedIterator,
    ConditionedIterator,
    jitter as jitter_model,
)
from ..optim.noise import GaussianJitter
from ..optim.priors import GradientPrior, ProximalPrior

TRAINABLE = ("stepsize", "lambda_reg", "sigma_denoiser")


def adjoint(y: torch.Tensor, physics: Physics) -> torch.Tensor:
    r"""The default start of the iterations, :math:`x_0 = A^\top y`."""
    return physics.A_adjoint(y)


class _Unfolded:
    """What UnfoldedGD and UnfoldedPGD share; mixed in before the host's algorithm."""

    network_prior: type[Prior]
    denoiser_prior: type[Prior]

    def __init__(
        self,
        prior: Prior | Denoiser | nn.Module | Sequence[Prior | Denoiser | nn.Module],
        *,
        stepsize: float | Sequence[float] = 1.0,
        max_iter: int = 10,
        jitter: float | Iterable[float] | GaussianJitter | None = None,
        checkpoint: bool = False,
        data_fidelity: DataFidelity | None = None,
        lambda_reg: float | Sequence[float] = 1.0,
        sigma_denoiser: float | Sequence[float] | None = None,
        trainable_params: Sequence[str] = ("stepsize",),
        positive_stepsize: bool = False,
        init: Callable[[torch.Tensor, Physics], torch.Tensor] = adjoint,
    ):
        max_iter = checks.number("max_iter", max_iter, Integral, 1)
        trainable = _checked_trainables(trainable_params, sigma_denoiser)
        steps = _per_iteration("stepsize", stepsize, max_iter)
        if positive_stepsize:
            if "stepsize" not in trainable or min(steps) <= 0:
                raise ValueError(
                    "positive_stepsize keeps a learned stepsize positive from a positive start, "
                    f"got stepsize={stepsize!r} and trainable_params={trainable_params!r}."
                )
            steps = torch.tensor(steps).log().tolist()
        priors = prior if isinstance(prior, (list, tuple, nn.ModuleList)) else [prior]
        if len(priors) not in (1, max_iter):
            raise ValueError(
                f"prior must be one or one per iteration, got {len(priors)} for "
                f"max_iter={max_iter}."
            )
        priors = [self._as_prior(p, sigma_denoiser) for p in priors]
        fidelities = NormalL2() if data_fidelity is None else data_fidelity
        if not isinstance(fidelities, list):
            fidelities = [fidelities]
        if not all(isinstance(f, DataFidelity) for f in fidelities):
            raise TypeError(
                f"data_fidelity must be a deepinv DataFidelity, got {data_fidelity!r}."
            )
        if len(fidelities) not in (1, max_iter):
            raise ValueError(
                f"data_fidelity must be one or one per iteration, got {len(fidelities)} for "
                f"max_iter={max_iter}."
            )
        if not callable(init):
            raise TypeError(
                f"init must be callable as init(y, physics), got {type(init).__name__}."
            )
        super().__init__(
            data_fidelity=fidelities,
            prior=priors,
            lambda_reg=_per_iteration("lambda_reg", lambda_reg, max_iter),
            stepsize=steps,
            g_param=(
                None
                if sigma_denoiser is None
                else _per_iteration("sigma_denoiser", sigma_denoiser, max_iter)
            ),
            max_iter=max_iter,
            custom_init=init,
            unfold=True,
            trainable_params=trainable,
        )
        self.positive_stepsize = positive_stepsize
        self.fixed_point.iterator = ConditionedIterator(self.fixed_point.iterator)
        if checkpoint:
            self.fixed_point.iterator = CheckpointedIterator(self.fixed_point.iterator)
        if jitter is not None:
            jitter_model(self, jitter)

    def _as_prior(self, prior: Prior | Denoiser | nn.Module, sigma_denoiser) -> Prior:
        if isinstance(prior, Prior):
            return prior
        if isinstance(prior, Denoiser):
            if sigma_denoiser is None:
                raise ValueError(
                    "A deepinv Denoiser needs the noise level it removes, got "
                    f"{type(prior).__name__} without one: pass sigma_denoiser."
                )
            return self.denoiser_prior(prior)
        if isinstance(prior, Reconstructor) or not isinstance(prior, nn.Module):
            raise TypeError(
                "prior must be a deepinv Prior, a deepinv Denoiser or a network x -> f(x), got "
                f"{type(prior).__name__}."
            )
        return self.network_prior(prior)

    def update_params_fn(self, it: int) -> dict:
        """Parameters of iteration ``it``; a positive stepsize is stored as its logarithm."""
        params = super().update_params_fn(it)
        if self.positive_stepsize:
            params["stepsize"] = params["stepsize"].exp()
        return params


class UnfoldedGD(_Unfolded, GD):
    r"""
    Unrolled gradient descent, the network of the paper's SGD jittering, equation (8):

    .. math::
        x_{k+1} = x_k - \eta \left( A^\top(Ax_k - y) + f_\theta(x_k) + w_k \right),
        \quad k = 0, \dots, K-1,

    with :math:`w_k = 0` in evaluation mode and without ``jitter``. It is a
    :class:`deepinv.optim.GD` with ``unfold=True``, called as ``model(y, physics)``.

    What can make it faster changes nothing in the equation, and is left to torch:
    ``model.to(memory_format=torch.channels_last)`` where convolutions are faster in that layout (on
    some processors they take twice as long), ``network.compile()`` before it is passed as
    ``prior``, and the trainer's ``mixed_precision=torch.bfloat16`` where the hardware has units for
    it; the physics of this package stay in single precision. Whether it pays, measure.

    :param deepinv.optim.Prior, deepinv.models.Denoiser, torch.nn.Module prior: where
        :math:`f_\theta` comes from: a deepinv prior (its gradient), a deepinv denoiser :math:`D`
        (:math:`f_\theta = I - D`, RED) or a network :math:`f_\theta` itself
        (:class:`GradientPrior`). One, shared by the iterations, or a list of ``max_iter``.
    :param float, Sequence[float] stepsize: :math:`\eta`, one number or one per iteration. Default:
        1.
    :param int max_iter: number of iterations :math:`K`. Default: 10.
    :param float, Iterable[float], GaussianJitter, None jitter: noise in training, as in
        :func:`jitter`. Default: ``None``, no noise.
    :param bool checkpoint: recompute each iteration in the backward pass: memory that hardly grows
        with ``max_iter`` for about a third more time, and the same gradients. Default: ``False``.
    :param deepinv.optim.DataFidelity, None data_fidelity: Default: ``None``, which means
        :class:`NormalL2`: that of :class:`deepinv.optim.L2`, computed faster.
    :param float, Sequence[float] lambda_reg: factor of the prior. Default: 1.
    :param float, Sequence[float], None sigma_denoiser: noise level for a denoiser, in the unit of
        the image. Default: ``None``.
    :param Sequence[str] trainable_params: which of ``"stepsize"``, ``"lambda_reg"`` and
        ``"sigma_denoiser"`` are learned, beside the prior. Default: ``("stepsize",)``; empty for a
        fixed step size.
    :param bool positive_stepsize: learn the logarithm of the step size, which keeps it positive.
        The parameter and the checkpoint then hold :math:`\log\eta`. Default: ``False``.
    :param Callable init: ``init(y, physics)`` returns :math:`x_0`. Default: :math:`A^\top y`.
    :raises TypeError: if ``prior`` is none of the above, ``init`` is not callable, or an argument
        is unknown or of the wrong type.
    :raises ValueError: if a list has the wrong length, a number is negative or not finite, a name
        in ``trainable_params`` is unknown, a denoiser comes without ``sigma_denoiser``, or the
        jitter is refused.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=10, jitter=0.1)
    >>> model(physics(torch.zeros(200, 2)), physics).shape
    torch.Size([200, 2])
    """

    network_prior = GradientPrior
    denoiser_prior = RED


class UnfoldedPGD(_Unfolded, PGD):
    r"""
    Unrolled proximal gradient descent, the network of the paper's SPGD jittering, equation (12):

    .. math::
        x_{k+1} = \operatorname{prox}_\theta\left( x_k - \eta ( A^\top(Ax_k - y) + w_k ) \right),
        \quad k = 0, \dots, K-1,

    with :math:`w_k = 0` in evaluation mode and without ``jitter``. It is a
    :class:`deepinv.optim.PGD` with ``unfold=True``, called as ``model(y, physics)``.

    :param deepinv.optim.Prior, deepinv.models.Denoiser, torch.nn.Module prior: where
        :math:`\operatorname{prox}_\theta` comes from: a deepinv prior (its proximal operator), a
        deepinv denoiser (plug and play) or a network (:class:`ProximalPrior`). One, shared by the
        iterations, or a list of ``max_iter``.
    :param float, Sequence[float] stepsize: :math:`\eta`, one number or one per iteration. Default:
        1.

    The other arguments are those of :class:`UnfoldedGD`.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dj.SeismicConvolution()
    >>> denoiser = dinv.models.DnCNN(1, 1, depth=3, nf=8, pretrained=None)
    >>> model = dj.UnfoldedPGD(denoiser, sigma_denoiser=0.05, stepsize=0.5, max_iter=3, jitter=0.1)
    >>> model(physics(torch.zeros(1, 1, 64, 32)), physics).shape
    torch.Size([1, 1, 64, 32])
    """

    network_prior = ProximalPrior
    denoiser_prior = PnP


def _checked_trainables(names: Sequence[str], sigma_denoiser: object) -> list[str]:
    listed = isinstance(names, Iterable) and not isinstance(names, str)
    if not listed or not all(name in TRAINABLE for name in names):
        raise ValueError(
            f"trainable_params must be a list of names in {TRAINABLE}, got {names!r}."
        )
    if "sigma_denoiser" in names and sigma_denoiser is None:
        raise ValueError(
            "A trainable sigma_denoiser needs a start: pass sigma_denoiser."
        )
    return list(names)


def _per_iteration(
    name: str, value: float | Sequence[float], max_iter: int
) -> list[float]:
    """The parameter as the host takes it: a list of one number, or of one per iteration."""
    # Through single precision, in which the host keeps what is learned
    tensor = checks.reals(name, value).reshape(-1)
    if not (tensor.float().isfinite() & (tensor >= 0)).all():
        raise ValueError(f"{name} must be finite and at least 0, got {value!r}.")
    values = tensor.tolist()
    if len(values) not in (1, max_iter):
        raise ValueError(
            f"{name} must hold one value or one per iteration, got {len(values)} for "
            f"max_iter={max_iter}."
        )
    return values
