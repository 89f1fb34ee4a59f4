"""The data fidelities: what they add to the host's, and that they add nothing else."""

import copy

import deepinv as dinv
import pytest
import torch
from algorithms import ALGORITHMS, ETA, K, Network, physics
from properties import assert_same_gradients, gradients

import deepinv_jitter as dj
from deepinv_jitter.optim.fidelities import TiltedFidelity


class Counting(dinv.physics.Denoising):
    """A physics that counts its adjoints."""

    count = 0

    def A_adjoint(self, y, **kwargs):
        self.count += 1
        return super().A_adjoint(y, **kwargs)

    def A_adjoint_A(self, x, **kwargs):
        return x


def batch():
    x, y = torch.randn(2, 3, 1, 9, 7, dtype=torch.float64)
    return x, y, physics()


@pytest.mark.parametrize("sigma", [1.0, 0.3])
def test_is_the_host_s_l2(sigma):
    x, y, operator = batch()
    ours, hosts = dj.NormalL2(sigma), dinv.optim.L2(sigma)
    adjoint = operator.A_adjoint(y)
    for f in (ours, ours.given(adjoint)):
        assert torch.equal(f(x, y, operator), hosts(x, y, operator))
        assert torch.equal(f.grad(x, y, operator), hosts.grad(x, y, operator))
        near = f.prox(x, y, operator, gamma=0.7)
        assert torch.equal(near, hosts.prox(x, y, operator, gamma=0.7))


@pytest.mark.parametrize("known", [False, True])
def test_tilted_is_the_fidelity_plus_a_linear_term(known):
    x, y, operator = batch()
    w, f = torch.randn_like(x), dj.NormalL2(0.5)
    tilted = TiltedFidelity(f, w)
    if known:
        tilted = tilted.given(operator.A_adjoint(y))
    assert tilted.reads_adjoint != known
    assert torch.equal(tilted(x, y, operator), f(x, y, operator))
    assert torch.equal(tilted.grad(x, y, operator), f.grad(x, y, operator) + w)
    u = tilted.prox(x, y, operator, gamma=0.2)
    # the optimality of the proximal point, with the tilted gradient
    assert torch.allclose(u - x + 0.2 * (f.grad(u, y, operator) + w), 0 * u, atol=1e-8)
    assert not hasattr(TiltedFidelity(dinv.optim.L2(), w), "reads_adjoint")


class Quadratic(dinv.optim.DataFidelity):
    r"""f(x) = |x - y|^2 / 2, plus <w, x> if there is one: what the tilted one is compared with."""

    def __init__(self, w=None):
        super().__init__()
        self.w = w

    def grad(self, x, y, physics, *args, **kwargs):
        return x - y + (0 if self.w is None else self.w)


EXACT = {"max_iter_inter": 4000, "tol_inter": 1e-14, "stepsize_inter": 0.05}


@pytest.mark.parametrize(
    "method, options",
    [
        ("grad", {}),
        ("prox", {"gamma": 0.7} | EXACT),
        ("prox_conjugate", {"gamma": 0.7} | EXACT),
        ("prox_conjugate", {"gamma": 0.7, "lamb": 1.3} | EXACT),
        ("prox_conjugate", {} | EXACT),
        ("bregman_prox", {"gamma": 0.7} | EXACT),
    ],
)
def test_tilted_methods_are_those_of_the_sum(method, options):
    """The host's own numerical minimiser on f + <w, .>, without our rules."""
    x, y = torch.rand(2, 3, 4, dtype=torch.float64) + 0.5
    w, operator = 0.3 * torch.randn_like(x), dinv.physics.Denoising()
    bregman = [dinv.optim.bregman.NegEntropy()] if method == "bregman_prox" else []
    tilted = TiltedFidelity(Quadratic(), w)
    got = getattr(tilted, method)(x.clone(), *bregman, y, operator, **options)
    whole = getattr(Quadratic(w), method)(x.clone(), *bregman, y, operator, **options)
    plain = getattr(Quadratic(), method)(x.clone(), *bregman, y, operator, **options)
    assert torch.allclose(got, whole, atol=1e-9)
    assert not torch.allclose(got, plain, atol=1e-2)
    assert tilted.asked == {method}


@pytest.mark.parametrize("place", [(), (0.7,)])
def test_the_step_may_be_given_by_place_or_be_the_default(place):
    class Own(dinv.optim.DataFidelity):
        def prox(self, x, y, physics, gamma=0.4):
            return (x + gamma * y) / (1 + gamma)

    x, y, w = torch.randn(3, 2, 4, dtype=torch.float64)
    gamma = place[0] if place else 0.4
    u = TiltedFidelity(Own(), w).prox(x, y, dinv.physics.Denoising(), *place)
    assert torch.allclose(u - x + gamma * (u - y + w), 0 * u)


