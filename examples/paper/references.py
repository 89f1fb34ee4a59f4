r"""Methods without training, for the reference rows of the tables."""

from __future__ import annotations

from collections.abc import Callable

import deepinv as dinv


class Adjoint(dinv.models.Reconstructor):
    r"""The backprojection :math:`\eta A^\top y`."""

    def __init__(self, stepsize: float = 1.0):
        super().__init__()
        self.stepsize = stepsize

    def forward(self, y, physics, **kwargs):
        return self.stepsize * physics.A_adjoint(y)


class Classical(dinv.models.Reconstructor):
    r"""
    FISTA on :math:`\frac12\|Ax-y\|^2 + \lambda r(x)`, which gradients pass through, so that it can
    be attacked like the rest.
    """

    def __init__(self, prior: Callable, stepsize: float, max_iter: int, weight: float):
        super().__init__()
        self.prior, self.weight = prior, weight
        self.stepsize, self.max_iter = stepsize, max_iter

    def forward(self, y, physics, **kwargs):
        # Built anew at each call: the host's TV denoiser starts from where its last call ended
        algorithm = dinv.optim.FISTA(
            data_fidelity=dinv.optim.L2(),
            prior=self.prior(),
            lambda_reg=self.weight,
            stepsize=self.stepsize,
            max_iter=self.max_iter,
            unfold=True,
            trainable_params=[],
        )
        return algorithm(y, physics)
