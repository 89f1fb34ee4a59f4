import copy
import itertools
import pickle
import warnings

import deepinv as dinv
import pytest
import torch
from attack_cases import Reconstructor
from deepinv.loss.metric import MSE, NMSE, PSNR, SSIM
from deepinv.utils import TensorList
from properties import assert_global_rng_untouched
from torch import nn

import deepinv_jitter as dj


def quick(attack):
    """Without checks, unless asked for: the flags have their own tests."""
    return lambda ball, checks=False, **kwargs: attack(ball, checks=checks, **kwargs)


ATTACKS = {
    "PGD": quick(lambda ball, steps=10, **kw: dj.PGDAttack(ball, steps=steps, **kw)),
    "APGD": quick(lambda ball, steps=12, **kw: dj.APGDAttack(ball, steps=steps, **kw)),
    "Frank-Wolfe": quick(lambda ball, steps=5, **kw: dj.FrankWolfeAttack(ball, steps=steps, **kw)),
    "momentum": quick(lambda ball, steps=10, **kw: dj.MomentumAttack(ball, steps=steps, **kw)),
    "converged": quick(
        lambda ball, steps=5, **kw: dj.ConvergedAttack(
            dj.MomentumAttack(ball, steps=steps, **kw), max_steps=40
        )
    ),
    "random": quick(lambda ball, steps=10, **kw: dj.RandomAttack(ball, samples=steps, **kw)),
    "repeat": quick(lambda ball, **kw: dj.PGDAttack(ball, steps=5, **kw).repeat(3)),
    "worst case": quick(
        lambda ball, **kw: dj.WorstCase(
            [dj.FrankWolfeAttack(ball, steps=5, **kw), dj.RandomAttack(ball, samples=5, **kw)]
        )
    ),
}
GRADIENT = ["PGD", "APGD", "Frank-Wolfe", "momentum"]
NAN = float("nan")
every_attack = pytest.mark.parametrize("name", ATTACKS)
every_gradient_attack = pytest.mark.parametrize("name", GRADIENT)
DENOISING = dinv.physics.Denoising()


def unrolled(body, **kwargs):
    """An unrolled network with weights like a trained one's: no layer at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = body()
        if isinstance(body, dj.UnrolledDnCNN):
            nn.init.normal_(body.body[-1].weight, std=0.1)
        return dj.UnfoldedGD(body, stepsize=0.5, max_iter=2, **kwargs)


def mri():
    mask = torch.zeros(12)
    mask[[0, 2, 5, 6, 7, 11]] = 1
    noise = dinv.physics.GaussianNoise(0.05)
    physics = dj.SingleCoilMRI(mask, img_size=(16, 12), noise_model=noise)
    return physics, unrolled(lambda: dj.UnrolledDnCNN(2, 3, 8)), (2, 16, 12), 1.0


def seismic():
    physics = dj.SeismicConvolution(noise_model=dinv.physics.GaussianNoise(0.01))
    return physics, unrolled(lambda: dj.UnrolledDnCNN(1, 3, 8)), (1, 24, 10), 0.5


def points():
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    return physics, unrolled(dj.PointMLP), (2,), 0.1


PROBLEMS = {"mri": mri, "seismic": seismic, "points": points}
every_problem = pytest.mark.parametrize("problem", PROBLEMS)
image_and_points = pytest.mark.parametrize("problem", ["mri", "points"])


def build(problem, batch=3, dtype=torch.float32):
    physics, model, shape, eps = PROBLEMS[problem]()
    torch.manual_seed(1)
    x = torch.rand(batch, *shape)
    y = physics(x)
    return model.to(dtype), x.to(dtype), y.to(dtype), physics.to(dtype), eps


def error(model, x, y, physics):
    with torch.no_grad():
        return (model(y, physics) - x).abs().square().flatten(1).sum(1)


class Linear(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, y, physics):
        return y @ self.matrix.T


# --- the exact oracle -------------------------------------------------------------------------


def matrices():
    generator = torch.Generator().manual_seed(0)

    def draw(n):
        return torch.randn(n, n, generator=generator, dtype=torch.float64)

    for n in (64, 192):
        u, _, v = torch.linalg.svd(draw(n))
        spectra = {
            "1/k": 1 / torch.arange(1, n + 1, dtype=torch.float64),
            "condition 1e6": torch.logspace(0, -6, n, dtype=torch.float64),
            "condition 1.1": torch.linspace(1, 0.9, n, dtype=torch.float64),
        }
        yield f"random {n}", draw(n) / n**0.5
        yield f"wide {n}", draw(n)[: n // 2] / n**0.5
        for name, spectrum in spectra.items():
            yield f"{name}, {n}", u * spectrum @ v


MATRICES = dict(matrices())


def exact_worst_case(matrix, residual, eps):
    """max ||r + G d|| over ||d|| <= eps: (lam I - G^T G) d = G^T r with lam >= sigma_max^2."""
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    b = residual @ matrix @ vectors
    low = values[-1].expand(len(b)).clone()
    high = values[-1] + b.norm(dim=1) / eps
    for _ in range(200):
        middle = (low + high) / 2
        outside = (b / (middle[:, None] - values)).norm(dim=1) > eps
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    d = (b / (high[:, None] - values)) @ vectors.T
    assert torch.allclose(d.norm(dim=1), eps, rtol=1e-9)
    return d


def share_of_the_exact_excess(attack, matrix, size):
    """Excess error of an attack over that of the worst case; eps relative to the residual."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(4, matrix.shape[1], generator=generator, dtype=torch.float64)
    x = y[:, : matrix.shape[0]] + 0.3 * torch.randn(
        4, matrix.shape[0], generator=generator, dtype=torch.float64
    )
    residual = y @ matrix.T - x
    eps = size * residual.norm(dim=1)
    physics = dinv.physics.Denoising()
    delta = attack(Linear(matrix), x, y, physics, eps=eps)

    def excess(d):
        return (residual + d @ matrix.T).square().sum(1) - residual.square().sum(1)

    return excess(delta) / excess(exact_worst_case(matrix, residual, eps))


