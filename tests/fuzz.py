"""
Random calls of the public functions: a right result, or an error that says what was wrong.

    python tests/fuzz.py --count 10000 --seed 0

Each seed is one call, of the function that is next in the table, with arguments that are right,
borderline or bad: types, shapes, precisions, ranges, NaN, nothing. There are two good outcomes:
a result that passes the function's check, or an error that this package raises itself. Anything
else is printed with its seed, which repeats it with ``--count 1``, and the exit status is 1.
"""

import argparse
import contextlib
import io
import linecache
import math
import random
import sys
import tempfile
import traceback
import warnings
from collections import Counter, defaultdict
from numbers import Integral
from pathlib import Path

import deepinv as dinv
import h5py
import numpy as np
import segyio
import torch

import deepinv_jitter as dj

PACKAGE = Path(dj.__file__).parent
#: How likely an argument of a call is spoilt, and with what
SPOILT = (0, 0.05, 0.2)
NUMBERS = [
    *(-1, -0.5, 0, 0.0, 1e-30, 1e-320, 1.5, 1e10, 1e30, 1e300, -1e300, 2**31, 2**63, 10**400),
    *(math.nan, math.inf, -math.inf, True, False, None, "1", 1j, [], [1.0, 2.0], {}),
    *(np.float32(0.5), np.int64(2), np.bool_(True), torch.tensor(0.5), torch.tensor(True)),
    *(torch.ones(2), torch.tensor([math.nan]), object()),
]  # fmt: skip
HUGE = [lambda x: 1e30 * x, lambda x: 1e-30 * x, lambda x: 0 * x]
NAN = [
    lambda x: torch.full_like(x, math.nan),
    lambda x: torch.where(torch.rand(x.shape) < 0.2, math.inf, x),
]
TYPES = [lambda x: x.int(), lambda x: x > 0, lambda x: x + 0j]
FLOATS = [lambda x: x.half(), lambda x: x.bfloat16(), lambda x: x.double(), lambda x: x.float()]
SHAPES = [
    lambda x: x[0],
    lambda x: x[:0],
    lambda x: x[:1],
    lambda x: x[None],
    lambda x: x.flatten(),
    lambda x: x.mT if x.ndim > 1 else x,
    lambda x: x[..., :1],
    lambda x: x[..., :0],
    lambda x: x.sum(),
    lambda x: torch.cat([x, x]),
    lambda x: torch.cat([x, x], 1) if x.ndim > 1 else x,
]
KINDS = [lambda x: None, lambda x: x.tolist(), lambda x: "x", lambda x: x.to("meta")]
ANY = NAN + HUGE + TYPES + SHAPES + KINDS


class Draw(random.Random):
    """Arguments, good for the most part."""

    def __init__(self, seed):
        super().__init__(seed)
        self.share = self.choice(SPOILT)

    def spoilt(self, good, *bad):
        """The good value, or now and then one of the bad ones."""
        return self.choice(bad) if self.random() < self.share else good

    def number(self, low=0.01, high=3.0):
        return self.spoilt(self.uniform(low, high), *NUMBERS)

    def whole(self, low=1, high=4):
        return self.spoilt(self.randint(low, high), low - 1, *NUMBERS)

    def flag(self):
        return self.random() < 0.5

    def any_seed(self):
        return self.spoilt(self.randrange(1000), *NUMBERS)

    def generator(self):
        return torch.Generator().manual_seed(self.randrange(1000))

    def tensor(self, *shape, bad=ANY, dtype=torch.float32):
        x = torch.randn(shape, generator=self.generator(), dtype=dtype)
        return self.spoilt(lambda x: x, *bad)(x)

    def size(self, low=2, high=9):
        return tuple(self.randint(low, high) for _ in range(2))

    def levels(self, count=3):
        """One number, or one per iteration."""
        many = self.random() < 0.3
        return [self.number() for _ in range(self.spoilt(count, 2))] if many else self.number()


def finite(*tensors):
    for tensor in tensors:
        assert tensor.is_meta or tensor.isfinite().all(), "not finite"


def alike(tensor, like):
    assert tensor.shape == like.shape and tensor.dtype == like.dtype, "shape or type"
    finite(tensor)


def largest(levels):
    return max(float(v) for v in (levels if isinstance(levels, list) else [levels]))


def small_network(channels=1):
    network = dj.UnrolledDnCNN(channels, depth=3, width=4)
    torch.nn.init.normal_(network.body[-1].weight, std=0.1)
    return network


def problem(d):
    """A physics with noise, a model for it, and the shape of its images."""
    torch.manual_seed(d.randrange(1000))
    noise = dinv.physics.GaussianNoise(0.1)
    options = {"stepsize": 0.5, "max_iter": 2}
    kind = d.choice(["points", "seismic", "mri"])
    if kind == "points":
        physics, shape, network = (dinv.physics.Denoising(noise), (2,), dj.PointMLP(hidden=4))
    elif kind == "seismic":
        physics, shape = dj.SeismicConvolution(dj.ricker(5), noise_model=noise), (1, 9, 6)
        network = small_network()
    else:
        physics = dj.SingleCoilMRI(torch.arange(6) % 2, img_size=(5, 6), noise_model=noise)
        shape, network = (2, 5, 6), small_network(2)
    return physics, dj.UnfoldedGD(network, **options), shape


