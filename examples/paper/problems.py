r"""The paper's three problems, each composed of the library's pieces, with its presets."""

from __future__ import annotations

import cmath
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial

import deepinv as dinv
import settings
import torch
from references import Adjoint, sparse, total_variation
from scipy.signal import hilbert
from settings import Settings
from skimage.data import shepp_logan_phantom
from torch.utils.data import DataLoader, RandomSampler

import deepinv_jitter as dj

#: Of the random vectors e and g in the risks of the toy problem: sigma^2 = E||.||^2.
RISK_LEVELS = [0.01, 0.03, 0.1, 0.3]


Elsewhere = tuple[torch.Tensor, dict, dinv.physics.LinearPhysics]


class Problem(ABC):
    """
    A forward operator with data, networks, shifts and reference methods.

    Measurements are made by :func:`deepinv_jitter.evaluate_robustness` for the test and by the
    trainer in training; nothing here draws from a global generator.
    """

    name: str
    presets: dict[str, Settings]
    paper_attack = {"steps": 20, "step": 0.1}

    def __init__(self, preset: str, data: str | None = None):
        self.settings = self.presets[preset]
        self.data = data

    def at_noise(self, sigma: float | None) -> Problem:
        """The problem with another level of SGD and of input jittering, or as it is."""
        if sigma is None:
            return self
        other = copy.copy(self)
        noises = {k: dj.GaussianJitter(sigma, v.scale) for k, v in self.settings.jitter.items()}
        inputs = dict.fromkeys(self.settings.input_sigma, sigma)
        other.settings = replace(self.settings, jitter=noises, input_sigma=inputs)
        return other

    @abstractmethod
    def samples(self, split: str) -> torch.Tensor:
        """All truths of ``"train"``, ``"validation"`` or ``"test"``."""

    @abstractmethod
    def physics(self, seed: int, device: str = "cpu") -> dinv.physics.LinearPhysics:
        """The forward operator, with a noise generator of its own."""

    @abstractmethod
    def network(self, algorithm: str) -> torch.nn.Module:
        """The paper's network body, freshly initialised by the global generator."""

    @property
    @abstractmethod
    def shifts(self) -> dict[str, dj.Shift]:
        """The out-of-distribution edits; the first is the tables'."""

    @property
    def elsewhere(self) -> dict[str, Elsewhere]:
        """Data that nothing was tuned on: truths, parameters of the physics, and the physics."""
        return {}

    @property
    @abstractmethod
    def references(self) -> dict[str, Callable[[], torch.nn.Module]]:
        """Methods without training, as functions that make them."""

    reads_y = False
    complex = False  # images of 2 channels, real and imaginary
    stepsize = 1.0
    lambda_reg = 1.0
    init = staticmethod(dj.models.unfolded.adjoint)

    def model(self, algorithm: str, jitter: dj.GaussianJitter | None = None, **options):
        """The unrolled network of the paper: ``"gd"`` is eq. (8), ``"pgd"`` eq. (12)."""
        unfolded, prior = {
            "gd": (dj.UnfoldedGD, dj.GradientPrior),
            "pgd": (dj.UnfoldedPGD, dj.ProximalPrior),
        }[algorithm]
        arguments = {
            "stepsize": self.stepsize,
            "max_iter": self.settings.iterations,
            "jitter": jitter,
            "lambda_reg": self.lambda_reg,
            "positive_stepsize": True,
            "init": self.init,
        }
        count = self.settings.iterations if self.settings.own_networks else 1
        networks = [prior(self.network(algorithm), reads_y=self.reads_y) for _ in range(count)]
        return unfolded(networks if count > 1 else networks[0], **arguments | options)

    def noise(self, seed: int, device: str, factor: float = 1.0) -> dinv.physics.GaussianNoise:
        """The measurement noise."""
        rng = torch.Generator(device).manual_seed(seed)
        return dinv.physics.GaussianNoise(factor * self.settings.noise, rng=rng)

    def masks(
        self, seed: int, device: str = "cpu"
    ) -> dinv.physics.generator.PhysicsGenerator | None:
        """What draws the parameters of the physics for each batch, if anything does."""
        return None

    def loader(self, seed: int) -> DataLoader:
        """Training batches, in an order that follows from the seed."""
        truths = dj.IndexedDataset(
            dinv.datasets.TensorDataset(x=self.truths["train"], use_dict_output=True)
        )
        order = torch.Generator().manual_seed(seed)
        sampler = RandomSampler(truths, num_samples=self.settings.draws, generator=order)
        return DataLoader(truths, self.settings.batch, sampler=sampler, generator=order)

    @cached_property
    def truths(self) -> dict[str, torch.Tensor]:
        return {split: self.samples(split) for split in ("train", "validation", "test")}

    def batches(self, split: str) -> list[dict]:
        """All samples of a split in one batch, with parameters that are always the same."""
        x, masks = self.truths[split], self.masks(seed=1)
        return [{"x": x, "params": masks.step(len(x)) if masks else {}}]

    @property
    def metrics(self) -> dict[str, dinv.metric.Metric]:
        """For :func:`deepinv_jitter.evaluate_robustness`: the host's and the paper's."""
        psnr, ssim = (
            metric(complex_abs=self.complex) for metric in (dinv.metric.PSNR, dinv.metric.SSIM)
        )
        metrics = {"PSNR": psnr, "SSIM": ssim, "NMSE": dinv.metric.NMSE()}
        metrics |= {"PSNR (paper)": dj.PaperPSNR(), "SSIM (paper)": dj.PaperSSIM()}
        # The window of SSIM is 11 pixels wide
        wide = min(self.settings.size) >= 11
        return {name: m for name, m in metrics.items() if wide or "SSIM" not in name}

    def tuned(
        self, solver: Callable[[float], torch.nn.Module], weights: Sequence[float]
    ) -> torch.nn.Module:
        """The classical method with the weight that is best on the validation data."""
        batch, physics = self.batches("validation")[0], self.physics(3)
        psnr = dinv.metric.PSNR(complex_abs=self.complex)
        y = physics(batch["x"], **batch["params"])

        def quality(weight: float) -> float:
            with torch.no_grad():
                return psnr(solver(weight)(y, physics), batch["x"]).mean().item()

        return solver(max(weights, key=quality))

    def risks(self, model: torch.nn.Module) -> dict:
        """What else is measured of a trained model."""
        return {}

    @property
    def attack(self) -> dj.Attack:
        """The strong attack of the evaluation."""
        ball, steps = self.settings.ball, self.settings.steps
        if steps is None:
            return dj.ConvergedAttack.standard(ball, checks=False)
        power = dj.FrankWolfeAttack(ball, steps=10, momentum=0.0, checks=False)
        return dj.WorstCase([dj.APGDAttack(ball, steps=steps), power])

    def attack_of_the_paper(self, radius: float) -> dj.Attack:
        """Projected gradient ascent with the paper's number and length of steps, from zero."""
        ball = dj.L2Ball(radius, relative_to=self.settings.relative_to)
        steps, step = self.paper_attack["steps"], self.paper_attack["step"]
        return dj.PGDAttack(ball, steps=steps, rel_step=step, keep="last", checks=False)

    @property
    def training_attack(self) -> dj.Attack:
        if self.settings.train_attack == "paper":
            return self.attack_of_the_paper(self.settings.radius)
        return dj.FrankWolfeAttack(self.settings.ball, steps=3, momentum=0.0, keep="last")


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


