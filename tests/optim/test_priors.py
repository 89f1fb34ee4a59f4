import deepinv as dinv
import pytest
import torch
from torch import nn

import deepinv_jitter as dj


class Affine(nn.Module):
    """f(x, y) = a x + b y, with numbers that tell the two inputs apart."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.2))

    def forward(self, x, y):
        return self.a * x + self.b * y


def gd(x, y, f, eta):
    return x - eta * ((x - y) + f(x, y))


def pgd(x, y, f, eta):
    return f(x - eta * (x - y), y)


@pytest.mark.parametrize(
    "model, prior, step",
    [(dj.UnfoldedGD, dj.GradientPrior, gd), (dj.UnfoldedPGD, dj.ProximalPrior, pgd)],
)
@pytest.mark.parametrize("jitter", [None, 0.0, 0.1])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_network_that_reads_the_measurements(model, prior, step, jitter, checkpoint):
    f, physics = Affine(), dinv.physics.Denoising()
    model = model(
        prior(f, reads_y=True), stepsize=0.5, max_iter=3, jitter=jitter, checkpoint=checkpoint
    ).eval()
    y1, y2 = torch.randn(2, 4, 2)
    # both forward passes before the backward passes: no measurements may be kept in between
    outputs = [model(y, physics) for y in (y1, y2)]
    for y, out in zip((y1, y2), outputs):
        x = y
        for _ in range(3):
            x = step(x, y, f, 0.5)
        assert torch.allclose(out, x, atol=1e-6)
        expected = torch.autograd.grad(x.sum(), f.b, retain_graph=True)
        assert torch.allclose(torch.autograd.grad(out.sum(), f.b)[0], expected[0], atol=1e-5)


def test_network_without_measurements():
    x = torch.randn(3, 2)
    assert torch.equal(dj.GradientPrior(nn.Identity()).grad(x, 0.1), x)
    assert torch.equal(dj.ProximalPrior(nn.Identity()).prox(x, 0.1, gamma=0.5), x)
    assert dj.GradientPrior(nn.Identity()).explicit_prior is False


def test_plain_host_model_cannot_show_the_measurements():
    model = dinv.optim.GD(
        data_fidelity=dinv.optim.L2(),
        prior=dj.GradientPrior(Affine(), reads_y=True),
        unfold=True,
        trainable_params=[],
        max_iter=2,
    )
    with pytest.raises(
        ValueError, match="reads the measurements, .* build the model with UnfoldedGD"
    ):
        model(torch.randn(3, 2), dinv.physics.Denoising())


def test_network_must_be_a_module():
    with pytest.raises(TypeError, match="network must be a torch.nn.Module, got function"):
        dj.GradientPrior(lambda x: x)


@pytest.mark.parametrize(
    "network, got", [(nn.Linear(2, 1), r"got torch.Size\(\[3, 1\]\)"), (nn.LSTM(2, 2), "got tuple")]
)
def test_another_shape_is_refused_not_broadcast(network, got):
    x = torch.randn(3, 2)
    for call in (dj.GradientPrior(network).grad, dj.ProximalPrior(network).prox):
        with pytest.raises(ValueError, match=rf"the shape of x, \(3, 2\), {got}"):
            call(x)


class Levelled(nn.Module):
    """f(x) = a x + b sigma, by whatever name the level has."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3))


class Optional(Levelled):
    def forward(self, x, sigma=None):
        return self.a * x + (0 if sigma is None else 2 * sigma)


class Required(Levelled):
    def forward(self, x, noise_level):
        return self.a * x + 2 * noise_level


class AfterY(Levelled):
    def forward(self, x, y, *, sigma_denoiser):
        return self.a * x + 0.1 * y + 2 * sigma_denoiser


class Without(Levelled):
    def forward(self, x, y=None):
        return self.a * x + (0 if y is None else 1000 * y)


@pytest.mark.parametrize("unfolded", [dj.UnfoldedGD, dj.UnfoldedPGD])
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("network", [Optional, Required, AfterY])
def test_a_network_that_takes_the_level_gets_it_and_the_level_its_gradient(
    unfolded, checkpoint, network
):
    reads_y, y = network is AfterY, torch.randn(4, 2)
    prior = unfolded._network_prior(network(), reads_y=reads_y)
    model = unfolded(
        prior if reads_y else network(),
        stepsize=0.5,
        max_iter=2,
        sigma_denoiser=[0.05, 0.07],
        trainable_params=["sigma_denoiser"],
        checkpoint=checkpoint,
    )
    levels = torch.tensor([0.05, 0.07], requires_grad=True)
    x = y
    for level in levels:
        shift = 2 * level + (0.1 * y if reads_y else 0)
        if unfolded is dj.UnfoldedGD:
            x = x - 0.5 * ((x - y) + 0.3 * x + shift)
        else:
            x = 0.3 * (x - 0.5 * (x - y)) + shift
    out = model(y, dinv.physics.Denoising())
    assert torch.allclose(out, x, atol=1e-6)
    (expected,) = torch.autograd.grad(x.sum(), levels)
    out.sum().backward()
    got = [p.grad for p in model.init_params_algo["g_param"]]
    assert torch.allclose(torch.stack(got), expected, atol=1e-5)


def test_a_compiled_network_gets_the_level_too():
    network = torch.compile(Optional(), backend="eager")
    prior, x = dj.ProximalPrior(network), torch.randn(3, 2)
    assert torch.allclose(prior.prox(x, 0.5), 0.3 * x + 1)


def test_a_traced_network_is_a_network():
    x = torch.randn(3, 2)
    traced = torch.jit.trace(Without(), x)
    assert torch.allclose(dj.ProximalPrior(traced).prox(x, 0.5), 0.3 * x)


def test_a_network_that_takes_no_level_is_called_without():
    x = torch.randn(3, 2)
    assert torch.allclose(dj.ProximalPrior(Without()).prox(x, 0.5), 0.3 * x)
    assert torch.allclose(dj.ProximalPrior(Optional()).prox(x, None), 0.3 * x)


@pytest.mark.parametrize("unfolded", [dj.UnfoldedGD, dj.UnfoldedPGD])
@pytest.mark.parametrize(
    "network, options, message",
    [
        (Required(), {}, "Required needs the noise level it removes, .*: pass sigma_de"),
        (
            Without(),
            {"sigma_denoiser": 0.1, "trainable_params": ["sigma_denoiser"]},
            "needs a network that takes it, but Without has no argument sigma: leave it",
        ),
    ],
)
def test_levels_refused(unfolded, network, options, message):
    with pytest.raises(ValueError, match=message):
        unfolded(network, **options)