# ---- the table: each entry draws arguments and gives the call and the check of its result


def noise(d):
    x, k = d.tensor(2, 3, 4, bad=HUGE + TYPES + FLOATS + SHAPES + KINDS), d.whole(0, 2)
    scale = d.spoilt(d.choice(["std", "norm", "relative", "official"]), "var", None, 3, [])
    levels, generator = d.levels(), d.spoilt(d.generator(), None, 3)

    def call():
        return dj.GaussianJitter(levels, scale, generator)(x, k, lambda: x)

    def check(w):
        assert w.shape == x.shape and w.dtype == x.dtype
        # The other two scales multiply with values that are not looked at
        if scale in ("std", "norm") or x.is_meta or x.abs().max() < 1e10:
            finite(w)

    return call, check


def ricker(d):
    points = d.choice([5, 51, d.whole(1, 9)])
    width = {"a": d.number()}
    if d.flag():
        width = {"frequency": d.number(5, 80), "dt": d.number(2, 8)}
    width |= d.spoilt({}, {"a": 4.0}, {"dt": None})
    dtype = d.spoilt(d.choice([None, torch.float64, torch.float16]), torch.int64)

    def check(w):
        finite(w)
        assert w.shape == (points,) and w.max() == 1 and torch.equal(w, w.flip(0))

    return lambda: dj.ricker(points, dtype=dtype, **width), check


def seismic(d):
    wavelet = d.tensor(d.choice([1, 3, 5]))
    if isinstance(wavelet, torch.Tensor) and wavelet.is_meta:
        wavelet = None  # with default type and device, as any wavelet
    shape = (d.randint(1, 3), 1, *d.size())
    x, y = (d.tensor(*shape, bad=TYPES + FLOATS + SHAPES + KINDS) for _ in range(2))
    normalize = d.flag()

    def call():
        physics = dj.SeismicConvolution(wavelet, normalize=normalize)
        return physics, physics.A(x), physics.A_adjoint(y), physics.A_adjoint_A(x)

    def check(result):
        physics, ax, aty, atax = result
        finite(ax, aty, atax)
        assert ax.shape == x.shape and aty.shape == y.shape
        if x.shape == y.shape and not physics.wavelet.abs().max() > 1e10:
            adjoint(physics, x, y, ax, aty)
        if normalize:
            assert ax.norm() <= x.norm() * (1 + 1e-2)

    return call, check


def adjoint(physics, x, y, ax, aty):
    left, right = (ax.double() * y).sum(), (aty.double() * x).sum()
    scale = ax.double().norm() * y.double().norm() + aty.double().norm() * x.double().norm()
    assert (left - right).abs() <= 1e-2 * scale, "adjoint"


def masks(d):
    """A mask for images of 5 x 6, and the images."""
    good = (torch.rand(d.choice([(6,), (5, 6), (1, 5, 6), (2, 1, 5, 6)])) > 0.5).float()
    good[..., 3] = 1
    mask = d.spoilt(lambda m: m, *NAN, *TYPES, *SHAPES, *KINDS[:3], lambda m: 0 * m)(good)
    bad = TYPES + FLOATS + SHAPES + KINDS
    return mask, *(d.tensor(2, 2, 5, 6, bad=bad) for _ in range(2))


def mri(d):
    torch.manual_seed(d.randrange(1000))
    mask, x, y = masks(d)
    size = d.spoilt((5, 6), (6, 5), (2, 5, 6), None, 5, (5,), (5, 6.0), (0, 6), "56", ())

    def call():
        physics = dj.SingleCoilMRI(mask, img_size=size)
        return physics, physics.A(x), physics.A_adjoint(y), physics.A_adjoint_A(x)

    def check(result):
        physics, ax, aty, atax = result
        finite(ax, aty, atax)
        assert set(physics.mask.unique().tolist()) <= {0, 1} and physics.mask.any()
        if x.shape == y.shape == ax.shape:
            adjoint(physics, x, y, ax, aty)
        assert not ax[(physics.mask == 0).expand_as(ax)].any()

    return call, check


def mask_generator(d):
    size = d.spoilt((d.randint(1, 9), d.randint(20, 60)), (20,), 20, (0, 30), (1, 2, 3, 4), None)
    options = {
        "acceleration": d.spoilt(d.randint(1, 6), *NUMBERS),
        "center_fraction": d.spoilt(d.choice([None, 0.1]), *NUMBERS),
        "kind": d.spoilt(d.choice(["random", "equispaced"]), "magic", None, []),
        "seed": d.any_seed(),
    }
    batch, again = d.whole(0, 3), d.spoilt(None, *NUMBERS)
    not_too_large(batch)
    other = d.spoilt(None, (5, 40), (1, 5, 40), 40, (5, 0))

    def call():
        generator = dj.FastMRIMaskGenerator(size, **options)
        return generator, generator.step(batch, again, other)["mask"]

    def check(result):
        generator, mask = result
        wide = (size if other is None else other)[-1]
        assert mask.ndim == 4 if batch else 3 and mask.shape[-1] == wide
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert (mask.flatten(0, -2).sum(-1) >= generator.n_center).all()

    return call, check


