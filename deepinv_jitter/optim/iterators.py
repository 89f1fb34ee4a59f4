r"""
Where the jitter enters: iterators that wrap an unchanged deepinv iterator.

In training, :class:`JitteredIterator` hands the wrapped iterator a data fidelity tilted by a
random linear term, :math:`f_k(x) = f(x) + \langle w_k, x\rangle`. Then

.. math::
    \nabla f_k = \nabla f + w_k, \qquad
    \operatorname{prox}_{\gamma f_k}(v) = \operatorname{prox}_{\gamma f}(v - \gamma w_k).

The first is eq. (8) of the paper for gradient descent and eq. (12) for proximal gradient descent,
the second our extension to the algorithms that take a proximal step on the data fidelity. No step
of an algorithm is written a second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from deepinv.optim import BaseOptim
from deepinv.optim.optim_iterators import (
    ADMMIteration,
    DRSIteration,
    FISTAIteration,
    GDIteration,
    HQSIteration,
    OptimIterator,
    PGDIteration,
)
from deepinv.physics import LinearPhysics
from torch.utils.checkpoint import checkpoint

from .fidelities import TiltedFidelity
from .noise import GaussianJitter

#: Iterators that jitter is defined for: the paper's two, FISTA, and the extension to those with a
#: proximal step on the data fidelity.
SUPPORTED = (
    GDIteration,
    PGDIteration,
    FISTAIteration,
    HQSIteration,
    ADMMIteration,
    DRSIteration,
)


class IteratorWrapper(OptimIterator):
    r"""
    Base of the iterators that call another one, and are in its place for the host.

    Everything but :meth:`forward` is the wrapped iterator's: attributes, and the names in
    ``state_dict``, so that checkpoints load with and without the wrapper.

    :param deepinv.optim.OptimIterator iterator: the iterator to wrap, left unchanged.
    :raises TypeError: if ``iterator`` is none.
    """

    def __init__(self, iterator: OptimIterator):
        # Not OptimIterator.__init__, which would register steps and a cost of its own
        torch.nn.Module.__init__(self)
        if not isinstance(iterator, OptimIterator):
            raise TypeError(
                "iterator must be a deepinv OptimIterator, such as GDIteration(), got "
                f"{type(iterator).__name__}."
            )
        self.iterator = iterator
        self.train(iterator.training)
        self._register_state_dict_hook(_drop_prefix)
        self._register_load_state_dict_pre_hook(_add_prefix)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "iterator":
                raise
            return getattr(self.iterator, name)

    # BaseOptim sets has_cost on the iterator it is given
    @property
    def has_cost(self) -> bool:
        return self.iterator.has_cost

    @has_cost.setter
    def has_cost(self, value: bool) -> None:
        self.iterator.has_cost = value

    def forward(self, X: dict, *args, **kwargs) -> dict:
        """One iteration, see :class:`deepinv.optim.OptimIterator`."""
        return self.iterator(X, *args, **kwargs)


class ConditionedIterator(IteratorWrapper):
    r"""
    Shows the measurements to those that read them; no deepinv iterator does.

    A prior with ``reads_y`` is given :math:`y`, a data fidelity with ``reads_adjoint`` (such as
    :class:`NormalL2`) :math:`A^\top y`, which is computed once per forward pass and travels from
    iteration to iteration in ``X``.

    :param deepinv.optim.OptimIterator iterator: the iterator to wrap.
    """

    def forward(
        self,
        X: dict,
        cur_data_fidelity,
        cur_prior,
        cur_params,
        y,
        physics,
        *args,
        **kwargs,
    ) -> dict:
        """One iteration with a prior and a data fidelity that know the measurements."""
        fidelity, prior, known = cur_data_fidelity, cur_prior, {}
        if getattr(prior, "reads_y", False):
            prior = prior.given(y)
        if getattr(fidelity, "reads_adjoint", False) and isinstance(
            physics, LinearPhysics
        ):
            known = {
                "adjoint": X["adjoint"] if "adjoint" in X else physics.A_adjoint(y)
            }
            fidelity = fidelity.given(**known)
        X = self.iterator(X, fidelity, prior, cur_params, y, physics, *args, **kwargs)
        return X | known


class CheckpointedIterator(IteratorWrapper):
    r"""
    Recomputes the iteration in the backward pass instead of keeping its activations.

    Peak memory then hardly grows with the number of iterations, for about a third more time.

    :param deepinv.optim.OptimIterator iterator: the iterator to wrap.
    :raises TypeError: if the iterator is jittered: noise must be drawn outside the recomputed
        part.
    """

    def __init__(self, iterator: OptimIterator):
        if isinstance(iterator, JitteredIterator):
            raise TypeError(
                "A CheckpointedIterator must lie inside the jitter, got a JitteredIterator: its "
                "noise would be drawn again in the backward pass. Checkpoint first, then call "
                "jitter()."
            )
        super().__init__(iterator)

    def forward(self, X: dict, *args, **kwargs) -> dict:
        """One iteration, recomputed in the backward pass if there is one."""
        if not torch.is_grad_enabled():
            return self.iterator(X, *args, **kwargs)
        return checkpoint(self.iterator, X, *args, use_reentrant=False, **kwargs)


class JitteredIterator(IteratorWrapper):
    r"""
    Adds :math:`w_k` to the data-fidelity gradient of every iteration, in training mode only.

    With gradient descent and a network :math:`f_\theta` as the gradient of the prior this is eq.
    (8) of the paper,

    .. math::
        x_{k+1} = x_k - \eta \left( A^\top(Ax_k - y) + f_\theta(x_k) + w_k \right),

    and with proximal gradient descent eq. (12),

    .. math::
        x_{k+1} = \operatorname{prox}_\theta\left( x_k - \eta ( A^\top(Ax_k - y) + w_k ) \right).

    In evaluation mode, inside :func:`no_jitter` and where :math:`\sigma_k=0` the wrapped iterator
    is called as it is and no random number is drawn.

    Models are usually jittered with :func:`jitter`; the class serves those who build a
    :class:`deepinv.optim.BaseOptim` from an iterator.

    :param deepinv.optim.OptimIterator iterator: iterator of GD, PGD, FISTA, HQS, ADMM or DRS.
    :param float, Iterable[float], GaussianJitter sigma: noise level, one number or one per
        iteration, as a per-entry standard deviation; or a law.
    :raises TypeError: if jitter is not defined for the iterator, or it is jittered already.
    :raises ValueError: if the level is negative or not finite, or the law's scale does not fit the
        iterator.

    |sep|

    :Examples:

    >>> import deepinv as dinv, deepinv_jitter as dj
    >>> from deepinv.optim.optim_iterators import GDIteration
    >>> iterator = dj.JitteredIterator(GDIteration(), 0.1)
    >>> model = dinv.optim.BaseOptim(iterator, data_fidelity=dinv.optim.L2(), unfold=True,
    ...     prior=dinv.optim.Tikhonov(), max_iter=5, trainable_params=["stepsize"])
    """

    def __init__(
        self, iterator: OptimIterator, sigma: float | Iterable[float] | GaussianJitter
    ):
        law = sigma if isinstance(sigma, GaussianJitter) else GaussianJitter(sigma)
        base = _innermost(iterator)
        if isinstance(iterator, JitteredIterator):
            raise TypeError(
                "The iterator is jittered already: wrap iterator.iterator instead."
            )
        if not isinstance(base, SUPPORTED):
            raise TypeError(
                f"Jitter is defined for the iterators of {_names(SUPPORTED)}, "
                f"got {type(base).__name__}."
            )
        if law.scale == "official" and not isinstance(
            base, (GDIteration, PGDIteration)
        ):
            raise ValueError(
                "scale='official' reproduces the paper's GD and PGD networks, got "
                f"{type(base).__name__}: use 'std', 'norm' or 'relative'."
            )
        super().__init__(iterator)
        self.jitter = law
        self.enabled = True

    def forward(
        self,
        X: dict,
        cur_data_fidelity,
        cur_prior,
        cur_params,
        y,
        physics,
        *args,
        **kwargs,
    ) -> dict:
        """One iteration with the tilted data fidelity. The iteration's number travels in ``X``."""
        k = X.get("jitter_it", 0)
        fidelity = cur_data_fidelity
        if self.training and self.enabled and self.jitter.sigma_at(k) > 0:
            x = X["est"][0]

            def data_step() -> torch.Tensor:
                return x - cur_params["stepsize"] * cur_data_fidelity.grad(
                    x, y, physics
                )

            # Drawn here, so that an iteration recomputed in the backward pass sees the same noise
            fidelity = TiltedFidelity(cur_data_fidelity, self.jitter(x, k, data_step))
        X = self.iterator(
            X, fidelity, cur_prior, cur_params, y, physics, *args, **kwargs
        )
        return X | {"jitter_it": k + 1}

    def extra_repr(self) -> str:
        return repr(self.jitter)


