r"""Where the noise enters an iteration: iterators that wrap an unchanged deepinv iterator."""

from __future__ import annotations

import torch
from deepinv.optim.optim_iterators import CPIteration, GDIteration, OptimIterator, PGDIteration
from deepinv.physics import LinearPhysics

from .. import checks
from .fidelities import TiltedFidelity
from .noise import Jitter, Noise


class IteratorWrapper(OptimIterator):
    r"""
    Base of the iterators that call another one, and stand in its place for the host.

    A subclass writes :meth:`forward`. Everything else is the wrapped iterator's: attributes, and
    the names in ``state_dict``, so that checkpoints load with and without the wrapper.

    :param deepinv.optim.OptimIterator iterator: the iterator to wrap, left unchanged.
    :raises TypeError: if ``iterator`` is not an iterator.
    """

    def __init__(self, iterator: OptimIterator):
        # Not OptimIterator.__init__, which would register steps and a cost of its own
        torch.nn.Module.__init__(self)
        checks.instance("iterator", iterator, OptimIterator, "deepinv OptimIterator")
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


class ConditionedIterator(IteratorWrapper):
    r"""
    Passes the measurements on to priors and data fidelities, which no deepinv iterator does.

    A prior with ``reads_y`` is given :math:`y`, a data fidelity with ``reads_adjoint`` (such as
    :class:`NormalL2`) :math:`A^\top y`, which is computed once per forward pass and travels from
    iteration to iteration in ``X``.

    :param deepinv.optim.OptimIterator iterator: the iterator to wrap.
    """

    def forward(
        self, X: dict, cur_data_fidelity, cur_prior, cur_params, y, physics, *args, **kwargs
    ) -> dict:
        """One iteration with a prior and a data fidelity that know the measurements."""
        fidelity, prior, known = cur_data_fidelity, cur_prior, {}
        if getattr(prior, "reads_y", False):
            prior = prior.given(y)
        if getattr(fidelity, "reads_adjoint", False) and isinstance(physics, LinearPhysics):
            known = {"adjoint": X["adjoint"] if "adjoint" in X else physics.A_adjoint(y)}
            fidelity = fidelity.given(**known)
        X = self.iterator(X, fidelity, prior, cur_params, y, physics, *args, **kwargs)
        return X | known


