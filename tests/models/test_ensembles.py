"""An ensemble is its models, one by one."""

import deepinv as dinv
import pytest
import torch
from algorithms import Network
from torch import nn

import deepinv_jitter as dj

POINTS = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))


def law(seed, scale="std", sigma=None):
    sigma = 0.1 * seed if sigma is None else sigma
    return dj.GaussianJitter(sigma, scale, torch.Generator().manual_seed(seed))


def points(seed, **kwargs):
    torch.manual_seed(seed)
    options = {"stepsize": 0.5, "max_iter": 4, "positive_stepsize": True} | kwargs
    return dj.UnfoldedGD(dj.PointMLP(hidden=8), **options).double()


def sections(seed, **kwargs):
    torch.manual_seed(seed)
    network = Network().double()
    return dj.UnfoldedPGD(network, stepsize=0.3, max_iter=3, **kwargs).double()


def hqs(seed):
    torch.manual_seed(seed)
    return dinv.optim.HQS(
        data_fidelity=dinv.optim.L2(),
        prior=dj.ProximalPrior(nn.Linear(2, 2)),
        stepsize=0.4,
        max_iter=3,
        unfold=True,
        trainable_params=["stepsize"],
    ).double()


def normalised(seed, **kwargs):
    """Batch normalisation, which learns in its buffers, too."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    options = {"stepsize": 0.5, "max_iter": 3} | kwargs
    return dj.UnfoldedPGD(network, **options).double()


def frozen(seed):
    model = points(seed)
    model.prior[0].network[0].requires_grad_(False)
    return model


def network(body):
    return dj.UnfoldedGD(
        body, stepsize=0.5, max_iter=4, positive_stepsize=True
    ).double()


def start(factor):
    return lambda y, physics: factor * y


# the model of a seed, the physics, the shape of its measurements
CASES = {
    "plain": (points, POINTS, (7, 2)),
    "norm": (lambda s: points(s, jitter=law(s, "norm")), POINTS, (7, 2)),
    "one is plain": (lambda s: points(s, jitter=law(s) if s else None), POINTS, (7, 2)),
    "one level is zero": (lambda s: points(s, jitter=law(s)), POINTS, (7, 2)),
    "one level per iteration": (
        lambda s: points(s, jitter=law(s, sigma=[0.1 * s, 0.0, 0.3, 0.1])),
        POINTS,
        (7, 2),
    ),
    "PGD, relative": (
        lambda s: sections(s, jitter=law(s, "relative")),
        dj.SeismicConvolution(dj.ricker(9, 2.0)).double(),
        (2, 1, 12, 5),
    ),
    "host": (
        lambda s: dj.jitter(hqs(s), law(s)),
        POINTS,
        (7, 2),
    ),
    "batch normalisation": (lambda s: normalised(s, jitter=law(s)), POINTS, (7, 2)),
    "some weights are frozen": (frozen, POINTS, (7, 2)),
    "starts made alike": (lambda s: points(s, init=start(2)), POINTS, (7, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_trains_as_one_by_one(case):
    build, physics, shape = CASES[case]
    y = torch.randn(3, *shape, dtype=torch.float64)
    alone, together = ([build(s) for s in range(3)] for _ in range(2))
    start = [[p.clone() for p in m.parameters()] for m in alone]
    losses = []
    for model, own in zip(alone, y, strict=True):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(own, physics).square().mean()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
        losses.append((loss.item(), norm.item()))
    ensemble = dj.Ensemble(together)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        loss = ensemble(y, physics).square().flatten(1).mean(1)
        loss.sum().backward()
        norms = ensemble.clip_grad_norm_(0.05)
        optimizer.step()
    expected = torch.tensor(losses, dtype=torch.float64).T
    assert torch.allclose(torch.stack([loss, norms]), expected, rtol=1e-9)
    for model, other, weights in zip(ensemble.unstack(), alone, start, strict=True):
        for p, q, before in zip(
            model.parameters(), other.parameters(), weights, strict=True
        ):
            assert torch.allclose(p, q, rtol=1e-9, atol=1e-12)
            assert torch.equal(p, before) != p.requires_grad
        for p, q in zip(model.buffers(), other.buffers(), strict=True):
            assert torch.allclose(p, q, rtol=1e-9, atol=1e-12)
    # evaluation is free of noise, and the models are whole again
    ensemble.eval()
    outputs = torch.stack([m.eval()(own, physics) for m, own in zip(together, y)])
    assert torch.allclose(ensemble(y, physics), outputs, rtol=1e-9, atol=1e-12)


def test_models_are_left_alone_until_they_are_unstacked():
    models = [points(s, jitter=law(s)) for s in range(2)]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    ensemble = dj.Ensemble(models)
    y = torch.randn(2, 5, 2, dtype=torch.float64)
    ensemble(y, POINTS).sum().backward()
    with torch.no_grad():
        for p in ensemble.parameters():
            p.add_(1.0)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
        model(y[0], POINTS)
    assert ensemble.unstack() == models
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(v, state[k] + 1) for k, v in model.state_dict().items())


@pytest.mark.parametrize("build", [points, normalised])
def test_state_dict(build):
    first, second = (dj.Ensemble([build(s + k) for s in range(2)]) for k in (0, 5))
    y = torch.randn(2, 5, 2, dtype=torch.float64)
    first(y, POINTS)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.eval()(y, POINTS), first.eval()(y, POINTS))


def test_mode_and_noise_are_switched_as_in_the_models():
    y = torch.randn(2, 5, 2, dtype=torch.float64)
    plain = dj.Ensemble([points(s) for s in range(2)])(y, POINTS)
    ensemble = dj.Ensemble([points(s, jitter=law(1 + s)) for s in range(2)])
    with dj.no_jitter(ensemble):
        assert torch.allclose(ensemble(y, POINTS), plain, atol=1e-14)
    assert not torch.allclose(ensemble(y, POINTS), plain)
    models = [points(s, jitter=law(1 + s)).eval() for s in range(2)]
    assert torch.allclose(dj.Ensemble(models)(y, POINTS), plain, atol=1e-14)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


@pytest.mark.parametrize(
    "models, error, message",
    [
        ([], ValueError, "models must hold at least one model, got none"),
        (points(0), TypeError, "models must be a list of models, got UnfoldedGD"),
        (
            [points(0), points(1).float()],
            ValueError,
            "0 and 1 differ in shape, type, device or requires_grad of parameters of params",
        ),
        ([dj.PointMLP()], TypeError, "must be unrolled deepinv models .* got PointMLP"),
        ([points(0), points(0, max_iter=5)], ValueError, "must be alike"),
        (
            [points(0), points(0, lambda_reg=0.5)],
            ValueError,
            r"0 and 1 differ in params_algo.lambda, \[1.0\] and \[0.5\]: build them by one",
        ),
        (
            [points(0), points(1), points(2, data_fidelity=dj.NormalL2(0.5))],
            ValueError,
            "0 and 2 differ in data_fidelity.0.norm, 1.0 and 4.0",
        ),
        (
            [points(0), points(1, init=lambda y, physics: 3 * y)],
            ValueError,
            "differ in custom_init, <function adjoint .*lambda",
        ),
        (
            [points(0, init=start(2)), points(1, init=start(3))],
            ValueError,
            "differ in custom_init",
        ),
        (
            [points(0), network(dj.PointMLP(hidden=8, activation=nn.Softplus))],
            ValueError,
            "differ in prior.0.network.1, ReLU and Softplus",
        ),
        (
            [
                network(nn.Sequential(nn.Linear(2, 2), nn.Dropout(p)))
                for p in (0.1, 0.2)
            ],
            ValueError,
            "differ in prior.0.network.1.p, 0.1 and 0.2",
        ),
        ([points(0), frozen(1)], ValueError, "requires_grad of parameters of prior.0"),
        (
            [network(nn.Sequential(nn.Linear(2, 2), dj.Jitter(0.1)))],
            ValueError,
            "no other noise than that of their iterations",
        ),
        (
            [points(0), dj.UnfoldedGD(dj.PointMLP(hidden=4))],
            ValueError,
            "must be alike",
        ),
        (
            [points(0, jitter=law(1)), points(0, jitter=law(1, "norm"))],
            ValueError,
            r"one scale, got \['norm', 'std'\]",
        ),
        ([dj.UnfoldedGD(Tied())], ValueError, "share a weight between two layers"),
    ],
)
def test_refused(models, error, message):
    with pytest.raises(error, match=message):
        dj.Ensemble(models)


def test_measurements_of_every_model():
    ensemble = dj.Ensemble([points(0), points(1)])
    with pytest.raises(ValueError, match=r"each of the 2 models, got shape \(3, 2\)"):
        ensemble(torch.zeros(3, 2, dtype=torch.float64), POINTS)
    with pytest.raises(TypeError, match="y must be a torch.Tensor, got list"):
        ensemble([[0.0]], POINTS)


def test_clipping_refused():
    ensemble = dj.Ensemble([points(0), points(1)])
    with pytest.raises(ValueError, match="gradients must be there .* call backward"):
        ensemble.clip_grad_norm_(1.0)
    for norm in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="max_norm must be finite and at least 0"):
            ensemble.clip_grad_norm_(norm)


def test_an_absurd_level_is_refused():
    ensemble = dj.Ensemble([points(0, jitter=law(0, sigma=1e160)), points(1)])
    y = torch.zeros(2, 3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="squared norm of the noise is finite in"):
        ensemble.train()(y, POINTS)
