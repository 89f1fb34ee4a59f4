r"""What a search climbs: the loss of one batch as a function of the perturbation."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import torch
from deepinv.distributed.framework import DistributedStackedPhysics
from deepinv.loss.metric import Metric
from deepinv.physics import Physics
from torch import nn

from .. import checks as rules
from ..memory import evaluated, modules, same_draws
from .adapted import differentiable
from .parts import Layout, Measurements, named_parts
from .samples import column, per_sample, precision, where

Objective: TypeAlias = str | torch.Tensor | Metric | Callable

#: What a search finds for each sample.
FOUND = ("worst", "worst_loss", "zero_gradient", "nonfinite")


class Problem:
    r"""
    The loss of one batch as a function of the perturbation, for one attack.

    It remembers, for each sample, the worst point it was asked about. Perturbations and
    measurements of several parts are one tensor, see :class:`Layout`.
    """

    def __init__(self, attack, model, x, y, physics, eps):
        self.model, self.physics = model, physics
        y = y.detach()
        self.layout = Layout(y)
        self.y = self.layout.pack(y)
        self.autocast = attack.autocast
        if self.autocast is not None and not _is_fast(self.autocast, y.device):
            warnings.warn(
                f"This {y.device.type} has no units for {self.autocast}: the attack is slower "
                "with autocast than without.",
                stacklevel=4,
            )
        self.budget, self._value = attack.budget, attack._value
        if eps is None:
            self.eps = self.budget.radii(y, physics)
        else:
            self.eps = per_sample("eps", eps, self.y)
        self.zero = self.budget.zero(y, physics)
        self.support = self.budget.support(y, physics)
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

    def take(self, rows: torch.Tensor) -> Problem:
        """The problem of the samples of these numbers, with what was found for them."""
        part = copy.copy(self)
        for name in ("y", "eps", "zero", "support", "target", *FOUND):
            value = getattr(self, name)
            setattr(part, name, value if value is None else value[rows])
        part.trace, part.n_grad = [], 0
        return part

    def put(self, rows: torch.Tensor, part: Problem) -> None:
        """Take over what was found for some samples; the trace of the others stays level."""
        self.trace += [self.worst_loss.index_copy(0, rows, t) for t in part.trace]
        before = torch.zeros_like(self.eps, dtype=torch.long) + self.n_grad
        self.n_grad = before.index_add(0, rows, torch.full_like(rows, part.n_grad))
        for name in FOUND:
            value = getattr(self, name).index_copy(0, rows, getattr(part, name))
            setattr(self, name, value)

    def reconstruct(self, delta: torch.Tensor) -> torch.Tensor:
        r""":math:`H(y + \delta)`."""
        y = self.layout.unpack(self.y + self.budget.to_measurement(delta, self.physics))
        if self.autocast is None:
            return self.model(y, self.physics)
        with torch.autocast(self.y.device.type, self.autocast):
            return self.model(y, self.physics)

    def value(self, delta: torch.Tensor) -> torch.Tensor:
        r"""The objective :math:`\ell(H(y + \delta), x)`, shape `(B,)`, not remembered."""
        return self._judge(self.reconstruct(delta))

    def _judge(self, x_net: torch.Tensor) -> torch.Tensor:
        if not isinstance(x_net, torch.Tensor):
            raise TypeError(f"the model must return a torch.Tensor, got {type(x_net).__name__}.")
        loss = self._value(x_net, self.target)
        if not isinstance(loss, torch.Tensor) or loss.shape != self.eps.shape:
            shape = tuple(loss.shape) if isinstance(loss, torch.Tensor) else loss
            raise ValueError(
                f"objective must give one value per sample, shape {tuple(self.eps.shape)}, got "
                f"{shape}: for a deepinv metric or loss set reduction=None."
            )
        if loss.is_complex():
            raise TypeError(
                f"objective must give real values, got {loss.dtype}: take the modulus or the real "
                "part."
            )
        return loss

    def loss(self, delta: torch.Tensor) -> torch.Tensor:
        """The objective at a point, remembered; minus infinity where it is not finite."""
        with torch.no_grad():
            return self._remember(delta, self.value(delta))

    def gradient(
        self, delta: torch.Tensor, allowed: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The objective at a point, remembered, and its gradient, zero where it is not finite. A point
        that is not allowed, outside of the budget, is not remembered.
        """
        loss, g = self.value_and_gradient(delta)
        finite = g.isfinite().flatten(1).all(1)
        self.n_grad += 1
        self.nonfinite |= ~finite
        self.zero_gradient |= (g == 0).flatten(1).all(1)
        loss = self._remember(delta, loss, allowed)
        return loss, torch.where(column(finite, g), g, 0)

    def value_and_gradient(self, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The objective and its gradient on the support, as they come."""
        delta = delta.detach().requires_grad_()
        with torch.enable_grad():
            x_net = self.reconstruct(delta)
            loss = self._judge(x_net)
            g = None
            if loss.requires_grad:
                (g,) = torch.autograd.grad(loss.sum(), delta, allow_unused=True)
            elif x_net.requires_grad:
                raise RuntimeError(
                    "the attack needs the gradient of the objective, but it gives none: deepinv's "
                    "PSNR is such a metric. Use 'error', which has the same worst case, or "
                    "RandomAttack."
                )
            if g is None:
                raise RuntimeError(
                    "the attack needs the gradient of the model's output with respect to y, but "
                    "there is none: the model runs under no_grad, detaches its input, or is a "
                    "deepinv algorithm with unfold=False. Build it with unfold=True, or use "
                    "RandomAttack."
                )
        return loss.detach(), torch.where(self.support, g, 0)

    def project(self, delta: torch.Tensor, radius: torch.Tensor | None = None) -> torch.Tensor:
        """The nearest point inside the budget, or inside another ball."""
        return self.budget.project(delta, self.eps if radius is None else radius)

    def steepest(self, g: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """The step of that length which gains most."""
        return self.budget.steepest(g, length)

    def random(self, generator: torch.Generator, distribution: str = "sphere") -> torch.Tensor:
        """A random point of the budget."""
        return self.budget.random(self.zero, self.eps, generator, distribution, self.support)

    def inside(self, init: Measurements) -> torch.Tensor:
        """A given first point, brought into the budget."""
        rules.batch(**named_parts("init", init))
        init = Layout(init).pack(init)
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

    def _remember(
        self, delta: torch.Tensor, loss: torch.Tensor, allowed: bool = True
    ) -> torch.Tensor:
        finite = loss.isfinite()
        self.nonfinite |= ~finite
        loss = torch.where(finite & allowed, loss, -math.inf)
        self.trace.append(loss)
        self.worst = where(loss > self.worst_loss, delta.detach(), self.worst)
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
def undisturbed(
    model: nn.Module, x: torch.Tensor | None, y: Measurements, physics: Physics
) -> Iterator[None]:
    """Evaluation mode, frozen parameters, no memory; afterwards all is as before."""
    rules.instance("model", model, nn.Module, "torch.nn.Module")
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "attacks need gradients, which torch.inference_mode rules out: call them "
            "outside of it, or under torch.no_grad."
        )
    if isinstance(physics, DistributedStackedPhysics) and physics.ctx.world_size > 1:
        raise NotImplementedError(
            "attacks need the gradient to all measurements, of which each process has its own part "
            "when deepinv.distributed shares a physics among them: attack in a single process."
        )
    # Once per attack: a loss that is no number would look like one that cannot be raised
    rules.batch(**({} if x is None else {"x": x}), **named_parts("y", y))
    found = modules(model, physics)
    free = [p for m in found for p in m.parameters(recurse=False) if p.requires_grad]
    with evaluated(model, physics), differentiable(model), same_draws():
        try:
            for p in free:
                p.requires_grad_(False)
            yield
        finally:
            for p in free:
                p.requires_grad_(True)


def as_function(objective: Objective) -> tuple[Callable, bool]:
    """The objective as f(x_net, target), to be maximised; and whether the target is H(y), not x."""
    if isinstance(objective, str) and objective in ("error", "deviation"):
        return _squared_error, objective == "deviation"
    if isinstance(objective, torch.Tensor):
        if objective.is_complex() or not objective.isfinite().all():
            raise ValueError(
                "objective must be real and finite where it is a weight of the squared error, got "
                f"shape {tuple(objective.shape)} of {objective.dtype}."
            )
        return partial(_squared_error, weight=objective), False
    if isinstance(objective, Metric):
        better = -1 if objective.lower_better or objective.train_loss else 1
        return lambda x_net, x: -better * objective(x_net=x_net, x=x), False
    if callable(objective) and not isinstance(objective, type):
        return objective, False
    raise TypeError(
        "objective must be 'error', 'deviation', a tensor, a deepinv Metric such as NMSE(), or a "
        f"function, got {objective!r}."
    )


def _squared_error(
    x_net: torch.Tensor, x: torch.Tensor | None, weight: torch.Tensor | None = None
) -> torch.Tensor:
    if x is None:
        raise ValueError("objective='error' needs the truth x, got None: or use 'deviation'.")
    if x.shape != x_net.shape:
        raise ValueError(
            f"x must have the shape of the model's output, {tuple(x_net.shape)}, got "
            f"{tuple(x.shape)}: for a smaller truth give an objective that crops the output."
        )
    squares = (x_net - x).abs().to(precision(x)) ** 2
    if weight is not None:
        try:
            squares = squares * weight.to(squares).expand_as(squares)
        except RuntimeError as error:
            raise ValueError(
                "objective must broadcast to the model's output, of shape "
                f"{tuple(squares.shape)}, got a weight of shape {tuple(weight.shape)}."
            ) from error
    return squares.flatten(1).sum(1)
