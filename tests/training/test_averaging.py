"""Averaged weights: what is validated, chosen, saved, resumed and returned."""

import math
import os
import signal
import warnings
from pathlib import Path

import deepinv as dinv
import pytest
import torch
from deepinv.loss.metric import MSE
from properties import assert_same
from test_trainers import build, last_checkpoint
from torch import nn
from torch.utils.data import DataLoader

import deepinv_jitter as dj

NORM = "prior.0.network.1."


def network():
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def trainer_of(folder, epochs=3, **kwargs):
    """Every step is noted, with the weights after it."""
    trainer = build(folder, epochs, **{"scheduler": None} | kwargs)
    trainer.model.prior[0].network = network()
    trainer.optimizer = torch.optim.Adam(trainer.model.parameters(), lr=1e-2)
    trainer.weights = [copied(trainer.model)]
    trainer.optimizer.register_step_post_hook(
        lambda *_: trainer.weights.append(copied(trainer.model))
    )
    return trainer


def copied(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def by_hand(weights, decay):
    average = {k: v.double() for k, v in weights[0].items()}
    for n, new in enumerate(weights):
        d = min(decay, (1 + n) / (10 + n)) if n else 0.0
        average = {k: d * v + (1 - d) * new[k].double() for k, v in average.items()}
    return average


@pytest.mark.parametrize("decay", [0.5, 0.998])
def test_the_average_is_that_of_the_steps(tmp_path, decay):
    """From the weights after the first step; counts of batches are the last ones."""
    trainer = trainer_of(tmp_path, ema=decay)
    trainer.train()
    assert len(trainer.weights) == 1 + 3 * 4
    expected = by_hand(trainer.weights[1:], decay)
    for name, value in trainer.model.state_dict().items():
        if "tracked" in name:
            assert value == trainer.weights[-1][name]
        else:
            assert torch.allclose(value.double(), expected[name], atol=1e-6), name
    assert not torch.allclose(
        trainer.model.state_dict()[f"{NORM}running_var"], trainer.weights[-1][f"{NORM}running_var"]
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trainer": dj.InputJitterTrainer, "sigma": 0.1},
        {
            "trainer": dj.RobustTrainer,
            "sigma": 0.1,
            "attack": dj.FrankWolfeAttack(dj.L2Ball(0.1), steps=1),
        },
    ],
)
def test_the_training_itself_is_as_without(tmp_path, options):
    ends = []
    for ema in (None, 0.9):
        trainer = trainer_of(tmp_path / str(ema), ema=ema, **options)
        trainer.train()
        ends.append(trainer)
    for a, b in zip(ends[0].weights, ends[1].weights, strict=True):
        assert_same(a, b)
    assert ends[0].loss_history == ends[1].loss_history
    plain, averaged = (torch.load(last_checkpoint(end, 2)) for end in ends)
    assert_same(plain["state_dict"], averaged["ema"]["raw"])
    assert plain["ema"] is None
    assert_same(averaged["state_dict"], ends[1].model.state_dict())
    assert averaged["ema"]["steps"] == 3 * 4


def test_the_average_is_validated_and_chosen(tmp_path):
    """Every checkpoint has the metric that was measured, of the weights that are in it."""
    data = [{"x": torch.randn(20, 2)}]
    data[0]["y"] = data[0]["x"] + 0.1
    trainer = trainer_of(
        tmp_path,
        6,
        ema=0.9,
        eval_dataloader=DataLoader(dinv.datasets.TensorDataset(**data[0]), 20),
        train_dataloader=DataLoader(dinv.datasets.TensorDataset(**data[0]), 5),
        online_measurements=False,
    )
    trainer.train()
    history = trainer.eval_metrics_history["MSE"]
    assert trainer.eval_loss_history["SupLoss"] == pytest.approx(history)
    best = min(range(6), key=history.__getitem__)
    files = {f"ckp_{epoch}": epoch for epoch in range(1, 6)} | {"ckp_best": best}
    plain = dj.UnfoldedGD(network(), stepsize=0.5, max_iter=3)
    for name, epoch in files.items():
        checkpoint = torch.load(Path(trainer.save_path) / f"{name}.pth.tar")
        plain.load_state_dict(checkpoint["state_dict"])
        x_net = plain.eval()(data[0]["y"], trainer.physics[0])
        assert MSE()(x_net, data[0]["x"]).mean().item() == pytest.approx(history[epoch])
    trainer.load_best_model()
    assert_same(
        trainer.model.state_dict(),
        torch.load(Path(trainer.save_path) / "ckp_best.pth.tar")["state_dict"],
    )
    # the host's trainer reads it as well
    host = build(tmp_path / "host", 7, trainer=dinv.Trainer, non_blocking_transfers=False)
    host.model, host.optimizer, host.scheduler = plain, None, None
    host.ckpt_pretrained = last_checkpoint(trainer, 5)
    host.load_model()
    assert_same(host.model.state_dict(), torch.load(last_checkpoint(trainer, 5))["state_dict"])


