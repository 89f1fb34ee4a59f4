"""Networks that deepinv's self-supervised losses have adapted: attacked as they are evaluated."""

from contextlib import nullcontext

import deepinv as dinv
import pytest
import torch
from deepinv.physics.generator import BernoulliSplittingMaskGenerator
from torch import nn

import deepinv_jitter as dj
from deepinv_jitter.attacks.adapted import differentiable

SIZE = (1, 12, 12)
PHYSICS = dinv.physics.Inpainting(SIZE, mask=torch.ones(SIZE))
PHYSICS.noise_model = dinv.physics.GaussianNoise(0.1)


class Network(dinv.models.Reconstructor):
    """Not linear; it may turn gradients off, or fail."""

    def __init__(self, grad=True, fails=False):
        super().__init__()
        self.filter, self.grad = nn.Conv2d(1, 1, 3, padding=1), grad
        self.fails = fails

    def forward(self, y, physics):
        if self.fails:
            raise ArithmeticError("the network fails")
        with nullcontext() if self.grad else torch.no_grad():
            return self.filter(physics.A_adjoint(y)).tanh()


def splitting(**options):
    rng = torch.Generator().manual_seed(0)
    masks = BernoulliSplittingMaskGenerator(SIZE, 0.7, rng=rng)
    return dinv.loss.SplittingLoss(mask_generator=masks, eval_n_samples=3, **options)


def twice(network):
    """An adapted network, adapted again."""
    return dinv.loss.R2RLoss(eval_n_samples=2).adapt_model(splitting().adapt_model(network))


ADAPTED = {
    "splitting": lambda m: splitting().adapt_model(m),
    "splitting of the output": lambda m: splitting(eval_split_output=True).adapt_model(m),
    "no splitting": lambda m: splitting(eval_split_input=False).adapt_model(m),
    "R2R": lambda m: dinv.loss.R2RLoss(eval_n_samples=3).adapt_model(m),
    "twice": twice,
    "inside another": lambda m: dinv.models.EquivariantReconstructor(
        splitting().adapt_model(m), transform=dinv.transform.Reflect()
    ),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=ADAPTED)
def adapted(request):
    return ADAPTED[request.param](Network()).eval()


def output(model, y):
    """The same draws in each call."""
    for module in model.modules():
        if isinstance(getattr(module, "rng", None), torch.Generator):
            module.rng.manual_seed(3)
    torch.manual_seed(3)
    return model(y, PHYSICS)


def test_the_gradient_is_the_slope_of_what_evaluation_gives(adapted):
    y, v = torch.rand(2, 2, *SIZE)
    weights = torch.rand(2, *SIZE)
    y.requires_grad_()
    with differentiable(adapted):
        x_net = output(adapted, y)
    (g,) = torch.autograd.grad((weights * x_net).sum(), y)
    plain = output(adapted, y)
    assert torch.equal(x_net, plain)
    with torch.no_grad():
        up, down = (output(adapted, y + h * v) for h in (1e-2, -1e-2))
    slope = (weights * (up - down)).sum() / 2e-2
    assert (g * v).sum().item() == pytest.approx(slope.item(), rel=1e-2)


def test_a_caller_without_gradients_gets_none(adapted):
    y = torch.rand(2, *SIZE, requires_grad=True)
    with differentiable(adapted), torch.no_grad():
        assert not output(adapted, y).requires_grad
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_nothing_stays_behind(adapted):
    modules = list(adapted.modules())
    with differentiable(adapted):
        output(adapted, torch.rand(2, *SIZE))
    for module in modules:
        assert not module._forward_hooks and not module._forward_pre_hooks
    with torch.no_grad():
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["splitting", "R2R", "twice"])
def test_a_network_that_fails_leaves_nothing_behind(name):
    model = ADAPTED[name](Network(fails=True)).eval()
    x = torch.rand(2, *SIZE)
    with pytest.raises(ArithmeticError, match="the network fails"):
        dj.FrankWolfeAttack(dj.L2Ball(0.5))(model, x, x, PHYSICS)
    with torch.no_grad():
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["splitting", "R2R", "twice"])
def test_what_the_network_turns_off_stays_off(name):
    x = torch.rand(2, *SIZE)
    model = ADAPTED[name](Network(grad=False))
    with pytest.raises(RuntimeError, match="there is none: the model runs under"):
        dj.FrankWolfeAttack(dj.L2Ball(0.5))(model, x, x, PHYSICS)


def test_a_network_called_by_itself():
    """Its hooks are for what adapters call."""
    network = Network()
    both = nn.ModuleList([splitting().adapt_model(network), network])
    y = torch.rand(2, *SIZE, requires_grad=True)
    with differentiable(both):
        assert network(y, PHYSICS).requires_grad
        with torch.no_grad():
            assert not torch.is_grad_enabled()


def test_attacks_harm_more_than_random_perturbations(adapted):
    """On the average over the masks and noise that evaluation draws."""
    x = torch.rand(4, *SIZE)
    ball = dj.L2Ball(2.0)
    attacks = dj.FrankWolfeAttack(ball, steps=10), dj.RandomAttack(ball, samples=20)
    errors = []
    for attack in attacks:
        delta = attack(adapted, x, x, PHYSICS)
        with torch.no_grad():
            draws = [adapted(x + delta, PHYSICS) - x for _ in range(20)]
        errors.append(torch.stack(draws).square().flatten(2).sum(2).mean(0))
    assert (errors[0] > 1.02 * errors[1]).all()
