r"""The law of the jitter :math:`w_k`: its scale, its units and its generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real

import torch

from .. import checks

SCALES = ("std", "norm", "relative", "official")


class GaussianJitter:
    r"""
    Gaussian noise :math:`w_k \sim \mathcal{N}(0, s_k^2 I)` added to the gradient of iteration k.

    The per-entry standard deviation :math:`s_k` follows from :math:`\sigma_k` and the scale:

    - ``"std"``: :math:`s_k = \sigma_k`, in the unit of the gradient :math:`A^\top(Ax-y)`;
    - ``"norm"``: :math:`s_k = \sigma_k / \sqrt{n}` with :math:`n` entries per sample, so that
      :math:`\mathbb{E}\|w_k\|_2^2 = \sigma_k^2` (Assumption 6.1 of the paper);
    - ``"relative"``: :math:`s_k = \sigma_k \max|x_k|` of each sample, detached from the graph;
    - ``"official"``: :math:`s_k = \sigma_k \max(x_k - \eta\,A^\top(Ax_k-y))`, signed, over the
      whole batch and part of the graph, exactly as in the paper's published code. For reproduction
      only: samples of a batch influence each other, and it repeats one data-fidelity gradient per
      iteration.

    :param float, Iterable[float] sigma: noise level :math:`\sigma_k \geq 0`, one number or one per
        iteration.
    :param str scale: ``"std"``, ``"norm"``, ``"relative"`` or ``"official"``. Default: ``"std"``.
    :param torch.Generator, None generator: source of the randomness. ``None`` (default) uses the
        global generator of the iterate's device, governed by :func:`torch.manual_seed`; a
        generator leaves the global one untouched, and may live on another device than the iterate.
    :raises TypeError: if ``sigma`` is not made of numbers or ``generator`` is no
        :class:`torch.Generator`.
    :raises ValueError: if a level is negative or not finite, ``sigma`` is empty, or ``scale`` is
        unknown.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> law = dj.GaussianJitter(0.1, generator=torch.Generator().manual_seed(0))
    >>> round(law(torch.zeros(1, 2, 64, 64)).std().item(), 2)
    0.1
    """

    def __init__(
        self,
        sigma: float | Iterable[float],
        scale: str = "std",
        generator: torch.Generator | None = None,
    ):
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, got {scale!r}.")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator must be a torch.Generator or None, got {type(generator).__name__}."
            )
        self.sigma = _levels(sigma)
        self.scale = scale
        self.generator = generator

    def sigma_at(self, k: int) -> float:
        r"""
        Noise level of iteration ``k``.

        :param int k: iteration, from 0.
        :return: (:class:`float`) :math:`\sigma_k`.
        :raises TypeError: if ``k`` is no whole number.
        :raises ValueError: if it is negative, or there is one level per iteration and none for it.
        """
        # Every iteration comes by: the check itself only where something is wrong
        if type(k) is not int or k < 0:
            k = checks.number("k", k, Integral, 0)
        if len(self.sigma) == 1:
            return self.sigma[0]
        if k >= len(self.sigma):
            raise ValueError(
                f"sigma has {len(self.sigma)} levels but iteration {k + 1} was reached: "
                "give one level, or one per iteration (max_iter of them)."
            )
        return self.sigma[k]

    def __call__(
        self,
        x: torch.Tensor,
        k: int = 0,
        data_step: Callable[[], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        r"""
        Draw :math:`w_k`.

        :param torch.Tensor x: iterate :math:`x_k`, shape `(B, ...)`.
        :param int k: iteration, from 0. Default: 0.
        :param Callable, None data_step: returns :math:`x_k - \eta\,A^\top(Ax_k-y)`, called only by
            the ``"official"`` scale.
        :return: (:class:`torch.Tensor`) noise, of the shape, type and device of ``x``.
        :raises TypeError: if ``x`` is no tensor of real or complex numbers.
        :raises ValueError: if ``x`` is no batch, the level is so large that squares of the noise
            overflow, or the scale is ``"official"`` and ``data_step`` is missing or complex.
        """
        sigma = self.level(x, k)
        if self.scale == "std":
            std = sigma
        elif self.scale == "norm":
            std = sigma / math.sqrt(x[0].numel())
        elif self.scale == "relative":
            std = sigma * x.detach().abs().amax(
                dim=tuple(range(1, x.ndim)), keepdim=True
            )
        elif data_step is None:
            raise ValueError(
                "scale='official' needs data_step, the stepped iterate it scales with."
            )
        elif x.is_complex():
            raise ValueError(
                "scale='official' takes the largest value of a real iterate, got "
                f"{x.dtype}: use 'relative'."
            )
        else:
            std = sigma * data_step().max()
        return std * self.standard_normal(x)

    def level(self, x: torch.Tensor, k: int = 0) -> float:
        r"""
        Noise level of iteration ``k`` for an iterate, whose values it does not look at.

        :param torch.Tensor x: iterate, shape `(B, ...)`.
        :param int k: iteration, from 0. Default: 0.
        :return: (:class:`float`) :math:`\sigma_k`.
        :raises TypeError: if ``x`` is no tensor of real or complex numbers.
        :raises ValueError: if ``x`` is no batch, there is no level for ``k``, or it is so large
            that :math:`\|w_k\|_2^2` overflows.
        """
        checks.tensor("x", x)
        sigma, entries = self.sigma_at(k), x[0].numel()
        norm = sigma * math.sqrt(entries) if self.scale == "std" else sigma
        # Losses sum squares in single precision at least; a normal number hardly exceeds 10
        largest = torch.finfo(torch.promote_types(x.dtype, torch.float32)).max
        if norm > math.sqrt(largest) or 10 * sigma > torch.finfo(x.dtype).max:
            raise ValueError(
                "sigma must be so small that the squared norm of the noise is finite in "
                f"{x.dtype}, got {sigma:g} for {entries} entries."
            )
        return sigma

    def standard_normal(self, x: torch.Tensor) -> torch.Tensor:
        r"""
        Draw :math:`\mathcal{N}(0, I)` from the law's generator.

        :param torch.Tensor x: gives the shape, type and device.
        :return: (:class:`torch.Tensor`) noise of the shape of ``x``, in contiguous memory: the same
            for a seed in any memory layout of ``x``.
        """
        # Not randn_like: on a channels_last iterate it is several times slower and gives other
        # values for the same seed. Here a seed means the same noise in any memory layout.
        device = x.device if self.generator is None else self.generator.device
        # Drawn in single precision at least: autocast does not change the noise of a seed.
        dtype = torch.promote_types(x.dtype, torch.float32)
        return torch.randn(
            x.shape, generator=self.generator, device=device, dtype=dtype
        ).to(x)

    def __repr__(self) -> str:
        sigma = self.sigma[0] if len(self.sigma) == 1 else list(self.sigma)
        return f"GaussianJitter(sigma={sigma}, scale={self.scale!r})"

    # torch.Generator itself pickles and deep-copies only in newer versions of torch.
    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        if self.generator is not None:
            state["generator"] = (
                str(self.generator.device),
                self.generator.get_state(),
            )
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.generator is not None:
            device, rng_state = state["generator"]
            self.generator = torch.Generator(device)
            self.generator.set_state(rng_state)


def _levels(sigma: float | Iterable[float]) -> tuple[float, ...]:
    """The noise levels as a tuple of checked floats."""
    levels = list(sigma) if _is_sequence(sigma) else [sigma]
    if not levels:
        raise ValueError("sigma must hold at least one level, got an empty sequence.")
    # What tensors and arrays hold is a number, too
    levels = [s.item() if getattr(s, "shape", None) == () else s for s in levels]
    if not all(isinstance(s, Real) and not isinstance(s, bool) for s in levels):
        raise TypeError(
            f"sigma must be a number or one number per iteration, got {sigma!r}."
        )
    return tuple(checks.number("sigma", s, Real, 0) for s in levels)


def _is_sequence(sigma: object) -> bool:
    # 0-d tensors and arrays define __iter__ but are numbers; a string is neither
    return (
        isinstance(sigma, Iterable)
        and getattr(sigma, "ndim", not isinstance(sigma, str)) > 0
    )
