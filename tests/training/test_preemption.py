"""Whatever cuts a run off, it goes on as if nothing had been; and no file is ever half written."""

import fcntl
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
import signalled
import torch
from properties import assert_same_parameters
from test_trainers import SCHEMES, NoisyPoints, build, histories, last_checkpoint
from torch.utils.data import DataLoader

import deepinv_jitter as dj
from deepinv_jitter.training.preemption import Interrupted, Signals, replacing
from deepinv_jitter.training.workers import Shielded


def struck(trainer, number, batch, training=True):
    """Train, and send a signal to this process amid a batch, the first having the number 1."""
    compute_loss, batches = trainer.compute_loss, 0

    def strike(*args, train=True, **kwargs):
        nonlocal batches
        result = compute_loss(*args, train=train, **kwargs)
        batches += train == training
        if train == training and batches == batch:
            os.kill(os.getpid(), number)
        return result

    trainer.compute_loss = strike
    trainer.train()


# Of 4 batches in an epoch, training and validation, counted from the stop before: in the first
# epoch, at its end, in the third, and in the validation of that
STOPS = [(1, True), (3, True), (6, True), (2, False)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_run_that_is_told_to_end_goes_on_exactly(tmp_path, scheme):
    """Again and again, each time in a trainer that is built with another seed."""
    options = SCHEMES[scheme]
    whole = build(tmp_path / "whole", 4, **options)
    whole.train()
    checkpoint = None
    for seed, stop in enumerate(STOPS):
        part = build(tmp_path / "run", 4, seed=seed, ckpt_pretrained=checkpoint, **options)
        with pytest.raises(SystemExit) as end:
            struck(part, signal.SIGTERM, *stop)
        assert end.value.code == 128 + signal.SIGTERM
        checkpoint = dj.latest_checkpoint(tmp_path / "run")
        assert checkpoint.name == "ckp_interrupted.pth.tar"
    again = build(tmp_path / "run", 4, seed=99, ckpt_pretrained=checkpoint, **options)
    again.train()
    assert_same_parameters(again.model, whole.model)
    assert histories(again) == histories(whole)
    if scheme == "persistent attack":
        assert again.monitor_history == whole.monitor_history
    assert dj.latest_checkpoint(tmp_path / "run") == last_checkpoint(again, 3)
    assert again.seconds > 0


def test_a_validation_may_be_interrupted_again_and_again(tmp_path):
    whole = build(tmp_path / "whole", 2)
    whole.train()
    for batch in (2, 3, 1):
        path = dj.latest_checkpoint(tmp_path / "run")
        with pytest.raises(SystemExit):
            run = build(tmp_path / "run", 2, ckpt_pretrained=path)
            struck(run, signal.SIGTERM, batch, training=False)
    path = dj.latest_checkpoint(tmp_path / "run")
    again = build(tmp_path / "run", 2, ckpt_pretrained=path)
    again.train()
    assert_same_parameters(again.model, whole.model)
    assert histories(again) == histories(whole)


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


@pytest.mark.parametrize("minutes, written", [(None, 0), (0, 2 * 3), (1e-9, 2 * 3), (9, 0)])
def test_checkpoints_within_an_epoch(tmp_path, monkeypatch, minutes, written):
    """After every batch but the last of an epoch, if they are due."""
    trainer, saved = build(tmp_path, 2, ckp_minutes=minutes), []
    save_model = trainer.save_model
    monkeypatch.setattr(
        trainer, "save_model", lambda name, *args: saved.append(name) or save_model(name, *args)
    )
    trainer.train()
    assert saved.count("ckp_interrupted.pth.tar") == written


def test_the_best_model_is_no_checkpoint_to_go_on_from(tmp_path):
    """It does not put off the next one."""
    trainer = build(tmp_path, 1, ckp_minutes=5)
    trainer.setup_train()
    trainer._clock.start()
    trainer._clock._since -= 600
    trainer.save_model("ckp_best.pth.tar", 0)
    assert trainer._clock.due(5)
    trainer.save_model("ckp_0.pth.tar", 0)
    assert not trainer._clock.due(5)


@pytest.mark.parametrize("minutes, error", [(-1, ValueError), ("9", TypeError)])
def test_minutes_refused(tmp_path, minutes, error):
    with pytest.raises(error, match="ckp_minutes must be .*, got"):
        build(tmp_path, 1, ckp_minutes=minutes)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of runs whose processes all got a signal, their workers too."""
    folder = tmp_path_factory.mktemp("signalled")
    done = subprocess.run([sys.executable, signalled.__file__, folder], timeout=400)
    assert done.returncode == 0
    return torch.load(folder / "outcomes.pt", weights_only=True)


@pytest.mark.parametrize("case", signalled.CASES)
def test_a_signal_to_all_processes_of_a_run(outcomes, case):
    place, number, *_ = signalled.CASES[case]
    outcome = outcomes[case]
    assert outcome["status"] == 128 + number
    if place == "test":
        assert outcome["said"] == ""
        return
    assert outcome["said"].startswith("Interrupted in epoch ")
    assert outcome["said"].count("\n") == 1
    if "end" in outcome:
        weights, *histories = outcome["end"]
        expected, *whole = outcomes["whole"]
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        assert histories == whole


@pytest.fixture
def worker():
    """One that another process just told to end, of a loader that is as before."""
    loader = DataLoader(range(9), num_workers=1, worker_init_fn=print)
    iterator = iter(Shielded(loader))
    assert loader.worker_init_fn is print and next(iterator) == 0
    (worker,) = iterator._workers
    for number in (signal.SIGINT, signal.SIGTERM):
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
    return worker, iterator


def test_a_worker_obeys_its_own_process_alone(worker):
    worker, iterator = worker
    worker.join(0.5)
    assert worker.is_alive() and list(iterator) == [*range(1, 9)]
    # As torch and multiprocessing do with one that hangs
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


def test_where_the_sender_is_not_known_ctrl_c_is_left_alone(monkeypatch):
    """As on macOS."""
    monkeypatch.delattr(signal, "sigwaitinfo")
    iterator = iter(Shielded(DataLoader(range(9), num_workers=1)))
    assert next(iterator) == 0
    (worker,) = iterator._workers
    subprocess.run(["kill", "-INT", str(worker.pid)], check=True)
    worker.join(0.3)
    assert worker.is_alive() and list(iterator) == [*range(1, 9)]
    worker.terminate()
    worker.join(5)
    assert not worker.is_alive()


def test_what_is_said_of_an_interruption(tmp_path, caplog, capsys, monkeypatch):
    """The file, the epoch as the bar counts it, and the call that goes on."""
    # Bars are for terminals
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run = build(tmp_path, 3, verbose=True, show_progress_bar=True)
    with pytest.raises(SystemExit):
        struck(run, signal.SIGTERM, 6)
    path = dj.latest_checkpoint(tmp_path)
    assert caplog.messages == [
        f"Interrupted in epoch 2/3, after batch 2: saved as {path}, to go on with "
        f"ckpt_pretrained=dj.latest_checkpoint({str(tmp_path)!r})."
    ]
    assert "passing over" not in capsys.readouterr().err
    build(tmp_path, 3, verbose=True, show_progress_bar=True, ckpt_pretrained=path).train()
    assert "Train epoch 2/3, passing over known batches" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ({"save_path": None}, "batch 1: nothing is saved, as save_path is None."),
        ({"log_train_batch": True}, "log_train_batch=True keeps whole epochs alone."),
    ],
)
def test_what_is_said_where_nothing_is_saved(tmp_path, caplog, options, message):
    with pytest.raises(SystemExit):
        struck(build(tmp_path, 2, **options), signal.SIGTERM, 1)
    assert message in caplog.text


def test_ctrl_c_saves_as_well(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as end:
        struck(build(tmp_path, 3), signal.SIGINT, 2)
    assert isinstance(end.value, Interrupted) and end.value.code == 130
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
    trainer = build(tmp_path, 2, eval_dataloader=None)
    with pytest.raises(SystemExit):
        struck(trainer, signal.SIGTERM, 2 * 4)
    assert dj.latest_checkpoint(tmp_path) == last_checkpoint(trainer, 1)


def test_a_test_that_is_interrupted_leaves_the_trainer_as_it_was(tmp_path):
    trainer = build(tmp_path, 1)
    trainer.train()
    trainer.wandb_setup, run = {"mode": "offline"}, trainer.save_path
    trainer.metrics[0].register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        trainer.test(trainer.eval_dataloader)
    assert trainer.wandb_setup == {"mode": "offline"} and trainer.save_path == run


def test_a_test_before_a_training_that_goes_on(tmp_path):
    build(tmp_path, 2).train()
    path = dj.latest_checkpoint(tmp_path)
    trainer = build(tmp_path, 3, ckpt_pretrained=path)
    trainer.test(trainer.eval_dataloader)
    assert trainer.ckpt_pretrained == path
    trainer.train()
    assert trainer.first_epoch == 2 and len(trainer.loss_history["SupLoss"]) == 3


@contextmanager
def handler(number, function):
    former = signal.signal(number, function)
    try:
        yield
    finally:
        signal.signal(number, former)


def test_handlers_of_others_are_told(tmp_path):
    told = []
    noted = handler(signal.SIGTERM, lambda number, frame: told.append(number))
    with noted, pytest.raises(SystemExit):
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
    trainer = build(tmp_path / "b", 2, ckpt_pretrained=dj.latest_checkpoint(tmp_path / "a"))
    trainer.setup_train()
    trainer.load_best_model()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, best["state_dict"][name])


@pytest.mark.parametrize("damaged", [lambda content: content[:1000], lambda _: b"something else"])
def test_a_damaged_best_model_is_left_behind(tmp_path, damaged):
    build(tmp_path, 2).train()
    path = dj.latest_checkpoint(tmp_path)
    best = path.with_name("ckp_best.pth.tar")
    best.write_bytes(damaged(best.read_bytes()))
    again = build(tmp_path, 3, ckpt_pretrained=path)
    with pytest.warns(UserWarning, match="best model so far is not taken along, .*ckp_best"):
        again.train()
    assert len(again.loss_history["SupLoss"]) == 3


def checkpoint(path, time=None, epoch=0, batch=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"batch": batch} if batch else {}
    content = {"state_dict": {}, "epoch": epoch, "ranks": [state]}
    torch.save(content | ({} if time is None else {"time": time}), path)
    return path


def test_the_newest_checkpoint_of_a_folder(tmp_path):
    """By what they say: when they were written, then how far they are."""
    assert dj.latest_checkpoint(tmp_path) is None
    begun = 1.79e9  # a day in 2026
    old, older = "26-09-21-12:00:00", "26-09-20-12:00:00"  # as deepinv names folders
    ranked = [
        checkpoint(tmp_path / "a" / "ckp_5.pth.tar", epoch=5),  # nothing is known
        checkpoint(tmp_path / older / "ckp_9.pth.tar", epoch=9),
        checkpoint(tmp_path / old / "ckp_2.pth.tar", epoch=2),
        checkpoint(tmp_path / old / "ckp_interrupted.pth.tar", epoch=2, batch=3),
        checkpoint(tmp_path / old / "ckp_10.pth.tar", epoch=10),
        checkpoint(tmp_path / "b" / "ckp_7.pth.tar", time=begun + 1e6, epoch=7),
        checkpoint(tmp_path / "b" / "c" / "ckp_3.pth.tar", time=begun + 1e6 + 1e-3),
    ]
    checkpoint(tmp_path / "b" / "ckp_best.pth.tar", time=begun + 1e7)
    (tmp_path / "b" / "ckp_8.pth.tar.123.tmp").touch()  # of a process that was killed
    for age, path in enumerate(ranked):
        os.utime(path, (1e9 - age, 1e9 - age))  # as a copy may have it
    while ranked:
        assert dj.latest_checkpoint(tmp_path) == ranked[-1]
        assert dj.latest_checkpoint(ranked[-1].parent) == ranked[-1]
        ranked.pop().unlink()


def test_a_damaged_checkpoint_is_left_out(tmp_path):
    kept = checkpoint(tmp_path / "a" / "ckp_1.pth.tar")
    (tmp_path / "a" / "ckp_2.pth.tar").write_bytes(kept.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="ckp_2.pth.tar' is damaged or no checkpoint"):
        assert dj.latest_checkpoint(tmp_path) == kept


def test_the_last_checkpoint_is_the_newest_although_clocks_go_back(tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        struck(build(tmp_path, 3), signal.SIGTERM, 6)
    path = dj.latest_checkpoint(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    again = build(tmp_path, 3, ckpt_pretrained=path)
    again.train()
    assert dj.latest_checkpoint(tmp_path) == last_checkpoint(again, 2)


def test_a_trainer_that_trains_again(tmp_path):
    """As where a cell of a notebook is run twice: another folder beside the first."""
    trainer = build(tmp_path, 2)
    trainer.train()
    first = Path(trainer.save_path)
    trainer.epochs, trainer.ckpt_pretrained = 4, dj.latest_checkpoint(tmp_path)
    trainer.train()
    second = Path(trainer.save_path)
    assert first.parent == second.parent == tmp_path and first != second
    assert dj.latest_checkpoint(tmp_path) == second / "ckp_3.pth.tar"
    assert dj.latest_checkpoint(second) == second / "ckp_3.pth.tar"
    assert len(trainer.loss_history["SupLoss"]) == 4
    trainer.load_best_model()
    trainer.save_path = tmp_path / "elsewhere"
    trainer.train()
    assert Path(trainer.save_path).parent == tmp_path / "elsewhere"


def test_a_training_that_does_not_begin_leaves_no_folder(tmp_path):
    path = checkpoint(tmp_path / "a" / "ckp_1.pth.tar")  # without weights
    trainer = build(tmp_path / "b", 2, ckpt_pretrained=path)
    for _ in range(2):  # and is told again
        with pytest.raises(ValueError, match="must be of this model"):
            trainer.train()
        assert [*(tmp_path / "b").iterdir()] == []
        assert trainer.save_path == tmp_path / "b"


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
    with (
        disk_of(2000),
        pytest.raises(OSError, match="ckp_1.pth.tar' could not be written, what was"),
    ):
        trainer.save_model(path.name, 1)
    assert path.read_bytes() == before
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".tar", ".tar"]


@pytest.mark.parametrize("size, file", [(5000, "state.batch"), (20_000, "state")])
def test_a_full_disk_keeps_the_state_of_an_evaluation(tmp_path, size, file):
    model = dj.UnfoldedGD(dj.PointMLP(), max_iter=2)
    physics = build(tmp_path, 1).physics

    def evaluate(size):
        with disk_of(size):
            return dj.evaluate_robustness(
                model,
                [torch.ones(4, 2)] * 3,
                physics,
                epsilons=[0.1],
                attacks="quick",
                state=tmp_path / "state",
                verbose=False,
            )

    with pytest.raises(OSError, match=f"{file}' could not be written, what was there before"):
        evaluate(size)
    assert {path.name for path in tmp_path.iterdir()} <= {"state", "state.batch"}
    assert len(evaluate(10**6).digests) == 12


def test_a_draft_that_fails_leaves_no_trace(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), replacing(path) as draft:
        draft.write_text("half")
        1 / 0
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_flushed_as_every_system_allows_it(tmp_path, monkeypatch):
    """Windows refuses to flush what is open for reading alone."""
    flushed, fsync = [], os.fsync

    def strict(number):
        assert fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        flushed.append(fsync(number))

    monkeypatch.setattr(os, "fsync", strict)
    with replacing(tmp_path / "file") as draft:
        draft.write_text("x")
    assert len(flushed) == 1 and (tmp_path / "file").read_text() == "x"


def test_a_folder_that_cannot_be_written(tmp_path):
    """Said before any training; a file in place of the folder, as root may write anywhere."""
    (tmp_path / "runs").touch()
    with pytest.raises(OSError, match="runs"):
        build(tmp_path / "runs", 1).train()
    with (
        pytest.raises(OSError, match="could not be written, what was there before is kept"),
        replacing(tmp_path / "runs" / "file") as draft,
    ):
        draft.write_text("x")


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path):
    """Of training, sweep and paper runner, by a process that forks them."""
    script = Path(__file__).parent.with_name("killed.py")
    command = [sys.executable, str(script), str(tmp_path), "--kills", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("killed after") == 6
    assert done.stdout.count("equal bit for bit") >= 3
