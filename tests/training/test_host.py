"""What is used of deepinv's Trainer beyond its documentation is there, and in one module alone."""

import ast
import functools
import inspect
import time
import traceback
from pathlib import Path

import deepinv as dinv
import pytest
import torch
from test_trainers import attack, build, last_checkpoint

import deepinv_jitter as dj
from deepinv_jitter.training import host
from deepinv_jitter.training.engine import Engine

ROOM = Path(host.__file__).parent
HOST = {"trainer": dinv.Trainer, "non_blocking_transfers": False, "check_grad": True}
PRIVATE = {*host.ATTRIBUTES, *host.ASKED_FOR, *host.ITERATORS}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """deepinv's own trainer after a training, and what it was asked in its course."""
    trainer = build(tmp_path_factory.mktemp("host"), 2, compare_no_learning=True, **HOST)
    trainer.asked = []

    def noted(name, method, *args, **kwargs):
        trainer.asked.append(name)
        return method(*args, **kwargs)

    for name in ("reset_metrics", "step", "check_clip_grad", "save_best_model"):
        method = getattr(trainer, name)
        setattr(trainer, name, functools.partial(noted, name, method))
    trainer.optimizer.register_step_pre_hook(lambda *_: trainer.asked.append("made"))
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", sorted(PRIVATE | {*host.SET_BY_TEST}))
def test_a_trainer_has(trained, name):
    assert hasattr(trained, name)


def test_a_meter_holds_what_is_kept_of_it():
    meter = host.AverageMeter("name")
    assert {*vars(meter)} == {*host.COUNTS, *host.NAMES}
    meter.update(torch.arange(3.0).numpy())
    other = host.AverageMeter("other")
    host.refill(other, meter.vals)
    assert host.content(other) == host.content(meter)


def test_a_checkpoint_is_called_and_holds_what_is_looked_for(trained):
    folder = Path(trained.save_path)
    names = sorted(path.name for path in folder.glob(host.CHECKPOINTS))
    assert names == ["ckp_1.pth.tar", host.BEST]
    saved = torch.load(last_checkpoint(trained, 1), weights_only=True)
    keys = {"state_dict", "epoch", "optimizer", "scheduler", *host.HISTORIES.values()}
    assert keys <= saved.keys()
    for name, key in host.HISTORIES.items():
        assert saved[key] == getattr(trained, name)


def test_losses_of_one_class_are_left_out_together(tmp_path):
    """They share a history, of one entry for each in an epoch."""
    trainer = build(tmp_path, 2, losses=[dinv.loss.SupLoss(), dinv.loss.SupLoss()])
    trainer.train()
    whole = trainer.loss_history["SupLoss"]
    with trainer.without_last_losses():
        assert trainer.loss_history["SupLoss"] == whole[:2]
    assert trainer.loss_history["SupLoss"] is whole and len(whole) == 4


def test_a_folder_is_taken_by_the_run_of_this_second(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "get_timestamp", lambda: "now")
    assert not host.folder_is_taken(None) and not host.folder_is_taken(tmp_path)
    (tmp_path / "now").mkdir()
    assert host.folder_is_taken(tmp_path)


def test_a_second_training_waits_for_a_folder_of_its_own(tmp_path, monkeypatch):
    second = 0

    def sleep(_):
        nonlocal second
        second += 1

    monkeypatch.setattr(time, "sleep", sleep)
    for module in (host, dinv.training.trainer):
        monkeypatch.setattr(module, "get_timestamp", lambda: f"second {second}")
    for _ in range(3):
        build(tmp_path, 1).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"second {n}" for n in range(3)]


def test_what_is_without_learning_is_of_one_epoch(tmp_path):
    """The host adds up that of all."""
    trainer = build(tmp_path, 3, compare_no_learning=True)
    trainer.train()
    (_, meter), (_, learned) = *trainer.no_learning_meters(), *trainer.metric_meters(train=False)
    assert len(meter.vals) == len(learned.vals) > 0


