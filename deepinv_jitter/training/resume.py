r"""A training that is cut off goes on where it was, as if it had never stopped."""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from . import checkpoints, distributed, rng
from .checkpoints import BEST, INTERRUPTED, class_name
from .generators import Generator, kind, named
from .interruption import InterruptibleTrainer
from .parallel import as_list
from .preemption import replacing
from .replay import inexact

#: Histories that the host saves but does not load: attribute, key in the checkpoint.
HISTORIES = {
    "loss_history": "loss",
    "eval_loss_history": "eval_loss",
    "train_metrics_history": "train_metrics",
    "eval_metrics_history": "eval_metrics",
}


@dataclass
class ResumingTrainer(InterruptibleTrainer):
    """A training that is cut off goes on where it was, as if it had never stopped."""

    def __post_init__(self):
        super().__post_init__()
        self._time = 0.0  # the time of the last checkpoint, which never goes back
        self._begins = {}  # random states at the beginning of the epoch
        self._trained = None  # what an epoch has come to, while it is validated
        self._resumes = False  # whether the trainer's checkpoint is one to go on from
        self._resume = None  # that checkpoint
        self._ahead = None  # its place within an epoch, until that is reached

    def setup_train(self, train: bool = True, **kwargs) -> None:
        """Set up training or testing, see :meth:`deepinv.Trainer.setup_train`."""
        self._resume, self._ahead, self._trained = None, None, None
        self._resumes = train
        if train:
            distributed.check_same("ckpt_pretrained", self.ckpt_pretrained)
        super().setup_train(train=train, **kwargs)
        if not train:
            return
        self._place = self.epoch_start, 0
        if self.save_path and distributed.own() == 0:
            self._warn_of_inexact()
        if self._resume is None:
            rng.diverge(self._generators().values(), distributed.own())
        else:
            self._restore(self._resume)
            self._resume = None

    def reset_metrics(self) -> None:
        """Reset the meters, see :meth:`deepinv.Trainer.reset_metrics`; an epoch begins here."""
        super().reset_metrics()
        if self._in_epoch or not self._running:
            return
        self._trained = None
        epoch, passed = self._place
        self._place = epoch + bool(passed), 0
        distributed.set_epoch(self.train_dataloader, self._place[0])
        if self._ahead is None:
            self._begins = {"loaders": self._random_state()}

    def step(self, epoch, progress_bar, *args, train: bool = True, **kwargs):
        """A batch, see :meth:`deepinv.Trainer.step`; known ones are passed over."""
        if train and self._ahead is not None:
            self._pass_over(epoch, progress_bar)
        else:
            super().step(epoch, progress_bar, *args, train=train, **kwargs)

    def _finish_training(self, epoch: int) -> None:
        super()._finish_training(epoch)
        self._trained = self._rank_state(amid=True)

    def get_samples(self, iterators, g):
        """A batch, see :meth:`deepinv.Trainer.get_samples`."""
        if self._in_epoch and self._place[1] == 0:
            # A loader without workers draws its order now
            self._begins[int(g)] = self._random_state()
        return super().get_samples(iterators, g)

    def save_model(self, filename: str, epoch: int, state: dict | None = None) -> None:
        """
        Save a checkpoint from which training can go on exactly.

        :param str filename: name of the file in ``save_path``.
        :param int epoch: current epoch, from 0.
        :param dict, None state: more to save, of tensors and builtins.
        :raises OSError: if the file cannot be written; one of before is kept.
        """
        if not self.save_path:
            return
        self._count_time()
        self._saved = self.seconds
        # Of nodes whose clocks differ, and of one that is set back, the newest is still the last
        self._time = max(time.time(), self._time + 1e-3)
        amid = filename == INTERRUPTED
        own = self._trained if amid and self._trained else self._rank_state(amid)
        extra = {
            "ranks": distributed.gathered(own),
            "time": self._time,
            "parts": self._parts(),
            "groups": checkpoints.grouped(self.optimizer, self.model),
            "generators": {n: kind(g) for n, g in self._generators().items()},
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "seconds": self.seconds,
        }
        if distributed.own() == 0:
            with replacing(Path(self.save_path) / filename) as draft:
                super().save_model(draft.name, epoch, (state or {}) | extra)
        distributed.gathered(None)  # no process looks for the file before it is there

    def load_model(
        self, ckpt_pretrained: str | Path | None = None, strict: bool = True
    ) -> dict | None:
        """
        Load a checkpoint, see :meth:`deepinv.Trainer.load_model`.

        Nothing is touched before all of it is known to fit.

        :param str, pathlib.Path, None ckpt_pretrained: file; ``None`` means the trainer's
            ``ckpt_pretrained``, from which training then resumes.
        :param bool strict: whether all weights must be there, and no others.
        :return: (:class:`dict`) the checkpoint, or ``None`` if there is none to load.
        :raises pickle.UnpicklingError: if the file holds more than tensors and builtins.
        :raises ValueError: if the file is damaged, no checkpoint, one of another model, or of a
            training with other parts, such as another optimizer.
        """
        path = ckpt_pretrained or self.ckpt_pretrained
        if path is None:
            return None
        # The host unpickles whatever the file holds; a file that passes here is only data
        checkpoint = checkpoints.loaded(path)
        checkpoints.check_weights(self.model, checkpoint["state_dict"], path, strict)
        checkpoints.check_like(path, self._unlike(checkpoint))
        resumes = ckpt_pretrained is None and self._resumes
        if resumes:
            checkpoints.check_like(path, self._unlike_run(checkpoint))
            self._take_best_along(Path(path), checkpoint)
        super().load_model(ckpt_pretrained, strict)
        if resumes:
            self._resume = checkpoint
        return checkpoint

    def _parts(self) -> dict[str, str | None]:
        """What has a state in a checkpoint, by its class."""
        parts = "optimizer", "scheduler"
        return {name: class_name(getattr(self, name)) for name in parts}

    def _unlike(self, checkpoint: dict) -> Iterator[str]:
        """What the host would load, and could not."""
        if "optimizer" in checkpoint and self.optimizer is not None:
            groups = checkpoints.grouped(self.optimizer, self.model)
            yield from checkpoints.unlike_optimizer(checkpoint, self.optimizer, groups)
        if "scheduler" in checkpoint and self.scheduler is not None:
            yield from checkpoints.unlike_scheduler(checkpoint, self.scheduler)

    def _unlike_run(self, checkpoint: dict) -> Iterator[str]:
        """What stands in the way of going on as if there had been no stop."""
        if checkpoint.get("scheduler") is not None and self.scheduler is None:
            yield from checkpoints.unlike_scheduler(checkpoint, None)
        if "generators" in checkpoint:
            yield from checkpoints.unlike_generators(
                checkpoint["generators"], self._generators()
            )
            before, here = checkpoint["ranks"][0].get("batches"), self._batches()
            if before not in (None, here):
                sides = ["; ".join(side) for side in (before, here)]
                yield "the epoch that was cut off has {}, here are {}".format(*sides)
        if self.early_stop and not self.early_stop_on_losses:
            history = class_name(self.metrics[0])
            if history not in checkpoint.get("eval_metrics", {}):
                yield f"it knows no {history}, after which this one stops early"

    def _warn_of_inexact(self) -> None:
        found = inexact(
            {
                f"{name}[{i}]": loader
                for name, loaders in self._loaders().items()
                for i, loader in enumerate(loaders)
            }
        )
        if found:
            warnings.warn(
                "If this training is interrupted it can go on, but not exactly: "
                f"{'; '.join(found)}.",
                stacklevel=2,
            )

    def _take_best_along(self, path: Path, checkpoint: dict) -> None:
        """The best model so far, to the folder of the resumed run."""
        best = path.with_name(BEST)
        if distributed.own() > 0 or not self.save_path or not best.exists():
            return
        if checkpoints.loaded(best)["epoch"] <= checkpoint.get("epoch", math.inf):
            with replacing(Path(self.save_path) / BEST) as draft:
                shutil.copyfile(best, draft)

    def _save_place(self) -> Path | None:
        """A checkpoint amid an epoch: the epoch before it is the last whole one."""
        # With log_train_batch the host's histories grow within an epoch, and cannot be taken up
        if self.log_train_batch or not self.save_path:
            return None
        losses = self.loss_history
        if self._trained:  # the host adds those of this epoch again
            self.loss_history = {name: values[:-1] for name, values in losses.items()}
        try:
            self.save_model(INTERRUPTED, self._place[0] - 1)
        finally:
            self.loss_history = losses
        return Path(self.save_path) / INTERRUPTED

    def _leave_out(self, x, y, error: FloatingPointError) -> None:
        try:
            super()._leave_out(x, y, error)
        except FloatingPointError:
            self._save_place()
            raise

    def _rank_state(self, amid: bool) -> dict:
        """What each process has of its own, at the end of an epoch or amid it."""
        if amid and self._place[1] == 0:
            return {"rng": self._begins["loaders"]}
        state = {"rng": self._random_state()}
        if amid:
            state |= {
                "batch": self._place[1],
                "batches": self._batches(),
                "begins": self._begins,
                "trained": not self._in_epoch,
                "meters": [_content(meter) for meter in self._meters()],
            }
        return state

    def _restore(self, checkpoint: dict) -> None:
        """What the host leaves out when it resumes; the random state last, as the set-up draws."""
        for name, key in HISTORIES.items():
            own, saved = getattr(self, name), checkpoint.get(key, {})
            own |= {k: list(saved[k]) for k in own.keys() & saved.keys()}
            if own.keys() - saved.keys():
                warnings.warn(
                    f"{name} of {', '.join(own.keys() - saved.keys())} begins here, as "
                    "the checkpoint has none.",
                    stacklevel=2,
                )
        if checkpoint.get("scaler"):
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.skipped = list(checkpoint.get("skipped", []))
        self.seconds = self._saved = checkpoint.get("seconds", 0.0)
        self._time = checkpoint.get("time", 0.0)
        if "generators" not in checkpoint:  # but the host's own trainer's
            if "ranks" in checkpoint:
                warnings.warn(
                    "The checkpoint is of an earlier version, which did not name the random "
                    "generators: they begin anew, as does an epoch that was cut off.",
                    stacklevel=2,
                )
            rng.diverge(self._generators().values(), distributed.own())
            return
        states = checkpoint["ranks"]
        gpus, here = len(states[0]["rng"]["cuda"]), torch.cuda.device_count()
        if gpus != here and self.device.type == "cuda":
            warnings.warn(
                f"The checkpoint has the random states of {gpus} GPUs, here are {here}: "
                "the training goes on, but not exactly.",
                stacklevel=2,
            )
        if len(states) == distributed.count():
            self._restore_rank(states[distributed.own()])
            return
        # From another number of processes: an epoch that was cut off begins anew
        rng.restore(states[0]["rng"], self._generators())
        rng.diverge(self._generators().values(), distributed.own())

    def _restore_rank(self, state: dict) -> None:
        if "batch" in state:
            self._ahead, self._begins = state, dict(state["begins"])
        begin = self._begins["loaders"] if self._ahead else state["rng"]
        rng.restore(begin, self._generators())

    def _pass_over(self, epoch: int, progress_bar) -> None:
        """A batch that was trained on before the run was cut off."""
        progress_bar.set_description(
            f"Train epoch {epoch + 1}/{self.epochs}, passing over known batches"
        )
        ahead, generators = self._ahead, self._generators()
        trained = ahead.get("trained", False)
        for g in range(self.G):
            if self._place[1] == 0:
                rng.restore(self._begins[g], generators)
            if not trained:
                next(self.current_train_iterators[g])
        self._place = self._place[0], self._place[1] + 1
        if self._place[1] == ahead["batch"]:
            rng.restore(ahead["rng"], generators)
            for meter, content in zip(self._meters(), ahead["meters"], strict=True):
                vars(meter).update(content)
            self._ahead, self._in_epoch = None, not trained
            self._trained = ahead if trained else None

    def _meters(self) -> list:
        """What an epoch adds up while it trains."""
        meters = [self.logs_total_loss_train, *self.logs_losses_train]
        meters += self.logs_metrics_train
        return meters + ([self.check_grad_val] if self.check_grad else [])

    def _batches(self) -> list[str]:
        """What is known of the batches of an epoch, with which one that was cut off goes on."""
        loaders = self._loaders()["train_dataloader"]
        # Which draw the order of an epoch earlier
        workers = [getattr(loader, "num_workers", 0) > 0 for loader in loaders]
        return [
            f"{len(loader)} batches with{'' if some else 'out'} workers"
            for loader, some in zip(loaders, workers, strict=True)
        ]

    def _random_state(self) -> dict:
        return rng.state(self._generators())

    def _generators(self) -> dict[str, Generator]:
        """Every generator that can be reached from the trainer, once each."""
        parts = "model", "physics", "physics_generator", "losses"
        groups = {name: as_list(getattr(self, name)) for name in parts}
        own = {
            name: value
            for name, value in vars(self).items()
            if name not in groups | self._loaders()
            and (isinstance(value, Generator) or not name.startswith("_"))
        }
        groups = [{name: part} for name, part in groups.items()]
        return named(*groups, self._loaders(), own)


def _content(meter) -> dict:
    return {k: v for k, v in vars(meter).items() if k not in ("name", "fmt")}
