import deepinv as dinv
import numpy as np
import pytest
import torch
from properties import assert_global_rng_untouched

import deepinv_jitter as dj

NAN = float("nan")
DENOISING = dinv.physics.Denoising()
BALLS = {"l2": dj.L2Ball, "linf": dj.LinfBall}
every_ball = pytest.mark.parametrize("ball", [dj.L2Ball(1.0), dj.LinfBall(1.0)])
DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
SHAPES = [(4, 2), (4, 7), (4, 1, 6, 5), (4, 2, 3, 4, 5)]
EPS = torch.tensor([0.0, 1e-3, 1.0, 50.0])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(shape, dtype=torch.float32):
    if dtype.is_complex:
        return torch.randn(shape, generator=generator(), dtype=dtype)
    return torch.randn(shape, generator=generator()).to(dtype)


def plain_norm(ball, delta):
    wide = torch.complex128 if delta.is_complex() else torch.float64
    return torch.linalg.vector_norm(
        delta.to(wide).flatten(1), 2 if isinstance(ball, dj.L2Ball) else torch.inf, dim=1
    )


def mri(batch=1):
    mask = torch.rand(batch, 1, 8, 6, generator=generator()) > 0.5
    noise = dinv.physics.GaussianNoise(0.1)
    return dj.SingleCoilMRI(mask.float(), img_size=(8, 6), noise_model=noise)


@every_ball
@every_dtype
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3])
def test_projection_and_step_are_inside_in_every_precision(ball, dtype, shape, size):
    v = size * normal(shape, dtype)
    for out in (ball.project(v, EPS), ball.steepest(v, EPS)):
        assert out.dtype == dtype and out.shape == v.shape
        assert (plain_norm(ball, out) <= EPS.double() * (1 + 1e-6)).all()
        assert not out[0].any()


@every_ball
def test_what_is_inside_stays_as_it_is(ball):
    v = normal((4, 7))
    assert torch.equal(ball.project(v, 2 * ball.norm(v)), v)
    once = ball.project(v, EPS)
    assert torch.equal(ball.project(once, EPS), once)


@every_ball
@every_dtype
def test_norm(ball, dtype):
    v = normal((4, 1, 6, 5), dtype)
    assert torch.allclose(ball.norm(v).double(), plain_norm(ball, v), rtol=1e-6)
    assert ball.norm(v).dtype in (torch.float32, torch.float64)


@every_ball
def test_projection_is_the_nearest_point(ball):
    v, eps = 3 * normal((4, 7), torch.float64), torch.ones(4, dtype=torch.float64)
    distance = (ball.project(v, eps) - v).norm(dim=1)
    for seed in range(100):
        other = ball.random(v, eps, generator(seed), "ball")
        assert (distance <= (other - v).norm(dim=1)).all()


@every_ball
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_steepest_gains_most_and_reaches_the_dual_norm(ball, dtype):
    g, eps = normal((4, 7), dtype), torch.ones(4, dtype=torch.float64)

    def gain(d):
        return (g.conj() * d).real.sum(1)

    dual = g.abs().sum(1) if isinstance(ball, dj.LinfBall) else g.norm(dim=1)
    assert torch.allclose(gain(ball.steepest(g, eps)), dual, rtol=1e-12)
    for seed in range(20):
        assert (gain(ball.random(g, eps, generator(seed))) <= dual).all()


@every_ball
@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-3, 1e30, 1e38])
def test_gradients_of_any_size(ball, scale):
    g = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5], [0.0, 1.0, 0.0]]) * scale
    out = ball.steepest(g, torch.ones(3))
    assert out.isfinite().all() and not out[0].any() and (ball.norm(out) <= 1).all()
    if scale > 1e-40:  # below, a number has hardly a digit left
        assert torch.allclose(ball.norm(out), torch.tensor([0.0, 1.0, 1.0]))
    assert ball.project(g, torch.ones(3)).isfinite().all()


@every_ball
@every_dtype
@pytest.mark.parametrize("distribution", ["sphere", "ball", "gaussian"])
def test_random_draws(ball, dtype, distribution):
    like, support = torch.zeros(4, 1, 6, 5, dtype=dtype), torch.rand(4, 1, 6, 5) > 0.4
    with assert_global_rng_untouched():
        out = ball.random(like, EPS, generator(), distribution, support)
        again = ball.random(like, EPS, generator(), distribution, support)
    assert out.dtype == dtype and torch.equal(out, again)
    assert not out[~support].any() and not out[0].any() and out[1:].any()
    assert (plain_norm(ball, out) <= EPS.double() * (1 + 1e-6)).all()
    alone = ball.random(like[2:3], EPS[2:3], generator(), distribution, support[2:3])
    assert torch.allclose(alone, out[2:3], rtol=10 * torch.finfo(dtype).eps)


