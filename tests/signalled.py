"""
Signal whole groups of processes at every place of a run, and resume each.

``python tests/signalled.py FOLDER`` writes ``outcomes.pt``: for each case how it ended, what it
said and what came of it. The process that imports everything forks one for every case, which gets
the signal with its workers, as in a scheduler's job.
"""

import gc
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import deepinv as dinv
import torch
from torch.utils.data import DataLoader, Dataset

import deepinv_jitter as dj

torch.set_num_threads(1)
warnings.simplefilter("ignore")

WORKERS = ("none", 0, False), ("workers", 2, False), ("workers that stay", 2, True)
#: Name: place, signal, workers, whether they stay, and how they start.
CASES = {
    f"{place}, {kind}": (place, signal.SIGTERM, count, stay, "fork")
    for place in ("training", "validation", "test")
    for kind, count, stay in WORKERS
}
STAY = 2, True, "fork"
CASES |= {
    "between epochs": ("between epochs", signal.SIGTERM, *STAY),
    "Ctrl-C in training": ("training", signal.SIGINT, *STAY),
    "Ctrl-C in test": ("test", signal.SIGINT, *STAY),
    "workers from before": ("from before", signal.SIGTERM, *STAY),
    "workers of another loader": ("others", signal.SIGTERM, *STAY),
    "workers that start": ("start", signal.SIGTERM, 1, True, "spawn"),
    "workers of a fork server": ("training", signal.SIGTERM, 1, True, "forkserver"),
}


class Points(Dataset):
    """Always the same."""

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return {"x": torch.tensor([i / 10, 0.5])}


def loader(count, stay, method):
    options = {"multiprocessing_context": method} if count else {}
    options |= {"num_workers": count, "persistent_workers": stay}
    return DataLoader(Points(), 4, shuffle=True, **options)


class Trainer(dj.JitterTrainer):
    """Sends a signal to the group of its processes, once, and goes on a while."""

    def strike(self, place):
        if self.struck != place:
            return
        self.struck = None
        if os.fork() == 0:  # not from the process whose signals the workers obey
            os.killpg(0, self.number)
            os._exit(0)
        os.wait()
        if place != "start":
            time.sleep(0.3)  # in which torch would notice workers that end

    def get_samples(self, *args):
        self.strike("start")
        return super().get_samples(*args)

    def compute_loss(self, *args, train=True, epoch=None, **kwargs):
        result = super().compute_loss(*args, train=train, epoch=epoch, **kwargs)
        if train and epoch == 1:
            self.strike("training")
        return result

    def compute_metrics(self, *args, **kwargs):
        result = super().compute_metrics(*args, **kwargs)
        self.strike("validation" if self._clock.running else "test")
        return result

    def save_best_model(self, *args, **kwargs):
        super().save_best_model(*args, **kwargs)
        self.strike("between epochs")


def run(folder, place, number, *workers):
    """A run that is struck at a place, or goes on from there."""
    torch.manual_seed(0)
    model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=2, jitter=0.1)
    trainer = Trainer(
        model,
        dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1)),
        torch.optim.Adam(model.parameters(), lr=1e-2),
        loader(*workers),
        # Other workers than forked ones take long to start
        eval_dataloader=loader(*(workers if "fork" in workers else (0, False, ""))),
        metrics=dinv.metric.MSE(),
        epochs=2,
        device="cpu",
        online_measurements=True,
        save_path=folder / "runs",
        ckpt_pretrained=dj.latest_checkpoint(folder / "runs"),
        verbose=False,
    )
    trainer.number = number
    trainer.struck = "training" if place in ("from before", "others") else place
    other = {"from before": trainer.train_dataloader, "others": loader(*workers)}
    with torch.random.fork_rng():
        if place in other:
            next(iter(other[place]))
    if place == "test":
        trainer.test(loader(*workers))
    else:
        trainer.train()
        end = [model.state_dict(), trainer.loss_history, trainer.eval_metrics_history]
        torch.save(end, folder / "end")


def forked(folder, *arguments):
    """Run in a session of its own: the exit status, and what was said on stderr."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(folder / "said", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        run(folder, *arguments)
        sys.exit(0)  # exceptions go all the way up as well, as in a script
    limit = time.monotonic() + 60
    pid = 0
    while not pid and time.monotonic() < limit:
        time.sleep(0.01)
        pid, status = os.waitpid(child, os.WNOHANG)
    if not pid:
        os.killpg(child, signal.SIGKILL)
        pid, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), (folder / "said").read_text()


def main(folder):
    # What was imported is not looked through again where a child ends: most of a child's time
    gc.collect()
    gc.freeze()
    outcomes = {"whole": forked(folder / "whole", None, 0, *CASES["training, none"][2:])}
    for name, arguments in CASES.items():
        status, said = forked(folder / name, *arguments)
        outcomes[name] = {"status": status, "said": said}
        if arguments[0] not in ("test", "from before", "others"):
            forked(folder / name, None, 0, *arguments[2:4], "fork")
            outcomes[name]["end"] = torch.load(folder / name / "end")
    outcomes["whole"] = torch.load(folder / "whole" / "end")
    torch.save(outcomes, folder / "outcomes.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
