r"""How large the noise of a physics is, entry by entry."""

from __future__ import annotations

import math

import torch
from deepinv.physics import GaussianNoise, NoiseModel, Physics, StackedPhysics
from deepinv.utils import TensorList

from .parts import Layout, Measurements, named_parts
from .samples import column, per_sample


def noise_levels(y: Measurements, physics: Physics) -> torch.Tensor | None:
    """The standard deviation of each entry, in one tensor; nothing if the noise is not Gaussian."""
    layout, noises = Layout(y), noise_models(physics)
    gaussian = [noise for noise in noises if isinstance(noise, GaussianNoise)]
    if len(gaussian) < len(noises):
        return None
    levels = []
    for i, (part, noise) in enumerate(zip(named_parts("y", y).values(), gaussian, strict=True)):
        # Noise of level -0.1 or 0.1j is noise of level 0.1
        sigma = noise.sigma.abs().reshape(-1)
        sigma = column(per_sample("the physics' sigma", sigma, part), part)
        # The variance of a complex number is shared by its parts, where these lie in pairs
        pairs = layout.in_parts and layout.in_pairs[i]
        levels.append((sigma / math.sqrt(2) if pairs else sigma).expand(part.shape))
    return layout.pack(TensorList(levels) if layout.in_parts else levels[0])


def noise_models(physics: Physics) -> list[NoiseModel | None]:
    """That of each part."""
    parts = physics.physics_list if isinstance(physics, StackedPhysics) else [physics]
    return [getattr(part, "noise_model", None) for part in parts]