@pytest.mark.parametrize("size", [0.003, 0.3, 3.0])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(
    "attack, least",
    [
        (dj.FrankWolfeAttack(dj.L2Ball(1.0), steps=100, checks=False), 0.99),
        (dj.APGDAttack(dj.L2Ball(1.0), steps=100, checks=False), 0.98),
    ],
)
def test_linear_reconstructors_have_an_exact_worst_case(attack, least, matrix, size):
    share = share_of_the_exact_excess(attack, MATRICES[matrix], size)
    assert (share >= least).all() and (share <= 1 + 1e-9).all()


@every_gradient_attack
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identity_is_attacked_along_the_noise(name, dtype):
    x, y = torch.randn(2, 3, 50, dtype=dtype)
    delta = ATTACKS[name](dj.L2Ball(0.5), steps=50)(Reconstructor(lambda y: y), x, y, DENOISING)
    noise = y - x
    assert torch.allclose(delta, 0.5 * noise / noise.norm(dim=1, keepdim=True), atol=1e-4)


def test_linf_worst_case_of_a_diagonal_reconstructor():
    """There the worst corner is known: each entry grows its own error."""
    gain = torch.linspace(-1, 2, 20, dtype=torch.float64)
    x, y = torch.randn(2, 3, 20, dtype=torch.float64)
    model = Reconstructor(lambda y: y * gain)
    for name in GRADIENT:
        delta = ATTACKS[name](dj.LinfBall(0.3), steps=40)(model, x, y, DENOISING)
        worst = ((gain * y - x).abs() + 0.3 * gain.abs()).square().sum(1)
        assert torch.allclose(error(model, x, y + delta, DENOISING), worst, rtol=1e-4), name


# --- what every attack guarantees -------------------------------------------------------------


@every_problem
@every_attack
@pytest.mark.parametrize("ball, dtype", [(dj.L2Ball, torch.float32), (dj.LinfBall, torch.float64)])
def test_contract(problem, name, ball, dtype):
    model, x, y, physics, eps = build(problem, dtype=dtype)
    radius = torch.tensor([0.0, eps, 3 * eps]) / (1 if ball is dj.L2Ball else 10)
    attack = ATTACKS[name](ball(1.0))
    result = attack.run(model, x, y, physics, eps=radius)
    delta = result.delta
    assert torch.equal(attack(model, x, y, physics, eps=radius), delta)
    assert delta.shape == y.shape and delta.dtype == dtype and not delta.requires_grad
    flat = delta.double().flatten(1)
    norm = torch.linalg.vector_norm(flat, 2 if ball is dj.L2Ball else torch.inf, dim=1)
    assert (norm <= radius.double() * (1 + 1e-6)).all()
    assert not delta[0].any() and delta.isfinite().all()
    assert not delta[~dj.L2Ball(1.0).support(y, physics)].any()
    # the reported losses are those of the reported perturbation
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    model.eval()
    assert torch.allclose(error(model, x, y + delta, physics), result.loss, rtol=tolerance)
    assert torch.allclose(error(model, x, y, physics), result.loss_clean, rtol=tolerance)
    assert (result.loss >= result.loss_clean).all()
    assert torch.equal(delta.flatten(1).any(1), result.loss > result.loss_clean)
    assert name == "random" or delta[1:].flatten(1).any(1).all()
    assert result.trace.shape[1:] == (3,) and torch.equal(result.trace.amax(0), result.loss)
    assert torch.equal(result.perturbation, delta)


N_GRAD = {
    "PGD": 10,
    "APGD": 12,
    "Frank-Wolfe": 5,
    "momentum": 10,
    "converged": 10,
    "random": 0,
    "repeat": 15,
    "worst case": 5,
}


@every_attack
def test_cost(name):
    """Gradients are counted; nothing else runs the model but one look at the last point."""
    model, x, y, physics, eps = build("points")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    attack = ATTACKS[name](dj.L2Ball(eps))
    n_grad = attack.run(model, x, y, physics).n_grad
    assert torch.as_tensor(n_grad).max() == N_GRAD[name]
    calls.clear()
    attack(model, x, y, physics)
    assert calls.count(True) == N_GRAD[name]
    if name in GRADIENT:
        assert calls.count(False) == 1
        calls.clear()
        ATTACKS[name](dj.L2Ball(eps), keep="last")(model, x, y, physics)
        assert calls == [True] * N_GRAD[name]


@every_problem
@pytest.mark.parametrize("name", ["PGD", "Frank-Wolfe", "random"])
def test_more_steps_are_never_weaker(problem, name):
    model, x, y, physics, eps = build(problem)
    losses = [
        ATTACKS[name](dj.L2Ball(3 * eps), steps=n).run(model, x, y, physics).loss
        for n in (1, 2, 5, 15)
    ]
    for weak, strong in itertools.pairwise(losses):
        assert (strong >= weak).all()


@image_and_points
def test_apgd_gains_with_its_steps(problem):
    """Its schedule stretches with the steps: another path, so never weaker only to 1 %."""
    model, x, y, physics, eps = build(problem)
    few, many = (
        dj.APGDAttack(dj.L2Ball(3 * eps), steps=n, checks=False).run(model, x, y, physics)
        for n in (10, 40)
    )
    assert (many.loss - many.loss_clean >= 0.99 * (few.loss - few.loss_clean)).all()


@image_and_points
@pytest.mark.parametrize("name", ["PGD", "APGD", "Frank-Wolfe", "random", "worst case"])
def test_more_restarts_are_never_weaker(problem, name):
    model, x, y, physics, eps = build(problem)
    attack = ATTACKS[name](dj.L2Ball(3 * eps))
    losses = [attack.run(model, x, y, physics).loss] + [
        attack.repeat(n).run(model, x, y, physics).loss for n in (1, 3)
    ]
    assert torch.equal(losses[0], losses[1])
    for weak, strong in itertools.pairwise(losses):
        assert (strong >= weak).all()


