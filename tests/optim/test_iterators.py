import copy
import pickle

import deepinv as dinv
import pytest
import torch
from algorithms import ALGORITHMS, ETA, SIZE, K, Network, physics
from deepinv.optim.optim_iterators import GDIteration, OptimIterator, PGDIteration
from properties import (
    assert_global_rng_untouched,
    assert_same_gradients,
    assert_same_parameters,
    gradients,
)
from torch import nn

import deepinv_jitter as dj

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def measurements(dtype=torch.float64, batch=2):
    generator = torch.Generator().manual_seed(7)
    return torch.randn((batch, *SIZE), generator=generator, dtype=dtype)


def jittered(name, sigma=0.3, seed=0, **kwargs):
    noise = dj.GaussianJitter(sigma, generator=torch.Generator().manual_seed(seed))
    return dj.jitter(ALGORITHMS[name].build(**kwargs), noise)


def output_and_gradients(model, p, y):
    y = y.clone().requires_grad_()
    model.zero_grad()
    out = model(y, p)
    out.square().sum().backward()
    return out.detach(), [y.grad.clone(), *gradients(model)]


@every_algorithm
def test_training_step_is_the_equation(name):
    """Eq. (8) and (12) of the paper and their extensions, with the same noise, to 1e-12."""
    model, p, y = jittered(name), physics(), measurements()
    generator = torch.Generator().manual_seed(0)
    noise = [0.3 * torch.randn(y.shape, generator=generator, dtype=y.dtype) for _ in range(K)]
    network = model.prior[0].network
    expected = ALGORITHMS[name].reference(y, p, network, noise)
    plain = ALGORITHMS[name].reference(y, p, network, [0.0 * w for w in noise])
    # the step size is a float32 number in the host, whatever the model's type is now
    with torch.no_grad():
        model.init_params_algo["stepsize"][0].fill_(ETA)
        out = model(y, p)
    assert (out - expected).abs().max() < 1e-12
    assert (out - plain).abs().max() > 1e-2


@every_algorithm
@pytest.mark.parametrize("silence", ["eval", "no_jitter", "sigma=0"])
def test_silent_jitter_is_the_plain_model_bit_for_bit(name, silence):
    p, y = physics(), measurements()
    torch.manual_seed(0)
    plain = ALGORITHMS[name].build()
    torch.manual_seed(0)
    model = dj.jitter(ALGORITHMS[name].build(), 0.0 if silence == "sigma=0" else 0.3)
    plain.train(silence != "eval")
    model.train(silence != "eval")
    expected, expected_gradients = output_and_gradients(plain, p, y)
    with assert_global_rng_untouched():
        if silence == "no_jitter":
            with dj.no_jitter(model):
                out, grads = output_and_gradients(model, p, y)
        else:
            out, grads = output_and_gradients(model, p, y)
    assert torch.equal(out, expected)
    assert_same_gradients(grads, expected_gradients)


@every_algorithm
def test_noise_is_fresh_at_every_iteration_and_every_call(name):
    model, p, y = jittered(name), physics(), measurements()
    draws = []

    class Recorder(dj.GaussianJitter):
        def __call__(self, *args):
            draws.append(super().__call__(*args))
            return draws[-1]

    dj.jitter(model, Recorder(0.3))
    first, second = model(y, p), model(y, p)
    assert not torch.equal(first, second)
    assert len(draws) == 2 * K
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert all(not torch.equal(w[0], w[1]) for w in draws)  # nor shared by the samples of a batch


@every_algorithm
def test_unbiased_for_a_linear_network(name):
    """The noisy gradient is unbiased: a linear model's mean output is the plain one's."""
    linear = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    model, p = jittered(name, network=linear), physics()
    y = measurements(batch=1)
    with torch.no_grad():
        noisy = model(y.expand(4000, *SIZE), p)
        plain = model.eval()(y, p)
    z = (noisy.mean(0) - plain[0]) / (noisy.std(0) / 4000**0.5)
    assert noisy.std(0).min() > 0
    assert z.abs().max() < 4.5 and 0.7 < z.std() < 1.3


