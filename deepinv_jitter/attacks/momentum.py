r"""Ascent with Nesterov's momentum, and steps that shrink."""

from __future__ import annotations

from .. import checks as rules
from .budgets import Budget
from .search import SearchAttack, checked_momentum

#: The share of the steps in which a wider ball shrinks to the budget.
SHRINKING = 0.8

#: The first step of a search that goes on, as a share of what it was.
REHEATED = 0.3


class MomentumAttack(SearchAttack):
    r"""
    Projected gradient ascent with Nesterov's momentum and steps that shrink geometrically.

    .. math::
        \tilde\delta &= P_{\rho_k}\left( \delta_k + \mu (\delta_k - \delta_{k-1}) \right), \\
        \delta_{k+1} &= P_{\rho_k}\left( \tilde\delta + \alpha_k \rho_k\, g / \|g\| \right), \qquad
        g = \nabla_\delta\, \ell(H(y + \tilde\delta), x).

    The loss of a network under attack has many local maxima: long steps at first find the better
    ones, short steps at last climb them. Some lie behind points of less harm that perturbations
    larger than allowed get over: with ``widen`` above 1 the search begins in a larger ball, of
    radius :math:`\rho_0 = c\,\varepsilon`, which shrinks to the budget, :math:`\rho_k =
    \varepsilon`, within 80 % of the steps; only what is found there counts.

    :param Budget budget: the allowed perturbations.
    :param int steps: number of gradients. Default: 100.
    :param float momentum: :math:`\mu`, at least 0 and below 1. Default: 0.9.
    :param float first_step: :math:`\alpha_0`, as a fraction of the radius. Default: 0.5.
    :param float last_step: the fraction at the end. Default: 0.005.
    :param float widen: :math:`c`, at least 1. Default: 1.

    The other parameters are those of :class:`PGDAttack`.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> x, physics = torch.randn(5, 2), dinv.physics.Denoising()
    >>> model = dj.UnfoldedGD(dj.PointMLP(), max_iter=3)
    >>> attack = dj.MomentumAttack(dj.L2Ball(0.1), start="random", widen=3)
    >>> attack(model, x, physics(x), physics).norm(dim=1)
    tensor([0.1000, 0.1000, 0.1000, 0.1000, 0.1000])
    """

    def __init__(
        self,
        budget: Budget,
        *,
        steps: int = 100,
        momentum: float = 0.9,
        first_step: float = 0.5,
        last_step: float = 0.005,
        widen: float = 1.0,
        **kwargs,
    ):
        super().__init__(budget, steps=steps, **kwargs)
        self.momentum = checked_momentum(momentum)
        self.first_step = rules.positive("first_step", first_step)
        self.last_step = rules.positive("last_step", last_step)
        self.widen = rules.real("widen", widen, low=1)

    @property
    def settings(self):
        widen = "" if self.widen == 1 else f", widen={self.widen:g}"
        return f"{super().settings}{widen}"

    def continued(self, steps):
        """Shorter steps than at first, so as not to lose what was found, and in the budget."""
        other = super().continued(steps)
        other.first_step = max(self.last_step, REHEATED * self.first_step)
        other.widen = 1.0
        return other

    def search(self, problem, delta):
        previous = delta
        for k in range(self.steps):
            t = k / self.steps
            radius = problem.eps * self.widen ** max(0.0, 1 - t / SHRINKING)
            step = self.first_step * (self.last_step / self.first_step) ** t
            ahead = problem.project(delta + self.momentum * (delta - previous), radius)
            allowed = self.widen == 1 or k == 0 or t >= SHRINKING
            _, g = problem.gradient(ahead, allowed)
            moved = ahead + problem.steepest(g, step * radius)
            previous, delta = delta, problem.project(moved, radius)
        return problem.project(delta)
