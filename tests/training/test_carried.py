"""What a model and its losses carry from batch to batch is there when a training goes on."""

import deepinv as dinv
import pytest
import torch
from properties import assert_same
from test_engine import Points, held, quietly, remembering
from test_validation import LOSSES, build, everything

import deepinv_jitter as dj


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("losses", LOSSES)
def test_a_training_with_any_loss_is_resumed_exactly(tmp_path, losses, ema):
    """Learned levels, counts of batches, generators that come with the first batch."""
    options = {"ema": ema, "save_path": tmp_path}
    whole = build(losses, epochs=3, **options | {"save_path": None})
    whole.train()
    build(losses, epochs=1, **options).train()
    again = build(losses, epochs=3, **options, ckpt_pretrained=dj.latest_checkpoint(tmp_path))
    torch.manual_seed(9)
    again.train()
    assert_same(everything(again), everything(whole))
    assert again.eval_loss_history == whole.eval_loss_history


@pytest.mark.parametrize("spoilt", [2, 6, 10])
def test_the_same_amid_an_epoch(tmp_path, spoilt):
    """A warm start, a level that is learned, running means."""
    with pytest.raises(FloatingPointError):
        quietly(remembering(tmp_path / "cut", Points(spoilt)))
    path = dj.latest_checkpoint(tmp_path / "cut")
    ends = []
    for ckpt_pretrained in (None, path):
        trainer = remembering(tmp_path / "run", Points(), epochs=2, ckpt_pretrained=ckpt_pretrained)
        trainer.train()
        ends.append(held(trainer))
    assert_same(*ends)


class Weighted(dinv.loss.SupLoss):
    def __init__(self, weight):
        super().__init__()
        self.weight, self.calls = weight, 0

    def forward(self, x_net, x, **kwargs):
        self.calls += 1
        return self.weight * super().forward(x_net, x)


def test_what_no_batch_changes_is_as_the_script_says(tmp_path):
    first = build(epochs=1, save_path=tmp_path)
    first.losses = Weighted(1.0)
    first.train()
    again = build(epochs=2, ckpt_pretrained=dj.latest_checkpoint(tmp_path))
    again.losses = Weighted(2.0)
    again.train()
    (loss,) = again.losses
    # two training batches in each epoch; the validation leaves no trace
    assert (loss.weight, loss.calls) == (2.0, 4)


def test_generators_of_the_first_pass_do_not_stand_in_the_way(tmp_path):
    """A model that splits has one more module than it began with when it goes on."""

    def run(epochs):
        name = "splitting with its own generator"
        trainer = build(name, epochs=epochs, save_path=tmp_path)
        trainer.losses = [trainer.losses, Weighted(1.0)]
        trainer.ckpt_pretrained = dj.latest_checkpoint(tmp_path)
        trainer.train()
        return trainer.losses[1].calls

    assert [run(epochs=1), run(epochs=2)] == [2, 4]
