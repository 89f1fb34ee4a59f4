"""Parameters: known by name, one for all images or one for each, the physics' own; wavelets."""

import functools
import math
import warnings

import deepinv as dinv
import numpy as np
import pytest
import torch

import deepinv_jitter as dj

SIZE = (5, 6)


def noise(sigma=0.1):
    return dinv.physics.GaussianNoise(sigma, rng=torch.Generator().manual_seed(0))


def mri(**kwargs):
    return dj.SingleCoilMRI(img_size=SIZE, **kwargs), torch.randn(3, 2, *SIZE)


def seismic(**kwargs):
    return dj.SeismicConvolution(dj.ricker(5, 1.0), **kwargs), torch.randn(3, 1, 9, 4)


PHYSICS = {"mri": mri, "seismic": seismic}


@pytest.fixture(params=PHYSICS)
def build(request):
    return PHYSICS[request.param]


# One for all images or one for each

CALLS = {
    "forward": lambda physics, x: physics(x),
    "A": lambda physics, x: physics.A(x),
    "A_adjoint": lambda physics, x: physics.A_adjoint(x),
    "A_adjoint_A": lambda physics, x: physics.A_adjoint_A(x),
    "A_A_adjoint": lambda physics, x: physics.A_A_adjoint(x),
    "A_dagger": lambda physics, x: physics.A_dagger(x),
    "prox_l2": lambda physics, x: physics.prox_l2(x, x, 1.0),
}


@pytest.mark.parametrize("images", [1, 2, 4])
@pytest.mark.parametrize("call", CALLS)
def test_masks_of_another_batch_are_refused(call, images):
    mask = torch.eye(*SIZE).repeat(3, 1, 1, 1)
    physics, x = dj.SingleCoilMRI(mask), torch.randn(images, 2, *SIZE)
    message = f"one mask for all or one for each of the {images} images, got 3 masks"
    with pytest.raises(ValueError, match=message):
        CALLS[call](physics, x)
    physics.update(mask=mask[:1])
    assert CALLS[call](physics, x).shape == x.shape


def test_noise_on_the_masks_of_another_batch_is_refused():
    physics = dj.SingleCoilMRI(torch.eye(*SIZE).repeat(3, 1, 1, 1))
    message = r"noise must have the shape of the measurements, \(1, 2, 5, 6\), got \(3,"
    with pytest.raises(ValueError, match=message):
        physics.noise(torch.zeros(1, 2, *SIZE))


