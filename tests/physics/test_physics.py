"""Contracts of the operators and of the mask generator."""

import deepinv as dinv
import fastmri
import numpy as np
import pytest
import torch
from fastmri.data.subsample import EquispacedMaskFractionFunc, RandomMaskFunc
from properties import assert_global_rng_untouched

import deepinv_jitter as dj

ASYMMETRIC = torch.tensor([0.5, -1.0, 2.0, 0.25, -0.75])
WAVELETS = {
    "ricker": dj.ricker(dtype=torch.float64),
    "asymmetric": ASYMMETRIC.double(),
    "gain": torch.tensor([-3.0], dtype=torch.float64),
}
TRACES = [
    1,
    3,
    24,
    25,
    26,
    51,
    64,
    101,
    513,
    700,
]  # shorter than, as long as, longer than a wavelet; so long that they are taken in blocks
MASKS = {  # the shapes a mask may have, for images of 5 x 6
    "W": torch.arange(6) % 2,
    "HW": torch.eye(5, 6),
    "1HW": torch.eye(5, 6)[None],
    "CHW": torch.eye(5, 6).roll(1, 1).repeat(2, 1, 1),
    "B1HW": torch.stack([torch.eye(5, 6), torch.ones(5, 6)])[:, None],
    "BCHW": torch.eye(5, 6).repeat(2, 2, 1, 1),
    "bool": torch.eye(5, 6).bool(),
    "numpy": np.eye(5, 6),
}


def matrix(physics, samples):
    return physics.A(torch.eye(samples, dtype=torch.float64)[None, None])[0, 0]


def seismic(wavelet=None, **kwargs):
    return dj.SeismicConvolution(wavelet, **kwargs).double()


def operators():
    for name, wavelet in WAVELETS.items():
        for samples in TRACES:
            for normalize in (True, False):
                yield pytest.param(
                    lambda wavelet=wavelet, normalize=normalize: seismic(
                        wavelet, normalize=normalize
                    ),
                    (2, 1, samples, 3),
                    id=f"{name}-{samples}-{normalize}",
                )
    for name, mask in MASKS.items():
        yield pytest.param(
            lambda mask=mask: dj.SingleCoilMRI(mask, img_size=(5, 6)).double(),
            (2, 2, 5, 6),
            id=f"mri-{name}",
        )


@pytest.mark.parametrize("build, shape", list(operators()))
def test_adjoint_and_norm_bound(build, shape, device):
    physics = build().to(device)
    x, v = torch.randn(2, *shape, dtype=torch.float64, device=device)
    y, u = physics.A(x), physics.A_adjoint(v)
    assert y.shape == x.shape and y.dtype == x.dtype and y.device == x.device
    assert (torch.sum(y * v) - torch.sum(x * u)).abs() < 1e-12 * x.norm() * v.norm()
    if getattr(physics, "normalize", True):
        assert y.norm() <= x.norm() * (1 + 1e-12)


@pytest.mark.parametrize("build, shape", list(operators()))
def test_normal_operator_is_the_plain_route(build, shape, device):
    """Values and gradients of A_adjoint_A are those of the adjoint after the operator."""
    physics = build().to(device)
    x, v = torch.randn(2, *shape, dtype=torch.float64, device=device)
    x.requires_grad_()
    fast, plain = physics.A_adjoint_A(x), physics.A_adjoint(physics.A(x))
    assert torch.allclose(fast, plain, rtol=0, atol=1e-12 * plain.abs().max().item())
    gradients = [torch.autograd.grad(out, x, v)[0] for out in (fast, plain)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-12 * gradients[1].abs().max().item())


