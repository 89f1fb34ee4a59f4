"""Random generators are found wherever they are, and brought back whatever their kind."""

import functools
import io
import random
import types

import deepinv as dinv
import numpy as np
import pytest
import torch
from deepinv.datasets.fastmri import MRISliceTransform
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset

import deepinv_jitter as dj
from deepinv_jitter.training import rng

KINDS = {
    "torch": torch.Generator,
    **{
        kind.__name__: functools.partial(lambda kind: np.random.Generator(kind(1)), kind)
        for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64)
    },
    "numpy's old": lambda: np.random.RandomState(1),
    "python": lambda: random.Random(1),
}
GLOBAL = torch.Generator()


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_plain_data_and_bring_back(kind):
    generator = KINDS[kind]()
    rng.drawn(generator)
    file = io.BytesIO()
    torch.save(rng.place(generator), file)
    file.seek(0)
    draws = [rng.drawn(generator) for _ in range(3)]
    rng.put(generator, torch.load(file, weights_only=True))
    assert draws == [rng.drawn(generator) for _ in range(3)]
    assert len(set(draws)) == 3
    rng.reseed(generator, 2**40)
    first = rng.drawn(generator)
    rng.reseed(generator, 2**40)
    assert first == rng.drawn(generator)


def closing(generator):
    return lambda batch: torch.rand(len(batch), generator=generator)


class WithGlobal:
    def __getitem__(self, i):
        return torch.rand(1, generator=GLOBAL)


class WithSlot:
    __slots__ = ("rng",)

    def __init__(self, rng):
        self.rng = rng


def hooked(generator):
    module = torch.nn.Sequential(torch.nn.Identity())
    module[0].register_forward_hook(closing(generator))
    return module


def cyclic(generator):
    one = types.SimpleNamespace()
    one.other = [WithSlot(one), types.SimpleNamespace(one=one, rng=generator)]
    return one


HOLDERS = {
    "itself": lambda g: g,
    "attribute": lambda g: dinv.physics.GaussianNoise(0.1, rng=g),
    "submodule": lambda g: dinv.physics.Denoising(dinv.physics.GaussianNoise(rng=g)),
    "transform": lambda g: Subset(Held(dinv.transform.Shift(rng=g)), [0]),
    "mask of a transform": lambda g: Held(
        MRISliceTransform(
            mask_generator=dinv.physics.generator.GaussianMaskGenerator((8, 8), rng=g)
        )
    ),
    "list": lambda g: Held([None, {"a": (1, g)}]),
    "long list of them": lambda g: Held([g, *map(random.Random, range(2000))]),
    "batch sampler": lambda g: DataLoader(
        range(4), batch_sampler=BatchSampler(RandomSampler(range(4), generator=g), 2, False)
    ),
    "partial": lambda g: functools.partial(max, 1, key=g),
    "method": lambda g: WithSlot(g).__init__,
    "closure": closing,
    "default": lambda g: types.FunctionType((lambda x: x).__code__, {}, "f", (g,)),
    "slot": WithSlot,
    "hook": hooked,
    "jitter": lambda g: dj.UnfoldedGD(dj.PointMLP(), jitter=dj.GaussianJitter(0.1, generator=g)),
    "cycle": cyclic,
}


class Held:
    def __init__(self, transform):
        self.transform = transform
        self.files = ["a"] * 10**6


@pytest.mark.parametrize(
    "kind, holder",
    [*(("torch", holder) for holder in HOLDERS), *((kind, "list") for kind in KINDS)],
)
def test_found(kind, holder):
    generator = KINDS[kind]()
    found = rng.named({"thing": HOLDERS[holder](generator)})
    assert [g for g in found.values() if g is generator] == [generator]


def test_global_and_class_wide_ones_are_found():
    class Wide(WithGlobal):
        rng = np.random.default_rng(0)

    found = rng.named({"data": Wide()})
    assert found == {"data.Wide.rng": Wide.rng, "data.WithGlobal.__getitem__.GLOBAL": GLOBAL}


def test_names_do_not_depend_on_what_was_built_before():
    def build():
        law = dj.GaussianJitter(0.1, generator=torch.Generator())
        model = dj.UnfoldedGD(hooked(torch.Generator()), jitter=law)
        return list(rng.named({"model": model}))

    first = build()
    hooked(torch.Generator())
    assert build() == first and len(set(first)) == 2


def test_what_draws_from_the_system_has_no_state():
    assert rng.named({"thing": random.SystemRandom()}) == {}


def test_many_files_cost_nothing(monkeypatch):
    looked = []
    parts = rng._parts
    monkeypatch.setattr(rng, "_parts", lambda t: looked.append(t) or parts(t))
    rng.named({"data": Held([["a", 1.0]] * 5000)})
    assert len(looked) < 10


def test_generators_to_which_one_way_leads_are_all_found():
    """A key of a dictionary may be written like the number of another."""
    several = [torch.Generator() for _ in range(4)]
    pairs = [{0: a, "0": b} for a, b in (several[:2], several[2:])]
    found = rng.named({"thing": {0: pairs[0], "0": pairs[1]}})
    assert len(found) == 4 and {*found.values()} == {*several}
