r"""The law of the jitter :math:`w_k`: its scale, its units and its generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

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
        :raises ValueError: if there is one level per iteration and none for ``k``.
        """
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
        :raises ValueError: if the scale is ``"official"`` and ``data_step`` is missing.
        """
        sigma = self.sigma_at(k)
        if self.scale == "std":
            std = sigma
        elif self.scale == "norm":
            std = sigma / math.sqrt(x[0].numel())
        elif self.scale == "relative":
            std = sigma * x.detach().abs().amax(
                dim=tuple(range(1, x.ndim)), keepdim=True
            )
        elif data_step is not None:
            std = sigma * data_step().max()
        else:
            raise ValueError(
                "scale='official' needs data_step, the stepped iterate it scales with."
            )
        return std * self.standard_normal(x)

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
    try:
        levels = tuple(float(s) for s in (sigma if _is_sequence(sigma) else [sigma]))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"sigma must be a number or one number per iteration, got {sigma!r}."
        ) from error
    if not levels:
        raise ValueError("sigma must hold at least one level, got an empty sequence.")
    if not all(math.isfinite(s) and s >= 0 for s in levels):
        raise ValueError(f"sigma must be finite and non-negative, got {sigma!r}.")
    return levels


def _is_sequence(sigma: object) -> bool:
    # 0-d tensors and arrays define __iter__ but are numbers; a string is neither
    return (
        isinstance(sigma, Iterable)
        and getattr(sigma, "ndim", not isinstance(sigma, str)) > 0
    )
