r"""The noise levels of the toy problem: all models of a sweep are trained as one ensemble."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch
from ensembles import Ensemble
from methods import build
from runs import Archive, Run

import deepinv_jitter as dj


def records(
    archive: Archive, levels: Sequence[float], seeds: int, budget: int = 1
) -> dict[float, list[dict]]:
    """The results of every level and seed, MSE training first."""
    runs = runs_of(levels, seeds, budget)
    missing = [r for rs in runs.values() for r in rs if not archive.path(r).exists()]
    train(archive, missing)
    return {level: [archive.record(r) for r in rs] for level, rs in runs.items()}


def models(
    archive: Archive, levels: Sequence[float], seeds: int
) -> dict[float, list[torch.nn.Module]]:
    """The models of every level and seed, MSE training first."""
    runs = runs_of(levels, seeds)
    train(archive, [r for rs in runs.values() for r in rs])
    return {level: [archive.model(r) for r in rs] for level, rs in runs.items()}


def runs_of(levels: Sequence[float], seeds: int, budget: int = 1) -> dict[float, list[Run]]:
    """The runs over the levels, MSE training first."""

    def run(level: float, seed: int) -> Run:
        if level == 0:
            return Run("points", "gd", "mse", seed, budget=budget)
        return Run("points", "gd", "jitter", seed, sigma=level, budget=budget)

    return {level: [run(level, seed) for seed in range(seeds)] for level in (0.0, *levels)}


def train(archive: Archive, runs: Iterable[Run]) -> None:
    """Train those that are not trained yet, all together, as ``methods.fit`` does it one by one."""
    runs = [run for run in runs if not archive.weights(run).exists()]
    if not runs:
        return
    (budget,) = {run.budget for run in runs}
    problem = archive.problem("points")
    settings, start = problem.settings, time.perf_counter()
    ensemble = Ensemble([untrained(archive, run) for run in runs]).to(archive.device)
    batches = [next(iter(problem.loader(run.seed))) for run in runs]
    x, y = (torch.stack([batch[key] for batch in batches]).to(archive.device) for key in ("x", "y"))
    physics = problem.physics(0, archive.device)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=settings.lr)
    epochs = settings.epochs * budget
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for _ in range(settings.repeat):
            optimizer.zero_grad()
            losses = (ensemble(y, physics) - x).square().flatten(1).mean(1)
            losses.sum().backward()
            ensemble.clip_grad_norm_(1.0)
            optimizer.step()
        scheduler.step()
    seconds = (time.perf_counter() - start) / len(runs)
    for run, model in zip(runs, ensemble.unstack(), strict=True):
        archive.keep_weights(run, model, seconds)


def untrained(archive: Archive, run: Run) -> torch.nn.Module:
    """A model with a generator of its own, so that its noise does not depend on the others."""
    problem = archive.problem(run.problem).at_noise(run.sigma)
    torch.manual_seed(run.seed)
    model = build(problem, run.algorithm, run.method, run.step).to(archive.device)
    if run.method == "jitter":
        noise = problem.settings.jitter[run.algorithm]
        rng = torch.Generator(archive.device).manual_seed(run.seed)
        dj.jitter(model, dj.GaussianJitter(noise.sigma, noise.scale, rng))
    return model