def test_laws():
    eps, like = torch.ones(1), torch.zeros(1, 3)
    g = generator()
    norms = {
        (name, distribution): torch.cat(
            [ball(1.0).norm(ball(1.0).random(like, eps, g, distribution)) for _ in range(600)]
        )
        for name, ball in BALLS.items()
        for distribution in ("sphere", "ball")
    }
    for name in BALLS:
        assert torch.allclose(norms[name, "sphere"], torch.tensor(1.0))
        # uniform in three dimensions: the cube of the norm is uniform on [0, 1]
        cubes = norms[name, "ball"] ** 3
        assert cubes.mean().item() == pytest.approx(1 / 2, abs=0.05)
        assert cubes.var().item() == pytest.approx(1 / 12, abs=0.02)


def test_gaussian_draws_measure_eps():
    like = torch.zeros(1, 5000)
    draw = dj.L2Ball(1.0).random(like, torch.tensor([3.0]), generator(), "gaussian")
    assert draw.norm().item() == pytest.approx(3.0, rel=0.05)
    draw = dj.LinfBall(1.0).random(like, torch.tensor([3.0]), generator(), "gaussian")
    inner = draw[draw.abs() < 2.9]
    assert draw.abs().max() <= 3 and inner.std().item() == pytest.approx(1.6, rel=0.1)


@pytest.mark.parametrize("radius", [2, 2.0, np.float32(2), torch.tensor(2.0), torch.tensor([2.0])])
@every_ball
def test_absolute_radius(ball, radius):
    y = torch.ones(3, 2)
    assert torch.equal(type(ball)(radius).radii(y, dinv.physics.Denoising()), torch.full((3,), 2.0))


@every_ball
def test_a_radius_keeps_the_digits_of_double_precision(ball):
    radii = type(ball)(0.1).radii(torch.ones(2, 2, dtype=torch.float64), DENOISING)
    assert radii.tolist() == [0.1, 0.1]


def test_radius_per_sample():
    radius = torch.tensor([1.0, 2.0, 3.0])
    y = torch.ones(3, 2, dtype=torch.float64)
    radii = dj.L2Ball(radius).radii(y, dinv.physics.Denoising())
    assert torch.equal(radii, radius.double())


def test_relative_radius():
    physics = mri(batch=3)
    y = physics(torch.randn(3, 2, 8, 6))
    counts = physics.mask.flatten(1).sum(1)
    assert len(set(counts.tolist())) > 1
    for ball, expected in [
        (dj.L2Ball(0.5, relative_to="y"), 0.5 * y.flatten(1).norm(dim=1)),
        (dj.LinfBall(0.5, relative_to="y"), 0.5 * y.abs().flatten(1).amax(1)),
        (dj.L2Ball(0.5, relative_to="noise"), 0.5 * 0.1 * counts.sqrt()),
        (dj.LinfBall(0.5, relative_to="noise"), torch.full((3,), 0.05)),
        (dj.L2Ball(1.0, relative_to="noise", support=None), 0.1 * torch.full((3,), 96.0**0.5)),
    ]:
        assert torch.allclose(ball.radii(y, physics), expected), ball
    physics.noise_model.update_parameters(sigma=torch.tensor([0.1, 0.2, 0.3]))
    radii = dj.LinfBall(1.0, relative_to="noise").radii(y, physics)
    assert torch.allclose(radii, torch.tensor([0.1, 0.2, 0.3]))


def supported_physics():
    mask = (torch.rand(1, 8, 6, generator=generator()) > 0.5).float()
    nonlinear = dinv.physics.Physics()
    everywhere = torch.ones(2, 1, 8, 6, dtype=torch.bool)
    return {
        "MRI": (mri(), (2, 2, 8, 6), mri().mask.expand(2, -1, -1, -1) != 0),
        "MRI, one mask each": (mri(2), (2, 2, 8, 6), mri(2).mask != 0),
        "inpainting": (
            dinv.physics.Inpainting((1, 8, 6), mask),
            (2, 1, 8, 6),
            mask.expand(2, 1, 8, 6) != 0,
        ),
        "seismic": (dj.SeismicConvolution(dj.ricker(5)), (2, 1, 8, 6), everywhere),
        "denoising": (dinv.physics.Denoising(), (2, 1, 8, 6), everywhere),
        "nonlinear": (nonlinear, (2, 1, 8, 6), everywhere),
    }


@pytest.mark.parametrize("name", supported_physics())
def test_support_is_what_the_physics_measures(name):
    physics, shape, expected = supported_physics()[name]
    y = torch.zeros(shape)
    with assert_global_rng_untouched():
        assert torch.equal(dj.L2Ball(1.0).support(y, physics), expected)
    assert dj.L2Ball(1.0, support=None).support(y, physics).all()
    given = torch.zeros(shape[-1])
    given[0] = 2.0
    chosen = dj.L2Ball(1.0, support=given).support(y, physics)
    assert chosen.shape == y.shape and torch.equal(chosen[..., 0], chosen.any(-1))


