"""A training in one call is that of a trainer with its arguments written out."""

import deepinv as dinv
import pytest
import torch
from torch.utils.data import DataLoader

import deepinv_jitter as dj

PHYSICS = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
X, Y = torch.zeros(6, 2), 0.1 * torch.ones(6, 2)


def samples(**tensors):
    return dinv.datasets.TensorDataset(**tensors, use_dict_output=True)


def network():
    torch.manual_seed(0)
    return dj.UnfoldedGD(dj.PointMLP(hidden=4), stepsize=0.5, max_iter=2, jitter=0.1)


def by_hand(data, trainer=dj.JitterTrainer, batch_size=4, **options):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = DataLoader(data, batch_size, shuffle=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    options = {"grad_clip": 1.0, "scheduler": schedule, "verbose": False} | options
    return trainer(model, PHYSICS, optimizer, loader, epochs=3, save_path=None, **options).train()


ATTACK = dj.FrankWolfeAttack(dj.L2Ball(0.1), steps=1)


# the data, the arguments of fit, those of the trainer beside them
@pytest.mark.parametrize(
    "data, options, others",
    [
        (samples(x=X), {}, {"online_measurements": True}),
        (samples(x=X, y=Y), {"batch_size": 3}, {}),
        (samples(x=X, y=Y), {"grad_clip": None, "ema": 0.9}, {}),
        (samples(x=X, y=Y), {"trainer": dj.AttackTrainer, "attack": ATTACK}, {}),
    ],
)
def test_is_the_trainer(data, options, others):
    fitted = dj.fit(network(), PHYSICS, data, epochs=3, lr=0.01, **options)
    expected = by_hand(data, **options, **others)
    for p, q in zip(fitted.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not any(module.training for module in fitted.modules())


def test_a_loader_comes_as_it_is_and_the_model_is_trained_in_place(capsys):
    model = network()
    before = [p.clone() for p in model.parameters()]
    loader = DataLoader(samples(x=X, y=Y), batch_size=6)
    assert dj.fit(model, PHYSICS, loader, epochs=1) is model
    assert not all(map(torch.equal, before, model.parameters()))
    assert capsys.readouterr() == ("", "")


def test_what_a_loss_wraps_around_the_model_is_returned():
    """As by the trainer: it averages over corrupted measurements in evaluation."""
    model, loss = network(), dinv.loss.R2RLoss(eval_n_samples=2)
    fitted = dj.fit(model, PHYSICS, samples(x=X, y=Y), epochs=1, losses=loss)
    assert isinstance(fitted, type(loss.adapt_model(network())))
    assert fitted.model is model and not fitted.training


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"model": None}, TypeError, "model must be a torch.nn.Module, got NoneType"),
        ({"data": []}, TypeError, "data set with at least one sample, .* got list"),
        ({"data": iter([X])}, TypeError, "data must be a data set with at least one"),
        ({"epochs": 0}, ValueError, "epochs must be .* at least 1, got 0"),
        ({"lr": 0}, ValueError, "lr must be positive and below 1e.06, got 0"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be a whole number"),
    ],
)
def test_refused(change, error, message):
    held = {"model": network(), "data": samples(x=X), "epochs": 1}
    with pytest.raises(error, match=message):
        dj.fit(physics=PHYSICS, **held | change)
