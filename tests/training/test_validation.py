"""Looking at a model changes nothing in it, and shows the model in evaluation mode."""

import warnings

import deepinv as dinv
import pytest
import torch
from deepinv.datasets import TensorDataset
from deepinv.loss.metric import MSE, PSNR
from properties import assert_same
from torch import nn
from torch.utils.data import DataLoader

import deepinv_jitter as dj
from deepinv_jitter.memory import modules
from deepinv_jitter.training import rng

SIZE = (1, 8, 8)


class Lively(nn.Module):
    """A network in which everything behaves differently in training mode."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Dropout(0.5),
            nn.Conv2d(4, 1, 3, padding=1),
        )
        self.register_buffer("calls", torch.zeros(()))
        self.modes = []

    def forward(self, x, sigma=None):
        self.calls += 1
        self.modes.append(self.training)
        out = self.layers(x)
        return out + 0.1 * torch.randn_like(out) if self.training else out


def bernoulli(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return dinv.physics.generator.BernoulliSplittingMaskGenerator(SIZE, split_ratio=0.7, rng=rng)


def shift():
    return dinv.transform.Shift(n_trans=1, rng=torch.Generator().manual_seed(1))


LOSSES = {
    "supervised": lambda: dinv.loss.SupLoss(metric=MSE()),
    "splitting": lambda: dinv.loss.SplittingLoss(mask_generator=bernoulli()),
    "splitting, not in evaluation": lambda: dinv.loss.SplittingLoss(
        mask_generator=bernoulli(), eval_split_input=False
    ),
    "splitting, masked output": lambda: dinv.loss.SplittingLoss(
        mask_generator=bernoulli(), eval_split_output=True
    ),
    "splitting with its own generator": dinv.loss.SplittingLoss,
    "equivariant splitting": lambda: dinv.loss.EquivariantSplittingLoss(
        mask_generator=bernoulli(), transform=shift()
    ),
    "recorrupted": dinv.loss.R2RLoss,
    "score": lambda: dinv.loss.ScoreLoss(total_batches=8),
    "reduced resolution": dinv.loss.ReducedResolutionLoss,
    "unsure": lambda: dinv.loss.SureGaussianLoss(0.1, unsure=True),
    "equivariant": lambda: [dinv.loss.MCLoss(), dinv.loss.EILoss(shift())],
    "scheduled": lambda: dinv.loss.InterleavedLossScheduler(dinv.loss.MCLoss(), dinv.loss.TVLoss()),
}


def build(losses="supervised", cls=dj.JitterTrainer, **kwargs):
    torch.manual_seed(0)
    model = dj.UnfoldedPGD(Lively(), stepsize=0.5, max_iter=2, jitter=0.1)
    noise = dinv.physics.GaussianNoise(0.1, rng=torch.Generator().manual_seed(3))
    x = torch.rand(4, *SIZE)
    data = TensorDataset(x=x, y=x + 0.1 * torch.randn_like(x), use_dict_output=True)
    far = TensorDataset(x=9 + x, y=9 + x, use_dict_output=True)
    arguments = {
        # a loader takes its seed from somewhere
        "eval_dataloader": DataLoader(far, 2, generator=torch.Generator()),
        "losses": LOSSES[losses](),
        "metrics": None,
        "epochs": 2,
        "device": "cpu",
        "save_path": None,
        "verbose": False,
        "compute_eval_losses": True,
    } | kwargs
    return cls(
        model,
        dinv.physics.Denoising(noise),
        torch.optim.SGD(model.parameters(), 1e-3),
        DataLoader(data, 2, generator=torch.Generator()),
        **arguments,
    )


def network(trainer):
    return next(m for m in trainer.model.modules() if isinstance(m, Lively))


def everything(trainer):
    """What a training is made of: weights, running means, counters, learned levels, generators."""
    end = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    end["global"] = torch.get_rng_state()
    found = modules(trainer.model, trainer.physics, trainer.losses)
    for i, generator in enumerate(rng.generators([*found, *trainer.train_dataloader])):
        end[f"generator {i}"] = generator.get_state()
    for owner, name in [(trainer.losses[0], "sigma2"), (trainer.model, "counter")]:
        if hasattr(owner, name):
            end[name] = torch.as_tensor(getattr(owner, name)).detach()
    return end


@pytest.mark.parametrize("losses", LOSSES)
def test_a_training_is_the_same_without_evaluation(losses):
    """Bit for bit."""
    ends = []
    for options in (
        {"eval_dataloader": None, "compute_eval_losses": False},
        {"compute_eval_losses": True},
        {"compute_eval_losses": False, "metrics": PSNR()},
    ):
        trainer = build(losses, **options)
        trainer.train()
        ends.append(everything(trainer))
    assert_same(ends[1], ends[0])
    assert_same(ends[2], ends[0])


@pytest.mark.parametrize("losses", LOSSES)
def test_the_network_is_looked_at_in_evaluation_mode(losses):
    """Also inside what a self-supervised loss has wrapped around it."""
    trainer = build(losses)
    trainer.train()
    values = trainer.eval_loss_history
    assert all(torch.tensor(v).isfinite().all() and len(v) == 2 for v in values.values())
    modes = network(trainer).modes
    first = modes.index(False)
    assert all(modes[:first])
    # the second epoch trains again
    assert True in modes[first:] and modes[-1] is False
    per_epoch = modes[:first]
    again = modes.index(True, first)
    assert modes[again : again + len(per_epoch)] == per_epoch


def test_evaluation_losses_are_those_of_the_model_in_evaluation_mode():
    trainer = build(metrics=MSE())
    trainer.train()
    model = trainer.model.eval()
    data = trainer.eval_dataloader[0].dataset
    expected = MSE()(model(data.y, trainer.physics[0]), data.x).mean().item()
    assert trainer.eval_loss_history["SupLoss"][-1] == pytest.approx(expected, rel=1e-5)
    assert trainer.eval_metrics_history["MSE"][-1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("adapted", ["by the trainer", "before"])
def test_a_recorrupted_loss_is_that_of_its_equation(adapted):
    """Its noise is drawn, and the network inside is in evaluation mode."""
    trainer = build("recorrupted")
    if adapted == "before":
        trainer.model = trainer.losses.adapt_model(trainer.model)
    trainer.setup_train()
    seen = {}
    loss = trainer.losses[0]
    forward = loss.forward

    def noted(x_net, y, physics, model, **kwargs):
        seen.update(x_net=x_net, y1=model.get_corruption(), y=y)
        return forward(x_net, y, physics, model, **kwargs)

    loss.forward = noted
    batch = next(iter(trainer.eval_dataloader[0]))
    value, x_net, _ = trainer.compute_loss(trainer.physics[0], batch["x"], batch["y"], train=False)
    y2 = (seen["y"] - seen["y1"] * (1 - loss.alpha)) / loss.alpha
    plain = trainer.model.model.eval()(seen["y1"], trainer.physics[0])
    assert torch.equal(plain, x_net) and not x_net.requires_grad
    assert value.item() == pytest.approx((plain - y2).square().mean().item(), rel=1e-5)


def drawn_in_validation(tested=False):
    """By a loss, in a training, maybe after a test by the same trainer."""
    drawn = []

    class Noted(dinv.loss.SupLoss):
        def forward(self, model, **kwargs):
            if not network.training:
                drawn.append(torch.rand(()))
            return super().forward(**kwargs)

    trainer = build(losses="supervised")
    network = trainer.model
    trainer.losses = Noted(metric=MSE())
    if tested:
        with rng.kept(trainer._generators()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.test(trainer.eval_dataloader)
        drawn.clear()
    trainer.train()
    return [*map(float, drawn)]


def test_what_is_drawn_differs_between_batches_and_epochs():
    """Though the generators come back to where they were."""
    drawn = drawn_in_validation()
    assert len(set(drawn)) == len(drawn) == 2 * 2


def test_a_test_changes_nothing_that_is_drawn_after_it():
    assert drawn_in_validation(tested=True) == drawn_in_validation()


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("metrics", [None, MSE()])
def test_a_test_changes_neither_model_nor_trainer(losses, metrics):
    trainer = build(losses, metrics=PSNR(), compute_eval_losses=False)
    trainer.train()
    if metrics is None:
        trainer.metrics = None
    before = everything(trainer)
    kept = ["metrics", "compute_eval_losses", "compare_no_learning", "loss_history"]
    attributes = [getattr(trainer, name) for name in kept]
    data = trainer.eval_dataloader[0].dataset
    loader = DataLoader(data, 2, generator=torch.Generator())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [trainer.test(loader, metrics=metrics) for _ in range(2)]
    assert_same(everything(trainer), before)
    assert [getattr(trainer, name) for name in kept] == attributes
    if metrics is not None:
        assert results[0]["MSE"] > 0


def test_the_host_s_trainer_takes_evaluation_data_in():
    """What this is for."""
    ends = []
    for evaluate in (True, False):
        trainer = build(
            cls=dinv.Trainer, compute_eval_losses=evaluate, non_blocking_transfers=False
        )
        trainer.metrics = PSNR()
        trainer.train()
        ends.append(network(trainer).layers[1].running_mean.clone())
    assert (ends[0] - ends[1]).abs().max() > 0.1