def fidelity(d):
    sigma, x, y = d.number(), *torch.randn(2, 2, 1, 9, 6, generator=d.generator())
    physics = dj.SeismicConvolution()

    def check(fidelity):
        g = fidelity.grad(x, y, physics)
        alike(g, x)
        assert torch.allclose(fidelity.given(physics.A_adjoint(y)).grad(x, y, physics), g)

    return lambda: dj.NormalL2(sigma), check


def point_network(d):
    features, hidden, layers = d.whole(), d.whole(), d.whole(2, 4)
    activation = d.spoilt(torch.nn.ReLU, torch.nn.Softplus, "relu", None, torch.nn.ReLU())
    n = features if type(features) is int and 0 < features < 9 else 2
    x = d.tensor(3, n, bad=TYPES + SHAPES + KINDS[:3])
    not_too_large(features, hidden, layers)
    return (lambda: dj.PointMLP(features, hidden, layers, activation)(x), lambda out: alike(out, x))


def not_too_large(*values):
    """Sizes that are right but need all the memory or time there is, are not tried."""
    if any(isinstance(value, Integral) and value > 1000 for value in values):
        raise Skip


class Skip(Exception):
    """These arguments would test the computer, not the function."""


def image_network(d):
    sizes = {"channels": d.whole(1, 2), "depth": d.whole(3, 4), "width": d.whole(4, 4)}
    sizes |= {"groups": d.whole(1, 2), "condition_channels": d.whole(0, 1)}
    not_too_large(*sizes.values())
    c, extra = (
        sizes[n] if type(sizes[n]) is int else 1 for n in ("channels", "condition_channels")
    )
    x = d.tensor(2, min(max(c, 1), 4), 5, 6, bad=TYPES + SHAPES + KINDS[:3])
    y = d.tensor(2, 1, 5, 6, bad=TYPES + SHAPES + KINDS[:3]) if extra else None
    return lambda: dj.UnrolledDnCNN(**sizes)(x, y), lambda out: alike(out, x)


def metric(make, smallest):
    def draw(d):
        size = (d.randint(smallest - 2, smallest + 4), d.randint(smallest, smallest + 4))
        images = [torch.rand(3, d.choice([1, 2]), *size) for _ in range(2)]
        if d.random() < 0.8:
            images[1] = torch.rand_like(images[0])
        bad = NAN + HUGE + TYPES + SHAPES
        # Of a list the host takes the first
        x_net = d.spoilt(lambda v: v, *bad, lambda v: "x")(images[0])
        x = d.spoilt(lambda v: v, *bad, *KINDS)(images[1])

        def check(value):
            assert value.shape == (len(x),)
            bad = (~(x_net.isfinite() & x.isfinite())).flatten(1).any(1)
            assert not value[~bad].isnan().any(), "NaN"

        return lambda: make()(x_net, x), check

    return draw


def ball(d, **options):
    make = d.choice([dj.L2Ball, dj.LinfBall])
    radius = d.spoilt(d.uniform(0, 3), *NUMBERS, torch.tensor([0.1, 0.2, 0.3]))
    unit = d.spoilt(d.choice([None, "y", "noise"]), "x", 3)
    domain = d.spoilt(d.choice(["measurement", "image"]), "kspace", None)
    if domain == "image" and d.random() < 0.8:
        unit = None
    support = d.spoilt(d.choice(["auto", None]), "all", 3, torch.zeros(6), torch.tensor(math.nan))
    return lambda: make(radius, relative_to=unit, support=support, domain=domain)


def in_ball(budget, delta, eps):
    finite(delta)
    assert (budget.norm(delta) <= eps * (1 + 1e-3)).all(), "outside the ball"


def budget(d):
    make, (physics, _, shape) = ball(d), problem(d)
    y = d.tensor(3, *shape, bad=NAN + HUGE + TYPES + FLOATS + SHAPES + KINDS[:3])
    distribution = d.spoilt(d.choice(["sphere", "ball", "gaussian"]), "cauchy", None)
    generator = d.spoilt(d.generator(), None, 3)

    def call():
        budget = make()
        eps, support = budget.radii(y, physics), budget.support(y, physics)
        zero = budget.zero(y, physics)
        return budget, eps, support, budget.random(zero, eps, generator, distribution, support)

    def check(result):
        budget, eps, support, delta = result
        finite(eps)
        assert eps.shape == (len(y),) and (eps >= 0).all()
        in_ball(budget, delta, eps)
        assert not delta[~support].any()
        if distribution == "sphere":
            assert torch.allclose(budget.norm(delta), eps * support.flatten(1).any(1), rtol=3e-2)

    return call, check


