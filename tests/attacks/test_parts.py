"""Stacked physics, whose measurements are a TensorList: one budget over all parts together."""

import deepinv as dinv
import pytest
import torch
from deepinv.utils import TensorList
from torch import nn

import deepinv_jitter as dj
from deepinv_jitter.attacks.parts import Layout
from deepinv_jitter.memory import modules


def gaussian(sigma):
    return dinv.physics.GaussianNoise(sigma)


def masked(seed, noise=None):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(1, 8, 6, generator=generator) > 0.4).float()
    return dinv.physics.Inpainting((1, 8, 6), mask, noise_model=noise)


def stacked(sigmas=(0.1, 0.3)):
    return dinv.physics.stack(
        masked(0, gaussian(sigmas[0])),
        dinv.physics.Downsampling(
            (1, 8, 6), factor=2, filter=None, noise_model=gaussian(sigmas[1])
        ),
    )


class Back(nn.Module):
    """A linear reconstruction, with a gain per part."""

    def __init__(self, gains=(1.0, 2.0)):
        super().__init__()
        self.gains = nn.Parameter(torch.tensor(gains))

    def forward(self, y, physics):
        assert isinstance(y, TensorList)
        return physics.A_adjoint(TensorList([g * p for g, p in zip(self.gains, y)]))