CHANGES = {  # of a buffer: what is derived from it must not outlive it
    "update": lambda physics, name, new: physics.update(**{name: new}),
    "load_state_dict": lambda physics, name, new: physics.load_state_dict({name: new}),
    "in place": lambda physics, name, new: getattr(physics, name).copy_(new),
    "assigned": lambda physics, name, new: setattr(physics, name, new.clone()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["wavelet", "mask"])
def test_a_changed_buffer_changes_the_operator(kind, change):
    if kind == "wavelet":
        physics = dj.SeismicConvolution(ASYMMETRIC, normalize=False)
        fresh = dj.SeismicConvolution(2 + ASYMMETRIC, normalize=False)
        x = torch.randn(1, 1, 20, 3)
    else:
        physics, fresh = (
            dj.SingleCoilMRI(torch.arange(6) % k == 0, img_size=(5, 6)) for k in (2, 3)
        )
        x = torch.randn(1, 2, 5, 6)
    calls = ("A", "A_adjoint", "A_adjoint_A")
    before = {call: getattr(physics, call)(x) for call in calls}
    CHANGES[change](physics, kind, getattr(fresh, kind))
    for call, old in before.items():
        new = getattr(physics, call)(x)
        assert torch.equal(new, getattr(fresh, call)(x)) and not torch.equal(new, old)
    clone = physics.clone()
    assert torch.equal(clone.A_adjoint_A(x), fresh.A_adjoint_A(x))
    double = physics.to(torch.float64).A_adjoint_A(x.double())
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), fresh.A_adjoint_A(x), atol=1e-5)


@pytest.mark.parametrize("build, shape", list(operators())[::7])
def test_first_used_in_inference_mode(build, shape):
    physics, x = build(), torch.randn(shape, dtype=torch.float64)
    with torch.inference_mode():
        first = physics.A_adjoint_A(physics.A(x))
    x.requires_grad_()
    again = physics.A_adjoint_A(physics.A(x))
    again.sum().backward()
    assert torch.equal(again, first) and x.grad.any()


