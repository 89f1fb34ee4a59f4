r"""
The paper's risks of a reconstructor :math:`H_\theta`, estimated with standard errors.

Every function runs the model in evaluation mode and leaves it as it was. Draws come one after the
other: their number costs time, not memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import nn

from .. import checks
from ..attacks.balls import L2Ball
from ..attacks.samples import column, precision
from ..memory import evaluated
from ..optim.noise import GaussianJitter

#: A truth, and its measurements with what is added to them.
Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Risk:
    r"""
    A risk, for every sample of a batch.

    :param torch.Tensor values: expected squared error of each sample in the unit of ``x`` squared,
        summed over its entries, shape `(B,)`.
    :param torch.Tensor standard_errors: standard error of each value over the random draws, shape
        `(B,)`; 0 where nothing is drawn.
    """

    values: torch.Tensor
    standard_errors: torch.Tensor

    @property
    def mean(self) -> float:
        """The mean over the samples, an estimate of the expectation over the data."""
        return self.values.mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`mean` over the samples, draws included; NaN for one sample."""
        count = len(self.values)
        return self.values.std().item() / math.sqrt(count) if count > 1 else math.nan


def average_case_risk(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    physics: Physics,
    *,
    sigma_e: float,
    samples: int = 32,
    generator: torch.Generator | None = None,
) -> Risk:
    r"""
    Average-case robustness risk :math:`\mathbb{E}_e\|x - H_\theta(y+e)\|_2^2`, Definition 3.1 in
    the form of equation (11).

    The noise :math:`e` is Gaussian, of standard deviation :math:`\sigma_e/\sqrt{n}` on the
    :math:`n` measured entries of a sample, so that :math:`\mathbb{E}\|e\|_2^2 = \sigma_e^2`, and
    zero where :math:`A` cannot reach, such as k-space off the mask. Eq. (2) of the paper writes
    :math:`e = Ag`; for denoising, where it is analysed, this is the same.

    :param torch.nn.Module model: :math:`H_\theta`, called as ``model(y, physics)``.
    :param torch.Tensor x: ground truth, shape `(B, ...)`.
    :param torch.Tensor y: measurements, shape `(B, ...)`.
    :param deepinv.physics.Physics physics: forward operator.
    :param float sigma_e: :math:`\sigma_e \geq 0`, root mean square norm of :math:`e`, in the unit
        of ``y``.
    :param int samples: number of draws, at least 2. Default: 32.
    :param torch.Generator, None generator: source of the randomness. ``None`` (default) uses the
        global generator; a generator leaves it untouched.
    :return: (:class:`Risk`) the risk of each sample.
    :raises TypeError: if an argument is of another type.
    :raises ValueError: if ``sigma_e`` is negative, not finite or so large that squares overflow,
        there are fewer than 2 draws, ``x`` and ``y`` do not belong together or are not finite, or
        the reconstruction has not the shape of ``x`` or an error that is not finite.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising()
    >>> model = dj.UnfoldedGD(dj.PointMLP(), max_iter=3)
    >>> x = torch.zeros(50, 2)
    >>> risk = dj.average_case_risk(model, x, x, physics, sigma_e=0.01)
    >>> risk.values.shape, risk.mean > 0
    (torch.Size([50]), True)
    """
    noise = GaussianJitter(checks.real("sigma_e", sigma_e, 0), "norm", generator)
    samples = checks.whole("samples", samples, 2)
    checks.batch(x=x, y=y)
    # Noise on all entries becomes noise of the same mean square norm on the measured ones
    support = L2Ball(1.0).support(y, physics)
    measured = support.flatten(1).sum(1).clamp_min(1).to(precision(y))
    weight = support * column((support[0].numel() / measured).sqrt().to(y.dtype), y)
    return _risk(model, physics, samples, lambda: (x, y + weight * noise(y)))