def steps(d):
    budget = d.choice([dj.L2Ball, dj.LinfBall])(1.0)
    v = d.tensor(3, 4, 5, bad=HUGE + FLOATS + TYPES + SHAPES + KINDS)
    eps = d.spoilt(3 * torch.rand(3), torch.zeros(3), torch.ones(1), torch.ones(2), 1.0, None)

    def call():
        once = budget.project(v, eps)
        return once, budget.project(once, eps), budget.steepest(v, eps)

    def check(result):
        once, twice, steepest = result
        for out in result:
            alike(out, v)
            in_ball(budget, out, eps)
        assert torch.allclose(once, twice, rtol=1e-2)

    return call, check


def attack(d):
    physics, model, shape = problem(d)
    budget = ball(d)
    kind = d.choice(["PGD", "Frank-Wolfe", "APGD", "random", "worst", "repeat"])
    objective = d.spoilt("error", "deviation", torch.ones(shape), torch.ones(7), "mse", None)
    steps, seed = d.whole(1, 3), d.any_seed()
    rel_step, momentum = d.number(), d.number(0, 0.9)
    start, keep = d.spoilt(None, "zero", "random", 3), d.spoilt("best", "last", None)
    x, y = d.tensor(3, *shape), d.tensor(3, *shape)
    eps = d.spoilt(None, 0.1, torch.tensor([0.1, 0.2, 0.3]), *NUMBERS)
    init = d.spoilt(None, 0.1 * torch.ones(3, *shape), d.tensor(3, *shape))
    not_too_large(steps)

    def make(budget):
        options = {"objective": objective, "seed": seed, "checks": d.flag()}
        if kind == "random":
            return dj.RandomAttack(budget, samples=steps, **options)
        options |= {"steps": steps, "start": start, "keep": keep}
        if kind == "Frank-Wolfe":
            return dj.FrankWolfeAttack(budget, momentum=momentum, **options)
        if kind == "APGD":
            return dj.APGDAttack(budget, **options)
        pgd = dj.PGDAttack(budget, rel_step=rel_step, **options)
        if kind == "repeat":
            return pgd.repeat(2)
        random = dj.RandomAttack(budget, samples=2)
        return dj.WorstCase([pgd, random]) if kind == "worst" else pgd

    def call():
        attack = make(budget())
        return attack, attack.run(model, x, y, physics, eps=eps, init=init)

    def check(result):
        attack, result = result
        budget = attack.budget
        radii = budget.radii(y, physics) if eps is None else eps
        in_ball(budget, result.perturbation, radii)
        assert not result.perturbation[~budget.support(y, physics)].any()
        finite(result.delta)
        assert not result.loss.isnan().any() and not result.trace.isnan().any()
        doubted = result.flags["nonfinite_gradient"]
        assert (result.loss.isfinite() | doubted).all(), "an overflow without a flag"
        if keep == "best":
            assert (result.loss >= result.loss_clean).all()

    return call, check


def shift(make_images, make):
    def draw(d):
        x, build = d.spoilt(lambda x: x, *ANY)(make_images(d)), make(d)
        start = d.spoilt(d.randrange(9), *NUMBERS)

        def check(result):
            edited, region = result
            alike(edited, x)
            assert region.dtype == torch.bool and torch.equal(
                (edited != x) & ~region, torch.zeros_like(x, dtype=torch.bool)
            )
            assert torch.equal(build()(x, start)[0], edited)

        return lambda: build()(x, start), check

    return draw


def place(d):
    return d.spoilt(None, (1, 1), (0, 99), (1.5, 0), (-1, 0), 3, (1, 2, 3), "ab")


def bias(d):
    value = d.spoilt((0.005, 0.0), *NUMBERS, "x", [1, [2, 3]], [math.nan, 0])
    return lambda: dj.Bias(value)


def layer(d):
    height, length, position, seed = d.number(), d.whole(1, 6), place(d), d.any_seed()
    return lambda: dj.HorizontalLayer(height, length=length, position=position, seed=seed)


def lesion(d):
    radius, contrast, position, seed = (d.number(1, 3), d.number(-2, 2), place(d), d.any_seed())
    return lambda: dj.Lesion(radius, contrast, position=position, seed=seed)


def random_images(*shape):
    return lambda d: torch.randn(shape, generator=d.generator())


def scores(d):
    bad = HUGE + TYPES + SHAPES + KINDS
    a, b, c, x = (d.tensor(3, 1, 4, 5, bad=bad) for _ in range(4))
    region = d.spoilt(torch.rand(3, 1, 4, 5) > 0.5, None, torch.ones(3), torch.ones(2) > 0)

    def check(result):
        recovery, outside = result
        assert recovery.shape == outside.shape == (len(x),)
        if (c != x).flatten(1).any(1).all() and c.abs().max() < 1e10 > x.abs().max():
            assert not recovery.isnan().any()

    return (lambda: (dj.contrast_recovery(a, b, c, x), dj.error_outside(a, c, region)), check)


