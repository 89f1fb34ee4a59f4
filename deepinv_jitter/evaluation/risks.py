r"""
The paper's risks of a reconstructor :math:`H_\theta`, estimated with standard errors, and its
theory in numbers.

Every function runs the model in evaluation mode and leaves it as it was. Draws come one after the
other: their number costs time, not memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

import torch
from deepinv.optim import BaseOptim
from deepinv.optim.optim_iterators import GDIteration
from deepinv.physics import Denoising, LinearPhysics, Physics
from torch import nn

from .. import checks
from ..attacks.balls import L2Ball
from ..attacks.state import evaluated
from ..optim.fidelities import TiltedFidelity
from ..optim.iterators import JitteredIterator, innermost
from ..optim.jittering import jittered
from ..optim.noise import GaussianJitter


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
    the form of eq. (11).

    The noise :math:`e` is Gaussian with :math:`\mathbb{E}\|e\|_2^2 = \sigma_e^2` for every sample:
    with standard deviation :math:`\sigma_e/\sqrt{n}` on :math:`n` measured entries, and zero on the
    others: those which :math:`A` cannot reach, such as k-space off the mask. Eq. (2) of the paper
    writes :math:`e = Ag`; for denoising, where it is analysed, this is the same.

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
    :raises TypeError: if ``model`` is no module, ``x`` or ``y`` no tensor of real or complex
        numbers, or another argument of another type.
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
    law = _law("sigma_e", sigma_e, generator)
    checks.batch(x=x, y=y)
    weight = _support_weight(y, physics)
    return _risk(model, samples, lambda: _error(model, x, y + weight * law(y), physics))


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

    The change :math:`g` of the truth is Gaussian with :math:`\mathbb{E}\|g\|_2^2 = \sigma_g^2` for
    every sample, a standard deviation of :math:`\sigma_g/\sqrt{n}` on its :math:`n` entries. The
    target moves with it.

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
    :raises TypeError: if the physics is not linear, ``model`` is no module, ``x`` or ``y`` no
        tensor of real or complex numbers, or another argument of another type.
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
    law = _law("sigma_g", sigma_g, generator)
    checks.batch(x=x, y=y)
    if not isinstance(physics, LinearPhysics):
        raise TypeError(
            f"physics must be linear, y + A(g), got {type(physics).__name__}."
        )

    def draw() -> torch.Tensor:
        g = law(x)
        e = physics.A(g)
        if e.shape != y.shape:
            raise ValueError(
                f"y must have the shape of the measurements of x, {tuple(e.shape)}, got "
                f"{tuple(y.shape)}."
            )
        return _error(model, x + g, y + e, physics)

    return _risk(model, samples, draw)


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
    problem of eq. (6).

    It is a lower bound of the worst case, as good as the attack.

    :param torch.nn.Module model: :math:`H_\theta`, called as ``model(y, physics)``.
    :param torch.Tensor x: ground truth, shape `(B, ...)`.
    :param torch.Tensor y: measurements, shape `(B, ...)`.
    :param deepinv.physics.Physics physics: forward operator.
    :param Callable attack: ``attack(model, x, y, physics)`` returns :math:`\delta`, of the shape of
        ``y``. It sees the model in evaluation mode.
    :return: (:class:`Risk`) the risk of each sample, with standard errors 0.
    :raises TypeError: if ``model`` is no module, ``x``, ``y`` or the perturbation no tensor, or
        ``attack`` is not callable.
    :raises ValueError: if ``x`` and ``y`` do not belong together or are not finite, the
        perturbation has not the shape of ``y``, or the reconstruction not that of ``x`` or an error
        that is not finite.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising()
    >>> model = dj.UnfoldedGD(dj.PointMLP(), max_iter=3)
    >>> x = torch.zeros(50, 2)
    >>> def attack(model, x, y, physics):
    ...     return torch.full_like(y, 0.01)
    >>> risk = dj.worst_case_risk(model, x, x, physics, attack=attack)
    >>> risk.standard_errors.any()
    tensor(False)
    """
    checks.batch(x=x, y=y)
    if not callable(attack):
        raise TypeError(
            f"attack must be callable as attack(model, x, y, physics), got {type(attack).__name__}."
        )
    with _evaluation(model):
        # Outside no_grad, for attacks that need gradients and do not ask for them
        delta = attack(model, x, y, physics)
        if not isinstance(delta, torch.Tensor):
            raise TypeError(
                f"the attack must return a torch.Tensor, got {type(delta).__name__}."
            )
        if delta.shape != y.shape:
            raise ValueError(
                f"the attack must return the shape of y, {tuple(y.shape)}, "
                f"got {tuple(delta.shape)}."
            )
        with torch.no_grad():
            values = _error(model, x, y + delta, physics)
    _check_errors(values)
    return Risk(values, torch.zeros_like(values))


