"""What a model and its losses carry from batch to batch is there when a training goes on."""

import pytest
import torch
from test_validation import LOSSES, assert_same, build, everything

import deepinv_jitter as dj


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("losses", [name for name in LOSSES if "splitting" in name])
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
