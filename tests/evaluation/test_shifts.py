import math

import pytest
import torch
from properties import assert_global_rng_untouched

from deepinv_jitter.evaluation import metrics, shifts


def points(batch=4):
    return torch.randn(batch, 2, generator=torch.Generator().manual_seed(0))


def sections(batch=4):
    x = torch.randn(batch, 1, 24, 30, generator=torch.Generator().manual_seed(1))
    return x * (x.abs() > 2)


def images(batch=4, channels=1):
    """A bright disc with texture on a dark ground."""
    g = torch.Generator().manual_seed(2)
    axis = torch.linspace(-1, 1, 40)
    disc = (axis[:, None] ** 2 + axis**2).sqrt() < 0.7
    return disc * (0.5 + 0.2 * torch.rand(batch, channels, 40, 40, generator=g))


def complex_images(batch=4):
    phase = torch.rand(batch, 1, 40, 40, generator=torch.Generator().manual_seed(3))
    z = torch.polar(images(batch), 6 * phase)
    return torch.cat([z.real, z.imag], 1)


# name: shift, batch, whether its position is random
CASES = {
    "bias": (lambda: shifts.Bias((0.005, 0)), points, False),
    "bias of an image": (lambda: shifts.Bias(0.25), images, False),
    "layer": (lambda: shifts.HorizontalLayer(0.3, length=5, seed=4), sections, True),
    "fixed layer": (lambda: shifts.HorizontalLayer(-0.3, position=(23, 20)), sections, False),
    "lesion": (lambda: shifts.Lesion(4.5, 0.3), images, True),
    "dark lesion": (lambda: shifts.Lesion(4.5, -0.3, seed=1), complex_images, True),
    "complex lesion": (lambda: shifts.Lesion(3, 0.3), complex_images, True),
    "color lesion": (lambda: shifts.Lesion(3, 0.3), lambda b=4: images(b, 3), True),
    "lesion over the border": (lambda: shifts.Lesion(6, 0.3, position=(1, 39)), images, False),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_region_is_exactly_where_the_truth_changes(case, dtype):
    make, batch, _ = case
    x = batch().to(dtype)
    kept = x.clone()
    with assert_global_rng_untouched():
        edited, region = make()(x)
    assert torch.equal(x, kept), "modified in place"
    assert edited.shape == x.shape and edited.dtype == dtype
    assert region.dtype == torch.bool and region.flatten(1).any(1).all()
    assert region.shape == (x.shape if x.ndim == 2 else (len(x), 1, *x.shape[2:]))
    changed = edited != x
    assert torch.equal(changed if x.ndim == 2 else changed.any(1, True), region)
    assert edited.isfinite().all()


def test_positions_depend_on_the_seed_and_the_number_alone(case):
    make, batch, is_random = case
    x, shift = batch(6), make()
    regions = shift(x)[1]
    assert torch.equal(make()(x)[1], regions) and torch.equal(shift(x)[1], regions)
    # The last samples, in batches of their own
    assert torch.equal(shift(x[4:], start=4)[1], regions[4:])
    assert torch.equal(torch.cat([shift(x[:1])[1], shift(x[1:], 1)[1]]), regions)
    same = all(torch.equal(region, regions[0]) for region in regions)
    assert same is not is_random
    if is_random:
        shift.seed += 1
        assert not torch.equal(shift(x)[1], regions)


def test_the_edit_carries_gradients():
    x = images().requires_grad_()
    shifts.Lesion(3, 0.2)(x)[0].sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_bias():
    x = points()
    edited, region = shifts.Bias(torch.tensor([0.005, 0]))(x)
    assert torch.equal(edited, x + torch.tensor([0.005, 0]))
    assert region[:, 0].all() and not region[:, 1].any()
    assert shifts.Bias(1)(images())[1].all()
    per_channel = shifts.Bias([[[1.0]], [[0.0]]])(complex_images())[0]
    assert torch.equal(per_channel[:, 1], complex_images()[:, 1])


def test_horizontal_layer():
    x = sections()
    edited, region = shifts.HorizontalLayer(0.3, length=4, position=(7, 2))(x)
    expected = x.clone()
    expected[:, 0, 7, 2:6] += 0.3
    assert torch.equal(edited, expected)
    assert (region.flatten(1).sum(1) == 4).all()


def test_horizontal_layers_lie_anywhere_that_they_fit():
    x = torch.zeros(400, 1, 3, 5)
    region = shifts.HorizontalLayer(1.0, length=4)(x)[1][:, 0]
    assert (region.sum((1, 2)) == 4).all()
    places = region.any(2).int().argmax(1) * 2 + region.any(1).int().argmax(1)
    counts = places.bincount(minlength=6)
    assert ((counts - 400 / 6).abs() < 4 * (400 * 5 / 36) ** 0.5).all()


def test_lesion_profile():
    x = images(1, 1) * 0
    d = shifts.Lesion(8, 0.4, position=(20, 15))(x)[0][0, 0]
    assert torch.allclose(d[20, 11:20], torch.tensor(0.4))  # flat to half the radius
    assert d[20, 21].item() == pytest.approx(0.2)  # half at three quarters
    assert d[20, 23] == 0 and d[20, 22] > 0  # nothing from the radius on
    assert torch.equal(d[13:28, 8:23], d[13:28, 8:23].T)
    axis = torch.arange(40)
    inside = (axis[:, None] - 20) ** 2 + (axis - 15) ** 2 < 8**2
    assert torch.equal(d > 0, inside)


@pytest.mark.parametrize("seed", range(5))
def test_random_lesions_are_centred_in_the_object_and_inside_the_image(seed):
    x = torch.zeros(20, 1, 30, 20)
    x[:, :, :6], x[:, :, 6:9] = 1.0, 0.05  # the object, and what is too dark for one
    region = shifts.Lesion(4, -0.5, seed=seed)(x)[1][:, 0]
    rows = region.any(2).int()
    assert (rows.sum(1) == 7).all() and (region.any(1).sum(1) == 7).all()
    assert (rows.argmax(1) + 3 < 6).all()


def test_a_complex_lesion_changes_the_magnitude_and_keeps_the_phase():
    x = complex_images()
    for contrast in (0.3, -2.0):
        edited, _ = shifts.Lesion(5, contrast, position=(20, 20))(x)
        profile = shifts.Lesion(5, 1.0, position=(20, 20))(torch.zeros(1, 1, 40, 40))[0]
        before, after = (torch.complex(z[:, :1].double(), z[:, 1:].double()) for z in (x, edited))
        expected = (before.abs() + contrast * profile).clamp_min(0)
        assert torch.allclose(after.abs(), expected, atol=1e-6)
        assert torch.allclose(after.imag * before.real, after.real * before.imag, atol=1e-6)
    outside = shifts.Lesion(5, 0.3, position=(0, 0))(x)[0][0, :, 0, 0]
    assert torch.allclose(outside, torch.tensor([0.3, 0.0]))


def test_repr_is_the_call():
    assert repr(shifts.Bias((1, 0))) == "Bias(value=[1.0, 0.0])"
    layer = shifts.HorizontalLayer(0.3, position=(1, 2))
    assert eval(repr(layer), vars(shifts)).__dict__ == layer.__dict__
    lesion = shifts.Lesion(3, 0.3, seed=5)
    assert eval(repr(lesion), vars(shifts)).__dict__ == lesion.__dict__


# ---- scores


def reconstructions(case):
    make, batch, _ = case
    x = batch().double()
    return x, *make()(x)


def test_contrast_recovery_of_reconstructors_that_keep_and_delete_the_detail(case):
    x, edited, _ = reconstructions(case)
    one = torch.ones(len(x), dtype=torch.float64)
    other = torch.randn_like(x)  # a common error does not count
    for kept in (0.0, 0.3, 1.0, -1.0):
        net = x + kept * (edited - x) + other
        score = metrics.contrast_recovery(net, x + other, edited, x)
        assert torch.allclose(score, kept * one)


def test_contrast_recovery_of_a_linear_reconstructor():
    x, edited, _ = reconstructions(CASES["layer"])
    smooth = torch.nn.AvgPool2d((1, 3), stride=1, padding=(0, 1))
    score = metrics.contrast_recovery(smooth(edited), smooth(x), edited, x)
    # of 5 traces the 2 at the ends lose a third each
    assert torch.allclose(score, torch.tensor(13 / 15, dtype=torch.float64))


def test_scores_see_each_sample_alone():
    x, edited, region = reconstructions(CASES["lesion"])
    net = edited.clone()
    net[1] = x[1]
    assert metrics.contrast_recovery(net, x, edited, x).tolist() == [1, 0, 1, 1]
    net = edited.clone()
    net[2] += ~region[2] * 0.5
    assert metrics.error_outside(net, edited, region).tolist() == [0, 0, 0.5, 0]


def test_error_outside_does_not_see_the_region(case):
    x, edited, region = reconstructions(case)
    error = metrics.error_outside(edited.where(~region, math.inf), edited, region)
    if region.all():
        assert error.isnan().all()
    else:
        assert not error.any()
        outside = ~region.expand_as(x)
        net = torch.randn_like(x)
        for i, value in enumerate(metrics.error_outside(net, edited, region)):
            rms = (net[i] - edited[i])[outside[i]].square().mean().sqrt()
            assert value.item() == pytest.approx(rms.item())


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_contrast_recovery_of_details_of_any_size(size):
    d = size * sections().abs().add(1)
    score = metrics.contrast_recovery(0.5 * d, 0 * d, d, 0 * d)
    assert torch.allclose(score, torch.full((4,), 0.5))


def test_scores_in_half_precision():
    """Sums of squares beyond 65504, the largest number there is, made a kept detail a lost one."""
    x = torch.zeros(1, 1, 300, 300, dtype=torch.float16)
    region = torch.zeros_like(x, dtype=torch.bool)
    assert metrics.contrast_recovery(x + 0.5, x, x + 1, x).item() == 0.5
    assert metrics.error_outside(x + 300, x, region).item() == 300


def test_no_detail_has_no_recovery():
    x = points()
    assert metrics.contrast_recovery(x, x, x, x).isnan().all()


# ---- refusals

LAYER = shifts.HorizontalLayer


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: shifts.Bias("x"), TypeError, "value must be a real number .* got 'x'"),
        (lambda: shifts.Bias([1, [2, 3]]), TypeError, "value must be a real"),
        (lambda: shifts.Bias(True), TypeError, "real number or .* got True"),
        (lambda: shifts.Bias(1j), TypeError, "real number or .* got 1j"),
        (lambda: shifts.Bias([0, math.nan]), ValueError, "value must be finite"),
        (lambda: LAYER(math.inf), ValueError, "height must be finite, got inf"),
        (lambda: LAYER("high"), TypeError, "height must be a number, got 'high'"),
        (lambda: LAYER(length=0), ValueError, "length must be .* at least 1, got 0"),
        (lambda: LAYER(length=2.5), TypeError, "length must be a whole number"),
        (lambda: LAYER(position=3), TypeError, "position must be made of whole numbers, got 3"),
        (lambda: LAYER(position=(1, 2, 3)), ValueError, "position must hold 2 whole numbers"),
        (lambda: LAYER(position=(-1, 2)), ValueError, "position must be .* least 0"),
        (lambda: LAYER(position=(1.5, 2)), TypeError, "position must be a whole"),
        (lambda: LAYER(seed=-1), ValueError, "seed must be finite and at least 0"),
        (lambda: LAYER(seed=None), TypeError, "seed must be a whole number, got None"),
        (lambda: shifts.Lesion(0.5, 1), ValueError, "radius must be .* at least 1"),
        (lambda: shifts.Lesion(math.nan, 1), ValueError, "radius must be finite"),
        (lambda: shifts.Lesion(3, True), TypeError, "contrast must be a number"),
        (lambda: shifts.Lesion(3, -math.inf), ValueError, "contrast must be finite"),
    ],
)
def test_refused_when_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


