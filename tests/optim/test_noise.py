import copy
import pickle
import re

import pytest
import torch
from properties import assert_global_rng_untouched
from torch import nn

import deepinv_jitter as dj

X = torch.stack([torch.full((3, 40, 50), 0.5), torch.full((3, 40, 50), -4.0)])

# scale, expected per-entry standard deviation of each sample of X for sigma = 0.1
SCALES = [
    ("std", [0.1, 0.1]),
    ("norm", [0.1 / 6000**0.5] * 2),
    ("relative", [0.05, 0.4]),
    ("official", [0.1 * 0.7, 0.1 * 0.7]),  # 0.7 = the batch's largest value after the data step
]


@pytest.mark.parametrize("scale, std", SCALES)
def test_standard_deviation(scale, std):
    w = dj.GaussianJitter(0.1, scale)(X, 0, data_step=lambda: X + 0.2)
    assert w.shape == X.shape and w.dtype == X.dtype
    assert torch.allclose(w.flatten(1).std(1), torch.tensor(std), rtol=0.03)
    assert w.flatten(1).mean(1).abs().max() < 4 * max(std) / 6000**0.5


def test_norm_scale_is_assumption_6_1():
    w = torch.stack([dj.GaussianJitter(0.3, "norm")(X) for _ in range(50)])
    assert w.flatten(2).pow(2).sum(2).mean().item() == pytest.approx(0.3**2, rel=0.02)


@pytest.mark.parametrize("scale", ["std", "norm", "relative", "official"])
def test_generator_leaves_the_global_one_untouched(scale):
    noise = dj.GaussianJitter(0.1, scale, torch.Generator().manual_seed(3))
    again = dj.GaussianJitter(0.1, scale, torch.Generator().manual_seed(3))
    with assert_global_rng_untouched():
        first, second = noise(X, 0, lambda: X), noise(X, 0, lambda: X)
        assert torch.equal(again(X, 0, lambda: X), first)
    assert not torch.equal(first, second)


def test_no_generator_means_the_global_one():
    noise = dj.GaussianJitter(0.1)
    first = noise(X)
    torch.manual_seed(0)
    assert torch.equal(noise(X), first)


def test_samples_of_a_batch_do_not_influence_each_other():
    """Only the official scale couples them, which is what it reproduces."""
    for scale, coupled in [
        ("std", False),
        ("norm", False),
        ("relative", False),
        ("official", True),
    ]:
        w = []
        for factor in (1, 100):
            x = X.abs() * torch.tensor([1.0, factor]).reshape(2, 1, 1, 1)
            torch.manual_seed(0)
            w.append(dj.GaussianJitter(0.1, scale)(x, 0, lambda x=x: x)[0])
        assert torch.equal(*w) is not coupled, scale


def test_only_the_official_scale_is_part_of_the_graph():
    for scale in ("std", "norm", "relative", "official"):
        x = X.clone().requires_grad_()
        w = dj.GaussianJitter(0.1, scale)(x, 0, lambda x=x: 2 * x)
        assert w.requires_grad is (scale == "official")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda noise: pickle.loads(pickle.dumps(noise))])
def test_a_copy_goes_on_with_the_same_noise(copied):
    noise = dj.GaussianJitter([0.1, 0.2], "relative", torch.Generator().manual_seed(5))
    noise(X)
    other = copied(noise)
    assert repr(other) == repr(noise) and other.generator is not noise.generator
    assert torch.equal(other(X, 1), noise(X, 1))


@pytest.mark.parametrize("sigma", [0.1, torch.tensor(0.1), [0.1], (0.1,), torch.tensor([0.1])])
def test_one_level(sigma):
    assert dj.GaussianJitter(sigma).sigma_at(7) == pytest.approx(0.1)