def sample(dataset, index):
    return dataset, dataset[index]["x"]


def points(d):
    length, index = d.whole(), d.spoilt(0, -1, 1, 9, True)
    center = d.spoilt((0.0, 1.0), (d.number(), d.number()), 3, "ab", (0, 0, 0), None)

    def check(result):
        dataset, x = result
        finite(x)
        assert x.shape == (2,) and len(dataset) == length

    return lambda: indexed(dj.PointDataset(length, center=center), index), check


def indexed(dataset, index):
    try:
        return sample(dj.IndexedDataset(dataset), index)
    except IndexError as error:
        raise_again(error)


def raise_again(error):
    """An index out of range is an IndexError, as for any sequence; here it is a good outcome."""
    assert "index must lie from" in str(error), error
    raise Skip


def sections(d):
    options = {
        "img_size": d.spoilt(d.size(3, 20), (5,), 5, (0, 4), (4, 2.5), "ab", None),
        "seed": d.any_seed(),
        "thickness": d.number(1, 3),
        "dip": d.number(0, 0.1),
        "fold": d.number(0, 1),
        "pinch_out": d.number(0, 1),
        "faults": d.whole(0, 2),
        "throw": d.number(1, 3),
    }
    length = d.whole()

    def check(result):
        _, x = result
        finite(x)
        assert x.shape == (1, *options["img_size"]) and x.abs().max() == 1

    return lambda: sample(dj.ReflectivityDataset(length, **options), 0), check


def slices(d):
    options = {
        "split": d.spoilt("test", "train", "val", None, []),
        "plane": d.spoilt(d.choice(["axial", "coronal", "sagittal"]), "oblique", 3),
        "img_size": d.spoilt(d.size(4, 9), (5,), 5, (0, 4), (4, 2.5), None),
        "resolution": d.number(5, 9),
        "spacing": d.whole(1, 3),
        "copies": d.whole(1, 2),
        "contrast": d.flag(),
        "flip": d.flag(),
        "seed": d.any_seed(),
    }
    not_too_large(options["copies"])

    def check(result):
        _, x = result
        finite(x)
        assert x.shape == (2, *options["img_size"]) and 0 <= x.min() <= x.max() <= 1

    return lambda: sample(dj.BrainSliceDataset(**options), 0), check


def fastmri(d):
    n, size = d.randint(1, 3), d.size(3, 6)
    x = np.random.default_rng(d.randrange(99)).random((n, *size), dtype=np.float32)
    x = d.spoilt(x, x + 0j, x[0], x[:0], x / (x > 0.5), x[:, None], x.astype(int), None, 0 * x)
    target = d.spoilt("reconstruction_esc", "reconstruction_rss", "reconstruction")
    cut = d.spoilt(None, 0, 10, -100)
    options = {
        "img_size": d.spoilt(d.size(3, 6), (5,), 5, (0, 4), None),
        "slice_index": d.spoilt("all", "middle", 0, (0,), 9, "middle+9", "x", None, 1.0, ()),
    }

    def call():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "a.h5")
            with h5py.File(path, "w") as file:
                if x is not None:
                    file[target] = x
            path.write_bytes(path.read_bytes()[:cut])
            return dj.fastmri_slices(folder, **options)[0]["x"]

    def check(out):
        finite(out)
        assert out.shape == (2, *options["img_size"])

    return call, check


def segy(d):
    shape = d.randint(1, 3), *d.size(3, 6)
    x = np.random.default_rng(d.randrange(99)).normal(size=shape).astype(np.float32)
    x = d.spoilt(x, 0 * x, x * math.nan, x * 1e38, x[:1, :1])
    header = d.spoilt({}, {3225: 4}, {3225: 0}, {3220: 0}, {3221: 9}, {3504: 1})
    cut = d.spoilt(None, 0, 10, 3600, 3700, -3)
    direction = d.spoilt(d.choice(["inline", "crossline", "trace"]), "offset", None, [])
    size = d.spoilt(d.size(2, 3), (5,), 5, (0, 4), None, (2, 99))

    def call():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "a.sgy")
            segyio.tools.from_array3D(str(path), x)
            content = bytearray(path.read_bytes())
            for byte, value in header.items():
                content[byte] = value
            path.write_bytes(content[:cut])
            return dj.segy_sections(path, img_size=size, direction=direction)

    def check(out):
        finite(out)
        assert out.shape[1:] == (1, *size) and out.abs().max() <= 1

    return call, check


def prior(d):
    network = d.spoilt(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1), torch.nn.ReLU(), len, None)
    reads_y, x = d.spoilt(False, True), torch.randn(2, 3)

    def call():
        gradient, proximal = (p(network, reads_y) for p in (dj.GradientPrior, dj.ProximalPrior))
        return gradient.grad(x), proximal.prox(x)

    return call, lambda out: [alike(v, x) for v in out]