def test_what_is_not_tilted_is_the_fidelity_s_own():
    tilted = TiltedFidelity(dinv.optim.L2(), torch.zeros(1, 2))
    assert tilted.d is tilted.fidelity.d and not tilted.asked
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tilted.nothing
    again = copy.deepcopy(tilted)
    assert again.w is not tilted.w and again.fidelity is not tilted.fidelity


@pytest.mark.parametrize("jitter", [None, 0.1])
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("unfolded", [dj.UnfoldedGD, dj.UnfoldedPGD])
def test_a_model_computes_the_adjoint_once(unfolded, checkpoint, jitter):
    y, network = torch.randn(2, 1, 6, 5), Network()
    model = unfolded(network, max_iter=7, jitter=jitter, checkpoint=checkpoint)
    operator = Counting()
    model(y, operator)
    # for the start and the gradients together
    assert operator.count == 1


@pytest.mark.parametrize("jitter", [None, 0.1])
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("unfolded", [dj.UnfoldedGD, dj.UnfoldedPGD])
def test_models_give_what_they_give_with_the_host_s_fidelity(unfolded, checkpoint, jitter):
    """Outputs and gradients, to the weights and to the measurements."""
    operator, network = dj.SeismicConvolution().double(), Network().double()
    y = torch.randn(2, 1, 30, 5, dtype=torch.float64)
    results = []
    for fidelity in (dj.NormalL2(0.5), dinv.optim.L2(0.5)):
        noise = None if jitter is None else dj.GaussianJitter(jitter)
        model = unfolded(
            network,
            stepsize=0.2,
            max_iter=4,
            jitter=noise,
            checkpoint=checkpoint,
            data_fidelity=fidelity,
        ).double()
        torch.manual_seed(0)
        leaf = y.clone().requires_grad_()
        out = model(leaf, operator)
        network.zero_grad()
        # twice, as in several attacks on one model: nothing is left of the first pass
        model(y + 1, operator).square().sum().backward()
        network.zero_grad()
        out.square().sum().backward()
        results.append((out, leaf.grad, *gradients(network)))
    for ours, hosts in zip(*results, strict=True):
        assert torch.allclose(ours, hosts, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_in_a_host_model_it_is_the_host_s(name):
    algorithm, network = ALGORITHMS[name], Network()
    y = torch.randn(2, 1, 9, 7, dtype=torch.float64)
    plain = algorithm.build(network=network)
    ours = algorithm.model(
        data_fidelity=dj.NormalL2(),
        prior=algorithm.prior(network),
        stepsize=ETA,
        max_iter=K,
        unfold=True,
        trainable_params=["stepsize"],
    ).double()
    assert torch.equal(ours(y, physics()), plain(y, physics()))
    # and with the adjoint known
    ours.fixed_point.iterator = dj.ConditionedIterator(ours.fixed_point.iterator)
    assert torch.allclose(ours(y, physics()), plain(y, physics()), atol=1e-14)
    dj.jitter(ours, dj.GaussianJitter(0.1))
    dj.jitter(plain, dj.GaussianJitter(0.1))
    outputs = []
    for model in (ours, plain):
        torch.manual_seed(1)
        outputs.append(model(y, physics()))
    assert torch.allclose(*outputs, atol=1e-14)


def test_a_physics_that_is_not_linear():
    class Saturating(dinv.physics.Physics):
        def A(self, x, **kwargs):
            return torch.tanh(x)

    y, network = torch.rand(2, 1, 6, 5), Network()
    start = {"init": lambda y, physics: y, "stepsize": 0.3, "max_iter": 4}
    outputs, weights = [], []
    for fidelity in (None, dinv.optim.L2()):
        model = dj.UnfoldedGD(network, data_fidelity=fidelity, **start)
        network.zero_grad()
        outputs.append(model(y, Saturating()))
        outputs[-1].sum().backward()
        weights.append(gradients(network))
    assert torch.equal(*outputs)
    assert_same_gradients(*weights)


@pytest.mark.parametrize(
    "sigma, error, message",
    [
        (0, ValueError, "sigma must be finite and lie from 1e-15 to .* got 0"),
        (-1.0, ValueError, "sigma must be finite and lie from .* got -1.0"),
        (float("nan"), ValueError, "sigma must be finite and lie from .* got nan"),
        (1e30, ValueError, "sigma must be finite and lie from .* got 1e.30"),
        (True, TypeError, "sigma must be a number, got True"),
        ("small", TypeError, "sigma must be a number, got 'small'"),
    ],
)
def test_refused(sigma, error, message):
    with pytest.raises(error, match=message):
        dj.NormalL2(sigma)
