r"""What an interrupted evaluation goes on from, and how it knows that it may."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from deepinv.utils import TensorList
from torch import nn

from ..attacks.budgets import Budget
from ..attacks.parts import named_parts
from ..memory import modules
from ..training import distributed as processes
from ..training.preemption import replacing, writing
from .batches import Batch
from .results import UNDEFINED, Columns
from .shifts import Shift


class Cache:
    """
    The results so far, in memory and, if there is a path, in a file.

    The file holds one record after another, never written again: the description, and one for each
    batch that is done. The batch at hand has a file beside it, which is replaced after every
    condition: what is written then does not grow with the number of samples.
    """

    def __init__(self, path: Path | None, description: dict[str, str]):
        self.path = path
        self.content: dict[str, Any] = {"description": description, "seconds": 0.0}
        self.content |= {"metrics": {}, "batches": {}, "point": {}}
        self.start()
        if path is None:
            return
        if not path.parent.is_dir():
            raise ValueError(f"state must be a file in a folder that exists, got {str(path)!r}.")
        self.draft = path.with_name(f"{path.name}.batch")
        if not path.exists():
            self.draft.unlink(missing_ok=True)
            return
        try:
            before = self._read(path)
        except Exception as error:
            raise ValueError(
                f"state must be a file that evaluate_robustness wrote, got {str(path)!r}: delete "
                "it or use another name."
            ) from error
        differ = [key for key in description if before.get(key) != description[key]]
        if differ:
            raise self.refusal(f"differs in {', '.join(differ)}")

    def _read(self, path: Path) -> dict[str, str]:
        """Take over what the files hold, and tell which evaluation it is of."""
        (_, first), *others = found = [*_records(path)]
        os.truncate(path, found[-1][0])  # a record that was cut off
        if self.draft.exists():
            others += _records(self.draft)
        for _, record in others:
            self.content["batches"][record["index"]] = record["batch"]
            self.content["metrics"] |= record["metrics"]
            self.content |= {name: record[name] for name in ("point", "seconds")}
        return first["description"]

    def open(self, index: int, digests: list[str]) -> dict:
        """What is known of a batch: its digests, results and pictures."""
        batches = self.content["batches"]
        if index not in batches and self.path is not None and self.draft.exists():
            self._keep()  # a batch that was done when the process was killed
        self.index = index
        if index not in batches:
            batches[index] = {"digests": digests, "results": {}, "pictures": {}}
            self.content["point"] = {}
        elif batches[index]["digests"] != digests:
            raise self.refusal(f"holds other samples in batch {index}")
        return batches[index]

    def start(self) -> None:
        """Time until now was spent on other networks, or on data."""
        self.started = time.monotonic()

    def save(self, done: bool) -> None:
        """Write what is known of the batch, and count the time since the last time or the start."""
        self.content["seconds"] += time.monotonic() - self.started
        self.start()
        if self.path is not None:
            record = {"index": self.index, "batch": self.content["batches"][self.index]}
            record |= {name: self.content[name] for name in ("metrics", "point", "seconds")}
            if not self.path.exists():
                _write(self.path, {"description": self.content["description"]})
            _write(self.draft, record)
            if done:
                self._keep()

    def _keep(self) -> None:
        """Add the record of a batch that is done to those before it."""
        assert self.path is not None
        with writing(self.path), self.path.open("ab") as file:
            file.write(self.draft.read_bytes())
        self.draft.unlink()

    def complete(self, number: int, distributed: bool) -> dict[str, Any]:
        """What a report holds of so many batches, with those that other processes did."""
        parts = processes.gathered(self.content) if distributed else [self.content]
        known = {k: batch for part in parts for k, batch in part["batches"].items()}
        if len(known) > number:
            raise self.refusal(f"holds {len(known)} batches instead of {number}")
        batches = [known[index] for index in range(number)]
        metrics = dict(chain.from_iterable(part["metrics"].items() for part in parts))
        # In lists, as samples may differ in size
        pictures: dict[str, dict[str, list[torch.Tensor]]] = {}
        for batch in batches:
            for label, pair in batch["pictures"].items():
                for name, samples in pair.items():
                    pictures.setdefault(label, {}).setdefault(name, []).extend(samples)
        return {
            "values": _joined(batches, metrics),
            "metrics": metrics,
            "description": self.content["description"],
            "digests": [digest for batch in batches for digest in batch["digests"]],
            "seconds": max(part["seconds"] for part in parts),
            "pictures": pictures,
        }

    def refusal(self, reason: str) -> ValueError:
        return ValueError(
            f"state must be of this very evaluation, but {str(self.path)!r} {reason}: use the "
            "same arguments and data to resume, or another file."
        )


def _write(path: Path, record: dict) -> None:
    """Replace a file by one of this record."""
    data = io.BytesIO()
    torch.save(record, data)
    with replacing(path) as draft:
        draft.write_bytes(data.tell().to_bytes(8, "big") + data.getbuffer())


def _records(path: Path) -> Iterator[tuple[int, dict]]:
    """The records of a file and where they end, without one that was cut off."""
    with path.open("rb") as file:
        while size := int.from_bytes(file.read(8), "big"):
            data = file.read(size)
            if len(data) < size:
                break
            record = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            yield file.tell(), record


def files(
    state: str | os.PathLike | None, model: object, distributed: bool
) -> dict[str, Path | None]:
    """The file of each network: of several, one each in a folder."""
    names = list(model) if isinstance(model, dict) else [""]
    if state is None:
        return dict.fromkeys(names)
    folder, shared = Path(state), distributed and processes.count() > 1
    end = f".{processes.own()}of{processes.count()}" if shared else ""
    if not isinstance(model, dict):
        if folder.is_dir():
            raise ValueError(
                f"state must be a file for one network, got the folder {str(state)!r}: folders are "
                "for a dictionary of networks."
            )
        return {"": Path(f"{state}{end}")}
    if not folder.is_dir() and (folder.exists() or not folder.parent.is_dir()):
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
    return {name: folder / f"{stem}.pt{end}" for name, stem in stems.items()}


def _joined(batches: list[dict], metrics: Iterable[str]) -> dict[str, Columns]:
    """The columns of all conditions, from batch to batch; metrics that one lacks are undefined."""
    values: dict[str, Columns] = {}
    for label in batches[0]["results"]:
        parts = [batch["results"][label] for batch in batches]
        known = dict(chain.from_iterable(part.items() for part in parts))
        lacking = [n for n in known if n in metrics and any(n not in part for part in parts)]
        known |= dict.fromkeys([n + UNDEFINED for n in lacking], torch.tensor(True, device="cpu"))
        values[label] = {}
        for name, like in known.items():
            columns, metric = [], name.removesuffix(UNDEFINED)
            for part, batch in zip(parts, batches, strict=True):
                blank: float = math.nan
                if not like.is_floating_point():
                    blank = metric != name and metric not in part
                columns.append(part.get(name, like.new_full([len(batch["digests"])], blank)))
            values[label][name] = torch.cat(columns)
    return values


def digests(batch: Batch) -> list[str]:
    """A fingerprint of the data of each sample, and of the parameters of its physics."""
    data = [batch.x, *(() if batch.y is None else named_parts("y", batch.y).values())]
    return [
        _digest(*(d[i] for d in data), *map(batch.row(i).get, sorted(batch.params)))
        for i in range(len(batch.x))
    ]


def _digest(*things: object) -> str:
    sha = hashlib.sha256()
    for thing in things:
        if isinstance(thing, torch.Tensor):
            sha.update(f"{tuple(thing.shape)} {thing.dtype}".encode())
            if thing.layout != torch.strided:
                entries = thing.detach().to_sparse_coo().coalesce()
                sha.update(_digest(entries.indices(), entries.values()).encode())
                continue
            # Views that are conjugate or negative hold other bytes than they show
            flat = thing.detach().cpu().resolve_conj().resolve_neg().flatten()
            sha.update(flat.contiguous().view(torch.uint8).numpy().tobytes())
        elif isinstance(thing, (list, tuple)):  # repr leaves out the middle of large tensors
            sha.update(_digest(*thing).encode())
        else:
            sha.update(repr(thing).encode())
    return sha.hexdigest()[:16]


def fingerprint(module: nn.Module) -> str:
    """The kind of a module and its weights or buffers, as text."""
    pairs = chain.from_iterable(_state(module).items())
    return f"{type(module).__name__} {_digest(str(module), *pairs)}"


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and buffers, also those that the host's leaves out, of modules in lists."""
    state: dict[str, torch.Tensor] = {}
    covered: set[nn.Module] = set()
    for i, part in enumerate(modules(module)):
        if part not in covered:
            covered.update(part.modules())
            state |= {f"{i}.{name}": v for name, v in part.state_dict().items()}
    # The host saves where a generator began; here all are seeded anew
    return {k: v for k, v in state.items() if not k.endswith("initial_random_state")}


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
        parts |= dict(thing.named_children()) | {"state": [*_state(thing).values()]}
        del parts["training"]
    elif isinstance(thing, (Budget, Shift)):
        parts = vars(thing)
    elif thing is None or isinstance(thing, (Real, str)):
        return repr(thing)
    else:
        return getattr(thing, "__qualname__", type(thing).__qualname__)
    return type(thing).__qualname__ + describe(parts)