class Shrink(dinv.models.Denoiser):
    """For points as for images."""

    def forward(self, x, sigma, **kwargs):
        return x / (1 + sigma)


def model(d):
    make, network = d.choice([dj.UnfoldedGD, dj.UnfoldedPGD]), dj.PointMLP(hidden=4)
    denoiser = Shrink()
    prior = d.spoilt(network, [network] * 2, [network] * 9, denoiser, "prior", None, [])
    options = {
        "stepsize": d.levels(),
        "max_iter": d.spoilt(3, d.whole(1, 3)),
        "jitter": d.spoilt(None, d.levels()),
        "checkpoint": d.flag(),
        "data_fidelity": d.spoilt(None, dinv.optim.L2(), "L2", [], [dinv.optim.L2()] * 9),
        "lambda_reg": d.levels(),
        "sigma_denoiser": d.spoilt(None, *NUMBERS),
        "g_param": d.spoilt(None, None, 0.1, [torch.full((2,), 0.1)] * 3),
        "trainable_params": d.spoilt(
            ["stepsize"], [], None, "stepsize", ["x"], [[]], 3, ["lambda", "g_param"]
        ),
        "positive_stepsize": d.flag(),
        "init": d.spoilt(lambda y, physics: y, None, torch.zeros(1)),
    }
    not_too_large(options["max_iter"])
    y = torch.randn(3, 2, generator=d.generator())

    def call():
        model = make(prior, **options)
        return model, model.train(d.flag())(y, dinv.physics.Denoising())

    def check(result):
        model, out = result
        assert out.shape == y.shape
        # Large steps and factors of the prior diverge, as they must
        sizes = [options[n] for n in ("stepsize", "lambda_reg", "jitter")]
        if all(size is None or largest(size) < 10 for size in sizes):
            finite(out)

    return call, check


def jitter_layer(d):
    levels, k = d.levels(), d.spoilt(None, 0, *NUMBERS)
    g, mode = d.tensor(3, 2, bad=HUGE + TYPES + FLOATS + SHAPES), d.flag()

    def check(out):
        assert out is g or mode
        alike(out, g)

    return lambda: dj.Jitter(levels).train(mode)(g, k), check


def submodules(d):
    levels, y = d.levels(), torch.randn(3, 2)
    network = d.spoilt(dj.PointMLP(), torch.nn.ReLU(), None, len)
    at = d.spoilt("*", "0", ["0", "[24]"], "", "x", [], None, 3, ["0", 3])

    def call():
        with dj.no_jitter(dj.jitter(network, levels, at=at)):
            return dj.unjitter(network)(y)

    return call, lambda out: alike(out, y)


def jittered(d):
    levels = d.choice([d.levels, lambda: dj.GaussianJitter(0.1, "relative")])()
    host = {"unfold": True, "max_iter": 3, "trainable_params": ["stepsize"]}
    good = dinv.optim.GD(prior=dinv.optim.Tikhonov(), data_fidelity=dinv.optim.L2(), **host)
    early = dinv.optim.GD(prior=dinv.optim.Tikhonov(), early_stop=True, **host)
    model = d.spoilt(good, early, dj.PointMLP(), None, "model")

    def call():
        with dj.no_jitter(dj.jitter(model, levels)):
            return dj.unjitter(model)

    def check(out):
        assert out is model and not any(isinstance(m, dj.JitteredIterator) for m in model.modules())

    return call, check


def iterator(d):
    gd = dinv.optim.optim_iterators.GDIteration()
    base = d.spoilt(gd, dinv.optim.optim_iterators.CPIteration(), dj.PointMLP(), None)
    make = d.choice([dj.CheckpointedIterator, dj.ConditionedIterator])
    levels = d.levels()
    return lambda: dj.JitteredIterator(make(base), levels), lambda out: None


def risk(name):
    def draw(d):
        physics, model, shape = problem(d)
        model = d.spoilt(model, None, len)
        x, y = d.tensor(3, *shape), d.tensor(3, *shape)
        options = {"samples": d.spoilt(3, 1, *NUMBERS), "generator": d.spoilt(None, 3)}
        not_too_large(options["samples"])
        if name == "worst_case_risk":
            attacks = (lambda *a: None, lambda *a: y[0], lambda *a: y / 0, None, "attack")
            options = {"attack": d.spoilt(lambda m, x, y, p: 0 * y + 0.1, *attacks)}
        else:
            options["sigma_" + name[0].replace("a", "e")] = d.number()

        def check(risk):
            finite(risk.values, risk.standard_errors)
            assert risk.values.shape == risk.standard_errors.shape == (len(x),)
            assert (risk.values >= 0).all() and risk.mean >= 0

        return lambda: getattr(dj, name)(model, x, y, physics, **options), check

    return draw


