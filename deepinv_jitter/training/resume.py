r"""A training that is cut off goes on where it was, as if it had never stopped."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import checks
from ..memory import device_states
from . import checkpoints, distributed, rng
from .averaging import Averaging
from .carried import Carried
from .checkpoints import INTERRUPTED, class_name
from .host import BEST, HISTORIES, ITERATORS, HostTrainer, as_list, content
from .parts import Part
from .position import Clock, Epoch
from .preemption import replacing
from .replay import inexact


@dataclass
class ResumingTrainer(HostTrainer):
    """deepinv's Trainer, which resumes exactly."""

    ema: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.ema is not None:
            self.ema = checks.positive("ema", self.ema, below=1)
        super().__post_init__()
        self.skipped: list[tuple[int, int]] = []
        self._averaging, self._carried = Averaging(), Carried()
        self._parts: list[Part] = [self._averaging, self._carried]
        self._clock = Clock()
        self._epoch = Epoch()
        #: what a training goes on from, while it is set up
        self._start: dict | None = None
        #: where an epoch was cut off, until that is reached
        self._replay: dict | None = None
        self._stopped = False  # early
        self._time = 0.0  # of the last checkpoint, which never goes back

    @property
    def seconds(self) -> float:
        """The time of all parts of a run."""
        return self._clock.seconds

    def load_model(
        self, ckpt_pretrained: str | Path | None = None, strict: bool = True
    ) -> dict | None:
        """
        Load a checkpoint, see :meth:`deepinv.Trainer.load_model`.

        Nothing is touched before all of it is known to fit.

        :raises pickle.UnpicklingError: if the file holds more than tensors and builtins.
        :raises ValueError: if the file is damaged, no checkpoint, one of another model, or of a
            training with other parts, such as another optimizer.
        """
        path = ckpt_pretrained or self.ckpt_pretrained
        if path is None:
            return None
        # The host unpickles whatever the file holds; a file that passes here is only data
        start = self._start if ckpt_pretrained is None else None
        checkpoint = checkpoints.loaded(path) if start is None else start
        if start is not None:
            self._averaging.check(self.ema, checkpoint, path)
        self.make_mask_generators(checkpoint.get("mask_sizes", {}))
        checkpoints.check_weights(self.model, checkpoint["state_dict"], path, strict)
        parts = self.model, self.optimizer, self.scheduler
        checkpoints.check_like(path, checkpoints.unlike(checkpoint, *parts))
        if start is not None:
            checkpoints.check_like(path, self._unlike_run(checkpoint))
            if distributed.own() == 0 and self.save_path:
                epoch = checkpoint.get("epoch", math.inf)
                checkpoints.take_best_along(Path(path), self.save_path, epoch)
        # The host would bring all of the file to a GPU, whose memory may not hold it, and leave the
        # optimizer's counts of steps there, for each of which every step would then wait
        with self.having(device=torch.device("cpu")):
            super().load_model(ckpt_pretrained, strict)
        if start is not None:
            # A run that stopped early has ended, and with the same patience does not go on
            stopped = checkpoint.get("stopped") == self.early_stop is not None
            passed = self.first_epoch * self.batches_of_an_epoch()
            if stopped or passed > self.max_batch_steps:
                self.end_here()
        return checkpoint

    def stop_criterion(self, epoch, train_ite, **kwargs) -> bool:
        """Whether to stop early, see :class:`deepinv.Trainer`; checkpoints tell it."""
        self._stopped = super().stop_criterion(epoch, train_ite, **kwargs)
        return self._stopped

    def _unlike_run(self, checkpoint: dict) -> Iterator[str]:
        """What stands in the way of going on as if there had been no stop."""
        if checkpoint.get("scheduler") is not None and self.scheduler is None:
            yield str(checkpoints.unlike_part("scheduler", checkpoint, None))
        if "generators" in checkpoint:
            yield from checkpoints.unlike_generators(checkpoint["generators"], self._generators())
            before, here = checkpoint["ranks"][0].get("batches"), self._batches()
            # Other numbers of processes have other batches, and begin the epoch anew
            alike = len(checkpoint["ranks"]) == distributed.count()
            if alike and before not in (None, here):
                sides = ["; ".join(side) for side in (before, here)]
                yield "the epoch that was cut off has {}, here are {}".format(*sides)
        if self.early_stop and not self.early_stop_on_losses:
            history = class_name(self.metrics[0])
            if history not in checkpoint.get("eval_metrics", {}):
                yield f"it knows no {history}, after which this one stops early"

    def _begin_run(self) -> None:
        """From the start, or from where a checkpoint is."""
        checkpoint, self._start = self._start, None
        self._epoch = Epoch(self.first_epoch)
        self._replay, self._stopped = None, False
        self._carried.begin_run(self)
        if self.save_path and distributed.own() == 0 and (found := inexact(self.loaders())):
            warnings.warn(
                "If this training is interrupted it can go on, but not exactly: "
                f"{'; '.join(found)}.",
                stacklevel=2,
            )
        if checkpoint is None:
            self._diverge()
        else:
            self._restore(checkpoint)
        self._averaging.begin_run(self.model, self.ema)

    def save_model(self, filename: str, epoch: int, state: dict | None = None) -> None:
        """
        Save a checkpoint from which training goes on, see :meth:`deepinv.Trainer.save_model`.

        :raises OSError: if the file cannot be written; one of before is kept.
        """
        if not self.save_path:
            return
        if filename != BEST:  # from which no training goes on
            self._clock.saved = self.seconds
        # Of nodes whose clocks differ, and of one that is set back, the newest is still the last
        self._time = max(time.time(), self._time + 1e-3)
        amid = filename == INTERRUPTED
        ended = self._epoch.ended if amid else None
        parts = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        with self._averaging.held(self.model):
            state = dict(state or {})
            for part in self._parts:
                state |= part.state(self)
            state |= {
                "ranks": distributed.gathered(ended or self._own_state(amid)),
                "time": self._time,
                "parts": {name: class_name(part) for name, part in parts.items()},
                "groups": checkpoints.grouped(self.optimizer, self.model),
                "generators": {n: rng.kind(g) for n, g in self._generators().items()},
                "mask_sizes": self.mask_sizes(),
                "stopped": self.early_stop if self._stopped else None,
                "scaler": self.loss_scaler.state_dict(),
                "skipped": self.skipped,
                "seconds": self.seconds,
            }
            if distributed.own() == 0:
                with replacing(Path(self.save_path) / filename) as draft:
                    super().save_model(draft.name, epoch, state)
        distributed.gathered(None)  # no process looks for the file before it is there

    def _save_amid(self) -> Path | None:
        """A checkpoint within an epoch: the epoch before it is the last whole one."""
        # With log_train_batch the host's histories grow within an epoch, and cannot be taken up
        if self.log_train_batch or not self.save_path:
            return None
        # The host adds the losses of an epoch that was trained again
        with self.without_last_losses() if self._epoch.ended else nullcontext():
            self.save_model(INTERRUPTED, self._epoch.number - 1)
        return Path(self.save_path) / INTERRUPTED

    def _own_state(self, amid: bool) -> dict[str, Any]:
        """What each process has of its own, at the end of an epoch or within it."""
        state: dict[str, Any] = {}
        for part in self._parts:
            state |= part.own_state()
        epoch = self._epoch
        if amid and epoch.passed == 0:
            return state | {"rng": epoch.begins["loaders"]}
        state["rng"] = self._random_state()
        if amid:
            state |= {
                "batch": epoch.passed,
                "batches": self._batches(),
                "begins": epoch.begins,
                "trained": not epoch.training,
                "meters": [content(meter) for meter in self.training_meters()],
            }
        return state

    def _restore(self, checkpoint: dict) -> None:
        """What the host leaves out when it resumes; the random state last, as the set-up draws."""
        for name, key in HISTORIES.items():
            own, saved = getattr(self, name), checkpoint.get(key, {})
            own |= {k: list(saved[k]) for k in own.keys() & saved.keys()}
            if new := own.keys() - saved.keys():
                message = f"{name} of {', '.join(new)} begins here, as the checkpoint has none."
                warnings.warn(message, stacklevel=2)
        if checkpoint.get("scaler"):
            self.loss_scaler.load_state_dict(checkpoint["scaler"])
        self.skipped = list(checkpoint.get("skipped", []))
        self._clock.set(checkpoint.get("seconds", 0.0))
        self._time = checkpoint.get("time", 0.0)
        for part in self._parts:
            part.load(self, checkpoint)
        if "ranks" in checkpoint:
            self._restore_random(checkpoint["ranks"])
        else:  # it is the host's own trainer's
            self._diverge()

    def _restore_random(self, states: list[dict]) -> None:
        """What each process had of its own, and where it was in an epoch."""
        kind = self.device.type
        saved, here = len(states[0]["rng"].get(kind, [])), len(device_states().get(kind, []))
        if saved != here:
            warnings.warn(
                f"The checkpoint has the random states of {saved} devices of kind {kind}, here are "
                f"{here}: the training goes on, but not exactly.",
                stacklevel=2,
            )
        if len(states) != distributed.count():
            # From another number of processes: an epoch that was cut off begins anew
            self._carried.load_own(states[0])
            rng.restore(states[0]["rng"], self._generators())
            self._diverge()
            return
        state = states[distributed.own()]
        for part in self._parts:
            part.load_own(state)
        if "batch" in state:
            self._replay, self._epoch.begins = state, dict(state["begins"])
        begin = state["begins"]["loaders"] if "batch" in state else state["rng"]
        rng.restore(begin, self._generators())

    def _diverge(self) -> None:
        rng.diverge(self._generators().values(), distributed.own())

    def _pass_over(self, cut: dict, progress_bar: Any) -> None:
        """A batch that was trained on before the run was cut off."""
        epoch, generators = self._epoch, self._generators()
        progress_bar.set_description(
            f"Train epoch {epoch.number + 1}/{self.epochs}, passing over known batches"
        )
        trained = cut.get("trained", False)
        for g in range(len(self.train_dataloader)):
            if epoch.passed == 0:
                rng.restore(epoch.begins[g], generators)
            if not trained:
                self.next_batch(g)
        epoch.passed += 1
        if epoch.passed == cut["batch"]:
            rng.restore(cut["rng"], generators)
            for meter, counts in zip(self.training_meters(), cut["meters"], strict=True):
                vars(meter).update(counts)
            self._replay = None
            epoch.training, epoch.ended = not trained, cut if trained else None

    def _batches(self) -> list[str]:
        """What is known of the batches of an epoch, with which one that was cut off goes on."""
        said = []
        for loader in self.loaders()["train_dataloader"]:
            # Workers draw the order of an epoch earlier
            end = "" if getattr(loader, "num_workers", 0) else "out"
            said.append(f"{len(loader)} batches with{end} workers")
        return said

    def _random_state(self) -> dict:
        return rng.state(self._generators())

    def _generators(self) -> dict[str, rng.Generator]:
        """Every generator that can be reached from the trainer, once each."""
        parts = "model", "physics", "physics_generator", "losses"
        groups = {name: as_list(getattr(self, name)) for name in parts}
        loaders = self.loaders()
        # A pass through the data is made anew, with what only that holds
        elsewhere = {*groups, *loaders, *ITERATORS}
        own = {
            name: value
            for name, value in vars(self).items()
            if name not in elsewhere
            and (isinstance(value, rng.Generator) or not name.startswith("_"))
        }
        return rng.named(*({name: part} for name, part in groups.items()), loaders, own)