def implicit_regularization(
    model: BaseOptim,
    y: torch.Tensor,
    physics: Denoising,
    *,
    sigma: float | Iterable[float] | GaussianJitter | None = None,
    samples: int = 32,
    generator: torch.Generator | None = None,
) -> Risk:
    r"""
    The regulariser that SGD jittering adds implicitly when denoising, equation (10):

    .. math::
        \mathbb{E}_w\Big\| \sum_{i=0}^{K-1} \eta(1-\eta)^{K-1-i}
        \left(f_\theta(x'_i) - f_\theta(x_i^{sgd})\right) \Big\|_2^2,

    with :math:`x'_i` the iterates of the model without noise and :math:`x_i^{sgd}` those with. Both
    come from the model's own iterations, so that jittered and other models can be compared at the
    same ``sigma``. Step sizes that differ between iterations are taken as they are.

    :param deepinv.optim.BaseOptim model: unrolled gradient descent, such as :class:`UnfoldedGD`,
        with the default data fidelity.
    :param torch.Tensor y: measurements, shape `(B, ...)`.
    :param deepinv.physics.Denoising physics: the identity; eq. (10) is derived for denoising only.
    :param float, Iterable[float], GaussianJitter, None sigma: noise, as in :func:`jitter`. Default:
        ``None``, the model's own. Of a law the levels and the scale are used, its generator is not.
    :param int samples: number of noisy trajectories, at least 2. Default: 32.
    :param torch.Generator, None generator: source of the randomness. ``None`` (default) uses the
        global generator; a generator leaves it untouched.
    :return: (:class:`Risk`) the regulariser of each sample, in the unit of ``y`` squared.
    :raises TypeError: if the model is no unrolled gradient descent, the physics is not
        :class:`deepinv.physics.Denoising`, or an argument is of another type.
    :raises ValueError: if neither ``sigma`` nor the model has noise, the noise is refused by
        :func:`jitter`, or there are fewer than 2 draws.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=10, jitter=0.1)
    >>> dj.implicit_regularization(model, torch.zeros(50, 2), dinv.physics.Denoising()).values.shape
    torch.Size([50])
    """
    law = _denoising_law(model, y, physics, sigma, generator)
    with _evaluation(model), torch.no_grad():
        clean = _trajectory(model, y, physics)

    def draw() -> torch.Tensor:
        with _jitter_alone(model, law):
            noisy = _trajectory(model, y, physics)
        return _squared_norm(_network_term(clean, noisy))

    return _risk(model, samples, draw)


