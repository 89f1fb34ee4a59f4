r"""Numerical checks of the paper's theory on the toy problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import deepinv_jitter as dj
import stepsize
import torch
from intervals import Interval, crossed, ratio
from problems import RISK_LEVELS
from runs import Archive, Run
from tables import markdown
from verdicts import verdict

#: sigma_w of SGD jittering, sqrt(E||w_k||^2); 0 is MSE training.
LEVELS = {"smoke": (0.1,), "cpu": (0.03, 0.1, 0.3, 1.0), "paper": (0.03, 0.1, 0.3, 1.0)}
SEEDS = {"smoke": 2, "cpu": 10, "paper": 10}
#: Of the prior in the check of Corollary 6.2.
STRENGTHS = {"strong": 1.0, "weak": 0.01}


def sweep(levels: Sequence[float], seeds: int) -> dict[float, list[Run]]:
    """The runs over the levels, MSE training first."""
    return {
        level: [
            (
                Run("points", "gd", "jitter", seed, sigma=level)
                if level
                else Run("points", "gd", "mse", seed)
            )
            for seed in range(seeds)
        ]
        for level in (0.0, *levels)
    }


def theorems(archive: Archive) -> tuple[list[list[str]], list[list[str]]]:
    """Theorems 7.4 and 7.5: the risks of SGD jittering minus those of MSE training."""
    records = {
        level: [archive.record(run) for run in runs]
        for level, runs in sweep(LEVELS[archive.preset], SEEDS[archive.preset]).items()
    }
    tables = []
    for risk in ("generalization", "average case"):
        letter = {"generalization": "σ_g", "average case": "σ_e"}[risk]
        rows = [["σ_w", *(f"{letter} = {s:g}" for s in RISK_LEVELS)]]
        for level in LEVELS[archive.preset]:
            row = [f"{level:g}"]
            for i in range(len(RISK_LEVELS)):
                ratios = [
                    math.log(a["risks"][risk][i] / b["risks"][risk][i])
                    for a, b in zip(records[level], records[0.0], strict=True)
                ]
                row.append(relative(crossed([[r] for r in ratios])))
            rows.append(row)
        tables.append(rows)
    return tuple(tables)


def relative(logarithm: Interval) -> str:
    """A ratio to MSE training with its interval, and whether the inequality holds."""
    holds = verdict(Interval(-logarithm.mean, logarithm.half))
    return f"{ratio(logarithm)}, {holds.replace(' at this budget', '')}"


def expansion(archive: Archive) -> dict[str, float]:
    """The identity behind eq. (10), in double precision on trained networks."""
    gaps, values = [], []
    physics = archive.problem("points").physics(4)
    y = physics(archive.problem("points").truths["test"]).double()
    for level, runs in sweep(LEVELS[archive.preset], SEEDS[archive.preset]).items():
        for run in runs:
            model = archive.model(run).double()
            left, right = dj.trajectory_deviation(
                model,
                y,
                physics,
                sigma=dj.GaussianJitter(level or 0.1, "norm"),
                generator=torch.Generator().manual_seed(run.seed),
            )
            gaps.append((left - right).abs().max().item())
            values.append(left.abs().max().item())
    return {"gap": max(gaps), "largest": max(values), "networks": len(gaps)}


def regularisers(archive: Archive) -> list[list[str]]:
    """Eq. (10), of every model under the noise of one level, relative to MSE training."""
    level = 0.1
    physics = archive.problem("points").physics(4)
    y = physics(archive.problem("points").truths["test"])
    means = {}
    for sigma, runs in sweep(LEVELS[archive.preset], SEEDS[archive.preset]).items():
        means[sigma] = [
            dj.implicit_regularization(
                archive.model(run),
                y,
                physics,
                sigma=dj.GaussianJitter(level, "norm"),
                generator=torch.Generator().manual_seed(5),
            ).mean
            for run in runs
        ]
    rows = [["σ_w in training", f"regulariser (10) at σ_w = {level:g}, / MSE training"]]
    for sigma in LEVELS[archive.preset]:
        logs = [math.log(a / b) for a, b in zip(means[sigma], means[0.0], strict=True)]
        rows.append([f"{sigma:g}", relative(crossed([[v] for v in logs]))])
    return rows


class Potential(torch.nn.Module):
    r"""
    :math:`f_\theta = \nabla r_\theta` of the convex :math:`r_\theta(x) = \sum_j a_j
    \operatorname{softplus}(\langle w_j, x\rangle + b_j)`, whose Lipschitz constant is known:
    :math:`\|W^\top \operatorname{diag}(a) W\|/4` at most.
    """

    def __init__(self, width: int, strength: float, generator: torch.Generator):
        super().__init__()
        self.w = torch.randn(width, 2, generator=generator).double()
        self.b = torch.randn(width, generator=generator).double()
        self.a = torch.rand(width, generator=generator).double() * strength / width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.a * torch.sigmoid(x @ self.w.T + self.b)) @ self.w

    def value(self, x: torch.Tensor) -> torch.Tensor:
        return (self.a * torch.nn.functional.softplus(x @ self.w.T + self.b)).sum(-1)

    @property
    def lipschitz(self) -> float:
        return (
            torch.linalg.matrix_norm(self.w.T @ (self.a[:, None] * self.w), 2).item()
            / 4
        )


def corollary(archive: Archive) -> list[list[str]]:
    r"""
    Corollary 6.2, with a prior that has a potential: the least expected squared gradient of the
    objective along the noisy trajectory, against the bound as printed and as corrected in
    :func:`deepinv_jitter.convergence_bound`.
    """
    draws = 50 if archive.preset == "smoke" else 2000
    rows = [
        ["prior", "K", "σ_w", "as printed", "least margin", "corrected", "least margin"]
    ]
    for strength, iterations in product(STRENGTHS, (10, 100)):
        for sigma in (0.0, *LEVELS[archive.preset]):
            margins: dict[str, list[float]] = {"printed": [], "corrected": []}
            for seed in range(SEEDS[archive.preset]):
                rng = torch.Generator().manual_seed(seed)
                prior = Potential(16, STRENGTHS[strength], rng)
                y = torch.randn(2, generator=rng).double()

                def objective(x, prior=prior, y=y):
                    return (x - y).square().sum(-1) / 2 + prior.value(x)

                def gradient(x, prior=prior, y=y):
                    return x - y + prior(x)

                least = y.clone()
                for _ in range(2000):
                    least = least - 0.5 * gradient(least)
                smooth = 1 + prior.lipschitz
                constants = {
                    # L of f alone, and no noise: inf of both parts is their value at the minimum
                    "printed": (
                        prior.lipschitz,
                        max(1.0, prior.lipschitz),
                        gap(prior, y, least),
                    ),
                    "corrected": (smooth, smooth, sigma**2 / (2 * smooth)),
                }
                for name, (lipschitz, largest, delta) in constants.items():
                    bound = dj.convergence_bound(
                        lipschitz,
                        largest,
                        iterations,
                        f_start=objective(y).item(),
                        f_inf=min(objective(least), objective(y)).item(),
                        delta=delta,
                    )
                    x = y.expand(draws, 2)
                    law = dj.GaussianJitter(sigma, "norm", rng)
                    squares = []
                    for k in range(iterations):
                        squares.append(gradient(x).square().sum(-1).mean().item())
                        x = x - bound.stepsize * (gradient(x) + law(x, k))
                    margins[name].append(bound.value / max(min(squares), 1e-300))
            cells = []
            for name in ("printed", "corrected"):
                failures = sum(m < 1 for m in margins[name])
                count = len(margins[name])
                cells += [
                    f"holds in {count - failures} of {count}",
                    f"{min(margins[name]):.2g}",
                ]
            rows.append([strength, str(iterations), f"{sigma:g}", *cells])
    return rows


def gap(prior: Potential, y: torch.Tensor, least: torch.Tensor) -> float:
    r""":math:`\Delta_F^*`: :math:`F(x^*)` minus the infima of both parts, 0 and, at infinity, 0."""
    return ((least - y).square().sum() / 2 + prior.value(least)).item()


def render(archive: Archive, seeds: int) -> str:
    """The page of the theory."""
    generalization, average = theorems(archive)
    identity = expansion(archive)
    count = SEEDS[archive.preset]
    settings = archive.problem("points").settings
    return f"""# The theory, in numbers

2-D point denoising, preset {archive.preset}, {settings.epochs * settings.repeat} training steps.
Each entry is a ratio to MSE training, the geometric mean over training seeds with its 95 %
interval; "holds" means that the interval lies below 1. σ_w is that of Assumption 6.1,
E‖w_k‖² = σ_w².

## Theorem 7.4: G(θ^sgd) ≤ G(θ^mse)

Generalisation risk at the level σ_g of the test, {count} seeds.

{markdown(generalization)}

## Theorem 7.5: R_e(θ^sgd) ≤ R_e(θ^mse)

Average-case risk at the level σ_e, {count} seeds.

{markdown(average)}

## The expansion behind eq. (10)

Deviation of the noisy from the noiseless trajectory against its formula, in double precision:
largest difference {identity["gap"]:.1e}, of deviations up to {identity["largest"]:.2g}, over
{identity["networks"]} trained networks and all test points.

{markdown(regularisers(archive))}

## Corollary 6.2

With a convex prior of known Lipschitz constant, {count} of them. "As printed" takes L of f alone
and no noise; "corrected" is what the proof needs (see `convergence_bound`). The margin is the
bound over what was measured.

{markdown(corollary(archive))}

{stepsize.render(archive, seeds)}"""
