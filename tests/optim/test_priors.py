import deepinv as dinv
import pytest
import torch
from torch import nn

import deepinv_jitter as dj


class Affine(nn.Module):
    """f(x, y) = a x + b y, with numbers that tell the two inputs apart."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.3)), nn.Parameter(
            torch.tensor(0.2)
        )

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
        prior(f, reads_y=True),
        stepsize=0.5,
        max_iter=3,
        jitter=jitter,
        checkpoint=checkpoint,
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
        assert torch.allclose(
            torch.autograd.grad(out.sum(), f.b)[0], expected[0], atol=1e-5
        )


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
    with pytest.raises(
        TypeError, match="network must be a torch.nn.Module, got function"
    ):
        dj.GradientPrior(lambda x: x)


@pytest.mark.parametrize(
    "network, got",
    [
        (nn.Linear(2, 1), r"got torch.Size\(\[3, 1\]\)"),
        (nn.LSTM(2, 2), "got tuple"),
    ],
)
def test_another_shape_is_refused_not_broadcast(network, got):
    x = torch.randn(3, 2)
    for call in (dj.GradientPrior(network).grad, dj.ProximalPrior(network).prox):
        with pytest.raises(ValueError, match=rf"the shape of x, \(3, 2\), {got}"):
            call(x)