@image_and_points
@every_attack
def test_a_warm_started_sweep_is_monotone(problem, name):
    model, x, y, physics, eps = build(problem)
    attack, init, before = ATTACKS[name](dj.L2Ball(1.0)), None, torch.zeros(3)
    for factor in (0.0, 0.2, 1.0, 5.0):
        result = attack.run(model, x, y, physics, eps=factor * eps, init=init)
        assert (result.loss >= before).all()
        init, before = result.perturbation, result.loss


@every_problem
@every_gradient_attack
def test_stronger_than_random_single_step_and_transfer(problem, name):
    model, x, y, physics, eps = build(problem)
    ball = dj.L2Ball(0.3 * eps)
    attack = ATTACKS[name](ball, steps=30)
    loss = attack.run(model, x, y, physics).loss
    baselines = dj.RandomAttack(ball, checks=False), ATTACKS["Frank-Wolfe"](ball, steps=1)
    for baseline in baselines:
        # in the plane, the best of 100 directions all but is the worst case
        assert (loss >= 0.999 * baseline.run(model, x, y, physics).loss).all()
    surrogate = copy.deepcopy(model).eval()
    with torch.no_grad():
        for p in surrogate.parameters():
            p.mul_(1.5)
    transferred = attack(surrogate, x, y, physics)
    assert (loss >= error(model.eval(), x, y + transferred, physics)).all()


@every_problem
def test_without_bound_the_reconstruction_is_worse_than_none(problem):
    model, x, y, physics, _ = build(problem)
    result = ATTACKS["Frank-Wolfe"](dj.L2Ball(1e3)).run(model, x, y, physics)
    assert (result.loss > x.square().flatten(1).sum(1)).all()


@every_problem
@pytest.mark.parametrize("start", ["zero", "random"])
@every_gradient_attack
def test_a_sample_is_attacked_alike_in_any_batch(problem, start, name):
    for dtype in (torch.float32, torch.float64):
        model, x, y, physics, eps = build(problem, batch=2, dtype=dtype)
        attack = ATTACKS[name](dj.L2Ball(eps), start=start)
        together = attack.run(model, x, y, physics)
        for i in range(2):
            alone = attack.run(model, x[i : i + 1], y[i : i + 1], physics)
            assert torch.allclose(alone.loss, together.loss[i], rtol=1e-4)
            # in single precision rounding picks the best of points that are equally bad
            atol = eps * (1e-4 if dtype == torch.float64 else 1e-2)
            assert torch.allclose(alone.delta[0], together.delta[i], atol=atol)


@every_attack
def test_same_seed_same_result(name):
    model, x, y, physics, eps = build("mri")
    first, again = (ATTACKS[name](dj.L2Ball(eps))(model, x, y, physics) for _ in range(2))
    assert torch.equal(first, again)
    if name in GRADIENT:
        one, two = (
            ATTACKS[name](dj.L2Ball(eps), start="random", steps=1, seed=seed) for seed in (0, 1)
        )
        assert not torch.equal(one(model, x, y, physics), two(model, x, y, physics))


# --- no traces left ---------------------------------------------------------------------------


class Fragile(nn.Module):
    """Batch norm, dropout that never sleeps, a frozen weight, and a failure at call ``fails``."""

    def __init__(self, fails=None):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.layer = nn.Linear(6, 6)
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.sleeping = nn.Dropout().eval()
        # A number would be forgotten from call to call
        self.fails, self.calls = fails, itertools.count(1)

    def forward(self, y, physics):
        if next(self.calls) == self.fails:
            raise ArithmeticError("failed")
        out = self.layer(self.norm(y)) * self.frozen
        return nn.functional.dropout(out, 0.1, training=True)


@every_attack
@pytest.mark.parametrize("fails", [None, 1, 3])
def test_no_side_effects(name, fails):
    model = Fragile(fails)
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    physics.gain = nn.Parameter(torch.ones(()))
    x, y = torch.randn(2, 5, 6)
    model.layer.weight.grad = torch.ones(6, 6)

    def state():
        return [
            {k: v.clone() for k, v in model.state_dict().items()},
            {k: v.clone() for k, v in physics.state_dict().items()},
            [m.training for m in model.modules()],
            [p.requires_grad for m in (model, physics) for p in m.parameters()],
            [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()],
            [x.clone(), y.clone()],
        ]

    before = state()
    with assert_global_rng_untouched():
        if fails:
            with pytest.raises(ArithmeticError, match="failed"):
                ATTACKS[name](dj.L2Ball(1.0)).run(model, x, y, physics)
        else:
            ATTACKS[name](dj.L2Ball(1.0)).run(model, x, y, physics)
    assert str(state()) == str(before)
    assert not x.requires_grad and not y.requires_grad


def test_jitter_is_silent():
    model, x, y, physics, eps = build("mri")
    attack = dj.APGDAttack(dj.L2Ball(eps), steps=10)
    plain = attack(model, x, y, physics)
    dj.jitter(model, 0.5).train()
    with assert_global_rng_untouched():
        assert torch.equal(attack(model, x, y, physics), plain)
    assert all(module.training for module in model.modules())


@every_attack
def test_works_under_no_grad_and_on_measurements_of_a_graph(name):
    model, x, y, physics, eps = build("seismic")
    attack = ATTACKS[name](dj.L2Ball(eps))
    expected = attack(model, x, y, physics)
    with torch.no_grad():
        assert torch.equal(attack(model, x, y, physics), expected)
    y = y.requires_grad_()
    assert torch.equal(attack(model, x, 1.0 * y, physics), expected)
    assert not expected.requires_grad and y.grad is None