def test_attacks_see_the_weights_that_are_trained(tmp_path):
    seen = []

    class Noting(dj.FrankWolfeAttack):
        def forward(self, model, *args, **kwargs):
            seen.append(copied(model))
            return super().forward(model, *args, **kwargs)

    options = {"trainer": dj.AttackTrainer, "attack": Noting(dj.L2Ball(0.1), steps=1)}
    trainer = trainer_of(tmp_path, ema=0.9, **options)
    trainer.train()
    for found, expected in zip(seen, trainer.weights[:-1], strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("batch", [None, 1, 3, 6])
def test_a_resumed_run_is_exact(tmp_path, batch):
    """At the end of an epoch and amid one: weights, averages, running means, validation."""

    class Told(dj.JitterTrainer):
        struck, calls = None, 0

        def perturb(self, x, y, physics):
            self.calls += 1
            if self.calls == self.struck:
                os.kill(os.getpid(), signal.SIGTERM)
            return y

    whole = trainer_of(tmp_path / "whole", 4, trainer=Told, ema=0.9)
    whole.train()
    part = trainer_of(tmp_path / "part", 2 if batch is None else 4, trainer=Told, ema=0.9)
    part.struck = batch
    if batch is None:
        part.train()
    else:
        with pytest.raises(SystemExit):
            part.train()
    path = dj.latest_checkpoint(tmp_path / "part")
    # also where it ends early, the model has the average
    assert_same(part.model.state_dict(), torch.load(path)["state_dict"])
    again = trainer_of(tmp_path / "again", 4, seed=9, trainer=Told, ema=0.9, ckpt_pretrained=path)
    again.train()
    assert_same(again.model.state_dict(), whole.model.state_dict())
    assert again.eval_metrics_history == whole.eval_metrics_history
    assert again.eval_loss_history == whole.eval_loss_history
    ends = [torch.load(last_checkpoint(t, 3))["ema"] for t in (again, whole)]
    assert_same(ends[0].pop("raw"), ends[1].pop("raw"))
    assert ends[0] == ends[1] == {"decay": 0.9, "steps": 16}


def test_steps_that_are_not_made_do_not_count(tmp_path):
    """Of a batch that is left out, and of gradients that overflow in float16."""
    data = {"x": torch.randn(12, 2), "y": torch.randn(12, 2)}
    data["x"][6] = float("nan")
    trainer = trainer_of(
        tmp_path,
        2,
        ema=0.9,
        on_non_finite="skip",
        mixed_precision="float16",
        train_dataloader=DataLoader(dinv.datasets.TensorDataset(**data), 4),
        online_measurements=False,
        eval_dataloader=None,
        compute_eval_losses=False,
    )
    set_up = trainer.setup_train

    def with_a_scale_that_overflows(**kwargs):
        set_up(**kwargs)
        trainer.scaler._init_scale = 2.0**40

    trainer.setup_train = with_a_scale_that_overflows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    steps = len(trainer.weights) - 1
    assert trainer.skipped == [(0, 1), (1, 1)] and steps < 2 * 3 - 2
    saved = torch.load(last_checkpoint(trainer, 1))["ema"]
    assert saved["steps"] == steps
    for value in trainer.model.state_dict().values():
        assert value.isfinite().all()


def test_evaluation_within_epochs(tmp_path):
    """The model has its own weights again for the next batch."""
    trainer = trainer_of(tmp_path, 2, ema=0.9, log_train_batch=True, eval_interval=2)
    trainer.train()
    plain = trainer_of(tmp_path / "plain", 2, log_train_batch=True, eval_interval=2)
    plain.train()
    for a, b in zip(trainer.weights, plain.weights, strict=True):
        assert_same(a, b)


def test_a_second_training_begins_with_the_average(tmp_path):
    trainer = trainer_of(tmp_path, 1, ema=0.9)
    trainer.train()
    end = copied(trainer.model)
    trainer.weights.clear()
    trainer.epochs = 1
    trainer.train()
    # 4 steps, no hook of the first training is left
    assert len(trainer.weights) == 4
    saved = torch.load(Path(trainer.save_path) / "ckp_0.pth.tar")
    assert saved["ema"]["steps"] == 4
    assert not torch.equal(end[f"{NORM}weight"], trainer.weights[0][f"{NORM}weight"])


@pytest.mark.parametrize(
    "ema, error, message",
    [
        (1.0, ValueError, "ema must be positive and below 1, got 1.0"),
        (0.0, ValueError, "ema must be positive and below 1, got 0.0"),
        (-0.5, ValueError, "ema must be positive and below 1, got -0.5"),
        (float("nan"), ValueError, "ema must be finite, got nan"),
        ("0.9", TypeError, "ema must be a number, got '0.9'"),
        (True, TypeError, "ema must be a number, got True"),
    ],
)
def test_refused(tmp_path, ema, error, message):
    with pytest.raises(error, match=message):
        build(tmp_path, 1, ema=ema)


@pytest.mark.parametrize("saved, ema", [(0.9, 0.99), (0.9, None), (None, 0.9)])
def test_a_run_goes_on_with_its_ema(tmp_path, saved, ema):
    """Refused before anything is touched."""
    part = trainer_of(tmp_path / "part", 2, ema=saved)
    part.train()
    path = last_checkpoint(part, 1)
    other = trainer_of(tmp_path / "other", 4, ema=ema, ckpt_pretrained=path)
    before = copied(other.model)
    with pytest.raises(
        ValueError, match=f"the ema it began with, got ema={ema} and {saved} in .*keep it, or"
    ):
        other.train()
    assert_same(other.model.state_dict(), before)
    # its weights may be tested by any trainer
    other.ckpt_pretrained = path
    other.test(DataLoader(dj.PointDataset(4)))
    assert_same(other.model.state_dict(), part.model.state_dict())


def test_an_average_begins_at_the_weights_of_the_host_s_trainer(tmp_path):
    host = trainer_of(tmp_path / "a", 2, trainer=dinv.Trainer, non_blocking_transfers=False)
    host.train()
    trainer = trainer_of(tmp_path / "b", 3, ema=0.9, ckpt_pretrained=last_checkpoint(host, 1))
    trainer.train()
    expected = by_hand(trainer.weights[1:], 0.9)
    name = f"{NORM}weight"
    found = trainer.model.state_dict()[name].double()
    assert torch.allclose(found, expected[name], atol=1e-6)


class Masked(nn.Linear):
    """Some of its inputs are left out by infinities, as attention does."""

    def __init__(self):
        super().__init__(2, 2)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def forward(self, x):
        return super().forward(x) * self.mask.softmax(0)


def test_infinities_are_kept(tmp_path):
    trainer = trainer_of(tmp_path, ema=0.9)
    trainer.model.prior[0].network = Masked()
    trainer.optimizer = torch.optim.Adam(trainer.model.parameters())
    trainer.train()
    state = trainer.model.state_dict()
    assert torch.equal(state.pop("prior.0.network.mask"), Masked().mask)
    assert all(value.isfinite().all() for value in state.values())


class Holding(nn.Module):
    """Has the physics in itself, whose parameters come with the batches."""

    def __init__(self, physics):
        super().__init__()
        self.physics, self.layer = physics, nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, y, physics, **kwargs):
        return self.layer(self.physics.A_adjoint(y))


def test_masks_are_not_averaged():
    """Those of a physics, in batches of several sizes: as it is without an average."""
    ends = []
    for ema in (None, 0.9):
        torch.manual_seed(0)
        masks = dinv.physics.generator.BernoulliSplittingMaskGenerator((1, 8, 8), 0.5)
        physics = dinv.physics.Inpainting((1, 8, 8), mask=0.5)
        data = dinv.datasets.TensorDataset(x=torch.rand(5, 1, 8, 8), use_dict_output=True)
        model = Holding(physics)
        adam, loader = torch.optim.Adam(model.parameters()), DataLoader(data, 2)
        options = {"physics_generator": masks, "online_measurements": True, "device": "cpu"}
        options |= {"save_path": None, "verbose": False, "epochs": 2, "eval_dataloader": loader}
        dj.JitterTrainer(model, physics, adam, loader, ema=ema, **options).train()
        ends.append(physics.mask)
    assert torch.equal(*ends)
