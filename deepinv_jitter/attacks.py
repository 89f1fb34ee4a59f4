r"""
Attacks: the perturbation of the measurements, within a budget, that harms a reconstruction most.

Every attack looks for :math:`\arg\max_{\|\delta\| \leq \varepsilon} \ell(H(y + \delta), x)`, sample
by sample, eq. (6) of the paper. The loop of an attack, its ``search``, is the equation of its
iterates; what all of them need (evaluation mode, frozen parameters, the worst point of each sample,
flags) stands once, in :class:`SearchAttack`.
"""

from __future__ import annotations

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral

import torch
from deepinv.loss.metric import Metric
from deepinv.physics import Physics
from torch import nn

from . import checks as rules
from .budgets import LAWS, Budget, L2Ball, column, per_sample

FLAGS = (
    "not_converged",
    "random_beats_gradient",
    "gradient_masking",
    "zero_gradient",
    "nonfinite_gradient",
    "stochastic_model",
)
#: How many random directions, and central differences, an attack is checked with.
RIVALS, DIFFERENCES = 16, 4

Objective = str | torch.Tensor | Metric | Callable


@dataclass
class AttackResult:
    r"""
    What an attack found.

    ``flags`` holds, for each sample, shape `(B,)`, what should make one doubt the result:

    - ``not_converged``: the second half of the steps still brought more than 2 % of the excess
      loss. It costs nothing and stands for the test of twice as many steps.
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

    :param torch.Tensor delta: perturbation :math:`\delta` to be added to the measurements, shape of
        ``y``.
    :param torch.Tensor perturbation: the same in the domain of the budget: :math:`\delta_x` for the
        image domain, else ``delta``. The ``init`` of a next attack.
    :param torch.Tensor loss: objective at ``delta``, the larger the worse, shape `(B,)`.
    :param torch.Tensor loss_clean: objective without perturbation, shape `(B,)`.
    :param torch.Tensor trace: objective at every iterate, shape `(steps + 1, B)`; for
        :class:`WorstCase` of the clean measurements and of each attack's result.
    :param int n_grad: number of gradients the search took.
    :param dict flags: name to shape `(B,)`, boolean.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=3)
    >>> physics = dinv.physics.Denoising()
    >>> x = torch.randn(5, 2)
    >>> result = dj.APGDAttack(dj.L2Ball(0.1), steps=20).run(model, x, physics(x), physics)
    >>> bool((result.loss > result.loss_clean).all()), result.trace.shape, result.n_grad
    (True, torch.Size([21, 5]), 20)
    """

    delta: torch.Tensor
    perturbation: torch.Tensor
    loss: torch.Tensor
    loss_clean: torch.Tensor
    trace: torch.Tensor
    n_grad: int
    flags: dict[str, torch.Tensor]