X = torch.ones(2, 1, 8, 12)


@pytest.mark.parametrize(
    "shift, x, error, message",
    [
        (shifts.Bias(1), [1.0], TypeError, "x must be a torch.Tensor, got list"),
        (shifts.Bias(1), X.log().log(), ValueError, "x must be finite, got NaN .* in 2 of 2"),
        (shifts.Bias(1e300), X, ValueError, "x . d of Bias.* in torch.float32, must be fin"),
        (LAYER(1e300), X, ValueError, "x . d of Horizontal.* must be finite, got NaN or inf"),
        (shifts.Lesion(2, 1e300), X, ValueError, "x . d of Lesion.* must be finite"),
        (shifts.Bias(1), X.int(), TypeError, "x must be a tensor .* got torch.int32"),
        (shifts.Bias(1), X + 0j, TypeError, "got torch.complex64: give complex images"),
        (shifts.Bias(1), X[0, 0, 0], ValueError, r"x must be a batch .* got \(12,\)"),
        (shifts.Bias(1), X[:0], ValueError, "x must be a batch .* got .0, 1, 8, 12."),
        (shifts.Bias([1, 2, 3]), X, ValueError, r"broadcast .* \(1, 8, 12\), got \(3,"),
        (LAYER(), X[0], ValueError, r"shape \(B, 1, T, X\), got \('B', 8, 12\)"),
        (LAYER(), X.expand(2, 3, 8, 12), ValueError, r"shape \(B, 1, T, X\), got"),
        (LAYER(length=13), X, ValueError, "inside the section .* got length=13 at pos"),
        (LAYER(position=(8, 0)), X, ValueError, r"T, X = \(8, 12\), got length=10 at"),
        (LAYER(position=(0, 3)), X, ValueError, "inside the section"),
        (shifts.Lesion(2, 1), X[0], ValueError, r"shape \(B, C, H, W\), got \('B', 8"),
        (shifts.Lesion(2, 1, position=(8, 0)), X, ValueError, r"H, W = \(8, 12\), got"),
        (shifts.Lesion(2, 1, position=(0, 12)), X, ValueError, "inside the image"),
        (shifts.Lesion(5, 1), X, ValueError, "radius 5.0 needs a centre .* 8 x 12"),
        (shifts.Lesion(2, 1), 0 * X, ValueError, "needs a centre in the object"),
        (shifts.Lesion(50, 1), X, ValueError, "needs a centre in the object"),
        (shifts.Lesion(1e300, 1), X, ValueError, "needs a centre in the object"),
    ],
)
def test_refused_when_called(shift, x, error, message):
    with pytest.raises(error, match=message):
        shift(x)