@pytest.mark.parametrize("images", [1, 2])
def test_noise_levels_of_another_batch_are_refused(build, images):
    physics, x = build(noise_model=noise())
    message = f"one sigma for all or one for each of the {images} images, got 3 sigmas"
    levels = torch.tensor([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=message):
        physics(x[:images], sigma=levels)
    physics(x, sigma=levels)
    with pytest.raises(ValueError, match=message):
        physics(x[:images])
    physics.update(sigma=torch.tensor(0.0))
    assert torch.equal(physics(x[:images]), physics.A(x[:images]))


def test_noise_that_multiplies_the_images_is_refused(build):
    uniform = dinv.physics.UniformNoise(a=torch.tensor([0.1, 0.2, 0.3]))
    physics, x = build(noise_model=uniform)
    assert physics(x).shape == x.shape
    with pytest.raises(ValueError, match="noise must have the shape .* by update()"):
        physics(x[:1])


def test_two_masks_are_not_two_channels():
    masks = torch.stack([torch.eye(*SIZE), torch.ones(*SIZE)])
    message = r"channels of a mask .* must be alike.* got a mask \(2, 5, 6\)"
    with pytest.raises(ValueError, match=message):
        dj.SingleCoilMRI(masks)
    physics = dj.SingleCoilMRI(masks[:, None])
    assert physics(torch.randn(2, 2, *SIZE)).shape == (2, 2, *SIZE)


def test_channels_of_a_batch_of_masks_may_differ_as_the_hosts():
    masks, x = torch.stack([torch.eye(*SIZE), torch.ones(*SIZE)])[None], torch.randn(2, 2, *SIZE)
    physics, host = dj.SingleCoilMRI(masks), dinv.physics.MRI(masks, img_size=SIZE)
    for name in ("A", "A_adjoint", "A_adjoint_A"):
        torch.testing.assert_close(getattr(physics, name)(x), getattr(host, name)(x))


# Known by name


@pytest.mark.parametrize("name", ["msk", "filter", "sigma", "rss"])
def test_unknown_parameters_are_refused(build, name):
    physics, x = build()
    before = physics(x)
    for call in (physics.update, functools.partial(physics, x)):
        with pytest.raises(TypeError, match=f"no parameter '{name}'.*model, ZeroNoise"):
            call(**{name: torch.ones(5)})
    assert torch.equal(physics(x), before)


@pytest.mark.filterwarnings("ignore:You are composing")
def test_those_of_other_parts_are_passed_over(build):
    """The host hands all parameters to each part of stacked or composed physics."""
    physics, x = build()
    factor = {"factor": torch.tensor(3.0)}
    scaling, before = Scaling(), physics.A(x)
    stacked = dinv.physics.stack(physics, scaling)
    for y in (stacked(x, **factor), stacked.A(x)):
        torch.testing.assert_close(list(y), [before, 3 * x])
    torch.testing.assert_close((physics * scaling)(x, factor=torch.tensor(5.0)), 5 * before)
    stacked.update(factor=torch.tensor(7.0))
    torch.testing.assert_close(stacked(x)[1], 7 * x)


class Scaling(dinv.physics.LinearPhysics):
    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor(1.0))

    def A(self, x, factor=None, **kwargs):
        self.update_parameters(factor=factor)
        return self.factor * x

    A_adjoint = A


def test_what_there_is_instead_is_named(build):
    physics, _ = build(noise_model=noise())
    own = "mask" if build is mri else "wavelet"
    names = sorted([own, "sigma"])
    message = rf"GaussianNoise: give one of \['{names[0]}', '{names[1]}'\]"
    with pytest.raises(TypeError, match=message):
        physics.update(sigmas=torch.ones(3))


def test_parameters_of_the_noise_model_are_known(build):
    physics, x = build(noise_model=noise())
    first = physics(x, sigma=torch.tensor(0.3), seed=5)
    assert physics.noise_model.sigma == torch.tensor(0.3)
    assert torch.equal(physics(x, seed=5), first)
    physics.update(sigma=0.0)
    assert torch.equal(physics(x), physics.A(x))


@pytest.mark.parametrize("model", [0.1, "gaussian", dinv.physics.GaussianNoise])
def test_what_is_no_noise_model_is_refused(build, model):
    with pytest.raises(TypeError, match="noise_model must be one .*GaussianNoise"):
        build(noise_model=model)


def test_noise_may_be_any_function(build):
    physics, x = build(noise_model=lambda y: y)
    assert torch.equal(physics(x), physics.A(x))


# Its own


@pytest.mark.parametrize("how", ["call", "update"])
def test_noise_levels_are_not_shared_with_the_caller(build, how):
    physics, x = build(noise_model=noise())
    levels = torch.tensor([0.1, 0.2, 0.3])
    physics.update(sigma=levels) if how == "update" else physics(x, sigma=levels)
    levels.zero_()
    assert torch.equal(physics.noise_model.sigma, torch.tensor([0.1, 0.2, 0.3]))


@pytest.mark.parametrize("how", ["A_dagger", "prox_l2"])
def test_the_solver_of_a_call_is_not_that_of_the_next(how):
    physics, y = seismic(max_iter=30)
    solver = physics.solver, physics.max_iter, physics.tol
    arguments = (y,) if how == "A_dagger" else (y, y, 2.0)
    call = getattr(physics, how)
    expected = call(*arguments)
    rough = call(*arguments, solver="lsqr", max_iter=1, tol=0.1)
    assert (physics.solver, physics.max_iter, physics.tol) == solver
    assert torch.equal(call(*arguments), expected) and not torch.equal(rough, expected)


# Numbers, wherever they come from