def generalization_risk(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    physics: LinearPhysics,
    *,
    sigma_g: float,
    samples: int = 32,
    generator: torch.Generator | None = None,
) -> Risk:
    r"""
    Generalisation risk :math:`\mathbb{E}_g\|x+g - H_\theta(y+Ag)\|_2^2`, Definition 3.2.

    The change :math:`g` of the truth is Gaussian, of standard deviation :math:`\sigma_g/\sqrt{n}`
    on the :math:`n` entries of a sample: :math:`\mathbb{E}\|g\|_2^2 = \sigma_g^2`.

    :param torch.nn.Module model: :math:`H_\theta`, called as ``model(y, physics)``.
    :param torch.Tensor x: ground truth, shape `(B, ...)`.
    :param torch.Tensor y: measurements, shape `(B, ...)`.
    :param deepinv.physics.LinearPhysics physics: :math:`A`, linear.
    :param float sigma_g: :math:`\sigma_g \geq 0`, root mean square norm of :math:`g`, in the unit
        of ``x``.
    :param int samples: number of draws, at least 2. Default: 32.
    :param torch.Generator, None generator: source of the randomness. ``None`` (default) uses the
        global generator; a generator leaves it untouched.
    :return: (:class:`Risk`) the risk of each sample.
    :raises TypeError: if the physics is not linear, or an argument is of another type.
    :raises ValueError: as for :func:`average_case_risk`.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> physics = dj.SeismicConvolution()
    >>> model = dj.UnfoldedGD(dj.UnrolledDnCNN(1, depth=3, width=4), max_iter=2)
    >>> x = torch.zeros(2, 1, 32, 16)
    >>> dj.generalization_risk(model, x, physics(x), physics, sigma_g=0.1, samples=4).values.shape
    torch.Size([2])
    """
    noise = GaussianJitter(checks.real("sigma_g", sigma_g, 0), "norm", generator)
    samples = checks.whole("samples", samples, 2)
    checks.batch(x=x, y=y)
    if not isinstance(physics, LinearPhysics):
        raise TypeError(f"physics must be linear, y + A(g), got {type(physics).__name__}.")

    def draw() -> Pair:
        g = noise(x)
        e = physics.A(g)
        _check_shapes("y and the measurements of x", y, e)
        return x + g, y + e

    return _risk(model, physics, samples, draw)


def worst_case_risk(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    physics: Physics,
    *,
    attack: Callable[[nn.Module, torch.Tensor, torch.Tensor, Physics], torch.Tensor],
) -> Risk:
    r"""
    Risk :math:`\|x - H_\theta(y+\delta)\|_2^2` under the perturbation an attack finds, the inner
    problem of equation (6): a lower bound of the worst case, as good as the attack.

    :param torch.nn.Module model: :math:`H_\theta`, called as ``model(y, physics)``.
    :param torch.Tensor x: ground truth, shape `(B, ...)`.
    :param torch.Tensor y: measurements, shape `(B, ...)`.
    :param deepinv.physics.Physics physics: forward operator.
    :param Callable attack: ``attack(model, x, y, physics)`` returns :math:`\delta`, of the shape of
        ``y``. It sees the model in evaluation mode.
    :return: (:class:`Risk`) the risk of each sample, with standard errors 0.
    :raises TypeError: if an argument, or the perturbation, is of another type.
    :raises ValueError: as for :func:`average_case_risk`, or if the perturbation has not the shape
        of ``y``.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising()
    >>> model = dj.UnfoldedGD(dj.PointMLP(), max_iter=3)
    >>> x = torch.zeros(50, 2)
    >>> attack = dj.FrankWolfeAttack(dj.L2Ball(0.01), steps=3)
    >>> dj.worst_case_risk(model, x, x, physics, attack=attack).standard_errors.any()
    tensor(False)
    """
    checks.batch(x=x, y=y)
    if not callable(attack):
        raise TypeError(
            f"attack must be callable as attack(model, x, y, physics), got {type(attack).__name__}."
        )

    def draw() -> Pair:
        # For attacks that need gradients and do not ask for them
        with torch.enable_grad():
            delta = attack(model, x, y, physics)
        _check_shapes("what the attack returns and y", delta, y)
        return x, y + delta

    return _risk(model, physics, 1, draw)


def _check_shapes(names: str, a: torch.Tensor, b: torch.Tensor) -> None:
    checks.instance(names.split(" and ")[0], a, torch.Tensor, "torch.Tensor")
    checks.alike(names, "shape", [tuple(a.shape), tuple(b.shape)])


def _risk(model: nn.Module, physics: Physics, count: int, draw: Callable[[], Pair]) -> Risk:
    """Mean and standard error of the squared errors of draws, with the model in evaluation mode."""
    checks.instance("model", model, nn.Module, "torch.nn.Module")
    errors = []
    with evaluated(model), torch.no_grad():
        for _ in range(count):
            x, y = draw()
            x_net = model(y, physics)
            _check_shapes("what the model returns and x", x_net, x)
            error = (x_net - x).abs()
            errors.append(error.to(precision(error)).square().flatten(1).sum(1))
    values = torch.stack(errors)
    # Once per risk; a mean hides which draw or which sample it was
    finite = values.sum(0).isfinite()
    if not finite.all():
        raise ValueError(
            "the squared errors of a risk must be finite, got NaN or infinity for "
            f"{int((~finite).sum())} of {len(finite)} samples: the model diverges there, or the "
            "noise is too large."
        )
    spread = values.std(0) if count > 1 else torch.zeros_like(values[0])
    return Risk(values.mean(0), spread / math.sqrt(count))
