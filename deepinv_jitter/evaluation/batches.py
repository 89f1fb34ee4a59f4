r"""The samples of an evaluation: truths, measurements, and the parameters of their physics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations
from typing import Any

import torch
from deepinv.datasets.base import batch_as_dict
from deepinv.physics import LinearPhysics, NoiseModel, Physics, StackedPhysics
from deepinv.physics.generator import PhysicsGenerator
from deepinv.utils import TensorList
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .. import checks
from ..attacks.noise import noise_models
from ..attacks.parts import Measurements, named_parts
from ..memory import Memory, modules
from ..physics.parameters import LEVELS
from ..training.rng import seed_of, seeded


@dataclass
class Source:
    """A loader with the physics of its samples, and the generator of their parameters, if any."""

    loader: Iterable
    physics: Physics
    generator: PhysicsGenerator | None

    @cached_property
    def memory(self) -> Memory:
        """The physics as it is before any batch, which updates it by replacing tensors."""
        return Memory(modules(self.physics))

    def batches(
        self, device: torch.device, start: int, first: int = 0, turns: int = 1
    ) -> Iterator[tuple[Batch | None, int]]:
        """
        Every ``turns``-th batch from the ``first`` on, and of the others the size alone; they are
        not read where that can be told from their indices.
        """
        order = _indices(self.loader) if turns > 1 else None
        if order is None:
            for number, data in enumerate(self.loader):
                read = self.batch(data, device, start)
                yield read if number % turns == first else None, len(read.x)
                start += len(read.x)
            return
        own = iter(_part(self.loader, order[first::turns]))
        for number, asked in enumerate(order):
            batch = self.batch(next(own), device, start) if number % turns == first else None
            if batch is not None and len(batch.x) != len(asked):
                raise ValueError(
                    "collate_fn must give one sample for each index where processes share the "
                    f"data, got {len(batch.x)} for {len(asked)}: leave distributed=False."
                )
            yield batch, len(asked)
            start += len(asked)

    def batch(self, data: Any, device: torch.device, start: int) -> Batch:
        """A batch of the loader, checked."""
        if not isinstance(data, (dict, list, tuple, torch.Tensor)):
            raise TypeError(
                f"every batch must be a dictionary, a tuple or a tensor, got {type(data).__name__}."
            )
        data = batch_as_dict(data)
        if data.get("x") is None:
            raise ValueError(
                "every batch needs the truth x, which errors are measured against, got "
                f"{sorted(data)}."
            )

        def moved(value: Any) -> Any:
            return value.to(device) if isinstance(value, (torch.Tensor, TensorList)) else value

        x, y = moved(data["x"]), moved(data.get("y"))
        # Once per batch: NaN would travel silently into every mean
        checks.batch(x=x, **({} if y is None else named_parts("y", y)))
        params = {name: moved(value) for name, value in (data.get("params") or {}).items()}
        if self.generator is not None and (y is not None or params):
            raise ValueError(
                "physics_generator draws the parameters that samples are measured with, but "
                f"batches bring {'params' if y is None else 'y'}, too: leave one of them out."
            )
        return Batch(self, x, y, start, params)

    def drawn(
        self, numbers: Iterable[int], device: torch.device, seed: int
    ) -> tuple[dict, frozenset[str]]:
        """Parameters that follow from the numbers of the samples, and which differ by sample."""
        generator, rows = self.generator, []
        assert generator is not None
        for number in numbers:
            seed_here = seed_of(seed, "physics", number)
            with seeded(seed_here, generator):
                rows.append(generator.step(batch_size=1, seed=seed_here))
        params: dict[str, Any] = {}
        for name in dict.fromkeys(chain.from_iterable(rows)):
            values = [row.get(name) for row in rows]
            shapes = {tuple(getattr(v, "shape", ())) for v in values}
            tensors = [v for v in values if isinstance(v, torch.Tensor)]
            one_shape = len(shapes) == 1 and min(shapes)[:1] == (1,)
            if len(tensors) == len(rows) and one_shape:
                params[name] = torch.cat(tensors).to(device)
            elif all(isinstance(v, list) for v in values):
                params[name] = list(chain.from_iterable(values))
            elif not tensors and all(v == values[0] for v in values):
                params[name] = values[0]
            else:
                raise ValueError(
                    f"physics_generator must draw {name!r} in one shape (1, ...) for all samples "
                    f"of a batch, got {sorted(shapes)}: use batches of one sample."
                )
        each = (n for n, v in params.items() if isinstance(v, (torch.Tensor, list)))
        return params, frozenset(each)


@dataclass
class Batch:
    """Samples and what they are measured with; the first is number ``start`` of all."""

    source: Source
    x: torch.Tensor
    y: Measurements | None
    start: int
    params: dict
    own: frozenset[str] = frozenset()  # the parameters with one value per sample

    @property
    def physics(self) -> Physics:
        """The physics, with the parameters that were set last."""
        return self.source.physics

    def row(self, i: int) -> dict:
        """The parameters of one sample: its own, and those that all share."""
        return {k: v[i : i + 1] if k in self.own else v for k, v in self.params.items()}

    def settle(self, seed: int) -> None:
        """Draw the parameters, or tell which of those given are the samples' own; check them."""
        candidates = [n for n, v in self.params.items() if _length(v) == len(self.x)]
        if self.source.generator is not None:
            numbers = range(self.start, self.start + len(self.x))
            self.params, self.own = self.source.drawn(numbers, self.x.device, seed)
        parts = list(modules(self.physics))
        unknown = {n for n in self.params if not any(hasattr(part, n) for part in parts)}
        # Generators of operators may draw more than those keep
        ignored = unknown == {*self.params} or not unknown.isdisjoint(LEVELS)
        if self.y is None and unknown and ignored:
            raise ValueError(
                f"the physics has none of the parameters {sorted(unknown)}, which would be "
                "ignored: set, for example, a noise model that has them."
            )
        with seeded(seed_of(seed, "first", self.start), self.physics):
            if candidates and len(self.x) > 1:
                self._tell_apart(candidates)
            else:
                self._check_first()

    def measure(self, seed: int) -> None:
        """Measure samples without measurements one by one: noise depends on no other sample."""
        if self.y is None:
            made = []
            for i in range(len(self.x)):
                self._set(self.row(i))
                with seeded(seed_of(seed, "noise", self.start + i), self.physics):
                    made.append(self.physics(self.x[i : i + 1]))
            if isinstance(made[0], TensorList):
                self.y = TensorList([torch.cat(part) for part in zip(*made, strict=True)])
            else:
                self.y = torch.cat(made)
        self._set(self.params)

    def _set(self, params: dict) -> None:
        """Give the physics these parameters, and nothing that an earlier batch has set."""
        self.source.memory.restore()
        self.physics.update(**params)
        if isinstance(self.physics, StackedPhysics):  # whose update reaches none of these
            for model in filter(None, noise_models(self.physics)):
                model.update_parameters(**params)

    def _tell_apart(self, candidates: list[str]) -> None:
        """
        Which parameters have one value per sample: those without which the first is not measured.

        Their length does not tell: a wavelet of 5 samples may meet 5 sections. The physics does.
        """
        for count in range(len(candidates) + 1):
            for own in combinations(candidates, count):
                self.own = frozenset(own)
                try:
                    return self._check_first()
                except Exception:
                    if count == len(candidates):
                        raise

    def _check_first(self) -> None:
        """Refuse parameters with which one sample is not measured as one, or not at all."""
        try:
            self._set(self.row(0))
            made = self._made_of_first()
        except Exception as error:
            found = modules(self.physics)
            unset = [name for part in found for name, b in part._buffers.items() if b is None]
            if not unset:
                raise
            raise ValueError(
                f"the physics cannot measure a sample ({error}), and its {', '.join(unset)} was "
                "never set: give physics_generator, or parameters with the batches, as params, or "
                "set them by update."
            ) from error
        for thing in made:
            parts = named_parts("y", thing).values()
            tensors = all(isinstance(part, torch.Tensor) for part in parts)
            if not tensors or any(len(part) != 1 for part in parts):
                got = " and ".join(str(tuple(getattr(p, "shape", ()))) for p in parts)
                raise ValueError(
                    "the physics must measure samples one by one, as a tensor, got "
                    f"{got if tensors else type(thing).__name__} for one sample: give its "
                    "parameters with the batches, as params, for each sample or for all, or give "
                    "physics_generator."
                )

    def _made_of_first(self) -> list[Measurements]:
        """What the physics makes of the first sample alone, by all of its parameters."""
        if self.y is None:
            return [self.physics(self.x[:1])]
        parts = [part[:1] for part in named_parts("y", self.y).values()]
        y = TensorList(parts) if isinstance(self.y, TensorList) else parts[0]
        # Of ones, which every noise can be added to
        made = [
            noise(torch.ones_like(part))
            for noise, part in zip(noise_models(self.physics), parts, strict=True)
            if isinstance(noise, NoiseModel)
        ]
        if isinstance(self.physics, LinearPhysics):
            made.append(self.physics.A_adjoint(y))
        elif self.params:
            made.append(self.physics.A(self.x[:1]))
        return made