def test_inside_a_training_step():
    """Between a forward and a backward pass, and under autocast, weights get their gradients."""
    for autocast in (False, True):
        model, x, y, physics, eps = build("mri")
        attack = dj.FrankWolfeAttack(dj.L2Ball(eps))
        weights = list(model.parameters())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = (model(y, physics) - x).square().mean()
            delta = attack(model, x, y, physics)
            loss = loss + (model(y + delta, physics) - x).square().mean()
        assert delta.dtype == torch.float32
        assert (delta.flatten(1).norm(dim=1) <= eps * (1 + 1e-6)).all()
        loss.backward()
        assert all(w.grad is not None and w.grad.any() for w in weights)


@every_attack
def test_bfloat16_and_half_measurements(name):
    for dtype in (torch.bfloat16, torch.float16):
        x, y = torch.randn(2, 4, 30).to(dtype)
        model = Linear(torch.randn(30, 30)).to(dtype)
        delta = ATTACKS[name](dj.L2Ball(0.5))(model, x, y, DENOISING)
        assert delta.dtype == dtype
        assert (delta.double().norm(dim=1) <= 0.5 * (1 + 1e-6)).all() and delta.any()


@every_attack
@pytest.mark.parametrize("ball", [dj.L2Ball, dj.LinfBall])
def test_complex_measurements(name, ball):
    x, y = torch.randn(2, 4, 30, dtype=torch.complex64)
    model = Linear(torch.randn(30, 30, dtype=torch.complex64))
    result = ATTACKS[name](ball(0.5), checks=True).run(model, x, y, DENOISING)
    assert result.delta.dtype == torch.complex64
    assert (ball(1.0).norm(result.delta) <= 0.5 * (1 + 1e-6)).all()
    assert (result.loss > result.loss_clean).all()
    assert not result.flags["gradient_masking"].any()


# --- objectives -------------------------------------------------------------------------------


def test_deviation_needs_no_truth():
    model, _, y, physics, eps = build("mri")
    for name in GRADIENT:
        attack = ATTACKS[name](dj.L2Ball(eps), objective="deviation")
        assert attack.start == "random"
        result = attack.run(model, None, y, physics)
        model.eval()
        with torch.no_grad():
            deviation = model(y + result.delta, physics) - model(y, physics)
        assert torch.allclose(deviation.square().flatten(1).sum(1), result.loss, rtol=1e-4)
        assert not result.loss_clean.any() and (result.loss > 0).all()


@pytest.mark.parametrize("metric", [MSE(), NMSE(), SSIM(), SSIM(train_loss=True)])
def test_metrics_get_worse(metric):
    model, x, y, physics, eps = build("seismic")
    result = dj.PGDAttack(dj.L2Ball(eps), objective=metric, checks=False).run(model, x, y, physics)
    model.eval()
    with torch.no_grad():
        clean, attacked = (metric(model(v, physics), x) for v in (y, y + result.delta))
    sign = 1 if metric.lower_better or metric.train_loss else -1
    assert torch.allclose(result.loss, sign * attacked, rtol=1e-4)
    assert torch.allclose(result.loss_clean, sign * clean, rtol=1e-4)
    assert (sign * attacked > sign * clean).all()


def test_region_of_interest_and_functions():
    model, x, y, physics, eps = build("mri")
    region = torch.zeros(16, 12)
    region[4:8, 3:9] = 1
    ball = dj.L2Ball(eps)

    def inside(x_net, x):
        return ((x_net - x) * region).square().flatten(1).sum(1)

    by_mask = ATTACKS["PGD"](ball, objective=region).run(model, x, y, physics)
    by_function = ATTACKS["PGD"](ball, objective=inside).run(model, x, y, physics)
    assert torch.allclose(by_mask.loss, by_function.loss, rtol=1e-4)
    overall = ATTACKS["PGD"](ball)(model, x, y, physics)
    model.eval()
    with torch.no_grad():
        assert (by_mask.loss > inside(model(y + overall, physics), x)).all()


def test_image_domain():
    """The perturbation is an image; the measurements move by what the physics makes of it."""
    model, x, y, physics, eps = build("mri")
    attack = ATTACKS["PGD"](dj.L2Ball(eps, domain="image"))
    result = attack.run(model, x, y, physics)
    assert result.perturbation.shape == x.shape
    assert (result.perturbation.flatten(1).norm(dim=1) <= eps * (1 + 1e-6)).all()
    assert torch.equal(result.delta, physics.A(result.perturbation))
    assert torch.allclose(error(model.eval(), x, y + result.delta, physics), result.loss)
    again = attack.run(model, x, y, physics, init=result.perturbation)
    assert (again.loss >= result.loss).all()


def test_the_papers_attack():
    """Written out: 20 steps of 0.1 along the unit gradient, from zero, last iterate."""
    model, x, y, physics, _ = build("mri", dtype=torch.float64)
    model.eval()
    delta = torch.zeros_like(y)
    for _ in range(20):
        delta.requires_grad_()
        loss = nn.functional.mse_loss(model(y + delta, physics), x)
        (g,) = torch.autograd.grad(loss, delta)
        with torch.no_grad():
            delta = delta + 0.1 * g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            norm = delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            delta = delta * (1.0 / norm.clamp_min(1.0))
    attack = dj.PGDAttack.paper(eps=1.0)
    assert torch.allclose(attack(model, x, y, physics), delta, atol=1e-6)
    assert (attack.steps, attack.start, attack.keep) == (20, "zero", "last")


@every_attack
def test_zero_gradients_give_no_nan(name):
    """A sample that is reconstructed exactly beside one that is not."""
    x, y = torch.randn(2, 2, 8)
    y[0] = x[0]
    model = Reconstructor(lambda y: y)
    result = ATTACKS[name](dj.L2Ball(0.5)).run(model, x, y, DENOISING)
    assert result.delta.isfinite().all() and (result.loss[1] > result.loss_clean[1])
    if name in GRADIENT:
        assert not result.delta[0].any()
        assert result.flags["zero_gradient"].tolist() == [True, False]
        last = ATTACKS[name](dj.L2Ball(0.5), keep="last")(model, x, y, DENOISING)
        assert last.isfinite().all()


