r"""Data fidelities that know the noise of an iteration, or :math:`A^\top y`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from deepinv.optim import L2, Bregman, DataFidelity
from deepinv.physics import Physics

from .. import checks


class NormalL2(L2):
    r"""
    :math:`\frac{1}{2\sigma^2}\|Ax-y\|^2` for iterations that compute :math:`A^\top y` only once.

    The host's :class:`deepinv.optim.L2` computes it again for every gradient

    .. math::
        \nabla f(x) = \frac{1}{\sigma^2}\left( A^\top A x - A^\top y \right).

    :class:`UnfoldedGD` and :class:`UnfoldedPGD` compute it once per forward pass and take the
    gradient from :meth:`given`; so does every model whose iterator is wrapped in a
    :class:`ConditionedIterator`. In any other model, and for a physics that is not linear, this
    class behaves as the host's.

    :param float sigma: standard deviation of the noise, from 1e-15 to 1e15, so that its square
        neither overflows nor vanishes in single precision. Default: 1.
    :raises TypeError: if ``sigma`` is not a number.
    :raises ValueError: if it is out of range.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dj.SeismicConvolution()
    >>> x, y = torch.randn(2, 1, 1, 64, 3)
    >>> fidelity = dj.NormalL2()
    >>> once = fidelity.given(physics.A_adjoint(y))
    >>> torch.equal(once.grad(x, y, physics), fidelity.grad(x, y, physics))
    True
    """

    adjoint: torch.Tensor | None = None

    def __init__(self, sigma: float = 1.0):
        super().__init__(sigma=checks.real("sigma", sigma, 1e-15, 1e15))

    @property
    def reads_adjoint(self) -> bool:
        return self.adjoint is None

    def given(self, adjoint: torch.Tensor) -> NormalL2:
        r"""
        This fidelity together with :math:`A^\top y`, for one forward pass.

        :param torch.Tensor adjoint: :math:`A^\top y`, shape of the image.
        :return: (:class:`deepinv.optim.DataFidelity`) what stands in for it.
        """
        known = copy.copy(self)
        known.adjoint = adjoint
        return known

    def grad(
        self, x: torch.Tensor, y: torch.Tensor, physics: Physics, *args, **kwargs
    ) -> torch.Tensor:
        r""":math:`(A^\top A x - A^\top y) / \sigma^2`; arguments are those of the host's."""
        if self.adjoint is None:
            return super().grad(x, y, physics, *args, **kwargs)
        return self.norm * (physics.A_adjoint_A(x) - self.adjoint)


class TiltedFidelity:
    r"""
    The data fidelity :math:`f_k(x) = f(x) + \langle w_k, x\rangle`, for one iteration: no module,
    so that it is not registered, saved or moved.

    Its value stays that of :math:`f`, so that a host model reports the cost of the clean objective.
    ``asked`` holds which of the methods through which the noise enters a step were called; a step
    that calls none of them has no noise.
    """

    def __init__(self, fidelity: DataFidelity, w: torch.Tensor):
        self.fidelity: Any = fidelity
        self.w = w
        self.asked: set[str] = set()

    def __call__(self, *args, **kwargs) -> torch.Tensor:
        return self.fidelity(*args, **kwargs)

    def __getattr__(self, name: str):
        if name == "fidelity":
            raise AttributeError(name)
        return getattr(self.fidelity, name)

    def given(self, adjoint: torch.Tensor) -> TiltedFidelity:
        r"""The same, with :math:`A^\top y` known to :math:`f`."""
        known = TiltedFidelity(self.fidelity.given(adjoint), self.w)
        known.asked = self.asked
        return known

    def grad(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        r""":math:`\nabla f_k(x) = \nabla f(x) + w_k`."""
        return self.fidelity.grad(x, *args, **kwargs) + self._noise("grad", x)

    # Only arguments that were given are passed on: a user's own fidelity need not have them
    def prox(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        r"""The proximal point of :math:`\gamma f` at :math:`x - \gamma w_k`."""
        gamma = _argument("gamma", self.fidelity.prox, x, *args, **kwargs)
        w = self._noise("prox", x)
        return self.fidelity.prox(x - gamma * w, *args, **kwargs)

    def prox_conjugate(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        r"""
        The proximal point of :math:`\gamma (\lambda f_k)^*`.

        As :math:`(\lambda f_k)^*(u) = (\lambda f)^*(u - \lambda w_k)`, it is that of
        :math:`\gamma (\lambda f)^*` at :math:`x - \lambda w_k`, plus :math:`\lambda w_k`.
        """
        lamb = _argument("lamb", self.fidelity.prox_conjugate, x, *args, **kwargs)
        w = lamb * self._noise("prox_conjugate", x)
        return self.fidelity.prox_conjugate(x - w, *args, **kwargs) + w

    def bregman_prox(
        self, x: torch.Tensor, bregman_potential: Bregman, *args, **kwargs
    ) -> torch.Tensor:
        r"""
        The point :math:`u` of least :math:`\gamma f_k(u) + D_h(u, x)`.

        It is that of :math:`\gamma f` at :math:`\nabla h^*(\nabla h(x) - \gamma w_k)`.
        """
        h = bregman_potential
        gamma = _argument("gamma", self.fidelity.bregman_prox, x, h, *args, **kwargs)
        x = h.grad_conj(h.grad(x) - gamma * self._noise("bregman_prox", x))
        return self.fidelity.bregman_prox(x, h, *args, **kwargs)

    def _noise(self, method: str, x: torch.Tensor) -> torch.Tensor:
        # Another shape could be broadcast silently
        if x.shape != self.w.shape:
            raise ValueError(
                f"Jitter has the shape of the iterate, {tuple(self.w.shape)}, but the step asks "
                f"for the data fidelity's {method} at shape {tuple(x.shape)}: put the noise where "
                "it belongs, by jitter(model, sigma, at=...) on submodules or a Jitter layer in "
                "the step."
            )
        self.asked.add(method)
        return self.w


def _argument(name: str, method: Callable, *args, **kwargs) -> float | torch.Tensor:
    """A factor that a call hands to a method, by name, by place or as the method's default."""
    if name in kwargs:  # as the host's own steps do, which need no look at the signature
        return kwargs[name]
    bound = inspect.signature(method).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments.get(name, 1.0)
