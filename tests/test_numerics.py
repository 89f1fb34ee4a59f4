"""Precision and determinism: half precision in training, double precision all through, seeds."""

import copy
import functools
import math

import deepinv as dinv
import numpy as np
import pytest
import torch
from algorithms import ALGORITHMS, ETA, SIZE, K, Network
from algorithms import physics as inpainting
from torch import nn
from torch.utils.data import DataLoader

import deepinv_jitter as dj

pytestmark = pytest.mark.filterwarnings("ignore:Trainer running with AMP")

# Training in half precision, and twice


NOISE = {"sigma": 0.1}
ATTACK = {"attack": dj.FrankWolfeAttack(dj.L2Ball(1.0), steps=2, keep="last")}
SCHEMES = {  # trainer, its options, model, jitter
    "MSE": (dj.JitterTrainer, {}, dj.UnfoldedGD, None),
    "SGD jittering": (dj.JitterTrainer, {}, dj.UnfoldedGD, 0.1),
    "SPGD jittering": (dj.JitterTrainer, {}, dj.UnfoldedPGD, 0.1),
    "input jittering": (dj.InputJitterTrainer, NOISE, dj.UnfoldedGD, None),
    "AT": (dj.AttackTrainer, ATTACK, dj.UnfoldedGD, None),
    "robust recipe": (dj.RobustTrainer, ATTACK | NOISE, dj.UnfoldedGD, None),
}


def seismic():
    return dj.SeismicConvolution(noise_model=dinv.physics.GaussianNoise(0.05)), 1


def mri():
    mask = (torch.arange(16) % 3 != 1).float()
    noise = dinv.physics.GaussianNoise(0.05)
    return dj.SingleCoilMRI(mask, img_size=(32, 16), noise_model=noise), 2


PROBLEMS = {"seismic": seismic, "mri": mri}
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
EPOCHS, STEPS = 3, 4
#: How far the last epoch's loss may be from that in single precision: three times the largest
#: distance of 8 seeds. Training without the noise of SGD jittering, for comparison, is 0.1 away.
DISTANCES = {"bf16": 0.009, "fp16": 0.003, "a step skipped": 0.14}


