r"""Checkpoints: the newest of a folder, what is in a file, and whether it fits a training."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .host import BEST, CHECKPOINTS
from .preemption import replacing
from .rng import Generator, kind

#: The file that is written within an epoch.
INTERRUPTED = "ckp_interrupted.pth.tar"


def latest_checkpoint(folder: str | os.PathLike) -> Path | None:
    r"""
    The newest checkpoint from which a training goes on.

    With it the same script begins a run and continues it: after an interruption it is started again
    as it is. The newest is the one that was written last, as the files themselves say, so that
    copies count like their originals; of those that do not say it, deepinv's, the furthest of the
    training that began last. The file of the best model does not count, as it is written before its
    epoch ends.

    :param str, os.PathLike folder: the ``save_path`` of a trainer, in which every training has a
        folder of its own, or one of these.
    :return: (:class:`pathlib.Path`) file for ``ckpt_pretrained``; ``None`` if there is none.

    A file that is damaged is left out, with a warning.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dj.latest_checkpoint("a folder that is not there yet") is None
    True
    """
    return newest(folder, best=False)


def newest(folder: str | os.PathLike, best: bool) -> Path | None:
    """The newest checkpoint of a folder, the best model's too or without."""
    places = {}
    for path in sorted(Path(folder).rglob(CHECKPOINTS)):
        if path.name == BEST and not best:
            continue
        try:
            places[path] = _place(path, loaded(path, mmap=True))
        except (OSError, UnpicklingError, ValueError):
            warnings.warn(f"{str(path)!r} is damaged or no checkpoint, and left out.", stacklevel=3)
    return max(places, key=lambda path: places[path], default=None)


def _place(path: Path, checkpoint: dict) -> tuple[float, float, int]:
    """When it was written, or its training began, and how far that was."""
    time = checkpoint.get("time")
    if time is None:
        try:
            name = path.parent.name.replace("_", ":")  # on Windows
            time = datetime.strptime(name, "%y-%m-%d-%H:%M:%S").timestamp()
        except ValueError:  # in a folder that no trainer named
            time = -math.inf
    batch = checkpoint.get("ranks", [{}])[0].get("batch", 0)
    return time, checkpoint.get("epoch", -1), batch


def loaded(path: str | os.PathLike, mmap: bool = False) -> dict:
    """The content of a checkpoint, without running any code in it."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
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


def take_best_along(path: Path, folder: str | os.PathLike, epoch: float) -> None:
    """The best model up to the epoch of a checkpoint, to the folder of the run that goes on."""
    best = path.with_name(BEST)
    if not best.exists():
        return
    try:
        found = loaded(best)
    except (OSError, UnpicklingError, ValueError) as error:
        message = f"The best model so far is not taken along, {str(best)!r}: {error}"
        warnings.warn(message, stacklevel=2)
        return
    if found["epoch"] <= epoch:
        with replacing(Path(folder) / BEST) as draft:
            shutil.copyfile(best, draft)


def check_weights(model: nn.Module, weights: dict, path: str | os.PathLike, strict: bool) -> None:
    """Refuse weights of other names or shapes than the model's."""
    own = model.state_dict()
    # The extra state of a module is no tensor
    shapes, saved = ({k: getattr(v, "shape", None) for k, v in w.items()} for w in (own, weights))
    differ = {k for k in own.keys() & weights.keys() if shapes[k] != saved[k]}
    if strict:
        differ |= own.keys() ^ weights.keys()
    if differ:
        raise ValueError(
            f"ckpt_pretrained must be of this model, but {str(path)!r} differs from it in "
            f"{_few(sorted(differ))}: build the model as it was trained."
        )


def check_like(path: str | os.PathLike, differences: Iterable[str]) -> None:
    """Refuse what was saved by a training that was built otherwise."""
    differences = list(differences)
    if differences:
        raise ValueError(
            f"ckpt_pretrained must be of a training that was built like this one, but {str(path)!r}"
            f" differs: {'; '.join(differences)}. Build this one alike, or begin another with the "
            'weights alone: model.load_state_dict(torch.load(path)["state_dict"]).'
        )


def class_name(part: object | None) -> str | None:
    return None if part is None else type(part).__name__


def grouped(optimizer: Optimizer | None, model: nn.Module) -> list[list[str]]:
    """The names of the parameters in each group of an optimizer."""
    if optimizer is None:
        return []
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [group["params"] for group in optimizer.param_groups]
    return [[names.get(id(p), "?") for p in group] for group in groups]


def unlike(
    checkpoint: dict, model: nn.Module, optimizer: Optimizer | None, scheduler: Any
) -> Iterator[str]:
    """What the host would load, and could not."""
    for which, part in (("optimizer", optimizer), ("scheduler", scheduler)):
        if which in checkpoint and part is not None:
            other = unlike_part(which, checkpoint, part)
            if other is None and which == "optimizer":
                other = _unlike_groups(checkpoint, grouped(optimizer, model))
            if other is not None:
                yield other


def unlike_part(kind: str, checkpoint: dict, part: Any) -> str | None:
    """Whether the state is of an optimizer or a scheduler of another class than the one here."""
    saved, here = checkpoint[kind], class_name(part)
    name = checkpoint.get("parts", {}).get(kind)
    if saved is None or part is None:
        before = f"no {kind}" if saved is None else name or f"a {kind}"
        return f"it has {before}, here is {here or 'none'}"
    if name is not None:
        return None if name == here else f"its {kind} is {name}, here is {here}"
    # Of deepinv's own trainer, which saves no names: by what they are set by
    states = saved, part.state_dict()
    if kind == "optimizer":
        before, now = (set().union(*state["param_groups"]) for state in states)
        if before - now and now - before:  # on one side alone it is another version of torch
            own = _few(sorted(now - before))
            return f"its optimizer has {_few(sorted(before - now))}, and not {own} as {here} here"
        return None
    before, now = ({k for k in state if k[0] != "_"} - {"verbose"} for state in states)
    if before == now:
        return None
    return f"its scheduler has {_few(sorted(before))}, here is {here} with {_few(sorted(now))}"


def _unlike_groups(checkpoint: dict, groups: list[list[str]]) -> str | None:
    counts = [len(group["params"]) for group in checkpoint["optimizer"]["param_groups"]]
    own = [len(group) for group in groups]
    if counts != own:
        return f"its optimizer has groups of {counts} parameters, here are {own}"
    if checkpoint.get("groups", groups) != groups:
        return "its optimizer has the parameters in another order"
    return None


def unlike_generators(saved: Mapping[str, str], own: Mapping[str, Generator]) -> Iterator[str]:
    """What stands in the way of going on with the states of random generators."""
    here = {name: kind(generator) for name, generator in own.items()}
    for which, one, other in (("it", saved, here), ("this one", here, saved)):
        alone = [name for name in one if name not in other]
        if alone:
            yield f"{which} alone has the random generators {_few(alone)}"
    for name in saved:
        if name in here and saved[name] != here[name]:
            yield f"its {name} is a {saved[name]}, here is a {here[name]}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
