"""A resumed run is the uninterrupted one whatever draws random numbers, or says so before."""

import functools
import random
import warnings

import deepinv as dinv
import numpy as np
import pytest
import torch
from properties import assert_same_parameters
from test_preemption import struck
from test_trainers import build, histories
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

import deepinv_jitter as dj
from deepinv_jitter.training.replay import inexact

GLOBAL = torch.Generator()


class Images(Dataset):
    """Images of one size, through a transform."""

    def __init__(self, transform=None):
        self.transform = transform

    def __len__(self):
        return 10

    def __getitem__(self, i):
        x = torch.linspace(0, 1 + i, 64).reshape(1, 8, 8)
        return {"x": x if self.transform is None else self.transform(x)}


class Compose:
    def __init__(self, steps):
        self.steps = steps

    def __call__(self, x):
        for step in self.steps:
            x = step(x)
        return x


def shift(seed):
    generator = torch.Generator().manual_seed(seed)
    transform = dinv.transform.Shift(rng=generator)
    return lambda x: transform(x[None])[0]


def masked(seed):
    """As FastMRISliceDataset does with MRISliceTransform."""
    generator = dinv.physics.generator.GaussianMaskGenerator(
        (8, 8), rng=torch.Generator().manual_seed(seed)
    )
    return Compose([lambda x: x * generator.step()["mask"][0]])


def added(generator, draw):
    return lambda x: x + 0.1 * draw(generator)


def module_wide(x):
    return x + torch.rand(1, generator=GLOBAL)


def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(range(10), generator=generator)
    return DataLoader(Images(), batch_sampler=BatchSampler(sampler, 4, False))


class Draws:
    """A pass through data, with a generator of its own."""

    def __init__(self, count, *shape):
        self.generator, self.left, self.shape = torch.Generator().manual_seed(3), count, shape

    def __iter__(self):
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        self.left -= 1
        return {"x": torch.rand(self.shape, generator=self.generator)}


class DrawnImages(torch.utils.data.IterableDataset):
    """With what deepinv asks of a data set."""

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return next(iter(self))

    def __iter__(self):
        return Draws(10, 1, 8, 8)


class OwnLoader:
    drop_last = False

    def __len__(self):
        return 3

    def __iter__(self):
        return Draws(3, 4, 1, 8, 8)


#: Training data, from a seed.
DATA = {
    "stream": lambda seed: DataLoader(DrawnImages(), 4),
    "loader of one's own": lambda seed: OwnLoader(),
    "transform": lambda seed: DataLoader(Images(shift(seed)), 4),
    "list in a transform": lambda seed: DataLoader(Images(Compose([shift(seed)])), 4),
    "masks": lambda seed: DataLoader(Images(masked(seed)), 4),
    "batch sampler": batches,
    "collation": lambda seed: DataLoader(
        Images(),
        4,
        collate_fn=functools.partial(
            lambda g, samples: {
                "x": torch.stack([s["x"] for s in samples]) + torch.rand(1, generator=g)
            },
            torch.Generator().manual_seed(seed),
        ),
    ),
    "numpy": lambda seed: DataLoader(
        Images(added(np.random.default_rng(seed), np.random.Generator.random)), 4
    ),
    "python": lambda seed: DataLoader(Images(added(random.Random(seed), random.Random.random)), 4),
    "module-wide": lambda seed: DataLoader(Images(module_wide), 4),
    "workers": lambda seed: DataLoader(Images(shift(seed)), 4, num_workers=2, shuffle=True),
    "workers that stay": lambda seed: DataLoader(
        Images(), 4, num_workers=2, shuffle=True, persistent_workers=True
    ),
}


def run(folder, loader, epochs=3, **kwargs):
    trainer = build(folder, epochs, train_dataloader=loader, **kwargs)
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    trainer.model = dj.UnfoldedGD(network, max_iter=2, jitter=0.1)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1e-3)
    trainer.eval_dataloader = trainer.scheduler = None
    trainer.compute_eval_losses = False
    return trainer


def quietly(trainer):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "If this training")
        trainer.train()
    return trainer