def evaluation(d):
    physics, model, shape = problem(d)
    models = d.spoilt({"a": model, "b": model}, {}, {"": model}, {1: model}, {"a": 3})
    model = d.choice([d.spoilt(model, None, len), models])
    physics = d.spoilt(physics, None, "physics")
    batch = {"x": d.tensor(3, *shape)} | d.choice([{}, {"y": d.tensor(3, *shape)}])
    loader = d.spoilt([batch], [], [{}], None, 3, [None])
    edit = dj.Bias(0.1)
    options = {
        "epsilons": d.spoilt([d.number()], [], None, 0.1, "a", [0.1, 0.2], torch.ones(1)),
        "relative_to": d.spoilt(None, "y", "noise", "x", 1),
        "peak": d.spoilt(None, 2, "sample", *NUMBERS),
        "physics_generator": d.spoilt(
            None, dinv.physics.generator.SigmaGenerator(), {}, [None], [None, None]
        ),
        "attacks": d.spoilt("quick", "paper", "fast", None, 3, [], dj.RandomAttack(dj.L2Ball(1.0))),
        "shifts": d.spoilt(None, edit, [edit], {"a": edit}, {"clean": edit}, "bias", 3, [3]),
        "draws": d.spoilt(2, *NUMBERS),
        "pictures": d.spoilt(2, *NUMBERS),
        "seed": d.any_seed(),
    }
    not_too_large(options["draws"])

    def call():
        return dj.evaluate_robustness(model, loader, physics, verbose=False, **options)

    def check(result):
        for report in getattr(result, "reports", {"": result}).values():
            for name, columns in report.values.items():
                assert columns["squared error"].shape == (len(batch["x"]),), name
                assert not columns["squared error"].isnan().any(), name
        for compare_to in {None, *getattr(result, "reports", ())}:
            options = {"compare_to": compare_to} if compare_to else {}
            text = result.table(metrics="all", **options)
            assert max(map(len, text.splitlines())) <= 100

    return call, check


def level(d):
    eps, y = d.number(0, 0.5), d.tensor(3, 1, 9, 6)
    physics = d.spoilt(
        dj.SeismicConvolution(noise_model=dinv.physics.GaussianNoise(0.1)), dj.SeismicConvolution()
    )

    def check(sigma):
        assert 0 <= sigma < math.inf

    return lambda: dj.input_jitter_sigma(eps, y, physics), check


def training(d):
    scheme = d.choice([dj.JitterTrainer, dj.InputJitterTrainer, dj.AttackTrainer, dj.RobustTrainer])
    options = {"on_non_finite": d.spoilt("raise", "skip", "skip", None, 3)}
    options["ema"] = d.spoilt(d.choice([None, d.number(0.1, 0.999)]), 0, 1)
    if issubclass(scheme, dj.InputJitterTrainer):
        options[d.choice(["sigma", "eps"])] = d.number(0, 0.2)
    if issubclass(scheme, dj.AttackTrainer):
        weak = dj.FrankWolfeAttack(dj.L2Ball(0.1), steps=1)
        options["attack"] = d.spoilt(weak, None, 0.1, dj.L2Ball(0.1))
        options["monitor"] = d.spoilt(None, weak, 3)
        options["persistent"] = d.choice([False, True])
        share = d.number(0, 1)
        options["share"] = d.spoilt(share, lambda epoch: share)
    samples = {"x": torch.rand(6, 2), "y": torch.rand(6, 2)}
    name = d.choice(list(samples))
    samples[name] = d.spoilt(samples[name], *(f(samples[name]) for f in HUGE + NAN))
    data = dj.IndexedDataset(
        [{name: values[i] for name, values in samples.items()} for i in range(6)]
    )
    network = dj.PointMLP(hidden=4)
    model = dj.UnfoldedGD(network, max_iter=2, jitter=d.choice([None, 0.1, 1e15]))

    def call():
        trainer = scheme(
            model,
            dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1)),
            torch.optim.Adam(model.parameters(), lr=1e-3),
            torch.utils.data.DataLoader(data, 2),
            epochs=2,
            device="cpu",
            save_path=None,
            verbose=False,
            **options,
        )
        return trainer.train(), trainer

    def check(result):
        model, trainer = result
        finite(*model.parameters())
        assert all(map(math.isfinite, trainer.loss_history["SupLoss"]))

    return call, check


def fitted(d):
    model = dj.UnfoldedGD(dj.PointMLP(hidden=4), max_iter=2, jitter=0.1)
    data = dj.PointDataset(6)
    loader = torch.utils.data.DataLoader(data, 2)
    data = d.spoilt(data, loader, None, 3, [], {}, "data", iter([]))
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    epochs, size = d.spoilt(2, *NUMBERS), d.spoilt(2, *NUMBERS)
    not_too_large(epochs)
    not_too_large(size)
    lr, called = d.number(0, 0.1), d.spoilt(model, None, len)

    def call():
        options = {"epochs": epochs, "batch_size": size, "lr": lr}
        return dj.fit(called, physics, data, **options)

    def check(result):
        assert result is model and not model.training
        finite(*model.parameters())

    return call, check


