"""Equation (10) and the identity behind it, against the recursion written out."""

import math

import deepinv as dinv
import pytest
import torch
from expansion import implicit_regularization, trajectory_deviation
from properties import assert_global_rng_untouched
from torch import nn

import deepinv_jitter as dj

DENOISING = dinv.physics.Denoising()


def noise(sigma=0.4, scale="std", seed=0):
    return dj.GaussianJitter(sigma, scale, torch.Generator().manual_seed(seed))


class Softplus(nn.Sequential):
    def __init__(self, *extra):
        super().__init__(nn.Linear(3, 8), nn.Softplus(), *extra, nn.Linear(8, 3))


def unrolled(network=None, **kwargs):
    """An unrolled denoiser of three-dimensional points, in double precision."""
    arguments = {"stepsize": 0.3, "max_iter": 5} | kwargs
    model = dj.UnfoldedGD(Softplus() if network is None else network, **arguments)
    return model.to(torch.float64)


def points():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(4, 3, generator=generator, dtype=torch.float64)


def differences(f, y, etas, noises):
    """f along the clean minus f along the noisy recursion, written out."""
    clean, noisy, found = y, y, []
    for eta, w in zip(etas, noises, strict=True):
        found.append(f(clean) - f(noisy))
        clean = clean - eta * ((clean - y) + f(clean))
        noisy = noisy - eta * ((noisy - y) + f(noisy) + w)
    return found


def weighted_sum(etas, terms):
    """sum_i eta_i prod_{j > i} (1 - eta_j) terms_i."""
    total = 0
    for i, term in enumerate(terms):
        total = total + etas[i] * math.prod(1 - eta for eta in etas[i + 1 :]) * term
    return total


STEPS = {"constant": 0.3, "one per iteration": [0.5, 0.1, 0.9, 0.3, 0.2]}


@pytest.mark.parametrize("stepsize", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("jitter", [None, 5.0])
def test_implicit_regularization_is_equation_10(stepsize, jitter):
    """Whatever noise the model itself was trained with."""
    y, model = points(), unrolled(stepsize=stepsize, jitter=jitter)
    etas = stepsize if isinstance(stepsize, list) else [stepsize] * 5
    etas = torch.tensor(etas).to(y).tolist()  # as the parameters round them
    risk = implicit_regularization(model, y, DENOISING, noise(), samples=6)
    fresh, draws = noise(), []
    for _ in range(6):
        noises = [fresh(y) for _ in range(5)]
        with torch.no_grad():
            terms = differences(model.prior[0].network, y, etas, noises)
        draws.append(weighted_sum(etas, terms).square().sum(1))
    draws = torch.stack(draws)
    assert (risk.values - draws.mean(0)).abs().max() < 1e-10
    assert (risk.standard_errors - draws.std(0) / 6**0.5).abs().max() < 1e-10


class Reader(nn.Linear):
    """A network that also reads the measurements."""

    def __init__(self):
        super().__init__(6, 3)

    def forward(self, x, y):
        return super().forward(torch.cat([x, y], 1)).tanh()


# the model, the noise
MODELS = {
    "network": (unrolled, {}),
    "dropout": (lambda: unrolled(Softplus(nn.Dropout(0.5))), {}),
    "one network per iteration": (lambda: unrolled([Softplus() for _ in range(5)]), {}),
    "steps": (lambda: unrolled(stepsize=STEPS["one per iteration"], lambda_reg=0.7), {}),
    "logarithmic step": (lambda: unrolled(positive_stepsize=True), {}),
    "checkpoint": (lambda: unrolled(checkpoint=True), {}),
    "reads y": (lambda: unrolled(dj.GradientPrior(Reader(), reads_y=True)), {}),
    "levels": (unrolled, {"sigma": [0.1, 0.0, 0.5, 0.2, 0.0]}),
    "relative": (unrolled, {"sigma": 0.3, "scale": "relative"}),
    "other start": (lambda: unrolled(init=lambda y, physics: 2 * y), {}),
}


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_both_sides_of_the_trajectory_identity(case):
    build, options = case
    model, y = build(), points()
    before, state = model.fixed_point.iterator, model.state_dict()
    state = {k: v.clone() for k, v in state.items()}
    with assert_global_rng_untouched():
        left, right = trajectory_deviation(model, y, DENOISING, noise(**options))
    assert left.abs().max() > 1e-2 and (left - right).abs().max() < 1e-12
    assert model.fixed_point.iterator is before
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_the_sign_and_the_number_of_noise_terms():
    """Without a network the deviation is the weighted noise of K iterations, negative."""
    model = unrolled(nn.Linear(3, 3, bias=False))
    nn.init.zeros_(model.prior[0].network.weight)
    y, fresh = points(), noise()
    left, _ = trajectory_deviation(model, y, DENOISING, noise())
    etas = [model.update_params_fn(0)["stepsize"].item()] * 5
    noise_term = weighted_sum(etas, [fresh(y) for _ in range(5)])
    assert (left + noise_term).abs().max() < 1e-12
    assert not implicit_regularization(model, y, DENOISING, noise()).values.any()


def test_an_exception_on_the_noisy_trajectory_restores_the_iterator():
    class BreaksOnNoise(nn.Linear):
        calls = 0

        def forward(self, x):
            # Of the class: a model keeps nothing from call to call
            BreaksOnNoise.calls += 1
            if self.calls > 13:
                raise RuntimeError("broken network")
            return super().forward(x)

    model = unrolled(BreaksOnNoise(3, 3), jitter=0.4)
    iterator = model.fixed_point.iterator
    with pytest.raises(RuntimeError, match="broken network"):
        implicit_regularization(model, points(), DENOISING, noise())
    assert model.fixed_point.iterator is iterator
    assert not iterator.iterator._forward_pre_hooks
    assert all(module.training for module in model.modules())
