"""An ensemble is its models, one by one."""

import deepinv as dinv
import pytest
import torch
from ensembles import Ensemble
from torch import nn

import deepinv_jitter as dj

POINTS = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))


def noise(seed, scale="std", sigma=None):
    sigma = 0.1 * seed if sigma is None else sigma
    return dj.GaussianJitter(sigma, scale, torch.Generator().manual_seed(seed))


def points(seed, jitter=None):
    torch.manual_seed(seed)
    options = {"stepsize": 0.5, "max_iter": 4, "positive_stepsize": True}
    return dj.UnfoldedGD(dj.PointMLP(hidden=8), jitter=jitter, **options).double()


def sections(seed):
    torch.manual_seed(seed)
    network = dj.UnrolledDnCNN(1, depth=3, width=4)
    jitter = noise(seed, "relative")
    return dj.UnfoldedPGD(network, stepsize=0.3, max_iter=3, jitter=jitter).double()


# the model of a seed, the physics, the shape of its measurements
CASES = {
    "plain": (points, POINTS, (7, 2)),
    "norm": (lambda s: points(s, noise(s, "norm")), POINTS, (7, 2)),
    "one is plain": (lambda s: points(s, noise(s) if s else None), POINTS, (7, 2)),
    "one level is zero": (lambda s: points(s, noise(s)), POINTS, (7, 2)),
    "one level per iteration": (
        lambda s: points(s, noise(s, sigma=[0.1 * s, 0.0, 0.3, 0.1])),
        POINTS,
        (7, 2),
    ),
    "PGD, relative": (sections, dj.SeismicConvolution(dj.ricker(9, 2.0)).double(), (2, 1, 12, 5)),
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
        losses.append([loss.item(), norm.item()])
    ensemble = Ensemble(together)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        loss = ensemble(y, physics).square().flatten(1).mean(1)
        loss.sum().backward()
        norms = ensemble.clip_grad_norm_(0.05)
        optimizer.step()
    expected = torch.tensor(losses, dtype=torch.float64).T
    assert torch.allclose(torch.stack([loss, norms]), expected, rtol=1e-9)
    # the models are left alone until they are unstacked, and evaluated without noise
    for model, before in zip(together, start, strict=True):
        assert all(map(torch.equal, model.parameters(), before))
    for model, other in zip(ensemble.unstack(), alone, strict=True):
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-9, atol=1e-12)
    ensemble.eval()
    outputs = torch.stack([m.eval()(own, physics) for m, own in zip(together, y)])
    assert torch.allclose(ensemble(y, physics), outputs, rtol=1e-9, atol=1e-12)
