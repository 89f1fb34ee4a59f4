r"""The problems that are timed: operators, networks and single training steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import deepinv as dinv
import torch
from plain import PlainNetwork
from torch import nn

import deepinv_jitter as dj

K = 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """A problem at one size."""

    name: str
    kind: str  # "mri", "seismic" or "points"
    size: tuple[int, ...]
    batch: int
    depth: int = 8
    width: int = 64
    iterations: int = K
    device: str = "cpu"

    def truth(self) -> torch.Tensor:
        channels = {"mri": (2,), "seismic": (1,), "points": ()}[self.kind]
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, *channels, *self.size, generator=rng)
        return x.to(self.device)

    def physics(self) -> dinv.physics.LinearPhysics:
        if self.kind == "mri":
            masks = dj.FastMRIMaskGenerator(self.size, acceleration=4, seed=0)
            physics = dj.SingleCoilMRI(img_size=self.size)
            physics.update(**masks.step(self.batch))
        elif self.kind == "seismic":
            physics = dj.SeismicConvolution()
        else:
            physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
        return physics.to(self.device)

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        if self.kind == "points":
            return dj.PointMLP().to(self.device)
        body = dj.UnrolledDnCNN(
            2 if self.kind == "mri" else 1,
            depth=self.depth,
            width=self.width,
            condition_channels=int(self.kind == "seismic"),
        )
        # Not at zero, where the gradient of an attack would be missing its larger part
        nn.init.normal_(body.body[-1].weight, std=0.01)
        return body.to(self.device)

    def model(self, jitter: float | None = None, **options) -> dj.UnfoldedGD:
        prior = dj.GradientPrior(self.network(), reads_y=self.kind == "seismic")
        noise = None if jitter is None else dj.GaussianJitter(jitter, "relative")
        options = {"stepsize": 0.5, "max_iter": self.iterations} | options
        return dj.UnfoldedGD(prior, jitter=noise, **options).to(self.device)

    def plain_model(self, jitter: float = 0.0) -> PlainNetwork:
        physics = self.physics()
        if self.kind == "mri":
            host = dinv.physics.MRI(physics.mask, (2, *self.size), device=self.device)

            def gram(x):
                return host.A_adjoint(host.A(x))

            adjoint = host.A_adjoint
        else:
            A = self.dense()

            def gram(x):
                return (A.T @ A) @ x if self.kind == "seismic" else x @ (A.T @ A)

            def adjoint(y):
                return A.T @ y if self.kind == "seismic" else y @ A

        reads_y = self.kind == "seismic"
        options = self.iterations, jitter, reads_y
        return PlainNetwork(self.network(), gram, adjoint, *options).to(self.device)

    def dense(self) -> torch.Tensor:
        """The operator of a section or a point as a matrix."""
        if self.kind == "points":
            return torch.eye(self.size[0], device=self.device)
        eye = torch.eye(self.size[0], device=self.device)[None, None]
        return self.physics().A(eye)[0, 0].contiguous()

    def batch_of(self) -> tuple[torch.Tensor, torch.Tensor, dinv.physics.LinearPhysics]:
        x, physics = self.truth(), self.physics()
        return x, physics.A(x), physics

    def step(self, model: nn.Module, attack: dj.Attack | None = None) -> Callable:
        """A training step of one of our models, as its trainer makes it."""
        x, y, physics = self.batch_of()
        trainer = self.trainer(model, physics, attack)
        trainer.setup_train()

        def step() -> None:
            model.train()
            trainer.compute_loss(trainer.physics[0], x, y, train=True, step=True)

        return step

    def trainer(self, model, physics, attack=None, **options) -> dj.JitterTrainer:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        common = {"device": self.device, "save_path": None, "verbose": False} | options
        loader = common.pop("train_dataloader", [])
        if attack is None:
            return dj.JitterTrainer(model, physics, optimizer, loader, **common)
        return dj.AttackTrainer(model, physics, optimizer, loader, attack=attack, **common)

    def floor(self, memory_format: torch.memory_format | None = None) -> Callable:
        """The network alone, K times forward and backward: what no training can undercut."""
        network, (x, y, _) = self.network(), self.batch_of()
        if memory_format is not None:
            network = network.to(memory_format=memory_format)
        reads_y = self.kind == "seismic"

        def floor() -> None:
            z = x
            for _ in range(self.iterations):
                z = network(z, y) if reads_y else network(z)
            network.zero_grad()
            z.square().mean().backward()

        return floor


def cases(quick: bool, device: str) -> dict[str, Case]:
    """All cases, or small ones for a try of the whole program."""
    tiny = {"batch": 1, "width": 8, "depth": 3} if quick else {}
    side = {"MRI 96": 24, "MRI 160": 32, "seismic 128": 32, "seismic 352": 48}
    made = {}
    for name, kind, size, batch, depth in (
        ("MRI 96", "mri", 96, 2, 8),
        ("MRI 160", "mri", 160, 2, 8),
        ("seismic 128", "seismic", 128, 4, 5),
        ("seismic 352", "seismic", 352, 1, 5),
    ):
        size = side[name] if quick else size
        options = {"size": (size, size), "batch": batch, "depth": depth} | tiny
        made[name] = Case(name=name, kind=kind, device=device, **options)
    made["points"] = Case(
        name="points", kind="points", size=(2,), batch=200, iterations=10, device=device
    )
    return made
