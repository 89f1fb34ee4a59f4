"""Searches that go on, for each sample, until they have converged."""

import deepinv as dinv
import pytest
import torch
from attack_cases import Reconstructor
from torch import nn

import deepinv_jitter as dj
from deepinv_jitter.attacks.converged import subset
from deepinv_jitter.attacks.problem import Problem

BALL = dj.L2Ball(1.0)
DENOISING = dinv.physics.Denoising()


def converged(steps=5, max_steps=160, ball=BALL, checks=False, **kwargs):
    search = dj.MomentumAttack(ball, steps=steps, checks=checks, **kwargs)
    return dj.ConvergedAttack(search, max_steps=max_steps)


def valleys(count=4, dtype=torch.float32):
    """
    From easy to hard: the larger gain is that of the first entry, of which there is ever less. By
    ``SLOW`` steps they take 20, 40, 80 and 80 gradients.
    """
    x, y = torch.zeros(2, count, 12, dtype=dtype)
    y[:, 0], y[:, 1] = torch.logspace(-1, -3, count), 0.1
    gains = torch.full((count, 12), 0.05, dtype=dtype)
    gains[:, 0], gains[:, 1] = 1.0, 0.5
    return gains, x, y


SLOW = {"momentum": 0.5, "first_step": 0.1, "last_step": 0.1}


class Gains(dinv.physics.LinearPhysics):
    """Each sample has parameters of its own."""

    def __init__(self, gains):
        super().__init__()
        self.register_buffer("gains", gains)

    def A(self, x, **kwargs):
        return x

    def A_adjoint(self, y, **kwargs):
        return self.gains * y


class Adjoint(nn.Module):
    """Counts the samples it sees."""

    def __init__(self):
        super().__init__()
        self.sizes = [[]]

    def forward(self, y, physics):
        self.sizes[-1].append(len(y)) if torch.is_grad_enabled() else None
        return physics.A_adjoint(y)


# --- momentum ---------------------------------------------------------------------------------


@pytest.mark.parametrize("widen", [1.0, 3.0])
def test_momentum_attack_is_the_equation(widen):
    gains, x, y = valleys(dtype=torch.float64)
    delta = previous = torch.zeros_like(y)
    steps, eps = 10, 0.5

    def projected(v, radius):
        return v * (radius / v.norm(dim=1, keepdim=True)).clamp_max(1)

    for k in range(steps):
        radius = eps * (widen ** (1 - k / 8) if k < 8 else 1)
        ahead = projected(delta + 0.8 * (delta - previous), radius)
        g = gains * (gains * (y + ahead) - x)
        step = radius * 0.4 * (0.01 / 0.4) ** (k / steps)
        moved = ahead + step * g / g.norm(dim=1, keepdim=True)
        previous, delta = delta, projected(moved, radius)
    attack = dj.MomentumAttack(
        dj.L2Ball(eps), steps=10, momentum=0.8, first_step=0.4, last_step=0.01,
        widen=widen, keep="last", checks=False,
    )  # fmt: skip
    found = attack(Adjoint(), x, y, Gains(gains))
    assert torch.allclose(found, projected(delta, eps), atol=1e-12)


def hidden(y):
    """Up to the edge the first entry harms more, at the edge the second: three times as much."""
    return torch.stack([y[:, 0], 3**0.5 * y[:, 1] ** 3], 1)


def test_a_wider_ball_leads_to_a_maximum_out_of_sight():
    x, y = torch.zeros(2, 1, 2)
    init = torch.tensor([[0.866, 0.5]])
    losses = [
        dj.MomentumAttack(BALL, steps=40, widen=widen, checks=False)
        .run(Reconstructor(hidden), x, y, DENOISING, init=init)
        .loss.item()
        for widen in (1.0, 3.0)
    ]
    assert losses == pytest.approx([1.0, 3.0], rel=0.1)


def test_only_points_of_the_budget_count():
    gains, x, y = valleys()
    attack = dj.MomentumAttack(BALL, steps=20, widen=3)
    model, physics = Adjoint(), Gains(gains)
    result = attack.run(model, x, y, physics)
    assert (result.delta.norm(dim=1) <= 1 + 1e-6).all()
    error = (model(y + result.delta, physics) - x).square().sum(1)
    assert torch.allclose(error, result.loss) and torch.equal(result.trace.amax(0), result.loss)
    # from zero, then outside, and inside again for the last steps
    inside = result.trace.isfinite().all(1)
    assert inside.tolist() == [True] + 15 * [False] + 5 * [True]


