"""What a training tells: bars or lines, curves, and to wandb and mlflow."""

import sys
from types import SimpleNamespace

import deepinv as dinv
import pytest
import torch
from deepinv.loss.metric import MSE, PSNR
from test_trainers import build, last_checkpoint

import deepinv_jitter as dj
from deepinv_jitter.training import progress

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("trainer", [dj.JitterTrainer, dj.RobustTrainer])
def test_without_verbose_nothing_is_said(tmp_path, capfd, recwarn, trainer):
    options = {"trainer": trainer, "ema": 0.9, "metrics": PSNR(max_pixel=1.0)}
    if trainer is dj.RobustTrainer:
        ball = dj.L2Ball(0.1)
        options |= {"attack": dj.FrankWolfeAttack(ball, steps=1), "sigma": 0.1}
    run = build(tmp_path, 2, **options)
    run.train()
    run.test(run.eval_dataloader)
    run.load_best_model()
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("frequency", [{}, {"freq_update_progress_bar": 1}])
def test_no_warning_on_a_cpu(tmp_path, capfd, recwarn, monkeypatch, terminal, frequency):
    """The host's of a GPU, above all."""
    monkeypatch.setattr(progress, "_overwrites", lambda: terminal)
    build(tmp_path, 2, verbose=True, **frequency).train()
    assert [str(w.message) for w in recwarn] == []


def test_a_log_file_has_a_line_for_each_epoch(tmp_path, capfd):
    run = build(tmp_path, 4, verbose=True, eval_interval=2, metrics=MSE())
    run.train()
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"Epoch {i}/4" for i in (1, 2, 3, 4)]
    loss = run.loss_history["SupLoss"]
    metric, eval_loss = (
        next(iter(history.values()))
        for history in (run.eval_metrics_history, run.eval_loss_history)
    )
    validation = f"; validation: SupLoss {eval_loss[0]:.4g}, MSE {metric[0]:.4g}"
    assert lines[0] == f"Epoch 1/4: SupLoss {loss[0]:.4g}{validation}"
    assert lines[1] == f"Epoch 2/4: SupLoss {loss[1]:.4g}"  # not evaluated
    assert "\r" not in out + err and "Train epoch" not in out and "Eval epoch" not in out
    assert run.show_progress_bar  # as the user set it
    run.test(run.eval_dataloader)
    out, err = capfd.readouterr()
    assert err == "" and out.startswith("Test results:")


def test_within_epochs_there_are_no_more_lines(tmp_path, capfd):
    run = build(tmp_path, 2, verbose=True, log_train_batch=True, eval_interval=1)
    run.train()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all("; validation: SupLoss" in line for line in lines)


def test_a_terminal_has_bars(tmp_path, capfd, monkeypatch):
    """With what the epoch amounts to at its end, however seldom they are updated."""
    monkeypatch.setattr(progress, "_overwrites", lambda: True)
    run = build(tmp_path, 2, verbose=True, freq_update_progress_bar=100)
    run.train()
    err = capfd.readouterr().err
    bars = [line.split("\r")[-1] for line in err.split("\n") if line.strip()]
    assert [bar.split(":")[0] for bar in bars] == [
        f"{kind} epoch {i}/2" for i in (1, 2) for kind in ("Train", "Eval")
    ]
    assert all("TotalLoss=" in bar for bar in bars)
    assert f"MSE={run.eval_metrics_history['MSE'][-1]:.3g}" in bars[-1]


def test_what_overwrites(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: False))
    assert not progress._overwrites()
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    assert progress._overwrites()
    monkeypatch.delitem(sys.modules, "ipykernel")
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    assert progress._overwrites()


# ---- curves


def curves(figure):
    """Label, steps and values of the curves in each panel, by its y-label."""
    return {
        ax.get_ylabel(): {
            line.get_label(): (
                [float(x) for x in line.get_xdata()],
                [float(y) for y in line.get_ydata()],
            )
            for line in ax.get_lines()
        }
        for ax in figure.axes
    }


@pytest.fixture
def trained(tmp_path):
    run = build(
        tmp_path / "run",
        5,
        metrics=[PSNR(max_pixel=1.0), MSE()],
        eval_interval=2,
        compute_train_metrics=True,
    )
    run.train()
    return run


def test_the_curves_are_the_histories(trained):
    """Validated in epochs 1, 3 and 5, as the bar counts them."""
    figure = trained.plot_history()
    found = curves(figure)
    assert list(found) == ["SupLoss (loss)", "PSNR [dB]", "MSE"]
    at = [1, 3, 5]
    assert found["SupLoss (loss)"] == {
        "training": ([1, 2, 3, 4, 5], trained.loss_history["SupLoss"]),
        "validation": (at, trained.eval_loss_history["SupLoss"]),
    }
    for label, name in (("PSNR [dB]", "PSNR"), ("MSE", "MSE")):
        assert found[label] == {
            "training": (at, trained.train_metrics_history[name]),
            "validation": (at, trained.eval_metrics_history[name]),
        }
    assert all(ax.get_xlabel() == "epoch" for ax in figure.axes)
    assert figure.axes[0].get_yscale() == "log" and figure.axes[1].get_yscale() == "linear"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["training", "validation"]