@pytest.mark.parametrize("build, shape", list(operators())[::7])
def test_autocast_does_not_touch_the_operator(build, shape):
    physics, x = build().float(), torch.randn(shape)
    for call in (physics.A, physics.A_adjoint, physics.A_adjoint_A):
        expected = call(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(call(x), expected)
    # what a layer under autocast hands over
    half = physics.A_adjoint_A(x.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, physics.A_adjoint_A(x.bfloat16().float()))


# ricker


def test_ricker_is_the_formula():
    t = np.arange(-25, 26)
    expected = (1 - (t / 4.0) ** 2) * np.exp(-(t**2) / 32.0)
    wavelet = dj.ricker(dtype=torch.float64)
    np.testing.assert_allclose(wavelet, expected, rtol=1e-13)
    assert wavelet[25] == 1 and dj.ricker().dtype == torch.float32
    assert dj.ricker(1).tolist() == [1.0]
    frequency = torch.fft.rfft(wavelet, 10000).abs().argmax() / 10000
    assert frequency == pytest.approx(1 / (2**0.5 * torch.pi * 4), abs=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"points": 50}, "points must be odd, got 50: only an odd wavelet"),
        ({"points": 0}, "points must be finite and at least 1, got 0"),
        ({"points": -3}, "points must be finite and at least 1, got -3"),
        ({"points": 5.0}, "points must be a whole number, got 5.0"),
        ({"points": True}, "points must be a whole number, got True"),
        ({"a": 0.0}, "a must be positive, got 0.0"),
        ({"a": -1}, "a must be positive, got -1"),
        ({"a": float("nan")}, "a must be finite, got nan"),
        ({"a": "wide"}, "a must be a number, got 'wide'"),
        ({"dtype": torch.int64}, "dtype must be a real type, got torch.int64"),
    ],
)
def test_ricker_refuses(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        dj.ricker(**arguments)


@pytest.mark.parametrize("a", [1e-320, 1e-30, 1e-3, 1e30, 1e308])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_ricker_of_any_width_is_finite(a, dtype):
    wavelet = dj.ricker(51, a, dtype=dtype)
    expected = torch.ones(51) if a > 1 else torch.eye(51)[25]
    assert wavelet.dtype == dtype and torch.equal(wavelet.float(), expected)


# SeismicConvolution


@pytest.mark.parametrize("name", WAVELETS)
@pytest.mark.parametrize("samples", TRACES)
def test_convolution_of_each_trace(name, samples):
    wavelet = WAVELETS[name].numpy()
    x = torch.randn(2, 1, samples, 3, dtype=torch.float64)
    y = seismic(WAVELETS[name], normalize=False).A(x)
    for b, trace in np.ndindex(2, 3):
        # numpy's "same" has the length of the longer one, so take the middle of "full"
        full = np.convolve(x[b, 0, :, trace].numpy(), wavelet)
        expected = full[len(wavelet) // 2 :][:samples]
        np.testing.assert_allclose(y[b, 0, :, trace], expected, atol=1e-12)
        if samples >= len(wavelet):
            same = np.convolve(x[b, 0, :, trace].numpy(), wavelet, mode="same")
            np.testing.assert_array_equal(expected, same)


def test_convolution_is_the_hosts_blur():
    x = torch.randn(1, 1, 60, 5)
    kernel = ASYMMETRIC.reshape(1, 1, -1, 1)
    blur = dinv.physics.Blur(filter=kernel, padding="constant")
    y = dj.SeismicConvolution(ASYMMETRIC, normalize=False).A(x)
    assert torch.allclose(y, blur.A(x), atol=1e-6)


def test_unit_norm_of_long_traces():
    wavelets = [*WAVELETS.values()]
    wavelets += [torch.randn(k, dtype=torch.float64) for k in (3, 9, 33) * 5]
    for wavelet in wavelets:
        physics = seismic(17.0 * wavelet)
        norms = [torch.linalg.matrix_norm(matrix(physics, t), 2) for t in (20, 80, 320)]
        assert norms == sorted(norms) and norms[-1] <= 1
        assert norms[-1] > 0.99


@pytest.mark.parametrize("samples, squared", [(64, 0.941), (128, 0.983), (352, 0.998)])
def test_documented_norms(samples, squared):
    norm = torch.linalg.matrix_norm(matrix(seismic(), samples), 2)
    assert norm.item() ** 2 == pytest.approx(squared, abs=6e-4)


def test_peak_gain_is_never_underestimated():
    for k in (3, 9, 33) * 20:
        wavelet = seismic(torch.randn(k, dtype=torch.float64)).wavelet
        # a grid with points between those that the operator looks at
        peak = torch.fft.rfft(wavelet, 512 * 21 * k).abs().max()
        assert 1 - 1e-5 < peak <= 1 + 1e-14


def test_a_gain_is_normalised_exactly():
    assert dj.SeismicConvolution(torch.tensor([-3.0])).wavelet.tolist() == [-1.0]


def test_derivatives():
    physics = seismic()
    x = torch.randn(2, 1, 4, 2, dtype=torch.float64, requires_grad=True)
    for normalize in (True, False):
        physics.normalize = normalize
        for k in (3, 9):  # shorter and longer than the trace
            w = torch.randn(k, dtype=torch.float64, requires_grad=True)
            for f in (physics.A, physics.A_adjoint, physics.A_adjoint_A, physics.forward):
                assert torch.autograd.gradcheck(lambda x, w: f(x, wavelet=w), (x, w))


def test_derivatives_of_long_traces(monkeypatch):
    """To the section and to a learned wavelet, first and second, in blocks."""
    for size in ("WHOLE", "BLOCK"):
        monkeypatch.setattr(dj.physics.seismic, size, 2)
    physics = seismic(normalize=False)
    x = torch.randn(1, 1, 7, 2, dtype=torch.float64, requires_grad=True)
    for k in (3, 9):
        w = torch.randn(k, dtype=torch.float64, requires_grad=True)
        for f in (physics.A, physics.A_adjoint, physics.A_adjoint_A):

            def call(x, w):
                return f(x, wavelet=w)

            assert torch.autograd.gradcheck(call, (x, w))
            assert torch.autograd.gradgradcheck(call, (x, w))


CALLS = {
    "update": lambda physics, x, w: (physics.update(wavelet=w), physics(x))[1],
    "forward": lambda physics, x, w: physics(x, wavelet=w),
    "A": lambda physics, x, w: physics.A(x, wavelet=w),
    "A_adjoint": lambda physics, x, w: (physics.A_adjoint(x, wavelet=w), physics.A(x))[1],
}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_a_new_wavelet_is_treated_as_the_first(call, normalize):
    x = torch.randn(1, 1, 20, 3)
    physics = dj.SeismicConvolution(normalize=normalize)
    fresh = dj.SeismicConvolution(ASYMMETRIC, normalize=normalize)
    assert torch.equal(CALLS[call](physics, x, ASYMMETRIC.double()), fresh(x))
    assert physics.wavelet.dtype == torch.float32
    physics.update(wavelet=ASYMMETRIC.tolist())
    assert torch.equal(physics(x), fresh(x))
    # what was read off can be set again
    physics.update(wavelet=physics.wavelet)
    assert torch.allclose(physics(x), fresh(x), atol=1e-6)


def test_wavelet_is_not_shared_with_the_caller():
    for normalize in (True, False):
        given = ASYMMETRIC.clone()
        physics = dj.SeismicConvolution(given, normalize=normalize)
        before = physics.wavelet.clone()
        physics.update(wavelet=given)
        given.zero_()
        assert torch.equal(physics.wavelet, before)


def test_state_clone_and_type():
    x = torch.randn(1, 1, 30, 2)
    physics = dj.SeismicConvolution(ASYMMETRIC)
    other = dj.SeismicConvolution(torch.ones(5))
    other.load_state_dict(physics.state_dict())
    assert list(physics.state_dict()) == ["wavelet"]
    assert torch.equal(other(x), physics(x))
    clone = physics.clone()
    clone.update(wavelet=torch.ones(3))
    assert torch.equal(other(x), physics(x)) and not torch.equal(clone(x), physics(x))
    double = physics.clone().to(torch.float64)
    assert double.wavelet.dtype == double(x.double()).dtype == torch.float64
    assert torch.allclose(double(x.double()).float(), physics(x), atol=1e-6)
    assert physics(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    "wavelet, got",
    [
        (torch.ones(4), r"shape \(4,\) .*: add a zero at the end nearer to its peak"),
        (torch.ones(0), r"shape \(0,\)"),
        (torch.ones(1, 5), r"shape \(1, 5\) .*: give one wavelet for all traces"),
        (torch.ones(3, 5), r"shape \(3, 5\) .*: give one wavelet for all traces"),
        (torch.tensor(1.0), r"shape \(\)"),
        (torch.ones(5, dtype=torch.bool), "torch.bool: give numbers"),
        (torch.ones(5, dtype=torch.complex64), "torch.complex64: take its real part"),
        (torch.tensor([0.0, float("nan"), 1.0]), "not finite: ricker"),
        (torch.tensor([0.0, float("inf"), 1.0]), "not finite: ricker"),
        (torch.zeros(5), "zeros only"),
        (torch.full((5,), 3e38), "sums overflow when squared: divide it by its max"),
    ],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_wavelets_refused(wavelet, got, normalize):
    message = rf"wavelet must be 1-D, real, of odd length.*{got}"
    with pytest.raises(ValueError, match=message):
        dj.SeismicConvolution(wavelet, normalize=normalize)
    physics = dj.SeismicConvolution(normalize=normalize)
    before = physics.wavelet.clone()
    with pytest.raises(ValueError, match=message):
        physics.update(wavelet=wavelet)
    assert torch.equal(physics.wavelet, before)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(20),
        torch.zeros(1, 20, 3),
        torch.zeros(1, 2, 20, 3),
        torch.zeros(1, 1, 20, 3).int(),
        torch.zeros(1, 1, 20, 3) + 0j,
        torch.zeros(0, 1, 20, 3),
        torch.zeros(1, 1, 0, 3),
    ],
    ids=lambda x: f"{tuple(x.shape)}-{x.dtype}",
)
def test_sections_refused(x):
    physics = dj.SeismicConvolution()
    for f in (physics, physics.A, physics.A_adjoint, physics.A_adjoint_A):
        with pytest.raises(ValueError, match=r"\(B, 1, T, X\), not empty, got \("):
            f(x)


X = torch.zeros(3, 2, 5, 6)
SECTION = torch.zeros(3, 1, 20, 4)
IMAGES = {
    "list": (X.tolist(), TypeError, "must be a torch.Tensor, got list"),
    "channels": (X[:, :1], ValueError, r"\(B, 2, 5, 6\) like the mask, got \(3, 1, 5"),
    "size": (X.mT, ValueError, r"\(B, 2, 5, 6\) like the mask, got \(3, 2, 6, 5"),
    "no batch": (X[0], ValueError, r"like the mask, got \(2, 5, 6\)"),
    "empty": (X[:0], ValueError, r"like the mask, got \(0, 2, 5, 6\)"),
    "complex": (X + 0j, ValueError, "got .* of torch.complex64: give .* as 2 channels"),
    "batch": (X, ValueError, "one for each of the 3 images, got 2 masks: give new"),
    "device": (X[:2].to("meta"), ValueError, "device of the mask, cpu, got meta"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_images_refused(case):
    x, error, message = IMAGES[case]
    physics = dj.SingleCoilMRI(torch.eye(5, 6).repeat(2, 1, 1, 1))
    for f in (physics, physics.A, physics.A_adjoint, physics.A_adjoint_A):
        with pytest.raises(error, match=message):
            f(x)


def test_sections_refused_by_type_and_device():
    physics = dj.SeismicConvolution()
    for f in (physics, physics.A, physics.A_adjoint, physics.A_adjoint_A):
        with pytest.raises(TypeError, match="must be a torch.Tensor, got list"):
            f(SECTION.tolist())
        with pytest.raises(ValueError, match="device of the wavelet, cpu, got meta"):
            f(SECTION.to("meta"))


@pytest.mark.parametrize("physics", [dj.SeismicConvolution, dj.SingleCoilMRI])
def test_what_is_made_of_no_numbers_is_refused(physics):
    name = "wavelet" if physics is dj.SeismicConvolution else "mask"
    for values in ("ones", ["a"], [[1], [2, 3]], object()):
        with pytest.raises(TypeError, match=f"{name} must be a tensor or an array of"):
            physics(values)
        with pytest.raises(TypeError, match=f"{name} must be a tensor or an array of"):
            physics().update(**{name: values})


@pytest.mark.parametrize(
    "size, error, message",
    [
        (5, TypeError, "img_size must be made of whole numbers, got 5"),
        ("56", TypeError, "img_size must be made of whole numbers, got '56'"),
        ((5, 6.0), TypeError, "img_size must be a whole number, got 6.0"),
        ((5, 0), ValueError, "img_size must be finite and at least 1, got 0"),
        ((6,), ValueError, "img_size must end in its H, W"),
    ],
)
def test_mri_sizes_refused(size, error, message):
    for mask in (None, torch.ones(6)):
        with pytest.raises(error, match=message):
            dj.SingleCoilMRI(mask, img_size=size)


def test_half_precision_is_widened():
    for physics, x in ((dj.SeismicConvolution(), SECTION), (dj.SingleCoilMRI(), None)):
        x = torch.randn(1, 2, 320, 320) if x is None else torch.randn_like(x)
        for f in (physics.A, physics.A_adjoint, physics.A_adjoint_A):
            for dtype in (torch.float16, torch.bfloat16):
                assert torch.equal(f(x.to(dtype)), f(x.to(dtype).float()))
    half = dj.SeismicConvolution(dj.ricker(dtype=torch.float16))
    wavelet = dj.SeismicConvolution().wavelet
    assert torch.allclose(half.wavelet.float(), wavelet, atol=1e-3)


def test_noise_models_are_not_shared():
    for build in (dj.SeismicConvolution, lambda: dj.SingleCoilMRI(img_size=(4, 4))):
        first, second = build(), build()
        assert isinstance(first.noise_model, dinv.physics.ZeroNoise)
        assert first.noise_model is not second.noise_model
    noise = dinv.physics.GaussianNoise(0.05)
    assert dj.SeismicConvolution(noise_model=noise).noise_model is noise
    assert dj.SingleCoilMRI(noise_model=noise).noise_model is noise


# SingleCoilMRI


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (8, 5), (9, 11)])
def test_mri_is_fastmris_transform_times_the_mask(size, device):
    x = torch.randn(3, 2, *size, dtype=torch.float64, device=device)
    mask = torch.rand(3, 1, *size, device=device).round()
    mask[..., 0] = 1
    physics = dj.SingleCoilMRI(mask, img_size=size, device=device)
    y = mask * fastmri.fft2c(x.moveaxis(1, -1).contiguous()).moveaxis(-1, 1)
    assert torch.allclose(physics.A(x), y, rtol=0, atol=1e-6 * y.abs().max().item())
    back = fastmri.ifft2c(y.moveaxis(1, -1).contiguous()).moveaxis(-1, 1)
    assert torch.allclose(physics.A_adjoint(y), back, atol=1e-6)


@pytest.mark.parametrize("name", MASKS)
def test_masks_mean_what_the_host_makes_of_them(name):
    x = torch.randn(2, 2, 5, 6)
    host = dinv.physics.MRI(img_size=(5, 6))
    host.update(mask=torch.as_tensor(MASKS[name]))
    by_update = dj.SingleCoilMRI(img_size=(5, 6))
    by_update.update(mask=MASKS[name])
    by_call = dj.SingleCoilMRI(img_size=(5, 6))
    built = dj.SingleCoilMRI(MASKS[name], img_size=(2, 5, 6))
    y = host(x)
    assert torch.equal(by_call(x, mask=MASKS[name]), y)
    for physics in (by_update, by_call, built):
        assert torch.equal(physics(x), y)
        assert physics.mask.shape[1:] == physics.img_size == (2, 5, 6)
    assert built.adjointness_test(num_samples=2) < 1e-5
    assert built.mask.is_floating_point()


def test_mask_size_and_default_size():
    assert dj.SingleCoilMRI().mask.shape == (1, 2, 320, 320)
    assert dj.SingleCoilMRI(torch.ones(4, 7)).img_size == (2, 4, 7)
    assert dj.SingleCoilMRI(np.ones((1, 4, 7))).img_size == (2, 4, 7)


@pytest.mark.parametrize("name", MASKS)
def test_mask_is_not_shared_with_the_caller(name):
    as_given = MASKS[name]
    given = as_given.copy() if name == "numpy" else as_given.clone()
    physics = dj.SingleCoilMRI(given, img_size=(5, 6))
    before = physics.mask.clone()
    for _ in range(2):
        given[...] = 1
        assert torch.equal(physics.mask, before)
        given[...] = as_given
        physics.update(mask=given)


@pytest.mark.parametrize("dtype", [bool, torch.uint8, torch.bfloat16, torch.float64])
def test_a_mask_of_any_type_leaves_images_theirs(dtype):
    mask = torch.eye(5, 6).to(dtype)
    physics = dj.SingleCoilMRI(mask)
    for kind in (torch.float32, torch.float64):
        x = torch.randn(1, 2, 5, 6, dtype=kind)
        assert physics(x).dtype == physics(x, mask=mask).dtype == kind


def test_masks_of_another_batch_size():
    physics = dj.SingleCoilMRI(torch.ones(5, 6))
    for batch in (2, 3, 1):
        mask = torch.rand(batch, 1, 5, 6).round()
        mask[..., 2] = 1
        x = torch.randn(batch, 2, 5, 6)
        physics.update(mask=mask)
        assert physics(x).shape == x.shape
        assert torch.equal(physics(x) != 0, mask.bool().expand(-1, 2, -1, -1))


def test_noise_stays_on_the_mask():
    mask = torch.eye(5, 6)
    noise = dinv.physics.GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
    physics = dj.SingleCoilMRI(mask=mask, img_size=(5, 6), noise_model=noise)
    y = physics(torch.zeros(4, 2, 5, 6))
    assert torch.equal(y != 0, mask.bool().expand_as(y))


def test_mri_norm():
    physics = dj.SingleCoilMRI(torch.eye(5, 6))
    sqnorm = physics.compute_sqnorm(torch.ones(1, 2, 5, 6), tol=1e-7, verbose=False)
    assert sqnorm.item() == pytest.approx(1.0, rel=1e-4)


def test_mri_state_clone_and_type():
    x = torch.randn(1, 2, 5, 6)
    physics = dj.SingleCoilMRI(torch.eye(5, 6))
    other = dj.SingleCoilMRI(torch.ones(5, 6))
    other.load_state_dict(physics.state_dict())
    assert torch.equal(other(x), physics(x))
    clone = physics.clone()
    clone.update(mask=torch.ones(5, 6))
    assert torch.equal(other(x), physics(x)) and not torch.equal(clone(x), physics(x))
    double = physics.to(torch.float64)
    assert double.mask.dtype == double(x.double()).dtype == torch.float64


def _masks_refused():
    fit = r"shape \(W,\), \(H, W\), \(C, H, W\) or \(B, C, H, W\).*got a mask"
    rule = "zeros and ones and sample something of every image, got "
    zero, other = f"{rule}only zeros for an image", f"{rule}other values"
    return [
        (torch.ones(6, 5), fit),
        (torch.ones(5), fit),
        (torch.tensor(1.0), fit),
        (torch.ones(3, 5, 6), fit),
        (torch.ones(2, 3, 5, 6), fit),
        (torch.ones(1, 1, 1, 5, 6), fit),
        (torch.ones(2, 1, 1, 6), fit),
        (torch.eye(5, 6) * 1j, other),
        (torch.eye(5, 6) + 0j, other),
        (torch.zeros(5, 6), zero),
        (torch.stack([torch.ones(1, 5, 6), torch.zeros(1, 5, 6)]), zero),
        (torch.full((5, 6), float("nan")), other),
        (torch.full((5, 6), float("inf")), other),
        (torch.full((5, 6), 0.5), other),
        (-torch.eye(5, 6), other),
    ]


@pytest.mark.parametrize("mask, message", _masks_refused())
def test_masks_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        dj.SingleCoilMRI(mask, img_size=(5, 6))
    physics = dj.SingleCoilMRI(torch.eye(5, 6))
    with pytest.raises(ValueError, match=message):
        physics.update(mask=mask)
    assert torch.equal(physics.mask, torch.eye(5, 6).expand(1, 2, 5, 6))


def test_columns_alone_need_a_size():
    with pytest.raises(ValueError, match="img_size must end in its H, W"):
        dj.SingleCoilMRI(torch.ones(6))


# FastMRIMaskGenerator

KINDS = {"random": RandomMaskFunc, "equispaced": EquispacedMaskFractionFunc}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("acceleration, center_fraction", [(4, 0.08), (8, 0.04)])
@pytest.mark.parametrize("size", [(320, 320), (33, 51)])
def test_masks_are_fastmris_own(kind, acceleration, center_fraction, size):
    rng = torch.Generator().manual_seed(5)
    generator = dj.FastMRIMaskGenerator(size, acceleration=acceleration, kind=kind, rng=rng)
    mask = generator.step(batch_size=3)["mask"]
    seeds = torch.randint(2**32, (3,), generator=torch.Generator().manual_seed(5))
    theirs = KINDS[kind]([center_fraction], [acceleration])
    for one, seed in zip(mask, seeds.tolist(), strict=True):
        columns, n_center = theirs((*size, 2), seed=seed)
        assert torch.equal(one[0], columns[..., 0].expand(size))
        assert generator.n_center == n_center


@pytest.mark.parametrize("kind", KINDS)
def test_mask_format(kind, device):
    generator = dj.FastMRIMaskGenerator((20, 50), kind=kind, seed=0, device=device)
    mask = generator.step(batch_size=2)["mask"]
    assert mask.shape == (2, 1, 20, 50) and mask.dtype == torch.float32
    assert mask.device.type == device.type and mask.is_contiguous()
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(mask, mask[:, :, :1].expand_as(mask))
    assert generator.step(img_size=(10, 40))["mask"].shape == (1, 1, 10, 40)
    assert generator.step(batch_size=0)["mask"].shape == (1, 20, 50)
    pair = dj.FastMRIMaskGenerator((2, 20, 50), kind=kind, seed=0, device=device)
    assert torch.equal(pair.step(2)["mask"], mask.expand(-1, 2, -1, -1))
    physics = dj.SingleCoilMRI(img_size=(20, 50), device=device)
    y = physics(torch.ones(2, 2, 20, 50, device=device), mask=mask)
    assert not y[(mask == 0).expand_as(y)].any()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_depend_on_their_generator_alone(kind):
    with assert_global_rng_untouched():
        generator = dj.FastMRIMaskGenerator((1, 320), kind=kind, seed=7)
        first, second = (generator.step(batch_size=8)["mask"] for _ in range(2))
    torch.manual_seed(1)
    np.random.seed(1)
    again = dj.FastMRIMaskGenerator((1, 320), kind=kind, rng=torch.Generator().manual_seed(7))
    assert torch.equal(again.step(batch_size=8)["mask"], first)
    assert torch.equal(again.step(batch_size=8)["mask"], second)
    assert not torch.equal(first, second)
    assert len(first.unique(dim=0)) > 1
    assert torch.equal(generator.step(batch_size=8, seed=7)["mask"], first)
    generator.reset_rng()
    assert torch.equal(generator.step(batch_size=8)["mask"], first)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("acceleration", [2, 4, 8])
def test_acceleration_on_average(kind, acceleration):
    generator = dj.FastMRIMaskGenerator((1, 320), acceleration=acceleration, kind=kind, seed=0)
    mask = generator.step(batch_size=400)["mask"]
    columns = mask.sum(-1).mean().item()
    assert columns == pytest.approx(320 / acceleration, rel=0.02)
    start = (320 - generator.n_center + 1) // 2
    assert mask[..., start : start + generator.n_center].all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kind": "magic"}, r"kind must be one of \('random', 'equispaced'\)"),
        ({"acceleration": 0.5}, "acceleration must be .* at least 1, got 0.5"),
        ({"acceleration": float("nan")}, "acceleration must be finite .* got nan"),
        ({"acceleration": "4"}, "acceleration must be a number, got '4'"),
        ({"acceleration": True}, "acceleration must be a number, got True"),
        ({"center_fraction": 0.0}, "center_fraction must be positive .* got 0.0"),
        ({"center_fraction": 1.0}, "center_fraction must .* below 1, got 1.0"),
        ({"center_fraction": float("nan")}, "center_fraction must be finite, got nan"),
        ({"center_fraction": "low"}, "center_fraction must be a number, got 'low'"),
        ({"kind": ["random"]}, "kind must be one of"),
        ({"img_size": 64}, "img_size must be made of whole numbers, got 64"),
        ({"img_size": (64, 6.5)}, "img_size must be a whole number, got 6.5"),
        ({"img_size": (0, 64)}, "img_size must be .* at least 1, got 0"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"seed": -1}, "seed must be .* lie from 0 to .* got -1"),
        ({"seed": None, "rng": 3}, "rng must be a torch.Generator, got int"),
        ({"center_fraction": 0.25}, "fewer than W / acceleration = 64 / 4 .* got 16"),
        ({"center_fraction": 0.001}, "at least 1 and .* columns, got 0"),
        ({"acceleration": 64}, "fewer than W / acceleration = 64 / 64 .* got 3"),
        ({"img_size": (64,)}, r"img_size must be \(H, W\) or \(C, H, W\), got \(64,\)"),
        ({"seed": None}, "give exactly one of rng and seed, got rng=None and seed=None"),
        ({"rng": torch.Generator()}, "give exactly one of rng and seed"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_generator_refuses(kind, arguments, message):
    arguments = {"img_size": (64, 64), "kind": kind, "seed": 0} | arguments
    with pytest.raises((TypeError, ValueError), match=message):
        dj.FastMRIMaskGenerator(**arguments)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"batch_size": -1}, ValueError, "batch_size must be .* at least 0, got -1"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be a whole number, got 2.0"),
        ({"img_size": (1, 64, 64)}, ValueError, r"img_size must be \(H, W\) in a call"),
        ({"img_size": 64}, TypeError, "img_size must be made of whole numbers"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number, got 0.5"),
        ({"seed": -1}, ValueError, "seed must be .* lie from 0 to"),
    ],
)
def test_step_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        dj.FastMRIMaskGenerator((64, 64), seed=0).step(**arguments)


def test_step_refuses_a_size_without_centre():
    generator = dj.FastMRIMaskGenerator((64, 64), seed=0)
    with pytest.raises(ValueError, match="at least 1 .* got 0"):
        generator.step(img_size=(5, 5))
