"""What an attack leaves as it was: buffers, attributes and generators of model and physics."""

import deepinv as dinv
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import deepinv_jitter as dj

ATTACK = dj.PGDAttack(dj.L2Ball(0.5), steps=3)


class Counting(nn.Module):
    """A buffer written to, one replaced, one born on the way."""

    def __init__(self):
        super().__init__()
        self.register_buffer("written", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("absent", None)

    def forward(self, y):
        self.written += 1
        self.replaced = self.replaced + 1
        self.absent = torch.ones(1)
        if not hasattr(self, "born"):
            self.register_buffer("born", torch.ones(1))
        return 2 * y


class WarmStart(nn.Module):
    """Starts from where it ended, counts its calls, and draws from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.last, self.calls = None, 0
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, y):
        self.last = y.detach() if self.last is None else 0.5 * (self.last + y.detach())
        self.calls += 1
        return y * (1 + torch.rand((), generator=self.generator))


class StaysInTrainMode(nn.Module):
    """As nets do whose author forgot the flag of train."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def train(self, mode=True):
        self.training = mode
        self.body.train()
        return self

    def forward(self, y):
        return self.body(y)


class Shared(nn.Module):
    """One buffer in two places stays one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Module(), nn.Module()
        self.a.register_buffer("count", torch.zeros(()))
        self.b.register_buffer("count", self.a.count)

    def forward(self, y):
        self.a.count += 1
        assert self.b.count is self.a.count
        return 2 * y


BODIES = {
    "counter": Counting,
    "warm start": WarmStart,
    "batch norm": lambda: StaysInTrainMode(nn.BatchNorm1d(6)),
    "spectral norm": lambda: StaysInTrainMode(parametrizations.spectral_norm(nn.Linear(6, 6))),
    "shared": Shared,
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.BatchNorm1d(6))),
}


class Model(nn.Module):
    def __init__(self, body, fails=None):
        super().__init__()
        # A number would be forgotten from call to call
        self.body, self.fails, self.calls = body, fails, iter(range(1, 100))

    def forward(self, y, physics):
        out = self.body(y)
        if next(self.calls) == self.fails:
            raise ArithmeticError("failed")
        return out


class CountingPhysics(dinv.physics.Denoising):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def A(self, x, **kwargs):
        self.calls += 1
        self.solver = "changed"
        return x


def memory(*roots):
    """Values and identities of all that modules remember."""
    parts = [p for r in roots for p in getattr(r, "physics_list", [r])]
    found = [m for part in parts for m in part.modules()]
    return [
        (
            {k: (id(v), str(v)) for k, v in m._buffers.items()},
            {k: str(v) for k, v in vars(m).items() if k != "generator"},
            m.training,
            [g.get_state().tolist() for g in vars(m).values() if hasattr(g, "seed")],
        )
        for m in found
    ]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("fails", [None, 2])
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    "attack",
    [ATTACK, dj.RandomAttack(dj.L2Ball(0.5), samples=2), ATTACK.repeat(2)],
    ids=["PGD", "random", "repeat"],
)
def test_model_and_physics_are_as_before(attack, stacked, name, fails):
    torch.manual_seed(0)
    model, physics = Model(BODIES[name](), fails), CountingPhysics()
    x = torch.randn(4, 6)
    y = x
    if stacked:
        physics = dinv.physics.stack(physics, CountingPhysics())
        y = physics.A(x)
        model.register_forward_pre_hook(lambda model, args: (args[0][0], None))
    before = memory(model, physics)
    if fails:
        with pytest.raises(ArithmeticError):
            attack.run(model, x, y, physics)
    else:
        assert attack.run(model, x, y, physics).loss.isfinite().all()
    assert memory(model, physics) == before


def test_a_graph_from_before_is_still_valid():
    """Batch norm saves its statistics for the backward pass: writing them back would break it."""
    model = Model(StaysInTrainMode(nn.BatchNorm1d(6)))
    x = torch.randn(4, 6)
    physics = dinv.physics.Denoising()
    loss = model(x, physics).square().sum()
    ATTACK(model, x, x, physics)
    loss.backward()
    assert model.body.body.weight.grad is not None
