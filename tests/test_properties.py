"""Contracts over random shapes, precisions and seeds, and a short run of the fuzz."""

import math

import deepinv as dinv
import pytest
import torch
from fuzz import TABLE, run
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import assert_global_rng_untouched

import deepinv_jitter as dj

REAL = [torch.float32, torch.float64]
DTYPES = [*REAL, torch.complex64, torch.complex128]
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 9)
shapes = st.lists(sizes, min_size=1, max_size=3).map(tuple)
batches = st.integers(1, 4)
balls = st.sampled_from([dj.L2Ball, dj.LinfBall])


def few(examples):
    return settings(deadline=None, derandomize=True, max_examples=examples)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(shape, dtype, seed):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


# Noise


@few(60)
@given(
    st.sampled_from(["std", "norm", "relative"]),
    st.sampled_from(DTYPES),
    shapes,
    st.floats(1e-3, 1e3),
    seeds,
)
def test_noise_scales_with_its_level_and_has_its_own_randomness(scale, dtype, shape, sigma, seed):
    x = normal((2, *shape), dtype, 0)
    with assert_global_rng_untouched():
        w = dj.GaussianJitter(sigma, scale, generator(seed))(x)
        again = dj.GaussianJitter(sigma, scale, generator(seed))(x)
        double = dj.GaussianJitter(2 * sigma, scale, generator(seed))(x)
    assert w.shape == x.shape and w.dtype == dtype and w.isfinite().all()
    assert torch.equal(w, again) and torch.allclose(double, 2 * w)
    entries = math.prod(shape)
    peak = x.abs().flatten(1).amax(1).reshape(2, *[1] * len(shape))
    std = {"std": sigma, "norm": sigma / entries**0.5, "relative": sigma * peak}[scale]
    # the same standard normal numbers for any scale
    assert torch.allclose(w, std * normal(x.shape, dtype, seed), rtol=1e-5)


@few(10)
@given(st.sampled_from(["std", "norm", "relative"]), st.sampled_from(DTYPES), seeds)
def test_noise_has_its_standard_deviation(scale, dtype, seed):
    x = torch.full((2, 4000), 0.5, dtype=dtype)
    w = dj.GaussianJitter(0.2, scale, generator(seed))(x).abs().square().mean(1).sqrt()
    std = {"std": 0.2, "norm": 0.2 / 4000**0.5, "relative": 0.1}[scale]
    assert ((w / std - 1).abs() < 0.07).all()


@few(30)
@given(st.sampled_from(DTYPES), batches, sizes, sizes, sizes, seeds)
def test_a_seed_means_the_same_noise_in_any_memory_layout(dtype, b, c, h, w, seed):
    x = normal((b, c, h, w), dtype, 0)
    layouts = [
        x,
        x.to(memory_format=torch.channels_last),
        x.mT.contiguous().mT,
        x.repeat(2, 1, 1, 1)[::2],
    ]
    drawn = [dj.GaussianJitter(0.1, "std", generator(seed))(v) for v in layouts]
    assert all(torch.equal(v, drawn[0]) for v in drawn)


# Budgets


@few(80)
@given(balls, st.sampled_from(DTYPES), batches, shapes, st.floats(0, 1e6), seeds)
def test_projection_is_inside_and_idempotent(ball, dtype, batch, shape, eps, seed):
    ball = ball(1.0)
    v = 10.0 ** (seed % 13 - 6) * normal((batch, *shape), dtype, seed)
    eps = eps * torch.rand(batch, generator=generator(seed), dtype=torch.float64)
    once = ball.project(v, eps)
    assert once.shape == v.shape and once.dtype == dtype
    assert (ball.norm(once) <= eps).all()
    assert torch.equal(ball.project(once, eps), once)
    inside = ball.norm(v) <= eps
    assert torch.equal(once[inside], v[inside])