# --- worst case over attacks ------------------------------------------------------------------


def test_worst_case_takes_the_worst_for_each_sample():
    model, x, y, physics, eps = build("mri", batch=6)
    ball = dj.L2Ball(eps)
    members = [
        ATTACKS["Frank-Wolfe"](ball, steps=1, start="random", seed=seed) for seed in range(4)
    ]
    members.append(ATTACKS["PGD"](ball, steps=1, rel_step=1.0, objective="deviation"))
    result = dj.WorstCase(members).run(model, x, y, physics)
    losses = []
    for member in members:
        delta = member(model, x, y, physics)
        losses.append(error(model.eval(), x, y + delta, physics))
    losses = torch.stack(losses)
    assert torch.allclose(result.loss, losses.amax(0), rtol=1e-5)
    assert len(set(losses.argmax(0).tolist())) > 1
    assert torch.allclose(result.trace[1:], losses, rtol=1e-5) and result.n_grad == 5


# --- flags ------------------------------------------------------------------------------------


def flags(attack, function, x=None, y=None, eps=None):
    torch.manual_seed(0)
    x, y = (torch.randn(3, 20) if v is None else v for v in (x, y))
    model = function if isinstance(function, nn.Module) else Reconstructor(function)
    result = attack.run(model, x, y, DENOISING, eps=eps)
    assert set(result.flags) == {
        "not_converged",
        "random_beats_gradient",
        "gradient_masking",
        "zero_gradient",
        "nonfinite_gradient",
        "stochastic_model",
    }
    assert all(f.shape == (len(y),) and f.dtype == torch.bool for f in result.flags.values())
    assert result.delta.isfinite().all()
    return {name for name, flag in result.flags.items() if flag.any()}


APGD = dj.APGDAttack(dj.L2Ball(1.0), steps=30)


@every_problem
@pytest.mark.parametrize("factor", [1e-3, 0.3, 5.0])
@pytest.mark.parametrize("objective", ["error", "deviation", NMSE()])
def test_a_healthy_model_raises_no_flag(problem, factor, objective):
    model, x, y, physics, eps = build(problem)
    attack = dj.APGDAttack(dj.L2Ball(factor * eps), steps=30, objective=objective)
    raised = {name for name, flag in attack.run(model, x, y, physics).flags.items() if flag.any()}
    if factor > 1 or objective == "deviation":
        # rightly so: far away, or from a random start, one run of 30 steps may not be enough
        raised -= {"not_converged", "random_beats_gradient"}
    assert not raised


@every_problem
@pytest.mark.parametrize("momentum", [0.0, 0.4, 0.9])
def test_frank_wolfe_is_the_equation(problem, momentum):
    model, x, y, physics, eps = build(problem, dtype=torch.float64)
    model.eval()
    ball, delta, d = dj.L2Ball(eps), torch.zeros_like(y), None
    support = ball.support(y, physics)
    for _ in range(4):
        point = delta.clone().requires_grad_()
        loss = (model(y + point, physics) - x).square().sum()
        g = torch.autograd.grad(loss, point)[0] * support
        d = g if d is None else (1 - momentum) * g + momentum * d
        delta = eps * d / d.flatten(1).norm(dim=1).reshape(-1, *(1,) * (d.ndim - 1))
    attack = dj.FrankWolfeAttack(ball, steps=4, momentum=momentum, keep="last")
    assert torch.allclose(attack(model, x, y, physics), delta, atol=1e-12)


def excess(attack, model, x, y, physics):
    """The excess error of what an attack finds, in single precision."""
    with torch.no_grad():
        errors = [
            (model(y + delta, physics) - x).square().sum()
            for delta in (attack(model, x, y, physics), 0 * y)
        ]
    return (errors[0] - errors[1]).item()


@pytest.mark.filterwarnings("ignore:This cpu has no units")
@pytest.mark.parametrize("problem", ["mri", "seismic"])
@every_gradient_attack
def test_an_attack_in_half_precision_is_as_strong(problem, name):
    model, x, y, physics, eps = build(problem)
    model.eval()
    ball = dj.L2Ball(eps)
    harm = [
        excess(ATTACKS[name](ball, autocast=dtype), model, x, y, physics)
        for dtype in (None, torch.bfloat16)
    ]
    assert harm[1] > 0.97 * harm[0] > 0


def test_slow_half_precision_is_told(monkeypatch):
    model, x, y, physics, eps = build("points")
    attack = dj.FrankWolfeAttack(dj.L2Ball(eps), steps=1, autocast=torch.bfloat16)
    for known, expected in ((True, 0), (False, 1)):
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda known=known: known, False
        )
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            delta = attack(model, x, y, physics)
        assert delta.dtype == torch.float32
        assert len([w for w in told if "has no units for" in str(w.message)]) == expected


def test_autocast_raises_no_flag():
    model, x, y, physics, eps = build("mri")
    with torch.autocast("cpu", torch.bfloat16):
        result = APGD.run(model, x, y, physics, eps=eps)
    assert not result.flags["gradient_masking"].any()
    assert not result.flags["stochastic_model"].any()


def test_not_converged():
    slow = dj.PGDAttack(dj.L2Ball(1.0), steps=10, rel_step=0.01)
    assert "not_converged" in flags(slow, lambda y: y)
    assert flags(dj.PGDAttack(dj.L2Ball(1.0), steps=60), lambda y: y) == set()


