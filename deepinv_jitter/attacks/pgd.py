r"""Projected gradient ascent."""

from __future__ import annotations

from .. import checks as rules
from .balls import L2Ball
from .budgets import Budget
from .search import SearchAttack


class PGDAttack(SearchAttack):
    r"""
    Projected gradient ascent with normalised steps.

    .. math::
        \delta \leftarrow P_\varepsilon\left( \delta + \alpha\varepsilon\, g / \|g\| \right), \qquad
        g = \nabla_\delta\, \ell(H(y + \delta), x).

    :param Budget budget: the allowed perturbations, :class:`L2Ball` or :class:`LinfBall`.
    :param int steps: number of gradients. Default: 20.
    :param float rel_step: :math:`\alpha`, length of a step as a fraction of the radius. Default:
        0.1.
    :param str, None start: ``"zero"``, or ``"random"`` on the sphere. Default: ``"zero"``, and
        ``"random"`` for ``objective="deviation"``, whose gradient vanishes at zero.
    :param str keep: ``"best"``, for each sample the worst point seen, no perturbation included; or
        ``"last"``, the last iterate. Default: ``"best"``.
    :param str, torch.Tensor, Callable objective: what is maximised: ``"error"``,
        :math:`\|H(y + \delta) - x\|_2^2` of each sample; ``"deviation"``,
        :math:`\|H(y + \delta) - H(y)\|_2^2`, which needs no truth; a tensor, the squared error
        weighted by it, such as the mask of a region; a deepinv metric, or its negative if higher is
        better; a function ``f(x_net, x)`` of shape `(B,)`. Default: ``"error"``.
    :param int seed: seed of the random start, the same for every sample. Default: 0.
    :param bool checks: compute all flags in :meth:`Attack.run`, for about 35 evaluations and a
        gradient. They change nothing in the result. Default: ``True``.
    :param torch.dtype, None autocast: precision of the model's layers during the attack, as in
        :class:`torch.autocast`: ``torch.bfloat16`` makes an attack several times faster on hardware
        with units for it, and slower without, of which a warning tells. The perturbation and its
        loss stay in single precision. Default: ``None``, the precision that is in force.
    :raises TypeError: if ``budget`` or ``objective`` is none of the above, or a number of the wrong
        type.
    :raises ValueError: if an argument is out of range.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> x, physics = torch.randn(5, 2), dinv.physics.Denoising()
    >>> attack = dj.PGDAttack(dj.L2Ball(0.1), steps=20)
    >>> delta = attack(dj.UnfoldedGD(dj.PointMLP(), max_iter=3), x, physics(x), physics)
    >>> delta.norm(dim=1)
    tensor([0.1000, 0.1000, 0.1000, 0.1000, 0.1000])
    """

    def __init__(self, budget: Budget, *, steps: int = 20, rel_step: float = 0.1, **kwargs):
        super().__init__(budget, steps=steps, **kwargs)
        self.rel_step = rules.positive("rel_step", rel_step)

    @classmethod
    def paper(cls, eps: float, steps: int = 20, step: float = 0.1) -> PGDAttack:
        r"""
        The attack of the paper's experiments: steps of absolute length, from zero, last iterate.

        It differs from the published code in that a sample with zero gradient stays where it is
        instead of becoming NaN, and that unmeasured entries stay untouched.

        :param float eps: radius of the :math:`\ell_2` ball, positive; the paper's is 1, and 0.01
            for points.
        :param int steps: number of steps. Default: 20; 50 for points.
        :param float step: length of a step. Default: 0.1; 0.05 for points.
        :return: (:class:`PGDAttack`) the attack.
        :raises TypeError: if an argument is not a number of its type.
        :raises ValueError: if an argument is not positive and finite.
        """
        eps, step = rules.positive("eps", eps), rules.positive("step", step)
        return cls(L2Ball(eps), steps=steps, rel_step=step / eps, keep="last")

    def search(self, problem, delta):
        step = self.rel_step * problem.eps
        for _ in range(self.steps):
            _, g = problem.gradient(delta)
            delta = problem.project(delta + problem.steepest(g, step))
        return delta