@every_algorithm
def test_gradients_reach_everything(name):
    model, p = jittered(name), physics()
    _, grads = output_and_gradients(model, p, measurements())
    assert all(g is not None and g.abs().max() > 0 for g in grads)


@every_algorithm
def test_gradients_are_those_of_the_noisy_recursion(name):
    model, p, y = jittered(name), physics(), measurements(batch=1)

    def with_the_same_noise(y):
        model.fixed_point.iterator.jitter.noise.generator.manual_seed(0)
        return model(y, p)

    assert torch.autograd.gradcheck(with_the_same_noise, y.requires_grad_())


@every_algorithm
def test_checkpoints_load_both_ways(name):
    plain, model = ALGORITHMS[name].build(), jittered(name)
    assert [n for n, _ in model.state_dict().items()] == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    assert_same_parameters(model, plain)
    other = ALGORITHMS[name].build()
    other.load_state_dict(model.state_dict())
    assert_same_parameters(other, model)


@every_algorithm
def test_deepcopy_goes_on_with_the_same_noise(name):
    model, p, y = jittered(name), physics(), measurements()
    model(y, p)
    other = copy.deepcopy(model)
    assert torch.equal(model(y, p), other(y, p))
    assert_same_parameters(model, other)
    with torch.no_grad():
        other.prior[0].network[0].weight.add_(1)
    assert not torch.equal(model.eval()(y, p), other.eval()(y, p))


@every_algorithm
def test_a_second_call_replaces_the_first(name):
    model = jittered(name)
    host = model.fixed_point.iterator.iterator
    dj.jitter(model, 0.7)
    assert model.fixed_point.iterator.iterator is host
    assert model.fixed_point.iterator.jitter.noise.sigma == (0.7,)
    assert dj.unjitter(model) is model and model.fixed_point.iterator is host
    assert dj.unjitter(model).fixed_point.iterator is host


@every_algorithm
def test_one_level_per_iteration(name):
    """Noise in the last iteration alone leaves the iterate before it as it was."""
    p, y = physics(), measurements()
    model = jittered(name, sigma=[0.0] * (K - 1) + [0.3])
    network = model.prior[0].network
    with torch.no_grad():
        model.init_params_algo["stepsize"][0].fill_(ETA)
    generator = torch.Generator().manual_seed(0)
    last = 0.3 * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    expected = ALGORITHMS[name].reference(y, p, network, [0.0 * last] * (K - 1) + [last])
    assert (model(y, p) - expected).abs().max() < 1e-12


@every_algorithm
def test_bfloat16_autocast(name):
    model, p, y = (jittered(name, dtype=torch.float32), physics(torch.float32), measurements())
    y = y.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(y, p)
    out.float().square().sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(g).all() for g in gradients(model))
    model.fixed_point.iterator.jitter.noise.generator.manual_seed(0)
    assert (out.float() - model(y, p)).abs().max() < 0.05


@every_algorithm
def test_checkpointing_gives_identical_gradients_under_noise(name):
    p, y = physics(), measurements()
    torch.manual_seed(0)
    model = jittered(name)
    torch.manual_seed(0)
    checkpointed = ALGORITHMS[name].build()
    checkpointed.fixed_point.iterator = dj.CheckpointedIterator(checkpointed.fixed_point.iterator)
    noise = dj.GaussianJitter(0.3, generator=torch.Generator().manual_seed(0))
    dj.jitter(checkpointed, noise)
    out, grads = output_and_gradients(model, p, y)
    other, other_grads = output_and_gradients(checkpointed, p, y)
    assert torch.equal(out, other)
    assert_same_gradients(grads, other_grads)


