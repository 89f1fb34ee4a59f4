"""The table of algorithms that jitter is defined for, each with its textbook step, tilted by w."""

from collections.abc import Callable
from dataclasses import dataclass

import deepinv as dinv
import torch
from torch import nn

import deepinv_jitter as dj

SIZE = (1, 9, 7)
ETA = 0.4
K = 4


class Network(nn.Sequential):
    """A small non-linear f_theta."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 1, 3, padding=1)
        )


def physics(dtype=torch.float64):
    mask = (torch.rand(SIZE, generator=torch.Generator().manual_seed(1)) > 0.4).to(dtype)
    return dinv.physics.Inpainting(img_size=SIZE, mask=mask).to(dtype)


def gd(x, z, k, w, net, grad, prox):
    return x - ETA * (grad(x) + net(x) + w), z


def pgd(x, z, k, w, net, grad, prox):
    return net(x - ETA * (grad(x) + w)), z


def fista(x, z, k, w, net, grad, prox):
    new = net(z - ETA * (grad(z) + w))
    return new, new + (k + 2) / (k + 3) * (new - x)


def hqs(x, z, k, w, net, grad, prox):
    return net(prox(x - ETA * w)), z


def admm(x, z, k, w, net, grad, prox):
    u = prox(x - z - ETA * w)
    new = net(u + z)
    return new, z + u - new


def drs(x, z, k, w, net, grad, prox):
    u = prox(z - ETA * w)
    new = net(2 * u - z)
    return new, z + new - u


def pdcp(x, dual, k, w, net, grad, prox):
    """The dual step is p - prox of f_k at p, by Moreau's identity with the dual step size 1."""
    z, u = dual if isinstance(dual, tuple) else (x, dual)
    u = u + z - prox(u + z - w, 1.0)
    new = net(x - ETA * u)
    return new, (2 * new - x, u)


@dataclass
class Algorithm:
    model: type
    prior: type
    # (x_k, z_k, k, w_k, network, gradient of f, prox of eta f) -> x_{k+1}, z_{k+1}
    step: Callable
    # z_0 is A^T y, or y if it is dual
    dual: bool = False

    def build(self, dtype=torch.float64, network=None, **kwargs):
        """The plain host model."""
        return self.model(
            data_fidelity=dinv.optim.L2(),
            prior=self.prior(network or Network()),
            stepsize=kwargs.pop("stepsize", ETA),
            max_iter=K,
            unfold=True,
            trainable_params=kwargs.pop("trainable_params", ["stepsize"]),
            **kwargs,
        ).to(dtype)

    def reference(self, y, physics, network, noise):
        """The recursion written out, with the noise of every iteration given."""
        m = physics.mask
        x = m * y
        z = y if self.dual else x
        for k, w in enumerate(noise):
            x, z = self.step(
                x,
                z,
                k,
                w,
                network,
                lambda v: m * (m * v - y),
                lambda v, eta=ETA: (v + eta * m * y) / (1 + eta * m**2),
            )
        return x


ALGORITHMS = {
    "GD": Algorithm(dinv.optim.GD, dj.GradientPrior, gd),
    "PGD": Algorithm(dinv.optim.PGD, dj.ProximalPrior, pgd),
    "FISTA": Algorithm(dinv.optim.FISTA, dj.ProximalPrior, fista),
    "HQS": Algorithm(dinv.optim.HQS, dj.ProximalPrior, hqs),
    "ADMM": Algorithm(dinv.optim.ADMM, dj.ProximalPrior, admm),
    "DRS": Algorithm(dinv.optim.DRS, dj.ProximalPrior, drs),
    # with the Bregman distance of the squared norm, which is the default
    "MD": Algorithm(dinv.optim.MD, dj.GradientPrior, gd),
    "PMD": Algorithm(dinv.optim.PMD, dj.ProximalPrior, pgd),
    "PDCP": Algorithm(dinv.optim.PDCP, dj.ProximalPrior, pdcp, dual=True),
}
