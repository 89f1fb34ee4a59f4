r"""The paper's two unrolled networks, over the host's own algorithms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import Parameter
from typing import Any

import torch
from deepinv.models import Denoiser, Reconstructor
from deepinv.optim import GD, PGD, BaseOptim, DataFidelity, Prior
from deepinv.physics import Physics
from torch import nn

from .. import checks
from ..optim.checkpointing import CheckpointedIterator
from ..optim.fidelities import NormalL2
from ..optim.iterators import ConditionedIterator
from ..optim.jittering import jitter as jitter_model
from ..optim.noise import Noise
from ..optim.priors import (
    DenoiserPnP,
    DenoiserRED,
    GradientPrior,
    NetworkPrior,
    ProximalPrior,
    level_argument,
    unwrapped,
)

TRAINABLE = ("stepsize", "lambda_reg", "sigma_denoiser")
#: deepinv's other names of some of them.
SYNONYMS = {"lambda": "lambda_reg", "g_param": "sigma_denoiser"}


def adjoint(y: torch.Tensor, physics: Physics) -> dict:
    r"""The default start of the iterations, :math:`x_0 = A^\top y`; the gradients need it too."""
    if not hasattr(physics, "A_adjoint"):
        raise TypeError(
            "the iterations start from the adjoint, A_adjoint(y), which "
            f"{type(physics).__name__} has not: give the model init, for example "
            "init=lambda y, physics: y."
        )
    x = physics.A_adjoint(y)
    return {"est": (x,), "adjoint": x}


class _Unfolded(BaseOptim):
    """What UnfoldedGD and UnfoldedPGD share."""

    _network_prior: type[Prior]
    _denoiser_prior: type[Prior]

    def __init__(
        self,
        prior: Prior | Denoiser | nn.Module | Sequence[Prior | Denoiser | nn.Module],
        *,
        stepsize: float | Sequence[float] = 1.0,
        max_iter: int = 10,
        jitter: Noise | None = None,
        checkpoint: bool = False,
        data_fidelity: DataFidelity | None = None,
        lambda_reg: float | Sequence[float] = 1.0,
        sigma_denoiser: float | Sequence[float | torch.Tensor] | None = None,
        g_param: float | Sequence[float | torch.Tensor] | None = None,
        trainable_params: Sequence[str] = ("stepsize",),
        positive_stepsize: bool = False,
        init: Callable[[torch.Tensor, Physics], torch.Tensor] | None = None,
        custom_init: Callable[[torch.Tensor, Physics], torch.Tensor] | None = None,
    ):
        max_iter = checks.whole("max_iter", max_iter, 1)
        sigma_denoiser = _either(sigma_denoiser=sigma_denoiser, g_param=g_param)
        init = _either(init=init, custom_init=custom_init)
        start: Callable = adjoint if init is None else init
        trainable = _checked_trainables(trainable_params, sigma_denoiser)
        listed = partial(_per_iteration, max_iter=max_iter, trainable=trainable)
        parameters: dict[str, Any] = {
            "stepsize": listed("stepsize", stepsize),
            "lambda": listed("lambda_reg", lambda_reg),
            "g_param": None if sigma_denoiser is None else listed("sigma_denoiser", sigma_denoiser),
        }
        if positive_stepsize:
            steps = parameters.pop("stepsize")
            if "stepsize" not in trainable or min(steps) <= 0:
                raise ValueError(
                    "positive_stepsize keeps a learned stepsize positive from a positive start, "
                    f"got stepsize={stepsize!r} and trainable_params={trainable_params!r}."
                )
            # Under a name of its own, so that a checkpoint of one is not taken for the other
            parameters["log_stepsize"] = torch.tensor(steps).log().tolist()
            trainable[trainable.index("stepsize")] = "log_stepsize"
        if not isinstance(prior, (list, tuple, nn.ModuleList)):
            prior = [prior]
        priors = [self._as_prior(p, sigma_denoiser) for p in prior]
        checks.per_iteration("prior", len(priors), max_iter)
        if "sigma_denoiser" in trainable and all(
            isinstance(p, NetworkPrior) and p.level_name is None for p in priors
        ):
            raise ValueError(
                "A trainable sigma_denoiser needs a network that takes it, but "
                f"{type(priors[0].network).__name__} has no argument sigma: leave it out of "
                "trainable_params."
            )
        fidelities = NormalL2() if data_fidelity is None else data_fidelity
        if not isinstance(fidelities, list):
            fidelities = [fidelities]
        if not all(isinstance(f, DataFidelity) for f in fidelities):
            raise TypeError(f"data_fidelity must be a deepinv DataFidelity, got {data_fidelity!r}.")
        checks.per_iteration("data_fidelity", len(fidelities), max_iter)
        if not callable(start):
            raise TypeError(
                f"init must be callable as init(y, physics), got {type(init).__name__}."
            )
        super().__init__(
            data_fidelity=fidelities,
            prior=priors,
            params_algo=parameters,
            max_iter=max_iter,
            custom_init=start,
            unfold=True,
            trainable_params=trainable,
        )
        self.fixed_point.iterator = ConditionedIterator(self.fixed_point.iterator)
        if checkpoint:
            self.fixed_point.iterator = CheckpointedIterator(self.fixed_point.iterator)
        if jitter is not None:
            jitter_model(self, jitter)

    def _as_prior(self, prior: Prior | Denoiser | nn.Module, sigma_denoiser) -> Prior:
        if isinstance(prior, Prior):
            return prior
        net = unwrapped(prior)
        denoises = isinstance(net, Denoiser)
        if not isinstance(net, nn.Module) or (isinstance(net, Reconstructor) and not denoises):
            raise TypeError(
                "prior must be a deepinv Prior, a deepinv Denoiser or a network x -> f(x), got "
                f"{type(net).__name__}."
            )
        level = level_argument(prior)
        if sigma_denoiser is None and level is not None and level.default is Parameter.empty:
            raise ValueError(
                f"{type(prior).__name__} needs the noise level it removes, and there is none: pass "
                "sigma_denoiser."
            )
        return self._denoiser_prior(prior) if denoises else self._network_prior(prior)

    def update_params_fn(self, it: int) -> dict:
        """Parameters of iteration ``it``; a positive step size is learned as its logarithm."""
        params = super().update_params_fn(it)
        if "log_stepsize" in params:
            params["stepsize"] = params.pop("log_stepsize").exp()
        return params


class UnfoldedGD(_Unfolded, GD):
    r"""
    Unrolled gradient descent, the network of the paper's SGD jittering, equation (8).

    .. math::
        x_{k+1} = x_k - \eta \left( A^\top(Ax_k - y) + f_\theta(x_k) + w_k \right),
        \quad k = 0, \dots, K-1,

    with :math:`w_k = 0` in evaluation mode and without ``jitter``. It is a
    :class:`deepinv.optim.GD` with ``unfold=True``, called as ``model(y, physics)``. What makes it
    faster stands in the documentation, under speed and memory.

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
    :param float, Sequence[float], Sequence[torch.Tensor], None sigma_denoiser: noise level for a
        denoiser or a network that takes one, in the unit of the image: one number or one per
        iteration, or a list of tensors, such as one threshold per band of a wavelet denoiser.
        Blind denoisers need none, and networks without an argument ``sigma`` are not given it.
        Default: ``None``.
    :param float, Sequence[float], Sequence[torch.Tensor], None g_param: deepinv's other name of
        ``sigma_denoiser``.
    :param Sequence[str] trainable_params: which of ``"stepsize"``, ``"lambda_reg"`` (or
        ``"lambda"``) and ``"sigma_denoiser"`` (or ``"g_param"``) are learned, besides the prior.
        Default: ``("stepsize",)``; empty for a fixed step size.
    :param bool positive_stepsize: learn the logarithm of the step size, which keeps it positive.
        The checkpoint then holds ``log_stepsize`` instead of ``stepsize``, and fits models with
        ``positive_stepsize`` only. Default: ``False``.
    :param Callable, None init: ``init(y, physics)`` returns :math:`x_0`. Default: ``None``, which
        means :math:`A^\top y`; a physics without an adjoint needs it.
    :param Callable, None custom_init: deepinv's other name of ``init``.
    :raises TypeError: if ``prior`` is none of the above, ``init`` is not callable, or an argument
        is unknown, of the wrong type or given under both its names.
    :raises ValueError: if a list has the wrong length, a number is negative or not finite, a name
        in ``trainable_params`` is unknown, a denoiser needs ``sigma_denoiser`` and there is none,
        or the jitter is refused.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=10, jitter=0.1)
    >>> model(physics(torch.zeros(200, 2)), physics).shape
    torch.Size([200, 2])
    """

    _network_prior = GradientPrior
    _denoiser_prior = DenoiserRED


class UnfoldedPGD(_Unfolded, PGD):
    r"""
    Unrolled proximal gradient descent, the network of the paper's SPGD jittering, equation (12).

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

    _network_prior = ProximalPrior
    _denoiser_prior = DenoiserPnP


