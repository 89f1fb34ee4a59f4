r"""Many small models trained as one, such as a sweep over noise levels."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence

import torch
from deepinv.optim import BaseOptim
from deepinv.physics import Physics
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from .. import checks
from ..optim.iterators import JitteredIterator, jitter, unjitter
from ..optim.noise import GaussianJitter


class Ensemble(nn.Module):
    r"""
    Unrolled models that differ in their weights and in the level of their jitter, run as one.

    A small model spends its time on starting operations: 32 of the paper's models of points at once
    take a fraction of the time of 32 one after the other, and give the same results to rounding,
    provided that every model's noise has a ``generator`` of its own. The weights are stacked along
    a new first dimension, so that an optimizer that acts on every entry by itself (SGD, Adam)
    trains each model as it would alone.

    :param Sequence[deepinv.optim.BaseOptim] models: models that differ in nothing but their weights
        and the level and generator of their jitter; some may have none. On the device and of the
        type they are to run in; left as they are until :meth:`unstack`.
    :raises TypeError: if something in ``models`` is not a :class:`deepinv.optim.BaseOptim`.
    :raises ValueError: if ``models`` is empty, or their weights, with type and device, or scales of
        noise do not match.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> levels = [0.0, 0.1, 0.2]
    >>> models = [
    ...     dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=5, jitter=dj.GaussianJitter(
    ...         level, generator=torch.Generator().manual_seed(0))) for level in levels]
    >>> ensemble = dj.Ensemble(models)
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> x = torch.zeros(3, 50, 2)  # 3 models, 50 points
    >>> optimizer = torch.optim.Adam(ensemble.parameters(), lr=1e-3)
    >>> loss = (ensemble(physics(x), physics) - x).square().flatten(1).mean(1)
    >>> loss.sum().backward()
    >>> optimizer.step()
    >>> trained = ensemble.unstack()
    """

    def __init__(self, models: Sequence[BaseOptim]):
        super().__init__()
        if not isinstance(models, Iterable):
            raise TypeError(
                f"models must be a list of models, got {type(models).__name__}."
            )
        models = list(models)
        _check_alike(models)
        parameters, buffers = stack_module_state(models)
        self._names = list(parameters)
        self._weights = nn.ParameterList(parameters.values())
        self._laws = [_law(model) for model in models]
        self._noise = _StackedNoise(_common_scale(self._laws))
        # In tuples, which a module does not look into: only the weights are trained and saved
        skeleton = jitter(unjitter(copy.deepcopy(models[0])), self._noise)
        self._skeleton, self._constants = (skeleton,), (buffers,)
        self._models = tuple(models)

    def forward(self, y: torch.Tensor, physics: Physics) -> torch.Tensor:
        r"""
        Run every model on its measurements.

        :param torch.Tensor y: measurements, shape `(M, B, ...)` for `M` models.
        :param deepinv.physics.Physics physics: the physics of all of them.
        :return: (:class:`torch.Tensor`) reconstructions, shape `(M, B, ...)`.
        :raises TypeError: if ``y`` is no tensor of real or complex numbers.
        :raises ValueError: if the first dimension of ``y`` is not the number of models.
        """
        checks.tensor("y", y)
        if len(y) != len(self._models):
            raise ValueError(
                f"y must hold the measurements of each of the {len(self._models)} models, got "
                f"shape {tuple(y.shape)}: y.expand({len(self._models)}, ...) shows all of them "
                "the same."
            )
        (skeleton,), (buffers,) = self._skeleton, self._constants
        skeleton.train(self.training)
        weights = dict(zip(self._names, self._weights, strict=True))

        def run(weights, buffers, y, noise):
            self._noise.drawn = noise
            # The host registers its step sizes twice, which torch would not restore if tied
            state, arguments = (weights, buffers), (y, physics)
            return functional_call(skeleton, state, arguments, tie_weights=False)

        start = vmap(lambda y: skeleton.init_iterate_fn(y, physics)["est"][0])(y)
        noise = self._draw(start.detach(), skeleton.max_iter)
        return vmap(run, in_dims=(0, 0, 0, 1))(weights, buffers, y, noise)

    def unstack(self) -> list[BaseOptim]:
        r"""
        Write the weights back into the models.

        :return: (:class:`list`) the models the ensemble was made of, with their new weights.
        """
        with torch.no_grad():
            for name, stacked in zip(self._names, self._weights, strict=True):
                for model, weight in zip(self._models, stacked, strict=True):
                    model.get_parameter(name).copy_(weight)
        return list(self._models)

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        r"""
        Clip the gradient of every model by itself, as :func:`torch.nn.utils.clip_grad_norm_` does.

        :param float max_norm: largest norm.
        :return: (:class:`torch.Tensor`) norms before, shape `(M,)`.
        :raises TypeError: if ``max_norm`` is no number.
        :raises ValueError: if it is negative or not finite, or there are no gradients.
        """
        max_norm = checks.number("max_norm", max_norm, low=0)
        gradients = [w.grad for w in self._weights if w.grad is not None]
        if not gradients:
            raise ValueError(
                "gradients must be there to be clipped: call backward first."
            )
        norms = torch.stack(
            [g.reshape(len(g), -1).norm(dim=1) for g in gradients]
        ).norm(dim=0)
        factors = (max_norm / (norms + 1e-6)).clamp(max=1)
        for g in gradients:
            g.mul_(factors.reshape(-1, *(1,) * (g.ndim - 1)))
        return norms

    def _draw(self, x: torch.Tensor, steps: int) -> torch.Tensor:
        """The noise of every iteration and model for its level, shape `(K, M, B, ...)`."""
        noise = x.new_zeros(steps, *x.shape)
        if self.training:
            for k, m in itertools.product(range(steps), range(len(x))):
                law = self._laws[m]
                if law is not None and law.sigma_at(k) > 0:
                    noise[k, m] = law.level(x[m], k) * law.standard_normal(x[m])
        return noise


class _StackedNoise(GaussianJitter):
    """The law of an ensemble: noise that has been drawn, and multiplied by its level, before."""

    def __init__(self, scale: str):
        super().__init__(1.0, scale)
        self.drawn = None

    def __call__(self, x, k=0, data_step=None):
        self.k = k
        return super().__call__(x, k, data_step)

    def standard_normal(self, x):
        return self.drawn[self.k]


def _law(model: BaseOptim) -> GaussianJitter | None:
    iterator = model.fixed_point.iterator
    return iterator.jitter if isinstance(iterator, JitteredIterator) else None


def _common_scale(laws: Sequence[GaussianJitter | None]) -> str:
    scales = {law.scale for law in laws if law is not None}
    if len(scales) > 1:
        raise ValueError(
            f"the jitter of all models must have one scale, got {sorted(scales)}."
        )
    return scales.pop() if scales else "std"


def _check_alike(models: Sequence[BaseOptim]) -> None:
    if not models:
        raise ValueError("models must hold at least one model, got none.")
    for model in models:
        if not isinstance(model, BaseOptim):
            raise TypeError(
                "models must be unrolled deepinv models (GD, PGD, ...), got "
                f"{type(model).__name__}."
            )
    kinds = [_kind(model) for model in models]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(
            "models must be alike in class, max_iter, fixed parameters and the shapes, types and "
            "devices of their weights: build them all by one function."
        )
    places = {
        (id(p), id(m), n) for m in models[0].modules() for n, p in m._parameters.items()
    }
    if len(places) > len({place[0] for place in places}):
        raise ValueError(
            "models must not share a weight between two layers: an ensemble would train only "
            "one of the two."
        )


def _kind(model: BaseOptim) -> tuple:
    """What an ensemble takes from its first model alone."""
    fixed = {
        name: str(value)
        for name, value in model.init_params_algo.items()
        if not isinstance(value, nn.ParameterList)
    }
    shapes = {n: (p.shape, p.dtype, p.device) for n, p in model.named_parameters()}
    return type(model), model.max_iter, fixed, shapes