def trajectory_deviation(
    model: BaseOptim,
    y: torch.Tensor,
    physics: Denoising,
    *,
    sigma: float | Iterable[float] | GaussianJitter | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Both sides of the identity behind equation (10), for one noisy trajectory: equal to rounding.

    .. math::
        x_K^{sgd} - x'_K = \sum_{i=0}^{K-1} \eta(1-\eta)^{K-1-i} \left(f_\theta(x'_i) -
        f_\theta(x_i^{sgd})\right) - \sum_{i=0}^{K-1} \eta(1-\eta)^{K-1-i}\, w_i

    This is Appendix C for the recursion that is implemented and that eq. (8) states, from
    :math:`x_0` on: :math:`x_{k+1} = x_k - \eta((x_k - y) + f_\theta(x_k) + w_k)`. The appendix uses
    :math:`w_{k+1}` in this step and adds one noise more, :math:`w_0`, to the start, so its second
    sum has :math:`K+1` terms, :math:`\eta(1-\eta)^{K-i} w_i`; a start at :math:`y + w_0` would in
    fact contribute :math:`(1-\eta)^K w_0` to the right side. Section 7 prints that sum with a plus
    sign. The first sum, and so eq. (10), is the same for both.

    Arguments and errors as for :func:`implicit_regularization`:

    :param deepinv.optim.BaseOptim model: unrolled gradient descent.
    :param torch.Tensor y: measurements, shape `(B, ...)`.
    :param deepinv.physics.Denoising physics: the identity.
    :param float, Iterable[float], GaussianJitter, None sigma: noise. Default: ``None``, the model's
        own.
    :param torch.Generator, None generator: source of the randomness. Default: ``None``, the global
        generator.
    :return: (:class:`tuple`) left and right side, of the shape of ``y``.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=10, jitter=0.1)
    >>> left, right = dj.trajectory_deviation(model, torch.zeros(50, 2), dinv.physics.Denoising())
    >>> torch.allclose(left, right, atol=1e-6)
    True
    """
    law = _denoising_law(model, y, physics, sigma, generator)
    with _evaluation(model), torch.no_grad():
        clean = _trajectory(model, y, physics)
        with _jitter_alone(model, law):
            noisy = _trajectory(model, y, physics)
    _check_errors(_squared_norm(noisy.x - clean.x))
    noise_term = torch.zeros_like(y)
    for step in noisy.steps:
        noise_term = (1 - step.eta) * noise_term + step.eta * step.w
    return noisy.x - clean.x, _network_term(clean, noisy) - noise_term


class ConvergenceBound(NamedTuple):
    r"""
    What Corollary 6.2 promises.

    :param float value: bound of :math:`\min_{k<K}\mathbb{E}\|\nabla F(x_k)\|_2^2`.
    :param float stepsize: the step size :math:`\eta` it holds for.
    """

    value: float
    stepsize: float


def convergence_bound(
    lipschitz: float,
    lipschitz_max: float,
    max_iter: int,
    *,
    f_start: float,
    f_inf: float,
    delta: float,
) -> ConvergenceBound:
    r"""
    The bound of Corollary 6.2 on the gradient of :math:`F = \frac12\|y-A\cdot\|_2^2 + r_\theta`,
    from its constants:

    .. math::
        \min_{0\leq k<K} \mathbb{E}\|\nabla F(x_k^{sgd})\|_2^2 \leq
        \sqrt{\frac{2 L L_{\max}}{K}} \left(2(F(x_0) - \inf F) + \Delta_F^*\right),
        \qquad \eta = \sqrt{\frac{2}{L L_{\max} K}}.

    The paper takes for :math:`L` the Lipschitz constant of :math:`f_\theta` alone, and for
    :math:`\Delta_F^*` a number without the noise. So read the bound can fail: for :math:`f_\theta
    \to 0` it is zero. It holds if :math:`L = L_{\max}` is the Lipschitz constant of :math:`\nabla
    F`, at most that of :math:`f_\theta` plus :math:`\|A\|^2`, and
    :math:`\Delta_F^* \geq \mathbb{E}\|w_k\|_2^2 / (2L_{\max})`: then
    :math:`\mathbb{E}\|\nabla F(x) + w_k\|_2^2 \leq 2L_{\max}(F(x) - \inf F + \Delta_F^*)`, which
    the proof of the theorem it adapts needs (Garrigos and Gower, 2023, Theorem 5.12).

    :param float lipschitz: :math:`L > 0`.
    :param float lipschitz_max: :math:`L_{\max} \geq L`.
    :param int max_iter: number of iterations :math:`K`, at least 1.
    :param float f_start: :math:`F(x_0)`.
    :param float f_inf: :math:`\inf F`, at most ``f_start``.
    :param float delta: :math:`\Delta_F^* \geq 0`.
    :return: (:class:`ConvergenceBound`) ``value`` of the bound and ``stepsize`` :math:`\eta`.
    :raises TypeError: if an argument is not a number of its type.
    :raises ValueError: if an argument is not finite or out of range.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dj.convergence_bound(1.0, 2.0, 100, f_start=3.0, f_inf=1.0, delta=1.0)
    ConvergenceBound(value=1.0, stepsize=0.1)
    """
    max_iter = checks.number("max_iter", max_iter, Integral, 1, 2**63 - 1)
    lipschitz = checks.positive("lipschitz", lipschitz)
    lipschitz_max = checks.number("lipschitz_max", lipschitz_max, Real, lipschitz)
    f_inf = checks.number("f_inf", f_inf, Real)
    gap = checks.number("f_start", f_start, Real, f_inf) - f_inf
    delta = checks.number("delta", delta, Real, 0)
    product = lipschitz * lipschitz_max
    value, stepsize = math.inf, math.inf
    if 1e-280 < product < 1e300:
        value = math.sqrt(2 * product / max_iter) * (2 * gap + delta)
        stepsize = math.sqrt(2 / (product * max_iter))
    if not math.isfinite(value):
        raise ValueError(
            "the bound must be finite, but its constants are out of the range of numbers, got "
            f"lipschitz={lipschitz}, lipschitz_max={lipschitz_max}, f_start - f_inf={gap} and "
            f"delta={delta}."
        )
    return ConvergenceBound(value, stepsize)


def _risk(model: nn.Module, samples: int, draw: Callable[[], torch.Tensor]) -> Risk:
    """Mean and standard error of draws of shape `(B,)`, with the model in evaluation mode."""
    samples = checks.number("samples", samples, Integral, 2)
    with _evaluation(model), torch.no_grad():
        errors = torch.stack([draw() for _ in range(samples)])
    _check_errors(errors.sum(0))
    return Risk(errors.mean(0), errors.std(0) / math.sqrt(samples))


def _check_errors(errors: torch.Tensor) -> None:
    """Once per risk; a mean hides which draw or which sample it was."""
    finite = errors.isfinite()
    if not finite.all():
        raise ValueError(
            "the squared errors of a risk must be finite, got NaN or infinity for "
            f"{int((~finite).sum())} of {len(errors)} samples: the model diverges there, or the "
            "noise is too large."
        )


def _evaluation(model: nn.Module) -> AbstractContextManager:
    if not isinstance(model, nn.Module):
        raise TypeError(
            "model must be a torch.nn.Module, called as model(y, physics), "
            f"got {type(model).__name__}."
        )
    return evaluated(model)


def _error(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, physics: Physics
) -> torch.Tensor:
    x_net = model(y, physics)
    if not isinstance(x_net, torch.Tensor):
        raise TypeError(
            f"the model must return a torch.Tensor, got {type(x_net).__name__}."
        )
    if x_net.shape != x.shape:
        raise ValueError(
            f"the reconstruction must have the shape of x, {tuple(x.shape)}, "
            f"got {tuple(x_net.shape)}."
        )
    return _squared_norm(x_net - x)


def _squared_norm(x: torch.Tensor) -> torch.Tensor:
    return x.abs().square().flatten(1).sum(1)


def _support_weight(y: torch.Tensor, physics: Physics) -> torch.Tensor:
    """Takes noise on all entries to noise of the same mean square norm on the measured ones."""
    support = L2Ball(1.0).support(y, physics)
    measured = support.flatten(1).sum(1).clamp_min(1).to(y.dtype)
    scale = (support[0].numel() / measured).sqrt()
    return support * scale.reshape(-1, *[1] * (y.ndim - 1))


def _law(name: str, sigma: float, generator: torch.Generator | None) -> GaussianJitter:
    return GaussianJitter(checks.number(name, sigma, Real, 0), "norm", generator)


class _Step(NamedTuple):
    eta: torch.Tensor | float
    f: torch.Tensor
    w: torch.Tensor | float


class _Trajectory(NamedTuple):
    x: torch.Tensor
    steps: list[_Step]


def _trajectory(model: BaseOptim, y: torch.Tensor, physics: Physics) -> _Trajectory:
    """The output of the model with the step size, network output and noise of every iteration."""
    steps = []

    def record(iteration: GDIteration, args: tuple) -> None:
        X, fidelity, prior, params, *_ = args
        f = params["lambda"] * prior.grad(X["est"][0], params["g_param"])
        w = fidelity.w if isinstance(fidelity, TiltedFidelity) else 0.0
        steps.append(_Step(params["stepsize"], f, w))

    handle = _gradient_iteration(model).register_forward_pre_hook(record)
    try:
        return _Trajectory(model(y, physics), steps)
    finally:
        handle.remove()


def _network_term(clean: _Trajectory, noisy: _Trajectory) -> torch.Tensor:
    """The sum in equation (10), by Horner's scheme."""
    total = torch.zeros_like(clean.x)
    for a, b in zip(clean.steps, noisy.steps, strict=True):
        total = (1 - a.eta) * total + a.eta * (a.f - b.f)
    return total