def test_random_beats_gradient():
    """The loss falls again along the gradient, and the attack knows full steps only."""
    trap = dj.FrankWolfeAttack(dj.L2Ball(1.0), steps=1)
    x, y = torch.zeros(2, 3, 20)

    def dented(y):
        return torch.cat([0.01 * y[:, :1] * (0.1 - y[:, :1]) + 1, y[:, 1:]], dim=1)

    assert "random_beats_gradient" in flags(trap, dented, x, y)
    assert flags(dj.FrankWolfeAttack(dj.L2Ball(1.0), steps=50), lambda y: y) == set()
    worst = dj.WorstCase([trap, dj.RandomAttack(dj.L2Ball(1.0))])
    assert "random_beats_gradient" in flags(worst, dented, x, y)


def half_detached(y):
    return torch.cat([y[:, :10].detach(), y[:, 10:]], dim=1)


@pytest.mark.parametrize(
    "function",
    [half_detached, lambda y: 3 * y.detach() - y, lambda y: y + y.mean(1, True).detach() * 20],
    ids=["half detached", "wrong sign", "mean detached"],
)
def test_gradient_masking(function):
    assert "gradient_masking" in flags(APGD, function)


def test_zero_gradient():
    found = flags(APGD, lambda y: (4 * y).round() / 4)
    assert {"zero_gradient", "random_beats_gradient"} <= found
    assert flags(APGD, lambda y: 0 * y) >= {"zero_gradient"}


def test_nonfinite_gradient():
    """sqrt has an infinite slope at zero; below zero it is no number."""
    x, y = torch.zeros(2, 3, 20)
    assert "nonfinite_gradient" in flags(APGD, lambda y: y.abs().sqrt() + 1, x, y)

    def broken_near_the_end(y):
        return torch.where(y.norm(dim=1, keepdim=True) > 0.5, y * float("nan"), 2 * y)

    x, y = 0.01 * torch.ones(3, 20), 0 * x
    assert "nonfinite_gradient" in flags(APGD, broken_near_the_end, x, y)
    for name in ATTACKS:
        model = Reconstructor(broken_near_the_end)
        result = ATTACKS[name](dj.L2Ball(1.0)).run(model, x, y, DENOISING)
        assert result.delta.isfinite().all() and result.loss.isfinite().all(), name
        assert (result.delta.norm(dim=1) < 0.5).all(), name


def test_one_bad_sample_does_not_spoil_its_neighbours():
    x, y = torch.randn(2, 3, 20)
    y[0] = 100.0
    model = Reconstructor(lambda y: torch.where(y.mean(1, keepdim=True) > 50, NAN, 2 * y))
    for name in GRADIENT:
        attack = ATTACKS[name](dj.L2Ball(1.0))
        result = attack.run(model, x, y, DENOISING)
        assert not result.delta[0].any()
        assert torch.allclose(result.delta[1:], attack(model, x[1:], y[1:], DENOISING))
        assert result.flags["nonfinite_gradient"].tolist() == [True, False, False]


def test_stochastic_model():
    assert "stochastic_model" in flags(APGD, lambda y: y + 0.1 * torch.randn_like(y))
    assert "stochastic_model" in flags(
        dj.RandomAttack(dj.L2Ball(1.0)), lambda y: y + 0.1 * torch.randn_like(y)
    )


def test_without_checks_only_what_is_free():
    model, x, y, physics, eps = build("points")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(0))
    attack = dj.APGDAttack(dj.L2Ball(eps), steps=30, checks=False)
    plain = attack.run(model, x, y, physics)
    assert len(calls) == 31
    checked = dj.APGDAttack(dj.L2Ball(eps), steps=30).run(model, x, y, physics)
    assert torch.equal(plain.delta, checked.delta) and torch.equal(plain.trace, checked.trace)
    assert plain.n_grad == checked.n_grad == 30


# --- refusals ---------------------------------------------------------------------------------


def frozen_output(y):
    with torch.no_grad():
        return 2 * y


@every_gradient_attack
@pytest.mark.parametrize(
    "model",
    [
        Reconstructor(frozen_output),
        Reconstructor(lambda y: 2 * y.detach()),
        Reconstructor(lambda y: y.detach() * torch.ones((), requires_grad=True)),
        dinv.optim.GD(data_fidelity=dinv.optim.L2(), prior=dinv.optim.Tikhonov(), max_iter=2),
    ],
    ids=["no_grad", "detach", "of something else", "unfold=False"],
)
@pytest.mark.parametrize("truth_requires_grad", [False, True])
def test_a_model_without_gradient_is_refused(name, model, truth_requires_grad):
    x, y = torch.randn(2, 3, 1, 4, 4)
    x.requires_grad_(truth_requires_grad)
    with pytest.raises(RuntimeError, match="there is none: .* unfold=False. Build it with unfold"):
        ATTACKS[name](dj.L2Ball(1.0))(model, x, y, DENOISING)
    delta = dj.RandomAttack(dj.L2Ball(1.0))(model, x, y, DENOISING)
    assert delta.any()


def test_a_metric_without_gradient_is_refused():
    """deepinv computes PSNR under no_grad."""
    model, x, y, physics, eps = build("seismic")
    ball = dj.L2Ball(eps)
    with pytest.raises(RuntimeError, match="gradient of the objective, but it gives none: .*PSNR"):
        dj.PGDAttack(ball, objective=PSNR())(model, x, y, physics)
    result = dj.RandomAttack(ball, samples=5, objective=PSNR()).run(model, x, y, physics)
    assert (result.loss >= result.loss_clean).all()


def test_inference_mode_is_refused():
    model, x, y, physics, eps = build("points")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="torch.inference_mode rules"):
        dj.FrankWolfeAttack(dj.L2Ball(eps))(model, x, y, physics)