class Run:
    """A short training, with what one wants to know of it."""

    def __init__(self, scheme, problem, precision=False, seed=0, amplitude=1.0):
        kind, options, model, jitter = SCHEMES[scheme]
        torch.manual_seed(seed)
        physics, channels = PROBLEMS[problem]()
        data = dj.ReflectivityDataset(16, img_size=(32, 16), thickness=4)
        x = torch.zeros(16, channels, 32, 16)
        x[:, :1] = torch.stack([sample["x"] for sample in data])
        x = amplitude * x
        residual = model is dj.UnfoldedPGD
        network = dj.UnrolledDnCNN(channels, depth=3, width=8, residual=residual)
        # Not from zero, where the first gradients would reach the last layer alone
        nn.init.normal_(network.body[-1].weight, std=0.01)
        self.model = model(network, stepsize=0.5, max_iter=3, jitter=jitter)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.finite_steps, self.dtypes = [], set()
        # The gradient scaler of float16 does not call the optimizer where gradients overflow
        optimizer.register_step_pre_hook(lambda *_: self._before_step())
        network.body[0].register_forward_hook(self._record_dtype)
        y = physics(x)
        data = dinv.datasets.TensorDataset(x=x, y=y, use_dict_output=True)
        trainer = kind(
            self.model,
            physics,
            optimizer,
            DataLoader(data, batch_size=len(x) // STEPS, shuffle=True),
            epochs=EPOCHS,
            mixed_precision=precision,
            device="cpu",
            save_path=None,
            verbose=False,
            **options,
        )
        trainer.train()
        self.losses = trainer.loss_history["SupLoss"]

    def _before_step(self):
        gradients = [p.grad for p in self.model.parameters()]
        self.finite_steps.append(all(bool(g.isfinite().all()) for g in gradients))

    def _record_dtype(self, module, arguments, out):
        self.dtypes.add(out.dtype)


@functools.cache
def single(scheme, problem):
    """The run in single precision, under deterministic algorithms."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        return Run(scheme, problem)
    finally:
        torch.use_deterministic_algorithms(before)


def half_precision():
    """Why float16 cannot be tried on this machine, or None."""
    layer, x = nn.Conv2d(1, 4, 3), torch.randn(1, 1, 8, 8)
    try:
        with torch.autocast("cpu", torch.float16):
            out = layer(x)
        out.float().sum().backward()
    except RuntimeError as error:
        return f"no float16 convolution on this CPU: {error}"
    return None if out.dtype == torch.float16 else "no float16 autocast on this CPU"


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_in_half_precision(scheme, problem, precision):
    """Finite all through, and about where training in single precision gets with the same seed."""
    if precision == "fp16" and (reason := half_precision()):
        pytest.skip(reason)
    full, run = single(scheme, problem), Run(scheme, problem, precision)
    assert full.dtypes == {torch.float32} and run.dtypes == {HALF[precision]}
    assert all(run.finite_steps) and all(map(math.isfinite, run.losses))
    assert all(p.isfinite().all() for p in run.model.parameters())
    skipped = EPOCHS * STEPS - len(run.finite_steps)
    assert skipped <= (precision == "fp16")
    bound = DISTANCES["a step skipped" if skipped else precision]
    assert abs(run.losses[-1] / full.losses[-1] - 1) < bound


def test_overflowing_gradients_in_float16_are_left_out():
    """The scale of the loss falls until they fit; the weights see none of them."""
    if reason := half_precision():
        pytest.skip(reason)
    run = Run("MSE", "seismic", "fp16", amplitude=300.0)
    assert 0 < len(run.finite_steps) < EPOCHS * STEPS and all(run.finite_steps)
    assert all(p.isfinite().all() for p in run.model.parameters())
    assert run.losses[-1] < run.losses[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_seed_trains_the_same_network(scheme):
    """Bit for bit, with deterministic algorithms, which raise where there are none."""
    first, second = single(scheme, "seismic"), single.__wrapped__(scheme, "seismic")
    assert first.losses == second.losses
    for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)


# Double precision: a case is a computation of the library in a given precision, from the same
# numbers, and the same by other means in double precision


def numbers(*shape, seed=1):
    """Random numbers that single precision does not hold."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def convolved(x, taps):
    traces = np.apply_along_axis(np.convolve, 2, x.numpy(), taps.numpy(), "same")
    return torch.from_numpy(traces)


def fourier(x, mask, inverse=False):
    """The centred transform of two real channels, then the mask; or the adjoint of both."""
    z = x[:, 0].numpy() + 1j * x[:, 1].numpy()
    z = np.fft.ifftshift(mask.numpy() * z if inverse else z, (1, 2))
    z = (np.fft.ifft2 if inverse else np.fft.fft2)(z, norm="ortho")
    z = np.fft.fftshift(z, (1, 2)) * (1 if inverse else mask.numpy())
    return torch.from_numpy(np.stack([z.real, z.imag], 1))


def operators():
    taps, columns = numbers(9), torch.tensor([0.0, 1, 1, 0, 1])
    scattered = (numbers(6, 5, seed=2) > 0).float()
    for samples in (40, 600):  # the whole matrix, and blocks of its band
        x = numbers(2, 1, samples, 3)
        build = functools.partial(dj.SeismicConvolution, taps, normalize=False)
        forward, adjoint = convolved(x, taps), convolved(x, taps.flip(0))
        normal = convolved(forward, taps.flip(0))
        yield f"sections of {samples}", build, x, (forward, adjoint, normal)
    for name, mask in {"columns": columns, "scattered mask": scattered}.items():
        x = numbers(2, 2, 6, 5)
        build = functools.partial(dj.SingleCoilMRI, mask, img_size=(6, 5))
        forward, adjoint = fourier(x, mask), fourier(x, mask, inverse=True)
        normal = fourier(forward, mask, inverse=True)
        yield f"MRI, {name}", build, x, (forward, adjoint, normal)


def physics_cases():
    for name, build, x, expected in operators():
        for call, value in zip(("A", "A_adjoint", "A_adjoint_A"), expected):

            def compute(dtype, build=build, x=x, call=call):
                return getattr(build().to(dtype), call)(x.to(dtype))

            yield f"{name}: {call}", (compute, lambda value=value: value)
    t = torch.arange(-4, 5, dtype=torch.float64) / 2.3
    yield (
        "ricker wavelet",
        (lambda d: dj.ricker(9, 2.3, dtype=d), lambda: (1 - t**2) * torch.exp(-(t**2) / 2)),
    )


def with_numbers(network):
    """The network in double precision, with weights that single precision does not hold."""
    with torch.no_grad():
        for i, p in enumerate(network.double().parameters()):
            p.copy_(0.3 * numbers(*p.shape, seed=i))
    return network


def at(module, dtype):
    return copy.deepcopy(module).to(dtype)


def layer_by_layer(layers, x):
    """A network by numpy: linear layers, convolutions of size 3, group normalisation, ReLU."""
    x = x.numpy()
    for layer in layers:
        p = {name: value.detach().numpy() for name, value in layer.named_parameters()}
        if isinstance(layer, nn.ReLU):
            x = np.maximum(x, 0)
        elif isinstance(layer, nn.Linear):
            x = x @ p["weight"].T + p["bias"]
        elif isinstance(layer, nn.Conv2d):
            padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
            x = np.einsum("bihwkl,oikl->bohw", windows, p["weight"])
            x = x + p.get("bias", np.zeros(1))[:, None, None]
        else:
            groups = x.reshape(len(x), layer.num_groups, -1)
            mean, var = groups.mean(2, keepdims=True), groups.var(2, keepdims=True)
            x = ((groups - mean) / np.sqrt(var + layer.eps)).reshape(x.shape)
            x = x * p["weight"][:, None, None] + p["bias"][:, None, None]
    return torch.from_numpy(x)


def network_cases():
    points, x, y = numbers(4, 2), numbers(2, 1, 7, 5), numbers(2, 1, 7, 5, seed=2)
    size = {"depth": 3, "width": 4, "groups": 2}
    mlp = with_numbers(dj.PointMLP(hidden=8))
    plain = with_numbers(dj.UnrolledDnCNN(1, residual=True, **size))
    of_both = with_numbers(dj.UnrolledDnCNN(1, condition_channels=1, **size))
    yield "PointMLP", (lambda d: at(mlp, d)(points.to(d)), lambda: layer_by_layer(mlp, points))
    yield (
        "UnrolledDnCNN, residual",
        (lambda d: at(plain, d)(x.to(d)), lambda: x - layer_by_layer(plain.body, x)),
    )
    yield (
        "UnrolledDnCNN of x and y",
        (
            lambda d: at(of_both, d)(x.to(d), y.to(d)),
            lambda: layer_by_layer(of_both.body, torch.cat([x, y], 1)),
        ),
    )


class GivenNoise(dj.GaussianJitter):
    """Noise that is the same in every precision."""

    def __call__(self, x, k=0, data_step=None):
        return self.sigma_at(k) * numbers(*x.shape, seed=k).to(x)


def iterator_cases():
    """Jittered iterations: eq. (8), eq. (12) and their extensions."""
    y, network = numbers(2, *SIZE), with_numbers(Network())
    noise = [0.3 * numbers(*y.shape, seed=k) for k in range(K)]
    for name, algorithm in ALGORITHMS.items():

        def compute(dtype, algorithm=algorithm):
            model = algorithm.build(dtype, at(network, dtype))
            with torch.no_grad():  # a number of single precision in the host
                model.init_params_algo["stepsize"][0].fill_(ETA)
            model = dj.jitter(model, GivenNoise(0.3))
            return model(y.to(dtype), inpainting(dtype)).detach()

        yield (
            f"jittered {name}",
            (
                compute,
                lambda algorithm=algorithm: algorithm.reference(
                    y, inpainting(), network, noise
                ).detach(),
            ),
        )


def model_cases():
    """Unfolded networks on sections, whose data fidelity is given A^T y."""
    taps, y = numbers(9), numbers(2, 1, 20, 3)
    network = with_numbers(Network())
    steps = [0.31, 0.17, 0.23]

    def descended(proximal):
        back = taps.flip(0)
        x = adjoint = convolved(y, back)
        for eta in steps:
            g = convolved(convolved(x, taps), back) - adjoint
            with torch.no_grad():
                x = network(x - eta * g) if proximal else x - eta * (g + network(x))
        return x

    for model in (dj.UnfoldedGD, dj.UnfoldedPGD):

        def compute(dtype, model=model):
            physics = dj.SeismicConvolution(taps, normalize=False).to(dtype)
            unfolded = model(at(network, dtype), stepsize=steps, max_iter=3, trainable_params=[])
            return unfolded(y.to(dtype), physics).detach()

        proximal = model is dj.UnfoldedPGD
        yield model.__name__, (compute, functools.partial(descended, proximal))


class Matrix(nn.Module):
    """A linear reconstruction."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.5 * numbers(6, 6, seed=5))

    def forward(self, y, physics):
        return y @ self.weight.T


X, Y = numbers(3, 6, seed=3), numbers(3, 6, seed=4)
W = Matrix().weight.detach()
EPS, ONES = 0.1, torch.ones(3, dtype=torch.float64)


def gradient(delta):
    return 2 * ((Y + delta) @ W.T - X) @ W


def unit(v):
    return v / v.norm(dim=1, keepdim=True)


def clipped(v):
    return v * (EPS / v.norm(dim=1, keepdim=True)).clamp(max=1)


def ascended():
    delta = torch.zeros_like(Y)
    for _ in range(5):
        delta = clipped(delta + 0.3 * EPS * unit(gradient(delta)))
    return delta


def powered():
    d = gradient(torch.zeros_like(Y))
    for _ in range(2):
        d = 0.6 * gradient(EPS * unit(d)) + 0.4 * d
    return EPS * unit(d)


def worst_of_random(samples):
    """By error; the directions are drawn in single precision whatever the data's is."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(6, generator=generator).double() for _ in range(samples)]
    deltas = [EPS * d.expand(3, 6) / d.norm() for d in draws]
    deltas = torch.stack([torch.zeros_like(Y), *deltas])
    errors = ((Y + deltas) @ W.T - X).square().sum(2)
    return deltas[errors.argmax(0), torch.arange(3)]


def attack_cases():
    ball = dj.L2Ball(EPS)
    attacks = {
        "PGDAttack": (dj.PGDAttack(ball, steps=5, rel_step=0.3, keep="last"), ascended),
        "FrankWolfeAttack": (dj.FrankWolfeAttack(ball, keep="last"), powered),
        "APGDAttack, a step": (
            dj.APGDAttack(ball, steps=1, keep="last"),
            lambda: EPS * unit(gradient(torch.zeros_like(Y))),
        ),
        "RandomAttack": (dj.RandomAttack(ball, samples=9), lambda: worst_of_random(9)),
        "WorstCase": (
            dj.WorstCase([dj.RandomAttack(ball, samples=2), dj.FrankWolfeAttack(ball)]),
            powered,
        ),
    }
    physics = dinv.physics.Denoising()
    for name, (attack, reference) in attacks.items():

        def run(dtype, attack=attack):
            tensors = (t.to(dtype) for t in (X, Y))
            return attack.run(at(Matrix(), dtype), *tensors, physics)

        def error(reference=reference):
            return ((Y + reference()) @ W.T - X).square().sum(1)

        yield name, (lambda d, run=run: run(d).delta, reference)
        yield f"{name}: its loss", (lambda d, run=run: run(d).loss, error)


def budget_cases():
    v, radius = 3 * numbers(3, 6, seed=6), EPS * ONES
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.23)).double()
    sigma = physics.noise_model.sigma.item()
    draw = torch.randn(6, generator=torch.Generator().manual_seed(2)).double()
    peak = v.abs().amax(1)
    expected = {
        dj.L2Ball: {
            "norm": v.norm(dim=1),
            "relative to y": EPS * v.norm(dim=1),
            "relative to noise": EPS * sigma * math.sqrt(6) * ONES,
            "project": clipped(v),
            "steepest": EPS * unit(v),
            "sphere": (EPS * draw / draw.norm()).expand(3, 6),
            "gaussian": (EPS * draw / math.sqrt(6)).expand(3, 6),
        },
        dj.LinfBall: {
            "norm": peak,
            "relative to y": EPS * peak,
            "relative to noise": EPS * sigma * ONES,
            "project": v.clamp(-EPS, EPS),
            "steepest": EPS * v.sign(),
            "sphere": (EPS * draw.sign()).expand(3, 6),
            "gaussian": (EPS * draw).clamp(-EPS, EPS).expand(3, 6),
        },
    }
    for ball, values in expected.items():
        values |= {"absolute": radius}

        def compute(dtype, what, ball=ball):
            tensor, eps = v.to(dtype), radius.to(dtype)
            if what in ("sphere", "gaussian"):
                generator = torch.Generator().manual_seed(2)
                return ball(EPS).random(tensor, eps, generator, what)
            if what in ("absolute", "relative to y", "relative to noise"):
                unit = {"absolute": None}.get(what, what.split()[-1])
                return ball(EPS, relative_to=unit).radii(tensor, at(physics, dtype))
            if what == "norm":
                return ball(EPS).norm(tensor)
            return getattr(ball(EPS), what)(tensor, eps)

        for what, value in values.items():
            yield (
                f"{ball.__name__}: {what}",
                (functools.partial(compute, what=what), lambda value=value: value),
            )


