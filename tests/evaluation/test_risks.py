import math

import deepinv as dinv
import pytest
import torch
from properties import assert_global_rng_untouched
from torch import nn

import deepinv_jitter as dj
from deepinv_jitter.evaluation import risks

DENOISING = dinv.physics.Denoising()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """The reconstructor y -> G y, from images of one shape to images of another."""

    def __init__(self, shape, measured, generator):
        super().__init__()
        self.shape = shape
        size = (math.prod(shape), measured)
        G = torch.randn(size, generator=generator, dtype=torch.float64)
        self.G = nn.Parameter(G / measured**0.5)

    def forward(self, y, physics):
        return (y.flatten(1) @ self.G.T).reshape(-1, *self.shape)


class Problem:
    """A linear problem with everything about it as matrices."""

    def __init__(self, physics, shape, batch=2):
        g = torch.Generator().manual_seed(1)
        self.physics = physics
        self.x = torch.randn(batch, *shape, generator=g, dtype=torch.float64)
        self.y = self.physics.A(self.x)
        n = self.x[0].numel()
        unit = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
        self.A = torch.stack(
            [self.physics.A(e.expand_as(self.x)).flatten(1) for e in unit], -1
        )  # (B, m, n), as each sample may have its own mask
        self.measured = (self.A != 0).any(2)
        self.model = Linear(shape, self.A.shape[1], g)
        self.residual = (self.x - self.model(self.y, None)).detach().flatten(1)


def mri():
    mask = torch.ones(2, 1, 4, 6)
    mask[0, ..., ::2] = 0
    mask[1, ..., 2:] = 0
    return dj.SingleCoilMRI(mask, img_size=(4, 6)).double()


def inpainting():
    mask = (torch.rand(1, 5, 4, generator=torch.Generator().manual_seed(0)) > 0.5) * 1.0
    return dinv.physics.Inpainting(img_size=(1, 5, 4), mask=mask).double()


def blur():
    """Its mask is a spectrum, not a choice of measurements."""
    kernel = torch.rand(1, 1, 3, 3, generator=seeded(), dtype=torch.float64)
    return dinv.physics.BlurFFT((1, 6, 6), filter=kernel / 9)


# name: physics, shape of x
PROBLEMS = {
    "points": (lambda: DENOISING, (2,)),
    "section": (lambda: dj.SeismicConvolution(dj.ricker(5, 1.0)).double(), (1, 6, 3)),
    "MRI": (mri, (2, 4, 6)),
    "inpainting": (inpainting, (1, 5, 4)),
    "blur": (blur, (1, 6, 6)),
}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    make, shape = PROBLEMS[request.param]
    return Problem(make(), shape)


def expected_quadratic(residual, matrices, std):
    """Mean and standard deviation of ||r + M w||^2 for each sample, w ~ N(0, std^2 I)."""
    means, deviations = [], []
    for r, M, s in zip(residual, matrices, std, strict=True):
        means.append(r.square().sum() + s**2 * M.square().sum())
        variance = 4 * s**2 * (M.T @ r).square().sum()
        variance += 2 * s**4 * (M.T @ M).square().sum()
        deviations.append(variance.sqrt())
    return torch.stack(means).detach(), torch.stack(deviations).detach()


def assert_estimates(risk, mean, deviation, samples):
    exact = deviation / samples**0.5
    assert ((risk.values - mean).abs() < 4 * exact).all()
    assert torch.allclose(risk.standard_errors, exact, rtol=0.25)


@pytest.mark.parametrize("sigma", [0.3, 3.0])
def test_average_case_risk_of_a_linear_reconstructor(problem, sigma):
    p = problem
    risk = risks.average_case_risk(
        p.model, p.x, p.y, p.physics, sigma_e=sigma, samples=500, generator=seeded()
    )
    std = sigma / p.measured.sum(1).sqrt()
    matrices = [-p.model.G * m for m in p.measured]
    assert_estimates(risk, *expected_quadratic(p.residual, matrices, std), 500)


@pytest.mark.parametrize("sigma", [0.3, 3.0])
def test_generalization_risk_of_a_linear_reconstructor(problem, sigma):
    p = problem
    risk = risks.generalization_risk(
        p.model, p.x, p.y, p.physics, sigma_g=sigma, samples=500, generator=seeded()
    )
    n = p.x[0].numel()
    matrices = [torch.eye(n) - p.model.G @ A for A in p.A]
    mean_and_deviation = expected_quadratic(
        p.residual, matrices, [sigma / n**0.5 * torch.ones(())] * len(p.x)
    )
    assert_estimates(risk, *mean_and_deviation, 500)


