r"""What an attack may do: the ball of allowed perturbations, and the entries it may touch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from deepinv.physics import LinearPhysics, Physics
from deepinv.utils import TensorList

from .. import checks
from .noise import noise_levels, noise_models
from .parts import Layout, Measurements
from .samples import check_pair, check_radius, column, per_sample, same_normal
from .support import Support, broadcast, check_support

DISTRIBUTIONS = ("sphere", "ball", "gaussian")


class Budget(ABC):
    r"""
    A ball :math:`\{\delta : \|\delta_i\| \leq \varepsilon_i\}` for each sample :math:`i`, on the
    support of a physics.

    Perturbations and gradients are taken to be finite, as those of an attack are: to look at their
    values at every step would cost more than the step on a GPU. NaN in one gives NaN.

    A subclass is a norm: it writes :meth:`norm`, :meth:`project`, :meth:`steepest` and a hook of
    the random draws. No method mixes the samples of a batch.

    Measurements of stacked physics, a :class:`deepinv.utils.TensorList`, have one ball over all
    parts together. Their perturbations are one tensor here, the parts flat and side by side, shape
    `(B, N)`; where only some of the parts are complex, those lie as pairs of real numbers.

    The parameters are those of :class:`L2Ball`.
    """

    def __init__(
        self,
        radius: float | torch.Tensor,
        *,
        relative_to: str | None = None,
        support: Support = "auto",
        domain: str = "measurement",
    ):
        checks.choice("relative_to", relative_to, (None, "y", "noise"))
        checks.choice("domain", domain, ("measurement", "image"))
        if domain == "image" and relative_to is not None:
            raise ValueError(
                "relative_to compares with measurements, so an image-domain budget is absolute, "
                f"got relative_to={relative_to!r}: give the radius in the unit of the image."
            )
        check_support(support)
        checks.constant("radius", radius, "set the radius of the budget as the training goes on")
        check_radius("radius", radius)
        self.radius = radius
        self.relative_to = relative_to
        self.domain = domain
        self._support = support

    @abstractmethod
    def norm(self, delta: torch.Tensor) -> torch.Tensor:
        r"""
        Norm of each sample.

        :param torch.Tensor delta: perturbation, shape `(B, ...)`.
        :return: (:class:`torch.Tensor`) shape `(B,)`, in single precision at least.
        """

    @abstractmethod
    def project(self, delta: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        r"""
        The nearest perturbation inside the ball.

        :param torch.Tensor delta: perturbation, shape `(B, ...)`.
        :param torch.Tensor eps: absolute radius, shape `(B,)`.
        :return: (:class:`torch.Tensor`) of the shape and type of ``delta``.
        """

    @abstractmethod
    def steepest(self, gradient: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        r"""
        The perturbation :math:`\arg\max_{\|\delta\| \leq \varepsilon} \langle g, \delta \rangle`;
        zero where the gradient is zero.

        :param torch.Tensor gradient: :math:`g`, shape `(B, ...)`.
        :param torch.Tensor eps: absolute radius, shape `(B,)`.
        :return: (:class:`torch.Tensor`) of the shape and type of ``gradient``.
        """

    @abstractmethod
    def _depth(
        self, sphere: torch.Tensor, entries: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """The random factor that makes a draw from the sphere one from the ball."""

    def radii(self, y: Measurements, physics: Physics) -> torch.Tensor:
        r"""
        The absolute radius of each sample.

        :param torch.Tensor, deepinv.utils.TensorList y: measurements, shape `(B, ...)`.
        :param deepinv.physics.Physics physics: the physics, asked for its noise by
            ``relative_to="noise"``.
        :return: (:class:`torch.Tensor`) :math:`\varepsilon`, shape `(B,)`.
        :raises TypeError: if ``y`` is no tensor of real or complex numbers, nor a list of such.
        :raises ValueError: if the radius does not fit the batch, is not finite in the precision of
            ``y``, or is relative to a noise that is not Gaussian or that is not there.
        """
        flat = Layout(y).pack(y)
        unit: float | torch.Tensor = 1.0
        if self.relative_to == "y":
            unit = self.norm(flat)
        elif self.relative_to == "noise":
            unit = self.noise_norm(y, physics)
            if not (unit.any() & ~unit.isnan().any()):
                got = dict.fromkeys(type(noise).__name__ for noise in noise_models(physics))
                raise ValueError(
                    "relative_to='noise' multiplies the norm of Gaussian noise, deepinv's "
                    "GaussianNoise of a level above 0 in all that is measured, got "
                    f"{' and '.join(got)}: give an absolute radius, or one with relative_to='y'."
                )
        return per_sample("radius", self.radius, flat, unit)

    def noise_norm(self, y: Measurements, physics: Physics) -> torch.Tensor:
        r"""
        The norm of the standard deviations of the physics' Gaussian noise on the support: for
        :class:`L2Ball` the expected norm of the noise, :math:`\sigma\sqrt{n}`.

        :param torch.Tensor, deepinv.utils.TensorList y: measurements, shape `(B, ...)`.
        :param deepinv.physics.Physics physics: the physics.
        :return: (:class:`torch.Tensor`) shape `(B,)`; NaN for an image-domain budget, or if the
            noise is not Gaussian, in all parts of a stacked physics.
        :raises TypeError: if ``y`` is no tensor of real or complex numbers, nor a list of such.
        :raises ValueError: if the noise level does not fit the batch.
        """
        levels = noise_levels(y, physics)
        if self.domain == "image" or levels is None:
            flat = Layout(y).pack(y)
            return torch.full((len(flat),), math.nan, device=flat.device)
        return self.norm(torch.where(self.support(y, physics), levels, 0))

    def zero(self, y: Measurements, physics: Physics) -> torch.Tensor:
        r"""
        No perturbation.

        :param torch.Tensor, deepinv.utils.TensorList y: measurements, shape `(B, ...)`.
        :param deepinv.physics.Physics physics: the physics.
        :return: (:class:`torch.Tensor`) zeros like ``y``, or like the image :math:`A^\top y`.
        :raises TypeError: if ``y`` is no tensor of real or complex numbers, nor a list of such, or
            the budget is in the image domain and the physics is not linear.
        """
        flat = Layout(y).pack(y)
        if self.domain == "measurement":
            return torch.zeros_like(flat)
        if not isinstance(physics, LinearPhysics):
            raise TypeError(
                "an image-domain budget needs a deepinv LinearPhysics, which carries the "
                f"perturbation to the measurements, got {type(physics).__name__}."
            )
        with torch.no_grad():
            return torch.zeros_like(physics.A_adjoint(y))

    def to_measurement(self, delta: torch.Tensor, physics: Physics) -> torch.Tensor:
        r"""
        What to add to the measurements: :math:`\delta` itself, or :math:`A\delta` for the image
        domain.

        :param torch.Tensor delta: perturbation in the domain of the budget.
        :param deepinv.physics.Physics physics: the physics.
        :return: (:class:`torch.Tensor`) perturbation like the measurements, in one tensor.
        """
        if self.domain == "measurement":
            return delta
        y = physics.A(delta)
        return Layout(y).pack(y)

    def support(self, y: Measurements, physics: Physics) -> torch.Tensor:
        r"""
        The entries a perturbation may touch.

        ``"auto"`` takes the entries which :math:`AA^\top n` (in the image domain:
        :math:`A^\top An`) reaches from random :math:`n`: for MRI and inpainting exactly the mask,
        whatever the physics calls it. A physics that is not linear has the whole space.

        :param torch.Tensor, deepinv.utils.TensorList y: measurements, shape `(B, ...)`.
        :param deepinv.physics.Physics physics: the physics.
        :return: (:class:`torch.Tensor`) ``True`` on the support, shape of the perturbation.
        :raises ValueError: if the given support does not broadcast to the perturbation.
        """
        layout = None if self.domain == "image" else Layout(y)
        zero = self.zero(y, physics)
        if isinstance(self._support, (torch.Tensor, TensorList)):
            return broadcast(self._support, zero if layout is None else layout.unpack(zero))
        if self._support is None or not isinstance(physics, LinearPhysics):
            return torch.ones_like(zero, dtype=torch.bool)
        n = same_normal(zero, torch.Generator().manual_seed(0))
        with torch.no_grad():
            if layout is None:
                return physics.A_adjoint(physics.A(n)) != 0
            return layout.pack(physics.A(physics.A_adjoint(layout.unpack(n)))) != 0

    def random(
        self,
        like: torch.Tensor,
        eps: torch.Tensor,
        generator: torch.Generator,
        distribution: str = "sphere",
        support: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""
        Draw a perturbation, in the same direction for every sample of the batch.

        So what a sample gets depends neither on its neighbours nor on the device or the precision.

        :param torch.Tensor like: gives shape, type and device, shape `(B, ...)`.
        :param torch.Tensor eps: absolute radius, shape `(B,)`.
        :param torch.Generator generator: source of the randomness, on the CPU.
        :param str distribution: ``"sphere"`` or ``"ball"``, both uniform (on the corners, for the
            cube); or ``"gaussian"`` noise that measures :math:`\varepsilon` in the sense of
            ``relative_to="noise"``, brought back into the ball where it leaves it. Default:
            ``"sphere"``.
        :param torch.Tensor, None support: ``True`` where the perturbation may differ from zero,
            shape `(B, ...)`. Default: everywhere.
        :return: (:class:`torch.Tensor`) perturbation inside the ball.
        :raises TypeError: if ``like`` is no tensor of real or complex numbers, or ``generator`` no
            :class:`torch.Generator`.
        :raises ValueError: if the distribution is unknown, or ``eps`` or ``support`` do not fit
            ``like``.
        """
        check_pair("like", like, eps)
        checks.instance("generator", generator, torch.Generator, "torch.Generator")
        if generator.device.type != "cpu":
            raise ValueError(f"generator must be on the CPU, got one on {generator.device}.")
        checks.choice("distribution", distribution, DISTRIBUTIONS)
        if support is None:
            support = torch.ones_like(like, dtype=torch.bool)
        if support.dtype != torch.bool or support.shape != like.shape:
            raise ValueError(
                f"support must be boolean, of shape {tuple(like.shape)}, got "
                f"{tuple(support.shape)} of {support.dtype}."
            )
        normal = torch.where(support, same_normal(like, generator), 0)
        if distribution == "gaussian":
            scale = eps / self.norm(support.to(eps.dtype)).clamp_min(1)
            return self.project((normal * column(scale, like)).to(like.dtype), eps)
        sphere = self.steepest(normal, eps)
        if distribution == "sphere":
            return sphere
        entries = support.flatten(1).sum(1).clamp_min(1).to(eps.dtype)
        return (sphere * self._depth(sphere, entries, generator)).to(like.dtype)

    def __repr__(self) -> str:
        given = isinstance(self._support, (torch.Tensor, TensorList))
        settings = {
            "relative_to": (self.relative_to, None),
            "support": ("mask" if given else self._support, "auto"),
            "domain": (self.domain, "measurement"),
        }
        told = [f", {k}={v!r}" for k, (v, default) in settings.items() if v != default]
        return f"{type(self).__name__}({self.radius}{''.join(told)})"
