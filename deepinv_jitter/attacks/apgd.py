r"""Auto-PGD: projected gradient ascent with steps that adapt to each sample."""

from __future__ import annotations

import math

import torch

from .budgets import Budget
from .samples import where
from .search import SearchAttack


class APGDAttack(SearchAttack):
    r"""
    Projected gradient ascent with momentum and steps that adapt to each sample, for evaluation.

    Auto-PGD of `Croce and Hein (2020) <https://arxiv.org/abs/2003.01690>`_, Algorithm 1, with
    normalised gradients:

    .. math::
        z &= P_\varepsilon\left( \delta_k + \eta\, g / \|g\| \right), \\
        \delta_{k+1} &= P_\varepsilon\left( \delta_k + \alpha (z - \delta_k)
        + (1 - \alpha)(\delta_k - \delta_{k-1}) \right),

    :math:`\alpha = 0.75`, from :math:`\eta = 2\varepsilon`. At checkpoints, ever closer to each
    other, a sample halves its step and goes back to its best point if fewer than 75 % of the steps
    since the last checkpoint raised its loss, or if neither its step nor its best loss has changed.
    Unlike there, going back also forgets the momentum. The checkpoints spread over ``steps``: more
    of them are another schedule, not a longer run of the same.

    :param Budget budget: the allowed perturbations.
    :param int steps: number of gradients. Default: 100.

    The other parameters are those of :class:`PGDAttack`.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> x, physics = torch.randn(5, 2), dinv.physics.Denoising()
    >>> attack = dj.APGDAttack(dj.L2Ball(0.1), steps=20).repeat(3)
    >>> result = attack.run(dj.UnfoldedGD(dj.PointMLP(), max_iter=3), x, physics(x), physics)
    >>> result.n_grad
    60
    """

    def __init__(self, budget: Budget, *, steps: int = 100, **kwargs):
        super().__init__(budget, steps=steps, **kwargs)

    def search(self, problem, delta):
        step, previous, alpha = 2 * problem.eps, delta, 1.0
        checkpoints, last_checkpoint = _checkpoints(self.steps), 0
        rises = torch.zeros_like(step)
        halved = torch.zeros_like(step, dtype=torch.bool)
        for k in range(self.steps):
            new_loss, g = problem.gradient(delta)
            if k == 0:
                loss = best_loss = checked_loss = new_loss
                best, best_g = delta, g
            rises += new_loss > loss
            loss = new_loss
            better = loss > best_loss
            best, best_g = where(better, delta, best), where(better, g, best_g)
            best_loss = torch.maximum(loss, best_loss)
            if k in checkpoints:
                few_rises = rises < 0.75 * (k - last_checkpoint)
                halved = few_rises | (~halved & (best_loss == checked_loss))
                step = torch.where(halved, step / 2, step)
                delta, g = where(halved, best, delta), where(halved, best_g, g)
                previous = where(halved, best, previous)
                loss = torch.where(halved, best_loss, loss)
                rises, checked_loss, last_checkpoint = (torch.zeros_like(rises), best_loss, k)
            z = problem.project(delta + problem.steepest(g, step))
            moved = delta + alpha * (z - delta) + (1 - alpha) * (delta - previous)
            previous, delta, alpha = delta, problem.project(moved), 0.75
        return delta


def _checkpoints(steps: int) -> set[int]:
    """Where APGD looks back: Section 3.1 of Croce and Hein (2020)."""
    before, now, points = 0.0, 0.22, set()
    while now <= 1:
        points.add(math.ceil(now * steps))
        before, now = now, now + max(now - before - 0.03, 0.06)
    return points
