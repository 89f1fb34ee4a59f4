r"""2-D points: the problem of the paper's theory."""

from __future__ import annotations

import deepinv as dinv
import settings
import torch
from problem import Problem
from references import Adjoint
from torch.utils.data import DataLoader

import deepinv_jitter as dj

#: Of the random vectors e and g in the risks: sigma^2 = E||.||^2.
RISK_LEVELS = [0.01, 0.03, 0.1, 0.3]


class Points(Problem):
    """2-D point denoising: the truth is the origin, measured with noise of variance 0.01."""

    name = "points"
    stepsize = 0.5
    # 50 steps of 0.05 in a ball of radius 0.01
    paper_attack = {"steps": 50, "step": 5.0}
    presets = settings.POINTS

    def samples(self, split):
        count = getattr(self.settings, split)
        return torch.zeros(count, 2)

    def physics(self, seed, device="cpu"):
        return dinv.physics.Denoising(self.noise(seed, device)).to(device)

    def network(self, algorithm):
        return dj.PointMLP(hidden=self.settings.width, layers=self.settings.depth)

    def loader(self, seed):
        # The paper's 200 samples are measured once; one batch holds them all
        x = self.truths["train"]
        batch = {"x": x, "y": self.physics(seed)(x), "index": torch.arange(len(x))}
        return DataLoader([batch] * self.settings.repeat, batch_size=None)

    @property
    def shifts(self):
        return {"bias": dj.Bias((0.005, 0.0))}

    @property
    def references(self):
        return {"A^T y": Adjoint}

    @property
    def metrics(self):
        return {}

    def risks(self, model):
        """Definitions 3.1 and 3.2 on a grid of levels; every model meets the same noise."""
        x, physics = self.truths["test"], self.physics(2)
        y = physics(x)

        def mean(risk, **level):
            rng = torch.Generator().manual_seed(3)
            return risk(model, x, y, physics, samples=64, generator=rng, **level).mean

        return {
            "level": RISK_LEVELS,
            "average case": [mean(dj.average_case_risk, sigma_e=s) for s in RISK_LEVELS],
            "generalization": [mean(dj.generalization_risk, sigma_g=s) for s in RISK_LEVELS],
        }