def _either(**options: Any) -> Any:
    """The value of an argument that has two names."""
    (name, value), (synonym, other) = options.items()
    if value is not None and other is not None:
        raise TypeError(f"{synonym} is another name of {name}, got both: give one of them.")
    return other if value is None else value


def _checked_trainables(names: Sequence[str], sigma_denoiser: object) -> list[str]:
    listed = isinstance(names, Iterable) and not isinstance(names, str)
    if not listed or not all(name in (*TRAINABLE, *SYNONYMS) for name in names):
        raise ValueError(f"trainable_params must be a list of names in {TRAINABLE}, got {names!r}.")
    trainable = [SYNONYMS.get(name, name) for name in names]
    if len(set(trainable)) < len(trainable):
        raise ValueError(f"trainable_params must name each parameter once, got {names!r}.")
    if "sigma_denoiser" in trainable and sigma_denoiser is None:
        raise ValueError("A trainable sigma_denoiser needs a start: pass sigma_denoiser.")
    return trainable


def _per_iteration(
    name: str, value: Any, max_iter: int, trainable: list[str]
) -> list[float | torch.Tensor]:
    """The parameter as the host takes it: a list of one value, or of one per iteration."""
    listed = isinstance(value, (list, tuple))
    if name not in trainable:
        for one in value if listed else [value]:
            checks.constant(name, one, "name it in trainable_params")
    given = value if listed else torch.atleast_1d(checks.reals(name, value))
    rows = [checks.reals(name, row) for row in given]
    # Through single precision, in which the host keeps what is learned
    if not all((row.float().isfinite() & (row >= 0)).all() for row in rows):
        raise ValueError(f"{name} must be finite and at least 0, got {value!r}.")
    checks.per_iteration(name, len(rows), max_iter)
    if name != "sigma_denoiser" and any(row.numel() != 1 for row in rows):
        raise ValueError(f"{name} must be one number or one per iteration, got {value!r}.")
    return [row.item() if row.numel() == 1 else row.float() for row in rows]
