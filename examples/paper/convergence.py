r"""Corollary 6.2 in numbers: the bound on the gradient along the noisy trajectory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import deepinv_jitter as dj
import torch
from runs import Archive
from tables import markdown

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
        self.lipschitz = (
            torch.linalg.matrix_norm(self.w.T @ (self.a[:, None] * self.w), 2) / 4
        )
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
    """L, L_max and Delta as the proof needs them, see :func:`deepinv_jitter.convergence_bound`."""
    smooth = 1 + objective.lipschitz.item()
    return smooth, smooth, sigma**2 / (2 * smooth)


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
    bound = dj.convergence_bound(
        lipschitz,
        largest,
        iterations,
        f_start=f_start,
        f_inf=min(objective.minimum, f_start),
        delta=delta,
    )
    noise, squares = dj.GaussianJitter(sigma, "norm", rng), []
    for k in range(iterations):
        g = objective.gradient(x)
        squares.append(g.square().sum(-1).mean().item())
        x = x - bound.stepsize * (g + noise(x, k))
    return bound.value / max(min(squares), torch.finfo(torch.double).tiny)


def render(archive: Archive) -> str:
    """The part of the page of the theory."""
    seeds = SEEDS[archive.preset]
    rows = [
        [
            "prior, start",
            "K",
            "σ_w",
            "as printed",
            "least margin",
            "corrected",
            "least margin",
        ]
    ]
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
