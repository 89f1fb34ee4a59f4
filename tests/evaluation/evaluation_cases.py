"""Small problems of all kinds, and how they are evaluated."""

import deepinv as dinv
import torch

import deepinv_jitter as dj
from deepinv_jitter.attacks import FrankWolfeAttack
from deepinv_jitter.attacks.balls import L2Ball
from deepinv_jitter.evaluation.batches import Batch, Source
from deepinv_jitter.evaluation.robustness import evaluate_robustness
from deepinv_jitter.evaluation.shifts import Bias, HorizontalLayer, Lesion

ERROR = "squared error"
FAST = FrankWolfeAttack(L2Ball(1.0), steps=3, checks=False)


class Scaled(torch.nn.Module):
    """A multiple of the measurements, on which it is known what is worse."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, y, physics):
        return self.factor * y


def noise(sigma=0.1):
    return dinv.physics.GaussianNoise(sigma)


def perturbed(model):
    """Networks start as zero; these do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    return model.eval()


def points():
    model = perturbed(dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=3))
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(2))
    return model, x, dinv.physics.Denoising(noise()), [0.01, 0.1], Bias((0.1, 0))


def mri():
    mask = torch.zeros(16)
    mask[::3], mask[6:10] = 1, 1
    physics = dj.SingleCoilMRI(mask, img_size=(16, 16), noise_model=noise(0.05))
    network = dj.UnrolledDnCNN(2, depth=3, width=4)
    model = perturbed(dj.UnfoldedGD(network, stepsize=0.5, max_iter=2))
    x = torch.rand(5, 2, 16, 16, generator=torch.Generator().manual_seed(2))
    return model, x, physics, [0.5, 2.0], Lesion(3, 0.4)


def sections():
    physics = dj.SeismicConvolution(dj.ricker(7, 2.0), noise_model=noise(0.01))
    network = dj.UnrolledDnCNN(1, depth=3, width=4)
    model = perturbed(dj.UnfoldedPGD(network, stepsize=0.5, max_iter=2))
    x = torch.randn(4, 1, 16, 12, generator=torch.Generator().manual_seed(2))
    return model, x, physics, [0.1, 0.4], HorizontalLayer(0.3, length=4)


PROBLEMS = [points, mri, sections]


def measured(physics, x, params=None, seed=0):
    """The measurements that an evaluation makes."""
    batch = Batch(Source([], physics, None), x, None, 0, params or {})
    batch.settle(seed)
    batch.measure(seed)
    return batch.y


def evaluate(model, data, physics, epsilons=(0.1,), **kwargs):
    kwargs = {"attacks": FAST, "draws": 3, "verbose": False} | kwargs
    return evaluate_robustness(model, data, physics, epsilons=epsilons, **kwargs)


def assert_same_values(a, b, tolerance=0.0):
    assert list(a.values) == list(b.values) and a.digests == b.digests
    assert a.metrics == b.metrics
    for label, columns in a.values.items():
        assert list(columns) == list(b.values[label])
        for name, values in columns.items():
            other = b.values[label][name]
            assert values.dtype == other.dtype
            if tolerance:
                scale = values.abs().max().clamp_min(1) if values.is_floating_point() else 1
                assert ((values.double() - other.double()).abs() <= tolerance * scale).all()
            else:
                assert torch.equal(values.nan_to_num(7.5), other.nan_to_num(7.5)), (label, name)