def disc(contrast):
    """A lesion of radius 3 in the middle of 7 x 7."""
    r = (torch.arange(7).double() - 3).square()
    ramp = (2 - 2 * (r[:, None] + r).sqrt() / 3).clamp(0, 1)
    return contrast * torch.sin(math.pi / 2 * ramp) ** 2


def shift_cases():
    x, x_net, other = (numbers(2, 2, 7, 7, seed=k) for k in range(3))
    real = x[:, :1]
    layer = torch.zeros(7, 7, dtype=torch.float64)
    layer[2, 1:4] = 0.1
    magnitude = x.norm(dim=1, keepdim=True)
    grown = x + disc(-0.3).maximum(-magnitude) * x / magnitude
    edits = {
        "Bias": (dj.Bias(0.1), x, x + 0.1),
        "HorizontalLayer": (dj.HorizontalLayer(0.1, length=3, position=(2, 1)), real, real + layer),
        "Lesion": (dj.Lesion(3, 0.1, position=(3, 3)), real, real + disc(0.1)),
        "Lesion, complex": (dj.Lesion(3, -0.3, position=(3, 3)), x, grown),
    }
    for name, (shift, truth, edited) in edits.items():
        yield (
            name,
            (
                lambda d, shift=shift, truth=truth: shift(truth.to(d))[0],
                lambda edited=edited: edited,
            ),
        )
    region = disc(1.0) > 0
    d, change = (grown - x).flatten(1), (other - x_net).flatten(1)
    yield (
        "contrast_recovery",
        (
            lambda t: dj.contrast_recovery(*(v.to(t) for v in (other, x_net, grown, x))),
            lambda: (change * d).sum(1) / d.square().sum(1),
        ),
    )
    yield (
        "error_outside",
        (
            lambda t: dj.error_outside(other.to(t), x.to(t), region),
            lambda: (other - x)[..., ~region].square().flatten(1).mean(1).sqrt(),
        ),
    )