def test_one_level_per_iteration():
    noise = dj.GaussianJitter([0.0, 1.0])
    assert [noise.sigma_at(0), noise.sigma_at(1)] == [0.0, 1.0]
    with pytest.raises(ValueError, match="sigma has 2 levels but iteration 3 was reached"):
        noise.sigma_at(2)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"sigma": -0.1}, ValueError, "finite and at least 0, got -0.1"),
        ({"sigma": float("nan")}, ValueError, "finite and at least 0, got nan"),
        ({"sigma": [0.1, float("inf")]}, ValueError, "finite and at least 0, got inf"),
        ({"sigma": True}, TypeError, "sigma must be a number, got True"),
        ({"sigma": [0.1, False]}, TypeError, "sigma must be a number, got False"),
        ({"sigma": torch.ones(2, 2)}, TypeError, "sigma must be a number, got .1.0, 1.0"),
        ({"sigma": 1j}, TypeError, "sigma must be a number, got 1j"),
        ({"sigma": torch.tensor(True)}, TypeError, "sigma must be a number, got True"),
        ({"sigma": []}, ValueError, "at least one level, got an empty sequence"),
        ({"sigma": "small"}, TypeError, "sigma must be a number, got 's'"),
        ({"sigma": None}, TypeError, "sigma must be a number, got None"),
        ({"sigma": [0.1, nn.Parameter(torch.tensor(0.1))]}, TypeError, "would never be learned"),
        ({"sigma": 0.1, "scale": "var"}, ValueError, "scale must be one of .* got 'var'"),
        ({"sigma": 0.1, "generator": 0}, TypeError, "generator must be a torch.Generator or None"),
    ],
)
def test_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        dj.GaussianJitter(**arguments)


@pytest.mark.parametrize("scale", ["std", "norm", "relative", "official"])
@pytest.mark.parametrize(
    "x, error, message",
    [
        ([1.0], TypeError, "x must be a torch.Tensor, got list"),
        (X.int(), TypeError, "real or complex numbers, got torch.int32: convert it"),
        (X[0, 0, 0], ValueError, r"shape \(B, ...\) and not empty, got \(50,\)"),
        (X[:0], ValueError, r"and not empty, got \(0, 3, 40, 50\)"),
    ],
)
def test_iterates_refused(scale, x, error, message):
    with pytest.raises(error, match=message):
        dj.GaussianJitter(0.1, scale)(x, 0, lambda: X)


@pytest.mark.parametrize("scale", ["std", "norm", "relative", "official"])
@pytest.mark.parametrize(
    "sigma, dtype", [(1e30, torch.float32), (1e160, torch.float64), (1e4, torch.half)]
)
def test_a_level_whose_square_overflows_is_refused(scale, sigma, dtype):
    noise, x = dj.GaussianJitter(sigma, scale), X.to(dtype)
    message = f"squared norm of the noise is finite in {dtype}, got {sigma:g} for 6000"
    with pytest.raises(ValueError, match=re.escape(message)):
        noise(x, 0, lambda: x)
    noise = dj.GaussianJitter(sigma / 1e14, scale)(x, 0, lambda: x)
    assert noise.isfinite().all() and noise.norm().isfinite()


def test_iterations_are_counted_from_zero():
    noise = dj.GaussianJitter([0.1, 0.2])
    with pytest.raises(ValueError, match="k must be finite and at least 0, got -1"):
        noise(X, -1)
    with pytest.raises(TypeError, match="k must be a whole number, got 0.5"):
        noise.sigma_at(0.5)


def test_official_scale_is_for_real_iterates():
    x = X.to(torch.complex64)
    with pytest.raises(ValueError, match="real iterate, got torch.complex64: use 'rel"):
        dj.GaussianJitter(0.1, "official")(x, 0, lambda: x)


def test_official_scale_needs_the_stepped_iterate():
    with pytest.raises(ValueError, match="needs data_step"):
        dj.GaussianJitter(0.1, "official")(X)


class Loop(nn.Module):
    """A user's own loop."""

    def __init__(self, sigma, steps=3):
        super().__init__()
        self.network, self.jitter, self.steps = nn.Linear(2, 2), dj.Jitter(sigma), steps

    def forward(self, y):
        x = y
        for k in range(self.steps):
            x = x - 0.5 * self.jitter(x - y + self.network(x), k)
        return x


