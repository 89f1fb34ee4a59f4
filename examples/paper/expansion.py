r"""The expansion behind equation (10): what SGD jittering does to a network that denoises."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from deepinv.optim import BaseOptim
from deepinv.physics import Denoising

import deepinv_jitter as dj
from deepinv_jitter.memory import evaluated
from deepinv_jitter.optim.fidelities import TiltedFidelity
from deepinv_jitter.optim.iterators import innermost
from deepinv_jitter.optim.jittering import jittered


def implicit_regularization(
    model: BaseOptim,
    y: torch.Tensor,
    physics: Denoising,
    noise: dj.GaussianJitter,
    samples: int = 32,
) -> dj.Risk:
    r"""
    The regulariser that SGD jittering adds implicitly when denoising, equation (10):

    .. math::
        \mathbb{E}_w\Big\| \sum_{i=0}^{K-1} \eta(1-\eta)^{K-1-i}
        \left(f_\theta(x'_i) - f_\theta(x_i^{sgd})\right) \Big\|_2^2,

    with :math:`x'_i` the iterates of the model without noise and :math:`x_i^{sgd}` those with. Both
    come from the model's own iterations, whatever jitter it has, so that all models can be compared
    under one noise. Step sizes that differ between iterations are taken as they are.

    :param deepinv.optim.BaseOptim model: unrolled gradient descent with the default data fidelity.
    :param torch.Tensor y: measurements, shape `(B, ...)`.
    :param deepinv.physics.Denoising physics: the identity; eq. (10) is derived for it only.
    :param GaussianJitter noise: the noise model; its generator is drawn from.
    :param int samples: number of noisy trajectories, at least 2. Default: 32.
    :return: (:class:`deepinv_jitter.Risk`) the regulariser of each sample, in the unit of ``y``
        squared.
    """
    with evaluated(model), torch.no_grad():
        clean, draws = trajectory(model, y, physics), []
        with jitter_alone(model, noise):
            for _ in range(samples):
                term = network_term(clean, trajectory(model, y, physics))
                draws.append(term.square().flatten(1).sum(1))
    draws = torch.stack(draws)
    return dj.Risk(draws.mean(0), draws.std(0) / math.sqrt(samples))


def trajectory_deviation(
    model: BaseOptim, y: torch.Tensor, physics: Denoising, noise: dj.GaussianJitter
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Both sides of the identity behind equation (10), for one noisy trajectory: equal to rounding.

    .. math::
        x_K^{sgd} - x'_K = \sum_{i=0}^{K-1} \eta(1-\eta)^{K-1-i} \left(f_\theta(x'_i) -
        f_\theta(x_i^{sgd})\right) - \sum_{i=0}^{K-1} \eta(1-\eta)^{K-1-i}\, w_i

    This is Appendix C for the recursion that is implemented and that eq. (8) states, from
    :math:`x_0` on: :math:`x_{k+1} = x_k - \eta((x_k - y) + f_\theta(x_k) + w_k)`. The appendix uses
    :math:`w_{k+1}` in this step and adds one noise more, :math:`w_0`, to the start, so its second
    sum has :math:`K+1` terms, :math:`\eta(1-\eta)^{K-i} w_i`; a start at :math:`y + w_0` would in
    fact contribute :math:`(1-\eta)^K w_0` to the right side. Section 7 prints that sum with a plus
    sign. The first sum, and so eq. (10), is the same for both.

    Arguments as for :func:`implicit_regularization`.

    :return: (:class:`tuple`) left and right side, of the shape of ``y``.
    """
    with evaluated(model), torch.no_grad():
        clean = trajectory(model, y, physics)
        with jitter_alone(model, noise):
            noisy = trajectory(model, y, physics)
    noise_term = torch.zeros_like(y)
    for step in noisy.steps:
        noise_term = (1 - step.eta) * noise_term + step.eta * step.w
    return noisy.x - clean.x, network_term(clean, noisy) - noise_term


class Step(NamedTuple):
    """Step size, network output and noise of an iteration."""

    eta: torch.Tensor | float
    f: torch.Tensor
    w: torch.Tensor | float


class Trajectory(NamedTuple):
    """The output of a model, and all its steps."""

    x: torch.Tensor
    steps: list[Step]


def trajectory(model: BaseOptim, y: torch.Tensor, physics: Denoising) -> Trajectory:
    """Run a model, and write down what its iterations do."""
    steps = []

    def record(iteration, args: tuple) -> None:
        X, fidelity, prior, params, *_ = args
        f = params["lambda"] * prior.grad(X["est"][0], params["g_param"])
        w = fidelity.w if isinstance(fidelity, TiltedFidelity) else 0.0
        steps.append(Step(params["stepsize"], f, w))

    iteration = innermost(model.fixed_point.iterator)
    handle = iteration.register_forward_pre_hook(record)
    try:
        return Trajectory(model(y, physics), steps)
    finally:
        handle.remove()


def network_term(clean: Trajectory, noisy: Trajectory) -> torch.Tensor:
    """The sum in equation (10), by Horner's scheme."""
    total = torch.zeros_like(clean.x)
    for a, b in zip(clean.steps, noisy.steps, strict=True):
        total = (1 - a.eta) * total + a.eta * (a.f - b.f)
    return total


@contextmanager
def jitter_alone(model: BaseOptim, noise: dj.GaussianJitter) -> Iterator[None]:
    """The noise of training and nothing else of it, such as dropout."""
    before = model.fixed_point.iterator
    try:
        model.fixed_point.iterator = jittered(model, noise)
        model.fixed_point.iterator.jitter.training = True
        yield
    finally:
        model.fixed_point.iterator = before
