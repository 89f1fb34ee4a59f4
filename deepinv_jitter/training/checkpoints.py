r"""Checkpoints: the newest of a folder, what is in a file, and whether it fits a training."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .generators import Generator, kind
from .host import BEST, CHECKPOINTS

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
    places = {}
    for path in sorted(Path(folder).rglob(CHECKPOINTS)):
        if path.name == BEST:
            continue
        try:
            places[path] = _place(path, loaded(path, mmap=True))
        except (OSError, UnpicklingError, ValueError):
            warnings.warn(f"{str(path)!r} is damaged or no checkpoint, and left out.", stacklevel=2)
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
    """
    The content of a checkpoint, without running any code in it.

    :param bool mmap: read tensors when they are used.
    :raises pickle.UnpicklingError: if the file holds more than tensors and builtins.
    :raises ValueError: if it is damaged or no checkpoint.
    """
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


def check_weights(model: nn.Module, weights: dict, path: str | os.PathLike, strict: bool) -> None:
    """
    Refuse the weights of another model.

    :raises ValueError: if names or shapes differ.
    """
    own = model.state_dict()
    differ = {k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape}
    if strict:
        differ |= own.keys() ^ weights.keys()
    if differ:
        raise ValueError(
            f"ckpt_pretrained must be of this model, but {str(path)!r} differs from it in "
            f"{_few(sorted(differ))}: build the model as it was trained."
        )


def check_like(path: str | os.PathLike, differences: Iterable[str]) -> None:
    """
    Refuse what was saved by a training that was built otherwise.

    :raises ValueError: if there is any difference.
    """
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
    if "optimizer" in checkpoint and optimizer is not None:
        groups = grouped(optimizer, model)
        yield from unlike_optimizer(checkpoint, optimizer, groups)
    if "scheduler" in checkpoint and scheduler is not None:
        yield from unlike_scheduler(checkpoint, scheduler)


def unlike_optimizer(
    checkpoint: dict, optimizer: Optimizer, groups: list[list[str]]
) -> Iterator[str]:
    """What stands in the way of going on with the state of an optimizer."""
    saved = checkpoint["optimizer"]
    name = checkpoint.get("parts", {}).get("optimizer")
    here = class_name(optimizer)
    if saved is None:
        yield f"it has no optimizer, here is {here}"
        return
    if name is None:  # deepinv's own trainer: what the optimizers are set by
        sides = saved["param_groups"], optimizer.param_groups
        for before, now in zip(*sides, strict=False):
            lacking = now.keys() - before.keys(), before.keys() - now.keys()
            if all(lacking):  # on one side alone it is another version of torch
                yield (
                    f"its optimizer has {_few(sorted(lacking[1]))}, and not "
                    f"{_few(sorted(lacking[0]))} as {here} here"
                )
                return
    elif name != here:
        yield f"its optimizer is {name}, here is {here}"
        return
    before = checkpoint.get("groups")
    counts = [len(group["params"]) for group in saved["param_groups"]]
    if counts != [len(group) for group in groups]:
        yield (
            f"its optimizer has groups of {counts} parameters, here are "
            f"{[len(group) for group in groups]}"
        )
    elif before is not None and before != groups:
        yield "its optimizer has the parameters in another order"


def unlike_scheduler(checkpoint: dict, scheduler: Any) -> Iterator[str]:
    """What stands in the way of going on with the state of a scheduler."""
    saved, here = checkpoint["scheduler"], class_name(scheduler)
    name = checkpoint.get("parts", {}).get("scheduler")
    if (saved is None) != (scheduler is None):
        name = name or "a scheduler"
        yield f"it has {name if saved else 'no scheduler'}, here is {here or 'none'}"
    elif scheduler is None:
        return
    elif name is None:
        own = scheduler.state_dict()
        keys = [{k for k in s if k[0] != "_"} - {"verbose"} for s in (saved, own)]
        if keys[0] != keys[1]:
            yield (
                f"its scheduler has {_few(sorted(keys[0]))}, here is {here} with "
                f"{_few(sorted(keys[1]))}"
            )
    elif name != here:
        yield f"its scheduler is {name}, here is {here}"


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