@contextmanager
def _jitter_alone(model: BaseOptim, law: GaussianJitter) -> Iterator[None]:
    """The noise of training and nothing else of it, such as dropout."""
    before = model.fixed_point.iterator
    try:
        model.fixed_point.iterator = jittered(model, law)
        model.fixed_point.iterator.jitter.training = True
        yield
    finally:
        model.fixed_point.iterator = before


def _denoising_law(
    model: BaseOptim,
    y: torch.Tensor,
    physics: Denoising,
    sigma: float | Iterable[float] | GaussianJitter | None,
    generator: torch.Generator | None,
) -> GaussianJitter:
    """The checked noise, with the caller's generator: the law's own is that of training."""
    checks.batch(y=y)
    if not isinstance(model, BaseOptim) or _gradient_iteration(model) is None:
        raise TypeError(
            "model must be unrolled gradient descent, such as UnfoldedGD, "
            f"got {type(model).__name__}."
        )
    if not isinstance(physics, Denoising):
        raise TypeError(
            f"eq. (10) is for deepinv.physics.Denoising, got {type(physics).__name__}."
        )
    if sigma is None:
        iterator = model.fixed_point.iterator
        if not isinstance(iterator, JitteredIterator):
            raise ValueError(
                "sigma is needed for a model without jitter, got None: pass the noise level "
                "to compare at."
            )
        sigma = iterator.jitter.noise
    if isinstance(sigma, GaussianJitter):
        return GaussianJitter(sigma.sigma, sigma.scale, generator)
    return GaussianJitter(sigma, generator=generator)


def _gradient_iteration(model: BaseOptim) -> GDIteration | None:
    iterator = innermost(model.fixed_point.iterator)
    return iterator if isinstance(iterator, GDIteration) else None
