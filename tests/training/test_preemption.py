"""Whatever cuts a run off, it goes on as if nothing had been; and no file is ever half written."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from properties import assert_same_parameters
from test_trainers import SCHEMES, NoisyPoints, build, histories, last_checkpoint
from torch.utils.data import DataLoader

import deepinv_jitter as dj
from deepinv_jitter.training.preemption import Signals, replacing


def struck(trainer, number, batch):
    """Train, and send a signal to this process amid a batch, the first having the number 1."""
    compute_loss, batches = trainer.compute_loss, 0

    def strike(*args, train=True, **kwargs):
        nonlocal batches
        result = compute_loss(*args, train=train, **kwargs)
        batches += train
        if train and batches == batch:
            os.kill(os.getpid(), number)
        return result

    trainer.compute_loss = strike
    trainer.train()


@pytest.mark.parametrize("batch", [1, 3, 4, 10])  # of 4 in an epoch
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_run_that_is_told_to_end_goes_on_exactly(tmp_path, scheme, batch):
    options = SCHEMES[scheme]
    whole = build(tmp_path / "whole", 4, **options)
    whole.train()
    with pytest.raises(SystemExit) as end:
        struck(build(tmp_path / "run", 4, **options), signal.SIGTERM, batch)
    assert end.value.code == 128 + signal.SIGTERM
    checkpoint = dj.latest_checkpoint(tmp_path / "run")
    assert checkpoint.name == "ckp_interrupted.pth.tar"
    again = build(tmp_path / "run", 4, seed=99, ckpt_pretrained=checkpoint, **options)
    again.train()
    assert_same_parameters(again.model, whole.model)
    assert histories(again) == histories(whole)
    assert dj.latest_checkpoint(tmp_path / "run") == last_checkpoint(again, 3)
    assert again.seconds > 0


def test_a_run_goes_on_amid_an_epoch_of_several_data_sets_and_workers(tmp_path):
    def several(folder, **kwargs):
        loaders = [
            DataLoader(NoisyPoints(torch.Generator().manual_seed(i)), 6, shuffle=True)
            for i in range(2)
        ]
        loaders.append(DataLoader(NoisyPoints(None), 6, shuffle=True, num_workers=1))
        trainer = build(tmp_path / folder, 3, train_dataloader=loaders, **kwargs)
        trainer.physics = [trainer.physics] * 3
        trainer.eval_dataloader = None
        trainer.compute_eval_losses = False
        return trainer

    whole = several("whole")
    whole.train()
    with pytest.raises(SystemExit):
        struck(several("run"), signal.SIGTERM, 3 * 6)
    again = several("run", ckpt_pretrained=dj.latest_checkpoint(tmp_path / "run"))
    again.train()
    assert_same_parameters(again.model, whole.model)
    assert histories(again) == histories(whole)


@pytest.mark.parametrize(
    "minutes, written", [(None, 0), (0, 2 * 3), (1e-9, 2 * 3), (9, 0)]
)
def test_checkpoints_within_an_epoch(tmp_path, monkeypatch, minutes, written):
    """After every batch but the last of an epoch, if they are due."""
    trainer, saved = build(tmp_path, 2, ckp_minutes=minutes), []
    save_model = trainer.save_model
    monkeypatch.setattr(
        trainer,
        "save_model",
        lambda name, *args: saved.append(name) or save_model(name, *args),
    )
    trainer.train()
    assert saved.count("ckp_interrupted.pth.tar") == written


@pytest.mark.parametrize("minutes, error", [(-1, ValueError), ("9", TypeError)])
def test_minutes_refused(tmp_path, minutes, error):
    with pytest.raises(error, match="ckp_minutes must be .*, got"):
        build(tmp_path, 1, ckp_minutes=minutes)


class Ending(torch.utils.data.Dataset):
    """Of which the worker is ended, and its parent told to end, as by a signal to both."""

    def __init__(self, item=None):
        self.item = item

    def __len__(self):
        return 20

    def __getitem__(self, i):
        time.sleep(0.03)  # so that the parent waits
        if i == self.item and torch.utils.data.get_worker_info():
            os.kill(os.getppid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGKILL)
        return {"x": torch.tensor([i / 20, 0.5])}


@pytest.mark.parametrize("item", [0, 7, 13])  # in batches of 6
def test_a_signal_that_ends_the_workers_too(tmp_path, item):
    def build_with(folder, data, **kwargs):
        loader = DataLoader(data, 6, num_workers=1, prefetch_factor=1)
        return build(tmp_path / folder, 2, train_dataloader=loader, **kwargs)

    whole = build_with("whole", Ending())
    whole.train()
    with pytest.raises(SystemExit) as end:
        build_with("run", Ending(item)).train()
    assert end.value.code == 128 + signal.SIGTERM
    checkpoint = dj.latest_checkpoint(tmp_path / "run")
    state = torch.load(checkpoint, weights_only=True)["ranks"][0]
    assert state.get("batch", 0) == item // 6
    again = build_with("run", Ending(), seed=99, ckpt_pretrained=checkpoint)
    again.train()
    assert_same_parameters(again.model, whole.model)
    assert histories(again) == histories(whole)


def test_ctrl_c_saves_as_well(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        struck(build(tmp_path, 3), signal.SIGINT, 2)
    assert dj.latest_checkpoint(tmp_path).name == "ckp_interrupted.pth.tar"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    with pytest.raises(KeyboardInterrupt), Signals():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        pytest.fail("the second was not obeyed")


def test_a_signal_after_the_last_batch_ends_the_finished_run(tmp_path):
    trainer = build(tmp_path, 2)
    with pytest.raises(SystemExit):
        struck(trainer, signal.SIGTERM, 2 * 4)
    assert dj.latest_checkpoint(tmp_path) == last_checkpoint(trainer, 1)


@contextmanager
def handler(number, function):
    former = signal.signal(number, function)
    try:
        yield
    finally:
        signal.signal(number, former)


def test_handlers_of_others_are_told(tmp_path):
    told = []
    with handler(signal.SIGTERM, lambda number, frame: told.append(number)):
        with pytest.raises(SystemExit):
            struck(build(tmp_path, 2), signal.SIGTERM, 1)
    assert told == [signal.SIGTERM]


def test_ignored_signals_stay_ignored(tmp_path):
    """As in a process that a shell started in the background."""
    with handler(signal.SIGINT, signal.SIG_IGN):
        struck(build(tmp_path, 1), signal.SIGINT, 1)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_training_in_another_thread(tmp_path):
    trainer = build(tmp_path, 1)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert len(trainer.loss_history["SupLoss"]) == 1


def test_the_best_model_goes_along(tmp_path):
    with pytest.raises(SystemExit):
        struck(build(tmp_path / "a", 4), signal.SIGTERM, 6)
    best = torch.load(next((tmp_path / "a").glob("*/ckp_best.pth.tar")))
    trainer = build(
        tmp_path / "b", 2, ckpt_pretrained=dj.latest_checkpoint(tmp_path / "a")
    )
    trainer.setup_train()
    trainer.load_best_model()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, best["state_dict"][name])


def test_the_newest_checkpoint_of_a_folder(tmp_path):
    assert dj.latest_checkpoint(tmp_path) is None
    for age, name in enumerate(["ckp_best", "ckp_7", "ckp_interrupted", "ckp_9"]):
        (tmp_path / name).mkdir()
        path = tmp_path / name / f"{name}.pth.tar"
        path.touch()
        os.utime(path, (100 - age, 100 - age))
    (
        tmp_path / "ckp_9" / "ckp_11.pth.tar.123.tmp"
    ).touch()  # of a process that was killed
    assert dj.latest_checkpoint(tmp_path).name == "ckp_7.pth.tar"


@contextmanager
def disk_of(size):
    """As on a disk with so many bytes left: writing more fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_what_was_there(tmp_path):
    trainer = build(tmp_path, 2)
    trainer.train()
    path = last_checkpoint(trainer, 1)
    before = path.read_bytes()
    with disk_of(2000):
        with pytest.raises(
            OSError, match="ckp_1.pth.tar' could not be written, what was"
        ):
            trainer.save_model(path.name, 1)
    assert path.read_bytes() == before
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".tar", ".tar"]


