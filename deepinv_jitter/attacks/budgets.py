r"""What an attack may do: the ball of allowed perturbations, and the entries it may touch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from numbers import Real

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, Physics

from .. import checks

UNITS = (None, "y", "noise")


DOMAINS = ("measurement", "image")


LAWS = ("sphere", "ball", "gaussian")


class Budget(ABC):
    r"""
    A ball :math:`\{\delta : \|\delta_i\| \leq \varepsilon_i\}` for each sample :math:`i`, on the
    support of a physics.

    Perturbations and gradients are taken to be finite, as those of an attack are: to look at their
    values at every step would cost more than the step on a GPU. NaN in one gives NaN.

    A subclass is a norm: it writes :meth:`norm`, :meth:`project`, :meth:`steepest` and the two
    hooks of the random draws and of the noise unit. No method mixes the samples of a batch.

    The parameters are those of :class:`L2Ball`.
    """

    def __init__(
        self,
        radius: float | torch.Tensor,
        *,
        relative_to: str | None = None,
        support: str | torch.Tensor | None = "auto",
        domain: str = "measurement",
    ):
        if relative_to not in UNITS:
            raise ValueError(
                f"relative_to must be one of {UNITS}, got {relative_to!r}."
            )
        if domain not in DOMAINS:
            raise ValueError(f"domain must be one of {DOMAINS}, got {domain!r}.")
        if domain == "image" and relative_to is not None:
            raise ValueError(
                "relative_to compares with measurements, so an image-domain budget is absolute, "
                f"got relative_to={relative_to!r}: give the radius in the unit of the image."
            )
        _check_given_support(support)
        _check_radius("radius", radius)
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
    def _noise_norm(self, entries: torch.Tensor) -> torch.Tensor:
        """What standard normal noise on that many entries measures, shape `(B,)`."""

    @abstractmethod
    def _depth(
        self, sphere: torch.Tensor, entries: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """The random factor that makes a draw from the sphere one from the ball."""

    def radii(self, y: torch.Tensor, physics: Physics) -> torch.Tensor:
        r"""
        The absolute radius of each sample.

        :param torch.Tensor y: measurements, shape `(B, ...)`.
        :param deepinv.physics.Physics physics: the physics, asked for its noise by
            ``relative_to="noise"``.
        :return: (:class:`torch.Tensor`) :math:`\varepsilon`, shape `(B,)`.
        :raises TypeError: if ``y`` is no tensor of real or complex numbers.
        :raises ValueError: if the radius does not fit the batch, is not finite in the precision of
            ``y``, or is relative to a noise that is not Gaussian.
        """
        checks.tensor("y", y)
        radius = per_sample("radius", self.radius, y)
        radii = radius * self._unit(y, physics)
        _check_range("radius", radii, y)
        return radii

    def _unit(self, y: torch.Tensor, physics: Physics) -> torch.Tensor:
        """What the radius multiplies."""
        if self.relative_to == "y":
            return self.norm(y)
        if self.relative_to == "noise":
            noise = getattr(physics, "noise_model", None)
            if not isinstance(noise, GaussianNoise):
                raise ValueError(
                    "relative_to='noise' needs a physics with deepinv's GaussianNoise, got "
                    f"{type(noise).__name__}: give an absolute radius or relative_to='y'."
                )
            entries = self.support(y, physics).flatten(1).sum(1).to(_precision(y))
            sigma = per_sample("the physics' sigma", noise.sigma.reshape(-1), y)
            return sigma * self._noise_norm(entries)
        return torch.ones((), device=y.device)

    def zero(self, y: torch.Tensor, physics: Physics) -> torch.Tensor:
        r"""
        No perturbation.

        :param torch.Tensor y: measurements, shape `(B, ...)`.
        :param deepinv.physics.Physics physics: the physics.
        :return: (:class:`torch.Tensor`) zeros like ``y``, or like the image :math:`A^\top y`.
        :raises TypeError: if ``y`` is no tensor of real or complex numbers, or the budget is in the
            image domain and the physics is not linear.
        """
        checks.tensor("y", y)
        if self.domain == "measurement":
            return torch.zeros_like(y)
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
        :return: (:class:`torch.Tensor`) perturbation like the measurements.
        """
        return delta if self.domain == "measurement" else physics.A(delta)

    def support(self, y: torch.Tensor, physics: Physics) -> torch.Tensor:
        r"""
        The entries a perturbation may touch.

        ``"auto"`` takes the entries which :math:`AA^\top n` (in the image domain:
        :math:`A^\top An`) reaches from random :math:`n`: for MRI and inpainting exactly the mask,
        whatever the physics calls it. A physics that is not linear has the whole space.

        :param torch.Tensor y: measurements, shape `(B, ...)`.
        :param deepinv.physics.Physics physics: the physics.
        :return: (:class:`torch.Tensor`) ``True`` on the support, shape of the perturbation.
        :raises ValueError: if the given support does not broadcast to the perturbation.
        """
        zero = self.zero(y, physics)
        whole = torch.ones_like(zero, dtype=torch.bool)
        if isinstance(self._support, torch.Tensor):
            try:
                return (self._support.to(zero.device) != 0).expand_as(zero)
            except RuntimeError as error:
                raise ValueError(
                    "support must broadcast to the perturbation, of shape "
                    f"{tuple(zero.shape)}, got {tuple(self._support.shape)}."
                ) from error
        if self._support is None or not isinstance(physics, LinearPhysics):
            return whole
        noise = _same_normal(zero, torch.Generator().manual_seed(0))
        with torch.no_grad():
            if self.domain == "measurement":
                return physics.A(physics.A_adjoint(noise)) != 0
            return physics.A_adjoint(physics.A(noise)) != 0

    def random(
        self,
        like: torch.Tensor,
        eps: torch.Tensor,
        generator: torch.Generator,
        law: str = "sphere",
        support: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""
        Draw a perturbation, in the same direction for every sample of the batch.

        So what a sample gets depends neither on its neighbours nor on the device or the precision.

        :param torch.Tensor like: gives shape, type and device, shape `(B, ...)`.
        :param torch.Tensor eps: absolute radius, shape `(B,)`.
        :param torch.Generator generator: source of the randomness, on the CPU.
        :param str law: ``"sphere"`` or ``"ball"``, both uniform (on the corners, for the cube); or
            ``"gaussian"`` noise that measures :math:`\varepsilon` in the sense of
            ``relative_to="noise"``, brought back into the ball where it leaves it. Default:
            ``"sphere"``.
        :param torch.Tensor, None support: ``True`` where the perturbation may differ from zero,
            shape `(B, ...)`. Default: everywhere.
        :return: (:class:`torch.Tensor`) perturbation inside the ball.
        :raises TypeError: if ``like`` is no tensor of real or complex numbers, or ``generator`` no
            :class:`torch.Generator`.
        :raises ValueError: if the law is unknown, or ``eps`` or ``support`` do not fit ``like``.
        """
        checks.tensor("like", like)
        if not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator must be a torch.Generator, got {type(generator).__name__}."
            )
        if generator.device.type != "cpu":
            raise ValueError(
                f"generator must be on the CPU, got one on {generator.device}."
            )
        if law not in LAWS:
            raise ValueError(f"law must be one of {LAWS}, got {law!r}.")
        if support is None:
            support = torch.ones_like(like, dtype=torch.bool)
        if support.dtype != torch.bool or support.shape != like.shape:
            raise ValueError(
                f"support must be boolean, of shape {tuple(like.shape)}, got "
                f"{tuple(support.shape)} of {support.dtype}."
            )
        _check_eps(eps, like)
        entries = support.flatten(1).sum(1).clamp_min(1).to(eps.dtype)
        normal = torch.where(support, _same_normal(like, generator), 0)
        if law == "gaussian":
            scale = eps / self._noise_norm(entries)
            return self.project((normal * column(scale, like)).to(like.dtype), eps)
        sphere = self.steepest(normal, eps)
        if law == "sphere":
            return sphere
        return (sphere * self._depth(sphere, entries, generator)).to(like.dtype)

    def __repr__(self) -> str:
        support = "mask" if isinstance(self._support, torch.Tensor) else self._support
        return (
            f"{type(self).__name__}({self.radius}, relative_to={self.relative_to!r}, "
            f"support={support!r}, domain={self.domain!r})"
        )


class L2Ball(Budget):
    r"""
    Perturbations of bounded energy, :math:`\|\delta_i\|_2 \leq \varepsilon_i` for each sample.

    By default the perturbation is added to the measurements and touches measured entries only. In
    the image domain it is an image :math:`\delta_x`, and the model sees :math:`y + A\delta_x`.

    :param float, torch.Tensor radius: one number, or one per sample, shape `(B,)`; not negative. In
        the unit of the measurements (for the image domain, of the image) unless ``relative_to`` is
        given.
    :param str, None relative_to: what the radius multiplies: ``"y"``, the norm of each sample's
        measurements; ``"noise"``, the expected norm :math:`\sigma\sqrt{n}` of the physics' Gaussian
        noise on the :math:`n` entries of the support. Default: ``None``, nothing.
    :param str, torch.Tensor, None support: entries that may be perturbed: ``"auto"``, those the
        physics measures (see :meth:`Budget.support`); a tensor non-zero on them that broadcasts to
        the perturbation; ``None``, all. Default: ``"auto"``.
    :param str domain: ``"measurement"`` or ``"image"``. Default: ``"measurement"``.
    :raises TypeError: if ``radius`` is no number or tensor of such.
    :raises ValueError: if an argument is none of the above, ``support`` lets nothing be perturbed,
        or an image-domain budget is not absolute.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> y = torch.ones(3, 1, 4, 4)
    >>> dj.L2Ball(0.5, relative_to="y").radii(y, physics)
    tensor([2., 2., 2.])
    >>> dj.L2Ball(2.0, relative_to="noise").radii(y, physics)
    tensor([0.8000, 0.8000, 0.8000])
    """

    def norm(self, delta: torch.Tensor) -> torch.Tensor:
        r""":math:`\|\delta_i\|_2`, see :class:`Budget`."""
        checks.tensor("delta", delta)
        peak, scaled = _scaled(delta)
        return peak * torch.linalg.vector_norm(scaled, dim=1)

    def project(self, delta: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        r""":math:`\delta_i \min(1, \varepsilon_i / \|\delta_i\|_2)`, see :class:`Budget`."""
        norm = self.norm(delta)
        _check_eps(eps, delta)
        factor = torch.where(norm <= eps, 1.0, _inside(eps, delta) / norm)
        return (delta * column(factor, delta)).to(delta.dtype)

    def steepest(self, gradient: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        r""":math:`\varepsilon_i\, g_i / \|g_i\|_2`, see :class:`Budget`."""
        checks.tensor("gradient", gradient)
        _check_eps(eps, gradient)
        peak, scaled = _scaled(gradient)
        # The largest entry is scaled to 1: the norm is smaller where all entries are zero, only
        length = torch.linalg.vector_norm(scaled, dim=1).clamp_min(1)
        unit = scaled / length[:, None]
        out = unit.reshape(gradient.shape) * column(_inside(eps, gradient), gradient)
        return out.to(gradient.dtype)

    def _noise_norm(self, entries: torch.Tensor) -> torch.Tensor:
        return entries.sqrt()

    def _depth(
        self, sphere: torch.Tensor, entries: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        # The volume of a ball grows with the power of its dimension
        freedom = entries * (2 if sphere.is_complex() else 1)
        depth = torch.rand(1, generator=generator).to(entries.device)
        return column(depth ** (1 / freedom), sphere)


class LinfBall(Budget):
    r"""
    Perturbations of bounded size, :math:`|\delta_{ij}| \leq \varepsilon_i` for each entry :math:`j`
    of sample :math:`i`.

    Complex tensors are bounded in modulus; the real and the imaginary part of images in two real
    channels each by themselves.

    :param float, torch.Tensor radius: as for :class:`L2Ball`.
    :param str, None relative_to: ``"y"``, the largest modulus in each sample's measurements;
        ``"noise"``, the standard deviation :math:`\sigma` of the physics' Gaussian noise. Default:
        ``None``, an absolute radius.
    :param str, torch.Tensor, None support: as for :class:`L2Ball`. Default: ``"auto"``.
    :param str domain: ``"measurement"`` or ``"image"``. Default: ``"measurement"``.
    :raises TypeError: if ``radius`` is no number or tensor of such.
    :raises ValueError: if an argument is none of the above, ``support`` lets nothing be perturbed,
        or an image-domain budget is not absolute.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> dj.LinfBall(0.1).steepest(torch.tensor([[3.0, 0.0, -2.0]]), eps=torch.tensor([0.1]))
    tensor([[ 0.1000,  0.0000, -0.1000]])
    """

    def norm(self, delta: torch.Tensor) -> torch.Tensor:
        r""":math:`\max_j |\delta_{ij}|`, see :class:`Budget`."""
        checks.tensor("delta", delta)
        return _scaled(delta)[0]

    def project(self, delta: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        r"""Each entry cut to :math:`\varepsilon_i` in modulus, see :class:`Budget`."""
        checks.tensor("delta", delta)
        _check_eps(eps, delta)
        size = delta.abs().to(eps.dtype)
        factor = torch.where(
            size <= column(eps, delta), 1.0, column(_inside(eps, delta), delta) / size
        )
        return (delta * factor).to(delta.dtype)

    def steepest(self, gradient: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        r""":math:`\varepsilon_i \operatorname{sign}(g_{ij})`, see :class:`Budget`."""
        checks.tensor("gradient", gradient)
        _check_eps(eps, gradient)
        out = torch.sgn(gradient) * column(_inside(eps, gradient), gradient)
        return out.to(gradient.dtype)

    def _noise_norm(self, entries: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(entries)

    def _depth(
        self, sphere: torch.Tensor, entries: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        depth = torch.rand(sphere.shape[1:], generator=generator).to(sphere.device)
        return depth.sqrt() if sphere.is_complex() else depth


def per_sample(name: str, value: float | torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A checked radius as one number per sample of y, in single precision at least."""
    value = _check_radius(name, value)
    if value.ndim and value.shape not in ((1,), (len(y),)):
        raise ValueError(
            f"{name} must be a number or one number per sample, shape ({len(y)},), got shape "
            f"{tuple(value.shape)}."
        )
    radii = value.to(y.device, _precision(y)).expand(len(y))
    _check_range(name, radii, y)
    return radii


def column(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One number per sample, shaped to multiply a tensor of shape `(B, ...)`."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def _check_radius(name: str, value: float | torch.Tensor) -> torch.Tensor:
    """The radius as a tensor, a number in double precision."""
    kind = value.dtype if isinstance(value, torch.Tensor) else type(value)
    no_number = kind in (bool, torch.bool) or getattr(kind, "is_complex", False)
    if not isinstance(value, (Real, torch.Tensor)) or no_number:
        raise TypeError(f"{name} must be a number or a tensor of such, got {value!r}.")
    if isinstance(value, torch.Tensor) and value.ndim > 1:
        raise ValueError(
            f"{name} must be a number or one number per sample, got shape {tuple(value.shape)}."
        )
    if not isinstance(value, torch.Tensor):
        value = torch.tensor(checks.number(name, value, Real, 0), dtype=torch.float64)
    if not bool((value.isfinite() & (value >= 0)).all()):
        raise ValueError(f"{name} must be finite and at least 0, got {value}.")
    return value


def _check_range(name: str, radii: torch.Tensor, y: torch.Tensor) -> None:
    """A radius must not overflow in the type of the perturbation."""
    if not (radii <= torch.finfo(y.dtype).max).all():
        raise ValueError(
            f"{name} must be finite in the precision of y, {y.dtype}, got {radii.tolist()}."
        )


def _check_eps(eps: torch.Tensor, like: torch.Tensor) -> None:
    """The shape alone: the values would be looked at once per step of an attack."""
    if not isinstance(eps, torch.Tensor) or eps.shape not in ((1,), (len(like),)):
        got = tuple(eps.shape) if isinstance(eps, torch.Tensor) else repr(eps)
        raise ValueError(
            f"eps must be a tensor with one radius per sample, shape ({len(like)},), got {got}."
        )
    if eps.device != like.device:
        raise ValueError(
            f"eps must be on the device of the perturbation, {like.device}, got {eps.device}."
        )


def _check_given_support(support: str | torch.Tensor | None) -> None:
    if isinstance(support, torch.Tensor):
        if not support.any() or not support.isfinite().all():
            raise ValueError(
                "support must be finite and not zero everywhere, where nothing may be perturbed, "
                f"got a tensor of shape {tuple(support.shape)} that is not."
            )
    elif support is not None and not (isinstance(support, str) and support == "auto"):
        raise ValueError(f"support must be 'auto', a tensor or None, got {support!r}.")


def _precision(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.abs().dtype, torch.float32)


def _scaled(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest modulus of each sample, shape `(B,)`, and the samples divided by it, flat.

    So norms neither overflow nor vanish, however large or small the gradient is.
    """
    flat = tensor.flatten(1)
    peak = flat.abs().amax(1).to(_precision(tensor))
    return peak, flat / peak.clamp_min(torch.finfo(peak.dtype).tiny)[:, None]


def _inside(eps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A radius whose rounding, in the type of the perturbation, stays within eps."""
    return eps * (1 - 2 * torch.finfo(like.dtype).eps)


def _same_normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers, the same for every sample, device and precision."""
    dtype = torch.complex64 if like.is_complex() else torch.float32
    draw = torch.randn(like.shape[1:], generator=generator, dtype=dtype)
    return draw.to(like).expand_as(like)
