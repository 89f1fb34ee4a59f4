"""A recomputed iteration neither sees nor changes what the forward pass has changed."""

import copy

import deepinv as dinv
import pytest
import torch
from properties import assert_same_gradients, gradients
from torch import nn

import deepinv_jitter as dj


def body(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Conv2d(4, 1, 1))


class Counted(nn.Module):
    """Depends on how often it was called, in a buffer that it replaces and an attribute."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.calls = 0

    def forward(self, x):
        self.count = self.count + 1
        self.calls += 1
        return x.sin() * self.count + self.calls


class WarmStart(nn.Module):
    """Goes on from its last result, which it does not have at first."""

    def forward(self, x):
        x = x.sin() + getattr(self, "last", 0.0)
        self.last = x.detach()
        return x


class OwnNoise(nn.Module):
    def __init__(self):
        super().__init__()
        self.rng = torch.Generator().manual_seed(3)

    def forward(self, x):
        return x.sin() * torch.randn(x.shape, generator=self.rng)


class Shared(nn.Module):
    """Two layers that count in one buffer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.b.running_mean = self.a.running_mean

    def forward(self, x):
        return self.b(self.a(x).sin())


NETWORKS = {
    "batch normalisation": lambda: body(nn.BatchNorm2d(4), nn.Softplus()),
    "a shared buffer": lambda: body(Shared()),
    "spectral normalisation": lambda: dj.spectral_normalize(body(nn.Softplus())),
    "old spectral normalisation": lambda: nn.Sequential(
        nn.utils.spectral_norm(nn.Conv2d(1, 1, 3, padding=1)), nn.Softplus()
    ),
    "dropout": lambda: body(nn.Dropout(0.5)),
    "a count": lambda: body(Counted()),
    "a warm start": lambda: body(WarmStart()),
    "a generator": lambda: body(OwnNoise()),
    "jitter with a generator": lambda: body(
        nn.Softplus(), dj.Jitter(dj.GaussianJitter(0.3, generator=torch.Generator().manual_seed(4)))
    ),
    "jitter without": lambda: body(nn.Softplus(), dj.Jitter(0.3)),
}


def state(model):
    """Buffers, generators and attributes of the network."""
    network = model.prior[0].network
    generators = [getattr(v, "generator", v) for m in network.modules() for v in vars(m).values()]
    return (
        {n: b.clone() for n, b in network.named_buffers()},
        [g.get_state() for g in generators if isinstance(g, torch.Generator)],
        [getattr(m, "calls", getattr(m, "last", None)) for m in network.modules()],
    )


def assert_same_state(first, second):
    (a, b, c), (d, e, f) = first, second
    assert list(a) == list(d) and all(torch.equal(a[n], d[n]) for n in a)
    for x, y in zip(b + c, e + f, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def both(network):
    torch.manual_seed(0)
    model = NETWORKS[network]()
    options = {"stepsize": 0.5, "max_iter": 3, "jitter": 0.1}
    return [dj.UnfoldedPGD(copy.deepcopy(model), checkpoint=c, **options) for c in (False, True)]


@pytest.mark.parametrize("network", NETWORKS)
def test_training_is_that_without_checkpoints(network):
    """Two steps, so that what the first has left behind would show in the second."""
    results = []
    for model in both(network):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for _ in range(2):
            out = model(torch.randn(2, 1, 6, 5), dinv.physics.Denoising())
            before = state(model)
            optimizer.zero_grad()
            out.square().sum().backward()
            assert_same_state(before, state(model))
            optimizer.step()
        results.append((out, gradients(model), state(model)))
    (out, grads, then), (other, other_grads, now) = results
    assert torch.equal(out, other)
    assert_same_gradients(grads, other_grads)
    assert_same_state(then, now)


@pytest.mark.parametrize("network", NETWORKS)
def test_two_passes_may_come_before_the_backward_ones_and_those_be_repeated(network):
    results = []
    for model in both(network):
        torch.manual_seed(1)
        y = torch.randn(2, 2, 1, 6, 5)
        loss = sum(model(v, dinv.physics.Denoising()).square().sum() for v in y)
        model.eval()
        first = torch.autograd.grad(loss, model.parameters(), retain_graph=True)
        again = torch.autograd.grad(loss, model.parameters())
        assert_same_gradients(first, again)
        assert not any(m.training for m in model.modules())
        results.append(first)
    assert_same_gradients(*results)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    "convert", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 1, 6, 5))]
)
def test_networks_of_torchscript(convert):
    """They are optimised after a first pass or two."""
    network = convert(body(nn.Softplus()))
    plain, repeated = (
        dj.UnfoldedPGD(network, stepsize=0.5, max_iter=3, checkpoint=c) for c in (False, True)
    )
    for y in torch.randn(3, 2, 1, 6, 5):
        outs = [model(y, dinv.physics.Denoising()) for model in (plain, repeated)]
        ours, theirs = (torch.autograd.grad(v.sum(), [*network.parameters()]) for v in outs)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


