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
        (lambda: dj.PointMLP(layers=1), "layers must be .* at least 2, got 1"),
        (lambda: dj.UnrolledDnCNN(1, depth=2), "depth must be .* at least 3, got 2"),
        (
            lambda: dj.UnrolledDnCNN(1, width=6),
            "groups must divide width, got groups=4 and width=6",
        ),
        (lambda: dj.PointMLP(0), "features must be .* at least 1, got 0"),
        (lambda: dj.PointMLP(hidden=2.5), "hidden must be a whole number, got 2.5"),
        (lambda: dj.PointMLP(layers=True), "layers must be a whole number, got True"),
        (lambda: dj.PointMLP(activation="relu"), "a class of modules, .* got 'relu'"),
        (lambda: dj.PointMLP(activation=torch.nn.ReLU()), r"modules, .* got ReLU\(\)"),
        (lambda: dj.UnrolledDnCNN(0), "channels must be .* at least 1, got 0"),
        (lambda: dj.UnrolledDnCNN(1.0), "channels must be a whole number, got 1.0"),
        (lambda: dj.UnrolledDnCNN(1, width=-4), "width must be .* at least 1, got -4"),
        (lambda: dj.UnrolledDnCNN(1, groups=0), "groups must be .* at least 1, got 0"),
        (
            lambda: dj.UnrolledDnCNN(1, condition_channels=-1),
            "condition_channels must be .* at least 0, got -1",
        ),
    ],
)
def test_refused(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()


CNN = dj.UnrolledDnCNN(2, depth=3, width=4)
READS_Y = dj.UnrolledDnCNN(2, depth=3, width=4, condition_channels=1)
X, Y = torch.zeros(3, 2, 5, 6), torch.zeros(3, 1, 5, 6)


@pytest.mark.parametrize(
    "network, inputs, error, message",
    [
        (dj.PointMLP(), [[0.0]], TypeError, "x must be a torch.Tensor, got list"),
        (dj.PointMLP(), [torch.ones(2)], ValueError, r"shape \(B, ...\) .* got \(2,\)"),
        (dj.PointMLP(), [X], ValueError, r"\(B, 2\), got \(3, 2, 5, 6\)"),
        (dj.PointMLP(), [torch.ones(3, 2).int()], TypeError, "got torch.int32"),
        (CNN, [X + 0j], TypeError, "real numbers, got torch.complex64"),
        (CNN, [X[0]], ValueError, r"\(B, C, H, W\) of 2 channels, got \(2, 5, 6\)"),
        (CNN, [Y], ValueError, r"of 2 channels, got \(3, 1, 5, 6\)"),
        (CNN, [X, Y], ValueError, r"of 2 channels, got .* and \(3, 1, 5, 6\)"),
        (READS_Y, [X], ValueError, r"of 2 and 1 channels, got \(3, 2, 5, 6\)"),
        (READS_Y, [X, X], ValueError, r"got .* and \(3, 2, 5, 6\)"),
        (READS_Y, [X, Y.mT], ValueError, r"got .* and \(3, 1, 6, 5\)"),
        (READS_Y, [X, Y[:1]], ValueError, r"got .* and \(1, 1, 5, 6\)"),
        (READS_Y, [X, "y"], TypeError, "y must be a torch.Tensor, got str"),
    ],
)
def test_refused_inputs(network, inputs, error, message):
    with pytest.raises(error, match=message):
        network(*inputs)
