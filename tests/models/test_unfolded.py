import copy

import deepinv as dinv
import pytest
import torch
from algorithms import K, Network, physics
from properties import assert_same_gradients, assert_same_parameters, gradients
from torch import nn

import deepinv_jitter as dj

NAN = float("nan")
MODELS = {"GD": dj.UnfoldedGD, "PGD": dj.UnfoldedPGD}
HOSTS = {"GD": dinv.optim.GD, "PGD": dinv.optim.PGD}
every_model = pytest.mark.parametrize("name", MODELS)


class Shrink(dinv.models.Denoiser):
    """D(x) = x / (1 + sigma), with a factor to learn."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, x, sigma, **kwargs):
        return self.factor * x / (1 + sigma)


# what is passed as prior, the host's prior it must equal, and sigma_denoiser
PRIORS = {
    "network": {
        "GD": (Network, lambda f: dj.GradientPrior(f), None),
        "PGD": (Network, lambda f: dj.ProximalPrior(f), None),
    },
    "denoiser": {
        "GD": (Shrink, lambda d: dinv.optim.RED(d), 0.1),
        "PGD": (Shrink, lambda d: dinv.optim.PnP(d), 0.1),
    },
    "prior": {
        "GD": (dinv.optim.Tikhonov, lambda p: p, None),
        "PGD": (dinv.optim.L1Prior, lambda p: p, None),
    },
}


@every_model
@pytest.mark.parametrize("kind", PRIORS)
def test_is_the_host_s_model(name, kind):
    build, wrap, sigma = PRIORS[kind][name]
    prior, y = build(), torch.randn(2, 1, 9, 7)
    model = MODELS[name](prior, stepsize=0.5, max_iter=K, lambda_reg=0.7, sigma_denoiser=sigma)
    host = HOSTS[name](
        data_fidelity=dinv.optim.L2(),
        prior=wrap(prior),
        stepsize=0.5,
        lambda_reg=0.7,
        g_param=sigma,
        max_iter=K,
        unfold=True,
        trainable_params=["stepsize"],
    )
    assert_same_parameters(model, host)
    p = physics(torch.float32)
    assert torch.equal(model(y, p), host(y, p))
    assert isinstance(model, HOSTS[name])


@every_model
def test_one_prior_per_iteration(name):
    networks = [Network() for _ in range(K)]
    for priors in (networks, tuple(networks), nn.ModuleList(networks)):
        model = MODELS[name](priors, stepsize=0.5, max_iter=K)
        assert len(model.prior) == K
        model(torch.randn(2, 1, 9, 7), physics(torch.float32)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


@every_model
@pytest.mark.parametrize("stepsize", [0.5, [0.5], [0.5, 0.4, 0.3, 0.2], torch.tensor(0.5)])
@pytest.mark.parametrize("trainable", [["stepsize"], [], ["stepsize", "lambda_reg"]])
def test_step_sizes_fixed_and_learned(name, stepsize, trainable):
    model = MODELS[name](
        Network(), stepsize=stepsize, max_iter=K, trainable_params=trainable, sigma_denoiser=0.1
    )
    names = [n for n, _ in model.named_parameters()]
    steps = len(stepsize) if isinstance(stepsize, list) else 1
    assert sum("stepsize" in n for n in names) == (steps if "stepsize" in trainable else 0)
    assert sum("lambda" in n for n in names) == ("lambda_reg" in trainable)


@every_model
def test_positive_step_size_starts_equal_and_stays_positive(name):
    network, y, p = Network(), torch.randn(2, 1, 9, 7), physics(torch.float32)
    free = MODELS[name](network, stepsize=0.5, max_iter=K)
    model = MODELS[name](network, stepsize=0.5, max_iter=K, positive_stepsize=True)
    assert torch.allclose(model(y, p), free(y, p), atol=1e-6)
    with torch.no_grad():
        for parameter in model.init_params_algo["log_stepsize"]:
            parameter.sub_(100.0)
    model(y, p)
    assert model.update_params_fn(0)["stepsize"] > 0


@every_model
def test_checkpoints_of_steps_and_of_their_logarithms_are_not_mixed_up(name):
    """A step of .5 read as a logarithm would be 1.65, a logarithm read as a step -.69."""
    free = MODELS[name](Network(), stepsize=0.5, max_iter=K)
    positive = MODELS[name](Network(), stepsize=0.5, max_iter=K, positive_stepsize=True)
    for model, other in ((free, positive), (positive, free)):
        before = [p.clone() for p in model.init_params_algo.parameters()]
        with pytest.raises(RuntimeError, match="(?s)Missing.*stepsize.*Unexpected.*stepsize"):
            model.load_state_dict(other.state_dict())
        model.load_state_dict(other.state_dict(), strict=False)
        assert all(map(torch.equal, before, model.init_params_algo.parameters()))
    again = MODELS[name](Network(), stepsize=0.1, max_iter=K, positive_stepsize=True)
    again.load_state_dict(positive.state_dict())
    assert_same_parameters(again, positive)


@every_model
def test_deepinv_s_names_of_the_arguments(name):
    prior, y, p = Shrink(), torch.randn(2, 1, 9, 7), physics(torch.float32)
    outputs = []
    for level, start, names in (
        ("sigma_denoiser", "init", ["lambda_reg", "sigma_denoiser"]),
        ("g_param", "custom_init", ["lambda", "g_param"]),
    ):
        options = {level: [0.1, 0.2, 0.3, 0.4], start: lambda y, physics: 3 * y}
        model = MODELS[name](prior, max_iter=K, trainable_params=names, **options)
        assert sorted(model.init_params_algo["g_param"].state_dict()) == list("0123")
        outputs.append(model(y, p))
    assert torch.equal(*outputs)


class Bands(dinv.models.Denoiser):
    """Shrinks each channel by a threshold of its own."""

    def forward(self, x, ths):
        return torch.sign(x) * torch.relu(x.abs() - ths[..., None, None])


@every_model
@pytest.mark.parametrize("trainable", [[], ["g_param"]])
def test_levels_that_are_vectors(name, trainable):
    y, p = torch.randn(2, 3, 6, 5), dinv.physics.Denoising()
    levels = [torch.tensor([[0.1, 0.2, 0.3]]) * (k + 1) for k in range(K)]
    for given in (levels, torch.stack(levels), tuple(levels)):
        model = MODELS[name](
            Bands(), stepsize=0.5, max_iter=K, g_param=given, trainable_params=trainable
        )
        x = y
        for level in levels:
            if name == "GD":
                x = x - 0.5 * ((x - y) + x - Bands()(x, level))
            else:
                x = Bands()(x - 0.5 * (x - y), level)
        out = model(y, p)
        assert torch.allclose(out, x, atol=1e-6)
        if trainable:
            out.square().sum().backward()
            grads = [p.grad for p in model.init_params_algo["g_param"]]
            assert all(g.shape == (1, 3) and g.abs().max() > 0 for g in grads)
    shared = MODELS[name](Bands(), stepsize=0.5, max_iter=K, g_param=[levels[0]])
    assert torch.equal(shared.update_params_fn(3)["g_param"], levels[0])


class Fails(dinv.models.Denoiser):
    """Needs a level, a small one, and does not say so."""

    def forward(self, x, *args):
        if args[0] > 0.5:
            raise TypeError("too large")
        return x / (1 + args[0])


@every_model
def test_a_blind_denoiser_needs_no_level_and_another_says_so(name):
    blind = dinv.models.DnCNN(1, 1, depth=3, nf=4, pretrained=None)
    y, p = torch.randn(2, 1, 9, 7), physics(torch.float32)
    model = MODELS[name](blind, stepsize=0.5, max_iter=K, jitter=0.1)
    model(y, p).sum().backward()
    wrap = dinv.optim.RED if name == "GD" else dinv.optim.PnP
    host = HOSTS[name](data_fidelity=dinv.optim.L2(), prior=wrap(blind), stepsize=0.5, max_iter=K)
    assert torch.allclose(model.eval()(y, p), host(y, p), atol=1e-6)
    with pytest.raises(ValueError, match="Fails failed without a noise level .*: if it"):
        MODELS[name](Fails())(y, p)
    with pytest.raises(TypeError, match="^too large$"):
        MODELS[name](Fails(), sigma_denoiser=1.0)(y, p)


@every_model
@pytest.mark.parametrize(
    "wrap", [lambda d: torch.compile(d, backend="eager"), nn.DataParallel], ids=["compiled", "dp"]
)
def test_a_wrapped_denoiser_is_one(name, wrap):
    y, p, options = torch.randn(2, 1, 9, 7), physics(torch.float32), {"sigma_denoiser": 0.1}
    bare, wrapped = (MODELS[name](d, stepsize=0.5, **options) for d in (Shrink(), wrap(Shrink())))
    assert torch.allclose(bare(y, p), wrapped(y, p), atol=1e-6)
    with pytest.raises(ValueError, match="needs the noise level it removes"):
        MODELS[name](wrap(Shrink()))
    with pytest.raises(TypeError, match="a deepinv Denoiser or a network .*, got ArtifactRemoval"):
        MODELS[name](wrap(dinv.models.ArtifactRemoval(Shrink())))


@every_model
def test_start_of_the_iterations(name):
    p, y = physics(torch.float32), torch.randn(2, 1, 9, 7)
    frozen = {"stepsize": 0.0, "max_iter": 1, "trainable_params": []}
    zero = dj.UnrolledDnCNN(1, depth=3, width=4, residual=name == "PGD")
    assert torch.equal(MODELS[name](zero, **frozen)(y, p), p.A_adjoint(y))
    start = MODELS[name](zero, init=lambda y, physics: 3 * y, **frozen)
    assert torch.equal(start(y, p), 3 * y)


@every_model
def test_checkpoint_gives_identical_gradients_under_noise(name):
    y, p = torch.randn(2, 1, 9, 7), physics(torch.float32)
    noise = dj.GaussianJitter(0.2, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(Network(), nn.Dropout(0.3))  # randomness of its own as well
    results = []
    for checkpoint in (False, True):
        model = MODELS[name](
            network, max_iter=K, jitter=copy.deepcopy(noise), checkpoint=checkpoint
        )
        torch.manual_seed(0)
        model.zero_grad()
        out = model(y, p)
        out.square().sum().backward()
        results.append((out, gradients(model)))
    assert torch.equal(results[0][0], results[1][0])
    assert_same_gradients(results[0][1], results[1][1])


def test_checkpoint_keeps_fewer_activations():
    y, p = torch.randn(2, 1, 9, 7), physics(torch.float32)
    saved = []
    for checkpoint in (False, True):
        model, kept = dj.UnfoldedGD(Network(), max_iter=20, checkpoint=checkpoint), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.numel()) or t, lambda t: t
        ):
            model(y, p)
        saved.append(sum(kept))
    assert saved[1] < 0.2 * saved[0]


@every_model
def test_jitter_argument(name):
    iterators = [type(m).__name__ for m in MODELS[name](Network()).fixed_point.modules()]
    assert f"{name}Iteration" in iterators and "JitteredIterator" not in iterators
    noise = dj.GaussianJitter([0.1, 0.2], "norm")
    model = MODELS[name](Network(), max_iter=2, jitter=noise)
    assert model.fixed_point.iterator.jitter.noise is noise


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"step_size": 0.3}, TypeError, "unexpected keyword argument 'step_size'"),
        ({"max_iter": 0}, ValueError, "max_iter must be .* at least 1, got 0"),
        ({"max_iter": 2.5}, TypeError, "max_iter must be a whole number, got 2.5"),
        ({"max_iter": True}, TypeError, "max_iter must be a whole number, got True"),
        ({"stepsize": -0.1}, ValueError, "stepsize must be .* at least 0, got -0.1"),
        ({"stepsize": NAN}, ValueError, "stepsize must be finite and .* got nan"),
        ({"stepsize": 1e39}, ValueError, "stepsize must be finite and .* got 1e.39"),
        ({"stepsize": True}, TypeError, "stepsize must be a real number .* got True"),
        ({"stepsize": "big"}, TypeError, "stepsize must be a real number .* got 'big'"),
        ({"stepsize": 1j}, TypeError, "stepsize must be a real number .* got 1j"),
        ({"lambda_reg": -1}, ValueError, "lambda_reg must be .* at least 0, got -1"),
        ({"sigma_denoiser": -1.0}, ValueError, "sigma_denoiser must be .* got -1.0"),
        ({"trainable_params": None}, ValueError, "must be a list of names in .* None"),
        (
            {"trainable_params": ["lambda", "lambda_reg"]},
            ValueError,
            "name each parameter once, got",
        ),
        (
            {"sigma_denoiser": 0.1, "g_param": 0.1},
            TypeError,
            "g_param is another name of sigma_denoiser, got both: give one",
        ),
        (
            {"init": lambda y, p: y, "custom_init": lambda y, p: y},
            TypeError,
            "custom_init is another name of init, got both",
        ),
        (
            {"stepsize": [torch.ones(3)]},
            ValueError,
            "stepsize must be one number or one per iteration, got .tensor",
        ),
        (
            {"lambda_reg": [torch.ones(3)] * 10},
            ValueError,
            "lambda_reg must be one number or one per iteration",
        ),
        (
            {"g_param": [torch.ones(3)] * 2},
            ValueError,
            "sigma_denoiser must be one or one per iteration, got 2 for max_iter=10",
        ),
        ({"g_param": [torch.tensor([0.1, -1])]}, ValueError, "sigma_denoiser must be"),
        ({"trainable_params": [[]]}, ValueError, "must be a list of names in"),
        ({"data_fidelity": "L2"}, TypeError, "must be a deepinv DataFidelity, got 'L2'"),
        (
            {"data_fidelity": [dinv.optim.L2()] * 2},
            ValueError,
            "data_fidelity must be one or one per iteration, got 2 for max_iter=10",
        ),
        ({"jitter": True}, TypeError, "sigma must be a number, got True"),
        ({"jitter": NAN}, ValueError, "sigma must be finite and at least 0, got nan"),
        (
            {"stepsize": [0.1, 0.2]},
            ValueError,
            "stepsize must be one or one per iteration, got 2 for max_iter=10",
        ),
        ({"trainable_params": ["step"]}, ValueError, r"names in .*'stepsize'.* got \['step'\]"),
        ({"trainable_params": "stepsize"}, ValueError, "must be a list of names"),
        (
            {"trainable_params": ["sigma_denoiser"]},
            ValueError,
            "needs a start: pass sigma_denoiser",
        ),
        (
            {"positive_stepsize": True, "stepsize": 0.0},
            ValueError,
            "from a positive start, got stepsize=0",
        ),
        (
            {"positive_stepsize": True, "trainable_params": []},
            ValueError,
            "a learned stepsize positive",
        ),
        ({"prior": [Network(), Network()]}, ValueError, "one per iteration, got 2 for max_iter=10"),
        (
            {"prior": Shrink()},
            ValueError,
            "Shrink needs the noise level it removes, .*: pass sigma_denoiser",
        ),
        ({"prior": "DnCNN"}, TypeError, "a network x -> f.x., got str"),
        (
            {"prior": dinv.models.ArtifactRemoval(nn.Identity())},
            TypeError,
            "a network x -> f.x., got ArtifactRemoval",
        ),
        ({"init": torch.zeros(1)}, TypeError, r"callable as init\(y, physics\), got Tensor"),
        ({"jitter": -0.1}, ValueError, "finite and at least 0"),
        ({"jitter": [0.1, 0.2]}, ValueError, "sigma must be one .* got 2 for max_iter=10"),
    ],
)
@every_model
def test_refused(name, arguments, error, message):
    arguments = {"prior": Network()} | arguments
    with pytest.raises(error, match=message):
        MODELS[name](arguments.pop("prior"), **arguments)


def compiled(model):
    # the graph that inductor would compile, without the compiler
    model.prior[0].network.compile(backend="aot_eager")
    return model


LAYOUTS = {
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "compiled": compiled,
}


@every_model
@pytest.mark.parametrize("option", LAYOUTS)
def test_ways_to_speed_change_nothing(name, option):
    """Noise, output and gradients are the same, in any layout and compiled."""
    y, operator = torch.randn(2, 2, 12, 10), dj.SingleCoilMRI(img_size=(12, 10))
    results = []
    for change in (lambda model: model, LAYOUTS[option]):
        torch.manual_seed(0)
        network = dj.UnrolledDnCNN(2, depth=3, width=8, residual=name == "PGD")
        nn.init.normal_(network.body[-1].weight, std=0.1)
        model = change(MODELS[name](network, stepsize=0.5, max_iter=3, jitter=0.1))
        out = model(y, operator)
        out.square().sum().backward()
        results.append((out, *gradients(model)))
        keys = list(model.state_dict())
        assert not any("_orig_mod" in key for key in keys)
    for changed, plain in zip(*results, strict=True):
        assert torch.allclose(changed, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("jitter", [None, 0.05])
@every_model
def test_bfloat16_training_stays_near(name, jitter):
    """Forward and backward under autocast: finite, and near single precision."""
    y, operator = torch.randn(2, 2, 12, 10), dj.SingleCoilMRI(img_size=(12, 10))
    network = dj.UnrolledDnCNN(2, depth=3, width=8, residual=name == "PGD")
    nn.init.normal_(network.body[-1].weight, std=0.1)
    model = MODELS[name](network, stepsize=0.5, max_iter=3, jitter=jitter)
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = model(y, operator)
            loss = out.float().square().mean()
        loss.backward()
        grads = torch.cat([g.flatten() for g in gradients(network)])
        results.append((out.float(), grads))
    for half, single in zip(results[1], results[0], strict=True):
        assert half.isfinite().all()
        assert (half - single).norm() < 0.05 * single.norm()


@every_model
def test_a_physics_without_an_adjoint_needs_a_start(name):
    class Saturating(dinv.physics.Physics):
        def A(self, x, **kwargs):
            return torch.tanh(x)

    def build(**options):
        return MODELS[name](dj.UnrolledDnCNN(1, depth=3, width=8), max_iter=2, **options)

    y = torch.rand(1, 1, 16, 16)
    with pytest.raises(TypeError, match="A_adjoint.*which Saturating has not: give the model init"):
        build()(y, Saturating())
    assert build(init=lambda y, physics: y)(y, Saturating()).shape == y.shape