# --- until it has converged -------------------------------------------------------------------


def test_each_sample_goes_on_until_a_doubling_gains_less_than_the_tolerance():
    gains, x, y = valleys()
    attack = converged(**SLOW)
    result = attack.run(Adjoint(), x, y, Gains(gains), eps=0.5)
    assert result.n_grad.tolist() == [20, 40, 80, 80]
    assert not result.flags["not_converged"].any()
    # Its promise, from the trace: a clean point, then runs of 5, 5, 10, 20 and 40 steps, of each
    # of which the last point is looked at, too
    best = (result.trace.cummax(0).values - result.loss_clean).T
    after = {5: 6, 10: 12, 20: 23, 40: 44, 80: 85}
    assert len(result.trace) == 1 + after[80]
    for excess, steps in zip(best, result.n_grad.tolist(), strict=True):
        last, before, earlier = (excess[after[steps // 2**k]] for k in range(3))
        assert last - before <= 0.01 * last
        assert before - earlier > 0.01 * before
        assert excess[-1] == last


@pytest.mark.parametrize("own", [False, True])
def test_samples_that_have_converged_leave(own):
    """With parameters of their own, too; and what is found is what is found without leaving."""
    gains, x, y = valleys()
    gains = gains * torch.linspace(1, 1.1, 4)[:, None] if own else gains[:1]
    model, physics = Adjoint(), Gains(gains)
    attack = converged(**SLOW)
    result = attack.run(model, x, y, physics, eps=0.5)
    sizes = model.sizes[-1]
    assert sizes == 20 * [4] + 20 * [3] + 40 * [2]
    assert result.n_grad.tolist() == [20, 40, 80, 80]
    assert physics.gains is gains

    class Mixing(Adjoint):
        def forward(self, y, physics):
            return super().forward(y, physics) + 1e-2 * (4 - len(y))

    everyone = attack.run(Mixing(), x, y, physics, eps=0.5)
    assert everyone.n_grad.tolist() == [80] * 4
    assert (everyone.loss >= result.loss * (1 - 1e-5)).all()
    assert torch.allclose(everyone.loss[2:], result.loss[2:], rtol=1e-5)


def test_parameters_as_long_as_the_batch_are_not_taken_for_the_samples_own():
    """A wavelet of 5 entries in a batch of 5."""
    torch.manual_seed(0)
    physics = dj.SeismicConvolution(dj.ricker(5))
    x = torch.randn(5, 1, 16, 6)
    y, eps = physics(x), torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    wavelet = physics.wavelet
    model = dj.UnfoldedGD(nn.Conv2d(1, 1, 3, padding=1), stepsize=0.5, max_iter=2)
    attack = converged(**SLOW)
    together = attack.run(model, x, y, physics, eps=eps)
    assert (together.n_grad[eps == 0] == 10).all() and (together.n_grad[eps > 0] > 10).all()
    for i in range(5):
        alone = attack.run(model, x[i : i + 1], y[i : i + 1], physics, eps=eps[i])
        assert torch.allclose(alone.loss, together.loss[i], rtol=1e-4)
        assert alone.n_grad == together.n_grad[i]
    assert physics.wavelet is wavelet


def test_a_subset_is_cut_only_if_it_gives_the_losses_it_had():
    gains, x, y = valleys()
    gains = gains * torch.linspace(1, 1.1, 4)[:, None]
    attack, rows = converged(), torch.tensor([0, 2])

    def part_of(model, physics):
        problem = Problem(attack, model, x, y, physics, None)
        problem.loss(0.1 * y)
        with subset(problem, rows) as part:
            part.loss(0.2 * y[rows] if len(part.y) == 2 else 0.2 * y)
        return part, problem

    part, problem = part_of(Adjoint(), Gains(gains))
    assert len(part.y) == 2
    expected = (gains * y * torch.tensor([1.2, 1.1, 1.2, 1.1])[:, None]).square().sum(1)
    assert torch.allclose(problem.worst_loss, expected)
    assert [t.tolist() for t in problem.trace[1:]] == [problem.worst_loss.tolist()]
    batch_norm = nn.BatchNorm1d(12)

    class Mixing(nn.Module):
        def forward(self, y, physics):
            return batch_norm(y)

    part, problem = part_of(Mixing(), DENOISING)
    assert part is problem

    class Indexing(dinv.physics.LinearPhysics):
        """Silently wrong for a subset: it takes the first parameters."""

        def A(self, x, **kwargs):
            return x

        def A_adjoint(self, y, **kwargs):
            return gains[: len(y)] * y

    for scale in (1, 1e-6):  # also where all losses are next to zero
        x, y = scale * x, scale * y
        part, problem = part_of(Adjoint(), Indexing())
        assert part is problem
    with pytest.raises(ArithmeticError), subset(problem, rows):
        raise ArithmeticError


@pytest.mark.parametrize("cap", [20, 39, 40, 79])
def test_samples_that_still_rise_at_the_cap_are_flagged(cap):
    gains, x, y = valleys()
    attack = converged(max_steps=cap, **SLOW)
    result = attack.run(Adjoint(), x, y, Gains(gains), eps=0.5)
    most = 20 if cap < 40 else 40
    assert result.n_grad.tolist() == [20, most, most, most]
    flagged = [False, cap < 40, True, True]
    assert result.flags["not_converged"].tolist() == flagged


def test_a_wider_ball_raises_no_flag():
    """Outside of the budget there is no loss, for most of the steps."""
    torch.manual_seed(0)
    model, (x, y) = dj.UnfoldedGD(dj.PointMLP(), max_iter=3), torch.randn(2, 5, 2)
    attack = dj.MomentumAttack(dj.L2Ball(0.1), start="random", widen=3, steps=400, checks=False)
    result = attack.run(model, x, y, DENOISING)
    assert torch.isinf(result.trace).any() and not result.flags["not_converged"].any()


def test_all_starts_are_tried_and_a_given_one_is_one_more():
    x, y = torch.zeros(2, 1, 2)
    y[:, 0] = 1e-3
    model = Reconstructor(hidden)
    plain, wide = (dj.MomentumAttack(BALL, steps=20, widen=w) for w in (1.0, 3.0))
    alone, several = dj.ConvergedAttack(plain), dj.ConvergedAttack([plain, wide])
    init = torch.tensor([[0.1, 0.9]])
    assert alone(model, x, y, DENOISING)[0, 1].abs() < 0.1
    assert alone(model, x, y, DENOISING, init=init)[0, 1] > 0.9
    assert alone.run(model, x, y, DENOISING, init=init).n_grad == 60
    assert several.run(model, x, y, DENOISING).n_grad == 60
    result = alone.run(model, x, y, DENOISING, init=10 * init)
    assert result.loss == pytest.approx(3.0, rel=1e-2)
    assert (result.delta.norm(dim=1) <= 1 + 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "ball, objective",
    [
        (dj.L2Ball(0.5), "error"),
        (dj.LinfBall(0.1), "deviation"),
        (dj.LinfBall(0.1), dinv.metric.NMSE()),
    ],
)
def test_the_standard_attack(ball, objective):
    torch.manual_seed(0)
    physics = dj.SeismicConvolution(noise_model=dinv.physics.GaussianNoise(0.01))
    x = torch.randn(3, 1, 16, 8)
    y = physics(x)
    body = dj.UnrolledDnCNN(1, 3, 8)
    nn.init.normal_(body.body[-1].weight, std=0.1)
    model = dj.UnfoldedGD(body, stepsize=0.5, max_iter=2)
    attack = dj.ConvergedAttack.standard(ball, objective=objective)
    result = attack.run(model, x, y, physics)
    assert (ball.norm(result.delta) <= ball.radius * (1 + 1e-6)).all()
    assert not any(flag.any() for flag in result.flags.values())
    assert torch.equal(result.trace.amax(0), result.loss)
    assert (result.n_grad >= 160).all() and (result.n_grad <= 1500).all()
    # another search that goes on from there, as long as all of them together, finds hardly more
    longer = dj.APGDAttack(ball, steps=200, objective=objective, start="random")
    more = longer.run(model, x, y, physics, init=result.perturbation)
    excess, gained = result.loss - result.loss_clean, more.loss - result.loss
    assert (gained <= 0.03 * excess).all()


def test_restarts_have_other_starts():
    attack = dj.ConvergedAttack.standard(BALL, seed=3).repeat(2)
    again = attack.attacks[1]
    assert isinstance(again, dj.ConvergedAttack)
    assert [s.seed for s in again.searches] == [4, 4, 4]
    assert {s.start for s in again.searches} == {"random"}


def test_it_says_what_it_is_in_one_line():
    ball = dj.L2Ball(1.0, relative_to="noise")
    assert repr(dj.ConvergedAttack.standard(ball)) == (
        "ConvergedAttack(L2Ball(1.0, relative_to='noise'), [MomentumAttack(steps=40, "
        "start='zero'), MomentumAttack(steps=40, start='random'), MomentumAttack(steps=40, "
        "start='random', widen=3)], tolerance=0.01, max_steps=1500)"
    )
    assert repr(dj.RandomAttack(ball, distribution="ball")) == (
        "RandomAttack(L2Ball(1.0, relative_to='noise'), samples=100, distribution='ball')"
    )
    aim = dinv.metric.NMSE()
    assert repr(dj.APGDAttack(dj.L2Ball(0.1), objective=aim)) == (
        "APGDAttack(L2Ball(0.1), steps=100, start='zero')"
    )


def test_which_attacks_give_a_lower_bound():
    fixed, search, random = dj.PGDAttack(BALL), converged(), dj.RandomAttack(BALL)
    assert fixed.lower_bound and random.lower_bound and not search.lower_bound
    assert dj.WorstCase([fixed, random]).lower_bound
    assert not dj.WorstCase([search, random]).lower_bound
    assert search.adds_init and random.adds_init and not fixed.adds_init
    assert dj.WorstCase([search, random]).adds_init
    assert not dj.WorstCase([search, fixed]).adds_init


def test_a_report_counts_what_each_sample_cost():
    """In a sweep the last worst point is one start more, in the same search."""
    gains, x, y = valleys()
    model, physics = Adjoint(), Gains(gains[:1])
    attack = converged(**SLOW)

    def report(attacks, **kwargs):
        return dj.evaluate_robustness(
            model, [{"x": x, "y": y}], physics, attacks=attacks, draws=2, metrics={},
            verbose=False, **kwargs,
        )  # fmt: skip

    swept = report(attack, epsilons=[0.25, 0.5])
    first, second = (swept.values[f"worst case, eps={e}"] for e in (0.25, 0.5))
    result = attack.run(model, x, y, physics, eps=0.25)
    assert torch.equal(first["gradients"], result.n_grad.double())
    assert len(set(result.n_grad.tolist())) > 1
    warm = attack.run(model, x, y, physics, eps=0.5, init=2 * result.perturbation)
    assert torch.equal(second["gradients"], warm.n_grad.double())
    assert torch.allclose(second["squared error"].float(), warm.loss)
    standard, quick = (report(name, epsilons=[0.5]) for name in ("standard", "quick"))
    assert not swept.lower_bound and not standard.lower_bound and quick.lower_bound
    assert "LOWER BOUND" in quick.table() and "LOWER BOUND" not in standard.table()
    assert (standard.values["worst case, eps=0.5"]["gradients"] >= 160).all()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: dj.ConvergedAttack([]), ValueError, "at least one attack, got none"),
        (lambda: dj.ConvergedAttack(3), TypeError, "such as MomentumAttack, got int"),
        (
            lambda: dj.ConvergedAttack([dj.RandomAttack(BALL)]),
            TypeError,
            "go along a gradient, .* got RandomAttack",
        ),
        (
            lambda: dj.ConvergedAttack(converged()),
            TypeError,
            "searches must be attacks that .* MomentumAttack, got ConvergedAttack",
        ),
        (
            lambda: dj.ConvergedAttack(
                [dj.PGDAttack(BALL, steps=5), dj.PGDAttack(dj.L2Ball(1.0), steps=5)]
            ),
            ValueError,
            "searches must share their budget, the very same object",
        ),
        (
            lambda: dj.ConvergedAttack(
                [dj.PGDAttack(BALL), dj.PGDAttack(BALL, objective="deviation")]
            ),
            ValueError,
            "searches must share their objective",
        ),
        (lambda: converged(max_steps=14), ValueError, "max_steps must be at least 15, .* got 14"),
        (
            lambda: dj.ConvergedAttack(dj.PGDAttack(BALL), tolerance=0),
            ValueError,
            "tolerance must be positive and below 1, got 0",
        ),
        (
            lambda: dj.ConvergedAttack(dj.PGDAttack(BALL), max_steps=1e3),
            TypeError,
            "max_steps must be a whole number, got 1000.0",
        ),
        (
            lambda: dj.MomentumAttack(BALL, momentum=1),
            ValueError,
            "momentum must be at least 0 and below 1, got 1",
        ),
        (
            lambda: dj.MomentumAttack(BALL, widen=0.5),
            ValueError,
            "widen must be finite and at least 1, got 0.5",
        ),
        (
            lambda: dj.MomentumAttack(BALL, first_step=0),
            ValueError,
            "first_step must be positive, got 0",
        ),
        (
            lambda: dj.MomentumAttack(BALL, last_step="1"),
            TypeError,
            "last_step must be a number, got '1'",
        ),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
