r"""
Methods without training, for the reference rows of the tables.

Gradients pass through all of them, so that they can be attacked like the rest.
"""

from __future__ import annotations

import deepinv as dinv
import torch
from deepinv.models import Reconstructor, TVDenoiser

# Chambolle-Pock: tau * sigma * ||nabla||^2 <= 1 with ||nabla||^2 <= 8. For images in [0, 1] a long
# primal step is the faster one.
TAU = 3.0


class Adjoint(Reconstructor):
    r"""The backprojection :math:`\eta A^\top y`."""

    def __init__(self, stepsize: float = 1.0):
        super().__init__()
        self.stepsize = stepsize

    def forward(self, y, physics, **kwargs):
        return self.stepsize * physics.A_adjoint(y)


def sparse(stepsize: float, max_iter: int, weight: float) -> Reconstructor:
    r"""FISTA on :math:`\frac12\|Ax-y\|^2 + \lambda\|x\|_1`."""
    return dinv.optim.FISTA(
        data_fidelity=dinv.optim.L2(),
        prior=dinv.optim.L1Prior(),
        lambda_reg=weight,
        stepsize=stepsize,
        max_iter=max_iter,
        unfold=True,
        trainable_params=[],
    )


def total_variation(max_iter: int, weight: float) -> Reconstructor:
    r"""
    Chambolle and Pock on :math:`\frac12\|Ax-y\|^2 + \lambda\|\nabla x\|_{2,1}`, without the inner
    loop that the proximal operator of the total variation needs.
    """
    return dinv.optim.PDCP(
        K=TVDenoiser.nabla,
        K_adjoint=TVDenoiser.nabla_adjoint,
        data_fidelity=dinv.optim.L2(),
        prior=dinv.optim.L12Prior(l2_axis=-1),
        lambda_reg=weight,
        stepsize=TAU,
        stepsize_dual=1 / (8 * TAU),
        max_iter=max_iter,
        g_first=True,
        custom_init=_start,
        unfold=True,
        trainable_params=[],
    )


def _start(y: torch.Tensor, physics) -> tuple[torch.Tensor, ...]:
    x = physics.A_adjoint(y)
    return x, x, torch.zeros_like(TVDenoiser.nabla(x))
