r"""A search that goes on, for each sample, until it has converged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .. import checks as rules
from ..memory import Memory, modules
from .base import Attack
from .budgets import Budget
from .diagnostics import AttackResult, doubts
from .momentum import MomentumAttack
from .problem import Objective, Problem, undisturbed
from .search import SearchAttack


class ConvergedAttack(Attack):
    r"""
    A search from several starts that goes on, for each sample, until it has converged: until
    doubling its steps raises the excess loss :math:`\ell(H(y+\delta), x) - \ell(H(y), x)` by less
    than a tolerance.

    Every search is run once. From the worst point that any of them found the first one goes on, as
    many steps as it took at first, then twice as many, and so on, always from the worst point so
    far. A sample that has converged leaves the batch, if the physics and the model treat the others
    as before without it, which is tried; so samples cost as many gradients as they need.

    What converges is the search, not the worst case: a loss with many maxima may have a higher one
    that no start leads to. With an ``init`` there is one start more.

    :param Attack, Sequence[Attack] searches: attacks that use gradients, such as
        :class:`MomentumAttack` from different starts, alike in budget, objective and precision.
    :param float tolerance: share of the excess loss, positive and below 1. Default: 0.01.
    :param int max_steps: most gradients per sample; a sample that still rises there has the flag
        ``not_converged``. Default: 1500.
    :raises TypeError: if ``searches`` holds something else, or a number is none.
    :raises ValueError: if there are no searches, they differ in what they share, a number is out of
        range, or ``max_steps`` is too small for all starts and a first doubling.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> x, physics = torch.randn(5, 2), dinv.physics.Denoising()
    >>> attack = dj.ConvergedAttack.standard(dj.L2Ball(0.1))
    >>> result = attack.run(dj.UnfoldedGD(dj.PointMLP(), max_iter=3), x, physics(x), physics)
    >>> result.n_grad, result.flags["not_converged"].any()
    (tensor([160, 160, 160, 160, 160]), tensor(False))
    """

    adds_init = True
    lower_bound = False

    def __init__(
        self,
        searches: SearchAttack | Iterable[SearchAttack],
        *,
        tolerance: float = 0.01,
        max_steps: int = 1500,
    ):
        searches = list(searches) if isinstance(searches, Iterable) else [searches]
        if not searches:
            raise ValueError("searches must hold at least one attack, got none.")
        for search in searches:
            if not isinstance(search, SearchAttack) or not search.uses_gradient:
                raise TypeError(
                    "searches must be attacks that go along a gradient, such as MomentumAttack, "
                    f"got {type(search).__name__}."
                )
        first = searches[0]
        for name in ("budget", "objective", "autocast"):
            if any(getattr(search, name) is not getattr(first, name) for search in searches):
                raise ValueError(
                    f"searches must share their {name}, the very same object, got different ones."
                )
        super().__init__(first.budget, first.objective)
        self.autocast = first.autocast
        self.searches = nn.ModuleList(searches)
        self.tolerance = rules.positive("tolerance", tolerance, below=1)
        self.max_steps = rules.whole("max_steps", max_steps, 1)
        least = sum(search.steps for search in searches) + 2 * first.steps
        if self.max_steps < least:
            raise ValueError(
                f"max_steps must be at least {least}, all searches, one from a given start and a "
                f"first doubling, got {max_steps}."
            )

    @classmethod
    def standard(
        cls,
        budget: Budget,
        *,
        objective: Objective = "error",
        seed: int = 0,
        checks: bool = True,
        autocast: torch.dtype | None = None,
    ) -> ConvergedAttack:
        r"""
        The attack of ``evaluate_robustness(attacks="standard")``: 40 steps of
        :class:`MomentumAttack` each from zero, from a random point, and from a random point in a
        ball three times as wide that shrinks to the budget; then until a doubling gains less than
        1 %, within 1500 gradients per sample.

        :return: (:class:`ConvergedAttack`) the attack.

        Parameters and errors are those of :class:`PGDAttack`.
        """
        shared: dict[str, Any] = dict(
            steps=40, objective=objective, seed=seed, checks=checks, autocast=autocast
        )
        starts: tuple[dict, ...] = {}, {"start": "random"}, {"start": "random", "widen": 3}
        return cls([MomentumAttack(budget, **shared, **start) for start in starts])

    def _solve(self, model, x, y, physics, eps, init, report):
        first = self.searches[0]
        with undisturbed(model, x, y, physics):
            problem = Problem(self, model, x, y, physics, eps)
            clean = problem.loss(problem.zero)
            starts = [(search, search.first(problem)) for search in self.searches]
            if init is not None:
                starts.append((first, first.first(problem, init)))
            for search, start in starts:
                problem.loss(search.search(problem, start))
            rising = torch.ones_like(problem.nonfinite)
            rows = torch.arange(len(rising), device=rising.device)
            steps, spent = first.steps, sum(search.steps for search, _ in starts)
            while len(rows) and spent + steps <= self.max_steps:
                before = problem.worst_loss
                with subset(problem, rows) as part:
                    search = first.continued(steps)
                    part.loss(search.search(part, part.worst))
                gain = problem.worst_loss - before
                rising &= gain > self.tolerance * (problem.worst_loss - clean)
                # The one look at what was found, for which a GPU waits
                rows = rising.nonzero().flatten()
                spent, steps = spent + steps, 2 * steps
            result = AttackResult.of(problem, problem.worst, problem.worst_loss, clean)
            result.n_grad = torch.zeros_like(rising, dtype=torch.long) + problem.n_grad
            if report:
                result.flags = doubts(problem, result, first) | {"not_converged": rising}
        return result

    def _restarted(self, k):
        searches = [search._restarted(k) for search in self.searches]
        return ConvergedAttack(searches, tolerance=self.tolerance, max_steps=self.max_steps)

    def __repr__(self) -> str:
        each = ", ".join(f"{type(s).__name__}({s.settings})" for s in self.searches)
        return (
            f"ConvergedAttack({self.budget}, [{each}], tolerance={self.tolerance:g}, "
            f"max_steps={self.max_steps})"
        )


@contextmanager
def subset(problem: Problem, rows: torch.Tensor) -> Iterator[Problem]:
    r"""
    Some samples of a batch, by their numbers, as a problem of their own; what is found for them is
    brought back into that of all.

    Nothing tells which parameters of a physics belong to the samples one by one. But the losses at
    the worst points so far are known: a physics that gives them again is that of the samples. Tried
    are the physics as it is and the one with all tensors cut that are as long as the batch. Where
    neither does, as for a model that mixes the samples of a batch, all samples go on.
    """
    if len(rows) < len(problem.eps):
        part, memory = problem.take(rows), Memory(modules(problem.physics))
        each = [t for t in memory.tensors if t.shape[:1] == problem.eps.shape]
        for cut in ({}, {id(t): t[rows] for t in each}):
            with memory.holding(cut):
                if _is_known(part):
                    yield part
                    problem.put(rows, part)
                    return
    yield problem


def _is_known(part: Problem) -> bool:
    """Whether the losses of the worst points are what they were among all samples."""
    try:
        with torch.no_grad():
            loss = part.value(part.worst)
    except Exception:  # of whatever kind a wrong batch size makes a model or a physics raise
        return False
    return torch.allclose(loss, part.worst_loss, rtol=1e-3, atol=0)