def test_a_full_disk_keeps_the_state_of_an_evaluation(tmp_path):
    model = dj.UnfoldedGD(dj.PointMLP(), max_iter=2)
    physics = build(tmp_path, 1).physics

    def evaluate(size):
        with disk_of(size):
            return dj.evaluate_robustness(
                model,
                [torch.ones(4, 2)] * 2,
                physics,
                epsilons=[0.1],
                attacks="quick",
                state=tmp_path / "state",
                verbose=False,
            )

    with pytest.raises(
        OSError, match="state' could not be written, what was there before"
    ):
        evaluate(5000)
    torch.load(tmp_path / "state", weights_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    evaluate(10**6)


def test_a_draft_that_fails_leaves_no_trace(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), replacing(path) as draft:
        draft.write_text("half")
        1 / 0
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written(tmp_path):
    """Said before any training; a file in place of the folder, as root may write anywhere."""
    (tmp_path / "runs").touch()
    with pytest.raises(OSError, match="runs"):
        build(tmp_path / "runs", 1).train()
    with pytest.raises(
        OSError, match="could not be written, what was there before is kept"
    ):
        with replacing(tmp_path / "runs" / "file") as draft:
            draft.write_text("x")


def test_kill_9_at_random_moments(tmp_path):
    """Of training, sweep and paper runner, by a process that forks them."""
    script = Path(__file__).parent.with_name("killed.py")
    command = [sys.executable, str(script), str(tmp_path), "--kills", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("killed after") == 6
    assert done.stdout.count("equal bit for bit") >= 3