@pytest.mark.parametrize("scale", ["std", "norm", "relative"])
@pytest.mark.parametrize("levels", [0.3, [0.1, 0.2, 0.3]])
def test_the_layer_adds_what_the_noise_model_draws(scale, levels):
    """With its input as the x of the scale, and k as it is told."""
    model, y = (
        Loop(dj.GaussianJitter(levels, scale, torch.Generator().manual_seed(1))),
        X[:, :2, 0, 0],
    )
    same, x = dj.GaussianJitter(levels, scale, torch.Generator().manual_seed(1)), y
    for k in range(3):
        g = x - y + model.network(x)
        x = x - 0.5 * (g + same(g, k))
    assert torch.equal(model(y), x)


@pytest.mark.parametrize("silence", ["eval", "no_jitter", "level 0"])
def test_a_silent_layer_returns_its_very_input(silence):
    layer = dj.Jitter([0.0, 0.1] if silence == "level 0" else 0.1)
    layer.train(silence != "eval")
    with assert_global_rng_untouched():
        with dj.no_jitter(layer if silence == "no_jitter" else nn.Identity()):
            assert layer(X, 0) is X
    assert layer.train()(X, 1) is not X


def test_the_layer_is_a_module_without_a_trace_in_checkpoints():
    noise = dj.GaussianJitter(0.3, generator=torch.Generator().manual_seed(1))
    model = Loop(noise)
    assert model.jitter.noise is noise and "Jitter(GaussianJitter(sigma=0.3" in repr(model)
    assert list(model.state_dict()) == ["network.weight", "network.bias"]
    y = X[:, :2, 0, 0]
    others = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    outputs = [m(y) for m in (model, *others)]
    assert all(torch.equal(out, outputs[0]) for out in outputs)
    assert not torch.equal(model(y), outputs[0])
    # which a plain deepinv model and jitter() leave alone
    assert dj.unjitter(model).jitter.noise is noise


def test_the_layer_refuses():
    layer = dj.Jitter([0.1, 0.2])
    with pytest.raises(ValueError, match=r"sigma has 2 levels, .* as jitter\(g, k\)"):
        layer(X)
    assert layer.eval()(X) is X
    with pytest.raises(ValueError, match="sigma has 2 levels but iteration 3 was reached"):
        layer.train()(X, 2)
    with pytest.raises(TypeError, match="sigma must be a number, got "):
        dj.Jitter("0.1")
    with pytest.raises(ValueError, match="finite and at least 0, got -1"):
        dj.Jitter(-1)
    with pytest.raises(ValueError, match="'official' needs data_step"):
        dj.Jitter(dj.GaussianJitter(0.1, "official"))(X)
    with pytest.raises(TypeError, match="must be a torch.Tensor, got list"):
        dj.Jitter(0.1)([0.0])


CONSTANTS = {
    "layer": lambda p: dj.Jitter(p),
    "jitter": lambda p: dj.UnfoldedGD(dj.PointMLP(), max_iter=2, jitter=p),
    "radius": lambda p: dj.L2Ball(p),
    "stepsize": lambda p: dj.UnfoldedGD(dj.PointMLP(), stepsize=p, trainable_params=()),
    "lambda_reg": lambda p: dj.UnfoldedGD(dj.PointMLP(), max_iter=2, lambda_reg=[0.1, p]),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_levels_that_would_never_be_learned_are_refused(name):
    with pytest.raises(TypeError, match="made of constants, got a tensor that requires grad"):
        CONSTANTS[name](nn.Parameter(torch.tensor(0.1)))
    CONSTANTS[name](nn.Parameter(torch.tensor(0.1)).detach())


def test_what_is_learned_may_begin_as_a_parameter():
    model = dj.UnfoldedGD(dj.PointMLP(), stepsize=nn.Parameter(torch.tensor(0.1)), max_iter=1)
    assert any("stepsize" in name for name, _ in model.named_parameters())


def test_the_advice_learns_a_level():
    """What the message says: a factor of one's own times the noise of level 1."""
    factor, jitter, g = nn.Parameter(torch.tensor(0.1)), dj.Jitter(1.0), torch.ones(1, 1, 64, 64)
    noisy = g + factor * jitter(torch.zeros_like(g))
    assert (noisy - g).std().item() == pytest.approx(0.1, rel=0.05)
    noisy.square().mean().backward()
    assert factor.grad.item() > 0  # less noise, less of a square
    jitter.eval()
    assert torch.equal(g + factor * jitter(torch.zeros_like(g)), g)