def jitter(
    model: BaseOptim, sigma: float | Iterable[float] | GaussianJitter
) -> BaseOptim:
    r"""
    Turn an unrolled deepinv model into a jittered one, in place.

    Works on models of type GD, PGD and FISTA (the paper's SGD and SPGD jittering and their natural
    extension) and, as our extension, HQS, ADMM and DRS. In training mode every iteration then adds
    fresh noise to the gradient of the data fidelity; in evaluation mode the model is the plain
    one, bit for bit. Parameters and ``state_dict`` do not change. A second call replaces the
    first.

    :param deepinv.optim.BaseOptim model: model built with ``unfold=True``.
    :param float, Iterable[float], GaussianJitter sigma: noise level, one number or one per
        iteration, as a per-entry standard deviation in the unit of the data-fidelity gradient; or
        a :class:`GaussianJitter`.
    :return: (:class:`deepinv.optim.BaseOptim`) ``model``.
    :raises TypeError: if the model is not an unrolled :class:`deepinv.optim.BaseOptim` or jitter
        is not defined for its algorithm.
    :raises ValueError: if the model uses DEQ, Anderson acceleration, backtracking or early
        stopping, if a level is negative or not finite, or if there are several levels but not one
        per iteration.

    |sep|

    :Examples:

    >>> import deepinv as dinv, deepinv_jitter as dj
    >>> model = dinv.optim.PGD(
    ...     data_fidelity=dinv.optim.L2(), prior=dinv.optim.PnP(dinv.models.MedianFilter()),
    ...     stepsize=0.5, max_iter=10, unfold=True, trainable_params=["stepsize"])
    >>> model = dj.jitter(model, sigma=0.1)
    >>> model.fixed_point.iterator.jitter
    GaussianJitter(sigma=0.1, scale='std')
    """
    _check_unrolled(model)
    wrapped = JitteredIterator(_without_jitter(model.fixed_point.iterator), sigma)
    levels = wrapped.jitter.sigma
    if len(levels) not in (1, model.max_iter):
        raise ValueError(
            f"sigma must hold one level or one per iteration, got {len(levels)} levels for "
            f"max_iter={model.max_iter}."
        )
    model.fixed_point.iterator = wrapped
    return model


