"""
Kill runs at random moments, and resume each: what is left is what was left without a kill.

``python tests/killed.py FOLDER --kills 20`` prints a line for every kill and one for every job, and
ends with an error if a resumed job differs in a single bit. The process that imports everything
forks one for every attempt, so that a kill strikes the work, not the imports.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples" / "paper")]

import two_ranks  # noqa: E402
from run import main as paper  # noqa: E402

import deepinv_jitter as dj  # noqa: E402

torch.set_num_threads(1)
warnings.simplefilter("ignore")


def training(folder):
    """Jitter, persistent attacks, shuffled data: all that has a state."""
    trainer = two_ranks.build(
        folder / "runs",
        dj.AttackTrainer,
        jitter=0.1,
        attack=dj.FrankWolfeAttack(dj.L2Ball(0.3), steps=2),
        persistent=True,
        ckp_minutes=0,  # after every batch
        count=40,
        epochs=6,
        train_dataloader=torch.utils.data.DataLoader(
            dj.IndexedDataset(two_ranks.Signals1D(40)), 4, shuffle=True
        ),
        ckpt_pretrained=dj.latest_checkpoint(folder / "runs"),
    )
    trainer.train()
    histories = [trainer.loss_history, trainer.eval_loss_history]
    histories += [trainer.eval_metrics_history, trainer.skipped]
    torch.save([two_ranks.weights(trainer), histories, trainer._deltas.known], folder / "end")


def sweep(folder):
    values = two_ranks.robustness(folder)
    torch.save([values["values"], values["digests"]], folder / "end")


def table(folder):
    """The paper's Table 1 at its smallest size."""
    options = ["--preset", "smoke", "--seeds", "1", "--out", str(folder), "--quiet"]
    with open(os.devnull, "w") as sys.stdout:
        paper(["table1", *options])
    records = {}
    for path in sorted((folder / "smoke" / "runs").glob("*.json")):
        records[path.name] = json.loads(path.read_text())
        del records[path.name]["seconds"]
    weights = [
        torch.load(path, weights_only=True)["model"]
        for path in sorted((folder / "smoke" / "weights").glob("*.pt"))
    ]
    torch.save([json.dumps(records), weights], folder / "end")


JOBS = [training, sweep, table]


def same(a, b):
    """Equal in every bit, NaN included."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def forked(job, folder):
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            job(folder)
            status = 0
        finally:
            os._exit(status)
    return child


def finished(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder, kills, seed):
    moments = random.Random(seed)
    for job in JOBS:
        start = time.monotonic()
        assert finished(forked(job, folder / job.__name__ / "whole")) == 0
        duration = time.monotonic() - start
        whole = torch.load(folder / job.__name__ / "whole" / "end", weights_only=True)
        struck, attempt = 0, 0
        while struck < kills or attempt == 0:
            attempt += 1
            here = folder / job.__name__ / str(attempt)
            while struck < kills:
                child = forked(job, here)
                moment = moments.uniform(0, duration / 2)
                time.sleep(moment)
                os.kill(child, signal.SIGKILL)
                if finished(child) == 0:  # it was done before
                    break
                struck += 1
                print(f"{job.__name__}, run {attempt}: killed after {moment:.2f} s", flush=True)
            assert finished(forked(job, here)) == 0, f"{job.__name__} does not resume"
            end = torch.load(here / "end", weights_only=True)
            assert same(whole, end), f"{job.__name__}, run {attempt} differs"
            print(f"{job.__name__}, run {attempt}: equal bit for bit", flush=True)
        print(f"{job.__name__}: {struck} kills, {duration:.1f} s uninterrupted", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.kills, arguments.seed)