def batch(physics, count=3, dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.rand(count, 1, 8, 6)
    return x.to(dtype), physics(x).to(dtype)


BALLS = {"l2": dj.L2Ball, "linf": dj.LinfBall}
ATTACKS = {
    "PGD": lambda ball, **kw: dj.PGDAttack(ball, steps=5, rel_step=1.0, **kw),
    "APGD": lambda ball, **kw: dj.APGDAttack(ball, steps=8, **kw),
    "FW": lambda ball, **kw: dj.FrankWolfeAttack(ball, **kw),
    "random": lambda ball, **kw: dj.RandomAttack(ball, samples=5, **kw),
    "worst case": lambda ball, **kw: dj.WorstCase(
        [dj.FrankWolfeAttack(ball, **kw), dj.RandomAttack(ball, samples=3, **kw)]
    ),
}


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("name", ATTACKS)
def test_contract(name, ball):
    physics, model = stacked(), Back()
    x, y = batch(physics)
    eps = torch.tensor([0.0, 0.5, 2.0]) / (1 if ball == "l2" else 10)
    attack = ATTACKS[name](BALLS[ball](1.0))
    result = attack.run(model, x, y, physics, eps=eps)
    delta = result.delta
    assert isinstance(delta, TensorList) and delta.shape == y.shape
    again = attack(model, x, y, physics, eps=eps)
    assert all(torch.equal(a, b) for a, b in zip(delta, again, strict=True))
    whole = torch.cat([part.flatten(1) for part in delta], 1)
    norm = torch.linalg.vector_norm(whole, 2 if ball == "l2" else torch.inf, dim=1)
    assert (norm <= eps * (1 + 1e-6)).all() and torch.allclose(norm[1:], eps[1:])
    # on measured entries only, in every part, and in every part something
    assert not delta[0][(physics[0].mask == 0).expand_as(delta[0])].any()
    assert all(part[1:].flatten(1).any(1).all() for part in delta)
    error = (model(y + delta, physics) - x).square().flatten(1).sum(1)
    assert torch.allclose(error, result.loss, rtol=1e-4)
    assert (result.loss[1:] > result.loss_clean[1:]).all()
    assert all(flag.shape == (3,) for flag in result.flags.values())
    assert not result.flags["gradient_masking"].any()
    warm = attack.run(model, x, y, physics, eps=eps, init=delta)
    assert (warm.loss >= result.loss * (1 - 1e-6)).all()


def test_the_worst_case_is_that_of_the_one_operator_they_make():
    """Side by side in one tensor or as two parts, a linear problem has one answer."""

    class Joined(dinv.physics.LinearPhysics):
        def A(self, x, **kwargs):
            return layout.pack(physics.A(x))

        def A_adjoint(self, y, **kwargs):
            return physics.A_adjoint(layout.unpack(y))

    physics, model = stacked(), Back()
    x, y = batch(physics)
    layout = Layout(y)
    attack = dj.APGDAttack(dj.L2Ball(0.5), steps=30)

    class Whole(nn.Module):
        def forward(self, y, joined):
            return model(layout.unpack(y), physics)

    together = attack(model, x, y, physics)
    alone = attack(Whole(), x, layout.pack(y), Joined())
    assert torch.allclose(layout.pack(together), alone, atol=1e-6)


@pytest.mark.parametrize("image", [False, True])
def test_image_domain_and_deviation(image):
    physics, model = stacked(), Back()
    x, y = batch(physics)
    ball = dj.L2Ball(0.5, domain="image" if image else "measurement")
    attack = dj.PGDAttack(ball, steps=5, objective="deviation")
    result = attack.run(model, None, y, physics)
    change = model(y + result.delta, physics) - model(y, physics)
    assert torch.allclose(change.square().flatten(1).sum(1), result.loss, rtol=1e-4)
    if image:
        assert result.perturbation.shape == x.shape
        seen = physics.A(result.perturbation)
        assert all(torch.equal(a, b) for a, b in zip(seen, result.delta, strict=True))


def test_radii_count_all_parts():
    physics = stacked()
    _, y = batch(physics)
    counts = physics[0].mask.sum(), torch.tensor(12.0)
    norm = torch.cat([part.flatten(1) for part in y], 1).norm(dim=1)
    noise = (0.1**2 * counts[0] + 0.3**2 * counts[1]).sqrt()
    top = torch.stack([part.abs().flatten(1).amax(1) for part in y]).amax(0)
    for ball, expected in [
        (dj.L2Ball(2.0), torch.full((3,), 2.0)),
        (dj.L2Ball(2.0, relative_to="y"), 2 * norm),
        (dj.L2Ball(2.0, relative_to="noise"), 2 * noise.expand(3)),
        (dj.LinfBall(2.0, relative_to="y"), 2 * top),
        (dj.LinfBall(2.0, relative_to="noise"), torch.full((3,), 0.6)),
    ]:
        assert torch.allclose(ball.radii(y, physics), expected), ball


def test_a_support_for_each_part():
    physics, model = stacked(), Back()
    x, y = batch(physics)
    given = TensorList([torch.zeros(8, 6), torch.eye(4, 3)])
    delta = dj.PGDAttack(dj.L2Ball(0.5, support=given), steps=3)(model, x, y, physics)
    assert not delta[0].any() and not delta[1][:, :, torch.eye(4, 3) == 0].any()
    assert delta[1].flatten(1).any(1).all()
    for wrong, got in [
        (torch.ones(8, 6), r"got \(8, 6\)"),
        (TensorList([torch.ones(8, 6), torch.ones(5)]), r"got \(8, 6\) and \(5,\)"),
    ]:
        with pytest.raises(ValueError, match=rf"of shape \(3, 1, 8, 6\) and \(3, 1, 4, 3\), {got}"):
            dj.L2Ball(1.0, support=wrong).support(y, physics)


KINDS = {
    "real": (torch.float32, torch.float32),
    "complex": (torch.complex64, torch.complex64),
    "mixed": (torch.float32, torch.complex64),
    "double": (torch.float64, torch.complex128),
}


@pytest.mark.parametrize("kind", KINDS)
def test_real_and_complex_parts(kind):
    first, second = KINDS[kind]
    torch.manual_seed(0)
    y = TensorList([torch.randn(3, 4, 2, dtype=first), torch.randn(3, 5, dtype=second)])
    layout = Layout(y)
    flat = layout.pack(y)
    assert all(map(torch.equal, layout.unpack(flat), y))
    assert torch.allclose(
        flat.norm(dim=1), sum(part.flatten(1).norm(dim=1) ** 2 for part in y) ** 0.5
    )

    class Sum(nn.Module):
        def forward(self, y, physics):
            return y[0].sum((1, 2), keepdim=True) + 2j * y[1].sum(1)[:, None, None]

    model, physics = Sum(), dinv.physics.Physics()
    physics = dinv.physics.StackedPhysics([physics, dinv.physics.Physics()])
    for part in physics.physics_list:
        part.set_noise_model(gaussian(0.1))
    x = torch.zeros(3, 1, 1, dtype=first.to_complex())
    ball = dj.L2Ball(1.0, relative_to="noise")
    assert torch.allclose(ball.radii(y, physics).float(), torch.tensor(0.1 * 13**0.5))
    result = dj.FrankWolfeAttack(dj.L2Ball(0.5), steps=4).run(model, x, y, physics)
    assert [part.dtype for part in result.delta] == [first, second]
    assert torch.allclose(layout.pack(result.delta).norm(dim=1), 0.5 * flat[:, 0].real.abs() ** 0)
    assert (result.loss > result.loss_clean).all()
    assert not result.flags["gradient_masking"].any()


def test_a_complex_part_may_begin_at_an_odd_place():
    y = TensorList([torch.randn(2, 3), torch.randn(2, 4, dtype=torch.complex64)])
    layout = Layout(y)
    assert all(map(torch.equal, layout.unpack(layout.pack(y)), y))


def test_pansharpening():
    physics = dinv.physics.Pansharpen((3, 16, 16), factor=4)
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16)
    y = physics(x)
    model = dj.UnfoldedPGD(nn.Conv2d(3, 3, 3, padding=1), stepsize=0.3, max_iter=2)
    for domain in ("measurement", "image"):
        attack = dj.APGDAttack(dj.L2Ball(0.5, domain=domain), steps=6)
        result = attack.run(model, x, y, physics)
        assert result.delta.shape == y.shape
        assert (result.loss > result.loss_clean).all()