@pytest.mark.parametrize("data", DATA)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, data):
    """Stopped amid an epoch, and at its end, without a warning; by trainers with other seeds."""
    loaders = [DATA[data](seed) for seed in (0, 0, 7, 8)]
    GLOBAL.manual_seed(0)
    whole = quietly(run(tmp_path / "whole", loaders[0]))
    path = None
    for seed, batches in ((0, 5), (7, 1)):
        GLOBAL.manual_seed(seed)
        part = run(tmp_path / "part", loaders[1 + bool(path)], seed=seed, ckpt_pretrained=path)
        with pytest.raises(SystemExit):
            struck(part, 15, batches)
        path = dj.latest_checkpoint(tmp_path / "part")
    GLOBAL.manual_seed(8)
    again = quietly(run(tmp_path / "part", loaders[3], seed=8, ckpt_pretrained=path))
    assert_same_parameters(again.model, whole.model)
    assert histories(again) == histories(whole)
    for loader in loaders:  # torch is slow to end workers of what is collected in cycles
        loader._iterator = None


class Drawing(dinv.loss.Loss):
    def forward(self, x_net, x, **kwargs):
        return (x_net - x).square().mean(1) * (1 + torch.rand(1))


@pytest.mark.parametrize("place", [(10, True), (6, False)])
def test_what_an_evaluation_draws_goes_on(tmp_path, place):
    """Other numbers for every batch of it, and the same in a resumed run."""
    whole = build(tmp_path / "whole", 4, losses=Drawing())
    whole.train()
    with pytest.raises(SystemExit):
        struck(build(tmp_path / "part", 4, losses=Drawing()), 15, *place)
    path = dj.latest_checkpoint(tmp_path / "part")
    again = build(tmp_path / "a", 4, losses=Drawing(), seed=7, ckpt_pretrained=path)
    again.train()
    assert histories(again) == histories(whole)


class Counting(Images):
    calls = 0

    def __getitem__(self, i):
        self.calls += 1
        return {"x": super().__getitem__(i)["x"] + 0.01 * self.calls}


STAY = {"num_workers": 1, "persistent_workers": True}
INEXACT = {
    "workers that stay and draw": (
        lambda: DataLoader(Images(shift(0)), 4, **STAY),
        r"train_dataloader\[0\] has workers that draw random numbers and stay",
    ),
    "torch's global one in workers that stay": (
        lambda: DataLoader(Images(added(1, torch.rand)), 4, **STAY),
        "set persistent_workers=False",
    ),
    "the system's": (
        lambda: DataLoader(Images(added(random.SystemRandom(), random.SystemRandom.random)), 4),
        r"train_dataloader\[0\] gives something else when it is asked again",
    ),
    "a new one each time": (
        lambda: DataLoader(Images(lambda x: x + np.random.default_rng().random()), 4),
        "gives something else when it is asked again",
    ),
    "a counter": (lambda: DataLoader(Counting(), 4), "by a place that it keeps or"),
}


@pytest.mark.parametrize("case", INEXACT)
def test_what_cannot_be_brought_back_is_said_before(tmp_path, case):
    loader, message = INEXACT[case]
    before = torch.get_rng_state()
    assert len(inexact({"data": [loader()]})) == 1
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.warns(UserWarning, match=f"interrupted it can go on, but not exactly: .*{message}"):
        run(tmp_path, loader(), epochs=1).train()
    quietly(run(None, loader(), epochs=1))  # of which nothing goes on


class Stream(torch.utils.data.IterableDataset):
    """Numbers, on from where it was or from the start."""

    def __init__(self, goes_on):
        self.goes_on, self.place = goes_on, 0

    def __iter__(self):
        place = self.place
        while True:
            place += 1
            if self.goes_on:
                self.place = place
            yield {"x": torch.tensor(float(place))}


@pytest.mark.parametrize(
    "options, goes_on, said",
    [({}, True, 1), ({}, False, 0), ({"num_workers": 1}, True, 0), (STAY, True, 1)],
)
def test_streams(options, goes_on, said):
    """A worker that does not stay begins each epoch with a new copy."""
    stream = Stream(goes_on)
    assert len(inexact({"data": [DataLoader(stream, 4, **options)]})) == said
    assert stream.place == 0