VALUES = [0.0, 1.0, 1.0, 0.0, 1.0]
ARRAYS = {
    "list of whole numbers": [int(v) for v in VALUES],
    "numpy": np.array(VALUES),
    "numpy, reversed": np.array(VALUES[::-1])[::-1],
    "numpy, big-endian": np.array(VALUES, ">f4"),
    "numpy, big-endian whole numbers": np.array(VALUES, ">i2"),
    "numpy, single precision": np.array(VALUES, np.float32),
    "uint8": torch.tensor(VALUES, dtype=torch.uint8),
    "int64": torch.tensor(VALUES, dtype=torch.int64),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_numbers_from_anywhere(name):
    values = ARRAYS[name]
    physics = dj.SeismicConvolution(values, normalize=False)
    assert torch.equal(physics.wavelet, torch.tensor(VALUES))
    physics.update(wavelet=values)
    assert torch.equal(physics.wavelet, torch.tensor(VALUES))
    mask = dj.SingleCoilMRI(values, img_size=(4, 5)).mask
    assert torch.equal(mask, torch.tensor(VALUES).expand(1, 2, 4, 5))


def test_arrays_are_not_shared_with_the_caller():
    values = np.array(VALUES, np.float32)
    physics = dj.SeismicConvolution(values, normalize=False)
    values[:] = 0
    assert torch.equal(physics.wavelet, torch.tensor(VALUES))


# Advice that fits

X, SECTION = torch.zeros(3, 2, *SIZE), torch.zeros(3, 1, 9, 4)
ADVICE = {
    "numpy image": (mri, X.numpy(), r"ndarray: convert them, .* torch.as_tensor\(\)"),
    "complex": (mri, X[:, 0] + 0j, r"torch.view_as_real\(x\).movedim\(-1, 1\)"),
    "parts last": (mri, X.movedim(1, -1), r"put the 2 parts second, x.movedim\(-1"),
    "real": (mri, X[:, :1], "an imaginary part of zeros as second channel"),
    "no batch": (mri, X[0], r"add the dimension of the batch, x\[None\]"),
    "other size": (mri, X[..., 1:], "crop the images, or give img_size to Single"),
    "numpy section": (seismic, SECTION.numpy(), "ndarray: convert them"),
    "whole numbers": (seismic, SECTION.byte(), r"uint8: convert whole numbers by fl"),
    "complex section": (seismic, SECTION + 0j, "take their real parts"),
    "one section": (seismic, SECTION[0, 0], r"for example x\[None, None\]"),
    "no channel": (seismic, SECTION[:, 0], r"for example x\[:, None\]"),
    "channels": (seismic, SECTION.movedim(0, 1), "as one image of one channel"),
    "coils": (mri, X[:, :, None], "for several coils take deepinv.physics.MultiCoil"),
}


@pytest.mark.parametrize("case", ADVICE)
def test_advice_fits_the_fault(case):
    make, x, message = ADVICE[case]
    with pytest.raises((TypeError, ValueError), match=message):
        make()[0](x)


NO_NUMBERS = {
    "parameters": ({"mask": X}, r"unpack it, as in update\(\*\*params\)"),
    "generator": (dj.FastMRIMaskGenerator((64, 64), seed=0), r"draw from it, as in up"),
    "text": ("ricker" * 100, "'rickerric.*': give its numbers"),
}


@pytest.mark.parametrize("case", NO_NUMBERS)
def test_what_is_made_of_no_numbers_is_named_in_short(case):
    values, message = NO_NUMBERS[case]
    for physics in (dj.SingleCoilMRI, dj.SeismicConvolution):
        with pytest.raises(TypeError, match=message) as caught:
            physics(values)
        assert len(str(caught.value)) < 200


def test_masks_without_channel_are_explained():
    with pytest.raises(ValueError, match=r"need a dimension .*, mask\[:, None\]"):
        dj.SingleCoilMRI(torch.ones(4, 8, 8))


def test_three_dimensions_are_refused():
    assert dj.SingleCoilMRI(img_size=SIZE, three_d=False).three_d is False
    with pytest.raises(TypeError, match="two dimensions: use deepinv.physics.MRI"):
        dj.SingleCoilMRI(img_size=SIZE, three_d=True)


@pytest.mark.parametrize(
    "size, error, message",
    [
        (64, TypeError, "img_size must be made of whole numbers, got 64"),
        ((64, 64), ValueError, r"img_size must hold 3 whole numbers, got \(64, 64\)"),
        ((2, 64, 64), ValueError, r"img_size must be \(1, T, X\), got \(2, 64, 64\)"),
    ],
)
def test_section_sizes_refused(size, error, message):
    with pytest.raises(error, match=message):
        dj.SeismicConvolution(img_size=size)


def test_closed_forms_are_the_hosts():
    mask = torch.eye(*SIZE).repeat(3, 1, 1, 1).roll(1, -1)
    ours, y = dj.SingleCoilMRI(mask), torch.randn(3, 2, *SIZE)
    host = dinv.physics.MRI(mask=mask, img_size=SIZE)
    for name in ("A_dagger", "A_A_adjoint"):
        assert torch.allclose(getattr(ours, name)(y), getattr(host, name)(y), atol=1e-6)


# The wavelet by its frequency


@pytest.mark.parametrize("frequency, dt", [(25.0, 4.0), (25, 2), (60.0, 1.0), (8, 8)])
def test_ricker_by_frequency(frequency, dt):
    wavelet = dj.ricker(151, frequency=frequency, dt=dt, dtype=torch.float64)
    a = 1 / (math.sqrt(2) * math.pi * frequency * dt * 1e-3)
    assert torch.allclose(wavelet, dj.ricker(151, a, dtype=torch.float64), atol=1e-12)
    # in Hz: cycles per sample times samples per second
    points = 100_000
    peak = torch.fft.rfft(wavelet, points).abs().argmax() / points * 1000 / dt
    assert peak.item() == pytest.approx(frequency, rel=1e-3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"a": 4.0, "frequency": 25.0, "dt": 4.0}, "give either a, .* got a=4.0, freq"),
        ({"frequency": 25.0}, "both frequency, in Hz, and dt, in ms, got .* dt=None"),
        ({"dt": 4.0}, "both frequency, in Hz, and dt, in ms, got .* frequency=None"),
        ({"a": 4.0, "dt": 4.0}, "give either a, in samples, or both"),
        ({"frequency": 0, "dt": 4.0}, "frequency must be positive, got 0"),
        ({"frequency": "25", "dt": 4.0}, "frequency must be a number, got '25'"),
        ({"frequency": 25.0, "dt": -4}, "dt must be positive, got -4"),
        ({"frequency": 125, "dt": 4}, "below half of the sampling rate, 125 Hz at dt=4"),
        # kHz, s and us
        ({"frequency": 0.025, "dt": 4.0}, "points must be at least .* 0.025 Hz"),
        ({"frequency": 25.0, "dt": 0.004}, "points must be at least .* dt in ms"),
        ({"frequency": 25.0, "dt": 4000.0}, "below half of the sampling .* dt in ms"),
        ({"frequency": 25.0, "dt": 1.0}, "at least 75 for 25 Hz at dt=1 ms, got 51"),
    ],
)
def test_ricker_by_frequency_refuses(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        dj.ricker(**arguments)


def test_ricker_that_fits_is_not_cut_off():
    wavelet = dj.ricker(75, frequency=25.0, dt=1.0, dtype=torch.float64)
    assert wavelet[0].abs() < 0.01 and wavelet.sum().abs() < 0.03


@pytest.mark.parametrize("dtype", ["float32", float, np.float32])
def test_ricker_takes_types_of_torch(dtype):
    with pytest.raises(TypeError, match="dtype must be a real type, got"):
        dj.ricker(dtype=dtype)


def test_ricker_that_is_cut_off_says_so():
    for points, a in ((51, 25.0), (101, 30), (3, 1.0)):
        with pytest.warns(UserWarning, match="cut off.* in Hz is given as freq") as w:
            dj.ricker(points, a)
        assert w[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for points, a in ((51, 4.0), (5, 1.0), (25, 2.0), (1, 4.0)):
            dj.ricker(points, a)
