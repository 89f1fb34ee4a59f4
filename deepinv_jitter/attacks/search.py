r"""The search from point to point."""

from __future__ import annotations

import copy
from abc import abstractmethod

import torch

from .. import checks as rules
from .base import Attack
from .budgets import Budget
from .diagnostics import AttackResult, doubts
from .parts import Measurements
from .problem import Objective, Problem, undisturbed


class SearchAttack(Attack):
    r"""
    An attack that goes from point to point. A subclass writes :meth:`search`.

    The parameters are those of :class:`PGDAttack`.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        steps: int,
        start: str | None = None,
        keep: str = "best",
        objective: Objective = "error",
        seed: int = 0,
        checks: bool = True,
        autocast: torch.dtype | None = None,
    ):
        super().__init__(budget, objective)
        steps = rules.whole("steps", steps, 1)
        seed = rules.seed("seed", seed)
        if start is None:
            start = "random" if self._against_clean else "zero"
        rules.choice("start", start, ("zero", "random"))
        if start == "zero" and self._against_clean and self.uses_gradient:
            raise ValueError(
                "objective='deviation' has no gradient at start='zero': use start='random'."
            )
        rules.choice("keep", keep, ("best", "last"))
        rules.choice("autocast", autocast, (None, torch.bfloat16, torch.float16))
        self.autocast = autocast
        self.steps = steps
        self.start = start
        self.keep = keep
        self.seed = seed
        self.checks = checks

    @abstractmethod
    def search(self, problem: Problem, delta: torch.Tensor) -> torch.Tensor:
        r"""
        The loop of the attack.

        :param Problem problem: the loss and its gradient, the projection and the steepest step.
        :param torch.Tensor delta: the first point.
        :return: (:class:`torch.Tensor`) the last point, inside the budget, not evaluated yet.
        """

    def first(self, problem: Problem, init: Measurements | None = None) -> torch.Tensor:
        """The first point: the given one, or the attack's start."""
        if init is not None:
            return problem.inside(init)
        if self.start == "zero":
            return problem.zero
        return problem.random(torch.Generator().manual_seed(self.seed))

    def continued(self, steps: int) -> SearchAttack:
        """The same search, to go on from where one of its kind ended."""
        other = copy.copy(self)
        other.steps = steps
        return other

    def _solve(self, model, x, y, physics, eps, init, report):
        with undisturbed(model, x, y, physics):
            problem = Problem(self, model, x, y, physics, eps)
            judged = report or self.keep == "best"
            clean = loss = None
            if judged and (init is not None or self.start == "random"):
                clean = problem.loss(problem.zero)
                problem.trace.clear()
            delta = self.search(problem, self.first(problem, init))
            if judged:
                loss = problem.loss(delta)
            if self.keep == "best":
                delta, loss = problem.worst, problem.worst_loss
            clean = problem.trace[0] if clean is None else clean
            result = AttackResult.of(problem, delta, loss, clean)
            if report:
                result.flags = doubts(problem, result, self)
        return result

    def _restarted(self, k):
        other = copy.copy(self)
        if self.uses_gradient:
            other.start = "random"
        other.seed = self.seed + k
        return other

    @property
    def settings(self) -> str:
        """The search in words, without its budget."""
        keep = "" if self.keep == "best" else f", keep={self.keep!r}"
        return f"steps={self.steps}, start={self.start!r}{keep}"

    def __repr__(self) -> str:
        # Not that of modules, which shows a metric as a part of the attack, on lines of its own
        return f"{type(self).__name__}({self.budget}, {self.settings})"


def checked_momentum(value: float) -> float:
    value = rules.real("momentum", value, low=0)
    if value >= 1:
        raise ValueError(f"momentum must be at least 0 and below 1, got {value!r}.")
    return value
