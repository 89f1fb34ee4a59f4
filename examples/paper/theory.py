r"""Numerical checks of the paper's theory on the toy problem."""

from __future__ import annotations

from dataclasses import replace

import corollary
import stepsize
import sweep
import torch
from expansion import implicit_regularization, trajectory_deviation
from intervals import Interval, log_ratio, ratio
from points import RISK_LEVELS
from runs import Archive
from tables import markdown
from verdicts import verdict

import deepinv_jitter as dj

#: sigma_w of SGD jittering, sqrt(E||w_k||^2); 0 is MSE training.
LEVELS = {"smoke": (0.1,), "cpu": (0.03, 0.1, 0.3, 1.0), "paper": (0.03, 0.1, 0.3, 1.0)}
SEEDS = {"smoke": 2, "cpu": 10, "paper": 10}
#: More training: how many times, for which of the levels, with how many seeds.
LONGER = {"smoke": (2, (0.1,), 1), "cpu": (4, (0.1,), 5), "paper": (4, (0.1,), 5)}


def theorem(archive: Archive, risk: str) -> list[list[str]]:
    """A risk of SGD jittering relative to that of MSE training, over levels and budgets."""
    letter = {"generalization": r"$\sigma_g$", "average case": r"$\sigma_e$"}[risk]
    rows = [["training", r"$\sigma_w$", *(f"{letter} = {s:g}" for s in RISK_LEVELS)]]
    usual = 1, LEVELS[archive.preset], SEEDS[archive.preset]
    for budget, levels, seeds in (usual, LONGER[archive.preset]):
        records = sweep.records(archive, levels, seeds, budget)
        for level in levels:
            row = [f"x{budget}, {seeds} seeds", f"{level:g}"]
            for i in range(len(RISK_LEVELS)):
                a, b = ([r["risks"][risk][i] for r in records[k]] for k in (level, 0.0))
                row.append(relative(log_ratio(a, b)))
            rows.append(row)
    return rows


def relative(logarithm: Interval) -> str:
    """A ratio to MSE training with its interval, and whether the inequality holds."""
    holds = verdict(replace(logarithm, mean=-logarithm.mean), logarithm.decided)
    return f"{ratio(logarithm)}, {holds}"


def expansion(archive: Archive) -> dict[str, float]:
    """The identity behind eq. (10), in double precision on trained networks."""
    gaps, values = [], []
    physics = archive.problem("points").physics(4)
    y = physics(archive.problem("points").truths["test"]).double()
    models = sweep.models(archive, LEVELS[archive.preset], SEEDS[archive.preset])
    for level, trained in models.items():
        for seed, model in enumerate(trained):
            model = model.double()
            rng = torch.Generator().manual_seed(seed)
            noise = dj.GaussianJitter(level or 0.1, "norm", rng)
            left, right = trajectory_deviation(model, y, physics, noise)
            gaps.append((left - right).abs().max().item())
            values.append(left.abs().max().item())
    return {"gap": max(gaps), "largest": max(values), "networks": len(gaps)}


def regularisers(archive: Archive) -> list[list[str]]:
    """Eq. (10), of every model under the noise of one level, relative to MSE training."""
    level = 0.1
    physics = archive.problem("points").physics(4)
    y = physics(archive.problem("points").truths["test"])
    means = {}
    models = sweep.models(archive, LEVELS[archive.preset], SEEDS[archive.preset])
    for sigma, trained in models.items():
        means[sigma] = []
        for model in trained:
            rng = torch.Generator().manual_seed(5)
            noise = dj.GaussianJitter(level, "norm", rng)
            means[sigma].append(implicit_regularization(model, y, physics, noise).mean)
    rows = [
        [r"$\sigma_w$ in training", rf"regulariser (10) at $\sigma_w$ = {level:g}, / MSE training"]
    ]
    for sigma in LEVELS[archive.preset]:
        rows.append([f"{sigma:g}", relative(log_ratio(means[sigma], means[0.0]))])
    return rows


def render(archive: Archive, seeds: int) -> str:
    """The page of the theory."""
    identity = expansion(archive)
    settings = archive.problem("points").settings
    return rf"""# The theory, in numbers

2-D point denoising, preset {archive.preset}, {settings.epochs * settings.repeat} training
steps times the number in the first column. Each entry is a ratio to MSE training, the geometric
mean over training seeds with its 95 % interval; "holds" means that the interval lies below 1.
$\sigma_w$ is that of Assumption 6.1, $\mathbb{{E}}\lVert w_k\rVert^2 = \sigma_w^2$.

## Theorem 7.4

$G(\theta^{{\mathrm{{sgd}}}}) \leq G(\theta^{{\mathrm{{mse}}}})$: the generalisation risk, at the
level $\sigma_g$ of the test.

{markdown(theorem(archive, "generalization"))}

## Theorem 7.5

$R_e(\theta^{{\mathrm{{sgd}}}}) \leq R_e(\theta^{{\mathrm{{mse}}}})$: the average-case risk, at the
level $\sigma_e$.

{markdown(theorem(archive, "average case"))}

## The expansion behind eq. (10)

Deviation of the noisy from the noiseless trajectory against its formula, in double precision:
largest difference {identity["gap"]:.1e}, of deviations up to {identity["largest"]:.2g}, over
{identity["networks"]} trained networks and all test points.

{markdown(regularisers(archive))}

{corollary.render(archive)}
{stepsize.render(archive, seeds)}"""
