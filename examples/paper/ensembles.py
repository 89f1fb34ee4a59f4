r"""Many small models trained as one: the noise levels and seeds of the toy problem."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from deepinv.optim import BaseOptim
from deepinv.physics import Physics
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

import deepinv_jitter as dj


class Ensemble(nn.Module):
    r"""
    Unrolled models that differ in their weights and in the level of their jitter, run as one.

    A small model spends its time on starting operations: 32 of the paper's models of points at once
    take a seventh of the time of 32 one after the other, and give the same results to rounding,
    provided that every model's noise has a ``generator`` of its own. The weights are stacked along
    a new first dimension, so that an optimizer that acts on every entry by itself (SGD, Adam)
    trains each model as it would alone.

    :param Sequence[deepinv.optim.BaseOptim] models: built by one function: they differ in nothing
        but the values of their weights, and the level and generator of their jitter; some may have
        none. They have no buffers, and are left as they are until :meth:`unstack`.
    """

    def __init__(self, models: Sequence[BaseOptim]):
        super().__init__()
        self.models, self.noises = tuple(models), tuple(map(noise_of, models))
        plain = [dj.unjitter(copy.deepcopy(model)) for model in models]
        weights, _ = stack_module_state(plain)
        self.names = list(weights)
        self.weights = nn.ParameterList(p.detach() for p in weights.values())
        scales = {noise.scale for noise in self.noises if noise is not None}
        self.noise = Drawn(1.0, *scales)
        # In a tuple, which a module does not look into: only what is stacked is trained
        self.skeleton = (dj.jitter(plain[0], self.noise),)

    def forward(self, y: torch.Tensor, physics: Physics) -> torch.Tensor:
        r"""Every model on its measurements, `(M, B, ...)`, with one physics for all."""
        (skeleton,) = self.skeleton
        skeleton.train(self.training)

        def run(weights, y, noise):
            self.noise.drawn = noise
            # The host registers its step sizes twice, which torch would not restore if tied
            return functional_call(skeleton, weights, (y, physics), tie_weights=False)

        weights = dict(zip(self.names, self.weights, strict=True))
        start = vmap(lambda y: skeleton.init_iterate_fn(y, physics)["est"][0])(y)
        noise = self.draw(start.detach(), skeleton.max_iter)
        return vmap(run, in_dims=(0, 0, 1))(weights, y, noise)

    def draw(self, x: torch.Tensor, steps: int) -> torch.Tensor:
        """The noise of every iteration and model, times its level, shape `(K, M, B, ...)`."""
        drawn = x.new_zeros(steps, *x.shape)
        for k in range(steps):
            for m, noise in enumerate(self.noises):
                if self.training and noise is not None and noise.sigma_at(k) > 0:
                    drawn[k, m] = noise.sigma_at(k) * noise.standard_normal(x[m])
        return drawn

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        """Clip the gradient of every model by itself; its norms before, shape `(M,)`."""
        gradients = [w.grad for w in self.weights]
        norms = torch.stack([g.reshape(len(g), -1).norm(dim=1) for g in gradients]).norm(dim=0)
        factors = (max_norm / (norms + 1e-6)).clamp(max=1)
        for g in gradients:
            g.mul_(factors.reshape(-1, *(1,) * (g.ndim - 1)))
        return norms

    def unstack(self) -> list[BaseOptim]:
        """The models, with the weights written back into them."""
        with torch.no_grad():
            for m, model in enumerate(self.models):
                for weight, stacked in zip(model.parameters(), self.weights, strict=True):
                    weight.copy_(stacked[m])
        return list(self.models)


class Drawn(dj.GaussianJitter):
    """Noise that has been drawn, and multiplied by its level, before."""

    def __call__(self, x, k=0, data_step=None):
        self.k = k
        return super().__call__(x, k, data_step)

    def standard_normal(self, x):
        return self.drawn[self.k]


def noise_of(model: BaseOptim) -> dj.GaussianJitter | None:
    """The noise model of a model's iterations, if it has any."""
    iterator = model.fixed_point.iterator
    return iterator.jitter.noise if isinstance(iterator, dj.JitteredIterator) else None