@pytest.mark.parametrize("scale", ["norm", "relative", "official"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_scales_in_a_model(scale, checkpoint):
    model = dj.UnfoldedGD(Network(), max_iter=3, stepsize=0.4, checkpoint=checkpoint)
    dj.jitter(model, dj.GaussianJitter(0.3, scale, torch.Generator().manual_seed(0)))
    out, grads = output_and_gradients(model, physics(torch.float32), measurements(torch.float32))
    assert torch.isfinite(out).all() and all(torch.isfinite(g).all() for g in grads)


def test_official_scale_is_the_paper_s_code():
    """sigma times the signed maximum, over the batch, of the iterate after the data step."""
    model, p, y = ALGORITHMS["GD"].build(), physics(), measurements()
    noise = dj.GaussianJitter(0.2, "official", torch.Generator().manual_seed(0))
    dj.jitter(model, noise)
    with torch.no_grad():
        model.init_params_algo["stepsize"][0].fill_(ETA)
    generator = torch.Generator().manual_seed(0)
    m, x, network = p.mask, p.mask * y, model.prior[0].network
    for _ in range(K):
        stepped = x - ETA * m * (m * x - y)
        w = stepped.max() * 0.2 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = stepped - ETA * (network(x) + w)
    assert (model(y, p) - x).abs().max() < 1e-12


def test_no_jitter_restores_after_an_exception_and_reaches_through_wrappers():
    model = nn.ModuleDict({"inner": jittered("GD")})
    layer = model["inner"].fixed_point.iterator.jitter
    with pytest.raises(KeyError), dj.no_jitter(model):
        with dj.no_jitter(model):
            assert not layer.enabled
        assert not layer.enabled
        raise KeyError
    assert layer.enabled


def test_iterators_that_own_parameters_keep_their_names_through_every_wrapper():
    class Owner(GDIteration):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))
            self.inner = nn.Linear(2, 2)

    plain, wrapped = Owner(), dj.JitteredIterator(dj.CheckpointedIterator(Owner()), 0.1)
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    wrapped.load_state_dict(plain.state_dict())
    assert_same_parameters(wrapped, plain)
    plain.load_state_dict(wrapped.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key.*else"):
        wrapped.load_state_dict(plain.state_dict() | {"else": torch.ones(1)})


def test_iterator_pickles_and_serves_a_hand_built_model():
    noise = dj.GaussianJitter(0.3, generator=torch.Generator().manual_seed(0))
    iterator = pickle.loads(pickle.dumps(dj.JitteredIterator(GDIteration(), noise)))
    model = dinv.optim.BaseOptim(
        iterator,
        params_algo={"stepsize": ETA, "lambda": 1.0},
        data_fidelity=dinv.optim.L2(),
        prior=dj.GradientPrior(Network()),
        max_iter=K,
        unfold=True,
        trainable_params=["stepsize"],
    ).double()
    assert iterator.iterator.has_cost is False and "sigma=0.3" in repr(model)
    p, y = physics(), measurements()
    network = model.prior[0].network
    generator = torch.Generator().manual_seed(0)
    noise = [0.3 * torch.randn(y.shape, generator=generator, dtype=y.dtype) for _ in range(K)]
    with torch.no_grad():
        model.init_params_algo["stepsize"][0].fill_(ETA)
    expected = ALGORITHMS["GD"].reference(y, p, network, noise)
    assert (model(y, p) - expected).abs().max() < 1e-12


def test_wrong_nesting_is_refused():
    noisy = dj.JitteredIterator(GDIteration(), 0.1)
    for inner in (noisy, dj.ConditionedIterator(noisy)):
        with pytest.raises(TypeError, match="Checkpoint first, then call jitter"):
            dj.CheckpointedIterator(inner)
        with pytest.raises(TypeError, match="jittered already, .* two noises"):
            dj.JitteredIterator(inner, 0.1)
    for wrapper in (dj.CheckpointedIterator, dj.ConditionedIterator):
        with pytest.raises(TypeError, match="must be a deepinv OptimIterator, got Identity"):
            wrapper(nn.Identity())


def test_noise_below_another_wrapper_is_replaced_too():
    model = jittered("GD")
    host = model.fixed_point.iterator.iterator
    model.fixed_point.iterator = dj.ConditionedIterator(model.fixed_point.iterator)
    dj.jitter(model, 0.7)
    layers = [m for m in model.modules() if isinstance(m, dj.Jitter)]
    assert [layer.noise.sigma for layer in layers] == [(0.7,)]
    assert dj.unjitter(model).fixed_point.iterator.iterator is host


class OwnDataStep(PGDIteration):
    """A step that computes its data term by itself."""

    def forward(self, X, data_fidelity, prior, params, y, physics, *args, **kwargs):
        x = X["est"][0]
        grad = physics.A_adjoint(physics.A(x) - y)
        x = prior.prox(x - params["stepsize"] * grad, params["g_param"])
        return {"est": (x,), "cost": data_fidelity(x, y, physics)}


class OwnGradient(OptimIterator):
    """A step of a user's own that asks for the gradient."""

    def forward(self, X, data_fidelity, prior, params, y, physics, *args, **kwargs):
        x = X["est"][0]
        grad = data_fidelity.grad(x, y, physics)
        return {"est": (x - params["stepsize"] * (grad + prior.grad(x, None)),)}


class Enlarged(PGDIteration):
    """Asks at another shape than the iterate's, which would broadcast."""

    def forward(self, X, data_fidelity, prior, params, y, physics, *args, **kwargs):
        x = X["est"][0]
        data_fidelity.grad(x.repeat(1, 3, 1, 1), y, physics)
        return {"est": (x,)}


def own_model(iterator, prior=dj.ProximalPrior):
    return dinv.optim.BaseOptim(
        iterator,
        params_algo={"stepsize": ETA, "lambda": 1.0},
        data_fidelity=dinv.optim.L2(),
        prior=prior(Network()),
        max_iter=K,
        unfold=True,
        trainable_params=["stepsize"],
    ).double()


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("conditioned", [False, True])
def test_a_step_that_gets_no_noise_is_noticed(checkpoint, conditioned):
    """In the first training pass; evaluation and level 0 are as without jitter."""
    iterator = OwnDataStep()
    iterator = dj.ConditionedIterator(iterator) if conditioned else iterator
    iterator = dj.CheckpointedIterator(iterator) if checkpoint else iterator
    model, y = own_model(iterator), measurements()
    plain = model(y, physics())
    with pytest.raises(TypeError, match="OwnDataStep has no place for jitter, since .*"):
        dj.jitter(model, 0.1)(y, physics())
    assert torch.equal(dj.jitter(model, 0.0)(y, physics()), plain)
    assert torch.equal(dj.jitter(model, 0.1).eval()(y, physics()), plain)


def test_an_iterator_of_a_user_s_own_is_jittered():
    model, y = own_model(OwnGradient(), dj.GradientPrior), measurements()
    host = ALGORITHMS["GD"].build(network=model.prior[0].network)
    for m in (model, host):
        dj.jitter(m, dj.GaussianJitter(0.3))
    outputs = []
    for m in (model, host):
        torch.manual_seed(0)
        outputs.append(m(y, physics()))
    assert torch.equal(*outputs)


def test_noise_is_not_broadcast():
    model = dj.jitter(own_model(Enlarged()), 0.1)
    with pytest.raises(ValueError, match=r"grad at shape \(2, 3, 9, 7\): put the noise"):
        model(measurements(), physics())


@every_algorithm
def test_an_absurd_level_is_an_error_not_a_nan(name):
    model, p, y = jittered(name, 1e160).train(), physics(), measurements()
    with pytest.raises(ValueError, match="squared norm of the noise is finite in"):
        model(y, p)
