import pytest
import torch

import deepinv_jitter as dj

NETWORKS = [
    (dj.PointMLP(), (5, 2)),
    (dj.PointMLP(features=3, hidden=8, layers=2, activation=torch.nn.Softplus), (5, 3)),
    (dj.UnrolledDnCNN(2, depth=3, width=8), (2, 2, 9, 7)),
    (dj.UnrolledDnCNN(1, depth=5, width=8, residual=True), (2, 1, 9, 7)),
]


@pytest.mark.parametrize("network, shape", NETWORKS)
def test_shape_and_gradients(network, shape):
    with torch.no_grad():
        for p in network.parameters():
            p.normal_()
    x = torch.randn(shape, requires_grad=True)
    out = network(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is not None for p in network.parameters())


def count(network, kind):
    return sum(isinstance(m, kind) for m in network.modules())


def test_the_paper_s_sizes():
    mlp, mri, seismic = dj.PointMLP(), dj.UnrolledDnCNN(2), dj.UnrolledDnCNN(1, depth=5)
    assert [m.out_features for m in mlp if hasattr(m, "out_features")] == [32, 32, 2]
    for network, depth in ((mri, 8), (seismic, 5)):
        assert count(network, torch.nn.Conv2d) == depth
        assert count(network, torch.nn.GroupNorm) == depth - 2
        assert network.body[0].out_channels == 64


def test_untrained_images_networks_are_the_plain_algorithm():
    """f_theta = 0 as a gradient, the identity as a proximal operator."""
    x = torch.randn(1, 1, 9, 7)
    assert torch.equal(dj.UnrolledDnCNN(1, depth=3, width=8)(x), torch.zeros_like(x))
    assert torch.equal(dj.UnrolledDnCNN(1, depth=3, width=8, residual=True)(x), x)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: dj.PointMLP(layers=1), "layers must be at least 2, got 1"),
        (lambda: dj.UnrolledDnCNN(1, depth=2), "depth must be at least 3, got 2"),
        (
            lambda: dj.UnrolledDnCNN(1, width=6),
            "groups must divide width, got groups=4 and width=6",
        ),
    ],
)
def test_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
