"""Whose parameter is it? Samples, their measurements and the parameters of their physics."""

import math
import warnings

import deepinv as dinv
import pytest
import torch
from deepinv.physics.generator import (
    BernoulliSplittingMaskGenerator,
    DownsamplingGenerator,
    GaussianMaskGenerator,
    GeneratorMixture,
    MotionBlurGenerator,
    PhysicsGenerator,
    SigmaGenerator,
)
from evaluation_cases import Scaled, noise
from torch.utils.data import DataLoader, Subset

import deepinv_jitter as dj
from deepinv_jitter.evaluation.batches import Source
from deepinv_jitter.evaluation.cache import _digest as digest

ERROR = "squared error"


class Measurements(torch.nn.Module):
    """What the physics makes of the image that it makes of the measurements."""

    def forward(self, y, physics):
        return physics.A_adjoint(y)


def evaluate(data, physics, model=None, **kwargs):
    kwargs = {"epsilons": [], "metrics": {}, "verbose": False} | kwargs
    with warnings.catch_warnings():
        # What the host says of datasets in its old formats is not of interest here
        warnings.simplefilter("ignore")
        return dj.evaluate_robustness(model or Measurements(), data, physics, **kwargs)


def errors(*args, **kwargs):
    return evaluate(*args, **kwargs).values["clean"][ERROR]


def images(count, *shape):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


# Parameters that come with the batches

W = torch.tensor([0.2, 0.5, 1.0, 0.5, 0.2])
MASKS = (torch.arange(5 * 64).reshape(5, 1, 8, 8) % 7 < 4).float()
FILTERS = images(5, 1, 3, 3)
SIGMA = torch.linspace(0.1, 0.5, 5)
VECTOR_NOISE = noise(torch.tensor([0.1]))
# physics, size of an image, parameters of all samples together, names of those each has its own of
PARAMETERS = {
    "wavelet": (dj.SeismicConvolution, (1, 16, 6), {"wavelet": W}, ()),
    "wavelet and sigma": (
        lambda: dj.SeismicConvolution(noise_model=noise()),
        (1, 16, 6),
        {"wavelet": W, "sigma": SIGMA},
        ("sigma",),
    ),
    "sigma of shape ()": (
        lambda: dinv.physics.Denoising(noise()),
        (5,),
        {"sigma": SIGMA},
        ("sigma",),
    ),
    "sigma of shape (1,)": (
        lambda: dinv.physics.Denoising(VECTOR_NOISE),
        (1, 5, 5),
        {"sigma": SIGMA},
        ("sigma",),
    ),
    "one sigma": (lambda: dinv.physics.Denoising(noise()), (5,), {"sigma": torch.tensor(0.3)}, ()),
    "masks": (
        lambda: dinv.physics.Inpainting((1, 8, 8), mask=MASKS[0]),
        (1, 8, 8),
        {"mask": MASKS},
        ("mask",),
    ),
    "masks never set": (
        lambda: dinv.physics.Inpainting((1, 8, 8)),
        (1, 8, 8),
        {"mask": MASKS},
        ("mask",),
    ),
    "masks and sigma": (
        lambda: dj.SingleCoilMRI(img_size=(8, 8), noise_model=noise()),
        (2, 8, 8),
        {"mask": MASKS, "sigma": SIGMA},
        ("mask", "sigma"),
    ),
    "a mask as high as the batch is long": (
        lambda: dj.SingleCoilMRI(img_size=(5, 8)),
        (2, 5, 8),
        {"mask": MASKS[0, 0, :5]},
        (),
    ),
    "a mask as wide as the batch is long": (
        lambda: dj.SingleCoilMRI(img_size=(8, 5)),
        (2, 8, 5),
        {"mask": torch.tensor([1.0, 0, 1, 1, 0])},
        (),
    ),
    "filters": (
        lambda: dinv.physics.Blur(padding="circular"),
        (1, 8, 8),
        {"filter": FILTERS},
        ("filter",),
    ),
    "filters of BlurFFT": (
        lambda: dinv.physics.BlurFFT((1, 8, 8)),
        (1, 8, 8),
        {"filter": FILTERS},
        ("filter",),
    ),
    "one filter": (lambda: dinv.physics.BlurFFT((1, 8, 8)), (1, 8, 8), {"filter": FILTERS[:1]}, ()),
}