class JitteredIterator(IteratorWrapper):
    r"""
    Adds :math:`w_k` to the data-fidelity gradient of every iteration, in training mode only.

    The data fidelity becomes :math:`f_k(x) = f(x) + \langle w_k, x\rangle`, so that

    .. math::
        \nabla f_k = \nabla f + w_k, \qquad
        \operatorname{prox}_{\gamma f_k}(v) = \operatorname{prox}_{\gamma f}(v - \gamma w_k).

    The first gives eq. (8) of the paper for gradient descent (:class:`UnfoldedGD`) and eq. (12) for
    proximal gradient descent (:class:`UnfoldedPGD`), the second is our extension.

    The layer :class:`Jitter` that it holds switches the noise; where there is none, the wrapped
    iterator is called unchanged.

    It works for any iterator that asks its data fidelity for a gradient or a proximal point, be it
    of the conjugate or with a Bregman distance. Chambolle-Pock (PDCP), whose data fidelity
    :math:`F(Kx)` is in the dual step, has the noise there,
    :math:`F_k(v) = F(v) + \langle w_k, v\rangle`, with :math:`w_k` of the shape of the dual
    variable.

    Models are usually jittered with :func:`jitter`; this class is for those who build a
    :class:`deepinv.optim.BaseOptim` from an iterator.

    :param deepinv.optim.OptimIterator iterator: the iterator to wrap.
    :param float, Iterable[float], GaussianJitter sigma: noise level, one number or one per
        iteration, as a per-entry standard deviation; or a noise model.
    :raises TypeError: if ``iterator`` is not an iterator, or jittered already; in the call, if its
        step asks the data fidelity for none of the above, so that no noise would enter.
    :raises ValueError: if the level is negative or not finite, or the noise model's scale does not
        fit the iterator; in the call, if the step asks at a point of another shape than the
        iterate's.

    |sep|

    :Examples:

    >>> import deepinv as dinv, deepinv_jitter as dj
    >>> from deepinv.optim.optim_iterators import GDIteration
    >>> iterator = dj.JitteredIterator(GDIteration(), 0.1)
    >>> model = dinv.optim.BaseOptim(iterator, data_fidelity=dinv.optim.L2(), unfold=True,
    ...     prior=dinv.optim.Tikhonov(), max_iter=5, trainable_params=["stepsize"])
    """

    def __init__(self, iterator: OptimIterator, sigma: Noise):
        layer, base = Jitter(sigma), innermost(iterator)
        super().__init__(iterator)
        if any(isinstance(m, JitteredIterator) for m in iterator.modules()):
            raise TypeError(
                "The iterator is jittered already, and would get two noises: wrap the one without, "
                "or call jitter(model, sigma), which replaces the noise of before."
            )
        if layer.noise.scale == "official" and not isinstance(base, (GDIteration, PGDIteration)):
            raise ValueError(
                "scale='official' reproduces the paper's GD and PGD networks, got "
                f"{type(base).__name__}: use 'std', 'norm' or 'relative'."
            )
        self.jitter = layer.train(iterator.training)
        # Which iterate the data fidelity is a function of: the first, or a dual one
        self.argument = -1 if isinstance(base, CPIteration) and not base.g_first else 0

    def forward(
        self, X: dict, cur_data_fidelity, cur_prior, cur_params, y, physics, *args, **kwargs
    ) -> dict:
        """One iteration with the tilted data fidelity. The iteration's number travels in ``X``."""
        k, x = X.get("jitter_it", 0), X["est"][0]

        def data_step() -> torch.Tensor:
            return x - cur_params["stepsize"] * cur_data_fidelity.grad(x, y, physics)

        # Drawn here, so that an iteration recomputed in the backward pass sees the same noise
        w = self.jitter.draw(X["est"][self.argument], k, data_step)
        fidelity = cur_data_fidelity if w is None else TiltedFidelity(cur_data_fidelity, w)
        X = self.iterator(X, fidelity, cur_prior, cur_params, y, physics, *args, **kwargs)
        if w is not None and not fidelity.asked:
            raise TypeError(
                f"{type(innermost(self)).__name__} has no place for jitter, since its step asks "
                "the data fidelity for neither a gradient nor a proximal point: take the step by "
                "data_fidelity.grad or data_fidelity.prox, or put the noise on submodules by "
                "jitter(model, sigma, at=...)."
            )
        return X | {"jitter_it": k + 1}


def innermost(iterator: OptimIterator) -> OptimIterator:
    """The iterator below all wrappers."""
    while isinstance(iterator, IteratorWrapper):
        iterator = iterator.iterator
    return iterator


def without_jitter(iterator: OptimIterator) -> OptimIterator:
    """The iterator with its wrappers except the jitter."""
    if isinstance(iterator, JitteredIterator):
        return without_jitter(iterator.iterator)
    if isinstance(iterator, IteratorWrapper):
        iterator.iterator = without_jitter(iterator.iterator)
    return iterator


def _drop_prefix(module: torch.nn.Module, state_dict: dict, prefix: str, *_) -> None:
    inner = prefix + "iterator."
    for key in [k for k in state_dict if k.startswith(inner)]:
        state_dict[prefix + key.removeprefix(inner)] = state_dict.pop(key)


def _add_prefix(state_dict: dict, prefix: str, *_) -> None:
    for key in [k for k in state_dict if k.startswith(prefix)]:
        state_dict[prefix + "iterator." + key.removeprefix(prefix)] = state_dict.pop(key)
