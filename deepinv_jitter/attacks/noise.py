r"""How large the noise of a physics is, entry by entry."""

from __future__ import annotations

import math

import torch
from deepinv.physics import GaussianNoise, NoiseModel, Physics, StackedPhysics, ZeroNoise
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


def why_no_norm(physics: Physics) -> str:
    """What to say of a physics whose noise has no norm, or a norm of zero."""
    noises = noise_models(physics)
    names = " and ".join(dict.fromkeys(type(noise).__name__ for noise in noises))
    advice = "give an absolute radius, or one with relative_to='y'"
    if all(isinstance(noise, GaussianNoise) for noise in noises):
        why = f"noise of level 0 in {names}"
    elif all(isinstance(noise, (ZeroNoise, type(None))) for noise in noises):
        why = "a physics without noise"
    else:
        return (
            "relative_to='noise' needs Gaussian noise, deepinv's GaussianNoise, in all that is "
            f"measured, got {names}: {advice}."
        )
    return f"relative_to='noise' multiplies the norm of the noise, got {why}: {advice}."


def noise_models(physics: Physics) -> list[NoiseModel | None]:
    """That of each part."""
    parts = physics.physics_list if isinstance(physics, StackedPhysics) else [physics]
    return [getattr(part, "noise_model", None) for part in parts]