def one_by_one(batch, own):
    return [
        {
            name: (
                {k: v[i : i + 1] if k in own else v for k, v in value.items()}
                if name == "params"
                else value[i : i + 1]
            )
            for name, value in batch.items()
        }
        for i in range(len(batch["x"]))
    ]


@pytest.mark.parametrize("given", [False, True], ids=["x", "x and y"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_the_physics_knows_whose_a_parameter_is(name, given):
    build, size, params, own = PARAMETERS[name]
    batch = {"x": images(5, *size), "params": params}
    if given:
        batch["y"] = build()(batch["x"], **params)
    together = evaluate([batch], build())
    alone = evaluate(one_by_one(batch, own), build())
    assert together.digests == alone.digests
    for i in range(5):
        a, b = (r.values["clean"][ERROR][i] for r in (together, alone))
        assert a > 0 and a == pytest.approx(b.item(), rel=1e-4)


def test_a_wavelet_as_long_as_the_batch():
    x, physics = torch.randn(5, 1, 16, 6), dj.SeismicConvolution()
    physics.update(wavelet=W)
    expected = (physics(x) - x).double().square().flatten(1).sum(1)
    for count in (4, 5):
        data = [{"x": x[:count], "params": {"wavelet": W}}]
        found = errors(data, dj.SeismicConvolution(), Scaled())
        assert torch.allclose(found, expected[:count], rtol=1e-4)


def test_loaders_collate_the_parameters_of_samples():
    """One mask for each sample becomes one for each in the batch."""
    x = images(5, 2, 8, 8)
    data = dinv.datasets.TensorDataset(x=x, params={"mask": MASKS}, use_dict_output=True)
    physics = dj.SingleCoilMRI(img_size=(8, 8), noise_model=noise())
    reports = [evaluate(DataLoader(data, batch_size=b), physics) for b in (1, 2, 5)]
    for report in reports[1:]:
        assert report.digests == reports[0].digests
        a, b = (r.values["clean"][ERROR] for r in (report, reports[0]))
        assert torch.allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("given", [False, True], ids=["x", "x and y"])
def test_masks_that_belong_to_other_samples_are_refused(given):
    x = images(1, 2, 8, 8)
    batch = {"x": x, "params": {"mask": MASKS[:3]}} | ({"y": x} if given else {})
    for physics in (dj.SingleCoilMRI(img_size=(8, 8)), dinv.physics.MRI(img_size=(8, 8))):
        with pytest.raises(
            ValueError,
            match=r"one by one.* got \(3, 2, 8, 8\) for one|of the 1 images, got 3 masks",
        ):
            evaluate([batch], physics)


@pytest.mark.parametrize("given", [False, True], ids=["x", "x and y"])
def test_what_an_earlier_batch_has_set_is_not_used(given):
    """Neither that of a training before, nor that of the batch before."""
    x = images(5, 2, 8, 8)
    physics = dj.SingleCoilMRI(img_size=(8, 8), noise_model=noise())
    y = {"y": physics(x)} if given else {}
    masked = {"x": x, "params": {"mask": MASKS}} | y
    plain = {"x": x} | y
    own = errors([plain, plain], physics)[5:]
    assert torch.equal(errors([masked, plain], physics)[5:], own)
    physics.update(mask=MASKS)
    with pytest.raises(ValueError, match="1 images, got 5 masks: .* by a physics_generator"):
        evaluate([plain], physics)
    physics = dinv.physics.Denoising(noise())
    physics.update(sigma=SIGMA)
    with pytest.raises(ValueError, match="give its parameters with the batches"):
        evaluate([plain], physics)


# Parameters that were never set, or are drawn

UNSET = {
    "filter": lambda: dinv.physics.BlurFFT((1, 8, 8), noise_model=noise()),
    "mask": lambda: dinv.physics.Inpainting((1, 8, 8), noise_model=noise()),
    "filters": lambda: dinv.physics.SpaceVaryingBlur(noise_model=noise()),
}


@pytest.mark.parametrize("name", UNSET)
@pytest.mark.parametrize("given", [False, True], ids=["x", "x and y"])
@pytest.mark.parametrize("params", [{}, {"sigma": torch.tensor(0.1)}])
def test_parameters_that_were_never_set(name, given, params):
    x = images(2, 1, 8, 8)
    batch = {"x": x, "params": params} | ({"y": x} if given else {})
    with pytest.raises(ValueError, match=f"{name}.* was never set: give physics_gen"):
        evaluate([batch], UNSET[name]())


def test_parameters_that_the_physics_has_not_are_refused():
    """A noise level for a physics without noise would be ignored, also beside a known parameter."""
    x, physics = images(2, 1, 8, 8), dinv.physics.Denoising(dinv.physics.ZeroNoise())
    message = r"none of the parameters \['sigma'\], which would be ignored"
    with pytest.raises(ValueError, match=message):
        evaluate([x], physics, physics_generator=SigmaGenerator(rng=rng()))
    batch = {"x": x, "params": {"sigma": torch.tensor(0.1)}}
    with pytest.raises(ValueError, match=message):
        evaluate([batch], physics)
    masked = {"x": x, "params": {"mask": MASKS[:2], "sigma": torch.tensor(0.1)}}
    with pytest.raises(ValueError, match=message):
        evaluate([masked], dinv.physics.Inpainting((1, 8, 8), mask=MASKS[0]))
    # Where nothing is measured, they may be there for other readers
    assert evaluate([batch | {"y": x}], physics).digests


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture():
    """Its choice is drawn from a generator of its own, which no seed of a step reaches."""
    kinds = [BernoulliSplittingMaskGenerator((2, 8, 8), ratio, rng=rng()) for ratio in (0.3, 0.7)]
    return GeneratorMixture(kinds, [0.5, 0.5], rng=rng())


def rngs(generator):
    """The generators of a physics generator, and of those that it mixes."""
    parts = [generator, *getattr(generator, "generators", [])]
    if generator.step_func.__closure__:  # a sum
        parts += [cell.cell_contents for cell in generator.step_func.__closure__]
    return [p.rng for p in parts]


class OwnGenerator(PhysicsGenerator):
    """As a user would write it, with the global generators."""

    def step(self, batch_size=1, seed=None, **kwargs):
        import numpy as np

        sigma = torch.rand(batch_size) + torch.from_numpy(np.random.rand(batch_size))
        return {"sigma": sigma.float()}


# physics and generator
DRAWN = {
    "mask": (
        lambda: dj.SingleCoilMRI(img_size=(8, 8), noise_model=noise()),
        lambda: GaussianMaskGenerator((8, 8), 2, center_fraction=0.25, rng=rng()),
    ),
    "fastMRI": (
        lambda: dj.SingleCoilMRI(img_size=(8, 8)),
        lambda: dj.FastMRIMaskGenerator((8, 8), acceleration=2, center_fraction=0.2, seed=0),
    ),
    "mask and sigma": (
        lambda: dj.SingleCoilMRI(img_size=(8, 8), noise_model=noise()),
        lambda: (
            GaussianMaskGenerator((8, 8), 2, center_fraction=0.25, rng=rng())
            + SigmaGenerator(rng=rng())
        ),
    ),
    "sigma": (lambda: dinv.physics.Denoising(noise()), lambda: SigmaGenerator(rng=rng())),
    "filter": (
        lambda: dinv.physics.BlurFFT((2, 8, 8)),
        lambda: MotionBlurGenerator((3, 3), rng=rng()),
    ),
    "mixture and sigma": (
        lambda: dinv.physics.Inpainting((2, 8, 8), noise_model=noise()),
        lambda: mixture() + SigmaGenerator(rng=rng()),
    ),
    "mixture": (lambda: dinv.physics.Inpainting((2, 8, 8)), mixture),
    "downsampling": (
        lambda: dinv.physics.Downsampling((2, 8, 8), filter="bicubic"),
        lambda: DownsamplingGenerator(["bicubic", "bilinear"], [2], psf_size=(8, 8), rng=rng()),
    ),
    "own": (lambda: dinv.physics.Denoising(noise()), OwnGenerator),
}


@pytest.mark.parametrize("name", DRAWN)
def test_each_sample_has_parameters_of_its_own(name):
    physics, generator = (build() for build in DRAWN[name])
    x, options = images(5, 2, 8, 8), {"physics_generator": generator}
    generators = rngs(generator)
    before = [g.get_state() for g in generators]
    reports = [evaluate(list(x.split(b)), physics, **options) for b in (1, 2, 5)]
    assert all(map(torch.equal, before, [g.get_state() for g in generators]))
    for report in reports[1:]:
        assert report.digests == reports[0].digests
        a, b = (r.values["clean"][ERROR] for r in (report, reports[0]))
        assert torch.allclose(a, b, rtol=1e-4)
    same, other = (evaluate([x], physics, seed=seed, **options) for seed in (0, 1))
    assert same.digests == reports[0].digests
    assert same.digests != other.digests
    # One truth five times, under five physics
    found = errors([x[:1].expand(5, -1, -1, -1)], physics, **options)
    assert len(found.unique()) > 1


def test_drawn_parameters_are_those_of_the_physics():
    """What the model is given, sample by sample."""

    class Spy(torch.nn.Module):
        def forward(self, y, physics):
            seen.append(physics.mask.clone())
            return physics.A_adjoint(y)

    physics = dj.SingleCoilMRI(img_size=(8, 8))
    generator = dj.FastMRIMaskGenerator((8, 8), acceleration=2, center_fraction=0.2, seed=0)
    seen = []
    evaluate([images(5, 2, 8, 8)], physics, Spy(), physics_generator=generator)
    (masks,) = seen
    assert masks.shape == (5, 2, 8, 8) and len(masks.unique(dim=0)) > 1
    assert torch.equal(physics.mask, torch.ones(1, 2, 8, 8))


def test_after_training_the_mask_that_happens_to_be_set_does_not_count():
    physics, generator = (build() for build in DRAWN["mask"])
    x = images(4, 2, 8, 8)
    before = evaluate([x], physics, physics_generator=generator)
    for mask in (MASKS[:3], MASKS[:1]):
        physics.update(mask=mask)
        after = evaluate([x], physics, physics_generator=generator)
        assert torch.equal(after.values["clean"][ERROR], before.values["clean"][ERROR])
        assert all(row["difference"] == 0 for row in after.compare(before).rows)


class Uneven(PhysicsGenerator):
    def step(self, batch_size=1, seed=None, **kwargs):
        self.rng_manual_seed(seed)
        size = 3 + 2 * int(torch.randint(2, (), generator=self.rng))
        return {"filter": torch.ones(batch_size, 1, size, size)}


class Unbatched(PhysicsGenerator):
    def step(self, batch_size=1, seed=None, **kwargs):
        return {"sigma": torch.tensor(0.1)}


X = images(4, 1, 8, 8)
REFUSED = [
    ([(X, X)], SigmaGenerator(), "batches bring y, too: leave one of them out"),
    ([{"x": X, "params": {"sigma": SIGMA[:4]}}], SigmaGenerator(), "bring params, too"),
    ([X], Uneven(), r"'filter' in one shape .* got \[\(1, 1, 3, 3\), \(1, 1, 5, 5\)\]"),
    ([X], Unbatched(), r"'sigma' in one shape \(1, ...\) .* got \[\(\)\]: use batches of"),
]


@pytest.mark.parametrize("data, generator, message", REFUSED)
def test_generators_refused(data, generator, message):
    physics = dinv.physics.Blur(torch.ones(1, 1, 1, 1), "circular", noise_model=noise())
    with pytest.raises(ValueError, match=message):
        evaluate(data, physics, physics_generator=generator)


def test_a_generator_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="must be a deepinv PhysicsGenerator, got dict"):
        evaluate([X], dinv.physics.Denoising(noise()), physics_generator={})


def test_networks_side_by_side_have_the_same_parameters(tmp_path):
    """The numbers of each are those of a call of its own, also of several loaders, and resumed."""
    x, networks = images(5, 2, 8, 8), {"a": Measurements(), "b": Scaled()}
    physics = [dj.SingleCoilMRI(img_size=(8, 8), noise_model=noise()) for _ in range(2)]
    arguments = [[x[:2]], [x[2:]]], physics
    options = {"physics_generator": DRAWN["mask"][1](), "epsilons": 0.5, "draws": 2}
    options["attacks"] = dj.RandomAttack(dj.L2Ball(1.0), samples=3, objective="deviation")
    both = evaluate(*arguments, networks, state=tmp_path / "s", **options)
    again = evaluate(*arguments, networks, state=tmp_path / "s", **options)
    for name, network in networks.items():
        alone = evaluate(*arguments, network, **options)
        for report in (both.reports[name], again.reports[name]):
            assert report.digests == alone.digests
            assert list(report.metrics) == [ERROR, "objective"]
            for label, columns in alone.values.items():
                for column, values in columns.items():
                    found = report.values[label][column]
                    assert torch.equal(found.nan_to_num(7), values.nan_to_num(7))
    assert "objective, lower is better" in both.table()
    assert "objective: deviation" in both.table()


def test_stacked_physics_with_parameters_of_the_samples():
    """Drawn or given, and in batches of any size; those of other samples are refused."""

    def build():
        parts = [dj.SingleCoilMRI(img_size=(8, 8), noise_model=noise()) for _ in "ab"]
        return dinv.physics.stack(*parts)

    x, draw = images(5, 2, 8, 8), {"physics_generator": DRAWN["mask"][1]()}
    for options in ({}, draw):
        given = {} if options else {"params": {"mask": MASKS}}
        whole = evaluate([{"x": x} | given], build(), **options)
        batches = one_by_one({"x": x} | given, ("mask",))
        parts = evaluate(batches, build(), **options)
        assert whole.digests == parts.digests
        a, b = (r.values["clean"][ERROR] for r in (whole, parts))
        assert torch.allclose(a, b, rtol=1e-4) and (a > 0).all()
    y = dinv.utils.TensorList([x, x])
    for batch in ({"x": x[:1]}, {"x": x, "y": y}):
        parts = [dinv.physics.MRI(MASKS[:3], img_size=(8, 8)) for _ in "ab"]
        with pytest.raises(ValueError, match="one by one, as a tensor, got"):
            evaluate([batch], dinv.physics.stack(*parts))


def test_noise_levels_reach_the_parts_of_stacked_physics():
    """Although its update() reaches no noise model of them."""
    levels = torch.tensor([0.1, 5.0])
    parts = [dinv.physics.Denoising(noise()) for _ in "ab"]
    batch = {"x": torch.zeros(2, 1, 32, 32), "params": {"sigma": levels}}
    options = {"epsilons": [1.0], "relative_to": "noise", "attacks": "quick", "draws": 1}
    report = evaluate([batch], dinv.physics.stack(*parts), **options)
    radii = report.values["worst case, eps=1"]["radius"]
    assert torch.allclose(radii.float(), levels * math.sqrt(2 * 32 * 32))
    # Of the sum of two measurements
    variances = report.values["clean"][ERROR] / (32 * 32)
    assert torch.allclose(variances.float(), 2 * levels**2, rtol=0.2)


# Several loaders


def test_lists_pair_as_in_a_trainer():
    x = images(7, 2, 8, 8)
    physics = [dj.SingleCoilMRI(MASKS[i, 0], noise_model=noise(0.2)) for i in range(2)]
    sigma = [None, SigmaGenerator(rng=rng())]
    loaders = [DataLoader(x[:3], batch_size=2), DataLoader(x[3:], batch_size=2)]
    report = evaluate(
        loaders, physics, physics_generator=sigma, epsilons=0.1, attacks="quick", draws=2
    )
    first = errors(loaders[0], physics[0])
    assert len(report.digests) == 7
    assert torch.equal(report.values["clean"][ERROR][:3], first)
    # Numbers go on: the fourth sample is the fourth, wherever it lies
    whole = errors([x[:3], x[3:]], physics[1], physics_generator=sigma[1])
    assert torch.allclose(report.values["clean"][ERROR][3:], whole[3:], rtol=1e-4)
    one_physics = errors(loaders, physics[0])
    assert torch.allclose(one_physics, errors([x], physics[0]), rtol=1e-4)


@pytest.mark.parametrize("shared", ["physics", "noise model"])
def test_loaders_of_one_physics_do_not_share_the_parameters_of_samples(shared):
    first = dinv.physics.Denoising(noise(0.1))
    second = first if shared == "physics" else dinv.physics.Denoising(first.noise_model)
    x = images(2, 1, 8, 8)
    loaders = [[{"x": x[:1], "params": {"sigma": torch.tensor([0.5])}}], [x[1:]]]
    report = evaluate(loaders, [first, second], epsilons=1, attacks="quick", draws=2)
    levels = 1 / (8 * report.values["worst case, eps=1"]["radius/|noise|"])
    assert torch.allclose(levels, torch.tensor([0.5, 0.1]).double())


def test_samples_that_lack_a_score_are_left_out_of_it():
    """Images too small for the window of SSIM beside larger ones, physics that is not linear."""
    nonlinear = dinv.physics.Physics(A=lambda x, **kwargs: x**2)
    physics = [dinv.physics.Denoising(noise()), nonlinear]
    loaders = [DataLoader(images(2, 1, 16, 16)), DataLoader(images(3, 1, 8, 8))]
    attack = dj.RandomAttack(dj.L2Ball(1.0), samples=2, checks=False)
    report = evaluate(
        loaders, physics, Scaled(), metrics=None, epsilons=0.1, attacks=attack, draws=2
    )
    clean, worst = report.values["clean"], report.values["worst case, eps=0.1"]
    assert clean["SSIM"].isnan().tolist() == [False] * 2 + [True] * 3
    assert clean["PSNR"].isfinite().all()
    assert worst["|A'dy|"].isnan().tolist() == [False] * 2 + [True] * 3
    assert report.flags["SSIM undefined"]["clean"] == 3
    (row,) = [r for r in report.summary() if (r["metric"], r["condition"]) == ("SSIM", "clean")]
    assert row["mean"] == pytest.approx(clean["SSIM"][:2].mean().item())


PHYSICS = dinv.physics.Denoising(noise())
PAIRS = [
    ([X, X], [PHYSICS] * 3, None, ValueError, "lists of one length, got 2, 3 and 3"),
    ([X], [PHYSICS], [None, None], ValueError, "lists of one length, got 1, 1 and 2"),
    ([DataLoader(X)] * 2, PHYSICS, [None], ValueError, "got 2, 2 and 1"),
    (DataLoader(X), [PHYSICS] * 2, None, ValueError, "got 1, 2 and 2"),
    ([[X], 3], [PHYSICS] * 2, None, TypeError, "dataloader must be iterable, got int"),
    ([[X]], [None], None, TypeError, "physics must be a deepinv Physics, got NoneType"),
    ([[X], []], [PHYSICS] * 2, None, ValueError, "at least one batch, got none"),
]


@pytest.mark.parametrize("loaders, physics, generators, error, message", PAIRS)
def test_lists_refused(loaders, physics, generators, error, message):
    with pytest.raises(error, match=message):
        evaluate(loaders, physics, Scaled(), physics_generator=generators)


# Measurements of any kind


def test_filtered_downsampling(tmp_path):
    """Its buffers are conjugate views, and so may measurements be."""
    physics = dinv.physics.Downsampling((1, 16, 16), filter="bicubic", factor=2)
    x, state = images(3, 1, 16, 16), tmp_path / "state"
    options = {"epsilons": 0.5, "attacks": "quick", "draws": 2, "state": state}
    report = evaluate([x], physics, **options)
    again = evaluate([x], physics, **options)
    assert torch.equal(report.values["clean"][ERROR], again.values["clean"][ERROR])


def test_conjugate_negative_and_strided_measurements():
    x = torch.complex(images(3, 1, 4, 4), images(3, 1, 4, 4) - 0.5)
    views = {
        "conjugate": x.conj(),
        "strided": x.repeat_interleave(2, dim=-1)[..., ::2],
        "transposed": x.mT.contiguous().mT,
    }
    physics = dinv.physics.Denoising(noise())
    for view in views.values():
        plain = view.resolve_conj().clone(memory_format=torch.contiguous_format)
        a, b = (evaluate([(x, y)], physics, Scaled()) for y in (view, plain))
        assert a.digests == b.digests
    imaginary = x.conj().imag
    assert imaginary.is_neg()
    a, b = (evaluate([(y, y)], physics, Scaled()) for y in (imaginary, imaginary.resolve_neg()))
    assert a.digests == b.digests


def test_complex_measurements_and_noise(tmp_path):
    """Attacked, resumed and scored as the same numbers in two channels."""
    x = torch.complex(images(3, 1, 16, 16), images(3, 1, 16, 16) - 0.5)
    physics = dinv.physics.Denoising(noise(0.3))
    y = physics(x)
    assert y.is_complex()
    options = {"epsilons": [0.5, 1.0], "attacks": "quick", "relative_to": "noise"}
    magnitudes = [metric(complex_abs=True) for metric in (dinv.metric.PSNR, dinv.metric.SSIM)]
    options |= {"metrics": magnitudes, "model": Scaled(), "draws": 2}
    report = evaluate([(x, y)], physics, state=tmp_path / "s", **options)
    pairs = [torch.cat([v.real, v.imag], dim=1) for v in (x, y)]
    real = evaluate([tuple(pairs)], physics, **options)
    for name in ("PSNR", "SSIM", ERROR):
        a, b = (r.values["clean"][name] for r in (report, real))
        assert torch.allclose(a, b, rtol=1e-4), name
    worst = report.values["worst case, eps=1"]
    # Complex noise of standard deviation sigma has it in modulus, not in each part
    assert torch.allclose(worst["|delta|"], torch.tensor(0.3 * 16.0).double(), rtol=1e-3)
    assert evaluate([x], physics, **options).values["clean"][ERROR].isfinite().all()
    mean = errors([torch.zeros(1, 1, 64, 64, dtype=x.dtype)], physics, Scaled())
    assert mean.item() == pytest.approx(0.3**2 * 64 * 64, rel=0.1)


def test_nan_is_never_a_digest_of_another():
    assert not math.isnan(errors([X], PHYSICS).sum())


def test_the_digest_of_a_list_is_of_all_that_its_tensors_hold():
    """Of large ones, whose text leaves out the middle."""
    a, b = torch.zeros(2, 1000, 10)
    b[500] = 1
    assert digest([a]) == digest([a.clone()]) != digest([b])


class Matrix(dinv.physics.LinearPhysics):
    """A sparse matrix, as of rays through an image."""

    def __init__(self, matrix):
        super().__init__(noise_model=noise())
        self.register_buffer("matrix", matrix)

    def A(self, x, **kwargs):
        return (self.matrix @ x.flatten(1).T).T

    def A_adjoint(self, y, **kwargs):
        return (self.matrix.to_dense().T @ y.T).T.reshape(-1, 1, 8, 8)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_physics_of_a_sparse_matrix(layout):
    matrix = torch.eye(64)
    matrix[:10, 5] = 0.5
    options = {"epsilons": [0.5], "attacks": "quick", "draws": 2}
    x, model = images(3, 1, 8, 8), Measurements()
    report = evaluate([x], Matrix(matrix.to_sparse(layout=layout)), model, **options)
    dense = evaluate([x], Matrix(matrix), model, **options)
    worst = "worst case, eps=0.5"
    assert torch.allclose(report.values[worst][ERROR], dense.values[worst][ERROR], rtol=1e-4)
    matrix[0, 5] = 0.7
    other = evaluate([x], Matrix(matrix.to_sparse(layout=layout)), model, **options)
    assert other.description["physics"] != report.description["physics"]


def test_subsets_of_data_sets_say_their_peak():
    data = dj.ReflectivityDataset(3, img_size=(32, 32))
    loader = DataLoader(Subset(data, [0, 1]), batch_size=2)
    physics = dj.SeismicConvolution(noise_model=noise())
    report = evaluate(loader, physics, metrics=None)
    assert report.description["peak"] == "2.0"


# Shares of several processes


class Read(torch.utils.data.Dataset):
    """Which samples were asked for."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 7

    def __getitem__(self, i):
        self.asked.append(i)
        return {"x": torch.full((1, 2), float(i))}


def doubled(samples):
    return {"x": torch.cat([sample["x"][None] for sample in samples for _ in range(2)])}


SOURCES = {
    "in order": lambda data: DataLoader(data, 2),
    "shuffled": lambda data: DataLoader(data, 2, shuffle=True),
    "generator": lambda data: DataLoader(
        data, 2, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "batch sampler": lambda data: DataLoader(data, batch_sampler=[[6, 1], [0], [2, 3, 4], [5]]),
    "list": lambda data: list(DataLoader(data, 2)),
}


@pytest.mark.parametrize("turns", [2, 3])
@pytest.mark.parametrize("name", SOURCES)
def test_processes_share_the_batches(name, turns):
    """They read their share alone, and get what a single process has, with its numbers."""

    def batches(first, turns):
        torch.manual_seed(0)
        data = Read()
        source = Source(SOURCES[name](data), dinv.physics.Denoising(), None)
        return data, [*source.batches(torch.device("cpu"), 0, first, turns)]

    _, whole = batches(0, 1)
    for first in range(turns):
        data, shared = batches(first, turns)
        assert [size for _, size in shared] == [size for _, size in whole]
        for number, (own, expected) in enumerate(zip(shared, whole, strict=True)):
            assert (own[0] is not None) == (number % turns == first)
            if own[0] is not None:
                assert torch.equal(own[0].x, expected[0].x) and own[0].start == expected[0].start
        if name != "list":
            read = torch.cat([own.x for own, _ in shared if own is not None])
            assert sorted(data.asked) == sorted(read[:, 0, 0].int().tolist())


def test_a_share_needs_a_sample_for_each_index():
    source = Source(DataLoader(Read(), 2, collate_fn=doubled), dinv.physics.Denoising(), None)
    with pytest.raises(ValueError, match="one sample for each index .* got 4 for 2: leave distrib"):
        next(source.batches(torch.device("cpu"), 0, 0, 2))


def test_what_has_no_index_is_read_in_whole():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return ({"x": torch.full((1, 2), float(i))} for i in range(5))

    source = Source(DataLoader(Stream(), 2), dinv.physics.Denoising(), None)
    shared = [*source.batches(torch.device("cpu"), 0, 1, 2)]
    assert [(batch is None, size) for batch, size in shared] == [(True, 2), (False, 2), (True, 1)]