BALL = dj.L2Ball(1.0)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: dj.PGDAttack(1.0), TypeError, "budget must be a Budget .* got float"),
        (lambda: dj.PGDAttack(BALL, steps=0), ValueError, "steps .* at least 1, got 0"),
        (lambda: dj.PGDAttack(BALL, steps=1.5), TypeError, "steps must be a whole numb"),
        (lambda: dj.APGDAttack(BALL, steps=True), TypeError, "steps must be .* got True"),
        (lambda: dj.RandomAttack(BALL, samples=0), ValueError, "samples .* least 1, got"),
        (lambda: dj.PGDAttack(BALL, rel_step=0), ValueError, "rel_step must be positiv"),
        (lambda: dj.PGDAttack(BALL, rel_step=NAN), ValueError, "rel_step must be finite"),
        (lambda: dj.PGDAttack(BALL, rel_step=True), TypeError, "rel_step must be a num"),
        (lambda: dj.PGDAttack(BALL, rel_step="1"), TypeError, "rel_step must be a numb"),
        (lambda: dj.PGDAttack(BALL, seed=-1), ValueError, "seed must be .* from 0 to"),
        (lambda: dj.PGDAttack(BALL, seed=0.5), TypeError, "seed must be a whole number"),
        (lambda: dj.PGDAttack(BALL, seed=2**64), ValueError, "seed must be .* from 0"),
        (lambda: dj.FrankWolfeAttack(BALL, momentum=NAN), ValueError, "momentum must be fin"),
        (lambda: dj.FrankWolfeAttack(BALL, momentum=None), TypeError, "momentum must be a nu"),
        (lambda: dj.PGDAttack.paper(NAN), ValueError, "eps must be finite, got nan"),
        (lambda: dj.PGDAttack.paper(True), TypeError, "eps must be a number, got True"),
        (lambda: dj.PGDAttack.paper(1.0, step=-1), ValueError, "step must be positive"),
        (lambda: dj.PGDAttack(BALL).repeat(1.5), TypeError, "n must be a whole number"),
        (lambda: dj.WorstCase(3), TypeError, "each of attacks must be a dj.Attack, got int"),
        (lambda: dj.WorstCase("PGD"), TypeError, "each of attacks must be a dj.Attack, got str"),
        (
            lambda: dj.PGDAttack(BALL, objective=torch.tensor([1.0, NAN])),
            ValueError,
            r"objective must be real and finite .* got shape \(2,\)",
        ),
        (lambda: dj.PGDAttack(BALL, start="one"), ValueError, "start must be .* got 'one'"),
        (lambda: dj.PGDAttack(BALL, keep="all"), ValueError, "keep must be .* got 'all'"),
        (lambda: dj.PGDAttack(BALL, objective="mse"), TypeError, "objective must be .* got 'mse'"),
        (
            lambda: dj.PGDAttack(BALL, objective=MSE),
            TypeError,
            r"a deepinv Metric such as NMSE\(\), or .* got <class",
        ),
        (lambda: dj.PGDAttack(BALL, 20), TypeError, "positional"),
        (
            lambda: dj.FrankWolfeAttack(BALL, momentum=1.0),
            ValueError,
            "momentum must be at least 0 and below 1, got 1.0",
        ),
        (
            lambda: dj.PGDAttack(BALL, autocast=torch.float32),
            ValueError,
            "autocast must be one of .None, torch.bfloat16, .* got torch.float32",
        ),
        (lambda: dj.PGDAttack.paper(0.0), ValueError, "eps must be positive, got 0.0"),
        (
            lambda: dj.RandomAttack(BALL, distribution="cauchy"),
            ValueError,
            "distribution must be .* got 'cauchy'",
        ),
        (lambda: dj.PGDAttack(BALL).repeat(0), ValueError, "n must be .* at least 1, got 0"),
        (lambda: dj.WorstCase([]), ValueError, "at least one attack, got none"),
        (lambda: dj.WorstCase([BALL]), TypeError, "each of attacks must be a dj.Attack, got L2B"),
        (
            lambda: dj.FrankWolfeAttack(BALL, objective="deviation", start="zero"),
            ValueError,
            "no gradient at start='zero'",
        ),
        (
            lambda: dj.WorstCase(
                [dj.PGDAttack(BALL), dj.PGDAttack(dj.L2Ball(1.0, domain="image"))]
            ),
            ValueError,
            "attacks must have one domain, got measurement and image",
        ),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": None}, ValueError, "needs the truth x, got None"),
        ({"x": torch.zeros(3, 5)}, ValueError, r"output, \(3, 4\), got \(3, 5\)"),
        ({"y": [torch.zeros(3, 4)]}, TypeError, "y must be a torch.Tensor, got list"),
        ({"y": TensorList([])}, TypeError, "y must be a torch.Tensor, got TensorList"),
        ({"model": lambda y, physics: y}, TypeError, "must be a torch.nn.Module, got function"),
        ({"eps": -1.0}, ValueError, "eps must be finite and at least 0, got -1.0"),
        ({"eps": torch.ones(2)}, ValueError, r"eps must be .* shape \(3,\), got shape \(2,\)"),
        ({"init": torch.zeros(3, 5)}, ValueError, r"init must have .* \(3, 4\), got \(3, 5\)"),
        ({"init": torch.full((3, 4), NAN)}, ValueError, "init must be finite, got NaN"),
        ({"init": [0.0]}, TypeError, "init must be a torch.Tensor, got list"),
        ({"init": torch.zeros(3, 4) + 0j}, TypeError, "init must be real .*complex64"),
        ({"x": torch.zeros(2, 4)}, ValueError, "one batch size, got 2 and 3"),
        ({"x": torch.zeros(1, 4)}, ValueError, "one batch size, got 1 and 3"),
        ({"x": torch.zeros(3, 1)}, ValueError, r"output, \(3, 4\), got \(3, 1\)"),
        ({"x": torch.zeros(3, 4).int()}, TypeError, "x must be .* got torch.int32"),
        ({"x": torch.zeros(3, 4).to("meta")}, ValueError, "one device, got meta and cpu"),
        ({"y": torch.ones(3, 4).to("meta")}, ValueError, "one device, got cpu and meta"),
        ({"y": torch.ones(3, 4).int()}, TypeError, "y must be .* got torch.int32"),
        ({"y": torch.ones(3, 4).bool()}, TypeError, "y must be .* got torch.bool"),
        ({"y": torch.ones(4)}, ValueError, r"y must be a batch .* got \(4,\)"),
        ({"x": torch.ones(0, 4), "y": torch.ones(0, 4)}, ValueError, "and not empty"),
        ({"x": torch.full((3, 4), NAN)}, ValueError, "x must be finite, .* in 3 of 3"),
        ({"y": torch.eye(3, 4) / 0}, ValueError, "y must be finite, .* first in sample 0"),
        ({"eps": NAN}, ValueError, "eps must be finite and at least 0, got nan"),
        ({"eps": True}, TypeError, "eps must be a number, got True"),
        ({"eps": 1e39}, ValueError, "eps must be finite in the precision of y, torch.fl"),
        (
            {"model": Reconstructor(lambda y: (y, None))},
            TypeError,
            "the model must return a torch.Tensor, got tuple",
        ),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_refused_with_the_model(several, change, error, message):
    arguments = {
        "model": Reconstructor(lambda y: 2 * y),
        "x": torch.zeros(3, 4),
        "y": torch.ones(3, 4),
        "physics": DENOISING,
    }
    attack = dj.FrankWolfeAttack(BALL).repeat(2) if several else dj.FrankWolfeAttack(BALL)
    for call in (attack, attack.run):
        with pytest.raises(error, match=message):
            call(**arguments | change)


