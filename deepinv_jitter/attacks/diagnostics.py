r"""What should make one doubt an attack's result."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .parts import Measurements
from .problem import Problem

FLAGS = (
    "not_converged",
    "random_beats_gradient",
    "gradient_masking",
    "zero_gradient",
    "nonfinite_gradient",
    "stochastic_model",
)


#: How many random baselines, and central differences, an attack is checked with.
BASELINES, DIFFERENCES = 16, 4


@dataclass
class AttackResult:
    r"""
    What an attack found.

    ``flags`` holds, for each sample, shape `(B,)`, what should make one doubt the result:

    - ``not_converged``: the second half of the steps still brought more than 2 % of the excess
      loss. It costs nothing and stands for the test of twice as many steps, which
      :class:`ConvergedAttack` makes: there it says that the loss still rose at the cap.
    - ``random_beats_gradient``: the worst of 16 random perturbations of full size has an excess
      loss over 1 % larger.
    - ``gradient_masking``: the gradient at the result is not the slope of the loss: along the
      gradient, or along random directions, central differences differ from it by over 30 % and by
      more than they do for twice the step.
    - ``zero_gradient``, ``nonfinite_gradient``: met on the way.
    - ``stochastic_model``: two evaluations of the same measurements differ by more than 1e-4 of
      their norm.

    Without ``checks`` only the flags that cost nothing are computed (``not_converged``,
    ``zero_gradient`` and ``nonfinite_gradient``); attacks that use no gradient are not judged by
    it.

    :param torch.Tensor, deepinv.utils.TensorList delta: perturbation :math:`\delta` to be added to
        the measurements, shape of ``y``.
    :param torch.Tensor, deepinv.utils.TensorList perturbation: the same in the domain of the
        budget: :math:`\delta_x` for the image domain, else ``delta``; an ``init`` to go on from.
    :param torch.Tensor loss: objective at ``delta``, the larger the worse, shape `(B,)`.
    :param torch.Tensor loss_clean: objective without perturbation, shape `(B,)`.
    :param torch.Tensor trace: objective at every iterate, shape `(steps + 1, B)`; for
        :class:`WorstCase` of the clean measurements and of each attack's result.
    :param int, torch.Tensor n_grad: number of gradients the search took; for
        :class:`ConvergedAttack` and what holds it one for each sample, shape `(B,)`.
    :param dict flags: name to shape `(B,)`, boolean.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=3)
    >>> x, physics = torch.randn(5, 2), dinv.physics.Denoising()
    >>> result = dj.APGDAttack(dj.L2Ball(0.1), steps=20).run(model, x, physics(x), physics)
    >>> bool((result.loss > result.loss_clean).all()), result.trace.shape, result.n_grad
    (True, torch.Size([21, 5]), 20)
    """

    delta: Measurements
    perturbation: Measurements
    loss: torch.Tensor
    loss_clean: torch.Tensor
    trace: torch.Tensor
    n_grad: int | torch.Tensor
    flags: dict[str, torch.Tensor]

    @classmethod
    def of(
        cls, problem: Problem, delta: torch.Tensor, loss: torch.Tensor, clean: torch.Tensor
    ) -> AttackResult:
        """What a search has found, in one tensor, without flags."""
        added = problem.budget.to_measurement(delta, problem.physics)
        return cls(added, delta, loss, clean, torch.stack(problem.trace), problem.n_grad, flags={})


def doubts(problem: Problem, result: AttackResult, search) -> dict[str, torch.Tensor]:
    """The flags of what a search has found, without a trace in the problem."""
    flags = {name: torch.zeros_like(problem.nonfinite) for name in FLAGS}
    flags["zero_gradient"] = problem.zero_gradient
    flags["nonfinite_gradient"] = problem.nonfinite
    # Of points outside of the budget, which a wider ball leads to, there is no loss
    seen = (result.trace > -torch.inf).any(1)
    best = result.trace[seen | ~seen.any()].cummax(0).values
    gain = best[-1] - best[(len(best) - 1) // 2]
    flags["not_converged"] = gain > 0.02 * (best[-1] - result.loss_clean)
    if not search.checks:
        return flags
    with torch.no_grad():
        first, second = (problem.reconstruct(result.perturbation) for _ in range(2))
        size, change = (v.abs().flatten(1).norm(dim=1) for v in (first, first - second))
        flags["stochastic_model"] = change > 1e-4 * size
        if search.uses_gradient:
            generator = torch.Generator().manual_seed(search.seed)
            draws = [problem.value(problem.random(generator)) for _ in range(BASELINES)]
            lead = torch.stack(draws).amax(0) - result.loss
            flags["random_beats_gradient"] = lead > 0.01 * (result.loss - result.loss_clean)
            flags["gradient_masking"] = _masked(problem, result.perturbation, generator)
    return flags


def _masked(problem: Problem, delta: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Whether the gradient at a point differs from the slopes that central differences see."""
    _, g = problem.value_and_gradient(delta)
    random = [problem.random(generator) for _ in range(DIFFERENCES)]
    directions = [problem.steepest(g, problem.eps), *random]

    def slopes(h: float) -> torch.Tensor:
        ends = [(problem.value(delta + h * v), problem.value(delta - h * v)) for v in directions]
        return torch.stack([(up - down) / (2 * h) for up, down in ends])

    exact = torch.stack([(g.conj() * v).real.flatten(1).sum(1) for v in directions])
    small, large = slopes(0.05), slopes(0.1)
    masked = torch.zeros_like(problem.nonfinite)
    # The slope along the gradient would drown those along random directions
    for rows in (slice(0, 1), slice(1, None)):
        size, error, unsure = (v[rows].norm(dim=0) for v in (small, small - exact, small - large))
        # Two step sizes disagree where rounding or kinks blur the differences themselves
        masked |= error > 0.3 * torch.maximum(size, exact[rows].norm(dim=0)) + 3 * unsure
    return masked
