r"""Random perturbations: the bar any other attack must clear."""

from __future__ import annotations

import torch

from .. import checks as rules
from .budgets import DISTRIBUTIONS, Budget
from .problem import Objective
from .search import SearchAttack


class RandomAttack(SearchAttack):
    r"""
    The worst of many random perturbations: the bar any other attack must clear. It needs no
    gradient.

    :param Budget budget: the allowed perturbations.
    :param int samples: number of draws, each the same direction for every sample. Default: 100.
    :param str distribution: ``"sphere"``, ``"ball"`` or ``"gaussian"``, see :meth:`Budget.random`.
        Default: ``"sphere"``.
    :param bool checks: find out in :meth:`Attack.run` whether the model is stochastic. Default:
        ``True``.

    The other parameters and the errors are those of :class:`PGDAttack`; the seed is that of the
    draws.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> x, physics = torch.randn(5, 2), dinv.physics.Denoising()
    >>> attack = dj.RandomAttack(dj.L2Ball(0.1), samples=10)
    >>> attack(dj.UnfoldedGD(dj.PointMLP()), x, physics(x), physics).shape
    torch.Size([5, 2])
    """

    uses_gradient = False
    adds_init = True

    def __init__(
        self,
        budget: Budget,
        *,
        samples: int = 100,
        distribution: str = "sphere",
        objective: Objective = "error",
        seed: int = 0,
        checks: bool = True,
    ):
        rules.choice("distribution", distribution, DISTRIBUTIONS)
        steps = rules.whole("samples", samples, 1)
        super().__init__(
            budget, steps=steps, start="zero", objective=objective, seed=seed, checks=checks
        )
        self.distribution = distribution

    @property
    def settings(self):
        sphere = self.distribution == "sphere"
        return f"samples={self.steps}" + ("" if sphere else f", distribution={self.distribution!r}")

    def search(self, problem, delta):
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            problem.loss(delta)
            delta = problem.random(generator, self.distribution)
        return delta