def test_image_domain():
    physics, shape, mask = supported_physics()["inpainting"]
    ball, y = dj.L2Ball(1.0, domain="image"), torch.ones(shape)
    assert torch.equal(ball.support(y, physics), mask)
    assert ball.zero(y, physics).shape == shape and not ball.zero(y, physics).any()
    blur = dinv.physics.Downsampling((1, 8, 6), factor=2, filter=None)
    delta = torch.randn(2, 1, 8, 6)
    y = blur(delta)
    assert ball.zero(y, blur).shape == delta.shape
    assert torch.equal(ball.to_measurement(delta, blur), blur.A(delta))
    assert torch.equal(dj.L2Ball(1.0).to_measurement(y, blur), y)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"radius": -1.0}, ValueError, "radius must be finite and at least 0, got -1.0"),
        ({"radius": float("nan")}, ValueError, "radius must be finite and at least 0"),
        ({"radius": torch.tensor([1.0, -1.0])}, ValueError, "finite and at least 0"),
        ({"radius": torch.ones(2, 2)}, ValueError, r"one number per sample, got shape \(2, 2\)"),
        ({"radius": "1"}, TypeError, "radius must be a number, got '1'"),
        ({"radius": True}, TypeError, "radius must be a number, got True"),
        ({"radius": torch.tensor(True)}, TypeError, r"of such, got tensor\(True\)"),
        ({"radius": torch.tensor(1j)}, TypeError, r"of such, got tensor\(0.\+1.j\)"),
        ({"radius": float("inf")}, ValueError, "finite and at least 0, got inf"),
        ({"support": torch.zeros(3)}, ValueError, "not be zero every.* shape .3,."),
        ({"support": torch.tensor([1, NAN])}, ValueError, "support must be finite, g"),
        ({"support": np.ones(3)}, ValueError, "support must be 'auto', a tensor, a T"),
        ({"relative_to": "x"}, ValueError, "relative_to must be one of .* got 'x'"),
        (
            {"support": "all"},
            ValueError,
            "support must be 'auto', a tensor, a TensorList or None, got 'all'",
        ),
        ({"domain": "kspace"}, ValueError, "domain must be one of .* got 'kspace'"),
        ({"domain": "image", "relative_to": "y"}, ValueError, "image-domain budget is absolute"),
    ],
)
@pytest.mark.parametrize("ball", BALLS.values())
def test_refused(ball, arguments, error, message):
    with pytest.raises(error, match=message):
        ball(**{"radius": 1.0} | arguments)


def test_refused_with_a_physics():
    y, physics = torch.zeros(3, 2), dinv.physics.Denoising()
    with pytest.raises(ValueError, match=r"one number per sample, shape \(3,\), got shape \(2,\)"):
        dj.L2Ball(torch.ones(2)).radii(y, physics)
    with pytest.raises(ValueError, match=r"broadcast to the perturbation, of shape \(3, 2\)"):
        dj.L2Ball(1.0, support=torch.ones(5)).support(y, physics)
    with pytest.raises(TypeError, match="needs a deepinv LinearPhysics, .* got Physics"):
        dj.L2Ball(1.0, domain="image").zero(y, dinv.physics.Physics())
    with pytest.raises(ValueError, match="distribution must be one of .* got 'cauchy'"):
        dj.L2Ball(1.0).random(y, torch.ones(3), generator(), "cauchy")


V = torch.ones(3, 2)


@every_ball
@pytest.mark.parametrize(
    "v, eps, error, message",
    [
        ([1.0], torch.ones(3), TypeError, "must be a torch.Tensor, got list"),
        (V.int(), torch.ones(3), TypeError, "real or complex numbers, got torch.int32"),
        (V[:, 0], torch.ones(3), ValueError, r"batch of shape .* got \(3,\)"),
        (V[:0], torch.ones(1), ValueError, r"and not empty, got \(0, 2\)"),
        (V, torch.ones(3).to("meta"), ValueError, "device of .* cpu, got meta"),
        (V, 1.0, ValueError, r"eps must be a tensor .* shape \(3,\), got 1.0"),
        (V, torch.ones(2), ValueError, r"eps must be .* shape \(3,\), got \(2,\)"),
        (V, torch.ones(3, 1), ValueError, r"eps must be .* got \(3, 1\)"),
    ],
)
def test_refused_in_a_step(ball, v, eps, error, message):
    for step in (ball.project, ball.steepest, lambda *a: ball.random(*a, generator())):
        with pytest.raises(error, match=message):
            step(v, eps)