def normalised(d):
    network = d.spoilt(dj.PointMLP(), torch.nn.ReLU(), None, len)
    count = d.spoilt(1, *NUMBERS)
    not_too_large(count)

    def check(network):
        alike(network.eval()(torch.zeros(3, 2)), torch.zeros(3, 2))

    return lambda: dj.spectral_normalize(network, n_power_iterations=count), check


def demo(d):
    name = d.spoilt("seismic_mse", "seismic", *NUMBERS)

    def check(network):
        assert not network.training
        finite(*network.parameters())

    return lambda: dj.demo_network(name), check


def selection(d):
    levels = [d.spoilt(0.0, *(n for n in NUMBERS if n.__hash__)), d.uniform(0.1, 1)]
    values = [
        {level: d.tensor(5, bad=NAN + TYPES + SHAPES + KINDS[:3]) for level in levels}
        for _ in range(2)
    ]
    values[1] = d.spoilt(values[1], {}, None, {0.5: torch.ones(5)}, list(levels))
    options = {
        "tolerance": d.number(0, 2),
        "reference": d.spoilt(None, torch.zeros(5), torch.zeros(3), math.nan, "x"),
        "higher_is_better": d.flag(),
    }

    def check(level):
        assert level in levels

    return lambda: dj.choose_sigma(*values, **options), check


TABLE = {
    "GaussianJitter": noise,
    "ricker": ricker,
    "SeismicConvolution": seismic,
    "SingleCoilMRI": mri,
    "FastMRIMaskGenerator": mask_generator,
    "NormalL2": fidelity,
    "PointMLP": point_network,
    "UnrolledDnCNN": image_network,
    "PaperPSNR": metric(dj.PaperPSNR, 3),
    "PaperSSIM": metric(dj.PaperSSIM, 11),
    "L2Ball, LinfBall": budget,
    "project, steepest": steps,
    "attacks": attack,
    "Bias": shift(random_images(3, 2), bias),
    "HorizontalLayer": shift(random_images(3, 1, 7, 8), layer),
    "Lesion": shift(random_images(3, 2, 9, 8), lesion),
    "contrast_recovery, error_outside": scores,
    "PointDataset, IndexedDataset": points,
    "ReflectivityDataset": sections,
    "BrainSliceDataset": slices,
    "fastmri_slices": fastmri,
    "segy_sections": segy,
    "GradientPrior, ProximalPrior": prior,
    "UnfoldedGD, UnfoldedPGD": model,
    "jitter, unjitter, no_jitter": jittered,
    "iterators": iterator,
    "Jitter": jitter_layer,
    "jitter at submodules": submodules,
    "average_case_risk": risk("average_case_risk"),
    "generalization_risk": risk("generalization_risk"),
    "worst_case_risk": risk("worst_case_risk"),
    "choose_sigma": selection,
    "evaluate_robustness": evaluation,
    "input_jitter_sigma": level,
    "spectral_normalize": normalised,
    "demo_network": demo,
    "trainers": training,
    "fit": fitted,
}


def is_deliberate(error):
    """Whether the package raised it itself, by a raise statement."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(frame.filename, frame.lineno).strip()
    return PACKAGE in Path(frame.filename).parents and line.startswith("raise ")


def outcome(name, seed):
    """What became of one call: "right", "skipped", the type of the error, or a violation."""
    torch.manual_seed(seed)
    try:
        call, check = TABLE[name](Draw(seed))
    except Skip:
        return "skipped", None
    try:
        result = call()
    except Skip:
        return "skipped", None
    except Exception as error:
        if is_deliberate(error) and str(error).endswith("."):
            return type(error).__name__, None
        return "violation", error
    try:
        check(result)
    except Exception as error:
        return "violation", error
    return "right", None


def run(count, seed):
    """The outcomes of so many calls, counted for each function, and the violations."""
    counts, violations = defaultdict(Counter), []
    names = list(TABLE)
    # The host's progress bars go to stderr
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Casting complex values to real")
        for number in range(seed, seed + count):
            name = names[number % len(names)]
            result, error = outcome(name, number)
            counts[name][result] += 1
            if error is not None:
                violations.append((name, number, error))
    return counts, violations


def table(counts):
    kinds = sorted(set().union(*counts.values()) - {"right"})
    rows = [["function", "inputs", "right", *kinds]]
    for name, outcomes in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        rows.append([name, outcomes.total(), outcomes["right"], *(outcomes[k] for k in kinds)])
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            str(v).rjust(w) if i else str(v).ljust(w) for i, (v, w) in enumerate(zip(row, widths))
        )
        for row in rows
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts, violations = run(options.count, options.seed)
    for name, seed, error in violations:
        print(f"{name}: python tests/fuzz.py --count 1 --seed {seed}")
        traceback.print_exception(error, limit=-3, chain=False, file=sys.stdout)
    print(table(counts))
    print(f"{len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
