"""Which models can be jittered, where their noise enters, and what is said of the others."""

import copy
import pickle
from functools import partial

import deepinv as dinv
import pytest
import torch
from algorithms import ALGORITHMS, ETA, SIZE, K, Network
from properties import assert_global_rng_untouched, assert_same_gradients, gradients
from torch import nn
from torch.utils.checkpoint import checkpoint

import deepinv_jitter as dj

POINTS = dinv.physics.Denoising()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(shape, levels, seed=0):
    """The noise that a noise model of this seed draws."""
    g = seeded(seed)
    return [s * torch.randn(shape, generator=g, dtype=torch.float64) for s in levels]


def host_gd(**kwargs):
    kwargs = {"unfold": True, "max_iter": 3, "trainable_params": ["stepsize"]} | kwargs
    return dinv.optim.GD(data_fidelity=dinv.optim.L2(), prior=dinv.optim.Tikhonov(), **kwargs)


# --- algorithms beside those of tests/algorithms.py


def fixed(algorithm, prior, **options):
    return algorithm(
        data_fidelity=dinv.optim.L2(),
        prior=prior,
        max_iter=K,
        unfold=True,
        trainable_params=[],
        **options,
    ).double()


def test_mirror_descent_with_an_entropy():
    """grad h(x_{k+1}) = grad h(x_k) - eta (grad f + net + w), with grad h = 1 + log."""
    network = Network().double()
    y = torch.rand((2, *SIZE), dtype=torch.float64) + 0.5
    model = fixed(
        dinv.optim.MD,
        dj.GradientPrior(network),
        stepsize=ETA,
        bregman_potential=dinv.optim.bregman.NegEntropy(),
    )
    dj.jitter(model, dj.GaussianJitter(0.3, generator=seeded()))
    x = y
    for w in noise(y.shape, [0.3] * K):
        x = x * torch.exp(-ETA * (x - y + network(x) + w))
    assert torch.allclose(model(y, POINTS), x, rtol=1e-10)


def test_proximal_mirror_descent_with_the_proximal_step_on_the_data():
    network, y = Network().double(), torch.randn((2, *SIZE), dtype=torch.float64)
    prior = dj.GradientPrior(network)
    model = fixed(dinv.optim.PMD, prior, stepsize=ETA, g_first=True)
    dj.jitter(model, dj.GaussianJitter(0.3, generator=seeded()))
    x = y
    for w in noise(y.shape, [0.3] * K):
        x = (x - ETA * network(x) + ETA * (y - w)) / (1 + ETA)
    assert torch.allclose(model(y, POINTS), x, atol=1e-12)


@pytest.mark.parametrize("g_first", [False, True])
def test_chambolle_pock_with_an_operator(g_first):
    """The dual variable has another shape than the image; so has noise in the dual step."""
    matrix = 0.4 * torch.randn(5, 3, dtype=torch.float64)
    forward, backward = (lambda x: x @ matrix.T), (lambda u: u @ matrix)
    size = 3 if g_first else 5
    y = torch.randn(2, size, dtype=torch.float64)
    x0, u0 = (torch.randn(2, n, dtype=torch.float64) for n in (3, 5))
    network = nn.Linear(8 - size, 8 - size).double()
    tau, sigma = 0.3, 0.6
    model = fixed(
        dinv.optim.PDCP,
        dj.ProximalPrior(network),
        K=forward,
        K_adjoint=backward,
        stepsize=tau,
        stepsize_dual=sigma,
        g_first=g_first,
        custom_init=lambda y, p: {"est": (x0, x0, u0)},
    )
    dj.jitter(model, dj.GaussianJitter(0.3, generator=seeded()))
    x, z, u = x0, x0, u0
    for w in noise((2, size), [0.3] * K):
        p = u + sigma * forward(z)
        if g_first:  # f_k(x) = |x - y|^2 / 2 + <w, x>, and the network is the dual prior's
            u = p - sigma * network(p / sigma)
            new = (x - tau * backward(u) + tau * (y - w)) / (1 + tau)
        else:  # F_k*(u) = |u + y - w|^2 / 2 - |y|^2 / 2
            u = (p - sigma * (y - w)) / (1 + sigma)
            new = network(x - tau * backward(u))
        x, z = new, 2 * new - x
    assert torch.allclose(model(y, POINTS), x, atol=1e-12)


