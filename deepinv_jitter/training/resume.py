r"""A training that is cut off goes on where it was, as if it had never stopped."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn

from .. import checks
from . import distributed, rng
from .parallel import ParallelTrainer, as_list
from .preemption import BEST, INTERRUPTED, Signals, obeyed, replacing

logger = logging.getLogger(__name__)


#: Histories that the host saves but does not load: attribute, key in the checkpoint.
HISTORIES = {
    "loss_history": "loss",
    "eval_loss_history": "eval_loss",
    "train_metrics_history": "train_metrics",
    "eval_metrics_history": "eval_metrics",
}


@dataclass
class ResumingTrainer(ParallelTrainer):
    """A training that is cut off goes on where it was, as if it had never stopped."""

    ckp_minutes: float | None = field(default=None, kw_only=True)

    def __post_init__(self):
        if self.ckp_minutes is not None:
            self.ckp_minutes = checks.number("ckp_minutes", self.ckp_minutes, low=0)
        super().__post_init__()
        self.seconds = 0.0
        self._since = 0.0  # when they were counted last
        self._saved = 0.0  # how many they were at the last checkpoint
        self._signals = Signals()
        self._running = False
        self._stop = 0  # the signal that all ranks agree to obey
        self._in_epoch = False
        self._begins = {}  # random states at the beginning of the epoch
        self._resume = None  # the checkpoint to go on from
        self._ahead = None  # its place within an epoch, until that is reached

    def train(self) -> nn.Module:
        """Train the model, see :meth:`deepinv.Trainer.train`."""
        self._stop, self.seconds, self._saved = 0, 0.0, 0.0
        self._since = time.perf_counter()
        self._running = True
        try:
            with Signals() as self._signals:
                return super().train()
        finally:
            self._count_time()
            self._running = False

    def setup_train(self, train: bool = True, **kwargs) -> None:
        """Set up training or testing, see :meth:`deepinv.Trainer.setup_train`."""
        self._resume, self._ahead = None, None
        if train:
            distributed.check_same("ckpt_pretrained", self.ckpt_pretrained)
        super().setup_train(train=train, **kwargs)
        if not train:
            return
        self._place, self._in_epoch = (self.epoch_start, 0), False
        if self._resume is None:
            rng.diverge(self._generators(), distributed.own())
        else:
            self._restore(self._resume)
            self._resume = None

    def reset_metrics(self) -> None:
        """Reset the meters, see :meth:`deepinv.Trainer.reset_metrics`; an epoch begins here."""
        super().reset_metrics()
        if self._in_epoch or not self._running:
            return
        epoch, passed = self._place
        self._place = epoch + bool(passed), 0
        distributed.set_epoch(self.train_dataloader, self._place[0])
        if self._ahead is None:
            self._begins = {"loaders": self._random_state()}

    def step(self, *args, train: bool = True, last_batch: bool = False, **kwargs):
        """A batch, see :meth:`deepinv.Trainer.step`; signals are obeyed after it."""
        if train and self._ahead is not None:
            self._pass_over()
            return
        if train and self._stop and not self._in_epoch:
            self._interrupt()
        self._in_epoch |= train
        super().step(*args, train=train, last_batch=last_batch, **kwargs)
        if train:
            self._in_epoch = not last_batch
            self._count_time()
            pause = math.inf if self.ckp_minutes is None else 60 * self.ckp_minutes
            due = self.seconds - self._saved >= pause
            words = [self._signals.received, int(due)]
            self._stop, due = distributed.largest(words, self.device)
            if self._stop and not last_batch:
                self._interrupt()
            elif due and not last_batch:
                self._save_place()

    def get_samples(self, iterators, g):
        """A batch, see :meth:`deepinv.Trainer.get_samples`."""
        if self._in_epoch and self._place[1] == 0:
            # A loader without workers draws its order now
            self._begins[int(g)] = self._random_state()
        try:
            return super().get_samples(iterators, g)
        except RuntimeError:
            # A signal to the whole group of processes ends the workers of the loader, too. Nothing
            # of this batch is done; other ranks, or another data set of it, may be further.
            if self._in_epoch and self.G == distributed.count() == 1:
                self._stop = self._signals.received
                if self._stop:
                    self._interrupt()
            raise

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
        extra = {
            "ranks": distributed.gathered(
                self._rank_state(amid=filename == INTERRUPTED)
            ),
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "seconds": self.seconds,
        }
        if distributed.own() == 0:
            with replacing(Path(self.save_path) / filename) as draft:
                super().save_model(draft.name, epoch, (state or {}) | extra)
        distributed.gathered(None)  # no rank looks for the file before it is there

    def load_model(
        self, ckpt_pretrained: str | Path | None = None, strict: bool = True
    ) -> dict | None:
        """
        Load a checkpoint, see :meth:`deepinv.Trainer.load_model`.

        :param str, pathlib.Path, None ckpt_pretrained: file; ``None`` means the trainer's
            ``ckpt_pretrained``, from which training then resumes.
        :param bool strict: whether all weights must be there, and no others.
        :return: (:class:`dict`) the checkpoint, or ``None`` if there is none to load.
        :raises pickle.UnpicklingError: if the file holds more than tensors and builtins.
        :raises ValueError: if the file is damaged, no checkpoint, or one of another model.
        """
        path = ckpt_pretrained or self.ckpt_pretrained
        if path is None:
            return None
        # The host unpickles whatever the file holds; a file that passes here is only data
        checkpoint = _loaded(path)
        _check_fits(self.model, checkpoint["state_dict"], path, strict)
        super().load_model(ckpt_pretrained, strict)
        if ckpt_pretrained is None:
            self._resume = checkpoint
            self._take_best_along(Path(path), checkpoint)
        return checkpoint

    def _count_time(self) -> None:
        if self._running:
            now = time.perf_counter()
            self.seconds, self._since = self.seconds + now - self._since, now

    def _take_best_along(self, path: Path, checkpoint: dict) -> None:
        """The best model so far, to the folder of the resumed run."""
        best = path.with_name(BEST)
        if distributed.own() > 0 or not self.save_path or not best.exists():
            return
        if _loaded(best)["epoch"] <= checkpoint.get("epoch", math.inf):
            with replacing(Path(self.save_path) / BEST) as draft:
                shutil.copyfile(best, draft)

    def _interrupt(self) -> None:
        """Save where the run is, and leave."""
        self._save_place()
        logger.warning("Interrupted: epoch %d, %d of its batches done.", *self._place)
        raise obeyed(self._stop)

    def _save_place(self) -> None:
        """A checkpoint amid an epoch: the epoch before it is the last whole one."""
        # With log_train_batch the host's histories grow within an epoch, and cannot be taken up
        if not self.log_train_batch:
            self.save_model(INTERRUPTED, self._place[0] - 1)

    def _leave_out(self, x, y, error: FloatingPointError) -> None:
        try:
            super()._leave_out(x, y, error)
        except FloatingPointError:
            self._save_place()
            raise

    def _rank_state(self, amid: bool) -> dict:
        """What each rank has of its own, at the end of an epoch or amid it."""
        if amid and self._place[1] == 0:
            return {"rng": self._begins["loaders"]}
        state = {"rng": self._random_state()}
        if amid:
            state |= {
                "batch": self._place[1],
                "begins": self._begins,
                "meters": [_content(meter) for meter in self._meters()],
            }
        return state

    def _restore(self, checkpoint: dict) -> None:
        """What the host leaves out when it resumes; the random state last, as the set-up draws."""
        for name, key in HISTORIES.items():
            saved = checkpoint.get(key, {})
            if saved.keys() == getattr(self, name).keys():
                setattr(self, name, {k: list(v) for k, v in saved.items()})
        if "scaler" in checkpoint:
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.skipped = list(checkpoint.get("skipped", []))
        self.seconds = self._saved = checkpoint.get("seconds", 0.0)
        states = checkpoint.get("ranks")  # none from the host's own trainer
        if states and len(states) == distributed.count():
            self._restore_rank(states[distributed.own()])
            return
        # From another number of ranks: an epoch that was cut off begins anew
        if states:
            rng.restore(states[0]["rng"], self._generators())
        rng.diverge(self._generators(), distributed.own())

    def _restore_rank(self, state: dict) -> None:
        if "batch" in state:
            self._ahead, self._begins = state, dict(state["begins"])
        begin = self._begins["loaders"] if self._ahead else state["rng"]
        rng.restore(begin, self._generators())

    def _pass_over(self) -> None:
        """A batch that was trained on before the run was cut off."""
        for g in range(self.G):
            if self._place[1] == 0:
                rng.restore(self._begins[g], self._generators())
            next(self.current_train_iterators[g])
        self._place = self._place[0], self._place[1] + 1
        if self._place[1] == self._ahead["batch"]:
            rng.restore(self._ahead["rng"], self._generators())
            for meter, content in zip(
                self._meters(), self._ahead["meters"], strict=True
            ):
                vars(meter).update(content)
            self._in_epoch, self._ahead = True, None

    def _meters(self) -> list:
        """What an epoch adds up while it trains."""
        meters = [self.logs_total_loss_train, *self.logs_losses_train]
        meters += self.logs_metrics_train
        return meters + ([self.check_grad_val] if self.check_grad else [])

    def _random_state(self) -> dict:
        return rng.state(self._generators())

    def _generators(self) -> list[torch.Generator]:
        """Every generator of the trainer, its modules, loaders and data sets, once each."""
        modules = [
            module
            for owner in (self.model, self.physics, self.physics_generator, self.losses)
            for root in as_list(owner)
            for module in root.modules()
        ]
        loaders = as_list(self.train_dataloader) + as_list(self.eval_dataloader)
        datasets = [part for loader in loaders for part in _datasets(loader)]
        return list(rng.generators([self, *modules, *loaders, *datasets]))


def _content(meter) -> dict:
    return {k: v for k, v in vars(meter).items() if k not in ("name", "fmt")}


def _datasets(owner) -> Iterator:
    """The data sets of a loader, or inside a data set such as a subset."""
    for name in ("dataset", "datasets"):
        for dataset in as_list(getattr(owner, name, None)):
            yield dataset
            yield from _datasets(dataset)


def _loaded(path: str | Path) -> dict:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError, UnpicklingError):
        raise
    except Exception as error:
        raise ValueError(
            f"ckpt_pretrained must be a checkpoint, got {str(path)!r}, which is damaged or "
            "something else: take an earlier one."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(
            f"ckpt_pretrained must be a checkpoint of a trainer, with a state_dict, got "
            f"{str(path)!r} without: load other weights with model.load_state_dict."
        )
    return checkpoint


def _check_fits(
    model: nn.Module, weights: dict, path: str | Path, strict: bool
) -> None:
    own = model.state_dict()
    differ = {
        k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape
    }
    if strict:
        differ |= own.keys() ^ weights.keys()
    if differ:
        raise ValueError(
            f"ckpt_pretrained must be of this model, but {str(path)!r} differs from it in "
            f"{', '.join(sorted(differ)[:3])}{' and others' if len(differ) > 3 else ''}: build "
            "the model as it was trained."
        )