@pytest.mark.parametrize("size", [(3, 1), (2, 1), (5,), (2, 3, 4)])
def test_a_weight_must_fit_the_output(size):
    x, y, model = torch.zeros(3, 4), torch.ones(3, 4), Reconstructor(lambda y: 2 * y)
    attack = dj.FrankWolfeAttack(BALL, objective=torch.ones(size))
    if size == (3, 1):
        assert attack(model, x, y, DENOISING).any()
        return
    with pytest.raises(ValueError, match=r"broadcast .* \(3, 4\), got a weight of sh"):
        attack(model, x, y, DENOISING)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_absurd_radius_gives_no_nan(name):
    """Where the loss overflows there is nothing to climb, which a flag tells."""
    x, y, model = torch.zeros(3, 4), torch.ones(3, 4), Reconstructor(lambda y: 2 * y)
    result = ATTACKS[name](dj.L2Ball(1e30)).run(model, x, y, DENOISING)
    assert result.delta.isfinite().all() and not result.loss.isnan().any()
    assert result.flags["nonfinite_gradient"].all()


def test_an_objective_must_judge_each_sample():
    for objective in (MSE(reduction="mean"), lambda x_net, x: 1.0):
        with pytest.raises(ValueError, match="one value per sample, .* set reduction=None"):
            dj.FrankWolfeAttack(BALL, objective=objective)(
                Reconstructor(lambda y: y), torch.zeros(3, 4), torch.ones(3, 4), DENOISING
            )


def test_an_objective_must_be_real():
    x, model = torch.ones(3, 4), Reconstructor(lambda y: y + 0j)
    attack = dj.PGDAttack(BALL, objective=lambda x_net, x: (x_net - x).sum(1))
    with pytest.raises(TypeError, match="objective must give real .*complex64: take"):
        attack(model, x, x, DENOISING)


def crop(x_net, x):
    return x_net[..., : x.shape[-1]]


class Cropping(MSE):
    """Compares where there is a truth, as challenges on raw data do."""

    def metric(self, x_net, x, *args, **kwargs):
        return super().metric(crop(x_net, x), x)


@pytest.mark.parametrize(
    "objective",
    [lambda x_net, x: (crop(x_net, x) - x).square().sum(1), Cropping(), MSE(center_crop=(2, 2))],
    ids=["function", "metric", "center crop"],
)
@pytest.mark.parametrize("several", [False, True])
def test_a_truth_smaller_than_the_output(objective, several):
    """Its shape is the objective's affair; only the squared error needs the same."""
    centred = isinstance(objective, MSE) and objective.center_crop is not None
    y = torch.randn(3, 1, 4, 4) if centred else torch.randn(3, 6)
    x = torch.zeros(3, 1, 2, 2) if centred else torch.zeros(3, 4)
    attack = dj.APGDAttack(dj.L2Ball(0.5), steps=10, objective=objective)
    if several:
        attack = attack.repeat(2)
    result = attack.run(Reconstructor(lambda y: 2 * y), x, y, DENOISING)
    # all of the budget goes where it is seen
    seen = result.delta[..., 1:3, 1:3] if centred else result.delta[..., :4]
    assert torch.allclose(seen.flatten(1).norm(dim=1), torch.tensor(0.5), atol=1e-3)
    assert (result.loss > result.loss_clean).all()
    for plain in (dj.APGDAttack(BALL), dj.APGDAttack(BALL, objective=torch.ones(1))):
        with pytest.raises(ValueError, match="give an objective that crops the output"):
            plain(Reconstructor(lambda y: 2 * y), x, y, DENOISING)


def test_attacks_are_stateless_modules():
    """They can be copied, hold nothing of a model, and say what they are."""
    attack = dj.APGDAttack(dj.L2Ball(1.0), steps=7)
    model, x, y, physics, eps = build("points")
    before = copy.deepcopy(attack.__dict__).keys()
    attack(model, x, y, physics)
    assert attack.__dict__.keys() == before and not attack.state_dict()
    assert "L2Ball(1.0" in repr(attack) and "steps=7" in repr(attack)


@pytest.mark.parametrize("objective", ["error", torch.tensor([1.0, 2.0])])
def test_attacks_travel_to_other_processes(objective):
    attack = dj.APGDAttack(dj.L2Ball(1.0), steps=3, objective=objective)
    model, x, y, physics, eps = build("points")
    arrived = pickle.loads(pickle.dumps(attack))
    assert torch.equal(arrived(model, x, y, physics), attack(model, x, y, physics))