def test_an_epoch_begins_and_ends_with_the_calls_that_are_relied_on(trained):
    """Meters are reset first, gradients checked before a step; validation ends with the best."""
    training = ["step", "check_clip_grad", "made"] * 4
    epoch = ["reset_metrics", *training, *["step"] * 4, "save_best_model"]
    assert trained.asked == epoch * 2


LOSSES = {
    "SplittingModel": lambda: dinv.loss.SplittingLoss(eval_n_samples=1),
    "R2RModel": dinv.loss.R2RLoss,
    "ScoreModel": lambda: dinv.loss.ScoreLoss(total_batches=1),
    "ReducedResolutionModel": dinv.loss.ReducedResolutionLoss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_loss_wraps_around_a_network_is_known(name):
    model = LOSSES[name]().adapt_model(dj.UnfoldedGD(dj.PointMLP(), max_iter=1))
    assert isinstance(model, host.ADAPTERS) and type(model).__name__ == name
    assert len(LOSSES) == len(host.ADAPTERS)


class Told(torch.nn.Linear):
    """As deepinv's models that take parameters of the physics."""

    def forward(self, y, physics, update_parameters=False):
        return super().forward(y) + update_parameters


@pytest.mark.parametrize("told", [True, False])
def test_another_module_is_passed_like_the_model(tmp_path, told):
    trainer = build(tmp_path, 1, scheduler=None, mixed_precision="bfloat16")
    network = torch.nn.Linear(2, 2)
    trainer.model = Told(2, 2) if told else dj.UnfoldedGD(network, max_iter=2)
    trainer.setup_train()
    trainer.model.eval()
    y, physics = torch.randn(3, 2), trainer.physics[0]
    passed = trainer.pass_through(trainer.model, y, physics)
    assert trainer.model.training
    assert torch.equal(passed, trainer.model_inference(y, physics, train=True))
    assert passed.dtype == (torch.bfloat16 if told else torch.float32)


METHODS = {
    name: method
    for kind in Engine.__mro__
    if kind.__module__.startswith("deepinv_jitter")
    for name, method in vars(kind).items()
    if inspect.isfunction(method) and hasattr(dinv.Trainer, name)
}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"__init__", "__eq__", "__repr__"}))
def test_a_method_takes_what_the_host_s_does(name):
    theirs = inspect.signature(getattr(dinv.Trainer, name)).parameters
    ours = inspect.signature(METHODS[name]).parameters
    named = [p for p in ours if p not in ("args", "kwargs")]
    assert list(theirs)[: len(named)] == named
    assert len(named) == len(theirs) or "kwargs" in ours


def test_another_version_is_told_what_it_lacks(tmp_path, monkeypatch):
    setup = dinv.Trainer.setup_train

    def without(self, train=True, **kwargs):
        setup(self, train=train, **kwargs)
        del self.epoch_start, self.logs_losses_eval

    monkeypatch.setattr(dinv.Trainer, "setup_train", without)
    message = "builds on deepinv 0.5, but version .* has no epoch_start, logs_losses_eval in"
    with pytest.raises(RuntimeError, match=f"{message} its Trainer: install 'deepinv>=0.5"):
        build(tmp_path, 1).train()


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.py")), ids=lambda path: path.stem)
def test_no_other_module_knows_the_host_s_private_parts(path):
    tree = ast.parse(path.read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert path.stem == "host" or not used & PRIVATE


def test_a_batch_passes_few_of_our_frames_on_its_way_to_the_loss(tmp_path):
    """One for each of deepinv's methods that calls the next."""
    seen = []

    class Noting(dinv.loss.SupLoss):
        def forward(self, x_net, x, **kwargs):
            frames = traceback.extract_stack()
            seen.append([f.name for f in frames if Path(f.filename).is_relative_to(ROOM)])
            return super().forward(x_net, x, **kwargs)

    options = {"trainer": dj.AttackTrainer, "attack": attack(), "persistent": True}
    losses = Noting(metric=dinv.metric.MSE())
    build(tmp_path, 1, losses=losses, ema=0.9, **options).train()
    assert seen[0] == ["train", "step", "compute_loss"]
