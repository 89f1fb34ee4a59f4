r"""Corollary 6.2 in numbers: the bound on the gradient along the noisy trajectory."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
from runs import Archive
from tables import markdown

import deepinv_jitter as dj

#: Strength of the prior, and the start as a multiple of y.
CASES = {"strong, y": (1.0, 1.0), "weak, y": (0.01, 1.0), "weak, 0": (0.01, 0.0)}
ITERATIONS = (10, 100)
LEVELS = (0.0, 0.1, 1.0)  # sigma_w
SEEDS = {"smoke": 2, "cpu": 10, "paper": 10}
DRAWS = {"smoke": 50, "cpu": 2000, "paper": 2000}


class Objective:
    r"""
    :math:`F(x) = \frac12\|y-x\|_2^2 + r(x)` with the convex :math:`r(x) = \sum_j a_j
    \operatorname{softplus}(\langle w_j, x\rangle + b_j) \geq 0`, in double precision.

    Unlike a network, :math:`f = \nabla r` has a potential, and a Lipschitz constant that is known:
    at most :math:`\|W^\top \operatorname{diag}(a) W\|/4`.
    """

    def __init__(self, strength: float, generator: torch.Generator, width: int = 16):
        self.w = torch.randn(width, 2, generator=generator).double()
        self.b = torch.randn(width, generator=generator).double()
        self.a = torch.rand(width, generator=generator).double() * strength / width
        self.y = torch.randn(2, generator=generator).double()
        self.lipschitz = torch.linalg.matrix_norm(self.w.T @ (self.a[:, None] * self.w), 2) / 4
        x = self.y
        for _ in range(2000):
            x = x - 0.5 * self.gradient(x)
        self.minimum = self(x).item()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        softplus = torch.nn.functional.softplus(x @ self.w.T + self.b)
        return (x - self.y).square().sum(-1) / 2 + (self.a * softplus).sum(-1)

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.y + (self.a * torch.sigmoid(x @ self.w.T + self.b)) @ self.w


def as_printed(objective: Objective, sigma: float) -> tuple[float, float, float]:
    """L, L_max and Delta: L of f alone, and F(x*) minus the infima of its parts, at least 0."""
    lipschitz = objective.lipschitz.item()
    return lipschitz, max(1.0, lipschitz), objective.minimum


def corrected(objective: Objective, sigma: float) -> tuple[float, float, float]:
    """L, L_max and Delta as the proof needs them, see :func:`convergence_bound`."""
    smooth = 1 + objective.lipschitz.item()
    return smooth, smooth, sigma**2 / (2 * smooth)


def convergence_bound(
    lipschitz: float, lipschitz_max: float, max_iter: int, gap: float, delta: float
) -> tuple[float, float]:
    r"""
    The bound of Corollary 6.2 on the gradient of :math:`F = \frac12\|y-A\cdot\|_2^2 + r_\theta`,
    from its constants:

    .. math::
        \min_{0\leq k<K} \mathbb{E}\|\nabla F(x_k^{sgd})\|_2^2 \leq
        \sqrt{\frac{2 L L_{\max}}{K}} \left(2(F(x_0) - \inf F) + \Delta_F^*\right),
        \qquad \eta = \sqrt{\frac{2}{L L_{\max} K}}.

    The paper takes for :math:`L` the Lipschitz constant of :math:`f_\theta` alone, and for
    :math:`\Delta_F^*` a number without the noise. So read the bound can fail: for :math:`f_\theta
    \to 0` it is zero. It holds if :math:`L = L_{\max}` is the Lipschitz constant of :math:`\nabla
    F`, at most that of :math:`f_\theta` plus :math:`\|A\|^2`, and
    :math:`\Delta_F^* \geq \mathbb{E}\|w_k\|_2^2 / (2L_{\max})`: then
    :math:`\mathbb{E}\|\nabla F(x) + w_k\|_2^2 \leq 2L_{\max}(F(x) - \inf F + \Delta_F^*)`, which
    the proof of the theorem it adapts needs (Garrigos and Gower, 2023, Theorem 5.12).

    :param float lipschitz: :math:`L > 0`.
    :param float lipschitz_max: :math:`L_{\max} \geq L`.
    :param int max_iter: number of iterations :math:`K`, at least 1.
    :param float gap: :math:`F(x_0) - \inf F \geq 0`.
    :param float delta: :math:`\Delta_F^* \geq 0`.
    :return: (:class:`tuple`) the bound, and the step size :math:`\eta` that it holds for.
    """
    product = lipschitz * lipschitz_max
    bound = math.sqrt(2 * product / max_iter) * (2 * gap + delta)
    return bound, math.sqrt(2 / (product * max_iter))


def margin(
    constants: Callable, case: str, iterations: int, sigma: float, seed: int, draws: int
) -> float:
    """The bound over the least mean squared gradient that was measured: below 1, it is false."""
    strength, start = CASES[case]
    rng = torch.Generator().manual_seed(seed)
    objective = Objective(strength, rng)
    x = (start * objective.y).expand(draws, 2)
    lipschitz, largest, delta = constants(objective, sigma)
    f_start = objective(x[0]).item()
    gap = f_start - min(objective.minimum, f_start)
    bound, stepsize = convergence_bound(lipschitz, largest, iterations, gap, delta)
    noise, squares = dj.GaussianJitter(sigma, "norm", rng), []
    for k in range(iterations):
        g = objective.gradient(x)
        squares.append(g.square().sum(-1).mean().item())
        x = x - stepsize * (g + noise(x, k))
    return bound / max(min(squares), torch.finfo(torch.double).tiny)


def render(archive: Archive) -> str:
    """The part of the page of the theory."""
    seeds = SEEDS[archive.preset]
    rows = [["prior, start", "K", r"$\sigma_w$"]]
    for reading in ("as printed", "corrected"):
        rows[0] += [reading, "least margin"]
    for case, iterations, sigma in product(CASES, ITERATIONS, LEVELS):
        row = [case, str(iterations), f"{sigma:g}"]
        for constants in (as_printed, corrected):
            margins = [
                margin(constants, case, iterations, sigma, seed, DRAWS[archive.preset])
                for seed in range(seeds)
            ]
            holds = sum(m >= 1 for m in margins)
            row += [f"holds in {holds} of {seeds}", f"{min(margins):.2g}"]
        rows.append(row)
    return f"""## Corollary 6.2

The least expected squared gradient of the objective along the noisy trajectory, against the bound,
for {seeds} convex priors of known Lipschitz constant. "As printed" takes L of f alone and no noise;
"corrected" is what the proof needs (see `convergence_bound`). The margin is the bound over what was
measured.

{markdown(rows)}
"""
