r"""The noise :math:`w_k`, and the layer that adds it in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch

from .. import checks

#: Devices whose global generators torch.utils.checkpoint leaves alone (pytorch issue 127676).
UNRESTORED = ("mps",)
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
        iteration. It is a constant: a tensor that requires grad is refused.
    :param str scale: ``"std"``, ``"norm"``, ``"relative"`` or ``"official"``. Default: ``"std"``.
    :param torch.Generator, None generator: source of the randomness. ``None`` (default) uses the
        global generator of the iterate's device, governed by :func:`torch.manual_seed`; a
        generator leaves the global one untouched, and may live on another device than the iterate.
    :raises TypeError: if ``sigma`` is not made of numbers or ``generator`` is not a
        :class:`torch.Generator`.
    :raises ValueError: if a level is negative or not finite, ``sigma`` is empty, or ``scale`` is
        unknown.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> noise = dj.GaussianJitter(0.1, generator=torch.Generator().manual_seed(0))
    >>> round(noise(torch.zeros(1, 2, 64, 64)).std().item(), 2)
    0.1
    """

    def __init__(
        self,
        sigma: float | Iterable[float],
        scale: str = "std",
        generator: torch.Generator | None = None,
    ):
        checks.choice("scale", scale, SCALES)
        if generator is not None:
            checks.instance("generator", generator, torch.Generator, "torch.Generator or None")
        self.sigma = _levels(sigma)
        self.scale = scale
        self.generator = generator

    def sigma_at(self, k: int) -> float:
        r"""
        Noise level of iteration ``k``.

        :param int k: iteration, from 0.
        :return: (:class:`float`) :math:`\sigma_k`.
        :raises TypeError: if ``k`` is not a whole number.
        :raises ValueError: if it is negative, or beyond the last of several levels.
        """
        # Called in every iteration: the check runs only where something is wrong
        if type(k) is not int or k < 0:
            k = checks.whole("k", k, 0)
        if len(self.sigma) == 1:
            return self.sigma[0]
        if k >= len(self.sigma):
            raise ValueError(
                f"sigma has {len(self.sigma)} levels but iteration {k + 1} was reached: "
                "give one level, or one per iteration (max_iter of them)."
            )
        return self.sigma[k]

    def __call__(
        self, x: torch.Tensor, k: int = 0, data_step: Callable[[], torch.Tensor] | None = None
    ) -> torch.Tensor:
        r"""
        Draw :math:`w_k`.

        :param torch.Tensor x: iterate :math:`x_k`, shape `(B, ...)`.
        :param int k: iteration, from 0. Default: 0.
        :param Callable, None data_step: returns :math:`x_k - \eta\,A^\top(Ax_k-y)`, called only by
            the ``"official"`` scale.
        :return: (:class:`torch.Tensor`) noise, of the shape, type and device of ``x``.
        :raises TypeError: if ``x`` is not a tensor of real or complex numbers.
        :raises ValueError: if ``x`` is not a batch, the level is so large that the squared noise
            overflows, or the scale is ``"official"`` and ``data_step`` is missing or complex.
        """
        checks.tensor("x", x)
        sigma, entries = self.sigma_at(k), x[0].numel()
        norm = sigma * math.sqrt(entries) if self.scale == "std" else sigma
        # Losses sum squares in single precision or better; a normal number hardly exceeds 10
        largest = torch.finfo(torch.promote_types(x.dtype, torch.float32)).max
        if norm > math.sqrt(largest) or 10 * sigma > torch.finfo(x.dtype).max:
            raise ValueError(
                "sigma must be so small that the squared norm of the noise is finite in "
                f"{x.dtype}, got {sigma:g} for {entries} entries."
            )
        std: float | torch.Tensor
        if self.scale == "std":
            std = sigma
        elif self.scale == "norm":
            std = sigma / math.sqrt(entries)
        elif self.scale == "relative":
            std = sigma * x.detach().abs().amax(dim=tuple(range(1, x.ndim)), keepdim=True)
        elif data_step is None:
            raise ValueError("scale='official' needs data_step, the stepped iterate.")
        elif x.is_complex():
            raise ValueError(
                f"scale='official' needs a real iterate, got {x.dtype}: use 'relative'."
            )
        else:
            std = sigma * data_step().max()
        return std * self.standard_normal(x)

    def standard_normal(self, x: torch.Tensor) -> torch.Tensor:
        r"""
        Draw :math:`\mathcal{N}(0, I)` from the noise model's generator.

        :param torch.Tensor x: gives the shape, type and device.
        :return: (:class:`torch.Tensor`) noise, the same for a seed in any memory layout of ``x``.
        """
        # Not randn_like, which on a channels_last iterate is several times slower and gives other
        # values for the same seed
        device = x.device if self.generator is None else self.generator.device
        # In single precision or better, so that autocast does not change the noise of a seed
        dtype = torch.promote_types(x.dtype, torch.float32)
        return torch.randn(x.shape, generator=self.generator, device=device, dtype=dtype).to(x)

    def __repr__(self) -> str:
        sigma = self.sigma[0] if len(self.sigma) == 1 else list(self.sigma)
        return f"GaussianJitter(sigma={sigma}, scale={self.scale!r})"

    # torch.Generator itself can be pickled and deep-copied only in newer versions of torch
    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        if self.generator is not None:
            state["generator"] = (str(self.generator.device), self.generator.get_state())
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.generator is not None:
            device, rng_state = state["generator"]
            self.generator = torch.Generator(device)
            self.generator.set_state(rng_state)


