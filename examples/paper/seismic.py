r"""Seismic deconvolution of layered sections."""

from __future__ import annotations

import cmath
import math
from functools import partial

import settings
import torch
from problem import Problem
from references import Adjoint, sparse
from scipy.signal import hilbert

import deepinv_jitter as dj


class Seismic(Problem):
    """Deconvolution of sections, divided by the largest magnitude of their noiseless data."""

    name = "seismic"
    reads_y = True
    presets = settings.SEISMIC

    def __init__(self, preset, data=None):
        super().__init__(preset, data)
        # The layers, and the wavelet with them, shrink with the section
        self.scale = 1.0 if preset == "paper" else 0.5
        self.width = 4.0 * self.scale
        self.wavelet = dj.ricker(51 if preset == "paper" else 25, a=self.width)
        gain = dj.SeismicConvolution(self.wavelet, normalize=False).compute_sqnorm(
            torch.ones(1, 1, *self.settings.size), verbose=False
        )
        self.stepsize = 1 / gain.item()
        # The network's part of a step has the unit of the image, whatever the step size
        self.lambda_reg = gain.item()

    # As in the paper's code: the sections start from themselves
    init = staticmethod(lambda y, physics: y)

    def samples(self, split):
        count = getattr(self.settings, split)
        return self.sections(count, seed=("train", "validation", "test").index(split))

    def sections(self, count: int, seed: int, thickness: float = 12.0) -> torch.Tensor:
        sections = dj.ReflectivityDataset(
            count,
            img_size=self.settings.size,
            seed=seed,
            thickness=thickness * self.scale,
            fold=8 * self.scale,
            throw=24 * self.scale,
        )
        x = torch.stack([section["x"] for section in map(sections.__getitem__, range(count))])
        return x / self.physics(0).A(x).abs().amax((1, 2, 3), keepdim=True)

    def physics(self, seed, device="cpu", wavelet=None, noise=1.0):
        return dj.SeismicConvolution(
            self.wavelet if wavelet is None else wavelet,
            normalize=False,
            noise_model=self.noise(seed, device, noise),
            device=device,
        )

    @property
    def elsewhere(self):
        x, points = self.truths["test"], len(self.wavelet)
        # The width a of the wavelet is inverse to its frequency
        wavelets = {
            f"frequency {factor:+.0%}": dj.ricker(points, a=self.width / (1 + factor))
            for factor in (-0.2, 0.2)
        }
        wavelets |= {f"phase {d} degrees": rotated(self.wavelet, d) for d in (30, 90)}
        others = {}
        for name, wavelet in wavelets.items():
            # Of the same gain, as step sizes, learned or not, are for that of the training
            same = wavelet * (peak(self.wavelet) / peak(wavelet))
            others[name] = x, {}, self.physics(4, wavelet=same)
        for factor in (0.5, 2):
            others[f"noise x {factor:g}"] = x, {}, self.physics(4, noise=factor)
        thick = self.sections(len(x), seed=4, thickness=24)
        return others | {"layers twice as thick": (thick, {}, self.physics(4))}

    def network(self, algorithm):
        return dj.UnrolledDnCNN(
            1,
            depth=self.settings.depth,
            width=self.settings.width,
            condition_channels=1,
            residual=algorithm == "pgd",
        )

    @property
    def shifts(self):
        length = max(2, round(20 * self.scale))
        return {
            f"layer {height}": dj.HorizontalLayer(height, length=length) for height in (0.1, 0.3)
        }

    @property
    def references(self):
        solver = partial(sparse, self.stepsize, self.settings.solver_steps)
        weights = (0.002, 0.005, 0.01, 0.02)
        return {
            "A^T y": partial(Adjoint, self.stepsize),
            "l1": partial(self.tuned, solver, weights),
        }


def rotated(wavelet: torch.Tensor, degrees: float) -> torch.Tensor:
    """A wavelet of another phase, by its analytic signal."""
    turned = hilbert(wavelet.double().numpy()) * cmath.exp(1j * math.radians(degrees))
    return torch.from_numpy(turned.real).to(wavelet)


def peak(wavelet: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of its spectrum: the norm of the convolution of long traces."""
    return torch.fft.rfft(wavelet, 1024).abs().max()
