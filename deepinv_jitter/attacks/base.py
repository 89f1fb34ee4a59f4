r"""What attacks share: the call, and the worst of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from deepinv.physics import Physics
from torch import nn

from .. import checks as rules
from .budgets import Budget
from .diagnostics import FLAGS, AttackResult
from .parts import Layout, Measurements
from .problem import Objective, Problem, as_function, undisturbed


class Attack(nn.Module, ABC):
    r"""
    What all attacks share: they are called with the model, and keep nothing of it.

    During an attack the model is in evaluation mode (so jitter is silent), the parameters of model
    and physics are frozen, and each call of the model starts without memory of the last.
    Afterwards, also after an exception, all is as it was: modes, ``requires_grad`` and ``.grad``;
    buffers and attributes with what lists and dictionaries among them hold, such as a counter or
    where a solver starts from; torch's global generators and those held as attributes. Not undone
    is what a model does to its parameters, or outside of itself.

    A model that one of deepinv's self-supervised losses has adapted is attacked as it is evaluated:
    along the gradient of its average over splitting masks or noise, drawn anew for each call.

    :param Budget budget: the allowed perturbations.
    :param str, torch.Tensor, Callable objective: what the attack maximises, see
        :class:`PGDAttack`.
    """

    #: Precision of the model during the attack; ``None`` is what is in force.
    autocast: torch.dtype | None = None
    #: Whether it goes along a gradient.
    uses_gradient: bool = True
    #: Whether it stops after a fixed number of steps, converged or not.
    lower_bound: bool = True
    #: Whether an ``init`` is a start beside the attack's own, and not instead of it.
    adds_init: bool = False

    def __init__(self, budget: Budget, objective: Objective):
        super().__init__()
        rules.instance("budget", budget, Budget, "Budget such as L2Ball(1.0)")
        self.budget = budget
        self.objective = objective
        self._value, self._against_clean = as_function(objective)

    def forward(
        self,
        model: nn.Module,
        x: torch.Tensor | None,
        y: Measurements,
        physics: Physics,
        eps: float | torch.Tensor | None = None,
        init: Measurements | None = None,
    ) -> Measurements:
        r"""
        The perturbation alone, without the cost of a report.

        :param torch.nn.Module model: reconstruction network, called as ``model(y, physics)``.
        :param torch.Tensor, None x: truth, shape of the model's output, or smaller for an objective
            that crops; ``None`` if the objective needs none.
        :param torch.Tensor, deepinv.utils.TensorList y: measurements, shape `(B, ...)`, real or
            complex; of stacked physics the list of its parts, which share one budget.
        :param deepinv.physics.Physics physics: the physics.
        :param float, torch.Tensor, None eps: absolute radius that replaces the budget's, one number
            or one per sample, shape `(B,)`. Default: ``None``.
        :param torch.Tensor, deepinv.utils.TensorList, None init: where to start, brought into the
            budget. Default: ``None``, the attack's start.
        :return: (:class:`torch.Tensor` or :class:`deepinv.utils.TensorList`) :math:`\delta`, shape,
            type and device of ``y``, detached.
        :raises TypeError: if ``model`` is no module, or ``x``, ``y``, ``init`` or what the model
            returns no tensor of real or complex numbers.
        :raises ValueError: if ``x``, ``eps``, ``init`` or the objective's values do not fit, or
            ``x``, ``y`` or ``init`` are not finite.
        :raises RuntimeError: if the model gives no gradient, or under ``torch.inference_mode``.
        """
        result = self._solve(model, x, y, physics, eps, init, report=False)
        return Layout(y).unpack(result.delta)

    def run(
        self,
        model: nn.Module,
        x: torch.Tensor | None,
        y: Measurements,
        physics: Physics,
        eps: float | torch.Tensor | None = None,
        init: Measurements | None = None,
    ) -> AttackResult:
        r"""
        The perturbation with its losses, trace and flags.

        :return: (:class:`AttackResult`) its ``delta`` is what :meth:`forward` returns.

        Arguments and errors are those of :meth:`forward`.
        """
        result = self._solve(model, x, y, physics, eps, init, report=True)
        result.delta = Layout(y).unpack(result.delta)
        if self.budget.domain == "measurement":
            result.perturbation = Layout(y).unpack(result.perturbation)
        return result

    def repeat(self, n: int) -> WorstCase:
        r"""
        The worst, per sample, of this attack and ``n - 1`` copies with other random starts.

        :param int n: number of runs.
        :return: (:class:`WorstCase`) an attack.
        :raises TypeError: if ``n`` is no whole number.
        :raises ValueError: if it is below 1.
        """
        n = rules.whole("n", n, 1)
        copies = [self._restarted(k) for k in range(1, n)]
        return WorstCase([self, *copies], objective=self.objective)

    @abstractmethod
    def _solve(self, model, x, y, physics, eps, init, report: bool) -> AttackResult:
        """The result, perturbations in one tensor; without ``report`` the rest may be missing."""

    @abstractmethod
    def _restarted(self, k: int) -> Attack:
        """A copy with the k-th random start."""


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
    >>> x, physics = torch.randn(5, 2), dinv.physics.Denoising()
    >>> ball = dj.L2Ball(0.1)
    >>> attack = dj.WorstCase([dj.FrankWolfeAttack(ball, steps=20), dj.RandomAttack(ball)])
    >>> result = attack.run(dj.UnfoldedGD(dj.PointMLP(), max_iter=3), x, physics(x), physics)
    >>> bool(result.flags["random_beats_gradient"].any())
    False
    """

    def __init__(self, attacks: Sequence[Attack], *, objective: Objective = "error"):
        attacks = list(attacks) if isinstance(attacks, Iterable) else [attacks]
        if not attacks:
            raise ValueError("attacks must hold at least one attack, got none.")
        for attack in attacks:
            rules.instance("each of attacks", attack, Attack, "dj.Attack")
        rules.alike("attacks", "domain", [attack.budget.domain for attack in attacks])
        super().__init__(attacks[0].budget, objective)
        self.attacks = nn.ModuleList(attacks)
        self.uses_gradient = any(attack.uses_gradient for attack in attacks)
        self.lower_bound = all(attack.lower_bound for attack in attacks)
        self.adds_init = all(attack.adds_init for attack in attacks)

    def _solve(self, model, x, y, physics, eps, init, report):
        with undisturbed(model, x, y, physics):
            judge = Problem(self, model, x, y, physics, eps)
            flags = {name: torch.zeros_like(judge.nonfinite) for name in FLAGS}
            clean = judge.loss(judge.zero)
            unbeaten = torch.ones_like(judge.nonfinite)
            for attack in self.attacks:
                result = attack._solve(model, x, y, physics, eps, init, report)
                judge.n_grad = judge.n_grad + result.n_grad
                before = judge.worst_loss
                won = judge.loss(result.perturbation) > before
                for name, flag in result.flags.items():
                    if name == "random_beats_gradient" and not attack.uses_gradient:
                        flag = won & self.uses_gradient
                    doubted = flags[name] | (flag & unbeaten)
                    flags[name] = torch.where(won, flag, doubted)
                unbeaten &= ~won
            result = AttackResult.of(judge, judge.worst, judge.worst_loss, clean)
            result.flags = flags if report else {}
        return result

    def _restarted(self, k):
        return WorstCase([a._restarted(k) for a in self.attacks], objective=self.objective)
