r"""What an interrupted evaluation goes on from, and how it knows that it may."""

from __future__ import annotations

import hashlib
import os
import re
import time
from itertools import chain
from numbers import Real
from pathlib import Path

import torch
from deepinv.physics import StackedPhysics
from deepinv.utils import TensorList
from torch import nn

from ..attacks.budgets import Budget
from ..attacks.parts import Measurements, named_parts
from ..training import distributed as ranks
from ..training.preemption import replacing
from .shifts import Shift

Columns = dict[str, torch.Tensor]


class Cache:
    """The results so far, in memory and, if there is a path, in a file."""

    def __init__(self, path: str | os.PathLike | None, description: dict[str, str]):
        self.path = None if path is None else Path(path)
        self.content = {
            "description": description,
            "metrics": {},
            "batches": {},
            "point": {},
            "seconds": 0.0,
        }
        self.start()
        if self.path is not None and not self.path.parent.is_dir():
            raise ValueError(
                f"state must be a file in a folder that exists, got {str(path)!r}."
            )
        if self.path is not None and self.path.exists():
            self.content = _loaded(self.path, description)

    @property
    def batches(self) -> dict[int, dict]:
        """Data and results of the batches by their number."""
        return self.content["batches"]

    def open(self, index: int, digests: list[str]) -> dict[str, Columns]:
        """What is known of a batch."""
        if index not in self.batches:
            self.batches[index] = {"digests": digests, "results": {}, "pictures": {}}
            self.content["point"] = {}
        elif self.batches[index]["digests"] != digests:
            raise self.refusal(f"batch {index} holds other samples")
        return self.batches[index]["results"]

    def start(self) -> None:
        """Time that went by until now was spent on other networks, or on data."""
        self.started = time.monotonic()

    def save(self) -> None:
        """Write what is known, and count the time since the last time or the start."""
        self.content["seconds"] += time.monotonic() - self.started
        self.start()
        if self.path is not None:
            with replacing(self.path) as draft:
                torch.save(self.content, draft)

    def complete(self, number: int, distributed: bool) -> dict:
        """The content of so many batches, with those that other ranks did."""
        parts = ranks.gathered(self.content) if distributed else [self.content]
        batches = {k: batch for part in parts for k, batch in part["batches"].items()}
        if len(batches) > number:
            raise self.refusal(f"are {len(batches)} batches instead of {number}")
        return self.content | {
            "batches": [batches[index] for index in range(number)],
            # a rank without a batch knows no metrics
            "metrics": max((part["metrics"] for part in parts), key=len),
            "seconds": max(part["seconds"] for part in parts),
        }

    def refusal(self, reason: str) -> ValueError:
        return ValueError(
            f"state must be of this very evaluation, but in {str(self.path)!r} {reason}: use the "
            "same arguments and data to resume, or another file."
        )


