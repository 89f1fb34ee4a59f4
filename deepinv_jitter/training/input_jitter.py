r"""Input jittering: noise on the measurements of training batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from deepinv.physics import Physics, StackedPhysics
from deepinv.utils.tensorlist import TensorList

from .. import checks
from ..attacks.balls import L2Ball
from ..attacks.noise import noise_levels
from ..attacks.parts import Measurements
from . import distributed
from .finite import finite
from .jitter import JitterTrainer
from .perturbations import Perturbation


class InputNoise(Perturbation):
    r""":math:`y + w`; its level follows from the first batch that counts where ``eps`` is given."""

    def __call__(self, trainer, x, y, physics) -> Measurements:
        level = self._level(trainer, y, physics)
        noisy = [_noisy(*pair, level, trainer.generator) for pair in pairs(y, physics)]
        return TensorList(noisy) if isinstance(y, TensorList) else noisy[0]

    def _level(self, trainer: Any, y: Measurements, physics: Physics) -> float:
        if trainer.sigma is not None:
            return trainer.sigma
        # Measurements that are not finite are left out on all processes, whatever the level is
        own = input_jitter_sigma(trainer.eps, y, physics) if finite(y) else None
        levels = [level for level in distributed.gathered(own) if level is not None]
        if self.found is None:
            self.found = sum(levels) / max(len(levels), 1)
        return self.found

    def learn(self, trainer: Any, found: float) -> None:
        trainer.sigma = found

    def state(self, trainer: Any) -> dict:
        return {"sigma": trainer.sigma, "eps": trainer.eps}

    def load(self, trainer: Any, checkpoint: dict) -> None:
        # It came from the first batch, which is long past; for another radius it is found anew
        if trainer.sigma is None and checkpoint.get("eps") == trainer.eps:
            trainer.sigma = checkpoint["sigma"]


@dataclass
class InputJitterTrainer(JitterTrainer):
    r"""
    Trainer for input jittering, noise on the measurements :math:`y \leftarrow y + w`, equation (7).

    The noise is white Gaussian, drawn anew for every training batch, on measured entries only;
    evaluation is on the measurements as they are. All else is :class:`JitterTrainer`'s, and a
    jittered model gets both noises.

    :param float, None sigma: standard deviation of each measured entry of :math:`w`, in the unit of
        the measurements.
    :param float, None eps: instead of ``sigma``, the :math:`\ell_2` radius to be robust against;
        ``sigma`` then follows in closed form from the first training batch, see
        :func:`input_jitter_sigma`.
    :param torch.Generator, None generator: source of the noise. Default: the global generator of
        the device.
    :raises TypeError: if the one given is no number.
    :raises ValueError: unless exactly one of ``sigma`` and ``eps`` is given, finite and not
        negative.

    The other parameters are those of :class:`JitterTrainer`.

    |sep|

    :Examples:

    >>> import deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=5)
    >>> model = dj.fit(
    ...     model, physics, dj.PointDataset(200), epochs=2, batch_size=100,
    ...     trainer=dj.InputJitterTrainer, sigma=0.05)
    """

    sigma: float | None = field(default=None, kw_only=True)
    eps: float | None = field(default=None, kw_only=True)
    generator: torch.Generator | None = field(default=None, kw_only=True)

    def __post_init__(self):
        if (self.sigma is None) == (self.eps is None):
            raise ValueError(
                "exactly one of sigma and eps must be given, got "
                f"sigma={self.sigma!r}, eps={self.eps!r}."
            )
        name = "eps" if self.sigma is None else "sigma"
        setattr(self, name, checks.real(name, getattr(self, name), low=0))
        super().__post_init__()
        self._perturbation = InputNoise()
        self._parts.append(self._perturbation)


def input_jitter_sigma(eps: float, y: torch.Tensor, physics: Physics) -> float:
    r"""
    Input-jitter level that gives the worst-case robustness of an :math:`\ell_2` ball, in closed
    form.

    After Krainovic et al. (NeurIPS 2023), who show that a linear denoiser trained with the right
    jitter is the one optimal in the worst case. For measurements :math:`y = s + z` with signal
    energy :math:`c = \mathbb{E}\|s\|^2` and noise energy :math:`q = \mathbb{E}\|z\|^2`, and the
    estimator :math:`\alpha y`, the worst case over :math:`\|e\| \leq \varepsilon` is, in high
    dimension, :math:`(\sqrt{\alpha^2 q + (1-\alpha)^2 c} + \alpha\varepsilon)^2`. With
    :math:`a = c + q` it is least at

    .. math::
        \alpha^* = \frac{1}{a} \left( c - \varepsilon \sqrt{\frac{cq}{a - \varepsilon^2}} \right),

    and training with jitter of energy :math:`\sigma^2 n` on the :math:`n` measured entries gives
    :math:`\alpha = c / (a + \sigma^2 n)`. Equal for :math:`\sigma^2 = (c/\alpha^* - a)/n`. For
    networks this is a starting point, not a rule.

    :param float eps: radius :math:`\varepsilon` of the ball, in the unit of the measurements; below
        the norm of the signal.
    :param torch.Tensor y: measurements, shape `(B, ...)`, from which the energy is estimated; of a
        stacked physics all parts together.
    :param deepinv.physics.Physics physics: the physics, with deepinv's Gaussian noise.
    :return: (:class:`float`) standard deviation of each measured entry.
    :raises TypeError: if ``eps`` is no number, ``y`` no tensor of real or complex numbers, or a
        list of such from a physics that is not stacked.
    :raises ValueError: if the physics has no Gaussian noise, ``y`` is not finite, or ``eps`` is
        negative or not below the norm of the signal.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> y = physics(torch.ones(50, 1, 16, 16))
    >>> round(dj.input_jitter_sigma(1.6, y, physics), 2)
    0.1
    """
    eps = checks.real("eps", eps, low=0)
    energy = noise = entries = 0.0
    for part, own in pairs(y, physics):
        checks.batch(y=part)
        precise = checks.widest(y.device)
        measured = L2Ball(0.0).support(part, own).flatten(1).sum(1).to(precise)
        levels = noise_levels(part, own)
        if levels is None:
            name = type(getattr(own, "noise_model", None)).__name__
            raise ValueError(
                "eps gives the level of input jittering for measurements with deepinv's "
                f"GaussianNoise, but the physics has {name}: give sigma, the standard deviation."
            )
        # Of complex noise the energy of both its parts; the same level for all of a sample
        levels = levels.detach().flatten(1)[:, 0].to(precise)
        energy += part.detach().abs().to(precise).square().flatten(1).sum(1).mean().item()
        noise += (levels.square() * measured).mean().item()
        entries += measured.mean().item()
    signal = max(energy - noise, 0.0)
    if not eps < math.sqrt(signal):
        raise ValueError(
            f"eps must be below the norm of the signal, here {math.sqrt(signal):.3g}, got {eps!r}."
        )
    shrinkage = (signal - eps * math.sqrt(signal * noise / (energy - eps**2))) / energy
    return math.sqrt(max(signal / shrinkage - energy, 0) / entries)


def pairs(y: torch.Tensor | TensorList, physics: Physics) -> list[tuple[torch.Tensor, Physics]]:
    """Each part of the measurements with the physics it comes from."""
    if not isinstance(y, TensorList):
        return [(y, physics)]
    if not isinstance(physics, StackedPhysics):
        raise TypeError(
            "measurements of several parts, a TensorList, need a deepinv StackedPhysics that tells "
            f"which part comes from where, got {type(physics).__name__}."
        )
    return list(zip(y, physics.physics_list, strict=True))


def _noisy(
    y: torch.Tensor, physics: Physics, sigma: float, generator: torch.Generator | None
) -> torch.Tensor:
    device = y.device if generator is None else generator.device
    w = torch.randn(y.shape, generator=generator, device=device, dtype=y.dtype)
    return y + sigma * w.to(y.device) * L2Ball(0.0).support(y, physics)
