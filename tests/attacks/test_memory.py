"""Models that keep something from call to call give results that depend on no other sample."""

import functools

import deepinv as dinv
import pytest
import torch
from torch import nn

import deepinv_jitter as dj
from deepinv_jitter.memory import Memory, evaluated, forgetful


class Remembering(nn.Module):
    """Everything that a module may keep: bound anew, written to, new, in a container."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last", None)
        self.calls, self.seen, self.notes = 0, [], {"calls": 0}
        self.plain = torch.zeros(2)
        self.child = None  # until it is needed

    def forward(self, y, physics=None):
        memory = self.count + self.calls + len(self.seen) + self.notes["calls"]
        memory = memory + self.plain.sum() + len(getattr(self, "new", ()))
        memory = memory + (0 if self.last is None else self.last.sum())
        self.count += 1
        self.last = y.detach()
        self.calls += 1
        self.seen.append(y)
        self.notes["calls"] += 1
        self.plain.add_(1)
        self.new = [1]
        self.child = nn.Linear(1, 1)
        return self.weight * y + memory


class Listed(nn.Module):
    """As an algorithm of deepinv that is not unfolded, which keeps its priors in a list."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = {"prior": list(parts)}

    def forward(self, y, physics=None):
        return self.parts["prior"][0](y, physics)


@pytest.mark.parametrize("wrap", [lambda m: m, Listed, nn.Sequential])
def test_every_call_is_the_first(wrap):
    inner = Remembering()
    model, y = wrap(inner), torch.ones(1, 2)
    before = {k: (id(v), str(v)) for k, v in vars(inner).items()}
    buffer, seen, names = inner.count, inner.seen, list(model.state_dict())
    with forgetful(model):
        outs = [model(y) for _ in range(3)]
    assert all(torch.equal(out, y) for out in outs)
    assert {k: (id(v), str(v)) for k, v in vars(inner).items()} == before
    assert inner.count is buffer and inner.seen is seen and not seen
    assert list(model.state_dict()) == names and not list(inner.children())
    model(y)
    assert inner.count == 1 and inner.calls == 1
    assert not torch.equal(model(y), y)


def test_parameters_modes_and_hooks_are_left_alone():
    model = Remembering()
    with forgetful(model):
        handle = model.register_forward_hook(lambda *_: fired.append(1))
        fired = []
        with torch.no_grad():
            model.weight.fill_(2)
        model.eval()
        model(torch.ones(1, 2))
    assert model.weight.tolist() == [2, 2] and not model.training and fired
    handle.remove()