class MRI(Problem):
    """Single-coil MRI, 4x accelerated, of brain slices or of a folder of fastMRI files."""

    name = "mri"
    complex = True
    presets = settings.MRI

    def samples(self, split):
        size = self.settings.size
        count = getattr(self.settings, split)
        if self.data is not None:
            return self._fastmri(split, count)
        # The head takes 192 mm; the paper's field of 320 pixels shows it at 0.6 mm
        slices = dj.BrainSliceDataset(
            "train" if split == "train" else "test",
            img_size=size,
            resolution=192 / max(size),
            contrast=split == "train",
            copies=-(-count // 20) if split == "train" else 1,
        )
        # Of the held-out slabs, around -46, -8 and 32 mm, the middle one is for validation
        middle = (slices.positions + 8).abs() < 4
        kept = {
            "train": range(len(slices)),
            "validation": middle.nonzero().flatten().tolist(),
            "test": (~middle).nonzero().flatten().tolist(),
        }[split]
        return torch.stack([slices[i]["x"] for i in spread(kept, count)])

    def _fastmri(self, split, count):
        slices = dj.fastmri_slices(self.data, img_size=self.settings.size)
        # Files are in order: at most one volume is cut by each border between two splits
        low, high = {"train": (0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1)}[split]
        low, high = int(low * len(slices)), int(high * len(slices))
        return torch.stack([slices[i]["x"] for i in spread(range(low, high), count)])

    def physics(self, seed, device="cpu", noise=1.0):
        size, noise = self.settings.size, self.noise(seed, device, noise)
        return dj.SingleCoilMRI(img_size=size, noise_model=noise, device=device)

    def masks(self, seed, device="cpu", acceleration=4):
        size = self.settings.size
        return dj.FastMRIMaskGenerator(size, acceleration=acceleration, seed=seed, device=device)

    @property
    def elsewhere(self):
        size, x = self.settings.size, self.truths["test"]
        others = {}
        for plane in ("coronal", "sagittal"):
            brain = dj.BrainSliceDataset(
                "test", img_size=size, resolution=192 / max(size), plane=plane
            )
            picks = spread(range(len(brain)), self.settings.test)
            others[plane] = torch.stack([brain[i]["x"] for i in picks])
        phantom = torch.from_numpy(shepp_logan_phantom()).float()[None, None]
        phantom = torch.nn.functional.interpolate(phantom, size, mode="area")
        others["Shepp-Logan phantom"] = torch.cat([phantom, 0 * phantom], 1).repeat(len(x), 1, 1, 1)
        masks = {
            f"{rate}x acceleration": self.masks(4, acceleration=rate).step(len(x))
            for rate in (2, 6, 8)
        }
        usual, physics = self.masks(4).step, self.physics(4)
        return (
            {name: (other, usual(len(other)), physics) for name, other in others.items()}
            | {name: (x, params, physics) for name, params in masks.items()}
            | {f"noise x {f:g}": (x, usual(len(x)), self.physics(4, noise=f)) for f in (0.5, 2)}
        )

    def network(self, algorithm):
        return dj.UnrolledDnCNN(
            2, depth=self.settings.depth, width=self.settings.width, residual=algorithm == "pgd"
        )

    def diffusion(self) -> dj.ConditionalDDPM:
        """The DDPM of Table 5, with K evaluations of its network for an image."""
        size = self.settings.size[0]
        unet = dinv.models.ADMUNet(
            img_resolution=size,
            in_channels=4,
            out_channels=2,
            model_channels=32,
            channel_mult=(1, 1, 2) if size < 200 else (1, 2, 2, 4),
            num_blocks=1,
            attn_resolutions=(),
            dropout=0.0,
            pretrained=None,
        )
        return dj.ConditionalDDPM(unet, steps=self.settings.iterations)

    @property
    def shifts(self):
        return {"lesion": dj.Lesion(radius=max(2, self.settings.size[0] // 16), contrast=0.3)}

    @property
    def references(self):
        solver = partial(total_variation, self.settings.solver_steps)
        weights = (0.02, 0.03, 0.045, 0.07)
        return {"A^T y": Adjoint, "TV": partial(self.tuned, solver, weights)}


PROBLEMS: dict[str, type[Problem]] = {p.name: p for p in (Points, Seismic, MRI)}


def rotated(wavelet: torch.Tensor, degrees: float) -> torch.Tensor:
    """A wavelet of another phase, by its analytic signal."""
    turned = hilbert(wavelet.double().numpy()) * cmath.exp(1j * math.radians(degrees))
    return torch.from_numpy(turned.real).to(wavelet)


def peak(wavelet: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of its spectrum: the norm of the convolution of long traces."""
    return torch.fft.rfft(wavelet, 1024).abs().max()


def spread(indices: Sequence[int], count: int) -> list[int]:
    """At most so many of the indices, evenly spread, each once."""
    picks = torch.linspace(0, len(indices) - 1, min(count, len(indices)))
    return [indices[i] for i in picks.round().int().tolist()]