def paired(dataloader: Any, physics: Any, generator: Any) -> list[Source]:
    """Loaders with their physics and generators, as deepinv's Trainer pairs lists of them."""
    loaders, several = [dataloader], isinstance(physics, (list, tuple))
    listed = isinstance(dataloader, (list, tuple)) and len(dataloader) > 0
    # A list may also be one loader, made of batches
    if listed and (several or all(isinstance(d, DataLoader) for d in dataloader)):
        loaders = [*dataloader]
    physics = physics if several else [physics] * len(loaders)
    if not isinstance(generator, (list, tuple)):
        generator = [generator] * len(physics)
    if not len(loaders) == len(physics) == len(generator):
        raise ValueError(
            "dataloader, physics and physics_generator must be one each or lists of one length, "
            f"got {len(loaders)}, {len(physics)} and {len(generator)}."
        )
    drawing = [g for g in generator if g is not None]
    for name, noun, kind, things in (
        ("dataloader", "iterable", Iterable, loaders),
        ("physics", "a deepinv Physics", Physics, physics),
        ("physics_generator", "a deepinv PhysicsGenerator", PhysicsGenerator, drawing),
    ):
        for thing in things:
            if not isinstance(thing, kind):
                raise TypeError(f"{name} must be {noun}, got {type(thing).__name__}.")
    return [Source(*parts) for parts in zip(loaders, physics, generator, strict=True)]


class _Indices(Dataset):
    """A data set in which every sample is its index."""

    def __getitem__(self, index: Any) -> Any:
        return index


def _indices(loader: Iterable) -> list[list] | None:
    """Of every batch, drawn as the loader itself would; ``None`` where no index tells a sample."""
    if (
        type(loader) is not DataLoader
        or loader.batch_sampler is None
        or isinstance(loader.dataset, IterableDataset)
    ):
        return None
    options: dict[str, Any] = {"collate_fn": list, "generator": loader.generator}
    return list(DataLoader(_Indices(), batch_sampler=loader.batch_sampler, **options))


def _part(loader: Any, batches: list[list]) -> DataLoader:
    """A loader of some batches alone."""
    names = "num_workers collate_fn pin_memory timeout worker_init_fn multiprocessing_context"
    options: dict[str, Any] = {n: getattr(loader, n) for n in [*names.split(), "prefetch_factor"]}
    return DataLoader(loader.dataset, batch_sampler=batches, **options)


def _length(value: Any) -> int | None:
    """The number of values, of what may hold some for several samples."""
    sized = isinstance(value, (torch.Tensor, list, tuple))
    return len(value) if sized and getattr(value, "ndim", None) != 0 else None