# --- what is refused, and what is said


def unfolded(name, **options):
    prior = (dj.GradientPrior if name == "GD" else dj.ProximalPrior)(Network())
    return dinv.unfolded.unfolded_builder(
        name, data_fidelity=dinv.optim.L2(), prior=prior, **options
    )


def deq(name):
    return dinv.unfolded.DEQ_builder(name, prior=dinv.optim.Tikhonov())


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = host_gd(), host_gd()


IDENTITY = dinv.models.MedianFilter()
FIXED = "trained through a fixed number of iterations, got "
REFUSED = {
    "not unrolled": (
        lambda: host_gd(unfold=False),
        0.1,
        ValueError,
        FIXED + "GD with unfold=False: build its algorithm, GD, with unfold=True, without",
    ),
    "plug and play": (
        lambda: dinv.optim.PGD(prior=dinv.optim.PnP(IDENTITY)),
        0.1,
        ValueError,
        FIXED + "PGD with unfold=False: build its algorithm, PGD, with unfold=True, without",
    ),
    "DEQ": (
        lambda: host_gd(DEQ=True, unfold=False),
        0.1,
        ValueError,
        FIXED + "GD with .*DEQ: build its algorithm, GD, with unfold=True",
    ),
    "unrolled DEQ": (
        lambda: host_gd(DEQ=True),
        0.1,
        ValueError,
        FIXED + "GD with .*DEQ: build its algorithm, GD, with unfold=True",
    ),
    "DEQ_builder": (
        lambda: deq("PGD"),
        0.1,
        ValueError,
        FIXED + "BaseDEQ with .*DEQ: build its algorithm, PGD, with",
    ),
    "Anderson": (
        lambda: host_gd(anderson_acceleration=True),
        0.1,
        ValueError,
        FIXED + "GD with anderson_acceleration: build .* backtracking and early stop.$",
    ),
    "all at once": (
        lambda: host_gd(unfold=False, backtracking=True, early_stop=True),
        0.1,
        ValueError,
        FIXED + "GD with unfold=False and backtracking and early_stop: build its "
        "algorithm, GD, with unfold=True, without DEQ",
    ),
    "DPIR": (
        lambda: dinv.optim.DPIR(denoiser=IDENTITY),
        0.1,
        ValueError,
        FIXED + "DPIR with unfold=False: build its algorithm, HQS, with",
    ),
    "DiffPIR": (
        lambda: dinv.sampling.DiffPIR(IDENTITY, dinv.optim.L2()),
        0.1,
        TypeError,
        "networks that are trained, but DiffPIR draws samples without gradients: unroll",
    ),
    "MLEM": (
        lambda: dinv.optim.MLEM(),
        0.1,
        TypeError,
        "MLEM has no place for jitter, since its step asks .* use one that does",
    ),
    "no deepinv model": (
        lambda: nn.Identity(),
        0.1,
        TypeError,
        "needs a deepinv.optim.BaseOptim .* got Identity: say by at=.* submodules: none",
    ),
    "several": (Two, 0.1, ValueError, "this Two holds several, first, second: call jitter on each"),
    "DataParallel": (
        lambda: nn.DataParallel(host_gd()),
        0.1,
        TypeError,
        "without DataParallel, .* use DistributedDataParallel",
    ),
    "negative": (host_gd, -1, ValueError, "finite and at least 0, got -1"),
    "infinite": (host_gd, float("inf"), ValueError, "finite and at least 0, got inf"),
    "levels": (host_gd, [0.1, 0.1], ValueError, "one per iteration, got 2 for max_iter=3"),
    "official": (
        lambda: ALGORITHMS["HQS"].build(),
        dj.GaussianJitter(0.1, "official"),
        ValueError,
        "GD and PGD networks, got HQSIteration",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    build, sigma, error, message = REFUSED[case]
    model = build()
    before = [type(m) for m in model.modules()]
    with pytest.raises(error, match=message):
        dj.jitter(model, sigma)
    assert [type(m) for m in model.modules()] == before


def test_a_refused_second_call_leaves_the_first():
    model = dj.jitter(host_gd(), 0.2)
    with pytest.raises(ValueError, match="one per iteration"):
        dj.jitter(model, [0.1, 0.1])
    assert model.fixed_point.iterator.jitter.noise.sigma == (0.2,)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got builtin"):
        dj.jitter(len, 0.1)
    with pytest.raises(TypeError, match="module must be a torch.nn.Module, got int"):
        with dj.no_jitter(3):
            pass
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got None"):
        dj.unjitter(None)
    network = nn.Linear(2, 2)
    assert dj.unjitter(network) is network


@pytest.mark.parametrize("name", ["GD", "PGD", "HQS", "CP"])
def test_models_of_the_builder_are_unrolled(name):
    options = {"params_algo": {"stepsize": 0.5, "lambda": 1.0, "stepsize_dual": 0.5}}
    if name == "CP":
        options["custom_init"] = lambda y, p: {"est": (y, y, y)}
    model = dj.jitter(unfolded(name, **options), 0.1)
    y = torch.randn(2, 1, 5, 4)
    assert not torch.equal(model(y, POINTS), model(y, POINTS))
    model.eval()
    assert torch.equal(model(y, POINTS), model(y, POINTS))


# --- a model that holds one


def splitting(model):
    generator = dinv.physics.generator.GaussianSplittingMaskGenerator((1, 6, 5), 0.6)
    loss = dinv.loss.SplittingLoss(mask_generator=generator)
    return loss.adapt_model(model)


WRAPPERS = {
    "SplittingLoss": splitting,
    "R2RLoss": lambda m: dinv.loss.R2RLoss().adapt_model(m),
    "EquivariantReconstructor": dinv.models.EquivariantReconstructor,
    "of a user": lambda m: nn.ModuleDict({"inner": m}),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_one_model_inside_is_found(wrapper):
    inner = host_gd()
    model = WRAPPERS[wrapper](inner)
    keys = list(model.state_dict())
    assert dj.jitter(model, 0.1) is model
    assert isinstance(inner.fixed_point.iterator, dj.JitteredIterator)
    assert list(model.state_dict()) == keys
    if wrapper != "of a user":
        y = torch.rand(2, 1, 6, 5)
        operator = dinv.physics.Inpainting((1, 6, 5), mask=torch.ones(1, 6, 5))
        operator.noise_model = dinv.physics.GaussianNoise(0.1)

        def run():
            torch.manual_seed(0)
            return model(y, operator)

        noisy = run()
        with dj.no_jitter(model):
            assert not torch.equal(run(), noisy)
    dj.unjitter(model)
    assert not any(isinstance(m, dj.Jitter) for m in model.modules())


def test_a_model_inside_another_is_a_part_of_it():
    class AsDenoiser(dinv.models.Denoiser):
        def __init__(self):
            super().__init__()
            self.model = host_gd()

        def forward(self, x, sigma=None):
            return self.model(x, POINTS)

    model = dj.UnfoldedPGD(AsDenoiser(), max_iter=2, jitter=0.1)
    found = [n for n, m in model.named_modules() if isinstance(m, dj.JitteredIterator)]
    assert found == ["fixed_point.iterator"]


# --- any other network, by the names of submodules


class Unrolled(nn.Module):
    """x <- tanh(x - step * (x - y) - block(x)), with blocks of its own or one for all."""

    def __init__(self, shared=False, repeats=False, blocks=3):
        super().__init__()
        torch.manual_seed(1)
        layers = [
            nn.Sequential(nn.Linear(2, 4), nn.Softplus(), nn.Linear(4, 2)) for _ in range(blocks)
        ]
        self.blocks = nn.ModuleList(layers[:1] * blocks if shared else layers)
        self.repeats = repeats

    def step(self, x, y, block):
        return torch.tanh(x - 0.3 * (x - y) - block(x.sin() * x))

    def forward(self, y, physics=None):
        x = y
        for block in self.blocks:
            if self.repeats:
                x = checkpoint(self.step, x, y, block, use_reentrant=False)
            else:
                x = self.step(x, y, block)
        return x


def recursion(model, y, draws):
    x = y
    for block, w in zip(model.blocks, draws, strict=True):
        x = torch.tanh(x - 0.3 * (x - y) - (block(x.sin() * x) + w))
    return x


def run(model, y):
    """Output and gradients of a training pass."""
    model.zero_grad()
    torch.manual_seed(5)
    out = model(y)
    out.square().sum().backward()
    return out.detach(), gradients(model)


LEVELS = {"one level": 0.3, "a level each": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("shared", [False, True])
def test_noise_on_what_submodules_return(levels, shared):
    """Numbered in every forward pass; nothing in evaluation; gone without a trace."""
    model, y = Unrolled(shared).double(), torch.randn(7, 2, dtype=torch.float64)
    keys, names = list(model.state_dict()), [n for n, _ in model.named_parameters()]
    plain, plain_gradients = run(model, y)
    sigma = LEVELS[levels]
    draws = noise((7, 2), sigma if isinstance(sigma, list) else [sigma] * 3)
    gaussian = dj.GaussianJitter(sigma, generator=seeded())
    assert dj.jitter(model, gaussian, at="blocks.*") is model
    for _ in range(2):
        gaussian.generator.manual_seed(0)
        assert torch.allclose(model(y), recursion(plain_copy(model), y, draws), atol=1e-14)
    assert list(model.state_dict()) == keys
    assert [n for n, _ in model.named_parameters()] == names
    for silent in (lambda: model.eval(), lambda: dj.unjitter(model.train())):
        silent()
        with assert_global_rng_untouched():
            out = model(y)
        assert torch.equal(out, plain)
    out, grads = run(model, y)
    assert torch.equal(out, plain)
    assert_same_gradients(grads, plain_gradients)
    hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooked and not any(isinstance(m, dj.Jitter) for m in model.modules())


def plain_copy(model):
    """A plain copy."""
    return dj.unjitter(copy.deepcopy(model))


def test_silenced_and_at_level_zero_nothing_is_drawn():
    model, y = Unrolled(), torch.randn(7, 2)
    plain = model(y)
    dj.jitter(model, 0.3, at="blocks.*")
    with assert_global_rng_untouched(), dj.no_jitter(model):
        assert torch.equal(model(y), plain)
    assert not torch.equal(model(y), plain)
    with assert_global_rng_untouched():
        assert torch.equal(dj.jitter(model, 0.0, at="blocks.*")(y), plain)


@pytest.mark.parametrize(
    "at, count",
    [
        ("blocks.*", 3),
        ("blocks.1", 1),
        (["blocks.0", "blocks.[12]", "blocks.*"], 3),
        ("blocks.*.0", 3),
        (("blocks.*", "blocks.*.0"), 6),
    ],
)
def test_patterns_stay_between_the_dots(at, count):
    model = dj.jitter(Unrolled(), 0.3, at=at)
    assert sum(bool(m._forward_hooks) for m in list(model.modules())[1:]) == count


def test_a_second_call_replaces_the_first_of_either_kind():
    model = dj.UnfoldedGD(dj.PointMLP(), max_iter=2, jitter=0.1)
    for at, kind in (
        ("prior.*.network", "OutputJitter"),
        ("prior.*.network", "OutputJitter"),
        (None, "Jitter"),
    ):
        dj.jitter(model, 0.2, at)
        layers = [m for m in model.modules() if isinstance(m, dj.Jitter)]
        assert [type(layer).__name__ for layer in layers] == [kind]
    assert not any(m._forward_hooks for m in model.modules())


def test_hooks_follow_a_copy_and_leave_the_original():
    model, y = Unrolled(), torch.randn(7, 2)
    dj.jitter(model, dj.GaussianJitter(0.3, generator=seeded()), at="blocks.*")
    other = copy.deepcopy(model)
    assert torch.equal(model(y), other(y))
    with torch.no_grad():
        other.blocks[0][2].bias.add_(1)
    with dj.no_jitter(model):
        silent = model(y)
        assert torch.equal(model(y), silent)
        assert not torch.equal(other(y), other(y))
    dj.unjitter(other)
    assert torch.equal(other(y), other(y)) and not torch.equal(model(y), model(y))
    third = pickle.loads(pickle.dumps(model))
    assert torch.equal(model(y), third(y))
    assert torch.equal(dj.unjitter(third)(y), silent)


@pytest.mark.parametrize("levels", LEVELS)
def test_noise_is_the_same_in_a_recomputed_part(levels):
    y, results = torch.randn(7, 2), []
    for repeats in (False, True):
        model = dj.jitter(Unrolled(repeats=repeats), LEVELS[levels], at="blocks.*")
        results.append(run(model, y))
    assert torch.equal(results[0][0], results[1][0])
    assert_same_gradients(results[0][1], results[1][1])


@pytest.mark.parametrize("repeats", ["a block", "the model"])
def test_recomputed_as_a_whole_or_within(repeats):
    y, results = torch.randn(7, 2), []
    for again in (False, True):
        model = dj.jitter(Unrolled(), LEVELS["a level each"], at="blocks.*")
        if again and repeats == "a block":
            for block in model.blocks:
                forward = partial(nn.Sequential.forward, block)
                block.forward = partial(checkpoint, forward, use_reentrant=False)
        torch.manual_seed(5)
        whole = again and repeats == "the model"
        out = checkpoint(model, y, use_reentrant=False) if whole else model(y)
        loss = out.square().sum()
        results.append(torch.autograd.grad(loss, model.parameters()))
    assert_same_gradients(*results)


def test_what_cannot_be_recomputed_is_refused():
    y = torch.randn(7, 2)
    gaussian = dj.GaussianJitter(0.3, generator=seeded())
    model = dj.jitter(Unrolled(repeats=True), gaussian, at="blocks.*")
    with pytest.raises(RuntimeError, match="a generator of its own cannot be repeated"):
        model(y).sum().backward()
    for levels, passes in ([0.1, 0.2, 0.3], 2), ([0.1, 0.0, 0.3], 1):
        model = dj.jitter(Unrolled(repeats=True), levels, at="blocks.*")
        loss = sum(model(y).sum() for _ in range(passes))
        with pytest.raises(RuntimeError, match="cannot tell which call is repeated"):
            loss.backward()


def test_unfolded_models_recompute_the_noise_of_their_networks():
    y, results = torch.randn(7, 2), []
    for again in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(dj.PointMLP(), nn.Tanh())
        model = dj.UnfoldedGD(network, max_iter=3, checkpoint=again)
        dj.jitter(model, [0.1, 0.2, 0.3], at="prior.0.network.0")
        torch.manual_seed(5)
        loss = model(y, POINTS).square().sum()
        results.append(torch.autograd.grad(loss, network.parameters()))
    assert_same_gradients(*results)


def test_a_submodule_by_itself():
    """Copied or not, it is silent in evaluation and where it is silenced."""
    model, y = dj.jitter(Unrolled(), 0.1, at="blocks.*"), torch.randn(7, 2)
    for block in (model.blocks[0], copy.deepcopy(model.blocks[0])):
        assert not torch.equal(block(y), block(y))
        with dj.no_jitter(block):
            assert torch.equal(block(y), block(y))
        block.eval()
        assert torch.equal(block(y), block(y))
    model.blocks.eval()
    with pytest.raises(RuntimeError, match="no submodule .* called in training mode"):
        model(y)


def test_two_models_may_not_both_jitter_one_submodule():
    network = dj.PointMLP()
    first = dj.UnfoldedGD(network, max_iter=2)
    second = dj.UnfoldedGD(network, max_iter=2, jitter=0.3)
    dj.jitter(first, 0.1, at="prior.0.network")
    with pytest.raises(ValueError, match="PointMLP .* jittered as a part of another"):
        dj.jitter(second, 0.1, at="prior.0.network")
    assert second.fixed_point.iterator.jitter.noise.sigma == (0.3,)
    dj.unjitter(first)
    dj.jitter(second, 0.1, at="prior.0.network")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["compiled first", "jittered first"])
def test_compiled_submodules(order):
    y = torch.randn(7, 2)
    plain = dj.jitter(Unrolled(), [0.1, 0.2, 0.3], at="blocks.*")
    model = Unrolled()
    steps = [
        lambda: [block.compile(backend="aot_eager") for block in model.blocks],
        lambda: dj.jitter(model, [0.1, 0.2, 0.3], at="blocks.*"),
    ]
    for step in steps if order == "compiled first" else reversed(steps):
        step()
    (out, grads), (expected, expected_grads) = run(model, y), run(plain, y)
    assert torch.allclose(out, expected, atol=1e-6)
    for a, b in zip(grads, expected_grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert torch.equal(model.eval()(y), model(y))
    torch.compiler.reset()


class Returns(nn.Module):
    """Submodules that return this and that."""

    def __init__(self, value):
        super().__init__()
        self.part = nn.Identity()
        self.value = value

    def forward(self, y):
        self.part(self.value)
        return y


def test_submodules_that_return_no_tensor_are_refused():
    y = torch.randn(7, 2)
    for value, message in (
        ((y, y), "Identity named by at returned a tuple: name a submodule of it"),
        (None, "returned a NoneType"),
        (y.long(), "must be a tensor of real or complex numbers, got torch.int64"),
    ):
        model = dj.jitter(Returns(value), 0.1, at="part")
        with pytest.raises(TypeError, match=message):
            model(y)
        assert model.eval()(y) is y


def test_submodules_that_are_not_called_are_noticed():
    model, y = Unrolled(), torch.randn(7, 2)
    model.unused = nn.Linear(2, 2)
    dj.jitter(model, 0.1, at="unused")
    with pytest.raises(RuntimeError, match="no submodule named by at was called in train"):
        model(y)
    model.eval()(y)
    with dj.no_jitter(model.train()):
        model(y)


def test_a_sequential_keeps_its_layers():
    layers = [nn.Linear(2, 3), nn.Softplus(), nn.Linear(3, 2)]
    model, y = nn.Sequential(*layers), torch.randn(7, 2)
    plain = model(y)
    dj.jitter(model, 0.1, at="1")
    assert list(model) == layers and not torch.equal(model(y), model(y))
    assert torch.equal(model.eval()(y), plain)
    model.train()[0] = nn.Linear(2, 3)
    with pytest.raises(RuntimeError, match="no longer in the model, so that neither eval"):
        model(y)


@pytest.mark.parametrize(
    "model, at, error, message",
    [
        (
            lambda: dinv.models.VarNet(num_cascades=4),
            None,
            TypeError,
            r"got VarNet: say by at=.* repeat: 'backbone_net.\*' \(4 VarNetBlock\), "
            r"'backbone_net.\*.denoiser' \(4 DnCNN\)",
        ),
        (
            Unrolled,
            "block.*",
            ValueError,
            r"at must name .* Unrolled, got 'block.\*', which names none. Candidates .*"
            r"'blocks.\*' \(3 Sequential\)",
        ),
        (Returns, "x", ValueError, "got 'x', which names none. Its submodules: 'part'"),
        (Unrolled, 3, TypeError, "at must be a pattern .* or a list of such, got 3"),
        (Unrolled, [], TypeError, r"at must be a pattern .* got \[\]"),
        (Unrolled, ["blocks.*", None], TypeError, "at must be a pattern .* None"),
        (lambda: nn.DataParallel(Unrolled()), "*", TypeError, "without DataParallel"),
        (
            lambda: nn.Sequential(nn.Softplus(), torch.jit.script(nn.Softplus())),
            "*",
            TypeError,
            "which TorchScript has none of, got a RecursiveScriptModule: name a module that holds",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_at_refused(model, at, error, message):
    model = model(1) if model is Returns else model()
    with pytest.raises(error, match=message):
        dj.jitter(model, 0.1, at)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_scales_of_outputs():
    model, y = Unrolled(), torch.randn(7, 2)
    for scale in ("norm", "relative"):
        dj.jitter(model, dj.GaussianJitter(0.3, scale), at="blocks.*")
        assert not torch.equal(model(y), model(y))
    with pytest.raises(ValueError, match="'official' .* no meaning for the outputs of"):
        dj.jitter(model, dj.GaussianJitter(0.3, "official"), at="blocks.*")


def test_within_distributed_data_parallel():
    """The gradients are those of the bare model, and no_jitter and eval() reach through."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        results, y = [], torch.randn(7, 2)
        for wrap in (nn.Identity, nn.parallel.DistributedDataParallel):
            model = dj.jitter(Unrolled(repeats=True), [0.1, 0.2, 0.3], at="blocks.*")
            wrapped = model if wrap is nn.Identity else wrap(model)
            results.append(run(wrapped, y)[1])
            with dj.no_jitter(wrapped):
                assert torch.equal(wrapped(y), wrapped(y))
            assert torch.equal(wrapped.eval()(y), model(y))
        assert_same_gradients(*results)
    finally:
        torch.distributed.destroy_process_group()