def similarity(a, b):
    """SSIM of two images: windows of 11 pixels, weighted by a Gaussian of 1.5, all pixels."""
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    g /= g.sum()

    def mean(v):
        padded = np.pad(v, 5, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (11, 11))
        return np.einsum("hwkl,k,l->hw", windows, g, g)

    c1, c2 = 0.01**2, 0.03**2
    p, q = mean(a), mean(b)
    variances = mean(a * a) - p * p + mean(b * b) - q * q
    covariance = mean(a * b) - p * q
    ratios = (2 * p * q + c1) * (2 * covariance + c2)
    return (ratios / ((p * p + q * q + c1) * (variances + c2))).mean()


def metric_cases():
    x, x_net = (0.5 + 0.5 * numbers(2, 2, 20, 17, seed=k) for k in range(2))
    a, b = (v[:, 0].clamp(0, 1).numpy() for v in (x_net, x))
    errors = ((a - b) ** 2).mean((1, 2))
    similarities = [similarity(p, q) for p, q in zip(a, b, strict=True)]
    expected = {dj.PaperPSNR(): -10 * np.log10(errors), dj.PaperSSIM(): similarities}
    for metric, values in expected.items():
        yield (
            type(metric).__name__,
            (
                lambda d, metric=metric: metric(x_net.to(d), x.to(d)),
                lambda values=values: torch.as_tensor(np.array(values)),
            ),
        )