class Attack(nn.Module, ABC):
    r"""
    What all attacks share: they are called with the model, and keep nothing of it.

    During an attack the model is in evaluation mode (so jitter is silent) and the parameters of
    model and physics are frozen; afterwards, also after an exception, everything is as it was:
    modes, ``requires_grad``, ``.grad``, buffers and the global random generators of torch.

    :param Budget budget: the allowed perturbations.
    :param str, torch.Tensor, Callable objective: what the attack maximises, see
        :class:`PGDAttack`.
    """

    #: Precision of the model during the attack; ``None`` is what is in force.
    autocast: torch.dtype | None = None

    def __init__(self, budget: Budget, objective: Objective):
        super().__init__()
        if not isinstance(budget, Budget):
            raise TypeError(
                f"budget must be a Budget such as L2Ball(1.0), got {type(budget).__name__}."
            )
        self.budget = budget
        self.objective = objective
        self._value, self._against_clean = _as_function(objective)

    def forward(
        self,
        model: nn.Module,
        x: torch.Tensor | None,
        y: torch.Tensor,
        physics: Physics,
        eps: float | torch.Tensor | None = None,
        init: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""
        The perturbation alone, without the cost of a report.

        :param torch.nn.Module model: reconstruction network, called as ``model(y, physics)``.
        :param torch.Tensor, None x: truth, shape of the model's output; ``None`` if the objective
            needs none.
        :param torch.Tensor y: measurements, shape `(B, ...)`, real or complex.
        :param deepinv.physics.Physics physics: the physics.
        :param float, torch.Tensor, None eps: absolute radius that replaces the budget's, one number
            or one per sample, shape `(B,)`. Default: ``None``.
        :param torch.Tensor, None init: where to start, brought into the budget. Default: ``None``,
            the attack's start.
        :return: (:class:`torch.Tensor`) :math:`\delta`, shape, type and device of ``y``, detached.
        :raises TypeError: if ``model`` is no module, or ``x``, ``y``, ``init`` or what the model
            returns no tensor of real or complex numbers.
        :raises ValueError: if ``x``, ``eps``, ``init`` or the objective's values do not fit, or
            ``x``, ``y`` or ``init`` are not finite.
        :raises RuntimeError: if the model gives no gradient, or under ``torch.inference_mode``.
        """
        return self._solve(model, x, y, physics, eps, init, report=False).delta

    def run(
        self,
        model: nn.Module,
        x: torch.Tensor | None,
        y: torch.Tensor,
        physics: Physics,
        eps: float | torch.Tensor | None = None,
        init: torch.Tensor | None = None,
    ) -> AttackResult:
        r"""
        The perturbation with its losses, trace and flags.

        :return: (:class:`AttackResult`) its ``delta`` is what :meth:`forward` returns.

        Arguments and errors are those of :meth:`forward`.
        """
        return self._solve(model, x, y, physics, eps, init, report=True)

    def repeat(self, n: int) -> WorstCase:
        r"""
        The worst, per sample, of this attack and ``n - 1`` copies with other random starts.

        :param int n: number of runs.
        :return: (:class:`WorstCase`) an attack.
        :raises TypeError: if ``n`` is no whole number.
        :raises ValueError: if it is below 1.
        """
        n = rules.number("n", n, Integral, 1)
        copies = [self._restarted(k) for k in range(1, n)]
        return WorstCase([self, *copies], objective=self.objective)

    @abstractmethod
    def _solve(self, model, x, y, physics, eps, init, report: bool) -> AttackResult:
        """Without ``report``, everything but ``delta`` and ``perturbation`` may be missing."""

    @abstractmethod
    def _restarted(self, k: int) -> Attack:
        """A copy with the k-th random start."""


class SearchAttack(Attack):
    r"""
    An attack that goes from point to point. A subclass writes :meth:`search`.

    The parameters are those of :class:`PGDAttack`.
    """

    uses_gradient = True

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
        steps = rules.number("steps", steps, Integral, 1)
        seed = rules.seed("seed", seed)
        if start is None:
            start = "random" if self._against_clean else "zero"
        if start not in ("zero", "random"):
            raise ValueError(f"start must be 'zero' or 'random', got {start!r}.")
        if start == "zero" and self._against_clean and self.uses_gradient:
            raise ValueError(
                "objective='deviation' has no gradient at start='zero': use start='random'."
            )
        if keep not in ("best", "last"):
            raise ValueError(f"keep must be 'best' or 'last', got {keep!r}.")
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"autocast must be None, torch.bfloat16 or torch.float16, got {autocast!r}."
            )
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

    def _solve(self, model, x, y, physics, eps, init, report):
        with _undisturbed(model, x, y, physics):
            problem = Problem(self, model, x, y, physics, eps)
            delta, clean = problem.zero, None
            if init is not None or self.start == "random":
                clean = (
                    problem.loss(problem.zero)
                    if report or self.keep == "best"
                    else None
                )
                problem.trace.clear()
                delta = problem.start(init, self.seed)
            delta = self.search(problem, delta)
            loss = problem.loss(delta) if report or self.keep == "best" else None
            if self.keep == "best":
                delta, loss = problem.worst, problem.worst_loss
            result = AttackResult(
                delta=problem.to_measurement(delta),
                perturbation=delta,
                loss=loss,
                loss_clean=problem.trace[0] if clean is None else clean,
                trace=torch.stack(problem.trace),
                n_grad=problem.n_grad,
                flags={},
            )
            if report:
                result.flags = _flags(problem, result, self)
        return result

    def _restarted(self, k):
        other = copy.deepcopy(self)
        other.start = "random"
        other.seed = self.seed + k
        return other

    def extra_repr(self) -> str:
        return f"{self.budget}, steps={self.steps}, start={self.start!r}, keep={self.keep!r}"


class PGDAttack(SearchAttack):
    r"""
    Projected gradient ascent with normalised steps,

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
    >>> physics = dinv.physics.Denoising()
    >>> x = torch.randn(5, 2)
    >>> attack = dj.PGDAttack(dj.L2Ball(0.1), steps=20)
    >>> delta = attack(dj.UnfoldedGD(dj.PointMLP(), max_iter=3), x, physics(x), physics)
    >>> delta.norm(dim=1)
    tensor([0.1000, 0.1000, 0.1000, 0.1000, 0.1000])
    """

    def __init__(
        self,
        budget: Budget,
        *,
        steps: int = 20,
        rel_step: float = 0.1,
        start: str | None = None,
        keep: str = "best",
        objective: Objective = "error",
        seed: int = 0,
        checks: bool = True,
        autocast: torch.dtype | None = None,
    ):
        super().__init__(
            budget,
            steps=steps,
            start=start,
            keep=keep,
            objective=objective,
            seed=seed,
            checks=checks,
            autocast=autocast,
        )
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


class PowerAttack(SearchAttack):
    r"""
    Full steps to the boundary, along averaged gradients,

    .. math::
        d \leftarrow (1 - \mu)\, g + \mu\, d, \qquad
        \delta \leftarrow \arg\max_{\|\delta\| \leq \varepsilon} \langle d, \delta \rangle
        = \varepsilon\, d / \|d\|_2, \qquad g = \nabla_\delta\, \ell(H(y + \delta), x),

    from :math:`d = g`. This is the Frank-Wolfe method with heavy ball momentum (`Li et al., 2021
    <https://arxiv.org/abs/2110.04243>`_), and for a linear :math:`H` a power iteration. It has no
    step size: three of them make the default attack of adversarial training. Without momentum no
    step lowers a convex loss, but on networks, whose loss is not convex, the iterates jump to and
    fro.

    :param Budget budget: the allowed perturbations.
    :param int steps: number of gradients. Default: 3.
    :param float momentum: :math:`\mu`, at least 0 and below 1. Default: 0.4.

    The other parameters are those of :class:`PGDAttack`.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising()
    >>> x = torch.randn(5, 2)
    >>> model = dj.UnfoldedGD(dj.PointMLP(), max_iter=3)
    >>> delta = dj.PowerAttack(dj.L2Ball(0.1))(model, x, physics(x), physics)
    >>> delta.norm(dim=1)
    tensor([0.1000, 0.1000, 0.1000, 0.1000, 0.1000])
    """

    def __init__(
        self, budget: Budget, *, steps: int = 3, momentum: float = 0.4, **kwargs
    ):
        super().__init__(budget, steps=steps, **kwargs)
        momentum = rules.number("momentum", momentum, low=0)
        if momentum >= 1:
            raise ValueError(
                f"momentum must be at least 0 and below 1, got {momentum!r}."
            )
        self.momentum = momentum

    def search(self, problem, delta):
        d = None
        for _ in range(self.steps):
            _, g = problem.gradient(delta)
            d = g if d is None else (1 - self.momentum) * g + self.momentum * d
            delta = problem.steepest(d, problem.eps)
        return delta


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
    >>> physics = dinv.physics.Denoising()
    >>> x = torch.randn(5, 2)
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
            best, best_g = _where(better, delta, best), _where(better, g, best_g)
            best_loss = torch.maximum(loss, best_loss)
            if k in checkpoints:
                few_rises = rises < 0.75 * (k - last_checkpoint)
                halved = few_rises | (~halved & (best_loss == checked_loss))
                step = torch.where(halved, step / 2, step)
                delta, g = _where(halved, best, delta), _where(halved, best_g, g)
                previous = _where(halved, best, previous)
                loss = torch.where(halved, best_loss, loss)
                rises, checked_loss, last_checkpoint = (
                    torch.zeros_like(rises),
                    best_loss,
                    k,
                )
            z = problem.project(delta + problem.steepest(g, step))
            moved = delta + alpha * (z - delta) + (1 - alpha) * (delta - previous)
            previous, delta, alpha = delta, problem.project(moved), 0.75
        return delta


class RandomAttack(SearchAttack):
    r"""
    The worst of many random perturbations: the bar any other attack must clear. It needs no
    gradient.

    :param Budget budget: the allowed perturbations.
    :param int samples: number of draws, each the same direction for every sample. Default: 100.
    :param str law: ``"sphere"``, ``"ball"`` or ``"gaussian"``, see :meth:`Budget.random`. Default:
        ``"sphere"``.
    :param str, torch.Tensor, Callable objective: as for :class:`PGDAttack`. Default:
        ``"error"``.
    :param int seed: seed of the draws. Default: 0.
    :param bool checks: find out in :meth:`Attack.run` whether the model is stochastic. Default:
        ``True``.
    :raises TypeError: if ``budget`` or ``objective`` is of the wrong type.
    :raises ValueError: if an argument is out of range.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising()
    >>> x = torch.randn(5, 2)
    >>> attack = dj.RandomAttack(dj.L2Ball(0.1), samples=10)
    >>> attack(dj.UnfoldedGD(dj.PointMLP()), x, physics(x), physics).shape
    torch.Size([5, 2])
    """

    uses_gradient = False

    def __init__(
        self,
        budget: Budget,
        *,
        samples: int = 100,
        law: str = "sphere",
        objective: Objective = "error",
        seed: int = 0,
        checks: bool = True,
    ):
        if law not in LAWS:
            raise ValueError(f"law must be one of {LAWS}, got {law!r}.")
        super().__init__(
            budget,
            steps=rules.number("samples", samples, Integral, 1),
            start="zero",
            objective=objective,
            seed=seed,
            checks=checks,
        )
        self.law = law

    def search(self, problem, delta):
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            problem.loss(delta)
            delta = problem.random(generator, self.law)
        return delta

    def _restarted(self, k):
        other = copy.deepcopy(self)
        other.seed = self.seed + k
        return other


class WorstCase(Attack):
    r"""
    The worst of several attacks, for each sample, all judged by one objective.

    :param Sequence[Attack] attacks: the attacks, all in the same domain. Their own objectives may
        differ.
    :param str, torch.Tensor, Callable objective: by which they are compared, see
        :class:`PGDAttack`. Default: ``"error"``.
    :raises TypeError: if something in ``attacks`` is no attack.
    :raises ValueError: if ``attacks`` is empty or mixes domains.

    Flags are those of the attack that won, or of all where none did; ``random_beats_gradient`` also
    says that the winner is a :class:`RandomAttack` while other attacks used a gradient.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising()
    >>> x = torch.randn(5, 2)
    >>> ball = dj.L2Ball(0.1)
    >>> attack = dj.WorstCase([dj.PowerAttack(ball, steps=20), dj.RandomAttack(ball, samples=10)])
    >>> result = attack.run(dj.UnfoldedGD(dj.PointMLP(), max_iter=3), x, physics(x), physics)
    >>> bool(result.flags["random_beats_gradient"].any())
    False
    """

    def __init__(self, attacks: Sequence[Attack], *, objective: Objective = "error"):
        if isinstance(attacks, str) or not isinstance(attacks, Iterable):
            raise TypeError(f"attacks must be a list of attacks, got {attacks!r}.")
        attacks = list(attacks)
        if not attacks:
            raise ValueError("attacks must hold at least one attack, got none.")
        for attack in attacks:
            if not isinstance(attack, Attack):
                raise TypeError(
                    f"attacks must hold attacks, got {type(attack).__name__}."
                )
        domains = {attack.budget.domain for attack in attacks}
        if len(domains) > 1:
            raise ValueError(f"attacks must have one domain, got {sorted(domains)}.")
        super().__init__(attacks[0].budget, objective)
        self.attacks = nn.ModuleList(attacks)

    @property
    def uses_gradient(self) -> bool:
        """Whether any of the attacks uses gradients."""
        return any(attack.uses_gradient for attack in self.attacks)

    def _solve(self, model, x, y, physics, eps, init, report):
        with _undisturbed(model, x, y, physics):
            judge = Problem(self, model, x, y, physics, eps)
            flags = {
                name: torch.zeros(len(y), dtype=torch.bool, device=y.device)
                for name in FLAGS
            }
            clean, n_grad = judge.loss(judge.zero), 0
            unbeaten = torch.ones_like(judge.nonfinite)
            for attack in self.attacks:
                result = attack._solve(model, x, y, physics, eps, init, report)
                n_grad += result.n_grad
                before = judge.worst_loss
                won = judge.loss(result.perturbation) > before
                for name, flag in result.flags.items():
                    if name == "random_beats_gradient" and not attack.uses_gradient:
                        flag = won & self.uses_gradient
                    doubted = flags[name] | (flag & unbeaten)
                    flags[name] = torch.where(won, flag, doubted)
                unbeaten &= ~won
        return AttackResult(
            delta=judge.to_measurement(judge.worst),
            perturbation=judge.worst,
            loss=judge.worst_loss,
            loss_clean=clean,
            trace=torch.stack(judge.trace),
            n_grad=n_grad,
            flags=flags if report else {},
        )

    def _restarted(self, k):
        return WorstCase(
            [a._restarted(k) for a in self.attacks], objective=self.objective
        )


class Problem:
    r"""
    What a search climbs: the loss of one batch as a function of the perturbation.

    It lives for one attack and remembers, for each sample, the worst point it was asked about.

    :param Attack attack: gives budget and objective.
    :param torch.nn.Module model: the reconstruction network.
    :param torch.Tensor, None x: truth.
    :param torch.Tensor y: measurements, shape `(B, ...)`.
    :param deepinv.physics.Physics physics: the physics.
    :param float, torch.Tensor, None eps: absolute radius instead of the budget's.
    """

    def __init__(self, attack, model, x, y, physics, eps):
        self.model, self.physics = model, physics
        self.y = y.detach()
        self.autocast = attack.autocast
        if self.autocast is not None and not _is_fast(self.autocast, y.device):
            warnings.warn(
                f"This {y.device.type} has no units for {self.autocast}: the attack is slower "
                "with autocast than without.",
                stacklevel=4,
            )
        self.budget, self._value = attack.budget, attack._value
        if eps is None:
            self.eps = self.budget.radii(self.y, physics)
        else:
            self.eps = per_sample("eps", eps, y)
        self.zero = self.budget.zero(self.y, physics)
        self.support = self.budget.support(self.y, physics)
        self.target = x
        if attack._against_clean:
            with torch.no_grad():
                self.target = self.reconstruct(self.zero)
        self.worst = self.zero
        self.worst_loss = torch.full_like(self.eps, -math.inf)
        self.trace = []
        self.n_grad = 0
        self.zero_gradient = torch.zeros_like(self.eps, dtype=torch.bool)
        self.nonfinite = torch.zeros_like(self.eps, dtype=torch.bool)

    def to_measurement(self, delta: torch.Tensor) -> torch.Tensor:
        """What to add to the measurements."""
        return self.budget.to_measurement(delta, self.physics)

    def reconstruct(self, delta: torch.Tensor) -> torch.Tensor:
        r""":math:`H(y + \delta)`."""
        y = self.y + self.to_measurement(delta)
        if self.autocast is None:
            return self.model(y, self.physics)
        with torch.autocast(y.device.type, self.autocast):
            return self.model(y, self.physics)

    def value(self, delta: torch.Tensor) -> torch.Tensor:
        r"""The objective :math:`\ell(H(y + \delta), x)`, shape `(B,)`, not remembered."""
        return self._judge(self.reconstruct(delta))

    def _judge(self, x_net: torch.Tensor) -> torch.Tensor:
        if not isinstance(x_net, torch.Tensor):
            raise TypeError(
                f"the model must return a torch.Tensor, got {type(x_net).__name__}."
            )
        if self.target is not None and self.target.shape != x_net.shape:
            raise ValueError(
                f"x must have the shape of the model's output, {tuple(x_net.shape)}, got "
                f"{tuple(self.target.shape)}."
            )
        loss = self._value(x_net, self.target)
        if not isinstance(loss, torch.Tensor) or loss.shape != self.eps.shape:
            shape = tuple(loss.shape) if isinstance(loss, torch.Tensor) else loss
            raise ValueError(
                f"objective must give one value per sample, shape {tuple(self.eps.shape)}, got "
                f"{shape}: for a deepinv metric or loss set reduction=None."
            )
        return loss

    def loss(self, delta: torch.Tensor) -> torch.Tensor:
        """The objective at a point, remembered; minus infinity where it is not finite."""
        with torch.no_grad():
            return self._remember(delta, self.value(delta))

    def gradient(self, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The objective at a point, remembered, and its gradient, zero where it is not finite."""
        loss, g = self.value_and_gradient(delta)
        finite = g.isfinite().flatten(1).all(1)
        self.n_grad += 1
        self.nonfinite |= ~finite
        self.zero_gradient |= (g == 0).flatten(1).all(1)
        return self._remember(delta, loss), torch.where(column(finite, g), g, 0)

    def value_and_gradient(
        self, delta: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The objective and its gradient on the support, as they come."""
        delta = delta.detach().requires_grad_()
        with torch.enable_grad():
            x_net = self.reconstruct(delta)
            loss = self._judge(x_net)
            if loss.requires_grad:
                (g,) = torch.autograd.grad(loss.sum(), delta)
            elif x_net.requires_grad:
                raise RuntimeError(
                    "the attack needs the gradient of the objective, but it gives none: deepinv's "
                    "PSNR is such a metric. Use 'error', which has the same worst case, or "
                    "RandomAttack."
                )
            else:
                raise RuntimeError(
                    "the attack needs the gradient of the model's output with respect to y, but "
                    "there is none: the model runs under no_grad, detaches its input, or is a "
                    "deepinv algorithm with unfold=False. Build it with unfold=True, or use "
                    "RandomAttack."
                )
        return loss.detach(), torch.where(self.support, g, 0)

    def project(self, delta: torch.Tensor) -> torch.Tensor:
        """The nearest point inside the budget."""
        return self.budget.project(delta, self.eps)

    def steepest(self, g: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """The step of that length which gains most."""
        return self.budget.steepest(g, length)

    def random(self, generator: torch.Generator, law: str = "sphere") -> torch.Tensor:
        """A random point of the budget."""
        return self.budget.random(self.zero, self.eps, generator, law, self.support)

    def start(self, init: torch.Tensor | None, seed: int) -> torch.Tensor:
        """The given first point, brought into the budget, or a random one."""
        if init is None:
            return self.random(torch.Generator().manual_seed(seed))
        rules.batch(init=init)
        if init.is_complex() and not self.zero.is_complex():
            raise TypeError(
                f"init must be real like the perturbation, got {init.dtype}: give complex numbers "
                "as 2 channels."
            )
        if init.shape != self.zero.shape:
            raise ValueError(
                f"init must have the shape of the perturbation, {tuple(self.zero.shape)}, got "
                f"{tuple(init.shape)}."
            )
        return self.project(torch.where(self.support, init.detach().to(self.zero), 0))

    def _remember(self, delta: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        finite = loss.isfinite()
        self.nonfinite |= ~finite
        loss = torch.where(finite, loss, -math.inf)
        self.trace.append(loss)
        self.worst = _where(loss > self.worst_loss, delta.detach(), self.worst)
        self.worst_loss = torch.maximum(loss, self.worst_loss)
        return loss


def _is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    if device.type == "cpu":
        # Private to torch, and not in every version
        known = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        return dtype == torch.bfloat16 and known()
    if device.type == "cuda" and dtype == torch.bfloat16:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return True


@contextmanager
def _undisturbed(
    model: nn.Module, x: torch.Tensor | None, y: torch.Tensor, physics: Physics
) -> Iterator[None]:
    """Evaluation mode, frozen parameters, a copy of the global random state; undone after."""
    if not isinstance(y, torch.Tensor):
        raise TypeError(
            f"y must be a torch.Tensor, got {type(y).__name__}: attack the parts of a "
            "TensorList or a stacked physics one by one."
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "attacks need gradients, which torch.inference_mode rules out: call them "
            "outside of it, or under torch.no_grad."
        )
    # Once per attack: a loss that is no number would look like one that cannot be raised
    rules.batch(**({"y": y} if x is None else {"x": x, "y": y}))
    modes = [(module, module.training) for module in model.modules()]
    modules = [m for m in (model, physics) if isinstance(m, nn.Module)]
    free = [p for m in modules for p in m.parameters() if p.requires_grad]
    try:
        model.eval()
        for p in free:
            p.requires_grad_(False)
        with torch.random.fork_rng(devices=[y.device] if y.is_cuda else []):
            yield
    finally:
        for p in free:
            p.requires_grad_(True)
        # Not module.train(), which reaches down and may be overridden
        for module, training in modes:
            module.training = training


def _flags(
    problem: Problem, result: AttackResult, attack: SearchAttack
) -> dict[str, torch.Tensor]:
    """The doubts of :class:`AttackResult`, without a trace in the problem."""
    flags = {name: torch.zeros_like(problem.nonfinite) for name in FLAGS}
    flags["zero_gradient"] = problem.zero_gradient
    flags["nonfinite_gradient"] = problem.nonfinite
    best = result.trace.cummax(0).values
    gain = best[-1] - best[(len(best) - 1) // 2]
    flags["not_converged"] = gain > 0.02 * (best[-1] - result.loss_clean)
    if not attack.checks:
        return flags
    with torch.no_grad():
        first, second = (problem.reconstruct(result.perturbation) for _ in range(2))
        size, change = (v.abs().flatten(1).norm(dim=1) for v in (first, first - second))
        flags["stochastic_model"] = change > 1e-4 * size
        if attack.uses_gradient:
            generator = torch.Generator().manual_seed(attack.seed)
            rivals = [problem.value(problem.random(generator)) for _ in range(RIVALS)]
            rival = torch.stack(rivals).amax(0) - result.loss
            flags["random_beats_gradient"] = rival > 0.01 * (
                result.loss - result.loss_clean
            )
            flags["gradient_masking"] = _masked(problem, result.perturbation, generator)
    return flags


def _masked(
    problem: Problem, delta: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Whether the gradient at a point differs from the slopes that central differences see."""
    _, g = problem.value_and_gradient(delta)
    random = [problem.random(generator) for _ in range(DIFFERENCES)]
    directions = [problem.steepest(g, problem.eps), *random]

    def slopes(h: float) -> torch.Tensor:
        ends = [
            (problem.value(delta + h * v), problem.value(delta - h * v))
            for v in directions
        ]
        return torch.stack([(up - down) / (2 * h) for up, down in ends])

    exact = torch.stack([(g.conj() * v).real.flatten(1).sum(1) for v in directions])
    small, large = slopes(0.05), slopes(0.1)
    masked = torch.zeros_like(problem.nonfinite)
    # The slope along the gradient would drown those along random directions
    for rows in (slice(0, 1), slice(1, None)):
        size, error, unsure = (
            v[rows].norm(dim=0) for v in (small, small - exact, small - large)
        )
        # Two step sizes disagree where rounding or kinks blur the differences themselves
        masked |= (
            error > 0.3 * torch.maximum(size, exact[rows].norm(dim=0)) + 3 * unsure
        )
    return masked


def _as_function(objective: Objective) -> tuple[Callable, bool]:
    """The objective as f(x_net, target), to be maximised; and whether the target is H(y), not x."""
    if isinstance(objective, str) and objective in ("error", "deviation"):
        return _squared_error, objective == "deviation"
    if isinstance(objective, torch.Tensor):
        if objective.is_complex() or not objective.isfinite().all():
            raise ValueError(
                "objective must be real and finite where it is a weight of the squared error, got "
                f"shape {tuple(objective.shape)} of {objective.dtype}."
            )
        return lambda x_net, x: _squared_error(x_net, x, objective), False
    if isinstance(objective, Metric):
        better = -1 if objective.lower_better or objective.train_loss else 1
        return lambda x_net, x: -better * objective(x_net=x_net, x=x), False
    if callable(objective):
        return objective, False
    raise TypeError(
        "objective must be 'error', 'deviation', a tensor, a deepinv Metric or a function, got "
        f"{objective!r}."
    )


def _squared_error(
    x_net: torch.Tensor, x: torch.Tensor | None, weight: torch.Tensor | None = None
) -> torch.Tensor:
    if x is None:
        raise ValueError(
            "objective='error' needs the truth x, got None: or use 'deviation'."
        )
    squares = (x_net - x).abs().to(
        torch.promote_types(x.abs().dtype, torch.float32)
    ) ** 2
    if weight is not None:
        try:
            squares = squares * weight.to(squares).expand_as(squares)
        except RuntimeError as error:
            raise ValueError(
                "objective must broadcast to the model's output, of shape "
                f"{tuple(squares.shape)}, got a weight of shape {tuple(weight.shape)}."
            ) from error
    return squares.flatten(1).sum(1)


def _checkpoints(steps: int) -> set[int]:
    """Where APGD looks back: Section 3.1 of Croce and Hein (2020)."""
    before, now, points = 0.0, 0.22, set()
    while now <= 1:
        points.add(math.ceil(now * steps))
        before, now = now, now + max(now - before - 0.03, 0.06)
    return points


def _where(chosen: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Samples of ``a`` where chosen, else of ``b``."""
    return torch.where(column(chosen, a), a, b)