def test_a_folder_alone_tells_the_same(trained, tmp_path):
    expected = curves(trained.plot_history())
    checkpoint = last_checkpoint(trained, 4)
    for place in (tmp_path / "run", str(trained.save_path), checkpoint):
        assert curves(dj.plot_history(place)) == expected


def test_a_test_leaves_the_curves(trained):
    expected = curves(trained.plot_history())
    trained.test(trained.eval_dataloader)
    assert curves(trained.plot_history()) == expected


def test_several_runs_in_one_picture(trained, tmp_path):
    other = build(tmp_path / "other", 3, metrics=MSE())
    other.train()
    path = tmp_path / "history.pdf"
    runs = {"MSE training": trained.save_path, "jittered": other}
    figure = dj.plot_history(runs, path, names=["MSE", "SupLoss"])
    found = curves(figure)
    assert list(found) == ["MSE", "SupLoss (loss)"] and path.stat().st_size > 1000
    assert list(found["MSE"]) == [
        "MSE training, training",
        "MSE training, validation",
        "jittered, validation",
    ]
    assert found["MSE"]["jittered, validation"][0] == [1, 2, 3]
    lines = figure.axes[0].get_lines()
    assert len({line.get_color() for line in lines}) == 2
    assert lines[0].get_linestyle() == "--" and lines[1].get_linestyle() == "-"


@pytest.mark.parametrize("batch", [None, 4 + 2])
def test_curves_of_a_resumed_run_are_whole(tmp_path, batch):
    """Evaluated at other epochs than it would have been without the stop."""
    part = build(tmp_path / "part", 2, eval_interval=3)
    part.train()
    path = last_checkpoint(part, 1)
    run = build(tmp_path / "run", 5, eval_interval=3, ckpt_pretrained=path)
    run.train()
    found = curves(run.plot_history())
    assert found["SupLoss (loss)"]["training"][0] == [1, 2, 3, 4, 5]
    assert found["MSE"]["validation"][0] == [1, 2, 4, 5]
    assert found == curves(dj.plot_history(run.save_path))


def test_a_metric_that_came_later_begins_later(tmp_path):
    part = build(tmp_path / "part", 2, metrics=None)
    part.train()
    path = last_checkpoint(part, 1)
    run = build(tmp_path / "run", 4, metrics=MSE(), ckpt_pretrained=path)
    run.train()
    found = curves(run.plot_history())
    assert found["SupLoss (loss)"]["validation"][0] == [1, 2, 3, 4]
    assert found["MSE"]["validation"][0] == [3, 4]


def test_curves_within_epochs(tmp_path):
    run = build(tmp_path, 2, log_train_batch=True, eval_interval=3)
    run.train()
    figure = run.plot_history()
    found = curves(figure)["SupLoss (loss)"]
    assert figure.axes[0].get_xlabel() == "training batch"
    assert found["training"][0] == list(range(1, 9))
    # the first of every three batches of an epoch, and its last
    assert found["validation"][0] == [1, 4, 5, 8]


def test_curves_of_the_host_s_trainer(tmp_path):
    options = {"trainer": dinv.Trainer, "non_blocking_transfers": False}
    host = build(tmp_path, 3, **options)
    host.train()
    expected = curves(dj.plot_history(host))
    assert expected["MSE"]["validation"][0] == [1, 2, 3]
    assert curves(dj.plot_history(tmp_path)) == expected