#: A noise level, one per iteration, or a noise model.
Noise: TypeAlias = float | Iterable[float] | GaussianJitter


class Jitter(torch.nn.Module):
    r"""
    A layer that adds the noise in training, used like :class:`torch.nn.Dropout` in any network.

    .. math::
        g \mapsto g + w_k

    In evaluation mode, inside :func:`no_jitter` and where :math:`\sigma_k = 0` it returns its input
    itself and draws no random number. It has no weights, so the names in ``state_dict`` stay the
    same. The scale refers to its input: ``"relative"`` takes the largest magnitude of each sample
    of ``g``, ``"norm"`` the number of its entries; ``"official"`` needs an iteration of gradient
    descent, see :func:`jitter`.

    Where activation checkpointing repeats a part of the forward pass, ``torch.utils.checkpoint``
    restores the global generators alone: with ``generator=None`` the noise is the same again, a
    noise model with its own generator is refused, as all noise is on a GPU of Apple, whose global
    generator it leaves alone. ``checkpoint=True`` of :class:`UnfoldedGD` and
    :class:`UnfoldedPGD` restores all.

    :param float, Iterable[float], GaussianJitter sigma: noise level, one number or one per
        iteration, as a per-entry standard deviation in the unit of the input; or a noise model.
    :raises TypeError: as :class:`GaussianJitter`.
    :raises ValueError: as :class:`GaussianJitter`; in the call, if there are several levels and
        ``k`` is missing.
    :raises RuntimeError: in the call, in a repeated part of the forward pass, see above.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> class Descent(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.network, self.jitter = dj.PointMLP(), dj.Jitter(0.1)
    ...
    ...     def forward(self, y, physics):
    ...         x = physics.A_adjoint(y)
    ...         for _ in range(5):
    ...             g = physics.A_adjoint(physics.A(x) - y) + self.network(x)
    ...             x = x - 0.5 * self.jitter(g)
    ...         return x
    >>> layer, g = Descent().eval().jitter, torch.zeros(3, 2)
    >>> layer(g) is g
    True
    """

    def __init__(self, sigma: Noise):
        super().__init__()
        self.noise = sigma if isinstance(sigma, GaussianJitter) else GaussianJitter(sigma)
        self.enabled = True
        # Whether a repeated forward pass finds the generator as the first pass found it
        self.replayed = False

    def forward(self, g: torch.Tensor, k: int | None = None) -> torch.Tensor:
        r"""
        Add :math:`w_k`.

        :param torch.Tensor g: shape `(B, ...)`, for example a gradient.
        :param int, None k: iteration, from 0. Needed for several levels only. Default: ``None``.
        :return: (:class:`torch.Tensor`) of the shape of ``g``.
        """
        w = self.draw(g, k)
        return g if w is None else g + w

    def draw(
        self,
        x: torch.Tensor,
        k: int | None = None,
        data_step: Callable[[], torch.Tensor] | None = None,
    ) -> torch.Tensor | None:
        r"""Draw :math:`w_k` as :class:`GaussianJitter` does; ``None`` if there is no noise now."""
        if not (self.training and self.enabled):
            return None
        if k is None and len(self.noise.sigma) > 1:
            raise ValueError(
                f"sigma has {len(self.noise.sigma)} levels, so that the iteration must be known: "
                "call the layer as jitter(g, k), with k from 0."
            )
        k = 0 if k is None else k
        if self.noise.sigma_at(k) == 0:
            return None
        if in_backward() and not self.replayed:
            if self.noise.generator is not None:
                raise RuntimeError(
                    "Jitter with a generator of its own cannot be repeated in the backward pass: "
                    "activation checkpointing brings back the global generators alone. Leave "
                    "generator=None, or call the layer outside the checkpointed part."
                )
            if x.device.type in UNRESTORED:
                raise RuntimeError(
                    f"Jitter on {x.device.type} cannot be repeated in the backward pass: there, "
                    "activation checkpointing does not bring back the global generator. Build the "
                    "model with checkpoint=True, or call the layer outside the checkpointed part."
                )
        return self.noise(x, k, data_step)

    def extra_repr(self) -> str:
        return repr(self.noise)


def in_backward() -> bool:
    """Whether a backward pass is running, so that a call repeats a part of the forward pass."""
    # torch.utils.checkpoint itself asks in this way
    return torch._C._current_graph_task_id() != -1


def _levels(sigma: float | Iterable[float]) -> tuple[float, ...]:
    learn = "learn a factor of your own in g + factor * Jitter(1.0)(torch.zeros_like(g))"
    checks.constant("sigma", sigma, learn)
    given = checks.plain(sigma)
    several = [*given] if isinstance(given, Iterable) else [given]
    for level in several:
        checks.constant("sigma", level, learn)
    levels = tuple(checks.real("sigma", checks.plain(level), 0) for level in several)
    if not levels:
        raise ValueError("sigma must hold at least one level, got an empty sequence.")
    return levels