def test_noise_has_the_norm_asked_for_and_lives_on_the_measured_entries(problem):
    p = problem
    seen = []
    p.model.register_forward_pre_hook(lambda model, args: seen.append(args[0]))
    risks.average_case_risk(p.model, p.x, p.y, p.physics, sigma_e=2.0, samples=800)
    e = torch.stack(seen).flatten(2) - p.y.flatten(1)
    assert not e[:, ~p.measured].any() and e[:, p.measured].all()
    norms = e.square().sum(2)
    spread = 4 * (2 / p.measured.sum(1) / 800).sqrt()
    assert ((norms.mean(0) / 4 - 1).abs() < spread).all()


def test_without_noise_the_risk_is_the_error(problem):
    p = problem
    error = p.residual.square().sum(1)
    for risk in (
        risks.average_case_risk(p.model, p.x, p.y, p.physics, sigma_e=0, samples=2),
        risks.generalization_risk(p.model, p.x, p.y, p.physics, sigma_g=0, samples=2),
        risks.worst_case_risk(p.model, p.x, p.y, p.physics, attack=lambda m, x, y, a: 0 * y),
    ):
        assert torch.allclose(risk.values, error, rtol=1e-12)
        assert not risk.standard_errors.any()


def test_worst_case_risk_is_the_error_under_the_attack(problem):
    p = problem
    delta = torch.randn_like(p.y)
    risk = risks.worst_case_risk(
        p.model, p.x, p.y, p.physics, attack=lambda model, x, y, physics: delta
    )
    error = (p.x - p.model(p.y + delta, p.physics)).square().flatten(1).sum(1)
    assert torch.allclose(risk.values, error) and not risk.values.requires_grad