@every_ball
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"generator": None}, TypeError, "generator must be a torch.Generator, got None"),
        ({"support": torch.ones(3, 2)}, ValueError, r"boolean, of shape \(3, 2\), got"),
        ({"support": V[:1] > 0}, ValueError, r"boolean, of .* got \(1, 2\) of torch.bo"),
    ],
)
def test_refused_draws(ball, change, error, message):
    with pytest.raises(error, match=message):
        ball.random(V, torch.ones(3), **({"generator": generator()} | change))


@pytest.mark.parametrize(
    "ball, y, message",
    [
        (dj.L2Ball(1e39), V, "precision of y, torch.float32, got .inf, inf, inf"),
        (dj.LinfBall(1e5), V.half(), "in the precision of y, torch.float16, got"),
        (dj.L2Ball(1e30, relative_to="y"), 1e30 * V, "precision of y, torch.float32"),
        (dj.L2Ball(1.0, relative_to="y"), NAN * V, "torch.float32, got .nan, nan, nan"),
    ],
)
def test_a_radius_that_overflows_is_refused(ball, y, message):
    with pytest.raises(ValueError, match=message):
        ball.radii(y, DENOISING)


@every_ball
def test_measurements_refused(ball):
    for call in (ball.radii, ball.zero, ball.support):
        with pytest.raises(TypeError, match="y must be a torch.Tensor, got list"):
            call([1.0], DENOISING)
        with pytest.raises(TypeError, match="y must be .* complex numbers, got torch.in"):
            call(V.int(), DENOISING)


def test_repr():
    assert repr(dj.L2Ball(1.0, support=torch.ones(2))) == "L2Ball(1.0, support='mask')"


# --- relative to the noise: what noise is there? ----------------------------------------------


@pytest.mark.parametrize("level", [0.1, -0.1, torch.tensor(0.1 + 0j), 0.1j])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_the_level_of_gaussian_noise_is_a_modulus(level, dtype):
    """As casting a physics to complex numbers makes it, or scaling a noise by -1."""
    noise = dinv.physics.GaussianNoise(torch.as_tensor(level))
    physics = dinv.physics.Denoising(noise)
    radii = dj.L2Ball(2.0, relative_to="noise").radii(normal((4, 16), dtype), physics)
    assert torch.allclose(radii, torch.full((4,), 0.8))


def test_a_physics_cast_to_complex_numbers():
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    y = normal((4, 16), torch.complex64)
    before = dj.LinfBall(1.0, relative_to="noise").radii(y, physics)
    after = dj.LinfBall(1.0, relative_to="noise").radii(y, physics.to(torch.complex64))
    assert torch.equal(before, after)


NOISES = {
    "got ZeroNoise:": [dinv.physics.ZeroNoise(), [dinv.physics.ZeroNoise()] * 2],
    "got NoneType:": [None],
    "of a level above 0 .* got GaussianNoise:": [dinv.physics.GaussianNoise(0.0)],
    "got PoissonNoise:": [dinv.physics.PoissonNoise()],
    "got PoissonGaussianNoise:": [dinv.physics.PoissonGaussianNoise()],
    "got UniformGaussianNoise:": [dinv.physics.UniformGaussianNoise()],
    "in all that is measured, got GaussianNoise and ZeroNoise:": [
        [dinv.physics.GaussianNoise(0.1), dinv.physics.ZeroNoise()]
    ],
}


@pytest.mark.parametrize(
    "noise, message", [(n, message) for message, ns in NOISES.items() for n in ns]
)
@every_ball
def test_noise_that_has_no_norm(ball, noise, message):
    ball = type(ball)(1.0, relative_to="noise")
    noises = noise if isinstance(noise, list) else [noise]
    parts = [dinv.physics.Denoising(n) for n in noises]
    for part, n in zip(parts, noises, strict=True):
        part.noise_model = n
    physics = parts[0] if len(parts) == 1 else dinv.physics.stack(*parts)
    y = physics.A(torch.ones(3, 2))
    with pytest.raises(ValueError, match=f"relative_to='noise' .*{message}.* absolute"):
        ball.radii(y, physics)
    norm = ball.noise_norm(y, physics)
    assert torch.equal(norm, torch.zeros(3)) or norm.isnan().all()


def test_a_noise_level_of_zero_for_some_samples_is_one():
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(torch.tensor([0.0, 1])))
    radii = dj.L2Ball(1.0, relative_to="noise").radii(torch.ones(2, 9), physics)
    assert torch.equal(radii, torch.tensor([0.0, 3.0]))


def test_the_norm_of_the_noise_for_an_image_is_none_of_the_measurements():
    physics = mri()
    y = physics(torch.ones(1, 2, 8, 6))
    assert dj.L2Ball(1.0, domain="image").noise_norm(y, physics).isnan().all()