def _loaded(path: Path, description: dict[str, str]) -> dict:
    """The content of a state, if it is of the evaluation so described."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        before = content["description"]
    except Exception as error:
        raise ValueError(
            f"state must be a file that evaluate_robustness wrote, got {str(path)!r}: delete it or "
            "use another name."
        ) from error
    differ = [key for key in description if before.get(key) != description[key]]
    if differ:
        raise ValueError(
            f"state must be of this very evaluation, but {str(path)!r} differs in "
            f"{', '.join(differ)}: use the same arguments to resume, or another file."
        )
    return content


def files(
    state: str | os.PathLike | None, model: object, distributed: bool
) -> dict[str, Path | None]:
    """The file of each network: of several, one each in a folder."""
    several = isinstance(model, dict)
    names = list(model) if several else [""]
    if state is None:
        return dict.fromkeys(names)
    if not several and Path(state).is_dir():
        raise ValueError(
            f"state must be a file for one network, got the folder {str(state)!r}: folders are for "
            "a dictionary of networks."
        )
    places = {"": Path(state)}
    if several:
        folder = Path(state)
        if not folder.is_dir():
            if folder.exists() or not folder.parent.is_dir():
                raise ValueError(
                    "state must be a folder for several networks, or a new one in a folder that "
                    f"exists, got {str(state)!r}."
                )
            folder.mkdir(exist_ok=True)
        stems = {name: re.sub(r"[^-\w. ]", "_", name) for name in names}
        if len({stem.casefold() for stem in stems.values()}) < len(names):
            raise ValueError(
                "names of models must differ in their letters and digits, by which files are "
                f"called, got {names}."
            )
        places = {name: folder / f"{stem}.pt" for name, stem in stems.items()}
    if distributed and ranks.count() > 1:
        end = f".{ranks.own()}of{ranks.count()}"
        places = {name: Path(f"{path}{end}") for name, path in places.items()}
    return places


def joined(batches: list[dict]) -> dict[str, Columns]:
    """The columns of all conditions, from batch to batch."""
    return {
        label: {
            name: torch.cat([batch["results"][label][name] for batch in batches])
            for name in columns
        }
        for label, columns in batches[0]["results"].items()
    }


def pictures(batches: list[dict]) -> dict[str, dict[str, list[torch.Tensor]]]:
    """The samples that were kept of all conditions; they may differ in size."""
    found: dict[str, dict[str, list[torch.Tensor]]] = {}
    for batch in batches:
        for label, pair in batch["pictures"].items():
            for name, samples in pair.items():
                found.setdefault(label, {}).setdefault(name, []).extend(samples)
    return found


def row(value: object, i: int, count: int) -> object:
    """The share of one sample in a parameter of a batch."""
    batched = isinstance(value, torch.Tensor) and value.ndim and len(value) == count
    return value[i : i + 1] if batched else value


def digests(x: torch.Tensor, y: Measurements | None, params: dict) -> list[str]:
    """A fingerprint of the data of each sample."""
    parts = [] if y is None else named_parts("y", y).values()
    return [
        _digest(
            x[i],
            *(part[i] for part in parts),
            *(row(params[name], i, len(x)) for name in sorted(params)),
        )
        for i in range(len(x))
    ]


def _digest(*things: object) -> str:
    sha = hashlib.sha256()
    for thing in things:
        if isinstance(thing, torch.Tensor):
            sha.update(f"{tuple(thing.shape)} {thing.dtype}".encode())
            flat = thing.detach().cpu().contiguous().flatten()
            sha.update(flat.view(torch.uint8).numpy().tobytes())
        else:
            sha.update(repr(thing).encode())
    return sha.hexdigest()[:16]


def fingerprint(module: nn.Module) -> str:
    """The kind of a module and its weights or buffers, as text."""
    # The host saves where a generator began; here all are seeded anew
    state = {
        name: value
        for name, value in _state_dict(module).items()
        if not name.endswith("initial_random_state")
    }
    pairs = chain.from_iterable(sorted(state.items(), key=lambda item: item[0]))
    return f"{type(module).__name__} {_digest(str(module), *pairs)}"


def _state_dict(module: nn.Module) -> dict[str, torch.Tensor]:
    """That of the module and of the parts of a stacked physics, which the host's leaves out."""
    if not isinstance(module, StackedPhysics):
        return module.state_dict()
    parts = [part.state_dict() for part in module.physics_list]
    return module.state_dict() | {
        f"{i}.{name}": value
        for i, part in enumerate(parts)
        for name, value in part.items()
    }


def describe(thing: object) -> str:
    """What something is made of, as text that is the same in another process."""
    if isinstance(thing, torch.Tensor):
        return _digest(thing)
    if isinstance(thing, dict):
        return f"{{{', '.join(f'{k}: {describe(thing[k])}' for k in thing)}}}"
    if isinstance(thing, (list, tuple, TensorList)):
        return f"[{', '.join(map(describe, thing))}]"
    if isinstance(thing, nn.Module):
        parts = {k: v for k, v in vars(thing).items() if not k.startswith("_")}
        parts |= dict(thing.named_children()) | {
            "state": [*thing.state_dict().values()]
        }
        del parts["training"]
    elif isinstance(thing, (Budget, Shift)):
        parts = vars(thing)
    elif thing is None or isinstance(thing, (Real, str)):
        return repr(thing)
    else:
        return getattr(thing, "__qualname__", type(thing).__qualname__)
    return type(thing).__qualname__ + describe(parts)