def unjitter(model: BaseOptim) -> BaseOptim:
    r"""
    Take the jitter out of a model again, in place.

    :param deepinv.optim.BaseOptim model: a jittered model; a plain one is left as it is.
    :return: (:class:`deepinv.optim.BaseOptim`) ``model``.
    :raises TypeError: if the model is no :class:`deepinv.optim.BaseOptim`.

    |sep|

    :Examples:

    >>> import deepinv as dinv, deepinv_jitter as dj
    >>> model = dinv.optim.GD(
    ...     prior=dinv.optim.Tikhonov(), unfold=True, trainable_params=["stepsize"], max_iter=3)
    >>> type(dj.unjitter(dj.jitter(model, 0.1)).fixed_point.iterator).__name__
    'GDIteration'
    """
    if not isinstance(model, BaseOptim):
        raise TypeError(
            f"unjitter needs a deepinv.optim.BaseOptim, got {type(model).__name__}."
        )
    model.fixed_point.iterator = _without_jitter(model.fixed_point.iterator)
    return model


@contextmanager
def no_jitter(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    r"""
    Silence every :class:`JitteredIterator` below a module, whatever its mode.

    It reaches through wrappers, such as ``DistributedDataParallel`` and the models a deepinv loss
    adapts.

    :param torch.nn.Module module: a model, or anything that holds one.
    :return: a context manager which yields ``module``.
    :raises TypeError: if ``module`` is no module.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising()
    >>> model = dj.UnfoldedGD(dj.PointMLP(), max_iter=3, jitter=0.1)
    >>> y = torch.randn(4, 2)
    >>> with dj.no_jitter(model):
    ...     print(torch.equal(model(y, physics), model(y, physics)))
    True
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"no_jitter needs a torch.nn.Module, got {type(module).__name__}."
        )
    iterators = [m for m in module.modules() if isinstance(m, JitteredIterator)]
    before = [iterator.enabled for iterator in iterators]
    try:
        for iterator in iterators:
            iterator.enabled = False
        yield module
    finally:
        for iterator, enabled in zip(iterators, before, strict=True):
            iterator.enabled = enabled


def _check_unrolled(model: BaseOptim) -> None:
    if not isinstance(model, BaseOptim):
        raise TypeError(
            f"jitter needs a deepinv.optim.BaseOptim (GD, PGD, ...), got {type(model).__name__}."
        )
    if not model.unfold:
        raise ValueError(
            "jitter needs an unrolled model, got unfold=False, which runs without gradients: "
            "build it with unfold=True."
        )
    # What makes the number of steps, or a step itself, depend on the noise in ways that no
    # equation of the method describes
    for name, used in {
        "DEQ": model.DEQ,
        "anderson_acceleration": model.anderson_acceleration_config is not None,
        "backtracking": model.backtracking,
        "early_stop": model.early_stop,
    }.items():
        if used:
            raise ValueError(
                f"jitter is not defined with {name}: build the model without it."
            )


def _without_jitter(iterator: OptimIterator) -> OptimIterator:
    return iterator.iterator if isinstance(iterator, JitteredIterator) else iterator


def _innermost(iterator: OptimIterator) -> OptimIterator:
    while isinstance(iterator, IteratorWrapper):
        iterator = iterator.iterator
    return iterator


def _names(iterators: Iterable[type]) -> str:
    return ", ".join(i.__name__.removesuffix("Iteration") for i in iterators)


def _drop_prefix(module: torch.nn.Module, state_dict: dict, prefix: str, *_) -> None:
    inner = prefix + "iterator."
    for key in [k for k in state_dict if k.startswith(inner)]:
        state_dict[prefix + key.removeprefix(inner)] = state_dict.pop(key)


def _add_prefix(state_dict: dict, prefix: str, *_) -> None:
    for key in [k for k in state_dict if k.startswith(prefix)]:
        state_dict[prefix + "iterator." + key.removeprefix(prefix)] = state_dict.pop(
            key
        )