@few(80)
@given(
    balls,
    st.sampled_from(["sphere", "ball", "gaussian"]),
    st.sampled_from(DTYPES),
    batches,
    shapes,
    st.floats(1e-6, 1e6),
    seeds,
)
def test_random_draws_lie_in_the_ball_and_on_the_support(
    ball, distribution, dtype, batch, shape, radius, seed
):
    ball, like = ball(1.0), torch.zeros(batch, *shape, dtype=dtype)
    eps = radius * torch.rand(batch, generator=generator(seed), dtype=torch.float64)
    support = torch.rand(like.shape, generator=generator(seed + 1)) > 0.3
    with assert_global_rng_untouched():
        delta = ball.random(like, eps, generator(seed), distribution, support)
        again = ball.random(like, eps, generator(seed), distribution, support)
    assert torch.equal(delta, again) and delta.dtype == dtype
    assert not delta[~support].any()
    norm = ball.norm(delta).double()
    assert (norm <= eps).all()
    if distribution == "sphere":
        full = eps * support.flatten(1).any(1)
        assert torch.allclose(norm, full, rtol=1e-5)


@st.composite
def measured(draw, batch=batches):
    """A physics with unmeasured entries and Gaussian noise, and measurements."""
    height, width, b = draw(st.integers(2, 9)), draw(st.integers(2, 9)), draw(batch)
    sigma, dtype = draw(st.floats(0.01, 1.0)), draw(st.sampled_from(REAL))
    mask = torch.rand(b, 1, height, width, generator=generator(draw(seeds))).round()
    mask[..., 0] = 1
    noise = dinv.physics.GaussianNoise(sigma, rng=generator(0))
    physics = dj.SingleCoilMRI(mask, img_size=(height, width), noise_model=noise)
    physics.to(dtype)
    x = normal((b, 2, height, width), dtype, draw(seeds))
    return physics, physics(x), sigma


@few(40)
@given(balls, measured(), st.floats(1e-3, 10.0), seeds)
def test_radii_in_every_unit(ball, problem, radius, seed):
    physics, y, sigma = problem
    entries = physics.mask.flatten(1).sum(1)
    noise = sigma * (entries.sqrt() if ball is dj.L2Ball else torch.ones(len(y)))
    expected = {None: torch.ones(len(y)), "y": ball(1.0).norm(y), "noise": noise}
    for unit, size in expected.items():
        for value in (radius, radius * torch.ones(len(y)), torch.tensor([radius])):
            budget = ball(value, relative_to=unit)
            radii = budget.radii(y, physics)
            assert torch.allclose(radii.double(), radius * size.double(), rtol=1e-5)
            support = budget.support(y, physics)
            assert torch.equal(support, (physics.mask != 0).expand_as(y))
            zero = budget.zero(y, physics)
            delta = budget.random(zero, radii, generator(seed), "sphere", support)
            assert not delta[(physics.mask == 0).expand_as(y)].any()


# Physics


def assert_adjoint(physics, x, y):
    ax, aty = physics.A(x), physics.A_adjoint(y)
    assert ax.shape == y.shape and aty.shape == x.shape
    assert ax.dtype == aty.dtype == x.dtype
    difference = ((ax * y).sum() - (aty * x).sum()).abs()
    assert difference <= 100 * torch.finfo(x.dtype).eps * x.norm() * y.norm()
    normal_operator, plain = physics.A_adjoint_A(x), physics.A_adjoint(ax)
    atol = 100 * torch.finfo(x.dtype).eps * x.norm()
    assert (normal_operator - plain).abs().max() <= atol
    assert ax.norm() <= x.norm() * (1 + 1e-5)


@few(60)
@given(
    st.integers(0, 30).map(lambda half: 2 * half + 1),
    st.sampled_from(REAL),
    batches,
    st.one_of(st.integers(1, 80), st.integers(510, 700)),
    sizes,
    seeds,
)
def test_adjoint_of_seismic_convolution(points, dtype, batch, t, traces, seed):
    physics = dj.SeismicConvolution(normal((points,), dtype, seed))
    x, y = normal((2, batch, 1, t, traces), dtype, seed + 1)
    assert_adjoint(physics, x, y)


