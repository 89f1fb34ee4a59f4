r"""Single-coil MRI of a brain, or of fastMRI's files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import deepinv as dinv
import settings
import torch
from problem import Problem
from references import Adjoint, total_variation
from skimage.data import shepp_logan_phantom

import deepinv_jitter as dj


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


def spread(indices: Sequence[int], count: int) -> list[int]:
    """At most so many of the indices, evenly spread, each once."""
    picks = torch.linspace(0, len(indices) - 1, min(count, len(indices)))
    return [indices[i] for i in picks.round().int().tolist()]