class Mean(dinv.physics.LinearPhysics):
    def A(self, x, **kwargs):
        return nn.functional.avg_pool2d(x, 3, 1)


class Sine(dinv.physics.Physics):
    def A(self, x, **kwargs):
        return x.sin()


@pytest.mark.parametrize("physics", [Mean(img_size=(1, 6, 5)), Sine()])
def test_a_physics_that_torch_func_differentiates_is_refused(physics):
    options = {"max_iter": 2, "init": lambda y, physics: torch.ones(1, 1, 6, 5)}
    plain, repeated = (dj.UnfoldedPGD(body(), checkpoint=c, **options) for c in (False, True))
    y = physics(torch.ones(1, 1, 6, 5))
    plain(y, physics).sum().backward()
    name = type(physics).__name__
    with pytest.raises(RuntimeError, match=f"write that method of the {name}, or leave out check"):
        repeated(y, physics)


def test_the_physics_may_be_given_other_parameters_before_the_backward_pass():
    results = []
    for model in both("batch normalisation"):
        torch.manual_seed(1)
        mask = (torch.rand(1, 6, 5) > 0.5).float()
        physics = dinv.physics.Inpainting((1, 6, 5), mask=mask)
        y = physics(torch.randn(2, 1, 6, 5))
        loss = model(y, physics).square().sum()
        physics.update(mask=1 - mask)
        results.append(torch.autograd.grad(loss, model.parameters()))
        assert torch.equal(physics.mask.view_as(mask), 1 - mask)
    assert_same_gradients(*results)


def test_a_pass_that_fails_leaves_the_modules_as_they_are():
    class Failing(nn.Module):
        def forward(self, x):
            if torch._C._current_graph_task_id() != -1:
                raise KeyError("in the second pass")
            return x

    network = body(nn.BatchNorm2d(4), Failing(), nn.BatchNorm2d(4))
    model = dj.UnfoldedPGD(network, max_iter=2, checkpoint=True)
    out = model(torch.randn(2, 1, 6, 5), dinv.physics.Denoising())
    before = state(model)
    with pytest.raises(KeyError, match="in the second pass"):
        out.sum().backward()
    assert_same_state(before, state(model))
    assert not any(getattr(m, "replayed", False) for m in model.modules())


def test_user_s_own_checkpointing_repeats_the_noise_or_refuses():
    """Of the global generator, torch's checkpoint knows; of others it does not."""

    def gradient(layer, repeat):
        torch.manual_seed(0)
        x = torch.randn(2, 3, requires_grad=True)

        def step(x):
            return layer((x.sin() * x).exp()) ** 2

        out = torch.utils.checkpoint.checkpoint(step, x, use_reentrant=False) if repeat else step(x)
        return torch.autograd.grad(out.sum(), x)

    layer = dj.Jitter(0.3)
    assert_same_gradients(gradient(layer, False), gradient(layer, True))
    layer = dj.Jitter(dj.GaussianJitter(0.3, generator=torch.Generator()))
    gradient(layer, False)
    with pytest.raises(RuntimeError, match="a generator of its own cannot be repeated"):
        gradient(layer, True)
    assert_same_gradients(gradient(layer.eval(), False), gradient(layer, True))


@pytest.mark.parametrize("grad", [False, True])
def test_nothing_is_kept_without_gradients(grad):
    model = both("batch normalisation")[1].train(grad)
    with torch.set_grad_enabled(grad):
        out = model(torch.randn(2, 1, 6, 5), dinv.physics.Denoising())
    assert out.requires_grad == grad
