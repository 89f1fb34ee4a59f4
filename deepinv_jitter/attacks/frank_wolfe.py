r"""The Frank-Wolfe method: full steps to the boundary."""

from __future__ import annotations

from .budgets import Budget
from .search import SearchAttack, checked_momentum


class FrankWolfeAttack(SearchAttack):
    r"""
    Full steps to the boundary, along averaged gradients.

    .. math::
        d \leftarrow (1 - \mu)\, g + \mu\, d, \qquad
        \delta \leftarrow \arg\max_{\|\delta\| \leq \varepsilon} \langle d, \delta \rangle
        = \varepsilon\, d / \|d\|_2, \qquad g = \nabla_\delta\, \ell(H(y + \delta), x).

    It begins with :math:`d = g`. This is the Frank-Wolfe method with heavy ball momentum (`Li et
    al., 2021 <https://arxiv.org/abs/2110.04243>`_), and for a linear :math:`H` a power iteration.
    It has no step size: three of them make the default attack of adversarial training. Without
    momentum no step lowers a convex loss, but on networks, whose loss is not convex, the iterates
    jump to and fro.

    :param Budget budget: the allowed perturbations.
    :param int steps: number of gradients. Default: 3.
    :param float momentum: :math:`\mu`, at least 0 and below 1. Default: 0.4.

    The other parameters are those of :class:`PGDAttack`.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> x, physics = torch.randn(5, 2), dinv.physics.Denoising()
    >>> model = dj.UnfoldedGD(dj.PointMLP(), max_iter=3)
    >>> delta = dj.FrankWolfeAttack(dj.L2Ball(0.1))(model, x, physics(x), physics)
    >>> delta.norm(dim=1)
    tensor([0.1000, 0.1000, 0.1000, 0.1000, 0.1000])
    """

    def __init__(self, budget: Budget, *, steps: int = 3, momentum: float = 0.4, **kwargs):
        super().__init__(budget, steps=steps, **kwargs)
        self.momentum = checked_momentum(momentum)

    def search(self, problem, delta):
        d = None
        for _ in range(self.steps):
            _, g = problem.gradient(delta)
            d = g if d is None else (1 - self.momentum) * g + self.momentum * d
            delta = problem.steepest(d, problem.eps)
        return delta