def test_refused_scores():
    with pytest.raises(ValueError, match="start must be .* at least 0, got -1"):
        LAYER()(X, start=-1)
    with pytest.raises(TypeError, match="start must be a whole number, got True"):
        LAYER()(X, start=True)
    with pytest.raises(TypeError, match="x_net must be a torch.Tensor, got list"):
        metrics.contrast_recovery(X, [1.0], X, X)
    with pytest.raises(TypeError, match="x_shifted must be .* got torch.complex64"):
        metrics.error_outside(X, X + 0j, X > 0)
    with pytest.raises(ValueError, match="x_net must be a batch .* not empty"):
        metrics.contrast_recovery(X, X[:0], X, X)
    with pytest.raises(ValueError, match="one shape and device, got .* on cpu and .* on meta"):
        metrics.error_outside(X, X.to("meta"), X > 0)
    with pytest.raises(ValueError, match="region must be on the device .* cpu, got m"):
        metrics.error_outside(X, X, (X > 0).to("meta"))
    with pytest.raises(ValueError, match="must have one shape"):
        metrics.contrast_recovery(X, X, X, X[:1])
    with pytest.raises(ValueError, match="must have one shape"):
        metrics.error_outside(X, X[:1], X > 0)
    with pytest.raises(TypeError, match="region must be a boolean tensor, got torch.f"):
        metrics.error_outside(X, X, X)
    with pytest.raises(ValueError, match=r"region must broadcast to .* got \(3, 1, 1, 1"):
        metrics.error_outside(X, X, torch.ones(3, 1, 1, 1, dtype=torch.bool))