@few(60)
@given(measured(), seeds)
def test_adjoint_of_mri_with_any_mask(problem, seed):
    physics, y, _ = problem
    x, v = normal((2, *y.shape), y.dtype, seed)
    assert_adjoint(physics, x, v)
    assert not y[(physics.mask == 0).expand_as(y)].any()


# Masks


@few(40)
@given(
    st.sampled_from(["random", "equispaced"]),
    st.integers(1, 8),
    st.integers(1, 6),
    st.integers(64, 400),
    st.integers(1, 3),
    seeds,
)
def test_masks_sample_the_centre_and_follow_the_seed(kind, acc, height, width, b, seed):
    options = {"acceleration": acc, "center_fraction": 0.08, "kind": kind}
    make = dj.FastMRIMaskGenerator
    with assert_global_rng_untouched():
        source = make((height, width), seed=seed, **options)
        mask = source.step(b)["mask"]
        again = make((height, width), rng=generator(seed), **options).step(b)["mask"]
    assert torch.equal(mask, again) and torch.equal(source.step(b, seed)["mask"], mask)
    assert mask.shape == (b, 1, height, width)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(mask, mask[:, :, :1].expand_as(mask))
    start = (width - source.n_center + 1) // 2
    assert mask[..., start : start + source.n_center].all()
    # six standard deviations of a sum of independent columns; a comb varies less
    columns, expected = mask[:, 0, 0].sum(1), width / acc
    assert (columns - expected).abs().max() <= 6 * math.sqrt(expected) + 2


# Shifts


def images(shape, dtype, seed):
    # Far from zero: a lesion finds an object in every place
    return 1 + normal(shape, dtype, seed).abs()


SHIFTS = {
    "bias": (lambda seed: dj.Bias(0.25), (2,)),
    "layer": (lambda seed: dj.HorizontalLayer(0.3, length=3, seed=seed), (1, 9, 12)),
    "lesion": (lambda seed: dj.Lesion(2.5, 0.3, seed=seed), (3, 9, 12)),
    "dark lesion": (lambda seed: dj.Lesion(3, -0.3, seed=seed), (2, 9, 12)),
}


@few(60)
@given(
    st.sampled_from(sorted(SHIFTS)),
    st.sampled_from(REAL),
    st.integers(2, 5),
    st.integers(0, 6),
    st.integers(0, 10**6),
    seeds,
)
def test_shifts_change_their_region_alone_and_follow_the_number(
    name, dtype, batch, larger, start, seed
):
    make, (channels, *size) = SHIFTS[name]
    x = images((batch, channels, *(n + larger for n in size)), dtype, seed)
    kept, shift = x.clone(), make(seed)
    with assert_global_rng_untouched():
        edited, region = shift(x, start)
    assert torch.equal(x, kept)
    assert edited.shape == x.shape and edited.dtype == dtype
    outside = ~region.expand_as(x)
    assert torch.equal(edited[outside], x[outside])
    assert region.flatten(1).any(1).all()
    # one by one, and from a new one of the same seed
    for i in range(batch):
        alone, place = make(seed)(x[i : i + 1], start + i)
        assert torch.equal(alone[0], edited[i]) and torch.equal(place[0], region[i])
    recovery = dj.contrast_recovery(edited, x, edited, x)
    assert torch.allclose(recovery, torch.ones(batch, dtype=dtype))
    assert not dj.error_outside(edited, edited, region).nan_to_num().any()


# The fuzz


@pytest.mark.slow
def test_a_short_fuzz_finds_nothing():
    counts, violations = run(count=12 * len(TABLE), seed=0)
    assert not violations, "\n".join(
        f"{name}: python tests/fuzz.py --count 1 --seed {seed}: {error!r}"
        for name, seed, error in violations
    )
    # and does not only find errors
    assert all(outcomes["right"] > 0 for outcomes in counts.values())