@pytest.mark.parametrize(
    "y, message",
    [
        ([torch.ones(3, 2), torch.ones(2, 2)], r"y\[0\] and y\[1\] must have one batch"),
        ([torch.ones(3, 2), NotImplemented], r"y\[1\] must be a torch.Tensor"),
        ([torch.ones(3, 2), torch.ones(3).int()], r"y\[1\] must be .* got torch.int32"),
        ([torch.ones(3, 2), torch.ones(3, 1) / 0], r"y\[1\] must be finite"),
        ([torch.ones(3, 2), torch.ones(3, 1).half()], "one precision, got .*32 and .*16"),
    ],
)
def test_refused(y, message):
    with pytest.raises((TypeError, ValueError), match=message):
        dj.PGDAttack(dj.L2Ball(1.0))(Back(), torch.ones(3, 2), TensorList(y), stacked())


def test_modules_of_all_parts():
    physics = stacked()
    assert {physics[0], physics[1], physics[1].noise_model} <= set(modules(physics))


def test_a_report_on_stacked_physics(tmp_path):
    """One ball, numbers that do not depend on the batch, and a resume that knows the physics."""
    physics, model = stacked(), Back()
    x, y = batch(physics, count=4)
    kwargs = dict(
        physics=physics, epsilons=[0.5, 1.0], draws=3, verbose=False, shifts=dj.Bias(0.1),
        attacks=dj.APGDAttack(dj.L2Ball(1.0, relative_to="noise"), steps=6),
    )  # fmt: skip
    state = tmp_path / "state"
    whole = dj.evaluate_robustness(model, [{"x": x, "y": y}], **kwargs, state=state)
    parts = [{"x": x[i], "y": TensorList([p[i] for p in y])} for i in (slice(3), slice(3, 4))]
    halves = dj.evaluate_robustness(model, parts, **kwargs)
    assert whole.digests == halves.digests and len(set(whole.digests)) == 4
    worst = whole.values["worst case, eps=1"]
    assert torch.allclose(worst["radius/|noise|"], torch.ones(4, dtype=torch.float64))
    assert torch.allclose(worst["|delta|"], worst["radius"])
    # The edit is everywhere: there is no outside
    assert set(whole.flags) == {"model_in_train_mode", "error outside undefined"}
    for label, columns in whole.values.items():
        for name, values in columns.items():
            assert torch.allclose(
                values.double(), halves.values[label][name].double(), rtol=1e-4, equal_nan=True
            ), (label, name)
    error = worst["squared error"]
    assert (error > whole.values["random, eps=1"]["squared error"]).all()
    physics[0].mask.mul_(2)  # a part, which deepinv's state_dict leaves out
    with pytest.raises(ValueError, match="differs in physics"):
        dj.evaluate_robustness(model, [{"x": x, "y": y}], **kwargs, state=state)


def test_measurements_of_stacked_physics_do_not_depend_on_the_batch():
    def noise(seed):
        return dinv.physics.GaussianNoise(0.1, rng=torch.Generator().manual_seed(seed))

    physics = dinv.physics.stack(masked(0, noise(0)), masked(1, noise(1)))
    x = torch.rand(4, 1, 8, 6)
    before = [part.noise_model.rng.get_state() for part in physics.physics_list]
    one, two = (
        dj.evaluate_robustness(
            Back(), loader, physics, epsilons=[], metrics={}, verbose=False
        ).values["clean"]["squared error"]
        for loader in ([x], [x[:3], x[3:]])
    )
    assert torch.allclose(one, two)
    after = [part.noise_model.rng.get_state() for part in physics.physics_list]
    assert all(map(torch.equal, before, after))