CASES = dict(
    case
    for cases in (
        physics_cases,
        network_cases,
        iterator_cases,
        model_cases,
        attack_cases,
        budget_cases,
        shift_cases,
        metric_cases,
    )
    for case in cases()
)


@pytest.mark.parametrize("case", CASES)
def test_double_precision_is_double_all_through(case):
    """To 1e-12 its equation, where single precision is near but not there."""
    compute, reference = CASES[case]
    double, single, expected = (compute(torch.float64), compute(torch.float32), reference())
    assert double.dtype == torch.float64 and single.dtype == torch.float32
    assert double.shape == single.shape == expected.shape
    size = expected.abs().max().item()
    assert (double - expected).abs().max() <= 1e-12 * size
    assert 0 < (single.double() - expected).abs().max() <= 1e-4 * size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_evaluation_in_double_precision(dtype):
    """Every column of the report, on a linear model of which all is known."""
    shift = dj.Bias(0.3)
    report = dj.evaluate_robustness(
        at(Matrix(), dtype),
        [{"x": X.to(dtype), "y": Y.to(dtype)}],
        dinv.physics.Denoising(),
        epsilons=[EPS],
        attacks=dj.FrankWolfeAttack(dj.L2Ball(1.0), steps=1),
        shifts=shift,
        draws=2,
        verbose=False,
    )
    worst = EPS * unit(gradient(torch.zeros_like(Y)))
    radius = EPS * ONES
    d = torch.full_like(X, 0.3)

    def error(delta, x=X):
        return ((Y + delta) @ W.T - x).square().sum(1)

    attacked = f"worst case, eps={EPS:g}"
    expected = {
        ("clean", "squared error"): error(0),
        (attacked, "squared error"): error(worst),
        (attacked, "radius"): radius,
        (attacked, "|delta|"): radius,
        (attacked, "radius/|y|"): radius / Y.norm(dim=1),
        (repr(shift), "squared error"): error(d, X + d),
        (repr(shift), "contrast recovery"): (d @ W.T * d).sum(1) / d.square().sum(1),
    }
    for (condition, column), value in expected.items():
        distance = (report.values[condition][column] - value).abs() / value.abs()
        if dtype == torch.float64:
            assert distance.max() <= 1e-12, (condition, column)
        else:
            assert 0 < distance.max() <= 1e-5, (condition, column)