class Twice(dinv.loss.SupLoss):
    pass


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda tmp: tmp, FileNotFoundError, "runs must be folders with checkpoints, got"),
        (lambda tmp: 3, TypeError, "runs must be a trainer, a folder, .* got int"),
        (lambda tmp: {}, ValueError, "runs must hold a whole epoch, got none: train"),
        (lambda tmp: build(tmp, 1), ValueError, "must hold a whole epoch, got none"),
    ],
)
def test_no_curves(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        dj.plot_history(make(tmp_path))


def test_curves_that_do_not_tell_their_epochs(tmp_path):
    options = {"trainer": dinv.Trainer, "non_blocking_transfers": False}
    host = build(tmp_path / "a", 3, eval_interval=2, **options)
    host.train()
    with pytest.raises(ValueError, match="SupLoss has 2 values for 0 evaluations: two"):
        dj.plot_history(host)
    run = build(tmp_path / "b", 2, losses=[Twice(), Twice()], compute_eval_losses=False)
    run.train()
    with pytest.raises(ValueError, match="Twice has 4 values for 2 losses: two losses"):
        run.plot_history()


@pytest.mark.parametrize("names", [["SSIM", "MSE"], []])
def test_names_of_curves(trained, names):
    with pytest.raises(ValueError) as error:
        trained.plot_history(names=names)
    known = ["SupLoss", "PSNR", "MSE"]
    assert str(error.value) == f"names must be among {known}, got {names}."


# ---- wandb and mlflow


class Recorded:
    """As much of wandb or mlflow as the host uses, which notes what it is told."""

    def __init__(self):
        self.starts, self.logs, self.ends, self.run = [], [], 0, None

    def begin(self, **setup):
        self.starts.append(setup)
        number = setup.get("id") or setup.get("run_id") or f"run {len(self.starts)}"
        info = SimpleNamespace(run_id=number)
        self.run = SimpleNamespace(id=number, info=info)

    def finish(self):
        self.ends, self.run = self.ends + 1, None

    def log(self, values, step):
        self.logs.append((dict(values), step))

    def active_run(self):
        return self.run

    init = start_run = begin
    end_run = finish
    log_metrics = log


@pytest.fixture
def loggers(monkeypatch):
    found = {name: Recorded() for name in ("wandb", "mlflow")}
    for name, recorded in found.items():
        monkeypatch.setitem(sys.modules, name, recorded)
    return found.values()


LOGGED = {"wandb_vis": True, "mlflow_vis": True, "metrics": PSNR(max_pixel=1.0)}
BALL = dj.L2Ball(0.1)
TRAINERS = {
    "jitter": {"ema": 0.9},
    "input jitter": {"trainer": dj.InputJitterTrainer, "sigma": 0.1},
    "attack": {"trainer": dj.AttackTrainer, "attack": dj.FrankWolfeAttack(BALL, steps=1)},
}


@pytest.mark.parametrize("name", TRAINERS)
def test_loggers_are_told_of_every_epoch(tmp_path, loggers, name):
    options = LOGGED | TRAINERS[name]
    setups = {"wandb_setup": {"project": "p"}, "mlflow_setup": {"run_name": "r"}}
    run = build(tmp_path / "a", 2, **options, **setups)
    run.train()
    psnr = run.eval_metrics_history["PSNR"]
    for recorded, setup in zip(loggers, setups.values(), strict=True):
        assert recorded.starts == [setup] and recorded.ends == 1
        assert [step for _, step in recorded.logs] == [0, 0, 1, 1]
        assert "TotalLoss" in recorded.logs[0][0]
        assert [values["Eval PSNR"] for values, _ in recorded.logs[1::2]] == psnr
    run.test(run.eval_dataloader)  # which is no training
    assert all(len(recorded.logs) == 4 for recorded in loggers)


def test_a_resumed_run_goes_on_in_its_loggers(tmp_path, loggers):
    """And in another one, if the user says so."""
    part = build(tmp_path / "a", 2, **LOGGED)
    part.train()
    path = last_checkpoint(part, 1)
    for setup in ({}, {"id": "other", "run_id": "other"}):
        wandb_setup = {k: v for k, v in setup.items() if k == "id"}
        mlflow_setup = {k: v for k, v in setup.items() if k == "run_id"}
        run = build(
            tmp_path / "b",
            4,
            wandb_setup=wandb_setup,
            mlflow_setup=mlflow_setup,
            ckpt_pretrained=path,
            **LOGGED,
        )
        run.train()
        expected = "other" if setup else "run 1"
        wandb, mlflow = loggers
        assert wandb.starts[-1] == {"id": expected, "resume": "allow"}
        assert mlflow.starts[-1] == {"run_id": expected}
        assert [step for _, step in wandb.logs[-4:]] == [2, 2, 3, 3]
        saved = torch.load(last_checkpoint(run, 3), weights_only=True)
        assert saved["wandb_id"] == saved["mlflow_id"] == expected


def test_mlflow_itself(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path / 'mlruns'}")
    options = {"mlflow_vis": True, "metrics": PSNR(max_pixel=1.0), "ema": 0.9}
    part = build(tmp_path / "a", 2, **options)
    part.train()
    path = last_checkpoint(part, 1)
    run = build(tmp_path / "b", 4, ckpt_pretrained=path, **options)
    run.train()
    number = torch.load(path, weights_only=True)["mlflow_id"]
    client = mlflow.tracking.MlflowClient()
    told = client.get_metric_history(number, "Eval PSNR")
    assert [entry.step for entry in told] == [0, 1, 2, 3]
    assert [entry.value for entry in told] == run.eval_metrics_history["PSNR"]
    assert client.get_run(number).info.status == "FINISHED"


def test_wandb_itself(tmp_path, monkeypatch):
    """Offline, where a run has a folder for every time that it is gone on with."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    setup = {"project": "p", "dir": str(tmp_path)}
    options = {"wandb_vis": True, "metrics": PSNR(max_pixel=1.0), "ema": 0.9}
    part = build(tmp_path / "a", 2, wandb_setup=setup, **options)
    part.train()
    path = last_checkpoint(part, 1)
    run = build(tmp_path / "b", 4, wandb_setup=dict(setup), ckpt_pretrained=path, **options)
    run.train()
    numbers = [
        torch.load(checkpoint, weights_only=True)["wandb_id"]
        for checkpoint in (path, last_checkpoint(run, 3))
    ]
    folders = list((tmp_path / "wandb").glob(f"offline-run-*-{numbers[0]}"))
    assert numbers[0] == numbers[1] and folders
