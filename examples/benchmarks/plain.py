r"""
The plainest way to train, as the paper's published code does it: the baseline of the benchmarks.

Dense operators, :math:`A^\top A` and :math:`A^\top y` anew in every iteration, the gradient step
computed a second time under jitter for the scale of its noise, and attacks that differentiate to
the weights as well (``loss.backward()`` on all). Written from the description of the method, for
timing alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class PlainNetwork(nn.Module):
    r"""
    Unrolled gradient descent, eq. (4), and with ``jitter`` eq. (8).

    :param torch.nn.Module network: the network, called with the iterate and, if ``reads_y``, the
        measurements.
    :param Callable gram: ``x`` to :math:`A^\top A x`.
    :param Callable adjoint: ``y`` to :math:`A^\top y`.
    """

    def __init__(
        self,
        network: nn.Module,
        gram: Callable,
        adjoint: Callable,
        iterations: int,
        jitter: float = 0.0,
        reads_y: bool = False,
    ):
        super().__init__()
        self.network, self.gram, self.adjoint = network, gram, adjoint
        self.iterations, self.jitter, self.reads_y = iterations, jitter, reads_y
        self.eta = nn.Parameter(torch.tensor(0.5))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        x = self.adjoint(y)
        for _ in range(self.iterations):
            step = x - self.eta * (self.gram(x) - self.adjoint(y))
            if self.jitter and self.training:
                w = self.jitter * step.max() * torch.randn_like(x)
                step = x - self.eta * (self.gram(x) - self.adjoint(y) + w)
            body = self.network(x, y) if self.reads_y else self.network(x)
            x = step - self.eta * body
        return x


def attacked(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> torch.Tensor:
    """Measurements after projected gradient ascent, gradients taken to everything."""
    delta = torch.zeros_like(y, requires_grad=True)
    for _ in range(steps):
        (model(y + delta) - x).square().sum().backward()
        with torch.no_grad():
            delta += 0.1 * delta.grad / delta.grad.norm()
            delta *= (1 / delta.norm()).clamp(max=1)
        delta.grad = None
    return y + delta.detach()


def training_step(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int = 0
) -> Callable[[], None]:
    """One step of training, with attacked measurements if ``steps`` is positive."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        measured = attacked(model, x, y, steps) if steps else y
        optimizer.zero_grad()
        (model(measured) - x).square().mean().backward()
        optimizer.step()

    return step
