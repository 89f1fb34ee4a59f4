"""What is left behind: processes, open files and tensors, while what made them is still there."""

import functools
import gc
import os
import time
import weakref
from contextlib import suppress
from multiprocessing import active_children
from pathlib import Path

import deepinv as dinv
import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

import deepinv_jitter as dj

POINTS = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))


def attack(**options):
    return dj.FrankWolfeAttack(dj.L2Ball(0.1), steps=1, **options)


TRAINERS = {
    "jitter": (dj.JitterTrainer, {}),
    "input jitter": (dj.InputJitterTrainer, {"sigma": 0.1}),
    "persistent attack": (
        dj.AttackTrainer,
        {"attack": attack(), "persistent": True, "monitor": attack()},
    ),
}


def build(kind, tmp_path=None, workers=0, model=None, **kwargs):
    trainer, options = TRAINERS[kind]
    model = model or dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=2, jitter=0.1)
    train, test = (
        DataLoader(
            dj.IndexedDataset(dj.PointDataset(n)), batch_size=10, num_workers=workers, shuffle=True
        )
        for n in (40, 20)
    )
    arguments = {
        "train_dataloader": train,
        "eval_dataloader": test,
        "metrics": dinv.metric.MSE(),
        "online_measurements": True,
        "epochs": 2,
        "device": "cpu",
        "save_path": tmp_path,
        "verbose": False,
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return trainer(model, POINTS, optimizer, **arguments | options | kwargs)


@pytest.fixture(scope="module", autouse=True)
def what_was_there_before():
    """Out of the sight of the collector, which would look through it again and again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def held():
    """The files that are open, by what they are, and the child processes."""
    folder, files = Path("/proc/self/fd"), []
    if not folder.is_dir():
        pytest.skip("this system does not tell which files are open")
    gc.collect()  # for the pipes to former processes, which lie in reference cycles
    for link in folder.iterdir():
        with suppress(FileNotFoundError):  # as the one that lists them
            files.append(os.readlink(link))
    return {*files, *(f"process {child.pid}" for child in active_children())}


def left(before):
    """What is held since, once the threads that close pipes have had their time."""
    for _ in range(20):
        if not held() - before:
            break
        time.sleep(0.1)
    return held() - before


@pytest.mark.parametrize("end", ["train", "test", "an error in training"])
def test_no_worker_outlives_its_work(end, tmp_path, monkeypatch):
    """Nor does a file of theirs, while the trainer is still there."""
    before = held()
    trainer = build("persistent attack", tmp_path, workers=1, epochs=1)
    if end == "an error in training":
        monkeypatch.setattr(trainer, "compute_metrics", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.train()
    elif end == "train":
        trainer.train()
    else:
        trainer.test(trainer.eval_dataloader)
    assert not left(before)


def test_workers_of_an_evaluation_end_with_it(tmp_path):
    before = held()
    loader = DataLoader(dj.PointDataset(20), batch_size=10, num_workers=1)
    options = {"epsilons": [0.1], "attacks": "quick", "draws": 2, "verbose": False}
    model = dj.UnfoldedGD(dj.PointMLP(), max_iter=2)
    state = tmp_path / "state.pt"
    dj.evaluate_robustness(model, loader, POINTS, state=state, **options)
    assert not left(before)


def write_volume(path):
    """A small file in the layout of fastMRI."""
    with h5py.File(path, "w") as file:
        file["kspace"] = np.ones((2, 24, 20), np.complex64)
        file["reconstruction_esc"] = np.ones((2, 24, 20), np.float32)
        file["ismrmrd_header"] = "<ismrmrdHeader></ismrmrdHeader>"
        file.attrs.update(max=1.0, norm=1.0, acquisition="PD", patient_id=path.stem)


def test_data_files_are_closed_once_read(tmp_path):
    folder = tmp_path / "volumes"
    folder.mkdir()
    for name in ("a.h5", "b.h5"):
        write_volume(folder / name)
    before = held()
    slices = dj.fastmri_slices(folder, img_size=(24, 20))
    assert not left(before)
    assert len(list(DataLoader(slices, batch_size=2, num_workers=1))) == 2
    assert not left(before)


def test_files_are_read_into_the_memory_of_their_slices(tmp_path, monkeypatch):
    """Not that of the images which these are cut from, nor twice."""

    def memory():
        there = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
        blocks = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in there}
        return sum(blocks.values())

    def spied(function):
        def call(*args, **kwargs):
            taken.append(memory())
            return function(*args, **kwargs)

        return call

    for name in "abcdef":
        write_volume(tmp_path / f"{name}.h5")
    taken = [memory()]
    monkeypatch.setattr(torch, "save", spied(torch.save))
    monkeypatch.setattr(torch, "load", spied(torch.load))
    slices = dj.fastmri_slices(tmp_path, img_size=(8, 8))
    before, saving, loading = taken
    an_image = 4 * 24 * 20
    assert saving - before <= slices.x.nbytes + 2 * an_image
    assert loading - before <= 2 * an_image


@pytest.mark.parametrize("workers", [0, 1])
def test_data_larger_than_memory_are_read_sample_by_sample(workers, tmp_path):
    """A file of 16 GiB, of zeros that take no space on the disk; some of it is trained on."""
    shape = (2**17, 1, 128, 128)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for name in ("x_train", "y_train"):
            file.create_dataset(name, shape, np.float32, chunks=(1, *shape[1:]), fillvalue=0)
    data = dinv.datasets.HDF5Dataset(tmp_path / "data.h5", train=True, use_dict_output=True)
    order = RandomSampler(data, num_samples=40)
    resident = []

    class Resident(dinv.metric.MSE):
        def metric(self, *args, **kwargs):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
            return super().metric(*args, **kwargs)

    held()  # skips where there is no /proc
    build(
        "jitter",
        workers=workers,
        model=dj.UnfoldedGD(torch.nn.Conv2d(1, 1, 3, padding=1), max_iter=1),
        train_dataloader=DataLoader(data, 10, sampler=order, num_workers=workers),
        eval_dataloader=None,
        epochs=1,
        online_measurements=False,
        metrics=Resident(),
        compute_train_metrics=True,
    ).train()
    assert len(resident) == 4 and max(resident) - resident[0] < 2**30


def tensors():
    """How many tensors there are now. The unreachable count too, as nothing collects them."""
    # Not isinstance, which asks lazy objects of other packages for their class
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.fixture
def no_collection():
    """The garbage collector off: tensors in reference cycles would wait for it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


BALL = dj.L2Ball(0.5)
ATTACKS = {
    "PGD": dj.PGDAttack(BALL, steps=3),
    "Frank-Wolfe": dj.FrankWolfeAttack(BALL, steps=3),
    "APGD": dj.APGDAttack(BALL, steps=6),
    "random": dj.RandomAttack(BALL, samples=5),
    "deviation": dj.FrankWolfeAttack(BALL, objective="deviation"),
    "repeated": dj.FrankWolfeAttack(BALL).repeat(2),
    "image domain": dj.FrankWolfeAttack(dj.L2Ball(0.5, domain="image")),
}
SECTIONS = (dj.SeismicConvolution(), (2, 1, 24, 10))
MRI = (dj.SingleCoilMRI(torch.ones(10), img_size=(24, 10)), (2, 2, 24, 10))


@pytest.mark.parametrize(
    "name, problem", [*((name, SECTIONS) for name in ATTACKS), ("Frank-Wolfe", MRI)]
)
def test_attacks_keep_nothing_between_calls(name, problem, no_collection):
    physics, shape = problem
    model = dj.UnfoldedGD(dj.UnrolledDnCNN(shape[1], 3, 8), max_iter=2)

    def call():
        x = torch.randn(shape)
        y = physics(x)
        result = ATTACKS[name].run(model, x, y, physics)
        return [weakref.ref(t) for t in (x, y, result.delta, result.trace)]

    call()
    count = tensors()
    kept = [reference() for reference in call()]
    assert kept == [None] * 4 and tensors() == count


def test_evaluations_keep_nothing_but_the_report(no_collection):
    model = dj.UnfoldedGD(dj.PointMLP(), max_iter=2)
    loader = [{"x": torch.zeros(5, 2)}]
    options = {"epsilons": [0.1], "attacks": "quick", "draws": 2, "verbose": False}
    evaluate = functools.partial(dj.evaluate_robustness, model, loader, POINTS)
    evaluate(**options)
    count = tensors()
    report = evaluate(**options)
    assert tensors() > count
    del report
    assert tensors() == count


@pytest.mark.parametrize("kind", TRAINERS)
def test_training_steps_keep_nothing(kind, no_collection):
    """As many tensors after every epoch, though histories grow by a number each."""
    counts = []

    class Counting(dinv.metric.MSE):
        def metric(self, *args, **kwargs):
            counts.append(tensors())
            return super().metric(*args, **kwargs)

    once = DataLoader(dj.PointDataset(5), batch_size=5)
    build(kind, epochs=3, metrics=Counting(), eval_dataloader=once).train()
    assert len(counts) == 3 and counts[1] == counts[2]


def test_persistent_perturbations_hold_their_own_memory_alone():
    """Not that of whole batches, of which samples attacked long ago would keep many alive."""
    trainer = build("persistent attack", epochs=6, share=0.25)
    trainer.train()
    kept = {d.untyped_storage().data_ptr(): d for d in trainer._deltas.known.values()}
    assert sum(d.untyped_storage().nbytes() for d in kept.values()) == sum(
        d.nbytes for d in trainer._deltas.known.values()
    )