def test_gradients_are_those_of_the_call():
    """What a call has written must not change before its gradient is taken."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, y):
            self.count += 2
            return y * self.count

    model, y = Counting(), torch.ones(3, requires_grad=True)
    count = model.count
    with forgetful(model):
        (g,) = torch.autograd.grad(model(y).sum(), y)
    assert g.tolist() == [2, 2, 2] and model.count is count and not count


def test_a_part_repeated_in_the_backward_pass_finds_what_the_call_had_set():
    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = torch.zeros(())

        def forward(self, y):
            self.level = y.detach().max()
            step = lambda y: (y * self.level).sin()  # noqa: E731
            return torch.utils.checkpoint.checkpoint(step, y, use_reentrant=False)

    model, y = Conditioned(), torch.ones(3, requires_grad=True)
    with forgetful(model):
        for k in (1, 2):
            (g,) = torch.autograd.grad(model(k * y).sum(), y)
            assert torch.allclose(g, k * k * torch.tensor(k * k).cos())
    assert model.level == 0


def test_in_inference_mode():
    model, y = Remembering(), torch.ones(1, 2)
    with torch.inference_mode(), forgetful(model):
        assert all(torch.equal(model(y), y) for _ in range(3))
    assert model.count == 0 and model.calls == 0


def test_it_ends_with_an_exception():
    model = Remembering()
    with pytest.raises(KeyboardInterrupt), forgetful(model):
        model(torch.ones(1, 2))
        raise KeyboardInterrupt
    assert model.calls == 0
    model(torch.ones(1, 2))
    model(torch.ones(1, 2))
    assert model.calls == 2


def test_evaluation_mode_reaches_what_the_memory_does():
    """So jitter and dropout are silent in the denoiser of an algorithm that is not unfolded."""

    class Silent(dinv.models.Denoiser):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Dropout(), dj.Jitter(0.1))

        def forward(self, x, sigma=None):
            return self.body(x)

    physics, y = dinv.physics.Denoising(), torch.ones(1, 1, 4, 4)
    prior = dinv.optim.PnP(Silent())
    model = dinv.optim.PGD(prior=prior, data_fidelity=dinv.optim.L2(), max_iter=3)
    with evaluated(model):
        assert torch.equal(model(y, physics), y)
    assert all(m.training for m in prior.modules())
    prior.denoiser.body[0].p = 0.0
    with dj.no_jitter(model):
        assert torch.equal(model(y, physics), y)
    assert not torch.equal(model(y, physics), y)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: nn.Sequential(nn.DataParallel(m))])
def test_modes_of_parallel_wrappers_are_as_before(wrap):
    model = wrap(nn.Dropout())
    with evaluated(model):
        assert torch.equal(model(torch.ones(9)), torch.ones(9))
    assert all(m.training for m in model.modules())


def test_memory_brings_back_what_was_replaced():
    physics = dinv.physics.Inpainting((1, 4, 4), mask=torch.ones(1, 1, 4, 4))
    physics.noise_model = dinv.physics.GaussianNoise(0.1)
    mask, sigma = physics.mask, physics.noise_model.sigma
    memory = Memory(physics.modules())
    physics.update(mask=torch.zeros(3, 1, 4, 4), sigma=torch.ones(3))
    memory.restore()
    assert physics.mask is mask and physics.noise_model.sigma is sigma


def tv(unfold):
    prior = dinv.optim.TVPrior(n_it_max=5)
    return dinv.optim.PGD(
        data_fidelity=dinv.optim.L2(), prior=prior, lambda_reg=0.1, stepsize=1.0,
        max_iter=2, unfold=unfold, trainable_params=["stepsize"] if unfold else None,
    )  # fmt: skip


def tgv(unfold):
    prior = dinv.optim.PnP(dinv.models.TGVDenoiser(n_it_max=5))
    return dinv.optim.PGD(
        data_fidelity=dinv.optim.L2(), prior=prior, sigma_denoiser=0.1, stepsize=1.0,
        max_iter=2, unfold=unfold, trainable_params=["stepsize"] if unfold else None,
    )  # fmt: skip


X = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
PHYSICS = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))


@pytest.mark.parametrize("build", [tv, tgv])
@pytest.mark.parametrize("unfold", [True, False])
def test_reports_do_not_depend_on_the_order_of_samples(build, unfold):
    attack = dj.RandomAttack(dj.L2Ball(1.0), samples=3)
    options = {"epsilons": [0.5], "attacks": attack, "draws": 2, "verbose": False}
    with torch.no_grad():
        y = [PHYSICS(x[None]) for x in X]
    batches = [(x[None], y) for x, y in zip(X, y, strict=True)]
    model = build(unfold)
    with torch.no_grad():
        fresh = build(unfold)(y[0], PHYSICS)
        model(y[1], PHYSICS)  # what it remembers from before
        expected = model(y[0], PHYSICS)
    assert not torch.equal(fresh, expected)
    model = build(unfold)
    forth, back = (
        dj.evaluate_robustness(model, order, PHYSICS, **options)
        for order in (batches, batches[::-1])
    )
    error = (fresh - X[:1]).double().square().sum().item()
    assert forth.values["clean"]["squared error"][0].item() == pytest.approx(error)
    assert "stochastic_model" not in forth.flags
    assert torch.equal(
        forth.values["clean"]["squared error"], back.values["clean"]["squared error"].flip(0)
    )


def test_attacks_and_risks_see_a_model_without_memory():
    model = tv(True)
    x, y = X[:1], PHYSICS(X[:1])
    attack = dj.FrankWolfeAttack(dj.L2Ball(0.5), steps=3)
    first, second = (attack.run(model, x, y, PHYSICS) for _ in range(2))
    assert torch.equal(first.delta, second.delta)
    assert torch.equal(first.loss, second.loss)
    assert not first.flags["stochastic_model"].any()
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()

    def risks():
        generator.set_state(state)
        shared = {"samples": 2, "generator": generator}
        return [
            dj.average_case_risk(model, x, y, PHYSICS, sigma_e=0.1, **shared),
            dj.generalization_risk(model, x, y, PHYSICS, sigma_g=0.1, **shared),
            dj.worst_case_risk(model, x, y, PHYSICS, attack=attack),
        ]

    for one, two in zip(risks(), risks(), strict=True):
        assert torch.equal(one.values, two.values)


def test_a_buffer_that_counts_is_as_before_an_attack():
    model = Remembering()
    y = torch.randn(3, 2)
    dj.FrankWolfeAttack(dj.L2Ball(0.1), steps=2)(model, y, y, dinv.physics.Denoising())
    assert model.count == 0 and model.last is None and not model.seen


class Holding(nn.Module):
    """A model that was built with its physics, and asks that one."""

    def __init__(self, physics):
        super().__init__()
        self.physics = physics
        self.scale = nn.Parameter(torch.tensor(0.9))

    def forward(self, y, physics):
        assert physics is self.physics
        return self.scale * self.physics.A_adjoint(y)


def test_the_physics_of_a_model_has_the_parameters_of_the_batch():
    mask = (torch.arange(64).reshape(1, 1, 8, 8) % 3 > 0).float()
    physics = dinv.physics.Inpainting((1, 8, 8), mask=torch.ones(1, 1, 8, 8))
    x = X[..., :8, :8]
    options = {"epsilons": [0.5], "attacks": "quick", "draws": 2, "verbose": False}
    data = [{"x": x, "params": {"mask": mask}}]
    held = dj.evaluate_robustness(Holding(physics), data, physics, **options)
    given = dinv.physics.Inpainting((1, 8, 8), mask=mask)
    plain = dj.evaluate_robustness(Holding(given), [x], given, **options)
    for label, columns in plain.values.items():
        assert torch.equal(held.values[label]["squared error"], columns["squared error"])
    assert physics.mask.all()


@pytest.mark.parametrize("how", ["script", "compile"])
def test_compiled_parts_of_a_model(how):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1))
            eager = functools.partial(torch.compile, backend="eager")
            self.net = {"script": torch.jit.script, "compile": eager}[how](net)

        def forward(self, y, physics):
            return self.net(y)

    model = Wrapped().eval()
    options = {"epsilons": [0.5], "attacks": "quick", "draws": 2, "verbose": False}
    report = dj.evaluate_robustness(model, [X], PHYSICS, **options)
    assert report.values["worst case, eps=0.5"]["squared error"].isfinite().all()