def test_an_attack_sees_evaluation_mode_and_gradients():
    model = dj.UnfoldedGD(dj.PointMLP(), max_iter=3, jitter=1.0)

    def attack(model, x, y, physics):
        assert not any(module.training for module in model.modules())
        y = y.clone().requires_grad_()
        loss = (model(y, physics) - x).square().sum()
        return 0.1 * torch.autograd.grad(loss, y)[0].sign()

    x = torch.randn(4, 2)
    risk = risks.worst_case_risk(model, x, x, DENOISING, attack=attack)
    clean = risks.average_case_risk(model, x, x, DENOISING, sigma_e=0)
    assert risk.mean > clean.mean and all(m.training for m in model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_no_entries_to_spare(dtype):
    """More entries than float16 counts to had no noise at all, and bfloat16 no standard error."""

    class Identity(nn.Module):
        def forward(self, y, physics):
            return y

    y = torch.zeros(1, 1, 300, 300, dtype=dtype)
    risk = dj.average_case_risk(
        Identity(), y, y, DENOISING, sigma_e=2.0, samples=9, generator=seeded()
    )
    assert risk.mean == pytest.approx(4, rel=0.01)
    assert risk.standard_errors.item() == pytest.approx(4 * (2 / 300**2 / 9) ** 0.5, rel=0.7)


def test_mean_and_its_standard_error():
    risk = risks.Risk(torch.tensor([1.0, 2.0, 6.0]), torch.zeros(3))
    assert risk.mean == 3.0
    assert risk.standard_error == pytest.approx((7 / 3) ** 0.5)
    assert math.isnan(risks.Risk(torch.ones(1), torch.ones(1)).standard_error)


# ---- contracts of all of them


class Softplus(nn.Sequential):
    def __init__(self, *extra):
        super().__init__(nn.Linear(3, 8), nn.Softplus(), *extra, nn.Linear(8, 3))


def jittered(network=None, **kwargs):
    """An unrolled denoiser of three-dimensional points, in double precision."""
    arguments = {"stepsize": 0.3, "max_iter": 5, "jitter": 0.4} | kwargs
    model = dj.UnfoldedGD(Softplus() if network is None else network, **arguments)
    return model.to(torch.float64)


def y_points():
    return torch.randn(4, 3, generator=seeded(5), dtype=torch.float64)


CALLS = {
    "average": lambda m, x, p, **k: risks.average_case_risk(
        m, x, x, p, sigma_e=0.2, samples=3, **k
    ),
    "generalization": lambda m, x, p, **k: risks.generalization_risk(
        m, x, x, p, sigma_g=0.2, samples=3, **k
    ),
    "worst": lambda m, x, p, generator=None: risks.worst_case_risk(
        m, x, x, p, attack=lambda m, x, y, p: 0.1 * y
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_side_effects(call):
    model = jittered(Softplus(nn.Dropout(0.5), nn.BatchNorm1d(8)))
    model.prior[0].network[2].eval()
    modes = [module.training for module in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    y = y_points()
    kept = y.clone()
    with assert_global_rng_untouched():
        first = call(model, y, DENOISING, generator=seeded(2))
        second = call(model, y, DENOISING, generator=seeded(2))
    assert torch.equal(first.values, second.values)
    assert not first.values.requires_grad and first.values.dtype == torch.float64
    assert torch.equal(y, kept)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["average", "generalization"])
def test_no_generator_means_the_global_one(name):
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        values.append(CALLS[name](jittered_seeded(), y_points(), DENOISING).values)
    assert torch.equal(*values)
    assert not torch.equal(values[0], CALLS[name](jittered_seeded(), y_points(), DENOISING).values)


def jittered_seeded():
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return jittered()


class Breaks(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken network")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_model_is_restored_after_an_exception(call):
    model = jittered(nn.Sequential(nn.Dropout(), Breaks()))
    model.prior[0].network[0].eval()
    iterator = model.fixed_point.iterator
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="broken network"):
        call(model, y_points(), DENOISING)
    assert [module.training for module in model.modules()] == modes
    assert model.fixed_point.iterator is iterator and iterator.jitter.enabled


X = torch.zeros(3, 2)
GD = dj.UnfoldedGD(dj.PointMLP(), max_iter=2)
HELD = {"model": GD, "x": X, "y": X, "physics": DENOISING}
AVERAGE = (risks.average_case_risk, HELD | {"sigma_e": 0.1})
GENERAL = (risks.generalization_risk, HELD | {"sigma_g": 0.1})
WORST = (risks.worst_case_risk, HELD | {"attack": lambda m, x, y, p: 0 * y})


class Tuple(torch.nn.Module):
    def forward(self, y, physics):
        return y, y


TUPLE = Tuple()


@pytest.mark.parametrize(
    "case, change, error, message",
    [
        (AVERAGE, {"sigma_e": -1}, ValueError, "sigma_e must be .* at least 0, got -1"),
        (AVERAGE, {"sigma_e": math.nan}, ValueError, "sigma_e must be finite"),
        (AVERAGE, {"sigma_e": [0.1]}, TypeError, r"sigma_e must be a number, got \[0"),
        (AVERAGE, {"samples": 1}, ValueError, "samples must be .* at least 2, got 1"),
        (AVERAGE, {"samples": 2.5}, TypeError, "samples must be a whole number"),
        (AVERAGE, {"generator": 0}, TypeError, "generator must be a torch.Generator"),
        (AVERAGE, {"model": len}, TypeError, "model must be a torch.nn.Module"),
        (AVERAGE, {"y": [0.0]}, TypeError, "y must be a torch.Tensor, got list"),
        (AVERAGE, {"x": X[:1]}, ValueError, "one batch size, got 1 and 3"),
        (AVERAGE, {"x": X[:, :1]}, ValueError, r"returns and x .* \(3, 2\) and \(3, 1\)"),
        (AVERAGE, {"x": X.to("meta")}, ValueError, "one device, got meta and cpu"),
        (AVERAGE, {"x": X.int()}, TypeError, "x must be .* got torch.int32"),
        (AVERAGE, {"y": X / 0}, ValueError, "y must be finite, got NaN .* 3 of 3 sampl"),
        (AVERAGE, {"x": X[:0], "y": X[:0]}, ValueError, "x must be .* and not empty"),
        (AVERAGE, {"sigma_e": True}, TypeError, "sigma_e must be a number, got True"),
        (AVERAGE, {"sigma_e": 1e30}, ValueError, "squared norm of the noise is finite"),
        (AVERAGE, {"sigma_e": 1e19}, ValueError, "squared errors .* NaN or infinity for"),
        (AVERAGE, {"model": TUPLE}, TypeError, "the model returns must be a .* got tuple"),
        (GENERAL, {"sigma_g": -1}, ValueError, "sigma_g must be .* at least 0"),
        (GENERAL, {"sigma_g": 1e30}, ValueError, "squared norm of the noise is finite"),
        (GENERAL, {"y": X[:2]}, ValueError, "one batch size, got 3 and 2"),
        (GENERAL, {"y": X[:, :1]}, ValueError, r"y and .* of x .* \(3, 1\) and \(3, 2\)"),
        (GENERAL, {"samples": 0}, ValueError, "samples must be .* at least 2, got 0"),
        (GENERAL, {"physics": dinv.physics.Physics()}, TypeError, "physics must be linear"),
        (WORST, {"attack": 1.0}, TypeError, "attack must be callable .* got float"),
        (
            WORST,
            {"attack": lambda m, x, y, p: y[0]},
            ValueError,
            r"returns and y must have one shape, got \(2,\) and \(3, 2\)",
        ),
        (WORST, {"attack": lambda *a: None}, TypeError, "the attack returns must be a .* None"),
        (WORST, {"attack": lambda m, x, y, p: y / 0}, ValueError, "errors .* finite, .* 3"),
        (WORST, {"model": None}, TypeError, "model must be a torch.nn.Module"),
        (WORST, {"x": None}, TypeError, "x must be a torch.Tensor, got NoneType"),
    ],
)
def test_refused(case, change, error, message):
    function, arguments = case
    function(**arguments)  # what is refused is the change
    with pytest.raises(error, match=message):
        function(**(arguments | change))
